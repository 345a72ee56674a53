//! What is done to the database as its owners and operators do it: no trigger fires for most of it.

use std::sync::Arc;
use std::time::Duration;

use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::Session;

use super::faults::Fault;
use super::load::ITEMS;
use super::schema::WORKER;
use super::{Arena, settled};
use crate::support::wait_until;

/// A new version of every counter of these, and the history of rows that are there and of those that are gone. The lock comes
/// first, so that whoever writes is wholly before or behind.
const LOCK: &str = "begin; lock table counters, items in access exclusive mode;";

pub async fn inject(fault: Fault, arena: &Arena, some_time: Duration) {
    match fault {
        Fault::SwappedTable => swap_table(arena).await,
        Fault::DetachedPartition => detach_partition(arena, some_time).await,
        Fault::ChangedColumn => {
            done(
                arena,
                &format!(
                    "{LOCK} {} alter table items alter column version type bigint using version + (id < 300)::int; commit",
                    bump("true", "false")
                ),
            )
            .await;
        }
        Fault::UncapturedWrite => write_uncaptured(arena).await,
        Fault::SplitPartition => split_partition(arena, some_time).await,
        Fault::DroppedPartition => drop_partition(arena, some_time).await,
        Fault::DetachedConcurrently => {
            gone_extra(arena).await;
            done(arena, "alter table items detach partition items_rest concurrently").await;
            tokio::time::sleep(some_time).await;
            attach_extra(arena, "truncate items_rest;").await;
        }
        Fault::VacuumedOutbox => vacuum_outbox(arena, some_time).await,
        Fault::PoisonedRow => {
            done(arena, "update canary set divisor = 0 where id = 5").await;
            // It costs its own entry, and nothing else.
            settled::caught_up(arena).await;
            done(arena, "update canary set divisor = 1 where id = 5").await;
        }
        Fault::MigratedMeanwhile => {
            tokio::join!(migrate(arena), migrate(arena), swap_table(arena), switch_capture(arena, some_time));
        }
        Fault::RewrittenTable => done(arena, "vacuum full items").await,
        Fault::SwitchedCapture => switch_capture(arena, some_time).await,
        Fault::LockedOutbox => {
            // Writers do not wait for it, but it waits for them.
            let mut session = locked(arena, "cachekeeper.outbox").await;
            tokio::time::sleep(some_time).await;
            session.execute("commit").await.unwrap();
        }
        Fault::LockedTable => {
            let mut session = locked(arena, "items").await;
            tokio::time::sleep(some_time * 8).await;
            session.execute("commit").await.unwrap();
        }
        Fault::FullConnections => {
            let mut held = Vec::new();
            let url = arena.worker_url.clone();
            while let Ok(session) = Session::open(&url).await {
                held.push(session);
            }
            tokio::time::sleep(some_time * 4).await;
            drop(held);
            wait_until("there is a connection to spare", async || match Session::open(&url).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            })
            .await;
        }
        _ => panic!("{fault:?} is not done to a database"),
    }
}

/// A transaction that holds a table. Writers that wait for each other and for it are one circle, of which it may be the victim.
async fn locked(arena: &Arena, table: &str) -> Session {
    let mut last = None;
    for _ in 0..20 {
        let mut session = session(arena).await;
        match session.execute(&format!("begin; lock table {table} in access exclusive mode")).await {
            Ok(()) => return session,
            Err(error) => last = Some(error),
        }
    }
    panic!("{table}: {last:?}");
}

async fn session(arena: &Arena) -> Session {
    arena.rig.lock().await.postgres.session().await.unwrap()
}

/// Writers may hold what it needs and need what it holds: then one of them loses.
pub async fn done(arena: &Arena, sql: &str) {
    let mut session = session(arena).await;
    // What is made here is the worker's, as in a database whose owner runs it.
    session.execute(&format!("set role {WORKER}")).await.unwrap();
    let mut last = None;
    for _ in 0..20 {
        match session.execute(sql).await {
            Ok(()) => return,
            Err(error) => last = Some(error),
        }
        drop(session.execute("rollback").await);
    }
    panic!("{sql}: {last:?}");
}

