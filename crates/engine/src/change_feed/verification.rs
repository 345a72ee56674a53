//! Verifying coverage: the watermark moves only to snapshots at which the catalogs were seen to be those that the coverage was
//! computed from (R12).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::coverage::Coverage;
use crate::stores::postgres::{FeedPoll, Fingerprint, Verify};
use crate::stores::redis::Followed;
use cachekeeper_protocol::stamp::Snapshot;

/// Under load the catalogs are read this often at most. A token waits so much longer.
const VERIFY_EVERY: Duration = Duration::from_millis(50);
/// And at most this share of the time goes into it.
const COST_SHARE: u32 = 20;

/// What is known of the catalogs.
#[derive(Debug, Default)]
pub(super) struct Verification {
    coverage: Option<Arc<Coverage>>,
    /// The fingerprints as they were last seen.
    last: BTreeMap<String, Fingerprint>,
    /// Datasets that are not covered as the coverage says.
    changed: BTreeSet<String>,
    /// Datasets whose trees have grown: whether the new members' rows are known must be looked at.
    grown: BTreeSet<String>,
    /// Whether the coverage must be computed anew whatever the catalogs say.
    is_outdated: bool,
    /// Where they were last seen.
    at: Option<Snapshot>,
    began: Option<Instant>,
    /// How long a poll took that did nothing else.
    cost: Duration,
    /// Whether the last poll found nothing new.
    is_idle: bool,
}

impl Verification {
    /// Goes by this coverage from now on. Whether it is another one than before.
    pub(super) fn by(&mut self, coverage: &Arc<Coverage>) -> bool {
        let is_new = self.coverage.as_ref().is_none_or(|known| !Arc::ptr_eq(known, coverage));
        if is_new {
            let (last, cost) = (coverage.catalogs.seen.clone(), self.cost);
            *self = Self { coverage: Some(Arc::clone(coverage)), last, cost, ..Self::default() };
        }
        is_new
    }

    /// What the next poll verifies; with `at_once` whatever it costs.
    pub(super) fn next(&mut self, at_once: bool) -> Option<Verify<'_>> {
        let now = Instant::now();
        let since = self.began.map(|began| now - began);
        let is_cheap = since.is_none_or(|since| self.cost * COST_SHARE <= since);
        let is_time = self.is_idle || since.is_none_or(|since| VERIFY_EVERY <= since);
        if !(at_once || is_cheap && is_time) {
            return None;
        }
        self.began = Some(now);
        let verified_at = self.at.as_ref().map_or("", Snapshot::as_str);
        let catalogs = &self.coverage.as_ref()?.catalogs.expression;
        Some(Verify { catalogs, verified_at })
    }

    /// Notes what a poll found.
    pub(super) fn note(&mut self, catalog: &Catalog, found: &FeedPoll, is_idle: bool) {
        self.is_idle = is_idle;
        let (Some(state), Some(coverage)) = (&found.catalogs, &self.coverage) else { return };
        if is_idle && let Some(began) = self.began {
            self.cost = began.elapsed();
        }
        self.at = Some(found.poll.snapshot.clone());
        let is_covered = |name: &&str| coverage.datasets.get(*name).is_some_and(Result::is_ok);
        self.grown.extend(coverage.catalogs.grown(state).filter(is_covered).map(str::to_owned));
        for (name, now) in coverage.catalogs.fingerprints(catalog, state) {
            if self.last.get(&name).is_some_and(|last| now.is_unchanged_since(last)) {
                self.last.insert(name, now);
            } else {
                self.changed.insert(name);
            }
        }
    }

    /// Whether the fingerprints of [`Self::followed`] are those at this snapshot.
    pub(super) fn is_at(&self, snapshot: &Snapshot) -> bool {
        self.at.as_ref() == Some(snapshot)
    }

    /// Whether the last poll found nothing new, at this snapshot, and the catalogs were seen there.
    pub(super) fn is_idle_at(&self, snapshot: &Snapshot) -> bool {
        self.is_idle && self.is_at(snapshot)
    }

    /// The coverage must be computed anew, by somebody who does not hold up the cursor.
    pub(super) fn require_coverage(&mut self) {
        self.is_outdated = true;
    }

    /// These datasets may have missed changes.
    pub(super) fn leave_out<'a>(&mut self, datasets: impl Iterator<Item = &'a str>) {
        self.changed.extend(datasets.map(str::to_owned));
    }

    /// Whether coverage must be computed anew.
    pub(super) fn wants_coverage(&self) -> bool {
        self.is_outdated || !self.changed.is_empty() || !self.grown.is_empty()
    }

    /// The datasets that are followed, each with its definition and its fingerprint.
    pub(super) fn followed<'a>(&'a self, catalog: &'a Catalog) -> impl Iterator<Item = Followed<'a>> {
        let coverages = self.coverage.iter();
        let covered = coverages.flat_map(|coverage| coverage.covered().map(move |name| (coverage, name)));
        covered.filter(|(_, name)| !self.changed.contains(*name)).filter_map(|(coverage, name)| {
            let definition = &catalog.get(name)?.definition;
            let (known, replaces) = (self.last.get(name)?, coverage.catalogs.replaces.get(name));
            Some(Followed {
                dataset: name,
                definition,
                fingerprint: if self.grown.contains(name) { "" } else { known.as_str() },
                replaces: replaces.map_or("", Fingerprint::as_str),
            })
        })
    }
}
