//! Write commands that were rejected: looked at, put back into their stream, or discarded.

use std::collections::HashSet;

use serde_json::Value;

use super::commands::command::record_id;
use super::context::Context;
use super::error::EngineError;
use super::failpoint;
use crate::stores::postgres::records::forget_rejections;
use crate::stores::postgres::write::CommandStream;
use crate::stores::redis::{CacheError, StreamEntry};
use crate::write::{Parameter, decode};

/// A write command that was rejected.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// The command as it came, under the entry that it had in the stream.
    pub command: StreamEntry,
    /// Why it was rejected.
    pub reason: String,
    /// Its record's id; none: it could not be read, and has no record.
    pub id: Option<String>,
    /// Where it is kept.
    letter: StreamEntry,
}

/// What became of a replay.
#[derive(Debug)]
pub struct Replayed {
    /// How many commands were put back.
    pub count: usize,
    /// Why not all were.
    pub error: Option<EngineError>,
}

/// Commands of one statement.
const AT_ONCE: usize = 100;

/// The rejected commands of a stream, the oldest first.
pub async fn rejected(context: &Context, stream: &str, most: usize) -> Result<Vec<Rejected>, CacheError> {
    let letters = context.redis.dead_letters(stream, most).await?;
    Ok(letters.into_iter().map(Rejected::read).collect())
}

/// Puts rejected commands back into their stream, behind what is there. Each record is forgotten first: a command that came
/// back with its rejection on record would be rejected again without being tried. Whoever is interrupted in between has
/// lost nothing, because the command is still kept, and may run this again.
pub async fn replay(context: &Context, stream: &str, commands: &[Rejected]) -> Replayed {
    let mut count = 0;
    let error = replay_all(context, stream, commands, &mut count).await.err();
    Replayed { count, error }
}

/// Discards rejected commands; answers how many were still there. That they were rejected stays on record, so that a producer who
/// sends one again is told the same.
///
/// # Errors
/// [`CacheError`]
pub async fn discard(context: &Context, stream: &str, commands: &[Rejected]) -> Result<u64, CacheError> {
    let mut count = 0;
    for part in commands.chunks(AT_ONCE) {
        let letters: Vec<&str> = part.iter().map(Rejected::kept_as).collect();
        count += context.redis.discard_dead(stream, &letters).await?;
    }
    Ok(count)
}

async fn replay_all(
    context: &Context,
    stream: &str,
    commands: &[Rejected],
    count: &mut usize,
) -> Result<(), EngineError> {
    for part in commands.chunks(AT_ONCE) {
        let ids: HashSet<String> = part.iter().filter_map(|one| one.id.clone()).collect();
        let ids: Vec<String> = ids.into_iter().collect();
        let commands = CommandStream { namespace: context.redis.keys().namespace(), name: stream };
        forget_rejections(&context.postgres, commands, &ids).await?;
        failpoint::reach("replay.forgotten");
        for one in part {
            context.redis.revive(stream, &one.letter, &one.fields_again()).await?;
            *count += 1;
            failpoint::reach("replay.moved");
        }
    }
    Ok(())
}

impl Rejected {
    /// The last two fields of a letter are not the command's: the entry that it had, and the reason.
    fn read(letter: StreamEntry) -> Self {
        let mut fields = letter.fields.clone();
        let mut take = |name: &[u8]| match fields.pop_if(|(field, _)| field == name) {
            Some((_, value)) => String::from_utf8_lossy(&value).into_owned(),
            None => String::new(),
        };
        let reason = take(b"reason");
        let command = StreamEntry::new(take(b"entry"), fields);
        Self { reason, id: record_id(&command), command, letter }
    }

    /// The entry under which it is kept.
    #[must_use]
    pub fn kept_as(&self) -> &str {
        &self.letter.id
    }

    /// Whether somebody who names this id means it: that of the command, or that under which it is kept.
    #[must_use]
    pub fn is_meant_by(&self, id: &str) -> bool {
        self.kept_as() == id || self.id.as_deref() == Some(id)
    }

    /// A field of the command as text.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        self.command.field(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The parameters, where they can be read.
    #[must_use]
    pub fn parameters(&self) -> Option<Value> {
        let parameters = decode(self.command.field("params")?).ok()?;
        let plain = |(name, value): (String, Parameter)| {
            let value = match value {
                Parameter::Value(value) => value,
                Parameter::Text(text) => Value::from(text),
                Parameter::Bytes(bytes) => Value::from(hex(&bytes)),
            };
            (name, value)
        };
        Some(Value::Object(parameters.into_iter().map(plain).collect()))
    }

    /// When it was rejected, in milliseconds by Redis's clock.
    #[must_use]
    pub fn rejected_ms(&self) -> i64 {
        self.letter.position().0
    }

    /// Its fields for the stream. A command without an id of its own keeps the one that was made of its first entry, so that it
    /// is carried out once although two people put it back.
    fn fields_again(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut fields = self.command.fields.clone();
        if let (None, Some(id)) = (self.command.field("id"), &self.id) {
            fields.push((b"id".to_vec(), id.clone().into_bytes()));
        }
        fields
    }
}

/// Bytes as Postgres writes them.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    format!("\\x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
