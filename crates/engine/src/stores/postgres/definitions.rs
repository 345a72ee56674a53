//! The order of the definitions of a dataset (R16): each has a number, given when a worker has it for the first time.

use std::collections::HashMap;

use sqlx::Row as _;

use super::{Postgres, SourceError};

/// How often other workers may be faster.
const ATTEMPTS: usize = 10;

impl Postgres {
    /// The numbers of these definitions (dataset, hash), in their order; what is seen for the first time gets the next one.
    ///
    /// # Errors
    /// [`SourceError`], for example without the right to write there.
    pub(crate) async fn definition_serials(
        &self,
        namespace: &str,
        definitions: &[(&str, &str)],
    ) -> Result<Vec<u64>, SourceError> {
        for _ in 0..ATTEMPTS {
            let known = self.known_serials(namespace).await?;
            let serial = |(dataset, definition): &(&str, &str)| {
                known.get(&((*dataset).to_owned(), (*definition).to_owned())).copied()
            };
            if let Some(serials) = definitions.iter().map(serial).collect() {
                return Ok(serials);
            }
            let new: Vec<_> = definitions.iter().filter(|definition| serial(definition).is_none()).collect();
            self.number_definitions(namespace, &new).await?;
        }
        let text = "other workers were faster each time";
        Err(SourceError::with("number a definition", super::ErrorKind::Cancelled, text.to_owned()))
    }

    async fn known_serials(&self, namespace: &str) -> Result<HashMap<(String, String), u64>, SourceError> {
        let error = |source| SourceError::new("read the order of definitions", source);
        let sql = "select dataset, definition, serial from cachekeeper.definition where namespace = $1";
        let rows = sqlx::query(sql).bind(namespace).fetch_all(&self.pool).await.map_err(error)?;
        let read = |row: &sqlx::postgres::PgRow| {
            let serial: i64 = row.try_get(2)?;
            Ok(((row.try_get(0)?, row.try_get(1)?), u64::try_from(serial).unwrap_or_default()))
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
    }

    async fn number_definitions(&self, namespace: &str, new: &[&(&str, &str)]) -> Result<(), SourceError> {
        let error = |source| SourceError::new("number a definition", source);
        let (datasets, definitions): (Vec<&str>, Vec<&str>) = new.iter().copied().copied().unzip();
        let mut transaction = self.begin_write().await?;
        // Whoever is slower than another worker finds its number taken, and asks again.
        sqlx::query(
            "insert into cachekeeper.definition (namespace, dataset, definition, serial)
             select $1, n.dataset, n.definition, 1 + coalesce((select max(d.serial) from cachekeeper.definition d
                 where d.namespace = $1 and d.dataset = n.dataset), 0)
             from unnest($2::text[], $3::text[]) n(dataset, definition) on conflict do nothing",
        )
        .bind(namespace)
        .bind(datasets)
        .bind(definitions)
        .execute(&mut *transaction)
        .await
        .map_err(error)?;
        transaction.commit().await.map_err(error)
    }
}
