//! The audit: compares Redis with Postgres, and accuses only where it is sure.
//!
//! Where the feed covers the dataset, an entry is wrong if it differs from its row although the watermark has passed the
//! snapshot at which the row was read, and nothing newer has touched the entry ([`sure`]). Where it does not, what stays different for a
//! second is accused; but not in the background while a revalidation of the dataset is pending, because that sees to it.

mod comparison;
mod expected;
pub(crate) mod sure;
mod unread;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

pub use self::comparison::Comparison;
pub(crate) use self::expected::{Expected, expect};
use self::sure::{Moment, clock_of, is_null};
use super::catalog::Dataset;
use super::context::Context;
use super::encode::Encoder;
use super::epoch;
use super::error::EngineError;
use super::key_pages::{KeyPage, KeyPages};
use super::load::{Cause, Job, Keys, LoadOptions, load};
use super::tokens::{self, WaitError};
use crate::compress::decompress;
use crate::decoded;
use crate::rate_limit::RateLimit;
use crate::stores::postgres::{DatasetSource, ErrorKind, KeyValues};
use crate::stores::redis::SeenEntry;
use cachekeeper_config::Scope;
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::keyspace::key_hash;
use cachekeeper_protocol::token::Token;

/// How much is looked at. The default: everything, at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extent {
    /// So many entries, chosen at random, or all where there are fewer; missing ones are not looked for then.
    pub sample: Option<u64>,
    /// Most entries a second; a round in the background looks at what is there and remembers nothing.
    pub rate: Option<u64>,
}

