//! Whether a pooler gives each statement or transaction another session of the server. Settings, prepared statements and locks
//! of sessions mean nothing then, so nothing is done there.

use std::time::Duration;

use sqlx::{PgConnection, Row as _};

/// Sessions are shared with others. Shown to users.
pub(super) const SHARED: &str = "a pooler in transaction or statement mode stands before the server: sessions keep neither settings nor locks there; \
     use its session mode (PgBouncer: pool_mode = session), or connect to the server directly";

/// Other clients of the pooler may hide it in one round.
const ROUNDS: usize = 3;
/// A session of one's own answers at once.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The process that answers.
pub(super) async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::raw_sql("select pg_catalog.pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Looks for proof that two clients share the sessions of the server: while both are there, both are given the same one, or one
/// changes. A pooler in session mode, and none at all, never shows that.
pub(super) async fn is_shared(
    connection: &mut PgConnection,
    own: i32,
    mut other: PgConnection,
) -> Result<bool, sqlx::Error> {
    for _ in 0..ROUNDS {
        let sql = "begin; select pg_catalog.pg_backend_pid()";
        let begun = match sqlx::raw_sql(sql).fetch_one(&mut other).await {
            Ok(row) => row.try_get::<i32, _>(0)?,
            Err(sqlx::Error::Database(error)) if error.message().contains("statement pooling") => {
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        if begun == own {
            return Ok(true);
        }
        let again = tokio::time::timeout(ANSWERS_WITHIN, process(connection)).await;
        if again.map_err(|_elapsed| std::io::Error::from(std::io::ErrorKind::TimedOut))?? != own {
            return Ok(true);
        }
        sqlx::raw_sql("rollback").execute(&mut other).await?;
    }
    Ok(false)
}
