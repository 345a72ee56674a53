//! What a query returns becomes something else, and no row changes: no trigger tells of it.

use super::database_faults::done;
use super::faults::Fault;
use super::load::ITEMS;
use super::schema::{SHAPES, WORKER};
use super::{Arena, settled};
use std::sync::atomic::Ordering;

/// Nothing else has all entries loaded again meanwhile, so that readers see whether the change has: nothing is pending when it
/// comes, and it has been looked at before anything else happens.
pub async fn inject(fault: Fault, arena: &Arena) {
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
    settled::caught_up(arena).await;
    let others = arena.observed.len();
    let xid = change(arena, shape).await;
    arena.has_struck.notify_one();
    settled::looked_at(arena, others, 0..ITEMS, xid).await;
    arena.is_gentle.store(false, Ordering::SeqCst);
}

/// The next version of a shape, and its history, in one transaction, which is answered.
pub async fn change(arena: &Arena, shape: &str) -> u64 {
    let number = SHAPES.iter().position(|one| *one == shape).unwrap();
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    let now = format!("select max(version)::text from shape_history where id = {number}");
    let now: i64 = session.text(&now).await.unwrap().unwrap().parse().unwrap();
    let next = now + 1;
    // The old table stays what it was, but for its schema's name: nothing but the name tells that it is another one now.
    done(arena, "drop schema if exists shop_old cascade").await;
    let change = match shape {
        "rate" => format!(
            "create schema shop_new; create table shop_new.rates (version bigint not null);
             insert into shop_new.rates values ({next});
             alter schema shop rename to shop_old; alter schema shop_new rename to shop"
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
    let xid = format!("select xid::text from shape_history where id = {number} and version = {next}");
    session.text(&xid).await.unwrap().unwrap().parse().unwrap()
}
