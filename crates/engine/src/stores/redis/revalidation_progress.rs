//! How far the revalidation of a dataset is: people are told, and one that was interrupted goes on from there.

use std::str::FromStr;

use serde::Serialize;

use super::script::{Call, NOTE_PROGRESS};
use super::{Answer, CacheError, Precondition, Redis};

/// How far the revalidation of a dataset is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevalidationProgress {
    /// Entries that were loaded again or deleted.
    pub done: u64,
    /// Entries in Redis when it began.
    pub entries: u64,
    /// Where its scan is; none: it begins anew where it is interrupted.
    #[serde(skip)]
    pub place: Option<ScanPlace>,
}

/// A place up to which a scan has seen to every entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPlace {
    /// The newest cause when the revalidation began: of later ones it has seen to nothing.
    pub cause: u64,
    /// The run id of the server: the cursors of another mean nothing.
    pub run_id: String,
    /// Where the next page begins.
    pub cursor: u64,
}

impl FromStr for RevalidationProgress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or(());
        let (done, entries) = (number(word()?)?, number(word()?)?);
        // Earlier versions note no place.
        let place = match (word(), word(), word()) {
            (Ok(cause), Ok(run_id), Ok(cursor)) => {
                Some(ScanPlace { cause: number(cause)?, run_id: run_id.to_owned(), cursor: number(cursor)? })
            }
            _ => None,
        };
        Ok(Self { done, entries, place })
    }
}

fn number(word: &str) -> Result<u64, ()> {
    word.parse().map_err(drop)
}

impl RevalidationProgress {
    fn counts(&self) -> String {
        format!("{} {}", self.done, self.entries)
    }
}

impl ScanPlace {
    fn render(&self) -> String {
        format!("{} {} {}", self.cause, self.run_id, self.cursor)
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
        progress: &RevalidationProgress,
    ) -> Result<Answer<()>, CacheError> {
        let mut call = Call::namespace(&NOTE_PROGRESS, self, precondition);
        let (run, place) = match &progress.place {
            Some(place) => (place.run_id.as_str(), place.render()),
            None => ("", String::new()),
        };
        call.arg(progress.counts()).arg(run).arg(place);
        call.run(self).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_and_so_is_what_an_earlier_version_noted() {
        let place = Some(ScanPlace { cause: 7, run_id: "0af3".to_owned(), cursor: u64::MAX });
        let noted = format!("3 9 {}", place.as_ref().map_or(String::new(), ScanPlace::render));
        assert_eq!(noted.parse(), Ok(RevalidationProgress { done: 3, entries: 9, place }));
        assert_eq!("3 9".parse(), Ok(RevalidationProgress { done: 3, entries: 9, place: None }));
        for text in ["", "3", "3 nine", "3 9 seven run 1"] {
            assert_eq!(text.parse::<RevalidationProgress>(), Err(()), "{text:?}");
        }
    }
}
