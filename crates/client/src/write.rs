//! Sets, deletes and tags.

use serde::Serialize;
use tokio::time::Instant;

use super::core::{Cache, Core, check_key};
use super::error::ClientError;
use super::policy::Lifetime;
use super::source::NotInvalidated;
use cachekeeper_engine::stores::redis::{Answer, CounterRule, Refusal};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::event::{Event, Op};

impl Cache {
    /// Stores a value. Fills of the key that began before are refused.
    ///
    /// # Errors
    /// [`ClientError`]. Where Redis cannot be asked, or takes no writes at the moment, the old value is noted for deletion. Where Redis has no memory for the
    /// new one, the old one is deleted: it is no longer right.
    pub async fn set<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        life: impl Into<Lifetime>,
    ) -> Result<(), ClientError> {
        self.set_with_tags(key, value, life, &[] as &[&str]).await
    }

    /// Stores a value and makes it a member of each tag, in one step. What it was tagged with before and is not any
    /// more, it leaves within one window of the tag's (a quarter of the longest life); until then it may be deleted
    /// once too often.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub async fn set_with_tags<T: Serialize + ?Sized>(
        &self,
        key: &str,
        value: &T,
        life: impl Into<Lifetime>,
        tags: &[impl AsRef<str>],
    ) -> Result<(), ClientError> {
        self.core.source.learn_types().await;
        self.core.check_own(key)?;
        let codec = self.core.class_of(key).codec;
        let bytes =
            codec.encode(value).map_err(|reason| ClientError::Encode { key: key.to_owned(), reason })?;
        self.set_bytes(key, &bytes, life, tags).await
    }

    /// Stores bytes as they are.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub async fn set_bytes(
        &self,
        key: &str,
        bytes: &[u8],
        life: impl Into<Lifetime>,
        tags: &[impl AsRef<str>],
    ) -> Result<(), ClientError> {
        self.core.source.learn_types().await;
        self.core.check_own(key)?;
        let mut batch = EntryBatch::default();
        let position = batch.push(key, bytes, life.into().millis());
        tags.iter().for_each(|tag| batch.tag(position, tag.as_ref()));
        self.core.leave(&[key]);
        let (class, began) = (self.core.class_of(key), Instant::now());
        let stored = self.core.set_now(&batch).await;
        self.core.near.remove(&[key]);
        self.core.report_slow("set", key, &class, began.elapsed());
        stored
    }

    /// Deletes an entry; answers whether it was there. Loads of the key that began before are not stored any more, and
    /// who comes from now on does not wait for them.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Unavailable`] with `is_noted`: for reads through this cache the key is missing from now on, and it is
    /// deleted as soon as Redis can be asked.
    pub async fn delete(&self, key: &str) -> Result<bool, ClientError> {
        self.delete_many(&[key]).await.map(|deleted| 0 < deleted)
    }

    /// Gives an entry another lifetime, and leaves its value as it is; answers whether it was there. One that is over deletes.
    ///
    /// A tag reaches an entry for as long as the entry was stored for: what has tags and is to live longer is set anew.
    ///
    /// # Errors
    /// As [`Self::delete`]; [`ClientError::OfDataset`]: the worker decides how long such an entry lives.
    pub async fn expire(&self, key: &str, life: impl Into<Lifetime>) -> Result<bool, ClientError> {
        self.core.source.learn_types().await;
        self.core.check_own(key)?;
        match life.into().millis() {
            0 => self.delete(key).await,
            life => {
                let expire = self.core.backend.expire(key, life);
                let is_there = self.core.ask("give an entry another lifetime", expire).await;
                // What is near would end when it was to end before.
                self.core.near.remove(&[key]);
                is_there
            }
        }
    }

    /// Deletes entries; answers how many were there.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub async fn delete_many(&self, keys: &[impl AsRef<str>]) -> Result<u64, ClientError> {
        keys.iter().try_for_each(|key| check_key(key.as_ref()))?;
        self.core.leave(keys);
        let deleted = self.delete_now(keys).await;
        self.core.near.remove(keys);
        deleted
    }

    async fn delete_now(&self, keys: &[impl AsRef<str>]) -> Result<u64, ClientError> {
        let (of_datasets, own): (Vec<String>, Vec<String>) = keys
            .iter()
            .map(|key| key.as_ref().to_owned())
            .partition(|key| self.core.source.position_of(key).is_some());
        let mut deleted = 0;
        if !own.is_empty() {
            deleted += self.core.invalidate(&own, &[]).await?;
        }
        if !of_datasets.is_empty() {
            deleted += self.core.delete_of_datasets(of_datasets).await?;
        }
        Ok(deleted)
    }

    /// Invalidates every member of tags: an application's own are deleted, those of datasets as their `on_change`
    /// says. Where this cache has no datasets, workers are told to see to theirs. Answers how many were deleted or
    /// loaded again here.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Unavailable`] with `is_noted`: it is done as soon as Redis can be asked. Until then members can be
    /// read as they are, where Redis answers reads: which they are, only Redis knows.
    pub async fn invalidate_tags(&self, tags: &[impl AsRef<str>]) -> Result<u64, ClientError> {
        let tags: Vec<String> = tags.iter().map(|tag| tag.as_ref().to_owned()).collect();
        if tags.is_empty() {
            return Ok(0);
        }
        self.core.flights.detach_unguarded();
        self.core.leave_datasets();
        let deleted = self.core.invalidate(&[], &tags).await?;
        let by_source = self.core.source.invalidate_tags(&tags).await;
        self.core.leave_datasets();
        match by_source {
            Ok(by_source) => Ok(deleted + by_source),
            Err(error) => {
                let event = Event { tags, ..Event::default() };
                self.core.hand_over(error, &event).await.map(|()| deleted)
            }
        }
    }
}

