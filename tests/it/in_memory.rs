//! The cache in memory, for an application's own tests: locks, channels, events and datasets as with servers.

use std::time::Duration;

use cachekeeper_client::{Cache, ClientError, Event, Heard, HeardMessage, LockOptions, Parameters, Registry};
use tokio::time::advance;

use crate::cache::HOUR;

const LIFE: Duration = Duration::from_secs(10);

fn shop() -> Cache {
    Cache::in_memory().dataset("product", "product:{id}", HOUR).unwrap().build()
}

#[tokio::test(start_paused = true)]
async fn locks_exclude_each_other_and_end_by_release_lifetime_or_longest_hold() {
    let cache = Cache::in_memory().build();
    let locks = cache.locks();
    let first = locks.acquire_all(&["b", "a", "a"], LockOptions::default()).await.unwrap();
    assert_eq!(first.names().collect::<Vec<_>>(), ["a", "b"]);
    assert!(locks.try_acquire("b", LIFE).await.unwrap().is_none());
    // Renewed while it is held.
    advance(HOUR).await;
    assert!(first.is_held() && locks.try_acquire("a", LIFE).await.unwrap().is_none());
    assert!(!locks.wait_for_unlock("a", Duration::from_millis(10)).await.unwrap());
    assert!(first.release().await.unwrap());
    let unrenewed = LockOptions { life: LIFE, is_renewed: false, ..LockOptions::default() };
    let second = locks.acquire("a", unrenewed).await.unwrap();
    let held = locks.acquire("a", LockOptions { wait: Duration::ZERO, ..unrenewed }).await.unwrap_err();
    assert!(held.is_held() && held.to_string().contains("10s"), "{held}");
    let token = second.token();
    let third = locks.acquire("a", LockOptions { wait: LIFE * 2, ..unrenewed }).await.unwrap();
    assert!(token < third.token() && second.lost().is_cancelled() && !second.is_held());
    assert!(!second.release().await.unwrap(), "it had ended");
    assert!(third.is_held(), "what had ended before does not end another's");
    drop(third);
    let short = LockOptions { max_hold: Some(LIFE), ..LockOptions::default() };
    let fourth = locks.acquire("a", short).await.unwrap();
    fourth.lost().cancelled().await;
    assert!(locks.try_acquire("a", LIFE).await.unwrap().is_some());
}

#[tokio::test]
async fn messages_and_events_are_heard_and_events_are_applied() {
    let cache = Cache::in_memory().channel("changes").prefixes(["a", "b", "c"]).build();
    let mut events = cache.events().await.unwrap();
    let mut messages = cache.subscribe_to::<u32>(&["news"]).await.unwrap();
    assert_eq!(cache.publish_to("news", &7).await.unwrap(), 1);
    assert_eq!(cache.publish_to("nobody", &7).await.unwrap(), 0);
    assert_eq!(cache.publish_to("news", "text").await.unwrap(), 1);
    assert!(matches!(messages.next().await, HeardMessage::Message(channel, 7) if channel == "news"));
    assert!(matches!(messages.next().await, HeardMessage::Invalid(..)));
    for key in ["a", "b", "c"] {
        cache.set_with_tags(key, &1, HOUR, &[format!("tag:{key}")]).await.unwrap();
    }
    let event = Event { keys: vec!["a".into()], tags: vec!["tag:b".into()], ..Event::default() };
    assert_eq!(cache.publish(&event).await.unwrap(), 1);
    assert!(matches!(events.next().await, Heard::Event(heard) if heard.keys == ["a"]));
    let left = cache.get_many::<u32>(&["a", "b", "c"]).await.unwrap();
    assert_eq!(left, [None, None, Some(1)]);
    // A worker leaves keys alone that nobody has registered, and so does this.
    cache.set("other", &1, HOUR).await.unwrap();
    let event = Event { keys: vec!["other".into()], ..Event::default() };
    cache.publish(&event).await.unwrap();
    assert_eq!(cache.get::<u32>("other").await.unwrap(), Some(1));
    for n in 0..2_000 {
        cache.publish_to("news", &n).await.unwrap();
    }
    assert!(matches!(messages.next().await, HeardMessage::Gap), "who is far behind is told");
}

