//! A private Postgres.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::Instant;

use super::{
    PORT_TRIES, READY_WITHIN, Server, ServerError, failed, find_program, free_port, is_root, launch,
    new_directory, run_as_server,
};

/// A running Postgres.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    data: PathBuf,
    settings: Vec<String>,
    environment: Vec<String>,
}

/// How a copy comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// As the server itself would.
    Restored,
    /// As a standby that is promoted: on the next timeline.
    Promoted,
}

/// A session.
#[derive(Debug)]
pub struct Session(PgConnection);

/// Why a statement was not carried out.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The `SQLSTATE`; none: the connection is gone.
    pub code: Option<String>,
    /// The message, its detail and its context.
    pub text: String,
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        let told = error.as_database_error().and_then(|told| told.try_downcast_ref::<PgDatabaseError>());
        let Some(told) = told else { return Self { code: None, text: error.to_string() } };
        let parts = [Some(told.message()), told.detail(), told.r#where()];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
        Self { code: Some(told.code().to_owned()), text }
    }
}

impl Session {
    /// Connects.
    pub async fn open(url: &str) -> Result<Self, ServerError> {
        PgConnection::connect(url).await.map(Self).map_err(|error| failed("connecting", error))
    }

    /// Runs statements.
    ///
    /// # Errors
    /// [`ServerError`], with Postgres's message.
    pub async fn execute(&mut self, sql: &str) -> Result<(), ServerError> {
        let done = self.0.execute(AssertSqlSafe(sql.to_owned())).await;
        done.map(drop).map_err(|error| failed("a statement", error))
    }

    /// Runs statements, as a program that looks at what went wrong.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn attempt(&mut self, sql: &str) -> Result<(), Refusal> {
        let done = self.0.execute(AssertSqlSafe(sql.to_owned())).await;
        done.map(drop).map_err(Refusal::from)
    }

    /// Copies rows, as text, into a table: `copy … from stdin`.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn copy(&mut self, sql: &str, rows: &str) -> Result<(), Refusal> {
        let mut copy = self.0.copy_in_raw(sql).await?;
        copy.send(rows.as_bytes()).await?;
        copy.finish().await?;
        Ok(())
    }

    /// The one text that a statement returns.
    ///
    /// # Errors
    /// [`ServerError`], with Postgres's message.
    pub async fn text(&mut self, sql: &str) -> Result<Option<String>, ServerError> {
        let found = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut self.0).await;
        found.map_err(|error| failed("a statement", error))
    }
}

impl Postgres {
    /// Starts a server with further settings as `name=value`.
    pub async fn start(settings: &[&str]) -> Result<Self, ServerError> {
        Self::start_with(settings, &[]).await
    }

    /// The same with environment variables.
    pub async fn start_with(settings: &[&str], environment: &[(&str, String)]) -> Result<Self, ServerError> {
        let directory = new_directory("postgres")?;
        let template = template()?;
        let data = directory.join("data");
        run_as_server(&["cp", "-a", &template.display().to_string(), &data.display().to_string()])?;
        Self::start_in(directory, settings, environment).await
    }

    /// Starts a cluster with an identifier of its own. All others have the same one.
    ///
    /// # Errors
    /// [`ServerError`] where it does not start.
    pub async fn start_anew(settings: &[&str]) -> Result<Self, ServerError> {
        let directory = new_directory("postgres")?;
        initialize(&directory.join("data"))?;
        Self::start_in(directory, settings, &[]).await
    }

