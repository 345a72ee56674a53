//! Streams with a consumer group: write commands and durable events.

use std::time::Duration;

use redis::{AsyncConnectionConfig, FromRedisValue, ParsingError, ProtocolVersion, Value};
use tokio::time::Instant;

use super::endpoint::{ANSWERED_WITHIN, Session};
use super::entries::millis;
use super::script::{Call, STREAM_FINISH, STREAM_OPEN, STREAM_TAKE};
use super::{CacheError, Redis};

/// One entry of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// `<milliseconds>-<number>`
    pub id: String,
    /// Its fields; of one that is too large the small ones.
    pub fields: Fields,
    /// Bytes of all of its fields.
    bytes: usize,
}

/// Bytes of the largest entry that is read. A larger one is not even transferred: it is known by its small fields alone.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

impl StreamEntry {
    /// An entry with all of its fields.
    #[must_use]
    pub fn new(id: String, fields: Fields) -> Self {
        let bytes = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        Self { id, fields, bytes }
    }

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

    /// Bytes of all of its fields.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes
    }

    /// Whether it is too large to be read.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        ENTRY_BYTES_MAX < self.bytes
    }
}

pub(super) fn position(id: &str) -> (i64, i64) {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or_default(), seq.parse().unwrap_or_default())
}

/// A consumer of a group, on a connection of its own, because it waits.
pub struct StreamReader {
    redis: Redis,
    /// The connection that waits.
    session: Session,
    looked: Instant,
    stream: String,
    group: String,
    consumer: String,
    /// The right to take entries; empty: anybody has it.
    token: String,
    /// The last entry that was seen; reads go on behind it.
    last: String,
}

impl std::fmt::Debug for StreamReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StreamReader").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// An entry that was worked off, and what is to be done about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    /// Its id.
    pub id: String,
    /// A list, and the reply that is pushed to it.
    pub reply: Option<(String, String)>,
    /// Why it was rejected; then it is kept apart.
    pub rejected: Option<String>,
    /// What is kept of it then; none: all of its fields.
    pub kept: Option<Fields>,
}

/// How often the server is asked whether it is still the one.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long replies are kept.
const REPLY_LIFE: Duration = Duration::from_secs(3600);
/// Most entries that are kept apart; beyond it the oldest go.
const DEAD_MAX: u64 = 10_000;
/// Bytes of entries that are taken at once; one entry may be larger.
const TAKE_BYTES: u64 = 4 << 20;
type Streams = Vec<(String, Vec<RawEntry>)>;
type Fields = Vec<(Vec<u8>, Vec<u8>)>;
/// One that was deleted while somebody had it has no fields.
pub(super) type RawEntry = (String, Option<Fields>);

/// Where entries of a stream that were rejected are kept.
#[must_use]
pub fn dead_of(stream: &str) -> String {
    format!("{stream}:dead")
}

