//! Asks the worker each second, for as long as anybody looks.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::super::worker_asked::{ask, found};
use super::snapshot::Snapshot;
use crate::actors::clock::now_ms;
use cachekeeper_config::Config;
use cachekeeper_engine::backoff::every;

const POLL_EVERY: Duration = Duration::from_secs(1);

/// Never ends while somebody looks. Each question has the client's limit of time.
pub(super) async fn poll(config: Config, sender: watch::Sender<Snapshot>) {
    let mut ticks = every(POLL_EVERY);
    while !sender.is_closed() {
        ticks.tick().await;
        let (machine, now) = tokio::join!(found(&config), ask(&config, "/api/v1/now"));
        // What asks the servers may fail while the worker itself answers.
        let (datasets, leases) =
            tokio::join!(ask(&config, "/api/v1/datasets"), ask(&config, "/api/v1/leases"));
        let at_ms = now_ms();
        sender.send_modify(|snapshot| match (now, machine) {
            (Ok(now), Ok(machine)) => {
                snapshot.take(at_ms, read(now).unwrap_or_default(), read(machine));
                snapshot.datasets = datasets.ok().and_then(|body| list(body, "datasets"));
                snapshot.leases = leases.ok().and_then(|body| list(body, "leases"));
            }
            (Err(refused), _) | (_, Err(refused)) => snapshot.miss(at_ms, refused.error),
        });
    }
}

fn read<T: DeserializeOwned>(body: Value) -> Option<T> {
    serde_json::from_value(body).ok()
}

fn list<T: DeserializeOwned>(mut body: Value, name: &str) -> Option<T> {
    read(body.get_mut(name)?.take())
}
