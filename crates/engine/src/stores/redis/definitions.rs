//! Registered definitions: which workers live, and whose definition of each dataset counts (R16).

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::entries::millis;
use super::epoch::PRIMARY_LEASE;
use super::script::{Call, REGISTER, nonce};
use super::{Answer, CacheError, Epoch, Precondition, Redis};
use cachekeeper_protocol::revision::Revision;
use cachekeeper_protocol::window::window_width;

/// Why a dataset is pending whose definition was taken.
pub const REDEFINED: &str = "redefined";
/// A worker counts as living for so long after it has registered last.
const REGISTRATION_LIFE: Duration = Duration::from_secs(5);

/// A definition as a worker registers it.
#[derive(Debug)]
pub struct Declared<'a> {
    /// The dataset's name.
    pub dataset: &'a str,
    /// The hash of the definition.
    pub definition: &'a str,
    /// Its release and its number: the higher, the newer.
    pub order: (u64, u64),
    /// The longest lifetime of an entry.
    pub longest_life: Duration,
    /// The definition in full, as JSON; empty: only where the script asks for it.
    pub text: &'a str,
    /// What the directory says of the dataset, as JSON.
    pub told: &'a str,
}

/// What is registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registered {
    /// The revision of each dataset, also of those that this worker does not have.
    pub revisions: BTreeMap<String, Revision>,
    /// Definitions (dataset, hash) that entries under other keys are left of, and whether these are still of use: a living worker has
    /// the definition, and no change of them was missed.
    pub former: BTreeMap<(String, String), bool>,
    /// Datasets that this worker has just taken.
    pub taken: Vec<String>,
    /// Whether no other worker is fitter to lead the feed.
    pub may_lead: bool,
    /// Whether another run of the server has written the metadata, so that it may have been rolled back. Then nothing was registered.
    pub is_of_another_run: bool,
    /// Whether the script asks for the definitions in full; then nothing was taken.
    pub wants_texts: bool,
}

/// A worker that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingWorker {
    /// Its name, which no other one has.
    pub name: String,
    /// For how long it has been registered without a gap, in milliseconds.
    pub registered_ms: u64,
    /// The datasets of its configuration.
    pub datasets: Vec<String>,
}

impl LivingWorker {
    /// None: it lives no more, or another version has recorded it otherwise.
    fn read(name: String, record: &[u8], now_ms: u64) -> Option<Self> {
        #[derive(Deserialize)]
        struct Record {
            ends: f64,
            since: f64,
            definitions: BTreeMap<String, IgnoredAny>,
        }
        let record: Record = serde_json::from_slice(record).ok()?;
        let since = Duration::try_from_secs_f64(record.since / 1_000.0).ok()?;
        let registered_ms = now_ms.saturating_sub(millis(since));
        let lives =
            Duration::from_millis(now_ms) < Duration::try_from_secs_f64(record.ends / 1_000.0).ok()?;
        lives.then(|| Self { name, registered_ms, datasets: record.definitions.into_keys().collect() })
    }
}

impl Registered {
    /// Whether the same definitions are registered, and the same former ones are left.
    #[must_use]
    pub fn has_same_definitions(&self, other: &Self) -> bool {
        let of = |one: &Self| -> Vec<(String, String)> {
            let current = one.revisions.iter();
            current.map(|(name, revision)| (name.clone(), revision.definition().to_owned())).collect()
        };
        of(self) == of(other) && self.former.keys().eq(other.former.keys())
    }
}

impl FromRedisValue for Registered {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let words = Vec::<String>::from_redis_value(value)?;
        let mut registered = Self::default();
        let mut words = words.into_iter();
        while let (Some(field), Some(value)) = (words.next(), words.next()) {
            match field.split_once(':').unwrap_or((&field, "")) {
                ("rev", dataset) => drop(registered.revisions.insert(dataset.to_owned(), value.into())),
                ("former", name) => {
                    if let Some((dataset, definition)) = name.rsplit_once('@') {
                        let name = (dataset.to_owned(), definition.to_owned());
                        registered.former.insert(name, value == "living");
                    }
                }
                ("took", _) => registered.taken.push(value),
                ("lead", _) => registered.may_lead = !value.is_empty(),
                ("restarted", _) => registered.is_of_another_run = true,
                ("texts", _) => registered.wants_texts = true,
                _ => return Err(format!("unknown word {field:?}").into()),
            }
        }
        Ok(registered)
    }
}