impl Extent {
    /// Nobody has asked for it now.
    fn is_in_background(&self) -> bool {
        self.rate.is_some()
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
    let mut found = compare_all(context, dataset, extent).await?;
    // What differs each time that it is read is unsure, at best.
    let mut differing = [&mut found.stale, &mut found.extra, &mut found.missing, &mut found.unsure];
    if differing.iter().any(|keys| !keys.is_empty()) && clock_of(context, dataset).await.is_some() {
        found.clock = differing.iter_mut().flat_map(|keys| std::mem::take(*keys)).collect();
    }
    Ok(found)
}

async fn compare_all(
    context: &Context,
    dataset: &Dataset,
    extent: &Extent,
) -> Result<Comparison, EngineError> {
    let mut rate = RateLimit::new(extent.rate);
    // By another definition than the registered one every entry would look wrong.
    epoch::revision(context, dataset).await?;
    let source = dataset.source(&context.postgres).await?;
    let mut found = Comparison { dataset: dataset.name().to_owned(), ..Comparison::default() };
    if let Some(sample) = extent.sample {
        found.is_sample = true;
        let keys = sample_of(context, dataset, sample).await?;
        for page in keys.chunks(PAGE) {
            check_or_forget(context, (dataset, &source), page.to_vec(), extent, &mut found).await?;
        }
        return Ok(found);
    }
    // Only then every key is remembered.
    let is_whole = extent.rate.is_none();
    let unread = if is_whole { None } else { unread::sign_of(context, dataset).await? };
    let mut seen: HashSet<String> = HashSet::new();
    let mut cursor = 0;
    loop {
        let (mut keys, next) = match unread {
            None => page_of(context, dataset, cursor).await?,
            Some(sign) => unread::page_without(context, dataset, (cursor, PAGE), sign).await?,
        };
        keys.retain(|(key, _)| !is_whole || seen.insert(key.clone()));
        let checked_before = found.checked;
        check_or_forget(context, (dataset, &source), keys, extent, &mut found).await?;
        rate.spend(found.checked - checked_before).await;
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
    let prefix = dataset.settings.key.prefix();
    let answer = context.redis.scan_keys(&precondition, "", (cursor, PAGE), prefix).await?;
    let (cursor, keys) = context.checked(Some(dataset), answer)?;
    let entries = keys.into_iter().filter_map(|key| {
        let (owner, values) = context.catalog.of_key(&key)?;
        (owner.name() == dataset.name()).then_some((key, values))
    });
    Ok((entries.collect(), cursor))
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
    (dataset, source): (&Dataset, &DatasetSource),
    keys: Vec<(String, KeyValues)>,
    extent: &Extent,
    found: &mut Comparison,
) -> Result<(), EngineError> {
    let checked = check_keys(context, (dataset, source), keys, extent, found).await;
    if matches!(&checked, Err(EngineError::Source(error)) if error.kind == ErrorKind::Changed) {
        dataset.forget_source();
    }
    checked
}

async fn check_keys(
    context: &Context,
    (dataset, source): (&Dataset, &DatasetSource),
    keys: Vec<(String, KeyValues)>,
    extent: &Extent,
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
            let is_patient = 0 < look && extent.is_in_background();
            let verdicts = look_at(context, (dataset, source), chunk, (0 < look, is_patient)).await?;
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
    (dataset, source): (&Dataset, &DatasetSource),
    chunk: &[(String, KeyValues)],
    (with_care, is_patient): (bool, bool),
) -> Result<Vec<Verdict>, EngineError> {
    let names: Vec<&str> = chunk.iter().map(|(key, _)| key.as_str()).collect();
    let expected = expect(context, dataset, source, chunk).await?;
    let is_covered = is_covered(context, dataset).await?;
    let is_followed = is_covered || is_patient && is_pending(context, dataset).await?;
    if with_care && is_covered {
        let poll = expected.poll.clone();
        let token = Token { incarnation: poll.incarnation, snapshot: poll.snapshot };
        match tokens::wait(context, &token, Some(dataset.name()), WATERMARK_WITHIN).await {
            Ok(_) | Err(WaitError::TooMany) => {}
            Err(WaitError::Flow(error)) => return Err(error),
        }
    }
    let seen = context.redis.see_in_order(&names, usize::MAX).await?;
    let again = if with_care { Some(expect(context, dataset, source, chunk).await?) } else { None };
    let after = again.as_ref().unwrap_or(&expected);
    let moment = Moment::of(&seen, &expected, dataset);
    let shape = dataset.settings.format.shape();
    let judge = |key: &String, entry: &SeenEntry| {
        let is_sure = with_care && moment.is_sure_of(entry);
        let (row, again) = (expected.values.get(key), after.values.get(key));
        let is_unreadable = expected.unreadable.contains_key(key) && after.unreadable.contains_key(key);
        // Gone meanwhile: absence is always right.
        if !entry.is_there() {
            return Verdict::Right;
        }
        let is_the_row = |row: Option<&Vec<u8>>| row.is_some_and(|row| *row == entry.value);
        if entry.is(shape) && (is_the_row(row) || is_the_row(again)) {
            return Verdict::Right;
        }
        let is_refused = expected.unreadable.contains_key(key) || after.unreadable.contains_key(key);
        if row.is_none() && again.is_none() && !is_refused && is_null(dataset, entry) {
            return Verdict::Right;
        }
        // Where the feed follows the dataset, whoever is not sure has seen something on its way, or what is still to be revalidated.
        if with_care && (row != again || is_followed && !is_sure) {
            return Verdict::Changing;
        }
        match row {
            None if is_unreadable => Verdict::Stale { is_sure },
            Some(_) if !entry.is(shape) || !is_decodable(dataset, &entry.value) => Verdict::Undecodable,
            Some(_) => Verdict::Stale { is_sure },
            None => Verdict::Extra { is_sure },
        }
    };
    Ok(chunk.iter().zip(&seen.entries).map(|((key, _), entry)| judge(key, entry)).collect())
}

pub(crate) async fn is_covered(context: &Context, dataset: &Dataset) -> Result<bool, EngineError> {
    let watermark = context.redis.watermark().await?;
    Ok(watermark.is_some_and(|watermark| !watermark.not_covered.iter().any(|name| name == dataset.name())))
}

/// Whether the watermark leaves the dataset out only until its entries are revalidated, which it is known that they must be.
async fn is_pending(context: &Context, dataset: &Dataset) -> Result<bool, EngineError> {
    let metadata = context.redis.metadata("").await?;
    Ok(metadata.is_pending(dataset.name()) || metadata.unfilled.contains_key(dataset.name()))
}

/// Whether these bytes are a value of the dataset's format, plain or as a frame.
fn is_decodable(dataset: &Dataset, value: &[u8]) -> bool {
    decompress(value, DECODED_MAX).is_ok_and(|plain| decoded::is_of(&plain, &dataset.settings.format))
}

async fn find_missing(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    seen: &HashSet<String>,
    found: &mut Comparison,
) -> Result<(), EngineError> {
    let context = &*context.pinned().await?;
    let absent = match absent_rows(context, dataset, source, seen, found).await {
        Err(EngineError::Source(error)) if error.kind == ErrorKind::Data => {
            absent_keys(context, dataset, source, seen, found).await?
        }
        absent => absent?,
    };
    // Stored between the scan of Redis and the one of the table?
    for chunk in absent.chunks(PAGE) {
        let seen = context.redis.see_in_order(chunk, 0).await?;
        let missing =
            chunk.iter().zip(seen.entries).filter(|(_, entry)| !entry.is_there() && entry.is_covered);
        found.missing.extend(missing.map(|(key, _)| key.clone()));
    }
    Ok(())
}

/// The keys of rows that were not seen in Redis, from one statement.
async fn absent_rows(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    seen: &HashSet<String>,
    found: &mut Comparison,
) -> Result<Vec<String>, EngineError> {
    let mut rows = context.postgres.backfill(source, None).await?;
    let mut encoder = Encoder::new(dataset, source).at(rows.clock).taken_by(&context.redis);
    let mut batch = EntryBatch::default();
    let mut absent = Vec::new();
    let mut take = |batch: &mut EntryBatch| {
        absent.extend(
            batch
                .iter()
                .filter(|entry| entry.life_ms != 0 && !seen.contains(entry.key))
                .map(|entry| entry.key.to_owned()),
        );
        batch.clear();
    };
    while let Some(group) = rows.next().await? {
        for row in group.iter() {
            encoder.add(row, &mut batch);
        }
        take(&mut batch);
    }
    encoder.finish(&mut batch);
    take(&mut batch);
    let failures = encoder.failures.into_iter();
    found.unreadable.extend(failures.map(|failure| failure.key.unwrap_or(failure.reason)));
    Ok(absent)
}

/// The same key by key, because no statement reads beyond a row that it cannot send.
async fn absent_keys(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    seen: &HashSet<String>,
    found: &mut Comparison,
) -> Result<Vec<String>, EngineError> {
    let mut absent = Vec::new();
    let mut pages = KeyPages::behind(None);
    while let Some(page) = pages.next(&context.postgres, source).await? {
        let keys = match page {
            KeyPage::Keys(keys) => keys,
            KeyPage::Unreadable(error) => {
                found.unreadable.push(error.message());
                continue;
            }
        };
        let named = keys.into_iter().filter_map(|values| Some((dataset.key_of(&values)?, values)));
        let is_unseen = |(key, _): &(String, KeyValues)| !seen.contains(key) && context.redis.takes(key);
        let unseen: Vec<(String, KeyValues)> = named.filter(is_unseen).collect();
        for chunk in unseen.chunks(PAGE) {
            let expected = expect(context, dataset, source, chunk).await?;
            found.unreadable.extend(expected.unreadable.into_keys());
            absent.extend(expected.values.into_keys());
        }
    }
    Ok(absent)
}

/// Loads again what was found wrong.
pub async fn fix(context: &Context, dataset: &Dataset, found: &Comparison) -> Result<u64, EngineError> {
    let wrong = found.stale.iter().chain(&found.extra).chain(&found.missing).chain(&found.undecodable);
    let keys: Keys = wrong.filter_map(|key| Some((key.clone(), dataset.read_key(key)?))).collect();
    let because = LoadOptions::because(Cause::Audit);
    let report = load(context, dataset, &keys, because, &mut Job::uncounted()).await?;
    Ok(report.stored + report.gone + report.invalidated)
}
