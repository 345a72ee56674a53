//! Whether Postgres has room for the connections of a worker.

use super::Check;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::{ConnectionLimit, ConnectionRoom, Postgres};

impl Check<'_> {
    /// A worker with fewer works, until all of them are wanted at once: then loads fail.
    pub(super) async fn check_room(&mut self) -> Result<(), EngineError> {
        let ConnectionRoom { most, left, limit } = self.context.postgres.connection_room().await?;
        let own = self.config.postgres.max_connections;
        let needed = Postgres::most_connections(own, self.context.feed.is_on);
        if i64::from(needed) <= left {
            return Ok(());
        }
        let (whose, help) = match limit {
            ConnectionLimit::Role(role) => (
                format!("the limit of the role {role} is {most}"),
                format!("alter role {role} connection limit {}", i64::from(needed) + most - left),
            ),
            ConnectionLimit::Database(database) => (
                format!("the limit of the database {database} is {most}"),
                "alter database … connection limit".to_owned(),
            ),
            ConnectionLimit::Server => (
                format!("max_connections of the server leaves {most} to such roles"),
                "raise it there, and restart the server".to_owned(),
            ),
        };
        let message = format!(
            "a worker has up to {needed} connections (max_connections is {own}, the rest are of short loads, the feed and a backfill), and \
             Postgres has room for {}: {whose}, {} are in use",
            left.max(0),
            most - left
        );
        self.warning("postgres.max_connections", message, format!("{help}; or lower max_connections here"));
        Ok(())
    }
}
