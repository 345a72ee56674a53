//! Workers as processes of their own, which can be killed and stopped like any process.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use crate::support::wait_until;

/// What a worker is started with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The worker's program.
    pub program: PathBuf,
    pub toml: &'static str,
    pub postgres_url: String,
    pub redis_url: String,
    pub environment: Vec<(&'static str, String)>,
}

impl Launch {
    fn command(&self, verb: &str, file: &Path) -> Command {
        std::fs::File::create(file).unwrap().write_all(self.toml.as_bytes()).unwrap();
        let mut command = Command::new(&self.program);
        command.arg(verb).arg("-c").arg(file).stdin(Stdio::null());
        command.env("CACHEKEEPER__POSTGRES__URL", &self.postgres_url);
        command.env("CACHEKEEPER__REDIS__URL", &self.redis_url);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("CACHEKEEPER__SERVICE__NAMESPACE", "test").env("CACHEKEEPER__ADMIN__LISTEN", "");
        command
    }

    /// `cachekeeper migrate`
    pub fn migrate(&self) -> Output {
        let file = new_file();
        let output = self.command("migrate", &file).output().unwrap();
        drop(std::fs::remove_file(file));
        output
    }
}

/// The program of this build.
pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_cachekeeper").into()
}

fn new_file() -> PathBuf {
    std::env::temp_dir().join(format!("cachekeeper-process-{:016x}.toml", rand::random::<u64>()))
}

pub struct WorkerProcess {
    child: Child,
    file: PathBuf,
    launch: Arc<Launch>,
}

impl WorkerProcess {
    /// `fail_at` names the point at which it ends by itself.
    pub fn start(launch: &Arc<Launch>, fail_at: &str) -> Self {
        let file = new_file();
        let log = std::fs::File::create(file.with_extension("log")).unwrap();
        let mut command = launch.command("run", &file);
        command.env("CACHEKEEPER_FAIL_AT", fail_at).env("RUST_BACKTRACE", "0");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, file, launch: Arc::clone(launch) }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) {
        wait_until("a worker has stopped", || {
            let has_ended = self.has_ended();
            async move { if has_ended { Ok(()) } else { Err("it is still running".to_owned()) } }
        })
        .await;
    }

    /// SIGKILL, and another one in its place.
    pub fn replace(&mut self, fail_at: &str) {
        let next = Self::start(&self.launch, fail_at);
        drop(std::mem::replace(self, next));
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.file));
        // The log of a failed run is left to look at.
        if !std::thread::panicking() {
            drop(std::fs::remove_file(self.file.with_extension("log")));
        }
    }
}
