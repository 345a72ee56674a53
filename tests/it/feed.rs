//! The change feed: what is committed shows up in Redis, whoever wrote it and however.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::{coverage, revalidation};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::capture::{follower, settle};
use crate::support::{Rig, wait_until};

pub const TABLES: &str = "
    create table categories (id int primary key, name text not null);
    create table products (id int primary key, name text, price int, category_id int);
    create table stock (product_id int, place text, quantity int, primary key (product_id, place)) partition by hash (product_id);
    create table stock_0 partition of stock for values with (modulus 2, remainder 0);
    create table stock_1 partition of stock for values with (modulus 2, remainder 1);
    insert into categories select n, 'category ' || n from generate_series(1, 10) n;
    insert into products select n, 'product ' || n, n * 10, 1 + n % 10 from generate_series(1, 1000) n;
    insert into stock select n, 'a', n from generate_series(1, 1000) n;";

/// Three joined tables, one of them partitioned.
pub const DATASETS: &str = r#"
    [dataset.product]
    query = """select p.id, p.name, p.price, p.category_id, c.name as category,
               (select sum(s.quantity) from stock s where s.product_id = p.id) as quantity
               from products p left join categories c on c.id = p.category_id"""
    key = "product:{id}"
    tags = ["category:{category_id}"]
    format = "json"
    feed = "required"
    watch = [
        { table = "products", key = { id = "id" } },
        { table = "categories", tag = "category:{id}" },
        { table = "stock", key = { id = "product_id" } },
    ]
    warm = {}
"#;

pub async fn ready(worker: &Worker) {
    wait_until("the worker is ready and nothing is pending", || async {
        let reasons = worker.health.reasons();
        let metadata = worker.context.redis.metadata("").await.map_err(|error| error.to_string())?;
        let watermark = worker.context.redis.watermark().await.map_err(|error| error.to_string())?;
        let covered = watermark.as_ref().is_some_and(|watermark| watermark.not_covered.is_empty());
        if reasons.is_empty() && metadata.pending.is_empty() && metadata.is_whole && covered {
            Ok(())
        } else {
            Err(format!("{reasons:?}, pending {:?}, {watermark:?}", metadata.pending))
        }
    })
    .await;
}

/// Waits until the watermark has passed this moment.
pub async fn caught_up(worker: &Worker) {
    let postgres = &worker.context.postgres;
    let now = wait_until("the database answers and its life is recorded", || async {
        postgres.poll().await.map_err(|error| error.to_string())
    })
    .await;
    wait_until("the watermark has passed", || async {
        let watermark = worker.context.redis.watermark().await.map_err(|error| error.to_string())?;
        let Some(watermark) = watermark else { return Err("no watermark".to_owned()) };
        let at: cachekeeper_protocol::stamp::Snapshot = watermark.snapshot.parse().unwrap();
        let is_same_life = watermark.incarnation == now.incarnation;
        if is_same_life && now.snapshot.stamp() <= at.stamp() && watermark.not_covered.is_empty() {
            Ok(())
        } else {
            Err(format!("{watermark:?}"))
        }
    })
    .await;
}

pub async fn agrees(worker: &Worker) {
    for dataset in worker.context.catalog.iter() {
        let found = compare(&worker.context, dataset, &Extent::default()).await.unwrap();
        assert!(found.is_clean(), "{found}");
    }
}

