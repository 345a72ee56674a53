//! Backfills, revalidations, poison rows, stalled loads, tags over time.

use std::collections::BTreeSet;

use cachekeeper::app::Worker;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::load::{Cause, Job, LoadOptions, Storing, load};
use cachekeeper_engine::stores::redis::{Answer, StoreMode};
use cachekeeper_engine::{epoch, invalidate, revalidation};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::stamp::Stamp;
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::explain::Shop;
use crate::support::{Rig, wait_until};

const TABLES: &str = "
    create table t (id int primary key, name text, part int);
    insert into t select n, 'name ' || n, n % 7 from generate_series(1, 5000) n;";

const DATASET: &str = r#"
    [dataset.t]
    query = "select id, name, part from t"
    key = "t:{id}"
    tags = ["part:{part}"]
    format = "json"
    warm = {}
"#;

const CHANGED: LoadOptions =
    LoadOptions { cause: Cause::Change, storing: Storing::Always, keeps_values: false, within: None };

fn options() -> BackfillOptions {
    BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: true }
}

async fn count(context: &Context) -> u64 {
    context.redis.key_count().await.unwrap()
}

#[tokio::test]
async fn a_stalled_load_never_brings_an_old_value_back() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASET);
    let dataset = context.catalog.get("t").unwrap();
    backfill(&context, dataset, &options()).await.unwrap();
    let source = dataset.source(&context.postgres).await.unwrap();
    // A worker loads, and stalls before it stores.
    let stalled =
        context.postgres.load(&source, &[vec!["1".to_owned()], vec!["2".to_owned()]]).await.unwrap();
    rig.postgres.execute("update t set name = 'new' where id = 1; delete from t where id = 2").await.unwrap();
    invalidate::keys(&context, &["t:1".to_owned(), "t:2".to_owned()], None).await.unwrap();
    let mut batch = EntryBatch::default();
    batch.push("t:1", b"old", 60_000);
    batch.push("t:2", b"old", 60_000);
    let epoch = context.epoch().unwrap();
    let standing = dataset.precondition(&epoch, &stalled.poll.incarnation);
    let life = dataset.lifetimes.longest();
    let stored = context
        .redis
        .store(&standing, stalled.poll.snapshot.stamp(), &batch, life, StoreMode::Slots)
        .await
        .unwrap();
    assert_eq!(stored, Answer::Done(vec![0, 1]), "both are refused");
    let mut client = rig.client().await;
    let value: String = client.get("t:1").await.unwrap();
    assert!(value.contains("new"), "{value}");
    let is_back: bool = client.exists("t:2").await.unwrap();
    assert!(!is_back, "a deleted row does not come back");
    // The control: without the rule the same write succeeds, so the test can see the difference.
    let _: () = client.set("t:2", "old").await.unwrap();
    let is_back: bool = client.exists("t:2").await.unwrap();
    assert!(is_back);
}

#[tokio::test]
async fn an_interrupted_pass_goes_on_where_it_ended() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASET);
    let dataset = context.catalog.get("t").unwrap();
    let cancel = CancellationToken::new();
    let (progress, mut told) = tokio::sync::watch::channel(cachekeeper_engine::backfill::Progress::default());
    let slow =
        BackfillOptions { cancel: cancel.clone(), rate: Some(4_000), progress: Some(progress), resume: true };
    let stopper = tokio::spawn(async move {
        told.wait_for(|progress| 1_000 < progress.entries).await.unwrap();
        cancel.cancel();
    });
    let error = backfill(&context, dataset, &slow).await.unwrap_err();
    assert!(matches!(error, EngineError::Cancelled), "{error}");
    stopper.await.unwrap();
    let metadata = context.redis.metadata("").await.unwrap();
    let bookmark = metadata.backfills.get("t").unwrap().clone();
    // The metadata, tables, windows and tag sets are among them; they are few.
    let stored_before = count(&context).await;
    assert!((1_000..5_000).contains(&stored_before), "{stored_before}, {bookmark}");
    let report = backfill(&context, dataset, &options()).await.unwrap();
    assert!(report.stored < 4_500, "only the rest is stored: {}", report.stored);
    assert_eq!(report.stored + report.stored_earlier, 5_000, "and all of it is told");
    let metadata = context.redis.metadata("").await.unwrap();
    assert!(metadata.backfills.is_empty() && metadata.backfilled.contains_key("t"));
    let found =
        cachekeeper_engine::audit::compare(&context, dataset, &cachekeeper_engine::audit::Extent::default())
            .await
            .unwrap();
    assert!(found.is_clean() && found.checked == 5_000, "{found:?}");
}

