//! The ring around loads that processes share: a short lock in Redis, so that one of them loads.

use super::load::Wish;

/// Who loads.
#[derive(Debug)]
pub(super) enum Ring {
    /// Another one has, or had, and did not store the value within the wait.
    Others,
    /// This process: it holds the lock, or none is wanted, or Redis could not be asked.
    Mine,
}

impl Ring {
    pub async fn enter(wish: &Wish) -> Self {
        tokio::task::yield_now().await;
        if wish.key.is_empty() { Self::Others } else { Self::Mine }
    }
}
