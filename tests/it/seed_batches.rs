//! The seed's patterns of many values at once, each seen where it happens: by the commands that Redis counts.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use cachekeeper_client::{Cache, Chaos, Fault, Place, Policy, SetManyOptions};
use futures_util::StreamExt;
use redis::AsyncCommands;
use serde::{Deserialize, Serialize, Serializer};
use tokio::time::Instant;

use crate::cache::{HOUR, Product, cache_of, product};
use crate::support::{RedisRig, carried_out, count_anew};

#[tokio::test]
async fn row_5_three_reads_and_a_question_are_one_transaction_sent_at_once() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    cache.set("product:1", &product(1), HOUR).await.unwrap();
    count_anew(&mut client).await;
    let mut batch = cache.batch();
    let found = batch.get::<Product>("product:1").unwrap();
    let reviews = batch.get::<Vec<u8>>("reviews:1").unwrap();
    let stock = batch.get::<u32>("stock:1").unwrap();
    let featured = batch.exists("featured:1").unwrap();
    let results = batch.run().await.unwrap();
    assert_eq!(results.value(&found).unwrap(), Some(product(1)));
    assert_eq!(results.value(&reviews).unwrap(), None);
    assert_eq!(results.value(&stock).unwrap(), None);
    assert!(!results.flag(&featured).unwrap());
    for (command, times) in [("multi", 1), ("exec", 1), ("mget", 3), ("exists", 1)] {
        assert_eq!(carried_out(&mut client, command).await, times, "{command}");
    }
}

/// A read model: what several entries make together.
#[derive(Debug, PartialEq)]
struct Details {
    product: Option<Product>,
    reviews: Vec<String>,
    stock: Option<u32>,
    is_featured: bool,
}

#[tokio::test]
async fn row_6_a_read_model_comes_from_one_batch_and_a_missing_list_is_an_empty_one() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let read = async |id: u32| {
        let mut batch = cache.batch();
        let product = batch.get(&format!("product:{id}")).unwrap();
        let reviews = batch.get::<Vec<String>>(&format!("reviews:{id}")).unwrap();
        let stock = batch.get(&format!("stock:{id}")).unwrap();
        let is_featured = batch.exists(&format!("featured:{id}")).unwrap();
        let results = batch.run().await.unwrap();
        Details {
            product: results.value(&product).unwrap(),
            reviews: results.value(&reviews).unwrap().unwrap_or_default(),
            stock: results.value(&stock).unwrap(),
            is_featured: results.flag(&is_featured).unwrap(),
        }
    };
    let nothing = Details { product: None, reviews: vec![], stock: None, is_featured: false };
    assert_eq!(read(7).await, nothing);
    cache.set("product:7", &product(7), HOUR).await.unwrap();
    cache.set("stock:7", &3, HOUR).await.unwrap();
    cache.set("featured:7", &true, HOUR).await.unwrap();
    let known = Details { product: Some(product(7)), stock: Some(3), is_featured: true, ..nothing };
    assert_eq!(read(7).await, known);
    cache.set("reviews:7", &["good"], HOUR).await.unwrap();
    assert_eq!(read(7).await, Details { reviews: vec!["good".to_owned()], ..known });
}

#[tokio::test]
async fn row_7_a_reader_beside_a_batch_sees_all_of_it_or_nothing() {
    let rig = RedisRig::start(&[]).await;
    let (writer, reader) = (cache_of(&rig), cache_of(&rig));
    let keys: Vec<String> = (0..20).map(|n| format!("part:{n}")).collect();
    let writing = tokio::spawn(async move {
        for version in 1..=200_u32 {
            let mut batch = writer.batch();
            // Each odd version is there as a whole, each even one is gone as a whole.
            for n in 0..20 {
                let key = format!("part:{n}");
                if version % 2 == 0 {
                    batch.delete(&key).unwrap();
                } else {
                    batch.set(&key, &version, HOUR).unwrap();
                }
            }
            batch.run().await.unwrap();
        }
    });
    let mut seen = BTreeSet::new();
    while !writing.is_finished() {
        let found = reader.get_many::<u32>(&keys).await.unwrap();
        assert!(found.iter().all(|value| *value == found[0]), "half of a batch: {found:?}");
        seen.insert(found[0]);
    }
    writing.await.unwrap();
    assert!(1 < seen.len(), "the reader saw nothing happen: {seen:?}");
}

#[tokio::test]
async fn row_22_many_values_are_one_command() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    cache.set("p:1", &product(1), HOUR).await.unwrap();
    count_anew(&mut client).await;
    let keys: Vec<String> = (0..500).map(|n| format!("p:{n}")).collect();
    let found = cache.get_many::<Product>(&keys).await.unwrap();
    assert_eq!(found.iter().flatten().count(), 1);
    assert_eq!(carried_out(&mut client, "mget").await, 1);
    assert_eq!(carried_out(&mut client, "get").await, 0);
}

