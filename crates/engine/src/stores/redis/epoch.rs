//! The head: epochs, debts, revisions and the counted jobs' claims.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use redis::Value;

use super::script::{ADOPT, Answer, CLAIM, CREATE_EPOCH, Call, HEAD, HEAD_COUNTED, OWE, Standing};
use super::{CacheError, Redis};
use cachekeeper_protocol::stamp::{Snapshot, Stamp};
use cachekeeper_protocol::window::window_width;

/// One uninterrupted order of stamps. Eight random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 8]);

impl Epoch {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Why a dataset's entries must be looked at again, and a number that tells this debt from the next one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Debt(pub(super) String);

impl Debt {
    /// A debt for this reason (one word or a few), made at this moment of Redis's clock: a pass that began later has
    /// filled what was missing then.
    #[must_use]
    pub fn new(reason: &str, made_ms: u64) -> Self {
        Self(format!("{reason} {made_ms}-{:016x}", rand::random::<u64>()))
    }

    /// When it was made, in Unix milliseconds of Redis's clock.
    #[must_use]
    pub fn made_ms(&self) -> Option<u64> {
        self.0.rsplit_once(' ')?.1.split_once('-')?.0.parse().ok()
    }

    /// The reason alone.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.0.rsplit_once(' ').map_or(self.0.as_str(), |(reason, _)| reason)
    }
}

/// What stands in Redis about the order of things.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// Whether the tables are there and agree with the head.
    pub is_whole: bool,
    /// Redis's clock, in Unix milliseconds.
    pub now_ms: u64,
    /// How often the job that asked has been counted.
    pub counted: u64,
    /// The epoch.
    pub epoch: Option<Epoch>,
    /// The incarnation that the epoch's stamps belong to.
    pub incarnation: Option<String>,
    /// Loads below this are refused.
    pub floor: Option<Stamp>,
    /// The snapshot up to which changes are applied.
    pub cursor: Option<String>,
    /// Datasets whose entries must be looked at again.
    pub owed: BTreeMap<String, Debt>,
    /// The revision of each dataset.
    pub revisions: BTreeMap<String, String>,
    /// Where interrupted passes stand.
    pub passes: BTreeMap<String, String>,
    /// When the last whole pass of a dataset began, in Unix milliseconds.
    pub warmed: BTreeMap<String, u64>,
    /// Incarnations that are over.
    pub retired: Vec<String>,
    /// Since when Postgres has not answered, in Unix milliseconds.
    pub outage_since: Option<u64>,
}

/// What a new epoch begins with.
#[derive(Debug)]
pub struct NewEpoch<'a> {
    /// The database's incarnation.
    pub incarnation: &'a str,
    /// The snapshot at which floor and cursor begin, taken after the head was read.
    pub snapshot: &'a Snapshot,
    /// Every dataset owes this.
    pub debt: &'a Debt,
    /// The datasets that the caller knows (those in the head are added).
    pub datasets: &'a [String],
    /// Whether the stamps are still good and only the name changes, because Redis went back as a whole.
    pub is_relabel: bool,
}

/// How the attempt to begin an epoch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// It has begun.
    Created(Epoch),
    /// Somebody was faster: read the head again.
    Lost,
    /// This server's incarnation is over: another primary has taken its place.
    Retired,
}

/// How the adoption of a revision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// It was another one, and the dataset is owed.
    Adopted,
    /// It was this one already.
    Same,
    /// Somebody else changed it meanwhile.
    Lost,
}

/// What a finished job has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paid<'a> {
    /// Nothing that is written down.
    Nothing,
    /// A debt.
    Debt(&'a Debt),
    /// A pass, so that other workers need not repeat it.
    Pass {
        /// When it began, in Unix milliseconds of Redis's clock.
        began_ms: u64,
    },
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Every step of the job is in this Redis.
    Accepted,
    /// Steps are missing: Redis went back.
    WentBack,
}

