//! What was not captured for a while: the kill switch, and triggers that could not write. It is made good only once nobody
//! is left who may have written uncaptured.

use std::collections::{BTreeSet, HashMap};

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, Row as _};

use super::super::session::Session;
use super::WAS_PREPARED_BEFORE;
use super::function::{CaptureLimits, Definition};
use super::install::watched_columns;
use crate::stores::postgres::fingerprint::{OWN_OBJECTS, OWN_SEQUENCES};
use crate::stores::postgres::outbox::ENDED_BY;
use crate::stores::postgres::statement::INCARNATION;
use crate::stores::postgres::{Postgres, SourceError};

/// The transactions that hold a lock of writers on the tree of capture `c`. A statement under way may have read the functions
/// as they were, and have no transaction id yet, so a snapshot does not know it.
const HOLDERS: &str = "array(
    with recursive tree(rel) as (
        select c.root union select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.rel
    )
    select distinct l.virtualtransaction from pg_locks l join tree t on t.rel = l.relation
    where l.locktype = 'relation' and l.pid is distinct from pg_backend_pid()
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))";

/// What triggers move where they could not write: one marker together with that of a capture, one for all captures.
pub(in crate::stores::postgres) const MARKERS: &str = "(select case when is_called then last_value else 0 end from cachekeeper.uncaptured) \
     + (select case when is_called then last_value else 0 end from cachekeeper.uncaptured_0)";

impl Postgres {
    /// The kill switch: without any lock on a table the triggers do nothing from now on, or something again.
    pub async fn switch_capture(&self, is_on: bool, limits: &CaptureLimits) -> Result<usize, SourceError> {
        let what = "switch the capture";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        // Names that are not qualified are the server's own: whoever owns a schema in the path has no say here.
        for setting in ["set default_transaction_read_only = off", "set search_path = pg_catalog, pg_temp"] {
            connection.execute(setting).await.map_err(error)?;
        }
        let mut transaction = connection.begin().await.map_err(error)?;
        let captures = sqlx::query(
            "select id, root, columns, version, mode = 'statement' from cachekeeper.capture \
             where is_on <> $1 and db = (select d.oid from pg_database d where d.datname = current_database()) for update",
        )
        .bind(is_on)
        .fetch_all(&mut *transaction)
        .await
        .map_err(error)?;
        for row in &captures {
            let capture: i32 = row.try_get(0).map_err(error)?;
            let root: Oid = row.try_get(1).map_err(error)?;
            let columns: Vec<String> = row.try_get(2).map_err(error)?;
            let version: i32 = row.try_get(3).map_err(error)?;
            let by_statement: bool = row.try_get(4).map_err(error)?;
            let watched = watched_columns(&mut transaction, root.0, &BTreeSet::new(), &columns).await?;
            let names: Vec<&str> = watched.iter().map(|column| column.name.as_str()).collect();
            let version = version + i32::from(names != columns);
            let statements =
                Definition { capture, version, columns: &watched, limits, is_on, by_statement }.statements();
            for statement in &statements {
                transaction.execute(AssertSqlSafe(statement.clone())).await.map_err(error)?;
            }
            let update = "update cachekeeper.capture set is_on = $2, definition = $3, columns = $4, version = $5, \
                 gaps = gaps + 1, settling = 'pending', settling_in = null where id = $1";
            let definition = statements.join(";\n");
            let update =
                sqlx::query(update).bind(capture).bind(is_on).bind(definition).bind(names).bind(version);
            update.execute(&mut *transaction).await.map_err(error)?;
        }
        transaction.commit().await.map_err(error)?;
        if is_on {
            note_settling(&mut connection, "is_on and settling = 'pending'").await?;
        }
        Ok(captures.len())
    }

    /// The marker of what triggers could not write, as far as it was noted.
    pub(crate) async fn marker(&self) -> Result<i64, SourceError> {
        let marker = sqlx::query_scalar("select marker from cachekeeper.feed").fetch_one(&self.pool).await;
        marker.map_err(|source| SourceError::new("read what was not captured", source))
    }

    /// Whether a transaction is open that was prepared in an earlier incarnation: what it captured is lost.
    pub(crate) async fn has_old_prepared(&self) -> Result<bool, SourceError> {
        let sql = format!(
            "select exists (select from pg_prepared_xacts p where p.database = current_database() \
             and {WAS_PREPARED_BEFORE})"
        );
        let found = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await;
        found.map_err(|source| SourceError::new("look for prepared transactions", source))
    }

