//! The schema `cachekeeper`: its migrations, and what is to be mended before and after them.

use std::sync::LazyLock;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Executor, PgConnection, Row as _, SqlSafeStr};

use super::holders::held;
use super::mend::{drop_replaced, drop_strays, grants, mend_rows, rebuild};
use super::schema::{describe, flaws, is_own};
use super::session::Session;
use super::{ErrorKind, Postgres, SourceError};

/// Version, description and text. Named here one by one: the macro that reads the folder would bring two crates of
/// code generation into every application that links the library.
const FILES: [(i64, &str, &str); 9] = [
    (1, "incarnation", include_str!("../../../migrations/0001_incarnation.sql")),
    (2, "outbox", include_str!("../../../migrations/0002_outbox.sql")),
    (3, "writes", include_str!("../../../migrations/0003_writes.sql")),
    (4, "row_capture", include_str!("../../../migrations/0004_row_capture.sql")),
    (5, "namespaces", include_str!("../../../migrations/0005_namespaces.sql")),
    (6, "writers", include_str!("../../../migrations/0006_writers.sql")),
    (7, "clocks", include_str!("../../../migrations/0007_clocks.sql")),
    (8, "definitions_and_lives", include_str!("../../../migrations/0008_definitions_and_lives.sql")),
    (9, "logged_sequences", include_str!("../../../migrations/0009_logged_sequences.sql")),
];

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let one = |(version, description, text): (i64, &'static str, &'static str)| {
        Migration::new(version, description.into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(FILES.into_iter().map(one).collect());
    migrator.dangerous_set_table_name("cachekeeper._sqlx_migrations");
    migrator
});

const WHAT: &str = "install the schema `cachekeeper`";

fn error(source: sqlx::Error) -> SourceError {
    SourceError::new(WHAT, source)
}

/// What has been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationState {
    /// Migrations in this build: version and description.
    pub known: Vec<(i64, String)>,
    /// Versions that the database has.
    pub applied: Vec<i64>,
}

impl Postgres {
    /// Creates or updates the schema, mends it where it is not as it should be, and records the incarnation.
    ///
    /// # Errors
    /// As [`Self::migrate_and_tell`].
    pub async fn migrate(&self) -> Result<MigrationState, SourceError> {
        self.migrate_and_tell(&mut Vec::new()).await
    }

    /// The same; adds to `mended` what was wrong. Where nothing is to be done, nothing is written, and no right to write is needed.
    ///
    /// # Errors
    /// [`SourceError`]: [`ErrorKind::Cancelled`] while others hold locks, with who it is, to be repeated then; [`ErrorKind::Foreign`]
    /// where something in the schema belongs to somebody else; [`ErrorKind::Forbidden`] without the right to create a schema.
    pub async fn migrate_and_tell(&self, mended: &mut Vec<String>) -> Result<MigrationState, SourceError> {
        let mut connection = self.open_for_schema().await?;
        match bring_up(&mut connection, mended).await {
            Ok(()) => {}
            Err(error) => return Err(held(&mut connection, &[], error).await),
        }
        connection.close().await.map_err(error)?;
        match self.poll().await {
            Err(error) if error.kind == ErrorKind::NoIncarnation => self.record_incarnation().await?,
            other => drop(other?),
        }
        self.migration_state().await
    }

    /// The publications for all tables that a schema which is not there yet would become part of.
    pub async fn publications_of_a_new_schema(&self) -> Result<Vec<String>, SourceError> {
        let sql = "select p.pubname::text from pg_catalog.pg_publication p where p.puballtables \
             and not exists (select from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper') order by 1";
        let found = sqlx::query_scalar(sql).fetch_all(&self.pool).await;
        found.map_err(|source| SourceError::new("look for publications", source))
    }

    /// Gives a role what the worker needs of the schema.
    ///
    /// # Errors
    /// [`SourceError`], for example when there is no such role.
    pub async fn grant(&self, role: &str) -> Result<(), SourceError> {
        let error = |source| SourceError::new("grant rights on the schema `cachekeeper`", source);
        let mut connection = self.open_for_schema().await?;
        for statement in grants(role) {
            connection.execute(sqlx::AssertSqlSafe(statement)).await.map_err(error)?;
        }
        Ok(())
    }

