//! Reads of one key each, of many tasks at the same moment, go as one command: a command of its own for each would cost most of the
//! read. One that is alone is sent at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::CacheError;

/// A value and its remaining lifetime in milliseconds (-1: no end, -2: no entry).
pub type ValueAndLife = (Option<Vec<u8>>, i64);

/// Reads of the moment.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub values: Gather<Option<Vec<u8>>>,
    pub values_and_lives: Gather<ValueAndLife>,
}

/// Keys of one command: more save little, and the first would wait for the last.
const KEYS_MAX: usize = 64;

/// Where the reads of a moment meet. Each is read after it was asked for: nobody joins a command that was sent.
#[derive(Debug)]
pub(super) struct Gather<T> {
    under_way: AtomicUsize,
    next: Mutex<Next<T>>,
}

/// The command that is to be sent next.
#[derive(Debug)]
struct Next<T> {
    /// Somebody has begun it, and sends it after all that can run now have had their turn.
    is_begun: bool,
    joined: Vec<Joined<T>>,
}

#[derive(Debug)]
struct Joined<T> {
    key: String,
    answer: oneshot::Sender<T>,
}

impl<T> Default for Gather<T> {
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            next: Mutex::new(Next { is_begun: false, joined: Vec::new() }),
        }
    }
}

impl<T> Gather<T> {
    /// Reads a key, by one of the two: `alone`, or `together` with others, whose answers come in the order of the keys.
    ///
    /// # Errors
    /// Of the command that was sent. What the command of another fails with is not taken over: the key is read alone then.
    pub async fn read(
        &self,
        key: &str,
        alone: impl AsyncFnOnce() -> Result<T, CacheError>,
        together: impl AsyncFnOnce(&[&str]) -> Result<Vec<T>, CacheError>,
    ) -> Result<T, CacheError> {
        let (_under_way, others) = UnderWay::begin(&self.under_way);
        if others == 0 {
            return alone().await;
        }
        match self.join_or_begin(key) {
            Place::Joined(answer) => match answer.await {
                Ok(value) => Ok(value),
                Err(_failed_or_given_up) => alone().await,
            },
            Place::Full => alone().await,
            Place::First => {
                let begun = Begun(Some(self));
                tokio::task::yield_now().await;
                let joined = begun.take();
                if joined.is_empty() {
                    return alone().await;
                }
                let keys: Vec<&str> =
                    std::iter::once(key).chain(joined.iter().map(|one| one.key.as_str())).collect();
                let mut values = together(&keys).await?.into_iter();
                let own = values.next();
                for (one, value) in joined.into_iter().zip(values) {
                    // An error is that nobody waits any more.
                    drop(one.answer.send(value));
                }
                own.ok_or_else(|| CacheError::unexpected("read entries", "a reply is missing"))
            }
        }
    }

    fn join_or_begin(&self, key: &str) -> Place<T> {
        let mut next = self.lock();
        if !next.is_begun {
            next.is_begun = true;
            return Place::First;
        }
        if KEYS_MAX <= next.joined.len() + 1 {
            return Place::Full;
        }
        let (answer, waiting) = oneshot::channel();
        next.joined.push(Joined { key: key.to_owned(), answer });
        Place::Joined(waiting)
    }

    fn take(&self) -> Vec<Joined<T>> {
        let mut next = self.lock();
        next.is_begun = false;
        std::mem::take(&mut next.joined)
    }

    fn lock(&self) -> MutexGuard<'_, Next<T>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Place<T> {
    First,
    Joined(oneshot::Receiver<T>),
    Full,
}

/// Whoever begins a command and is given up leaves the next to somebody else; those who joined are told. None: it was taken.
struct Begun<'a, T>(Option<&'a Gather<T>>);

impl<T> Begun<'_, T> {
    fn take(mut self) -> Vec<Joined<T>> {
        self.0.take().map(Gather::take).unwrap_or_default()
    }
}

impl<T> Drop for Begun<'_, T> {
    fn drop(&mut self) {
        drop(self.0.take().map(Gather::take));
    }
}

/// A read that has not ended.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    /// Counts it, and answers how many others there were.
    fn begin(count: &'a AtomicUsize) -> (Self, usize) {
        // A count only: nothing is read because of it that another thread would have to see.
        let others = count.fetch_add(1, Ordering::Relaxed);
        (Self(count), others)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use futures_util::future::join_all;

    use super::*;

    type Sent = Rc<RefCell<Vec<Vec<String>>>>;

    async fn read(
        gather: &Gather<String>,
        key: &str,
        sent: &Sent,
        fails: bool,
    ) -> Result<String, CacheError> {
        let alone = async || {
            sent.borrow_mut().push(vec![key.to_owned()]);
            tokio::task::yield_now().await;
            Ok(format!("alone {key}"))
        };
        let together = async |keys: &[&str]| {
            sent.borrow_mut().push(keys.iter().map(|key| (*key).to_owned()).collect());
            tokio::task::yield_now().await;
            if fails {
                return Err(CacheError::unexpected("read", "nothing"));
            }
            Ok(keys.iter().map(|key| format!("together {key}")).collect())
        };
        gather.read(key, alone, together).await
    }

    #[tokio::test]
    async fn one_that_is_alone_is_sent_at_once_and_others_go_together() {
        let (gather, sent) = (Gather::default(), Sent::default());
        assert_eq!(read(&gather, "a", &sent, false).await.unwrap(), "alone a");
        let names: Vec<String> = (0..200).map(|n| format!("k{n}")).collect();
        let all = join_all(names.iter().map(|name| read(&gather, name, &sent, false))).await;
        for (name, value) in names.iter().zip(all) {
            assert!(value.unwrap().ends_with(&format!(" {name}")));
        }
        let sizes: Vec<usize> = sent.borrow().iter().map(Vec::len).collect();
        assert!(sizes.contains(&KEYS_MAX) && sizes.iter().all(|size| *size <= KEYS_MAX), "{sizes:?}");
        assert_eq!(gather.under_way.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_failure_is_only_that_of_who_sent_it() {
        let (gather, sent) = (Gather::default(), Sent::default());
        let all = join_all(["a", "b", "c", "d"].map(|name| read(&gather, name, &sent, true))).await;
        let all: Vec<String> =
            all.into_iter().map(|value| value.unwrap_or_else(|error| error.to_string())).collect();
        let [first, second, third, fourth] = all.try_into().unwrap();
        assert_eq!((first.as_str(), third.as_str(), fourth.as_str()), ("alone a", "alone c", "alone d"));
        assert!(second.contains("refused"), "{second}");
    }

    /// Who has begun a command and is dropped, before and after it was sent, leaves nobody waiting.
    #[tokio::test]
    async fn whoever_is_given_up_leaves_nobody_behind() {
        let (gather, sent) = (Gather::default(), Sent::default());
        let _held = UnderWay::begin(&gather.under_way);
        for polls in 1..3 {
            let mut first = Box::pin(read(&gather, "first", &sent, false));
            let mut second = Box::pin(read(&gather, "second", &sent, false));
            for _ in 0..polls {
                let is_over = poll_fn(|context| {
                    let first = first.as_mut().poll(context).is_ready();
                    Poll::Ready(first | second.as_mut().poll(context).is_ready())
                });
                assert!(!is_over.await, "{polls}");
            }
            drop(first);
            let ended = tokio::time::timeout(std::time::Duration::from_secs(5), second).await;
            assert_eq!(ended.unwrap().unwrap(), "alone second", "{polls}");
        }
        assert!(sent.borrow().iter().any(|keys| keys.len() == 2), "{sent:?}");
    }
}
