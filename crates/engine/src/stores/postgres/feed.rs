//! The feed's side of Postgres: what was committed between two snapshots (R10).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor, Row as _, ValueRef as _};
use tokio::sync::{mpsc, oneshot};

use super::capture::MARKERS;
use super::load::read_stamped;
use super::session::Session;
use super::statement::INCARNATION;
use super::{CatalogState, ErrorKind, Poll, Postgres, SourceError};
use cachekeeper_protocol::stamp::Snapshot;

/// A connection of its own, because it asks every few milliseconds.
#[derive(Debug)]
pub struct FeedReader {
    connection: Option<Session>,
    /// The connection, while a long list of changes is read on it.
    lent: Option<oneshot::Receiver<Session>>,
    postgres: Postgres,
    /// How the keys are read.
    keys: &'static str,
    /// The text of a poll that verifies nothing.
    plain: Arc<str>,
    /// The text of one that does, and the expression that it was made of.
    verifying: Option<(String, Arc<str>)>,
}

/// One row of the outbox: one captured row of a table, or several of one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which capture it belongs to.
    pub capture: i32,
    /// Of the capture's columns.
    pub version: i32,
    /// The watched columns of old and new rows, one row behind the other; none: the whole table.
    pub values: Option<Vec<Option<String>>>,
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
    /// The state of the catalogs at that snapshot, where it was asked for and the snapshot is another than the one verified last.
    pub catalogs: Option<CatalogState>,
    /// The changes, in groups. Ends with an error if the connection breaks: then not all of them came.
    pub changes: mpsc::Receiver<Result<Vec<Change>, SourceError>>,
}

/// What the outbox says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutboxState {
    /// Changes that this snapshot sees may be gone; a cursor that is older must begin anew. With its incarnation.
    pub horizon: Option<(String, String)>,
    /// Rows of it were lost, because it was made anew: `pending`, or the snapshot of transactions that may have written them.
    pub lost: Option<(String, Option<String>)>,
    /// Units of 1 KiB captured since a worker last caught up.
    pub counted: i64,
    /// How often a trigger could not write, and as far as that was noted: where they differ, something is missing.
    pub marker: (i64, i64),
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
/// Where the first of a change's columns is.
const CHANGE: usize = 11;
const KEYS: &str = "o.keys";
/// Where a text cannot be sent as UTF-8 (a database of another encoding), only that one is left out.
const SENDABLE_KEYS: &str = "case when o.keys is not null then \
     array(select cachekeeper.sendable(k.text) from unnest(o.keys) with ordinality k(text, place) order by k.place) end";
const GROUPS_AHEAD: usize = 4;
/// A poll that takes longer is given up: the network may be gone without a word.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The rows of the outbox that a snapshot sees and the cursor, `$1`, does not (R10). Rows whose xid is above the snapshot came with
/// a restored dump. Two ranges of the index, because the planner reads the whole outbox for one condition with an `or`.
fn changed_rows(columns: &str, xmax: &str, condition: &str) -> String {
    format!(
        "select {columns} from cachekeeper.outbox o where {condition}
           o.xid >= pg_snapshot_xmax($1::text::pg_snapshot) and o.xid < {xmax}
         union all
         select {columns} from cachekeeper.outbox o where {condition}
           o.xid = any(array(select pg_snapshot_xip($1::text::pg_snapshot)))"
    )
}

/// While the snapshot is the same nothing was committed, and the outbox is not read at all (R11).
fn poll_sql(keys: &str) -> String {
    let limit = GROUP + 1;
    let changed = changed_rows(
        "o.capture, o.version, o.keys, o.at",
        "pg_snapshot_xmax(s.snap)",
        "s.snap::text <> $1::text and",
    );
    format!(
        "select s.snap::text as snap, {INCARNATION} as incarnation, to_char(statement_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'),
            (extract(epoch from statement_timestamp()) * 1000000)::bigint,
            f.horizon, f.horizon_in, f.overflow, f.overflow_in, (select last_value from cachekeeper.outbox_count),
            {MARKERS}, f.marker,
            o.capture, {keys}, o.at, o.version
         from (select pg_current_snapshot() as snap) s
         cross join cachekeeper.feed f
         left join lateral ({changed} limit {limit}) o on true"
    )
}

/// What a poll verifies on the way.
#[derive(Debug, Clone, Copy)]
pub struct Verify<'a> {
    /// The expression that reads the catalogs ([`super::CatalogScope`]).
    pub catalogs: &'a str,
    /// The snapshot at which they were read last; at the same one nothing can have changed.
    pub verified_at: &'a str,
}

