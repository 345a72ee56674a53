//! What needs somebody: what it means for who reads the cache, what to do, and since when, as far as this worker has seen it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::actors::clock::now_ms;
use crate::actors::context::TaskContext;
use crate::actors::health::{Facts, Health};
use cachekeeper_engine::backoff::every;
use cachekeeper_engine::commands::group_of;
use cachekeeper_engine::history::History;
use cachekeeper_engine::shown::{escaped, few};

/// How exactly it is known since when.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of so many looks one counts what Redis keeps.
const COUNT_EACH: u64 = 5;
/// Datasets that one item names.
const NAMES_MAX: usize = 5;

/// Something that needs somebody.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Attention {
    /// What it is.
    what: String,
    /// Names it although its words change, such as `rows without an entry: product`.
    subject: String,
    /// The dataset that it is about; null: not about one.
    dataset: Option<String>,
    /// Since when, in Unix milliseconds, as far as this worker has seen it.
    since_ms: Option<u64>,
    /// What it means for who reads the cache.
    consequence: &'static str,
    /// What to do.
    next: &'static str,
}

/// Since when each subject needs somebody, and what is looked for only now and then.
#[derive(Clone, Default)]
pub(super) struct Since {
    subjects: Arc<Mutex<BTreeMap<String, u64>>>,
    /// Write commands that were rejected and are kept.
    rejected: Arc<AtomicU64>,
}

impl Since {
    /// Looks for ever: also what nobody asks for has its beginning.
    pub(super) async fn follow(self, tasks: TaskContext) {
        let mut ticks = every(LOOK_EVERY);
        for tick in 0_u64.. {
            ticks.tick().await;
            if tick.is_multiple_of(COUNT_EACH)
                && let Some(stream) = tasks.config.writes.stream.as_deref()
            {
                let redis = &tasks.engine.redis;
                // Where Redis does not answer readiness says so, and what was known is still so.
                if let Ok(state) = redis.stream_state(stream, &group_of(redis.keys().namespace())).await {
                    self.note_rejected(state.dead);
                }
            }
            drop(self.look(&tasks));
        }
    }

    /// Whoever has counted them says so.
    pub(super) fn note_rejected(&self, count: u64) {
        self.rejected.store(count, Ordering::Relaxed);
    }

    /// What needs somebody now.
    pub(super) fn look(&self, tasks: &TaskContext) -> Vec<Attention> {
        let history = tasks.engine.history.as_deref();
        let names = tasks.engine.catalog.iter().map(|dataset| dataset.name());
        let refused = history.map(|history| names.filter_map(|name| of_refused(history, name)).collect());
        self.look_at(&tasks.health, refused.unwrap_or_default())
    }

    fn look_at(&self, health: &Health, refused: Vec<Attention>) -> Vec<Attention> {
        let mut attention = attention(&health.facts(), &health.reasons());
        attention.extend(refused);
        attention.extend(of_rejected(self.rejected.load(Ordering::Relaxed)));
        let mut known = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        let mut still = BTreeMap::new();
        for item in &mut attention {
            let since = known.get(&item.subject).copied().or(item.since_ms).unwrap_or(now);
            item.since_ms = Some(since);
            still.insert(item.subject.clone(), since);
        }
        *known = still;
        attention
    }
}

/// Each reason of readiness, with what it means for who reads the cache, and what to do. What only follows from another one is not told
/// beside it: where a server is down somebody is to see to the server.
fn attention(facts: &Facts, reasons: &[String]) -> Vec<Attention> {
    let is_down = |name: &str| facts.dependencies.get(name).is_some_and(Result::is_err);
    let (postgres, redis) = (is_down("postgres"), is_down("redis"));
    let follows = |reason: &str| {
        let begins = |start: &str| reason.starts_with(start);
        let of_redis = ["subscription:", "events:", "writes:"].into_iter().any(begins);
        (postgres || redis) && (begins("feed:") || is_not_warmed(reason)) || redis && of_redis
    };
    let own = reasons.iter().filter(|reason| *reason != "stopping" && !follows(reason));
    let (not_warmed, own): (Vec<&String>, Vec<&String>) = own.partition(|reason| is_not_warmed(reason));
    let mut attention: Vec<Attention> = own.into_iter().map(|reason| of_reason(reason)).collect();
    attention.extend(of_not_warmed(&not_warmed));
    attention.extend(of_uncovered(facts));
    for (dataset, reason) in facts.unfilled().filter(|_| !postgres && !redis) {
        attention.push(of_dataset(("misses", dataset), format!("dataset {dataset}: {reason}"), UNFILLED));
    }
    // Where its entries cannot be loaded that is told already, and waiting ends nothing.
    let told = |dataset: &String| {
        [&facts.left_out, &facts.broken, &facts.uncovered].iter().any(|all| all.contains_key(dataset))
            || facts.not_warmed.contains(dataset)
    };
    let pending = facts.pending.iter().filter(|(dataset, _)| !postgres && !redis && !told(dataset));
    for (dataset, reason) in pending {
        let what = format!("dataset {dataset}: being revalidated: {reason}");
        attention.push(of_dataset(("pending", dataset), what, PENDING));
    }
    attention.extend(facts.full.as_ref().map(|full| {
        let (consequence, next) = FULL;
        let subject = "full".to_owned();
        Attention { what: full.clone(), subject, dataset: None, since_ms: None, consequence, next }
    }));
    attention
}

