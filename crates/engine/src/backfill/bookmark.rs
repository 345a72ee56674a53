//! Where an interrupted backfill is, as text in the metadata.

use std::time::Duration;

use crate::catalog::Dataset;
use crate::stores::postgres::KeyValues;
use crate::stores::redis::{Backfilled, Metadata};

/// When the backfill of this dataset began that was interrupted, if one was.
#[must_use]
pub fn interrupted(metadata: &Metadata, dataset: &Dataset) -> Option<Backfilled> {
    Some(Bookmark::parse(metadata.backfills.get(dataset.name())?, dataset)?.began)
}

/// Where an interrupted backfill is.
pub(super) struct Bookmark {
    pub(super) key: String,
    pub(super) values: KeyValues,
    pub(super) entries: u64,
    /// When the one began that was interrupted first.
    pub(super) began: Backfilled,
}

impl Bookmark {
    pub(super) fn render(&self) -> String {
        format!("{} {} {} {}", self.entries, self.began.began_ms, self.began.cause, self.key)
    }

    pub(super) fn parse(text: &str, dataset: &Dataset) -> Option<Self> {
        let (entries, rest) = text.split_once(' ')?;
        let (began, rest) = rest.split_once(' ')?;
        let (cause, key) = rest.split_once(' ')?;
        let values = dataset.read_key(key)?;
        Some(Self {
            key: key.to_owned(),
            values,
            entries: entries.parse().ok()?,
            began: Backfilled { began_ms: began.parse().ok()?, cause: cause.parse().ok()? },
        })
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
