//! The schema `cachekeeper`.

use std::sync::LazyLock;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, Executor, SqlSafeStr};

use super::capture::forget_copied;
use super::statement::quote;
use super::{Postgres, SourceError};

/// Version, description and text. Named here one by one: the macro that reads the folder would bring two crates of
/// code generation into every application that links the library.
const FILES: [(i64, &str, &str); 5] = [
    (1, "incarnation", include_str!("../../../../../migrations/0001_incarnation.sql")),
    (2, "outbox", include_str!("../../../../../migrations/0002_outbox.sql")),
    (3, "writes", include_str!("../../../../../migrations/0003_writes.sql")),
    (4, "row_capture", include_str!("../../../../../migrations/0004_row_capture.sql")),
    (5, "namespaces", include_str!("../../../../../migrations/0005_namespaces.sql")),
];

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let one = |(version, description, text): (i64, &'static str, &'static str)| {
        Migration::new(version, description.into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(FILES.into_iter().map(one).collect())
});

/// What has been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationState {
    /// Migrations in this build: version and description.
    pub known: Vec<(i64, String)>,
    /// Versions that the database has.
    pub applied: Vec<i64>,
}

impl Postgres {
    /// Creates or updates the schema, and records the incarnation.
    ///
    /// # Errors
    /// [`SourceError`], for example without the right to create a schema.
    pub async fn migrate(&self) -> Result<MigrationState, SourceError> {
        let what = "install the schema `cachekeeper`";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        let exists: Option<bool> =
            sqlx::query_scalar("select exists (select from pg_namespace where nspname = 'cachekeeper')")
                .fetch_one(&mut connection)
                .await
                .map_err(error)?;
        if exists != Some(true) {
            connection.execute("create schema if not exists cachekeeper").await.map_err(error)?;
        }
        // The table of applied migrations belongs into the schema too.
        connection.execute("set search_path = cachekeeper, pg_catalog").await.map_err(error)?;
        MIGRATIONS.run_direct(None, &mut connection, false).await.map_err(|source| error(source.into()))?;
        forget_copied(&mut connection).await?;
        connection.close().await.map_err(error)?;
        self.record_incarnation().await?;
        self.migration_state().await
    }

    /// The publications for all tables that a schema which is not there yet would become part of.
    pub async fn publications_of_a_new_schema(&self) -> Result<Vec<String>, SourceError> {
        let sql = "select p.pubname::text from pg_catalog.pg_publication p where p.puballtables \
             and not exists (select from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper') order by 1";
        let found = sqlx::query_scalar(sql).fetch_all(&self.pool).await;
        found.map_err(|source| SourceError::new("look for publications", source))
    }

    /// Gives a role what the worker needs of the schema: to read it, to record the incarnation, and to keep
    /// the outbox small. Triggers it cannot make: that takes the tables' owner.
    ///
    /// # Errors
    /// [`SourceError`], for example when there is no such role.
    pub async fn grant(&self, role: &str) -> Result<(), SourceError> {
        let what = "grant rights on the schema `cachekeeper`";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        let role = quote(role);
        for statement in [
            format!("grant usage on schema cachekeeper to {role}"),
            format!("grant select on cachekeeper._sqlx_migrations to {role}"),
            format!("grant select, insert, delete on cachekeeper.incarnation to {role}"),
            format!("grant select, insert, delete on cachekeeper.outbox to {role}"),
            format!("grant select, update on cachekeeper.feed, cachekeeper.outbox_count to {role}"),
            format!("grant select on all sequences in schema cachekeeper to {role}"),
            format!("grant select, insert, update on cachekeeper.capture, cachekeeper.writer to {role}"),
            format!("grant select, insert, delete on cachekeeper.applied, cachekeeper.used_by to {role}"),
        ] {
            connection.execute(sqlx::AssertSqlSafe(statement)).await.map_err(error)?;
        }
        Ok(())
    }

    /// What has been applied.
    pub(crate) async fn migration_state(&self) -> Result<MigrationState, SourceError> {
        let what = "read which migrations are applied";
        let applied =
            sqlx::query_scalar("select version from cachekeeper._sqlx_migrations where success order by 1")
                .fetch_all(&self.pool)
                .await
                .map_err(|source| SourceError::new(what, source))?;
        let known = MIGRATIONS.iter().map(|step| (step.version, step.description.to_string())).collect();
        Ok(MigrationState { known, applied })
    }

    /// The SQL of all migrations, for somebody who applies it by hand.
    pub fn migration_sql() -> impl Iterator<Item = (i64, &'static str)> {
        MIGRATIONS.iter().map(|step| (step.version, step.sql.as_str()))
    }
}
