//! The beginnings of keys that applications have registered as theirs: events may delete such keys.

use std::time::Duration;

use super::script::{Call, REGISTER_PREFIXES};
use super::{CacheError, Redis};

/// A prefix that nobody has registered for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 86_400);
/// Prefixes of one namespace.
const PREFIXES_MAX: u64 = 1_000;

impl Redis {
    /// Registers prefixes, or says that they are still in use. False: there are too many, some are not registered.
    ///
    /// # Errors
    /// [`CacheError`]; it may be said again.
    pub async fn register_prefixes(&self, prefixes: &[String]) -> Result<bool, CacheError> {
        let mut call = Call::new(&REGISTER_PREFIXES, 1);
        call.arg(self.keys.prefixes()).number(FORGOTTEN_AFTER.as_secs()).number(PREFIXES_MAX);
        for prefix in prefixes {
            call.arg(prefix);
        }
        let registered: u64 = call.run(self).await?;
        Ok(registered == prefixes.len() as u64)
    }

    /// The prefixes that are registered.
    ///
    /// # Errors
    /// [`CacheError`] where Redis cannot be asked.
    pub async fn registered_prefixes(&self) -> Result<Vec<String>, CacheError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME").cmd("HGETALL").arg(self.keys.prefixes());
        let mut replies = self.pipeline("read which prefixes are registered", &pipeline, 2).await?;
        let (now, _micros): (u64, u64) = replies.next()?;
        let seen: Vec<(String, u64)> = replies.next()?;
        let is_in_use = |(_, seen): &(String, u64)| now < seen.saturating_add(FORGOTTEN_AFTER.as_secs());
        Ok(seen.into_iter().filter(is_in_use).map(|(prefix, _)| prefix).collect())
    }
}
