//! The SQL of the write path: write statements with typed parameters, what they changed, and the commands of a stream: who may
//! carry them out, and which were.

use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow};
use sqlx::{
    AssertSqlSafe, Connection as _, Either, Executor, Row as _, SqlSafeStr, Statement, TypeInfo as _,
    ValueRef as _,
};

use super::feed::change_of;
use super::pinned::OWN_NAMES;
use super::pool::Lease;
use super::session::{Session, Transaction};
use super::statement::type_name;
use super::{Change, ErrorKind, Postgres, SourceError};
use cachekeeper_protocol::parameters::ParameterizedSql;

/// A write statement whose parameters Postgres has described.
#[derive(Debug)]
pub struct WriteStatement {
    /// The places of parameters: name, and type as SQL text.
    pub places: Vec<(String, String)>,
    sql: String,
}

/// What a statement did.
#[derive(Debug, Clone, Default)]
pub struct Executed {
    /// Rows that it inserted, updated or deleted.
    pub rows: u64,
    /// The columns and texts of a `returning` list, for each row; only integers, texts and UUIDs.
    pub returned: Vec<Vec<(String, String)>>,
}

/// A stream of commands, as one namespace knows it: another's has other records, also where it has the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandStream<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The name of the stream in Redis.
    pub name: &'a str,
}

/// The capture of an outbox row that names a dataset and a key directly, for tables that no trigger watches.
pub(crate) const DIRECT: i32 = -1;
/// Settings of a transaction that carries out several commands, each as if it were alone: what is checked at the end of a
/// transaction is checked at the end of each, and nobody waits long for rows that others hold.
const SHARED: &str = "; set constraints all immediate; set local lock_timeout = '300ms'";
/// A command that goes alone may wait as long as any other statement.
const ALONE: &str = "; set constraints all immediate";
/// Keys that share a row of the outbox.
const NOTED_AT_ONCE: usize = 64;

impl Postgres {
    /// Asks the database for the types of a write statement's parameters.
    ///
    /// # Errors
    /// [`SourceError`]; [`ErrorKind::Statement`] where it is wrong.
    pub(crate) async fn describe_write(&self, statement: &str) -> Result<WriteStatement, SourceError> {
        let what = "describe a write statement";
        let error = |source| SourceError::new(what, source);
        let parsed = ParameterizedSql::parse(statement);
        let numbered = parsed.render(|position| format!("${}", position + 1));
        let mut connection = self.pool.acquire().await.map_err(error)?;
        let prepared =
            (&mut *connection).prepare(AssertSqlSafe(numbered).into_sql_str()).await.map_err(error)?;
        let types: Vec<String> = match prepared.parameters() {
            Some(Either::Left(types)) => types.iter().map(type_name).collect(),
            _ => Vec::new(),
        };
        let places: Vec<(String, String)> = parsed.places().map(str::to_owned).zip(types).collect();
        // Every parameter goes as text and is cast by the server: its own input functions check it.
        let typed = |position: usize| {
            let name = places.get(position).map_or("text", |(_, name)| name.as_str());
            format!("(${}::text)::{name}", position + 1)
        };
        let sql = parsed.render(typed);
        Ok(WriteStatement { places, sql })
    }

    /// Begins a transaction that may write.
    pub(crate) async fn begin_write(&self) -> Result<Transaction<Lease>, SourceError> {
        self.begin_with("").await
    }

    /// In a transaction that may write, names mean what they mean to the application's own sessions: what its triggers make may be
    /// temporary tables that they look for first.
    pub(super) async fn begin_with(&self, settings: &str) -> Result<Transaction<Lease>, SourceError> {
        let begun = self.pool.begin_with(&format!("begin read write; {OWN_NAMES}{settings}")).await;
        begun.map_err(|source| SourceError::new("begin a write", source))
    }
}

impl WriteStatement {
    /// Carries it out. `values` are the texts of the parameters, one for each place; none is null.
    ///
    /// # Errors
    /// [`SourceError`]; the transaction is over then.
    pub async fn execute(
        &self,
        connection: &mut PgConnection,
        values: &[Option<String>],
    ) -> Result<Executed, SourceError> {
        let mut query = sqlx::query(AssertSqlSafe(self.sql.clone()));
        for value in values {
            query = query.bind(value.clone());
        }
        let executed = collect(connection.fetch_many(query)).await;
        if let Err(error) = &executed
            && error.kind == ErrorKind::Changed
        {
            // What this connection has prepared fits the tables no more.
            connection
                .clear_cached_statements()
                .await
                .map_err(|source| SourceError::new("forget", source))?;
        }
        executed
    }
}