#[tokio::test]
async fn a_dataset_is_loaded_from_its_rows_and_follows_them() {
    let cache = shop();
    let rows = cache.rows::<u32>("product").unwrap();
    let products = cache.dataset("product").unwrap().space::<u32, u32>().build().unwrap();
    assert_eq!(products.get(&1).await.unwrap(), None, "there is no row");
    for (id, price) in [("1", 10), ("2", 20), ("3", 30)] {
        rows.put(&[id], &price, &["category:1"]).unwrap();
    }
    let many = products.get_many(&[&1, &2, &3, &4]).await.unwrap();
    assert_eq!(many, [Some(10), Some(20), Some(30), None]);
    let loads = rows.loads();
    assert_eq!(products.get(&1).await.unwrap(), Some(10));
    assert_eq!(rows.loads(), loads, "it is in the cache");
    rows.put(&["1"], &11, &[]).unwrap();
    assert_eq!(cache.get::<u32>("product:1").await.unwrap(), Some(11), "replaced where it was in the cache");
    rows.remove(&["2"]).unwrap();
    assert_eq!(products.get(&2).await.unwrap(), None);
    assert_eq!(cache.invalidate_tags(&["category:1"]).await.unwrap(), 2, "1, which left the tag late, and 3");
    assert_eq!(cache.get::<u32>("product:3").await.unwrap(), None);
    assert_eq!(products.get(&3).await.unwrap(), Some(30));
    let event = Event { dataset: Some("product".into()), ..Event::default() };
    cache.publish(&event).await.unwrap();
    assert!(!cache.exists("product:3").await.unwrap());
    assert_eq!(products.get(&3).await.unwrap(), Some(30));
    cache.delete("product:3").await.unwrap();
    assert!(!cache.exists("product:3").await.unwrap());
    let refused = cache.set("product:1", &1, HOUR).await.unwrap_err();
    assert!(matches!(refused, ClientError::OfDataset { .. }), "{refused}");
}

#[tokio::test]
async fn what_a_cache_in_memory_cannot_do_it_says() {
    let cache = shop();
    let dataset = cache.dataset("product").unwrap();
    let error = dataset.write(&Parameters::new()).await.unwrap_err().to_string();
    assert!(error.contains("`Cache::rows`"), "{error}");
    assert!(matches!(cache.dataset("produkt"), Err(ClientError::NoDataset(_))));
    assert!(matches!(cache.rows::<u32>("produkt"), Err(ClientError::NoDataset(_))));
    let wrong = Cache::in_memory().dataset("product", "product:{id", HOUR).unwrap_err().to_string();
    assert!(wrong.contains("product:{id"), "{wrong}");
    let over_redis = Cache::connect("redis://127.0.0.1:1", "test").unwrap();
    let wrong = over_redis.dataset("product", "product:{id}", HOUR).unwrap_err().to_string();
    assert!(wrong.contains("come from the configuration"), "{wrong}");
    assert!(matches!(Cache::in_memory().build().dataset("product"), Err(ClientError::NoSource)));
    assert!(matches!(cache.rows::<u32>("product").unwrap().put(&[], &1, &[]), Err(ClientError::Key { .. })));
}

#[tokio::test]
async fn an_application_has_the_metrics_in_a_registry_of_its_own() {
    let cache = Cache::in_memory().build();
    let mut registry = Registry::with_prefix("shop");
    cache.register_metrics(&mut registry);
    cache.set("k", &1, HOUR).await.unwrap();
    cache.get::<u32>("k").await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("shop_cachekeeper_reads_total{dataset=\"none\",outcome=\"hit\"} 1"), "{text}");
    assert!(!text.contains("actor_restarts"), "only what the library counts");
}
