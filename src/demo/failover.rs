//! A second worker in a process of its own: it leads first, is killed with -9 halfway, and the worker of this process takes over.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use cachekeeper_engine::context::Context;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::stores::redis::LeaseAttempt;

/// How long it may take to lead.
const LEADS_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The worker that leads first. It ends with this value.
#[derive(Debug)]
pub struct FirstLeader {
    child: Child,
    /// Who followed the changes before it was killed.
    name: String,
    is_killed: bool,
    /// Waits until the other worker follows them.
    taking_over: Option<JoinHandle<String>>,
}

impl FirstLeader {
    /// Starts this program again with that configuration, and waits until it follows the changes.
    ///
    /// # Errors
    /// The program cannot be started, or does not lead in time.
    pub async fn start(
        config: &str,
        environment: &BTreeMap<String, String>,
        context: &Context,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["run", "-c", "/dev/stdin"])
            .envs(environment)
            .env("CACHEKEEPER__ADMIN__LISTEN", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // No file, which another user of this machine could have made before, or could read.
        let input = child.stdin.take();
        let mut first = Self { child, name: String::new(), is_killed: false, taking_over: None };
        input.context("the first worker has no standard input")?.write_all(config.as_bytes())?;
        let began = Instant::now();
        loop {
            if let Some(leader) = leader(context).await {
                first.name = leader;
                return Ok(first);
            }
            anyhow::ensure!(began.elapsed() < LEADS_WITHIN, "the first worker does not follow the changes");
            sleep(LOOK_EVERY).await;
        }
    }

    /// Kills it with -9, once.
    pub fn kill(&mut self, context: &Context) -> Option<String> {
        if std::mem::replace(&mut self.is_killed, true) {
            return None;
        }
        drop(self.child.kill());
        drop(self.child.wait());
        let (name, context, killed) = (self.name.clone(), context.clone(), Instant::now());
        self.taking_over = Some(tokio::spawn(async move {
            loop {
                match leader(&context).await {
                    Some(other) if other != name => {
                        return format!("{other} took over after {:.1} s", killed.elapsed().as_secs_f64());
                    }
                    _ => sleep(LOOK_EVERY).await,
                }
            }
        }));
        Some(format!("killed {} with -9, which followed the changes", self.name))
    }

    /// After how long the other worker has begun to follow the changes, told once.
    pub async fn taken_over(&mut self) -> Option<String> {
        let done = self.taking_over.take_if(|taking_over| taking_over.is_finished())?;
        done.await.ok()
    }
}

impl Drop for FirstLeader {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn leader(context: &Context) -> Option<String> {
    match context.redis.lock_holder(&[LeaseName::FEED.name.into_owned()]).await {
        Ok(Some(LeaseAttempt::Held { owner, .. })) => Some(owner),
        _ => None,
    }
}