async fn collect(
    mut results: BoxStream<'_, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>,
) -> Result<Executed, SourceError> {
    let mut executed = Executed::default();
    let error = |source| SourceError::new("carry out a write", source);
    while let Some(result) = results.try_next().await.map_err(error)? {
        match result {
            Either::Left(done) => executed.rows += done.rows_affected(),
            Either::Right(row) => executed.returned.push(texts(&row)),
        }
    }
    Ok(executed)
}

fn texts(row: &PgRow) -> Vec<(String, String)> {
    use sqlx::Column;
    let text = |index: usize| {
        let wide = row.try_get::<i64, _>(index).map(|number| number.to_string());
        let wide = wide.or_else(|_| row.try_get::<i32, _>(index).map(|number| number.to_string()));
        wide.or_else(|_| row.try_get::<String, _>(index)).ok().or_else(|| uuid(row, index))
    };
    let columns = row.columns().iter().enumerate();
    columns.filter_map(|(index, column)| Some((column.name().to_owned(), text(index)?))).collect()
}

fn uuid(row: &PgRow, index: usize) -> Option<String> {
    let value = row.try_get_raw(index).ok().filter(|value| value.type_info().name() == "UUID")?;
    let hex: String = value.as_bytes().ok()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [hex.get(..8)?, hex.get(8..12)?, hex.get(12..16)?, hex.get(16..20)?, hex.get(20..)?];
    Some(parts.join("-"))
}

/// What this transaction has changed so far, as the triggers captured it; empty without the schema. Where one of these captures has
/// left rows out, because the outbox is full or may not be written, that is a change of the whole table.
///
/// # Errors
/// [`SourceError`]; the transaction is over then.
pub(crate) async fn captured_here(
    connection: &mut PgConnection,
    captures: &[i32],
) -> Result<Vec<Change>, SourceError> {
    let what = "read what a write touched";
    let error = |source| SourceError::new(what, source);
    let rows = sqlx::query(
        "select capture, keys, at, version
         from cachekeeper.outbox where xid = pg_current_xact_id()
         union all select c.id, null, clock_timestamp(), 0 from unnest($1::int4[]) c(id)
         where current_setting('cachekeeper.command_' || c.id, true) = 'whole'",
    )
    .bind(captures)
    .fetch_all(connection)
    .await
    .map_err(error)?;
    rows.iter().map(|row| change_of(row, 0).map_err(error)).collect()
}

/// Whether the schema is installed and this role may do with its outbox what a write needs. Each privilege is asked for by
/// itself: in a list of them, one that is held is enough for the server. The catalog is read, because naming a table of a
/// schema that this role may not use is an error.
pub(crate) async fn has_outbox(connection: &mut PgConnection) -> Result<bool, SourceError> {
    let sql = "select coalesce(bool_and(case c.relname
            when 'outbox' then has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
            else has_sequence_privilege(c.oid, 'usage') or has_sequence_privilege(c.oid, 'update') end)
            and count(*) = 2, false)
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'cachekeeper' and c.relname in ('outbox', 'outbox_count')
            and has_schema_privilege(n.oid, 'usage')";
    let has: Result<bool, _> = sqlx::query_scalar(sql).fetch_one(connection).await;
    has.map_err(|source| SourceError::new("look for the outbox", source))
}

/// Notes keys of datasets in the outbox, so that the feed sees to them if this process does not: dataset and key of each; no
/// key stands for the whole dataset. They are noted also where the outbox is full: no trigger watches what they are about, so there
/// is nothing else that could tell it.
///
/// # Errors
/// [`SourceError`]; the transaction is over then.
pub(crate) async fn note_keys(
    connection: &mut PgConnection,
    keys: &[(&str, Option<&str>)],
) -> Result<(), SourceError> {
    for chunk in keys.chunks(NOTED_AT_ONCE) {
        let values: Vec<Option<&str>> =
            chunk.iter().flat_map(|(dataset, key)| [Some(*dataset), *key]).collect();
        let done = sqlx::query(
            "insert into cachekeeper.outbox (capture, version, keys)
             select $1, 0, $2 where 0 < nextval('cachekeeper.outbox_count')",
        )
        .bind(DIRECT)
        .bind(values)
        .execute(&mut *connection)
        .await;
        done.map_err(|source| SourceError::new("note what a write touched", source))?;
    }
    Ok(())
}

