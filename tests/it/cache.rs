//! The library's single operations against a real Redis, row by row of the seed's patterns.

use std::time::{Duration, SystemTime};

use cachekeeper_client::{
    Cache, ClientError, Identified, Lifetime, Read, SetManyOptions, Sliding, ValueFormat,
};
use cachekeeper_config::{Codec, Compression};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use crate::support::RedisRig;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Product {
    pub id: u32,
    pub name: String,
    pub price_cents: i64,
}

impl Identified for Product {
    fn id(&self) -> impl std::fmt::Display {
        self.id
    }
}

pub fn product(id: u32) -> Product {
    Product { id, name: format!("product {id}"), price_cents: 999 }
}

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn cache_of(rig: &RedisRig) -> Cache {
    Cache::connect(&rig.redis.url(), "test").unwrap().build()
}

async fn left(rig: &RedisRig, key: &str) -> i64 {
    rig.client().await.pttl(key).await.unwrap()
}

#[tokio::test]
async fn row_1_a_value_is_read_and_a_broken_one_is_a_miss() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    assert_eq!(cache.get::<Product>("product:1").await.unwrap(), None);
    cache.set("product:1", &product(1), HOUR).await.unwrap();
    assert_eq!(cache.get::<Product>("product:1").await.unwrap(), Some(product(1)));
    let _: () = rig.client().await.set("product:1", b"\x83broken").await.unwrap();
    assert!(matches!(cache.read::<Product>("product:1").await, Read::Miss));
    let metrics = cache.render_metrics().unwrap();
    assert!(metrics.contains(r#"reads_total{dataset="none",outcome="undecodable"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"reads_total{dataset="none",outcome="hit"} 1"#), "{metrics}");
}

#[tokio::test]
async fn row_5_operations_of_different_types_go_in_one_round_trip() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.set("product:1", &product(1), HOUR).await.unwrap();
    cache.set("name:1", "Ada", HOUR).await.unwrap();
    let mut batch = cache.batch();
    let found = batch.get::<Product>("product:1").unwrap();
    let name = batch.get::<String>("name:1").unwrap();
    let missing = batch.get::<Product>("product:2").unwrap();
    let exists = batch.exists("name:1").unwrap();
    let results = batch.run().await.unwrap();
    assert_eq!(results.value(&found).unwrap(), Some(product(1)));
    assert_eq!(results.value(&name).unwrap().as_deref(), Some("Ada"));
    assert_eq!(results.value(&missing).unwrap(), None);
    assert!(results.flag(&exists).unwrap());
}

#[tokio::test]
async fn row_6_a_handle_of_another_batch_or_type_is_an_error() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.set("name:1", "Ada", HOUR).await.unwrap();
    let (mut one, mut other) = (cache.batch(), cache.batch());
    let in_one = one.get::<u64>("name:1").unwrap();
    let in_other = other.get::<String>("name:1").unwrap();
    let results = one.run().await.unwrap();
    assert!(matches!(results.value(&in_other), Err(ClientError::Handle)));
    assert!(matches!(results.value(&in_one), Err(ClientError::Decode { .. })));
    assert_eq!(
        cache.batch().run().await.unwrap().value(&in_one).unwrap_err().to_string(),
        ClientError::Handle.to_string()
    );
}

#[tokio::test]
async fn row_7_stores_with_their_own_lifetimes_and_a_delete_are_one_step() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.set("old", "x", HOUR).await.unwrap();
    let mut batch = cache.batch();
    batch.set("product:1", &product(1), HOUR).unwrap();
    batch.set("reviews:1", &vec![5, 4], Duration::from_secs(1800)).unwrap();
    batch.set("stock:1", &7, Duration::from_secs(300)).unwrap();
    let deleted = batch.delete("old").unwrap();
    assert!(batch.run().await.unwrap().flag(&deleted).unwrap());
    for (key, life) in [("product:1", 3_600_000), ("reviews:1", 1_800_000), ("stock:1", 300_000)] {
        let left = left(&rig, key).await;
        assert!((life - 10_000..=life).contains(&left), "{key}: {left}");
    }
    assert!(!cache.exists("old").await.unwrap());
    // All or none: with no memory left, nothing of it is stored.
    let mut client = rig.client().await;
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query_async(&mut client).await.unwrap();
    let mut batch = cache.batch();
    batch.set("a", "1", HOUR).unwrap();
    batch.delete("product:1").unwrap();
    let refused = batch.run().await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("maxmemory"), "{refused:?}");
    // What should have been replaced or deleted is gone all the same: deletes need no memory.
    assert!(!cache.exists("a").await.unwrap() && !cache.exists("product:1").await.unwrap());
}

