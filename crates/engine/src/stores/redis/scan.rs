//! Scans over the entries in Redis, page by page.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::entries::millis;
use super::script::{Call, SCAN, SCAN_KEYS};
use super::{Answer, CacheError, Precondition, Redis, Refusal};

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
    /// The most that may remain.
    pub left_max: Duration,
}

/// One entry that a scan met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedEntry {
    /// Its key. Keys that are not UTF-8 belong to no dataset and are passed over.
    pub key: String,
    /// What remains of its lifetime; none: it does not expire.
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
    /// One page of a scan over the keys that begin with a prefix, as a step of a counted job where `job` is not empty. Answers where
    /// the next page begins (0: the scan is over) and the keys. One may come twice; those that are not UTF-8 belong to no dataset.
    pub async fn scan_keys(
        &self,
        precondition: &Precondition<'_>,
        job: &str,
        (cursor, page): (u64, usize),
        prefix: &str,
    ) -> Result<Answer<(u64, Vec<String>)>, CacheError> {
        let mut call = Call::namespace(&SCAN_KEYS, self, precondition);
        call.arg(job).number(cursor).number(page as u64).arg(beginning_with(prefix));
        let answer: Answer<(u64, Vec<Vec<u8>>)> = call.run(self).await?;
        Ok(match answer {
            Answer::Failed(failed) => Answer::Failed(failed),
            Answer::Done((cursor, keys)) => Answer::Done((
                cursor,
                keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect(),
            )),
        })
    }

    /// The first bytes of values, enough to tell an explicit null from everything else. Of what is not there, or is no string: none.
    pub async fn beginnings(&self, keys: &[&str]) -> Result<Vec<Vec<u8>>, CacheError> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for key in keys {
            pipeline.cmd("GETRANGE").arg(*key).arg(0).arg(4);
        }
        let mut replies = self.pipeline("read the beginnings of values", &pipeline, keys.len()).await?;
        let mut read = || match replies.next() {
            Err(error) if error.refusal == Refusal::WrongType => Ok(Vec::new()),
            read => read,
        };
        keys.iter().map(|_| read()).collect()
    }

    /// One page of a scan over the entries that end soon.
    pub async fn scan(
        &self,
        precondition: &Precondition<'_>,
        (cursor, page): (u64, usize),
        sign: UseSign,
        wanted: &[Wanted<'_>],
    ) -> Result<Answer<ScanPage>, CacheError> {
        let mut call = Call::namespace(&SCAN, self, precondition);
        call.number(cursor).number(page as u64);
        call.arg(match sign {
            UseSign::Idle => "idle",
            UseSign::Frequency => "freq",
            UseSign::None => "",
        });
        match wanted {
            [one] => call.arg(beginning_with(one.prefix)),
            _ => call.arg("*"),
        };
        for wanted in wanted {
            call.arg(wanted.prefix).number(millis(wanted.left_max));
        }
        call.run(self).await
    }
}

/// The pattern of keys that begin with this text (Redis's `KEYS`: what means something in a pattern stands behind a backslash).
fn beginning_with(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for one in prefix.chars() {
        if matches!(one, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(one);
    }
    pattern.push('*');
    pattern
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
