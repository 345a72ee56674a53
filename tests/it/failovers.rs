//! What operators do to a Postgres that is served: a lagging standby is promoted, an old primary is rewound and takes over again,
//! another cluster gets its data by logical means, a dump is restored under a running worker.

use std::process::Command;
use std::time::Instant;

use cachekeeper::app::Worker;
use cachekeeper_testkit::proxy::Proxy;
use cachekeeper_testkit::servers::Postgres;
use redis::AsyncCommands;

use crate::capture::{TABLES, plain};
use crate::feed::{agrees, caught_up, ready};
use crate::support::{Cli, Rig, wait_until};

const POSTGRES: &str = "CACHEKEEPER__POSTGRES__URL";

/// A worker that comes to Postgres by this URL.
async fn start(rig: &Rig, url: &str) -> Worker {
    let mut config = rig.config(&plain());
    config.postgres.url = cachekeeper_config::Secret::new(url.to_owned());
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    worker
}

fn url_of(proxy: &Proxy) -> String {
    format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", proxy.port())
}

async fn set(server: &Postgres, text: &str) {
    server.execute(&format!("update products set name = '{text}' where id = 7")).await.unwrap();
}

async fn name(rig: &Rig) -> String {
    let value: Option<String> = rig.client().await.get("product:7").await.unwrap();
    value.unwrap_or_default()
}

/// Waits until a standby has everything that its primary has.
async fn has_caught_up(standby: &Postgres, primary: &Postgres) {
    let mut session = primary.session().await.unwrap();
    let end = session.text("select pg_current_wal_lsn()::text").await.unwrap().unwrap();
    wait_until("the standby has everything", async || {
        let mut session = standby.session().await.map_err(|error| error.to_string())?;
        let sql = format!("select (pg_last_wal_replay_lsn() >= '{end}')::text");
        let has = session.text(&sql).await.map_err(|error| error.to_string())?;
        if has.as_deref() == Some("true") { Ok(()) } else { Err(format!("{has:?}")) }
    })
    .await;
}

/// What only the lost primary had committed leaves Redis, in a new epoch; nobody lends a hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lags_takes_back_what_it_has_not() {
    let mut rig = Rig::start(TABLES).await;
    let standby = rig.postgres.standby(None).await.unwrap();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", rig.postgres.port(), standby.port());
    let url = format!("postgres://postgres@{hosts}/postgres?sslmode=disable&target_session_attrs=read-write");
    let worker = start(&rig, &url).await;
    set(&rig.postgres, "kept").await;
    caught_up(&worker).await;
    has_caught_up(&standby, &rig.postgres).await;
    let epoch = worker.context.redis.metadata("").await.unwrap().epoch;
    standby.execute("alter system set primary_conninfo to ''").await.unwrap();
    standby.execute("select pg_reload_conf()").await.unwrap();
    wait_until("the standby receives nothing more", async || {
        let mut session = standby.session().await.map_err(|error| error.to_string())?;
        let sql = "select count(*)::text from pg_stat_wal_receiver";
        let receivers = session.text(sql).await.map_err(|error| error.to_string())?;
        if receivers.as_deref() == Some("0") { Ok(()) } else { Err(format!("{receivers:?}")) }
    })
    .await;
    set(&rig.postgres, "lost").await;
    rig.postgres.execute("insert into products (id, name, price) values (900, 'lost', 1)").await.unwrap();
    caught_up(&worker).await;
    assert!(name(&rig).await.contains("lost"));
    rig.postgres.kill();
    standby.promote().await.unwrap();
    let began = Instant::now();
    wait_until("what was lost has left Redis", async || {
        let name = name(&rig).await;
        let new: Option<String> =
            rig.client().await.get("product:900").await.map_err(|error| error.to_string())?;
        if name.contains("kept") && new.is_none() { Ok(()) } else { Err(format!("{name} {new:?}")) }
    })
    .await;
    println!("what was lost has left Redis after {:?}", began.elapsed());
    set(&standby, "after").await;
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert_ne!(worker.context.redis.metadata("").await.unwrap().epoch, epoch);
    assert!(worker.stop().await);
}

/// A, then B, then A again: the old primary was rewound to be B's standby, and is promoted to a third timeline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_rewound_and_promoted_again_is_served_at_once() {
    // It reads back to the checkpoint before they parted.
    let settings = ["full_page_writes=on", "wal_log_hints=on", "wal_keep_size=1GB"];
    let mut rig = Rig::start_with(TABLES, &settings, &[]).await;
    let mut second = rig.postgres.standby(None).await.unwrap();
    let address = Proxy::start(rig.postgres.port()).await.unwrap();
    let worker = start(&rig, &url_of(&address)).await;
    set(&rig.postgres, "first").await;
    caught_up(&worker).await;
    has_caught_up(&second, &rig.postgres).await;
    second.promote().await.unwrap();
    // It has commits that the other one never gets.
    set(&rig.postgres, "lost").await;
    address.lead_to(second.port());
    set(&second, "second").await;
    caught_up(&worker).await;
    agrees(&worker).await;
    rig.postgres.stop();
    rig.postgres.rewind_to(&second).await.unwrap();
    rig.postgres.start_again().await.unwrap();
    has_caught_up(&rig.postgres, &second).await;
    second.stop();
    rig.postgres.promote().await.unwrap();
    address.lead_to(rig.postgres.port());
    let began = Instant::now();
    set(&rig.postgres, "third").await;
    caught_up(&worker).await;
    ready(&worker).await;
    println!("the rewound primary is served after {:?}", began.elapsed());
    agrees(&worker).await;
    assert!(name(&rig).await.contains("third"));
    assert!(worker.stop().await);
}

