//! What the user may not do: commands are queued in a transaction, which is given up. Redis looks at the rights when it queues.

use std::time::Duration;

use redis::{AsyncConnectionConfig, ProtocolVersion, RedisError};

use super::{CacheError, Denied, Redis};

const WHAT: &str = "look at the user's rights";
const WITHIN: Duration = Duration::from_secs(5);
/// These cannot be queued, or end the transaction.
const UNQUEUED: [&str; 5] = ["multi", "exec", "discard", "subscribe", "unsubscribe"];

impl Redis {
    /// Which of these commands would be refused for want of rights, by their positions. None is carried out.
    ///
    /// # Errors
    /// [`CacheError`] where Redis does not answer.
    pub async fn may_not(&self, commands: &[Vec<String>]) -> Result<Vec<(usize, Denied)>, CacheError> {
        let asked = tokio::time::timeout(WITHIN, self.queue(commands)).await;
        asked.map_err(|_elapsed| CacheError::timed_out(WHAT))?
    }

    async fn queue(&self, commands: &[Vec<String>]) -> Result<Vec<(usize, Denied)>, CacheError> {
        let failed = |source| CacheError::new(WHAT, source);
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(WITHIN));
        // A connection of its own: nobody else's command may get into the transaction.
        let opened = self.connection.open_another(config, ProtocolVersion::RESP2).await;
        let mut connection = opened.map_err(failed)?.connection;
        if let Err(error) = redis::cmd("MULTI").query_async::<()>(&mut connection).await {
            // Without it, what follows would be carried out.
            let position =
                commands.iter().position(|words| words.first().is_some_and(|word| word == "multi"));
            return match (position, Denied::of(&error)) {
                (Some(position), Some(denied)) => Ok(vec![(position, denied)]),
                _ => Err(failed(error)),
            };
        }
        let queued = commands
            .iter()
            .enumerate()
            .filter(|(_, words)| words.first().is_some_and(|word| !UNQUEUED.contains(&word.as_str())));
        let queued: Vec<(usize, &Vec<String>)> = queued.collect();
        let mut pipeline = redis::Pipeline::with_capacity(queued.len());
        pipeline.ignore_errors();
        for (_, words) in &queued {
            let Some((name, rest)) = words.split_first() else { continue };
            pipeline.cmd(name);
            for word in rest {
                pipeline.arg(word);
            }
        }
        let replies: Vec<Result<redis::Value, RedisError>> =
            pipeline.query_async(&mut connection).await.map_err(failed)?;
        // The connection ends here, and with it the transaction.
        let denied = queued
            .iter()
            .zip(replies)
            .filter_map(|((position, _), reply)| Some((*position, Denied::of(&reply.err()?)?)));
        Ok(denied.collect())
    }
}
