//! Work beside a task.

use tokio::task::JoinHandle;

/// A piece of a task's work that runs beside it and ends with it. If it panics, the task goes on.
#[derive(Debug)]
pub struct Background<T> {
    handle: JoinHandle<T>,
}

impl<T: Send + 'static> Background<T> {
    /// Begins the work.
    pub fn spawn(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { handle: tokio::spawn(work) }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.handle.is_finished()
    }

    /// Its result; none: it panicked. Must not be asked again.
    pub async fn result(&mut self) -> Option<T> {
        (&mut self.handle).await.ok()
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