#[tokio::test]
async fn row_21_a_read_extends_a_sliding_entry_up_to_its_end_and_a_miss_does_nothing() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let idle = Sliding::idle(Duration::from_secs(1200));
    assert_eq!(cache.get_sliding::<String>("session:1", idle).await.unwrap(), None);
    assert!(!cache.exists("session:1").await.unwrap());
    cache.set("session:1", "Ada", Duration::from_secs(60)).await.unwrap();
    assert_eq!(cache.get_sliding::<String>("session:1", idle).await.unwrap().as_deref(), Some("Ada"));
    assert!(1_100_000 < left(&rig, "session:1").await);
    let capped = Sliding { until: Some(SystemTime::now() + Duration::from_secs(100)), ..idle };
    assert!(cache.get_sliding::<String>("session:1", capped).await.unwrap().is_some());
    assert!(left(&rig, "session:1").await <= 100_000);
    // One round trip: one command.
    let mut client = rig.client().await;
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut client).await.unwrap();
    cache.get_sliding::<String>("session:1", idle).await.unwrap();
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut client).await.unwrap();
    assert!(stats.contains("cmdstat_getex:calls=1"), "{stats}");
}

#[tokio::test]
async fn row_22_many_values_come_aligned_with_their_keys_in_one_command() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.set("p:1", &product(1), HOUR).await.unwrap();
    cache.set("p:3", &product(3), HOUR).await.unwrap();
    let values = cache.get_many::<Product>(&["p:1", "p:2", "p:3", "p:1"]).await.unwrap();
    assert_eq!(values, [Some(product(1)), None, Some(product(3)), Some(product(1))]);
    assert_eq!(cache.get_many::<Product>(&[] as &[&str]).await.unwrap(), []);
}

#[tokio::test]
async fn row_25_and_26_lifetimes_are_relative_absolute_or_endless() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.set("k", "v", Duration::from_millis(1_800_123)).await.unwrap();
    assert!((1_790_000..=1_800_123).contains(&left(&rig, "k").await));
    cache.set("k", "v", SystemTime::now() + Duration::from_secs(50)).await.unwrap();
    assert!((40_000..=50_000).contains(&left(&rig, "k").await));
    cache.set("k", "v", Lifetime::Forever).await.unwrap();
    assert_eq!(left(&rig, "k").await, -1);
    cache.set("k", "v", SystemTime::UNIX_EPOCH).await.unwrap();
    assert!(!cache.exists("k").await.unwrap());
    cache.set("k", "v", Duration::MAX).await.unwrap();
    assert_eq!(left(&rig, "k").await, -1);
}

#[tokio::test]
async fn row_29_and_30_a_tag_takes_all_its_members_and_only_them() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    for id in 0..600 {
        let tags = if id % 2 == 0 { vec!["even", "all"] } else { vec!["all"] };
        cache.set_with_tags(&format!("n:{id}"), &id, HOUR, &tags).await.unwrap();
    }
    cache.set("n:free", &1, HOUR).await.unwrap();
    assert_eq!(cache.invalidate_tags(&["even"]).await.unwrap(), 300);
    assert_eq!(cache.invalidate_tags(&["even"]).await.unwrap(), 0);
    assert_eq!(cache.invalidate_tags(&["unknown"]).await.unwrap(), 0);
    assert!(cache.exists("n:1").await.unwrap() && !cache.exists("n:2").await.unwrap());
    assert_eq!(cache.invalidate_tags(&["all"]).await.unwrap(), 300);
    assert!(cache.exists("n:free").await.unwrap());
    // Tagged again with a long life after a short one: the long one is still a member.
    cache.set_with_tags("long", "x", HOUR, &["mixed"]).await.unwrap();
    cache.set_with_tags("short", "x", Duration::from_millis(50), &["mixed"]).await.unwrap();
    crate::support::wait_until("the short one ends", async || {
        if cache.exists("short").await.unwrap() { Err("it is still there".to_owned()) } else { Ok(()) }
    })
    .await;
    assert_eq!(cache.invalidate_tags(&["mixed"]).await.unwrap(), 1);
    assert!(!cache.exists("long").await.unwrap());
}

#[tokio::test]
async fn rows_31_to_41_many_values_are_stored_in_chunks_with_a_report() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let items: Vec<Product> = (0..2_345).map(product).collect();
    for refuses_older_fills in [true, false] {
        let options = SetManyOptions { refuses_older_fills, ..SetManyOptions::ttl(HOUR) };
        let report = cache.set_all("item:", &items, options).await;
        assert_eq!((report.stored, report.failed.len()), (2_345, 0));
        assert!(report.is_complete() && Duration::ZERO < report.elapsed);
        assert_eq!(cache.get::<Product>("item:2344").await.unwrap(), Some(product(2_344)));
        assert!(left(&rig, "item:7").await <= 3_600_000);
    }
    let empty = cache.set_many(&[] as &[(String, u8)], SetManyOptions::ttl(HOUR)).await;
    assert_eq!(empty.stored, 0);
    // Some fail, by name and with the reason; the others are stored.
    let mixed = [("good", 1.5), ("", 2.0), ("ck:{test:0}:meta", 3.0)];
    let report = cache.set_many(&mixed, SetManyOptions::ttl(HOUR)).await;
    assert_eq!(report.stored, 1);
    assert_eq!(report.failed.len(), 2);
    assert!(report.failed[1].1.contains("reserved"), "{:?}", report.failed);
    // A value of another type under the key is no obstacle, neither is one that cannot be stored unnoticed.
    let mut client = rig.client().await;
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query_async(&mut client).await.unwrap();
    for refuses_older_fills in [true, false] {
        let options = SetManyOptions { refuses_older_fills, ..SetManyOptions::ttl(HOUR) };
        let report = cache.set_all("item:", &items[..10], options).await;
        assert_eq!((report.stored, report.failed.len()), (0, 10));
        assert!(report.failed[0].1.contains("memory is full"), "{:?}", report.failed[0]);
        assert!(
            !cache.exists("item:3").await.unwrap(),
            "an old value stayed although its successor was refused"
        );
    }
}

