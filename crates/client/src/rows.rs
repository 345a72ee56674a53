//! The rows of a cache in memory, for a test to change, in the place of Postgres and a worker.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::codec::Codec;
use super::core::{Cache, Core};
use super::error::ClientError;
use super::in_memory::{InMemory, Row, Table};

/// The rows of a dataset of a cache in memory, see [`Cache::rows`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), cachekeeper_client::ClientError> {
/// use std::time::Duration;
/// use cachekeeper_client::Cache;
///
/// let cache = Cache::in_memory().dataset("product", "product:{id}", Duration::from_secs(300))?.build();
/// let rows = cache.rows::<String>("product")?;
/// rows.put(&["7"], &"Chair".to_owned(), &["category:3"])?;
/// let products = cache.dataset("product")?.space::<u32, String>().build()?;
/// assert_eq!(products.get(&7).await?.as_deref(), Some("Chair"));
/// rows.put(&["7"], &"Table".to_owned(), &["category:3"])?; // as a commit that a worker has seen
/// assert_eq!(products.get(&7).await?.as_deref(), Some("Table"));
/// assert_eq!(rows.loads(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Rows<V> {
    core: Arc<Core>,
    table: Arc<Table>,
    store: InMemory,
    codec: Codec,
    values: PhantomData<fn(V)>,
}

impl Cache {
    /// The rows of a dataset of a cache in memory, for a test to change.
    ///
    /// # Errors
    /// [`ClientError::NoDataset`]; [`ClientError::NoSource`] where the datasets come from Postgres.
    pub fn rows<V: Serialize>(&self, dataset: &str) -> Result<Rows<V>, ClientError> {
        let core = Arc::clone(&self.core);
        let Some(store) = core.backend.in_memory().cloned() else { return Err(ClientError::NoSource) };
        let no_dataset = || ClientError::NoDataset(dataset.to_owned());
        let position = core.source.position_of_name(dataset).ok_or_else(no_dataset)?;
        let table = core.source.tables().get(position).cloned().ok_or_else(no_dataset)?;
        let codec = core.classes.datasets.get(position).ok_or_else(no_dataset)?.codec;
        Ok(Rows { core, table, store, codec, values: PhantomData })
    }
}

impl<V: Serialize> Rows<V> {
    /// Inserts or updates the row with these values of the key's placeholders, as a commit that a worker has followed: an entry that
    /// is in the cache is replaced.
    ///
    /// # Errors
    /// [`ClientError::Key`], [`ClientError::Encode`].
    pub fn put(&self, id: &[&str], value: &V, tags: &[&str]) -> Result<(), ClientError> {
        let key = self.key(id)?;
        let encoded = self.codec.encode(value);
        let value = encoded.map_err(|reason| ClientError::Encode { key: key.clone(), reason })?;
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.table.commit(&self.store, &key, Some(Row { value, tags }));
        self.core.leave(&[&key]);
        Ok(())
    }

    /// Deletes the row, and the entry with it.
    ///
    /// # Errors
    /// [`ClientError::Key`].
    pub fn remove(&self, id: &[&str]) -> Result<(), ClientError> {
        let key = self.key(id)?;
        self.table.commit(&self.store, &key, None);
        self.core.leave(&[&key]);
        Ok(())
    }

    /// How often rows were loaded.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.table.loads.load(Ordering::Relaxed)
    }

    fn key(&self, id: &[&str]) -> Result<String, ClientError> {
        let problem = "has another number of parts than the dataset's key, or an empty one";
        self.table.key.render(id).map_err(|_unreadable| ClientError::Key { key: id.join(" "), problem })
    }
}
