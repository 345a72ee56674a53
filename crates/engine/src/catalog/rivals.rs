//! Whether somebody else could claim a dataset's keys. Which texts a placeholder can hold is known from the types, once Postgres has
//! told them; the configuration alone tells only what coincides whatever they are.

use crate::stores::postgres::{DatasetSource, SourceProblem};
use cachekeeper_protocol::template::{Alphabet, Template};

/// A stream: who uses it, and its key.
pub(super) type UsedStream = (&'static str, String);

/// The streams that types could tell apart from these keys; of others the configuration knows.
pub(super) fn streams_to_tell_apart(key: &Template, streams: &[UsedStream]) -> Vec<UsedStream> {
    let could_be = |(_, stream): &&UsedStream| key.could_be(|_| Alphabet::Any, stream);
    streams.iter().filter(could_be).cloned().collect()
}

/// Whether types could tell these keys apart from those.
pub(super) fn is_to_tell_apart(key: &Template, other: &Template) -> bool {
    key.overlaps(|_| Alphabet::Any, other, |_| Alphabet::Any)
}

/// What is wrong where a stream could have a key of the dataset: an entry would take its place.
pub(super) fn with_streams(
    key: &Template,
    source: &DatasetSource,
    streams: &[UsedStream],
) -> Option<SourceProblem> {
    let could_be = |(_, stream): &&UsedStream| key.could_be(|column| source.alphabet(column), stream);
    let found = streams.iter().filter(could_be).map(|(user, stream)| format!("{stream}, which {user} uses"));
    let found: Vec<String> = found.collect();
    let message = format!("keys {key} could coincide with {}", found.join(", and with "));
    let help = "give the streams other names, or the dataset's keys another prefix";
    (!found.is_empty()).then(|| problem(message, help))
}

/// What is wrong where a text could be a key of this dataset and of another one, which has a name: the entry would change between
/// the two.
pub(super) fn with_dataset(
    (key, source): (&Template, &DatasetSource),
    other: (&str, &Template, &DatasetSource),
) -> Option<SourceProblem> {
    let (name, theirs, their_source) = other;
    let own = |column: &str| source.alphabet(column);
    let message = format!("keys {key} and {theirs} of dataset {name} could coincide");
    let help = "begin each dataset's keys with a prefix of its own";
    key.overlaps(own, theirs, |column| their_source.alphabet(column)).then(|| problem(message, help))
}

fn problem(message: String, help: &str) -> SourceProblem {
    SourceProblem::new("key", message, help)
}
