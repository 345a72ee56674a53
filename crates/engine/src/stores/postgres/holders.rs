//! Who holds locks that keep something of ours from being done, so that nobody waits without knowing for whom.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::types::Oid;

use super::session::Session;
use super::{ErrorKind, Postgres, SourceError};

/// Locks that triggers can be made beside.
pub(super) const OF_READERS: [&str; 2] = ["AccessShareLock", "RowShareLock"];

/// A transaction that was prepared keeps the number that it had in its session, without the process; only its own id tells which it is.
/// Sessions of other users tell their start to members of `pg_read_all_stats` only.
const HOLDERS: &str = "
    select distinct on (l.virtualtransaction) l.virtualtransaction || ' ' || coalesce(l.pid::text, 'prepared'),
        case when l.pid is null then 'the prepared transaction ' || coalesce(x.gid, '?')
            else 'process ' || l.pid || coalesce(' (' || concat_ws(', ', nullif(a.application_name, ''), 'user ' || a.usename, a.state) || ')', '') end
        || ' has held a lock on ' || case when n.nspname = 'public' then '' else quote_ident(n.nspname) || '.' end || quote_ident(c.relname)
        || coalesce(' since ' || to_char(coalesce(a.xact_start, x.prepared), 'YYYY-MM-DD HH24:MI:SS TZ'), ' for some time')
    from pg_catalog.pg_locks l
    left join pg_catalog.pg_stat_activity a on a.pid = l.pid
    left join pg_catalog.pg_locks own on l.pid is null and own.pid is null and own.locktype = 'transactionid'
        and own.virtualtransaction = l.virtualtransaction
    left join pg_catalog.pg_prepared_xacts x on x.transaction = own.transactionid
    join pg_catalog.pg_class c on c.oid = l.relation
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where l.locktype = 'relation' and l.granted and (l.relation = any($1) or cardinality($1) = 0 and n.nspname like 'cachekeeper%')
        and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
        and l.mode <> all($2) and l.pid is distinct from pg_backend_pid()
    order by l.virtualtransaction, a.xact_start";

/// Relations that nobody can read now, because somebody holds them whole.
const HELD_WHOLE: &str = "
    select distinct l.relation from pg_catalog.pg_locks l
    where l.locktype = 'relation' and l.granted and l.mode = 'AccessExclusiveLock' and l.pid is distinct from pg_backend_pid()
        and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database()) limit 1000";

/// Locks beside which a table can be read.
const OF_WRITERS: [&str; 7] = [
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
];

impl Postgres {
    /// Where a lock is why a statement failed: the same error with the table, who holds it, and what to do.
    pub async fn explain_lock(&self, error: SourceError) -> SourceError {
        let code = error.source.as_database_error().and_then(|database| database.code());
        if code.as_deref() != Some(LOCK_TIMEOUT) {
            return error;
        }
        match self.holders_of_whole_tables().await {
            Ok(holders) if !holders.is_empty() => {
                let holders: Vec<String> =
                    holders.into_iter().take(HOLDERS_TOLD).map(|holder| holder.text).collect();
                let text = format!(
                    "{}; run it again once that has ended, or end it: pg_terminate_backend(process), rollback prepared",
                    holders.join(", ")
                );
                SourceError::with(error.what, ErrorKind::Cancelled, text)
            }
            // It has just ended, or we may not see it.
            _ => error,
        }
    }

    async fn holders_of_whole_tables(&self) -> Result<Vec<Holder>, SourceError> {
        let error = |source| SourceError::new("look who holds locks", source);
        let mut connection = self.pool.acquire().await.map_err(error)?;
        let relations: Vec<Oid> =
            sqlx::query_scalar(HELD_WHOLE).fetch_all(&mut *connection).await.map_err(error)?;
        if relations.is_empty() {
            return Ok(Vec::new());
        }
        holders(&mut connection, &relations, &OF_WRITERS).await
    }
}

/// SQLSTATE: a lock was not had within `lock_timeout`.
const LOCK_TIMEOUT: &str = "55P03";
/// Holders that one message names.
const HOLDERS_TOLD: usize = 3;

/// A transaction that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// The same at two looks: it is the same transaction.
    pub id: String,
    /// Who it is, since when, and what it holds.
    pub text: String,
}

/// Who holds other locks than these on these relations; without relations: on any of the schema `cachekeeper`.
pub(super) async fn holders(
    connection: &mut Session,
    relations: &[Oid],
    but: &[&str],
) -> Result<Vec<Holder>, SourceError> {
    let error = |source| SourceError::new("look who holds locks", source);
    let rows = sqlx::query(HOLDERS).bind(relations).bind(but).fetch_all(connection).await.map_err(error)?;
    rows.iter()
        .map(|row| Ok(Holder { id: row.try_get(0)?, text: row.try_get(1)? }))
        .collect::<Result<_, _>>()
        .map_err(error)
}

/// Whoever holds a lock for longer than this is not waited for in the lock's queue, where others would wait behind us.
const LONG: Duration = Duration::from_millis(100);

/// Gives those who hold locks a moment to end.
///
/// # Errors
/// [`ErrorKind::Cancelled`] where one of them does not, with who it is.
pub(super) async fn wait_shortly(
    connection: &mut Session,
    what: &'static str,
    relations: &[Oid],
    but: &[&str],
) -> Result<(), SourceError> {
    let before = holders(connection, relations, but).await?;
    if before.is_empty() {
        return Ok(());
    }
    tokio::time::sleep(LONG).await;
    let after = holders(connection, relations, but).await?;
    match after.into_iter().find(|holder| before.iter().any(|known| known.id == holder.id)) {
        Some(long) => Err(SourceError::with(what, ErrorKind::Cancelled, long.text)),
        None => Ok(()),
    }
}

/// The same error; where somebody's lock is the reason, with who it is.
pub(super) async fn held(connection: &mut Session, relations: &[Oid], error: SourceError) -> SourceError {
    let is_told = matches!(*error.source, sqlx::Error::Protocol(_));
    if error.kind != ErrorKind::Cancelled || is_told {
        return error;
    }
    // A reader is in the way only where nobody else is.
    for but in [OF_READERS.as_slice(), &[]] {
        if let Some(holder) = holders(connection, relations, but).await.unwrap_or_default().into_iter().next()
        {
            return SourceError::with(error.what, ErrorKind::Cancelled, holder.text);
        }
    }
    error
}
