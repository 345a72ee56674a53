//! Streams with a consumer group: write commands and durable events.

use std::collections::HashMap;
use std::time::Duration;

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

use super::entries::millis;
use super::script::{Call, STREAM_TAKE};
use super::{CacheError, Redis};

/// One entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// `<milliseconds>-<number>`
    pub id: String,
    /// Its fields.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl StreamEntry {
    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        let found = self.fields.iter().find(|(field, _)| field == name.as_bytes());
        found.map(|(_, value)| value.as_slice())
    }

    /// The id as two numbers, by which entries are ordered.
    #[must_use]
    pub fn position(&self) -> (i64, i64) {
        position(&self.id)
    }
}

fn position(id: &str) -> (i64, i64) {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or_default(), seq.parse().unwrap_or_default())
}

/// A consumer of a group, on a connection of its own, because it waits.
pub struct StreamReader {
    redis: Redis,
    connection: MultiplexedConnection,
    stream: String,
    group: String,
    consumer: String,
    /// The right to take entries; empty: anybody has it.
    token: String,
    /// Behind it new entries come.
    last: String,
}

impl std::fmt::Debug for StreamReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StreamReader").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// What is done with entries that were worked off.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    /// Their ids.
    pub ids: Vec<String>,
    /// Lists that get a reply each.
    pub replies: Vec<(String, String)>,
    /// Entries that are kept apart, with the reason.
    pub dead: Vec<(StreamEntry, String)>,
}

/// How a stream stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Entries.
    pub length: u64,
    /// Entries that somebody has and has not finished.
    pub pending: u64,
    /// The oldest entry's id.
    pub oldest: Option<String>,
    /// Entries kept apart.
    pub dead: u64,
}

impl StreamState {
    /// The oldest entry as two numbers.
    #[must_use]
    pub fn oldest_position(&self) -> Option<(i64, i64)> {
        self.oldest.as_deref().map(position)
    }
}

/// How long replies are kept.
const REPLY_LIFE: Duration = Duration::from_secs(3600);
/// Most entries that are kept apart.
const DEAD_MAX: usize = 10_000;
type RawEntry = (String, Option<Vec<(Vec<u8>, Vec<u8>)>>);

/// Where entries of a stream that were rejected are kept.
fn dead_of(stream: &str) -> String {
    format!("{stream}:dead")
}