#[tokio::test]
async fn every_way_to_write_reaches_redis() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    let writes = [
        ("update products set price = 7777 where id = 5", "product:5", Some("\"price\":7777")),
        // A join partner, through a tag.
        ("update categories set name = 'renamed' where id = 3", "product:2", Some("renamed")),
        // A partition directly, a partition through its root.
        (
            "update stock_0 set quantity = 5550 where product_id = (select min(product_id) from stock_0)",
            "",
            None,
        ),
        ("update stock set quantity = 4440 where product_id = 9", "product:9", Some("4440")),
        // A row that moves between keys, and one that moves between tags.
        ("update products set id = 5001 where id = 11", "product:11", None),
        ("select 1", "product:5001", Some("product 11")),
        (
            "update products set category_id = 4 where id = 12; update categories set name = 'four' where id = 4",
            "product:12",
            Some("four"),
        ),
        ("delete from products where id = 13", "product:13", None),
        ("insert into products values (6000, 'new', 1, 1)", "product:6000", Some("new")),
        (
            "begin; update products set name = 'rolled back' where id = 14; rollback; update products set name = 'kept' where id = 15",
            "product:15",
            Some("kept"),
        ),
        (
            "begin; savepoint a; update products set name = 'x' where id = 16; rollback to a; update products set name = 'y' where id = 16; commit",
            "product:16",
            Some("\"y\""),
        ),
        (
            "with moved as (delete from products where id = 17 returning *) insert into products select 7000, name, price, category_id from moved",
            "product:7000",
            Some("product 17"),
        ),
        (
            "set session_replication_role = replica; update products set name = 'as a replica' where id = 18; set session_replication_role = origin",
            "product:18",
            Some("as a replica"),
        ),
        (
            "copy products (id, name) from program 'echo 8000,copied' with (format csv)",
            "product:8000",
            Some("copied"),
        ),
    ];
    for (sql, key, expected) in writes {
        rig.postgres.execute(sql).await.unwrap();
        if key.is_empty() {
            continue;
        }
        let client = client.clone();
        wait_until(&format!("{key} holds {expected:?} after {sql}"), || {
            let mut client = client.clone();
            async move {
                match (client.get::<_, Option<String>>(key).await.unwrap(), expected) {
                    (None, None) => Ok(()),
                    (Some(value), Some(part)) if value.contains(part) => Ok(()),
                    (other, _) => Err(format!("{other:?}")),
                }
            }
        })
        .await;
    }
    caught_up(&worker).await;
    agrees(&worker).await;
    let kept: String = client.get("product:14").await.unwrap();
    assert!(kept.contains("product 14"));
    // Each row of a statement is a change.
    let before = worker.context.metrics.changes.get();
    rig.postgres.execute("update products set price = price + 1 where id < 100").await.unwrap();
    let mut session = rig.postgres.session().await.unwrap();
    let rows = session.text("select count(*)::text from products where id < 100").await.unwrap().unwrap();
    caught_up(&worker).await;
    assert_eq!(worker.context.metrics.changes.get(), before + rows.parse::<u64>().unwrap());
    // Whole tables: truncation.
    agrees(&worker).await;
    rig.postgres
        .execute("truncate stock; insert into stock select n, 'b', 1 from generate_series(1, 500) n")
        .await
        .unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn changes_made_while_no_worker_ran_are_not_missed() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
    rig.postgres.execute("update products set name = 'meanwhile' where id = 5; delete from products where id = 6; update products set id = 9999 where id = 7").await.unwrap();
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    // Nothing was pending: the cursor told what to look at.
    let text = worker.context.metrics.render().unwrap();
    assert!(!text.contains("cause=\"revalidation\""), "{text}");
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_late_commit_is_found_behind_thousands_of_later_ones() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut slow = rig.postgres.session().await.unwrap();
    slow.execute("begin; update products set name = 'late' where id = 1").await.unwrap();
    slow.execute("select pg_current_xact_id()").await.unwrap();
    rig.postgres
        .execute("do $$ begin for n in 1..3000 loop update products set price = price + 1 where id = 2 + n % 900; commit; end loop; end $$")
        .await
        .unwrap();
    caught_up(&worker).await;
    slow.execute("commit").await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    tokio::time::timeout(Duration::from_secs(30), worker.stop()).await.unwrap();
}

/// Values of commits that the database lost are values of no history any more, and nobody will ever change them.
#[tokio::test]
async fn lost_commits_leave_no_value_behind() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    // A crash that loses what was committed without waiting for the disk.
    for round in 0..5 {
        rig.postgres.execute("checkpoint").await.unwrap();
        let sql = format!(
            "set synchronous_commit = off; update products set name = 'perhaps {round}' where id < 200"
        );
        rig.postgres.execute(&sql).await.unwrap();
        caught_up(&worker).await;
        rig.postgres.kill();
        rig.postgres.start_again().await.unwrap();
        caught_up(&worker).await;
        agrees(&worker).await;
    }
    // A copy of the stopped server's disk, put in place later: the row that names the server's life is in it too.
    rig.postgres.stop();
    rig.postgres.keep_copy().unwrap();
    rig.postgres.start_again().await.unwrap();
    caught_up(&worker).await;
    let before = worker.context.redis.metadata("").await.unwrap();
    rig.postgres
        .execute("update products set name = 'lost' where id < 50; delete from products where id = 60; insert into products values (70000, 'lost', 1, 1); update categories set name = 'lost' where id = 4")
        .await
        .unwrap();
    caught_up(&worker).await;
    let value: String = client.get("product:70000").await.unwrap();
    assert!(value.contains("lost"));
    rig.postgres.kill();
    rig.postgres.restore_copy().unwrap();
    rig.postgres.start_again().await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    assert_eq!(client.get::<_, Option<String>>("product:70000").await.unwrap(), None);
    let after = worker.context.redis.metadata("").await.unwrap();
    assert_ne!(before.epoch, after.epoch);
    assert_ne!(before.incarnation, after.incarnation);
    assert!(worker.stop().await);
}

