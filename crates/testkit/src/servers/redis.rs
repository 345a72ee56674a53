//! A private Redis.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::{
    PORT_TRIES, READY_WITHIN, Server, ServerError, failed, find_program, free_port, launch, new_directory,
};

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    arguments: Vec<String>,
    environment: Vec<String>,
}

impl Redis {
    /// Starts a server without persistence, with further arguments as on its command line.
    pub async fn start(arguments: &[&str]) -> Result<Self, ServerError> {
        Self::start_with(arguments, &[]).await
    }

    /// The same with environment variables.
    pub async fn start_with(arguments: &[&str], environment: &[(&str, String)]) -> Result<Self, ServerError> {
        let directory = new_directory("redis")?;
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let environment: Vec<String> =
            environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for _ in 0..PORT_TRIES {
            let server = Server { pid: None, port: free_port()?, directory: directory.clone() };
            let mut redis = Self { server, arguments: arguments.clone(), environment: environment.clone() };
            if redis.launch().await.is_ok() {
                return Ok(redis);
            }
            // Only the last attempt may take the directory with it.
            redis.server.directory = PathBuf::new();
        }
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        Err(failed("starting redis-server", log))
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let program = find_program("redis-server", &[])
            .or_else(|| find_program("valkey-server", &[]))
            .ok_or(ServerError::Missing { program: "redis-server" })?;
        let directory = self.server.directory.display().to_string();
        let mut command = vec!["env".to_owned()];
        command.extend(self.environment.iter().cloned());
        command.push(program.display().to_string());
        let port = self.server.port.to_string();
        for argument in
            ["--port", &port, "--bind", "127.0.0.1", "--dir", &directory, "--save", "", "--appendonly", "no"]
        {
            command.push(argument.to_owned());
        }
        command.extend(self.arguments.iter().cloned());
        self.server.pid = Some(launch(command, &self.server.directory.join("log"), false)?);
        let deadline = Instant::now() + READY_WITHIN;
        let client = ::redis::Client::open(self.url()).map_err(|error| failed("connecting", error))?;
        loop {
            let answer = match client.get_multiplexed_async_connection().await {
                Ok(mut connection) => ::redis::cmd("PING").query_async::<String>(&mut connection).await,
                Err(error) => Err(error),
            };
            match answer {
                // Whoever answers on this port must be ours.
                Ok(_) if self.server.is_alive() => return Ok(()),
                Ok(_) => return Err(failed("starting redis-server", "the port was taken")),
                // It answers, but asks for a password.
                Err(error) if matches!(error.code(), Some("NOAUTH")) => return Ok(()),
                Err(error) if deadline < Instant::now() || !self.server.is_alive() => {
                    return Err(failed("starting redis-server", error));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// `redis://127.0.0.1:PORT/0`
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.server.port)
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        self.server.kill("KILL");
    }

    /// The same without waiting until it is gone.
    pub fn crash(&self) {
        self.server.signal("KILL");
    }

    /// Starts it again on the same port, after [`Self::kill`]. Meanwhile the port may be another's for a moment, a server's of another
    /// test that asks for a free one.
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match self.launch().await {
                Err(ServerError::Failed { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => return started,
            }
        }
    }

    /// Stops it from running without ending it.
    pub fn pause(&self) {
        self.server.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.server.signal("CONT");
    }

    /// Removes the dump that a `SAVE` has left, so that the next start is empty.
    pub fn forget_dump(&self) {
        drop(std::fs::remove_file(self.server.directory.join("dump.rdb")));
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }
}
