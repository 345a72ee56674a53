//! Long work of an actor: a task that ends with its actor, and whose end, a panic too, is told.

use ractor::{ActorRef, Message};
use tokio::task::JoinHandle;

/// A task that is aborted when this is dropped.
#[derive(Debug)]
pub struct Task {
    handle: JoinHandle<()>,
}

impl Task {
    /// Runs `work`; `tell` makes the message of its result, or of none if it panicked.
    pub fn spawn<M, T, F>(
        myself: &ActorRef<M>,
        work: F,
        tell: impl FnOnce(Option<T>) -> M + Send + 'static,
    ) -> Self
    where
        M: Message,
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let myself = myself.clone();
        let work = AbortOnDrop(tokio::spawn(work));
        let handle = tokio::spawn(async move {
            let result = work.join().await;
            // An actor that has stopped meanwhile does not need to know.
            drop(myself.cast(tell(result)));
        });
        Self { handle }
    }

    /// Runs a task that tells by itself.
    pub fn run(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { handle: tokio::spawn(work) }
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.handle.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    async fn join(mut self) -> Option<T> {
        (&mut self.0).await.ok()
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
