//! The Lua scripts: what they must find unchanged (R4), how they are called, and their typed replies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, FromRedisValue, ParsingError, ServerErrorKind, Value};

use super::list::List;
use super::{Adopted, CacheError, Redis};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::keyspace::{RESERVED_PREFIX, ShardKeys, slot};

/// One uninterrupted order of stamps. Eight random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 8]);

impl Epoch {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    pub(super) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl std::fmt::Debug for Epoch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// What a script must find unchanged in Redis, else it does nothing.
#[derive(Debug, Clone, Copy)]
pub struct Precondition<'a> {
    /// The epoch.
    pub epoch: &'a Epoch,
    /// The incarnation of the load or poll that the stamp comes from.
    pub incarnation: &'a str,
    /// The dataset, or empty where keys of no dataset are meant.
    pub dataset: &'a str,
    /// The dataset's revision. Without its nonce, the definition alone: for what stores nothing that was loaded before.
    pub revision: &'a str,
}

impl<'a> Precondition<'a> {
    /// For what concerns no dataset: epoch and incarnation alone.
    #[must_use]
    pub fn of_epoch(epoch: &'a Epoch, incarnation: &'a str) -> Self {
        Self { epoch, incarnation, dataset: "", revision: "" }
    }
}

/// What was not as the caller had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreconditionFailed {
    /// A table or the metadata is missing or cut: a new epoch must begin.
    Table,
    /// Another epoch has begun.
    Epoch,
    /// The database has another incarnation.
    Incarnation,
    /// The dataset was redefined by a newer process.
    Revision,
    /// Since the revision was read, something happened by which the dataset's query may return something else.
    Outdated,
    /// A later version of Cachekeeper works in this namespace.
    Version,
    /// Members of tags that an earlier script has added may be missing, or one of the tags has changed.
    Members,
    /// On a cluster: a key is in a cluster slot that this shard has not adopted (any more), or that is moving.
    Guard,
    /// On a cluster: which cluster slots are adopted or served is not what the caller knows.
    Adopted,
    /// On a cluster: the server has another run than the caller knows.
    Run,
}

impl std::fmt::Display for PreconditionFailed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Table => "the stamp tables are not whole",
            Self::Epoch => "another epoch has begun",
            Self::Incarnation => "the primary restarted, its incarnation is another",
            Self::Revision => "the dataset was redefined by a newer process",
            Self::Outdated => "what the dataset's query returns may have changed since it was loaded",
            Self::Version => {
                "a later version of cachekeeper works in this namespace, with rules that this one does not know: upgrade it"
            }
            Self::Members => "the members of a tag are no longer as they were added",
            Self::Guard => "a cluster slot is another shard's, or is moving",
            Self::Adopted => "the cluster slots of the shard have changed",
            Self::Run => "the server of the shard was restarted or replaced",
        })
    }
}

/// What a script with a precondition answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It was carried out.
    Done(T),
    /// It changed nothing (but for deletes, which are always carried out).
    Failed(PreconditionFailed),
}

impl<T: FromRedisValue> FromRedisValue for Answer<T> {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let failed = match &value {
            Value::SimpleString(text) => text.strip_prefix("PRECONDITION "),
            _ => None,
        };
        match failed {
            None => T::from_redis_value(value).map(Self::Done),
            Some("table") => Ok(Self::Failed(PreconditionFailed::Table)),
            Some("epoch") => Ok(Self::Failed(PreconditionFailed::Epoch)),
            Some("incarnation") => Ok(Self::Failed(PreconditionFailed::Incarnation)),
            Some("revision") => Ok(Self::Failed(PreconditionFailed::Revision)),
            Some("outdated") => Ok(Self::Failed(PreconditionFailed::Outdated)),
            Some("version") => Ok(Self::Failed(PreconditionFailed::Version)),
            Some("members") => Ok(Self::Failed(PreconditionFailed::Members)),
            Some("guard") => Ok(Self::Failed(PreconditionFailed::Guard)),
            Some("adopted") => Ok(Self::Failed(PreconditionFailed::Adopted)),
            Some("run") => Ok(Self::Failed(PreconditionFailed::Run)),
            Some(other) => Err(format!("unknown precondition {other:?}").into()),
        }
    }
}

