//! Datasets of the reads that take the most of the database's time.

use std::collections::BTreeSet;

use super::draft::{Draft, Refusal, Rule, Setting};
use super::read::{NO_TABLE, Read, read};
use super::relations::tables_of;
use super::settle::Proposals;
use super::table;
use super::toml::quoted;
use crate::cli::output::{Exit, Output};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::{Busy, BusyStatement, ErrorKind, Outlined, TableOutline};

/// Statements that are looked at.
const STATEMENTS_MAX: i64 = 500;
/// Statements that could not become a dataset, and are named.
const NAMED_MAX: usize = 50;
/// Of a statement's text this much is shown, in characters.
const SHOWN_MAX: usize = 200;

const INSTALL: &str = "a superuser loads it when the server starts, by shared_preload_libraries = 'pg_stat_statements' in postgresql.conf \
    (beside what stands there) and a restart, and then says in this database: create extension pg_stat_statements;";

/// Proposes so many. The inner error: nothing can be proposed, which was said.
pub async fn propose(
    context: &Context,
    top: usize,
    proposals: &mut Proposals<'_>,
    out: &Output,
) -> Result<Result<(), Exit>, EngineError> {
    let (statements, hidden) = match context.postgres.busy_statements(STATEMENTS_MAX).await? {
        Busy::Read(statements, hidden) => (statements, hidden),
        Busy::NotInstalled { is_created } => {
            let what =
                if is_created { "is not loaded by the server" } else { "is not installed in this database" };
            out.failure(&format!("pg_stat_statements {what}: {INSTALL}"));
            return Ok(Err(Exit::Failed));
        }
    };
    let mut seen = BTreeSet::new();
    let mut others = Vec::new();
    for statement in &statements {
        if proposals.datasets.len() == top {
            break;
        }
        let told = told(statement);
        match draft(context, statement, &told).await? {
            Ok(draft) if !seen.insert((draft.query.clone(), draft.key.clone())) => {
                others.push(Refusal::new(&told, "reads the same as one above", ""));
            }
            Ok(draft) => proposals.add(draft).await?,
            // What drivers and people ask the server itself is no candidate.
            Err(reason) if reason == NO_TABLE => {}
            Err(reason) => others.push(Refusal::new(&told, reason, "")),
        }
    }
    let more = others.len().saturating_sub(NAMED_MAX);
    others.into_iter().take(NAMED_MAX).for_each(|other| proposals.refuse(other));
    if 0 < more {
        out.note(&format!("note: {more} other statements could not become datasets either"));
    }
    if 0 < hidden {
        out.note(&format!(
            "note: the texts of {hidden} statements of other roles are hidden: grant pg_read_all_stats to this role to see them"
        ));
    }
    if statements.is_empty() {
        out.note("note: pg_stat_statements has counted no statement that reads");
    }
    Ok(if proposals.datasets.is_empty() { Err(Exit::Failed) } else { Ok(()) })
}

/// What it costs, and the beginning of its text.
fn told(statement: &BusyStatement) -> String {
    let BusyStatement { text, calls, total_ms } = statement;
    #[expect(clippy::cast_precision_loss, reason = "a mean that is shown with few digits")]
    let mean = total_ms / (*calls).max(1) as f64;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().take(SHOWN_MAX).collect();
    let rest = if cut.len() < line.len() { " …" } else { "" };
    format!("{calls} calls of {mean:.2} ms, {:.1} s in all: {cut}{rest}", total_ms / 1_000.0)
}

/// A dataset of a statement, or why there is none.
async fn draft(
    context: &Context,
    statement: &BusyStatement,
    told: &str,
) -> Result<Result<Draft, String>, EngineError> {
    let found = match read(&statement.text) {
        Ok(found) => found,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut draft = Draft {
        origin: told.to_owned(),
        about: vec![format!("{told}.")],
        query: found.query(),
        key: found.by.iter().map(|by| by.shown.clone()).collect(),
        ..Draft::default()
    };
    let is_unique = match &found.table {
        Some(name) => match outline(context, name).await? {
            Ok(table) => {
                if let Some((reason, _)) = table::flaw(&table) {
                    return Ok(Err(reason));
                }
                of_one(context, &table, &found, &mut draft).await?
            }
            Err(reason) => return Ok(Err(reason)),
        },
        None => {
            of_several(context, &found, &mut draft).await?;
            false
        }
    };
    if found.has_limit && !is_unique {
        return Ok(Err("reads a number of rows (limit), and a list is stored as a whole".to_owned()));
    }
    if !is_unique {
        let about = "Nothing makes its rows unique by the key, so that an entry is a list.".to_owned();
        draft.settings.push(Setting { about, line: "rows = \"many\"".to_owned() });
        let order = found.order.iter().map(|order| format!("sort = {}", quoted(order)));
        draft.settings.extend(order.map(|line| Setting { about: String::new(), line }));
    }
    if 1 < found.by.len() {
        draft.hints.push(
            "pg_stat_statements shows constants as parameters. Where one of the key's columns always has the same value, write that \
             into the query, and take it out of the key and the watch rule."
                .to_owned(),
        );
    }
    Ok(Ok(draft))
}

async fn outline(context: &Context, name: &str) -> Result<Result<TableOutline, String>, EngineError> {
    match context.postgres.outline(name).await {
        Ok(Outlined::Table(table)) => Ok(Ok(*table)),
        Ok(Outlined::Missing(_)) => {
            Ok(Err(format!("reads {name}, which is not there, or not in the search path")))
        }
        Err(error) if error.kind == ErrorKind::Data => Ok(Err(format!("reads {name}, which is no table"))),
        Err(error) => Err(error.into()),
    }
}

/// Of one table; answers whether the key is unique there.
async fn of_one(
    context: &Context,
    table: &TableOutline,
    found: &Read,
    draft: &mut Draft,
) -> Result<bool, EngineError> {
    let has = |name: &String| found.by.iter().any(|by| by.column == *name);
    let mut keys = table.keys.iter().filter(|key| key.columns.iter().all(has));
    let unique = keys.next();
    let is_primary = unique.is_some_and(|key| key.is_primary && key.columns.len() == found.by.len());
    let columns: Vec<&str> = found.by.iter().map(|by| by.column.as_str()).collect();
    let mut names = table::names(&table.schema, &table.name);
    if !is_primary {
        names = table::names(&table.schema, &format!("{}_by_{}", table.name, columns.join("_")));
    }
    draft.names = names;
    let reads = match table.kind {
        'v' => tables_of(context, &draft.query).await?,
        _ => Vec::new(),
    };
    let pairs = found.by.iter().map(|by| (by.shown.clone(), by.column.clone()));
    table::watch(table, &reads, pairs.collect(), draft);
    Ok(unique.is_some())
}

/// Of tables that are joined.
async fn of_several(context: &Context, found: &Read, draft: &mut Draft) -> Result<(), EngineError> {
    let reads = tables_of(context, &draft.query).await?;
    let first =
        reads.first().map_or("read", |table| table.rsplit('.').next().unwrap_or(table).trim_matches('"'));
    let columns: Vec<&str> = found.by.iter().map(|by| by.shown.as_str()).collect();
    draft.names = table::names("read", &format!("{first}_by_{}", columns.join("_")));
    draft.watch = reads.into_iter().map(|table| Rule::Dataset { table }).collect();
    draft.about_watch = "Any change of these tables loads the whole dataset again. For one whose rows touch certain entries alone, \
        key = { PLACEHOLDER = \"COLUMN\" } or a tag instead of dataset = true is much less work."
        .to_owned();
    Ok(())
}
