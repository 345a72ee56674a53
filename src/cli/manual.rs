//! `cachekeeper completions` and `cachekeeper man`: both come from the definition of the command line, so they know every option.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use serde_json::json;

use super::output::{Exit, Output};

/// What the first page says beyond its options, as `man` reads it.
const MORE: &str = "\
.SH FILES
.TP
\\fI./cachekeeper.toml\\fR, \\fI/etc/cachekeeper/cachekeeper.toml\\fR
The configuration: the first of them that exists, where neither \\fB\\-\\-config\\fR nor CACHEKEEPER_CONFIG names one. \
\\fBcachekeeper schema \\-\\-toml\\fR prints every key with its default.
.SH ENVIRONMENT
.TP
CACHEKEEPER_CONFIG
The configuration file.
.TP
CACHEKEEPER__SECTION__KEY
A key of the configuration, such as CACHEKEEPER__REDIS__URL.
.TP
NO_COLOR
No colours.
.SH EXIT STATUS
.TP
0
All right.
.TP
1
The work failed, or differences were found.
.TP
2
The command line was wrong.
.TP
69
A server is not reachable.
.TP
78
The configuration is wrong, here or at a server.
.SH SEE ALSO
\\fBcachekeeper\\-VERB\\fR(1) for each verb, \\fBredis\\-cli\\fR(1), \\fBpsql\\fR(1)
";

/// Prints what a shell needs to complete verbs and options.
pub fn completions(mut command: Command, shell: Shell, out: &Output) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "cachekeeper", &mut text);
    out.line(String::from_utf8_lossy(&text).trim_end());
    Exit::Ok
}

/// Prints the first manual page, or writes all of them into a directory.
pub fn man(command: Command, directory: Option<&Path>, out: &Output) -> Exit {
    let mut command = without_help(command);
    command.build();
    let written = match directory {
        None => page(&command, true).map(|text| out.line(text.trim_end())),
        Some(directory) => write_all(&command, directory, out),
    };
    match written {
        Ok(()) => Exit::Ok,
        Err(error) => {
            out.failure(&format!("the manual pages cannot be written: {error}"));
            Exit::Failed
        }
    }
}

/// The verb `help` has no page: the pages are the help.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

fn write_all(command: &Command, directory: &Path, out: &Output) -> io::Result<()> {
    let mut waiting = vec![(command.clone(), true)];
    while let Some((command, is_first)) = waiting.pop() {
        let name = format!("{}.1", name_of(&command));
        std::fs::write(directory.join(&name), page(&command, is_first)?)?;
        out.result(&name, &json!({ "page": name }));
        waiting.extend(command.get_subcommands().map(|verb| (verb.clone(), false)));
    }
    Ok(())
}

/// `cachekeeper-writes-status`
fn name_of(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &Command, is_first: bool) -> io::Result<String> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name_of(command)).render(&mut text)?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if is_first {
        text.push_str(MORE);
    }
    Ok(text)
}
