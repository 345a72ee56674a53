//! Writing to a space.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Space, SpaceKey};
use crate::error::ClientError;
use crate::policy::Lifetime;
use crate::set_many::{SetManyOptions, SetReport};

impl<K, V> Space<K, V>
where
    K: SpaceKey + ?Sized,
    V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    /// Stores a value, for as long and under the tags that the policy says. Fills of the key that began before are refused.
    ///
    /// # Errors
    /// As [`crate::Cache::set`].
    pub async fn set(&self, key: &K, value: &V) -> Result<(), ClientError> {
        let key = self.key(key)?;
        let life = Lifetime::For(self.policy.stored_life(&key));
        self.cache.set_with_tags(&key, value, life, &self.policy.tags).await
    }

    /// Stores values, as [`Self::set`] does, in as few round trips as it takes. What fails, fails by key.
    ///
    /// # Errors
    /// [`ClientError::Key`] where a key cannot be rendered; then nothing was stored.
    pub async fn set_many<'a>(
        &self,
        items: impl IntoIterator<Item = (&'a K, &'a V)>,
    ) -> Result<SetReport, ClientError>
    where
        K: 'a,
    {
        let keyed = items.into_iter().map(|(key, value)| Ok((self.key(key)?, value)));
        let keyed: Vec<(String, &V)> = keyed.collect::<Result<_, ClientError>>()?;
        let options = SetManyOptions::ttl(Lifetime::Forever);
        let life_of = |key: &str| Lifetime::For(self.policy.stored_life(key)).millis();
        Ok(self.cache.core.set_items(&keyed, options, &life_of, &self.policy.tags).await)
    }

    /// Gives a value another lifetime, and leaves it as it is; answers whether it was there.
    ///
    /// # Errors
    /// As [`crate::Cache::expire`].
    pub async fn expire(&self, key: &K, life: impl Into<Lifetime>) -> Result<bool, ClientError> {
        self.cache.expire(&self.key(key)?, life).await
    }

    /// Deletes a value; answers whether it was there.
    ///
    /// # Errors
    /// As [`crate::Cache::delete`].
    pub async fn delete(&self, key: &K) -> Result<bool, ClientError> {
        self.cache.delete(&self.key(key)?).await
    }

    /// Deletes values; answers how many were there.
    ///
    /// # Errors
    /// As [`crate::Cache::delete`].
    pub async fn delete_many(&self, keys: &[&K]) -> Result<u64, ClientError> {
        let keys: Vec<String> = keys.iter().map(|key| self.key(key)).collect::<Result<_, _>>()?;
        self.cache.delete_many(&keys).await
    }
}
