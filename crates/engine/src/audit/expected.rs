//! What the rows of some keys say.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::catalog::Dataset;
use crate::context::Context;
use crate::encode::Encoder;
use crate::epoch;
use crate::error::EngineError;
use crate::stores::postgres::{DatasetSource, ErrorKind, KeyValues, Poll};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::stamp::Stamp;

/// What the rows of some keys say.
pub(crate) struct Expected {
    /// Not older than what any row was read at.
    pub poll: Poll,
    /// Not newer than what any row was read at.
    pub oldest: Stamp,
    pub values: HashMap<String, Vec<u8>>,
    /// Keys that have a row whose life has ended.
    pub ended: HashSet<String>,
    /// Tags of entries.
    pub tags: BTreeMap<String, Vec<String>>,
    /// Keys whose rows cannot be sent, or have no form, and why.
    pub unreadable: HashMap<String, String>,
}

/// Loads keys. A row that makes the statement fail is found by halves.
pub(crate) async fn expect(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    keys: &[(String, KeyValues)],
) -> Result<Expected, EngineError> {
    let (mut values, mut ended, mut unreadable) = (HashMap::new(), HashSet::new(), HashMap::new());
    let (mut poll, mut before): (Option<Poll>, Option<Poll>) = (None, None);
    let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut parts = vec![keys];
    while let Some(part) = parts.pop() {
        let wanted: Vec<KeyValues> = part.iter().map(|(_, values)| values.clone()).collect();
        let loaded = match context.postgres.load(source, &wanted).await {
            Ok(loaded) => loaded,
            // A statement that fails tells no snapshot: from now on, one is taken before.
            Err(error) if error.kind == ErrorKind::Data && before.is_none() => {
                before = Some(epoch::poll(context).await?);
                parts = vec![keys];
                values.clear();
                ended.clear();
                tags.clear();
                continue;
            }
            Err(error) if error.kind == ErrorKind::Data && 1 < part.len() => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([left, right]);
                continue;
            }
            Err(error) if error.kind == ErrorKind::Data => {
                unreadable.extend(part.iter().map(|(key, _)| (key.clone(), error.told())));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut encoder = Encoder::new(dataset, source).at(loaded.clock);
        let mut batch = EntryBatch::default();
        for row in &loaded.rows {
            encoder.add(row, &mut batch);
        }
        encoder.finish(&mut batch);
        for entry in batch.iter() {
            // What has ended by now has no entry.
            if entry.life_ms == 0 {
                ended.insert(entry.key.to_owned());
            } else {
                values.insert(entry.key.to_owned(), entry.value.to_vec());
            }
        }
        for (tag, positions) in batch.tags() {
            let entries = positions.iter().filter_map(|position| batch.get(*position as usize));
            entries.for_each(|entry| tags.entry(entry.key.to_owned()).or_default().push(tag.to_owned()));
        }
        let failures = encoder.failures.into_iter();
        unreadable.extend(failures.filter_map(|failure| Some((failure.key?, failure.reason))));
        poll = Some(loaded.poll);
    }
    let poll = match (poll, &before) {
        (Some(poll), None) => poll,
        _ => epoch::poll(context).await?,
    };
    let oldest = before.as_ref().unwrap_or(&poll).snapshot.stamp();
    Ok(Expected { poll, oldest, values, ended, tags, unreadable })
}
