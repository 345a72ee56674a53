//! Namespaces share what is captured, and nothing else. Several may use one Redis database, as long as no key of one could be
//! one of another; and what one of them is done with in Postgres stays while another uses it.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::Dataset;
use super::context::Context;
use super::error::EngineError;
use crate::stores::redis::dead_of;
use cachekeeper_config::Config;
use cachekeeper_protocol::template::{Alphabet, Template};

/// Names of what a namespace uses, as they are registered in Redis.
const EVENTS: &str = "events";
const COMMANDS: &str = "commands";
const REPLIES: &str = "replies";
/// Stands before a dataset's name; the field holds the template of its keys.
const KEY: &str = "key:";

/// What two namespaces would both use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The setting here that says so.
    pub setting: String,
    /// What is wrong.
    pub message: String,
}

/// What to do about a conflict.
pub const CONFLICT_HELP: &str = "give each namespace streams, a reply_prefix and key prefixes of its own, or another database number of Redis";

/// What this namespace would share with others of the same Redis database.
///
/// # Errors
/// [`EngineError`] where Redis cannot be asked.
pub async fn conflicts(context: &Context, config: &Config) -> Result<Vec<Conflict>, EngineError> {
    let mut found = Vec::new();
    for (other, shard) in context.redis.other_namespaces().await? {
        let uses = context.redis.uses_of((&other, shard)).await?;
        if uses.is_empty() {
            let message = format!(
                "this Redis database already serves the namespace {other:?}, which does not say what it uses: start its worker \
                 first, or take its keys out with its `cachekeeper purge`"
            );
            found.push(Conflict { setting: "redis.url".to_owned(), message });
            continue;
        }
        conflicts_with(context, config, &other, &uses, &mut found);
    }
    Ok(found)
}

/// Makes known what this namespace uses.
///
/// # Errors
/// [`EngineError`] where Redis does not take it.
pub async fn register(context: &Context, config: &Config) -> Result<(), EngineError> {
    let mut uses = vec![(REPLIES.to_owned(), config.writes.reply_prefix.clone())];
    let streams = [(EVENTS, &config.invalidation.stream), (COMMANDS, &config.writes.stream)];
    for (name, stream) in streams {
        uses.extend(stream.iter().map(|stream| (name.to_owned(), stream.clone())));
    }
    let datasets = config.datasets.iter();
    uses.extend(datasets.map(|dataset| (format!("{KEY}{}", dataset.name), dataset.key.to_string())));
    context.redis.register_uses(&uses).await?;
    Ok(())
}

/// Notes in Postgres which tables this namespace watches, so that the removal of another leaves them captured.
///
/// # Errors
/// [`EngineError`], for example without the right to write there.
pub async fn note_watched(context: &Context) -> Result<(), EngineError> {
    let rules = context.catalog.iter().flat_map(|dataset| dataset.settings.watch.iter());
    let tables: BTreeSet<String> = rules.map(|rule| rule.table.clone()).collect();
    let tables: Vec<String> = tables.into_iter().collect();
    context.postgres.note_used_by(context.redis.keys().namespace(), &tables).await?;
    Ok(())
}

fn conflicts_with(
    context: &Context,
    config: &Config,
    other: &str,
    uses: &BTreeMap<String, String>,
    found: &mut Vec<Conflict>,
) {
    let mut add = |setting: &str, what: String| {
        let message = format!("{what}: the namespace {other:?} of this Redis database uses it too");
        found.push(Conflict { setting: setting.to_owned(), message });
    };
    let streams_of = |name: &&str| uses.get(*name).map(|stream| [stream.clone(), dead_of(stream)]);
    let theirs: Vec<String> = [EVENTS, COMMANDS].iter().filter_map(streams_of).flatten().collect();
    let own =
        [("invalidation.stream", &config.invalidation.stream), ("writes.stream", &config.writes.stream)];
    for (setting, stream) in own {
        let Some(stream) = stream else { continue };
        if [stream.clone(), dead_of(stream)].iter().any(|key| theirs.contains(key)) {
            add(setting, format!("the stream {stream}"));
        }
    }
    let prefix = &config.writes.reply_prefix;
    if let Some(theirs) = uses.get(REPLIES)
        && (theirs.starts_with(prefix) || prefix.starts_with(theirs))
    {
        add("writes.reply_prefix", format!("the prefix {prefix} of lists for replies"));
    }
    let templates =
        uses.iter().filter_map(|(field, text)| Some((field.strip_prefix(KEY)?, Template::parse(text).ok()?)));
    let templates: Vec<(&str, Template)> = templates.collect();
    for dataset in context.catalog.iter() {
        let (key, setting) = (&dataset.settings.key, format!("dataset.{}.key", dataset.name()));
        let alphabet = |column: &str| alphabet_of(dataset, column);
        for (name, template) in &templates {
            // What their placeholders hold is not known here.
            if key.overlaps(alphabet, template, |_| Alphabet::Segment) {
                add(&setting, format!("keys {key} could be those ({template}) of dataset {name}"));
            }
        }
        if let Some(stream) = theirs.iter().find(|stream| key.could_be(alphabet, stream)) {
            add(&setting, format!("keys {key} could coincide with the stream {stream}"));
        }
    }
}

fn alphabet_of(dataset: &Dataset, column: &str) -> Alphabet {
    dataset.known_source().map_or(Alphabet::Segment, |source| source.alphabet(column))
}
