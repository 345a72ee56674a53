//! The feed's loads. What fails for one row concerns that row; what fails for many (a database that is slow, locked,
//! unreachable, out of connections) deletes nothing: the dataset is left out of the watermark, and the stamp slots of its
//! changed entries become pending (R10). Their stamps are raised all the same, so nothing older than the change is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::{EngineError, chain};
use crate::invalidate::{RaisedKeys, ReloadMembers, delete_keys, raise_keys};
use crate::load::{Cause, Job, Keys, LoadOptions, LoadReport, load};
use crate::log_limit;
use crate::metrics::ByReason;
use crate::shown::cut;
use crate::stores::postgres::{ErrorKind, KeyValues, Poll, QUICK_MAX};
use crate::stores::redis::{Epoch, Failed};
use cachekeeper_config::Scope;

/// Loads under way at once.
const LOADS_AHEAD: usize = 3;
/// How long the loads of a dataset may fail, or one of them make no progress, before it is left out. Meanwhile the others wait.
const PATIENCE: Duration = QUICK_MAX;
/// The same once another dataset was left out: many may read one locked table, and all of them together have to be quick.
const PATIENCE_IN_TROUBLE: Duration = Duration::from_millis(250);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(200);
/// Pauses between two probes of a dataset that is left out.
const PROBE_MIN: Duration = Duration::from_millis(100);
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Datasets whose entries cannot be loaded now. What changes of them meanwhile is not even tried, so that no batch waits; one
/// probe for each finds out when it can be.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// For each dataset, why.
    reasons: BTreeMap<String, String>,
    probes: JoinSet<String>,
}

impl Troubles {
    /// Takes note of probes that have ended.
    pub fn look(&mut self) {
        while let Some(probe) = self.probes.try_join_next() {
            match probe {
                Ok(dataset) => {
                    let what = "changed entries can be loaded again";
                    if let Some(times) = log_limit::due(what, &dataset, 1) {
                        info!(dataset, times, "{what}");
                    }
                    self.reasons.remove(&dataset);
                }
                // Whose it was is not known: all are tried again.
                Err(_panicked) => self.reasons.clear(),
            }
        }
    }

    fn begin(&mut self, context: &Context, dataset: &Dataset, keys: Keys, error: &EngineError) {
        let name = dataset.name();
        if self.reasons.contains_key(name) {
            return;
        }
        context.metrics.feed_restarts.get_or_create(&ByReason::new("load")).inc();
        let error_text = chain(error);
        let what =
            "changed entries cannot be loaded: they are kept, and the dataset is left out of the watermark";
        if let Some(times) = log_limit::due(what, name, 1) {
            warn!(dataset = name, error = error_text, times, "{what}");
        }
        self.reasons.insert(name.to_owned(), format!("changed entries cannot be loaded: {}", short(error)));
        if let Some(dataset) = context.catalog.get(name).cloned() {
            let context = context.unpinned();
            self.probes.spawn(async move {
                // What has failed is what is tried: a probe that is easier to answer would end the trouble too early.
                let mut pause = Backoff::new(PROBE_MIN, PROBE_MAX);
                loop {
                    pause.wait().await;
                    match load(&context, &dataset, &keys, within(QUICK_MAX), &mut Job::uncounted()).await {
                        Ok(_) => return dataset.name().to_owned(),
                        Err(error) => {
                            debug!(error = %chain(&error), "changed entries still cannot be loaded");
                        }
                    }
                }
            });
        }
    }
}

/// The loads of one batch.
pub(super) struct FeedLoads<'a> {
    context: &'a Context,
    troubles: &'a mut Troubles,
    /// What could not be loaded, by dataset; none: whatever cannot be loaded ends the batch.
    failed: Option<BTreeMap<String, Failed>>,
    patience: Duration,
    /// Datasets of which a part was loaded.
    loaded: BTreeSet<String>,
}

/// What became of a part of the keys.
struct Part {
    /// Scripts that ran.
    count: u64,
    /// What was not loaded, because of this failure or one before.
    unloaded: Option<(RaisedKeys, Option<EngineError>)>,
}

impl<'a> FeedLoads<'a> {
    /// A batch that leaves datasets out. What could not be loaded is to be recorded before the cursor moves.
    pub fn leaving_out(context: &'a Context, troubles: &'a mut Troubles) -> Self {
        troubles.look();
        let failed = Some(BTreeMap::new());
        Self { context, troubles, failed, patience: PATIENCE, loaded: BTreeSet::new() }
    }

