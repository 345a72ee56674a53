//! Leases of workers: each ends with its holder, however that ends, and whoever waits for it takes it over.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper::flows::compare::{Extent, compare};
use cachekeeper::flows::follow::{Follower, Step};
use cachekeeper::supervisor::{ChildKind, SupervisorMessage};
use redis::AsyncCommands;

use crate::feed::{DATASETS, TABLES, ready};
use crate::support::{Rig, wait_until};

const REVALIDATION: &str = "lead";
const BACKFILL: &str = "warm:product";

fn kill(worker: &Worker, actor: &str) {
    let kind = ChildKind::START_ORDER.into_iter().find(|kind| kind.name() == actor).unwrap();
    worker.supervisor().cast(SupervisorMessage::Kill(kind)).unwrap();
}

/// What a lease holds: its token and its owner.
async fn holder(rig: &Rig, lease: &str) -> Option<String> {
    rig.client().await.get(format!("ck:{{test}}:lock:{lease}")).await.unwrap()
}

async fn held(rig: &Rig, lease: &str) -> String {
    wait_until("somebody has the lease", async || {
        holder(rig, lease).await.ok_or_else(|| format!("nobody has {lease}"))
    })
    .await
}

/// Kills the actor that holds a lease, and waits until its successor holds it.
async fn taken_up_again(rig: &Rig, worker: &Worker, actor: &str, lease: &str) {
    let before = held(rig, lease).await;
    kill(worker, actor);
    wait_until("the lease is taken up again", async || match holder(rig, lease).await {
        Some(holder) if holder != before => Ok(()),
        other => Err(format!("{actor}: {other:?}, before {before}")),
    })
    .await;
}

#[tokio::test]
async fn a_killed_feed_and_a_killed_auditor_leave_no_lease_behind() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    taken_up_again(&rig, &worker, "change_feed", "feed").await;
    taken_up_again(&rig, &worker, "auditor", "audit").await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_killed_epoch_keeper_and_a_killed_warmer_leave_no_lease_behind() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
    // Another definition must be revalidated and filled; both wait for the table, with their leases.
    let mut session = rig.postgres.session().await.unwrap();
    session.execute("begin; lock table products in access exclusive mode").await.unwrap();
    let changed = DATASETS.replace("select p.id, p.name,", "select p.id, p.name, 1 as one,");
    let worker = Worker::start(rig.config(&changed)).await.unwrap();
    taken_up_again(&rig, &worker, "epoch_keeper", REVALIDATION).await;
    taken_up_again(&rig, &worker, "warmer", BACKFILL).await;
    session.execute("commit").await.unwrap();
    ready(&worker).await;
    for dataset in worker.context.catalog.iter() {
        let found = compare(&worker.context, dataset, &Extent::default()).await.unwrap();
        assert!(found.is_clean(), "{found}");
    }
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_substitute_feed_steps_down_when_the_leader_moves_again() {
    let rig = Rig::start(TABLES).await;
    // A leader installs the triggers. The next one holds the lease and stands still.
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
    let context = rig.context(DATASETS);
    context.redis.acquire_locks(&["feed"], "the leader", Duration::from_secs(600)).await.unwrap();
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let applied_by_worker = || worker.context.metrics.changed_keys.get_or_create(&labels()).get();
    wait_until("another worker follows in its place", async || {
        rig.postgres.execute("update products set price = price + 1 where id = 7").await.unwrap();
        if 0 < applied_by_worker() { Ok(()) } else { Err("nobody moves the watermark".to_owned()) }
    })
    .await;
    // It moves again.
    let coverage = cachekeeper::flows::coverage::look(&context, false).await.unwrap();
    context.set_coverage(coverage);
    let leader = tokio::spawn({
        let context = context.clone();
        async move {
            let mut feed = Follower::new(&context);
            loop {
                let step = feed.step(false).await.unwrap();
                if step == Step::Idle {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let applied = || context.metrics.changed_keys.get_or_create(&labels()).get();
    wait_until("the leader alone applies what is committed", async || {
        let before = applied_by_worker();
        for _ in 0..20 {
            let seen = applied();
            rig.postgres.execute("update products set price = price + 1 where id = 7").await.unwrap();
            wait_until("the leader has applied it", async || {
                if seen < applied() { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
        }
        let after = applied_by_worker();
        if before == after { Ok(()) } else { Err(format!("{before} to {after}")) }
    })
    .await;
    leader.abort();
    // And stands still again.
    let before = applied_by_worker();
    rig.postgres.execute("update products set price = price + 1 where id = 7").await.unwrap();
    wait_until("the substitute goes on", async || {
        if before < applied_by_worker() { Ok(()) } else { Err("nobody moves the watermark".to_owned()) }
    })
    .await;
    assert!(worker.stop().await);
}

fn labels() -> cachekeeper::metrics::ByDataset {
    cachekeeper::metrics::ByDataset::new("product")
}
