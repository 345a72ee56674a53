//! A private Redis (or Valkey).

use std::ffi::OsString;
use std::path::PathBuf;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, ErrorKind, RedisError, ServerErrorKind};
use rustix::process::Signal;

use super::directory::Directory;
use super::process::{Launch, Process};
use super::programs::Programs;
use super::{PORT_TRIES, ServerError, free_port, poll_until};

const SERVER: &str = "redis-server";

/// How to start a private Redis.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Where the program is.
    pub programs: Programs,
    /// Further arguments as on the command line, such as `["--maxmemory", "10mb"]`. They win over ours.
    pub arguments: Vec<String>,
    /// Environment variables of the server.
    pub environment: Vec<(String, String)>,
    /// A password for the user `default`; the URL carries it.
    pub password: Option<String>,
    /// A port to try before any other.
    pub first_port: Option<u16>,
}

/// A private Redis without persistence, unless its arguments say otherwise.
#[derive(Debug)]
pub struct Redis {
    // Before the directory: fields are dropped in order, and the process writes there.
    process: Option<Process>,
    port: u16,
    program: PathBuf,
    setpriv: PathBuf,
    options: RedisOptions,
    directory: Directory,
}

impl Redis {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// [`ServerError::Missing`] without the program; any other when it does not come up.
    pub async fn start(options: RedisOptions) -> Result<Self, ServerError> {
        let program = options.programs.redis()?;
        let setpriv = options.programs.setpriv()?;
        let directory = Directory::create("redis", None)?;
        let mut redis = Self { process: None, port: 0, program, setpriv, options, directory };
        for attempt in 0..PORT_TRIES {
            let first = redis.options.first_port.filter(|_| attempt == 0);
            redis.port = first.map_or_else(free_port, Ok)?;
            match redis.start_again().await {
                Err(ServerError::Ended { log, .. }) if log.contains("Address already in use") => {}
                result => return result.map(|()| redis),
            }
        }
        Err(ServerError::NoPort { server: SERVER })
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`]: same port, same directory. Nothing if it runs.
    ///
    /// # Errors
    /// [`ServerError`] when it does not come up.
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        if self.is_alive() {
            return Ok(());
        }
        // Bury it, if it ended by itself.
        self.kill();
        let mut arguments: Vec<OsString> = Vec::new();
        let port = self.port.to_string();
        for argument in ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]
        {
            arguments.push(argument.into());
        }
        arguments.push(self.directory.path().into());
        if let Some(password) = &self.options.password {
            arguments.extend(["--requirepass".into(), password.into()]);
        }
        arguments.extend(self.options.arguments.iter().map(OsString::from));
        // Earlier lives of this server must not be taken for this one.
        drop(std::fs::remove_file(self.directory.log()));
        let launch = Launch {
            setpriv: &self.setpriv,
            program: &self.program,
            arguments,
            environment: &self.options.environment,
            directory: self.directory.path(),
            log: &self.directory.log(),
            user: None,
        };
        self.process = Some(Process::start(launch).await?);
        let answers = self.wait_until_it_answers().await;
        if answers.is_err() {
            self.kill();
        }
        answers
    }

    /// Waits until it answers commands.
    ///
    /// # Errors
    /// [`ServerError`] if it has ended, or the deadline passed.
    pub async fn wait_until_it_answers(&self) -> Result<(), ServerError> {
        poll_until(
            SERVER,
            "answer",
            || self.log_tail(),
            || async {
                match self.is_answering().await {
                    // Another server may answer at this port while ours gives up on it.
                    Ok(Some(id)) if Some(id) != self.pid() => Ok(Err(format!("process {id} answers"))),
                    Ok(_) if self.is_alive() => Ok(Ok(())),
                    Err(error) if self.is_alive() => Ok(Err(error.to_string())),
                    Ok(_) | Err(_) => Err(ServerError::Ended { server: SERVER, log: self.log_tail() }),
                }
            },
        )
        .await
    }

    /// The process that answers; none where it answers, but keeps its number from us.
    async fn is_answering(&self) -> Result<Option<u32>, RedisError> {
        let answer = async {
            let mut connection = self.connect().await?;
            ::redis::cmd("INFO").arg("server").query_async::<String>(&mut connection).await
        };
        match answer.await {
            Ok(text) => {
                let id = text.lines().find_map(|line| line.strip_prefix("process_id:"));
                Ok(id.and_then(|id| id.trim().parse().ok()))
            }
            // Its arguments gave it a password or users of their own.
            Err(error) if matches!(error.code(), Some("NOAUTH" | "NOPERM" | "WRONGPASS")) => Ok(None),
            Err(error) if error.kind() == ErrorKind::AuthenticationFailed => Ok(None),
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A connection, as an application has one.
    ///
    /// # Errors
    /// Those of the client.
    pub async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        Client::open(self.url())?.get_multiplexed_async_connection().await
    }

    /// `redis://127.0.0.1:PORT/0`, with the password if it has one.
    #[must_use]
    pub fn url(&self) -> String {
        let password = self.options.password.as_ref();
        let login = password.map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{login}127.0.0.1:{}/0", self.port)
    }

    /// Stops it cleanly: it saves first, if its arguments turned persistence on.
    ///
    /// # Errors
    /// [`ServerError::Late`] if it does not end.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        self.resume();
        if let Some(process) = &self.process {
            process.signal(Signal::TERM);
            poll_until(
                SERVER,
                "stop",
                || self.log_tail(),
                || async { Ok(if process.is_alive() { Err("it runs".to_owned()) } else { Ok(()) }) },
            )
            .await?;
        }
        self.process = None;
        Ok(())
    }

    /// Stops it cleanly and starts it again: same port, same directory.
    ///
    /// # Errors
    /// [`ServerError`] when it does not stop or come up.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        self.start_again().await
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Keeps it from running: connections stay open, nothing is answered.
    pub fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause();
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }

    /// Whether the process runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_alive)
    }

    /// Its process, while there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Its port, the same for life.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it keeps its files.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// What it has said since it was last started.
    #[must_use]
    pub fn log_text(&self) -> String {
        self.directory.log_text()
    }

    fn log_tail(&self) -> String {
        self.directory.log_tail()
    }
}
