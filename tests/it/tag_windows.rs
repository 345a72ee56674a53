//! Windows of tags while Redis's clock is set: whatever it does, an entry that can be read is a member of its tags, and nothing
//! stays for ever (R8; faults A9).

use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::invalidate;
use cachekeeper_engine::stores::redis::Redis as Store;
use cachekeeper_testkit::servers::{Clock, Postgres, Redis};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::support::Rig;

const TABLE: &str = "create table t (id int primary key, name text, part int);
    insert into t select n, 'old', n % 3 from generate_series(1, 2000) n;";

const DATASET: &str = r#"
    [dataset.t]
    query = "select id, name, part from t"
    key = "t:{id}"
    format = "json"
    tags = ["part:{part}", "all", "own:{id}"]
    ttl = "10m"
    ttl_jitter = "0%"
    max_stale = "0s"
    warm = {}
"#;

/// Servers of which Redis has a clock of its own, and a filled dataset. Redis expires nothing by itself: what has expired goes when
/// somebody looks at it, as it would in a Redis that has more to expire than it can at once.
async fn filled(clock: &Clock) -> (Rig, Context) {
    let arguments = ["--enable-debug-command", "yes"];
    let environment = clock.environment();
    let redis = Redis::start_with(&arguments, &environment);
    let (postgres, redis) = tokio::join!(Postgres::start(&[]), redis);
    let rig = Rig { postgres: postgres.unwrap(), redis: redis.unwrap() };
    rig.postgres.execute(TABLE).await.unwrap();
    let context = rig.context(DATASET);
    context.postgres.migrate().await.unwrap();
    let mut client = rig.client().await;
    let _: () = redis::cmd("DEBUG").arg("SET-ACTIVE-EXPIRE").arg(0).query_async(&mut client).await.unwrap();
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    let dataset = context.catalog.get("t").unwrap();
    assert_eq!(backfill(&context, dataset, &options).await.unwrap().stored, 2_000);
    (rig, context)
}

async fn drop_windows(store: &Store) {
    while store.drop_old_windows(700).await.unwrap().has_more {}
}

/// What can be read is what the invalidation of its tag has seen to.
async fn readable(rig: &Rig) -> Vec<(u32, String)> {
    let mut client = rig.client().await;
    let keys: Vec<String> = (1..=2_000).map(|id| format!("t:{id}")).collect();
    let values: Vec<Option<String>> = client.mget(&keys).await.unwrap();
    (1..).zip(values).filter_map(|(id, value)| Some((id, value?))).collect()
}

async fn assert_tags_reach_everything(rig: &Rig, context: &Context) {
    rig.postgres.execute("update t set name = 'new'").await.unwrap();
    for part in 0..3 {
        invalidate::tags(context, &[format!("part:{part}")], None).await.unwrap();
    }
    let missed: Vec<_> =
        readable(rig).await.into_iter().filter(|(_, value)| !value.contains("new")).collect();
    assert!(missed.is_empty(), "{} entries were missed: {:?}", missed.len(), missed.first());
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_comes_back_leaves_no_entry_without_its_tags() {
    let clock = Clock::new().unwrap();
    let (rig, context) = filled(&clock).await;
    clock.set(7_200).unwrap();
    drop_windows(&context.redis).await;
    clock.set(0).unwrap();
    assert_tags_reach_everything(&rig, &context).await;
}

/// Faults A9: windows were enumerated up to the longest life from now only.
#[tokio::test]
async fn a_clock_that_goes_back_hides_no_member() {
    let clock = Clock::new().unwrap();
    let (rig, context) = filled(&clock).await;
    clock.set(-3_600).unwrap();
    assert_eq!(readable(&rig).await.len(), 2_000);
    assert_tags_reach_everything(&rig, &context).await;
    assert_eq!(readable(&rig).await.len(), 2_000);
    // What was stored by the late clock is found by the right one too.
    clock.set(0).unwrap();
    rig.postgres.execute("update t set name = 'once more'").await.unwrap();
    invalidate::tags(&context, &["all".to_owned()], None).await.unwrap();
    assert!(readable(&rig).await.iter().all(|(_, value)| value.contains("once more")));
}

/// What is stored while the clock is ahead lives on when it has come back, and is found.
#[tokio::test]
async fn what_was_stored_ahead_of_time_is_found_afterwards() {
    let clock = Clock::new().unwrap();
    let (rig, context) = filled(&clock).await;
    clock.set(7_200).unwrap();
    drop_windows(&context.redis).await;
    rig.postgres.execute("update t set name = 'ahead'").await.unwrap();
    let dataset = context.catalog.get("t").unwrap();
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    backfill(&context, dataset, &options).await.unwrap();
    clock.set(0).unwrap();
    drop_windows(&context.redis).await;
    assert_eq!(readable(&rig).await.len(), 2_000);
    assert_tags_reach_everything(&rig, &context).await;
}

/// An entry that was stored again before its first window was over is a member of a later one. In the end nothing is left.
#[tokio::test]
async fn windows_end_one_by_one_and_nothing_stays() {
    let clock = Clock::new().unwrap();
    let (rig, context) = filled(&clock).await;
    let mut client = rig.client().await;
    // Lives of ten minutes, windows of two.
    for minutes in [5, 9, 13] {
        clock.set(minutes * 60).unwrap();
        let keys: Vec<String> = (1..=2_000).step_by(2).map(|id| format!("t:{id}")).collect();
        invalidate::keys(&context, &keys, None).await.unwrap();
        drop_windows(&context.redis).await;
    }
    let left = readable(&rig).await;
    assert_eq!(left.len(), 1_000, "what was loaded again, and nothing else");
    assert_tags_reach_everything(&rig, &context).await;
    clock.set(7_200).unwrap();
    drop_windows(&context.redis).await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut client).await.unwrap();
    let (own, others): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| key.starts_with("ck:{test:0}:"));
    assert!(others.is_empty(), "{} entries", others.len());
    let sets: Vec<_> = own.iter().filter(|key| key.contains(":tag:") || key.contains(":windows")).collect();
    assert!(sets.is_empty(), "{sets:?}");
}