impl Verify<'_> {
    /// The same poll, whose first row also has the state of the catalogs.
    fn sql(&self, poll: &str) -> String {
        format!(
            "with p as materialized ({poll})
             select p.*, case when row_number() over () = 1 and p.snap <> $2::text then {} end as catalogs from p",
            self.catalogs
        )
    }
}

/// The changes that are visible at one snapshot and not at another.
fn changes_sql(keys: &str) -> String {
    changed_rows(
        &format!("o.capture, {keys}, o.at, o.version"),
        "pg_snapshot_xmax($2::text::pg_snapshot)",
        "",
    )
}

impl FeedReader {
    /// Nothing connects yet.
    #[must_use]
    pub fn new(postgres: &Postgres) -> Self {
        let (postgres, plain) = (postgres.clone(), poll_sql(KEYS).into());
        Self { connection: None, lent: None, postgres, keys: KEYS, plain, verifying: None }
    }

    /// Whether anything was committed since the cursor. It is asked for nothing else, which costs much less than a poll. What is
    /// not known counts as committed: the poll that follows says what is wrong.
    pub async fn has_moved(&mut self, cursor: &str) -> bool {
        let Some(connection) = &mut self.connection else { return true };
        let asked =
            sqlx::query_scalar::<_, String>("select pg_current_snapshot()::text").fetch_one(connection);
        match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(Ok(snapshot)) => snapshot != cursor,
            Ok(Err(_)) | Err(_) => {
                self.connection = None;
                true
            }
        }
    }

    fn text(&mut self, verify: Option<&Verify<'_>>) -> Arc<str> {
        let Some(verify) = verify else { return Arc::clone(&self.plain) };
        match &self.verifying {
            Some((catalogs, text)) if catalogs == verify.catalogs => Arc::clone(text),
            _ => {
                let text: Arc<str> = verify.sql(&self.plain).into();
                self.verifying = Some((verify.catalogs.to_owned(), Arc::clone(&text)));
                text
            }
        }
    }

    /// The next poll uses a new connection.
    pub fn renew(&mut self) {
        (self.connection, self.lent) = (None, None);
    }

    /// Asks what was committed since `cursor`, and for the state of the catalogs, where something is to be verified.
    pub async fn poll(&mut self, cursor: &str, verify: Option<&Verify<'_>>) -> Result<FeedPoll, SourceError> {
        let polled = tokio::time::timeout(ANSWER_WITHIN, self.begin(cursor, verify)).await;
        let polled = polled
            .unwrap_or_else(|_elapsed| Err(SourceError::new("read the outbox", sqlx::Error::PoolTimedOut)));
        if let Err(error) = &polled {
            self.connection = None;
            if error.kind == ErrorKind::Data {
                self.keys = SENDABLE_KEYS;
                self.plain = poll_sql(SENDABLE_KEYS).into();
                self.verifying = None;
            }
        }
        polled
    }

    async fn open(postgres: &Postgres) -> Result<Session, SourceError> {
        let mut connection = postgres.open_unlimited().await?;
        // The outbox is read by its index, also before anything is known about its size.
        // Plans that fit every snapshot are made once: the catalogs' takes longer to plan than to run.
        let setting =
            connection.execute("set enable_seqscan = off; set plan_cache_mode = force_generic_plan").await;
        setting.map_err(|source| SourceError::new("prepare the feed's connection", source))?;
        Ok(connection)
    }

    /// Few changes are read at once; a long stream goes through a task of its own.
    async fn begin(&mut self, cursor: &str, verify: Option<&Verify<'_>>) -> Result<FeedPoll, SourceError> {
        let what = "read the outbox";
        let returned = match self.lent.take() {
            Some(lent) => lent.await.ok(),
            None => self.connection.take(),
        };
        let mut connection = match returned {
            Some(connection) => connection,
            None => Self::open(&self.postgres).await?,
        };
        let mut first: Option<PollHeader> = None;
        let mut catalogs: Option<CatalogState> = None;
        let mut changes = Vec::new();
        let mut statement = sqlx::query(AssertSqlSafe(self.text(verify))).bind(cursor.to_owned());
        if let Some(verify) = verify {
            statement = statement.bind(verify.verified_at.to_owned());
        }
        let mut stream = statement.fetch(&mut connection);
        while let Some(row) = stream.next().await {
            let row = row.map_err(|source| SourceError::new(what, source))?;
            if first.is_none() {
                first = Some(read_header(&row)?);
                if verify.is_some() {
                    let texts: Option<Vec<String>> =
                        row.try_get("catalogs").map_err(|source| SourceError::new(what, source))?;
                    catalogs = texts.map(CatalogState::read);
                }
            }
            changes.extend(read_change(&row)?);
        }
        drop(stream);
        let Some((poll, as_of, outbox)) = first else {
            let text = "the poll returned no row: the table cachekeeper.feed is empty".to_owned();
            return Err(SourceError::with(what, ErrorKind::Reply, text));
        };
        let (sender, receiver) = mpsc::channel(GROUPS_AHEAD);
        if GROUP < changes.len() {
            // The snapshot of a statement cannot be had twice. Reading a little further than it is harmless: what
            // comes too early comes again.
            let (give_back, lent) = oneshot::channel();
            self.lent = Some(lent);
            let (cursor, until) = (cursor.to_owned(), poll.snapshot.as_str().to_owned());
            tokio::spawn(read_all(connection, changes_sql(self.keys), (cursor, until), sender, give_back));
        } else {
            self.connection = Some(connection);
            if !changes.is_empty() {
                drop(sender.try_send(Ok(changes)));
            }
        }
        Ok(FeedPoll { poll, as_of, outbox, catalogs, changes: receiver })
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
    let lost: (Option<String>, Option<String>) =
        (row.try_get(6).map_err(error)?, row.try_get(7).map_err(error)?);
    let outbox = OutboxState {
        horizon: horizon.0.zip(horizon.1),
        lost: lost.0.map(|text| (text, lost.1)),
        counted: row.try_get(8).map_err(error)?,
        marker: (row.try_get(9).map_err(error)?, row.try_get(10).map_err(error)?),
    };
    Ok((poll, (row.try_get(2).map_err(error)?, row.try_get(3).map_err(error)?), outbox))
}