/// Another backfill raises the floor above this one's stamp: what it stores from then on is refused, and loaded by key later.
#[tokio::test]
async fn an_interrupted_backfill_has_not_passed_rows_that_were_refused() {
    let rig = Rig::start(TABLES).await;
    rig.postgres.execute("create table o as select 1 as id").await.unwrap();
    let other = "[dataset.o]\nquery = \"select id from o\"\nkey = \"o:{id}\"\nwarm = {}";
    let context =
        rig.context(&format!("{}\n{other}", DATASET.replace("warm = {}", "warm = {}\nbatch = 5000")));
    let dataset = context.catalog.get("t").unwrap();
    let (progress, mut told) = tokio::sync::watch::channel(cachekeeper_engine::backfill::Progress::default());
    let slow = BackfillOptions { rate: Some(4_000), progress: Some(progress), ..options() };
    let filling = {
        let (context, dataset) = (context.clone(), dataset.clone());
        tokio::spawn(async move { backfill(&context, &dataset, &slow).await })
    };
    told.wait_for(|progress| 500 < progress.entries).await.unwrap();
    rig.postgres.execute("insert into o values (2)").await.unwrap();
    backfill(&context, context.catalog.get("o").unwrap(), &options()).await.unwrap();
    wait_until("it ends, or its place is behind what was refused", async || {
        let metadata = context.redis.metadata("").await.unwrap();
        let place = metadata.backfills.get("t").cloned().unwrap_or_default();
        let id = place.rsplit(':').next().and_then(|id| id.parse::<u32>().ok());
        let is_behind = id.is_some_and(|id| 3_000 < id);
        if is_behind || filling.is_finished() { Ok(()) } else { Err(place) }
    })
    .await;
    filling.abort();
    drop(filling.await);
    backfill(&context, dataset, &options()).await.unwrap();
    let extent = cachekeeper_engine::audit::Extent::default();
    let found = cachekeeper_engine::audit::compare(&context, dataset, &extent).await.unwrap();
    assert!(found.is_clean() && found.checked == 5_000, "{found}");
}

#[tokio::test]
async fn row_10_the_most_wanted_are_warmed_their_lifetimes_are_spread_and_nothing_newer_is_overwritten() {
    let rig = Rig::start(TABLES).await;
    let warm = "ttl = \"24h\"\nttl_jitter = \"10%\"\nwarm = { order_by = \"id desc\", limit = 100 }";
    let context = rig.context(&DATASET.replace("warm = {}", warm));
    let dataset = context.catalog.get("t").unwrap();
    let state = epoch::ensure(&context, "").await.unwrap();
    let standing = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let mut newer = EntryBatch::default();
    newer.push("t:4950", b"newer", 80_000_000);
    let later = Stamp::new(1 << 40, 0).unwrap();
    let life = dataset.lifetimes.longest();
    context.redis.store(&standing, later, &newer, life, StoreMode::Slots).await.unwrap();
    backfill(&context, dataset, &options()).await.unwrap();
    let mut client = rig.client().await;
    let expected: BTreeSet<String> = (4901..=5000).map(|id| format!("t:{id}")).collect();
    let keys: BTreeSet<String> = client.keys::<_, Vec<String>>("t:*").await.unwrap().into_iter().collect();
    assert_eq!(keys, expected);
    let value: String = client.get("t:4950").await.unwrap();
    assert_eq!(value, "newer");
    let mut lives = BTreeSet::new();
    for key in expected.iter().filter(|key| *key != "t:4950") {
        let left: i64 = client.ttl(key).await.unwrap();
        assert!((70_000..=86_400).contains(&left), "{key}: {left}");
        lives.insert(left / 60);
    }
    assert!(20 < lives.len(), "lifetimes are spread: {lives:?}");
}

