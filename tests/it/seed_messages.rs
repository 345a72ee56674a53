//! Typed messages on any channel, and an entry's lifetime changed alone.

use std::time::{Duration, SystemTime};

use cachekeeper_client::{Cache, Heard, HeardMessage, Lifetime};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use crate::cache::{HOUR, cache_of};
use crate::support::RedisRig;

/// The seed's own event, as its listener reads it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CacheInvalidation {
    cache_key: String,
}

#[tokio::test]
async fn row_28_a_typed_message_is_heard_with_its_channel_by_every_kind_of_listener() {
    let mut rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let channels = ["cache:invalidation", "news"];
    let mut messages = cache.subscribe_to::<CacheInvalidation>(&channels).await.unwrap();
    let mut events = cache.events().await.unwrap();
    let message = CacheInvalidation { cache_key: "product:42".to_owned() };
    assert_eq!(cache.publish_to("cache:invalidation", &message).await.unwrap(), 2);
    assert_eq!(cache.publish_to("news", &message).await.unwrap(), 1);
    for expected in channels {
        let HeardMessage::Message(channel, heard) = messages.next().await else { panic!("no message") };
        assert_eq!((channel.as_str(), &heard), (expected, &message));
    }
    // Of the same bytes a worker makes an event.
    assert!(matches!(events.next().await, Heard::Event(event) if event.keys == ["product:42"]));
    let mut client = rig.client().await;
    let _: () = client.publish("news", r#"{"CacheKey": 1}"#).await.unwrap();
    assert!(matches!(messages.next().await, HeardMessage::Invalid(channel, _) if channel == "news"));
    rig.redis.kill();
    rig.redis.start_again().await.unwrap();
    assert!(matches!(messages.next().await, HeardMessage::Gap));
}

#[tokio::test]
async fn an_entry_is_given_another_lifetime_and_keeps_its_value() {
    let rig = RedisRig::start(&[]).await;
    for cache in [cache_of(&rig), Cache::in_memory().build()] {
        assert!(!cache.expire("k", HOUR).await.unwrap());
        assert!(!cache.expire("k", Lifetime::Forever).await.unwrap());
        cache.set("k", "v", Duration::from_secs(60)).await.unwrap();
        assert!(cache.expire("k", HOUR).await.unwrap());
        assert!(cache.expire("k", Lifetime::Forever).await.unwrap());
        assert!(cache.expire("k", SystemTime::now() + HOUR).await.unwrap());
        assert_eq!(cache.get::<String>("k").await.unwrap().as_deref(), Some("v"));
        assert!(cache.expire("k", Duration::ZERO).await.unwrap());
        assert!(!cache.exists("k").await.unwrap(), "what is over is deleted");
        assert!(cache.expire("ck:{test:0}:meta", HOUR).await.is_err());
    }
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    cache.set("k", "v", Lifetime::Forever).await.unwrap();
    cache.expire("k", HOUR).await.unwrap();
    let left: i64 = client.pttl("k").await.unwrap();
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");
    cache.expire("k", Duration::MAX).await.unwrap();
    let left: i64 = client.pttl("k").await.unwrap();
    assert_eq!(left, -1);
}