impl Redis {
    /// Opens a stream for a consumer; makes stream and group where they are missing. A new group begins at the first entry.
    /// With a token, nobody who came with an earlier one takes entries any more.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn open_stream(
        &self,
        stream: &str,
        group: &str,
        consumer: &str,
        waits: Duration,
        token: Option<i64>,
    ) -> Result<StreamReader, CacheError> {
        let what = "open a stream";
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(waits + Duration::from_secs(5)));
        let opened = tokio::time::timeout(
            Duration::from_secs(5),
            self.client.get_multiplexed_async_connection_with_config(&config),
        );
        let connection = opened.await.map_err(|_elapsed| CacheError::timed_out(what))?;
        let token = token.map(|token| token.to_string()).unwrap_or_default();
        if !token.is_empty() {
            let set = redis::cmd("SET").arg(self.keys.writer(stream)).arg(&token).to_owned();
            self.command::<String>(what, &set).await?;
        }
        let mut reader = StreamReader {
            redis: self.clone(),
            token,
            last: "0-0".to_owned(),
            connection: connection.map_err(|source| CacheError::new(what, source))?,
            stream: stream.to_owned(),
            group: group.to_owned(),
            consumer: consumer.to_owned(),
        };
        reader.create_group().await?;
        Ok(reader)
    }

    /// Ends entries that were worked off: replies, what is kept apart, acknowledgement and removal in one transaction.
    ///
    /// # Errors
    /// [`CacheError`]; then they come again.
    pub async fn finish_entries(&self, stream: &str, group: &str, done: &Finished) -> Result<(), CacheError> {
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        for (list, reply) in &done.replies {
            pipeline.cmd("LPUSH").arg(list).arg(reply).ignore();
            pipeline.cmd("PEXPIRE").arg(list).arg(millis(REPLY_LIFE)).ignore();
        }
        for (entry, reason) in &done.dead {
            pipeline.cmd("XADD").arg(dead_of(stream)).arg("MAXLEN").arg("~").arg(DEAD_MAX).arg("*");
            for (name, value) in &entry.fields {
                pipeline.arg(name).arg(value);
            }
            pipeline.arg("entry").arg(&entry.id).arg("reason").arg(reason).ignore();
        }
        if !done.ids.is_empty() {
            pipeline.cmd("XACK").arg(stream).arg(group).arg(&done.ids).ignore();
            pipeline.cmd("XDEL").arg(stream).arg(&done.ids).ignore();
        }
        let mut connection = self.connection.clone();
        let done = pipeline.query_async::<()>(&mut connection).await;
        done.map_err(|source| CacheError::new("finish stream entries", source))
    }

    /// How a stream stands.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn stream_state(&self, stream: &str, group: &str) -> Result<StreamState, CacheError> {
        let what = "look at a stream";
        let length: u64 = self.command(what, redis::cmd("XLEN").arg(stream)).await?;
        let dead: u64 = self.command(what, redis::cmd("XLEN").arg(dead_of(stream))).await?;
        let first: Vec<RawEntry> = self
            .command(what, redis::cmd("XRANGE").arg(stream).arg("-").arg("+").arg("COUNT").arg(1))
            .await?;
        let pending: Result<(u64, redis::Value, redis::Value, redis::Value), _> =
            self.command(what, redis::cmd("XPENDING").arg(stream).arg(group)).await;
        let pending = match pending {
            Ok((count, ..)) => count,
            // No stream or no group yet.
            Err(error) if error.source.code() == Some("NOGROUP") => 0,
            Err(error) => return Err(error),
        };
        Ok(StreamState { length, pending, oldest: first.into_iter().next().map(|(id, _)| id), dead })
    }

    /// Entries that were rejected, the oldest first.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn dead_letters(&self, stream: &str, most: usize) -> Result<Vec<StreamEntry>, CacheError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(dead_of(stream)).arg("-").arg("+").arg("COUNT").arg(most);
        let entries: Vec<RawEntry> = self.command("read rejected entries", &command).await?;
        Ok(entries.into_iter().filter_map(read_entry).collect())
    }

    /// Puts a rejected entry into the stream again.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn revive(
        &self,
        stream: &str,
        dead: &StreamEntry,
        fields: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), CacheError> {
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("XADD").arg(stream).arg("*");
        for (name, value) in fields {
            pipeline.arg(name).arg(value);
        }
        pipeline.ignore().cmd("XDEL").arg(dead_of(stream)).arg(&dead.id).ignore();
        let mut connection = self.connection.clone();
        let done = pipeline.query_async::<()>(&mut connection).await;
        done.map_err(|source| CacheError::new("revive a rejected entry", source))
    }

    /// Adds an entry to a stream; answers its id.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn append(&self, stream: &str, fields: &[(&str, &[u8])]) -> Result<String, CacheError> {
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg("*");
        for (name, value) in fields {
            command.arg(*name).arg(*value);
        }
        self.command("add to a stream", &command).await
    }
}

