//! Private Postgres and Redis servers for the demo and the tests.
//!
//! Each has its own directory and its own loopback port, is out of reach of Ctrl-C, and is gone when its value is dropped
//! or when this process ends, however it ends.

mod directory;
mod postgres;
mod process;
mod programs;
mod redis;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

pub use self::postgres::{Postgres, PostgresOptions};
pub use self::programs::Programs;
pub use self::redis::{Redis, RedisOptions};

/// How long a server may take until it answers, or until it has stopped.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// The pause between two looks at a server's state.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// How often another port is tried when someone else was faster.
const PORT_TRIES: usize = 8;
/// Below the range from which the kernel takes the ports of outgoing connections: nobody's connection takes the port of a
/// server that is down for a moment, and a client that calls in vain does not reach itself.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is not installed.
    #[error("{program} is not installed; as root: apt-get install -y postgresql redis-server")]
    Missing {
        /// Which.
        program: &'static str,
    },
    /// The path that was asked for holds no such program.
    #[error("{variable} names {path}, where there is no {program}")]
    Misplaced {
        /// The environment variable behind the setting.
        variable: &'static str,
        /// What it says.
        path: String,
        /// What is missing there.
        program: &'static str,
    },
    /// The operating system refused something.
    #[error("failed to {what}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A helper program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        output: String,
    },
    /// The server ended instead of answering.
    #[error("{server} ended instead of answering; it said:\n{log}")]
    Ended {
        /// Which.
        server: &'static str,
        /// The end of its log.
        log: String,
    },
    /// The deadline passed.
    #[error("{server} did not {what} within {ANSWERS_WITHIN:?}, last seen: {seen}; it said:\n{log}")]
    Late {
        /// Which.
        server: &'static str,
        /// What was waited for.
        what: &'static str,
        /// The last state seen.
        seen: String,
        /// The end of its log.
        log: String,
    },
    /// Every port that was tried was taken by someone else.
    #[error("{server} found no free port in {PORT_TRIES} attempts")]
    NoPort {
        /// Which.
        server: &'static str,
    },
    /// A statement failed.
    #[error("a statement failed on the private Postgres")]
    Statement {
        /// What Postgres said.
        #[source]
        source: sqlx::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServerError {
    let what = what.into();
    move |source| ServerError::System { what, source }
}

/// A port that was free a moment ago. Someone may be faster: the callers try again.
fn free_port() -> Result<u16, ServerError> {
    let mut last = None;
    for _ in 0..100 {
        let port = rand::rng().random_range(PORTS);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    let source = last.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrInUse));
    Err(ServerError::System { what: "find a free port".to_owned(), source })
}

/// Looks at a state until it is there: `Ok(Ok(value))` is there, `Ok(Err(seen))` is not yet, `Err` is never.
async fn poll_until<T, F>(
    server: &'static str,
    what: &'static str,
    log: impl Fn() -> String,
    mut look: impl FnMut() -> F,
) -> Result<T, ServerError>
where
    F: Future<Output = Result<Result<T, String>, ServerError>>,
{
    let deadline = Instant::now() + ANSWERS_WITHIN;
    let mut seen = "nothing".to_owned();
    loop {
        // The look itself may hang, for instance on a server that is paused.
        match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(Ok(value))) => return Ok(value),
            Ok(Ok(Err(state))) => seen = state,
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => {}
        }
        if deadline <= Instant::now() {
            return Err(ServerError::Late { server, what, seen, log: log() });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
