//! Tags: raise, then enumerate in pages.

use super::script::{Call, DROP_WINDOWS, MEMBERS, RAISE_TAGS};
use super::{Answer, CacheError, Precondition, Redis};
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::Stamp;

impl Redis {
    /// Raises tags and answers the sets of their members with their sizes: what an older load returned under one of
    /// them is refused from now on.
    pub async fn raise_tags(
        &self,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        job: &str,
        tags: &[impl AsRef<str>],
    ) -> Result<Answer<Vec<(String, u64)>>, CacheError> {
        let mut call = Call::namespace(&RAISE_TAGS, self, precondition);
        call.arg(stamp.to_bytes()).arg(job).arg(&self.keys.metadata().tag_prefix);
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

    /// Drops up to `most` tag sets in whose window nothing can be alive; answers how many.
    pub async fn drop_old_windows(&self, most: usize) -> Result<usize, CacheError> {
        let on = self.keys.metadata();
        let mut call = Call::new(&DROP_WINDOWS, 1);
        call.arg(&on.windows).arg(&on.tag_prefix).number(most as u64);
        call.run(self).await
    }
}
