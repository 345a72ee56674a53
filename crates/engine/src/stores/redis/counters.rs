//! What applications do through the library: reads, deletes, and what their fills must find unchanged.

use std::time::Duration;

use super::entries::millis;
use super::entries::{generation, raise_counters, read_with_lives};
use super::gather::ValueAndLife;
use super::hashes::{ask_values, take_values};
use super::script::{Call, INVALIDATE_KEYS, INVALIDATE_TAGS, pack};
use super::{CacheError, Redis, Refusal};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::{EntryBatch, LIFE_WITHOUT_END, Shape};
use cachekeeper_protocol::keyspace::{ANY_TAG_COUNTER, key_counter, key_hash, slot, tag_counter};

/// One operation of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchCommand {
    /// Read a value, which is kept so.
    Get(String, Shape),
    /// Whether a key exists.
    Exists(String),
    /// Store a value with a lifetime in milliseconds.
    Set(String, Vec<u8>, u64),
    /// Delete a key.
    Delete(String),
}

impl BatchCommand {
    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Get(key, _) | Self::Exists(key) | Self::Set(key, ..) | Self::Delete(key) => key,
        }
    }

    /// Whether it changes the entry.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Set(..) | Self::Delete(_))
    }
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

impl BatchReply {
    /// Makes it the answer of a key that does not exist.
    pub fn hide(&mut self) {
        match self {
            Self::Value(value) => *value = None,
            Self::Flag(flag) => *flag = false,
            Self::Stored => {}
        }
    }
}

impl Redis {
    /// One value; with those that others ask for at the same moment.
    pub async fn get(&self, key: &str, shape: Shape) -> Result<Option<Vec<u8>>, CacheError> {
        let alone = async || match shape {
            Shape::String => self.get_alone(key).await,
            Shape::Hash => self.get_hash(key).await,
        };
        let together = || {
            let redis = self.clone();
            move |keys: Vec<String>| async move { redis.get_many(&keys, shape).await }
        };
        self.gathered.of(shape).values.read(key, alone, together).await
    }

    async fn get_alone(&self, key: &str) -> Result<Option<Vec<u8>>, CacheError> {
        let mut command = redis::Cmd::with_capacity(2, key.len() + 8);
        command.arg("GET").arg(key);
        no_value_in_another_type(self.command("read an entry", &command).await)
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
        no_value_in_another_type(self.command("read an entry and extend it", &command).await)
    }

    /// Gives an entry another lifetime in milliseconds; answers whether it was there.
    pub async fn expire(&self, key: &str, life_ms: u64) -> Result<bool, CacheError> {
        const WHAT: &str = "give an entry another lifetime";
        if life_ms != LIFE_WITHOUT_END {
            return self.command(WHAT, redis::cmd("PEXPIRE").arg(key).arg(life_ms)).await;
        }
        let mut pipeline = redis::pipe();
        pipeline.atomic().cmd("PERSIST").arg(key).ignore().cmd("EXISTS").arg(key);
        self.pipeline(WHAT, &pipeline, 1).await?.next()
    }

