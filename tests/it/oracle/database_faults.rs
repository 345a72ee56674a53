//! What is done to the database as its owners and operators do it: no trigger fires for most of it.

use std::time::Duration;

use cachekeeper_testkit::servers::Session;

use super::faults::Fault;
use super::load::ITEMS;
use super::{Arena, DATASETS};
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
                    "{LOCK} {} alter table items alter column version type bigint using version + 1; commit",
                    bump("true", "false")
                ),
            )
            .await;
        }
        Fault::RewrittenTable => done(arena, "vacuum full items").await,
        Fault::SwitchedCapture => switch_capture(arena, some_time).await,
        Fault::LockedOutbox => {
            let mut session = session(arena).await;
            // Writers do not wait for it, but it waits for them.
            session.execute("begin; lock table cachekeeper.outbox in access exclusive mode").await.unwrap();
            tokio::time::sleep(some_time).await;
            session.execute("commit").await.unwrap();
        }
        Fault::LockedTable => {
            let mut session = session(arena).await;
            session.execute("begin; lock table items in access exclusive mode").await.unwrap();
            tokio::time::sleep(some_time * 8).await;
            session.execute("commit").await.unwrap();
        }
        Fault::FullConnections => {
            let mut held = Vec::new();
            let url = arena.launch.postgres_url.clone();
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

async fn session(arena: &Arena) -> Session {
    arena.rig.lock().await.postgres.session().await.unwrap()
}

/// Writers may hold what it needs and need what it holds: then one of them loses.
async fn done(arena: &Arena, sql: &str) {
    let mut session = session(arena).await;
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
         create table items_new_high partition of items_new for values from (150) to (100000);
         insert into items_new select id, version, id % 10 from counters where id % 4 > 0;
         insert into history (id, version, is_deleted) select id, version, id % 4 = 0 from counters;
         drop table items;
         alter table items_new rename to items; alter table items_new_low rename to items_low; alter table items_new_high rename to items_high;
         commit"
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

/// What is written while the triggers are off is made good, also by who has begun before.
async fn switch_capture(arena: &Arena, some_time: Duration) {
    let context = arena.rig.lock().await.context(DATASETS);
    let mut repeatable = session(arena).await;
    repeatable.execute("begin isolation level repeatable read; select from lives limit 1").await.unwrap();
    context.postgres.switch_capture(false, &context.feed.limits).await.unwrap();
    tokio::time::sleep(some_time).await;
    // Whoever is in the way of others may lose: then it has written nothing.
    let mut open = session(arena).await;
    drop(
        open.execute(&format!("begin; lock table items in row exclusive mode; {}", super::load::put(7, 3)))
            .await,
    );
    context.postgres.switch_capture(true, &context.feed.limits).await.unwrap();
    drop(open.execute(&format!("{} commit", super::load::put(11, 3))).await);
    drop(open.execute("rollback").await);
    drop(repeatable.execute(&format!("{} commit", super::load::put(ITEMS - 1, 3))).await);
    drop(repeatable.execute("rollback").await);
    context.postgres.close().await;
}