    /// Whether there is a role of this name.
    ///
    /// # Errors
    /// [`SourceError`] if the database does not answer.
    pub async fn has_role(&self, role: &str) -> Result<bool, SourceError> {
        let sql = "select exists (select from pg_catalog.pg_roles where rolname = $1)";
        let found = sqlx::query_scalar(sql).bind(role).fetch_one(&self.pool).await;
        found.map_err(|source| SourceError::new("look for a role", source))
    }

    /// The statement that lets a role make temporary views; none: it may.
    ///
    /// # Errors
    /// [`SourceError`] if the database does not answer.
    pub async fn missing_temporary(&self, role: &str) -> Result<Option<String>, SourceError> {
        let sql = "select format('grant temporary on database %I to %I', current_database(), $1::text) \
                   where not has_database_privilege($1::text, current_database(), 'temporary')";
        let found = sqlx::query_scalar(sql).bind(role).fetch_optional(&self.pool).await;
        found.map_err(|source| SourceError::new("look at the rights of a role", source))
    }

    /// What has been applied.
    ///
    /// # Errors
    /// [`SourceError`], also where nothing was.
    pub async fn migration_state(&self) -> Result<MigrationState, SourceError> {
        let what = "read which migrations are applied";
        let applied =
            sqlx::query_scalar("select version from cachekeeper._sqlx_migrations where success order by 1")
                .fetch_all(&self.pool)
                .await
                .map_err(|source| SourceError::new(what, source))?;
        let known = MIGRATIONS.iter().map(|step| (step.version, step.description.to_string())).collect();
        Ok(MigrationState { known, applied })
    }

    /// The statements by which [`Self::migrate`] would bring the schema up, for somebody who runs them by hand.
    ///
    /// # Errors
    /// [`SourceError`], also where something is to be mended, which only [`Self::migrate`] does.
    pub(crate) async fn schema_script(&self) -> Result<SchemaScript, SourceError> {
        let mut connection = self.open_for_schema().await?;
        is_own(&mut connection).await?;
        let damaged = |wrong: &str| {
            let text = format!("the schema is damaged, which only `cachekeeper migrate` mends: {wrong}");
            SourceError::with(WHAT, ErrorKind::Reply, text)
        };
        let applied = pending(&mut connection).await?.map_err(|wrong| damaged(&wrong))?;
        let missing: Vec<&Migration> = MIGRATIONS.iter().skip(applied).collect();
        if missing.is_empty() {
            let wrong = flaws(&mut connection).await?;
            let script = SchemaScript { was: Before::Current, statements: Vec::new() };
            return if wrong.is_empty() { Ok(script) } else { Err(damaged(&wrong.join("; "))) };
        }
        let was = if applied == 0 { Before::Nothing } else { Before::Older };
        let mut statements = vec!["begin".to_owned()];
        if was == Before::Nothing {
            statements.extend(["create schema if not exists cachekeeper".to_owned(), RECORD.to_owned()]);
        }
        for step in missing {
            statements.push(format!(
                "-- {:04} {}\n{}",
                step.version,
                step.description,
                step.sql.as_str().trim_end().trim_end_matches(';')
            ));
            statements.push(format!(
                "insert into cachekeeper._sqlx_migrations (version, description, success, checksum, execution_time) \
                 values ({}, '{}', true, '\\x{}', -1)",
                step.version,
                step.description,
                step.checksum.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            ));
        }
        statements.push("commit".to_owned());
        Ok(SchemaScript { was, statements })
    }

    /// The role of this connection, where it is not the one that makes the schema: a worker's, which needs rights.
    ///
    /// # Errors
    /// [`SourceError`]
    pub async fn own_role(&self) -> Result<Option<String>, SourceError> {
        let sql = "select r.rolname::text from pg_catalog.pg_roles r where r.rolname = current_user and not r.rolsuper \
             and not exists (select from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper' and n.nspowner = r.oid)";
        let found = sqlx::query_scalar(sql).fetch_optional(&self.pool).await;
        found.map_err(|source| SourceError::new("look at this role", source))
    }

    /// The statements that give a role what the worker needs.
    #[must_use]
    pub fn grant_script(role: &str) -> Vec<String> {
        grants(role)
    }
}

