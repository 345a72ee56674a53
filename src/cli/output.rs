//! What a person, or a program, reads.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::{ExitCode, Termination};
use std::sync::{Mutex, PoisonError};

use tokio::io::Interest;
use tokio::net::unix::pipe;

use crate::telemetry;
use cachekeeper_config::diagnostic::{Diagnostic, render};

/// How a command ended (docs/verbs.md; the numbers above 63 are those of `sysexits.h`).
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
#[derive(Debug)]
pub struct Output {
    /// Whether results are JSON.
    pub json: bool,
    /// Why nothing more can be written to standard output.
    broken: Mutex<Option<io::Error>>,
}

impl Output {
    /// Output in one of the two forms.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json, broken: Mutex::default() }
    }

    /// A line of a result.
    pub fn line(&self, text: &str) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.is_none() {
            *broken = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush()).err();
        }
    }

    /// Whether nobody reads any more what is written.
    pub fn is_broken(&self) -> bool {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Waits until nobody reads any more what is written: a pipe that was closed. What is no pipe is never closed so.
    pub async fn closed(&self) {
        let waiting = async {
            let copy = io::stdout().as_fd().try_clone_to_owned()?;
            let pipe = pipe::Sender::from_owned_fd_unchecked(copy)?;
            pipe.ready(Interest::ERROR).await
        };
        if waiting.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A result in both forms.
    pub fn result(&self, text: &str, json: &serde_json::Value) {
        if self.json { self.line(&json.to_string()) } else { self.line(text) }
    }

    /// Something worth knowing.
    pub fn note(&self, text: &str) {
        // After the log lines that came before.
        telemetry::flush();
        // Whoever closed standard error does not want to know.
        drop(writeln!(io::stderr(), "{text}"));
    }

    /// Why it failed.
    pub fn error(&self, text: &str) {
        self.note(&format!("error: {text}"));
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
        if is_confirmed {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            self.failure("nothing is done: say --yes, because nobody can be asked here");
            return Err(Exit::Usage);
        }
        drop(write!(io::stderr(), "go on? [yes/no] "));
        drop(io::stderr().flush());
        let mut answer = String::new();
        if io::stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes" {
            return Ok(());
        }
        self.note("nothing is done");
        Err(Exit::Failed)
    }

    /// Problems with the configuration.
    pub fn problems(&self, problems: &[Diagnostic]) {
        if self.json {
            self.line(&serde_json::json!({ "ok": false, "problems": problems }).to_string());
        } else {
            self.note(&render(problems));
        }
    }

    /// How the command ends after all: a result that could not be written is not there. A reader that closed the pipe has
    /// seen enough.
    #[must_use]
    pub fn end(&self, exit: Exit) -> Exit {
        telemetry::end();
        telemetry::flush();
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        match broken {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.error(&format!("the result cannot be written to standard output: {error}"));
                if exit == Exit::Ok { Exit::Failed } else { exit }
            }
            _ => exit,
        }
    }
}
