//! The rest of a backfill, key by key, where a row cannot be read and so no statement reads beyond it: a text that is no UTF-8, a
//! division by zero. Only that entry is missing then.

use tracing::warn;

use super::bookmark::Bookmark;
use super::{BackfillOptions, BackfillStream, RateLimit, tell};
use crate::encode::Failure;
use crate::error::{EngineError, chain};
use crate::load::{Cause, Keys, LoadOptions, LoadReport, load};
use crate::stores::postgres::{DatasetSource, ErrorKind, KeyValues, SourceError};

/// Most keys that are read at once.
const PAGE: usize = 10_000;

impl BackfillStream<'_> {
    /// Loads what comes behind the last confirmed entry.
    pub(super) async fn load_rest(
        &mut self,
        source: &DatasetSource,
        reason: &SourceError,
        options: &BackfillOptions,
        rate: &mut RateLimit,
    ) -> Result<(), EngineError> {
        let (dataset, reason) = (self.dataset.name(), chain(reason));
        warn!(dataset, reason, "a row cannot be read; the backfill goes on key by key");
        let mut behind = Bookmark::parse(&self.confirmed, self.dataset).map(|bookmark| bookmark.values);
        // Keys that are equal to the last one but for their text may be missing.
        self.load_keys(behind.iter().cloned(), options, rate).await?;
        // Keys behind that one which cannot be read.
        let mut skipped = 0;
        let mut count = PAGE;
        loop {
            if options.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let keys = match self.context.postgres.keys_behind(source, behind.as_ref(), skipped, count).await
            {
                Ok(keys) => keys,
                Err(error) if error.kind == ErrorKind::Data && 1 < count => {
                    count /= 2;
                    continue;
                }
                Err(error) if error.kind == ErrorKind::Data => {
                    let failure = Failure { key: None, reason: chain(&error) };
                    self.report.add(LoadReport { failures: vec![failure], ..LoadReport::default() });
                    skipped += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.load_keys(keys.iter().flatten().cloned(), options, rate).await?;
            if keys.len() < count {
                return Ok(());
            }
            count = PAGE.min(count * 2);
            match keys.iter().rposition(Option::is_some) {
                Some(last) => {
                    skipped = keys.len() - 1 - last;
                    behind = keys.into_iter().nth(last).flatten();
                }
                None => skipped += keys.len(),
            }
        }
    }

    async fn load_keys(
        &mut self,
        keys: impl Iterator<Item = KeyValues>,
        options: &BackfillOptions,
        rate: &mut RateLimit,
    ) -> Result<(), EngineError> {
        let named: Keys = keys.filter_map(|values| Some((self.dataset.key_of(&values)?, values))).collect();
        for chunk in named.chunks(self.dataset.settings.batch) {
            if options.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let because = LoadOptions::because(Cause::Backfill);
            let done = load(self.context, self.dataset, chunk.to_vec(), because, &mut self.job).await?;
            rate.spend(done.stored).await;
            self.report.add(done);
            tell(options, self.entries_before + self.report.stored, 0 < self.entries_before);
        }
        Ok(())
    }
}