    /// A batch that ends with the first failure: somebody else applies it again.
    pub fn ending(context: &'a Context, troubles: &'a mut Troubles) -> Self {
        Self { context, troubles, failed: None, patience: PATIENCE, loaded: BTreeSet::new() }
    }

    /// Raises changed keys and loads them again.
    pub async fn reload_changed(
        &mut self,
        dataset: &Dataset,
        poll: &Poll,
        keys: &[(String, KeyValues)],
        job: &mut Job,
    ) -> Result<(), EngineError> {
        let is_left_out = AtomicBool::new(self.troubles.reasons.contains_key(dataset.name()));
        let (context, patience, id) = (self.context, self.patience, job.id.clone());
        let is_left_out = &is_left_out;
        let mut parts = keys.chunks(dataset.settings.batch.max(1)).map(|keys| {
            let mut job = Job { id: id.clone(), count: 0 };
            async move {
                let patience = (!is_left_out.load(Ordering::Relaxed)).then_some(patience);
                let part = apply(context, dataset, (poll, keys), patience, &mut job).await?;
                is_left_out.fetch_or(part.unloaded.is_some(), Ordering::Relaxed);
                Ok::<_, EngineError>(part)
            }
        });
        // The first one of the batch alone: a database in trouble is asked once.
        if !self.loaded.contains(dataset.name())
            && let Some(first) = parts.next()
        {
            let part = first.await?;
            self.note(dataset, part, job)?;
            self.loaded.insert(dataset.name().to_owned());
        }
        let mut parts = stream::iter(parts.collect::<Vec<_>>()).buffer_unordered(LOADS_AHEAD);
        while let Some(part) = parts.next().await {
            self.note(dataset, part?, job)?;
        }
        Ok(())
    }

    /// Raises and deletes changed keys of a dataset whose definition this worker has not. Where Redis is to hold every row, they are
    /// pending for a worker that has.
    pub async fn discard(
        &mut self,
        dataset: &Dataset,
        poll: &Poll,
        keys: &[(String, KeyValues)],
        job: &mut Job,
    ) -> Result<(), EngineError> {
        delete_keys(self.context, poll, keys, job).await?;
        self.note_discarded(dataset);
        Ok(())
    }

    /// Members of tags were invalidated: those of such datasets were deleted.
    pub fn note_foreign_members(&mut self) {
        let catalog = Arc::clone(&self.context.catalog);
        let foreign =
            catalog.iter().filter(|dataset| dataset.is_foreign() && !dataset.settings.tags.is_empty());
        foreign.for_each(|dataset| self.note_discarded(dataset));
    }

    fn note_discarded(&mut self, dataset: &Dataset) {
        if let Some(failed) = self.failed.as_mut().filter(|_| dataset.is_filled_whole()) {
            failed.entry(dataset.name().to_owned()).or_default().is_missing = true;
        }
    }

    fn note(&mut self, dataset: &Dataset, part: Part, job: &mut Job) -> Result<(), EngineError> {
        job.count += part.count;
        let Some((raised, error)) = part.unloaded else { return Ok(()) };
        let Some(failed) = &mut self.failed else {
            // Somebody who ends with the first failure has not left anything out before it.
            return error.map_or(Ok(()), Err);
        };
        let failed = failed.entry(dataset.name().to_owned()).or_default();
        raised.existing.iter().for_each(|(key, _)| failed.kept.insert(key));
        failed.is_missing |= !raised.absent.is_empty() && dataset.is_filled_whole();
        if let Some(error) = error {
            self.patience = PATIENCE_IN_TROUBLE;
            self.troubles.begin(self.context, dataset, raised.wanted(), &error);
        }
        Ok(())
    }

    /// Records what could not be loaded, as steps of the job: the move of the cursor that follows leaves it out.
    pub async fn record(&mut self, at: (&Epoch, &str), job: &mut Job) -> Result<(), EngineError> {
        for (name, failed) in std::mem::take(&mut self.failed).into_iter().flatten() {
            if failed.is_empty() {
                continue;
            }
            let reason =
                self.troubles.reasons.get(&name).map_or("changed entries cannot be loaded", String::as_str);
            let answer = self.context.redis.mark_slots(at, (&name, reason), &failed, &job.id).await?;
            self.context.checked(None, answer)?;
            job.count += 1;
        }
        Ok(())
    }
}

