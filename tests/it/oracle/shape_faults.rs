//! What a query returns becomes something else, and no row changes: no trigger tells of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Arena;
use super::database_faults::done;
use super::faults::Fault;
use super::schema::{SHAPES, WORKER};

/// Nothing else has all entries loaded again meanwhile, so that readers see whether the change has.
pub async fn inject(fault: Fault, arena: &Arena, some_time: Duration) {
    let shape = match fault {
        Fault::SwappedSchema => "rate",
        Fault::RenamedLabel => "mood",
        Fault::ReplacedFunction => "body",
        Fault::ReplacedView => "latest",
        Fault::OtherSearchPath => "resolved",
        Fault::ChangedPolicy => "shown",
        _ => panic!("{fault:?} changes no shape"),
    };
    arena.is_gentle.store(true, Ordering::SeqCst);
    tokio::time::sleep(some_time).await;
    change(arena, shape).await;
    tokio::time::sleep(some_time).await;
    arena.is_gentle.store(false, Ordering::SeqCst);
}

/// The next version of a shape, and its history, in one transaction.
pub async fn change(arena: &Arena, shape: &str) {
    let number = SHAPES.iter().position(|one| *one == shape).unwrap();
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    let now = format!("select max(version)::text from shape_history where id = {number}");
    let now: i64 = session.text(&now).await.unwrap().unwrap().parse().unwrap();
    let next = now + 1;
    let change = match shape {
        "rate" => format!(
            "create schema shop_new; create table shop_new.rates (version bigint not null);
             insert into shop_new.rates values ({next});
             alter schema shop rename to shop_old; alter schema shop_new rename to shop; drop schema shop_old cascade"
        ),
        "mood" => format!("alter type mood rename value 'v{now}' to 'v{next}'"),
        "body" => format!(
            "create or replace function body() returns bigint language sql immutable as 'select {next}::bigint'"
        ),
        "latest" => format!("create or replace view latest as select {next}::bigint as version"),
        "resolved" => {
            // The name of a table means another one.
            let other = if next % 2 == 0 { "path_b" } else { "path_a" };
            format!(
                "update {other}.resolved set version = {next}; alter role {WORKER} set search_path = {other}, public"
            )
        }
        _ => format!("alter policy shown on shown using (version = {next})"),
    };
    let sql =
        format!("begin; {change}; insert into shape_history (id, version) values ({number}, {next}); commit");
    done(arena, &sql).await;
}
