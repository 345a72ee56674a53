//! How the values of entries are read, by their shape. A hash is read whole and becomes the same bytes that were stored, so that whoever
//! compares or decodes values does not see a difference.

use std::collections::BTreeMap;

use redis::{FromRedisValue, Value};

use super::connection::Replies;
use super::gather::ValueAndLife;
use super::{CacheError, Redis, Refusal};
use cachekeeper_protocol::entry::Shape;
use cachekeeper_protocol::fields;

/// Asks for the values of keys; answers how many replies that has. A key of another type is one without a value. Strings are read by one
/// command, to which it is that; for hashes the errors of the pipeline are left to [`take_values`].
pub(super) fn ask_values(pipeline: &mut redis::Pipeline, keys: &[impl AsRef<str>], shape: Shape) -> usize {
    match shape {
        Shape::String => {
            pipeline.cmd("MGET");
            for key in keys {
                pipeline.arg(key.as_ref());
            }
            1
        }
        Shape::Hash => {
            pipeline.ignore_errors();
            for key in keys {
                pipeline.cmd("HGETALL").arg(key.as_ref());
            }
            keys.len()
        }
    }
}

/// Reads a hash where nothing else may fail, and no error may be passed over.
const READ_HASH: &str = "
    local value = redis.pcall('HGETALL', KEYS[1])
    if not value.err then return value end
    if string.find(value.err, 'WRONGTYPE', 1, true) then return false end
    return value";

/// The answers to [`ask_values`], in the order of the keys.
pub(super) fn take_values(
    replies: &mut Replies,
    keys: usize,
    shape: Shape,
) -> Result<Vec<Option<Vec<u8>>>, CacheError> {
    match shape {
        Shape::String => replies.next(),
        Shape::Hash => (0..keys).map(|_| take_hash(replies)).collect(),
    }
}

fn take_hash(replies: &mut Replies) -> Result<Option<Vec<u8>>, CacheError> {
    match replies.next::<Value>() {
        Err(error) if error.refusal == Refusal::WrongType => Ok(None),
        Err(error) => Err(error),
        Ok(reply) => value_of("read a hash", reply),
    }
}

/// The value of a hash as `HGETALL` tells it; none: nothing stands there.
pub(super) fn value_of(what: &'static str, reply: Value) -> Result<Option<Vec<u8>>, CacheError> {
    if reply == Value::Nil {
        return Ok(None);
    }
    // In the order of the names.
    let found = BTreeMap::<Vec<u8>, Vec<u8>>::from_redis_value(reply)
        .map_err(|parse| CacheError::unexpected(what, &parse.to_string()))?;
    let pairs = found.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
    Ok((!found.is_empty()).then(|| fields::encode(pairs)))
}

/// The same as a part of a reply with a lifetime.
pub(super) fn with_life(
    what: &'static str,
    (reply, left): (Value, i64),
    shape: Shape,
) -> Result<ValueAndLife, CacheError> {
    let value = match shape {
        Shape::String => Option::from_redis_value(reply)
            .map_err(|parse| CacheError::unexpected(what, &parse.to_string()))?,
        Shape::Hash => value_of(what, reply)?,
    };
    Ok((value, left))
}

impl Redis {
    /// The value of one hash.
    pub(super) async fn get_hash(&self, key: &str) -> Result<Option<Vec<u8>>, CacheError> {
        const WHAT: &str = "read an entry";
        match self.command(WHAT, redis::cmd("HGETALL").arg(key)).await {
            Err(error) if error.refusal == Refusal::WrongType => Ok(None),
            Err(error) => Err(error),
            Ok(reply) => value_of(WHAT, reply),
        }
    }

    /// The name of a script that reads a hash among writes, whose errors count.
    pub(super) async fn hash_reader(&self) -> Result<String, CacheError> {
        self.command("read a hash", redis::cmd("SCRIPT").arg("LOAD").arg(READ_HASH)).await
    }

    /// The values of many.
    pub(super) async fn get_hashes(
        &self,
        keys: &[impl AsRef<str>],
    ) -> Result<Vec<Option<Vec<u8>>>, CacheError> {
        let mut pipeline = redis::pipe();
        let expected = ask_values(&mut pipeline, keys, Shape::Hash);
        let mut replies = self.pipeline("read entries", &pipeline, expected).await?;
        take_values(&mut replies, keys.len(), Shape::Hash)
    }
}
