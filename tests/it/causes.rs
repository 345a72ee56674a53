//! What makes a dataset pending has a number, and only work that began after it settles it: no bulk load is missed because a
//! backfill of before seems to do, and no date of a clock decides.

use std::collections::BTreeMap;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_config::OnNewEpoch;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::change_feed::FeedConsumer;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::load::{Cause, Job, LoadOptions, LoadReport, load};
use cachekeeper_engine::stores::redis::PreconditionFailed;
use cachekeeper_engine::{coverage, events, revalidation, tokens};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::feed::{agrees, ready};
use crate::support::{Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, name text, price int);
    insert into products select n, 'product ' || n, n from generate_series(1, 100) n;";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, name, price from products"
    key = "product:{id}"
    format = "json"
    watch = [{ table = "products", key = { id = "id" } }]
    warm = { on_start = true }
"#;

/// Every way in which many rows appear by one statement.
#[tokio::test]
async fn rows_of_a_bulk_load_arrive_and_nothing_is_called_fresh_before() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    let mut redis = rig.client().await;
    let file = std::env::temp_dir().join(format!("cachekeeper-copy-{:016x}", rand::random::<u64>()));
    let to_file =
        format!("copy (select n, 'copied', n from generate_series(30000, 40000) n) to '{}'", file.display());
    rig.postgres.execute(&to_file).await.unwrap();
    let from_file = format!("copy products from '{}'", file.display());
    for (statement, first) in [
        (
            "insert into products select n, 'new ' || n, n from generate_series(1000, 11000) n".to_owned(),
            "product:1000",
        ),
        (from_file.clone(), "product:30000"),
        (
            "begin; truncate products; insert into products select n, 'again', n from generate_series(20000, 20100) n; commit".to_owned(),
            "product:20000",
        ),
        (format!("begin; truncate products; {from_file}; commit"), "product:30001"),
        (
            "begin; alter table products disable trigger all; insert into products select n, 'unseen', n from generate_series(50000, 60000) n; \
             alter table products enable trigger all; commit".to_owned(),
            "product:50000",
        ),
        (
            "create table fresh (like products including all); insert into fresh select n, 'swapped', n from generate_series(70000, 80000) n; \
             begin; alter table products rename to products_old; alter table fresh rename to products; commit".to_owned(),
            "product:70000",
        ),
    ] {
        rig.postgres.execute(&statement).await.unwrap();
        let token = tokens::token(context).await.unwrap();
        wait_until("the watermark has passed the load", async || {
            let (_, is_fresh) = tokens::wait(context, &token, Some("product"), Duration::ZERO)
                .await
                .map_err(|error| error.to_string())?;
            let is_there: bool = redis.clone().exists(first).await.unwrap();
            assert!(is_there || !is_fresh, "{statement}: called fresh before its rows were there");
            if is_fresh { Ok(()) } else { Err("not fresh".to_owned()) }
        })
        .await;
        agrees(&worker).await;
    }
    rig.postgres.execute(&format!("copy (select 1) to program 'rm {}'", file.display())).await.unwrap();
    let gone: bool = redis.exists("product:1000").await.unwrap();
    assert!(!gone);
    worker.stop().await;
}

fn options() -> BackfillOptions {
    BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: true }
}

async fn settle(feed: &mut FeedConsumer) {
    for _ in 0..20 {
        drop(feed.step(true).await);
    }
}

async fn left_out(context: &Context) -> Vec<String> {
    context.redis.watermark().await.unwrap().unwrap().not_covered
}

async fn revalidate(context: &Context) {
    let dataset = context.catalog.get("product").unwrap();
    revalidation::run(context, dataset, OnNewEpoch::Refresh, &CancellationToken::new()).await.unwrap();
}

