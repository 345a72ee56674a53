//! Tags: raise, then enumerate in pages.

use super::script::{Answer, Call, DROP_WINDOWS, MEMBERS, RAISE_TAGS, Standing};
use super::{CacheError, Redis};
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::Stamp;

impl Redis {
    /// Raises tags and answers the sets of their members with their sizes: what an older load returned under one of
    /// them is refused from now on.
    pub async fn raise_tags(
        &self,
        standing: &Standing<'_>,
        stamp: Stamp,
        job: &str,
        tags: &[impl AsRef<str>],
    ) -> Result<Answer<Vec<(String, u64)>>, CacheError> {
        let mut call = Call::fenced(&RAISE_TAGS, self, 0);
        call.standing(standing);
        call.arg(&stamp.to_bytes()).arg(job.as_bytes()).arg(self.keys.tag_prefix().as_bytes());
        for tag in tags {
            let tag = tag.as_ref();
            call.arg(tag.as_bytes()).number(u64::from(slot(tag.as_bytes())));
        }
        match call.run_fenced(self).await? {
            Answer::Done(reply) => Ok(Answer::Done(call.read(reply)?)),
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
        }
    }

    /// One page of a tag set's members. The walk is over when the cursor is 0 again.
    pub async fn members(
        &self,
        standing: &Standing<'_>,
        job: &str,
        set: &str,
        cursor: u64,
        page: usize,
    ) -> Result<Answer<(u64, Vec<Vec<u8>>)>, CacheError> {
        let mut call = Call::fenced(&MEMBERS, self, 1);
        call.arg(set.as_bytes());
        call.standing(standing);
        call.arg(job.as_bytes()).number(cursor).number(page as u64);
        match call.run_fenced(self).await? {
            Answer::Done(reply) => Ok(Answer::Done(call.read(reply)?)),
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
        }
    }

    /// Drops up to `most` tag sets in whose window nothing can be alive; answers how many.
    pub async fn drop_old_windows(&self, most: usize) -> Result<usize, CacheError> {
        let mut call = Call::new(&DROP_WINDOWS, 1);
        call.arg(self.keys.windows.as_bytes()).arg(self.keys.tag_prefix().as_bytes()).number(most as u64);
        let reply = call.run(self).await?;
        call.read(reply)
    }

    /// Bytes of all tag sets of one tag, for reports.
    pub async fn memory_of(&self, key: &str) -> Result<u64, CacheError> {
        let command = redis::cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0).to_owned();
        let bytes: Option<u64> = self.command("measure a key", &command).await?;
        Ok(bytes.unwrap_or_default())
    }
}
