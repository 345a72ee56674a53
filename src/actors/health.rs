//! What readiness and `status` say: facts that actors write and the admin listener reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use cachekeeper_engine::metrics::{ByDependency, Metrics};
use cachekeeper_engine::shown::few;
use cachekeeper_engine::stores::redis::Watermark;

/// The facts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    facts: Arc<Mutex<Facts>>,
    metrics: Arc<Metrics>,
    /// Those of the shards that are followed, by their numbers; none: this is not that of a worker on a cluster.
    shards: Option<Arc<Mutex<BTreeMap<u32, Self>>>>,
}

/// What is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Servers and subscriptions that are not reachable, with the reason. Missing: not asked yet.
    pub dependencies: BTreeMap<&'static str, Result<(), String>>,
    /// The tasks that have been started.
    pub tasks: BTreeSet<&'static str>,
    /// When each task ended last though it was not to, in Unix milliseconds, and why.
    pub ends: BTreeMap<&'static str, (u64, String)>,
    /// The newest epochs, the oldest first.
    pub epochs: VecDeque<SeenEpoch>,
    /// What is wrong with the schema in Postgres, where something of ours has failed there.
    pub schema: Option<String>,
    /// What the worker's user in Redis lacks and needs.
    pub lacking: Vec<String>,
    /// Why misses are not filled, where that is asked for.
    pub misses: Option<String>,
    /// Datasets of which a miss could not be filled, each with when that was last and the reason.
    pub unfilled: BTreeMap<String, (Instant, String)>,
    /// Streams that this worker cannot work off, with the reason.
    pub streams: BTreeMap<&'static str, String>,
    /// Events may have been missed, and it is not written down yet which entries that concerns.
    pub has_gap: bool,
    /// Datasets of which another worker has a newer definition.
    pub superseded: BTreeSet<String>,
    /// Datasets that have not been warmed since the start.
    pub not_warmed: BTreeSet<String>,
    /// Datasets that a person has paused, each with since when, in Unix milliseconds.
    pub paused: BTreeMap<String, u64>,
    /// Datasets that cannot work, with the reason.
    pub broken: BTreeMap<String, String>,
    /// Datasets that ask for what this worker does not give, with the reason.
    pub unmet: BTreeMap<String, String>,
    /// Datasets whose changes may be missed, with the reason.
    pub uncovered: BTreeMap<String, String>,
    /// Datasets that the watermark does not cover yet because they had another name, with the reason. The worker is ready all the
    /// same: a rollout ends it.
    pub renamed: BTreeMap<String, String>,
    /// The watermark, and when it last moved as seen from here; none: there is none, or the feed is off.
    pub watermark: Option<(Watermark, Instant)>,
    /// How long the watermark may stand still.
    pub max_lag: Option<Duration>,
    /// Datasets whose entries are being revalidated, with the reason.
    pub pending: BTreeMap<String, String>,
    /// Datasets whose changed entries could not be loaded, with the reason.
    pub left_out: BTreeMap<String, String>,
    /// The epoch.
    pub epoch: Option<String>,
    /// On a cluster: why it is not known which shards there are, or some master is none.
    pub cluster: Option<String>,
    /// Why Redis stores nothing more, where it is full.
    pub full: Option<String>,
    /// Set while the worker stops.
    pub is_stopping: bool,
    /// Set once the worker takes no more work.
    pub is_draining: bool,
}

/// A miss that could not be filled is told for so long: another one may never come.
const UNFILLED_FOR: Duration = Duration::from_secs(60);
/// Epochs that are remembered.
const EPOCHS_MAX: usize = 20;

/// An epoch, as this worker has seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEpoch {
    /// Its id.
    pub id: String,
    /// Since when this worker has seen it, in Unix milliseconds.
    pub since_ms: u64,
    /// Why it began: what made datasets pending; none: it was there before this worker, or nothing was.
    pub cause: Option<String>,
}

/// The dependencies that readiness waits for.
pub const DEPENDENCIES: [&str; 3] = ["postgres", "redis", "subscription"];

