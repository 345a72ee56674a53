//! What happens to the cluster of the demo while it runs: cluster slots move from one master to another, then a master is killed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_testkit::servers::Cluster;

/// Cluster slots that move.
const MOVED: usize = 50;
/// Keys that move at once.
const KEYS_AT_ONCE: usize = 1_000;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// By then a replica has taken over, or the demo is wrong.
const TAKES_OVER_WITHIN: Duration = Duration::from_secs(20);
/// Masters begin in this order, and their replicas behind them.
const MASTERS: usize = 3;

/// Moves cluster slots after so long, kills a master after twice that, and tells both. It ends in between where it is cancelled; what it has
/// begun it does to the end.
///
/// # Errors
/// A server does not do as it is asked.
pub async fn run(
    cluster: Arc<Cluster>,
    after: Duration,
    told: mpsc::UnboundedSender<String>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let began = Instant::now();
    for (times, strike) in [(1, Strike::Reshard), (2, Strike::Kill)] {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(began + after * times) => {}
        }
        let text = match strike {
            Strike::Reshard => reshard(&cluster).await?,
            Strike::Kill => {
                drop(told.send("killed a master of the cluster with -9".to_owned()));
                kill(&cluster).await?
            }
        };
        drop(told.send(text));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Strike {
    Reshard,
    Kill,
}

/// Moves cluster slots with their entries from the first master to the second, as `redis-cli --cluster reshard` does.
async fn reshard(cluster: &Cluster) -> anyhow::Result<String> {
    let began = Instant::now();
    let (from, to) = (0, 1);
    let (mut keys, mut last) = (0, None);
    for slot in ClusterSlot::all().take(MOVED) {
        cluster.begin_move(slot, from, to).await?;
        loop {
            match cluster.move_keys(slot, from, to, KEYS_AT_ONCE).await? {
                0 => break,
                moved => keys += moved,
            }
        }
        cluster.end_move(slot, from, to).await?;
        last = Some(slot);
    }
    while let Some(slot) = last
        && !cluster.agrees_on(slot, to).await
    {
        sleep(LOOK_EVERY).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(format!("moved {MOVED} cluster slots with {keys} keys to another master in {seconds:.1} s"))
}

/// Kills the last master; its replica takes over by itself.
async fn kill(cluster: &Cluster) -> anyhow::Result<String> {
    let (master, replica) = (MASTERS - 1, 2 * MASTERS - 1);
    let killed = Instant::now();
    cluster.node(master)?.crash();
    loop {
        let role: Vec<redis::Value> = cluster.ask(replica, &redis::cmd("ROLE")).await?;
        if matches!(role.first(), Some(redis::Value::BulkString(name)) if name == b"master") {
            let seconds = killed.elapsed().as_secs_f64();
            return Ok(format!("its replica took over after {seconds:.1} s"));
        }
        anyhow::ensure!(killed.elapsed() < TAKES_OVER_WITHIN, "no replica has taken over");
        sleep(LOOK_EVERY).await;
    }
}
