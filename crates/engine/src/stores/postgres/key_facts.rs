//! What may be the matter with a key that has no row: its text, or the role that asks.

use sqlx::AssertSqlSafe;

use super::statement::KeyType;
use super::{DatasetSource, ErrorKind, KeyValues, Postgres, SourceError};

impl Postgres {
    /// What the texts of a key are no value of, if a column cannot hold one of them.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn no_value(
        &self,
        source: &DatasetSource,
        values: &KeyValues,
    ) -> Result<Option<String>, SourceError> {
        for ((text, kind), column) in values.iter().zip(&source.key_types).zip(&source.key_columns) {
            let KeyType::Cast(name) = kind else { continue };
            let sql = format!("select ($1::text::{name}) is null");
            let read =
                sqlx::query(AssertSqlSafe(sql)).bind(text).persistent(false).fetch_one(&self.pool).await;
            let Err(error) = read else { continue };
            let error = SourceError::new("read a text as a value", error);
            if error.kind != ErrorKind::Data {
                return Err(error);
            }
            let column = source.columns.get(*column).map_or("the key", |column| column.name.as_str());
            return Ok(Some(format!("no value of {name}, the type of {column}")));
        }
        Ok(None)
    }

    /// The tables of a query whose rows this role sees only as far as row security lets it.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn row_security_of(&self, query: &str) -> Result<Option<String>, SourceError> {
        let what = "look for row security";
        let sql = "select c.oid::pg_catalog.regclass::text from pg_catalog.pg_class c
            where c.relrowsecurity and pg_catalog.row_security_active(c.oid)";
        let active: Result<Vec<String>, _> = sqlx::query_scalar(sql).fetch_all(&self.pool).await;
        let active = active.map_err(|source| SourceError::new(what, source))?;
        if active.is_empty() {
            return Ok(None);
        }
        let read = self.inspect(query).await?;
        let sql = "select t.name from unnest($1::text[]) t(name)
            where to_regclass(t.name) is not null and row_security_active(to_regclass(t.name)::oid)";
        let tables: Vec<&str> = read.tables().into_iter().collect();
        let hidden: Result<Vec<String>, _> = sqlx::query_scalar(sql).bind(tables).fetch_all(&self.pool).await;
        let hidden = hidden.map_err(|source| SourceError::new(what, source))?;
        Ok((!hidden.is_empty()).then(|| hidden.join(", ")))
    }
}