#[tokio::test]
async fn row_31_and_38_each_chunk_is_one_transaction_whatever_its_size() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    let items: Vec<Product> = (0..2_345).map(product).collect();
    for (chunk, chunks) in [(1_000, 3), (250, 10), (7, 335), (5_000, 1), (0, 2_345)] {
        count_anew(&mut client).await;
        let options = SetManyOptions { chunk, ..SetManyOptions::ttl(HOUR) };
        let report = cache.set_all("item:", &items, options).await;
        assert_eq!((report.stored, report.chunks), (2_345, chunks), "{chunk}");
        assert_eq!(carried_out(&mut client, "exec").await, chunks as u64, "{chunk}");
        assert_eq!(carried_out(&mut client, "set").await, 2_345 + chunks as u64, "one more for the counters");
    }
    count_anew(&mut client).await;
    let report = cache.set_many(&[] as &[(String, u8)], SetManyOptions::ttl(HOUR)).await;
    assert_eq!((report.stored, report.chunks, report.is_complete()), (0, 0, true));
    assert_eq!(carried_out(&mut client, "exec").await, 0, "nothing to do, nothing sent");
}

#[tokio::test]
async fn row_33_what_is_reported_as_stored_is_there() {
    for refuses_older_fills in [true, false] {
        let rig = RedisRig::start(&[]).await;
        let (cache, mut client) = (cache_of(&rig), rig.client().await);
        let before: usize = redis::cmd("DBSIZE").query_async(&mut client).await.unwrap();
        let items: Vec<Product> = (0..1_234).map(product).collect();
        let options = SetManyOptions { refuses_older_fills, ..SetManyOptions::ttl(HOUR) };
        assert_eq!(cache.set_all("item:", &items, options).await.stored, 1_234);
        let after: usize = redis::cmd("DBSIZE").query_async(&mut client).await.unwrap();
        // The table of counters is the only other key.
        assert_eq!(after - before, 1_234 + usize::from(refuses_older_fills));
        let left: i64 = client.pttl("item:1233").await.unwrap();
        assert!(3_500_000 < left && left <= 3_600_000, "{left}");
    }
}

/// A cache whose user may write under `good:` only.
async fn restricted(rig: &RedisRig) -> Cache {
    let mut client = rig.client().await;
    let _: () = redis::cmd("ACL")
        .arg(&["SETUSER", "app", "on", ">secret", "~good:*", "~ck:*", "&*", "+@all"])
        .query_async(&mut client)
        .await
        .unwrap();
    let url = rig.redis.url().replace("redis://", "redis://app:secret@");
    Cache::connect(&url, "test").unwrap().build()
}

#[tokio::test]
async fn row_34_exactly_the_keys_that_were_refused_are_named_with_the_reason() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (restricted(&rig).await, rig.client().await);
    let items: Vec<(String, u32)> =
        (0..100).map(|n| (format!("{}:{n}", if n % 10 == 3 { "bad" } else { "good" }), n)).collect();
    let plain = SetManyOptions { refuses_older_fills: false, chunk: 30, ..SetManyOptions::ttl(HOUR) };
    let report = cache.set_many(&items, plain).await;
    let failed: BTreeSet<&str> = report.failed.iter().map(|(key, _)| key.as_str()).collect();
    let expected: BTreeSet<String> = (0..10).map(|n| format!("bad:{}", n * 10 + 3)).collect();
    assert_eq!(failed, expected.iter().map(String::as_str).collect());
    assert_eq!(report.stored, 90);
    for (key, reason) in &report.failed {
        assert!(reason.contains("rights"), "{key}: {reason}");
    }
    let keys: Vec<String> = client.keys("good:*").await.unwrap();
    assert_eq!(keys.len(), 90);
}

#[tokio::test]
async fn row_40_a_chunk_that_is_refused_is_counted_and_the_others_are_stored() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (restricted(&rig).await, rig.client().await);
    let items: Vec<(String, u32)> =
        (0..100).map(|n| (format!("{}:{n}", if n == 42 { "bad" } else { "good" }), n)).collect();
    let options = SetManyOptions { chunk: 10, ..SetManyOptions::ttl(HOUR) };
    let report = cache.set_many(&items, options).await;
    // A chunk is one step: with one of its keys refused, none of them is stored.
    assert_eq!((report.stored, report.failed.len(), report.chunks), (90, 10, 10));
    assert!(!report.is_complete());
    let failed: BTreeSet<&str> = report.failed.iter().map(|(key, _)| key.as_str()).collect();
    assert!(failed.contains("bad:42") && failed.contains("good:40") && failed.contains("good:49"));
    let keys: Vec<String> = client.keys("good:*").await.unwrap();
    assert_eq!(keys.len(), 90);
}