/// The counters of rows that `which` names go up by one; rows are deleted where `is_deleted` says so.
fn bump(which: &str, is_deleted: &str) -> String {
    format!(
        "update counters c set version = version + 1 where exists (select from items i where i.id = c.id) and {which};
         insert into history (id, version, is_deleted) select c.id, c.version, {is_deleted} from counters c
         where exists (select from items i where i.id = c.id) and {which};"
    )
}

/// Another table takes the name of the watched one; it has no trigger.
async fn swap_table(arena: &Arena) {
    let sql = format!(
        "{LOCK} update counters set version = version + 1;
         create table items_new (id int primary key, version bigint not null, grp int not null check (0 <= grp)) partition by range (id);
         create table items_new_low partition of items_new for values from (0) to (150);
         create table items_new_high partition of items_new for values from (150) to (300);
         create table items_new_rest partition of items_new for values from (300) to (100000);
         insert into items_new select id, version, id % 10 from counters where id % 4 > 0;
         insert into history (id, version, is_deleted) select id, version, id % 4 = 0 from counters;
         drop table items;
         alter table items_new rename to items; alter table items_new_low rename to items_low; alter table items_new_high rename to items_high;
         alter table items_new_rest rename to items_rest; commit"
    );
    done(arena, &sql).await;
}

/// Half of the rows vanish with their partition, another one takes its place, and they come back with other values; no trigger
/// tells of it.
async fn detach_partition(arena: &Arena, some_time: Duration) {
    let low = "c.id < 150";
    done(
        arena,
        &format!(
            "{LOCK} {} alter table items detach partition items_low; \
             create table items_empty partition of items for values from (0) to (150); commit",
            bump(low, "true")
        ),
    )
    .await;
    tokio::time::sleep(some_time).await;
    let back = "begin; lock table counters, items in access exclusive mode;
         update counters set version = version + 1 where id < 150;
         drop table items_empty; truncate items_low; insert into items_low select id, version, 3 from counters where id < 150;
         insert into history (id, version, is_deleted) select id, version, false from counters where id < 150;
         alter table items attach partition items_low for values from (0) to (150); commit";
    done(arena, back).await;
}

/// What is written in a transaction that switches the triggers off and on again is in no outbox.
async fn write_uncaptured(arena: &Arena) {
    let sql = format!(
        "{LOCK} alter table items disable trigger all; {}
         update items i set version = c.version from counters c where c.id = i.id;
         alter table items enable trigger all;
         do $$ declare name text; begin
             for name in select tgname from pg_trigger where tgrelid = 'items'::regclass and tgname like 'cachekeeper%' loop
                 execute 'alter table items enable always trigger ' || name;
             end loop;
         end $$; commit",
        bump("true", "false")
    );
    done(arena, &sql).await;
}

/// One partition becomes two, and again one.
async fn split_partition(arena: &Arena, some_time: Duration) {
    let moved = "select c.id, c.version, i.grp from";
    let split = format!(
        "{LOCK} {} alter table items detach partition items_low;
         create table items_low_a partition of items for values from (0) to (75);
         create table items_low_b partition of items for values from (75) to (150);
         insert into items {moved} items_low i join counters c using (id); drop table items_low; commit",
        bump("c.id < 150", "false")
    );
    done(arena, &split).await;
    tokio::time::sleep(some_time).await;
    let merge = format!(
        "{LOCK} {} create table items_low (like items including all);
         insert into items_low {moved} items i join counters c using (id) where i.id < 150;
         drop table items_low_a, items_low_b;
         alter table items attach partition items_low for values from (0) to (150); commit",
        bump("c.id < 150", "false")
    );
    done(arena, &merge).await;
}

/// Rows that only faults write.
pub const EXTRA_ROWS: &str = "select n, {version}, n % 10 from generate_series(300, 319) n";

/// Deletes the rows that only faults write; answers their last version.
pub async fn gone_extra(arena: &Arena) -> i64 {
    let last = last_extra(arena).await + 1;
    let rows = EXTRA_ROWS.replace("{version}", &last.to_string());
    done(
        arena,
        &format!(
            "begin; lock table items; delete from items where 300 <= id;
             insert into history (id, version, is_deleted) select id, version, true from ({rows}) r(id, version, grp); commit"
        ),
    )
    .await;
    last
}

