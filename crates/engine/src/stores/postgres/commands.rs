//! Write commands of a stream: who may carry them out, and which were.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Executor, Row as _, Transaction};

use super::{Postgres, SourceError};

/// Settings of a transaction that carries out several commands, each as if it were alone: what is checked at the end of a
/// transaction is checked at the end of each, and nobody waits long for rows that others hold.
const BEGIN_SHARED: &str =
    "begin read write; set constraints all immediate; set local lock_timeout = '300ms'";
/// A command that goes alone may wait as long as any other statement.
const BEGIN_ALONE: &str = "begin read write; set constraints all immediate";
/// Records of one statement that drops old ones.
const PRUNE_AT_ONCE: i64 = 5_000;

impl Postgres {
    /// Begins a transaction for commands.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn begin_commands(
        &self,
        is_alone: bool,
    ) -> Result<Transaction<'static, sqlx::Postgres>, SourceError> {
        self.begin_with(if is_alone { BEGIN_ALONE } else { BEGIN_SHARED }).await
    }

    /// Takes the right to apply commands of a stream from whoever had it; answers the token of the right.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn take_over_writes(&self, stream: &str) -> Result<i64, SourceError> {
        let error = |source| SourceError::new("take over the write commands", source);
        let mut transaction = self.begin_write().await?;
        // Waits for transactions that are under way; later ones of an older holder see the new token.
        sqlx::query("select pg_advisory_xact_lock(hashtextextended('cachekeeper.writer:' || $1, 0))")
            .bind(stream)
            .execute(&mut *transaction)
            .await
            .map_err(error)?;
        let token: i64 = sqlx::query_scalar(
            "insert into cachekeeper.writer as w values ($1, 1) on conflict (stream) do update set token = w.token + 1 returning token",
        )
        .bind(stream)
        .fetch_one(&mut *transaction)
        .await
        .map_err(error)?;
        transaction.commit().await.map_err(error)?;
        Ok(token)
    }

    /// Drops records of commands that are older than this, and came so long before the oldest entry that is left in the
    /// stream (its milliseconds): a command that was sent again in time is known, however long nobody worked. Answers how
    /// many.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn prune_applied(
        &self,
        stream: &str,
        oldest_ms: Option<i64>,
        older_than: Duration,
    ) -> Result<u64, SourceError> {
        let error = |source| SourceError::new("drop old records of commands", source);
        let age_ms = i64::try_from(older_than.as_millis()).unwrap_or(i64::MAX);
        let before_ms = oldest_ms.map_or(i64::MAX, |oldest| oldest.saturating_sub(age_ms));
        let mut dropped = 0;
        loop {
            let mut transaction = self.begin_write().await?;
            let done = sqlx::query(
                "delete from cachekeeper.applied where ctid = any(array(
                   select ctid from cachekeeper.applied where stream = $1
                   and at < now() - make_interval(secs => $2) and entry_ms < $3 order by at limit $4))",
            )
            .bind(stream)
            .bind(older_than.as_secs_f64())
            .bind(before_ms)
            .bind(PRUNE_AT_ONCE)
            .execute(&mut *transaction)
            .await
            .map_err(error)?
            .rows_affected();
            transaction.commit().await.map_err(error)?;
            dropped += done;
            if i64::try_from(done).unwrap_or(i64::MAX) < PRUNE_AT_ONCE {
                return Ok(dropped);
            }
        }
    }
}

/// Between two commands of a transaction: what the last one did stays, whatever becomes of the next.
///
/// # Errors
/// [`SourceError`].
pub async fn keep_last(connection: &mut PgConnection, is_first: bool) -> Result<(), SourceError> {
    let sql = if is_first { "savepoint command" } else { "release savepoint command; savepoint command" };
    let done = connection.execute(sql).await;
    done.map(drop).map_err(|source| SourceError::new("keep what a command did", source))
}