impl ReloadMembers for FeedLoads<'_> {
    async fn reload(
        &mut self,
        dataset: &Dataset,
        poll: &Poll,
        keys: Keys,
        job: &mut Job,
    ) -> Result<LoadReport, EngineError> {
        let mut own = Job { id: job.id.clone(), count: 0 };
        let keys: Keys = keys.into_iter().filter(|(key, _)| self.context.redis.takes(key)).collect();
        let mut raised = raise_keys(self.context, dataset, poll, &keys, &mut own).await?;
        // Members that are gone have expired, or were deleted.
        raised.absent.clear();
        let is_left_out = self.troubles.reasons.contains_key(dataset.name());
        let patience = (!is_left_out).then_some(self.patience);
        let part = see_to(self.context, dataset, raised, patience, &mut own).await?;
        self.note(dataset, part, job)?;
        Ok(LoadReport::default())
    }
}

/// Sees to changed keys. Those of a dataset that has an entry for every row are all loaded, so their stores raise them, and they are
/// raised before that only where there is no patience or no answer. Of another dataset only those that exist are loaded, which the
/// raise tells (R10).
async fn apply(
    context: &Context,
    dataset: &Dataset,
    (poll, keys): (&Poll, &[(String, KeyValues)]),
    patience: Option<Duration>,
    job: &mut Job,
) -> Result<Part, EngineError> {
    let (Scope::All, Some(limit)) = (dataset.settings.scope, patience) else {
        let raised = raise_keys(context, dataset, poll, keys, job).await?;
        return see_to(context, dataset, raised, patience, job).await;
    };
    match load_patiently(context, dataset, keys, limit, job).await {
        Ok(()) => Ok(Part { count: job.count, unloaded: None }),
        Err(error) if error.is_of_many() => {
            let raised = raise_keys(context, dataset, poll, keys, job).await?;
            Ok(Part { count: job.count, unloaded: Some((raised, Some(error))) })
        }
        Err(error) => Err(error),
    }
}

/// Loads raised keys, unless there is no patience for that; answers what was not loaded.
async fn see_to(
    context: &Context,
    dataset: &Dataset,
    raised: RaisedKeys,
    patience: Option<Duration>,
    job: &mut Job,
) -> Result<Part, EngineError> {
    if raised.existing.is_empty() && raised.absent.is_empty() {
        return Ok(Part { count: job.count, unloaded: None });
    }
    let Some(patience) = patience else {
        return Ok(Part { count: job.count, unloaded: Some((raised, None)) });
    };
    let loaded = load_patiently(context, dataset, &raised.clone().wanted(), patience, job).await;
    let unloaded = match loaded {
        Ok(()) => None,
        Err(error) if error.is_of_many() => Some((raised, Some(error))),
        Err(error) => return Err(error),
    };
    Ok(Part { count: job.count, unloaded })
}

/// Loads, again with growing pauses where that fails for many, until there is no patience left.
async fn load_patiently(
    context: &Context,
    dataset: &Dataset,
    keys: &[(String, KeyValues)],
    patience: Duration,
    job: &mut Job,
) -> Result<(), EngineError> {
    let until = Instant::now() + patience;
    let mut pauses = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut failure = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Err(error) = load(context, dataset, keys, within(left), job).await else {
            return Ok(());
        };
        if !error.is_of_many() {
            return Err(error);
        }
        // The first one says why; later ones may only say that the time is over.
        let error = failure.take().unwrap_or(error);
        let pause = pauses.pause();
        if until <= Instant::now() + pause {
            return Err(error);
        }
        failure = Some(error);
        tokio::time::sleep(pause).await;
    }
}

fn within(limit: Duration) -> LoadOptions {
    LoadOptions { within: Some(limit.min(QUICK_MAX)), ..LoadOptions::because(Cause::Change) }
}

/// What people read beside the dataset's name; the whole error is in the log.
fn short(error: &EngineError) -> String {
    match error {
        EngineError::Source(error) => match error.kind {
            ErrorKind::Cancelled => "no answer in time: a table is locked, or Postgres is slow".to_owned(),
            ErrorKind::Forbidden | ErrorKind::Statement | ErrorKind::Data => {
                cut(&error.message()).into_owned()
            }
            _ => error.kind.to_string(),
        },
        _ => "the dataset does not fit the database".to_owned(),
    }
}
