//! The outbox's upkeep: it stays small, and what it could not take is told (R17).

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, Row as _};

use super::statement::INCARNATION;
use super::{Postgres, SourceError};
use cachekeeper_protocol::stamp::Snapshot;

/// A snapshot whose end is behind every transaction that has an id by now. That of a plain snapshot is only behind those that
/// have ended: an open transaction may have that very id (X43).
pub(super) const ENDED_BY: &str =
    "concat(pg_current_xact_id()::text::bigint + 1, ':', pg_current_xact_id()::text::bigint + 1, ':')";
/// Rows that are looked at to be deleted at once: short transactions, and no lock that anybody waits for.
const AT_ONCE: i64 = 20_000;
/// Most rounds of one trimming.
const ROUNDS: usize = 50;

impl Postgres {
    /// The worker has caught up: the count of captured keys begins again.
    pub(crate) async fn reset_outbox_count(&self) -> Result<(), SourceError> {
        self.write("count the outbox anew", "select setval('cachekeeper.outbox_count', 1, false)").await
    }

    /// Rows of the outbox were lost: notes which transactions may have written to it, and still be open.
    ///
    /// # Errors
    /// [`SourceError`]; to be repeated then.
    pub(crate) async fn note_lost_rows(&self) -> Result<(), SourceError> {
        let note = format!("update cachekeeper.feed set overflow = {ENDED_BY}, overflow_in = {INCARNATION}");
        self.write("note whose changes were lost", &note).await
    }

    /// Everything that may have missed the outbox has ended: what came before now is not in it.
    pub(crate) async fn end_lost_rows(&self) -> Result<(), SourceError> {
        let sql = format!(
            "update cachekeeper.feed set horizon = pg_current_snapshot()::text, horizon_in = {INCARNATION}, \
             overflow = null, overflow_in = null where overflow <> 'pending' \
             and pg_snapshot_xmin(pg_current_snapshot()) >= pg_snapshot_xmax(overflow::pg_snapshot)"
        );
        self.write("end the wait for those whose changes were lost", &sql).await
    }

    async fn write(&self, what: &'static str, sql: &str) -> Result<(), SourceError> {
        let error = |source| SourceError::new(what, source);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        transaction.execute("set transaction read write").await.map_err(error)?;
        transaction.execute(AssertSqlSafe(sql.to_owned())).await.map_err(error)?;
        transaction.commit().await.map_err(error)
    }

    /// How many changes whoever has this cursor has not seen, at most so many.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked, or not within [`super::QUICK_MAX`].
    pub async fn changes_behind(&self, cursor: &str, most: u32) -> Result<u64, SourceError> {
        let sql = "select count(*) from (select from cachekeeper.outbox o where pg_snapshot_xmin($1::pg_snapshot) <= o.xid
            and not pg_visible_in_snapshot(o.xid, $1::pg_snapshot) limit $2) waiting";
        let counted = sqlx::query_scalar::<_, i64>(sql).bind(cursor).bind(i64::from(most));
        let counted = counted.fetch_one(&self.quick).await;
        let counted = counted.map_err(|source| SourceError::new("count the changes that wait", source))?;
        Ok(u64::try_from(counted).unwrap_or_default())
    }

    /// Deletes the oldest rows of the outbox that every reader has seen (those before `cursor`) and that are older than the
    /// retention (R17); answers how many. Beyond half of `max_outbox` KiB the retention is not kept, nor for rows whose date is as
    /// far ahead: the server's clock was set, and they would stay for as long.
    pub async fn trim_outbox(
        &self,
        cursor: &Snapshot,
        retention: Duration,
        max_outbox: u64,
    ) -> Result<u64, SourceError> {
        let what = "trim the outbox";
        let error = |source| SourceError::new(what, source);
        let micros = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
        let max_outbox = i64::try_from(max_outbox).unwrap_or(i64::MAX);
        let mut trimmed = 0;
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        let delete = "with old as (
                select o.ctid, o.at from cachekeeper.outbox o
                where o.xid < pg_snapshot_xmin($1::pg_snapshot) order by o.xid limit $4
            ), gone as (
                delete from cachekeeper.outbox o using old where o.ctid = old.ctid
                    and (old.at not between now() - $2 * interval '1 microsecond' and now() + $2 * interval '1 microsecond'
                        or pg_relation_size('cachekeeper.outbox'::regclass) / 512 > $3) returning 1
            ) select count(*), (select count(*) from old) from gone";
        for _ in 0..ROUNDS {
            let mut transaction = connection.begin().await.map_err(error)?;
            let delete =
                sqlx::query(delete).bind(cursor.as_str()).bind(micros).bind(max_outbox).bind(AT_ONCE);
            let row = delete.fetch_one(&mut *transaction).await.map_err(error)?;
            let gone: i64 = row.try_get(0).map_err(error)?;
            let seen: i64 = row.try_get(1).map_err(error)?;
            if 0 < gone {
                // In the same transaction: whoever does not find the rows finds the note.
                let note = format!(
                    "update cachekeeper.feed set horizon = $1, horizon_in = {INCARNATION} where horizon is null \
                     or horizon_in is distinct from {INCARNATION} \
                     or pg_snapshot_xmax(horizon::pg_snapshot) <= pg_snapshot_xmax($1::pg_snapshot)"
                );
                let note = sqlx::query(AssertSqlSafe(note)).bind(cursor.as_str());
                note.execute(&mut *transaction).await.map_err(error)?;
            }
            transaction.commit().await.map_err(error)?;
            trimmed += u64::try_from(gone).unwrap_or_default();
            if gone < seen || seen < AT_ONCE {
                break;
            }
        }
        Ok(trimmed)
    }
}