    /// The values of keys, in their order, in one round trip.
    pub async fn get_many(
        &self,
        keys: &[impl AsRef<str>],
        shape: Shape,
    ) -> Result<Vec<Option<Vec<u8>>>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if shape == Shape::Hash {
            return self.get_hashes(keys).await;
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

    /// The values of keys with their remaining lifetimes, and the counters that a fill of them must find unchanged, in
    /// one step. `of_dataset`: the keys are a dataset's, whose entries are kept so, and what orders them is their stamps.
    pub async fn read_with_counters(
        &self,
        keys: &[impl AsRef<str>],
        tags: &[String],
        of_dataset: Option<Shape>,
    ) -> Result<(Vec<ValueAndLife>, InvalidationCounters), CacheError> {
        let on = self.keys.metadata_of(keys.first().map_or("", AsRef::as_ref));
        let positions = InvalidationCounters::positions(keys, tags);
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("GETRANGE").arg(&on.counters).arg(0).arg(7);
        pipeline.cmd("BITFIELD_RO").arg(&on.counters);
        for position in &positions {
            pipeline.arg("GET").arg("u32").arg(format!("#{position}"));
        }
        let (shape, has_stamps) = (of_dataset.unwrap_or_default(), of_dataset.is_some());
        let of_keys = read_with_lives(&mut pipeline, keys, shape);
        let mut slots: Vec<u32> = Vec::new();
        if has_stamps {
            slots.extend(keys.iter().map(|key| slot(key.as_ref().as_bytes())));
            pipeline.cmd("HMGET").arg(&on.meta).arg("epoch").arg("floor");
            for slot in &slots {
                let start = 8 + slot * 8;
                pipeline.cmd("GETRANGE").arg(&on.stamps).arg(start).arg(start + 7);
            }
        }
        let expected = 2 + of_keys + usize::from(has_stamps) + slots.len();
        let mut replies = self.pipeline("read entries and their counters", &pipeline, expected).await?;
        let generation = replies.next()?;
        let counters: Vec<u32> = replies.next()?;
        let found = take_values(&mut replies, keys.len(), shape)?;
        let with_life = |value| Ok((value, replies.next()?));
        let values = found.into_iter().map(with_life).collect::<Result<Vec<ValueAndLife>, CacheError>>()?;
        let mut orders = Vec::new();
        if has_stamps {
            let of_all: Vec<Option<Vec<u8>>> = replies.next()?;
            for slot in slots {
                let mut order: Vec<u8> = of_all.iter().flatten().flatten().copied().collect();
                order.extend(replies.next::<Vec<u8>>()?);
                orders.push((slot, key_hash(&order)));
            }
        }
        let counters = positions.into_iter().zip(counters).collect();
        Ok((values, InvalidationCounters::new(generation, counters, orders)))
    }

    /// Stores entries by plain commands in one pipeline, guarded by nothing; answers each entry's error.
    ///
    /// # Errors
    /// [`CacheError`] where no reply is known.
    pub async fn set_plain(&self, batch: &EntryBatch) -> Result<Vec<(usize, CacheError)>, CacheError> {
        const WHAT: &str = "store entries";
        let mut pipeline = redis::Pipeline::with_capacity(batch.len());
        pipeline.ignore_errors();
        for entry in batch.iter() {
            match entry.life_ms {
                0 => pipeline.cmd("UNLINK").arg(entry.key),
                LIFE_WITHOUT_END => pipeline.cmd("SET").arg(entry.key).arg(entry.value),
                life => pipeline.cmd("SET").arg(entry.key).arg(entry.value).arg("PX").arg(life),
            };
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
    pub async fn invalidate_keys(&self, keys: &[impl AsRef<str>], tag_set: &str) -> Result<u64, CacheError> {
        if self.adopted.is_some() {
            return self.unlink_each(keys).await;
        }
        let on = self.keys.metadata_of(keys.first().map_or("", AsRef::as_ref));
        let mut call = Call::new(&INVALIDATE_KEYS, 2 + keys.len());
        call.arg(&on.counters).arg(&on.meta);
        for key in keys {
            call.arg(key.as_ref());
        }
        call.arg(generation()).arg(pack(keys.iter().map(|key| key_counter(key.as_ref())))).arg(tag_set);
        call.run(self).await
    }

    /// On a shard of a cluster, which no application fills without a stamp: no counter is to be raised.
    async fn unlink_each(&self, keys: &[impl AsRef<str>]) -> Result<u64, CacheError> {
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("UNLINK").arg(key.as_ref());
        }
        let mut replies = self.pipeline("delete entries", &pipeline, keys.len()).await?;
        keys.iter().map(|_| replies.next::<u64>()).sum()
    }

    /// Refuses the fills under these tags that began before, and answers the sets of their members with their sizes.
    pub async fn invalidate_tags(&self, tags: &[impl AsRef<str>]) -> Result<Vec<(String, u64)>, CacheError> {
        let on = self.keys.metadata();
        let of_tags = tags.iter().map(|tag| tag_counter(tag.as_ref()));
        let mut call = Call::new(&INVALIDATE_TAGS, 3);
        call.arg(&on.counters).arg(&on.meta).arg(&on.windows);
        call.arg(generation()).arg(pack(of_tags.chain([ANY_TAG_COUNTER]))).arg(&on.tag_prefix);
        for tag in tags {
            call.arg(tag.as_ref());
        }
        call.run(self).await
    }

    /// One page of a tag set's members, outside of any job. The scan is over when the cursor is 0 again.
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
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        let written = commands.iter().filter_map(|command| match command {
            BatchCommand::Set(key, ..) | BatchCommand::Delete(key) => Some(key),
            BatchCommand::Get(..) | BatchCommand::Exists(_) => None,
        });
        // Of a key of another type it tells no error, so that none of the others has to be passed over.
        let is_of_hash = |command: &BatchCommand| matches!(command, BatchCommand::Get(_, Shape::Hash));
        let hash_reader = match written.clone().next() {
            Some(_) if commands.iter().any(is_of_hash) => Some(self.hash_reader().await?),
            _ => None,
        };
        if let Some(first) = written.clone().next() {
            let counters = &self.keys.metadata_of(first).counters;
            raise_counters(&mut pipeline, counters, written.map(|key| key_counter(key)));
        }
        for command in commands {
            match command {
                // `GET` of a key of another type would fail when the others are carried out already.
                BatchCommand::Get(key, shape) => {
                    match &hash_reader {
                        Some(script) if *shape == Shape::Hash => {
                            pipeline.cmd("EVALSHA").arg(script).arg(1).arg(key);
                        }
                        _ => {
                            ask_values(&mut pipeline, &[key], *shape);
                        }
                    }
                    &mut pipeline
                }
                BatchCommand::Exists(key) => pipeline.cmd("EXISTS").arg(key),
                BatchCommand::Delete(key) => pipeline.cmd("UNLINK").arg(key),
                BatchCommand::Set(key, value, LIFE_WITHOUT_END) => pipeline.cmd("SET").arg(key).arg(value),
                BatchCommand::Set(key, value, life) => {
                    pipeline.cmd("SET").arg(key).arg(value).arg("PX").arg(*life)
                }
            };
        }
        let mut replies = self.pipeline("carry out a batch", &pipeline, commands.len()).await?;
        let mut read = |command: &BatchCommand| match command {
            BatchCommand::Get(_, shape) => take_values(&mut replies, 1, *shape)
                .map(|values| BatchReply::Value(values.into_iter().flatten().next())),
            BatchCommand::Exists(_) | BatchCommand::Delete(_) => replies.next().map(BatchReply::Flag),
            BatchCommand::Set(..) => replies.next::<()>().map(|()| BatchReply::Stored),
        };
        commands.iter().map(&mut read).collect()
    }
}

/// What a key of another type holds is no value that an entry could have.
fn no_value_in_another_type(
    read: Result<Option<Vec<u8>>, CacheError>,
) -> Result<Option<Vec<u8>>, CacheError> {
    match read {
        Err(error) if error.refusal == Refusal::WrongType => Ok(None),
        read => read,
    }
}