    async fn start_in(
        directory: PathBuf,
        settings: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self, ServerError> {
        let data = directory.join("data");
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let environment: Vec<String> =
            environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for _ in 0..PORT_TRIES {
            let server = Server { pid: None, port: free_port()?, directory: directory.clone() };
            let (settings, environment) = (settings.clone(), environment.clone());
            let mut postgres = Self { server, data: data.clone(), settings, environment };
            if postgres.launch().await.is_ok() {
                return Ok(postgres);
            }
            postgres.server.directory = PathBuf::new();
        }
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        Err(failed("starting postgres", log))
    }

    /// Starts a standby of this server, on this port or a free one.
    ///
    /// # Errors
    /// [`ServerError`] where it does not start.
    pub async fn standby(&self, port: Option<u16>) -> Result<Self, ServerError> {
        let directory = new_directory("standby")?;
        let data = directory.join("data");
        let program = postgres_program("pg_basebackup")?;
        run_as_server(&[
            &program.display().to_string(),
            "--pgdata",
            &data.display().to_string(),
            "--dbname",
            &self.url(),
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        ])?;
        let port = port.map_or_else(free_port, Ok)?;
        let server = Server { pid: None, port, directory };
        let (settings, environment) = (self.settings.clone(), self.environment.clone());
        let mut standby = Self { server, data, settings, environment };
        standby.launch().await?;
        Ok(standby)
    }

    /// Makes this stopped server a standby of another one that was promoted from it: `pg_rewind`.
    ///
    /// # Errors
    /// [`ServerError`], with the program's message.
    pub async fn rewind_to(&self, other: &Self) -> Result<(), ServerError> {
        let program = postgres_program("pg_rewind")?;
        // What has happened since its checkpoint is read from its files.
        other.execute("checkpoint").await?;
        run_as_server(&[
            &program.display().to_string(),
            "--target-pgdata",
            &self.data.display().to_string(),
            "--source-server",
            &other.url(),
            "--write-recovery-conf",
            "--no-sync",
        ])
    }

    /// Makes this standby the primary.
    ///
    /// # Errors
    /// [`ServerError`], with Postgres's message.
    pub async fn promote(&self) -> Result<(), ServerError> {
        self.execute("select pg_promote(true, 30)").await
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Where files for it can be put that it may read, such as certificates.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.server.directory
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let program = postgres_program("postgres")?;
        let mut command = vec!["env".to_owned()];
        command.extend(self.environment.iter().cloned());
        command.extend([program.display().to_string(), "-D".to_owned(), self.data.display().to_string()]);
        let port = format!("port={}", self.server.port);
        let fixed = [
            port.as_str(),
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "full_page_writes=off",
            "autovacuum=off",
            "max_connections=100",
        ];
        for setting in fixed.into_iter().map(str::to_owned).chain(self.settings.iter().cloned()) {
            command.push("-c".to_owned());
            command.push(setting);
        }
        self.server.pid = Some(launch(command, &self.server.directory.join("log"), true)?);
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match PgConnection::connect(&self.url()).await {
                Ok(connection) => {
                    drop(connection.close().await);
                    return Ok(());
                }
                Err(error) if deadline < Instant::now() || !self.server.is_alive() => {
                    return Err(failed("starting postgres", error));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// `postgres://postgres@127.0.0.1:PORT/postgres`
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of another database of this server.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.server.port)
    }

    /// Where a program of this server's installation is, such as `pg_dump`.
    ///
    /// # Errors
    /// [`ServerError`] where there is none.
    pub fn program(name: &'static str) -> Result<PathBuf, ServerError> {
        postgres_program(name)
    }

    /// The URL with which another role comes to the database of [`Self::url`].
    #[must_use]
    pub fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/postgres?sslmode=disable", self.server.port)
    }

    /// Runs statements.
    ///
    /// # Errors
    /// [`ServerError`], with Postgres's message.
    pub async fn execute(&self, sql: &str) -> Result<(), ServerError> {
        let run = async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            connection.execute(AssertSqlSafe(sql.to_owned())).await?;
            connection.close().await
        };
        run.await.map_err(|error| failed("a statement", error))
    }

    /// A session of its own, for transactions that stay open.
    pub async fn session(&self) -> Result<Session, ServerError> {
        Session::open(&self.url()).await
    }

    /// Kills it with all its processes, as a power cut would.
    pub fn kill(&mut self) {
        self.server.kill("KILL");
    }

    /// Stops all its processes from running without ending them.
    pub fn pause(&self) {
        self.server.signal_all("STOP");
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.server.signal_all("CONT");
    }

    /// Stops it cleanly, at once for its clients.
    pub fn stop(&mut self) {
        self.server.kill("INT");
    }

