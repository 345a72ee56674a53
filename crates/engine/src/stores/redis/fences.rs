//! What applications do through the library: fills fenced by counters, sets, deletes, reads (DESIGN 2.2).

use std::time::Duration;

use super::entries::millis;
use super::script::{Answer, Call, FILL, FORGET, FORGET_TAGS, Standing, pack_slots};
use super::{CacheError, Redis};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::fence::{Fence, LIFE_WITHOUT_END};
use cachekeeper_protocol::keyspace::{key_fence, key_hash, slot, tag_fence};
use cachekeeper_protocol::stamp::Stamp;
use cachekeeper_protocol::window::window_width;

/// A value and its remaining lifetime in milliseconds (-1: no end, -2: no entry).
pub type Looked = (Option<Vec<u8>>, i64);

/// What orders an application's store.
#[derive(Debug, Clone, Copy)]
pub enum Order<'a> {
    /// It was loaded after this fence was read: refused where something was invalidated since.
    Fill(&'a Fence),
    /// It is the newest: fills that began before it are refused.
    Set,
}

/// One operation of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchCommand {
    /// Read a value.
    Get(String),
    /// Whether a key exists.
    Exists(String),
    /// Store a value with a lifetime in milliseconds.
    Set(String, Vec<u8>, u64),
    /// Delete a key.
    Delete(String),
}

/// What one operation of a batch answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchReply {
    /// A value, or none.
    Value(Option<Vec<u8>>),
    /// Whether a key existed.
    Flag(bool),
    /// A value was stored.
    Stored,
}

impl Redis {
    /// One value.
    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, CacheError> {
        let mut command = redis::Cmd::with_capacity(2, key.len() + 8);
        command.arg("GET").arg(key);
        self.command("read an entry", &command).await
    }

    /// One value, whose life becomes `idle` from now, or ends at `until`, whichever is first.
    pub async fn get_sliding(
        &self,
        key: &str,
        idle: Duration,
        until: Option<Duration>,
    ) -> Result<Option<Vec<u8>>, CacheError> {
        let mut command = redis::cmd("GETEX");
        command.arg(key);
        match until {
            Some(at) => command.arg("PXAT").arg(millis(at)),
            None => command.arg("PX").arg(millis(idle)),
        };
        self.command("read an entry and extend it", &command).await
    }

