//! A Redis that restarts from what it has on its disk: everything, all but the last second, or an older state. Nobody lends a hand.

use cachekeeper::app::Worker;
use redis::AsyncCommands;

use crate::capture::{TABLES, plain};
use crate::feed::{agrees, caught_up, ready};
use crate::support::Rig;

/// Changes rows in two steps with a look at the disk in between, kills Redis and starts it again, and compares.
async fn restarts(redis: &[&str], saves: bool, is_worker_alive: bool) {
    let mut rig = Rig::start_with(TABLES, &[], redis).await;
    let worker = Worker::start(rig.config(&plain())).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("update products set name = 'saved' where id <= 100").await.unwrap();
    caught_up(&worker).await;
    if saves {
        let _: () = redis::cmd("SAVE").query_async(&mut rig.client().await).await.unwrap();
    }
    let sql =
        "update products set name = 'later' where id <= 50; delete from products where id between 60 and 70";
    rig.postgres.execute(sql).await.unwrap();
    caught_up(&worker).await;
    let alive = if is_worker_alive {
        Some(worker)
    } else {
        assert!(worker.stop().await);
        None
    };
    rig.redis.kill();
    rig.redis.start_again().await.unwrap();
    let there: usize = redis::cmd("DBSIZE").query_async(&mut rig.client().await).await.unwrap();
    assert!(400 < there, "it came back with {there} keys");
    let worker = match alive {
        Some(worker) => worker,
        None => Worker::start(rig.config(&plain())).await.unwrap(),
    };
    rig.postgres.execute("update products set name = 'last' where id = 7").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    let value: String = rig.client().await.get("product:7").await.unwrap();
    assert!(value.contains("last"), "{value}");
    let gone: bool = rig.client().await.exists("product:65").await.unwrap();
    assert!(!gone, "a row that was deleted came back");
    assert!(worker.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_file_that_each_command_was_appended_to() {
    let settings = ["--appendonly", "yes", "--appendfsync", "always"];
    restarts(&settings, false, true).await;
    restarts(&settings, false, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_file_that_lacks_the_last_second() {
    let settings = ["--appendonly", "yes", "--appendfsync", "everysec"];
    restarts(&settings, false, true).await;
    restarts(&settings, false, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_an_older_dump() {
    restarts(&[], true, true).await;
    restarts(&[], true, false).await;
}