/// What makes a dataset's revision another one, never one of before.
pub(super) fn nonce() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// A reply that is one of a few words.
pub(super) fn read_word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, ParsingError> {
    let Value::SimpleString(text) = value else {
        return Err(format!("a word was expected, not {value:?}").into());
    };
    let known = words.iter().find(|(word, _)| word == text);
    known.map(|(_, meaning)| *meaning).ok_or_else(|| format!("unknown word {text:?}").into())
}

// Parts that scripts share; they define functions and do nothing.
/// The version of the protocol between scripts of different builds (in the metadata: `version`). Those of an earlier one refuse to act
/// where a later one has.
macro_rules! protocol_version {
    () => {
        "1"
    };
}
pub(super) const PROTOCOL_VERSION: &str = protocol_version!();
const VERSION: &str = concat!("local VERSION = ", protocol_version!(), "\n");
const PRELUDE: &str = concat!("local VERSION = ", protocol_version!(), "\n", include_str!("lua/prelude.lua"));
const COUNTERS: &str = include_str!("lua/counters.lua");
const CAUSES: &str = include_str!("lua/causes.lua");
const SERVER: &str = include_str!("lua/server.lua");
const TAG_SETS: &str = include_str!("lua/tag_sets.lua");
const TAG_MEMBERS: &str = include_str!("lua/tag_members.lua");
const REMOVE_MEMBERS: &str = include_str!("lua/remove_members.lua");
/// Refused as a whole when memory is full.
const NEEDS_MEMORY: &str = "#!lua\n";
/// Runs also when memory is full: what raises, deletes, advances or creates.
const ALLOW_OOM: &str = "#!lua flags=allow-oom\n";
/// Runs also where nothing may be written, on a replica for example.
const READ_ONLY: &str = "#!lua flags=no-writes\n";
/// The same for entries of a shard.
const READ_ONLY_ON_SHARD: &str = "#!lua flags=no-writes,allow-cross-slot-keys\n";
const HASH_LOOK: &str = include_str!("lua/hash_look.lua");
/// What a single Redis and a shard of a cluster do in their own way.
const UNLINK: &str = include_str!("lua/unlink_alone.lua");
const CLUSTER_SLOTS: &str = include_str!("lua/advance_alone.lua");
const COVERED: &str = include_str!("lua/covered.lua");

/// What stands on a shard in place of these parts.
const ON_SHARD: [(&str, &str); 4] = [
    (NEEDS_MEMORY, concat!("#!lua flags=allow-cross-slot-keys\n", include_str!("lua/shard.lua"))),
    (ALLOW_OOM, concat!("#!lua flags=allow-oom,allow-cross-slot-keys\n", include_str!("lua/shard.lua"))),
    (UNLINK, include_str!("lua/unlink_shard.lua")),
    (
        CLUSTER_SLOTS,
        concat!(
            include_str!("lua/server.lua"),
            include_str!("lua/covered.lua"),
            include_str!("lua/advance_shard.lua")
        ),
    ),
];

fn on_shard(part: &str) -> &str {
    ON_SHARD.iter().find(|(alone, _)| *alone == part).map_or(part, |(_, on_shard)| *on_shard)
}

/// One script, known to Redis by the hash of its text.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) what: &'static str,
    pub(super) text: String,
    pub(super) hash: String,
    /// Hash and text of the script that compares no stamps: the control that tests must see fail.
    without_stamps: (String, String),
    /// Hash and text of the script on a shard of a cluster.
    on_shard: (String, String),
    /// The same of one that acts whatever the guards say: likewise for tests alone.
    without_guards: (String, String),
}

const GUARD_COMPARISON: &str = "if pcall('GET', guards[i]) ~= says then return false end";
const COMPARISON: &str = "return a_high < b_high or (a_high == b_high and a_low < b_low)";

impl Script {
    fn new(what: &'static str, parts: &[&str]) -> Self {
        let hashed = |text: String| (redis::Script::new(&text).get_hash().to_owned(), text);
        let (hash, text) = hashed(parts.concat());
        let without_stamps = hashed(text.replace(COMPARISON, "return false"));
        let on_shard = hashed(parts.iter().map(|part| on_shard(part)).collect());
        let without_guards = hashed(on_shard.1.replace(GUARD_COMPARISON, ""));
        Self { what, text, hash, without_stamps, on_shard, without_guards }
    }

