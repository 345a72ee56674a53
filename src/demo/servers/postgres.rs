//! A private Postgres.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::directory::Directory;
use super::process::{Launch, Process, privileged, run};
use super::programs::{Programs, User};
use super::{PORT_TRIES, ServerError, free_port, poll_until, system};

const SERVER: &str = "postgres";
/// Nothing here has to survive the machine, and the tests' own timing should not meet a vacuum.
const SETTINGS: [&str; 8] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "full_page_writes=off",
    "max_connections=100",
    "shared_preload_libraries=",
    "logging_collector=off",
    "lc_messages=C",
];

/// How to start a private Postgres.
#[derive(Debug, Clone, Default)]
pub struct PostgresOptions {
    /// Where the programs are.
    pub programs: Programs,
    /// Further settings as `name=value`. They win over ours.
    pub settings: Vec<String>,
    /// Whether autovacuum runs.
    pub autovacuum: bool,
    /// A directory that keeps a fresh data directory to copy, because making one takes most of a second. Only we may
    /// write to it.
    pub template: Option<PathBuf>,
    /// A port to try before any other.
    pub first_port: Option<u16>,
}

/// A private Postgres with the superuser `postgres`, who needs no password.
#[derive(Debug)]
pub struct Postgres {
    // Before the directory: fields are dropped in order, and the process writes there.
    process: Option<Process>,
    port: u16,
    bin: PathBuf,
    setpriv: PathBuf,
    user: Option<User>,
    options: PostgresOptions,
    directory: Directory,
}

impl Postgres {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// [`ServerError::Missing`] without the programs; any other when it does not come up.
    pub async fn start(options: PostgresOptions) -> Result<Self, ServerError> {
        let bin = options.programs.postgres()?;
        let setpriv = options.programs.setpriv()?;
        let user = User::for_postgres();
        let directory = Directory::create("postgres", user)?;
        let mut postgres = Self { process: None, port: 0, bin, setpriv, user, options, directory };
        match postgres.options.template.clone() {
            Some(templates) => {
                let template = postgres.template(&templates).await?;
                copy(&template, &postgres.data()).await?;
            }
            None => postgres.initdb(&postgres.data()).await?,
        }
        for attempt in 0..PORT_TRIES {
            let first = postgres.options.first_port.filter(|_| attempt == 0);
            postgres.port = first.map_or_else(free_port, Ok)?;
            match postgres.start_again().await {
                Err(ServerError::Ended { log, .. }) if log.contains("Address already in use") => {}
                result => return result.map(|()| postgres),
            }
        }
        Err(ServerError::NoPort { server: SERVER })
    }