#[tokio::test]
async fn a_poison_row_fails_alone() {
    let rig = Rig::start(
        "
        create table t (id int primary key, name text, divisor int, data json);
        insert into t select n, 'name ' || n, n - 50, '{}' from generate_series(1, 100) n;
        update t set data = (repeat('[', 200) || repeat(']', 200))::json where id = 7;",
    )
    .await;
    let context = rig.context(
        r#"
        [dataset.divided]
        query = "select id, 100 / divisor as quotient from t"
        key = "divided:{id}"
        warm = {}
        [dataset.deep]
        query = "select id, data from t"
        key = "deep:{id}"
        warm = {}
        [dataset.twice]
        query = "select id % 99 as id, name from t"
        key = "twice:{id}"
        warm = {}
        [dataset.named]
        query = "select nullif(name, 'name 3') as name, id from t"
        key = "named:{name}"
        warm = {}
    "#,
    );
    let mut client = rig.client().await;
    // A value that cannot be encoded; two rows of one key; a row without a key. Each in a pass, then by key.
    for (name, poisoned, stored) in
        [("deep", Some("deep:7"), 99), ("twice", Some("twice:1"), 98), ("named", None, 99)]
    {
        let dataset = context.catalog.get(name).unwrap();
        if let Some(key) = poisoned {
            let _: () = client.set(key, "an older value").await.unwrap();
        }
        let report = backfill(&context, dataset, &options()).await.unwrap();
        assert_eq!((report.stored, report.failures.len()), (stored, 1), "{name}: {:?}", report.failures);
        assert_eq!(report.failures[0].key.as_deref(), poisoned);
        let Some(key) = poisoned else { continue };
        let is_there: bool = client.exists(key).await.unwrap();
        assert!(!is_there, "{key}: an older value may not stay");
        let keys: Vec<_> = (1..=20).map(|id| (format!("{name}:{id}"), vec![id.to_string()])).collect();
        let report = load(&context, dataset, &keys, CHANGED, &mut Job::uncounted()).await.unwrap();
        assert_eq!((report.stored, report.failures.len()), (19, 1), "{name}: {report:?}");
    }
    // One row makes the whole statement fail: by key, the others are stored all the same, in a pass too.
    let dataset = context.catalog.get("divided").unwrap();
    let _: () = client.set("divided:50", "an older value").await.unwrap();
    let report = backfill(&context, dataset, &options()).await.unwrap();
    assert_eq!((report.stored, report.failures.len(), report.invalidated), (99, 1, 1), "{report:?}");
    let is_there: bool = client.exists("divided:50").await.unwrap();
    assert!(!is_there);
    let _: () = client.set("divided:50", "an older value").await.unwrap();
    let keys: Vec<_> = (1..=100).map(|id| (format!("divided:{id}"), vec![id.to_string()])).collect();
    let report = load(&context, dataset, &keys, CHANGED, &mut Job::uncounted()).await.unwrap();
    assert_eq!((report.stored, report.failures.len(), report.invalidated), (99, 1, 1), "{report:?}");
    let is_there: bool = client.exists("divided:50").await.unwrap();
    assert!(!is_there);
}

/// A row that is refused however often it is loaded is missing, and Redis says so until a later backfill has stored it.
#[tokio::test]
async fn a_row_that_a_backfill_cannot_store_is_not_called_filled() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASET);
    let state = epoch::ensure(&context, "").await.unwrap();
    let dataset = context.catalog.get("t").unwrap();
    let standing = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let ahead = Stamp::new(1 << 40, 0).unwrap();
    context.redis.raise(&standing, ahead, &["t:7"], "").await.unwrap();
    let report = backfill(&context, dataset, &options()).await.unwrap();
    assert_eq!((report.left, report.failures.len()), (1, 1), "{report:?}");
    let metadata = context.redis.metadata("").await.unwrap();
    assert!(metadata.backfilled["t"].cause < metadata.unfilled["t"], "{metadata:?}");
    let mut client = rig.client().await;
    let is_there: bool = client.exists("t:7").await.unwrap();
    assert!(!is_there);
}

#[tokio::test]
async fn two_hundred_thousand_tagged_keys_leave_nothing_behind() {
    let rig = Rig::start("").await;
    let context = rig.context(
        r#"
        [dataset.t]
        query = "select 1 as id"
        key = "t:{id}"
        ttl = "1s"
        max_stale = "0s"
    "#,
    );
    let state = epoch::ensure(&context, "").await.unwrap();
    let dataset = context.catalog.get("t").unwrap();
    let standing = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let stamp = Stamp::new(1 << 40, 0).unwrap();
    // The first rounds bring the allocator to its working size.
    let mut after_first = 0;
    for round in 0..10 {
        let mut batch = EntryBatch::default();
        for number in 0..20_000 {
            let position = batch.push(&format!("t:{round}:{number}"), b"value", 500);
            batch.tag(position, &format!("tag:{round}:{}", number % 100));
            batch.tag(position, "all");
            if batch.len() == 500 {
                let life = dataset.lifetimes.longest();
                let stored =
                    context.redis.store(&standing, stamp, &batch, life, StoreMode::Slots).await.unwrap();
                assert_eq!(stored, Answer::Done(vec![]));
                batch.clear();
            }
        }
        if round == 0 || round == 9 {
            wait_until("entries and tag sets are gone", || async {
                context.redis.drop_old_windows(1_000).await.unwrap();
                let keys = context.redis.key_count().await.unwrap();
                // What stays: the metadata, the two tables, the counters, what is registered and the directory. Memory is given back by Redis's own background thread.
                let used = context.redis.facts().await.unwrap().used_memory;
                let limit = if round == 0 { u64::MAX } else { after_first + (1 << 20) };
                let names: Vec<String> = if keys < 50 {
                    redis::cmd("KEYS").arg("*").query_async(&mut rig.client().await).await.unwrap()
                } else {
                    Vec::new()
                };
                if keys <= 7 && used <= limit {
                    Ok(used)
                } else {
                    Err(format!("{keys} keys, {used} bytes {names:?}"))
                }
            })
            .await;
            if round == 0 {
                after_first = context.redis.facts().await.unwrap().used_memory;
            }
        }
    }
}

