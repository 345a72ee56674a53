//! Refresh-ahead: what is read does not expire.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::catalog::Dataset;
use super::context::Context;
use super::epoch;
use super::error::EngineError;
use super::load::store::null_of;
use super::load::{self, Cause, Job, Keys, LoadOptions, load};
use super::use_scan::idle_for;
use crate::metrics::ByDataset;
use crate::stores::postgres::{KeyValues, QUICK_MAX};
use crate::stores::redis::{Epoch, Metadata, Precondition, ScannedEntry, ServerFacts, UseSign, Wanted};
use cachekeeper_config::{OnMiss, Scope};
use cachekeeper_protocol::freshness::Verdict;

/// Keys looked at by one script of the scan.
const SCAN_PAGE: usize = 500;

/// What one scan of Redis has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefreshReport {
    /// Entries that were loaded again.
    pub refreshed: u64,
    /// Entries that nobody read: they may expire.
    pub unread: u64,
    /// Entries kept past their lifetime, because Postgres is down.
    pub extended: u64,
}

/// A scan of Redis that refreshes what is due. One page at a time, so that its actor can answer in between.
#[derive(Debug)]
pub struct RefreshScan {
    cursor: u64,
    sign: UseSign,
    /// What remains of an entry's life until the next scan may see it.
    next_scan: Duration,
    /// Datasets that were asked for in this scan; those whose entries cannot be loaded, with what is done instead.
    asked: BTreeMap<String, Option<Outage>>,
    /// What happened so far.
    pub report: RefreshReport,
}

impl RefreshScan {
    /// Begins a scan.
    #[must_use]
    pub fn new(facts: &ServerFacts, next_scan: Duration) -> Self {
        Self {
            cursor: 0,
            sign: facts.use_sign(),
            next_scan,
            asked: BTreeMap::new(),
            report: RefreshReport::default(),
        }
    }

    /// Looks at the next page. True: the scan is over.
    ///
    /// # Errors
    /// [`EngineError`]; the next scan meets the same entries.
    pub async fn step(&mut self, context: &Context, outage: Option<Outage>) -> Result<bool, EngineError> {
        let context = &*context.pinned().await?;
        let interested: Vec<&Arc<Dataset>> = context
            .catalog
            .iter()
            .filter(|dataset| !dataset.is_superseded())
            .filter(|dataset| {
                dataset.settings.refresh_ahead.is_some() && !dataset.is_paused() || outage.is_some()
            })
            .collect();
        if interested.is_empty() {
            return Ok(true);
        }
        let wanted: Vec<Wanted<'_>> = interested
            .iter()
            .map(|dataset| Wanted {
                prefix: dataset.settings.key.prefix(),
                left_max: dataset.lifetimes.due_within(),
            })
            .collect();
        let (current, incarnation) = epoch_of(context, outage.as_ref()).await?;
        let precondition =
            Precondition { epoch: &current, incarnation: &incarnation, dataset: "", revision: "" };
        let page = (self.cursor, SCAN_PAGE);
        let page =
            context.checked(None, context.redis.scan(&precondition, page, self.sign, &wanted).await?)?;
        self.cursor = page.cursor;
        let mut due: BTreeMap<&str, (&Arc<Dataset>, Vec<Due>)> = BTreeMap::new();
        for entry in page.entries.into_iter().filter(|entry| context.redis.takes(&entry.key)) {
            let Some((dataset, values)) = context.catalog.of_key(&entry.key) else {
                continue;
            };
            let Some(known) = interested.iter().find(|known| known.name() == dataset.name()) else {
                continue;
            };
            let own = self.asked.get(known.name()).cloned().flatten();
            if let Some(entry) = self.judge(context, known, entry, values, outage.as_ref().or(own.as_ref())) {
                due.entry(known.name()).or_insert_with(|| (*known, Vec::new())).1.push(entry);
            }
        }
        for (dataset, mut entries) in due.into_values() {
            leave_out_nulls(context, dataset, &mut entries).await?;
            match &outage {
                None => self.load_or_extend(context, dataset, entries).await?,
                Some(outage) => self.extend(context, dataset, &entries, outage).await?,
            }
        }
        Ok(self.cursor == 0)
    }

