//! Workers as processes of their own, which can be killed and stopped like any process.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Arena, DATASETS};

pub struct WorkerProcess {
    child: Child,
    file: std::path::PathBuf,
}

impl WorkerProcess {
    /// `fail_at` names the point at which it ends by itself.
    pub fn start(arena: &Arena, fail_at: &str) -> Self {
        let file =
            std::env::temp_dir().join(format!("cachekeeper-oracle-{:016x}.toml", rand::random::<u64>()));
        std::fs::File::create(&file).unwrap().write_all(DATASETS.as_bytes()).unwrap();
        let log = std::fs::File::create(file.with_extension("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeeper"));
        command.arg("run").arg("-c").arg(&file);
        command.env("CACHEKEEPER__POSTGRES__URL", &arena.postgres_url);
        command.env("CACHEKEEPER__REDIS__URL", &arena.redis_url);
        command.env("CACHEKEEPER__SERVICE__NAMESPACE", "test").env("CACHEKEEPER__ADMIN__LISTEN", "");
        command.env("CACHEKEEPER_FAIL_AT", fail_at).env("RUST_BACKTRACE", "0");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, file }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGKILL, and another one in its place.
    pub fn replace(&mut self, arena: &Arena, fail_at: &str) {
        drop(std::mem::replace(self, Self::start(arena, fail_at)));
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

/// Waits until the watermark has passed what is committed now, holds for everything, and nothing is owed.
pub async fn caught_up(arena: &Arena) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let last = match try_caught_up(arena).await {
            Ok(()) => return,
            Err(last) => last,
        };
        assert!(tokio::time::Instant::now() < deadline, "not caught up within a minute: {last}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn try_caught_up(arena: &Arena) -> Result<(), String> {
    let context = arena.rig.lock().await.context(DATASETS);
    let text = |error: &dyn std::error::Error| error.to_string();
    let now = context.postgres.poll().await.map_err(|error| text(&error))?;
    for _ in 0..100 {
        let watermark = context.redis.watermark().await.map_err(|error| text(&error))?;
        if let Some(watermark) = &watermark {
            let at: cachekeeper::domain::stamp::Snapshot = watermark.snapshot.parse().unwrap();
            let is_there = watermark.incarnation == now.incarnation && now.snapshot.stamp() <= at.stamp();
            if is_there && watermark.not_covered.is_empty() {
                context.postgres.close().await;
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let head = context.redis.head("").await.map_err(|error| text(&error))?;
    let watermark = context.redis.watermark().await.map_err(|error| text(&error))?;
    context.postgres.close().await;
    Err(format!("now {now:?}, watermark {watermark:?}, head {head:?}"))
}
