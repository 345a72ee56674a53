//! A future that is carried out also where nobody awaits it any more.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// Polled by whoever awaits it, which costs no task; dropped before its end, it goes on in one, in the runtime where it began.
pub(super) struct GoesOn<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    /// None: it has ended, or panicked.
    rest: Option<Pin<Box<F>>>,
    runtime: Option<Handle>,
}

impl<F: Future<Output: Send> + Send + 'static> GoesOn<F> {
    pub fn new(future: F) -> Self {
        Self { rest: Some(Box::pin(future)), runtime: None }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for GoesOn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(mut rest) = self.rest.take() else { return Poll::Pending };
        let polled = rest.as_mut().poll(context);
        if polled.is_pending() && self.runtime.is_none() {
            self.runtime = Handle::try_current().ok();
        }
        if polled.is_pending() {
            self.rest = Some(rest);
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for GoesOn<F> {
    fn drop(&mut self) {
        let runtime = self.runtime.take().or_else(|| Handle::try_current().ok());
        if let (Some(rest), Some(runtime)) = (self.rest.take(), runtime) {
            drop(runtime.spawn(rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_or_without_its_caller() {
        for is_awaited in [true, false] {
            let (sender, ended) = oneshot::channel();
            let future = GoesOn::new(async move {
                sleep(Duration::from_secs(1)).await;
                sender.send(7)
            });
            let patience = Duration::from_secs(if is_awaited { 2 } else { 0 });
            assert_eq!(timeout(patience, future).await.is_ok(), is_awaited);
            assert_eq!(ended.await, Ok(7));
        }
    }
}