    fn judge(
        &mut self,
        context: &Context,
        dataset: &Dataset,
        entry: ScannedEntry,
        values: KeyValues,
        outage: Option<&Outage>,
    ) -> Option<Due> {
        let left = entry.left?;
        let idle = idle_for(self.sign, entry.used);
        let verdict = dataset.lifetimes.judge(&entry.key, left, idle);
        let holds_all = dataset.settings.scope == Scope::All;
        let is_wanted = match (verdict, outage) {
            (Verdict::Fresh, _) => return None,
            (Verdict::Due, None) => true,
            (Verdict::Due, Some(_)) => holds_all || !dataset.lifetimes.is_unread_extension(left, idle),
            (Verdict::Unread, _) => holds_all,
        };
        if !is_wanted {
            self.report.unread += 1;
            // Counted once: at the last look before it expires.
            if left <= self.next_scan {
                context.metrics.unread.get_or_create(&ByDataset::new(dataset.name())).inc();
            }
        }
        is_wanted.then_some(Due { key: entry.key, values, left })
    }

    /// Where entries of one dataset cannot be loaded, because its table is locked for example, they are extended as in an outage;
    /// the others are refreshed all the same.
    async fn load_or_extend(
        &mut self,
        context: &Context,
        dataset: &Dataset,
        entries: Vec<Due>,
    ) -> Result<(), EngineError> {
        let known = self.asked.get(dataset.name()).cloned();
        if let Some(Some(outage)) = known {
            return self.extend(context, dataset, &entries, &outage).await;
        }
        let is_new = known.is_none();
        // A probe first: a locked table is given up before entries that were extended expire.
        let limit = (dataset.lifetimes.extension() / 4).min(QUICK_MAX);
        let probed = if is_new { load::probe(context, dataset, limit).await } else { Ok(()) };
        let error = match probed {
            Ok(()) => self.load(context, dataset, &entries).await.err(),
            Err(error) => Some(error),
        };
        if !is_new && error.is_none() {
            return Ok(());
        }
        let metadata = context.redis.metadata("").await?;
        match error {
            None => {
                if metadata.outages.contains_key(dataset.name()) {
                    context.redis.note_outage(Some(dataset.name()), None).await?;
                }
                self.asked.insert(dataset.name().to_owned(), None);
                Ok(())
            }
            Some(error) if error.is_of_many() => {
                context.redis.note_outage(Some(dataset.name()), Some(metadata.now_ms)).await?;
                let since = metadata.outages.get(dataset.name()).copied();
                let Some(outage) = Outage::since(since, &metadata, metadata.now_ms) else {
                    return Err(error);
                };
                self.extend(context, dataset, &entries, &outage).await?;
                self.asked.insert(dataset.name().to_owned(), Some(outage));
                Ok(())
            }
            Some(error) => Err(error),
        }
    }

    async fn load(
        &mut self,
        context: &Context,
        dataset: &Dataset,
        entries: &[Due],
    ) -> Result<(), EngineError> {
        let keys: Keys = entries.iter().map(|due| (due.key.clone(), due.values.clone())).collect();
        let because = LoadOptions::because(Cause::Refresh);
        let report = load(context, dataset, &keys, because, &mut Job::uncounted()).await?;
        self.report.refreshed += report.stored;
        context.metrics.refreshed.get_or_create(&ByDataset::new(dataset.name())).inc_by(report.stored);
        Ok(())
    }

    async fn extend(
        &mut self,
        context: &Context,
        dataset: &Dataset,
        entries: &[Due],
        outage: &Outage,
    ) -> Result<(), EngineError> {
        // In all, an entry may outlive its lifetime by `max_stale`; it was alive when the outage began.
        let Some(budget) = dataset.settings.max_stale.checked_sub(outage.lasted) else {
            return Ok(());
        };
        let life = dataset.lifetimes.extension().min(budget);
        if life.is_zero() {
            return Ok(());
        }
        let entries: Vec<(String, Duration)> =
            entries.iter().map(|due| (due.key.clone(), due.left)).collect();
        let precondition = dataset.precondition(&outage.epoch, &outage.incarnation);
        let answer = context.redis.extend(&precondition, &entries, life).await?;
        let extended = context.checked(Some(dataset), answer)?;
        self.report.extended += extended;
        context.metrics.extended.get_or_create(&ByDataset::new(dataset.name())).inc_by(extended);
        Ok(())
    }
}

