//! A master that becomes a replica while its connections live, and servers that change behind an address (faults D6).

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use cachekeeper_testkit::proxy::Proxy;
use cachekeeper_testkit::servers::Redis;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;

use crate::feed::{DATASETS, TABLES, agrees, caught_up, ready};
use crate::support::{Rig, wait_until};

/// A master with a replica that has all of it, and an address that leads to the master.
struct Pair {
    rig: Rig,
    replica: Redis,
    proxy: Proxy,
}

async fn connect(port: u16) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

impl Pair {
    async fn start() -> Self {
        let rig = Rig::start(TABLES).await;
        let port = rig.redis.port();
        let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {port}")]).await.unwrap();
        let proxy = Proxy::start(port).await.unwrap();
        let pair = Self { rig, replica, proxy };
        pair.wait_for_replica().await;
        pair
    }

    async fn wait_for_replica(&self) {
        let mut client = self.rig.client().await;
        wait_until("the replica has everything", async || {
            let told: String = redis::cmd("INFO")
                .arg("replication")
                .query_async(&mut client.clone())
                .await
                .map_err(|error| error.to_string())?;
            if told.contains("state=online") { Ok(()) } else { Err(told) }
        })
        .await;
        drop(client.ping::<()>().await);
    }

    async fn worker(&self, datasets: &str) -> Worker {
        let mut config = self.rig.config(datasets);
        config.redis.url = cachekeeper_config::Secret::new(self.url());
        let worker = Worker::start(config).await.unwrap();
        ready(&worker).await;
        worker
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.proxy.port())
    }

    /// The replica becomes the master and the master its replica, without a connection that breaks.
    async fn swap(&self) {
        let mut master = self.rig.client().await;
        let port = self.replica.port();
        let mut command = redis::cmd("FAILOVER");
        command.arg("TO").arg("127.0.0.1").arg(port);
        let _: () = command.query_async(&mut master).await.unwrap();
        wait_until("the roles are swapped", async || {
            let role: redis::Value = redis::cmd("ROLE")
                .query_async(&mut connect(port).await)
                .await
                .map_err(|error| error.to_string())?;
            let role = format!("{role:?}");
            if role.contains("master") { Ok(()) } else { Err(role) }
        })
        .await;
        self.proxy.aim(port);
    }
}

/// Connections of a kind (`normal`, `pubsub`), by the ports that they come from.
async fn connections(client: &mut MultiplexedConnection, kind: &str) -> Vec<u16> {
    let mut command = redis::cmd("CLIENT");
    command.arg("LIST").arg("TYPE").arg(kind);
    let list: String = command.query_async(client).await.unwrap();
    let port = |line: &str| {
        let address = line.split(' ').find_map(|part| part.strip_prefix("addr="))?;
        address.rsplit(':').next()?.parse().ok()
    };
    list.lines().filter_map(port).collect()
}

