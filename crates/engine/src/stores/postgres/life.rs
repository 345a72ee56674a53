//! Lives of the primary (R2, R13): how one is recorded, and what orders two of them.

use sqlx::{AssertSqlSafe, Row as _};

use super::statement::INCARNATION;
use super::{Postgres, SourceError};

/// What is known of the life of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// Its incarnation.
    pub incarnation: String,
    /// The incarnation that this server, or the one that it was copied from, had before.
    pub predecessor: Option<String>,
    /// What tells its place among others; none: this server does not say.
    pub place: Option<Place>,
}

/// The place of a life among those of copies of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The identifier of the cluster. Copies have the same.
    pub system: String,
    /// Each promotion begins one.
    pub timeline: u32,
    /// How far the write-ahead log is on disk.
    pub flushed: u64,
}

impl Postgres {
    /// The present life.
    ///
    /// # Errors
    /// [`SourceError`]
    pub(crate) async fn life(&self) -> Result<Life, SourceError> {
        let error = |source| SourceError::new("read which life of the primary this is", source);
        let sql = format!("select {INCARNATION}, (select l.predecessor::text from cachekeeper.life l)");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&self.pool).await.map_err(error)?;
        let incarnation: Option<String> = row.try_get(0).map_err(error)?;
        let predecessor = row.try_get(1).map_err(error)?;
        let Some(incarnation) = incarnation else {
            return Err(SourceError::with(
                "read which life of the primary this is",
                super::ErrorKind::NoIncarnation,
                "no incarnation is recorded".to_owned(),
            ));
        };
        Ok(Life { incarnation, predecessor, place: self.place().await? })
    }

    /// Servers that are no ordinary ones may not have these functions, or refuse them.
    async fn place(&self) -> Result<Option<Place>, SourceError> {
        let sql = "select (pg_control_system()).system_identifier::text,
            ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int, (pg_current_wal_flush_lsn() - '0/0')::text";
        let row = match sqlx::query(sql).fetch_one(&self.pool).await {
            Ok(row) => row,
            Err(sqlx::Error::Database(_)) => return Ok(None),
            Err(source) => return Err(SourceError::new("read the timeline of the primary", source)),
        };
        let read = || {
            let (timeline, flushed): (i32, String) = (row.try_get(1)?, row.try_get(2)?);
            Ok(Place {
                system: row.try_get(0)?,
                timeline: u32::try_from(timeline).unwrap_or_default(),
                flushed: flushed.parse().unwrap_or_default(),
            })
        };
        let read: Result<Place, sqlx::Error> = read();
        read.map(Some).map_err(|source| SourceError::new("read the timeline of the primary", source))
    }

    /// Records a new incarnation where the present one is missing. Whoever is first decides; the others read it. After a crash the
    /// markers of what was not captured are some steps ahead, or back at their beginning where they are unlogged, so what was noted of
    /// them means nothing any more: whatever they show in this incarnation is news.
    pub(crate) async fn record_incarnation(&self) -> Result<(), SourceError> {
        let what = "record the incarnation";
        let error = |source| SourceError::new(what, source);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        let mut recorded = 0;
        for statement in [
            "set transaction read write",
            "delete from cachekeeper.incarnation i where i.started <> pg_postmaster_start_time() \
             or i.db <> (select d.oid from pg_database d where d.datname = current_database())",
            "insert into cachekeeper.incarnation (id, started, db) \
             select gen_random_uuid(), pg_postmaster_start_time(), d.oid from pg_database d \
             where d.datname = current_database() on conflict do nothing",
        ] {
            recorded =
                sqlx::query(statement).execute(&mut *transaction).await.map_err(error)?.rows_affected();
        }
        if 0 < recorded {
            for statement in [
                "insert into cachekeeper.life (id) select i.id from cachekeeper.incarnation i \
                 on conflict (only_row) do update set predecessor = life.id, id = excluded.id where life.id <> excluded.id",
                "update cachekeeper.feed set marker = 0, marker_of_all = 0",
                "update cachekeeper.capture set marker = 0 where marker <> 0",
            ] {
                sqlx::query(statement).execute(&mut *transaction).await.map_err(error)?;
            }
        }
        transaction.commit().await.map_err(error)
    }
}
