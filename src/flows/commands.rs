//! Write commands of a stream: carried out once, in order for each key, by one worker at a time (DESIGN 3.1).
//!
//! Exactly once in effect: a command's record is written in the transaction of its effect. In order: one worker leads, and
//! every transaction checks that it still does; commands of one key are in one lane, and a lane goes in the order of the
//! stream. Fast: a lane commits many commands together, and one by one only where one of them fails.

mod lane;

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tracing::{info, warn};

use super::context::Context;
use super::error::FlowError;
use super::failpoint;
use super::write::parameters::{Parameters, decode};
use super::write::{CacheState, Touched, settle};
use crate::domain::keyspace::key_hash;
use crate::metrics::ByReason;
use crate::stores::redis::{Finished, StreamEntry, StreamReader};
use lane::{Lane, Outcome};

/// The group in which workers read.
#[must_use]
pub fn group_of(namespace_prefix: &str) -> String {
    // The prefix is `ck:{<namespace>}:`.
    let name = namespace_prefix.trim_start_matches("ck:{").trim_end_matches("}:");
    format!("cachekeeper:{name}")
}

/// A command as it came.
#[derive(Debug, Clone)]
pub struct Command {
    /// Its producer's id, or one made of its entry.
    pub id: String,
    /// A hash of its contents.
    pub digest: String,
    /// Where it stands in the stream.
    pub position: (i64, i64),
    /// The dataset that it writes.
    pub dataset: String,
    /// The values.
    pub parameters: Parameters,
}

/// Why a step ended early.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Another worker has taken over.
    #[error("another worker applies write commands now")]
    Displaced,
    /// A server was not reached; what is not finished comes again.
    #[error(transparent)]
    Flow(#[from] FlowError),
}

impl<E: Into<FlowError>> From<E> for Box<CommandError> {
    fn from(error: E) -> Self {
        Box::new(CommandError::Flow(error.into()))
    }
}

/// All leaders are one consumer: there is one at a time.
const CONSUMER: &str = "writer";
/// Entries of one step.
const STEP: usize = 512;
/// Lanes at the same time, each with a connection.
const LANES: u64 = 4;
/// How long a read waits for new entries.
pub const WAITS: Duration = Duration::from_millis(500);
const REPLY_NAME_MAX: usize = 1_024;

/// The leader's hand on the stream.
#[derive(Debug)]
pub struct Commands {
    context: Context,
    stream: String,
    group: String,
    reader: StreamReader,
    token: i64,
    /// Where the entries of earlier hands are claimed; none: all are.
    claims_from: Option<String>,
}

