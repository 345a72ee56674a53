//! Write statements: described once, carried out with typed parameters, and what they touched.

use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow};
use sqlx::{
    AssertSqlSafe, Connection as _, Either, Executor, PgPool, Row as _, SqlSafeStr, Statement, Transaction,
    TypeInfo as _, ValueRef as _,
};

use super::feed::change_of;
use super::statement::type_name;
use super::{Change, Postgres, SourceError, Trouble};
use cachekeeper_protocol::parameters::ParameterizedSql;

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
    /// The columns and texts of a `returning` list, for each row; only integers, texts and UUIDs.
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
        self.begin_with("begin read write").await
    }

    pub(super) async fn begin_with(
        &self,
        begin: &'static str,
    ) -> Result<Transaction<'static, sqlx::Postgres>, SourceError> {
        let pool: &PgPool = &self.pool;
        let begun = pool.begin_with(begin).await;
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
            && error.trouble == Trouble::Changed
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

/// Notes keys of datasets in the outbox, so that the feed sees to them if this process does not: dataset and key of each; no
/// key stands for the whole dataset.
/// The outbox stays bounded as for triggers.
///
/// # Errors
/// [`SourceError`]; the transaction is over then.
pub async fn note_keys(
    connection: &mut PgConnection,
    keys: &[(&str, Option<&str>)],
    max_outbox: u64,
) -> Result<(), SourceError> {
    let (datasets, keys): (Vec<&str>, Vec<Option<&str>>) = keys.iter().copied().unzip();
    let done = sqlx::query(
        "insert into cachekeeper.outbox (capture, version, keys)
         select $1, 0, (select array_agg(array[d, k]) from unnest($2::text[], $3::text[]) as u (d, k))
         where nextval('cachekeeper.outbox_count') <= $4",
    )
    .bind(DIRECT)
    .bind(datasets)
    .bind(keys)
    .bind(i64::try_from(max_outbox).unwrap_or(i64::MAX))
    .execute(connection)
    .await;
    done.map(drop).map_err(|source| SourceError::new("note what a write touched", source))
}

impl SourceError {
    /// A commit that failed.
    #[must_use]
    pub fn of_commit(source: sqlx::Error) -> Self {
        Self::new("commit a write", source)
    }
}