#[tokio::test]
async fn retagging_moves_and_membership_outlives_nothing() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASET);
    let dataset = context.catalog.get("t").unwrap();
    backfill(&context, dataset, &options()).await.unwrap();
    rig.postgres.execute("update t set part = 100 where id = 1").await.unwrap();
    invalidate::keys(&context, &["t:1".to_owned()], None).await.unwrap();
    rig.postgres.execute("update t set name = 'by its new tag' where part = 100").await.unwrap();
    let report = invalidate::tags(&context, &["part:100".to_owned()], None).await.unwrap();
    assert_eq!(report.stored, 1);
    let mut client = rig.client().await;
    let value: String = client.get("t:1").await.unwrap();
    assert!(value.contains("by its new tag"), "{value}");
    // A tag without members is nothing to do; so is one that never was.
    let report = invalidate::tags(&context, &["never".to_owned()], None).await.unwrap();
    assert_eq!(report, cachekeeper_engine::load::LoadReport::default());
}

#[tokio::test]
async fn a_pending_revalidation_is_run_by_a_scan_of_redis() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASET);
    let dataset = context.catalog.get("t").unwrap();
    backfill(&context, dataset, &options()).await.unwrap();
    let mut client = rig.client().await;
    let _: () = client.set("t:99999", "its row is gone").await.unwrap();
    let _: () = client.set("t:5", "stale").await.unwrap();
    let _: () = client.del("ck:{test:0}:meta").await.unwrap();
    epoch::ensure(&context, "").await.unwrap();
    assert!(context.redis.metadata("").await.unwrap().pending.contains_key("t"));
    let policy = cachekeeper_config::OnNewEpoch::Refresh;
    let report = revalidation::run(&context, dataset, policy, &CancellationToken::new()).await.unwrap();
    assert_eq!((report.stored, report.gone), (5_000, 1));
    assert!(context.redis.metadata("").await.unwrap().pending.is_empty());
    // Dropped instead of refreshed.
    let _: () = client.del("ck:{test:0}:stamps").await.unwrap();
    epoch::ensure(&context, "").await.unwrap();
    let policy = cachekeeper_config::OnNewEpoch::Drop;
    let report = revalidation::run(&context, dataset, policy, &CancellationToken::new()).await.unwrap();
    assert_eq!((report.stored, report.invalidated), (0, 5_000));
    let left: bool = client.exists("t:5").await.unwrap();
    assert!(!left);
}

#[tokio::test]
async fn a_newer_definition_displaces_the_older_process() {
    let rig = Rig::start(TABLES).await;
    let older = rig.context(DATASET);
    backfill(&older, older.catalog.get("t").unwrap(), &options()).await.unwrap();
    let newer =
        rig.context(&DATASET.replace("select id, name, part", "select id, upper(name) as name, part"));
    backfill(&newer, newer.catalog.get("t").unwrap(), &options()).await.unwrap();
    let keys = vec![("t:1".to_owned(), vec!["1".to_owned()])];
    let tried =
        async || load(&older, older.catalog.get("t").unwrap(), &keys, CHANGED, &mut Job::uncounted()).await;
    assert!(tried().await.is_err(), "it knows nothing of the newer one yet");
    epoch::ensure(&older, "").await.unwrap();
    let error = tried().await;
    assert!(matches!(error, Err(EngineError::Superseded { .. })), "{error:?}");
    let mut client = rig.client().await;
    let value: String = client.get("t:1").await.unwrap();
    assert!(value.contains("NAME 1"), "{value}");
}