impl StreamReader {
    async fn create_group(&mut self) -> Result<(), CacheError> {
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(&self.stream).arg(&self.group).arg(0).arg("MKSTREAM");
        match command.query_async::<String>(&mut self.connection).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
            Err(source) => Err(CacheError::new("open a stream", source)),
        }
    }

    /// Takes over entries that somebody has had for at least so long and not finished, from a cursor on, in the order of the
    /// stream. Answers the next cursor (`0-0`: that was all); none: somebody else has the right now.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn claim(
        &mut self,
        idle: Duration,
        cursor: &str,
        most: usize,
    ) -> Result<Option<(String, Vec<StreamEntry>)>, CacheError> {
        self.take(cursor, idle, most).await
    }

    /// New entries, waiting a little for them; none: somebody else has the right now.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn read(
        &mut self,
        most: usize,
        waits: Duration,
    ) -> Result<Option<Vec<StreamEntry>>, CacheError> {
        // A look that takes nothing, so that it may block: a script may not.
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(millis(waits)).arg("STREAMS");
        command.arg(&self.stream).arg(&self.last);
        let looked: Result<Option<Vec<(String, Vec<RawEntry>)>>, _> =
            command.query_async(&mut self.connection).await;
        let looked = match looked {
            Ok(looked) => looked.unwrap_or_default(),
            Err(error) if error.code() == Some("UNBLOCKED") => Vec::new(),
            Err(source) => return Err(CacheError::new("wait for stream entries", source)),
        };
        let Some((seen, _)) = looked.into_iter().flat_map(|(_, entries)| entries).next() else {
            return Ok(Some(Vec::new()));
        };
        let Some((_, entries)) = self.take(">", Duration::ZERO, most).await? else { return Ok(None) };
        // What was seen and not taken is somebody's already.
        self.last = entries.last().map_or(seen, |entry| entry.id.clone());
        Ok(Some(entries))
    }

    async fn take(
        &mut self,
        cursor: &str,
        idle: Duration,
        most: usize,
    ) -> Result<Option<(String, Vec<StreamEntry>)>, CacheError> {
        let mut call = Call::new(&STREAM_TAKE, 2);
        call.arg(self.redis.keys.writer(&self.stream).as_bytes()).arg(self.stream.as_bytes());
        call.arg(self.token.as_bytes()).arg(self.group.as_bytes()).arg(self.consumer.as_bytes());
        call.number(most as u64).arg(cursor.as_bytes()).number(millis(idle));
        let reply = match call.run(&self.redis).await {
            Ok(reply) => reply,
            // A stream that was deleted, with its group, is made again.
            Err(error) if format!("{:?}", error.source).contains("NOGROUP") => {
                self.create_group().await?;
                self.last = "0-0".to_owned();
                return Ok(Some(("0-0".to_owned(), Vec::new())));
            }
            Err(error) => return Err(error),
        };
        let parts: Vec<redis::Value> = match reply {
            redis::Value::Array(parts) => parts,
            _ => return Ok(None),
        };
        let mut parts = parts.into_iter();
        let Some((next, entries)) = parts.next().zip(parts.next()) else { return Ok(None) };
        let entries: Vec<Option<RawEntry>> = call.read(entries)?;
        Ok(Some((call.read(next)?, entries.into_iter().flatten().filter_map(read_entry).collect())))
    }
}

/// An entry that was deleted while somebody had it has no fields.
fn read_entry((id, fields): RawEntry) -> Option<StreamEntry> {
    Some(StreamEntry { id, fields: fields? })
}

/// A consumer of a stream's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConsumer {
    /// Its name.
    pub name: String,
    /// Entries that it has and has not finished.
    pub pending: u64,
    /// Since it last took entries, or tried to.
    pub idle: Duration,
}

impl Redis {
    /// The consumers of a group; none where stream or group are missing.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn stream_consumers(
        &self,
        stream: &str,
        group: &str,
    ) -> Result<Vec<StreamConsumer>, CacheError> {
        let what = "look at a stream's consumers";
        if !self.command::<bool>(what, redis::cmd("EXISTS").arg(stream)).await? {
            return Ok(Vec::new());
        }
        let command = redis::cmd("XINFO").arg("CONSUMERS").arg(stream).arg(group).to_owned();
        let reply: Vec<HashMap<String, redis::Value>> = match self.command(what, &command).await {
            Ok(reply) => reply,
            Err(error) if error.source.code() == Some("NOGROUP") => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let consumer = |fields: HashMap<String, redis::Value>| {
            let number = |name: &str| match fields.get(name) {
                Some(redis::Value::Int(number)) => u64::try_from(*number).unwrap_or_default(),
                _ => 0,
            };
            let name = fields.get("name").and_then(|name| redis::from_redis_value_ref(name).ok());
            StreamConsumer {
                name: name.unwrap_or_default(),
                pending: number("pending"),
                idle: Duration::from_millis(number("idle")),
            }
        };
        Ok(reply.into_iter().map(consumer).collect())
    }
}
