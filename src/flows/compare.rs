//! Compares Redis with Postgres, and accuses only what stays different while both are looked at again.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::catalog::Dataset;
use super::context::Context;
use super::encode::Encoder;
use super::epoch;
use super::error::FlowError;
use super::reload::{Cause, Job, current_epoch, gone_error, reload};
use crate::config::Scope;
use crate::domain::entry::EntryBatch;
use crate::stores::postgres::{DatasetSource, KeyValues, Row, Trouble};
use crate::stores::redis::{Answer, UseSign, Wanted};

/// What was found in one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The dataset.
    pub dataset: String,
    /// Entries looked at.
    pub checked: u64,
    /// Entries that are exactly what the query says.
    pub right: u64,
    /// Keys whose value differs.
    pub stale: Vec<String>,
    /// Keys without a row.
    pub extra: Vec<String>,
    /// Rows without an entry, where Redis is to hold every row.
    pub missing: Vec<String>,
}

impl Comparison {
    /// Whether Redis is as it should be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.stale.is_empty() && self.extra.is_empty() && self.missing.is_empty()
    }
}

/// Keys of each kind that are named in the text.
const SHOWN: usize = 10;

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} entries looked at, {} right", self.dataset, self.checked, self.right)?;
        for (kind, keys) in [("stale", &self.stale), ("extra", &self.extra), ("missing", &self.missing)] {
            if keys.is_empty() {
                continue;
            }
            let shown: Vec<&str> = keys.iter().take(SHOWN).map(String::as_str).collect();
            let more = if SHOWN < keys.len() { ", …" } else { "" };
            write!(formatter, "\n  {} {kind}: {}{more}", keys.len(), shown.join(", "))?;
        }
        Ok(())
    }
}

const PAGE: usize = 500;
/// Looks at one key before it is accused; a change that was just committed may still be on its way.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

/// Compares every entry of a dataset. `told` hears how many were looked at.
///
/// # Errors
/// [`FlowError`] if a server does not answer.
pub async fn compare(
    context: &Context,
    dataset: &Dataset,
    mut told: impl FnMut(u64),
) -> Result<Comparison, FlowError> {
    let source = dataset.source(&context.postgres).await?;
    let mut found = Comparison { dataset: dataset.name().to_owned(), ..Comparison::default() };
    let mut seen: HashSet<String> = HashSet::new();
    let prefix = dataset.settings.key.prefix();
    let mut cursor = 0;
    loop {
        let order_poll = epoch::poll(context).await?;
        let current = current_epoch(context).await?;
        let standing = dataset.standing(&current, &order_poll.incarnation);
        let wanted = [Wanted { prefix, left_max: None }];
        let page = match context.redis.walk(&standing, "", (cursor, PAGE), UseSign::None, &wanted).await? {
            Answer::Done(page) => page,
            Answer::Gone(gone) => return Err(gone_error(context, dataset, gone)),
        };
        let keys: Vec<(String, KeyValues)> = page
            .entries
            .into_iter()
            .filter(|entry| seen.insert(entry.key.clone()))
            .filter_map(|entry| {
                let (owner, values) = context.catalog.of_key(&entry.key)?;
                (owner.name() == dataset.name()).then_some((entry.key, values))
            })
            .collect();
        let checked = check_keys(context, dataset, &source, keys, &mut found).await;
        if matches!(&checked, Err(FlowError::Source(error)) if error.trouble == Trouble::Changed) {
            dataset.forget_source();
        }
        checked?;
        told(found.checked);
        cursor = page.cursor;
        if cursor == 0 {
            break;
        }
    }
    if dataset.settings.scope == Scope::All {
        find_missing(context, dataset, &source, &seen, &mut found).await?;
    }
    Ok(found)
}

async fn check_keys(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    keys: Vec<(String, KeyValues)>,
    found: &mut Comparison,
) -> Result<(), FlowError> {
    found.checked += keys.len() as u64;
    let mut suspects = keys;
    for look in 0..LOOKS {
        if suspects.is_empty() {
            return Ok(());
        }
        if 0 < look {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        let mut still = Vec::new();
        let is_last = look + 1 == LOOKS;
        for chunk in suspects.chunks(PAGE) {
            let values: Vec<KeyValues> = chunk.iter().map(|(_, values)| values.clone()).collect();
            let names: Vec<&str> = chunk.iter().map(|(key, _)| key.as_str()).collect();
            let cached = context.redis.read(&names).await?;
            let loaded = context.postgres.load(source, &values).await?;
            let expected = encode(dataset, source, &loaded.rows);
            for ((key, values), (value, _)) in chunk.iter().zip(cached) {
                match (value, expected.get(key)) {
                    // Gone meanwhile: absence is always right.
                    (None, _) => found.right += 1,
                    (Some(value), Some(expected)) if value == *expected => found.right += 1,
                    (Some(value), None) if is_null(&value) => found.right += 1,
                    (Some(_), None) if is_last => found.extra.push(key.clone()),
                    (Some(_), Some(_)) if is_last => found.stale.push(key.clone()),
                    (Some(_), _) => still.push((key.clone(), values.clone())),
                }
            }
        }
        suspects = still;
    }
    Ok(())
}

/// An explicit null of a negative entry.
fn is_null(value: &[u8]) -> bool {
    value == [0xc0] || value == b"null"
}

fn encode(dataset: &Dataset, source: &DatasetSource, rows: &[Row]) -> HashMap<String, Vec<u8>> {
    let mut encoder = Encoder::new(dataset, source);
    let mut batch = EntryBatch::default();
    for row in rows {
        encoder.add(row, &mut batch);
    }
    encoder.finish(&mut batch);
    batch.iter().map(|entry| (entry.key.to_owned(), entry.value.to_vec())).collect()
}

async fn find_missing(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    seen: &HashSet<String>,
    found: &mut Comparison,
) -> Result<(), FlowError> {
    let mut rows = context.postgres.pass(source, None).await?;
    let mut encoder = Encoder::new(dataset, source);
    let mut batch = EntryBatch::default();
    let mut absent = Vec::new();
    let mut take = |batch: &mut EntryBatch| {
        absent
            .extend(batch.iter().filter(|entry| !seen.contains(entry.key)).map(|entry| entry.key.to_owned()));
        batch.clear();
    };
    while let Some(group) = rows.next().await? {
        for row in &group {
            encoder.add(row, &mut batch);
        }
        take(&mut batch);
    }
    encoder.finish(&mut batch);
    take(&mut batch);
    // Stored between the walk and the pass?
    for chunk in absent.chunks(PAGE) {
        let cached = context.redis.read(chunk).await?;
        let missing = chunk.iter().zip(cached).filter(|(_, (value, _))| value.is_none());
        found.missing.extend(missing.map(|(key, _)| key.clone()));
    }
    Ok(())
}

/// Loads again what was found wrong.
///
/// # Errors
/// [`FlowError`].
pub async fn fix(context: &Context, dataset: &Dataset, found: &Comparison) -> Result<u64, FlowError> {
    let wrong = found.stale.iter().chain(&found.extra).chain(&found.missing);
    let keys = wrong.filter_map(|key| Some((key.clone(), dataset.read_key(key)?))).collect();
    let report = reload(context, dataset, keys, Cause::Change, &mut Job::uncounted()).await?;
    Ok(report.stored + report.gone + report.invalidated)
}