impl SourceError {
    /// A commit that failed.
    #[must_use]
    pub(crate) fn of_commit(source: sqlx::Error) -> Self {
        Self::new("commit a write", source)
    }
}

impl Postgres {
    /// Begins a transaction for commands.
    pub async fn begin_commands(&self, is_alone: bool) -> Result<Transaction<Lease>, SourceError> {
        self.begin_with(if is_alone { ALONE } else { SHARED }).await
    }

    /// Ends the sessions of this role that carry out commands of a stream: whoever leads now has waited for them in vain. The
    /// server ends them itself where they wait for too long, but not where its clock was set back meanwhile.
    async fn end_superseded(&self, stream: CommandStream<'_>) -> Result<(), SourceError> {
        let ended = sqlx::query(
            "select pg_terminate_backend(l.pid) from pg_locks l join pg_stat_activity a on a.pid = l.pid
             where l.locktype = 'advisory' and l.pid <> pg_backend_pid() and a.usename = current_user
             and l.database = (select d.oid from pg_database d where d.datname = current_database())
             and l.classid::bigint << 32 | l.objid::bigint = hashtextextended('cachekeeper.writer:' || $1 || ' ' || $2, 0)",
        )
        .bind(stream.namespace)
        .bind(stream.name)
        .execute(&self.pool)
        .await;
        ended
            .map(drop)
            .map_err(|source| SourceError::new("end the transactions of an earlier leader", source))
    }

    /// Takes the right to apply commands of a stream from whoever had it; answers the token of the right. Where transactions of
    /// an earlier leader do not end within `lock_timeout`, they are ended, and it is to be tried again.
    pub async fn take_over_writes(&self, stream: CommandStream<'_>) -> Result<i64, SourceError> {
        let error = |source| SourceError::new("take over the write commands", source);
        let mut transaction = self.begin_write().await?;
        // Waits for transactions that are under way; later ones of an older holder see the new token.
        let locked = sqlx::query(
            "select pg_advisory_xact_lock(hashtextextended('cachekeeper.writer:' || $1 || ' ' || $2, 0))",
        )
        .bind(stream.namespace)
        .bind(stream.name)
        .execute(&mut *transaction)
        .await;
        if let Err(source) = locked {
            let error = error(source);
            drop(transaction);
            if error.kind == ErrorKind::Cancelled {
                self.end_superseded(stream).await?;
            }
            return Err(error);
        }
        let token: i64 = sqlx::query_scalar(
            "insert into cachekeeper.writer as w (namespace, stream, token) values ($1, $2, 1)
             on conflict (namespace, stream) do update set token = w.token + 1 returning token",
        )
        .bind(stream.namespace)
        .bind(stream.name)
        .fetch_one(&mut *transaction)
        .await
        .map_err(error)?;
        transaction.commit().await.map_err(error)?;
        Ok(token)
    }
}

/// Between two commands of a transaction: what the last one did stays, whatever becomes of the next.
pub(crate) async fn keep_last(connection: &mut Session, is_first: bool) -> Result<(), SourceError> {
    let sql = if is_first { "savepoint command" } else { "release savepoint command; savepoint command" };
    let done = connection.execute(sql).await;
    done.map(drop).map_err(|source| SourceError::new("keep what a command did", source))
}

/// Takes back what the command since [`keep_last`] did, also where it failed.
///
/// # Errors
/// [`SourceError`]; the connection is broken then.
pub(crate) async fn undo_last(connection: &mut Session) -> Result<(), SourceError> {
    let done = connection.execute("rollback to savepoint command").await;
    done.map(drop).map_err(|source| SourceError::new("take back what a command did", source))
}

/// Whether the holder of this token may still apply commands of the stream; until this transaction ends, nobody else can
/// take over.
pub async fn is_leader(
    connection: &mut Session,
    stream: CommandStream<'_>,
    token: i64,
) -> Result<bool, SourceError> {
    let error = |source| SourceError::new("check the right to write", source);
    sqlx::query(
        "select pg_advisory_xact_lock_shared(hashtextextended('cachekeeper.writer:' || $1 || ' ' || $2, 0))",
    )
    .bind(stream.namespace)
    .bind(stream.name)
    .execute(&mut *connection)
    .await
    .map_err(error)?;
    // A statement of its own: its snapshot is taken after the lock.
    let newest: Option<i64> =
        sqlx::query_scalar("select token from cachekeeper.writer where namespace = $1 and stream = $2")
            .bind(stream.namespace)
            .bind(stream.name)
            .fetch_optional(connection)
            .await
            .map_err(error)?;
    Ok(newest == Some(token))
}