impl Redis {
    /// Reads the head. Where `job` is not empty it is counted, so that a later reader can tell whether Redis went
    /// back in between.
    pub async fn head(&self, job: &str) -> Result<Head, CacheError> {
        let mut call = Call::new(if job.is_empty() { &HEAD } else { &HEAD_COUNTED }, 3);
        call.arg(self.keys.head.as_bytes()).arg(self.keys.stamps.as_bytes());
        call.arg(self.keys.tag_stamps.as_bytes()).arg(job.as_bytes());
        let reply = call.run(self).await?;
        let fields: Vec<Vec<u8>> = match reply {
            Value::Array(values) => values.into_iter().map(bytes_of).collect(),
            other => return Err(CacheError::unexpected("head", &format!("{other:?}"))),
        };
        Ok(parse_head(&fields))
    }

    /// Begins an epoch, if the head is still `seen`.
    pub async fn create_epoch(&self, seen: &Head, new: &NewEpoch<'_>) -> Result<Creation, CacheError> {
        let epoch = Epoch::random();
        let mut call = Call::new(&CREATE_EPOCH, 5);
        call.arg(self.keys.head.as_bytes()).arg(self.keys.stamps.as_bytes());
        call.arg(self.keys.tag_stamps.as_bytes()).arg(self.keys.watermark.as_bytes());
        call.arg(self.keys.fences.as_bytes());
        call.arg(seen.epoch.as_ref().map_or(&[], Epoch::as_bytes));
        call.arg(seen.incarnation.as_deref().unwrap_or_default().as_bytes());
        call.arg(epoch.as_bytes()).arg(new.incarnation.as_bytes());
        call.arg(&new.snapshot.stamp().to_bytes()).arg(new.snapshot.as_str().as_bytes());
        call.arg(new.debt.0.as_bytes());
        call.arg(if new.is_relabel { b"relabel" } else { b"new" });
        for dataset in new.datasets {
            call.arg(dataset.as_bytes());
        }
        let reply = call.run(self).await?;
        match call.read::<String>(reply)?.as_str() {
            "CREATED" => Ok(Creation::Created(epoch)),
            "LOST" => Ok(Creation::Lost),
            "RETIRED" => Ok(Creation::Retired),
            other => Err(CacheError::unexpected("create_epoch", other)),
        }
    }

    /// Adopts a dataset's revision by compare-and-set (R16), and announces its longest lifetime.
    pub async fn adopt(
        &self,
        epoch: &Epoch,
        incarnation: &str,
        dataset: &str,
        (seen, revision): (&str, &str),
        (longest_life, made_ms): (Duration, u64),
    ) -> Result<Answer<Adoption>, CacheError> {
        let standing = Standing { epoch, incarnation, dataset: "", revision: "" };
        let mut call = Call::fenced(&ADOPT, self, 0);
        call.standing(&standing);
        call.arg(seen.as_bytes()).arg(revision.as_bytes());
        call.number(longest_life.as_secs() + 1).number(window_width(longest_life));
        call.arg(Debt::new("redefined", made_ms).0.as_bytes()).arg(dataset.as_bytes());
        match call.run_fenced(self).await? {
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
            Answer::Done(reply) => match call.read::<String>(reply)?.as_str() {
                "ADOPTED" => Ok(Answer::Done(Adoption::Adopted)),
                "SAME" => Ok(Answer::Done(Adoption::Same)),
                "LOST" => Ok(Answer::Done(Adoption::Lost)),
                other => Err(CacheError::unexpected("adopt", other)),
            },
        }
    }

