//! Entries: the one rule by which they are stored (R5), how they are raised, deleted, extended and read.

use std::time::Duration;

use super::gather::ValueAndLife;
use super::hashes::{ask_values, take_values};
use super::script::{Call, EXTEND, RAISE, SHORTEN, STORE, pack, pack_slots};
use super::tags::AddedMembers;
use super::{Answer, CacheError, Precondition, Redis};
use crate::process::now_ms;
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::{EntryBatch, LIFE_WITHOUT_END, Shape};
use cachekeeper_protocol::freshness::Lifetimes;
use cachekeeper_protocol::keyspace::{key_counter, slot, tag_counter};
use cachekeeper_protocol::stamp::Stamp;
use cachekeeper_protocol::window::window_width;

/// What covers the entries of a store against older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode<'a> {
    /// The slot of each key (R5).
    Slots,
    /// The floor, once for all (R7): for a backfill, of which one statement feeds many scripts. The text is what the
    /// backfill needs to go on after an interruption.
    Floor {
        /// The counted job.
        job: &'a str,
        /// Where the backfill stands after this batch; empty: not to be resumed.
        progress: &'a str,
        /// What earlier scripts have added to the tags of these entries; none: the store adds them itself.
        members: Option<&'a AddedMembers>,
    },
    /// The slot of each key, as a step of a counted job.
    Counted {
        /// The counted job.
        job: &'a str,
    },
}

/// What an application's store has to do with the counters of invalidations.
#[derive(Debug, Clone, Copy)]
pub enum CounterRule<'a> {
    /// A fill, loaded after these were read: refused where something was invalidated since.
    Unchanged(&'a InvalidationCounters),
    /// A set, which is the newest: fills that began before it are refused.
    Raise,
}

/// The positions of entries that were refused: something newer has touched them.
pub type Refused = Vec<usize>;

/// For the windows of its tags, an entry without an end lives a thousand years: no member outlives its window.
const WITHOUT_END: Duration = Duration::from_secs(1_000 * 366 * 86_400);

/// One run of the script.
struct Store<'a> {
    batch: &'a EntryBatch,
    stamp: Option<(Precondition<'a>, Stamp)>,
    mode: StoreMode<'a>,
    counters: Option<CounterRule<'a>>,
    longest_life: Duration,
}

impl Redis {
    /// Stores the entries of one load, and deletes those whose rows are gone.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] the entries may or may not be stored.
    pub async fn store(
        &self,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        batch: &EntryBatch,
        longest_life: Duration,
        mode: StoreMode<'_>,
    ) -> Result<Answer<Refused>, CacheError> {
        let stamp = Some((*precondition, stamp));
        Store { batch, stamp, mode, counters: None, longest_life }.call(self).run(self).await
    }