async fn last_extra(arena: &Arena) -> i64 {
    let sql = "select coalesce(max(version), 0)::text from history where 300 <= id";
    session(arena).await.text(sql).await.unwrap().unwrap().parse().unwrap()
}

/// The detached partition comes back with other rows.
async fn attach_extra(arena: &Arena, before: &str) {
    let rows = EXTRA_ROWS.replace("{version}", &(last_extra(arena).await + 1).to_string());
    done(
        arena,
        &format!(
            "begin; {before} insert into items_rest {rows};
             insert into history (id, version, is_deleted) select id, version, false from items_rest;
             alter table items attach partition items_rest for values from (300) to (100000); commit"
        ),
    )
    .await;
}

/// A partition is dropped with its rows, and an empty one takes its place; then one comes that is full.
async fn drop_partition(arena: &Arena, some_time: Duration) {
    let rows = EXTRA_ROWS.replace("{version}", &(last_extra(arena).await + 1).to_string());
    let drop = format!(
        "begin; lock table items in access exclusive mode; drop table items_rest;
         create table items_rest partition of items for values from (300) to (100000);
         insert into history (id, version, is_deleted) select id, version, true from ({rows}) r(id, version, grp); commit"
    );
    done(arena, &drop).await;
    tokio::time::sleep(some_time).await;
    let full = "lock table items in access exclusive mode; drop table items_rest; create table items_rest (like items including all);";
    attach_extra(arena, full).await;
}

/// VACUUM FULL of the outbox waits behind a writer, and everybody else behind it: those who write do not.
async fn vacuum_outbox(arena: &Arena, some_time: Duration) {
    let mut holder = Session::open(&arena.writer_url).await.unwrap();
    holder.execute("begin; insert into canary values (1000)").await.unwrap();
    let vacuum = done(arena, "vacuum full cachekeeper.outbox");
    let writes = async {
        let waiting = "select count(*)::text from pg_locks where not granted and relation = 'cachekeeper.outbox'::regclass";
        wait_until("it waits for the outbox", async || {
            let waiting = session(arena).await.text(waiting).await.unwrap();
            if waiting.as_deref() == Some("0") { Err("not yet".to_owned()) } else { Ok(()) }
        })
        .await;
        let mut writer = Session::open(&arena.writer_url).await.unwrap();
        writer.execute("set statement_timeout = '1s'").await.unwrap();
        for id in 1_001..1_010 {
            let sql = format!("insert into canary values ({id})");
            if let Err(refusal) = writer.attempt(&sql).await {
                arena.judge_refusal(&refusal, &[], &sql);
            }
            tokio::time::sleep(some_time / 10).await;
        }
        holder.execute("rollback").await.unwrap();
    };
    tokio::join!(vacuum, writes);
    done(arena, "delete from canary where 1000 < id").await;
}

/// `cachekeeper migrate`, as its own process.
async fn migrate(arena: &Arena) {
    let launch = Arc::clone(&arena.launch);
    let run = move || launch.migrate();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    // It may find the table locked for long; then it says so, and the worker goes on trying.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
}

/// What is written while the triggers are off is made good, also by who has begun before.
async fn switch_capture(arena: &Arena, some_time: Duration) {
    let context = arena.context().await;
    let mut repeatable = session(arena).await;
    repeatable.execute("begin isolation level repeatable read; select from lives limit 1").await.unwrap();
    turn(&context, false).await;
    tokio::time::sleep(some_time).await;
    // Whoever is in the way of others may lose: then it has written nothing.
    let mut open = session(arena).await;
    drop(
        open.execute(&format!("begin; lock table items in row exclusive mode; {}", super::load::put(7, 3)))
            .await,
    );
    turn(&context, true).await;
    drop(open.execute(&format!("{} commit", super::load::put(11, 3))).await);
    drop(open.execute("rollback").await);
    drop(repeatable.execute(&format!("{} commit", super::load::put(ITEMS - 1, 3))).await);
    drop(repeatable.execute("rollback").await);
    context.postgres.close().await;
}

/// Somebody else may replace the same functions just now: then it is asked for again, as a person would.
async fn turn(context: &Context, is_on: bool) {
    let mut attempts = 0..20;
    while let Err(error) = context.postgres.switch_capture(is_on, &context.feed.limits).await {
        assert!(attempts.next().is_some(), "{error}");
    }
}
