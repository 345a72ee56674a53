//! Private Postgres and Redis servers, for the demo and the tests: own directory, own free port, gone with us.

mod clock;
mod cluster;
mod pgbouncer;
mod postgres;
mod redis;
mod sentinels;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

pub use clock::Clock;
pub use cluster::Cluster;
pub use pgbouncer::PgBouncer;
pub use postgres::{Copied, Postgres, Refusal, Session};
pub use redis::Redis;
pub use sentinels::{SERVICE, Sentinels};

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is missing.
    #[error(
        "{program} is not installed; as root: apt-get install -y postgresql redis-server (and, for tests, pgbouncer and openssl)"
    )]
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

/// What both have: a process, a port, a directory.
#[derive(Debug)]
struct Server {
    pid: Option<u32>,
    port: u16,
    directory: PathBuf,
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

    fn signal_all(&self, name: &str) {
        let Some(pid) = self.pid else { return };
        for process in children_of(pid).into_iter().chain([pid.to_string()]) {
            drop(Command::new("kill").args(["-s", name, &process]).stderr(Stdio::null()).status());
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

pub(crate) fn is_root() -> bool {
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
///
/// # Errors
/// None was found.
pub fn free_port() -> Result<u16, ServerError> {
    for _ in 0..100 {
        let port = rand::random_range(15_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(failed("finding a free port", "a hundred ports were taken"))
}

#[expect(clippy::disallowed_methods, reason = "where programs are is a fact of the environment")]
fn find_program(name: &str, first: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = first.iter().cloned().chain(std::env::split_paths(&path));
    directories.map(|directory| directory.join(name)).find(|program| program.is_file())
}
