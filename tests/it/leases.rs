//! Leases of workers: each ends with its holder, however that ends, and whoever waits for it takes it over.

use std::sync::Arc;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper::supervisor::SupervisorMessage;
use cachekeeper_config::Secret;
use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::lease::{Elector, Lease, LeaseName, LeaseReply, Renewer, Wakeups};
use cachekeeper_engine::stores::redis::LeaseAttempt;
use cachekeeper_testkit::proxy::{Behaviour, Proxy};
use cachekeeper_testkit::servers::{Clock, Postgres, Redis, Session};
use redis::AsyncCommands;

use crate::feed::{DATASETS, TABLES, ready};
use crate::support::{Rig, wait_until};

const REVALIDATION: &str = "revalidation";
const BACKFILL: &str = "backfill:product";

/// What a lease holds: its token and its owner.
async fn holder(rig: &Rig, lease: &str) -> Option<String> {
    rig.client().await.get(format!("ck:{{test:0}}:lock:{lease}")).await.unwrap()
}

async fn held(rig: &Rig, lease: &str) -> String {
    wait_until("somebody has the lease", async || {
        holder(rig, lease).await.ok_or_else(|| format!("nobody has {lease}"))
    })
    .await
}

/// Kills the actor that holds a lease, and waits until its successor holds it.
async fn taken_up_again(rig: &Rig, worker: &Worker, actor: &'static str, lease: &str) {
    let before = held(rig, lease).await;
    worker.supervisor().cast(SupervisorMessage::Kill(actor)).unwrap();
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
    let (renewer, leader) = elector(&context, "the leader");
    let renewing = tokio::spawn(async move { renewer.run().await });
    let _lease = leader.lead(&LeaseName::FEED).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let applied_by_worker = || worker.context.metrics.changed_keys.get_or_create(&labels()).get();
    wait_until("another worker follows in its place", async || {
        rig.postgres.execute("update products set price = price + 1 where id = 7").await.unwrap();
        if 0 < applied_by_worker() { Ok(()) } else { Err("nobody moves the watermark".to_owned()) }
    })
    .await;
    // It moves again.
    let coverage = cachekeeper_engine::coverage::look(&context, false).await.unwrap();
    context.set_coverage(coverage);
    let leader = tokio::spawn({
        let context = context.clone();
        async move {
            let mut feed = FeedConsumer::new(&context);
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
            wait_until("the leader has applied one", async || {
                // Where the substitute was faster, the leader finds nothing left of it.
                rig.postgres.execute("update products set price = price + 1 where id = 7").await.unwrap();
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
    renewing.abort();
}

/// It would load for ever what the other one has moved past.
#[tokio::test]
async fn a_leader_that_is_slower_than_its_substitute_moves_the_watermark_again() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
    let road = Proxy::start(rig.postgres.port()).await.unwrap();
    let mut config = rig.config(DATASETS);
    config.postgres.url = Secret::new(
        rig.postgres.url().replace(&format!(":{}/", rig.postgres.port()), &format!(":{}/", road.port())),
    );
    let context = Context::of_worker(&config).unwrap();
    let (renewer, leader) = elector(&context, "the leader");
    let renewing = tokio::spawn(async move { renewer.run().await });
    let _lease = leader.lead(&LeaseName::FEED).await;
    let coverage = cachekeeper_engine::coverage::look(&context, false).await.unwrap();
    context.set_coverage(coverage);
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let url = rig.postgres.url();
    let writing = tokio::spawn(async move {
        let mut session = Session::open(&url).await.unwrap();
        loop {
            session.execute("update products set price = price + 1 where id = 7").await.unwrap();
        }
    });
    wait_until("another worker follows in its place", async || {
        match worker.context.metrics.changed_keys.get_or_create(&labels()).get() {
            0 => Err("nobody moves the watermark".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let is_late = |link: &mut Behaviour| link.delay = Duration::from_millis(20);
    road.change_new(is_late);
    road.change_all(is_late);
    let mut feed = FeedConsumer::new(&context);
    let mut moved = 0;
    for attempts in 0.. {
        match feed.step(false).await.unwrap() {
            Step::Applied(_) => moved += 1,
            step => assert!(attempts < 200, "moved {moved} times, now {step:?}"),
        }
        if 3 <= moved {
            break;
        }
    }
    writing.abort();
    assert!(worker.stop().await);
    renewing.abort();
}

fn labels() -> cachekeeper_engine::metrics::ByDataset {
    cachekeeper_engine::metrics::ByDataset::new("product")
}

fn elector(context: &Context, owner: &str) -> (Renewer, Elector) {
    let renewer = Renewer::supervised(context.redis.clone(), Arc::clone(&context.metrics));
    let elector = Elector::new(renewer.clone(), Wakeups::new(context.redis.clone()), owner);
    (renewer, elector)
}

#[track_caller]
fn granted(reply: LeaseReply) -> Lease {
    match reply {
        LeaseReply::Granted(lease) => lease,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_lease_is_told_when_it_is_lost_and_given_back_with_its_renewer() {
    let rig = Rig::start("").await;
    let context = rig.context("");
    let (renewer, elector) = elector(&context, "me");
    let feed = LeaseName::FEED;
    assert!(!matches!(elector.try_lead(&feed).await, LeaseReply::Granted(_)), "nobody would renew it");
    let run = |renewer: Renewer| tokio::spawn(async move { renewer.run().await });
    let running = run(renewer.clone());
    let lease = wait_until("the renewer runs", async || match elector.try_lead(&feed).await {
        LeaseReply::Granted(lease) => Ok(lease),
        other => Err(format!("{other:?}")),
    })
    .await;
    let LeaseReply::Held { owner, .. } = elector.try_lead(&feed).await else { panic!("it was taken twice") };
    assert_eq!(owner, "me");
    // Taken by force: the next renewal finds out.
    let mut client = rig.client().await;
    let _: () = client.set("ck:{test:0}:lock:feed", "1 somebody else").await.unwrap();
    lease.lost().cancelled().await;
    drop(lease);
    // Given back by its owner only; the next token is larger.
    let second = granted(elector.try_lead(&LeaseName::AUDIT).await);
    let token = second.token();
    assert!(second.release().await.unwrap());
    let third = granted(elector.try_lead(&LeaseName::AUDIT).await);
    assert!(token < third.token());
    // A renewer that dies tells everybody, and holds up nobody.
    running.abort();
    third.lost().cancelled().await;
    let running = run(renewer.clone());
    drop(third);
    let fourth = elector.lead(&LeaseName::AUDIT).await;
    // One that is closed gives back what is held.
    renewer.close().await;
    assert!(fourth.lost().is_cancelled());
    let left: Vec<String> = client.keys("ck:{test:0}:lock:*").await.unwrap();
    assert_eq!(left, ["ck:{test:0}:lock:feed"], "only what is somebody else's");
    running.abort();
}

#[tokio::test]
async fn who_waits_to_lead_is_woken_by_the_release() {
    let rig = Rig::start("").await;
    let context = rig.context("");
    let ((first, ours), (second, theirs)) = (elector(&context, "one"), elector(&context, "other"));
    let running = [first, second].map(|renewer| tokio::spawn(async move { renewer.run().await }));
    let long = LeaseName { life: Duration::from_secs(600), ..LeaseName::AUDIT };
    let lease = ours.lead(&long).await;
    let waiting = tokio::spawn(async move { theirs.lead(&long).await.token() });
    let channel = context.redis.keys().unlock_channel();
    wait_until("it listens", async || {
        let query = redis::cmd("PUBSUB").arg("NUMSUB").arg(&channel).to_owned();
        let heard: Vec<(String, u32)> = query.query_async(&mut rig.client().await).await.unwrap();
        if heard[0].1 == 1 { Ok(()) } else { Err(format!("{heard:?}")) }
    })
    .await;
    let token = lease.token();
    // Its holder panics.
    let holder = tokio::spawn(async move {
        let _lease = lease;
        panic!("on purpose");
    });
    assert!(holder.await.is_err());
    assert!(token < waiting.await.unwrap());
    running.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Redis ends the lease of a dead worker by its clock, which somebody may set back just then.
#[tokio::test]
async fn a_dead_worker_leaves_no_lease_behind_although_the_clock_of_redis_went_back() {
    let clock = Clock::new().unwrap();
    let environment = clock.environment();
    let (postgres, redis) = tokio::join!(Postgres::start(&[]), Redis::start_with(&[], &environment));
    let rig = Rig { postgres: postgres.unwrap(), redis: redis.unwrap() };
    let context = rig.context("");
    let ((first, ours), (second, theirs)) = (elector(&context, "one"), elector(&context, "other"));
    let first = tokio::spawn(async move { first.run().await });
    let second = tokio::spawn(async move { second.run().await });
    for (name, seconds) in [(LeaseName::COMMANDS, -3_600), (LeaseName::FEED, -10 * 365 * 86_400)] {
        let dead = context.redis.acquire_locks(&[&name.name], "dead", name.life, true).await.unwrap();
        assert!(matches!(dead, LeaseAttempt::Granted(_)), "{dead:?}");
        clock.set(seconds).unwrap();
        let lease = tokio::time::timeout(Duration::from_secs(60), ours.lead(&name)).await.unwrap();
        // The one who lives keeps it: whoever looks cuts it to what it renews in any case.
        clock.set(seconds - 3_600).unwrap();
        let LeaseReply::Held { owner, left, .. } = theirs.try_lead(&name).await else {
            panic!("it was free")
        };
        assert!(owner == "one" && left <= name.life, "{owner} {left:?}");
        assert!(!lease.lost().is_cancelled());
        assert!(lease.release().await.unwrap());
    }
    first.abort();
    second.abort();
}