#[tokio::test]
async fn row_52_large_values_are_standard_frames_and_small_ones_plain() {
    let rig = RedisRig::start(&[]).await;
    for codec in [Codec::Zstd, Codec::Lz4] {
        let compression = Compression { codec, min_size: 1_000 };
        let cache = Cache::connect(&rig.redis.url(), "test").unwrap().compression(compression).build();
        let long = "word ".repeat(1_000);
        cache.set("long", &long, HOUR).await.unwrap();
        cache.set("short", "word", HOUR).await.unwrap();
        assert_eq!(cache.get::<String>("long").await.unwrap(), Some(long));
        let bytes = cache.get_bytes("long").await.unwrap().unwrap();
        assert!(bytes.len() < 500, "{}", bytes.len());
        assert_eq!(cache.get_bytes("short").await.unwrap().unwrap(), b"\xa4word");
    }
}

#[tokio::test]
async fn keys_and_values_of_any_shape_come_back_as_they_were() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let long = "k".repeat(10 * 1024);
    for key in ["k", " ", "a b\nc\r\n{d}*[e]?", "ключ:🦀", "{", &long] {
        for value in ["", "v", "\u{0}\n"] {
            cache.set_with_tags(key, value, HOUR, &["tag with {braces}\n", "🦀"]).await.unwrap();
            assert_eq!(cache.get::<String>(key).await.unwrap().as_deref(), Some(value), "{key:?}");
        }
        assert!(cache.delete(key).await.unwrap() && !cache.delete(key).await.unwrap());
    }
    cache.set_bytes("empty", b"", HOUR, &[] as &[&str]).await.unwrap();
    assert_eq!(cache.get_bytes("empty").await.unwrap().as_deref(), Some(b"".as_slice()));
    assert!(matches!(cache.read::<String>("empty").await, Read::Miss));
    let large = vec![7_u8; 50 << 20];
    cache.set_bytes("large", &large, HOUR, &["t"]).await.unwrap();
    assert_eq!(cache.get_bytes("large").await.unwrap().map(|bytes| bytes.len()), Some(large.len()));
    assert!(matches!(cache.get::<String>("").await, Err(ClientError::Key { .. })));
    let reserved = cache.set("ck:{test:0}:meta", "x", HOUR).await.unwrap_err().to_string();
    assert!(reserved.contains("reserved"), "{reserved}");
}

#[tokio::test]
async fn other_languages_read_and_write_the_same_bytes() {
    let rig = RedisRig::start(&[]).await;
    let cache = Cache::connect(&rig.redis.url(), "test").unwrap().format(ValueFormat::Json).build();
    cache.set("product:1", &product(1), HOUR).await.unwrap();
    let mut client = rig.client().await;
    let text: String = client.get("product:1").await.unwrap();
    assert_eq!(text, r#"{"id":1,"name":"product 1","price_cents":999}"#);
    let _: () =
        client.set("product:2", r#"{"id":2,"name":"product 2","price_cents":999,"new":1}"#).await.unwrap();
    assert_eq!(cache.get::<Product>("product:2").await.unwrap(), Some(product(2)));
    let _: () = client.set("none", "null").await.unwrap();
    assert!(matches!(cache.read::<Product>("none").await, Read::Negative));
}

#[tokio::test]
async fn an_application_of_an_older_version_misses_what_it_cannot_read_and_goes_on() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Newer {
        id: String,
        price: Price,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Price {
        Cents(i64),
    }
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let newer = Newer { id: "a".to_owned(), price: Price::Cents(1) };
    cache.set("product:1", &newer, HOUR).await.unwrap();
    let policy = cachekeeper_client::Policy::ttl(HOUR);
    let load = async || Ok::<_, std::io::Error>(Some(product(1)));
    assert_eq!(cache.get::<Product>("product:1").await.unwrap(), None);
    let loaded = cache.get_or_load::<Product, _, _, _, _>("product:1", &policy, load).await.unwrap();
    assert_eq!(loaded, Some(product(1)));
    // Truncated at every length, and with bytes behind: never a panic, never half a value.
    let bytes = cache.get_bytes("product:1").await.unwrap().unwrap();
    for length in 0..bytes.len() {
        cache.set_bytes("cut", &bytes[..length], HOUR, &[] as &[&str]).await.unwrap();
        assert_eq!(cache.get::<Product>("cut").await.unwrap(), None, "{length} bytes");
    }
    cache.set_bytes("cut", &[bytes.as_slice(), b"\x01"].concat(), HOUR, &[] as &[&str]).await.unwrap();
    assert_eq!(cache.get::<Product>("cut").await.unwrap(), None);
}
