//! The Lua scripts and how they are called.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};

use super::{CacheError, Epoch, Redis};
use crate::domain::keyspace::ShardKeys;

const PRELUDE: &str = include_str!("lua/prelude.lua");
const FENCES: &str = include_str!("lua/fences.lua");
const TAG_SETS: &str = include_str!("lua/tag_sets.lua");
/// Refused as a whole when memory is full.
const NEEDS_MEMORY: &str = "#!lua\n";
/// Runs also when memory is full: what raises, deletes, advances or creates (DESIGN 2.2).
const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";

/// Runs also where nothing may be written, on a replica for example.
const READ_ONLY: &str = "#!lua flags=no-writes\n";

/// One script, known to Redis by the hash of its text.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: &'static str,
    text: String,
    hash: String,
    /// Text and hash of the script that compares no stamps: the control that tests must see fail.
    unfenced: (String, String),
}

const COMPARISON: &str = "return a_high < b_high or (a_high == b_high and a_low < b_low)";

impl Script {
    fn new(name: &'static str, parts: &[&str]) -> Self {
        let text = parts.concat();
        let hash_of = |text: &str| redis::Script::new(text).get_hash().to_owned();
        let loose = text.replace(COMPARISON, "return false");
        Self { name, hash: hash_of(&text), unfenced: (loose.clone(), hash_of(&loose)), text }
    }
}

macro_rules! scripts {
    ($($constant:ident = $file:literal, $($part:expr),+;)+) => {
        $(pub(super) static $constant: LazyLock<Script> = LazyLock::new(|| {
            Script::new($file, &[$($part,)+ include_str!(concat!("lua/", $file, ".lua"))])
        });)+
    };
}

scripts! {
    STORE = "store", NEEDS_MEMORY, PRELUDE;
    RAISE = "raise", ALLOW_OOM, PRELUDE;
    RAISE_TAGS = "raise_tags", ALLOW_OOM, PRELUDE, TAG_SETS;
    MEMBERS = "members", ALLOW_OOM, PRELUDE;
    WALK = "walk", ALLOW_OOM, PRELUDE;
    EXTEND = "extend", ALLOW_OOM, PRELUDE;
    OWE = "owe", ALLOW_OOM, PRELUDE;
    CLAIM = "claim", ALLOW_OOM, PRELUDE;
    ADVANCE = "advance", ALLOW_OOM, PRELUDE;
    ADOPT = "adopt", ALLOW_OOM, PRELUDE;
    HEAD = "head", READ_ONLY;
    HEAD_COUNTED = "head", ALLOW_OOM;
    CREATE_EPOCH = "create_epoch", ALLOW_OOM;
    DROP_WINDOWS = "drop_windows", ALLOW_OOM;
    FILL = "fill", NEEDS_MEMORY, PRELUDE, FENCES;
    FORGET = "forget", ALLOW_OOM, FENCES;
    FORGET_TAGS = "forget_tags", ALLOW_OOM, FENCES, TAG_SETS;
    STREAM_OPEN = "stream_open", ALLOW_OOM;
    STREAM_TAKE = "stream_take", ALLOW_OOM;
    STREAM_FINISH = "stream_finish", ALLOW_OOM;
    LOCK_ACQUIRE = "lock_acquire", ALLOW_OOM;
    LOCK_RENEW = "lock_renew", ALLOW_OOM;
    LOCK_RELEASE = "lock_release", ALLOW_OOM;
}

/// What a script must find unchanged in Redis, else it does nothing (DESIGN R4).
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// The epoch.
    pub epoch: &'a Epoch,
    /// The incarnation of the load or poll that the stamp comes from.
    pub incarnation: &'a str,
    /// The dataset, or empty where keys of no dataset are meant.
    pub dataset: &'a str,
    /// The dataset's revision.
    pub revision: &'a str,
}

/// What a fenced script answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It was carried out.
    Done(T),
    /// It changed nothing (but for deletes, which are always carried out).
    Gone(Gone),
}

/// What was not as the caller had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// A table or the head is missing or cut: a new epoch must begin.
    Table,
    /// Another epoch has begun.
    Epoch,
    /// The database has another incarnation.
    Incarnation,
    /// The dataset was redefined by a newer process.
    Revision,
}