/// Datasets whose first backfill has not ended: several are one matter.
fn of_not_warmed(reasons: &[&String]) -> Option<Attention> {
    let [first, more @ ..] = reasons else { return None };
    if more.is_empty() {
        return Some(of_reason(first));
    }
    let name =
        |reason: &&String| reason.strip_prefix("dataset ")?.split_once(':').map(|(name, _)| name.to_owned());
    let names: Vec<String> = reasons.iter().filter_map(name).collect();
    let what = format!("{} datasets: not warmed yet ({})", names.len(), few(&names));
    let (consequence, next) = meaning(first);
    let subject = "not warmed".to_owned();
    Some(Attention { what, subject, dataset: None, since_ms: None, consequence, next })
}

/// What is not covered, by its reason: where nothing is captured at all that is one matter, not one of each dataset.
fn of_uncovered(facts: &Facts) -> Vec<Attention> {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (dataset, reason) in facts.uncovered.iter().filter(|(name, _)| !facts.unmet.contains_key(*name)) {
        by_reason.entry(reason).or_default().push(dataset);
    }
    let item = |(reason, datasets): (&str, Vec<&str>)| match datasets.as_slice() {
        [dataset] => {
            let what = format!("dataset {dataset}: not covered: {reason}");
            of_dataset(("not covered", dataset), what, UNCOVERED)
        }
        all => {
            let (first, rest) = all.split_at(all.len().min(NAMES_MAX));
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            let what =
                format!("{} datasets are not covered: {reason} ({}{more})", all.len(), first.join(", "));
            let subject = format!("not covered: {reason}");
            let (consequence, next) = UNCOVERED;
            Attention { what, subject, dataset: None, since_ms: None, consequence, next }
        }
    };
    by_reason.into_iter().map(item).collect()
}

/// Rows of a dataset that have no entry.
fn of_refused(history: &History, dataset: &str) -> Option<Attention> {
    let count = history.count_refused(dataset);
    if count == 0 {
        return None;
    }
    let refused = history.refused_rows(dataset);
    let named = refused.rows.into_iter().min_by_key(|row| row.since_ms);
    let named = named.map(|row| (row.since_ms, format!("{}: {}", row.key, row.reason), REFUSED));
    let unnamed = refused.without_key.map(|rows| (rows.since_ms, rows.of.reason, WITHOUT_KEY));
    let (since_ms, example, meaning) = named.or(unnamed)?;
    let rows = if count == 1 { "1 row has".to_owned() } else { format!("{count} rows have") };
    // A key may hold what would mean something to a terminal.
    let what = format!("dataset {dataset}: {rows} no entry; {}", escaped(&example));
    let since_ms = Some(since_ms);
    Some(Attention { since_ms, ..of_dataset(("rows without an entry", dataset), what, meaning) })
}

/// Redis takes nothing more.
const FULL: (&str, &str) = (
    "No entry is old, but what changes or comes is missing until there is room; backfills do not end.",
    "Raise maxmemory of Redis, or have fewer entries or shorter lifetimes; `cachekeeper plan` says what each dataset takes.",
);

fn of_dataset(
    (kind, dataset): (&str, &str),
    what: String,
    (consequence, next): (&'static str, &'static str),
) -> Attention {
    let (subject, dataset) = (format!("{kind}: {dataset}"), Some(dataset.to_owned()));
    Attention { what, subject, dataset, since_ms: None, consequence, next }
}

fn of_rejected(count: u64) -> Option<Attention> {
    let what = match count {
        0 => return None,
        1 => "1 write command was rejected".to_owned(),
        _ => format!("{count} write commands were rejected"),
    };
    let (consequence, next) = REJECTED;
    Some(Attention { what, subject: "rejected".to_owned(), dataset: None, since_ms: None, consequence, next })
}

fn of_reason(reason: &str) -> Attention {
    let (consequence, next) = meaning(reason);
    // What follows tells more, and may be another thing each second.
    let subject = reason.split_once(": ").map_or(reason, |(subject, _)| subject);
    let dataset = subject.strip_prefix("dataset ").map(str::to_owned);
    Attention {
        what: reason.to_owned(),
        subject: subject.to_owned(),
        dataset,
        since_ms: None,
        consequence,
        next,
    }
}

const UNCOVERED: (&str, &str) = (
    "Changes of its tables may be missed; entries are renewed by events, schedules and the end of their lifetime.",
    "`cachekeeper check` names what is missing; often it is `cachekeeper migrate` by the owner of the tables.",
);

const REFUSED: (&str, &str) = (
    "Applications miss these entries each time they ask for them.",
    "Its page names each row with its reason: mend the row or the query; the next change of it tries again.",
);