    /// Starts it again after [`Self::kill`] or [`Self::stop`]: same port, same data. Nothing if it runs.
    ///
    /// # Errors
    /// [`ServerError`] when it does not come up.
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        if self.is_alive() {
            return Ok(());
        }
        // Bury it, if it ended by itself.
        self.kill();
        // Its number may be another process's by now, and then Postgres would not start.
        drop(std::fs::remove_file(self.postmaster_file()));
        drop(std::fs::remove_file(self.directory.log()));
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.data().into()];
        let autovacuum = if self.options.autovacuum { "autovacuum=on" } else { "autovacuum=off" };
        let ours = SETTINGS.into_iter().chain([autovacuum]).map(str::to_owned);
        let port = format!("port={}", self.port);
        for setting in ours.chain(self.options.settings.iter().cloned()).chain([port]) {
            arguments.extend(["-c".into(), setting.into()]);
        }
        let launch = Launch {
            setpriv: &self.setpriv,
            program: &self.bin.join("postgres"),
            arguments,
            environment: &[],
            directory: self.directory.path(),
            log: &self.directory.log(),
            user: self.user,
        };
        self.process = Some(Process::start(launch).await?);
        let answers = self.wait_until_it_answers().await;
        if answers.is_err() {
            self.kill();
        }
        answers
    }

    /// Waits until it answers statements.
    ///
    /// # Errors
    /// [`ServerError`] if it has ended, or the deadline passed.
    pub async fn wait_until_it_answers(&self) -> Result<(), ServerError> {
        poll_until(
            SERVER,
            "answer",
            || self.log_tail(),
            || async {
                if !self.is_alive() {
                    return Err(ServerError::Ended { server: SERVER, log: self.log_tail() });
                }
                // Its own file says so first: at its port another server might answer.
                if !self.says_ready() {
                    return Ok(Err("starting".to_owned()));
                }
                Ok(self.execute("select 1").await.map_err(|error| format!("{error:?}")))
            },
        )
        .await
    }

    fn says_ready(&self) -> bool {
        let text = std::fs::read_to_string(self.postmaster_file()).unwrap_or_default();
        let id = text.lines().next().and_then(|line| line.trim().parse().ok());
        id == self.pid() && text.lines().nth(7).is_some_and(|status| status.trim() == "ready")
    }

    /// The URL of the database `postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of another database of this server.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Runs statements in the database `postgres`.
    ///
    /// # Errors
    /// [`ServerError::Statement`].
    pub async fn execute(&self, sql: &str) -> Result<(), ServerError> {
        let statements = async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
            connection.close().await
        };
        statements.await.map_err(|source| ServerError::Statement { source })
    }

    /// Creates an empty database and returns its URL. The name must need no encoding in a URL.
    ///
    /// # Errors
    /// [`ServerError::Statement`].
    pub async fn create_database(&self, name: &str) -> Result<String, ServerError> {
        self.execute(&format!("create database \"{}\"", name.replace('"', "\"\""))).await?;
        Ok(self.url_of(name))
    }

    /// Stops it cleanly; its clients are cut off.
    ///
    /// # Errors
    /// [`ServerError::Late`] if it does not end.
    pub async fn stop(&mut self) -> Result<(), ServerError> {
        self.resume();
        if let Some(process) = &self.process {
            process.signal(Signal::INT);
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

    /// Stops it cleanly and starts it again: same port, same data.
    ///
    /// # Errors
    /// [`ServerError`] when it does not stop or come up.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.stop().await?;
        self.start_again().await
    }

    /// Kills the postmaster and all its children, as a power cut would, and waits until they are gone.
    pub fn kill(&mut self) {
        if self.process.take().is_none() {
            return;
        }
        // A killed postmaster leaves its small segment of shared memory behind; a few thousand, and no Postgres starts.
        let text = std::fs::read_to_string(self.postmaster_file()).unwrap_or_default();
        if let Some(segment) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            drop(Command::new("ipcrm").args(["-m", segment]).output());
        }
    }

    /// Keeps the postmaster and its children from running: connections stay open, nothing is answered.
    pub fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause();
        }
    }

    /// Lets all of them go on.
    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }

    /// Whether the postmaster runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_alive)
    }

    /// The postmaster, while there is one.
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
    pub fn directory(&self) -> &Path {
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

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn postmaster_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    /// The template of this installation, made first if this is the first to need it.
    async fn template(&self, templates: &Path) -> Result<PathBuf, ServerError> {
        let initdb = self.bin.join("initdb");
        let facts = std::fs::metadata(&initdb).map_err(system("look at initdb"))?;
        let mut hasher = DefaultHasher::new();
        (&initdb, facts.modified().ok(), self.user.map(|user| user.uid)).hash(&mut hasher);
        let template = templates.join(format!("postgres-{:016x}", hasher.finish()));
        if template.is_dir() {
            return Ok(template);
        }
        // Made where Postgres's user may write, put where only we may.
        let fresh = self.directory.path().join("fresh");
        self.initdb(&fresh).await?;
        std::fs::create_dir_all(templates).map_err(system("create the directory for templates"))?;
        let unfinished = templates.join(format!("unfinished-{:016x}", rand::random::<u64>()));
        copy(&fresh, &unfinished).await?;
        drop(std::fs::remove_dir_all(&fresh));
        // Whole or not there; whoever comes second finds the first one's and throws its own away.
        if std::fs::rename(&unfinished, &template).is_err() {
            drop(std::fs::remove_dir_all(&unfinished));
        }
        Ok(template)
    }

    async fn initdb(&self, data: &Path) -> Result<(), ServerError> {
        let mut command = privileged(&self.setpriv, self.user);
        command
            .arg("--")
            .arg(self.bin.join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(data)
            .env("TZ", "UTC")
            .current_dir(self.directory.path());
        run(command).await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn copy(from: &Path, to: &Path) -> Result<(), ServerError> {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    run(command).await
}
