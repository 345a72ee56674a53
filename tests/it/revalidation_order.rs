//! Revalidations in place: entries that are in use come first, no more a second than the dataset allows, others meanwhile; `status`
//! and metrics say how far.

use std::collections::BTreeSet;
use std::time::Instant;

use cachekeeper::app::Worker;
use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::redis::{Failed, OlderLoads};
use cachekeeper_engine::{epoch, revalidation};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::capture::{TABLES, plain};
use crate::feed::ready;
use crate::support::{Cli, Rig, wait_until};

const META: &str = "ck:{test:0}:meta";
const POLICY: cachekeeper_config::OnNewEpoch = cachekeeper_config::OnNewEpoch::Refresh;
const ROWS: usize = 40;
const IN_USE: [usize; 5] = [3, 11, 17, 29, 38];

fn dataset(rest: &str) -> String {
    format!(
        r#"
        [dataset.t]
        query = "select id, name from t"
        key = "t:{{id}}"
        format = "json"
        ttl = "1h"
        warm = {{ limit = 100000, order_by = "id" }}
        {rest}
    "#
    )
}

/// Entries that are all wrong, and of which some were read a while after they were stored.
async fn used(redis: &[&str], rest: &str) -> (Rig, Context) {
    let rig = Rig::start_with(
        "create table t (id int primary key, name text);
         insert into t select n, 'name ' || n from generate_series(1, 40) n;",
        &[],
        redis,
    )
    .await;
    let context = rig.context(&dataset(rest));
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    backfill(&context, context.catalog.get("t").unwrap(), &options).await.unwrap();
    let mut client = rig.client().await;
    for id in 1..=ROWS {
        let set = redis::cmd("SET").arg(format!("t:{id}")).arg("wrong").arg("KEEPTTL").to_owned();
        let _: () = set.query_async(&mut client).await.unwrap();
    }
    (rig, context)
}

async fn right(rig: &Rig) -> BTreeSet<usize> {
    let keys: Vec<String> = (1..=ROWS).map(|id| format!("t:{id}")).collect();
    let values: Vec<Option<String>> = rig.client().await.mget(keys).await.unwrap();
    let is_right =
        |(place, value): (usize, &Option<String>)| (value.as_deref() != Some("wrong")).then_some(place + 1);
    values.iter().enumerate().filter_map(is_right).collect()
}

async fn done(context: &Context) -> u64 {
    let metadata = context.redis.metadata("").await.unwrap();
    metadata.progress.get("t").map_or(0, |progress| progress.done)
}

