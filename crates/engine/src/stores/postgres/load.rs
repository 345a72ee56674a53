//! Snapshots with the incarnation that they belong to (R1, R2), and the loads that are read at one: by keys, or everything.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgArguments, PgColumn, PgRow, PgTypeInfo};
use sqlx::{Arguments, AssertSqlSafe, Column, Row as _};
use tokio::sync::mpsc;

use super::pool::Pool;
use super::session::Session;
use super::statement::{DatasetSource, INCARNATION, KeyType, KeyValues};
use super::transcode::LifetimeKind;
use super::{ErrorKind, Postgres, SourceError};
use crate::process::now_ms;
use cachekeeper_protocol::stamp::Snapshot;

/// What fails where entries cannot be loaded.
const LOAD: &str = "load entries";

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
        let sql = AssertSqlSafe(format!("select pg_current_snapshot()::text, {INCARNATION}"));
        let row = match sqlx::query(sql).fetch_one(&self.pool).await {
            Ok(row) => row,
            Err(source) => return Err(self.explain(SourceError::new(what, source)).await),
        };
        let snapshot: String = row.try_get(0).map_err(|source| SourceError::new(what, source))?;
        let incarnation: Option<String> = row.try_get(1).map_err(|source| SourceError::new(what, source))?;
        read_stamped(what, &snapshot, incarnation)
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

/// A row of a load. Its first two columns are not the query's.
pub type Row = PgRow;

/// The rows of given keys and the snapshot they were read at.
#[derive(Debug)]
pub struct Loaded {
    /// Snapshot and incarnation.
    pub poll: Poll,
    /// The rows, those of one key together.
    pub rows: Vec<Row>,
    pub(crate) clock: Clock,
}

/// The rows of a backfill, as they are read: everything that the query returns at one snapshot.
#[derive(Debug)]
pub struct BackfillRows {
    /// Snapshot and incarnation.
    pub poll: Poll,
    pub(crate) clock: Clock,
    rows: mpsc::Receiver<Result<Arc<Vec<Row>>, SourceError>>,
    reader: Option<tokio::task::JoinHandle<()>>,
}

impl DatasetSource {
    /// How many columns come before the query's.
    pub(crate) const FIRST_COLUMN: usize = 5;
    const NOW: usize = 2;
    const SIZE: usize = 3;
    const LIFE: usize = 4;
    /// Rows are handed over in groups, because handing over costs more than reading one.
    const GROUP: usize = 256;
    const GROUPS_AHEAD: usize = 4;
    /// A group with more bytes is full.
    const GROUP_BYTES: usize = 1 << 20;

    /// The bytes of a row that is too large to be read; none: it is not.
    pub(crate) fn size(&self, row: &Row) -> Result<Option<i64>, String> {
        row.try_get(Self::SIZE).map_err(|error| error.to_string())
    }

    /// What the row says of how long its entry lives; none: nothing.
    pub(crate) fn life(&self, row: &Row, clock: Clock) -> Result<Option<Life>, String> {
        let life: Option<i64> = row.try_get(Self::LIFE).map_err(|error| error.to_string())?;
        Ok(life.map(|life| match self.lifetime {
            Some(LifetimeKind::End) => {
                Life::Until(u64::try_from(life.saturating_add(clock.ahead_ms)).unwrap_or_default())
            }
            _ => Life::For(u64::try_from(life).unwrap_or_default()),
        }))
    }

