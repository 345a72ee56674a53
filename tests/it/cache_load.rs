//! `get_or_load`: one load for all, old values in bad times, counters of invalidations. Time stands still here and is moved by the tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cachekeeper_client::{Cache, Chaos, ClientError, Fault, Loaded, Place, Policy};
use tokio::sync::{Notify, Semaphore};
use tokio::time::advance;

const MINUTE: Duration = Duration::from_secs(60);
type Failure = std::io::Error;

/// A loader that counts, waits to be let through, and answers what it is told.
#[derive(Clone)]
struct Source {
    calls: Arc<AtomicU32>,
    gate: Arc<Semaphore>,
    began: Arc<Notify>,
}

impl Source {
    fn open() -> Self {
        Self { calls: Arc::default(), gate: Arc::new(Semaphore::new(1_000)), began: Arc::default() }
    }

    fn closed() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..Self::open() }
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Answers how often it was called.
    fn load(
        &self,
    ) -> impl FnOnce() -> futures_util::future::BoxFuture<'static, Result<Option<u32>, Failure>> + Send + 'static
    {
        let source = self.clone();
        move || {
            Box::pin(async move {
                let number = source.calls.fetch_add(1, Ordering::SeqCst) + 1;
                source.began.notify_one();
                source.gate.acquire().await.unwrap().forget();
                Ok(Some(number))
            })
        }
    }
}