/// Another cluster, which has the data by logical replication and no order with the one that was served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_served_once_the_first_one_is_gone() {
    let mut rig = Rig::start_with(TABLES, &["wal_level=logical"], &[]).await;
    let next = Postgres::start_anew(&["wal_level=logical"]).await.unwrap();
    next.execute(TABLES).await.unwrap();
    next.execute("truncate products").await.unwrap();
    rig.postgres.execute("create publication everything for table products").await.unwrap();
    next.execute(&format!(
        "create subscription everything connection 'host=127.0.0.1 port={} user=postgres dbname=postgres' publication everything",
        rig.postgres.port()
    ))
    .await
    .unwrap();
    let there = Cli::new(&rig, &plain()).with(POSTGRES, &next.url());
    there.says(&["migrate"], 0, &[]);
    let address = Proxy::start(rig.postgres.port()).await.unwrap();
    let worker = start(&rig, &url_of(&address)).await;
    set(&rig.postgres, "published").await;
    caught_up(&worker).await;
    wait_until("the subscriber has everything", async || {
        let mut session = next.session().await.map_err(|error| error.to_string())?;
        let found = session
            .text("select name from products where id = 7")
            .await
            .map_err(|error| error.to_string())?;
        if found.as_deref() == Some("published") { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    rig.postgres.stop();
    next.execute("drop subscription everything").await.unwrap_or_default();
    address.lead_to(next.port());
    set(&next, "after").await;
    let began = Instant::now();
    caught_up(&worker).await;
    ready(&worker).await;
    println!("another cluster is served after {:?}", began.elapsed());
    agrees(&worker).await;
    assert!(name(&rig).await.contains("after"));
    assert!(worker.stop().await);
}

/// `pg_restore --clean` of an earlier dump, the schema of ours included, under a worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_that_is_restored_under_a_worker_is_noticed_and_mended() {
    let rig = Rig::start(TABLES).await;
    let worker = start(&rig, &rig.postgres.url()).await;
    set(&rig.postgres, "dumped").await;
    caught_up(&worker).await;
    let file = std::env::temp_dir().join(format!("cachekeeper-dump-{:016x}", rand::random::<u64>()));
    let run = |program: &'static str, arguments: &[&str]| {
        let mut command = Command::new(Postgres::program(program).unwrap());
        let output = command.args(arguments).output().unwrap();
        // It drops the constraints of partitions, which are those of their table: an error that it counts.
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || told.contains("errors ignored on restore: 1"), "{told}");
    };
    let (path, url) = (file.display().to_string(), rig.postgres.url());
    run("pg_dump", &["-Fc", "-f", &path, &url]);
    set(&rig.postgres, "later").await;
    caught_up(&worker).await;
    assert!(name(&rig).await.contains("later"));
    run("pg_restore", &["--clean", "--if-exists", "-d", &url, &path]);
    drop(std::fs::remove_file(&file));
    wait_until("what was restored is in Redis, or it is said that migrate is needed", async || {
        let (name, reasons) = (name(&rig).await, worker.health.reasons().join("; "));
        if name.contains("dumped") || reasons.contains("migrate") {
            Ok(())
        } else {
            Err(format!("{name} {reasons}"))
        }
    })
    .await;
    let (code, text) = Cli::new(&rig, &plain()).run(&["migrate"]);
    assert_eq!(code, 0, "{text}");
    set(&rig.postgres, "restored").await;
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(name(&rig).await.contains("restored"));
    assert!(worker.stop().await);
}

/// What `migrate` has just made is of use on a standby that is promoted before it has written anything to its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_promoted_right_after_the_installation_captures() {
    let mut rig = Rig::start_with(TABLES, &["checkpoint_timeout=1h"], &[]).await;
    rig.postgres.execute("drop schema cachekeeper cascade").await.unwrap();
    let standby = rig.postgres.standby(None).await.unwrap();
    Cli::new(&rig, &plain()).says(&["migrate"], 0, &[]);
    let address = Proxy::start(rig.postgres.port()).await.unwrap();
    let worker = start(&rig, &url_of(&address)).await;
    set(&rig.postgres, "before").await;
    caught_up(&worker).await;
    has_caught_up(&standby, &rig.postgres).await;
    rig.postgres.kill();
    standby.promote().await.unwrap();
    address.lead_to(standby.port());
    set(&standby, "after").await;
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(name(&rig).await.contains("after"));
    assert!(worker.stop().await);
}
