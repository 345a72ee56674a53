//! Loads that begin after they were asked for, for reads that must be as fresh as what their caller knows: nobody joins one that is under
//! way, and all who come while it is share the next.
//!
//! Whoever waits polls the load, so that none depends on another one's runtime; it ends when the last who waits has left.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::error::ClientError;
use super::flight::LoadedBytes;

/// A load as all who want it share it.
type Load = BoxFuture<'static, LoadedBytes>;

/// The loads of this kind, by key.
#[derive(Debug, Default)]
pub(super) struct LaterLoads {
    by_key: Mutex<HashMap<Arc<str>, Turns>>,
}

/// Only those who wait keep a load alive.
#[derive(Debug, Default)]
struct Turns {
    under_way: Option<WeakShared<Load>>,
    /// It has not begun.
    next: Option<WeakShared<Load>>,
}

impl LaterLoads {
    /// Loads a key by what `load` makes, or by what somebody else wants to load next.
    pub async fn load<U>(self: &Arc<Self>, key: &Arc<str>, load: impl FnOnce() -> U) -> LoadedBytes
    where
        U: Future<Output = LoadedBytes> + Send + 'static,
    {
        let load = self.join(key, || load().boxed());
        load.await
    }

    /// The load that begins next, after the one that is under way.
    fn join(self: &Arc<Self>, key: &Arc<str>, load: impl FnOnce() -> Load) -> Shared<Load> {
        let mut by_key = self.lock();
        let turns = by_key.entry(Arc::clone(key)).or_default();
        if let Some(next) = turns.next.as_ref().and_then(WeakShared::upgrade) {
            return next;
        }
        let before = turns.under_way.as_ref().and_then(WeakShared::upgrade);
        let mut turn = Turn { loads: Arc::clone(self), key: Arc::clone(key), has_begun: false };
        let load = load();
        let planned = async move {
            if let Some(before) = before {
                drop(before.await);
            }
            turn.begin();
            let loaded = AssertUnwindSafe(load).catch_unwind().await;
            drop(turn);
            loaded.unwrap_or(Err(ClientError::LoaderPanicked))
        };
        let planned = planned.boxed().shared();
        turns.next = planned.downgrade();
        planned
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Turns>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of a load. Dropped, it is over, also where nobody has waited for its end.
struct Turn {
    loads: Arc<LaterLoads>,
    key: Arc<str>,
    has_begun: bool,
}

impl Turn {
    /// From here on nobody joins.
    fn begin(&mut self) {
        self.has_begun = true;
        if let Some(turns) = self.loads.lock().get_mut(&self.key) {
            turns.under_way = turns.next.take();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut by_key = self.loads.lock();
        let Some(turns) = by_key.get_mut(&self.key) else { return };
        match self.has_begun {
            true => turns.under_way = None,
            false => turns.next = None,
        }
        if turns.under_way.is_none() && turns.next.is_none() {
            by_key.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;

    use super::*;

    fn counted(begun: &Arc<AtomicUsize>) -> impl Fn() -> BoxFuture<'static, LoadedBytes> + Clone + use<> {
        let begun = Arc::clone(begun);
        move || {
            let begun = Arc::clone(&begun);
            async move {
                let number = u8::try_from(begun.fetch_add(1, Ordering::Relaxed)).unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(Some(Arc::from([number])))
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_while_one_is_under_way_shares_the_next() {
        let (loads, key, begun) = (Arc::<LaterLoads>::default(), Arc::from("k"), Arc::default());
        let load = counted(&begun);
        let first = tokio::spawn({
            let (loads, key, load) = (Arc::clone(&loads), Arc::clone(&key), load.clone());
            async move { loads.load(&key, load).await.unwrap().unwrap()[0] }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        for _ in 0..3 {
            let begun_before = begun.load(Ordering::Relaxed);
            let others = join_all((0..100).map(|_| loads.load(&key, load.clone()))).await;
            // Each began after it was asked for, and there were two at most: one at once, one for all others.
            assert!(others.into_iter().all(|one| begun_before <= usize::from(one.unwrap().unwrap()[0])));
            assert!(begun.load(Ordering::Relaxed) <= begun_before + 2);
        }
        assert_eq!(first.await.unwrap(), 0);
        assert!(loads.lock().is_empty());
    }

    /// Whoever began it may not be polled any more, or have left.
    #[tokio::test(start_paused = true)]
    async fn nobody_depends_on_whoever_began_a_load() {
        for has_left in [true, false] {
            let (loads, key, begun) = (Arc::<LaterLoads>::default(), Arc::from("k"), Arc::default());
            let load = counted(&begun);
            let mut first = Box::pin(loads.load(&key, load.clone()));
            assert!(tokio::time::timeout(Duration::from_millis(1), &mut first).await.is_err());
            let first = (!has_left).then_some(first);
            assert_eq!(loads.load(&key, load).await.unwrap().unwrap()[0], 1);
            drop(first);
            assert!(loads.lock().is_empty());
        }
    }
}