async fn wait_for_value(client: &MultiplexedConnection, key: &str, part: &str) {
    wait_until(&format!("{key} says {part}"), async || {
        let value: Option<String> =
            client.clone().get(key).await.map_err(|error| format!("cannot be read: {error}"))?;
        if value.as_ref().is_some_and(|value| value.contains(part)) {
            Ok(())
        } else {
            Err(format!("{value:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn every_connection_leaves_a_master_that_was_demoted() {
    let pair = Pair::start().await;
    let datasets = format!("{DATASETS}\n[invalidation]\nstream = \"cache:invalidation:log\"");
    let worker = pair.worker(&datasets).await;
    let cache = Cache::connect(&pair.url(), "test").unwrap().build();
    cache.set("page:1", &"before", Duration::from_secs(600)).await.unwrap();
    let mut demoted = pair.rig.client().await;
    pair.swap().await;

    // What is committed shows up at the new master.
    pair.rig.postgres.execute("update products set price = 4711 where id = 5").await.unwrap();
    caught_up(&worker).await;
    let mut master = connect(pair.replica.port()).await;
    wait_for_value(&master, "product:5", "4711").await;
    ready(&worker).await;
    agrees(&worker).await;

    // Events of both kinds reach the worker from there.
    for event in ["publish", "xadd"] {
        pair.rig.postgres.execute("update products set price = price + 1 where id = 7").await.unwrap();
        caught_up(&worker).await;
        let _: () = master.set("product:7", "overwritten").await.unwrap();
        let mut command = redis::cmd(event);
        match event {
            "publish" => command.arg("cache:invalidation").arg("product:7"),
            _ => command.arg("cache:invalidation:log").arg("*").arg("key").arg("product:7"),
        };
        let _: redis::Value = command.query_async(&mut master).await.unwrap();
        wait_for_value(&master, "product:7", "product 7").await;
    }
    // The library writes there.
    wait_until("the library writes", async || {
        cache.set("page:1", &"after", Duration::from_secs(600)).await.map_err(|error| error.to_string())
    })
    .await;
    assert!(master.exists::<_, bool>("page:1").await.unwrap());
    // Nobody stays where nothing can be written.
    wait_until("the demoted server has no connection but this one", async || {
        let mut client = demoted.clone();
        let (normal, pubsub) =
            (connections(&mut client, "normal").await, connections(&mut client, "pubsub").await);
        if normal.len() == 1 && pubsub.is_empty() { Ok(()) } else { Err(format!("{normal:?} {pubsub:?}")) }
    })
    .await;
    drop(demoted.ping::<()>().await);
    worker.stop().await;
}

/// Nothing is refused to an application that only reads, so it must look.
#[tokio::test]
async fn a_library_that_only_reads_leaves_a_demoted_master() {
    let pair = Pair::start().await;
    let cache = Cache::connect(&pair.url(), "test").unwrap().build();
    cache.set("page:1", &"before", Duration::from_secs(600)).await.unwrap();
    pair.wait_for_replica().await;
    pair.swap().await;
    let mut master = connect(pair.replica.port()).await;
    // The demoted one is cut off from the new master: what it holds is old for ever.
    let mut demoted = pair.rig.client().await;
    let _: () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async(&mut demoted).await.unwrap();
    let other =
        Cache::connect(&format!("redis://127.0.0.1:{}", pair.replica.port()), "test").unwrap().build();
    other.set("page:1", &"after", Duration::from_secs(600)).await.unwrap();
    wait_until("the library reads at the new master", async || match cache.get::<String>("page:1").await {
        Ok(Some(value)) if value == "after" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    drop(master.ping::<()>().await);
}

/// What an application misses at the new master is filled: misses are told by the server that was asked, to its own subscribers.
#[tokio::test]
async fn misses_are_heard_at_the_new_master() {
    let pair = Pair::start().await;
    let datasets = DATASETS.replace("warm = {}", "on_miss = \"load\"");
    let worker = pair.worker(&datasets).await;
    pair.swap().await;
    let master = connect(pair.replica.port()).await;
    wait_for_value(&master, "product:9", "product 9").await;
    worker.stop().await;
}

/// A proxy that puts another server behind one connection: the subscription hears nothing any more, and nothing breaks.
#[tokio::test]
async fn a_subscription_behind_which_the_server_was_changed_is_opened_again() {
    let pair = Pair::start().await;
    let other = Redis::start(&[]).await.unwrap();
    let worker = pair
        .worker(
            &DATASETS
                .replace("warm = {}", "warm = {}\n feed = \"wanted\"")
                .replace("    feed = \"required\"\n", ""),
        )
        .await;
    let mut client = pair.rig.client().await;
    let subscribed = connections(&mut client, "pubsub").await;
    assert!(!subscribed.is_empty());
    for port in &subscribed {
        assert!(pair.proxy.rehome(*port, other.port()), "{port} does not come through the proxy");
    }
    wait_until("there are subscriptions again", async || {
        let now = connections(&mut client.clone(), "pubsub").await;
        if now.len() == subscribed.len() && now.iter().all(|port| !subscribed.contains(port)) {
            Ok(())
        } else {
            Err(format!("{now:?}, before {subscribed:?}"))
        }
    })
    .await;
    ready(&worker).await;
    let _: () = client.set("product:3", "overwritten").await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:3").await.unwrap();
    wait_for_value(&client, "product:3", "product 3").await;
    worker.stop().await;
}

/// The shared connection, too: it is not written to the server that was put there.
#[tokio::test]
async fn commands_behind_which_the_server_was_changed_are_sent_to_the_right_one() {
    let pair = Pair::start().await;
    let other = Redis::start(&[]).await.unwrap();
    let cache = Cache::connect(&pair.url(), "test").unwrap().build();
    cache.set("page:1", &"right", Duration::from_secs(600)).await.unwrap();
    let mut client = pair.rig.client().await;
    for port in connections(&mut client, "normal").await {
        let _comes_through_the_proxy = pair.proxy.rehome(port, other.port());
    }
    wait_until("the right server is asked", async || match cache.get::<String>("page:1").await {
        Ok(Some(value)) if value == "right" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// A connection through which nothing passes any more, and which does not break, is given up.
#[tokio::test]
async fn a_connection_that_falls_silent_is_given_up() {
    let pair = Pair::start().await;
    let settings = cachekeeper_config::Redis {
        response_timeout: Duration::from_millis(500),
        ..cachekeeper_config::Redis::new(cachekeeper_config::Secret::new(pair.url()))
    };
    let cache = Cache::connect_with(&settings, "test").unwrap().build();
    cache.set("page:1", &"value", Duration::from_secs(600)).await.unwrap();
    pair.proxy.hold();
    wait_until("the library reads again", async || {
        cache.get::<String>("page:1").await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

/// A replica that lags is promoted: what was stored since is lost, and a new epoch begins, whoever looks.
async fn a_lagging_replica_is_promoted(is_worker_alive: bool) {
    let rig = Rig::start(TABLES).await;
    let replication = Proxy::start(rig.redis.port()).await.unwrap();
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {}", replication.port())]).await.unwrap();
    let proxy = Proxy::start(rig.redis.port()).await.unwrap();
    let pair = Pair { rig, replica, proxy };
    pair.wait_for_replica().await;
    let worker = pair.worker(DATASETS).await;
    let mut copy = connect(pair.replica.port()).await;
    wait_for_value(&copy, "product:5", "product 5").await;
    replication.hold();
    let epoch = worker.context.redis.metadata("").await.unwrap().epoch;
    pair.rig.postgres.execute("update products set price = 4711 where id <= 100").await.unwrap();
    caught_up(&worker).await;
    let alive = if is_worker_alive {
        Some(worker)
    } else {
        worker.stop().await;
        None
    };
    let _: () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut copy).await.unwrap();
    let value: String = copy.get("product:5").await.unwrap();
    assert!(!value.contains("4711"), "the replica did not lag: {value}");
    pair.proxy.aim(pair.replica.port());
    let mut demoted = pair.rig.client().await;
    let _: () = redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(pair.replica.port())
        .query_async(&mut demoted)
        .await
        .unwrap();
    let worker = match alive {
        Some(worker) => worker,
        None => pair.worker(DATASETS).await,
    };
    wait_for_value(&copy, "product:5", "4711").await;
    wait_until("a new epoch has begun", async || {
        let now = worker.context.redis.metadata("").await.map_err(|error| error.to_string())?.epoch;
        if now.is_some() && now != epoch { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_lagging_replica_that_is_promoted_under_a_worker_begins_a_new_epoch() {
    a_lagging_replica_is_promoted(true).await;
}

#[tokio::test]
async fn a_lagging_replica_that_was_promoted_while_no_worker_ran_begins_a_new_epoch() {
    a_lagging_replica_is_promoted(false).await;
}
