//! The keys of a dataset in their order, page by page, past those that cannot be read: a text that is no UTF-8, a division by zero.

use crate::stores::postgres::{DatasetSource, ErrorKind, KeyValues, Postgres, SourceError};

/// Most keys that are read at once.
const PAGE: usize = 10_000;

/// Where the reading is.
#[derive(Debug)]
pub(crate) struct KeyPages {
    behind: Option<KeyValues>,
    /// Keys behind that one which were read, or cannot be.
    skipped: usize,
    count: usize,
    is_over: bool,
}

/// What was found.
#[derive(Debug)]
pub(crate) enum KeyPage {
    /// The next keys; those with a null are no keys.
    Keys(Vec<KeyValues>),
    /// One that cannot be read.
    Unreadable(SourceError),
}

impl KeyPages {
    /// Begins behind a key, or at the first one.
    pub(crate) fn behind(key: Option<KeyValues>) -> Self {
        Self { behind: key, skipped: 0, count: PAGE, is_over: false }
    }

    /// The next page; none: all were read.
    pub(crate) async fn next(
        &mut self,
        postgres: &Postgres,
        source: &DatasetSource,
    ) -> Result<Option<KeyPage>, SourceError> {
        while !self.is_over {
            let keys =
                match postgres.keys_behind(source, self.behind.as_ref(), self.skipped, self.count).await {
                    Ok(keys) => keys,
                    Err(error) if error.kind == ErrorKind::Data && 1 < self.count => {
                        self.count /= 2;
                        continue;
                    }
                    Err(error) if error.kind == ErrorKind::Data => {
                        self.skipped += 1;
                        return Ok(Some(KeyPage::Unreadable(error)));
                    }
                    Err(error) => return Err(error),
                };
            self.is_over = keys.len() < self.count;
            self.count = PAGE.min(self.count * 2);
            match keys.iter().rposition(Option::is_some) {
                Some(last) => {
                    self.skipped = keys.len() - 1 - last;
                    self.behind = keys.get(last).cloned().flatten();
                }
                None => self.skipped += keys.len(),
            }
            return Ok(Some(KeyPage::Keys(keys.into_iter().flatten().collect())));
        }
        Ok(None)
    }
}