async fn failing() -> Result<Option<u32>, Failure> {
    Err(Failure::other("the database is down"))
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn row_49_a_hundred_who_want_a_cold_key_cause_one_load() {
    let (cache, source, policy) = (Cache::in_memory().build(), Source::closed(), Policy::ttl(MINUTE));
    let all: Vec<_> = (0..100)
        .map(|_| {
            let (cache, load, policy) = (cache.clone(), source.load(), policy.clone());
            tokio::spawn(async move { cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await })
        })
        .collect();
    source.began.notified().await;
    settle().await;
    source.gate.add_permits(100);
    for one in all {
        assert_eq!(one.await.unwrap().unwrap(), Some(1));
    }
    assert_eq!(source.calls(), 1);
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
    assert_eq!(source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn row_2_what_was_invalidated_while_it_was_loaded_is_returned_and_not_stored() {
    let (cache, source, policy) =
        (Cache::in_memory().build(), Source::closed(), Policy::ttl(MINUTE).tags(["t"]));
    let invalidations: [&str; 4] = ["delete", "tag", "set", "late tag"];
    for (round, how) in (1..).zip(invalidations) {
        let early = tokio::spawn({
            let (cache, load, policy) = (cache.clone(), source.load(), policy.clone());
            async move {
                let load = async move || load().await.map(|value| Loaded::from(value).tags(["late"]));
                cache.get_or_load::<u32, Loaded<u32>, _, _, _>("k", &policy, load).await
            }
        });
        source.began.notified().await;
        match how {
            "delete" => drop(cache.delete("k").await.unwrap()),
            "tag" => drop(cache.invalidate_tags(&["t"]).await.unwrap()),
            "late tag" => drop(cache.invalidate_tags(&["late"]).await.unwrap()),
            _ => cache.set("k", &77, MINUTE).await.unwrap(),
        }
        source.gate.add_permits(1);
        assert_eq!(early.await.unwrap().unwrap(), Some(round), "{how}: who came before gets what was loaded");
        let now = if how == "set" { Some(77) } else { None };
        assert_eq!(cache.get::<u32>("k").await.unwrap(), now, "{how}");
        cache.delete("k").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_an_invalidation_does_not_wait_for_the_old_load() {
    let (cache, source, policy) = (Cache::in_memory().build(), Source::closed(), Policy::ttl(MINUTE));
    let spawn = || {
        let (cache, load, policy) = (cache.clone(), source.load(), policy.clone());
        tokio::spawn(async move { cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await })
    };
    let early = spawn();
    source.began.notified().await;
    cache.delete("k").await.unwrap();
    let late = spawn();
    source.began.notified().await;
    source.gate.add_permits(2);
    assert_eq!((early.await.unwrap().unwrap(), late.await.unwrap().unwrap()), (Some(1), Some(2)));
    assert_eq!(cache.get::<u32>("k").await.unwrap(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_hands_over_and_its_caller_is_told() {
    let (cache, policy) = (Cache::in_memory().build(), Policy::ttl(MINUTE));
    let gate = Arc::new(Notify::new());
    let leader = tokio::spawn({
        let (cache, policy, gate) = (cache.clone(), policy.clone(), Arc::clone(&gate));
        async move {
            let load = async move || -> Result<Option<u32>, Failure> {
                gate.notified().await;
                panic!("on purpose")
            };
            cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await
        }
    });
    settle().await;
    let source = Source::open();
    let follower = tokio::spawn({
        let (cache, policy, load) = (cache.clone(), policy.clone(), source.load());
        async move { cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await }
    });
    settle().await;
    assert_eq!(source.calls(), 0);
    gate.notify_one();
    assert!(matches!(leader.await.unwrap(), Err(ClientError::LoaderPanicked)));
    assert_eq!(follower.await.unwrap().unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_load_goes_on_while_anybody_waits_and_ends_with_the_last() {
    let (cache, source, policy) = (Cache::in_memory().build(), Source::closed(), Policy::ttl(MINUTE));
    let spawn = || {
        let (cache, load, policy) = (cache.clone(), source.load(), policy.clone());
        tokio::spawn(async move { cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await })
    };
    let (leader, follower) = (spawn(), spawn());
    source.began.notified().await;
    settle().await;
    leader.abort();
    settle().await;
    source.gate.add_permits(1);
    assert_eq!(follower.await.unwrap().unwrap(), Some(1));
    cache.delete("k").await.unwrap();
    let alone = spawn();
    source.began.notified().await;
    alone.abort();
    settle().await;
    source.gate.add_permits(2);
    settle().await;
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None, "nobody wanted it any more");
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_caller_dropped_at_any_point_leaves_the_next_one_free() {
    let policy = Policy::ttl(MINUTE).eager(0.5).fail_safe(MINUTE);
    for polls in 0..40 {
        let (cache, source) = (Cache::in_memory().build(), Source::open());
        let mut first = Box::pin(cache.get_or_load::<u32, _, _, _, _>("k", &policy, source.load()));
        for _ in 0..polls {
            if futures_util::poll!(first.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(first);
        let next = cache.get_or_load::<u32, _, _, _, _>("k", &policy, source.load());
        let value = tokio::time::timeout(MINUTE, next).await.expect("nobody waits for who has left");
        assert!(value.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn fail_safe_serves_the_old_value_while_the_loader_fails_and_asks_it_rarely() {
    let (cache, source) = (Cache::in_memory().build(), Source::open());
    let policy = Policy::ttl(MINUTE).fail_safe(10 * MINUTE).throttle(MINUTE / 2);
    let plain = Policy::ttl(MINUTE);
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
    advance(MINUTE + Duration::from_secs(1)).await;
    let tries = Arc::new(AtomicU32::new(0));
    for expected in [1, 1] {
        let counted = Arc::clone(&tries);
        let load = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            failing()
        };
        assert_eq!(cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await.unwrap(), Some(1));
        assert_eq!(tries.load(Ordering::SeqCst), expected);
    }
    advance(MINUTE).await;
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(2));
    // Kept no longer than promised; without anything old, an error is an error.
    advance(12 * MINUTE).await;
    let error = cache.get_or_load::<u32, _, _, _, _>("k", &policy, failing).await.unwrap_err();
    assert!(error.to_string().contains("the database is down"), "{error}");
    assert!(cache.get_or_load::<u32, _, _, _, _>("other", &plain, failing).await.is_err());
    // What is gone is gone: the old value does not come back in bad times.
    cache.delete("k").await.unwrap();
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(3));
    advance(MINUTE * 2).await;
    let nothing = async || Ok::<Option<u32>, Failure>(None);
    assert_eq!(cache.get_or_load::<u32, _, _, _, _>("k", &policy, nothing).await.unwrap(), None);
    assert!(cache.get_or_load::<u32, _, _, _, _>("k", &policy, failing).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_slow_loader_is_not_waited_for_and_its_value_is_stored_when_it_comes() {
    let (cache, source) = (Cache::in_memory().build(), Source::closed());
    let policy = Policy::ttl(MINUTE)
        .fail_safe(10 * MINUTE)
        .soft_timeout(Duration::from_millis(50))
        .hard_timeout(Duration::from_secs(2));
    // Nothing old: the soft timeout does not apply, the hard one does.
    let began = tokio::time::Instant::now();
    let slow = cache.get_or_load::<u32, _, _, _, _>("k", &policy, source.load()).await;
    assert!(matches!(slow, Err(ClientError::Timeout(_))));
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    source.gate.add_permits(1);
    settle().await;
    assert_eq!(cache.get::<u32>("k").await.unwrap(), Some(1), "it went on");
    advance(2 * MINUTE).await;
    let began = tokio::time::Instant::now();
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
    assert_eq!(began.elapsed(), Duration::from_millis(50));
    for _ in 0..10 {
        assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
    }
    assert_eq!(source.calls(), 2, "the slow load is still the only one");
    source.gate.add_permits(1);
    settle().await;
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn eager_refresh_loads_once_a_period_without_anybody_waiting() {
    let (cache, source) = (Cache::in_memory().build(), Source::closed());
    let policy = Policy::ttl(10 * MINUTE).eager(0.2);
    source.gate.add_permits(1);
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
    advance(7 * MINUTE).await;
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
    settle().await;
    assert_eq!(source.calls(), 1);
    advance(2 * MINUTE).await;
    for _ in 0..20 {
        assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
        settle().await;
    }
    assert_eq!(source.calls(), 2, "once, in the background");
    // Who comes after the end waits for that load instead of beginning another.
    advance(MINUTE + Duration::from_secs(1)).await;
    let late = tokio::spawn({
        let (cache, policy, load) = (cache.clone(), policy.clone(), source.load());
        async move { cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await }
    });
    settle().await;
    source.gate.add_permits(1);
    assert_eq!(late.await.unwrap().unwrap(), Some(2));
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_tag_invalidated_during_a_background_refresh_wins() {
    let (cache, source) = (Cache::in_memory().build(), Source::closed());
    let policy = Policy::ttl(10 * MINUTE).eager(0.5).tags(["prices"]);
    source.gate.add_permits(1);
    cache.get_or_load::<u32, _, _, _, _>("k", &policy, source.load()).await.unwrap();
    source.began.notified().await;
    advance(6 * MINUTE).await;
    cache.get_or_load::<u32, _, _, _, _>("k", &policy, source.load()).await.unwrap();
    source.began.notified().await;
    assert_eq!(cache.invalidate_tags(&["prices"]).await.unwrap(), 1);
    source.gate.add_permits(1);
    settle().await;
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None, "the refresh began before the invalidation");
}

#[tokio::test(start_paused = true)]
async fn absence_is_remembered_where_that_is_wanted() {
    let (cache, policy) = (Cache::in_memory().build(), Policy::ttl(MINUTE).negative(MINUTE / 2));
    let calls = Arc::new(AtomicU32::new(0));
    let nothing = |calls: &Arc<AtomicU32>| {
        let calls = Arc::clone(calls);
        async move || {
            calls.fetch_add(1, Ordering::SeqCst);
            Ok::<Option<u32>, Failure>(None)
        }
    };
    for _ in 0..5 {
        assert_eq!(cache.get_or_load::<u32, _, _, _, _>("k", &policy, nothing(&calls)).await.unwrap(), None);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
    advance(MINUTE).await;
    let plain = Policy::ttl(MINUTE);
    for expected in [2, 3] {
        assert_eq!(cache.get_or_load::<u32, _, _, _, _>("k", &plain, nothing(&calls)).await.unwrap(), None);
        assert_eq!(calls.load(Ordering::SeqCst), expected, "without `negative` nothing is stored");
    }
    // A value that is null is a value.
    let null = async || Ok::<_, Failure>(Some(None::<u32>));
    assert_eq!(cache.get_or_load::<Option<u32>, _, _, _, _>("n", &plain, null).await.unwrap(), Some(None));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_does_not_decode_is_loaded_anew_and_healed() {
    let (cache, source, policy) = (Cache::in_memory().build(), Source::open(), Policy::ttl(MINUTE));
    cache.set("k", "an older version's text", MINUTE).await.unwrap();
    assert_eq!(cache.get_or_load("k", &policy, source.load()).await.unwrap(), Some(1));
    assert_eq!(cache.get::<u32>("k").await.unwrap(), Some(1));
    assert!(cache.render_metrics().unwrap().contains(r#"outcome="undecodable"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn row_54_faults_on_purpose_strike_where_they_are_told_to() {
    let chaos = Chaos::with_seed(7);
    let (cache, source) = (Cache::in_memory().chaos(chaos.clone()).build(), Source::open());
    let policy = Policy::ttl(MINUTE);
    chaos.set(Place::Loader, Fault::Fail, 1.0);
    assert!(matches!(
        cache.get_or_load("k", &policy, source.load()).await,
        Err::<Option<u32>, _>(ClientError::Loader(_))
    ));
    assert_eq!(source.calls(), 0);
    chaos.calm();
    chaos.set(Place::Redis, Fault::Delay(Duration::from_millis(150)), 1.0);
    let began = tokio::time::Instant::now();
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
    assert_eq!(began.elapsed(), Duration::from_millis(150));
    assert!(cache.render_metrics().unwrap().contains(r#"slow_operations_total{dataset="none"} 1"#));
    chaos.calm();
    chaos.set(Place::Redis, Fault::DropReply, 1.0);
    // The store is carried out, but nobody can know: it is an error, and the value is deleted when the answer comes again.
    assert!(cache.set("k", &5, MINUTE).await.unwrap_err().is_unavailable());
    assert!(0 < chaos.struck());
    chaos.calm();
    settle().await;
    advance(Duration::from_secs(10)).await;
    settle().await;
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
}

/// A writer that a test can read.
#[derive(Clone, Default)]
struct Page(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn row_42_to_46_spans_say_what_was_found_and_the_key_only_when_asked_for() {
    use tracing_subscriber::fmt::format::FmtSpan;
    for shows_keys in [false, true] {
        let page = Page::default();
        let writer = page.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_span_events(FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        let chaos = Chaos::with_seed(1);
        let builder = Cache::in_memory().chaos(chaos.clone());
        let cache = if shows_keys { builder.keys_in_spans() } else { builder }.build();
        cache.set("secret:1", &1, MINUTE).await.unwrap();
        assert_eq!(cache.get::<u32>("secret:1").await.unwrap(), Some(1));
        assert_eq!(cache.get::<u32>("secret:2").await.unwrap(), None);
        chaos.set(Place::Redis, Fault::Fail, 1.0);
        assert!(cache.get::<u32>("secret:3").await.is_err());
        drop(guard);
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let spans: Vec<&str> = text.lines().filter(|line| line.contains("cache.get")).collect();
        assert_eq!(spans.len(), 3, "{text}");
        for (span, part) in
            spans.iter().zip(["cache.hit=true", "cache.hit=false", "otel.status_code=\"ERROR\""])
        {
            assert!(span.contains(part), "{span}");
            assert_eq!(span.contains("cache.key="), shows_keys, "{span}");
        }
    }
}
