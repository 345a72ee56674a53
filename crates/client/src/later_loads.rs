//! Loads that begin after they were asked for, for reads that must be as fresh as what their caller knows: nobody joins one that is under
//! way, and all who come while it is share the next.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use tokio::sync::oneshot;

use super::flight::LoadedBytes;

/// A load as all who want it share it; none: it has ended with the runtime of whoever began it.
type Load = Shared<BoxFuture<'static, Option<LoadedBytes>>>;

/// The loads of this kind, by key.
#[derive(Debug, Default)]
pub(super) struct LaterLoads {
    by_key: Mutex<HashMap<Arc<str>, Turns>>,
}

#[derive(Debug, Default)]
struct Turns {
    under_way: Option<Load>,
    /// It has not begun.
    next: Option<Load>,
}

impl LaterLoads {
    /// Loads a key by what `load` makes, or by what somebody else wants to load next. It runs in a task of its own, and goes on without
    /// whoever waits.
    pub async fn load<F, U>(self: &Arc<Self>, key: &Arc<str>, load: F) -> LoadedBytes
    where
        F: Fn() -> U,
        U: Future<Output = LoadedBytes> + Send + 'static,
    {
        match self.join(key, || load().boxed()).await {
            Some(loaded) => loaded,
            None => load().await,
        }
    }

    /// The load that begins next, after the one that is under way.
    fn join(
        self: &Arc<Self>,
        key: &Arc<str>,
        load: impl FnOnce() -> BoxFuture<'static, LoadedBytes>,
    ) -> Load {
        let mut by_key = self.lock();
        let Turns { under_way, next } = by_key.entry(Arc::clone(key)).or_default();
        if let Some(next) = next {
            return next.clone();
        }
        let (sender, receiver) = oneshot::channel();
        let planned = next.insert(receiver.map(Result::ok).boxed().shared()).clone();
        let before = under_way.clone();
        // A runtime that shuts down drops a task at once, and its end needs the table.
        drop(by_key);
        let mut turn = Turn { loads: Arc::clone(self), key: Arc::clone(key), has_begun: false };
        let load = load();
        drop(tokio::spawn(async move {
            if let Some(before) = before {
                before.await;
            }
            turn.begin();
            let loaded = load.await;
            drop(turn);
            // An error is that nobody waits.
            drop(sender.send(loaded));
        }));
        planned
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Turns>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of a load. Dropped, it is over, also where its task was never run to its end.
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
        for round in 1..4 {
            let others = join_all((0..100).map(|_| loads.load(&key, load.clone()))).await;
            assert!(others.into_iter().all(|one| one.unwrap().unwrap()[0] == round), "round {round}");
        }
        assert_eq!((first.await.unwrap(), begun.load(Ordering::Relaxed)), (0, 4));
        assert!(loads.lock().is_empty());
    }

    #[test]
    fn one_whose_runtime_has_ended_holds_up_nobody() {
        let (loads, key, begun) = (Arc::<LaterLoads>::default(), Arc::from("k"), Arc::default());
        let load = counted(&begun);
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let first = runtime().unwrap();
        first.block_on(async {
            let given_up = loads.load(&key, load.clone());
            drop(tokio::time::timeout(Duration::from_millis(1), given_up).await);
        });
        drop(first);
        let value = runtime().unwrap().block_on(loads.load(&key, load)).unwrap().unwrap();
        assert_eq!(value[0], 1);
    }
}
