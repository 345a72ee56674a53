//! Scans over the entries in Redis, page by page.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::entries::millis;
use super::script::{Call, SCAN};
use super::{Answer, CacheError, Precondition, Redis};

/// How Redis tells whether an entry was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseSign {
    /// Seconds since the last use.
    Idle,
    /// A logarithmic counter of uses (LFU policies).
    Frequency,
    /// Not wanted.
    None,
}

/// Which entries a scan returns: those that begin with the prefix and have at most this much time left.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The beginning of the key.
    pub prefix: &'a str,
    /// The most that may remain; none: any.
    pub left_max: Option<Duration>,
}

/// One entry that a scan met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedEntry {
    /// Its key. Keys that are not UTF-8 belong to no dataset and are passed over.
    pub key: String,
    /// What remains of its lifetime; none: it does not expire, or nobody wanted to know (any is wanted, with
    /// [`UseSign::None`]).
    pub left: Option<Duration>,
    /// Idle seconds, or the frequency.
    pub used: Option<u64>,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    /// Where the next page begins; 0: the scan is over.
    pub cursor: u64,
    /// What was met. A key may come twice.
    pub entries: Vec<ScannedEntry>,
}

impl Redis {
    /// One page of a scan, as a step of a counted job where `job` is not empty.
    pub async fn scan(
        &self,
        precondition: &Precondition<'_>,
        job: &str,
        (cursor, page): (u64, usize),
        sign: UseSign,
        wanted: &[Wanted<'_>],
    ) -> Result<Answer<ScanPage>, CacheError> {
        let mut call = Call::namespace(&SCAN, self, precondition);
        call.arg(job).number(cursor).number(page as u64);
        call.arg(match sign {
            UseSign::Idle => "idle",
            UseSign::Frequency => "freq",
            UseSign::None => "",
        });
        for wanted in wanted {
            call.arg(wanted.prefix);
            match wanted.left_max {
                Some(left) => call.number(millis(left)),
                None => call.arg(""),
            };
        }
        call.run(self).await
    }
}

impl FromRedisValue for ScanPage {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let Value::Array(values) = value else { return Err("a list was expected".into()) };
        let mut values = values.into_iter();
        let cursor = u64::from_redis_value(values.next().unwrap_or(Value::Nil))?;
        let mut entries = Vec::with_capacity(values.len() / 3);
        loop {
            match (values.next(), values.next(), values.next()) {
                (Some(Value::BulkString(key)), Some(Value::Int(left)), Some(Value::Int(used))) => {
                    let Ok(key) = String::from_utf8(key) else { continue };
                    let left = u64::try_from(left).ok().map(Duration::from_millis);
                    entries.push(ScannedEntry { key, left, used: u64::try_from(used).ok() });
                }
                (None, None, None) => return Ok(Self { cursor, entries }),
                _ => return Err("a page of another form".into()),
            }
        }
    }
}
