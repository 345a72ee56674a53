//! A tree of tables that only grew: what is new is looked at, and nothing else is revalidated. What came with rows is a change.

use cachekeeper::app::Worker;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;

use crate::coverage::{Case, case, is_right_once_fresh, toml};
use crate::feed::{agrees, ready};
use crate::support::{Rig, wait_until};

const PARTS: Case = case(
    "parts",
    "create table parts (id int primary key, v int) partition by range (id);
     create table parts_0 partition of parts for values from (0) to (10); insert into parts values (1, 1)",
    "select id, v from parts",
    &["parts"],
    "",
);

async fn causes(context: &Context) -> u64 {
    context.redis.metadata("").await.unwrap().causes
}

/// Waits until a trigger tells that this partition was emptied: then it is known.
async fn is_known(rig: &Rig, partition: &str) {
    wait_until(&format!("{partition} is known"), async || {
        let sql = format!(
            "select count(*)::text from pg_trigger where tgrelid = '{partition}'::regclass and tgtype & 32 <> 0"
        );
        let count = rig.postgres.session().await.unwrap().text(&sql).await.unwrap().unwrap();
        if count == "0" { Err("no trigger".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn a_new_partition_without_rows_makes_nothing_pending() {
    let rig = Rig::start(PARTS.before).await;
    let worker = Worker::start(rig.config(&toml(&[PARTS]))).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    is_right_once_fresh(&rig, context, &PARTS).await;
    let before = causes(context).await;
    for (name, grow, row) in [
        ("parts_1", "create table parts_1 partition of parts for values from (10) to (20)", 10),
        (
            "parts_2",
            "begin; create table parts_2 partition of parts for values from (20) to (30);
             insert into parts values (21, 21); commit",
            20,
        ),
        // As pg_partman does it.
        (
            "parts_3",
            "create table parts_3 (like parts including all); alter table parts attach partition parts_3 for values from (30) to (40)",
            30,
        ),
    ] {
        rig.postgres.execute(grow).await.unwrap();
        is_right_once_fresh(&rig, context, &PARTS).await;
        assert_eq!(causes(context).await, before, "{grow}");
        is_known(&rig, name).await;
        rig.postgres.execute(&format!("insert into parts values ({row}, 1)")).await.unwrap();
        is_right_once_fresh(&rig, context, &PARTS).await;
        agrees(&worker).await;
        assert_eq!(causes(context).await, before, "{grow}");
    }
    // And everything that is done to it is noticed.
    rig.postgres.execute("truncate parts_1").await.unwrap();
    is_right_once_fresh(&rig, context, &PARTS).await;
    agrees(&worker).await;
    assert!(before < causes(context).await);
    worker.stop().await;
}

#[tokio::test]
async fn a_new_partition_that_came_with_rows_is_a_change() {
    let rig = Rig::start(PARTS.before).await;
    let worker = Worker::start(rig.config(&toml(&[PARTS]))).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    is_right_once_fresh(&rig, context, &PARTS).await;
    for grow in [
        "create table parts_1 (like parts including all); insert into parts_1 values (11, 1);
         alter table parts attach partition parts_1 for values from (10) to (20)",
        "begin; create table parts_2 (like parts including all); insert into parts_2 values (21, 1);
         alter table parts attach partition parts_2 for values from (20) to (30); commit",
        "begin; create table parts_3 partition of parts for values from (30) to (40); alter table parts_3 disable trigger all;
         insert into parts values (31, 1); alter table parts_3 enable trigger all; commit",
    ] {
        let before = causes(context).await;
        rig.postgres.execute(grow).await.unwrap();
        is_right_once_fresh(&rig, context, &PARTS).await;
        agrees(&worker).await;
        assert!(before < causes(context).await, "{grow}");
    }
    worker.stop().await;
}

/// Upkeep as it is done every day.
#[tokio::test]
async fn upkeep_makes_nothing_pending() {
    let rig = Rig::start(PARTS.before).await;
    let worker = Worker::start(rig.config(&toml(&[PARTS]))).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    is_right_once_fresh(&rig, context, &PARTS).await;
    let before = causes(context).await;
    for day in 1..4 {
        let (from, to) = (day * 10, day * 10 + 10);
        for statement in [
            format!("create table day_{day} (like parts including all)"),
            format!("alter table parts attach partition day_{day} for values from ({from}) to ({to})"),
            format!("insert into parts values ({from}, 1)"),
            format!("create index day_{day}_v on day_{day} (v)"),
            "analyze".to_owned(),
            "vacuum parts".to_owned(),
            "vacuum full parts_0".to_owned(),
            format!("vacuum full day_{day}"),
            "reindex table parts".to_owned(),
            format!("cluster day_{day} using day_{day}_v"),
        ] {
            rig.postgres.execute(&statement).await.unwrap();
            is_right_once_fresh(&rig, context, &PARTS).await;
            assert_eq!(causes(context).await, before, "{statement}");
            if statement.starts_with("alter table parts attach") {
                is_known(&rig, &format!("day_{day}")).await;
            }
        }
    }
    agrees(&worker).await;
    worker.stop().await;
}

/// The coverage is computed while a partition comes: nothing in the catalogs changes after that, so it has to be tried again unasked.
#[tokio::test]
async fn a_partition_that_comes_while_others_are_installed_is_looked_at_again() {
    let rig = Rig::start(PARTS.before).await;
    let late = case("late", "", "select id, v from late", &["late"], "");
    coverage::look(&rig.context(&toml(&[PARTS])), true).await.unwrap();
    // Whoever makes a trigger of the table has a partition made first.
    let grow = "create table late (id int primary key, v int);
        create function grow() returns event_trigger language plpgsql as $$ begin
            if to_regclass('public.day') is null then
                create table public.day (like public.parts including all);
                alter table public.parts attach partition public.day for values from (10) to (20);
            end if; end $$;
        create event trigger grow on ddl_command_end when tag in ('CREATE TRIGGER') execute function grow()";
    rig.postgres.execute(grow).await.unwrap();
    let context = rig.context(&toml(&[PARTS, late]));
    let looked = coverage::look(&context, true).await.unwrap();
    assert!(looked.is_to_be_completed);
    let looked = coverage::look(&context, true).await.unwrap();
    assert!(!looked.is_to_be_completed && looked.gaps().next().is_none());
    is_known(&rig, "day").await;
}

/// Row triggers are cloned to a new partition, those that tell of a truncate are not. A worker that may not make one looks at the
/// partition's file instead (design-review-2.md 14).
#[tokio::test]
async fn a_new_partition_that_nobody_may_watch_is_seen_to_be_emptied() {
    let rig = Rig::start(
        "create role loader login; create table parts (id int primary key, v int) partition by range (id);
         create table parts_0 partition of parts for values from (10) to (20);
         grant select on parts to loader; grant temporary on database postgres to loader",
    )
    .await;
    coverage::look(&rig.context(&toml(&[PARTS])), true).await.unwrap();
    rig.context("").postgres.grant("loader").await.unwrap();
    let mut config = rig.config(&toml(&[PARTS]));
    config.postgres.url = cachekeeper_config::Secret::new(rig.postgres.url().replace("postgres@", "loader@"));
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    for statement in [
        "create table parts_1 partition of parts for values from (0) to (10)",
        "insert into parts values (1, 1)",
        "update parts set v = 2",
        "truncate parts_1",
        "insert into parts values (1, 3)",
        "truncate parts",
    ] {
        rig.postgres.execute(statement).await.unwrap();
        is_right_once_fresh(&rig, &worker.context, &PARTS).await;
    }
    let watched =
        "select count(*)::text from pg_trigger where tgrelid = 'parts_1'::regclass and tgtype & 32 <> 0";
    let found = rig.postgres.session().await.unwrap().text(watched).await.unwrap();
    assert_eq!(found.as_deref(), Some("0"), "the test is about partitions without");
    worker.stop().await;
}

/// A table that has Cachekeeper's triggers of its own becomes a partition of one that has them too (design-review-2.md 13).
#[tokio::test]
async fn a_captured_table_can_be_attached_to_a_captured_tree() {
    let rig = Rig::start(PARTS.before).await;
    rig.postgres
        .execute("create table loose (like parts including all); insert into loose values (11, 1)")
        .await
        .unwrap();
    let loose = case("loose", "", "select id, v from loose", &["loose"], "");
    let worker = Worker::start(rig.config(&toml(&[PARTS, loose]))).await.unwrap();
    ready(&worker).await;
    is_right_once_fresh(&rig, &worker.context, &loose).await;
    for statement in [
        "alter table parts attach partition loose for values from (10) to (20)",
        "update loose set v = v + 1",
        "update parts set v = v + 1",
        "alter table parts detach partition loose",
        "update loose set v = v + 1",
        "update parts set v = v + 1",
        "alter table parts attach partition loose for values from (10) to (20)",
        "update parts set v = v + 1",
    ] {
        rig.postgres.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        is_right_once_fresh(&rig, &worker.context, &PARTS).await;
        is_right_once_fresh(&rig, &worker.context, &loose).await;
        agrees(&worker).await;
    }
    worker.stop().await;
}
