//! What an audit found, and how it is told.

use std::fmt;

use serde::Serialize;

use crate::shown::{cut, escaped};

/// Keys of each kind that are named in the text.
const SHOWN: usize = 10;

/// What was found in one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The dataset.
    pub dataset: String,
    /// Entries looked at.
    pub checked: u64,
    /// Entries that are exactly what the query says.
    pub right: u64,
    /// Keys whose bytes are no value of the dataset's format.
    pub undecodable: Vec<String>,
    /// Keys of rows that Postgres cannot send, or that have no form in the dataset's format, so that there is no entry to be missed;
    /// where not even the key can be read, why. An entry that there still is counts as stale.
    pub unreadable: Vec<String>,
    /// Keys that changed too often while they were looked at, or for which the watermark did not come.
    pub unsure: Vec<String>,
    /// Keys whose value differs where the query depends on the clock: they are renewed when their lifetime ends.
    pub clock: Vec<String>,
    /// Whether so many entries were chosen at random, not all looked at.
    pub is_sample: bool,
    /// Keys whose value differs.
    pub stale: Vec<String>,
    /// Keys without a row.
    pub extra: Vec<String>,
    /// Rows without an entry, where Redis is to hold every row.
    pub missing: Vec<String>,
}

impl Comparison {
    /// Adds what was found of the same dataset on another shard.
    pub fn add(&mut self, other: Self) {
        self.is_sample |= other.is_sample;
        self.checked += other.checked;
        self.right += other.right;
        self.undecodable.extend(other.undecodable);
        self.unreadable.extend(other.unreadable);
        self.unsure.extend(other.unsure);
        self.clock.extend(other.clock);
        self.stale.extend(other.stale);
        self.extra.extend(other.extra);
        self.missing.extend(other.missing);
    }

    /// Whether Redis is as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let wrong = [&self.stale, &self.extra, &self.missing, &self.undecodable];
        wrong.iter().all(|keys| keys.is_empty())
    }

    /// The share of right entries as a number of nines: 3 means 99.9 %; none: not one was wrong.
    #[must_use]
    pub fn nines(&self) -> Option<f64> {
        let wrong = self.stale.len() + self.extra.len() + self.missing.len() + self.undecodable.len();
        let all = self.checked + self.missing.len() as u64;
        #[expect(clippy::cast_precision_loss, reason = "a share for people")]
        let share = wrong as f64 / all.max(1) as f64;
        (0 < wrong).then(|| 0.0 - share.log10())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.checked == 1 { "entry" } else { "entries" };
        let how = if self.is_sample { ", chosen at random" } else { "" };
        write!(
            formatter,
            "{}: {} {plural} looked at{how}, {} right",
            self.dataset, self.checked, self.right
        )?;
        if let Some(nines) = self.nines() {
            write!(formatter, " ({nines:.1} nines)")?;
        }
        let kinds = [
            ("stale", &self.stale),
            ("extra", &self.extra),
            ("missing", &self.missing),
            ("undecodable", &self.undecodable),
            ("unreadable", &self.unreadable),
            ("unsure", &self.unsure),
            ("other by the clock", &self.clock),
        ];
        for (kind, keys) in kinds {
            if keys.is_empty() {
                continue;
            }
            let shown = |key: &String| escaped(&cut(key)).into_owned();
            let shown: Vec<String> = keys.iter().take(SHOWN).map(shown).collect();
            let more = if SHOWN < keys.len() { ", …" } else { "" };
            write!(formatter, "\n  {} {kind}: {}{more}", keys.len(), shown.join(", "))?;
        }
        Ok(())
    }
}
