//! What can go wrong for an application.

use std::sync::Arc;
use std::time::Duration;

use cachekeeper_engine::stores::chain;
use cachekeeper_engine::stores::redis::{CacheError, Refusal};

/// An error of the caller's own loader, as it is shared by all who waited for it.
pub type LoaderError = Arc<dyn std::error::Error + Send + Sync>;

/// Why an operation of the library failed. A miss is not an error, and an error is never reported as a miss.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Redis was not reached, or takes no commands.
    #[error(
        "redis is not available{}: {reason}",
        if *.is_noted { ", what was to be invalidated is noted and done when it is back" } else { "" }
    )]
    Unavailable {
        /// Why.
        reason: Arc<str>,
        /// Whether what was to be deleted is noted; if not, and it was a delete, the caller must repeat it.
        is_noted: bool,
    },
    /// Redis refused the command; it was not applied.
    #[error("{0}")]
    Refused(#[source] Arc<CacheError>),
    /// The key cannot be used.
    #[error("key {key:?} {problem}")]
    Key {
        /// Its beginning.
        key: String,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// Entries of a dataset come from its query only.
    #[error(
        "{key:?} is a key of dataset {dataset}, whose entries come from Postgres: write there, or read it through `dataset(\"{dataset}\")`"
    )]
    OfDataset {
        /// The key.
        key: String,
        /// The dataset.
        dataset: String,
    },
    /// There is no such dataset.
    #[error("there is no dataset {0:?} in the configuration")]
    NoDataset(String),
    /// The cache was opened without Postgres and datasets.
    #[error(
        "this needs the datasets and Postgres: open the cache with `Cache::open`, not `Cache::connect` or `Cache::in_memory`"
    )]
    NoSource,
    /// A value could not be encoded.
    #[error("the value of {key:?} cannot be encoded: {reason}")]
    Encode {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// A value could not be decoded. Reads report this as a counted miss; a batch, and a loader's own value, as this.
    #[error("the value of {key:?} cannot be decoded as the wanted type: {reason}")]
    Decode {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// The loader failed.
    #[error("loading failed: {0}")]
    Loader(#[source] LoaderError),
    /// The loader panicked.
    #[error("the loader panicked")]
    LoaderPanicked,
    /// The loader took longer than the hard timeout; it goes on, and its value is stored when it comes.
    #[error("loading took longer than {0:?}")]
    Timeout(Duration),
    /// A loader asked for a value that waits for what this loader loads: nobody would ever get it.
    #[error("the loader of {key:?} waits for itself")]
    Recursion {
        /// The key that was asked for.
        key: String,
    },
    /// A dataset could not be loaded.
    #[error("{0}")]
    Source(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// A setting of a space cannot be used.
    #[error("{setting}: {problem}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// A handle of another batch, or one that was used before.
    #[error("the handle belongs to another batch")]
    Handle,
}

impl ClientError {
    /// Whether Redis is down rather than refusing.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the same may succeed later without anybody's doing, so that it is worth a note.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Refused(error) => error.refusal == Refusal::NotWritable,
            _ => false,
        }
    }

    pub(super) fn unavailable(reason: &str) -> Self {
        Self::Unavailable { reason: reason.into(), is_noted: false }
    }

    pub(super) fn noted(self) -> Self {
        match self {
            Self::Unavailable { reason, .. } => Self::Unavailable { reason, is_noted: true },
            Self::Refused(error) => Self::Unavailable { reason: chain(&*error).into(), is_noted: true },
            other => other,
        }
    }
}

impl From<CacheError> for ClientError {
    fn from(error: CacheError) -> Self {
        if error.is_unreachable() {
            Self::unavailable(&chain(&error))
        } else {
            Self::Refused(Arc::new(error))
        }
    }
}
