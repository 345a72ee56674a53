//! Lives of the primary (R13): failovers, an old primary that comes back, backups that are restored beside the original. The right
//! primary is never locked out, and two of them cannot take turns.

use std::time::{Duration, Instant};

use cachekeeper::app::Worker;
use cachekeeper_testkit::proxy::Proxy;
use cachekeeper_testkit::servers::{Copied, Postgres};
use redis::AsyncCommands;

use crate::capture::{TABLES, plain};
use crate::feed::{agrees, caught_up, ready};
use crate::support::{Rig, wait_until};

async fn start(rig: &Rig, address: &Proxy) -> Worker {
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", address.port());
    let toml = format!("[postgres]\nurl = \"{url}\"\n{}", plain());
    let mut environment = rig.environment();
    environment.remove("CACHEKEEPER__POSTGRES__URL");
    let (config, _) =
        cachekeeper_config::Config::load(std::path::Path::new("test.toml"), toml, &environment).unwrap();
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    worker
}

async fn name(rig: &Rig) -> String {
    let value: Option<String> = rig.client().await.get("product:7").await.unwrap();
    value.unwrap_or_default()
}

async fn set(server: &Postgres, text: &str) {
    server.execute(&format!("update products set name = '{text}' where id = 7")).await.unwrap();
}

/// Waits until the worker says that it sees another server than the one that is served.
async fn is_refused(worker: &Worker) {
    wait_until("the other server is refused", async || {
        let reasons = worker.health.reasons();
        let is_told = reasons.iter().any(|reason| reason.contains("nor its successor"));
        if is_told { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
}

/// Faults D5: the old primary was served again for as long as it was seen, and then the right one was refused for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_comes_back_is_not_served_and_the_right_one_is() {
    let mut rig = Rig::start(TABLES).await;
    let address = Proxy::start(rig.postgres.port()).await.unwrap();
    let worker = start(&rig, &address).await;
    set(&rig.postgres, "before").await;
    caught_up(&worker).await;
    let first = worker.context.redis.metadata("").await.unwrap().epoch;
    rig.postgres.stop();
    let promoted = rig.postgres.start_copy(Copied::Promoted).await.unwrap();
    address.lead_to(promoted.port());
    let began = Instant::now();
    set(&promoted, "after").await;
    caught_up(&worker).await;
    println!("the promoted server is served after {:?}", began.elapsed());
    agrees(&worker).await;
    let second = worker.context.redis.metadata("").await.unwrap().epoch;
    assert_ne!(first, second);
    assert!(name(&rig).await.contains("after"));
    // Unfenced: it takes writes, and the address leads to it for a while.
    rig.postgres.start_again().await.unwrap();
    set(&rig.postgres, "wrong").await;
    address.lead_to(rig.postgres.port());
    is_refused(&worker).await;
    assert!(name(&rig).await.contains("after"));
    address.lead_to(promoted.port());
    set(&promoted, "right").await;
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(name(&rig).await.contains("right"));
    assert_eq!(worker.context.redis.metadata("").await.unwrap().epoch, second, "nothing was loaded from it");
    // A restart of the right one is served at once.
    let mut promoted = promoted;
    promoted.kill();
    promoted.start_again().await.unwrap();
    let began = Instant::now();
    set(&promoted, "restarted").await;
    caught_up(&worker).await;
    println!("a restarted server is served after {:?}", began.elapsed());
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// A backup that is restored beside the original, on its own timeline; and two standbys that were both promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_beside_the_living_primary_is_served_only_when_that_one_is_gone() {
    let mut rig = Rig::start(TABLES).await;
    rig.postgres.stop();
    let restored = rig.postgres.start_copy(Copied::Restored).await.unwrap();
    rig.postgres.start_again().await.unwrap();
    let address = Proxy::start(rig.postgres.port()).await.unwrap();
    let worker = start(&rig, &address).await;
    set(&rig.postgres, "original").await;
    caught_up(&worker).await;
    set(&restored, "restored").await;
    address.lead_to(restored.port());
    is_refused(&worker).await;
    assert!(name(&rig).await.contains("original"));
    address.lead_to(rig.postgres.port());
    caught_up(&worker).await;
    assert!(name(&rig).await.contains("original"));
    // For good.
    address.lead_to(restored.port());
    let began = Instant::now();
    caught_up(&worker).await;
    ready(&worker).await;
    println!("the restored backup is served after {:?}", began.elapsed());
    agrees(&worker).await;
    assert!(name(&rig).await.contains("restored"));
    assert!(Duration::from_secs(10) < began.elapsed(), "the original might have come back");
    assert!(worker.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_promoted_standbys_the_one_that_is_served_stays() {
    let mut rig = Rig::start(TABLES).await;
    let address = Proxy::start(rig.postgres.port()).await.unwrap();
    let worker = start(&rig, &address).await;
    rig.postgres.stop();
    let (one, two) =
        tokio::join!(rig.postgres.start_copy(Copied::Promoted), rig.postgres.start_copy(Copied::Promoted));
    let (one, two) = (one.unwrap(), two.unwrap());
    address.lead_to(one.port());
    set(&one, "one").await;
    caught_up(&worker).await;
    let epoch = worker.context.redis.metadata("").await.unwrap().epoch;
    set(&two, "two").await;
    for _ in 0..2 {
        address.lead_to(two.port());
        is_refused(&worker).await;
        assert!(name(&rig).await.contains("one"));
        address.lead_to(one.port());
        caught_up(&worker).await;
        ready(&worker).await;
    }
    agrees(&worker).await;
    assert_eq!(worker.context.redis.metadata("").await.unwrap().epoch, epoch);
    assert!(worker.stop().await);
}
