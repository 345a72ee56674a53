//! How long somebody may stay whose answer has no end: as long as the token is one.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

use super::files::Files;

/// Leave to stay.
#[derive(Clone, Debug)]
pub(super) struct Leave {
    files: Arc<Files>,
    token: Option<String>,
    changes: watch::Receiver<()>,
}

impl Leave {
    pub(super) fn new(files: &Arc<Files>, token: Option<String>) -> Self {
        Self { files: Arc::clone(files), token, changes: files.changes() }
    }

    /// Waits until the token is none any more.
    pub(super) async fn is_over(&mut self) {
        loop {
            self.changes.borrow_and_update();
            if !self.may_stay() {
                return;
            }
            if self.changes.changed().await.is_err() {
                pending::<()>().await;
            }
        }
    }

    fn may_stay(&self) -> bool {
        if !self.files.admin.asks_for_token() {
            return true;
        }
        self.token.as_ref().is_some_and(|token| self.files.tokens().role(token).is_some())
    }
}
