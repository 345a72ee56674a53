//! The sentence that follows from what is known of a key.

use std::time::Duration;

use super::facts::Explanation;
use super::look::Looked;
use super::verdict::{State, Verdict};
use crate::audit::is_null;
use crate::catalog::Dataset;
use cachekeeper_config::Scope;

pub(super) fn judge(explained: &Explanation, dataset: &Dataset, looked: &Looked) -> Verdict {
    let key = explained.key.as_str();
    let row = match &looked.row {
        Ok(row) => row,
        Err(reason) => {
            let what = if explained.entry.is_some() {
                "what Redis has is kept for its lifetime"
            } else {
                "Redis has nothing"
            };
            return Verdict::new(State::Unknown, format!("Postgres cannot be asked ({reason}); {what}."));
        }
    };
    let refused = row.unreadable.get(key);
    match (&looked.value, row.values.contains_key(key), refused) {
        (None, _, Some(reason)) => Verdict::new(State::Absent, format!("The row has no entry: {reason}.")),
        (None, false, None) => Verdict::new(State::Absent, "There is no row, and no entry: both agree."),
        (None, true, None) => missing(explained, dataset),
        (Some((value, _)), false, None) if is_null(value) => {
            let sentence = "There is no row, and Redis remembers that for its `negative_ttl`.";
            Verdict::new(State::Right, sentence)
        }
        (Some(_), ..) if looked.agrees => Verdict::new(State::Right, "The entry is what Postgres says now."),
        (Some(_), ..) => differing(explained, dataset, looked),
    }
}

/// There is a row and no entry.
fn missing(explained: &Explanation, dataset: &Dataset) -> Verdict {
    if let Some(reason) = explained.pending.first() {
        return Verdict::new(
            State::Absent,
            format!("Redis does not have it yet: the dataset is pending ({reason})."),
        );
    }
    if dataset.settings.scope == Scope::All {
        let sentence = "Redis is to hold every row, and this one has no entry: it has expired or was evicted since the last backfill, or \
                        none has run. `cachekeeper refresh` with the key loads it.";
        return Verdict::new(State::Absent, sentence);
    }
    let sentence = "Redis does not have it: nobody has asked for it since it expired or was deleted. Whoever misses it next has it loaded \
                    (by the library, or by the worker where `misses` are filled).";
    Verdict::new(State::Absent, sentence)
}

/// There is an entry that is not what Postgres says.
fn differing(explained: &Explanation, dataset: &Dataset, looked: &Looked) -> Verdict {
    let name = dataset.name();
    if let Some(reason) = &explained.not_covered {
        let sentence = format!(
            "The entry is older than the row: changes of {name} may be missed ({reason}). It is renewed by an event, by `cachekeeper refresh`, \
             or when its lifetime ends."
        );
        return Verdict::new(State::Behind, sentence);
    }
    if let Some(reason) = explained.pending.first() {
        let sentence = format!("The entry differs from the row, and is about to be revalidated ({reason}).");
        return Verdict::new(State::Behind, sentence);
    }
    if looked.is_changing {
        let sentence = "The row changes as fast as it is looked at: the entry follows it.";
        return Verdict::new(State::Unknown, sentence);
    }
    if explained.is_superseded {
        let sentence = format!(
            "A newer definition of {name} than this configuration's is served, so the entry looks different."
        );
        return Verdict::new(State::Behind, sentence);
    }
    match explained.watermark.as_ref().map(|watermark| watermark.age_ms) {
        None => Verdict::new(
            State::Behind,
            "The entry is older than the row, and no feed has run: start a worker.",
        ),
        Some(None) => {
            let sentence =
                format!("The entry differs from the row, and the watermark leaves {name} out at the moment.");
            Verdict::new(State::Behind, sentence)
        }
        Some(Some(age)) if !looked.is_past => {
            let sentence = format!(
                "A change is on its way: the watermark is {:.1} s old and has not reached the row's last change.",
                Duration::from_millis(age).as_secs_f64()
            );
            Verdict::new(State::Behind, sentence)
        }
        Some(Some(_)) => {
            let sentence = "The entry is wrong: it differs from the row although the watermark has passed it. Somebody else wrote the key, or \
                            this is a fault of ours. `cachekeeper refresh` with the key mends it, `cachekeeper audit` looks for others.";
            Verdict::new(State::Wrong, sentence)
        }
    }
}
