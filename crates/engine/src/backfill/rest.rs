//! The rest of a backfill, key by key, where a row cannot be read and so no statement reads beyond it: a text that is no UTF-8, a
//! division by zero. Only that entry is missing then.

use tracing::warn;

use super::bookmark::Bookmark;
use super::{BackfillOptions, BackfillStream, tell};
use crate::encode::Failure;
use crate::error::{EngineError, chain};
use crate::key_pages::{KeyPage, KeyPages};
use crate::load::{Cause, Keys, LoadOptions, LoadReport, load};
use crate::rate_limit::RateLimit;
use crate::shown::cut;
use crate::stores::postgres::{DatasetSource, KeyValues, SourceError};

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
        warn!(dataset, reason = %cut(&reason), "a row cannot be read; the backfill goes on key by key");
        let behind = Bookmark::parse(&self.confirmed, self.dataset).map(|bookmark| bookmark.values);
        // Keys that are equal to the last one but for their text may be missing.
        self.load_keys(behind.iter().cloned(), options, rate).await?;
        let mut pages = KeyPages::behind(behind);
        while let Some(page) = pages.next(&self.context.postgres, source).await? {
            if options.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            match page {
                KeyPage::Keys(keys) => self.load_keys(keys.into_iter(), options, rate).await?,
                KeyPage::Unreadable(error) => {
                    let failure = Failure { key: None, reason: error.told() };
                    self.report.add(LoadReport::of_failures(vec![failure]));
                }
            }
        }
        Ok(())
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
            let done = load(self.context, self.dataset, chunk, because, &mut self.job).await?;
            rate.spend(done.stored).await;
            self.report.add(done);
            tell(options, self.report.stored_earlier + self.report.stored, 0 < self.report.stored_earlier);
        }
        Ok(())
    }
}