    /// Records that these datasets must be looked at again. With `floor`, which is what a change of a whole table
    /// asks for, no older load is stored any more; `job` is counted, if it is not empty.
    pub async fn owe(
        &self,
        (epoch, incarnation): (&Epoch, &str),
        debt: &Debt,
        datasets: &[String],
        floor: Option<Stamp>,
        job: &str,
    ) -> Result<Answer<u64>, CacheError> {
        let mut call = Call::fenced(&OWE, self, 0);
        call.standing(&Standing { epoch, incarnation, dataset: "", revision: "" });
        call.arg(debt.0.as_bytes());
        match floor {
            Some(stamp) => call.arg(&stamp.to_bytes()),
            None => call.arg(b""),
        };
        call.arg(job.as_bytes());
        for dataset in datasets {
            call.arg(dataset.as_bytes());
        }
        match call.run_fenced(self).await? {
            Answer::Done(reply) => Ok(Answer::Done(call.read(reply)?)),
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
        }
    }

    /// Ends a counted job; what it has settled is written down.
    pub async fn claim(
        &self,
        standing: &Standing<'_>,
        job: &str,
        count: u64,
        paid: Paid<'_>,
    ) -> Result<Answer<Claim>, CacheError> {
        let mut call = Call::fenced(&CLAIM, self, 0);
        call.standing(standing);
        call.arg(job.as_bytes()).number(count);
        let (debt, began) = match paid {
            Paid::Nothing => ("", String::new()),
            Paid::Debt(debt) => (debt.0.as_str(), String::new()),
            Paid::Pass { began_ms } => ("", began_ms.to_string()),
        };
        call.arg(debt.as_bytes()).arg(began.as_bytes());
        match call.run_fenced(self).await? {
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
            Answer::Done(reply) => match call.read::<String>(reply)?.as_str() {
                "PAID" => Ok(Answer::Done(Claim::Accepted)),
                "BACK" => Ok(Answer::Done(Claim::WentBack)),
                other => Err(CacheError::unexpected("claim", other)),
            },
        }
    }

    /// Notes in the head since when Postgres has been down, or that it is back. The earliest note stays.
    pub async fn note_outage(&self, since_ms: Option<u64>) -> Result<(), CacheError> {
        let command = match since_ms {
            Some(since) => redis::cmd("HSETNX").arg(&self.keys.head).arg("outage").arg(since).to_owned(),
            None => redis::cmd("HDEL").arg(&self.keys.head).arg("outage").to_owned(),
        };
        self.command::<Value>("note an outage", &command).await.map(drop)
    }
}

fn parse_head(fields: &[Vec<u8>]) -> Head {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut head = Head::default();
    let mut flat = fields.iter();
    head.is_whole = flat.next().is_some_and(|whole| whole == b"1");
    head.counted = flat.next().and_then(|count| text(count).parse().ok()).unwrap_or_default();
    head.now_ms = flat.next().and_then(|now| text(now).parse().ok()).unwrap_or_default();
    while let (Some(field), Some(value)) = (flat.next(), flat.next()) {
        let field = text(field);
        match field.split_once(':').unwrap_or((&field, "")) {
            ("epoch", _) => head.epoch = value.as_slice().try_into().ok().map(Epoch),
            ("inc", _) => head.incarnation = Some(text(value)),
            ("floor", _) => head.floor = value.as_slice().try_into().ok().map(Stamp::from_bytes),
            ("cursor", _) => head.cursor = Some(text(value)),
            ("owed", dataset) => drop(head.owed.insert(dataset.to_owned(), Debt(text(value)))),
            ("rev", dataset) => drop(head.revisions.insert(dataset.to_owned(), text(value))),
            ("pass", dataset) => drop(head.passes.insert(dataset.to_owned(), text(value))),
            ("warmed", dataset) => {
                if let Ok(began) = text(value).parse() {
                    head.warmed.insert(dataset.to_owned(), began);
                }
            }
            ("retired", incarnation) => head.retired.push(incarnation.to_owned()),
            ("outage", _) => head.outage_since = text(value).parse().ok(),
            _ => {}
        }
    }
    head
}

fn bytes_of(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::Int(number) => number.to_string().into_bytes(),
        other => format!("{other:?}").into_bytes(),
    }
}
