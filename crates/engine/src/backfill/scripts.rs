//! The scripts of a backfill that is fed by one statement: what they have in common, and each of the two.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinError;

use crate::context::Context;
use crate::error::EngineError;
use crate::load::{MOVE_SEEN_WITHIN, MOVES_MAX};
use crate::metrics::ByReason;
use crate::stores::postgres::Poll;
use crate::stores::redis::{AddedMembers, Answer, Epoch, Precondition, PreconditionFailed, StoreMode};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::revision::Revision;

/// Members that one script adds, which takes Redis a millisecond or two.
const SCRIPT_MEMBERS: usize = 2_000;

/// What all scripts of a backfill have in common.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) context: Context,
    pub(super) dataset: String,
    pub(super) revision: Revision,
    pub(super) epoch: Epoch,
    pub(super) poll: Poll,
    /// The counted job.
    pub(super) job: String,
    pub(super) longest_life: Duration,
}

/// A batch on its way, and what became of it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) batch: EntryBatch,
    pub(super) answer: Result<Answer<Vec<usize>>, EngineError>,
}

impl Sent {
    /// The runtime ended while it was on its way.
    pub(super) fn aborted(_error: JoinError) -> Self {
        Self { batch: EntryBatch::default(), answer: Err(EngineError::Cancelled) }
    }
}

/// Batches whose keys are members of their tags.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) batches: Vec<EntryBatch>,
    /// None: each store adds its own.
    pub(super) members: Option<AddedMembers>,
    /// How many scripts ran.
    pub(super) scripts: u64,
}

impl Scripts {
    fn precondition(&self) -> Precondition<'_> {
        Precondition {
            epoch: &self.epoch,
            incarnation: &self.poll.incarnation,
            dataset: &self.dataset,
            revision: self.revision.as_str(),
        }
    }

    /// Stores a batch. Where the members that were added before it do not count any more, it adds its own.
    pub(super) async fn store(
        &self,
        batch: EntryBatch,
        members: Option<AddedMembers>,
        progress: &str,
    ) -> Sent {
        let (mut batch, mut members, mut moves) = (batch, members, 0);
        loop {
            let answer = self.store_with(&batch, members.as_ref(), progress).await;
            match answer {
                Ok(Answer::Failed(PreconditionFailed::Members)) if members.is_some() => members = None,
                Ok(Answer::Failed(PreconditionFailed::Guard)) if moves < MOVES_MAX => {
                    moves += 1;
                    tokio::time::sleep(MOVE_SEEN_WITHIN).await;
                    match self.still_taken(&batch).await {
                        Ok(taken) => batch = taken,
                        Err(error) => return Sent { batch, answer: Err(error) },
                    }
                }
                answer => return Sent { batch, answer },
            }
        }
    }

    /// Those of these entries whose cluster slots are still as adopted as when the backfill began. The others are missing once they are
    /// adopted again, which is recorded then.
    async fn still_taken(&self, batch: &EntryBatch) -> Result<EntryBatch, EngineError> {
        let Some(on_shard) = &self.context.on_shard else { return Ok(batch.only(|_| true)) };
        let adopted = self.context.adopted_now(on_shard).await?;
        Ok(batch.only(|key| self.context.redis.takes_as(key, &adopted)))
    }

    async fn store_with(
        &self,
        batch: &EntryBatch,
        members: Option<&AddedMembers>,
        progress: &str,
    ) -> Result<Answer<Vec<usize>>, EngineError> {
        let mode = StoreMode::Floor { job: &self.job, progress, members };
        let (stamp, redis) = (self.poll.snapshot.stamp(), &self.context.redis);
        let answer = redis.store(&self.precondition(), stamp, batch, self.longest_life, mode).await;
        answer.map_err(|error| EngineError::Cache(self.context.count_refusal(error)))
    }

    /// Adds the keys of these batches to their tags, grouped by tag, where that saves more than it costs. `before`: how many
    /// scripts of the job have added members so far.
    pub(super) async fn add_members(
        &self,
        batches: Vec<EntryBatch>,
        before: u64,
    ) -> Result<Added, EngineError> {
        let tags = ByTag::of(&batches);
        if !tags.saves() {
            return Ok(Added { members: None, scripts: 0, batches });
        }
        let (mut scripts, mut members): (u64, Option<AddedMembers>) = (0, None);
        let mut is_one = true;
        for page in tags.pages() {
            scripts += 1;
            let (job, redis) = ((self.job.as_str(), before + scripts), &self.context.redis);
            let answer = redis.add_members(&self.precondition(), job, self.longest_life, &page).await;
            let answer = answer.map_err(|error| EngineError::Cache(self.context.count_refusal(error)))?;
            let added = match answer {
                Answer::Done(Some(added)) => added,
                Answer::Done(None) => {
                    self.context.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
                    return Err(EngineError::RedisRolledBack);
                }
                // The stores fail the same way, and whoever looks at their replies knows the dataset: it may be superseded.
                Answer::Failed(_) => return Ok(Added { members: None, scripts: scripts - 1, batches }),
            };
            // Removals, or another window, between the scripts of a page: the stores could not tell which of them count.
            let is_same =
                |first: AddedMembers| (first.removals, first.window) == (added.removals, added.window);
            is_one = is_one && members.is_none_or(is_same);
            members = Some(added);
        }
        Ok(Added { batches, members: members.filter(|_| is_one), scripts })
    }
}

