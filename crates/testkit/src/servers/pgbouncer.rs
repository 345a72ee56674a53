//! A private `PgBouncer` before a Postgres.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use super::{
    PORT_TRIES, Postgres, READY_WITHIN, Server, ServerError, failed, find_program, free_port, launch,
    new_directory,
};

/// A running `PgBouncer`.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    command: Vec<String>,
}

impl PgBouncer {
    /// Starts one in a pool mode (`session`, `transaction` or `statement`) with further lines of its configuration.
    ///
    /// # Errors
    /// [`ServerError`] where it does not start.
    pub async fn start(postgres: &Postgres, mode: &str, settings: &[&str]) -> Result<Self, ServerError> {
        let program = find_program("pgbouncer", &[PathBuf::from("/usr/sbin")]);
        let program = program.ok_or(ServerError::Missing { program: "pgbouncer" })?;
        let directory = new_directory("pgbouncer")?;
        let write = |name: &str, text: &str| {
            let file = directory.join(name);
            std::fs::write(&file, text)
                .map(|()| file.display().to_string())
                .map_err(|error| failed(name, error))
        };
        let users = write("users.txt", "\"postgres\" \"\"\n\"shop\" \"sesame\"\n\"cache\" \"\"\n")?;
        let mut reason = String::new();
        for _ in 0..PORT_TRIES {
            let port = free_port()?;
            let file = write(
                "pgbouncer.ini",
                &format!(
                    "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                     unix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = {mode}\n{}\n",
                    postgres.port(),
                    settings.join("\n")
                ),
            )?;
            let command = vec![program.display().to_string(), file];
            let mut server = Server { pid: None, port, directory: PathBuf::new() };
            server.pid = Some(launch(command.clone(), &directory.join("log"), true)?);
            let mut bouncer = Self { server, command };
            match bouncer.wait().await {
                Ok(()) => {
                    bouncer.server.directory = directory;
                    return Ok(bouncer);
                }
                Err(error) => reason = error.to_string(),
            }
        }
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        Err(failed("starting pgbouncer", format!("{reason}\n{log}")))
    }

    async fn wait(&self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_WITHIN;
        // The driver's own setting is one that PgBouncer does not know.
        let options = self.url().parse::<sqlx::postgres::PgConnectOptions>();
        let options = options.map_err(|error| failed("the URL", error))?.extra_float_digits(None);
        loop {
            match PgConnection::connect_with(&options).await {
                Ok(connection) => {
                    drop(connection.close().await);
                    return Ok(());
                }
                Err(error) if deadline < Instant::now() || !self.server.is_alive() => {
                    return Err(failed("starting pgbouncer", error));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Kills it, and with it all connections that come through it.
    pub fn kill(&mut self) {
        self.server.kill("KILL");
    }

    /// Starts it again on the same port.
    ///
    /// # Errors
    /// [`ServerError`] where it does not start.
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        self.server.pid = Some(launch(self.command.clone(), &self.server.directory.join("log"), true)?);
        self.wait().await
    }

    /// Where it listens, on this machine.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Where clients connect as `postgres`, to the database of the same name.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.server.port)
    }
}
