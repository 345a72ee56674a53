//! Locks: taken by one, told when lost, given back on every path, handed over by a wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cachekeeper_client::{Cache, LockError, LockOptions, Locks};
use cachekeeper_engine::metrics::Metrics;
use cachekeeper_testkit::proxy::Proxy;
use redis::AsyncCommands;

use crate::support::{RedisRig, Rig, wait_until};

fn locks_of(rig: &RedisRig) -> Locks {
    Locks::new(rig.store(), Arc::new(Metrics::new()))
}

const SHORT: Duration = Duration::from_millis(300);
const PATIENT: LockOptions = LockOptions {
    life: Duration::from_secs(10),
    wait: Duration::from_secs(30),
    is_renewed: true,
    max_hold: None,
};
const NO_WAIT: LockOptions = LockOptions { wait: Duration::ZERO, ..PATIENT };

async fn free(rig: &RedisRig, name: &str) {
    let mut client = rig.client().await;
    let key = rig.store().keys().lock(name);
    wait_until("the lock is free", async || {
        let left: i64 = client.clone().pttl(&key).await.unwrap();
        if left == -2 { Ok(()) } else { Err(format!("{left} ms left")) }
    })
    .await;
    let _: () = client.ping().await.unwrap();
}

#[tokio::test]
async fn row_12_a_held_lock_is_refused_with_its_holder_and_its_time() {
    let rig = RedisRig::start(&[]).await;
    for (ours, theirs) in [(locks_of(&rig), locks_of(&rig)), {
        let one = locks_of(&rig);
        (one.clone(), one)
    }] {
        let guard = ours.acquire("product:1", PATIENT).await.unwrap();
        let Err(LockError::Held { name, owner, left }) = theirs.acquire("product:1", NO_WAIT).await else {
            panic!("it was taken twice");
        };
        assert_eq!(name, "product:1");
        assert!(owner.contains(&std::process::id().to_string()), "{owner}");
        assert!(Duration::ZERO < left && left <= Duration::from_secs(10), "{left:?}");
        let brief = LockOptions { wait: Duration::from_millis(50), ..PATIENT };
        let refused = theirs.acquire("product:1", brief).await.unwrap_err().to_string();
        assert!(refused.contains("product:1") && refused.contains("held by"), "{refused}");
        assert!(theirs.try_acquire("product:1", SHORT).await.unwrap().is_none());
        assert!(guard.release().await.unwrap());
        assert!(theirs.try_acquire("product:1", SHORT).await.unwrap().is_some());
        free(&rig, "product:1").await;
    }
    assert!(matches!(locks_of(&rig).acquire("", PATIENT).await, Err(LockError::Meaningless)));
}

#[tokio::test]
async fn row_13_a_lock_is_renewed_while_it_is_held_even_a_very_short_one() {
    let rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    let short = LockOptions { life: Duration::from_millis(150), ..PATIENT };
    let guard = locks.acquire("a", short).await.unwrap();
    let key = rig.store().keys().lock("a");
    let mut client = rig.client().await;
    // Four renewals happen, seen by the lifetime that grows again.
    let (mut last, mut grown) = (i64::MAX, 0);
    while grown < 4 {
        let left: i64 = client.pttl(&key).await.unwrap();
        assert!(0 < left && guard.is_held(), "it was let go: {left}");
        grown += u32::from(last < left);
        last = left;
        tokio::task::yield_now().await;
    }
    assert!(guard.release().await.unwrap());
}

#[tokio::test]
async fn row_13_the_holder_is_told_while_the_lock_is_still_its_own() {
    let rig = RedisRig::start(&[]).await;
    let proxy = Proxy::start(rig.redis.port()).await.unwrap();
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let cache = Cache::connect(&url, "test").unwrap().build();
    let key = rig.store().keys().lock("a");
    let mut client = rig.client().await;
    let guard = cache.locks().acquire("a", PATIENT).await.unwrap();
    // From here on nothing that is sent to Redis arrives.
    proxy.change_all(|link| link.is_held = true);
    guard.lost().cancelled().await;
    let left: i64 = client.pttl(&key).await.unwrap();
    assert!(0 < left, "it had ended before its holder was told: {left}");
}