impl Health {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { facts: Arc::default(), metrics, shards: None }
    }

    /// That of a worker on a cluster: whether it is ready is a matter of its shards.
    #[must_use]
    pub fn of_cluster(metrics: Arc<Metrics>) -> Self {
        Self { shards: Some(Arc::default()), ..Self::new(metrics) }
    }

    /// Notes the shards that are followed now.
    pub fn note_shards(&self, followed: BTreeMap<u32, Self>) {
        if let Some(shards) = &self.shards {
            *shards.lock().unwrap_or_else(PoisonError::into_inner) = followed;
        }
    }

    /// Those of the shards that are followed, by their numbers; none: this is not that of a worker on a cluster.
    #[must_use]
    pub fn shards(&self) -> Option<BTreeMap<u32, Self>> {
        self.shards.as_ref().map(|shards| shards.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// A copy of all facts.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same; on a cluster of datasets what any shard knows.
    #[must_use]
    pub fn all_facts(&self) -> Facts {
        let mut all = self.facts();
        let shards = self.shards().unwrap_or_default();
        if !shards.is_empty() {
            all.not_warmed.clear();
        }
        for facts in shards.values().map(Self::facts) {
            all.pending.extend(facts.pending);
            all.uncovered.extend(facts.uncovered);
            all.renamed.extend(facts.renamed);
            all.not_warmed.extend(facts.not_warmed);
            all.broken.extend(facts.broken);
        }
        all
    }

    /// Changes facts.
    pub fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Notes whether a dependency answers. True: that is news.
    pub fn note(&self, dependency: &'static str, state: Result<(), String>) -> bool {
        let is_up = state.is_ok();
        self.metrics.dependency_up.get_or_create(&ByDependency::new(dependency)).set(i64::from(is_up));
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let before = facts.dependencies.insert(dependency, state);
        before.map(|before| before.is_ok()) != Some(is_up)
    }

    /// Notes whether the last misses of a dataset were filled; if not, why.
    pub fn note_unfilled(&self, dataset: &str, reason: Option<String>) {
        self.update(|facts| match reason {
            Some(reason) => drop(facts.unfilled.insert(dataset.to_owned(), (Instant::now(), reason))),
            None => drop(facts.unfilled.remove(dataset)),
        });
    }

    /// Notes whether a stream can be worked off.
    pub fn note_stream(&self, stream: &'static str, state: Result<(), String>) {
        self.update(|facts| {
            match state {
                Ok(()) => facts.streams.remove(stream),
                Err(reason) => facts.streams.insert(stream, reason),
            };
        });
    }

    /// What is worth knowing of a worker that may be ready all the same; on a cluster of each shard.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let of_shard = |(number, shard): (u32, Self)| {
            let notes = shard.facts().notes().into_iter();
            notes.map(move |note| format!("shard {number}: {note}"))
        };
        let shards = self.shards().unwrap_or_default().into_iter().flat_map(of_shard);
        self.facts().notes().into_iter().chain(shards).collect()
    }

    /// Why a server, or a subscription at one, is not reached; none: it is. On a cluster of all shards together.
    #[must_use]
    pub fn not_reached(&self, dependency: &str) -> Option<String> {
        let of_one = |facts: &Facts| match facts.dependencies.get(dependency) {
            Some(Ok(())) => None,
            Some(Err(reason)) => Some(reason.clone()),
            None => Some("not reached yet".to_owned()),
        };
        match self.shards() {
            None => of_one(&self.facts()),
            Some(shards) if shards.is_empty() => Some("no shard is followed yet".to_owned()),
            Some(shards) => shards.into_iter().find_map(|(number, shard)| {
                of_one(&shard.facts()).map(|reason| format!("shard {number}: {reason}"))
            }),
        }
    }

    /// Why the worker is not ready; empty: it is.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let facts = self.facts();
        let mut reasons = Vec::new();
        if facts.is_stopping {
            reasons.push("stopping".to_owned());
        }
        if facts.is_draining {
            // Nobody looks at the rest any more.
            reasons
                .push("draining: this worker takes no more work; start it again to have it work".to_owned());
            return reasons;
        }
        if let Some(shards) = self.shards() {
            reasons.extend(facts.cluster.iter().map(|reason| format!("cluster: {reason}")));
            if shards.is_empty() {
                reasons.push("cluster: no shard is followed yet".to_owned());
            }
            for (number, shard) in &shards {
                reasons.extend(shard.reasons().into_iter().map(|reason| format!("shard {number}: {reason}")));
            }
            return reasons;
        }
        for dependency in DEPENDENCIES {
            match facts.dependencies.get(dependency) {
                Some(Ok(())) => {}
                Some(Err(reason)) => reasons.push(format!("{dependency}: {reason}")),
                None => reasons.push(format!("{dependency}: not reached yet")),
            }
        }
        if facts.has_gap {
            reasons.push("subscription: events may have been missed before it was open".to_owned());
        }
        if !facts.lacking.is_empty() {
            let lacking = few(&facts.lacking);
            reasons.push(format!(
                "redis: the user lacks {lacking}; `cachekeeper acl --for worker` prints all that it needs"
            ));
        }
        reasons.extend(facts.misses.iter().map(|reason| format!("misses are not filled: {reason}")));
        reasons.extend(facts.schema.iter().map(|reason| format!("postgres: {reason}")));
        reasons.extend(facts.streams.iter().map(|(stream, reason)| format!("{stream}: {reason}")));
        reasons.extend(facts.feed_trouble());
        // What another worker serves is no reason: a rollout that is taken back would wait for this one for ever.
        let is_own = |dataset: &str| !facts.superseded.contains(dataset);
        let told = [&facts.unmet, &facts.broken, &facts.left_out].into_iter().flatten();
        let told = told.filter(|(dataset, _)| is_own(dataset));
        reasons.extend(told.map(|(dataset, reason)| format!("dataset {dataset}: {reason}")));
        let not_warmed = facts.not_warmed.iter().filter(|dataset| is_own(dataset));
        // Its backfill waits for whoever paused it.
        let not_warmed = not_warmed.filter(|dataset| !facts.paused.contains_key(*dataset));
        reasons.extend(not_warmed.map(|dataset| format!("dataset {dataset}: not warmed yet")));
        reasons
    }
}

