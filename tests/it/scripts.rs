//! Random steps of the scripts, beside a model in Rust and the double in memory, under two collations. The cases one by one
//! are in `decision_table.rs`.

use std::collections::HashMap;
use std::time::Duration;

use cachekeeper_engine::stores::memory::Memory;
use cachekeeper_engine::stores::redis::{
    Answer, Creation, Epoch, NewEpoch, Precondition, PreconditionFailed, Redis, StoreMode,
};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::{Snapshot, Stamp};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::AsyncCommands;

use crate::support::{RedisRig, Rig, register};

/// What the scripts must do, in a few lines.
#[derive(Default)]
struct Model {
    floor: Stamp,
    slots: HashMap<u32, Stamp>,
    tags: HashMap<u32, Stamp>,
    values: HashMap<String, (String, Vec<String>)>,
}

impl Model {
    fn limit(&self, key: &str, tags: &[String]) -> Stamp {
        let own = self.slots.get(&slot(key.as_bytes())).copied().unwrap_or_default();
        let tags = tags.iter().filter_map(|tag| self.tags.get(&slot(tag.as_bytes())).copied());
        tags.chain([own, self.floor]).max().unwrap()
    }

    fn store(
        &mut self,
        stamp: Stamp,
        key: &str,
        value: Option<&str>,
        tags: &[String],
        is_backfill: bool,
    ) -> bool {
        if stamp < self.limit(key, tags) {
            return false;
        }
        if is_backfill {
            self.floor = self.floor.max(stamp);
        } else {
            self.raise(stamp, key);
        }
        match value {
            Some(value) => drop(self.values.insert(key.to_owned(), (value.to_owned(), tags.to_vec()))),
            None => drop(self.values.remove(key)),
        }
        true
    }

    fn raise(&mut self, stamp: Stamp, key: &str) {
        let entry = self.slots.entry(slot(key.as_bytes())).or_default();
        *entry = stamp.max(*entry);
    }
}

pub(crate) async fn begin(redis: &Redis) -> Epoch {
    let seen = redis.metadata("").await.unwrap();
    let snapshot: Snapshot = "5:5:".parse().unwrap();
    let new = NewEpoch {
        incarnation: "life",
        snapshot: &snapshot,
        reason: "test",
        datasets: &[],
        is_renewal: false,
        place: "",
        grace: None,
        was_covered: true,
    };
    let Creation::Created(epoch) = redis.create_epoch(&seen, &new).await.unwrap() else {
        panic!("not created")
    };
    register(redis, (&epoch, "life"), "d", ("r1", 1)).await;
    epoch
}

fn stamp(random: &mut StdRng) -> Stamp {
    // Around the bytes where a comparison of strings by collation goes wrong.
    let xmax = [5, 6, 90, 97, 127, 128, 255, 256, 511, 65_535, 65_536, 1 << 30][random.random_range(0..12)];
    Stamp::new(xmax, [0, 1, 2, 200, 300][random.random_range(0..5)]).unwrap()
}

async fn random_steps(redis: &RedisRig, seed: u64) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let store = redis.store();
    let epoch = begin(&store).await;
    let precondition = Precondition { epoch: &epoch, incarnation: "life", dataset: "d", revision: "r1" };
    let mut model = Model { floor: Stamp::new(5, 0).unwrap(), ..Model::default() };
    let mut memory = Memory::new(Stamp::new(5, 0).unwrap());
    let keys: Vec<String> = (0..8).map(|n| format!("k:{n}")).collect();
    let tags: Vec<String> = (0..3).map(|n| format!("t{n}")).collect();
    let mut client = redis.client().await;
    for step in 0..3_000 {
        let at = stamp(&mut random);
        let key = keys[random.random_range(0..keys.len())].clone();
        match random.random_range(0..10) {
            0..6 => {
                let chosen: Vec<String> =
                    tags.iter().filter(|_| random.random_ratio(1, 4)).cloned().collect();
                let is_backfill = random.random_ratio(1, 40);
                let value = (!random.random_ratio(1, 6)).then(|| format!("v{step}"));
                let mut batch = EntryBatch::default();
                let position = match &value {
                    Some(value) => batch.push(&key, value.as_bytes(), 600_000),
                    None => batch.push_gone(&key),
                };
                for tag in &chosen {
                    batch.tag(position, tag);
                }
                let mode = if is_backfill {
                    StoreMode::Floor { job: "", progress: "", members: None }
                } else {
                    StoreMode::Slots
                };
                let answer =
                    store.store(&precondition, at, &batch, Duration::from_secs(600), mode).await.unwrap();
                let Answer::Done(refused) = answer else { panic!("{answer:?}") };
                let in_memory =
                    if is_backfill { memory.store_page(at, &batch) } else { memory.store(at, &batch) };
                assert_eq!(in_memory, refused, "step {step}");
                let expected = model.store(at, &key, value.as_deref(), &chosen, is_backfill);
                // A backfill raises the floor also where its entries are refused one by one.
                if is_backfill {
                    model.floor = model.floor.max(at);
                }
                assert_eq!(refused.is_empty(), expected, "step {step}: store {key} at {at} with {chosen:?}");
            }
            6 => {
                let Answer::Done(existing) = store.raise(&precondition, at, &[&key], "").await.unwrap()
                else {
                    panic!()
                };
                model.raise(at, &key);
                assert_eq!(memory.raise(at, &[&key]), existing, "step {step}");
                assert_eq!(!existing.is_empty(), model.values.contains_key(&key), "step {step}");
            }
            7 => {
                let Answer::Done(existed) =
                    store.invalidate(&precondition, at, &[&key], "", "").await.unwrap()
                else {
                    panic!()
                };
                model.raise(at, &key);
                assert_eq!(memory.invalidate(at, &[&key]), existed, "step {step}");
                assert_eq!(existed == 1, model.values.remove(&key).is_some(), "step {step}");
            }
            _ => {
                let tag = &tags[random.random_range(0..tags.len())];
                let Answer::Done(sets) = store.raise_tags(&precondition, at, "", &[tag]).await.unwrap()
                else {
                    panic!()
                };
                let entry = model.tags.entry(slot(tag.as_bytes())).or_default();
                *entry = at.max(*entry);
                let mut members = Vec::new();
                for (set, _) in sets {
                    let found: Vec<String> = client.smembers(set).await.unwrap();
                    members.extend(found);
                }
                let in_memory = memory.raise_tag(at, tag);
                assert_eq!(in_memory, members.iter().cloned().collect(), "step {step}");
                for (key, (_, of)) in &model.values {
                    assert!(!of.contains(tag) || members.contains(key), "step {step}: {key} is not in {tag}");
                }
            }
        }
        let value: Option<String> = client.get(&key).await.unwrap();
        assert_eq!(memory.get(&key), value.as_deref().map(str::as_bytes), "step {step}: {key}");
        assert_eq!(value.as_ref(), model.values.get(&key).map(|(value, _)| value), "step {step}: {key}");
    }
}

