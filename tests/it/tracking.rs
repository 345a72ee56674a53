//! Why a near value may be served: whatever was changed before the moment that is proved was told before (R19), also by a server with
//! threads for input and output.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_config as config;
use cachekeeper_engine::stores::redis::{Redis, Told};
use cachekeeper_protocol::entry::Shape;
use redis::AsyncCommands;
use tokio::time::Instant;

use crate::support::RedisRig;

const LIMIT: Duration = Duration::from_secs(10);

fn handle(rig: &RedisRig) -> Redis {
    Redis::new(&config::Redis::new(config::Secret::new(rig.redis.url())), "test").unwrap()
}

async fn proofs_hold(arguments: &[&str]) {
    let rig = RedisRig::start(arguments).await;
    let prefixes = ["p:".to_owned()];
    let mut tracking = handle(&rig).track(&prefixes, Duration::from_millis(2), LIMIT).await.unwrap();
    let (written, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (written, is_over) = (Arc::clone(&written), Arc::clone(&is_over));
            let client = redis::Client::open(rig.redis.url()).unwrap();
            tokio::spawn(async move {
                let mut client = client.get_multiplexed_async_connection().await.unwrap();
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = format!("p:{writer}:{number}");
                    let _: () = client.pset_ex(&key, "x", 5_000).await.unwrap();
                    written.lock().unwrap().push((Instant::now(), key));
                }
            })
        })
        .collect();
    let (mut told, mut checked, mut proofs) = (HashSet::new(), 0, 0);
    while proofs < 400 {
        match tracking.next().await.unwrap() {
            Told::Changed(keys) => told.extend(keys),
            Told::Flushed => panic!("nobody flushes"),
            Told::Proved { since, .. } => {
                proofs += 1;
                written.lock().unwrap().retain(|(at, key)| {
                    let is_before = *at < since;
                    assert!(!is_before || told.contains(key), "{key} was written {:?} before", since - *at);
                    checked += usize::from(is_before);
                    !is_before
                });
            }
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(1_000 < checked, "only {checked} writes were looked at");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_proved_was_told() {
    proofs_hold(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_proved_was_told_by_a_server_with_threads() {
    proofs_hold(&["--io-threads", "4", "--io-threads-do-reads", "yes"]).await;
}

/// A server that no longer tells on this connection proves nothing.
#[tokio::test]
async fn a_server_that_tells_no_more_is_noticed() {
    let rig = RedisRig::start(&[]).await;
    let redis = handle(&rig);
    let mut tracking = redis.track(&["p:".to_owned()], Duration::from_millis(5), LIMIT).await.unwrap();
    let mark = tracking.mark().to_owned();
    while !matches!(tracking.next().await.unwrap(), Told::Proved { .. }) {}
    let _: () = rig.client().await.set("p:1", "x").await.unwrap();
    assert_eq!(
        redis.read_marked(&["p:1", "p:2"], &mark, Shape::String).await.unwrap(),
        Some(vec![(Some(b"x".to_vec()), -1), (None, -2)])
    );
    // As another server would that has taken its place.
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut rig.client().await).await.unwrap();
    assert_eq!(redis.read_marked(&["p:1"], &mark, Shape::String).await.unwrap(), None);
    let mut client = rig.client().await;
    let replica = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).to_owned();
    let _: () = replica.query_async(&mut client).await.unwrap();
    let ended = loop {
        if let Err(error) = tracking.next().await {
            break error;
        }
    };
    assert!(ended.is_unreachable(), "{ended}");
}

/// More changes than are kept at once are not proved to have been told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_kept_is_never_proved() {
    let rig = RedisRig::start(&[]).await;
    let mut tracking = handle(&rig).track(&["p:".to_owned()], Duration::from_millis(5), LIMIT).await.unwrap();
    while !matches!(tracking.next().await.unwrap(), Told::Proved { .. }) {}
    // One script is one message: 36 MB of names.
    let script =
        "local name = 'p:' .. string.rep('x', 180) for i = 1, 200000 do redis.call('SET', name .. i, '') end";
    let client = redis::Client::open(rig.redis.url()).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    let mut writer = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    let writing =
        async { redis::cmd("EVAL").arg(script).arg(0).query_async::<()>(&mut writer).await.unwrap() };
    let hearing = async {
        loop {
            match tracking.next().await {
                Ok(Told::Proved { .. }) => {}
                Ok(other) => panic!("it is too much to be kept: {}", matches!(other, Told::Changed(_))),
                Err(error) => return error,
            }
        }
    };
    let (ended, ()) = tokio::join!(hearing, writing);
    assert!(ended.is_unreachable(), "{ended}");
}
