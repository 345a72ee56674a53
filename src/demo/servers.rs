//! Private Postgres and Redis servers, for the demo and the tests: own directory, own free port, gone with us.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::Instant;

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is missing.
    #[error("{program} is not installed; as root: apt-get install -y postgresql redis-server")]
    Missing {
        /// Which.
        program: &'static str,
    },
    /// A command failed.
    #[error("{what} failed: {detail}")]
    Failed {
        /// What.
        what: String,
        /// What it said.
        detail: String,
    },
}

fn failed(what: impl Into<String>, detail: impl ToString) -> ServerError {
    ServerError::Failed { what: what.into(), detail: detail.to_string() }
}

const READY_WITHIN: Duration = Duration::from_secs(30);
const PORT_TRIES: usize = 5;
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    arguments: Vec<String>,
    environment: Vec<String>,
}

/// A running Postgres.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    data: PathBuf,
    settings: Vec<String>,
}

/// What both have: a process, a port, a directory.
#[derive(Debug)]
struct Server {
    pid: Option<u32>,
    port: u16,
    directory: PathBuf,
}

impl Redis {
    /// Starts a server without persistence, with further arguments as on its command line.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(arguments: &[&str]) -> Result<Self, ServerError> {
        Self::start_with(arguments, &[]).await
    }

    /// The same with environment variables.
    ///
    /// # Errors
    /// [`ServerError`].
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
        let client = redis::Client::open(self.url()).map_err(|error| failed("connecting", error))?;
        loop {
            let answer = match client.get_multiplexed_async_connection().await {
                Ok(mut connection) => redis::cmd("PING").query_async::<String>(&mut connection).await,
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

    /// Starts it again on the same port, after [`Self::kill`].
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        self.launch().await
    }

    /// Stops it from running without ending it.
    pub fn pause(&self) {
        self.server.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.server.signal("CONT");
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.port
    }
}

impl Postgres {
    /// Starts a server with further settings as `name=value`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start(settings: &[&str]) -> Result<Self, ServerError> {
        let directory = new_directory("postgres")?;
        let template = template()?;
        let data = directory.join("data");
        run_as_server(&["cp", "-a", &template.display().to_string(), &data.display().to_string()])?;
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        for _ in 0..PORT_TRIES {
            let server = Server { pid: None, port: free_port()?, directory: directory.clone() };
            let mut postgres = Self { server, data: data.clone(), settings: settings.clone() };
            if postgres.launch().await.is_ok() {
                return Ok(postgres);
            }
            postgres.server.directory = PathBuf::new();
        }
        let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
        Err(failed("starting postgres", log))
    }

    async fn launch(&mut self) -> Result<(), ServerError> {
        let program = postgres_program("postgres")?;
        let mut command =
            vec![program.display().to_string(), "-D".to_owned(), self.data.display().to_string()];
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

    /// Kills it with all its processes, as a power cut would.
    pub fn kill(&mut self) {
        self.server.kill("KILL");
    }

    /// Stops it cleanly, at once for its clients.
    pub fn stop(&mut self) {
        self.server.kill("INT");
    }

    /// Starts it again on the same port and data.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        drop(run_as_server(&["rm", "-f", &self.data.join("postmaster.pid").display().to_string()]));
        self.launch().await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.server.signal("CONT");
        // At once, but so that it gives back its shared memory: the system has room for few thousand segments.
        self.server.kill("QUIT");
    }
}

impl Server {
    fn is_alive(&self) -> bool {
        self.pid.is_some_and(|pid| {
            // A dead child that nobody waited for is a zombie.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
        })
    }

    fn signal(&self, name: &str) {
        if let Some(pid) = self.pid {
            drop(Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status());
        }
    }

    /// Ends the process and everything it started, and waits until the port is free again.
    fn kill(&mut self, name: &str) {
        let Some(pid) = self.pid else { return };
        let children = children_of(pid);
        self.signal(name);
        if name == "KILL" {
            for child in children {
                drop(Command::new("kill").args(["-s", "KILL", &child]).stderr(Stdio::null()).status());
            }
        }
        let asked = Instant::now();
        while self.is_alive() {
            if ENDS_WITHIN < asked.elapsed() && name != "KILL" {
                return self.kill("KILL");
            }
            std::thread::yield_now();
        }
        self.pid = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        self.kill("KILL");
        if !self.directory.as_os_str().is_empty() {
            drop(Command::new("rm").arg("-rf").arg(&self.directory).status());
        }
    }
}

fn children_of(pid: u32) -> Vec<String> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().map(str::to_owned).collect()
}