/// A worker that is killed between the scan of Redis and the backfill leaves no dataset that seems whole.
#[tokio::test]
async fn rows_that_may_be_missing_hold_the_watermark_back_until_a_backfill_that_began_later() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.postgres.migrate().await.unwrap();
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    let dataset = context.catalog.get("product").unwrap().clone();
    let mut feed = FeedConsumer::new(&context);
    settle(&mut feed).await;
    revalidate(&context).await;
    settle(&mut feed).await;
    assert_eq!(left_out(&context).await, ["product"], "the scan found nothing to fill");
    backfill(&context, &dataset, &options()).await.unwrap();
    settle(&mut feed).await;
    assert!(left_out(&context).await.is_empty());

    // A cause, a backfill that began before it and ends after it, and the scan.
    let before = context.redis.metadata("").await.unwrap();
    rig.postgres
        .execute("insert into products select n, 'new', n from generate_series(1000, 11000) n")
        .await
        .unwrap();
    settle(&mut feed).await;
    let metadata = context.redis.metadata("").await.unwrap();
    assert_eq!(metadata.pending["product"].reason(), "whole table changed");
    assert!(before.causes < metadata.causes);
    revalidate(&context).await;
    let metadata = context.redis.metadata("").await.unwrap();
    assert!(metadata.pending.is_empty());
    assert_eq!(metadata.unfilled.keys().collect::<Vec<_>>(), ["product"]);
    assert!(metadata.backfilled["product"].cause < metadata.unfilled["product"]);
    settle(&mut feed).await;
    assert_eq!(left_out(&context).await, ["product"]);
    backfill(&context, &dataset, &options()).await.unwrap();
    settle(&mut feed).await;
    assert!(left_out(&context).await.is_empty());
    assert!(context.redis.metadata("").await.unwrap().unfilled.is_empty());
}

/// A worker that lives on while another one, which wanted the backfill, is killed.
#[tokio::test]
async fn a_backfill_that_nobody_remembers_is_wanted_by_whoever_looks() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.postgres.migrate().await.unwrap();
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    settle(&mut FeedConsumer::new(&context)).await;
    revalidate(&context).await;
    // Nothing is warmed at the start, so only the record in Redis asks for it.
    let worker =
        Worker::start(rig.config(&DATASETS.replace("on_start = true", "on_start = false"))).await.unwrap();
    ready(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

/// What a mark says must hold whatever order causes, scans, backfills and a clock that goes back come in: nothing is settled
/// but by work that began after it.
#[tokio::test]
async fn only_work_that_began_after_a_cause_settles_it_in_every_order() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.postgres.migrate().await.unwrap();
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    settle(&mut FeedConsumer::new(&context)).await;
    let dataset = context.catalog.get("product").unwrap().clone();
    let names = ["product".to_owned()];
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..40 {
        // The newest cause of each kind, and what had been seen by the newest scan and backfill since.
        let mut steps = Vec::new();
        for _ in 0..random.random_range(1..6) {
            match random.random_range(0..4) {
                0 => {
                    events::mark_pending(&context, &names, "test", None).await.unwrap();
                    steps.push("cause");
                }
                1 => {
                    // As a gap is noted: the number first, the record later.
                    let cause = context.redis.next_cause().await.unwrap();
                    if random.random() {
                        revalidate(&context).await;
                        steps.push("scan");
                    }
                    events::mark_pending(&context, &names, "test", Some(cause)).await.unwrap();
                    steps.push("numbered cause");
                }
                2 => {
                    revalidate(&context).await;
                    steps.push("scan");
                }
                _ => {
                    backfill(&context, &dataset, &options()).await.unwrap();
                    steps.push("backfill");
                }
            }
        }
        let metadata = context.redis.metadata("").await.unwrap();
        let last = |kinds: &[&str]| steps.iter().rposition(|step| kinds.contains(step));
        let cause = last(&["cause", "numbered cause"]);
        let expected_pending = match (cause, last(&["scan"])) {
            (Some(cause), scan) => scan.is_none_or(|scan| scan < cause),
            (None, _) => metadata.pending.contains_key("product") && last(&["scan"]).is_none(),
        };
        assert_eq!(metadata.pending.contains_key("product"), expected_pending, "round {round}: {steps:?}");
        if let (Some(cause), Some(scan)) = (cause, last(&["scan"]))
            && cause < scan
        {
            let filled = last(&["backfill"]).is_some_and(|backfill| cause < backfill);
            assert_eq!(metadata.unfilled.is_empty(), filled, "round {round}: {steps:?}");
        }
        // Nothing is left for the next round.
        revalidate(&context).await;
        backfill(&context, &dataset, &options()).await.unwrap();
        let metadata = context.redis.metadata("").await.unwrap();
        assert_eq!(
            (&metadata.pending, &metadata.unfilled),
            (&BTreeMap::new(), &BTreeMap::new()),
            "{steps:?}"
        );
    }
}

