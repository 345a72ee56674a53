//! An outbox that no worker reads is full one day: it takes nothing more, and nothing is missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cachekeeper::app::Worker;
use cachekeeper_client::CacheState;
use cachekeeper_engine::coverage;
use redis::AsyncCommands;

use crate::capture::{TABLES, count, plain, reason};
use crate::feed::{agrees, caught_up, ready};
use crate::support::{Rig, wait_until};
use crate::writes::{parameters, prepared};

/// A dataset of another table than `plain()`.
const NOTES: &str = "[dataset.note]\nquery = \"select id, text from notes\"\nkey = \"note:{id}\"\nformat = \"json\"\nwarm = {}\n\
     watch = [{ table = \"notes\", key = { id = \"id\" } }]\n";

const ROWS: &str = "select count(*) from cachekeeper.outbox";

/// A worker that was here once, and is gone.
async fn installed(rig: &Rig, toml: &str) {
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
}

/// While a transaction of then is open, only what it may have touched waits for it.
async fn nothing_is_missed(capture: &str, statements: &str) {
    let rig = Rig::start(TABLES).await;
    rig.postgres
        .execute("insert into notes select n, n, 'note' from generate_series(1, 100) n")
        .await
        .unwrap();
    let watched = plain().replace("key = { id", &format!("{capture}key = {{ id"));
    let toml = format!("[feed]\nmax_outbox = 100\n{watched}{NOTES}");
    installed(&rig, &toml).await;
    rig.postgres.execute("update notes set text = 'taken' where id = 1").await.unwrap();
    let mut open = rig.postgres.session().await.unwrap();
    rig.postgres.execute(statements).await.unwrap();
    assert!(count(&rig, ROWS).await <= 101);
    open.execute("begin; update products set name = 'uncaptured' where id = 450").await.unwrap();
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    waits_for_older(&worker).await;
    // The others go on, also with changes that are made now.
    others_go_on(&rig, &worker).await;
    let mut client = rig.client().await;
    for (key, expected) in [("note:1", "taken"), ("note:2", "new")] {
        let value: String = client.get(key).await.unwrap();
        assert!(value.contains(expected), "{key} {value}");
    }
    open.execute("commit").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_full_outbox_takes_nothing_more_and_nothing_is_missed() {
    nothing_is_missed(
        "",
        "do $$ begin for n in 1..400 loop update products set name = 'change ' || n where id = n; commit; end loop; end $$",
    )
    .await;
}

#[tokio::test]
async fn nor_is_what_is_captured_by_statement() {
    // The second one alone would not fit any more.
    nothing_is_missed(
        "capture = \"statement\", ",
        "do $$ begin update products set name = 'first' where id <= 90; commit; \
         update products set name = 'second' where id between 100 and 120; commit; \
         for n in 200..400 loop update products set name = 'change ' || n where id = n; commit; end loop; end $$",
    )
    .await;
}

/// In a transaction that takes a snapshot and keeps it, rows are written another way.
#[tokio::test]
async fn nor_is_what_a_transaction_with_an_old_snapshot_writes() {
    nothing_is_missed(
        "",
        "begin isolation level repeatable read; \
         do $$ begin for n in 1..400 loop update products set name = 'change ' || n where id = n; end loop; end $$; \
         commit",
    )
    .await;
}

/// The functions have the limit of whoever made them; a worker may have another one.
#[tokio::test]
async fn the_limit_of_whoever_reads_does_not_matter() {
    let rig = Rig::start(TABLES).await;
    installed(&rig, &format!("[feed]\nmax_outbox = 100\n{}", plain())).await;
    for id in 1..400 {
        let update = format!("update products set name = 'change {id}' where id = {id}");
        rig.postgres.execute(&update).await.unwrap();
    }
    assert!(count(&rig, ROWS).await <= 101);
    let worker = Worker::start(rig.config(&plain())).await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    // And while it runs: one command of more rows than fit.
    rig.postgres
        .execute("do $$ begin for n in 1..400 loop update products set name = 'again ' || n where id = n; end loop; end $$")
        .await
        .unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// Functions of an earlier form leave out what does not fit, and do not tell.
#[tokio::test]
async fn functions_of_an_earlier_form_are_replaced() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(&plain());
    assert_eq!(reason(&context, true).await, None);
    rig.postgres
        .execute(
            "do $$ begin execute replace(pg_get_functiondef('cachekeeper.capture_1()'::regprocedure), \
             '-- cachekeeper capture, form 3', ''); end $$",
        )
        .await
        .unwrap();
    let found = reason(&context, false).await.unwrap();
    assert!(
        found.contains(
            "functions of an earlier version, or made for columns of other types; run `cachekeeper migrate`"
        ),
        "{found}"
    );
    // Whoever may make functions makes them.
    assert_eq!(reason(&context, true).await, None);
    assert_eq!(reason(&context, false).await, None);
    // Switched off they capture nothing, whatever their form.
    context.postgres.switch_capture(false, &context.feed.limits).await.unwrap();
    let found = coverage::look(&context, false).await.unwrap();
    assert!(found.gaps().all(|(_, reason)| reason.contains("switched off")));
}

/// Whether this worker knows that the dataset waits for older transactions.
async fn waits_for_older(worker: &Worker) {
    wait_until("the dataset waits for what may have slipped past", || async {
        let coverage = worker.context.coverage().ok_or("nothing is known yet")?;
        let mut gaps = coverage.gaps();
        match gaps.next() {
            Some((_, reason)) if reason.contains("older transactions") => Ok(()),
            gap => Err(format!("{gap:?}")),
        }
    })
    .await;
}

/// The watermark passes this moment, and leaves out the products alone.
async fn others_go_on(rig: &Rig, worker: &Worker) {
    rig.postgres.execute("update notes set text = 'new' where id = 2").await.unwrap();
    let now = worker.context.postgres.poll().await.unwrap();
    wait_until("the watermark passes", || async {
        let watermark = worker.context.redis.watermark().await.unwrap();
        let Some(watermark) = watermark else { return Err("no watermark".to_owned()) };
        let at: cachekeeper_protocol::stamp::Snapshot = watermark.snapshot.parse().unwrap();
        if now.snapshot.stamp() <= at.stamp() && watermark.not_covered == ["product"] {
            Ok(())
        } else {
            Err(format!("{watermark:?}"))
        }
    })
    .await;
    let value: String = rig.client().await.get("note:2").await.unwrap();
    assert!(value.contains("new"), "{value}");
}

async fn with_notes() -> Rig {
    let rig = Rig::start(TABLES).await;
    rig.postgres
        .execute("insert into notes select n, n, 'note' from generate_series(1, 100) n")
        .await
        .unwrap();
    rig
}

/// After a crash what was noted of the markers means nothing: moves since then must not look like none.
#[tokio::test]
async fn what_is_left_out_after_a_crash_is_not_taken_for_what_was_noted_before() {
    let mut rig = with_notes().await;
    let toml = format!("[feed]\nmax_outbox = 20\n{}{NOTES}", plain());
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("update products set name = 'many' where id <= 30").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    assert!(worker.stop().await);
    let noted = count(&rig, "select marker from cachekeeper.feed").await;
    assert_eq!(noted, 1);
    rig.postgres.kill();
    rig.postgres.start_again().await.unwrap();
    rig.postgres.execute("update notes set text = 'x' where id <= 20").await.unwrap();
    let mut open = rig.postgres.session().await.unwrap();
    open.execute("begin; update products set name = 'late' where id = 5").await.unwrap();
    // After a crash a sequence is some steps ahead.
    assert!(noted < count(&rig, "select last_value from cachekeeper.uncaptured").await);
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    waits_for_older(&worker).await;
    open.execute("commit").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// Where the outbox is full again at each look, what others touch goes on all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbox_that_is_full_all_the_time_stops_nobody_else() {
    let rig = with_notes().await;
    let toml = format!("[feed]\nmax_outbox = 20\n{}{NOTES}", plain());
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    let mut session = rig.postgres.session().await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_over);
    let writing = tokio::spawn(async move {
        while !seen.load(Ordering::Relaxed) {
            session.execute("update products set price = price + 1 where id <= 30").await.unwrap();
        }
    });
    for _ in 0..5 {
        others_go_on(&rig, &worker).await;
    }
    is_over.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// Whoever writes through the library is not told that Redis has what its triggers have left out.
#[tokio::test]
async fn a_write_that_fills_the_outbox_is_pending() {
    let rig = with_notes().await;
    let write =
        "[dataset.product.write]\nstatement = \"update products set name = :name where price <= :price\"\n";
    let toml = format!("[feed]\nmax_outbox = 20\n{}{write}{NOTES}", plain());
    let (context, _cache, products) = prepared(&rig, &toml).await;
    let given = |name: &str| parameters(serde_json::json!({ "name": name, "price": 10 }));
    let written = products.write(&given("fits")).await.unwrap();
    assert_eq!((written.rows, written.cache), (10, CacheState::Stored));
    rig.postgres.execute("update notes set text = 'x' where id <= 5").await.unwrap();
    let written = products.write(&given("does not")).await.unwrap();
    assert_eq!((written.rows, written.cache), (10, CacheState::Pending));
    let pending = context.redis.metadata("").await.unwrap().pending;
    assert!(pending.contains_key("product"), "{pending:?}");
}
