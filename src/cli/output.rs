//! What a person, or a program, reads.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the one place that prints")]

use std::process::{ExitCode, Termination};

use cachekeeper_config::diagnostic::{Diagnostic, render};

/// How a command ended (README.md; the numbers above 63 are those of `sysexits.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All right.
    Ok,
    /// The work failed, or differences were found.
    Failed,
    /// The command line was wrong.
    Usage,
    /// A server cannot be reached.
    Unavailable,
    /// The configuration is wrong.
    Configuration,
    /// Ended by a second signal of this number.
    Signal(u8),
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unavailable => 69,
            Self::Configuration => 78,
            Self::Signal(number) => 128 + number,
        })
    }
}

/// Where output goes: results to standard output, everything else to standard error.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Whether results are JSON.
    pub json: bool,
}

impl Output {
    /// A line of a result.
    pub fn line(&self, text: &str) {
        use std::io::Write;
        // A reader that closed the pipe early is no error of ours.
        drop(writeln!(std::io::stdout(), "{text}"));
    }

    /// A result in both forms.
    pub fn result(&self, text: &str, json: &serde_json::Value) {
        if self.json { self.line(&json.to_string()) } else { self.line(text) }
    }

    /// Something worth knowing.
    pub fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    /// Why it failed.
    pub fn error(&self, text: &str) {
        eprintln!("error: {text}");
    }

    /// Why there is no result. Who asked for JSON gets some all the same.
    pub fn failure(&self, text: &str) {
        self.error(text);
        if self.json {
            self.line(&serde_json::json!({ "ok": false, "error": text }).to_string());
        }
    }

    /// Asks whether to do what was said, unless the command line has answered. An error: it is not to be done.
    pub fn confirm(&self, is_confirmed: bool) -> Result<(), Exit> {
        use std::io::{IsTerminal, Write};
        if is_confirmed {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            self.failure("nothing is done: say --yes, because nobody can be asked here");
            return Err(Exit::Usage);
        }
        eprint!("go on? [yes/no] ");
        drop(std::io::stderr().flush());
        let mut answer = String::new();
        if std::io::stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes" {
            return Ok(());
        }
        self.note("nothing is done");
        Err(Exit::Failed)
    }

    /// Problems with the configuration.
    pub fn problems(&self, problems: &[Diagnostic]) {
        if self.json {
            println!("{}", serde_json::json!({ "ok": false, "problems": problems }));
        } else {
            eprintln!("{}", render(problems));
        }
    }
}
