//! The feed's side of Postgres: what was committed between two snapshots (R10), and the outbox's upkeep (R17).

use std::time::Duration;

use futures_util::StreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};
use tokio::sync::mpsc;

use super::load::read_stamped;
use super::statement::INCARNATION;
use super::{ErrorKind, Poll, Postgres, SourceError};
use cachekeeper_protocol::stamp::Snapshot;

/// A connection of its own, because it asks every few milliseconds.
#[derive(Debug)]
pub struct FeedReader {
    connection: Option<PgConnection>,
    postgres: Postgres,
    sql: String,
}

/// One captured statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which capture it belongs to.
    pub capture: i32,
    /// Of the capture's columns.
    pub version: i32,
    /// The watched columns of each distinct old and new row; none: the whole table.
    pub rows: Option<Vec<Vec<Option<String>>>>,
    /// When it was captured, in microseconds of the database's clock.
    pub at_us: i64,
}

/// What one poll found.
#[derive(Debug)]
pub struct FeedPoll {
    /// Up to here.
    pub poll: Poll,
    /// When, by the database's clock: RFC 3339, and in microseconds.
    pub as_of: (String, i64),
    /// What the outbox says about itself.
    pub outbox: OutboxState,
    /// The changes, in groups. Ends with an error if the connection breaks: then not all of them came.
    pub changes: mpsc::Receiver<Result<Vec<Change>, SourceError>>,
}

/// What the outbox says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutboxState {
    /// Changes that this snapshot sees may be gone; a cursor that is older must begin anew. With its incarnation.
    pub horizon: Option<(String, String)>,
    /// The outbox was full: `pending`, or the snapshot of transactions that may not have been captured.
    pub overflow: Option<(String, Option<String>)>,
    /// Keys captured since a worker last caught up.
    pub counted: i64,
}

impl OutboxState {
    /// Whether changes after this cursor may be gone from the outbox.
    #[must_use]
    pub fn is_behind(&self, cursor: &Snapshot, incarnation: &str) -> bool {
        self.horizon.as_ref().is_some_and(|(horizon, life)| {
            let horizon = horizon.parse::<Snapshot>();
            life == incarnation && horizon.is_ok_and(|horizon| cursor.stamp() < horizon.stamp())
        })
    }
}

/// Statements of one message.
const GROUP: usize = 256;
const GROUPS_AHEAD: usize = 4;
/// A poll that takes longer is given up: the network may be gone without a word.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// While the snapshot is the same nothing was committed, and the outbox is not read at all (R11). Rows whose xid is
/// above the snapshot came with a restored dump.
fn poll_sql(snapshot: &str, limit: &str) -> String {
    format!(
        "select s.snap::text, {INCARNATION}, to_char(statement_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
            (extract(epoch from statement_timestamp()) * 1000000)::bigint,
            f.horizon, f.horizon_in, f.overflow, f.overflow_in, (select last_value from cachekeeper.outbox_count),
            o.capture, array_to_json(o.keys)::text, (extract(epoch from o.at) * 1000000)::bigint, o.version
         from (select {snapshot} as snap) s
         cross join cachekeeper.feed f
         left join lateral (
            select b.capture, b.version, b.keys, b.at from cachekeeper.outbox b
            where s.snap::text <> $1::text and b.xid < pg_snapshot_xmax(s.snap)
              and (b.xid >= pg_snapshot_xmax($1::text::pg_snapshot)
                   or b.xid = any(array(select pg_snapshot_xip($1::text::pg_snapshot))))
            {limit}
         ) o on true"
    )
}

