//! What events and replies may touch: Cachekeeper's own entries, and what somebody allowed by name.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use cachekeeper_engine::metrics::ByReason;
use cachekeeper_protocol::event::Event;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, price int);
    insert into products select n, n * 10 from generate_series(1, 100) n;";

const DATASETS: &str = r#"
    [feed]
    mode = "off"
    [dataset.product]
    query = "select id, price from products"
    key = "product:{id}"
    format = "json"
    warm = {}
    [dataset.product.write]
    statement = "update products set price = :price where id = :id"
"#;

/// Keys of other applications, of which Cachekeeper knows nothing, and keys that it uses itself.
const OTHERS: [&str; 7] = [
    "session:42",
    "sidekiq:queue:default",
    "cache:invalidation:log",
    "cache:invalidation:log:dead",
    "cache:writes",
    "cache:writes:dead",
    "cache:reply:me",
];

async fn prepare(client: &mut MultiplexedConnection) {
    let _: () = client.set("session:42", "somebody").await.unwrap();
    for list in ["sidekiq:queue:default", "cache:reply:me"] {
        let _: () = client.rpush(list, "job").await.unwrap();
    }
    for stream in OTHERS.iter().filter(|key| key.ends_with(":dead")) {
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg("*").arg("reason").arg("x");
        let _: String = command.query_async(client).await.unwrap();
    }
}

async fn are_untouched(client: &mut MultiplexedConnection) {
    for key in OTHERS {
        assert!(client.exists::<_, bool>(key).await.unwrap(), "{key} is gone");
    }
}

/// Entries are loaded again when an event comes, so a changed price that arrives proves that all before it was applied.
async fn price_is(client: &MultiplexedConnection, key: &str, price: i32) {
    wait_until(&format!("{key} has the price {price}"), async || {
        let value: Option<String> = client.clone().get(key).await.map_err(|error| error.to_string())?;
        let wanted = format!("\"price\":{price}");
        if value.as_ref().is_some_and(|value| value.contains(&wanted)) {
            Ok(())
        } else {
            Err(format!("{value:?}"))
        }
    })
    .await;
}