    /// Starts it again on the same port and data.
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        drop(run_as_server(&["rm", "-f", &self.data.join("postmaster.pid").display().to_string()]));
        self.launch().await
    }

    /// Copies the data of the stopped server, as a backup of the disk would.
    pub fn keep_copy(&self) -> Result<(), ServerError> {
        let copy = self.server.directory.join("copy");
        run_as_server(&["cp", "-a", &self.data.display().to_string(), &copy.display().to_string()])
    }

    /// Puts the copy in the place of the stopped server's data.
    pub fn restore_copy(&self) -> Result<(), ServerError> {
        let copy = self.server.directory.join("copy");
        run_as_server(&["rm", "-rf", &self.data.display().to_string()])?;
        run_as_server(&["mv", &copy.display().to_string(), &self.data.display().to_string()])
    }
}

impl Postgres {
    /// Another server from a copy of this one's data, which is stopped.
    ///
    /// # Errors
    /// [`ServerError`]
    pub async fn start_copy(&self, how: Copied) -> Result<Self, ServerError> {
        let directory = new_directory("postgres")?;
        let data = directory.join("data");
        let text = |path: &Path| path.display().to_string();
        run_as_server(&["cp", "-a", &text(&self.data), &text(&data)])?;
        run_as_server(&["rm", "-f", &text(&data.join("postmaster.pid"))])?;
        if how == Copied::Promoted {
            run_as_server(&["touch", &text(&data.join("standby.signal"))])?;
        }
        for _ in 0..PORT_TRIES {
            let server = Server { pid: None, port: free_port()?, directory: directory.clone() };
            let (settings, environment) = (self.settings.clone(), self.environment.clone());
            let mut postgres = Self { server, data: data.clone(), settings, environment };
            if postgres.launch().await.is_ok() {
                if how == Copied::Promoted {
                    postgres.execute("select pg_promote(true, 30)").await?;
                }
                return Ok(postgres);
            }
            postgres.server.directory = PathBuf::new();
        }
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        Err(failed("starting a copy of postgres", log))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.server.signal("CONT");
        // At once, but so that it gives back its shared memory: the system has room for few thousand segments.
        self.server.kill("QUIT");
    }
}

/// A fresh data directory, made once and copied for each server, because making one takes most of a second.
fn template() -> Result<PathBuf, ServerError> {
    let initdb = postgres_program("initdb")?;
    let user = if is_root() { "root" } else { "user" };
    // The whole path names the template: two installations of one version may differ.
    let place = cachekeeper_protocol::keyspace::key_hash(initdb.as_os_str().as_encoded_bytes());
    let template = std::env::temp_dir().join(format!("cachekeeper-initdb-{user}-{place:016x}"));
    if template.join("PG_VERSION").exists() {
        return Ok(template);
    }
    let fresh = std::env::temp_dir().join(format!("cachekeeper-initdb-{:016x}", rand::random::<u64>()));
    initialize(&fresh)?;
    let path = fresh.display().to_string();
    // Whoever is first wins; the others' copies go.
    if run_as_server(&["mv", "-T", "-n", &path, &template.display().to_string()]).is_err() || fresh.exists() {
        run_as_server(&["rm", "-rf", &path])?;
    }
    Ok(template)
}

fn initialize(data: &Path) -> Result<(), ServerError> {
    let (program, path) = (postgres_program("initdb")?.display().to_string(), data.display().to_string());
    let like = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"];
    run_as_server(&[&[program.as_str(), "-D", &path], &like[..]].concat())
}

/// `CACHEKEEPER_POSTGRES_BIN` decides, then the highest version of the distribution's packages, then `PATH`.
#[expect(clippy::disallowed_methods, reason = "where programs are is a fact of the environment")]
fn postgres_program(name: &'static str) -> Result<PathBuf, ServerError> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort_by_key(|path| {
        let version = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        std::cmp::Reverse(version.and_then(|version| version.parse::<u32>().ok()).unwrap_or_default())
    });
    if let Ok(chosen) = std::env::var("CACHEKEEPER_POSTGRES_BIN") {
        versions.insert(0, PathBuf::from(chosen));
    }
    find_program(name, &versions).ok_or(ServerError::Missing { program: name })
}
