//! The rows of some keys, as they would be stored.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::limit::{is_over, left};
use super::memory::{EntrySize, HashSize};
use crate::catalog::Dataset;
use crate::encode::{Encoder, Failure};
use crate::error::EngineError;
use crate::process::now_ms;
use crate::stores::postgres::{DatasetSource, ErrorKind, KeyValues, Postgres};
use cachekeeper_config::Format;
use cachekeeper_protocol::entry::EntryBatch;

/// Reasons that are told apart.
const REASONS_MAX: usize = 20;
/// Bytes of values that are held at a time.
const BATCH_BYTES: usize = 8 << 20;

/// What some keys become.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Whether the keys were chosen at random.
    pub is_random: bool,
    /// The keys with an entry.
    pub keys: Vec<String>,
    /// Their sizes.
    pub sizes: Vec<EntrySize>,
    /// How long they live in milliseconds by their `ttl_column`, where the dataset has one.
    pub lives: Vec<u64>,
    /// How many keys have no entry because their rows' lives have ended.
    pub ended: usize,
    /// How many rows they have.
    pub rows: usize,
    /// How many tags they have.
    pub tags: usize,
    /// Bytes of those tags.
    pub tag_bytes: usize,
    /// Why rows would be refused, with how many and one of their keys.
    pub refused: BTreeMap<String, (usize, Option<String>)>,
    /// One entry.
    pub example: Option<Example>,
}

/// An entry as it would be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Its lifetime in milliseconds.
    pub life_ms: u64,
    /// Its tags.
    pub tags: Vec<String>,
}

impl Sample {
    /// Bytes of the smallest value, of all of them, and of the largest; none: there is none.
    #[must_use]
    pub fn values(&self) -> Option<(usize, usize, usize)> {
        let sizes = self.sizes.iter().map(|entry| entry.value);
        Some((sizes.clone().min()?, sizes.clone().sum(), sizes.max()?))
    }

    /// The usual length of a key.
    #[must_use]
    pub fn mean_key(&self) -> usize {
        self.sizes.iter().map(|entry| entry.key).sum::<usize>() / self.sizes.len().max(1)
    }

    /// The usual length of a tag.
    #[must_use]
    pub fn mean_tag(&self) -> usize {
        self.tag_bytes / self.tags.max(1)
    }
}

/// A sample that is being read.
pub(super) struct Sampling<'a> {
    dataset: &'a Dataset,
    source: &'a DatasetSource,
    sample: Sample,
}

impl<'a> Sampling<'a> {
    pub fn new(dataset: &'a Dataset, source: &'a DatasetSource) -> Self {
        Self { dataset, source, sample: Sample::default() }
    }

    /// Reads the rows of these keys; answers how many were read where that took too long.
    pub async fn read(
        &mut self,
        postgres: &Postgres,
        keys: &[KeyValues],
        until: Instant,
    ) -> Result<Option<usize>, EngineError> {
        // From the last to the first, so that what is halved goes on where it is.
        let mut open: Vec<&[KeyValues]> = keys.chunks(self.dataset.settings.batch).rev().collect();
        let mut read = 0;
        while let Some(chunk) = open.pop() {
            match postgres.look_at_rows(self.source, chunk, left(until)).await {
                Ok(rows) => {
                    self.add(&rows);
                    read += chunk.len();
                }
                Err(error) if is_over(&error) => return Ok(Some(read)),
                // One row makes the whole statement fail: find it by halves.
                Err(error) if error.kind == ErrorKind::Data && 1 < chunk.len() => {
                    let (first, second) = chunk.split_at(chunk.len() / 2);
                    open.extend([second, first]);
                }
                Err(error) if error.kind == ErrorKind::Data => {
                    let key = chunk.first().and_then(|values| self.dataset.key_of(values));
                    self.refuse(Failure { key, reason: error.told() });
                    read += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn add(&mut self, rows: &[crate::stores::postgres::Row]) {
        let mut encoder = Encoder::new(self.dataset, self.source);
        let mut batch = EntryBatch::default();
        self.sample.rows += rows.len();
        for row in rows {
            encoder.add(row, &mut batch);
            if BATCH_BYTES <= batch.bytes() {
                self.take(&batch);
                batch.clear();
            }
        }
        encoder.finish(&mut batch);
        self.take(&batch);
        encoder.failures.into_iter().for_each(|failure| self.refuse(failure));
    }

    fn take(&mut self, batch: &EntryBatch) {
        let format = &self.dataset.settings.format;
        let is_raw = matches!(format, Format::Raw { .. });
        let (has_own, now) = (self.dataset.settings.ttl_column.is_some(), now_ms());
        for entry in batch.iter() {
            let life = entry.life_at(now);
            if life == 0 {
                self.sample.ended += 1;
                continue;
            }
            if has_own {
                self.sample.lives.push(life);
            }
            let is_integer = is_raw && is_integer(entry.value);
            let hash = if *format == Format::Hash { HashSize::of(entry.value) } else { None };
            let size = EntrySize { key: entry.key.len(), value: entry.value.len(), is_integer, hash };
            self.sample.sizes.push(size);
            self.sample.keys.push(entry.key.to_owned());
        }
        // A tag that an entry has twice is one.
        for (tag, positions) in batch.tags() {
            self.sample.tags += positions.len();
            self.sample.tag_bytes += tag.len() * positions.len();
        }
        if self.sample.example.is_none()
            && let Some((at, entry)) = (0_u32..).zip(batch.iter()).find(|(_, entry)| 0 < entry.life_at(now))
        {
            let tags = batch.tagged().filter(|(_, position)| *position == at).map(|(tag, _)| tag.to_owned());
            self.sample.example = Some(Example {
                key: entry.key.to_owned(),
                value: entry.value.to_vec(),
                life_ms: entry.life_at(now),
                tags: tags.collect(),
            });
        }
    }

    fn refuse(&mut self, failure: Failure) {
        let reasons = &mut self.sample.refused;
        let form = form_of(&failure.reason);
        // The same fault of another row, with its own size or value: told once, as of the first.
        let known = reasons.keys().find(|known| form_of(known) == form).cloned();
        let is_full = REASONS_MAX <= reasons.len();
        let reason =
            known.unwrap_or_else(|| if is_full { "other reasons".to_owned() } else { failure.reason });
        reasons.entry(reason).or_insert((0, failure.key)).0 += 1;
    }

    pub fn finish(self) -> Sample {
        self.sample
    }
}

/// A reason without the numbers and the quoted values in it.
fn form_of(reason: &str) -> String {
    let outside = reason.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    outside.split(|one: char| one.is_ascii_digit()).filter(|part| !part.is_empty()).collect()
}

/// Whether Redis would take these bytes for a number.
fn is_integer(value: &[u8]) -> bool {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.parse::<i64>().is_ok_and(|number| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_one_form_whatever_the_row() {
        let of_size =
            |size: u64| form_of(&format!("the value has {size} bytes or more, and max_value_size is 1024"));
        assert_eq!(of_size(2_000), of_size(31));
        let of_value = |value: &str| form_of(&format!("invalid input syntax for type integer: \"{value}\""));
        assert_eq!(of_value("a"), of_value("b1"));
        assert_ne!(of_size(1), of_value("1"));
    }
}