/// Takes back what the command since [`keep_last`] did, also where it failed.
///
/// # Errors
/// [`SourceError`]; the connection is broken then.
pub async fn undo_last(connection: &mut PgConnection) -> Result<(), SourceError> {
    let done = connection.execute("rollback to savepoint command").await;
    done.map(drop).map_err(|source| SourceError::new("take back what a command did", source))
}

/// A command's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The command's id.
    pub id: String,
    /// A hash of its contents.
    pub digest: String,
    /// The stream entry that brought it.
    pub entry: (i64, i64),
    /// Rows that it touched.
    pub rows: i64,
    /// Why it was rejected; none: it was applied.
    pub error: Option<String>,
}

/// Whether the holder of this token may still apply commands of the stream; until this transaction ends, nobody else can
/// take over.
///
/// # Errors
/// [`SourceError`].
pub async fn may_write(connection: &mut PgConnection, stream: &str, token: i64) -> Result<bool, SourceError> {
    let error = |source| SourceError::new("check the right to write", source);
    sqlx::query("select pg_advisory_xact_lock_shared(hashtextextended('cachekeeper.writer:' || $1, 0))")
        .bind(stream)
        .execute(&mut *connection)
        .await
        .map_err(error)?;
    // A statement of its own: its snapshot is taken after the lock.
    let newest: Option<i64> = sqlx::query_scalar("select token from cachekeeper.writer where stream = $1")
        .bind(stream)
        .fetch_optional(connection)
        .await
        .map_err(error)?;
    Ok(newest == Some(token))
}

/// The records of these commands, as far as there are any.
///
/// # Errors
/// [`SourceError`].
pub async fn applied(
    connection: &mut PgConnection,
    stream: &str,
    ids: &[String],
) -> Result<Vec<Applied>, SourceError> {
    let what = "look for a command's record";
    let error = |source| SourceError::new(what, source);
    let rows = sqlx::query(
        "select id, digest, entry_ms, entry_seq, rows, error from cachekeeper.applied where stream = $1 and id = any($2)",
    )
    .bind(stream)
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(error)?;
    let read = |row: &PgRow| {
        Ok(Applied {
            id: row.try_get(0)?,
            digest: row.try_get(1)?,
            entry: (row.try_get(2)?, row.try_get(3)?),
            rows: row.try_get(4)?,
            error: row.try_get(5)?,
        })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
}

/// Records commands in the transaction that applies them.
///
/// # Errors
/// [`SourceError`]; the transaction is over then.
pub async fn record_applied(
    connection: &mut PgConnection,
    stream: &str,
    records: &[Applied],
) -> Result<(), SourceError> {
    let (mut ids, mut digests, mut ms, mut seqs, mut rows, mut errors) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for record in records {
        ids.push(record.id.clone());
        digests.push(record.digest.clone());
        ms.push(record.entry.0);
        seqs.push(record.entry.1);
        rows.push(record.rows);
        errors.push(record.error.clone());
    }
    let done = sqlx::query(
        "insert into cachekeeper.applied (stream, id, digest, entry_ms, entry_seq, rows, error)
         select $1, u.* from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[]) u",
    )
    .bind(stream)
    .bind(ids)
    .bind(digests)
    .bind(ms)
    .bind(seqs)
    .bind(rows)
    .bind(errors)
    .execute(connection)
    .await;
    done.map(drop).map_err(|source| SourceError::new("record commands", source))
}

/// Forgets rejections, so that the commands can be tried again; answers how many there were.
///
/// # Errors
/// [`SourceError`].
pub async fn forget_rejected(postgres: &Postgres, stream: &str, ids: &[String]) -> Result<u64, SourceError> {
    let error = |source| SourceError::new("forget rejections", source);
    let mut transaction = postgres.begin_write().await?;
    let sql = "delete from cachekeeper.applied where stream = $1 and id = any($2) and error is not null";
    let done = sqlx::query(sql).bind(stream).bind(ids).execute(&mut *transaction).await.map_err(error)?;
    transaction.commit().await.map_err(error)?;
    Ok(done.rows_affected())
}