    /// Stores entries of an application; with a stamp, the stamp decides as well.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] the entries may or may not be stored.
    pub async fn fill(
        &self,
        batch: &EntryBatch,
        rule: CounterRule<'_>,
        stamp: Option<(Precondition<'_>, Stamp)>,
    ) -> Result<Answer<Refused>, CacheError> {
        if matches!(rule, CounterRule::Raise) && stamp.is_none() && !batch.has_tags() {
            self.set_untagged(batch).await?;
            return Ok(Answer::Done(Vec::new()));
        }
        let lives = batch.iter().map(|entry| match entry.life_ms {
            LIFE_WITHOUT_END => WITHOUT_END,
            life => Duration::from_millis(life),
        });
        let longest_life = lives.max().unwrap_or_default();
        let counters = Some(rule);
        Store { batch, stamp, mode: StoreMode::Slots, counters, longest_life }.call(self).run(self).await
    }

    /// The same as the script does where there are neither tags nor stamps to look at, by a transaction of plain commands:
    /// a script handles each byte of a value twice.
    async fn set_untagged(&self, batch: &EntryBatch) -> Result<(), CacheError> {
        let Some(first) = batch.get(0) else { return Ok(()) };
        let mut pipeline = redis::Pipeline::with_capacity(batch.len() + 2);
        pipeline.atomic();
        let keys = self.keys.metadata_of(first.key);
        raise_counters(&mut pipeline, &keys.counters, batch.iter().map(|entry| key_counter(entry.key)));
        for entry in batch.iter() {
            match entry.life_ms {
                0 => pipeline.cmd("UNLINK").arg(entry.key),
                LIFE_WITHOUT_END => pipeline.cmd("SET").arg(entry.key).arg(entry.value),
                life => pipeline.cmd("SET").arg(entry.key).arg(entry.value).arg("PX").arg(life),
            };
        }
        self.pipeline("store entries", &pipeline, batch.len()).await.map(drop)
    }
}

impl Store<'_> {
    fn call(&self, redis: &Redis) -> Call {
        let on = redis.keys.metadata_of(self.batch.get(0).map_or("", |entry| entry.key));
        let own = [on.windows.as_str(), on.counters.as_str()];
        let mut keys = Vec::with_capacity(own.len() + self.batch.len());
        keys.extend(own);
        keys.extend(self.batch.iter().map(|entry| entry.key));
        let precondition = self.stamp.as_ref().map(|(precondition, _)| precondition);
        let mut call = Call::guarded(&STORE, redis, on, keys.into_iter(), precondition);
        match &self.stamp {
            Some((_, stamp)) => call.arg(stamp.to_bytes()),
            None => call.arg(""),
        };
        let (covered_by, job, progress, members) = match self.mode {
            StoreMode::Slots => ("slots", "", "", None),
            StoreMode::Floor { job, progress, members } => ("floor", job, progress, members),
            StoreMode::Counted { job } => ("slots", job, "", None),
        };
        let fresh = generation();
        let (counting, generation): (&str, &[u8]) = match self.counters {
            None => ("", &[]),
            Some(CounterRule::Unchanged(seen)) => ("unchanged", seen.generation()),
            Some(CounterRule::Raise) => ("raise", &fresh),
        };
        call.arg(covered_by).arg(counting).arg(generation).arg(&on.tag_prefix);
        call.number(self.longest_life.as_secs() + 1).number(window_width(self.longest_life));
        call.arg(job).arg(progress);
        call.arg(pack_slots(self.batch.iter().map(|entry| entry.key)));
        self.add_counters(&mut call, self.batch.iter().map(|entry| key_counter(entry.key)));
        let tags = if members.is_none() { self.batch.tags() } else { Vec::new() };
        match members {
            None => call.arg(pack_slots(tags.iter().map(|(tag, _)| *tag))),
            Some(_) => call.arg(pack(tag_slots(self.batch))),
        };
        self.add_counters(&mut call, tags.iter().map(|(tag, _)| self.counter_of_tag(tag)));
        match members {
            None => call.arg("").arg("").arg(""),
            Some(added) => call.number(added.scripts).number(added.removals).number(added.window),
        };
        match self.batch.shape() {
            Shape::String => call.arg(""),
            Shape::Hash => call.arg("hash"),
        };
        let now_ms = now_ms();
        for entry in self.batch.iter() {
            call.arg(entry.value);
            match entry.life_at(now_ms) {
                LIFE_WITHOUT_END => call.arg(""),
                life => call.number(life),
            };
        }
        for (tag, members) in tags {
            call.arg(tag).arg(pack(members.iter().map(|member| member + 1)));
        }
        call
    }

    fn counter_of_tag(&self, tag: &str) -> u32 {
        match self.counters {
            Some(CounterRule::Unchanged(seen)) => seen.of_tag(tag).0,
            Some(CounterRule::Raise) | None => tag_counter(tag),
        }
    }

    /// Positions among the counters, and what was seen there.
    fn add_counters(&self, call: &mut Call, positions: impl Iterator<Item = u32>) {
        match self.counters {
            None => call.arg("").arg(""),
            Some(CounterRule::Raise) => call.arg(pack(positions)).arg(""),
            Some(CounterRule::Unchanged(seen)) => {
                let positions: Vec<u32> = positions.collect();
                let counters = pack(positions.iter().map(|at| seen.counter(*at).unwrap_or_default()));
                call.arg(pack(positions)).arg(counters)
            }
        };
    }
}