async fn is_gone(client: &MultiplexedConnection, key: &str) {
    wait_until(&format!("{key} is gone"), async || {
        let is_there: bool = client.clone().exists(key).await.map_err(|error| error.to_string())?;
        if is_there { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// C5: whoever may publish could delete any key, the streams too, from any database number.
#[tokio::test]
async fn events_touch_neither_the_keys_of_others_nor_the_streams() {
    let mut rig = Rig::start(TABLES).await;
    let mut client = rig.client().await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    price_is(&client, "product:100", 1000).await;
    prepare(&mut client).await;
    let url = format!("{}/5", rig.redis.url().trim_end_matches('/').trim_end_matches("/0"));
    let mut elsewhere = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    rig.postgres.execute("update products set price = 1 where id = 1").await.unwrap();
    for key in OTHERS {
        let _: i64 = elsewhere.publish("cache:invalidation", key).await.unwrap();
        let _: i64 = elsewhere
            .publish("cache:invalidation", format!(r#"{{"key": "{key}", "op": "delete"}}"#))
            .await
            .unwrap();
    }
    let _: i64 = elsewhere.publish("cache:invalidation", "product:1").await.unwrap();
    price_is(&client, "product:1", 1).await;
    are_untouched(&mut client).await;

    // The same of the durable stream.
    rig.postgres.execute("update products set price = 2 where id = 2").await.unwrap();
    for key in OTHERS.iter().chain(&["product:2"]) {
        let fields: [(&str, &[u8]); 1] = [("key", key.as_bytes())];
        worker.context.redis.append("cache:invalidation:log", &fields).await.unwrap();
    }
    price_is(&client, "product:2", 2).await;
    are_untouched(&mut client).await;

    // While Postgres is down keys are deleted at once: those too are Cachekeeper's own only.
    rig.postgres.kill();
    for key in OTHERS.iter().chain(&["product:3"]) {
        let _: i64 = client.publish("cache:invalidation", *key).await.unwrap();
    }
    is_gone(&client, "product:3").await;
    are_untouched(&mut client).await;
    rig.postgres.start_again().await.unwrap();
    worker.stop().await;
}

/// C4: a reply was pushed to any list, and the list got an end.
#[tokio::test]
async fn replies_go_to_lists_under_their_prefix_and_give_no_list_an_end() {
    let rig = Rig::start(TABLES).await;
    let mut client = rig.client().await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    prepare(&mut client).await;
    let _: () = client.rpush("cache:reply:long", "mine").await.unwrap();
    let _: () = client.expire("cache:reply:long", 7_200).await.unwrap();
    for list in ["sidekiq:queue:default", "cache:reply:me", "cache:reply:long", "cache:reply:new"] {
        let fields: [(&str, &[u8]); 3] =
            [("dataset", b"product"), ("params", br#"{"id": 1, "price": 9}"#), ("reply", list.as_bytes())];
        worker.context.redis.append("cache:writes", &fields).await.unwrap();
    }
    wait_until("all commands are finished", async || {
        let state = worker.context.redis.stream_state("cache:writes", "cachekeeper:test").await;
        let state = state.map_err(|error| error.to_string())?;
        if state.length == 0 { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    let mut state = Vec::new();
    for list in ["sidekiq:queue:default", "cache:reply:me", "cache:reply:long", "cache:reply:new"] {
        let length: u64 = client.llen(list).await.unwrap();
        let seconds: i64 = client.ttl(list).await.unwrap();
        state.push((list, length, seconds));
    }
    let [others, kept, long, new] = state[..] else { panic!("{state:?}") };
    assert_eq!((others, kept), (("sidekiq:queue:default", 1, -1), ("cache:reply:me", 2, -1)));
    assert!(long.1 == 2 && 3_600 < long.2, "{long:?}");
    assert!(new.1 == 1 && (1..=3_600).contains(&new.2), "{new:?}");
    let dead = worker.context.redis.dead_letters("cache:writes", 10).await.unwrap();
    // One of them was there before.
    let reasons: Vec<_> =
        dead.iter().filter_map(|one| one.field("reason")).map(String::from_utf8_lossy).collect();
    assert!(reasons.iter().any(|reason| reason.contains("cache:reply:")), "{reasons:?}");
    worker.stop().await;
}

#[tokio::test]
async fn keys_of_applications_are_deleted_where_somebody_said_so_by_name() {
    let rig = Rig::start(TABLES).await;
    let mut client = rig.client().await;
    let toml = format!("[invalidation]\nkeys = [\"page:*\", \"cache:*\"]\n{DATASETS}");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    price_is(&client, "product:100", 1000).await;
    prepare(&mut client).await;
    let cache = Cache::connect(&rig.redis.url(), "test").unwrap().prefixes(["part:", "ck:", ""]).build();
    let minute = Duration::from_secs(60);
    for key in ["page:1", "part:1", "other:1"] {
        cache.set(key, "x", minute).await.unwrap();
    }
    // Whoever publishes: another process, in another language.
    rig.postgres.execute("update products set price = 1 where id = 1").await.unwrap();
    wait_until("the library's prefix is registered", async || {
        let prefixes = worker.context.redis.registered_prefixes().await.map_err(|error| error.to_string())?;
        if prefixes == ["part:"] { Ok(()) } else { Err(format!("{prefixes:?}")) }
    })
    .await;
    for key in OTHERS.iter().chain(&["page:1", "part:1", "other:1", "product:1"]) {
        let _: i64 = client.publish("cache:invalidation", *key).await.unwrap();
    }
    is_gone(&client, "page:1").await;
    is_gone(&client, "part:1").await;
    price_is(&client, "product:1", 1).await;
    are_untouched(&mut client).await;
    assert!(cache.exists("other:1").await.unwrap());
    let ignored = |reason| worker.context.metrics.events_ignored.get_or_create(&ByReason::new(reason)).get();
    wait_until("what was ignored is counted", async || {
        let counted = (ignored("unknown_key"), ignored("protected"));
        // Three that nobody knows, five that Cachekeeper uses itself.
        if counted == (3, 5) { Ok(()) } else { Err(format!("{counted:?}")) }
    })
    .await;

    // Members of a tag are Cachekeeper's own: nobody else adds any.
    cache.set_with_tags("tagged:1", "x", minute, &["pages"]).await.unwrap();
    let _: i64 = client.publish("cache:invalidation", r#"{"tag": "pages"}"#).await.unwrap();
    is_gone(&client, "tagged:1").await;
    worker.stop().await;

    // One's own events find the prefix registered, also the first one.
    let _: () = redis::cmd("DEL").arg("ck:{test:0}:prefixes").query_async(&mut client).await.unwrap();
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    let cache = Cache::connect(&rig.redis.url(), "test").unwrap().prefixes(["part:"]).build();
    let _: () = client.set("part:2", "x").await.unwrap();
    let event = Event { keys: vec!["part:2".to_owned()], ..Event::default() };
    wait_until("a worker hears the event", async || {
        let heard = cache.publish(&event).await.map_err(|error| error.to_string())?;
        if 0 < heard { Ok(()) } else { Err("nobody listens".to_owned()) }
    })
    .await;
    is_gone(&client, "part:2").await;
    worker.stop().await;

    let cli = Cli::new(&rig, &toml);
    cli.says(&["invalidate", "page:2", "product:1"], 0, &["1 stored again"]);
    cli.says(&["invalidate", "session:42"], 1, &["session:42 is a key of no dataset", "[invalidation] keys"]);
    are_untouched(&mut client).await;
}