impl Facts {
    /// What is worth knowing of a worker that may be ready all the same.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let superseded = self.superseded.iter().map(|dataset| {
            format!(
                "dataset {dataset}: another worker has a newer definition of it, which is served; this worker serves it again once that \
                 one has ended"
            )
        });
        let renamed = self.renamed.iter().map(|(dataset, reason)| format!("dataset {dataset}: {reason}"));
        let unfilled = self.unfilled().map(|(dataset, reason)| format!("dataset {dataset}: {reason}"));
        superseded.chain(renamed).chain(unfilled).chain(self.full.clone()).collect()
    }

    /// Datasets of which a miss could not be filled within the last minute, with the reason.
    pub fn unfilled(&self) -> impl Iterator<Item = (&str, String)> {
        let recent = self.unfilled.iter().filter(|(_, (at, _))| at.elapsed() < UNFILLED_FOR);
        recent.map(|(dataset, (_, reason))| (dataset.as_str(), format!("misses cannot be filled: {reason}")))
    }

    /// Notes the epoch. Where it is another one than before it is remembered with what made datasets pending.
    pub fn see_epoch(&mut self, epoch: String, at_ms: u64, cause: Option<String>) {
        if self.epoch.as_ref() != Some(&epoch) {
            self.epochs.push_back(SeenEpoch { id: epoch.clone(), since_ms: at_ms, cause });
            if EPOCHS_MAX < self.epochs.len() {
                self.epochs.pop_front();
            }
        }
        self.epoch = Some(epoch);
    }

    /// Why the changes do not come through.
    #[must_use]
    pub fn feed_trouble(&self) -> Option<String> {
        let max_lag = self.max_lag?;
        match &self.watermark {
            None => Some("feed: there is no watermark yet".to_owned()),
            Some((watermark, moved)) if max_lag < moved.elapsed() => {
                let since = moved.elapsed().as_secs();
                Some(format!("feed: the watermark has stood at {} for {since} s", watermark.as_of))
            }
            Some(_) => None,
        }
    }

    /// Notes the watermark as it was just read.
    pub fn see_watermark(&mut self, watermark: Option<Watermark>) {
        self.watermark = watermark.map(|new| match self.watermark.take() {
            Some((old, moved)) if old.as_of == new.as_of => (new, moved),
            _ => (new, Instant::now()),
        });
    }
}