#[tokio::test]
async fn the_scripts_decide_as_the_model() {
    let redis = RedisRig::start(&[]).await;
    random_steps(&redis, rand::random()).await;
}

#[tokio::test]
async fn the_scripts_decide_as_the_model_under_another_collation() {
    let redis = RedisRig::start_in_english().await;
    // The control: this server really compares strings by collation.
    let mut client = redis.client().await;
    let by_collation: i64 = redis::Script::new(
        "local n = 0 for i = 0, 255 do for j = 0, 255 do \
         if (string.char(i) < string.char(j)) ~= (i < j) then n = n + 1 end end end return n",
    )
    .invoke_async(&mut client)
    .await
    .unwrap();
    if by_collation == 0 {
        println!("the locale could not be made here, so this is the first test again");
    }
    random_steps(&redis, rand::random()).await;
}

#[tokio::test]
async fn whoever_does_not_know_the_epoch_changes_nothing() {
    let redis = RedisRig::start(&[]).await;
    let store = redis.store();
    let epoch = begin(&store).await;
    let mut client = redis.client().await;
    let at = Stamp::new(100, 0).unwrap();
    let mut batch = EntryBatch::default();
    batch.push("k:1", b"new", 10_000);
    let life = Duration::from_secs(600);
    let other = Epoch::random();
    let cases = [
        (&other, "life", "d", "r1", PreconditionFailed::Epoch),
        (&epoch, "another", "d", "r1", PreconditionFailed::Incarnation),
        (&epoch, "life", "d", "r2", PreconditionFailed::Revision),
        (&epoch, "life", "unknown", "r1", PreconditionFailed::Revision),
        (&epoch, "life", "d", "r1 1", PreconditionFailed::Outdated),
    ];
    let _: () = client.set("k:1", "old").await.unwrap();
    for (epoch, incarnation, dataset, revision, failed) in cases {
        let precondition = Precondition { epoch, incarnation, dataset, revision };
        let answer = store.store(&precondition, at, &batch, life, StoreMode::Slots).await.unwrap();
        assert_eq!(answer, Answer::Failed(failed));
        let value: String = client.get("k:1").await.unwrap();
        assert_eq!(value, "old");
    }
    // A delete is carried out in any case, and says that it must be repeated.
    let precondition = Precondition { epoch: &other, incarnation: "life", dataset: "d", revision: "r1" };
    assert_eq!(
        store.invalidate(&precondition, at, &["k:1"], "", "").await.unwrap(),
        Answer::Failed(PreconditionFailed::Epoch)
    );
    let left: bool = client.exists("k:1").await.unwrap();
    assert!(!left);
    // Tables that are evicted, cut or of another type never read as permission.
    let right = Precondition { epoch: &epoch, incarnation: "life", dataset: "d", revision: "r1" };
    let keys = store.keys().metadata().clone();
    for table in [&keys.stamps, &keys.tag_stamps, &keys.meta] {
        let kept: Vec<u8> = redis::cmd("DUMP").arg(table).query_async(&mut client).await.unwrap();
        for damage in ["missing", "zeros", "short", "other type"] {
            let _: () = client.del(table).await.unwrap();
            match damage {
                "zeros" if table != &keys.meta => {
                    let _: i64 = client.setrange(table, 1_048_583, "\0").await.unwrap();
                }
                "short" if table != &keys.meta => {
                    let _: () = client.set(table, "short").await.unwrap();
                }
                "other type" => {
                    let _: i64 = client.lpush(table, "x").await.unwrap();
                }
                _ => {}
            }
            let answer = store.store(&right, at, &batch, life, StoreMode::Slots).await.unwrap();
            assert_eq!(answer, Answer::Failed(PreconditionFailed::Table), "{table} {damage}");
            assert!(!store.metadata("").await.unwrap().is_whole, "{table} {damage}");
            let stored: bool = client.exists("k:1").await.unwrap();
            assert!(!stored);
        }
        let _: () = client.del(table).await.unwrap();
        let _: () = redis::cmd("RESTORE").arg(table).arg(0).arg(kept).query_async(&mut client).await.unwrap();
    }
    let answer = store.store(&right, at, &batch, life, StoreMode::Slots).await.unwrap();
    assert_eq!(answer, Answer::Done(vec![]));
}