impl Commands {
    /// Takes the stream over from whoever led before.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn lead(context: &Context, stream: &str) -> Result<Self, Box<CommandError>> {
        let group = group_of(context.redis.keys().prefix());
        // From the first on no earlier leader commits any more, from the second on none takes entries.
        let token = context.postgres.take_over_writes(stream).await?;
        let reader = context.redis.open_stream(stream, &group, CONSUMER, WAITS, Some(token)).await?;
        info!(stream, token, "this worker applies write commands");
        Ok(Self {
            context: context.clone(),
            stream: stream.to_owned(),
            group,
            reader,
            token,
            claims_from: Some("0-0".to_owned()),
        })
    }

    /// Carries out what is there, waiting a little for it; answers how many entries there were. After an error the entries
    /// are still in the stream, and a new leader, or this one, begins with them.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn step(&mut self) -> Result<usize, Box<CommandError>> {
        let entries = match self.claims_from.take() {
            Some(cursor) => {
                let claimed = self.reader.claim(Duration::ZERO, &cursor, STEP).await?;
                let (next, entries) = claimed.ok_or_else(|| Box::new(CommandError::Displaced))?;
                self.claims_from = (next != "0-0").then_some(next);
                entries
            }
            None => {
                let read = self.reader.read(STEP, WAITS).await?;
                read.ok_or_else(|| Box::new(CommandError::Displaced))?
            }
        };
        if entries.is_empty() {
            return Ok(0);
        }
        let count = entries.len();
        if let Err(error) = self.carry_out(entries).await {
            // What is not finished is claimed again, from the beginning, so that the order stays.
            self.claims_from = Some("0-0".to_owned());
            return Err(error);
        }
        Ok(count)
    }

    /// Drops records that no command can need any more; notes how the stream stands.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn tidy(&mut self) -> Result<(), Box<CommandError>> {
        let state = self.context.redis.stream_state(&self.stream, &self.group).await?;
        if 0 < state.pending && self.claims_from.is_none() {
            // Nothing is under way here, so somebody took entries and does not have them any more.
            self.claims_from = Some("0-0".to_owned());
        }
        let metrics = &self.context.metrics;
        metrics.commands_waiting.set(i64::try_from(state.length).unwrap_or(i64::MAX));
        self.context.postgres.prune_applied(&self.stream, state.oldest_position()).await?;
        Ok(())
    }

    async fn carry_out(&self, entries: Vec<StreamEntry>) -> Result<(), Box<CommandError>> {
        let mut lanes: HashMap<u64, Vec<(usize, Command)>> = HashMap::new();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; entries.len()];
        for (at, entry) in entries.iter().enumerate() {
            match read_command(entry) {
                Ok(command) => {
                    let lane = key_hash(self.lane_of(&command).await?.as_bytes()) % LANES;
                    lanes.entry(lane).or_default().push((at, command));
                }
                Err(reason) => {
                    if let Some(outcome) = outcomes.get_mut(at) {
                        *outcome = Some(Outcome::rejected(reason));
                    }
                }
            }
        }
        let lane = Lane { context: &self.context, stream: &self.stream, token: self.token };
        let done =
            futures_util::future::join_all(lanes.into_values().map(|commands| lane.run(commands))).await;
        failpoint::reach("write.applied");
        let mut touched = Touched::default();
        let mut failed = None;
        for result in done {
            match result {
                Ok(lane) => {
                    for (at, mut outcome) in lane {
                        if let Some(own) = outcome.touched.take() {
                            touched.join(own);
                        }
                        if let Some(slot) = outcomes.get_mut(at) {
                            *slot = Some(outcome);
                        }
                    }
                }
                Err(error) => failed = Some(error),
            }
        }
        let has_effect = 0 < touched.rows || !touched.datasets.is_empty();
        let written = if has_effect { Some(settle(&self.context, touched).await) } else { None };
        failpoint::reach("write.loaded");
        let cache = written.as_ref().map_or(CacheState::Stored, |written| written.cache);
        let token = written.and_then(|written| written.token).map(|token| token.to_string());
        let mut finished = Finished::default();
        for (entry, outcome) in entries.iter().zip(outcomes) {
            let Some(outcome) = outcome else { continue };
            self.count(&outcome);
            finished.ids.push(entry.id.clone());
            if let Some(list) = reply_of(entry) {
                finished.replies.push((list, outcome.reply(entry, token.as_deref(), cache)));
            }
            if let Some(reason) = outcome.error {
                warn!(entry = %entry.id, reason, "a write command was rejected");
                finished.dead.push((entry.clone(), reason));
            }
        }
        self.context.redis.finish_entries(&self.stream, &self.group, &finished).await?;
        failed.map_or(Ok(()), Err)
    }

    fn count(&self, outcome: &Outcome) {
        let label = match (&outcome.error, outcome.is_repeated) {
            (Some(_), _) => "rejected",
            (None, true) => "repeated",
            (None, false) => "applied",
        };
        self.context.metrics.commands.get_or_create(&ByReason::new(label)).inc();
    }

    /// Commands that could touch one key are in one lane: by the key, where the parameters of the dataset's statement hold
    /// all of it, else by the dataset.
    async fn lane_of(&self, command: &Command) -> Result<String, Box<CommandError>> {
        let Some(dataset) = self.context.catalog.get(&command.dataset) else {
            return Ok(command.dataset.clone());
        };
        let statement = match super::write::statement_of(&self.context, dataset).await {
            Ok(statement) => statement,
            Err(super::write::WriteError::Unavailable(error)) => return Err(error.into()),
            Err(_rejected_later) => return Ok(command.dataset.clone()),
        };
        let values = super::write::parameters::bind(&statement, &command.parameters);
        let key = values.ok().and_then(|values| super::write::key_of(dataset, &statement, &values));
        Ok(key.map_or_else(|| command.dataset.clone(), |(key, _)| key))
    }
}

impl Outcome {
    fn reply(&self, entry: &StreamEntry, token: Option<&str>, cache: CacheState) -> String {
        let id = entry.field("id").map(|id| String::from_utf8_lossy(id).into_owned());
        let cache = match (cache, &self.error) {
            (_, Some(_)) => None,
            (CacheState::Stored, None) => Some("stored"),
            (CacheState::Pending, None) => Some("pending"),
        };
        let reply = json!({
            "id": id,
            "entry": entry.id,
            "ok": self.error.is_none(),
            "rows": self.rows,
            "token": token,
            "cache": cache,
            "error": self.error,
        });
        reply.to_string()
    }
}

fn reply_of(entry: &StreamEntry) -> Option<String> {
    let list = std::str::from_utf8(entry.field("reply")?).ok()?;
    let is_usable = !list.is_empty()
        && list.len() <= REPLY_NAME_MAX
        && !list.starts_with(crate::domain::keyspace::RESERVED_PREFIX);
    is_usable.then(|| list.to_owned())
}

fn read_command(entry: &StreamEntry) -> Result<Command, String> {
    let text = |name: &str| {
        let bytes = entry.field(name).ok_or_else(|| format!("field `{name}` is missing"))?;
        std::str::from_utf8(bytes).map_err(|_binary| format!("field `{name}` is not UTF-8"))
    };
    let dataset = text("dataset")?.to_owned();
    let bytes = entry.field("params").ok_or("field `params` is missing")?;
    let parameters = decode(bytes)?;
    let mut contents = dataset.clone().into_bytes();
    contents.push(0);
    contents.extend_from_slice(bytes);
    let digest = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&contents));
    let id = match entry.field("id") {
        Some(_) => text("id")?.to_owned(),
        // Its own entry; the digest tells it from an entry of the same name in a stream that was lost.
        None => format!("{}/{digest}", entry.id),
    };
    if id.is_empty() || 200 < id.len() || id.contains('\0') {
        return Err("field `id` is empty or longer than 200 bytes".to_owned());
    }
    Ok(Command { id, digest, position: entry.position(), dataset, parameters })
}

/// The id under which a command's record stands: its producer's, or the one made of its entry. None where the command cannot
/// be read, so that it has no record.
#[must_use]
pub fn record_id(entry: &StreamEntry) -> Option<String> {
    match entry.field("id") {
        Some(id) => std::str::from_utf8(id).ok().map(str::to_owned),
        None => read_command(entry).ok().map(|command| command.id),
    }
}
