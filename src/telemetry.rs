//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use cachekeeper_config::{Log, LogFormat};

/// Turns logging on, once a process.
///
/// # Errors
/// What is wrong with the level.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| {
        format!(
            "log.level = {:?} is not understood: {error}; use error, warn, info, debug or filters",
            log.level
        )
    })?;
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let is_pretty = match log.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let started = if is_pretty {
        builder.with_ansi(is_terminal).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
    // A second start in one process (tests, the demo) keeps the first.
    started.or(Ok(()))
}
