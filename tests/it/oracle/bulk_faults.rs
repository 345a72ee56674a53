//! Many rows at once: by COPY, by one statement, by a subscription.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cachekeeper_testkit::servers::Session;
use rand::RngExt;
use rand::rngs::StdRng;

use super::database_faults::{self, EXTRA_ROWS};
use super::faults::{Fault, kill_one_backend};
use super::load::{EXTRA, ITEMS};
use super::verdict::Lives;
use super::{Arena, settled};
use crate::support::wait_until;

pub async fn inject(
    fault: Fault,
    arena: &Arena,
    some_time: Duration,
    random: &mut StdRng,
    lives: &mut Lives,
) {
    match fault {
        Fault::CopiedRows => copy(arena, "delete from items where id < 300").await,
        Fault::TruncatedAndCopied => copy(arena, "truncate items").await,
        Fault::InsertedInBulk => {
            // Far more rows than are captured one by one, in each of three commands.
            for sql in [
                "insert into items select n, 1, n % 10 from generate_series(1000, 2999) n",
                "update items set version = version + 1 where 1000 <= id",
                "delete from items where 1000 <= id",
            ] {
                done_by_writer(arena, sql).await;
                tokio::time::sleep(some_time).await;
            }
        }
        Fault::AppliedBySubscription => subscribe(arena, some_time, random, lives).await,
        _ => panic!("{fault:?} is no bulk load"),
    }
}

async fn done_by_writer(arena: &Arena, sql: &str) {
    let mut session = Session::open(&arena.writer_url).await.unwrap();
    for _ in 0..20 {
        let done = session.attempt(sql).await;
        if done.is_ok() {
            return;
        }
        arena.judge_refusal(&done.unwrap_err(), &["40P01"], sql);
    }
    panic!("could not be done: {sql}");
}

/// All rows are replaced by others that come by COPY.
async fn copy(arena: &Arena, empty: &str) {
    const ROWS: &str = "select string_agg(concat_ws(E'\\t', id, version, id % 10), E'\\n') || E'\\n' from counters where id % 5 > 0";
    let mut session = Session::open(&arena.writer_url).await.unwrap();
    let begin = format!(
        "begin; lock table counters, items in access exclusive mode; update counters set version = version + 1; {empty}"
    );
    let mut attempts = 0..20;
    while let Err(refusal) = session.attempt(&begin).await {
        arena.judge_refusal(&refusal, &["40P01"], &begin);
        session.execute("rollback").await.unwrap();
        assert!(attempts.next().is_some(), "{refusal:?}");
    }
    let rows = session.text(ROWS).await.unwrap().unwrap();
    let end =
        "insert into history (id, version, is_deleted) select id, version, id % 5 = 0 from counters; commit";
    let mut done = session.copy("copy items from stdin", &rows).await;
    if done.is_ok() {
        done = session.attempt(end).await;
    }
    if let Err(refusal) = done {
        arena.judge_refusal(&refusal, &[], "copy");
    }
}

/// The watched table is the target of a subscription: it is filled by its first copy, follows, is broken and goes on.
async fn subscribe(arena: &Arena, some_time: Duration, random: &mut StdRng, lives: &mut Lives) {
    arena.is_gentle.store(true, Ordering::SeqCst);
    let mut target = arena.rig.lock().await.postgres.session().await.unwrap();
    let exists = "select count(*)::text from pg_database where datname = 'source'";
    if target.text(exists).await.unwrap().unwrap() == "0" {
        target.execute("create database source").await.unwrap();
    }
    let last = database_faults::gone_extra(arena).await;
    let source_url = arena.rig.lock().await.postgres.url_of("source");
    let mut source = Session::open(&source_url).await.unwrap();
    source.execute(&format!(
        "drop publication if exists p; drop table if exists items, history;
         create table items (id int primary key, version bigint not null, grp int not null);
         create table history (id int, version bigint, is_deleted boolean); create publication p for table items, history;
         {}", publish(last + 1)
    )).await.unwrap();
    source.execute("select pg_create_logical_replication_slot('oracle', 'pgoutput')").await.unwrap();
    let port = target.text("select current_setting('port')").await.unwrap().unwrap();
    target
        .execute(&format!(
            "create subscription oracle connection 'host=127.0.0.1 port={port} user=postgres dbname=source' publication p \
             with (create_slot = false, slot_name = 'oracle')"
        ))
        .await
        .unwrap();
    wait_until("the first copy is done", async || {
        let sql = "select string_agg(srsubstate::text, '') from pg_subscription_rel";
        let mut session =
            arena.rig.lock().await.postgres.session().await.map_err(|error| error.to_string())?;
        match session.text(sql).await.map_err(|error| error.to_string())? {
            Some(states) if states == "rr" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    publish_alone(arena, &mut source, last + 2).await;
    target.execute("alter subscription oracle disable").await.unwrap();
    source.execute(&publish(last + 3)).await.unwrap();
    tokio::time::sleep(some_time).await;
    if random.random_bool(0.5) {
        kill_one_backend(arena, lives).await;
        target = arena.rig.lock().await.postgres.session().await.unwrap();
        source = Session::open(&source_url).await.unwrap();
    }
    target.execute("alter subscription oracle enable").await.unwrap();
    applied(arena, last + 3).await;
    publish_alone(arena, &mut source, last + 4).await;
    arena.is_gentle.store(false, Ordering::SeqCst);
    for end in ["disable", "set (slot_name = none)"] {
        target.execute(&format!("alter subscription oracle {end}")).await.unwrap();
    }
    target.execute("drop subscription oracle").await.unwrap();
    wait_until("the slot is free", async || {
        let mut source = Session::open(&source_url).await.map_err(|error| error.to_string())?;
        let dropped = source.execute("select pg_drop_replication_slot('oracle')").await;
        dropped.map_err(|error| error.to_string())
    })
    .await;
}

/// Rows are deleted before they come again, so that it does not matter whether the target has them.
fn publish(version: i64) -> String {
    let rows = EXTRA_ROWS.replace("{version}", &version.to_string());
    format!(
        "begin; delete from items; insert into items {rows};
         insert into history (id, version, is_deleted) select id, version, false from items; commit"
    )
}

/// Nothing else has the rows loaded again, so that readers see whether what is applied has.
async fn publish_alone(arena: &Arena, source: &mut Session, version: i64) {
    settled::caught_up(arena).await;
    let others = arena.observed.len();
    source.execute(&publish(version)).await.unwrap();
    let xid = applied(arena, version).await;
    settled::looked_at(arena, others, ITEMS..ITEMS + EXTRA, xid).await;
}

/// Answers the transaction that has applied it.
async fn applied(arena: &Arena, version: i64) -> u64 {
    wait_until("the subscription has applied it", async || {
        let mut session =
            arena.rig.lock().await.postgres.session().await.map_err(|error| error.to_string())?;
        let sql = format!("select coalesce(max(xid::text::bigint), 0)::text from history where 300 <= id and version = {version}");
        match session.text(&sql).await.map_err(|error| error.to_string())?.as_deref() {
            None | Some("0") => Err(format!("version {version} is not there")),
            Some(xid) => Ok(xid.parse().unwrap()),
        }
    })
    .await
}
