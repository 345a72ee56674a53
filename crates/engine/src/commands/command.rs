//! A command as it is in the stream, and what is answered.

use std::time::Duration;

use serde_json::json;

use crate::context::Context;
use crate::error::EngineError;
use crate::stores::redis::{ENTRY_BYTES_MAX, Finished, StreamEntry};
use crate::write::{CacheState, Parameters, PreparedWrite, decode};

/// Bytes of an id.
const ID_MAX: usize = 200;
/// Bytes of the name of a list for replies.
const REPLY_NAME_MAX: usize = 1_024;

pub(super) const RETRY_DELAY_MIN: Duration = Duration::from_millis(20);
pub(super) const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// After so many attempts a command is given up, so that it does not block its queue for ever.
pub(super) const TRIES_MAX: u32 = 100;

/// A command in its queue.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) entry: StreamEntry,
    pub(super) command: Command,
    pub(super) prepared: PreparedWrite,
    pub(super) tries: u32,
}

/// Why a leader ends.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Another worker has taken over.
    #[error("another worker applies write commands now")]
    NotLeader,
    /// A server was not reached; what is not finished comes again.
    #[error(transparent)]
    Flow(#[from] EngineError),
}

impl<E: Into<EngineError>> From<E> for Box<CommandError> {
    fn from(error: E) -> Self {
        Box::new(CommandError::Flow(error.into()))
    }
}

/// A command that can be read.
#[derive(Debug)]
pub struct Command {
    /// Its producer's id, or one made of its entry.
    pub id: String,
    /// A hash of its contents: the same id with another one is a mistake, not a repetition.
    pub digest: String,
    /// The dataset that it writes.
    pub dataset: String,
    /// The values.
    pub parameters: Parameters,
}

impl Command {
    /// Reads the fields of an entry: `dataset`, `params`, and perhaps `id` and `reply`. An error says why it cannot be
    /// carried out.
    pub fn read(context: &Context, entry: &StreamEntry) -> Result<Self, String> {
        if entry.is_too_large() {
            return Err(format!("it has {} bytes, at most {ENTRY_BYTES_MAX}", entry.size()));
        }
        let text = |name: &str| {
            let bytes = entry.field(name).ok_or_else(|| format!("field `{name}` is missing"))?;
            std::str::from_utf8(bytes).map_err(|_binary| format!("field `{name}` is not UTF-8"))
        };
        let dataset = text("dataset")?.to_owned();
        let bytes = entry.field("params").ok_or("field `params` is missing")?;
        let parameters = decode(bytes)?;
        if entry.field("reply").is_some() {
            check_list(context, text("reply")?)?;
        }
        let digest = digest(&dataset, bytes);
        let id = match entry.field("id") {
            Some(_) => text("id")?.to_owned(),
            None => id_of_entry(&entry.id, &digest),
        };
        if id.is_empty() || ID_MAX < id.len() || id.contains('\0') {
            return Err(format!("field `id` is empty, longer than {ID_MAX} bytes, or has a zero byte"));
        }
        Ok(Self { id, digest, dataset, parameters })
    }
}

fn digest(dataset: &str, parameters: &[u8]) -> String {
    let mut contents = dataset.as_bytes().to_vec();
    contents.push(0);
    contents.extend_from_slice(parameters);
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&contents))
}

/// A command without an id uses its entry's id and a digest, so that it cannot match an entry of the same number in a stream
/// that was deleted.
fn id_of_entry(entry: &str, digest: &str) -> String {
    format!("{entry}/{digest}")
}

/// The id of a command's record: its producer's, or the one made of its entry. None where it has neither
/// `dataset` nor `params`, so that it has no record.
#[must_use]
pub(crate) fn record_id(entry: &StreamEntry) -> Option<String> {
    let text = |name: &str| std::str::from_utf8(entry.field(name)?).ok();
    match entry.field("id") {
        Some(_) => text("id").map(str::to_owned),
        None => Some(id_of_entry(&entry.id, &digest(text("dataset")?, entry.field("params")?))),
    }
}

/// Replies may not come where something else belongs: neither streams nor own keys begin with the prefix.
fn check_list(context: &Context, list: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("field `reply` must name a list of your own: {why}"));
    if list.is_empty() || REPLY_NAME_MAX < list.len() {
        return refuse("it is empty or too long");
    }
    let prefix = context.event_scope.reply_prefix();
    if !list.starts_with(prefix) {
        return refuse(&format!("its name begins with {prefix}, or with what [writes] reply_prefix says"));
    }
    match context.catalog.of_key(list) {
        Some((dataset, _)) => refuse(&format!("this is a key of dataset {}", dataset.name())),
        None => Ok(()),
    }
}

/// What became of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CommandOutcome {
    /// Rows that it wrote.
    pub rows: i64,
    /// Why it was rejected.
    pub error: Option<String>,
    /// It had been carried out before.
    pub is_repeated: bool,
}

impl CommandOutcome {
    /// It is not carried out, for this reason.
    #[must_use]
    pub fn rejected(reason: String) -> Self {
        Self { error: Some(reason), ..Self::default() }
    }

    /// A label for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match (&self.error, self.is_repeated) {
            (Some(_), _) => "rejected",
            (None, true) => "repeated",
            (None, false) => "applied",
        }
    }

    /// How its entry ends.
    #[must_use]
    pub fn finish(
        &self,
        context: &Context,
        entry: &StreamEntry,
        token: Option<&str>,
        cache: CacheState,
    ) -> Finished {
        let list = entry.field("reply").and_then(|list| std::str::from_utf8(list).ok());
        // Also where the command was rejected for another reason, before its list was looked at.
        let reply = list.filter(|list| check_list(context, list).is_ok()).map(|list| {
            let id = entry.field("id").map(|id| String::from_utf8_lossy(id).into_owned());
            let is_ok = self.error.is_none();
            let cache = match cache {
                CacheState::Stored => "stored",
                CacheState::Pending => "pending",
            };
            let reply = json!({
                "id": id,
                "entry": entry.id,
                "ok": is_ok,
                "rows": self.rows,
                "token": token.filter(|_| is_ok),
                "cache": is_ok.then_some(cache),
                "error": self.error,
            });
            (list.to_owned(), reply.to_string())
        });
        let kept = entry.is_too_large().then(|| entry.fields.clone());
        Finished { id: entry.id.clone(), reply, rejected: self.error.clone(), kept }
    }
}
