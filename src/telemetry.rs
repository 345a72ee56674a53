//! Log lines on standard error. A line that cannot be written is lost and counted; nobody waits for one.

mod lines;
mod traces;

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tracing::{error, info};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, registry, reload};

use cachekeeper_config::{Log, LogFormat};
use cachekeeper_engine::log_limit;
use lines::Lines;

/// What the driver calls messages that a server sends beside its answers: `raise notice`, warnings of a function.
const SERVER_MESSAGES: &str = "sqlx::postgres::notice";
/// How long the end of the process waits for the last lines, which nobody may read.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

static LINES: Lines = Lines::new();

/// Sets another level.
type SetLevel = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

/// The level that counts.
static LEVEL: Mutex<String> = Mutex::new(String::new());

static SET_LEVEL: OnceLock<Box<SetLevel>> = OnceLock::new();

/// Turns logging on, once a process.
///
/// # Errors
/// What is wrong with the level.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = understood(&log.level)?;
    note_level(&log.level);
    let is_terminal = std::io::stderr().is_terminal();
    let is_pretty = match log.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let (filter, handle) = reload::Layer::new(filter);
    // Else the subscriber prints its own trouble to standard error, and panics where that fails.
    let lines = tracing_subscriber::fmt::layer().with_writer(|| &LINES).log_internal_errors(false);
    let lines = if is_pretty {
        lines.with_ansi(is_terminal).with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).boxed()
    };
    let started = registry().with(lines.with_filter(filter)).with(traces::layer()?).try_init();
    if started.is_ok() {
        drop(SET_LEVEL.set(Box::new(move |filter| handle.reload(filter))));
    }
    // A second start in one process (tests, the demo) keeps the first.
    if started.is_err() {
        return Ok(());
    }
    LINES.write_to(std::io::stderr()).map_err(|error| format!("log lines cannot be written: {error}"))
}

/// Logs at another level from now on.
///
/// # Errors
/// What is wrong with the level.
pub fn set_level(level: &str) -> Result<(), String> {
    if let Some(problem) = cachekeeper_config::log_level_problem(level) {
        return Err(problem);
    }
    let filter = understood(level)?;
    // Without it nobody logs.
    if let Some(set) = SET_LEVEL.get() {
        set(filter).map_err(|error| format!("the level of the log cannot be set: {error}"))?;
    }
    note_level(level);
    Ok(())
}

/// The level that counts; empty: none was set.
#[must_use]
pub fn level() -> String {
    LEVEL.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note_level(level: &str) {
    level.clone_into(&mut LEVEL.lock().unwrap_or_else(PoisonError::into_inner));
}

fn understood(level: &str) -> Result<EnvFilter, String> {
    filter(level).map_err(|error| {
        format!("log.level = {level:?} is not understood: {error}; use error, warn, info, debug or filters")
    })
}

/// Says panics as log lines: the usual message would wait for whoever does not read standard error.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        let is_captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        error!(backtrace = is_captured.then(|| backtrace.to_string()), "{panic}");
        if std::thread::current().name() == Some("main") {
            flush();
        }
    }));
}

/// Sends the traces that are left, at the end of the process.
pub fn end() {
    traces::end();
}

/// Waits until every line is written that was said before, within a limit.
pub fn flush() {
    LINES.flush(FLUSH_WITHIN);
}

/// Says what was left out of the log since the last line of its kind, where that is at least so long ago: so that the last of a
/// flood is told too.
pub fn say_left_out(since: Duration) {
    for (what, of, count) in log_limit::left_out(since) {
        info!(of, count, "{what} (more of them)");
    }
}

/// Counts lost lines here too, from those on that were lost before.
pub fn count_lost_in(counter: Counter) {
    LINES.count_in(counter);
}

/// What the configuration says. A server can send messages by the thousand, so they are left out unless everything is asked
/// for, or the driver by name.
fn filter(level: &str) -> Result<EnvFilter, String> {
    let filter = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
    let mut directives = level.split(',').map(str::trim);
    let asks_for_all = |part: &str| {
        part.starts_with("sqlx") || part.eq_ignore_ascii_case("debug") || part.eq_ignore_ascii_case("trace")
    };
    if directives.any(asks_for_all) {
        return Ok(filter);
    }
    let left_out = format!("{SERVER_MESSAGES}=off").parse();
    Ok(filter
        .add_directive(left_out.map_err(|error: tracing_subscriber::filter::ParseError| error.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::{SERVER_MESSAGES, filter};

    #[test]
    fn messages_of_servers_are_for_debugging() {
        let leaves_out = |level: &str| filter(level).unwrap().to_string().contains(SERVER_MESSAGES);
        assert!(leaves_out("info") && leaves_out("info,cachekeeper=debug"));
        assert!(!leaves_out("debug") && !leaves_out("info,sqlx=info") && !leaves_out(" TRACE"));
        assert!(filter("cachekeeper=loud").is_err());
    }
}
