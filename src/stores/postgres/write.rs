//! Write statements: described once, carried out with typed parameters, and what they touched.

use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Either, Executor, PgPool, Row as _, SqlSafeStr, Statement, Transaction};

use super::feed::change_of;
use super::statement::type_name;
use super::{Change, Postgres, SourceError, Trouble};
use crate::domain::parameters::ParameterizedSql;

/// A write statement whose parameters Postgres has described.
#[derive(Debug)]
pub struct WriteStatement {
    /// The places where parameters stand: name, and type as SQL text.
    pub places: Vec<(String, String)>,
    sql: String,
}

/// What a statement did.
#[derive(Debug, Clone, Default)]
pub struct Executed {
    /// Rows that it inserted, updated or deleted.
    pub rows: u64,
    /// The columns and texts of a `returning` list, for each row; only integers and texts.
    pub returned: Vec<Vec<(String, String)>>,
}

/// The capture of an outbox row that names a dataset and a key directly, for tables that no trigger watches.
pub const DIRECT: i32 = -1;

impl Postgres {
    /// Asks the database for the types of a write statement's parameters.
    ///
    /// # Errors
    /// [`SourceError`]; [`Trouble::Statement`] where it is wrong.
    pub async fn describe_write(&self, statement: &str) -> Result<WriteStatement, SourceError> {
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
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn begin_write(&self) -> Result<Transaction<'static, sqlx::Postgres>, SourceError> {
        let pool: &PgPool = &self.pool;
        let begun = pool.begin_with("begin read write").await;
        begun.map_err(|source| SourceError::new("begin a write", source))
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

    /// Drops records of commands that the stream has left behind and that are older than a day; answers how many.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn prune_applied(&self, stream: &str, oldest: Option<(i64, i64)>) -> Result<u64, SourceError> {
        let error = |source| SourceError::new("drop old records of commands", source);
        let (ms, seq) = oldest.unwrap_or((i64::MAX, i64::MAX));
        let mut transaction = self.begin_write().await?;
        let done = sqlx::query(
            "delete from cachekeeper.applied where stream = $1 and (entry_ms, entry_seq) < ($2, $3) and at < now() - interval '1 day'",
        )
        .bind(stream)
        .bind(ms)
        .bind(seq)
        .execute(&mut *transaction)
        .await
        .map_err(error)?;
        transaction.commit().await.map_err(error)?;
        Ok(done.rows_affected())
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
        let mut executed = Executed::default();
        let mut results = connection.fetch_many(query);
        while let Some(result) =
            results.try_next().await.map_err(|source| SourceError::new("carry out a write", source))?
        {
            match result {
                Either::Left(done) => executed.rows += done.rows_affected(),
                Either::Right(row) => executed.returned.push(texts(&row)),
            }
        }
        Ok(executed)
    }
}

fn texts(row: &PgRow) -> Vec<(String, String)> {
    use sqlx::Column;
    let text = |index: usize| {
        let wide = row.try_get::<i64, _>(index).map(|number| number.to_string());
        let wide = wide.or_else(|_| row.try_get::<i32, _>(index).map(|number| number.to_string()));
        wide.or_else(|_| row.try_get::<String, _>(index)).ok()
    };
    let columns = row.columns().iter().enumerate();
    columns.filter_map(|(index, column)| Some((column.name().to_owned(), text(index)?))).collect()
}

/// What this transaction has changed so far, as the triggers captured it; empty without the schema.
///
/// # Errors
/// [`SourceError`]; the transaction is over then.
pub async fn captured_here(connection: &mut PgConnection) -> Result<Vec<Change>, SourceError> {
    let what = "read what a write touched";
    let error = |source| SourceError::new(what, source);
    let rows = sqlx::query(
        "select capture, array_to_json(keys)::text, (extract(epoch from at) * 1000000)::bigint, version
         from cachekeeper.outbox where xid = pg_current_xact_id()",
    )
    .fetch_all(connection)
    .await
    .map_err(error)?;
    rows.iter().map(|row| change_of(row, 0).map_err(error)).collect()
}

/// Whether the schema is installed and this role may use its outbox and records.
///
/// # Errors
/// [`SourceError`].
pub async fn has_outbox(connection: &mut PgConnection) -> Result<bool, SourceError> {
    let sql =
        "select coalesce(has_table_privilege(to_regclass('cachekeeper.outbox'), 'select, insert'), false)";
    let has: Result<bool, _> = sqlx::query_scalar(sql).fetch_one(connection).await;
    has.map_err(|source| SourceError::new("look for the outbox", source))
}

/// Notes keys of datasets in the outbox, so that the feed sees to them if this process does not.
///
/// # Errors
/// [`SourceError`]; the transaction is over then.
pub async fn note_keys(
    connection: &mut PgConnection,
    dataset: &str,
    keys: &[String],
) -> Result<(), SourceError> {
    let datasets: Vec<String> = keys.iter().map(|_| dataset.to_owned()).collect();
    let done = sqlx::query(
        "insert into cachekeeper.outbox (capture, version, keys)
         select $1, 0, array_agg(array[d, k]) from unnest($2::text[], $3::text[]) as u (d, k)",
    )
    .bind(DIRECT)
    .bind(datasets)
    .bind(keys)
    .execute(connection)
    .await;
    done.map(drop).map_err(|source| SourceError::new("note what a write touched", source))
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

impl SourceError {
    /// A commit that failed.
    #[must_use]
    pub fn of_commit(source: sqlx::Error) -> Self {
        Self::new("commit a write", source)
    }

    /// Whether the transaction failed only because of others that ran beside it (SQLSTATE 40001, 40P01).
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        let code = self.source.as_database_error().and_then(|error| error.code());
        matches!(code.as_deref(), Some("40001" | "40P01"))
    }

    /// What the server says about a statement that it refused: the message and its detail.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        if self.is_conflict() || matches!(self.trouble, Trouble::Unavailable | Trouble::Cancelled) {
            return None;
        }
        self.source.as_database_error().map(|error| error.message().to_owned())
    }
}