impl Core {
    /// Stores what is newest.
    pub async fn set_now(&self, batch: &EntryBatch) -> Result<(), ClientError> {
        let keys: Vec<&str> = batch.iter().map(|entry| entry.key).collect();
        let stored = self.ask("store entries", self.backend.fill(batch, CounterRule::Raise, None)).await;
        self.drop_windows_of(batch);
        match stored {
            Ok(Answer::Done(_) | Answer::Failed(_)) => {
                self.breaker.settle(&keys);
                Ok(())
            }
            Err(error) => Err(self.not_replaced(error, &keys).await),
        }
    }

    /// Values could not be replaced: the old ones are deleted, or noted for deletion where that is not possible now. Answers the
    /// error for the caller.
    pub async fn not_replaced(&self, error: ClientError, keys: &[&str]) -> ClientError {
        if error.may_pass() {
            return self.note(error, keys, &[]);
        }
        if matches!(&error, ClientError::Refused(refused) if refused.refusal == Refusal::Full) {
            self.forget_what_is_wrong(keys).await;
        }
        error
    }

    /// Old values that could not be replaced are deleted.
    pub async fn forget_what_is_wrong(&self, keys: &[&str]) {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        if let Err(error) = self.invalidate(&keys, &[]).await {
            tracing::debug!(%error, "values that could not be replaced are deleted later");
        }
    }

    /// A dataset's entries are deleted under a stamp, so that no older load can bring them back.
    async fn delete_of_datasets(&self, keys: Vec<String>) -> Result<u64, ClientError> {
        match self.source.delete(&keys).await {
            Ok(deleted) => Ok(deleted),
            Err(error) => {
                let deleted = self.invalidate(&keys, &[]).await?;
                let event = Event { keys, op: Some(Op::Delete), ..Event::default() };
                self.hand_over(error, &event).await.map(|()| deleted)
            }
        }
    }

    /// What could not be ordered here, because Postgres gave no stamp, is left to the workers.
    async fn hand_over(&self, error: NotInvalidated, event: &Event) -> Result<(), ClientError> {
        match error {
            NotInvalidated::Redis(error) => Err(self.note(error.into(), &event.keys, &event.tags)),
            NotInvalidated::NoStamp => self.announce(event).await.map(drop),
            NotInvalidated::Failed(error) => Err(error),
        }
    }
}