/// A number that Redis forgot, because it was rolled back, must not stay pending for ever.
#[tokio::test]
async fn a_cause_whose_number_redis_forgot_is_numbered_anew() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.postgres.migrate().await.unwrap();
    revalidate(&context).await;
    events::mark_pending(&context, &["product".to_owned()], "test", Some(1_000_000)).await.unwrap();
    revalidate(&context).await;
    assert!(context.redis.metadata("").await.unwrap().pending.is_empty());
}

/// What was written while no worker ran is lost to a dataset that the feed does not follow: that is a cause, and a backfill that
/// was interrupted before it does not do for it.
#[tokio::test]
async fn an_interrupted_backfill_is_not_resumed_for_what_came_after_it_began() {
    let rig = Rig::start(
        "create table rates (id int primary key, rate int);
         insert into rates select n, n from generate_series(1, 3000) n;",
    )
    .await;
    let toml = "[dataset.rate]\nquery = \"select id, rate from rates\"\nkey = \"rate:{id}\"\nformat = \"json\"\n\
                warm = { on_start = true, rate = 1000 }\n";
    let context = rig.context(toml);
    let first = Worker::start(rig.config(toml)).await.unwrap();
    wait_until("a backfill is under way", async || {
        let metadata = context.redis.metadata("").await.unwrap();
        if metadata.backfills.contains_key("rate") { Ok(()) } else { Err(format!("{metadata:?}")) }
    })
    .await;
    first.stop().await;
    rig.postgres.execute("insert into rates values (-6, 66)").await.unwrap();
    let mut redis = rig.client().await;
    // Somebody else has the lease until all that is wanted of the backfill has come together.
    let lease = "ck:{test:0}:lock:backfill:rate";
    let _: () = redis.set(lease, "somebody else").await.unwrap();
    let second = Worker::start(rig.config(toml)).await.unwrap();
    wait_until("rows may be missing", async || {
        let metadata = context.redis.metadata("").await.unwrap();
        if metadata.unfilled.contains_key("rate") { Ok(()) } else { Err(format!("{metadata:?}")) }
    })
    .await;
    let looks = async || -> u64 { redis.clone().hget("ck:{test:0}:meta", "job:looks").await.unwrap() };
    let seen = looks().await;
    wait_until("that was seen", async || {
        let now = looks().await;
        if seen + 2 < now { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    let _: () = redis.del(lease).await.unwrap();
    wait_until("the row is there", async || {
        let is_there: bool = redis.clone().exists("rate:-6").await.unwrap();
        if is_there { Ok(()) } else { Err(format!("{:?}", context.redis.metadata("").await)) }
    })
    .await;
    second.stop().await;
}

/// A backfill with a limit fills the most wanted rows only: nothing may wait for it to fill them all.
#[tokio::test]
async fn a_dataset_that_is_warmed_in_part_is_not_waited_for() {
    let rig = Rig::start(TABLES).await;
    let limited = DATASETS.replace(
        "warm = { on_start = true }",
        "scope = \"all\"\nwarm = { order_by = \"price desc\", limit = 10 }",
    );
    let worker = Worker::start(rig.config(&limited)).await.unwrap();
    ready(&worker).await;
    let metadata = worker.context.redis.metadata("").await.unwrap();
    assert!(metadata.unfilled.is_empty());
    let mut redis = rig.client().await;
    let is_there: bool = redis.exists("product:100").await.unwrap();
    assert!(is_there, "the dearest one is warmed");
    worker.stop().await;
}

/// Loads one entry of the dataset in a task of its own.
fn loading(context: &Context) -> tokio::task::JoinHandle<Result<LoadReport, EngineError>> {
    let context = context.clone();
    tokio::spawn(async move {
        let dataset = context.catalog.get("product").unwrap();
        let keys = vec![("product:1".to_owned(), vec!["1".to_owned()])];
        load(&context, dataset, &keys, LoadOptions::because(Cause::Refresh), &mut Job::uncounted()).await
    })
}

/// Nothing was committed since the load began, so stamps cannot tell that it is older than what was lost; and the scan of the
/// revalidation does not meet a key that is stored only later.
#[tokio::test]
async fn a_load_that_began_before_something_was_lost_is_not_stored_after_it() {
    let rig = Rig::start(TABLES).await;
    let waits = "select id, name, pg_advisory_xact_lock_shared(7)::text as waited from products";
    let context = rig.context(&DATASETS.replace("select id, name, price from products", waits));
    let dataset = context.catalog.get("product").unwrap().clone();
    let mut holder = rig.postgres.session().await.unwrap();
    holder.execute("select pg_advisory_lock(7)").await.unwrap();
    let old = loading(&context);
    wait_until("the load waits in the database", async || {
        let mut session = rig.postgres.session().await.unwrap();
        let waiting = "select count(*)::text from pg_locks where locktype = 'advisory' and not granted";
        let waiting = session.text(waiting).await.unwrap().unwrap();
        if waiting == "1" { Ok(()) } else { Err(waiting) }
    })
    .await;
    let cause = context.redis.next_cause().await.unwrap();
    events::mark_pending(&context, &["product".to_owned()], "events lost", Some(cause)).await.unwrap();
    revalidate(&context).await;
    assert!(context.redis.metadata("").await.unwrap().pending.is_empty());
    holder.execute("select pg_advisory_unlock(7)").await.unwrap();
    let answer = old.await.unwrap();
    assert!(
        matches!(answer, Err(EngineError::PreconditionFailed(PreconditionFailed::Outdated))),
        "{answer:?}"
    );
    let mut redis = rig.client().await;
    let is_there: bool = redis.exists("product:1").await.unwrap();
    assert!(!is_there, "an older load was stored");
    // Whoever is refused reads the revision and loads again; nobody takes itself for superseded.
    let again = loading(&context).await.unwrap().unwrap();
    assert_eq!((again.stored, dataset.is_superseded()), (1, false));
}

#[tokio::test]
async fn a_backfill_that_began_before_something_was_lost_ends_and_the_next_one_is_whole() {
    let rig = Rig::start(
        "create table products (id int primary key, name text, price int);
         insert into products select n, 'product ' || n, n from generate_series(1, 2000) n;",
    )
    .await;
    let context = rig.context(DATASETS);
    let began = context.clone();
    let running = tokio::spawn(async move {
        let slow = BackfillOptions { rate: Some(500), ..options() };
        backfill(&began, began.catalog.get("product").unwrap(), &slow).await
    });
    let mut redis = rig.client().await;
    wait_until("the backfill is under way", async || {
        let is_there: bool = redis.clone().exists("product:1").await.unwrap();
        if is_there { Ok(()) } else { Err("nothing stored".to_owned()) }
    })
    .await;
    let cause = context.redis.next_cause().await.unwrap();
    events::mark_pending(&context, &["product".to_owned()], "events lost", Some(cause)).await.unwrap();
    let answer = running.await.unwrap();
    assert!(
        matches!(answer, Err(EngineError::PreconditionFailed(PreconditionFailed::Outdated))),
        "{answer:?}"
    );
    revalidate(&context).await;
    let report = backfill(&context, context.catalog.get("product").unwrap(), &options()).await.unwrap();
    assert!(report.stored <= 2000, "{report:?}");
    let metadata = context.redis.metadata("").await.unwrap();
    assert!(!metadata.unfilled.contains_key("product") || cause < metadata.unfilled["product"]);
    let is_there: bool = redis.exists("product:2000").await.unwrap();
    assert!(is_there);
}
