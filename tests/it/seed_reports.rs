//! The seed's patterns of what is told: log lines, measures, slow operations.

use std::time::Duration;

use cachekeeper_client::{Cache, Chaos, Fault, Place, SetManyOptions};
use serde::{Deserialize, Deserializer};

use crate::cache::{HOUR, cache_of};
use crate::support::{Captured, RedisRig};

#[tokio::test]
async fn row_36_and_37_the_log_says_how_many_were_stored_and_which_were_not() {
    let captured = Captured::default();
    let guard = tracing::subscriber::set_default(captured.subscriber());
    let cache = Cache::in_memory().build();
    let options = SetManyOptions { chunk: 2, ..SetManyOptions::ttl(HOUR) };
    let good = [("a", 1), ("b", 2), ("c", 3)];
    cache.set_many(&good, options).await;
    cache.set_many(&[("a", 1), ("ck:{x}", 2), ("c", 3)], options).await;
    cache.set_many(&[("ck:{x}", 1), ("", 2)], options).await;
    drop(guard);
    let one = |message: &str| {
        let mut events = captured.events(message);
        assert_eq!(events.len(), 1, "{message}: {}", captured.text());
        events.remove(0)
    };
    let all = one("values stored");
    assert_eq!(all["level"], "INFO");
    // Numbers arrive as numbers, so that whoever collects the lines can count.
    assert_eq!((&all["fields"]["stored"], &all["fields"]["chunks"]), (&3.into(), &2.into()), "{all}");
    assert!(all["fields"]["elapsed_ms"].is_u64(), "{all}");
    let some = one("some values were not stored");
    assert_eq!(some["level"], "WARN");
    assert_eq!((&some["fields"]["stored"], &some["fields"]["wanted"]), (&2.into(), &3.into()), "{some}");
    assert!(some["fields"]["names"].as_str().unwrap().contains("ck:{x}"), "{some}");
    assert!(some["fields"]["reason"].as_str().unwrap().contains("reserved"), "{some}");
    let none = one("no value was stored");
    assert_eq!(none["level"], "ERROR");
    assert_eq!((&none["fields"]["failed"], &none["fields"]["wanted"]), (&2.into(), &2.into()), "{none}");
}

/// The number behind a line of the metrics.
fn measured(cache: &Cache, name: &str, labels: &str) -> f64 {
    let text = cache.render_metrics().unwrap();
    let line = text.lines().find(|line| line.contains(&format!("{name}{{{labels}}}")));
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn row_43_to_46_reads_are_timed_by_dataset_and_slow_ones_are_told_by_key_in_the_log_alone() {
    const OWN: &str = r#"dataset="none""#;
    let captured = Captured::default();
    let guard = tracing::subscriber::set_default(captured.subscriber());
    let chaos = Chaos::with_seed(1);
    let cache = Cache::in_memory().chaos(chaos.clone()).slow_from(Duration::from_millis(200)).build();
    cache.set("secret:1", &1, HOUR).await.unwrap();
    let outcome = |outcome: &str| measured(&cache, "reads_total", &format!(r#"{OWN},outcome="{outcome}""#));
    chaos.set(Place::Redis, Fault::Delay(Duration::from_millis(150)), 1.0);
    assert_eq!(cache.get::<u32>("secret:1").await.unwrap(), Some(1));
    assert_eq!(cache.get::<u32>("secret:2").await.unwrap(), None);
    assert_eq!(measured(&cache, "read_duration_seconds_count", OWN), 2.0);
    let sum = measured(&cache, "read_duration_seconds_sum", OWN);
    assert!((0.299..0.301).contains(&sum), "{sum}");
    assert_eq!(measured(&cache, "slow_operations_total", OWN), 0.0, "not from 200 ms on");
    // Slow, and an error as well.
    chaos.calm();
    chaos.set(Place::Redis, Fault::Delay(Duration::from_millis(250)), 1.0);
    chaos.set(Place::Redis, Fault::Fail, 1.0);
    assert!(cache.get::<u32>("secret:3").await.is_err());
    assert_eq!((outcome("hit"), outcome("miss"), outcome("unavailable")), (1.0, 1.0, 1.0));
    assert_eq!(measured(&cache, "slow_operations_total", OWN), 1.0);
    assert!(!cache.render_metrics().unwrap().contains("secret"), "no key is a label");
    drop(guard);
    let slow = captured.events("slow cache operations");
    assert_eq!(slow.len(), 1, "{}", captured.text());
    assert_eq!((&slow[0]["level"], &slow[0]["fields"]["key"]), (&"WARN".into(), &"secret:3".into()));
    assert_eq!(slow[0]["fields"]["elapsed_ms"], 250);
}

/// Takes its time to be read.
struct Laborious;

impl<'de> Deserialize<'de> for Laborious {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::thread::sleep(Duration::from_secs(2));
        u8::deserialize(deserializer).map(|_| Self)
    }
}

#[tokio::test]
async fn row_47_only_the_operation_is_timed_and_not_what_is_made_of_its_reply() {
    let rig = RedisRig::start(&[]).await;
    let cache = Cache::connect(&rig.redis.url(), "test").unwrap().slow_from(Duration::from_secs(1)).build();
    cache.set("k", &1, HOUR).await.unwrap();
    assert!(cache.get::<Laborious>("k").await.unwrap().is_some());
    let own = r#"dataset="none""#;
    assert_eq!(measured(&cache, "read_duration_seconds_count", own), 1.0);
    let sum = measured(&cache, "read_duration_seconds_sum", own);
    assert!(sum < 2.0, "{sum}");
    assert_eq!(measured(&cache, "slow_operations_total", own), 0.0);
}

#[tokio::test]
async fn row_25_a_life_counts_in_milliseconds() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    cache.set("k", "v", Duration::from_millis(600_500)).await.unwrap();
    let left: i64 = redis::cmd("PTTL").arg("k").query_async(&mut client).await.unwrap();
    let seconds: i64 = redis::cmd("TTL").arg("k").query_async(&mut client).await.unwrap();
    assert!(left <= 600_500 && 590_000 < left, "{left}");
    assert!(seconds <= 601, "{seconds}");
    // Less than the smallest unit is one of it, and not none.
    cache.set("k", "v", Duration::from_nanos(1)).await.unwrap();
    let life = redis::cmd("PTTL").arg("k").query_async::<i64>(&mut client).await.unwrap();
    assert!(life <= 1, "{life}");
}