impl Redis {
    /// Opens a stream for a consumer; makes stream and group where they are missing. A new group begins at the first entry.
    /// With a token, nobody who came with an earlier one takes entries any more.
    pub async fn open_stream(
        &self,
        stream: &str,
        group: &str,
        consumer: &str,
        waits: Duration,
        token: Option<i64>,
    ) -> Result<StreamReader, CacheError> {
        let what = "open a stream";
        let limits = self.connection.endpoint();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limits.connect_timeout()))
            .set_response_timeout(Some(waits + limits.response_timeout()));
        let opened = self.connection.open_another(config, ProtocolVersion::RESP2).await;
        let token = token.map(|token| token.to_string()).unwrap_or_default();
        let reader = StreamReader {
            redis: self.clone(),
            token,
            last: "0-0".to_owned(),
            session: opened.map_err(|source| CacheError::new(what, source))?,
            looked: Instant::now(),
            stream: stream.to_owned(),
            group: group.to_owned(),
            consumer: consumer.to_owned(),
        };
        reader.open(&reader.token).await?;
        Ok(reader)
    }

    /// Ends entries that were worked off: acknowledged and removed, replied to, and kept apart where they were rejected, in
    /// one script, also when memory is full. Answers the ids of those whose reply could not be delivered, because
    /// something else than a list stands there.
    ///
    /// # Errors
    /// [`CacheError`]; it may be said again.
    pub async fn finish_entries(
        &self,
        stream: &str,
        group: &str,
        finished: &[Finished],
    ) -> Result<Vec<String>, CacheError> {
        let mut lists: Vec<&str> = Vec::new();
        let mut list_of = |name| match lists.iter().position(|list| *list == name) {
            Some(position) => position + 1,
            None => {
                lists.push(name);
                lists.len()
            }
        };
        let positions: Vec<usize> = finished
            .iter()
            .map(|one| one.reply.as_ref().map_or(0, |(list, _)| list_of(list.as_str())))
            .collect();
        let mut call = Call::new(&STREAM_FINISH, 2 + lists.len());
        call.arg(stream).arg(dead_of(stream));
        for list in &lists {
            call.arg(list);
        }
        call.arg(group).number(DEAD_MAX).number(millis(REPLY_LIFE));
        for (one, position) in finished.iter().zip(positions) {
            let reply = one.reply.as_ref().map_or("", |(_, reply)| reply.as_str());
            let reason = one.rejected.as_deref().unwrap_or_default();
            call.arg(&one.id).number(position as u64).arg(reply).arg(reason);
            match &one.kept {
                None => {
                    call.arg("-1");
                }
                Some(fields) => {
                    call.number(2 * fields.len() as u64);
                    for (name, value) in fields {
                        call.arg(name).arg(value);
                    }
                }
            }
        }
        let (_, undelivered): (u64, Vec<String>) = call.run(self).await?;
        Ok(undelivered)
    }

    /// Entries that were rejected, the oldest first.
    pub async fn dead_letters(&self, stream: &str, most: usize) -> Result<Vec<StreamEntry>, CacheError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(dead_of(stream)).arg("-").arg("+").arg("COUNT").arg(most);
        let entries: Vec<RawEntry> = self.command("read rejected entries", &command).await?;
        let read = |(id, fields): RawEntry| Some(StreamEntry::new(id, fields?));
        Ok(entries.into_iter().filter_map(read).collect())
    }

    /// Puts a rejected entry into the stream again.
    pub(crate) async fn revive(
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
        self.pipeline("revive a rejected entry", &pipeline, 0).await.map(drop)
    }

    /// Removes rejected entries; answers how many were there.
    pub(crate) async fn discard_dead(&self, stream: &str, dead: &[&str]) -> Result<u64, CacheError> {
        let mut command = redis::cmd("XDEL");
        command.arg(dead_of(stream)).arg(dead);
        self.command("discard rejected entries", &command).await
    }

    /// Adds an entry to a stream; answers its id.
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
    /// Takes the right to take entries, if there is one; makes stream and group where they are missing.
    async fn open(&self, token: &str) -> Result<(), CacheError> {
        let mut call = Call::new(&STREAM_OPEN, 2);
        call.arg(self.redis.keys.writer(&self.stream)).arg(&self.stream).arg(token).arg(&self.group);
        call.run::<u64>(&self.redis).await.map(drop)
    }

    /// Takes over entries that somebody has had for at least so long and not finished, from a cursor on, in the order of the
    /// stream. Answers the next cursor (`0-0`: that was all); none: somebody else has the right now.
    pub async fn claim(
        &mut self,
        idle: Duration,
        cursor: &str,
        most: usize,
    ) -> Result<Option<(String, Vec<StreamEntry>)>, CacheError> {
        let claimed = self.take(cursor, idle, most).await?;
        if let Some((_, entries)) = &claimed {
            self.saw(entries);
        }
        Ok(claimed)
    }

    /// The oldest entry that somebody has and has not finished.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn oldest_taken(&self) -> Result<Option<String>, CacheError> {
        let command = redis::cmd("XPENDING").arg(&self.stream).arg(&self.group).to_owned();
        let asked: Result<(u64, Option<String>, Value, Value), _> =
            self.redis.command("look at what is taken of a stream", &command).await;
        match asked {
            Ok((_, oldest, ..)) => Ok(oldest),
            // The stream was deleted with its group.
            Err(error) if error.source.code() == Some("NOGROUP") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// New entries, waiting a little for them; none: somebody else has the right now.
    ///
    /// # Errors
    /// [`CacheError`]; entries may have been taken all the same.
    pub async fn read(
        &mut self,
        most: usize,
        waits: Duration,
    ) -> Result<Option<Vec<StreamEntry>>, CacheError> {
        let Some((_, entries)) = self.take(">", Duration::ZERO, most).await? else { return Ok(None) };
        if !entries.is_empty() {
            self.saw(&entries);
            return Ok(Some(entries));
        }
        self.look().await?;
        // A look that takes nothing, so that it may block: a script may not.
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(millis(waits)).arg("STREAMS");
        command.arg(&self.stream).arg(&self.last);
        let mut connection = self.session.connection.clone();
        let endpoint = self.redis.connection.endpoint();
        let seen = command.query_async(&mut connection);
        let looked: Result<Option<Streams>, _> =
            self.session.answered(endpoint, waits + ANSWERED_WITHIN, seen).await;
        let looked = match looked {
            Ok(looked) => looked.unwrap_or_default(),
            Err(error) if error.code() == Some("UNBLOCKED") => Vec::new(),
            Err(source) => return Err(CacheError::new("wait for stream entries", source)),
        };
        // Also where nothing was seen: a stream that was deleted begins anew, perhaps with lower ids.
        let Some((_, entries)) = self.take(">", Duration::ZERO, most).await? else { return Ok(None) };
        if entries.is_empty()
            && let Some((seen, _)) = looked.into_iter().flat_map(|(_, entries)| entries).next()
        {
            // It was seen and not taken: another consumer has it.
            self.last = seen;
        }
        self.saw(&entries);
        Ok(Some(entries))
    }

    /// Looks now and then whether the connection that waits goes to where entries are added.
    async fn look(&mut self) -> Result<(), CacheError> {
        let failed = |source| CacheError::new("wait for stream entries", source);
        if self.redis.connection.has_moved_from(&self.session) {
            return Err(CacheError::moved("wait for stream entries"));
        }
        if LOOK_EVERY <= self.looked.elapsed() {
            self.session.look(self.redis.connection.endpoint()).await.map_err(failed)?;
            self.looked = Instant::now();
        }
        Ok(())
    }

    /// Consumers that have nothing and have not been seen for so long are forgotten: each life of a worker is one.
    pub async fn forget_consumers(&mut self, idle: Duration) -> Result<(), CacheError> {
        for consumer in self.redis.stream_consumers(&self.stream, &self.group).await? {
            if consumer.pending == 0 && idle < consumer.idle && consumer.name != self.consumer {
                let mut command = redis::cmd("XGROUP");
                command.arg("DELCONSUMER").arg(&self.stream).arg(&self.group).arg(consumer.name);
                self.redis.command::<u64>("forget a consumer of a stream", &command).await?;
            }
        }
        Ok(())
    }

    fn saw(&mut self, entries: &[StreamEntry]) {
        if let Some(last) = entries.last()
            && position(&self.last) < last.position()
        {
            self.last.clone_from(&last.id);
        }
    }

    async fn take(
        &mut self,
        cursor: &str,
        idle: Duration,
        most: usize,
    ) -> Result<Option<(String, Vec<StreamEntry>)>, CacheError> {
        let mut call = Call::new(&STREAM_TAKE, 2);
        call.arg(self.redis.keys.writer(&self.stream)).arg(&self.stream);
        call.arg(&self.token).arg(&self.group).arg(&self.consumer);
        call.number(most as u64).number(TAKE_BYTES).arg(cursor).number(millis(idle));
        call.number(ENTRY_BYTES_MAX as u64);
        match call.run(&self.redis).await {
            Ok(TakeReply::Taken { next, entries }) => {
                let read = |(id, fields, bytes)| StreamEntry { id, fields, bytes };
                Ok(Some((next, entries.into_iter().map(read).collect())))
            }
            Ok(TakeReply::Superseded) => Ok(None),
            // A stream that was deleted, with its group, is made again.
            Err(error) if error.source.to_string().contains("NOGROUP") => {
                self.open("").await?;
                self.last = "0-0".to_owned();
                Ok(Some(("0-0".to_owned(), Vec::new())))
            }
            Err(error) => Err(error),
        }
    }
}

/// What the script that takes entries replies.
enum TakeReply {
    Taken { next: String, entries: Vec<(String, Fields, usize)> },
    Superseded,
}

impl FromRedisValue for TakeReply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        if let Value::SimpleString(word) = &value
            && word == "SUPERSEDED"
        {
            return Ok(Self::Superseded);
        }
        let (next, entries) = FromRedisValue::from_redis_value(value)?;
        Ok(Self::Taken { next, entries })
    }
}