/// X1: Redis fails over between two scripts of one batch, so that its stores are lost and the cursor is where it was.
#[tokio::test]
async fn a_batch_whose_stores_were_lost_does_not_count() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    let product = std::sync::Arc::clone(context.catalog.get("product").unwrap());
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    backfill(&context, &product, &options).await.unwrap();
    let mut follower = FeedConsumer::new(&context);
    while follower.step(true).await.unwrap() != Step::Idle {}
    let refresh = cachekeeper_config::OnNewEpoch::Refresh;
    revalidation::run(&context, &product, refresh, &CancellationToken::new()).await.unwrap();
    let mut client = rig.client().await;
    let old: String = client.get("product:5").await.unwrap();
    let job: String = {
        let fields: Vec<String> =
            redis::cmd("HKEYS").arg("ck:{test:0}:meta").query_async(&mut client).await.unwrap();
        fields.into_iter().find(|field| field.starts_with("job:feed-")).unwrap()
    };
    rig.postgres.execute("update products set name = 'new' where id = 5").await.unwrap();
    // What a failover to an older copy leaves: fewer scripts counted, the old value, the old cursor.
    let cursor = context.redis.metadata("").await.unwrap().cursor.unwrap();
    let counted: i64 = client.hget("ck:{test:0}:meta", &job).await.unwrap();
    assert!(matches!(follower.step(false).await.unwrap(), Step::Applied(1)));
    let _: () = client.hset("ck:{test:0}:meta", &job, counted + 1).await.unwrap();
    let _: () = client.hset("ck:{test:0}:meta", "cursor", &cursor).await.unwrap();
    let _: () = client.set("product:5", &old).await.unwrap();
    rig.postgres.execute("update products set name = 'another' where id = 6").await.unwrap();
    assert!(matches!(follower.step(true).await, Err(EngineError::RedisRolledBack)));
    cachekeeper_engine::epoch::renew(&context).await.unwrap();
    while follower.step(true).await.unwrap() != Step::Idle {}
    for (key, name) in [("product:5", "new"), ("product:6", "another")] {
        let value: String = client.get(key).await.unwrap();
        assert!(value.contains(name), "{key} {value}");
    }
    // What the feed covers has nothing pending: the cursor rolled back with it.
    let metadata = context.redis.metadata("").await.unwrap();
    assert!(metadata.pending.is_empty(), "{:?}", metadata.pending);
}