impl FeedReader {
    /// Nothing connects yet.
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        Self {
            connection: None,
            postgres: postgres.clone(),
            sql: poll_sql("pg_current_snapshot()", &format!("limit {}", GROUP + 1)),
        }
    }

    /// Asks what was committed since `cursor`.
    pub async fn poll(&mut self, cursor: &str) -> Result<FeedPoll, SourceError> {
        let polled = tokio::time::timeout(ANSWER_WITHIN, self.begin(cursor)).await;
        let polled = polled
            .unwrap_or_else(|_elapsed| Err(SourceError::new("read the outbox", sqlx::Error::PoolTimedOut)));
        if polled.is_err() {
            self.connection = None;
        }
        polled
    }

    async fn open(postgres: &Postgres) -> Result<PgConnection, SourceError> {
        let mut connection = postgres.open_unlimited().await?;
        // The outbox is read by its index, also before anything is known about its size.
        let setting = connection.execute("set enable_seqscan = off").await;
        setting.map_err(|source| SourceError::new("prepare the feed's connection", source))?;
        Ok(connection)
    }

    /// Few changes are read at once; a long stream goes through a task of its own.
    async fn begin(&mut self, cursor: &str) -> Result<FeedPoll, SourceError> {
        let what = "read the outbox";
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Self::open(&self.postgres).await?,
        };
        let mut first: Option<PollHeader> = None;
        let mut changes = Vec::new();
        let mut stream =
            sqlx::query(AssertSqlSafe(self.sql.clone())).bind(cursor.to_owned()).fetch(&mut connection);
        while let Some(row) = stream.next().await {
            let row = row.map_err(|source| SourceError::new(what, source))?;
            if first.is_none() {
                first = Some(read_header(&row)?);
            }
            changes.extend(read_change(&row)?);
        }
        drop(stream);
        let Some((poll, as_of, outbox)) = first else {
            let text = "the poll returned no row: the table cachekeeper.feed is empty".to_owned();
            return Err(SourceError::with(what, ErrorKind::Reply, text));
        };
        let (sender, receiver) = mpsc::channel(GROUPS_AHEAD);
        self.connection = Some(connection);
        if GROUP < changes.len() {
            // The snapshot of a statement cannot be had twice. Reading a little further than it is harmless: what
            // comes too early comes again.
            let sql = poll_sql("$2::text::pg_snapshot", "");
            let until = poll.snapshot.as_str().to_owned();
            let connection = Self::open(&self.postgres).await?;
            tokio::spawn(read_all(connection, sql, cursor.to_owned(), until, sender));
        } else if !changes.is_empty() {
            drop(sender.try_send(Ok(changes)));
        }
        Ok(FeedPoll { poll, as_of, outbox, changes: receiver })
    }
}

/// Snapshot and incarnation, the clock (RFC 3339, and microseconds), and the state of the outbox.
type PollHeader = (Poll, (String, i64), OutboxState);

fn read_header(row: &PgRow) -> Result<PollHeader, SourceError> {
    let what = "read the outbox";
    let error = |source| SourceError::new(what, source);
    let snapshot: String = row.try_get(0).map_err(error)?;
    let incarnation: Option<String> = row.try_get(1).map_err(error)?;
    let poll = read_stamped(what, &snapshot, incarnation)?;
    let horizon: (Option<String>, Option<String>) =
        (row.try_get(4).map_err(error)?, row.try_get(5).map_err(error)?);
    let overflow: (Option<String>, Option<String>) =
        (row.try_get(6).map_err(error)?, row.try_get(7).map_err(error)?);
    let outbox = OutboxState {
        horizon: horizon.0.zip(horizon.1),
        overflow: overflow.0.map(|text| (text, overflow.1)),
        counted: row.try_get(8).map_err(error)?,
    };
    Ok((poll, (row.try_get(2).map_err(error)?, row.try_get(3).map_err(error)?), outbox))
}

fn read_change(row: &PgRow) -> Result<Option<Change>, SourceError> {
    let what = "read the outbox";
    let error = |source| SourceError::new(what, source);
    if row.try_get::<Option<i32>, _>(9).map_err(error)?.is_none() {
        return Ok(None);
    }
    change_of(row, 9).map(Some).map_err(error)
}

/// A change from its columns: capture, keys, time and version, from `first` on.
pub(super) fn change_of(row: &PgRow, first: usize) -> Result<Change, sqlx::Error> {
    let keys: Option<String> = row.try_get(first + 1)?;
    // A change that cannot be read means the whole table: better too much than too little.
    let rows = keys.and_then(|text| serde_json::from_str(&text).ok());
    Ok(Change {
        capture: row.try_get(first)?,
        version: row.try_get(first + 3)?,
        rows,
        at_us: row.try_get(first + 2)?,
    })
}

/// Reads a long list of changes group by group, as fast as they are applied.
async fn read_all(
    mut connection: PgConnection,
    sql: String,
    cursor: String,
    until: String,
    sender: mpsc::Sender<Result<Vec<Change>, SourceError>>,
) {
    let mut stream = sqlx::query(AssertSqlSafe(sql)).bind(cursor).bind(until).fetch(&mut connection);
    let mut group = Vec::with_capacity(GROUP);
    loop {
        let next = match stream.next().await {
            Some(row) => row
                .map_err(|source| SourceError::new("read the outbox", source))
                .and_then(|row| read_change(&row)),
            None => break,
        };
        match next {
            Ok(change) => group.extend(change),
            Err(error) => {
                // Whoever waits for the rest must not take this for the end.
                drop(sender.send(Err(error)).await);
                return;
            }
        }
        if group.len() == GROUP && sender.send(Ok(std::mem::take(&mut group))).await.is_err() {
            return;
        }
    }
    if !group.is_empty() {
        drop(sender.send(Ok(group)).await);
    }
}

impl Postgres {
    /// The worker has caught up: the count of captured keys begins again.
    pub(crate) async fn reset_outbox_count(&self) -> Result<(), SourceError> {
        self.write("count the outbox anew", "select setval('cachekeeper.outbox_count', 1, false)").await
    }