/// The slots of the tags of a batch, each once.
fn tag_slots(batch: &EntryBatch) -> Vec<u32> {
    let mut slots: Vec<u32> = batch.tagged().map(|(tag, _)| slot(tag.as_bytes())).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

/// Refuses the fills of these keys that began before; part of a transaction, without a reply.
pub(super) fn raise_counters(
    pipeline: &mut redis::Pipeline,
    counters: &str,
    positions: impl Iterator<Item = u32>,
) {
    pipeline.cmd("SET").arg(counters).arg(&generation()).arg("NX").ignore();
    pipeline.cmd("BITFIELD").arg(counters).ignore();
    for position in positions {
        pipeline.arg("INCRBY").arg("u32").arg(format!("#{position}")).arg(1);
    }
}

/// What a new table of counters begins with.
pub(super) fn generation() -> [u8; 8] {
    rand::random()
}

/// Reads the values of keys, and then the remaining lifetime of each; answers how many replies that has.
pub(super) fn read_with_lives(
    pipeline: &mut redis::Pipeline,
    keys: &[impl AsRef<str>],
    shape: Shape,
) -> usize {
    let replies = ask_values(pipeline, keys, shape);
    for key in keys {
        pipeline.cmd("PTTL").arg(key.as_ref());
    }
    replies + keys.len()
}

/// As `PTTL` says it.
const NO_ENTRY: i64 = -2;

impl Redis {
    /// Raises keys, cached or not, and answers the positions of those that exist (R6). `job` is counted, if it is
    /// not empty.
    pub async fn raise(
        &self,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        job: &str,
    ) -> Result<Answer<Vec<usize>>, CacheError> {
        self.raise_and("exists", precondition, stamp, keys, (job, "")).run(self).await
    }

    /// Raises keys and deletes them; answers how many existed. The delete is carried out even where the precondition
    /// failed: absence is always right, but the caller must then repeat it. `job` is counted, if it is not empty; the keys
    /// leave `tag_set`, if it is not empty.
    pub async fn invalidate(
        &self,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        job: &str,
        tag_set: &str,
    ) -> Result<Answer<u64>, CacheError> {
        self.raise_and("delete", precondition, stamp, keys, (job, tag_set)).run(self).await
    }

    fn raise_and(
        &self,
        action: &str,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        (job, tag_set): (&str, &str),
    ) -> Call {
        let on = self.keys.metadata_of(keys.first().map_or("", AsRef::as_ref));
        let names = keys.iter().map(|key| -> &str { key.as_ref() });
        let mut call = Call::guarded(&RAISE, self, on, names.clone(), Some(precondition));
        call.arg(stamp.to_bytes()).arg(action).arg(job).arg(pack_slots(names)).arg(tag_set);
        call
    }

    /// Extends entries, each only if no more than the given remaining time is left: a newer store has longer.
    pub async fn extend(
        &self,
        precondition: &Precondition<'_>,
        entries: &[(String, Duration)],
        life: Duration,
    ) -> Result<Answer<u64>, CacheError> {
        let on = self.keys.metadata_of(entries.first().map_or("", |(key, _)| key.as_str()));
        let names = entries.iter().map(|(key, _)| key);
        let mut call = Call::guarded(&EXTEND, self, on, names, Some(precondition));
        call.number(millis(life));
        for (_, left) in entries {
            call.number(millis(*left));
        }
        call.run(self).await
    }

    /// Gives entries of a dataset their lifetime, each only if more is left than any may have: `ttl`, which jitter shortens. (What is kept
    /// longer in bad times is given less at a time.)
    pub async fn shorten(
        &self,
        precondition: &Precondition<'_>,
        keys: &[String],
        lifetimes: &Lifetimes,
    ) -> Result<Answer<u64>, CacheError> {
        let on = self.keys.metadata_of(keys.first().map_or("", String::as_str));
        let mut call = Call::guarded(&SHORTEN, self, on, keys.iter(), Some(precondition));
        call.number(millis(lifetimes.ttl));
        for key in keys {
            call.number(millis(lifetimes.of(key)));
        }
        call.run(self).await
    }

    /// One value with its remaining lifetime; with those that others ask for at the same moment.
    pub async fn read_one(&self, key: &str, shape: Shape) -> Result<ValueAndLife, CacheError> {
        let alone = async || Ok(self.read(&[key], shape).await?.pop().unwrap_or((None, NO_ENTRY)));
        let together = || {
            let redis = self.clone();
            move |keys: Vec<String>| async move { redis.read(&keys, shape).await }
        };
        self.gathered.of(shape).values_and_lives.read(key, alone, together).await
    }

    /// The values of keys with their remaining lifetimes.
    pub async fn read(
        &self,
        keys: &[impl AsRef<str>],
        shape: Shape,
    ) -> Result<Vec<ValueAndLife>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        let expected = read_with_lives(&mut pipeline, keys, shape);
        let mut replies = self.pipeline("read entries", &pipeline, expected).await?;
        let values = take_values(&mut replies, keys.len(), shape)?;
        values.into_iter().map(|value| Ok((value, replies.next()?))).collect()
    }

    /// The remaining lifetimes of keys in milliseconds (-1: no end, -2: no entry). It is no use of them.
    pub(crate) async fn lives(&self, keys: &[impl AsRef<str>]) -> Result<Vec<i64>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("PTTL").arg(key.as_ref());
        }
        let mut replies = self.pipeline("read lifetimes", &pipeline, keys.len()).await?;
        keys.iter().map(|_| replies.next()).collect()
    }

    /// Whether [`Self::see`] does not count as use: from Redis 7.2 on, where the user may say `CLIENT NO-TOUCH`.
    pub async fn can_look_unnoticed(&self) -> Result<bool, CacheError> {
        let command = redis::cmd("CLIENT").arg("NO-TOUCH").arg("OFF").to_owned();
        match self.command::<()>("look without a trace", &command).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_unreachable() => Err(error),
            Err(_does_not_know_it) => Ok(false),
        }
    }
}

/// What Redis answers when it is asked for the remaining lifetime of a key that is not there.
pub(super) const NOT_THERE: i64 = -2;

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
