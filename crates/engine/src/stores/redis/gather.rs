//! Reads of one key each, of many tasks at the same moment, go as one command: a command of its own for each would cost most of the
//! read. One that is alone is sent at once.
//!
//! A task sends the command: whoever asked may not be polled for long (a stream that buffers futures, a `select!` whose other branch
//! waits), and nobody is to wait for that.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::CacheError;
use cachekeeper_protocol::entry::Shape;

/// A value and its remaining lifetime in milliseconds (-1: no end, -2: no entry).
pub type ValueAndLife = (Option<Vec<u8>>, i64);

/// Reads of the moment, by the shape of what is read.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    strings: OfShape,
    hashes: OfShape,
}

impl Gathered {
    pub fn of(&self, shape: Shape) -> &OfShape {
        match shape {
            Shape::String => &self.strings,
            Shape::Hash => &self.hashes,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct OfShape {
    pub values: Arc<Gather<Option<Vec<u8>>>>,
    pub values_and_lives: Arc<Gather<ValueAndLife>>,
}

/// Keys of one command: more save little, and the first would wait for the last.
const KEYS_MAX: usize = 64;

/// How long one waits until the common command is sent: its task may be of a runtime that runs no more.
const SENT_WITHIN: Duration = Duration::from_millis(500);
/// How long for its answer then: more than any command may take, for the same reason.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

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
    /// The number of whoever joined last.
    last: u64,
}

#[derive(Debug)]
struct Joined<T> {
    number: u64,
    key: String,
    answer: oneshot::Sender<T>,
}

impl<T> Default for Gather<T> {
    fn default() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            next: Mutex::new(Next { is_begun: false, joined: Vec::new(), last: 0 }),
        }
    }
}

impl<T: Send + 'static> Gather<T> {
    /// Reads a key, by one of the two: `alone`, or with others by the command that `together` prepares, whose answers come in the order of
    /// the keys.
    ///
    /// # Errors
    /// Of the read alone. Where the common command fails, or takes too long, each key is read alone.
    pub async fn read<F, U>(
        self: &Arc<Self>,
        key: &str,
        alone: impl AsyncFnOnce() -> Result<T, CacheError>,
        together: impl FnOnce() -> F,
    ) -> Result<T, CacheError>
    where
        F: FnOnce(Vec<String>) -> U + Send + 'static,
        U: Future<Output = Result<Vec<T>, CacheError>> + Send + 'static,
    {
        let (_under_way, others) = UnderWay::begin(&self.under_way);
        if others == 0 {
            return alone().await;
        }
        let Some((number, mut answer, is_first)) = self.join(key) else { return alone().await };
        if is_first {
            let (begun, together) = (Begun(Some(Arc::clone(self))), together());
            drop(tokio::spawn(send(begun, together)));
        }
        let answered = match timeout(SENT_WITHIN, &mut answer).await {
            Ok(answered) => Ok(answered),
            // Whoever joined a command that nobody sends reads alone.
            Err(_elapsed) if self.is_waiting(number) => {
                drop(self.take());
                return alone().await;
            }
            // Sent, it is on the connection: to ask again would wait behind it.
            Err(_elapsed) => timeout(ANSWERED_WITHIN, answer).await,
        };
        match answered {
            Ok(Ok(value)) => Ok(value),
            // It failed, was given up, or its task is of a runtime that has stopped meanwhile.
            Ok(Err(_)) | Err(_) => alone().await,
        }
    }

    /// Whether the command that this one joined is still to be sent.
    fn is_waiting(&self, number: u64) -> bool {
        self.lock().joined.iter().any(|joined| joined.number == number)
    }

    /// Joins the next command; true: it has to be begun. None: it is full.
    fn join(&self, key: &str) -> Option<(u64, oneshot::Receiver<T>, bool)> {
        let mut next = self.lock();
        if KEYS_MAX <= next.joined.len() {
            return None;
        }
        let (answer, waiting) = oneshot::channel();
        next.last += 1;
        let number = next.last;
        next.joined.push(Joined { number, key: key.to_owned(), answer });
        Some((number, waiting, !std::mem::replace(&mut next.is_begun, true)))
    }
}

/// Sends a command after all that can run now have had their turn to join it.
async fn send<T, F, U>(begun: Begun<T>, together: F)
where
    F: FnOnce(Vec<String>) -> U,
    U: Future<Output = Result<Vec<T>, CacheError>>,
{
    tokio::task::yield_now().await;
    let joined = begun.take();
    if joined.is_empty() {
        return;
    }
    let (keys, answers): (Vec<String>, Vec<_>) = joined.into_iter().map(|one| (one.key, one.answer)).unzip();
    // Those who joined are told of a failure by what is dropped here.
    let Ok(values) = together(keys).await else { return };
    for (answer, value) in answers.into_iter().zip(values) {
        // An error is that nobody waits any more.
        drop(answer.send(value));
    }
}