impl Redis {
    /// Registers a worker as living, with its definitions, and takes the datasets whose newest definition it has. Renews the lease of
    /// the primary, whose `place` among others is recorded. What applications are told of the service and of its current definitions
    /// stands in the directory then.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn register_worker(
        &self,
        (epoch, incarnation): (&Epoch, &str),
        (worker, place): (&str, &str),
        service: &str,
        declared: &[Declared<'_>],
    ) -> Result<Answer<Registered>, CacheError> {
        let on = self.keys.metadata();
        let precondition = Precondition::of_epoch(epoch, incarnation);
        let keys = [&on.workers, &on.definitions, &on.directory].into_iter();
        let mut call = Call::guarded(&REGISTER, self, on, keys, Some(&precondition));
        call.arg(worker).number(millis(REGISTRATION_LIFE));
        call.arg(REDEFINED).arg(nonce()).arg(&on.pending_prefix);
        call.arg(place).number(millis(PRIMARY_LEASE)).arg(service);
        for one in declared {
            call.arg(one.dataset).arg(one.definition).number(one.order.0).number(one.order.1);
            call.number(one.longest_life.as_secs() + 1).number(window_width(one.longest_life));
            call.arg(one.text).arg(one.told);
        }
        call.run(self).await
    }

    /// These definitions (dataset, hash) in full, as JSON, in their order; none: it is not known any more.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn definition_texts(
        &self,
        definitions: &[(&str, &str)],
    ) -> Result<Vec<Option<String>>, CacheError> {
        if definitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keys.metadata().definitions);
        for (dataset, definition) in definitions {
            command.arg(format!("{dataset}@{definition}"));
        }
        self.command("read definitions", &command).await
    }

    /// All definitions in full that are kept, current and former ones, each with its dataset.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn all_definition_texts(&self) -> Result<Vec<(String, String)>, CacheError> {
        let command = redis::cmd("HGETALL").arg(&self.keys.metadata().definitions).to_owned();
        let found: Vec<(String, String)> = self.command("read definitions", &command).await?;
        let name_of =
            |(field, text): (String, String)| field.rsplit_once('@').map(|(name, _)| (name.to_owned(), text));
        Ok(found.into_iter().filter_map(name_of).collect())
    }

    /// The workers that live, by their names.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn living_workers(&self) -> Result<Vec<LivingWorker>, CacheError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME").cmd("HGETALL").arg(&self.keys.metadata().workers);
        let mut replies = self.pipeline("look who lives", &pipeline, 2).await?;
        let (seconds, micros): (u64, u64) = replies.next()?;
        let records: BTreeMap<String, Vec<u8>> = replies.next()?;
        let now_ms = seconds * 1_000 + micros / 1_000;
        let living =
            records.into_iter().filter_map(|(name, record)| LivingWorker::read(name, &record, now_ms));
        Ok(living.collect())
    }

    /// Whether each of these datasets is one of a worker that lives.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn have_living_workers(&self, datasets: &[&str]) -> Result<Vec<bool>, CacheError> {
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keys.metadata().meta);
        for dataset in datasets {
            command.arg(format!("undeclared:{dataset}"));
        }
        let undeclared: Vec<Option<String>> = self.command("look who lives", &command).await?;
        Ok(undeclared.iter().map(Option::is_none).collect())
    }

    /// Nothing is left of a former definition.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn forget_former(&self, (dataset, definition): (&str, &str)) -> Result<(), CacheError> {
        let (on, name) = (self.keys.metadata(), format!("{dataset}@{definition}"));
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        let kinds = ["former", "covered", "pending", "slots", "unfilled", "outage"];
        let fields = kinds.map(|kind| format!("{kind}:{name}"));
        pipeline.cmd("HDEL").arg(&on.meta).arg(&fields[..]);
        pipeline.cmd("HDEL").arg(&on.definitions).arg(&name);
        self.pipeline("forget a former definition", &pipeline, 2).await.map(drop)
    }
}
