//! Idempotency records: which commands of a stream were carried out, so that one that comes again is not carried out again.
//!
//! How old a record is, no clock says that somebody can set. `led_ms` of a stream is for how long workers have led it, as each
//! leader measures it, and a record notes what it was when it was made. It stands still while nobody leads, so that a record is
//! kept longer, never shorter.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::session::Session;
use super::write::CommandStream;
use super::{Postgres, SourceError};

/// Records of one statement that drops old ones.
const AT_ONCE: i64 = 5_000;

/// A command's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdempotencyRecord {
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

/// The records of these commands, as far as there are any.
pub(crate) async fn records_of(
    connection: &mut Session,
    stream: CommandStream<'_>,
    ids: &[String],
) -> Result<Vec<IdempotencyRecord>, SourceError> {
    let what = "look for a command's record";
    let error = |source| SourceError::new(what, source);
    let rows = sqlx::query(
        "select id, digest, entry_ms, entry_seq, rows, error from cachekeeper.applied
         where namespace in ($1, '') and stream = $2 and id = any($3)",
    )
    .bind(stream.namespace)
    .bind(stream.name)
    .bind(ids)
    .fetch_all(connection)
    .await
    .map_err(error)?;
    let read = |row: &PgRow| {
        Ok(IdempotencyRecord {
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
pub(crate) async fn add_records(
    connection: &mut Session,
    stream: CommandStream<'_>,
    records: &[IdempotencyRecord],
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
        "insert into cachekeeper.applied (namespace, stream, id, digest, entry_ms, entry_seq, rows, error, led_ms)
         select $1, $2, u.*, (select w.led_ms from cachekeeper.writer w where w.namespace = $1 and w.stream = $2)
         from unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[]) u",
    )
    .bind(stream.namespace)
    .bind(stream.name)
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
pub(crate) async fn forget_rejections(
    postgres: &Postgres,
    stream: CommandStream<'_>,
    ids: &[String],
) -> Result<u64, SourceError> {
    let error = |source| SourceError::new("forget rejections", source);
    let mut transaction = postgres.begin_write().await?;
    let sql = "delete from cachekeeper.applied where namespace in ($1, '') and stream = $2 and id = any($3)
        and error is not null";
    let forget = sqlx::query(sql).bind(stream.namespace).bind(stream.name).bind(ids);
    let done = forget.execute(&mut *transaction).await.map_err(error)?;
    transaction.commit().await.map_err(error)?;
    Ok(done.rows_affected())
}

impl Postgres {
    /// A leader has led for so long since it said so last; answers for how long the stream was led in all, in milliseconds.
    /// None: there is no record whose age could matter, or somebody else leads.
    pub(crate) async fn count_leading(
        &self,
        stream: CommandStream<'_>,
        token: i64,
        since_last: Duration,
    ) -> Result<Option<i64>, SourceError> {
        let error = |source| SourceError::new("note how old the records of commands are", source);
        let mut transaction = self.begin_write().await?;
        let led: Option<i64> = sqlx::query_scalar(
            "update cachekeeper.writer set led_ms = led_ms + $4 where namespace = $1 and stream = $2 and token = $3
             and exists (select from cachekeeper.applied where namespace in ($1, '') and stream = $2) returning led_ms",
        )
        .bind(stream.namespace)
        .bind(stream.name)
        .bind(token)
        .bind(i64::try_from(since_last.as_millis()).unwrap_or(i64::MAX))
        .fetch_optional(&mut *transaction)
        .await
        .map_err(error)?;
        if led.is_some() {
            // What an earlier version has recorded, and what comes from another history of the database, begins to age now.
            sqlx::query(
                "update cachekeeper.applied a set led_ms = w.led_ms from cachekeeper.writer w
                 where w.namespace = $1 and w.stream = $2 and a.namespace in ($1, '') and a.stream = $2
                 and (a.led_ms is null or w.led_ms < a.led_ms)",
            )
            .bind(stream.namespace)
            .bind(stream.name)
            .execute(&mut *transaction)
            .await
            .map_err(error)?;
        }
        transaction.commit().await.map_err(error)?;
        Ok(led)
    }

    /// Drops the records that were made before the stream had been led for so long; answers how many.
    pub(crate) async fn drop_records(
        &self,
        stream: CommandStream<'_>,
        before_led_ms: i64,
    ) -> Result<u64, SourceError> {
        let error = |source| SourceError::new("drop old records of commands", source);
        let mut dropped = 0;
        loop {
            let mut transaction = self.begin_write().await?;
            let done = sqlx::query(
                "delete from cachekeeper.applied where ctid = any(array(
                   select ctid from cachekeeper.applied where namespace in ($1, '') and stream = $2
                   and led_ms < $3 order by led_ms limit $4))",
            )
            .bind(stream.namespace)
            .bind(stream.name)
            .bind(before_led_ms)
            .bind(AT_ONCE)
            .execute(&mut *transaction)
            .await
            .map_err(error)?
            .rows_affected();
            transaction.commit().await.map_err(error)?;
            dropped += done;
            if i64::try_from(done).unwrap_or(i64::MAX) < AT_ONCE {
                return Ok(dropped);
            }
        }
    }
}