impl<T> Gather<T> {
    fn take(&self) -> Vec<Joined<T>> {
        let mut next = self.lock();
        next.is_begun = false;
        std::mem::take(&mut next.joined)
    }

    fn lock(&self) -> MutexGuard<'_, Next<T>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command that was begun and is given up leaves the next to somebody else; those who joined are told. None: it was taken.
struct Begun<T>(Option<Arc<Gather<T>>>);

impl<T> Begun<T> {
    fn take(mut self) -> Vec<Joined<T>> {
        self.0.take().map(|gather| gather.take()).unwrap_or_default()
    }
}

impl<T> Drop for Begun<T> {
    fn drop(&mut self) {
        drop(self.0.take().map(|gather| gather.take()));
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
    use std::future::poll_fn;
    use std::task::Poll;

    use futures_util::future::join_all;

    use super::*;

    type Sent = Arc<Mutex<Vec<Vec<String>>>>;

    async fn read(gather: &Arc<Gather<String>>, key: &str, sent: &Sent, fails: bool) -> String {
        let alone = async || {
            sent.lock().unwrap().push(vec![key.to_owned()]);
            tokio::task::yield_now().await;
            Ok(format!("alone {key}"))
        };
        let together = || {
            let sent = Arc::clone(sent);
            move |keys: Vec<String>| async move {
                sent.lock().unwrap().push(keys.clone());
                tokio::task::yield_now().await;
                if fails {
                    return Err(CacheError::unexpected("read", "nothing"));
                }
                Ok(keys.into_iter().map(|key| format!("together {key}")).collect())
            }
        };
        gather.read(key, alone, together).await.unwrap()
    }

    #[tokio::test]
    async fn one_that_is_alone_is_sent_at_once_and_others_go_together() {
        let (gather, sent) = (Arc::default(), Sent::default());
        assert_eq!(read(&gather, "a", &sent, false).await, "alone a");
        let names: Vec<String> = (0..200).map(|n| format!("k{n}")).collect();
        let all = join_all(names.iter().map(|name| read(&gather, name, &sent, false))).await;
        for (name, value) in names.iter().zip(all) {
            assert!(value.ends_with(&format!(" {name}")), "{value}");
        }
        let sizes: Vec<usize> = sent.lock().unwrap().iter().map(Vec::len).collect();
        assert!(sizes.contains(&KEYS_MAX) && sizes.iter().all(|size| *size <= KEYS_MAX), "{sizes:?}");
        assert_eq!(gather.under_way.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn where_the_common_command_fails_each_reads_alone() {
        let (gather, sent) = (Arc::default(), Sent::default());
        let all = join_all(["a", "b", "c"].map(|name| read(&gather, name, &sent, true))).await;
        assert_eq!(all, ["alone a", "alone b", "alone c"]);
    }

    /// Whoever began a command and is polled no more, or dropped, at any point.
    #[tokio::test]
    async fn nobody_waits_for_whoever_is_not_polled() {
        let (gather, sent) = (Arc::<Gather<String>>::default(), Sent::default());
        let _held = UnderWay::begin(&gather.under_way);
        for is_dropped in [false, true] {
            let mut first = Box::pin(read(&gather, "first", &sent, false));
            let is_over = poll_fn(|context| Poll::Ready(first.as_mut().poll(context).is_ready()));
            assert!(!is_over.await);
            let first = (!is_dropped).then_some(first);
            assert_eq!(read(&gather, "second", &sent, false).await, "together second");
            assert_eq!(read(&gather, "third", &sent, false).await, "together third");
            drop(first);
        }
    }

    /// A value that is long on its way is on its way: to ask again would send everything twice.
    #[tokio::test(start_paused = true)]
    async fn a_command_that_was_sent_is_waited_for() {
        let gather = Arc::<Gather<String>>::default();
        let _held = UnderWay::begin(&gather.under_way);
        let sent = Arc::new(AtomicUsize::new(0));
        let read_one = async |key: &str| {
            let sent = Arc::clone(&sent);
            let together = || {
                move |keys: Vec<String>| async move {
                    sent.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(SENT_WITHIN * 3).await;
                    Ok(keys)
                }
            };
            gather.read(key, async || Ok("alone".to_owned()), together).await.unwrap()
        };
        let names: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
        assert_eq!(join_all(names.iter().map(|name| read_one(name))).await, names);
        assert_eq!(sent.load(Ordering::Relaxed), 1);
    }

    /// A task that never runs: its runtime is not entered any more.
    #[tokio::test]
    async fn a_command_that_nobody_sends_is_given_up() {
        let (gather, sent) = (Arc::<Gather<String>>::default(), Sent::default());
        let _held = UnderWay::begin(&gather.under_way);
        let (_, _never, is_first) = gather.join("never").unwrap();
        assert!(is_first);
        assert_eq!(read(&gather, "a", &sent, false).await, "alone a");
        assert_eq!(read(&gather, "b", &sent, false).await, "together b");
    }
}
