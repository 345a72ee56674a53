//! From rows to entries: key, value, tags, lifetime.

use serde::Serialize;

use super::catalog::Dataset;
use crate::compress::compress;
use crate::process::now_ms;
use crate::stores::postgres::transcode::EncodeError;
use crate::stores::postgres::{Clock, DatasetSource, Life, Row};
use crate::stores::redis::Redis;
use cachekeeper_config::{self as config, Format, Rows};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::template::{RenderError, Rendered, Template};

/// A row that has no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The key, if the row has one.
    pub key: Option<String>,
    /// Why.
    pub reason: String,
}

/// Rows whose values make no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WithoutKey {
    /// How many.
    pub rows: u64,
    /// Why the first of them has none.
    pub reason: String,
}

/// Tags that one entry may have: each is a step of the script that stores it.
const TAGS_MAX: usize = 1_000;

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
    clock: Clock,
    /// On a shard of a cluster: rows of keys that it does not take are passed over.
    only: Option<&'a Redis>,
}

/// The entry whose rows are being read.
#[derive(Debug, Default)]
struct Pending {
    key: String,
    rows: u32,
    value: Vec<u8>,
    tags: Vec<String>,
    tag_count: usize,
    /// The shortest lifetime that its rows say, in milliseconds.
    life_ms: Option<u64>,
    /// The first end that its rows say, by this machine's clock, in milliseconds.
    ends_at_ms: Option<u64>,
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
            clock: Clock::default(),
            only: None,
        }
    }

    /// Passes over rows whose keys this handle does not take.
    #[must_use]
    pub(crate) fn taken_by(self, redis: &'a Redis) -> Self {
        Self { only: Some(redis), ..self }
    }

    /// With the clock of the server that the rows come from, as it was read with them.
    #[must_use]
    pub(crate) fn at(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Takes the next row; what is complete by now goes into `batch`.
    pub fn add(&mut self, row: &Row, batch: &mut EntryBatch) {
        let mut key = std::mem::take(&mut self.text);
        key.clear();
        let rendered = render(
            &self.dataset.settings.key,
            &self.source.key_columns,
            self.source,
            row,
            None,
            &mut key,
            Rendered::Key,
        );
        match rendered {
            Ok(()) if self.only.is_some_and(|redis| !redis.takes(&key)) => {}
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
                let life_ms = pending.life_ms.map_or(life_ms, |own| own.min(life_ms));
                // What has ended by now is gone at once; what ends until it is stored, then.
                let has_ended = pending.ends_at_ms.is_some_and(|end| end <= now_ms());
                let life_ms = if has_ended { 0 } else { life_ms };
                let value = assemble(self.dataset, pending.rows, &mut pending.value, &mut self.packed);
                batch.store_as(self.dataset.settings.format.shape());
                let position = batch.push_until(&pending.key, value, life_ms, pending.ends_at_ms);
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
        if let Err(reason) = pending.look_at((row, self.clock), self.source, &self.dataset.settings) {
            pending.fail(reason);
            return;
        }
        let is_json = matches!(self.dataset.settings.format, Format::Json { .. });
        if self.dataset.settings.rows == Rows::Many && is_json {
            pending.value.push(if pending.rows == 1 { b'[' } else { b',' });
        }
        let written = self.source.plan.write_row(row, DatasetSource::FIRST_COLUMN, &mut pending.value);
        if let Err(error) = written {
            pending.fail(error.to_string());
            return;
        }
        let most = self.dataset.settings.max_value_size;
        if most < pending.value.len() {
            let size = pending.value.len();
            pending.fail(format!("the value has {size} bytes or more, and max_value_size is {most}"));
            return;
        }
        if let Err(reason) = pending.add_tags(row, self.source, &self.dataset.settings) {
            pending.fail(reason);
        }
    }
}

impl Pending {
    /// The tags that a row gives its entry; the error is why it can have none.
    fn add_tags(
        &mut self,
        row: &Row,
        source: &DatasetSource,
        settings: &config::Dataset,
    ) -> Result<(), String> {
        let lists = source.tag_lists.iter();
        for ((tag, columns), list) in settings.tags.iter().zip(&source.tag_columns).zip(lists) {
            let failed = |error: RowError| format!("tag {tag}: {error}");
            let Some((place, column)) = list.and_then(|place| Some((place, *columns.get(place)?))) else {
                let rendered = render(tag, columns, source, row, None, self.next_tag(), Rendered::Tag);
                self.tag_count += usize::from(is_tag(rendered).map_err(failed)?);
                continue;
            };
            let elements = source.plan.texts(row, DatasetSource::FIRST_COLUMN, column);
            for element in elements.map_err(|error| failed(error.into()))? {
                let rendered = render(
                    tag,
                    columns,
                    source,
                    row,
                    Some((place, &element)),
                    self.next_tag(),
                    Rendered::Tag,
                );
                self.tag_count += usize::from(is_tag(rendered).map_err(failed)?);
                if TAGS_MAX < self.tag_count {
                    return Err(format!("more than {TAGS_MAX} tags"));
                }
            }
        }
        Ok(())
    }

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
        self.life_ms = None;
        self.ends_at_ms = None;
        self.failure = None;
    }

    /// What a row says beside its value; the error is why it can have none.
    fn look_at(
        &mut self,
        (row, clock): (&Row, Clock),
        source: &DatasetSource,
        settings: &config::Dataset,
    ) -> Result<(), String> {
        if settings.max_key_size < self.key.len() {
            let (size, most) = (self.key.len(), settings.max_key_size);
            return Err(format!("the key has {size} bytes, and max_key_size is {most}"));
        }
        if source.is_measured
            && let Some(size) = source.size(row)?
        {
            return Err(format!(
                "the row has {size} bytes or more, and max_value_size is {}",
                settings.max_value_size
            ));
        }
        if source.lifetime.is_some() {
            let least = |known: Option<u64>, own: u64| Some(known.map_or(own, |known| known.min(own)));
            match source.life(row, clock)? {
                Some(Life::For(ms)) => self.life_ms = least(self.life_ms, ms),
                Some(Life::Until(ms)) => self.ends_at_ms = least(self.ends_at_ms, ms),
                None => {}
            }
        }
        Ok(())
    }

    /// The entry cannot be, and what was gathered for it is given back.
    fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
        self.value = Vec::new();
    }
}

/// A row whose column is null has no such tag.
fn is_tag(rendered: Result<(), RowError>) -> Result<bool, RowError> {
    match rendered {
        Ok(()) => Ok(true),
        Err(RowError::Render(RenderError::Missing { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Appends a template with the values of a row; an element of a list stands in its place.
fn render(
    template: &Template,
    columns: &[usize],
    source: &DatasetSource,
    row: &Row,
    element: Option<(usize, &str)>,
    text: &mut String,
    what: Rendered,
) -> Result<(), RowError> {
    let mut failed = None;
    template
        .render_into(text, what, |position, output| {
            if let Some((place, element)) = element
                && place == position
            {
                output.push_str(element);
                return true;
            }
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
            Format::Raw { .. } | Format::Hash => {}
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