/// C8: a feed that stops is seen to have stopped.
#[tokio::test]
async fn a_watermark_that_stands_still_turns_readiness_red() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(&format!("[feed]\nmax_lag = \"1s\"\n{DATASETS}"))).await.unwrap();
    ready(&worker).await;
    // The feed has to wait for this transaction, as after an outbox that was full.
    let mut open = rig.postgres.session().await.unwrap();
    open.execute("begin; create temporary table held (n int)").await.unwrap();
    rig.postgres
        .execute("update cachekeeper.feed set overflow = pg_current_snapshot()::text, overflow_in = (select id from cachekeeper.incarnation)")
        .await
        .unwrap();
    wait_until("readiness names the watermark", || async {
        let reasons = worker.health.reasons();
        let is_red = reasons.iter().any(|reason| reason.contains("the watermark has stood at"));
        if is_red { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
    open.execute("rollback").await.unwrap();
    ready(&worker).await;
    caught_up(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// A dataset that cannot be loaded any more must not hold up the feed, whether a key or a tag of it changed. Its entries stay, and
/// the watermark leaves it out.
#[tokio::test]
async fn a_broken_query_does_not_stop_the_feed() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    let product = std::sync::Arc::clone(context.catalog.get("product").unwrap());
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    backfill(&context, &product, &options).await.unwrap();
    let mut follower = FeedConsumer::new(&context);
    while follower.step(true).await.unwrap() != Step::Idle {}
    rig.postgres.execute("alter table products drop column price").await.unwrap();
    let mut client = rig.client().await;
    for (sql, key) in [
        ("update products set name = 'changed' where id = 5", "product:5"),
        ("update categories set name = 'changed' where id = 3", "product:2"),
    ] {
        rig.postgres.execute(sql).await.unwrap();
        let mut steps = 0;
        while !matches!(follower.step(false).await, Ok(Step::Idle)) {
            steps += 1;
            assert!(steps < 10, "the feed does not get past: {sql}");
        }
        assert!(client.exists::<_, bool>(key).await.unwrap(), "{sql}");
        let watermark = context.redis.watermark().await.unwrap().unwrap();
        assert_eq!(watermark.not_covered, ["product"], "{sql}");
    }
    let pending = context.redis.metadata("").await.unwrap().slots;
    assert!(pending["product"].reason().contains("cannot be loaded"), "{pending:?}");
}

/// Many commands, none of them large: what they change is not loaded more often than everything is.
#[tokio::test]
async fn more_changes_than_a_backfill_loads_become_a_backfill() {
    let rig = Rig::start(
        "create table items (id int primary key, n int default 0);
         insert into items select n from generate_series(1, 18000) n;",
    )
    .await;
    let context = rig.context(
        "[dataset.item]\nquery = \"select id, n from items\"\nkey = \"item:{id}\"\nformat = \"json\"\nwarm = {}\n\
         watch = [{ table = \"items\", key = { id = \"id\" } }]",
    );
    let mut follower = follower(&context).await;
    let item = context.catalog.get("item").unwrap();
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    let refresh = cachekeeper_config::OnNewEpoch::Refresh;
    revalidation::run(&context, item, refresh, &CancellationToken::new()).await.unwrap();
    backfill(&context, item, &options).await.unwrap();
    let rounds = async |rounds: usize| {
        for _ in 0..rounds {
            for half in ["id <= 9000", "id > 9000"] {
                rig.postgres.execute(&format!("update items set n = n + 1 where {half}")).await.unwrap();
            }
        }
    };
    let pending = async || {
        let metadata = context.redis.metadata("").await.unwrap();
        metadata.pending.get("item").map(|pending| pending.reason().to_owned())
    };
    rounds(2).await;
    settle(&mut follower).await;
    assert_eq!(pending().await, None, "two rounds are loaded by key");
    assert!(compare(&context, item, &Extent::default()).await.unwrap().is_clean());

    rounds(6).await;
    settle(&mut follower).await;
    assert_eq!(pending().await.as_deref(), Some("more changes than a backfill loads"));
    let watermark = context.redis.watermark().await.unwrap().unwrap();
    assert_eq!(watermark.not_covered, ["item"], "until it has run");
    // What is to be revalidated is not accused in the background.
    let mut client = rig.client().await;
    let other: Vec<u8> = client.get("item:6").await.unwrap();
    let _: () = client.set("item:5", other).await.unwrap();
    let background = Extent { rate: Some(1_000_000), ..Extent::default() };
    let found = compare(&context, item, &background).await.unwrap();
    assert_eq!((found.stale.as_slice(), found.unsure.as_slice()), (&[][..], &["item:5".to_owned()][..]));
    let found = compare(&context, item, &Extent::default()).await.unwrap();
    assert_eq!((found.stale.as_slice(), found.unsure.as_slice()), (&["item:5".to_owned()][..], &[][..]));
    revalidation::run(&context, item, refresh, &CancellationToken::new()).await.unwrap();
    backfill(&context, item, &options).await.unwrap();
    settle(&mut follower).await;
    let found = compare(&context, item, &Extent::default()).await.unwrap();
    assert!(found.is_clean() && found.right == 18_000, "{found}");
    assert!(context.redis.watermark().await.unwrap().unwrap().not_covered.is_empty());
}