const UNFILLED: (&str, &str) = (
    "Applications find nothing under keys that they have missed, and each asks again.",
    "The reason says what is wrong; `cachekeeper check` says what to correct, where it is a right or the query.",
);

const PENDING: (&str, &str) = (
    "Its entries are readable and may be old until they were compared.",
    "Wait: Datasets shows how far it is. Where it does not come on for a minute, the worker's log says why.",
);

const WITHOUT_KEY: (&str, &str) = (
    "No key leads to these rows, so nobody can ask for them.",
    "Give them values for the key, or leave them out of the query; the next backfill counts them again (`Warm` on its page).",
);

const REJECTED: (&str, &str) = (
    "What they were to write is not in Postgres.",
    "The machine room shows each with its reason: mend what is wrong and replay it, or discard it.",
);

fn is_not_warmed(reason: &str) -> bool {
    reason.ends_with(": not warmed yet")
}

fn meaning(reason: &str) -> (&'static str, &'static str) {
    let begins = |start: &str| reason.starts_with(start);
    if begins("postgres") {
        let consequence = "Entries stay readable and grow old; misses cannot be loaded.";
        (consequence, "See to the database or its address; the worker goes on by itself once it answers.")
    } else if begins("redis") {
        let consequence = "Applications may not reach their entries; changes wait in the outbox.";
        (consequence, "See to Redis or its address; the worker goes on by itself once it answers.")
    } else if begins("subscription") {
        let consequence = "Events may have been missed; where changes are captured nothing is lost.";
        (
            consequence,
            "Wait a few seconds: it is opened again by itself. Where it stays, `cachekeeper check` names missing rights.",
        )
    } else if begins("feed") {
        let consequence = "Entries grow old: changes are not followed, or not fast enough.";
        (
            consequence,
            "Look for long transactions and locks in Postgres, and at the log of the worker that leads.",
        )
    } else if begins("events:") || begins("writes:") {
        let consequence = "What comes by this stream waits there; nothing of it is lost.";
        (
            consequence,
            "The reason says what is wrong with the stream; `cachekeeper check` names rights that are missing.",
        )
    } else if begins("misses are not filled") {
        let consequence = "Applications find nothing under keys that they have missed.";
        (consequence, "Do what the reason says; `cachekeeper check` says it too.")
    } else if is_not_warmed(reason) {
        let consequence = "Entries are missing until its backfill has come to them.";
        (
            consequence,
            "Wait: Datasets shows how far the backfill is. Where it does not come on, the worker's log says why.",
        )
    } else {
        let consequence = "The dataset is not kept as it is configured.";
        (consequence, "`cachekeeper check` says what to correct, and where.")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use cachekeeper_engine::metrics::Metrics;

    #[test]
    fn what_follows_from_a_server_that_is_down_is_one_matter() {
        let health = Health::new(Arc::new(Metrics::new()));
        let subjects = |health: &Health| -> Vec<String> {
            let items = attention(&health.facts(), &health.reasons());
            items.into_iter().map(|item| item.subject).collect()
        };
        health.update(|facts| {
            facts.max_lag = Some(Duration::ZERO);
            facts.not_warmed.insert("product".to_owned());
            facts.pending.insert("note".to_owned(), "a new epoch".to_owned());
            facts.broken.insert("rate".to_owned(), "no such column".to_owned());
            facts.dependencies.extend(["postgres", "redis", "subscription"].map(|name| (name, Ok(()))));
        });
        let all = ["feed", "dataset rate", "dataset product", "pending: note"];
        assert_eq!(subjects(&health), all);
        let down = |health: &Health, name: &'static str| {
            health.update(|facts| drop(facts.dependencies.insert(name, Err("it is gone".to_owned()))));
        };
        down(&health, "subscription");
        assert_eq!(subjects(&health), [&["subscription"][..], &all].concat());
        down(&health, "postgres");
        assert_eq!(subjects(&health), ["postgres", "subscription", "dataset rate"]);
        down(&health, "redis");
        assert_eq!(subjects(&health), ["postgres", "redis", "dataset rate"]);
    }

    #[test]
    fn it_is_known_since_when_until_it_is_over() {
        let (health, since) = (Health::new(Arc::new(Metrics::new())), Since::default());
        let broken = |reason: &str| {
            let reason = reason.to_owned();
            health.update(|facts| drop(facts.broken.insert("product".to_owned(), reason)));
        };
        let of = |since: &Since| {
            since
                .look_at(&health, Vec::new())
                .into_iter()
                .find(|item| item.dataset.as_deref() == Some("product"))
        };
        broken("first");
        let first = of(&since).unwrap().since_ms;
        since.subjects.lock().unwrap().insert("dataset product".to_owned(), 5);
        // In other words it is the same.
        broken("second");
        assert_eq!((first.is_some(), of(&since).unwrap().since_ms), (true, Some(5)));
        health.update(|facts| facts.broken.clear());
        assert!(of(&since).is_none());
        broken("third");
        assert!(Some(5) < of(&since).unwrap().since_ms);
    }
}
