//! In which state a dataset is, and why. It is said to be fresh only where that is known.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::actors::health::Facts;
use cachekeeper_protocol::units::show_duration;

/// The watermark moves about each second. Where it is older than this, nobody would call its entries fresh.
const FRESH_WITHIN: Duration = Duration::from_secs(10);

/// The state of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum DatasetState {
    /// Another worker has a newer definition of it.
    Superseded,
    /// It cannot work.
    Broken,
    /// Its changed entries could not be loaded.
    LeftOut,
    /// Its changes may be missed.
    NotCovered,
    /// Its entries are being revalidated.
    Pending,
    /// Somebody has paused it.
    Paused,
    /// Its first backfill has not ended.
    NotWarmed,
    /// Redis cannot be reached: nothing new is known of it.
    NotKnown,
    /// Its entries are older than they mostly are.
    Behind,
    /// All is right.
    Fresh,
}

/// The state in a word, and why. The worst comes first.
pub(super) fn state(name: &str, facts: &Facts) -> (DatasetState, Option<String>) {
    use DatasetState as S;
    let of = |map: &BTreeMap<String, String>| map.get(name).cloned();
    let states = [
        (S::Broken, of(&facts.broken)),
        (S::LeftOut, of(&facts.left_out)),
        (S::NotCovered, of(&facts.uncovered).or(of(&facts.renamed)).or(of(&facts.unmet))),
        (S::Pending, of(&facts.pending)),
    ];
    if facts.superseded.contains(name) {
        let why = "another worker has a newer definition of it, which is served";
        return (S::Superseded, Some(why.to_owned()));
    }
    if let Some((state, reason)) = states.into_iter().find(|(_, reason)| reason.is_some()) {
        return (state, reason);
    }
    if facts.paused.contains_key(name) {
        let why = "a person has paused its backfills, its refreshing ahead and its audit";
        let rest = freshness(name, facts).1.unwrap_or_else(|| "changes are applied".to_owned());
        return (S::Paused, Some(format!("{why}; {rest}")));
    }
    if facts.not_warmed.contains(name) {
        return (S::NotWarmed, Some("its first backfill since the start has not ended".to_owned()));
    }
    freshness(name, facts)
}

/// What nothing else is said of is fresh, unless it is not known or the watermark has been left behind.
fn freshness(name: &str, facts: &Facts) -> (DatasetState, Option<String>) {
    let is_down = |server: &str| facts.dependencies.get(server).is_some_and(Result::is_err);
    let age = age_of(name, facts);
    let old = age.filter(|age| FRESH_WITHIN < *age);
    let why = |cause: &str, before: &str| {
        let age =
            age.map(|age| format!("; {before} {} ago", show_duration(Duration::from_secs(age.as_secs()))));
        Some(format!("{cause}{}", age.unwrap_or_default()))
    };
    let fresh = "as fresh as";
    if is_down("redis") {
        (DatasetState::NotKnown, why("Redis cannot be reached", "last known: as fresh as"))
    } else if is_down("postgres") {
        (DatasetState::Behind, why("Postgres cannot be reached", fresh))
    } else if facts.feed_trouble().is_some() {
        (DatasetState::Behind, why("changes are not followed, or not fast enough", fresh))
    } else if let Some(age) = old {
        let told = show_duration(Duration::from_secs(age.as_secs()));
        (DatasetState::Behind, Some(format!("{fresh} {told} ago")))
    } else {
        (DatasetState::Fresh, None)
    }
}

/// How old its entries may be, where the watermark speaks for it.
pub(super) fn age_of(name: &str, facts: &Facts) -> Option<Duration> {
    let (watermark, _) = facts.watermark.as_ref()?;
    let is_covered = !watermark.not_covered.iter().any(|left_out| left_out == name);
    watermark.age().filter(|_| is_covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_called_fresh_that_may_not_be() {
        let mut facts = Facts::default();
        let said = |facts: &Facts| state("product", facts);
        facts.dependencies.extend(["postgres", "redis"].map(|name| (name, Ok(()))));
        assert_eq!(said(&facts), (DatasetState::Fresh, None));
        facts.max_lag = Some(Duration::from_secs(1));
        let behind = "changes are not followed, or not fast enough".to_owned();
        assert_eq!(said(&facts), (DatasetState::Behind, Some(behind)));
        facts.dependencies.insert("postgres", Err("gone".to_owned()));
        assert_eq!(said(&facts), (DatasetState::Behind, Some("Postgres cannot be reached".to_owned())));
        facts.dependencies.insert("redis", Err("gone".to_owned()));
        assert_eq!(said(&facts), (DatasetState::NotKnown, Some("Redis cannot be reached".to_owned())));
        // What concerns it alone says more.
        facts.broken.insert("product".to_owned(), "no such column".to_owned());
        assert_eq!(said(&facts), (DatasetState::Broken, Some("no such column".to_owned())));
    }
}