    /// Notes which captures' triggers could not write since the last time. Answers how often each capture has missed something by now.
    ///
    /// # Errors
    /// [`SourceError`]; to be repeated then.
    pub async fn note_uncaptured(&self) -> Result<HashMap<i32, i64>, SourceError> {
        let what = "note what was not captured";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        let mut transaction = connection.begin().await.map_err(error)?;
        // The order matters: the markers, then the transactions that may have moved them. A marker that moves later is seen
        // by the next poll.
        let markers = format!(
            "select {MARKERS}, case when is_called then last_value else 0 end from cachekeeper.uncaptured_0"
        );
        let (marker, of_all): (i64, i64) =
            sqlx::query_as(AssertSqlSafe(markers)).fetch_one(&mut *transaction).await.map_err(error)?;
        let missed = "update cachekeeper.capture c set gaps = c.gaps + 1, marker = coalesce(m.value, 0), settling = 'pending', settling_in = null \
             from (select c.id, s.oid is null as is_lost, case when has_sequence_privilege(s.oid, 'select') then pg_sequence_last_value(s.oid::regclass) else $1 end as value from cachekeeper.capture c \
                left join pg_class s on s.relname = 'uncaptured_' || c.id and s.relnamespace = 'cachekeeper'::regnamespace) m \
             where m.id = c.id and (m.is_lost or coalesce(m.value, 0) <> c.marker \
             or $2 <> (select f.marker_of_all from cachekeeper.feed f))";
        // A capture whose marker this role may not read, or is not there, counts as having missed something.
        sqlx::query(missed).bind(marker).bind(of_all).execute(&mut *transaction).await.map_err(error)?;
        let update = "update cachekeeper.feed set marker = $1, marker_of_all = $2";
        sqlx::query(update).bind(marker).bind(of_all).execute(&mut *transaction).await.map_err(error)?;
        let gaps: Vec<(i32, i64)> = sqlx::query_as("select id, gaps from cachekeeper.capture")
            .fetch_all(&mut *transaction)
            .await
            .map_err(error)?;
        transaction.commit().await.map_err(error)?;
        note_settling(&mut connection, "is_on and settling = 'pending'").await?;
        Ok(gaps.into_iter().collect())
    }

    /// Notes that captures may have missed something where what is Cachekeeper's own in the catalogs is not as it was: while a
    /// schema has another name, triggers cannot even move a marker. Whoever wrote meanwhile may still be open.
    ///
    /// # Errors
    /// [`SourceError`]
    pub(crate) async fn note_objects(&self) -> Result<(), SourceError> {
        let what = "look at the outbox and what belongs to it";
        let error = |source| SourceError::new(what, source);
        let now = format!(
            "select c.id, md5(concat((select string_agg(o.text, ',' order by o.text) from ({OWN_OBJECTS}) o), {OWN_SEQUENCES})) as text \
             from cachekeeper.capture c"
        );
        let is_other = format!(
            "select exists (select from cachekeeper.capture c join ({now}) o using (id) where c.objects is distinct from o.text)"
        );
        let is_other: bool =
            sqlx::query_scalar(AssertSqlSafe(is_other)).fetch_one(&self.pool).await.map_err(error)?;
        if !is_other {
            return Ok(());
        }
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        // What is seen for the first time has missed nothing.
        let note = format!(
            "update cachekeeper.capture c set objects = o.text, gaps = c.gaps + case when c.objects is null then 0 else 1 end, \
             settling = case when c.objects is null then c.settling else 'pending' end, \
             settling_in = case when c.objects is null then c.settling_in end \
             from ({now}) o where o.id = c.id and c.objects is distinct from o.text"
        );
        connection.execute(AssertSqlSafe(note)).await.map_err(error)?;
        note_settling(&mut connection, "is_on and settling = 'pending'").await
    }

    /// Ends the settling of captures: whoever may have slipped past has ended.
    pub(crate) async fn settle_captures(&self) -> Result<(), SourceError> {
        let what = "end the settling of a capture";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        // In another incarnation the noted numbers mean nothing, so the transactions of now are noted instead.
        let stale = format!("is_on and settling is not null and settling_in is distinct from {INCARNATION}");
        note_settling(&mut connection, &stale).await?;
        let over = "update cachekeeper.capture c set settling = null, settling_in = null, holders = '{}' where c.is_on \
             and c.settling is not null and c.settling <> 'pending' \
             and pg_snapshot_xmin(pg_current_snapshot()) >= pg_snapshot_xmax(c.settling::pg_snapshot) \
             and not exists (select from pg_locks l where l.virtualtransaction = any(c.holders))";
        connection.execute(over).await.map_err(error)?;
        Ok(())
    }
}

/// Notes the transactions of now as those that may have written uncaptured.
async fn note_settling(connection: &mut Session, which: &str) -> Result<(), SourceError> {
    let sql = format!(
        "update cachekeeper.capture c set settling = {ENDED_BY}, settling_in = {INCARNATION}, \
         holders = {HOLDERS} where {which}"
    );
    let done = sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await;
    done.map(drop).map_err(|source| SourceError::new("note what may have slipped past", source))
}