    /// Hash and text for whoever runs it.
    fn version(&self, redis: &Redis) -> (&str, &str) {
        let (hash, text) = match (&redis.adopted, redis.compares_stamps) {
            (Some(_), _) if redis.compares_guards => &self.on_shard,
            (Some(_), _) => &self.without_guards,
            (None, true) => return (&self.hash, &self.text),
            (None, false) => &self.without_stamps,
        };
        (hash, text)
    }
}

macro_rules! scripts {
    ($($constant:ident = $file:literal: $what:literal, $($part:expr),+;)+) => {
        $(pub(super) static $constant: LazyLock<Script> = LazyLock::new(|| {
            Script::new($what, &[$($part,)+ include_str!(concat!("lua/", $file, ".lua"))])
        });)+
    };
}

scripts! {
    STORE = "store": "store entries", NEEDS_MEMORY, PRELUDE, COUNTERS, TAG_MEMBERS;
    ADD_MEMBERS = "add_members": "note the members of tags", NEEDS_MEMORY, PRELUDE, TAG_MEMBERS;
    RAISE = "raise": "raise stamps", ALLOW_OOM, PRELUDE, REMOVE_MEMBERS, UNLINK;
    RAISE_TAGS = "raise_tags": "raise tags", ALLOW_OOM, PRELUDE, TAG_SETS;
    MEMBERS = "members": "read the members of tags", ALLOW_OOM, PRELUDE;
    SCAN = "scan": "look through entries", ALLOW_OOM, PRELUDE;
    SCAN_KEYS = "scan_keys": "look through keys", ALLOW_OOM, PRELUDE;
    EXTEND = "extend": "keep entries alive", ALLOW_OOM, PRELUDE;
    SHORTEN = "shorten": "shorten the lives of entries", ALLOW_OOM, PRELUDE;
    MARK_PENDING = "mark_pending": "note what is to be revalidated", ALLOW_OOM, PRELUDE, CAUSES;
    FINISH_JOB = "finish_job": "confirm what was stored", ALLOW_OOM, PRELUDE;
    MARK_SLOTS = "mark_slots": "note which entries are to be revalidated", ALLOW_OOM, PRELUDE, CAUSES;
    NOTE_PROGRESS = "note_progress": "note how far a backfill is", ALLOW_OOM, PRELUDE, SERVER;
    PENDING_SLOTS = "pending_slots": "read what is to be revalidated", ALLOW_OOM, PRELUDE;
    ADVANCE = "advance": "move the watermark", ALLOW_OOM, PRELUDE, CAUSES, CLUSTER_SLOTS;
    ADOPT = "adopt": "adopt cluster slots", ALLOW_OOM, PRELUDE, SERVER, COVERED;
    SETTLE = "settle": "settle cluster slots", ALLOW_OOM, PRELUDE, SERVER, COVERED;
    HELD_ELSEWHERE = "held_elsewhere": "look for entries of another server's cluster slots", READ_ONLY;
    REGISTER = "register": "register the definition of a dataset", ALLOW_OOM, PRELUDE, CAUSES, SERVER;
    REGISTER_PREFIXES = "register_prefixes": "register the prefixes of keys", ALLOW_OOM;
    SEE_HASH = "see_hash": "read an entry", READ_ONLY, HASH_LOOK;
    SEE = "see": "look at entries", READ_ONLY_ON_SHARD, HASH_LOOK;
    METADATA = "metadata": "read what is known of the namespace", READ_ONLY;
    METADATA_COUNTED = "metadata": "read what is known of the namespace", ALLOW_OOM;
    CREATE_EPOCH = "create_epoch": "begin an epoch", ALLOW_OOM, VERSION, SERVER;
    DROP_WINDOWS = "drop_windows": "drop old windows of tags", ALLOW_OOM;
    INVALIDATE_KEYS = "invalidate_keys": "invalidate keys", ALLOW_OOM, COUNTERS, REMOVE_MEMBERS;
    INVALIDATE_TAGS = "invalidate_tags": "invalidate tags", ALLOW_OOM, COUNTERS, TAG_SETS;
    STREAM_OPEN = "stream_open": "open a stream", ALLOW_OOM;
    STREAM_TAKE = "stream_take": "take from a stream", ALLOW_OOM;
    STREAM_FINISH = "stream_finish": "finish entries of a stream", ALLOW_OOM;
    LOCK_ACQUIRE = "lock_acquire": "take a lock", ALLOW_OOM;
    LOCK_RENEW = "lock_renew": "renew a lock", ALLOW_OOM;
    LOCK_RELEASE = "lock_release": "release a lock", ALLOW_OOM;
}