    /// The rows of so many keys. Where they have too many bytes, that is an error of the data: fewer keys may be loaded.
    pub(super) async fn bounded(
        &self,
        what: &'static str,
        keys: usize,
        mut stream: BoxStream<'_, Result<Row, sqlx::Error>>,
    ) -> Result<Vec<Row>, SourceError> {
        let most = if keys <= 1 { self.max_value_size.saturating_add(ROWS_BYTES) } else { LOAD_BYTES };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = stream.next().await {
            let row = row.map_err(|error| SourceError::new(what, error))?;
            bytes += bytes_of(&row, &self.large);
            if most < bytes {
                let message = if keys <= 1 {
                    format!(
                        "its rows have more than {most} bytes, and max_value_size is {}",
                        self.max_value_size
                    )
                } else {
                    format!("the rows have more than {most} bytes")
                };
                return Err(SourceError::with(what, ErrorKind::Data, message));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

/// The bytes of these columns of a row.
fn bytes_of(row: &Row, large: &[usize]) -> usize {
    let values = large.iter().filter_map(|at| row.try_get_raw(DatasetSource::FIRST_COLUMN + at).ok());
    values.filter_map(|value| value.as_bytes().ok().map(<[u8]>::len)).sum()
}

/// How long an entry lives, as its row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// So many milliseconds.
    For(u64),
    /// Until this machine's clock says so, in milliseconds.
    Until(u64),
}

/// How far this machine's clock is before the server's, in milliseconds, or less: between the two looks some time has passed, and an
/// entry had better end too early.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    ahead_ms: i64,
}

impl Clock {
    /// `began_ms`: this clock, before the statement was sent.
    fn read(began_ms: u64, row: &Row) -> Self {
        let server: Option<i64> = row.try_get(DatasetSource::NOW).ok().flatten();
        let own = i64::try_from(began_ms).unwrap_or(i64::MAX);
        Self { ahead_ms: server.map_or(0, |server| own.saturating_sub(server)) }
    }
}

/// Bytes of the rows of one load. More of several keys are loaded in parts.
const LOAD_BYTES: usize = 16 << 20;
/// Bytes of the rows of one key, beyond what its value may have.
const ROWS_BYTES: usize = 16 << 20;

impl Postgres {
    /// Loads the entries of these keys in one statement.
    pub async fn load<K: AsRef<[String]>>(
        &self,
        source: &DatasetSource,
        keys: &[K],
    ) -> Result<Loaded, SourceError> {
        load_from(&self.pool, source, keys).await
    }

    /// The same, given up after a limit of at most [`super::QUICK_MAX`]; where the server can be reached it ends the statement too.
    pub(crate) async fn load_within<K: AsRef<[String]>>(
        &self,
        source: &DatasetSource,
        keys: &[K],
        limit: Duration,
    ) -> Result<Loaded, SourceError> {
        let loading = load_from(&self.quick, source, keys);
        tokio::time::timeout(limit, loading).await.unwrap_or_else(|_elapsed| Err(SourceError::slow(LOAD)))
    }

    /// Begins to read everything; with `behind`, only what comes after that key.
    pub async fn backfill(
        &self,
        source: &DatasetSource,
        behind: Option<&KeyValues>,
    ) -> Result<BackfillRows, SourceError> {
        let connection = self.open_unlimited().await?;
        let began_ms = now_ms();
        let (sql, values) = match behind {
            Some(values) => (source.all_behind.clone(), values.clone()),
            None => (source.all.clone(), Vec::new()),
        };
        let (sender, mut rows) = mpsc::channel(DatasetSource::GROUPS_AHEAD);
        let large = source.large.clone();
        let reader = tokio::task::spawn(read_rows(connection, (sql, values), large, sender));
        let what = "begin a backfill";
        let first = rows.recv().await.transpose()?;
        let Some(first) = first.as_ref().and_then(|group| group.first()) else {
            return Err(SourceError::with(
                what,
                ErrorKind::Reply,
                "the backfill returned no row at all".to_owned(),
            ));
        };
        source.check_columns(what, first)?;
        let clock = Clock::read(began_ms, first);
        Ok(BackfillRows { poll: read_poll(what, first)?, clock, rows, reader: Some(reader) })
    }

    /// The keys of a backfill with a limit, the most wanted first; none if the dataset has no limit.
    pub(crate) async fn first_keys(
        &self,
        source: &DatasetSource,
    ) -> Result<Option<Vec<KeyValues>>, SourceError> {
        let what = "choose the keys of a backfill";
        let Some(sql) = &source.first_keys else {
            return Ok(None);
        };
        let mut connection = self.open_unlimited().await?;
        let rows = sqlx::query(AssertSqlSafe(sql.clone())).fetch_all(&mut connection).await;
        let rows = rows.map_err(|error| SourceError::new(what, error))?;
        let keys = rows.iter().map(|row| read_key(what, row, source)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(keys.into_iter().flatten().collect()))
    }

    /// The next keys behind one, or the first ones, each once; none: a null is in it. So many are skipped.
    pub(crate) async fn keys_behind(
        &self,
        source: &DatasetSource,
        behind: Option<&KeyValues>,
        skipped: usize,
        count: usize,
    ) -> Result<Vec<Option<KeyValues>>, SourceError> {
        let what = "read the keys of a backfill";
        let sql = if behind.is_some() { &source.keys_behind } else { &source.keys };
        let mut query = sqlx::query(AssertSqlSafe(format!("{sql} limit {count} offset {skipped}")));
        for value in behind.into_iter().flatten() {
            query = query.bind(value);
        }
        let mut connection = self.open_unlimited().await?;
        let rows = query.fetch_all(&mut connection).await.map_err(|error| SourceError::new(what, error))?;
        rows.iter().map(|row| read_key(what, row, source)).collect()
    }
}

impl BackfillRows {
    /// The next rows; none when all have been read.
    ///
    /// # Errors
    /// [`SourceError`]; the backfill is over then.
    pub async fn next(&mut self) -> Result<Option<Arc<Vec<Row>>>, SourceError> {
        self.rows.recv().await.transpose()
    }

    /// The same read, whose rows come from somebody else.
    pub(crate) fn with_rows(&self, rows: mpsc::Receiver<Result<Arc<Vec<Row>>, SourceError>>) -> Self {
        Self { poll: self.poll.clone(), clock: self.clock, rows, reader: None }
    }
}

impl Drop for BackfillRows {
    fn drop(&mut self) {
        // The connection goes with the task, so a backfill that is given up does not go on reading.
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

impl DatasetSource {
    /// A connection that prepares the statement anew after a change of the tables gets other columns without an error.
    fn check_columns(&self, what: &'static str, row: &Row) -> Result<(), SourceError> {
        let found = row.columns().get(Self::FIRST_COLUMN..).unwrap_or_default();
        let is_same = |pair: (Option<&PgColumn>, Option<&(String, Option<PgTypeInfo>)>)| match pair {
            (Some(column), Some((name, kind))) => {
                let is_type = kind.as_ref().is_none_or(|kind| column.type_info().oid() == kind.oid());
                column.name() == name && is_type
            }
            _ => false,
        };
        let Some(place) = (0..found.len().max(self.loaded.len()))
            .find(|at| !is_same((found.get(*at), self.loaded.get(*at))))
        else {
            return Ok(());
        };
        let name = self.loaded.get(place).map(|(name, _)| name.as_str()).unwrap_or("its last one");
        Err(SourceError::with(
            what,
            ErrorKind::Changed,
            format!("the query returns other columns than before, from {name} on"),
        ))
    }

    pub(super) fn has_key(&self, row: &Row) -> bool {
        self.key_columns.iter().any(|column| {
            row.try_get_raw(Self::FIRST_COLUMN + column).is_ok_and(|value| !sqlx::ValueRef::is_null(&value))
        })
    }
}

async fn load_from<K: AsRef<[String]>>(
    pool: &Pool,
    source: &DatasetSource,
    keys: &[K],
) -> Result<Loaded, SourceError> {
    let what = LOAD;
    let arguments = bind_keys(source, keys).map_err(|error| SourceError::new(what, error))?;
    let mut session = pool.acquire().await.map_err(|error| SourceError::new(what, error))?;
    let began_ms = now_ms();
    let statement = sqlx::query_with(AssertSqlSafe(source.by_key.clone()), arguments);
    let mut rows = source.bounded(what, keys.len(), statement.fetch(&mut *session)).await?;
    let Some(first) = rows.first() else {
        return Err(SourceError::with(
            what,
            ErrorKind::Reply,
            "the statement returned no row at all".to_owned(),
        ));
    };
    let poll = read_poll(what, first)?;
    let clock = Clock::read(began_ms, first);
    source.check_columns(what, first)?;
    // Without a match the left join still returns one row; its key columns are null.
    rows.retain(|row| source.has_key(row));
    Ok(Loaded { poll, rows, clock })
}

async fn read_rows(
    mut connection: Session,
    (sql, values): (String, KeyValues),
    large: Vec<usize>,
    sender: mpsc::Sender<Result<Arc<Vec<Row>>, SourceError>>,
) {
    let mut statement = sqlx::query(AssertSqlSafe(sql));
    for value in values {
        statement = statement.bind(value);
    }
    let mut stream: BoxStream<'_, Result<PgRow, sqlx::Error>> = statement.fetch(&mut connection);
    let mut group = Vec::with_capacity(DatasetSource::GROUP);
    let mut bytes = 0;
    let mut is_first = true;
    while let Some(row) = stream.next().await {
        let is_last = row.is_err();
        match row {
            Ok(row) => {
                bytes += bytes_of(&row, &large);
                group.push(row);
            }
            Err(error) => {
                if !group.is_empty() && sender.send(Ok(Arc::new(std::mem::take(&mut group)))).await.is_err() {
                    return;
                }
                let error = SourceError::new("read the rows of a backfill", error);
                if sender.send(Err(error)).await.is_err() {
                    return;
                }
            }
        }
        if is_last {
            return;
        }
        // The first row goes alone: it carries the snapshot.
        if is_first || group.len() == DatasetSource::GROUP || DatasetSource::GROUP_BYTES <= bytes {
            is_first = false;
            let full = std::mem::replace(&mut group, Vec::with_capacity(DatasetSource::GROUP));
            if sender.send(Ok(Arc::new(full))).await.is_err() {
                return;
            }
            // Where rows are large, the next are read when these are taken.
            if DatasetSource::GROUP_BYTES <= std::mem::take(&mut bytes)
                && sender.reserve_many(DatasetSource::GROUPS_AHEAD).await.is_err()
            {
                return;
            }
        }
    }
    if !group.is_empty() {
        // An error is that nobody waits for the rest.
        drop(sender.send(Ok(Arc::new(group))).await);
    }
}

/// The texts of a key's columns; none: a null is among them.
pub(super) fn read_key(
    what: &'static str,
    row: &Row,
    source: &DatasetSource,
) -> Result<Option<KeyValues>, SourceError> {
    let values: Result<Vec<Option<String>>, _> =
        (0..source.key_columns.len()).map(|column| row.try_get(column)).collect();
    Ok(values.map_err(|error| SourceError::new(what, error))?.into_iter().collect())
}

fn read_poll(what: &'static str, row: &Row) -> Result<Poll, SourceError> {
    let snapshot: Option<String> = row.try_get(0).map_err(|error| SourceError::new(what, error))?;
    let incarnation: Option<String> = row.try_get(1).map_err(|error| SourceError::new(what, error))?;
    let Some(snapshot) = snapshot else {
        return Err(SourceError::with(
            what,
            ErrorKind::Reply,
            "the first row carries no snapshot".to_owned(),
        ));
    };
    read_stamped(what, &snapshot, incarnation)
}

/// One array for each placeholder. Keys that no row can have are left out.
pub(super) fn bind_keys<K: AsRef<[String]>>(
    source: &DatasetSource,
    keys: &[K],
) -> Result<PgArguments, sqlx::Error> {
    let possible: Vec<&[String]> =
        keys.iter().map(AsRef::as_ref).filter(|values| source.can_hold(values)).collect();
    let mut arguments = PgArguments::default();
    for (position, kind) in source.key_types.iter().enumerate() {
        let texts = possible.iter().filter_map(|values| values.get(position));
        let added = match kind {
            KeyType::Integer => {
                arguments.add(texts.filter_map(|text| text.parse().ok()).collect::<Vec<i64>>())
            }
            KeyType::Cast(_) => arguments.add(texts.cloned().collect::<Vec<String>>()),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}