/// With each chunk a second late, the clock that only moves when all wait tells how many were on their way together.
#[tokio::test(start_paused = true)]
async fn row_35_and_39_so_many_chunks_go_together_and_the_whole_time_is_told() {
    let items: Vec<(String, u32)> = (0..100).map(|n| (format!("n:{n}"), n)).collect();
    for (parallel, seconds) in [(1, 10), (2, 5), (3, 4), (8, 2), (100, 1), (0, 10)] {
        let chaos = Chaos::with_seed(1);
        let cache = Cache::in_memory().chaos(chaos.clone()).build();
        chaos.set(Place::Redis, Fault::Delay(Duration::from_secs(1)), 1.0);
        let options = SetManyOptions { chunk: 10, parallel, ..SetManyOptions::ttl(HOUR) };
        let began = Instant::now();
        let report = cache.set_many(&items, options).await;
        assert_eq!(report.stored, 100);
        assert_eq!(began.elapsed(), Duration::from_secs(seconds), "{parallel} at a time");
        assert_eq!(report.elapsed, began.elapsed());
    }
}

/// Notes by which thread it is written.
struct Watched(Arc<Mutex<BTreeSet<String>>>);

impl Serialize for Watched {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let thread: ThreadId = std::thread::current().id();
        self.0.lock().unwrap().insert(format!("{thread:?}"));
        serializer.serialize_u8(1)
    }
}

#[tokio::test]
async fn row_55_few_values_are_written_by_one_thread_and_many_by_all_cores() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let cache = Cache::in_memory().build();
    // So many chunks, in equal shares.
    let shares = |chunks: usize| chunks.div_ceil(chunks.div_ceil(cores));
    for (count, threads) in [(999, 1), (1_000, shares(4)), (5_000, shares(20))] {
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let items: Vec<(String, Watched)> =
            (0..count).map(|n| (format!("n:{n}"), Watched(Arc::clone(&seen)))).collect();
        let report = cache.set_many(&items, SetManyOptions::ttl(HOUR)).await;
        assert_eq!(report.stored, count);
        let used = seen.lock().unwrap().len();
        assert_eq!(used, threads, "{count} values on {cores} cores");
    }
}

#[derive(Debug, PartialEq, Deserialize)]
struct Small(u32);

#[tokio::test]
async fn many_entries_are_deleted_by_one_call_and_their_number_is_told() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    let items: Vec<(String, u32)> = (0..600).map(|n| (format!("n:{n}"), n)).collect();
    cache.set_many(&items, SetManyOptions::ttl(HOUR)).await;
    cache.delete("n:5").await.unwrap();
    count_anew(&mut client).await;
    let keys: Vec<&str> = items.iter().map(|(key, _)| key.as_str()).take(500).collect();
    assert_eq!(cache.delete_many(&keys).await.unwrap(), 499);
    assert_eq!(carried_out(&mut client, "evalsha").await, 2, "a script for each 256 keys");
    assert_eq!(cache.delete_many(&[] as &[&str]).await.unwrap(), 0);
    assert_eq!(cache.delete_many(&keys).await.unwrap(), 0);
    assert_eq!(cache.get::<Small>("n:500").await.unwrap(), Some(Small(500)));
    assert!(cache.delete_many(&["n:500", ""]).await.is_err());
    assert!(cache.exists("n:500").await.unwrap(), "a call with a key that cannot be deletes nothing");
}

/// The most words of a command that Redis has carried out meanwhile.
async fn longest_command(rig: &RedisRig, during: impl Future<Output = ()>) -> usize {
    let monitor = redis::Client::open(rig.redis.url()).unwrap().get_async_monitor().await.unwrap();
    let end = format!("end:{}", rig.redis.url());
    let watched = tokio::spawn({
        let end = end.clone();
        async move {
            let mut lines = monitor.into_on_message::<String>();
            let mut longest = 0;
            while let Some(line) = lines.next().await {
                if line.contains(&end) {
                    break;
                }
                longest = longest.max(line.matches("\" \"").count() + 1);
            }
            longest
        }
    });
    during.await;
    let _: Option<String> = rig.client().await.get(end).await.unwrap();
    watched.await.unwrap()
}

#[tokio::test]
async fn row_30_a_tag_of_very_many_members_is_invalidated_by_small_commands() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = cache.space::<u32, u32>("n").policy(Policy::ttl(HOUR).tags(["all"])).build().unwrap();
    let numbers: Vec<u32> = (0..20_000).collect();
    let report = space.set_many(numbers.iter().map(|number| (number, number))).await.unwrap();
    assert_eq!(report.stored, 20_000);
    let longest = longest_command(&rig, async {
        assert_eq!(cache.invalidate_tags(&["all"]).await.unwrap(), 20_000);
    });
    // Between two of them Redis serves others: a page has 256 keys, and the counter of each is raised by four words.
    let longest = longest.await;
    assert!((256..1_100).contains(&longest), "a command of {longest} words");
    assert!(!space.exists(&7).await.unwrap());
}