/// Revalidates at least so many entries, then stops.
async fn some(rig: &Rig, context: &Context, most: u64) {
    let _: () = rig.client().await.del(META).await.unwrap();
    epoch::ensure(context, "").await.unwrap();
    let cancel = CancellationToken::new();
    let dataset = context.catalog.get("t").unwrap();
    let stopping = async {
        wait_until("some are revalidated", async || {
            let done = done(context).await;
            if most <= done { Ok(()) } else { Err(done.to_string()) }
        })
        .await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(revalidation::run(context, dataset, POLICY, &cancel), stopping);
    assert!(matches!(ended, Err(EngineError::Cancelled)), "{ended:?}");
}

fn in_use_are_first(right: &BTreeSet<usize>) {
    let in_use = BTreeSet::from(IN_USE);
    assert!(right.is_subset(&in_use) || in_use.is_subset(right), "{right:?}");
    assert!(!right.is_empty() && right.len() < ROWS, "{right:?}");
}

#[tokio::test]
async fn entries_that_were_read_are_revalidated_first() {
    let (rig, context) = used(&[], "revalidation_rate = 1").await;
    let mut client = rig.client().await;
    wait_until("the entries have an age", async || {
        let idle: u64 = redis::cmd("OBJECT")
            .arg("IDLETIME")
            .arg("t:1")
            .query_async(&mut rig.client().await)
            .await
            .unwrap();
        if 4 <= idle { Ok(()) } else { Err(format!("{idle} s")) }
    })
    .await;
    for id in IN_USE {
        let _: String = client.get(format!("t:{id}")).await.unwrap();
    }
    some(&rig, &context, 2).await;
    in_use_are_first(&right(&rig).await);
}

#[tokio::test]
async fn under_an_lfu_policy_those_are_first_that_are_read_often() {
    let policy = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lfu", "--lfu-log-factor", "0"];
    let (rig, context) = used(&policy, "revalidation_rate = 1").await;
    let mut client = rig.client().await;
    for id in IN_USE {
        for _ in 0..30 {
            let _: String = client.get(format!("t:{id}")).await.unwrap();
        }
    }
    some(&rig, &context, 2).await;
    in_use_are_first(&right(&rig).await);
}

#[tokio::test]
async fn no_more_entries_a_second_than_allowed() {
    let (rig, context) = used(&[], "revalidation_rate = 5").await;
    let began = Instant::now();
    some(&rig, &context, 10).await;
    let (done, allowed) =
        (right(&rig).await.len(), 5 * (usize::try_from(began.elapsed().as_secs()).unwrap() + 2));
    assert!(10 <= done && done <= allowed, "{done} of {allowed}");
}

/// Marks what was revalidated, so that one sees what is loaded once more.
async fn mark(rig: &Rig) -> BTreeSet<usize> {
    let seen = right(rig).await;
    for id in &seen {
        let set = redis::cmd("SET").arg(format!("t:{id}")).arg("seen").arg("KEEPTTL").to_owned();
        let _: () = set.query_async(&mut rig.client().await).await.unwrap();
    }
    seen
}

/// Which entries still have the mark.
async fn marked(rig: &Rig) -> usize {
    let keys: Vec<String> = (1..=ROWS).map(|id| format!("t:{id}")).collect();
    let values: Vec<Option<String>> = rig.client().await.mget(keys).await.unwrap();
    values.iter().filter(|value| value.as_deref() == Some("seen")).count()
}

async fn to_the_end(context: &Context) {
    let dataset = context.catalog.get("t").unwrap();
    revalidation::run(context, dataset, POLICY, &CancellationToken::new()).await.unwrap();
}

const AT_A_RATE: &str = "revalidation_rate = 10";

/// Whether it is interrupted by a deployment or by a kill: the next worker has only what stands in Redis.
#[tokio::test]
async fn one_that_is_interrupted_goes_on_where_it_was() {
    let (rig, context) = used(&[], AT_A_RATE).await;
    some(&rig, &context, 20).await;
    let before = mark(&rig).await;
    let metadata = context.redis.metadata("").await.unwrap();
    let noted = metadata.progress["t"].clone();
    let another = rig.context(&dataset(AT_A_RATE));
    to_the_end(&another).await;
    assert!(0 < marked(&rig).await, "everything was loaded once more: {noted:?}");
    let done: BTreeSet<usize> = before.union(&right(&rig).await).copied().collect();
    assert_eq!(done.len(), ROWS, "{done:?}");
    assert!(!another.redis.metadata("").await.unwrap().is_pending("t"));
}

/// What became pending meanwhile concerns what was seen to before as well.
#[tokio::test]
async fn after_a_newer_cause_an_interrupted_one_begins_anew() {
    let (rig, context) = used(&[], AT_A_RATE).await;
    some(&rig, &context, 20).await;
    mark(&rig).await;
    let state = epoch::ensure(&context, "").await.unwrap();
    let at = (&state.epoch, state.poll.incarnation.as_str());
    let datasets = ["t".to_owned()];
    let because = ("ddl", None);
    context.redis.mark_pending(at, because, &datasets, OlderLoads::OfDatasets, "").await.unwrap();
    to_the_end(&context).await;
    assert_eq!(marked(&rig).await, 0);
    assert_eq!(right(&rig).await.len(), ROWS);
}

/// Stamp slots that became pending meanwhile stay so: the scan may have passed them.
#[tokio::test]
async fn one_that_goes_on_settles_only_what_it_has_seen() {
    let (rig, context) = used(&[], AT_A_RATE).await;
    some(&rig, &context, 20).await;
    let before = mark(&rig).await;
    let state = epoch::ensure(&context, "").await.unwrap();
    let at = (&state.epoch, state.poll.incarnation.as_str());
    let mut failed = Failed::default();
    before.iter().for_each(|id| failed.kept.insert(&format!("t:{id}")));
    context.redis.mark_slots(at, ("t", "loads failed"), &failed, "").await.unwrap();
    to_the_end(&context).await;
    assert!(0 < marked(&rig).await, "it began anew");
    assert!(context.redis.metadata("").await.unwrap().slots.contains_key("t"), "nobody has seen to them");
    to_the_end(&context).await;
    assert_eq!(marked(&rig).await, 0);
    assert!(!context.redis.metadata("").await.unwrap().is_pending("t"));
}

/// Cursors of another server mean nothing, also where it has everything.
#[tokio::test]
async fn on_another_server_an_interrupted_one_begins_anew() {
    let (mut rig, context) = used(&["--appendonly", "yes", "--appendfsync", "always"], AT_A_RATE).await;
    some(&rig, &context, 20).await;
    mark(&rig).await;
    rig.redis.kill();
    rig.redis.start_again().await.unwrap();
    let another = rig.context(&dataset(AT_A_RATE));
    to_the_end(&another).await;
    assert_eq!(marked(&rig).await, 0);
    assert_eq!(right(&rig).await.len(), ROWS);
}

/// A changed query in place: readers see how far it is, and another dataset's revalidation does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revalidation_at_a_rate_is_shown_and_holds_up_no_other() {
    let rig = Rig::start(&format!(
        "{TABLES}
         create table t (id int primary key, name text not null);
         insert into t select n, 'name ' || n from generate_series(1, 400) n;"
    ))
    .await;
    let watched = r#"watch = [{ table = "t", key = { id = "id" } }]"#;
    let older = Worker::start(rig.config(&(plain() + &dataset(watched)))).await.unwrap();
    ready(&older).await;
    let anew = dataset(watched).replace("select id, name", "select id, upper(name) as name")
        + "revalidation_rate = 1";
    let toml = plain() + &anew;
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    let cli = Cli::new(&rig, &toml);
    wait_until("status says how far it is", async || {
        let (_, text) = cli.run(&["status"]);
        let is_said = text.contains("pending: ") && text.contains(" of 400 entries revalidated)");
        if is_said { Ok(()) } else { Err(text) }
    })
    .await;
    let status = cli.json(&["status"]);
    let t = status["datasets"].as_array().unwrap().iter().find(|one| one["name"] == "t").unwrap();
    assert_eq!(t["progress"]["entries"], 400, "{t}");
    wait_until("metrics say it as well", async || {
        let text = worker.context.metrics.render().unwrap();
        let entries = text.contains("cachekeeper_entries_to_revalidate{dataset=\"t\"} 400");
        let is_begun = !text.contains("cachekeeper_revalidated_entries{dataset=\"t\"} 0");
        if entries && is_begun { Ok(()) } else { Err(text) }
    })
    .await;
    // DDL makes the other one pending as well, and that is settled meanwhile.
    rig.postgres.execute("drop view names; alter table products alter name type varchar(90)").await.unwrap();
    wait_until("the other one was revalidated", async || {
        let metadata = worker.context.redis.metadata("").await.map_err(|error| error.to_string())?;
        let revision = metadata.revisions.get("product").map(|revision| revision.as_str().to_owned());
        let is_settled = !metadata.is_pending("product") && revision.is_some_and(|text| text.contains(' '));
        assert!(metadata.is_pending("t"), "it was to take minutes");
        if is_settled { Ok(()) } else { Err(format!("{:?}", metadata.pending)) }
    })
    .await;
    wait_until("it is right", async || {
        let product = worker.context.catalog.get("product").unwrap();
        let found = compare(&worker.context, product, &Extent::default()).await;
        let found = found.map_err(|error| error.to_string())?;
        if found.is_clean() { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    assert!(worker.stop().await);
    assert!(older.stop().await);
}

/// Nor does it hold up what another worker has to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revalidation_at_a_rate_holds_up_no_other_worker() {
    let rig = Rig::start(&format!(
        "{TABLES}
         create table t (id int primary key, name text not null);
         insert into t select n, 'name ' || n from generate_series(1, 400) n;"
    ))
    .await;
    let slow = dataset(r#"watch = [{ table = "t", key = { id = "id" } }]"#) + "revalidation_rate = 1";
    let older = Worker::start(rig.config(&(plain() + &slow.replace("warm =", "# warm =")))).await.unwrap();
    ready(&older).await;
    Cli::new(&rig, &(plain() + &slow.replace("revalidation_rate", "# "))).run(&["warm", "t"]);
    rig.postgres.execute("alter table t alter name type varchar(99)").await.unwrap();
    let is_begun = async || {
        let metadata = older.context.redis.metadata("").await.map_err(|error| error.to_string())?;
        let is_begun = metadata.is_pending("t") && metadata.progress.contains_key("t");
        if is_begun { Ok(()) } else { Err(format!("{:?} {:?}", metadata.pending, metadata.progress)) }
    };
    wait_until("it has begun", is_begun).await;
    let anew = plain().replace("select id, name, price", "select id, upper(name) as name, price") + &slow;
    let newer = Worker::start(rig.config(&anew.replace("warm =", "# warm ="))).await.unwrap();
    wait_until("the other worker's dataset is as it is to be", async || {
        let value: Option<String> =
            rig.client().await.get("product:9").await.map_err(|error| error.to_string())?;
        let metadata = newer.context.redis.metadata("").await.map_err(|error| error.to_string())?;
        assert!(metadata.is_pending("t"), "it was to take minutes");
        let is_new = value.as_ref().is_some_and(|value| value.contains("PRODUCT 9"));
        if is_new && !metadata.is_pending("product") {
            Ok(())
        } else {
            Err(format!("{value:?} {:?}", metadata.pending))
        }
    })
    .await;
    assert!(newer.stop().await);
    assert!(older.stop().await);
}
