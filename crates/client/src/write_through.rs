//! Writes: Postgres first, then Redis (row 9 of the seed's patterns).

use serde::de::DeserializeOwned;
use sqlx::PgConnection;

use super::core::{Cache, Core};
use super::dataset::DatasetCache;
use super::error::ClientError;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::write::{Parameters, WriteEffects, WriteError, Written, settle, write, write_in};

impl DatasetCache {
    /// Carries out the dataset's write statement in a transaction, and stores what it touched. The statement may touch many
    /// entries, of other datasets too.
    ///
    /// A caller who is dropped after the commit leaves the rest to the change feed.
    ///
    /// # Errors
    /// [`WriteError`]: Postgres has nothing of it (but see [`WriteError::Unknown`]), and Redis is as it was. Redis being down
    /// is no error: [`Written::cache`] says so.
    pub async fn write(&self, parameters: &Parameters) -> Result<Written, WriteError> {
        let written = write(self.postgres()?, self.name(), parameters).await;
        if let Ok(written) = &written {
            self.cache().core.leave_written(written);
        }
        written
    }

    /// Carries out the write statement in the caller's own transaction; several may follow each other ([`WriteEffects::add`]). Call
    /// [`Cache::settle`] after the commit.
    ///
    /// # Errors
    /// [`WriteError`]; roll the transaction back then.
    pub async fn write_in(
        &self,
        connection: &mut PgConnection,
        parameters: &Parameters,
    ) -> Result<WriteEffects, WriteError> {
        write_in(self.postgres()?, connection, self.name(), parameters).await
    }

    fn postgres(&self) -> Result<&Context, WriteError> {
        let problem =
            "it is one of a cache in memory, which has no statements: put its rows by `Cache::rows`";
        let unusable =
            || WriteError::Unusable { dataset: self.name().to_owned(), problem: problem.to_owned() };
        self.context().ok_or_else(unusable)
    }

    /// The value of an entry that was written; none where it was deleted or is not among them.
    ///
    /// # Errors
    /// [`ClientError::Decode`], [`ClientError::Key`].
    pub fn written<T: DeserializeOwned>(
        &self,
        written: &Written,
        id: &[&str],
    ) -> Result<Option<T>, ClientError> {
        let key = self.key(id)?;
        let bytes = written.values.get(&key).cloned().flatten();
        self.typed(&key, bytes.map(Into::into))
    }
}

impl Core {
    /// What was written through here is not served as it was before.
    fn leave_written(&self, written: &Written) {
        let keys: Vec<&String> = written.values.keys().collect();
        self.leave(&keys);
        // The same rows may be in entries of other datasets, which were seen to as well.
        self.leave_datasets();
    }
}

impl Cache {
    /// Stores what a transaction touched, after its commit.
    ///
    /// # Errors
    /// [`ClientError::NoSource`] where the cache was opened without datasets.
    pub async fn settle(&self, effects: WriteEffects) -> Result<Written, ClientError> {
        let context = self.core.source.context()?;
        let written = settle(context, effects).await;
        self.core.leave_written(&written);
        Ok(written)
    }
}
