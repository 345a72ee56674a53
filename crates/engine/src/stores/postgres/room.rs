//! How many connections more the server lets this role have.

use sqlx::Row as _;

use super::connection::QUICK_CONNECTIONS;
use super::{Postgres, SourceError};

/// Connections that the change feed has at most.
const OF_FEED: u32 = 7;

/// Who keeps a role from more connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionLimit {
    /// The role's own limit.
    Role(String),
    /// That of the database.
    Database(String),
    /// `max_connections` of the server, less what is kept for others.
    Server,
}

/// Room for connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRoom {
    /// How many there may be, whoever has them.
    pub most: i64,
    /// How many are left for a worker: those that workers of this role have are theirs.
    pub left: i64,
    /// What decides.
    pub limit: ConnectionLimit,
}

/// Sessions of clients: what else is listed has no database, or no role. Those of the driver's name are workers' and libraries', of which
/// one is to be replaced by another.
const ROOM: &str = "
    with s as (
        select a.datid = d.oid as here, a.usesysid = r.oid as own,
            a.usesysid = r.oid and a.application_name = current_setting('application_name') as ours
        from pg_catalog.pg_stat_activity a, pg_catalog.pg_roles r, pg_catalog.pg_database d
        where a.datid is not null and a.usesysid is not null
            and r.rolname = session_user and d.datname = current_database()
    )
    select r.rolname::text, d.datname::text, r.rolsuper, r.rolconnlimit::int8, d.datconnlimit::int8,
        current_setting('max_connections')::int8, current_setting('superuser_reserved_connections')::int8
            + coalesce(current_setting('reserved_connections', true)::int8, 0),
        (select count(*) from s where own and not ours), (select count(*) from s where here and not ours),
        (select count(*) from s where not ours)
    from pg_catalog.pg_roles r, pg_catalog.pg_database d
    where r.rolname = session_user and d.datname = current_database()";

impl Postgres {
    /// How many connections a worker of these settings has at most.
    #[must_use]
    pub fn most_connections(max_connections: u32, follows_changes: bool) -> u32 {
        let of_feed = if follows_changes { OF_FEED } else { 0 };
        // One for a backfill.
        max_connections + QUICK_CONNECTIONS.min(max_connections) + of_feed + 1
    }

    /// The limit that leaves least room.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn connection_room(&self) -> Result<ConnectionRoom, SourceError> {
        let error = |source| SourceError::new("count the connections", source);
        let row = sqlx::query(ROOM).fetch_one(&self.pool).await.map_err(error)?;
        let number = |at: usize| row.try_get::<i64, _>(at).map_err(error);
        let is_superuser: bool = row.try_get(2).map_err(error)?;
        let (all, reserved) = (number(5)?, if is_superuser { 0 } else { number(6)? });
        let mut rooms = vec![ConnectionRoom {
            most: all - reserved,
            left: all - reserved - number(9)?,
            limit: ConnectionLimit::Server,
        }];
        let role = ConnectionLimit::Role(row.try_get(0).map_err(error)?);
        let database = ConnectionLimit::Database(row.try_get(1).map_err(error)?);
        for (limit, most, used) in [(role, number(3)?, number(7)?), (database, number(4)?, number(8)?)] {
            // Below 0 there is none, and none holds for a superuser.
            if 0 <= most && !is_superuser {
                rooms.push(ConnectionRoom { most, left: most - used, limit });
            }
        }
        let least = rooms.into_iter().min_by_key(|room| room.left);
        least.ok_or_else(|| error(sqlx::Error::RowNotFound))
    }
}