    /// The outbox was full. From now on it takes changes again; what ran before that may be missing from it.
    ///
    /// # Errors
    /// [`SourceError`]; to be repeated then.
    pub(crate) async fn begin_overflow(&self) -> Result<(), SourceError> {
        let what = "take up a full outbox again";
        // The order matters: the note of the overflow; the count, a sequence, which writers see before anything commits; the
        // snapshot of the transactions that may have missed it.
        self.write(what, "update cachekeeper.feed set overflow = 'pending', overflow_in = null").await?;
        self.reset_outbox_count().await?;
        let note = format!(
            "update cachekeeper.feed set overflow = pg_current_snapshot()::text, overflow_in = {INCARNATION}"
        );
        self.write(what, &note).await
    }

    /// Everything that may have missed the outbox has ended: what came before now is not in it.
    pub(crate) async fn end_overflow(&self) -> Result<(), SourceError> {
        let sql = format!(
            "update cachekeeper.feed set horizon = pg_current_snapshot()::text, horizon_in = {INCARNATION}, \
             overflow = null, overflow_in = null where overflow <> 'pending' \
             and pg_snapshot_xmin(pg_current_snapshot()) >= pg_snapshot_xmax(overflow::pg_snapshot)"
        );
        self.write("end the overflow of the outbox", &sql).await
    }

    async fn write(&self, what: &'static str, sql: &str) -> Result<(), SourceError> {
        let error = |source| SourceError::new(what, source);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        transaction.execute("set transaction read write").await.map_err(error)?;
        transaction.execute(AssertSqlSafe(sql.to_owned())).await.map_err(error)?;
        transaction.commit().await.map_err(error)
    }

    /// Fits the ring of the outbox to the retention: a partition must have time to grow old before it is used again.
    ///
    /// # Errors
    /// [`SourceError`], for example while a long transaction has the outbox.
    pub async fn fit_outbox(&self, retention: Duration) -> Result<(), SourceError> {
        let what = "fit the outbox to the retention";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        connection.execute("set lock_timeout = '5s'").await.map_err(error)?;
        let seconds = (retention.as_secs() / 2).max(1);
        let found: Option<String> = sqlx::query_scalar(
            "select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid \
             and a.attnum = d.adnum where d.adrelid = 'cachekeeper.outbox'::regclass and a.attname = 'part'",
        )
        .fetch_one(&mut connection)
        .await
        .map_err(error)?;
        if found.is_some_and(|found| found.contains(&format!("/ {seconds})"))) {
            return Ok(());
        }
        let sql = format!(
            "alter table cachekeeper.outbox alter column part \
             set default (extract(epoch from now())::bigint / {seconds} % 4)::smallint"
        );
        connection.execute(AssertSqlSafe(sql)).await.map(drop).map_err(error)
    }

    /// Empties the partitions of the outbox in which every row is visible in `cursor` and older than the retention
    /// (R17); answers how many. A partition that somebody writes to is left for the next time.
    pub async fn trim_outbox(&self, cursor: &Snapshot, retention: Duration) -> Result<usize, SourceError> {
        let what = "trim the outbox";
        let error = |source| SourceError::new(what, source);
        let mut trimmed = 0;
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        // Whoever wants to write waits behind us, so not for long.
        connection.execute("set lock_timeout = '50ms'").await.map_err(error)?;
        for part in 0..4 {
            let table = format!("cachekeeper.outbox_{part}");
            let old = format!(
                "select exists (select from {table}) and not exists (select from {table} \
                 where at > now() - $2 * interval '1 microsecond' or not pg_visible_in_snapshot(xid, $1::pg_snapshot))"
            );
            let micros = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
            let ask = async |connection: &mut PgConnection| {
                let old = sqlx::query_scalar::<_, Option<bool>>(AssertSqlSafe(old.clone()));
                old.bind(cursor.as_str()).bind(micros).fetch_one(connection).await
            };
            if ask(&mut connection).await.map_err(error)? != Some(true) {
                continue;
            }
            let mut transaction = connection.begin().await.map_err(error)?;
            let lock = format!("lock table {table} in access exclusive mode");
            if transaction.execute(AssertSqlSafe(lock)).await.is_err() {
                transaction.rollback().await.map_err(error)?;
                continue;
            }
            // Again, now that nobody can add a row: a long writer may have committed while the lock was waited for.
            if ask(&mut transaction).await.map_err(error)? == Some(true) {
                let truncate = format!("truncate {table}");
                transaction.execute(AssertSqlSafe(truncate)).await.map_err(error)?;
                let note = format!("update cachekeeper.feed set horizon = $1, horizon_in = {INCARNATION}");
                let note = sqlx::query(AssertSqlSafe(note)).bind(cursor.as_str());
                note.execute(&mut *transaction).await.map_err(error)?;
                trimmed += 1;
            }
            transaction.commit().await.map_err(error)?;
        }
        Ok(trimmed)
    }
}
