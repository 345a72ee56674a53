//! What is known of the worker at a moment, as its API tells it.

use std::collections::{BTreeMap, VecDeque};

use serde::Deserialize;

use cachekeeper_config::Config;

/// Watermark ages that are kept: five minutes of them.
const AGES_MAX: usize = 300;
/// Totals of so many seconds are kept for what is done in a second.
const TOTALS_MAX: usize = 10;

/// What is known of the worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    /// When it was asked last, in Unix milliseconds.
    pub at_ms: u64,
    pub listen: String,
    pub namespace: String,
    pub now: Option<Now>,
    pub datasets: Option<Vec<Dataset>>,
    pub machine: Option<Machine>,
    pub leases: Option<Vec<Lease>>,
    /// Since when it does not answer, and why.
    pub gone: Option<(u64, String)>,
    /// The ages of the watermark, in milliseconds, the newest last.
    pub ages: VecDeque<u64>,
    /// Totals with the moment at which each was had, the newest last.
    pub totals: VecDeque<(u64, BTreeMap<String, u64>)>,
}

/// `/api/v1/now`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Now {
    pub ready: bool,
    pub sentence: String,
    pub attention: Vec<Attention>,
    pub notes: Vec<String>,
    pub watermark_age_ms: Option<u64>,
    pub totals: BTreeMap<String, u64>,
    pub waiting: BTreeMap<String, u64>,
    pub version: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Attention {
    pub what: String,
    pub since_ms: Option<u64>,
    pub consequence: String,
    pub next: String,
}

/// One of `/api/v1/datasets`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Dataset {
    pub name: String,
    pub state: String,
    pub reason: Option<String>,
    pub progress: Option<Progress>,
    pub last_backfill_ms: Option<u64>,
    pub last_backfill_entries: Option<u64>,
    pub rows_without_entry: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    pub done: u64,
    pub total: u64,
}

/// `/api/v1/machine`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Machine {
    pub tasks: Vec<Task>,
    pub servers: Vec<Server>,
    pub epoch: Option<String>,
    pub owner: String,
    pub started_ms: u64,
    pub reasons: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Task {
    pub name: String,
    pub is_up: bool,
    pub restarts: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Server {
    pub name: String,
    pub is_up: bool,
    pub reason: Option<String>,
}

/// One of `/api/v1/leases`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lease {
    pub name: String,
    pub owner: String,
    pub is_own: bool,
    pub left_ms: u64,
}

impl Snapshot {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            listen: config.admin.listen.clone().unwrap_or_default(),
            namespace: config.service.namespace.clone(),
            ..Self::default()
        }
    }

    /// Notes what the worker says now. Another worker counts anew.
    pub(super) fn take(&mut self, at_ms: u64, now: Now, machine: Option<Machine>) {
        let owner = |machine: &Option<Machine>| machine.as_ref().map(|machine| machine.owner.clone());
        if owner(&self.machine) != owner(&machine) {
            self.totals.clear();
        }
        self.at_ms = at_ms;
        self.gone = None;
        self.ages.extend(now.watermark_age_ms);
        self.totals.push_back((at_ms, now.totals.clone()));
        self.ages.drain(..self.ages.len().saturating_sub(AGES_MAX));
        self.totals.drain(..self.totals.len().saturating_sub(TOTALS_MAX));
        (self.now, self.machine) = (Some(now), machine);
    }

    /// Notes that the worker does not answer.
    pub(super) fn miss(&mut self, at_ms: u64, reason: String) {
        self.at_ms = at_ms;
        let since = self.gone.as_ref().map_or(at_ms, |(since, _)| *since);
        self.gone = Some((since, reason));
        self.totals.clear();
    }

    /// The age of which this part of those that are kept is younger; none: there are too few.
    pub(super) fn age(&self, percent: usize) -> Option<u64> {
        let mut ages: Vec<u64> = self.ages.iter().copied().collect();
        ages.sort_unstable();
        let place = (ages.len() * percent / 100).min(ages.len().saturating_sub(1));
        ages.get(place).copied().filter(|_| 1 < ages.len())
    }

    /// How much of this total is added in a second; none: that is not known yet.
    pub(super) fn rate(&self, name: &str) -> Option<f64> {
        let ((began, first), (ended, last)) = (self.totals.front()?, self.totals.back()?);
        let millis = ended.checked_sub(*began).filter(|millis| 0 < *millis)?;
        let added = last.get(name)?.saturating_sub(*first.get(name)?);
        #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
        let rate = added as f64 * 1_000.0 / millis as f64;
        Some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_begin_anew_with_another_worker() {
        let mut snapshot = Snapshot::default();
        let now = |changes| Now { totals: [("changes".to_owned(), changes)].into(), ..Now::default() };
        let machine = |owner: &str| Some(Machine { owner: owner.to_owned(), ..Machine::default() });
        snapshot.take(1_000, now(100), machine("a"));
        assert_eq!(snapshot.rate("changes"), None);
        snapshot.take(3_000, now(150), machine("a"));
        assert_eq!((snapshot.rate("changes"), snapshot.rate("nothing")), (Some(25.0), None));
        snapshot.take(4_000, now(1), machine("b"));
        assert_eq!(snapshot.rate("changes"), None);
    }

    #[test]
    fn it_is_known_since_when_nobody_answers() {
        let mut snapshot = Snapshot::default();
        snapshot.miss(1_000, "first".to_owned());
        snapshot.miss(2_000, "second".to_owned());
        assert_eq!((snapshot.at_ms, snapshot.gone.clone()), (2_000, Some((1_000, "second".to_owned()))));
        snapshot.take(3_000, Now::default(), None);
        assert_eq!(snapshot.gone, None);
    }
}