type Request = (Vec<String>, PathBuf, mpsc::Sender<Result<u32, String>>);

/// The thread that starts all servers. They die with it (`PR_SET_PDEATHSIG` means the thread, not the process), and it
/// lives as long as the process.
static LAUNCHER: LazyLock<Mutex<mpsc::Sender<Request>>> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel::<Request>();
    std::thread::spawn(move || {
        for (command, log, reply) in receiver {
            drop(reply.send(spawn_logged(&command, &log)));
        }
    });
    Mutex::new(sender)
});

fn spawn_logged(command: &[String], log: &Path) -> Result<u32, String> {
    use std::os::unix::process::CommandExt;
    let file =
        std::fs::OpenOptions::new().create(true).append(true).open(log).map_err(|error| error.to_string())?;
    let errors = file.try_clone().map_err(|error| error.to_string())?;
    let (program, arguments) = command.split_first().ok_or("no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        // Ctrl-C on the terminal is for us alone.
        .process_group(0)
        .spawn()
        .map_err(|error| error.to_string())?;
    let pid = child.id();
    // Somebody must wait for it, or it stays a zombie.
    std::thread::spawn(move || child.wait());
    Ok(pid)
}

fn launch(command: Vec<String>, log: &Path, as_server: bool) -> Result<u32, ServerError> {
    let mut whole = vec!["setpriv".to_owned()];
    if as_server && is_root() {
        whole.extend(unprivileged());
    }
    whole.extend(["--pdeathsig".to_owned(), "KILL".to_owned(), "--".to_owned()]);
    whole.extend(command);
    let (sender, receiver) = mpsc::channel();
    let launcher = LAUNCHER.lock().unwrap_or_else(PoisonError::into_inner);
    launcher.send((whole, log.to_owned(), sender)).map_err(|error| failed("starting a server", error))?;
    drop(launcher);
    let answer = receiver.recv().map_err(|error| failed("starting a server", error))?;
    answer.map_err(|error| failed("starting a server", error))
}

/// Postgres refuses to run as root.
fn unprivileged() -> [String; 3] {
    ["--reuid=postgres".to_owned(), "--regid=postgres".to_owned(), "--clear-groups".to_owned()]
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

fn run_as_server(command: &[&str]) -> Result<(), ServerError> {
    let mut whole = Command::new("setpriv");
    if is_root() {
        whole.args(unprivileged());
    }
    let output =
        whole.arg("--").args(command).current_dir("/").output().map_err(|error| failed("setpriv", error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(command.join(" "), String::from_utf8_lossy(&output.stderr)))
}

fn new_directory(kind: &str) -> Result<PathBuf, ServerError> {
    let directory = std::env::temp_dir().join(format!("cachekeeper-{kind}-{:016x}", rand::random::<u64>()));
    let path = directory.display().to_string();
    run_as_server(&["mkdir", "-m", "0755", &path])?;
    Ok(directory)
}

/// A port below those that the system gives to outgoing connections: nothing takes it while its server is down.
fn free_port() -> Result<u16, ServerError> {
    for _ in 0..100 {
        let port = rand::random_range(15_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(failed("finding a free port", "a hundred ports were taken"))
}

/// A fresh data directory, made once and copied for each server, because making one takes most of a second.
fn template() -> Result<PathBuf, ServerError> {
    let initdb = postgres_program("initdb")?;
    let user = if is_root() { "root" } else { "user" };
    // The whole path names the template: two installations of one version may differ.
    let place = crate::domain::keyspace::key_hash(initdb.as_os_str().as_encoded_bytes());
    let template = std::env::temp_dir().join(format!("cachekeeper-initdb-{user}-{place:016x}"));
    if template.join("PG_VERSION").exists() {
        return Ok(template);
    }
    let fresh = std::env::temp_dir().join(format!("cachekeeper-initdb-{:016x}", rand::random::<u64>()));
    let (program, path) = (initdb.display().to_string(), fresh.display().to_string());
    run_as_server(&[
        &program,
        "-D",
        &path,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    ])?;
    // Whoever is first wins; the others' copies go.
    if run_as_server(&["mv", "-T", "-n", &path, &template.display().to_string()]).is_err() || fresh.exists() {
        run_as_server(&["rm", "-rf", &path])?;
    }
    Ok(template)
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

#[expect(clippy::disallowed_methods, reason = "where programs are is a fact of the environment")]
fn find_program(name: &str, first: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = first.iter().cloned().chain(std::env::split_paths(&path));
    directories.map(|directory| directory.join(name)).find(|program| program.is_file())
}
