//! The incarnation: one uninterrupted life of the primary.

use sqlx::Row as _;

use super::{ErrorKind, Postgres, SourceError};
use cachekeeper_protocol::stamp::Snapshot;

/// The id of this server's present life, or null: valid only where the recorded start time and database are this
/// server's (R2). A standby refuses to read it.
pub(super) const INCARNATION: &str = "(select i.id::text from cachekeeper.incarnation i \
     where i.started = pg_postmaster_start_time() \
     and i.db = (select d.oid from pg_database d where d.datname = current_database()))";

/// A snapshot of the moment and the incarnation it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The incarnation.
    pub incarnation: String,
}

impl Postgres {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// [`SourceError`]; [`ErrorKind::NoIncarnation`] after the primary restarted, until
    /// [`Self::record_incarnation`].
    pub async fn poll(&self) -> Result<Poll, SourceError> {
        let what = "take a snapshot";
        let sql = sqlx::AssertSqlSafe(format!("select pg_current_snapshot()::text, {INCARNATION}"));
        let row =
            sqlx::query(sql).fetch_one(&self.pool).await.map_err(|source| SourceError::new(what, source))?;
        let snapshot: String = row.try_get(0).map_err(|source| SourceError::new(what, source))?;
        let incarnation: Option<String> = row.try_get(1).map_err(|source| SourceError::new(what, source))?;
        read_stamped(what, &snapshot, incarnation)
    }

    /// Records a new incarnation where the present one is missing. Whoever is first decides; the others read it.
    pub(crate) async fn record_incarnation(&self) -> Result<(), SourceError> {
        let what = "record the incarnation";
        let error = |source| SourceError::new(what, source);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        for statement in [
            "set transaction read write",
            "delete from cachekeeper.incarnation i where i.started <> pg_postmaster_start_time() \
             or i.db <> (select d.oid from pg_database d where d.datname = current_database())",
            "insert into cachekeeper.incarnation (id, started, db) \
             select gen_random_uuid(), pg_postmaster_start_time(), d.oid from pg_database d \
             where d.datname = current_database() on conflict do nothing",
        ] {
            sqlx::query(statement).execute(&mut *transaction).await.map_err(error)?;
        }
        transaction.commit().await.map_err(error)
    }
}

pub(super) fn read_stamped(
    what: &'static str,
    snapshot: &str,
    incarnation: Option<String>,
) -> Result<Poll, SourceError> {
    let Some(incarnation) = incarnation else {
        return Err(SourceError::with(
            what,
            ErrorKind::NoIncarnation,
            "no incarnation is recorded".to_owned(),
        ));
    };
    let snapshot = snapshot.parse().map_err(|stamp: cachekeeper_protocol::stamp::StampError| {
        SourceError::with(what, ErrorKind::Reply, stamp.to_string())
    })?;
    Ok(Poll { snapshot, incarnation })
}
