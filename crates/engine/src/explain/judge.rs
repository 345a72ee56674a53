//! The sentence that follows from what is known of a key.

use std::time::Duration;

use super::doubts::Doubts;
use super::facts::Explanation;
use super::look::{Looked, Proof};
use super::verdict::{State, Verdict};
use crate::catalog::Dataset;
use cachekeeper_config::{OnMiss, Scope};

pub(super) fn judge(explained: &Explanation, dataset: &Dataset, looked: &Looked, doubts: &Doubts) -> Verdict {
    let key = explained.key.as_str();
    let is_there = looked.entry.is_there();
    let row = match &looked.row {
        Ok(row) => row,
        Err(reason) => {
            let what = if is_there { "what Redis has is kept for its lifetime" } else { "Redis has nothing" };
            return Verdict::new(State::Unknown, format!("Postgres cannot be asked ({reason}); {what}."));
        }
    };
    if let Some(reason) = doubts.impossible.as_ref().filter(|_| !is_there) {
        return Verdict::new(State::Absent, format!("This text is {reason}: no row can have this key."));
    }
    if let Some(spelled) = looked.spelled(key).filter(|_| !is_there) {
        return Verdict::new(
            State::Absent,
            format!(
                "Its row has its entry under `{spelled}`: no entry has this spelling of the key. Ask for that one."
            ),
        );
    }
    let no_row = match &doubts.hidden {
        _ if row.ended.contains(key) => {
            let column = dataset.settings.ttl_column.as_deref().unwrap_or_default();
            format!("The life of its row has ended (`ttl_column`: {column})")
        }
        Some(hidden) => format!("The role sees no row; row security decides ({hidden})"),
        None => "There is no row".to_owned(),
    };
    match (is_there, row.values.contains_key(key), row.unreadable.get(key)) {
        (false, _, Some(reason)) => Verdict::new(State::Absent, format!("The row has no entry: {reason}.")),
        (false, false, None) => Verdict::new(State::Absent, format!("{no_row}, and no entry: both agree.")),
        (false, true, None) => missing(explained, dataset),
        (true, false, None) if looked.is_null => {
            Verdict::new(State::Right, format!("{no_row}, and Redis remembers that for its `negative_ttl`."))
        }
        (true, ..) if looked.agrees => Verdict::new(State::Right, "The entry is what Postgres says now."),
        (true, ..) if doubts.is_same => {
            let sentence = "The entry has the contents of the row, in other bytes than this worker would write: somebody else wrote the key. \
                            `cachekeeper refresh` with the key writes it anew; an audit counts it as stale.";
            Verdict::new(State::Right, sentence)
        }
        (true, ..) => differing(explained, dataset, looked, doubts),
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
    let who = match dataset.settings.on_miss {
        OnMiss::Load => {
            "Whoever misses it next has it loaded, by the library or by the worker (`on_miss = \"load\"`)"
        }
        OnMiss::Ignore => {
            "Only the library fills it, where an application misses it next; the worker does not (`on_miss = \"ignore\"`)"
        }
    };
    let sentence =
        format!("Redis does not have it: nobody has asked for it since it expired or was deleted. {who}.");
    Verdict::new(State::Absent, sentence)
}

/// There is an entry that is not what Postgres says.
fn differing(explained: &Explanation, dataset: &Dataset, looked: &Looked, doubts: &Doubts) -> Verdict {
    let name = dataset.name();
    let behind = |sentence: String| Verdict::new(State::Behind, sentence);
    if let Some(reason) = &explained.not_covered {
        return behind(format!(
            "The entry is older than the row: changes of {name} may be missed ({reason}). It is renewed by an event, by `cachekeeper refresh`, \
             or when its lifetime ends."
        ));
    }
    if let Some(reason) = explained.pending.first() {
        return behind(match &doubts.nobody {
            Some(nobody) => {
                format!("The entry differs from the row and is to be revalidated ({reason}), but {nobody}.")
            }
            None => format!("The entry differs from the row, and is about to be revalidated ({reason})."),
        });
    }
    if explained.is_superseded {
        return behind(format!(
            "A newer definition of {name} than this configuration's is served, so the entry looks different."
        ));
    }
    if !looked.entry.is_whole() {
        return Verdict::new(State::Unknown, "The entry is larger than 64 MiB: too large to be compared.");
    }
    let Some(watermark) = &explained.watermark else {
        return behind("The entry is older than the row, and no feed has run: start a worker.".to_owned());
    };
    let Some(age) = watermark.age_ms else {
        return behind(format!(
            "The entry differs from the row, and the watermark leaves {name} out at the moment."
        ));
    };
    if looked.proof == Proof::Sure {
        return accuse(doubts);
    }
    if looked.proof == Proof::Touched {
        let sentence = "The entry changes just now: each time it was looked at, something newer had touched its stamp slot. Ask again.";
        return Verdict::new(State::Unknown, sentence);
    }
    behind(match &doubts.nobody {
        Some(nobody) => format!("The entry is older than the row, and {nobody}."),
        None => format!(
            "A change is on its way: the watermark is {:.1} s old and has not reached the row's last change.",
            Duration::from_millis(age).as_secs_f64()
        ),
    })
}

/// It differs, and no change is on its way.
fn accuse(doubts: &Doubts) -> Verdict {
    if let Some(clock) = &doubts.clock {
        let sentence = format!(
            "The entry differs from the row, and that is as it must be: the query depends on {clock}, so its result changes without a \
             change of the data. The entry is renewed when its lifetime ends."
        );
        return Verdict::new(State::Behind, sentence);
    }
    let sentence = "The entry is wrong: it differs from the row although the watermark has passed it. Somebody else wrote the key, or \
                    this is a fault of ours. `cachekeeper refresh` with the key mends it, `cachekeeper audit` looks for others.";
    Verdict::new(State::Wrong, sentence)
}
