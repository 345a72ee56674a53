//! The audit: compares Redis with Postgres, and accuses only where it is sure.
//!
//! Where the feed covers the dataset, an entry is wrong if it differs from its row although the watermark has passed the
//! snapshot at which the row was read, and the row is still the same afterwards (the method of Meta's Polaris: Bronson,
//! "Cache made consistent", 2022). Where it does not, what stays different for a second is accused.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::catalog::Dataset;
use super::context::Context;
use super::encode::Encoder;
use super::epoch;
use super::error::EngineError;
use super::load::{Cause, Job, LoadOptions, load};
use super::tokens::{self, WaitError};
use crate::compress::decompress;
use crate::stores::postgres::{DatasetSource, ErrorKind, KeyValues, Row};
use crate::stores::redis::{UseSign, Wanted};
use cachekeeper_config::{Format, Scope};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::keyspace::key_hash;
use cachekeeper_protocol::token::Token;

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
    /// Keys that changed too often while they were looked at, or for which the watermark did not come.
    pub unsure: Vec<String>,
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

/// How much is looked at. The default: everything, at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extent {
    /// So many entries, chosen at random, or all where there are fewer; missing ones are not looked for then.
    pub sample: Option<u64>,
    /// Most entries a second; a round in the background looks at what is there and remembers nothing.
    pub rate: Option<u64>,
}

