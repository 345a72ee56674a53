//! Walks over the entries in Redis, page by page.

use std::time::Duration;

use redis::Value;

use super::entries::millis;
use super::script::{Answer, Call, Standing, WALK};
use super::{CacheError, Redis};

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

/// Which entries a walk returns: those that begin with the prefix and have at most this much time left.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The beginning of the key.
    pub prefix: &'a str,
    /// The most that may remain; none: any.
    pub left_max: Option<Duration>,
}

/// One entry that a walk met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walked {
    /// Its key. Keys that are not UTF-8 belong to no dataset and are passed over.
    pub key: String,
    /// What remains of its lifetime; none: it does not expire.
    pub left: Option<Duration>,
    /// Idle seconds, or the frequency.
    pub used: Option<u64>,
}

/// One page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkPage {
    /// Where the next page begins; 0: the walk is over.
    pub cursor: u64,
    /// What was met. A key may come twice.
    pub entries: Vec<Walked>,
}

impl Redis {
    /// One page of a walk, as a step of a counted job where `job` is not empty.
    pub async fn walk(
        &self,
        standing: &Standing<'_>,
        job: &str,
        (cursor, page): (u64, usize),
        sign: UseSign,
        wanted: &[Wanted<'_>],
    ) -> Result<Answer<WalkPage>, CacheError> {
        let mut call = Call::fenced(&WALK, self, 0);
        call.standing(standing);
        call.arg(job.as_bytes()).number(cursor).number(page as u64);
        call.arg(match sign {
            UseSign::Idle => b"idle",
            UseSign::Frequency => b"freq",
            UseSign::None => b"",
        });
        for wanted in wanted {
            call.arg(wanted.prefix.as_bytes());
            match wanted.left_max {
                Some(left) => call.number(millis(left)),
                None => call.arg(b""),
            };
        }
        match call.run_fenced(self).await? {
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
            Answer::Done(Value::Array(values)) => Ok(Answer::Done(read_page(values)?)),
            Answer::Done(other) => Err(CacheError::unexpected("walk", &format!("{other:?}"))),
        }
    }
}

fn read_page(values: Vec<Value>) -> Result<WalkPage, CacheError> {
    let malformed = || CacheError::unexpected("walk", "a page of another form");
    let mut values = values.into_iter();
    let cursor = match values.next() {
        Some(Value::BulkString(bytes)) => {
            String::from_utf8_lossy(&bytes).parse().map_err(|_parse| malformed())?
        }
        Some(_) | None => return Err(malformed()),
    };
    let mut entries = Vec::with_capacity(values.len() / 3);
    loop {
        match (values.next(), values.next(), values.next()) {
            (Some(Value::BulkString(key)), Some(Value::Int(left)), Some(Value::Int(used))) => {
                let Ok(key) = String::from_utf8(key) else { continue };
                let left = u64::try_from(left).ok().map(Duration::from_millis);
                entries.push(Walked { key, left, used: u64::try_from(used).ok() });
            }
            (None, None, None) => return Ok(WalkPage { cursor, entries }),
            _ => return Err(malformed()),
        }
    }
}
