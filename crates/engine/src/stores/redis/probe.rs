//! What the user may not do: commands are queued in a transaction, which is given up. Redis looks at the rights when it queues.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisError};

use super::{CacheError, Denied, Redis};

const WHAT: &str = "look at the user's rights";
const WITHIN: Duration = Duration::from_secs(5);
/// How a command is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Before the transaction: there it does nothing, and the rights are looked at all the same.
    Outside,
    /// It begins the transaction.
    First,
    /// It is queued.
    Queued,
}

impl Kind {
    fn of(words: &[String]) -> Self {
        match words.first().map(String::as_str) {
            Some("exec" | "discard") => Self::Outside,
            Some("multi") => Self::First,
            _ => Self::Queued,
        }
    }
}

/// A command, by its position among those that are asked for.
type Asked<'a> = (usize, &'a [String]);

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
        let of_kind = |kind: Kind| -> Vec<Asked<'_>> {
            let all = commands.iter().map(Vec::as_slice).enumerate();
            all.filter(|(_, words)| Kind::of(words) == kind).collect()
        };
        let mut denied = ask(&mut connection, &of_kind(Kind::Outside)).await?;
        if let Err(error) = redis::cmd("MULTI").query_async::<()>(&mut connection).await {
            // Without it, what follows would be carried out.
            let Some(why) = Denied::of(&error) else { return Err(failed(error)) };
            denied.extend(of_kind(Kind::First).iter().map(|(position, _)| (*position, why.clone())));
            return Ok(denied);
        }
        denied.extend(ask(&mut connection, &of_kind(Kind::Queued)).await?);
        // The connection ends here, and with it the transaction.
        Ok(denied)
    }
}

/// Sends commands, and says which of them were refused for want of rights.
async fn ask(
    connection: &mut MultiplexedConnection,
    commands: &[Asked<'_>],
) -> Result<Vec<(usize, Denied)>, CacheError> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::Pipeline::with_capacity(commands.len());
    pipeline.ignore_errors();
    for (name, rest) in commands.iter().filter_map(|(_, words)| words.split_first()) {
        pipeline.cmd(name).arg(rest);
    }
    let replies: Vec<Result<redis::Value, RedisError>> =
        pipeline.query_async(connection).await.map_err(|source| CacheError::new(WHAT, source))?;
    let replies = commands.iter().zip(replies);
    Ok(replies.filter_map(|((position, _), reply)| Some((*position, Denied::of(&reply.err()?)?))).collect())
}