/// The keys of some batches by tag.
#[derive(Debug, Default)]
struct ByTag<'a> {
    tags: Vec<(&'a str, Vec<&'a str>)>,
    members: usize,
    /// How often each batch would name each of its tags.
    named: usize,
}

impl<'a> ByTag<'a> {
    fn of(batches: &'a [EntryBatch]) -> Self {
        let (mut by_tag, mut places) = (Self::default(), HashMap::<&str, (usize, usize)>::new());
        for (number, batch) in batches.iter().enumerate() {
            for (tag, position) in batch.tagged() {
                let Some(entry) = batch.get(position as usize) else { continue };
                let (place, last_batch) = places.entry(tag).or_insert((by_tag.tags.len(), usize::MAX));
                if *last_batch != number {
                    *last_batch = number;
                    by_tag.named += 1;
                }
                match by_tag.tags.get_mut(*place) {
                    Some((_, keys)) => keys.push(entry.key),
                    None => by_tag.tags.push((tag, vec![entry.key])),
                }
                by_tag.members += 1;
            }
        }
        by_tag
    }

    /// Whether one SADD for many members saves more than sending their keys twice costs: an SADD of a script takes about four
    /// times as long as one more member.
    fn saves(&self) -> bool {
        self.members < 4 * (self.named - self.tags.len())
    }

    /// What one script adds each.
    fn pages(self) -> Vec<Vec<(&'a str, Vec<&'a str>)>> {
        let (mut pages, mut page, mut room) = (Vec::new(), Vec::new(), SCRIPT_MEMBERS);
        for (tag, keys) in self.tags {
            let mut rest = keys.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(room.min(rest.len()));
                page.push((tag, now.to_vec()));
                room -= now.len();
                rest = later;
                if room == 0 {
                    pages.push(std::mem::take(&mut page));
                    room = SCRIPT_MEMBERS;
                }
            }
        }
        if !page.is_empty() {
            pages.push(page);
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u32, tag_of: impl Fn(u32) -> u32) -> EntryBatch {
        let mut batch = EntryBatch::default();
        for id in first..first + 256 {
            let position = batch.push(&format!("k:{id}"), b"v", 1_000);
            batch.tag(position, &format!("t:{}", tag_of(id)));
        }
        batch
    }

    #[test]
    fn every_member_is_in_one_script_and_no_script_is_empty_or_too_large() {
        for tags in [1, 2, 7, 500] {
            let batches: Vec<EntryBatch> =
                (0..64).map(|number| batch(number * 256, |id| id % tags)).collect();
            let by_tag = ByTag::of(&batches);
            assert_eq!(by_tag.members, 64 * 256);
            let pages = by_tag.pages();
            let mut keys: Vec<&str> = Vec::new();
            for page in &pages {
                let members: usize = page.iter().map(|(_, keys)| keys.len()).sum();
                assert!(page.iter().all(|(_, keys)| !keys.is_empty()));
                assert!(0 < members && members <= SCRIPT_MEMBERS, "{members}");
                keys.extend(page.iter().flat_map(|(_, keys)| keys));
            }
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), 64 * 256, "{tags} tags");
        }
    }

    #[test]
    fn tags_that_nobody_shares_are_left_to_the_stores() {
        let batches: Vec<EntryBatch> = (0..8).map(|number| batch(number * 256, |id| id)).collect();
        assert!(!ByTag::of(&batches).saves());
        let batches: Vec<EntryBatch> = (0..8).map(|number| batch(number * 256, |id| id % 500)).collect();
        assert!(ByTag::of(&batches).saves());
    }
}