impl std::fmt::Display for Gone {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Table => "the stamp tables are not whole",
            Self::Epoch => "another epoch has begun",
            Self::Incarnation => "the database began another life",
            Self::Revision => "the dataset was redefined by a newer process",
        })
    }
}

impl<T> Answer<T> {
    /// Applies a function to what was answered.
    pub fn map<U>(self, function: impl FnOnce(T) -> U) -> Answer<U> {
        match self {
            Self::Done(value) => Answer::Done(function(value)),
            Self::Gone(gone) => Answer::Gone(gone),
        }
    }
}

/// The call of a script: keys first, then arguments, packed as they come.
pub(super) struct Call {
    script: &'static Script,
    text: &'static str,
    command: Cmd,
}

impl Call {
    pub(super) fn new(script: &'static Script, key_count: usize) -> Self {
        Self::with_text(script, (&script.text, &script.hash), key_count)
    }

    fn with_text(script: &'static Script, (text, hash): (&'static str, &str), key_count: usize) -> Self {
        let mut command = Cmd::with_capacity(key_count + 32, 256);
        command.arg("EVALSHA").arg(hash).arg(key_count);
        Self { script, text, command }
    }

    /// A fenced call: the three tables and `keys` more keys, which the caller adds before the [`Self::standing`].
    pub(super) fn fenced(script: &'static Script, redis: &Redis, on: &ShardKeys, keys: usize) -> Self {
        let text = if redis.is_fenced {
            (&*script.text, &*script.hash)
        } else {
            (&*script.unfenced.0, &*script.unfenced.1)
        };
        let mut call = Self::with_text(script, text, 3 + keys);
        call.arg(on.meta.as_bytes());
        call.arg(on.stamps.as_bytes());
        call.arg(on.tag_stamps.as_bytes());
        call
    }

    pub(super) fn arg(&mut self, bytes: &[u8]) -> &mut Self {
        self.command.arg(bytes);
        self
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.command.arg(number);
        self
    }

    pub(super) fn standing(&mut self, standing: &Standing<'_>) -> &mut Self {
        self.arg(standing.epoch.as_bytes())
            .arg(standing.incarnation.as_bytes())
            .arg(standing.dataset.as_bytes())
            .arg(standing.revision.as_bytes())
    }

    /// Runs the script; one that Redis has forgotten is loaded and run again (it did not run the first time).
    pub(super) async fn run(&self, redis: &Redis) -> Result<Value, CacheError> {
        let mut connection = redis.connection.clone();
        let name = self.script.name;
        let first = self.command.query_async(&mut connection).await;
        let forgotten = matches!(
            &first,
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        );
        if !forgotten {
            return first.map_err(|source| CacheError::new(name, source));
        }
        let load = redis::cmd("SCRIPT").arg("LOAD").arg(self.text).to_owned();
        let loaded: Result<String, _> = load.query_async(&mut connection).await;
        loaded.map_err(|source| CacheError::new(name, source))?;
        self.command.query_async(&mut connection).await.map_err(|source| CacheError::new(name, source))
    }

    /// Runs a fenced script.
    pub(super) async fn run_fenced(&self, redis: &Redis) -> Result<Answer<Value>, CacheError> {
        let reply = self.run(redis).await?;
        let text = match &reply {
            Value::BulkString(bytes) => bytes.as_slice(),
            Value::SimpleString(text) => text.as_bytes(),
            _ => return Ok(Answer::Done(reply)),
        };
        let gone = match text {
            b"GONE table" => Gone::Table,
            b"GONE epoch" => Gone::Epoch,
            b"GONE incarnation" => Gone::Incarnation,
            b"GONE revision" => Gone::Revision,
            _ => return Ok(Answer::Done(reply)),
        };
        Ok(Answer::Gone(gone))
    }

    /// A reply of the agreed type.
    pub(super) fn read<T: redis::FromRedisValue>(&self, reply: Value) -> Result<T, CacheError> {
        T::from_redis_value(reply)
            .map_err(|parse| CacheError::unexpected(self.script.name, &parse.to_string()))
    }
}

/// Slots as scripts read them: four bytes each.
pub(super) fn pack_slots<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut packed = Vec::with_capacity(keys.size_hint().0 * 4);
    for key in keys {
        packed.extend_from_slice(&crate::domain::keyspace::slot(key.as_bytes()).to_be_bytes());
    }
    packed
}
