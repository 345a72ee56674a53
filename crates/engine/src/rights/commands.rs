//! The commands, each in a form that Redis would take, so that it can be asked for: `KEY` is one of Cachekeeper's own keys.

pub(super) const ADD: &str = "xadd KEY * f v";
/// How applications without the library read the directory.
pub(super) const DIRECTORY: &str = "hgetall KEY";
/// Known to Redis from 7.2 on.
pub(super) const NO_TOUCH: &str = "client no-touch off";

/// Of applications that only read, with any client.
pub(super) const READER: &[&str] = &["get KEY", "mget KEY", "exists KEY", "ttl KEY", "pttl KEY", DIRECTORY];

/// Of any client of a cluster. The guards are read to find the directory.
pub(super) const OF_CLUSTER: &[&str] =
    &["cluster slots", "cluster shards", "cluster nodes", "asking", "get KEY"];

/// Of the worker on a cluster.
pub(super) const WORKER_ON_CLUSTER: &[&str] =
    &["cluster myid", "cluster countkeysinslot 0", "cluster getkeysinslot 0 1", "info server"];

/// Of applications that only read, where entries are hashes. With the watermark, one is read in a transaction.
pub(super) const READER_OF_HASHES: &[&str] = &["hget KEY f", "hmget KEY f", "multi", "exec", "discard"];

/// Of the worker, where entries are hashes.
pub(super) const SIZE_OF_FIELD: &str = "hstrlen KEY f";

/// Of the library, and so of the worker too: entries, scripts with what they call, locks, channels.
pub(super) const LIBRARY: &[&str] = &[
    "get KEY",
    "mget KEY",
    "getex KEY",
    "exists KEY",
    "pttl KEY",
    "set KEY v",
    "unlink KEY",
    "pexpire KEY 1",
    "persist KEY",
    "getrange KEY 0 0",
    "setrange KEY 0 v",
    "strlen KEY",
    "bitfield KEY",
    "bitfield_ro KEY",
    "bitop or KEY KEY",
    "type KEY",
    "object encoding KEY",
    "hget KEY f",
    "hmget KEY f",
    "hgetall KEY",
    "hset KEY f v",
    "hdel KEY f",
    "hexists KEY f",
    "hincrby KEY f 1",
    "hlen KEY",
    "sadd KEY m",
    "srem KEY m",
    "spop KEY 1",
    "scard KEY",
    "sscan KEY 0",
    "zadd KEY 1 m",
    "zrange KEY 0 0",
    "zrangebyscore KEY 0 0",
    "zrem KEY m",
    "time",
    "publish CHANNEL x",
    "multi",
    "exec",
    "discard",
    "subscribe CHANNEL",
    "unsubscribe",
    "evalsha 0000000000000000000000000000000000000000 0",
    "script load x",
];

/// Of the worker and its verbs alone.
pub(super) const WORKER: &[&str] = &[
    "dbsize",
    "script exists x",
    "scan 0",
    "del KEY",
    "hkeys KEY",
    "hsetnx KEY f v",
    "object idletime KEY",
    "object freq KEY",
];

/// Of the worker, where it reads streams.
pub(super) const STREAMS: &[&str] = &[
    ADD,
    "xack KEY g 0-0",
    "xautoclaim KEY g c 0 0-0",
    "xdel KEY 0-0",
    "xgroup create KEY g 0",
    "xgroup delconsumer KEY g c",
    "xgroup destroy KEY g",
    "xinfo consumers KEY g",
    "xlen KEY",
    "xpending KEY g",
    "xrange KEY - +",
    "xread STREAMS KEY 0",
    "xreadgroup GROUP g c STREAMS KEY >",
    "xrevrange KEY + -",
    "rpush KEY v",
];

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Worker,
    Library,
    Both,
}

/// Without it something is weaker.
pub(super) struct Optional {
    pub asked: &'static str,
    pub of: Of,
    /// What is weaker.
    pub means: &'static str,
}

const NAMED: &str = "that a proxy has put another server behind a connection is noticed by the number of the connection alone, which \
     may be the same there";

const NEAR: &str = "near caches of applications read from Redis each time";

pub(super) const OPTIONAL: &[Optional] = &[
    Optional { asked: "client setname x", of: Of::Both, means: NAMED },
    Optional { asked: "client getname", of: Of::Both, means: NAMED },
    Optional { asked: "client tracking off", of: Of::Library, means: NEAR },
    Optional { asked: "client trackinginfo", of: Of::Library, means: NEAR },
    Optional { asked: "role", of: Of::Library, means: NEAR },
    Optional {
        asked: "touch KEY",
        of: Of::Library,
        means: "what applications read near is not told to be in use",
    },
    Optional {
        asked: "info server",
        of: Of::Worker,
        means: "whether it evicts anything, and how much memory it uses, cannot be told; that it was rolled back is noticed by what the \
             worker writes there once a second, so a rollback of less than a second may be missed",
    },
];
