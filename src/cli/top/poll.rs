//! Asks the worker each second, for as long as anybody looks.

use std::pin::pin;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use super::super::worker_asked::{ask, found};
use super::snapshot::Snapshot;
use crate::actors::clock::now_ms;
use cachekeeper_config::Config;
use cachekeeper_engine::backoff::every;

const POLL_EVERY: Duration = Duration::from_secs(1);
/// Whoever looks is told after so long that the worker is silent, long before the question's own limit of time.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// Never ends while somebody looks. What asks the servers may be silent while the worker itself answers.
pub(super) async fn poll(config: Config, sender: watch::Sender<Snapshot>) {
    tokio::join!(poll_worker(&config, &sender), poll_servers(&config, &sender));
}

async fn poll_worker(config: &Config, sender: &watch::Sender<Snapshot>) {
    let mut ticks = every(POLL_EVERY);
    while !sender.is_closed() {
        ticks.tick().await;
        let asking = async { tokio::join!(found(config), ask(config, "/api/v1/now")) };
        let silent = || sender.send_modify(|snapshot| snapshot.miss(now_ms(), "it is silent".to_owned()));
        let (machine, now) = answered(asking, silent).await;
        sender.send_modify(|snapshot| match (now, machine) {
            (Ok(now), Ok(machine)) => {
                snapshot.take(now_ms(), read(now).unwrap_or_default(), read(machine));
            }
            (Err(refused), _) | (_, Err(refused)) => snapshot.miss(now_ms(), refused.error),
        });
    }
}

async fn poll_servers(config: &Config, sender: &watch::Sender<Snapshot>) {
    let mut ticks = every(POLL_EVERY);
    while !sender.is_closed() {
        ticks.tick().await;
        let asking = async { tokio::join!(ask(config, "/api/v1/datasets"), ask(config, "/api/v1/leases")) };
        let set = |datasets, leases| {
            sender.send_modify(|snapshot| (snapshot.datasets, snapshot.leases) = (datasets, leases));
        };
        let (datasets, leases) = answered(asking, || set(None, None)).await;
        set(
            datasets.ok().and_then(|body| list(body, "datasets")),
            leases.ok().and_then(|body| list(body, "leases")),
        );
    }
}

/// The answers; that they take long is told meanwhile.
async fn answered<T>(asking: impl Future<Output = T>, silent: impl FnOnce()) -> T {
    let mut asking = pin!(asking);
    match timeout(SILENT_AFTER, &mut asking).await {
        Ok(answers) => answers,
        Err(_elapsed) => {
            silent();
            asking.await
        }
    }
}

fn read<T: DeserializeOwned>(body: Value) -> Option<T> {
    serde_json::from_value(body).ok()
}

fn list<T: DeserializeOwned>(mut body: Value, name: &str) -> Option<T> {
    read(body.get_mut(name)?.take())
}