/// An explicit null says that there is no row. It ends after its own lifetime, read or not: whoever asks for keys at random would else
/// have them kept for ever.
async fn leave_out_nulls(
    context: &Context,
    dataset: &Dataset,
    due: &mut Vec<Due>,
) -> Result<(), EngineError> {
    if dataset.settings.negative_ttl.is_none() || due.is_empty() {
        return Ok(());
    }
    let keys: Vec<&str> = due.iter().map(|due| due.key.as_str()).collect();
    let values = context.redis.beginnings(&keys).await?;
    let null = null_of(&dataset.settings.format);
    let mut is_null = values.iter().map(|value| Some(value.as_slice()) == null);
    due.retain(|_| !is_null.next().unwrap_or_default());
    Ok(())
}

/// An entry to act on.
struct Due {
    key: String,
    values: KeyValues,
    left: Duration,
}

/// Postgres does not answer, or not for a dataset.
#[derive(Debug, Clone)]
pub struct Outage {
    /// For how long.
    pub lasted: Duration,
    /// The epoch and incarnation that the entries belong to, as Redis says.
    pub epoch: Epoch,
    /// The incarnation.
    pub incarnation: String,
}

impl Outage {
    /// What the metadata says of an outage that goes on at `now_ms`; none where no entries can be extended. One that is not
    /// recorded has just begun, or concerns this worker alone: another one moves the watermark.
    #[must_use]
    pub fn read(metadata: &Metadata, now_ms: u64) -> Option<Self> {
        Self::since(metadata.outage_since, metadata, now_ms)
    }

    /// One that began at a moment; where none is recorded, now.
    fn since(since: Option<u64>, metadata: &Metadata, now_ms: u64) -> Option<Self> {
        if !metadata.is_whole {
            return None;
        }
        Some(Self {
            lasted: Duration::from_millis(now_ms.saturating_sub(since.unwrap_or(now_ms))),
            epoch: metadata.epoch?,
            incarnation: metadata.incarnation.clone()?,
        })
    }
}

async fn epoch_of(context: &Context, outage: Option<&Outage>) -> Result<(Epoch, String), EngineError> {
    match outage {
        Some(outage) => Ok((outage.epoch, outage.incarnation.clone())),
        None => {
            let poll = epoch::poll(context).await?;
            Ok((epoch::current(context).await?, poll.incarnation))
        }
    }
}

/// What became of the misses of one dataset.
#[derive(Debug)]
pub struct Missed {
    /// The dataset.
    pub dataset: Arc<Dataset>,
    /// How many keys were missed.
    pub keys: u64,
    /// How many entries were stored; a row may be gone. Where they could not be loaded, the next miss tries again.
    pub filled: Result<u64, EngineError>,
}

/// Fills what applications missed, where the dataset asks for it. What cannot be loaded keeps no other dataset from being filled.
pub async fn fill_missed(context: &Context, keys: Vec<String>) -> Vec<Missed> {
    let mut by_dataset = super::invalidate::Reloads::new();
    for key in keys {
        let Some((dataset, values)) = context.catalog.of_key(&key) else {
            continue;
        };
        if dataset.settings.on_miss == OnMiss::Load && !dataset.is_superseded() {
            let entry = by_dataset.entry(dataset.name().to_owned());
            entry.or_insert_with(|| (Arc::clone(dataset), Vec::new())).1.push((key, values));
        }
    }
    let mut missed = Vec::new();
    for (dataset, keys) in by_dataset.into_values() {
        let labels = ByDataset::new(dataset.name());
        let because = LoadOptions::because(Cause::Miss);
        let report = load(context, &dataset, &keys, because, &mut Job::uncounted()).await;
        let filled = report.map(|report| report.stored);
        let keys = keys.len() as u64;
        match &filled {
            Ok(filled) => context.metrics.misses.get_or_create(&labels).inc_by(*filled),
            Err(_) => context.metrics.unfilled.get_or_create(&labels).inc_by(keys),
        };
        missed.push(Missed { dataset, keys, filled });
    }
    missed
}