    /// The values of keys, in their order, in one command.
    pub async fn get_many(&self, keys: &[impl AsRef<str>]) -> Result<Vec<Option<Vec<u8>>>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::Cmd::with_capacity(keys.len() + 1, keys.len() * 32);
        command.arg("MGET");
        for key in keys {
            command.arg(key.as_ref());
        }
        self.command("read entries", &command).await
    }

    /// Whether a key exists.
    pub async fn exists(&self, key: &str) -> Result<bool, CacheError> {
        self.command("look for an entry", redis::cmd("EXISTS").arg(key)).await
    }

    /// The values of keys with their remaining lifetimes, and the fence that a fill of them will need, in one
    /// step. `has_stamps`: the keys are a dataset's, and what orders them is their stamps.
    pub async fn read_fenced(
        &self,
        keys: &[impl AsRef<str>],
        tags: &[String],
        has_stamps: bool,
    ) -> Result<(Vec<Looked>, Fence), CacheError> {
        const WHAT: &str = "read entries and their fence";
        let positions = Fence::positions(keys, tags);
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("GETRANGE").arg(&self.keys.fences).arg(0).arg(7);
        pipeline.cmd("BITFIELD_RO").arg(&self.keys.fences);
        for position in &positions {
            pipeline.arg("GET").arg("u32").arg(format!("#{position}"));
        }
        for key in keys {
            pipeline.cmd("GET").arg(key.as_ref()).cmd("PTTL").arg(key.as_ref());
        }
        let slots: Vec<u32> = keys.iter().map(|key| slot(key.as_ref().as_bytes())).collect();
        if has_stamps {
            pipeline.cmd("HMGET").arg(&self.keys.head).arg("epoch").arg("floor");
            for slot in &slots {
                let start = 8 + slot * 8;
                pipeline.cmd("GETRANGE").arg(&self.keys.stamps).arg(start).arg(start + 7);
            }
        }
        let mut connection = self.connection.clone();
        let replies: Vec<redis::Value> =
            pipeline.query_async(&mut connection).await.map_err(|source| CacheError::new(WHAT, source))?;
        let malformed = |parse: redis::ParsingError| CacheError::unexpected(WHAT, &parse.to_string());
        let mut replies = replies.into_iter();
        let mut next = || replies.next().unwrap_or(redis::Value::Nil);
        let generation: Vec<u8> = redis::from_redis_value(next()).map_err(malformed)?;
        let counters: Vec<u32> = redis::from_redis_value(next()).map_err(malformed)?;
        let mut looked = Vec::with_capacity(keys.len());
        for _ in keys {
            let value = redis::from_redis_value(next()).map_err(malformed)?;
            looked.push((value, redis::from_redis_value(next()).map_err(malformed)?));
        }
        let mut marks = Vec::new();
        if has_stamps {
            let head: Vec<Option<Vec<u8>>> = redis::from_redis_value(next()).map_err(malformed)?;
            for slot in slots {
                let mut order: Vec<u8> = head.iter().flatten().flatten().copied().collect();
                order.extend(redis::from_redis_value::<Vec<u8>>(next()).map_err(malformed)?);
                marks.push((slot, key_hash(&order)));
            }
        }
        Ok((looked, Fence { generation, counters: positions.into_iter().zip(counters).collect(), marks }))
    }

    /// Stores entries of an application; answers the positions that were refused. With a stamp, the stamp rule decides
    /// as well (R5).
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] the entries may or may not be stored.
    pub async fn fill(
        &self,
        batch: &EntryBatch,
        order: Order<'_>,
        stamp: Option<(Standing<'_>, Stamp)>,
    ) -> Result<Answer<Vec<usize>>, CacheError> {
        if matches!(order, Order::Set) && stamp.is_none() && batch.tag_count() == 0 {
            return self.set_fenced(batch).await;
        }
        let mut call = Call::fenced(&FILL, self, 2 + batch.len());
        call.arg(self.keys.fences.as_bytes()).arg(self.keys.windows.as_bytes());
        for entry in batch.iter() {
            call.arg(entry.key.as_bytes());
        }
        match &stamp {
            Some((standing, stamp)) => call.standing(standing).arg(&stamp.to_bytes()),
            None => call.arg(b"").arg(b"").arg(b"").arg(b"").arg(b""),
        };
        let fresh = generation();
        let (mode, generation) = match order {
            Order::Fill(fence) => ("fill", fence.generation.as_slice()),
            Order::Set => ("set", fresh.as_slice()),
        };
        call.arg(mode.as_bytes()).arg(generation).arg(self.keys.tag_prefix().as_bytes());
        let lives = batch.iter().map(|entry| entry.life_ms).filter(|life| *life != LIFE_WITHOUT_END);
        let longest = Duration::from_millis(lives.max().unwrap_or_default());
        call.number(longest.as_secs() + 1).number(window_width(longest));
        call.arg(&pack_slots(batch.iter().map(|entry| entry.key)));
        let positions: Vec<u32> = batch.iter().map(|entry| key_fence(entry.key)).collect();
        let seen = |position: u32| match order {
            Order::Fill(fence) => fence.counter(position).unwrap_or_default(),
            Order::Set => 0,
        };
        call.arg(&pack(positions.iter().copied())).arg(&pack(positions.iter().map(|at| seen(*at))));
        call.number(batch.tag_count() as u64);
        for entry in batch.iter() {
            call.arg(entry.value);
            match entry.life_ms {
                LIFE_WITHOUT_END => call.arg(b""),
                life => call.number(life),
            };
        }
        for (tag, members) in batch.tags() {
            // A tag that the fence does not know is fenced by the counter of all tags.
            let (position, counter) = match order {
                Order::Fill(fence) => fence.of_tag(tag),
                Order::Set => (tag_fence(tag), 0),
            };
            call.arg(tag.as_bytes()).number(u64::from(slot(tag.as_bytes()))).number(u64::from(position));
            call.arg(&counter.to_be_bytes()).arg(&pack(members.iter().map(|member| member + 1)));
        }
        match call.run_fenced(self).await? {
            Answer::Done(reply) => Ok(Answer::Done(call.read(reply)?)),
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
        }
    }

    /// The same as the script does where there are neither tags nor stamps to look at, by a transaction of plain commands:
    /// a script handles each byte of a value twice.
    async fn set_fenced(&self, batch: &EntryBatch) -> Result<Answer<Vec<usize>>, CacheError> {
        const WHAT: &str = "store entries";
        let mut pipeline = redis::Pipeline::with_capacity(batch.len() + 2);
        pipeline.atomic();
        self.raise_fences(&mut pipeline, batch.iter().map(|entry| key_fence(entry.key)));
        for entry in batch.iter() {
            match entry.life_ms {
                0 => pipeline.cmd("UNLINK").arg(entry.key),
                LIFE_WITHOUT_END => pipeline.cmd("SET").arg(entry.key).arg(entry.value),
                life => pipeline.cmd("SET").arg(entry.key).arg(entry.value).arg("PX").arg(life),
            };
        }
        let mut connection = self.connection.clone();
        let replies: Vec<redis::Value> =
            pipeline.query_async(&mut connection).await.map_err(|source| CacheError::new(WHAT, source))?;
        if replies.len() != batch.len() {
            return Err(CacheError::unexpected(WHAT, &format!("{} replies", replies.len())));
        }
        Ok(Answer::Done(Vec::new()))
    }

    /// Refuses the fills of these keys that began before; part of a transaction.
    fn raise_fences(&self, pipeline: &mut redis::Pipeline, positions: impl Iterator<Item = u32>) {
        pipeline.cmd("SET").arg(&self.keys.fences).arg(&generation()).arg("NX").ignore();
        pipeline.cmd("BITFIELD").arg(&self.keys.fences).ignore();
        for position in positions {
            pipeline.arg("INCRBY").arg("u32").arg(format!("#{position}")).arg(1);
        }
    }

    /// Stores entries by plain commands in one pipeline, fenced by nothing; answers each entry's error.
    ///
    /// # Errors
    /// [`CacheError`] where no reply is known.
    pub async fn set_plain(&self, batch: &EntryBatch) -> Result<Vec<(usize, CacheError)>, CacheError> {
        const WHAT: &str = "store entries";
        let mut pipeline = redis::Pipeline::with_capacity(batch.len());
        pipeline.ignore_errors();
        for entry in batch.iter() {
            pipeline.cmd("SET").arg(entry.key).arg(entry.value);
            if entry.life_ms != LIFE_WITHOUT_END {
                pipeline.arg("PX").arg(entry.life_ms);
            }
        }
        let mut connection = self.connection.clone();
        let replies: Vec<Result<redis::Value, redis::RedisError>> =
            pipeline.query_async(&mut connection).await.map_err(|source| CacheError::new(WHAT, source))?;
        if replies.len() != batch.len() {
            return Err(CacheError::unexpected(WHAT, &format!("{} replies", replies.len())));
        }
        let failed = replies.into_iter().enumerate().filter_map(|(at, reply)| Some((at, reply.err()?)));
        Ok(failed.map(|(at, source)| (at, CacheError::new(WHAT, source))).collect())
    }

    /// Deletes entries of an application and refuses the fills that began before; answers how many existed. The keys
    /// leave `tag_set`, where it is not empty.
    pub async fn forget(&self, keys: &[impl AsRef<str>], tag_set: &str) -> Result<u64, CacheError> {
        let mut call = Call::new(&FORGET, 1 + keys.len());
        call.arg(self.keys.fences.as_bytes());
        for key in keys {
            call.arg(key.as_ref().as_bytes());
        }
        call.arg(&generation()).arg(&pack(keys.iter().map(|key| key_fence(key.as_ref()))));
        call.arg(tag_set.as_bytes());
        let reply = call.run(self).await?;
        call.read(reply)
    }

    /// Refuses the fills under these tags that began before, and answers the sets of their members with their sizes.
    pub async fn forget_tags(&self, tags: &[impl AsRef<str>]) -> Result<Vec<(String, u64)>, CacheError> {
        let mut call = Call::new(&FORGET_TAGS, 2);
        call.arg(self.keys.fences.as_bytes()).arg(self.keys.head.as_bytes()).arg(&generation());
        let of_tags = tags.iter().map(|tag| tag_fence(tag.as_ref()));
        call.arg(&pack(of_tags.chain([cachekeeper_protocol::keyspace::ANY_TAG_FENCE])));
        call.arg(self.keys.tag_prefix().as_bytes());
        for tag in tags {
            call.arg(tag.as_ref().as_bytes());
        }
        let reply = call.run(self).await?;
        call.read(reply)
    }

    /// One page of a tag set's members, outside of any job. The walk is over when the cursor is 0 again.
    pub async fn scan_set(
        &self,
        set: &str,
        cursor: u64,
        page: usize,
    ) -> Result<(u64, Vec<String>), CacheError> {
        let command = redis::cmd("SSCAN").arg(set).arg(cursor).arg("COUNT").arg(page).to_owned();
        self.command("read a tag's members", &command).await
    }

    /// Carries out operations in one round trip and as one step; answers in their order.
    ///
    /// # Errors
    /// [`CacheError`]; then nothing was carried out, or after [`super::Refusal::Unknown`] perhaps everything.
    pub async fn batch(&self, commands: &[BatchCommand]) -> Result<Vec<BatchReply>, CacheError> {
        const WHAT: &str = "carry out a batch";
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        let written: Vec<u32> = commands
            .iter()
            .filter_map(|command| match command {
                BatchCommand::Set(key, ..) | BatchCommand::Delete(key) => Some(key_fence(key)),
                BatchCommand::Get(_) | BatchCommand::Exists(_) => None,
            })
            .collect();
        if !written.is_empty() {
            self.raise_fences(&mut pipeline, written.into_iter());
        }
        for command in commands {
            match command {
                BatchCommand::Get(key) => pipeline.cmd("GET").arg(key),
                BatchCommand::Exists(key) => pipeline.cmd("EXISTS").arg(key),
                BatchCommand::Delete(key) => pipeline.cmd("UNLINK").arg(key),
                BatchCommand::Set(key, value, LIFE_WITHOUT_END) => pipeline.cmd("SET").arg(key).arg(value),
                BatchCommand::Set(key, value, life) => {
                    pipeline.cmd("SET").arg(key).arg(value).arg("PX").arg(*life)
                }
            };
        }
        let mut connection = self.connection.clone();
        let replies: Vec<redis::Value> =
            pipeline.query_async(&mut connection).await.map_err(|source| CacheError::new(WHAT, source))?;
        if replies.len() != commands.len() {
            return Err(CacheError::unexpected(WHAT, &format!("{} replies", replies.len())));
        }
        let malformed = |parse: redis::ParsingError| CacheError::unexpected(WHAT, &parse.to_string());
        let read = |(command, reply)| match command {
            &BatchCommand::Get(_) => redis::from_redis_value(reply).map(BatchReply::Value),
            &BatchCommand::Exists(_) | &BatchCommand::Delete(_) => {
                redis::from_redis_value(reply).map(BatchReply::Flag)
            }
            &BatchCommand::Set(..) => redis::from_redis_value::<String>(reply).map(|_ok| BatchReply::Stored),
        };
        commands.iter().zip(replies).map(|pair| read(pair).map_err(malformed)).collect()
    }
}

/// What a new table of fences begins with.
fn generation() -> [u8; 8] {
    rand::random()
}

fn pack(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    numbers.flat_map(u32::to_be_bytes).collect()
}