#[tokio::test]
async fn row_13_the_holder_is_told_when_the_lock_may_be_lost() {
    let rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    let short = LockOptions { life: SHORT, ..PATIENT };
    let mut client = rig.client().await;
    for how in ["deleted", "taken by force", "redis paused", "held too long", "not renewed"] {
        let options = match how {
            "held too long" => LockOptions { max_hold: Some(Duration::from_millis(400)), ..short },
            "not renewed" => LockOptions { is_renewed: false, ..short },
            _ => short,
        };
        let guard = locks.acquire("a", options).await.unwrap();
        let key = rig.store().keys().lock("a");
        match how {
            "deleted" => client.del(&key).await.unwrap(),
            "taken by force" => client.set(&key, "1 somebody else").await.unwrap(),
            "redis paused" => rig.redis.pause(),
            _ => {}
        }
        guard.lost().cancelled().await;
        assert!(!guard.is_held());
        rig.redis.resume();
        let was_ours = guard.release().await.unwrap();
        if how == "taken by force" {
            assert!(!was_ours);
            let holder: String = client.get(&key).await.unwrap();
            assert_eq!(holder, "1 somebody else", "another's lock was released");
            let _: () = client.del(&key).await.unwrap();
        }
        free(&rig, "a").await;
    }
}

#[tokio::test]
async fn row_14_a_lock_is_given_back_on_every_path() {
    let rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    drop(locks.acquire("a", PATIENT).await.unwrap());
    free(&rig, "a").await;
    let holder = locks.clone();
    let panicked = tokio::spawn(async move {
        let _guard = holder.acquire("a", PATIENT).await.unwrap();
        panic!("on purpose");
    });
    assert!(panicked.await.is_err());
    free(&rig, "a").await;
    // The holder's future is dropped at any of its awaits, also while it waits for the lock.
    for is_contended in [false, true] {
        for polls in 0..60 {
            let other = if is_contended { Some(locks.acquire("a", PATIENT).await.unwrap()) } else { None };
            let mut taking = Box::pin(async { locks.acquire("a", PATIENT).await.unwrap().release().await });
            for _ in 0..polls {
                if futures_util::poll!(taking.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(taking);
            drop(other);
            free(&rig, "a").await;
        }
    }
    assert!(locks.acquire("a", NO_WAIT).await.is_ok());
}

#[tokio::test]
async fn a_holder_that_dies_is_followed_after_its_lifetime() {
    let rig = RedisRig::start(&[]).await;
    let url = rig.store();
    // A process that is killed: its runtime ends and sends nothing any more.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let locks = Locks::new(url, Arc::new(Metrics::new()));
        let guard = runtime.block_on(locks.acquire("a", LockOptions { life: SHORT, ..PATIENT })).unwrap();
        runtime.shutdown_background();
        std::mem::forget(guard);
    })
    .join()
    .unwrap();
    let locks = locks_of(&rig);
    assert!(matches!(locks.acquire("a", NO_WAIT).await, Err(LockError::Held { .. })));
    assert!(locks.acquire("a", PATIENT).await.unwrap().is_held());
}

#[tokio::test]
async fn row_17_who_waits_is_woken_by_the_release_and_not_by_looking_again() {
    let rig = RedisRig::start(&[]).await;
    let (ours, theirs) = (locks_of(&rig), locks_of(&rig));
    assert!(theirs.wait_for_unlock("a", Duration::ZERO).await.unwrap());
    let guard = ours.acquire("a", PATIENT).await.unwrap();
    assert!(!theirs.wait_for_unlock("a", Duration::from_millis(20)).await.unwrap());
    let waiting: Vec<_> = (0..3)
        .map(|n| {
            let theirs = theirs.clone();
            tokio::spawn(async move {
                match n {
                    0 => theirs.acquire("a", PATIENT).await.unwrap().release().await.unwrap(),
                    _ => theirs.wait_for_unlock("a", PATIENT.wait).await.unwrap(),
                }
            })
        })
        .collect();
    let channel = rig.store().keys().unlock_channel();
    let mut client = rig.client().await;
    wait_until("they listen", async || {
        let heard: Vec<(String, u32)> =
            redis::cmd("PUBSUB").arg("NUMSUB").arg(&channel).query_async(&mut client.clone()).await.unwrap();
        if heard[0].1 == 1 { Ok(()) } else { Err(format!("{heard:?}")) }
    })
    .await;
    assert!(guard.release().await.unwrap());
    for one in waiting {
        assert!(one.await.unwrap());
    }
    drop((ours, theirs));
    wait_until("nobody listens any more", async || {
        let channels: Vec<String> =
            redis::cmd("PUBSUB").arg("CHANNELS").query_async(&mut client.clone()).await.unwrap();
        if channels.is_empty() { Ok(()) } else { Err(format!("{channels:?}")) }
    })
    .await;
    let _: () = client.ping().await.unwrap();
}