fn read_change(row: &PgRow) -> Result<Option<Change>, SourceError> {
    let what = "read the outbox";
    let error = |source| SourceError::new(what, source);
    if row.try_get::<Option<i32>, _>(CHANGE).map_err(error)?.is_none() {
        return Ok(None);
    }
    change_of(row, CHANGE).map(Some).map_err(error)
}

/// A change from its columns: capture, keys, time and version, from `first` on.
pub(super) fn change_of(row: &PgRow, first: usize) -> Result<Change, sqlx::Error> {
    let keys = row.try_get_raw(first + 1)?;
    // A change that cannot be read means the whole table: better too much than too little.
    let values = if keys.is_null() { None } else { keys.as_bytes().ok().and_then(texts) };
    Ok(Change {
        capture: row.try_get(first)?,
        version: row.try_get(first + 3)?,
        values,
        at_us: row.try_get_raw(first + 2)?.as_bytes().ok().and_then(microseconds).unwrap_or_default(),
    })
}

/// The binary format counts from the year 2000 (PostgreSQL's `timestamptz_send`).
fn microseconds(bytes: &[u8]) -> Option<i64> {
    const TO_2000: i64 = 946_684_800_000_000;
    Some(i64::from_be_bytes(bytes.try_into().ok()?).saturating_add(TO_2000))
}

/// The texts of an array in the binary format (PostgreSQL's `array_send`), whatever its dimensions. What is no UTF-8 is no key
/// that an entry could have.
fn texts(bytes: &[u8]) -> Option<Vec<Option<String>>> {
    let mut at = 0;
    let mut number = |bytes: &[u8]| {
        let four = bytes.get(at..at + 4)?;
        at += 4;
        Some(i32::from_be_bytes(four.try_into().ok()?))
    };
    let dimensions = number(bytes)?;
    number(bytes)?;
    number(bytes)?;
    let mut count = i32::from(0 < dimensions);
    for _ in 0..dimensions {
        count = count.checked_mul(number(bytes)?)?;
        number(bytes)?;
    }
    let mut rest = bytes.get(at..)?;
    let mut values = Vec::with_capacity(usize::try_from(count).ok()?.min(bytes.len() / 4));
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        // A length of -1 is a null.
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            values.push(None);
            continue;
        };
        let (text, after) = rest.split_at_checked(length)?;
        rest = after;
        values.push(std::str::from_utf8(text).ok().map(str::to_owned));
    }
    Some(values)
}

/// Reads a long list of changes group by group, as fast as they are applied. The connection is given back only where nothing
/// is left to be read on it.
async fn read_all(
    mut connection: Session,
    sql: String,
    (cursor, until): (String, String),
    sender: mpsc::Sender<Result<Vec<Change>, SourceError>>,
    give_back: oneshot::Sender<Session>,
) {
    let mut stream = sqlx::query(AssertSqlSafe(sql)).bind(cursor).bind(until).fetch(&mut connection);
    let mut group = Vec::with_capacity(GROUP);
    while let Some(next) = stream.next().await {
        match next.and_then(|row| change_of(&row, 0)) {
            Ok(change) => group.push(change),
            Err(source) => {
                // Whoever waits for the rest must not take this for the end.
                drop(sender.send(Err(SourceError::new("read the outbox", source))).await);
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
    drop(stream);
    drop(give_back.send(connection));
}