#[tokio::test]
async fn a_schedule_fires_and_a_wrong_type_at_a_key_is_overwritten() {
    let rig = Rig::start(TABLES).await;
    let toml = DATASET.replace("warm = {}", "warm = { on_start = false, schedule = \"* * * * * *\" }");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    let mut client = rig.client().await;
    let _: i64 = client.lpush("t:1", "not a string").await.unwrap();
    wait_until("two backfills were made", || async {
        let metrics = worker.context.metrics.render().unwrap();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("cachekeeper_backfills_total") && line.contains("ok"));
        match line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()) {
            Some(2..) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let value: String = client.get("t:1").await.unwrap();
    assert!(value.contains("name 1"), "{value}");
    assert!(worker.stop().await);
}

#[tokio::test]
async fn entries_of_many_tags_are_members_of_each_and_refusals_name_the_right_ones() {
    let rig = Rig::start("").await;
    let context = rig.context("[dataset.t]\nquery = \"select 1 as id\"\nkey = \"t:{id}\"");
    let state = epoch::ensure(&context, "").await.unwrap();
    let dataset = context.catalog.get("t").unwrap();
    let standing = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let life = dataset.lifetimes.longest();
    let (low, high) = (Stamp::new(1 << 40, 0).unwrap(), Stamp::new(1 << 41, 0).unwrap());
    let names: Vec<String> = (0..300).map(|number| format!("t:{number}")).collect();
    let mut batch = EntryBatch::default();
    for (number, name) in names.iter().enumerate() {
        let position = batch.push(name, b"v", 60_000);
        batch.tag(position, &format!("seventh:{}", number % 7));
        batch.tag(position, &format!("third:{}", number % 3));
        if number % 50 == 0 {
            batch.tag(position, "rare");
        }
    }
    // Three keys and one tag were touched by something newer.
    let touched = ["t:5", "t:100", "t:299"];
    context.redis.raise(&standing, high, &touched, "").await.unwrap();
    context.redis.raise_tags(&standing, high, "", &["rare"]).await.unwrap();
    let expected: Vec<usize> =
        (0..300).filter(|number| number % 50 == 0 || touched.contains(&names[*number].as_str())).collect();
    for mode in [StoreMode::Slots, StoreMode::Floor { job: "", progress: "", members: None }] {
        let stored = context.redis.store(&standing, low, &batch, life, mode).await.unwrap();
        assert_eq!(stored, Answer::Done(expected.clone()));
    }
    let mut client = rig.client().await;
    for (modulus, kind) in [(7, "seventh"), (3, "third")] {
        for rest in 0..modulus {
            let tag = format!("{kind}:{rest}");
            let sets = context.redis.raise_tags(&standing, high, "", &[&tag]).await.unwrap();
            let Answer::Done(sets) = sets else { panic!("{sets:?}") };
            let mut found: Vec<String> = client.smembers(&sets[0].0).await.unwrap();
            let mut wanted: Vec<String> = (0..300)
                .filter(|number| number % modulus == rest && !expected.contains(number))
                .map(|number| names[number].clone())
                .collect();
            found.sort();
            wanted.sort();
            assert_eq!(found, wanted, "{tag}");
        }
    }
}

/// Also one that nobody would want again: neither a start nor a schedule.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_under_way_when_its_worker_ended_is_gone_on_with() {
    let tables = "create table big (id int primary key); insert into big select generate_series(1, 6000)";
    let datasets = r#"
        [dataset.big]
        query = "select id from big"
        key = "big:{id}"
        warm = { on_start = false, rate = 1500 }
        scope = "cached"
        watch = [{ table = "big", key = { id = "id" } }]
    "#;
    let mut shop = Shop::with(tables, datasets).await;
    assert_eq!(shop.ask("POST", "/api/v1/datasets/big/warm", "{}").await.0, 202);
    let context = shop.worker.as_ref().unwrap().context.clone();
    let at = async || context.redis.metadata("").await.unwrap().backfills.get("big").cloned();
    wait_until("a part of it is stored", async || at().await.map(drop).ok_or_else(String::new)).await;
    assert!(shop.worker.take().unwrap().stop().await);
    assert!(at().await.is_some());
    let worker = Worker::start(shop.rig.config(datasets)).await.unwrap();
    wait_until("the next worker ends it", async || {
        let metadata = context.redis.metadata("").await.map_err(|error| error.to_string())?;
        let is_whole = metadata.backfills.is_empty() && metadata.backfilled.contains_key("big");
        if is_whole { Ok(()) } else { Err(format!("{:?}", metadata.backfills)) }
    })
    .await;
    let mut client = shop.rig.client().await;
    let there: u64 = client.exists(&["big:1", "big:3000", "big:6000"][..]).await.unwrap();
    assert_eq!(there, 3);
    worker.stop().await;
}
