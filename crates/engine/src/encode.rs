//! From rows to entries: key, value, tags, lifetime.

use super::catalog::Dataset;
use crate::compress::compress;
use crate::stores::postgres::transcode::EncodeError;
use crate::stores::postgres::{DatasetSource, Row};
use cachekeeper_config::{Format, Rows};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::template::{RenderError, Template};

/// A row that has no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The key, if the row has one.
    pub key: Option<String>,
    /// Why.
    pub reason: String,
}

/// Turns the rows of one load, those of one key together, into entries. One that fails, fails alone.
#[derive(Debug)]
pub struct Encoder<'a> {
    dataset: &'a Dataset,
    source: &'a DatasetSource,
    pending: Pending,
    text: String,
    packed: Vec<u8>,
    /// What failed so far.
    pub failures: Vec<Failure>,
}

/// The entry whose rows are being read.
#[derive(Debug, Default)]
struct Pending {
    key: String,
    rows: u32,
    value: Vec<u8>,
    tags: Vec<String>,
    tag_count: usize,
    failure: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum RowError {
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl<'a> Encoder<'a> {
    /// Begins a load.
    #[must_use]
    pub fn new(dataset: &'a Dataset, source: &'a DatasetSource) -> Self {
        Self {
            dataset,
            source,
            pending: Pending::default(),
            text: String::new(),
            packed: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Takes the next row; what is complete by now goes into `batch`.
    pub fn add(&mut self, row: &Row, batch: &mut EntryBatch) {
        let mut key = std::mem::take(&mut self.text);
        key.clear();
        let rendered =
            render(&self.dataset.settings.key, &self.source.key_columns, self.source, row, &mut key);
        match rendered {
            Ok(()) => {
                if self.pending.rows == 0 || key != self.pending.key {
                    self.finish(batch);
                    self.pending.key.push_str(&key);
                }
                self.add_row(row);
            }
            Err(error) => self.failures.push(Failure { key: None, reason: format!("no key: {error}") }),
        }
        self.text = key;
    }

    /// Puts the last entry into `batch`.
    pub fn finish(&mut self, batch: &mut EntryBatch) {
        let pending = &mut self.pending;
        if pending.rows == 0 {
            return;
        }
        if self.dataset.settings.rows == Rows::One && 1 < pending.rows {
            let message =
                format!("{} rows for this key; use rows = \"many\", or make the key unique", pending.rows);
            pending.failure.get_or_insert(message);
        }
        match pending.failure.take() {
            Some(reason) => self.failures.push(Failure { key: Some(pending.key.clone()), reason }),
            None => {
                let life = self.dataset.lifetimes.of(&pending.key).as_millis();
                let life_ms = u64::try_from(life).unwrap_or(u64::MAX);
                let value = assemble(self.dataset, pending.rows, &mut pending.value, &mut self.packed);
                let position = batch.push(&pending.key, value, life_ms);
                for tag in pending.tags.iter().take(pending.tag_count) {
                    batch.tag(position, tag);
                }
            }
        }
        pending.clear();
    }

    fn add_row(&mut self, row: &Row) {
        let pending = &mut self.pending;
        pending.rows += 1;
        if pending.failure.is_some() {
            return;
        }
        let is_json = matches!(self.dataset.settings.format, Format::Json { .. });
        if self.dataset.settings.rows == Rows::Many && is_json {
            pending.value.push(if pending.rows == 1 { b'[' } else { b',' });
        }
        let written = self.source.plan.write_row(row, DatasetSource::FIRST_COLUMN, &mut pending.value);
        if let Err(error) = written {
            pending.failure = Some(error.to_string());
            return;
        }
        for (tag, columns) in self.dataset.settings.tags.iter().zip(&self.source.tag_columns) {
            let text = pending.next_tag();
            // A row whose tag column is null has no such tag.
            match render(tag, columns, self.source, row, text) {
                Ok(()) => pending.tag_count += 1,
                Err(RowError::Render(RenderError::Missing { .. })) => {}
                Err(error) => pending.failure = Some(format!("tag {tag}: {error}")),
            }
        }
    }
}

impl Pending {
    /// The buffer for one more tag.
    fn next_tag(&mut self) -> &mut String {
        if self.tags.len() == self.tag_count {
            self.tags.push(String::new());
        }
        let last = self.tag_count;
        match self.tags.get_mut(last) {
            Some(text) => {
                text.clear();
                text
            }
            None => &mut self.key,
        }
    }

    fn clear(&mut self) {
        self.key.clear();
        self.value.clear();
        self.rows = 0;
        self.tag_count = 0;
        self.failure = None;
    }
}

fn render(
    template: &Template,
    columns: &[usize],
    source: &DatasetSource,
    row: &Row,
    text: &mut String,
) -> Result<(), RowError> {
    let mut failed = None;
    template
        .render_into(text, |position, output| {
            let Some(column) = columns.get(position) else {
                return false;
            };
            match source.plan.write_text(row, DatasetSource::FIRST_COLUMN, *column, output) {
                Ok(is_present) => is_present,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })
        .map_err(|error| failed.map_or(RowError::Render(error), RowError::Encode))
}

/// The whole value: one row, or the list of rows; compressed where that is wanted.
fn assemble<'b>(dataset: &Dataset, rows: u32, value: &'b mut Vec<u8>, packed: &'b mut Vec<u8>) -> &'b [u8] {
    if dataset.settings.rows == Rows::Many {
        match dataset.settings.format {
            Format::Json { .. } => value.push(b']'),
            Format::MessagePack { .. } => {
                packed.clear();
                // Writing into a vector cannot fail.
                drop(rmp::encode::write_array_len(packed, rows));
                packed.extend_from_slice(value);
                std::mem::swap(packed, value);
            }
            Format::Raw { .. } => {}
        }
    }
    match dataset.settings.compression {
        Some(compression) if compression.min_size <= value.len() => {
            packed.clear();
            // Where it cannot be compressed it stays as it is: readers tell by the frame's first bytes.
            if compress(compression.codec, value, packed) { packed } else { value }
        }
        Some(_) | None => value,
    }
}
