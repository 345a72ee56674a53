//! Tags: their members, which tell who must see to it when a tag changes (R8).

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::script::{ADD_MEMBERS, Call, DROP_WINDOWS, MEMBERS, RAISE_TAGS};
use super::{Answer, CacheError, Precondition, Redis};
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::Stamp;
use cachekeeper_protocol::window::window_width;

/// Keys that are to become members of their tags: for each tag its keys.
pub type TagMembers<'a> = [(&'a str, Vec<&'a str>)];

/// What a store must find as it was when its members were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddedMembers {
    /// How many scripts of the job had added members.
    pub scripts: u64,
    /// How often members had been removed, of any tag.
    pub removals: u64,
    /// The window that the members are in: the second from which none of them can be alive.
    pub window: u64,
}

/// What one script has dropped of the windows that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DroppedWindows {
    /// Tag sets that are gone.
    pub sets: u64,
    /// Whether there is more to drop.
    pub has_more: bool,
}

/// What a script that adds members answers.
enum Addition {
    Added { removals: u64, window: u64 },
    RolledBack,
}

impl FromRedisValue for Addition {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        if matches!(&value, Value::SimpleString(text) if text == "ROLLED_BACK") {
            return Ok(Self::RolledBack);
        }
        let (removals, window) = FromRedisValue::from_redis_value(value)?;
        Ok(Self::Added { removals, window })
    }
}

impl Redis {
    /// Adds the members of tags, as the script of this number among those of the job that do (from 1). The answer has no
    /// members where Redis has lost an earlier one.
    pub async fn add_members(
        &self,
        precondition: &Precondition<'_>,
        (job, number): (&str, u64),
        longest_life: Duration,
        members: &TagMembers<'_>,
    ) -> Result<Answer<Option<AddedMembers>>, CacheError> {
        let on = self.keys.metadata();
        let mut call = Call::guarded(&ADD_MEMBERS, self, on, [&on.windows].into_iter(), Some(precondition));
        call.arg(job).number(number).arg(&on.tag_prefix);
        call.number(longest_life.as_secs() + 1).number(window_width(longest_life));
        for (tag, keys) in members {
            call.arg(tag).number(keys.len() as u64);
            for key in keys {
                call.arg(key);
            }
        }
        let answer: Answer<Addition> = call.run(self).await?;
        Ok(match answer {
            Answer::Done(Addition::Added { removals, window }) => {
                Answer::Done(Some(AddedMembers { scripts: number, removals, window }))
            }
            Answer::Done(Addition::RolledBack) => Answer::Done(None),
            Answer::Failed(why) => Answer::Failed(why),
        })
    }

    /// Raises tags and answers the sets of their members with their sizes: what an older load returned under one of
    /// them is refused from now on.
    pub async fn raise_tags(
        &self,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        job: &str,
        tags: &[impl AsRef<str>],
    ) -> Result<Answer<Vec<(String, u64)>>, CacheError> {
        let on = self.keys.metadata();
        let mut call = Call::guarded(&RAISE_TAGS, self, on, [&on.windows].into_iter(), Some(precondition));
        call.arg(stamp.to_bytes()).arg(job).arg(&on.tag_prefix);
        for tag in tags {
            let tag = tag.as_ref();
            call.arg(tag).number(u64::from(slot(tag.as_bytes())));
        }
        call.run(self).await
    }

    /// One page of a tag set's members. The scan is over when the cursor is 0 again.
    pub async fn members(
        &self,
        precondition: &Precondition<'_>,
        job: &str,
        set: &str,
        cursor: u64,
        page: usize,
    ) -> Result<Answer<(u64, Vec<Vec<u8>>)>, CacheError> {
        let on = self.keys.metadata();
        let mut call = Call::guarded(&MEMBERS, self, on, [set].into_iter(), Some(precondition));
        call.arg(job).number(cursor).number(page as u64);
        call.run(self).await
    }

    /// Drops tag sets whose window is over, looking at up to `most` members and sets.
    ///
    /// # Errors
    /// [`CacheError`]; it may be said again.
    pub async fn drop_old_windows(&self, most: usize) -> Result<DroppedWindows, CacheError> {
        let on = self.keys.metadata();
        let mut call = Call::new(&DROP_WINDOWS, 2);
        call.arg(&on.windows).arg(&on.meta).arg(&on.tag_prefix).number(most as u64);
        let (sets, has_more) = call.run(self).await?;
        Ok(DroppedWindows { sets, has_more })
    }
}
