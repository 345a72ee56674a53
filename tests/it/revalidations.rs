//! Revalidations of datasets that Redis is to hold whole, with many entries in Redis: a backfill first, then a scan for what it has
//! not stored, as one counted job.

use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::{epoch, revalidation};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::support::Rig;

const META: &str = "ck:{test:0}:meta";
const POLICY: cachekeeper_config::OnNewEpoch = cachekeeper_config::OnNewEpoch::Refresh;

async fn filled() -> (Rig, Context) {
    let rig = Rig::start(
        "create table t (id int primary key, name text, part int);
         insert into t select n, 'name ' || n, n % 50 from generate_series(1, 30000) n;",
    )
    .await;
    let context = rig.context(
        "[dataset.t]\nquery = \"select id, name, part from t\"\nkey = \"t:{id}\"\nformat = \"json\"\ntags = [\"part:{part}\"]\n\
         warm = { rate = 100000 }",
    );
    let dataset = context.catalog.get("t").unwrap();
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    backfill(&context, dataset, &options).await.unwrap();
    (rig, context)
}

async fn begin_epoch(rig: &Rig, context: &Context) {
    let _: () = rig.client().await.del(META).await.unwrap();
    epoch::ensure(context, "").await.unwrap();
    assert!(context.redis.metadata("").await.unwrap().pending.contains_key("t"));
}

#[tokio::test]
async fn a_backfill_and_a_scan_of_the_rest_settle_what_is_pending() {
    let (rig, context) = filled().await;
    let dataset = context.catalog.get("t").unwrap();
    let mut client = rig.client().await;
    let _: () = client.set("t:99999", "its row is gone").await.unwrap();
    let _: () = client.set("t:5", "stale").await.unwrap();
    let _: () = client.del("t:6").await.unwrap();
    begin_epoch(&rig, &context).await;
    let report = revalidation::run(&context, dataset, POLICY, &CancellationToken::new()).await.unwrap();
    assert_eq!((report.stored, report.gone), (30_000, 1));
    // What was missing is there as well, so no backfill has to follow.
    let metadata = context.redis.metadata("").await.unwrap();
    assert!(metadata.pending.is_empty() && metadata.unfilled.is_empty(), "{metadata:?}");
    assert!(metadata.backfilled.contains_key("t") && metadata.backfills.is_empty(), "{metadata:?}");
    let found = compare(&context, dataset, &Extent::default()).await.unwrap();
    assert!(found.is_clean() && found.checked == 30_000, "{found:?}");
}

/// Redis is a copy of before a script of the backfill: what that one has stored is not there, and the scan passes over it.
#[tokio::test]
async fn a_revalidation_of_which_redis_has_lost_a_step_claims_nothing() {
    let (rig, context) = filled().await;
    let dataset = context.catalog.get("t").unwrap();
    begin_epoch(&rig, &context).await;
    let mut client = rig.client().await;
    let losing = async {
        loop {
            let fields: Vec<(String, Vec<u8>)> = client.hgetall(META).await.unwrap();
            let is_under_way = |(field, count): &&(String, Vec<u8>)| {
                field.starts_with("job:revalidation-")
                    && 5 < String::from_utf8_lossy(count).parse::<u64>().unwrap()
            };
            if let Some((job, _)) = fields.iter().find(is_under_way) {
                let _: i64 = client.hincr(META, job, -1).await.unwrap();
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let cancel = CancellationToken::new();
    let (ran, ()) = tokio::join!(revalidation::run(&context, dataset, POLICY, &cancel), losing);
    assert!(matches!(ran, Err(EngineError::RedisRolledBack)), "{ran:?}");
    assert!(context.redis.metadata("").await.unwrap().pending.contains_key("t"));
    revalidation::run(&context, dataset, POLICY, &cancel).await.unwrap();
    assert!(context.redis.metadata("").await.unwrap().pending.is_empty());
}
