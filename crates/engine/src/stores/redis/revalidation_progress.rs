//! How far the revalidation of a dataset is: for people, nothing depends on it.

use std::str::FromStr;

use serde::Serialize;

use super::script::{Call, NOTE_PROGRESS};
use super::{Answer, CacheError, Precondition, Redis};

/// How far the revalidation of a dataset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RevalidationProgress {
    /// Entries that were loaded again or deleted.
    pub done: u64,
    /// Entries in Redis when it began.
    pub entries: u64,
}

impl FromStr for RevalidationProgress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (done, entries) = text.split_once(' ').ok_or(())?;
        Ok(Self { done: done.parse().map_err(drop)?, entries: entries.parse().map_err(drop)? })
    }
}

impl std::fmt::Display for RevalidationProgress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} of {} entries revalidated", self.done, self.entries)
    }
}

impl Redis {
    /// Notes how far the revalidation of the precondition's dataset is.
    pub async fn note_progress(
        &self,
        precondition: &Precondition<'_>,
        progress: RevalidationProgress,
    ) -> Result<Answer<()>, CacheError> {
        let mut call = Call::namespace(&NOTE_PROGRESS, self, precondition);
        call.arg(format!("{} {}", progress.done, progress.entries));
        call.run(self).await
    }
}