#[tokio::test]
async fn full_redis_refuses_stores_and_carries_out_deletes() {
    let redis = RedisRig::start(&[]).await;
    let store = redis.store();
    let epoch = begin(&store).await;
    let precondition = Precondition { epoch: &epoch, incarnation: "life", dataset: "d", revision: "r1" };
    let (at, life) = (Stamp::new(100, 0).unwrap(), Duration::from_secs(600));
    let mut batch = EntryBatch::default();
    batch.push("k:1", b"value", 10_000);
    store.store(&precondition, at, &batch, life, StoreMode::Slots).await.unwrap();
    let mut client = redis.client().await;
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query_async(&mut client).await.unwrap();
    let error = store.store(&precondition, at, &batch, life, StoreMode::Slots).await.unwrap_err();
    assert_eq!(error.refusal, cachekeeper_engine::stores::redis::Refusal::Full, "{error}");
    assert_eq!(store.invalidate(&precondition, at, &["k:1"], "", "").await.unwrap(), Answer::Done(1));
    // An evicted table can be made again.
    let _: () = client.del(&store.keys().metadata().stamps).await.unwrap();
    begin(&store).await;
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(0).query_async(&mut client).await.unwrap();
    // A replica takes no writes, and says so.
    let _: () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async(&mut client).await.unwrap();
    let metadata = store.metadata("").await.unwrap();
    let epoch = metadata.epoch.unwrap();
    let precondition = Precondition { epoch: &epoch, ..precondition };
    let error = store.store(&precondition, at, &batch, life, StoreMode::Slots).await.unwrap_err();
    assert_eq!(error.refusal, cachekeeper_engine::stores::redis::Refusal::NotWritable, "{error}");
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_loaded_again() {
    let rig = Rig::start("").await;
    let context = rig.context("");
    let before = cachekeeper_engine::epoch::ensure(&context, "").await.unwrap();
    let mut client = rig.client().await;
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut client).await.unwrap();
    let after = cachekeeper_engine::epoch::ensure(&context, "").await.unwrap();
    assert_eq!(before.epoch, after.epoch);
}

/// A clock that was set back leaves windows beyond all that may be alive by its present time. To the scripts that is the same as
/// a member stored with a longer life than any that is announced.
#[tokio::test]
async fn members_of_a_tag_are_found_after_the_clock_was_set_back() {
    let redis = RedisRig::start(&[]).await;
    let store = redis.store();
    let epoch = begin(&store).await;
    let precondition = Precondition { epoch: &epoch, incarnation: "life", dataset: "d", revision: "r1" };
    let (at, life) = (Stamp::new(100, 0).unwrap(), Duration::from_secs(3_600));
    let mut batch = EntryBatch::default();
    let position = batch.push("k:1", b"value", 10_000);
    batch.tag(position, "red");
    store.store(&precondition, at, &batch, life, StoreMode::Slots).await.unwrap();
    let mut client = redis.client().await;
    let meta = &store.keys().metadata().meta;
    let fields: Vec<String> = client.hkeys(meta).await.unwrap();
    for span in fields.iter().filter(|field| field.starts_with("span:")) {
        let _: () = client.hset(meta, span, 1).await.unwrap();
    }
    let Answer::Done(sets) = store.raise_tags(&precondition, at, "", &["red"]).await.unwrap() else {
        panic!()
    };
    assert_eq!(sets.iter().map(|(_, size)| size).sum::<u64>(), 1, "{sets:?}");
    let sets = store.invalidate_tags(&["red"]).await.unwrap();
    assert_eq!(sets.iter().map(|(_, size)| size).sum::<u64>(), 1, "{sets:?}");
    // Something else in the place of the list does not matter while the lives tell.
    let _: () = client.set(&store.keys().metadata().windows, "garbage").await.unwrap();
    store.raise_tags(&precondition, at, "", &["red"]).await.unwrap();
}
