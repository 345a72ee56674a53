//! Work on a shard of a cluster is pinned to what the shard has adopted, which is read before anything is loaded (R20).

use std::borrow::Cow;
use std::sync::Arc;

use super::Context;
use super::on_shard::OnShard;
use crate::error::EngineError;
use crate::stores::redis::{Adopted, PreconditionFailed};

impl Context {
    /// The same for one piece of work that begins now: on a shard of a cluster its scripts name the adoptions of this moment, and it
    /// leaves alone what the shard has not adopted, which is loaded once that is. Pinned already, and on a single Redis, it is this one.
    ///
    /// # Errors
    /// [`EngineError`] where the shard cannot be asked, or its tables are lost.
    pub async fn pinned(&self) -> Result<Cow<'_, Self>, EngineError> {
        let Some(on_shard) = self.on_shard.as_ref().filter(|on_shard| !on_shard.is_pinned) else {
            return Ok(Cow::Borrowed(self));
        };
        Ok(Cow::Owned(self.pinned_to(self.adopted_now(on_shard).await?)))
    }

    /// What the shard has adopted as of now.
    pub(crate) async fn adopted_now(&self, on_shard: &OnShard) -> Result<Arc<Adopted>, EngineError> {
        let mut known = on_shard.known.lock().await;
        let read = self.redis.adopted_now(known.as_ref()).await?;
        let adopted = read.ok_or_else(|| self.on_precondition_failed(None, PreconditionFailed::Table))?;
        *known = Some(Arc::clone(&adopted));
        Ok(adopted)
    }

    /// The same for work that goes on for long, and is pinned piece by piece.
    #[must_use]
    pub(crate) fn unpinned(&self) -> Self {
        let unpinned = |on_shard: &OnShard| OnShard { is_pinned: false, ..on_shard.clone() };
        Self { on_shard: self.on_shard.as_ref().map(unpinned), ..self.clone() }
    }

    /// The same for work that takes these alone.
    pub(crate) fn pinned_to(&self, adopted: Arc<Adopted>) -> Self {
        let pinned = |on_shard: &OnShard| OnShard { is_pinned: true, ..on_shard.clone() };
        Self {
            redis: self.redis.with_adopted(adopted),
            on_shard: self.on_shard.as_ref().map(pinned),
            ..self.clone()
        }
    }
}
