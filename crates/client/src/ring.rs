//! The ring around loads that processes share: a short lock in Redis, so that one of them loads.

use std::time::Duration;

use super::breaker::BreakerState;
use super::core::Core;
use super::load::Wish;
use super::locks::{LockGuard, LockOptions};

/// Who loads.
#[derive(Debug)]
pub(super) enum Ring {
    /// This process, as long as it holds the lock.
    Mine(LockGuard),
    /// Another one: it stored its value by now, or did not within the wait.
    Others,
    /// Everybody: no lock is wanted, or Redis could not be asked.
    Open,
}

impl Core {
    /// Takes the load lock of a key, or waits for who has it. A refresh that nobody waits for does not wait either.
    pub async fn enter_ring(&self, wish: &Wish, is_refresh: bool) -> Ring {
        let (Some(locks), Some(lock)) = (&self.locks, wish.policy.lock) else { return Ring::Open };
        if self.breaker.state() != BreakerState::Closed {
            return Ring::Open;
        }
        let name = format!("load:{}", wish.key);
        let options = LockOptions { life: lock.life, wait: Duration::ZERO, ..LockOptions::default() };
        match locks.acquire(&name, options).await {
            Ok(guard) => Ring::Mine(guard),
            Err(error) if error.is_held() => {
                if !is_refresh && let Err(error) = locks.wait_for_unlock(&name, lock.wait).await {
                    tracing::debug!(%error, "the load lock could not be waited for");
                }
                Ring::Others
            }
            // A lock saves work; without it the work is done.
            Err(_unavailable) => Ring::Open,
        }
    }
}