/// What no guard says.
const NO_GUARD: &str = "-";

/// The call of a script: keys first, then arguments, packed as they come.
pub(super) struct Call {
    script: &'static Script,
    text: &'static str,
    command: Cmd,
    /// What stands behind the arguments on a shard of a cluster.
    of_shard: Option<Vec<u8>>,
}

impl Call {
    pub(super) fn new(script: &'static Script, key_count: usize) -> Self {
        Self::with_text(script, (&script.hash, &script.text), key_count)
    }

    fn with_text(script: &'static Script, (hash, text): (&str, &'static str), key_count: usize) -> Self {
        let mut command = Cmd::with_capacity(key_count + 32, 256);
        command.arg("EVALSHA").arg(hash).arg(key_count);
        Self { script, text, command, of_shard: None }
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
        Self::guarded_with(script, redis, on, keys, &[], precondition)
    }

    /// The same with arguments for what is done on a shard alone.
    pub(super) fn guarded_with<K: AsRef<[u8]>>(
        script: &'static Script,
        redis: &Redis,
        on: &ShardKeys,
        keys: impl ExactSizeIterator<Item = K>,
        of_shard: &[Vec<u8>],
        precondition: Option<&Precondition<'_>>,
    ) -> Self {
        let declared = if redis.adopted.is_some() { 3 } else { 3 + keys.len() };
        let mut call = Self::with_text(script, script.version(redis), declared);
        call.arg(&on.meta).arg(&on.stamps).arg(&on.tag_stamps);
        match &redis.adopted {
            None => {
                for key in keys {
                    call.arg(key);
                }
            }
            Some(adopted) => call.of_shard = Some(shard_argument(redis, adopted, keys, of_shard)),
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
    pub(super) async fn run<T: FromRedisValue>(mut self, redis: &Redis) -> Result<T, CacheError> {
        if let Some(of_shard) = self.of_shard.take() {
            self.command.arg(of_shard);
        }
        let mut connection = redis.connection.clone();
        let what = self.script.what;
        let failed = |source| CacheError::new(what, source);
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
            .map_err(|parse| CacheError::unexpected(what, &parse.to_string()))
    }
}

/// What a script on a shard is given behind its arguments: the keys that are not declared, and the guards of their cluster slots. Where
/// one is not adopted, its guard is asked for what no guard says.
fn shard_argument<K: AsRef<[u8]>>(
    redis: &Redis,
    adopted: &Adopted,
    keys: impl Iterator<Item = K>,
    of_shard: &[Vec<u8>],
) -> Vec<u8> {
    let keys: Vec<K> = keys.collect();
    let is_own = |key: &[u8]| key.starts_with(RESERVED_PREFIX.as_bytes());
    let entries = keys.iter().map(AsRef::as_ref).filter(|key| !is_own(key));
    let slots: BTreeSet<ClusterSlot> = entries.map(ClusterSlot::of).collect();
    // Many cluster slots were adopted at once.
    let mut guarded: BTreeMap<String, List> = BTreeMap::new();
    for slot in slots {
        let says = adopted.guard(slot).map_or_else(|| NO_GUARD.to_owned(), |guard| guard.to_string());
        let guards = guarded.entry(says.clone()).or_insert_with(|| List::of_texts([says]));
        *guards = std::mem::take(guards).with_text(redis.keys.guard(slot).as_bytes());
    }
    let lists = [List::of_texts(keys), List::of_lists(guarded.into_values()), List::of_texts(of_shard)];
    List::of_lists(lists).into_bytes()
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