/// Keys of each kind that are named in the text.
const SHOWN: usize = 10;

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
            ("unsure", &self.unsure),
        ];
        for (kind, keys) in kinds {
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

/// How long the watermark is waited for.
const WATERMARK_WITHIN: Duration = Duration::from_secs(10);
/// The largest value that is decoded.
const DECODED_MAX: usize = 64 << 20;

/// Compares the entries of a dataset.
///
/// # Errors
/// [`EngineError`] if a server does not answer.
pub async fn compare(
    context: &Context,
    dataset: &Dataset,
    extent: &Extent,
) -> Result<Comparison, EngineError> {
    let began = Instant::now();
    let source = dataset.source(&context.postgres).await?;
    let mut found = Comparison { dataset: dataset.name().to_owned(), ..Comparison::default() };
    if let Some(sample) = extent.sample {
        found.is_sample = true;
        let keys = sample_of(context, dataset, sample).await?;
        for page in keys.chunks(PAGE) {
            check_or_forget(context, dataset, &source, page.to_vec(), &mut found).await?;
        }
        return Ok(found);
    }
    // Only then every key is remembered.
    let is_whole = extent.rate.is_none();
    let mut seen: HashSet<String> = HashSet::new();
    let mut cursor = 0;
    loop {
        let (mut keys, next) = page_of(context, dataset, cursor).await?;
        keys.retain(|(key, _)| !is_whole || seen.insert(key.clone()));
        check_or_forget(context, dataset, &source, keys, &mut found).await?;
        if let Some(rate) = extent.rate {
            let due = Duration::from_millis(found.checked.saturating_mul(1_000) / rate.max(1));
            tokio::time::sleep_until(began + due).await;
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    if dataset.settings.scope == Scope::All && is_whole {
        find_missing(context, dataset, &source, &seen, &mut found).await?;
    }
    Ok(found)
}

/// One page of a scan over a dataset's keys, and where to go on.
async fn page_of(
    context: &Context,
    dataset: &Dataset,
    cursor: u64,
) -> Result<(Vec<(String, KeyValues)>, u64), EngineError> {
    let poll = epoch::poll(context).await?;
    let current = epoch::current(context).await?;
    let precondition = dataset.precondition(&current, &poll.incarnation);
    let wanted = [Wanted { prefix: dataset.settings.key.prefix(), left_max: None }];
    let answer = context.redis.scan(&precondition, "", (cursor, PAGE), UseSign::None, &wanted).await?;
    let page = context.checked(Some(dataset), answer)?;
    let entries = page.entries.into_iter().filter_map(|entry| {
        let (owner, values) = context.catalog.of_key(&entry.key)?;
        (owner.name() == dataset.name()).then_some((entry.key, values))
    });
    Ok((entries.collect(), page.cursor))
}

/// So many keys of a dataset, chosen at random: those with the smallest hashes. A scan may show a key twice, and then its hash
/// is the same.
async fn sample_of(
    context: &Context,
    dataset: &Dataset,
    sample: u64,
) -> Result<Vec<(String, KeyValues)>, EngineError> {
    let most = usize::try_from(sample).unwrap_or(usize::MAX);
    let seed: u64 = rand::random();
    let mut chosen: BTreeMap<u64, (String, KeyValues)> = BTreeMap::new();
    let mut cursor = 0;
    loop {
        let (keys, next) = page_of(context, dataset, cursor).await?;
        for (key, values) in keys {
            let hash = key_hash(format!("{seed} {key}").as_bytes());
            let is_smaller = chosen.last_key_value().is_none_or(|(largest, _)| hash < *largest);
            if is_smaller || chosen.len() < most {
                chosen.insert(hash, (key, values));
            }
            if most < chosen.len() {
                chosen.pop_last();
            }
        }
        cursor = next;
        if cursor == 0 {
            return Ok(chosen.into_values().collect());
        }
    }
}

/// Looks at keys; where the tables have changed, what is known of the query is forgotten.
async fn check_or_forget(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    keys: Vec<(String, KeyValues)>,
    found: &mut Comparison,
) -> Result<(), EngineError> {
    let checked = check_keys(context, dataset, source, keys, found).await;
    if matches!(&checked, Err(EngineError::Source(error)) if error.kind == ErrorKind::Changed) {
        dataset.forget_source();
    }
    checked
}

async fn check_keys(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    keys: Vec<(String, KeyValues)>,
    found: &mut Comparison,
) -> Result<(), EngineError> {
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
            // The first look only finds out what is suspect at all.
            let verdicts = look_at(context, dataset, source, chunk, 0 < look).await?;
            for ((key, values), verdict) in chunk.iter().zip(verdicts) {
                match verdict {
                    Verdict::Right => found.right += 1,
                    Verdict::Changing if is_last => found.unsure.push(key.clone()),
                    Verdict::Stale { is_sure } if is_sure || is_last => found.stale.push(key.clone()),
                    Verdict::Extra { is_sure } if is_sure || is_last => found.extra.push(key.clone()),
                    Verdict::Undecodable if is_last => found.undecodable.push(key.clone()),
                    _ => still.push((key.clone(), values.clone())),
                }
            }
        }
        suspects = still;
    }
    Ok(())
}

/// What one look says of an entry.
enum Verdict {
    Right,
    /// The row changed while it was looked at, or the watermark did not come.
    Changing,
    Stale {
        is_sure: bool,
    },
    Extra {
        is_sure: bool,
    },
    Undecodable,
}

async fn look_at(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    chunk: &[(String, KeyValues)],
    with_care: bool,
) -> Result<Vec<Verdict>, EngineError> {
    let values: Vec<KeyValues> = chunk.iter().map(|(_, values)| values.clone()).collect();
    let names: Vec<&str> = chunk.iter().map(|(key, _)| key.as_str()).collect();
    let before = context.postgres.load(source, &values).await?;
    let expected = encode(dataset, source, &before.rows);
    let mut is_sure = false;
    if with_care && is_covered(context, dataset).await? {
        let token = Token { incarnation: before.poll.incarnation, snapshot: before.poll.snapshot };
        is_sure = match tokens::wait(context, &token, Some(dataset.name()), WATERMARK_WITHIN).await {
            Ok((_, is_fresh)) => is_fresh,
            Err(WaitError::TooMany) => false,
            Err(WaitError::Flow(error)) => return Err(error),
        };
    }
    let cached = context.redis.read(&names).await?;
    let after = if is_sure {
        encode(dataset, source, &context.postgres.load(source, &values).await?.rows)
    } else {
        expected.clone()
    };
    let judge = |key: &String, value: Option<Vec<u8>>| match (value, expected.get(key), after.get(key)) {
        // Gone meanwhile: absence is always right.
        (None, _, _) => Verdict::Right,
        (Some(value), Some(row), _) | (Some(value), _, Some(row)) if value == *row => Verdict::Right,
        (Some(value), None, None) if is_null(&value) => Verdict::Right,
        (Some(_), row, again) if row != again => Verdict::Changing,
        (Some(value), Some(_), _) if !is_decodable(dataset, &value) => Verdict::Undecodable,
        (Some(_), Some(_), _) => Verdict::Stale { is_sure },
        (Some(_), None, _) => Verdict::Extra { is_sure },
    };
    Ok(chunk.iter().zip(cached).map(|((key, _), (value, _))| judge(key, value)).collect())
}

async fn is_covered(context: &Context, dataset: &Dataset) -> Result<bool, EngineError> {
    let watermark = context.redis.watermark().await?;
    Ok(watermark.is_some_and(|watermark| !watermark.not_covered.iter().any(|name| name == dataset.name())))
}

/// Whether these bytes are a value of the dataset's format, plain or as a frame.
fn is_decodable(dataset: &Dataset, value: &[u8]) -> bool {
    let Ok(plain) = decompress(value, DECODED_MAX) else { return false };
    match dataset.settings.format {
        Format::Json { .. } => serde_json::from_slice::<serde::de::IgnoredAny>(&plain).is_ok(),
        Format::MessagePack { .. } => rmp_serde::from_slice::<serde::de::IgnoredAny>(&plain).is_ok(),
        Format::Raw { .. } => true,
    }
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
) -> Result<(), EngineError> {
    let mut rows = context.postgres.backfill(source, None).await?;
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
    // Stored between the scan of Redis and the one of the table?
    for chunk in absent.chunks(PAGE) {
        let cached = context.redis.read(chunk).await?;
        let missing = chunk.iter().zip(cached).filter(|(_, (value, _))| value.is_none());
        found.missing.extend(missing.map(|(key, _)| key.clone()));
    }
    Ok(())
}

/// Loads again what was found wrong.
pub async fn fix(context: &Context, dataset: &Dataset, found: &Comparison) -> Result<u64, EngineError> {
    let wrong = found.stale.iter().chain(&found.extra).chain(&found.missing).chain(&found.undecodable);
    let keys = wrong.filter_map(|key| Some((key.clone(), dataset.read_key(key)?))).collect();
    let because = LoadOptions::because(Cause::Change);
    let report = load(context, dataset, keys, because, &mut Job::uncounted()).await?;
    Ok(report.stored + report.gone + report.invalidated)
}