/// What is to be done for the schema.
#[derive(Debug)]
pub(crate) struct SchemaScript {
    /// What is there.
    pub was: Before,
    /// In this order.
    pub statements: Vec<String>,
}

/// What is there of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// No schema, or an empty one.
    Nothing,
    /// What an earlier version has made.
    Older,
    /// What this version makes.
    Current,
}

/// The record of applied migrations, as the driver makes it.
const RECORD: &str = "create table cachekeeper._sqlx_migrations (
    version bigint primary key,
    description text not null,
    installed_on timestamptz not null default now(),
    success boolean not null,
    checksum bytea not null,
    execution_time bigint not null
)";

/// Applies what is missing. What is there and wrong is made anew.
async fn bring_up(connection: &mut Session, mended: &mut Vec<String>) -> Result<(), SourceError> {
    if !is_own(connection).await? {
        let is_current = pending(connection).await? == Ok(FILES.len());
        let text = "it belongs to another role, and is of another version";
        return is_current
            .then_some(())
            .ok_or_else(|| SourceError::with(WHAT, ErrorKind::Foreign, text.to_owned()));
    }
    let exists: bool = sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper')",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(error)?;
    if !exists {
        connection.execute("create schema if not exists cachekeeper").await.map_err(error)?;
    }
    let mut wrong: Vec<String> = match pending(connection).await? {
        Err(reason) => vec![reason],
        Ok(applied) if applied == FILES.len() => Vec::new(),
        Ok(_) => match connection.plainly(WHAT, apply).await {
            Ok(()) => Vec::new(),
            Err(error) => {
                // A migration that meets something else than the one before it has left.
                if !matches!(error.kind, ErrorKind::NoSchema | ErrorKind::Statement) || !exists {
                    return Err(error);
                }
                vec![error.message()]
            }
        },
    };
    wrong.extend(flaws(connection).await?);
    if !wrong.is_empty() {
        mended.append(&mut wrong);
        rebuild(connection, &MIGRATIONS, mended).await?;
        let still = flaws(connection).await?;
        if !still.is_empty() {
            return Err(SourceError::with(WHAT, ErrorKind::Reply, still.join("; ")));
        }
    }
    drop_replaced(connection).await?;
    mend_rows(connection, mended).await?;
    drop_strays(connection, mended).await
}

async fn apply(connection: &mut PgConnection) -> Result<(), SourceError> {
    MIGRATIONS.run_direct(None, connection, false).await.map_err(|source| error(source.into()))
}

/// How many migrations are applied, or why what is recorded of them cannot be true.
///
/// # Errors
/// [`SourceError`], also where a newer version has made the schema.
async fn pending(connection: &mut Session) -> Result<Result<usize, String>, SourceError> {
    let found = describe(connection).await?;
    if found.is_empty() {
        return Ok(Ok(0));
    }
    if !found.contains("table _sqlx_migrations") {
        return Ok(Err("the record of applied migrations was missing".to_owned()));
    }
    let sql = "select version, success from cachekeeper._sqlx_migrations order by version";
    let rows = match sqlx::query(sql).fetch_all(&mut *connection).await.map_err(error) {
        Ok(rows) => rows,
        Err(error) if error.kind == ErrorKind::Statement => return Ok(Err(error.message())),
        Err(error) => return Err(error),
    };
    let mut applied: Vec<(i64, bool)> = Vec::new();
    for row in &rows {
        applied.push((row.try_get(0).map_err(error)?, row.try_get(1).map_err(error)?));
    }
    let known: Vec<i64> = MIGRATIONS.iter().map(|step| step.version).collect();
    if let Some((newer, _)) = applied.iter().find(|(version, _)| known.iter().all(|known| known < version)) {
        let text = format!("a newer version of Cachekeeper has made it (migration {newer}); use that one");
        return Err(SourceError::with(WHAT, ErrorKind::Reply, text));
    }
    let is_beginning =
        applied.iter().zip(&known).all(|((version, success), known)| version == known && *success);
    Ok(match applied.len() {
        0 => Err("the record of applied migrations was empty".to_owned()),
        _ if !is_beginning => Err("the record of applied migrations has gaps".to_owned()),
        count => Ok(count),
    })
}
