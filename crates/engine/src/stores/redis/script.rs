//! The Lua scripts and how they are called.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, FromRedisValue, ServerErrorKind, Value};

use super::{CacheError, Precondition, Redis};
use cachekeeper_protocol::keyspace::{ShardKeys, slot};

// Parts that scripts share; they define functions and do nothing.
const PRELUDE: &str = include_str!("lua/prelude.lua");
const COUNTERS: &str = include_str!("lua/counters.lua");
const TAG_SETS: &str = include_str!("lua/tag_sets.lua");
const TAG_MEMBERS: &str = include_str!("lua/tag_members.lua");
/// Refused as a whole when memory is full.
const NEEDS_MEMORY: &str = "#!lua\n";
/// Runs also when memory is full: what raises, deletes, advances or creates.
const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";
/// Runs also where nothing may be written, on a replica for example.
const READ_ONLY: &str = "#!lua flags=no-writes\n";

/// One script, known to Redis by the hash of its text.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: &'static str,
    text: String,
    hash: String,
    /// Hash and text of the script that compares no stamps: the control that tests must see fail.
    without_stamps: (String, String),
}

const COMPARISON: &str = "return a_high < b_high or (a_high == b_high and a_low < b_low)";

impl Script {
    fn new(name: &'static str, parts: &[&str]) -> Self {
        let text = parts.concat();
        let hash_of = |text: &str| redis::Script::new(text).get_hash().to_owned();
        let loose = text.replace(COMPARISON, "return false");
        Self { name, hash: hash_of(&text), without_stamps: (hash_of(&loose), loose), text }
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
    STORE = "store", NEEDS_MEMORY, PRELUDE, COUNTERS, TAG_MEMBERS;
    RAISE = "raise", ALLOW_OOM, PRELUDE;
    RAISE_TAGS = "raise_tags", ALLOW_OOM, PRELUDE, TAG_SETS;
    MEMBERS = "members", ALLOW_OOM, PRELUDE;
    SCAN = "scan", ALLOW_OOM, PRELUDE;
    EXTEND = "extend", ALLOW_OOM, PRELUDE;
    MARK_PENDING = "mark_pending", ALLOW_OOM, PRELUDE;
    FINISH_JOB = "finish_job", ALLOW_OOM, PRELUDE;
    ADVANCE = "advance", ALLOW_OOM, PRELUDE;
    REGISTER = "register", ALLOW_OOM, PRELUDE;
    METADATA = "metadata", READ_ONLY;
    METADATA_COUNTED = "metadata", ALLOW_OOM;
    CREATE_EPOCH = "create_epoch", ALLOW_OOM;
    DROP_WINDOWS = "drop_windows", ALLOW_OOM;
    INVALIDATE_KEYS = "invalidate_keys", ALLOW_OOM, COUNTERS;
    INVALIDATE_TAGS = "invalidate_tags", ALLOW_OOM, COUNTERS, TAG_SETS;
    STREAM_OPEN = "stream_open", ALLOW_OOM;
    STREAM_TAKE = "stream_take", ALLOW_OOM;
    STREAM_FINISH = "stream_finish", ALLOW_OOM;
    LOCK_ACQUIRE = "lock_acquire", ALLOW_OOM;
    LOCK_RENEW = "lock_renew", ALLOW_OOM;
    LOCK_RELEASE = "lock_release", ALLOW_OOM;
}

/// The call of a script: keys first, then arguments, packed as they come.
pub(super) struct Call {
    script: &'static Script,
    text: &'static str,
    command: Cmd,
}

impl Call {
    pub(super) fn new(script: &'static Script, key_count: usize) -> Self {
        Self::with_text(script, (&script.hash, &script.text), key_count)
    }

    fn with_text(script: &'static Script, (hash, text): (&str, &'static str), key_count: usize) -> Self {
        let mut command = Cmd::with_capacity(key_count + 32, 256);
        command.arg("EVALSHA").arg(hash).arg(key_count);
        Self { script, text, command }
    }

    /// The call of a script behind the prelude: the metadata with its tables, then the other keys, then the
    /// precondition. Where there is none, the script must not look at it.
    pub(super) fn guarded<K: AsRef<[u8]>>(
        script: &'static Script,
        redis: &Redis,
        on: &ShardKeys,
        keys: impl ExactSizeIterator<Item = K>,
        precondition: Option<&Precondition<'_>>,
    ) -> Self {
        let text = match redis.compares_stamps {
            true => (&*script.hash, &*script.text),
            false => (&*script.without_stamps.0, &*script.without_stamps.1),
        };
        let mut call = Self::with_text(script, text, 3 + keys.len());
        call.arg(&on.meta).arg(&on.stamps).arg(&on.tag_stamps);
        for key in keys {
            call.arg(key);
        }
        match precondition {
            Some(expected) => call
                .arg(expected.epoch.as_bytes())
                .arg(expected.incarnation)
                .arg(expected.dataset)
                .arg(expected.revision),
            None => call.arg("").arg("").arg("").arg(""),
        };
        call
    }

    /// The same for what concerns no key of its own.
    pub(super) fn namespace(script: &'static Script, redis: &Redis, precondition: &Precondition<'_>) -> Self {
        Self::guarded(script, redis, redis.keys.metadata(), [""; 0].iter(), Some(precondition))
    }

    pub(super) fn arg(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.command.arg(bytes.as_ref());
        self
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.command.arg(number);
        self
    }

    /// Runs the script; one that Redis has forgotten is loaded and run again (it did not run the first time).
    pub(super) async fn run<T: FromRedisValue>(&self, redis: &Redis) -> Result<T, CacheError> {
        let mut connection = redis.connection.clone();
        let name = self.script.name;
        let failed = |source| CacheError::new(name, source);
        let mut reply: Result<Value, _> = self.command.query_async(&mut connection).await;
        let is_unknown = matches!(
            &reply,
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        );
        if is_unknown {
            let load = redis::cmd("SCRIPT").arg("LOAD").arg(self.text).to_owned();
            load.query_async::<String>(&mut connection).await.map_err(failed)?;
            reply = self.command.query_async(&mut connection).await;
        }
        T::from_redis_value(reply.map_err(failed)?)
            .map_err(|parse| CacheError::unexpected(name, &parse.to_string()))
    }
}

/// Numbers as scripts read them: four bytes each.
pub(super) fn pack(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let numbers = numbers.into_iter();
    let mut packed = Vec::with_capacity(numbers.size_hint().0 * 4);
    for number in numbers {
        packed.extend_from_slice(&number.to_be_bytes());
    }
    packed
}

/// The slots of keys or tags as scripts read them.
pub(super) fn pack_slots<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u8> {
    pack(names.map(|name| slot(name.as_bytes())))
}