#[tokio::test]
async fn row_18_to_20_many_locks_are_taken_together_or_not_at_all() {
    let rig = RedisRig::start(&[]).await;
    let (ours, theirs) = (locks_of(&rig), locks_of(&rig));
    let guard = ours.acquire_all(&["account:2", "account:1", "account:2"], PATIENT).await.unwrap();
    assert_eq!(guard.names().collect::<Vec<_>>(), ["account:1", "account:2"]);
    let refused = theirs.acquire_all(&["account:0", "account:2"], NO_WAIT).await;
    assert!(matches!(&refused, Err(LockError::Held { name, .. }) if name == "account:2"), "{refused:?}");
    free(&rig, "account:0").await;
    assert!(guard.release().await.unwrap());
    free(&rig, "account:1").await;
    // In opposite orders, by many, in two processes: nobody waits for each other for ever, and nobody is alone.
    let (inside, done) = (Arc::new([const { AtomicU32::new(0) }; 4]), Arc::new(AtomicU32::new(0)));
    let tasks: Vec<_> = (0..24_usize)
        .map(|n| {
            let locks = if n % 2 == 0 { ours.clone() } else { theirs.clone() };
            let (inside, done) = (Arc::clone(&inside), Arc::clone(&done));
            tokio::spawn(async move {
                let (one, other) = (n % 4, (n * 7 + 1) % 4);
                let names = [format!("account:{one}"), format!("account:{other}")];
                let guard = locks.acquire_all(&names, PATIENT).await.unwrap();
                for at in guard.names().map(|name| usize::from(name.as_bytes()[8] - b'0')) {
                    assert_eq!(inside[at].fetch_add(1, Ordering::SeqCst), 0, "two held account {at}");
                }
                tokio::task::yield_now().await;
                for at in guard.names().map(|name| usize::from(name.as_bytes()[8] - b'0')) {
                    inside[at].fetch_sub(1, Ordering::SeqCst);
                }
                assert!(guard.release().await.unwrap());
                done.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(done.load(Ordering::SeqCst), 24);
}

#[tokio::test]
async fn tokens_grow_from_holder_to_holder_and_postgres_refuses_the_older_one() {
    let rig = Rig::start(
        "create table accounts (id int primary key, balance int, fence bigint not null default 0);
        insert into accounts values (1, 100)",
    )
    .await;
    let context = rig.context("");
    let locks = Locks::new(context.redis.clone(), Arc::clone(&context.metrics));
    let mut tokens = Vec::new();
    for round in 0..5 {
        let guard = locks.acquire("account:1", PATIENT).await.unwrap();
        tokens.push(guard.token());
        guard.release().await.unwrap();
        if round == 2 {
            // The counter says more than the clock: it goes on from there.
            let key = context.redis.keys().last_token();
            let ahead = tokens[2] + 3_600_000_000;
            let _: () = rig.client().await.set(key, ahead).await.unwrap();
        }
    }
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
    assert!(tokens[2] + 3_600_000_000 < tokens[3]);
    let mut session = rig.postgres.session().await.unwrap();
    let mut withdraw = async |token: u64, amount: u32| {
        let sql = format!(
            "with done as (update accounts set balance = balance - {amount}, fence = {token} where id = 1 and fence <= {token} returning 1) select count(*)::text from done"
        );
        session.text(&sql).await.unwrap()
    };
    assert_eq!(withdraw(tokens[4], 10).await.as_deref(), Some("1"));
    assert_eq!(withdraw(tokens[0], 50).await.as_deref(), Some("0"), "a former holder that comes too late");
}

#[tokio::test]
async fn a_thousand_waiters_take_a_lock_one_after_the_other_without_polling() {
    let rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    let (inside, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut client = rig.client().await;
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut client).await.unwrap();
    let tasks: Vec<_> = (0..1_000)
        .map(|_| {
            let (locks, inside, most) = (locks.clone(), Arc::clone(&inside), Arc::clone(&most));
            tokio::spawn(async move {
                let guard = locks.acquire("a", PATIENT).await.unwrap();
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap());
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut client).await.unwrap();
    let scripts = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
    let scripts: u32 = scripts.split(',').next().unwrap().parse().unwrap();
    assert!(scripts <= 2_100, "{scripts} scripts for 1,000 hand-overs");
}

/// Scripts that Redis has run.
async fn scripts(client: &mut redis::aio::MultiplexedConnection) -> u32 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(client).await.unwrap();
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_lock_without_an_end_is_waited_for_by_wake_ups_and_seldom_looked_at() {
    let rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    let keys = rig.store().keys().clone();
    let mut client = rig.client().await;
    let _: () = client.set(keys.lock("a"), "1 somebody who made it by hand").await.unwrap();
    let brief = LockOptions { wait: Duration::from_millis(500), ..PATIENT };
    let Err(LockError::Held { owner, .. }) = locks.acquire("a", brief).await else { panic!("it was taken") };
    assert_eq!(owner, "somebody who made it by hand");
    let scripts = scripts(&mut client).await;
    assert!(scripts <= 20, "{scripts} scripts in half a second");
    let waiter = tokio::spawn(async move { locks.acquire("a", PATIENT).await.unwrap().is_held() });
    wait_until("it listens", async || {
        let query = redis::cmd("PUBSUB").arg("NUMSUB").arg(keys.unlock_channel()).to_owned();
        let heard: Vec<(String, u32)> = query.query_async(&mut client.clone()).await.unwrap();
        if heard[0].1 == 1 { Ok(()) } else { Err(format!("{heard:?}")) }
    })
    .await;
    let _: () = client.del(keys.lock("a")).await.unwrap();
    let _: i64 = client.publish(keys.unlock_channel(), "a").await.unwrap();
    assert!(waiter.await.unwrap());
}

#[tokio::test]
async fn a_lock_whose_release_is_under_way_keeps_nobody_busy() {
    let rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    let options = LockOptions { life: Duration::from_millis(1_500), ..PATIENT };
    let released = locks.acquire("a", options).await.unwrap();
    let watched = locks.acquire("b", LockOptions { is_renewed: false, ..options }).await.unwrap();
    rig.redis.pause();
    let runtime = tokio::runtime::Handle::current().metrics();
    let before = runtime.worker_park_count(0);
    drop(released);
    // Meanwhile the first one becomes due, and is not to be renewed.
    watched.lost().cancelled().await;
    let parks = runtime.worker_park_count(0) - before;
    assert!(parks < 200, "the runtime woke up {parks} times");
    rig.redis.resume();
    free(&rig, "a").await;
}

#[tokio::test]
async fn five_thousand_locks_leave_nothing_behind() {
    let rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    let guards: Vec<_> = futures_util::future::join_all((0..5_000).map(|n| {
        let locks = locks.clone();
        async move { locks.acquire(&format!("n:{n}"), PATIENT).await.unwrap() }
    }))
    .await;
    drop(guards);
    let mut client = rig.client().await;
    wait_until("all are given back", async || {
        let keys: Vec<String> = client.clone().keys("ck:*lock:*").await.unwrap();
        if keys.is_empty() { Ok(()) } else { Err(format!("{} left", keys.len())) }
    })
    .await;
    let names: [String; 4] = ["n".into(), " \n{x}".into(), "schloß 🦀".into(), "k".repeat(10 * 1024)];
    for name in &names {
        assert!(locks.acquire(name, NO_WAIT).await.unwrap().release().await.unwrap());
    }
    let _: () = client.ping().await.unwrap();
}

#[tokio::test]
async fn with_redis_down_no_lock_is_taken_and_nobody_waits_for_ever() {
    let mut rig = RedisRig::start(&[]).await;
    let locks = locks_of(&rig);
    let guard = locks.acquire("a", LockOptions { life: SHORT, ..PATIENT }).await.unwrap();
    rig.redis.kill();
    assert!(matches!(locks.acquire("b", PATIENT).await, Err(LockError::Unavailable(_))));
    guard.lost().cancelled().await;
    assert!(guard.release().await.is_err());
    rig.redis.start_again().await.unwrap();
    let guard = wait_until("redis answers again", async || {
        locks.acquire("a", NO_WAIT).await.map_err(|error| error.to_string())
    })
    .await;
    assert!(guard.release().await.unwrap());
}
