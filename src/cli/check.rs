//! `cachekeeper check`: syntax and meaning are checked by now; the servers come next.

mod write;

use std::collections::BTreeSet;

use serde_json::json;

use super::output::{Exit, Output};
use cachekeeper_config::diagnostic::{Diagnostic, Severity};
use cachekeeper_config::{Config, FeedNeed};
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::namespaces::{self, CONFLICT_HELP};
use cachekeeper_engine::stores::postgres::{ErrorKind, Inspection};
use cachekeeper_engine::stores::redis::ServerFacts;

/// Checks what only the servers know.
pub async fn check(config: Config, offline: bool, out: &Output) -> Result<Exit, EngineError> {
    let mut problems = Vec::new();
    if !offline {
        let context = Context::new(&config)?;
        check_servers(&config, &context, &mut problems).await?;
    }
    let notes = write::notes(&config);
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    if out.json {
        out.line(
            &json!({ "ok": errors == 0, "datasets": config.datasets.len(), "problems": problems, "notes": notes })
                .to_string(),
        );
    } else {
        if !problems.is_empty() {
            out.problems(&problems);
        }
        if errors == 0 {
            let how = if offline { "servers not asked" } else { "servers asked" };
            let plural = if config.datasets.len() == 1 { "dataset" } else { "datasets" };
            out.line(&format!("configuration is right: {} {plural}, {how}", config.datasets.len()));
        }
        notes.iter().for_each(|note| out.note(&format!("note: {note}")));
    }
    Ok(if errors == 0 { Exit::Ok } else { Exit::Configuration })
}

async fn check_servers(
    config: &Config,
    context: &Context,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    context.postgres.ping().await?;
    let facts = context.redis.facts().await?;
    if !check_redis(config, &facts, problems) {
        return Ok(());
    }
    if facts.evicts_anything() {
        let message = format!("Redis may evict anything (maxmemory-policy {})", facts.maxmemory_policy);
        let required = config.datasets.iter().any(|dataset| dataset.feed == FeedNeed::Required);
        let help =
            "each eviction of a stamp table makes everything be loaded again; use volatile-lru or noeviction";
        let problem = config.source.problem("redis.url", message, help.to_owned());
        problems.push(if required { problem } else { problem.into_warning() });
    }
    match context.postgres.poll().await {
        Err(error) if error.kind == ErrorKind::NoSchema => {
            let help = "run `cachekeeper migrate` as a user who may create a schema".to_owned();
            let message = "the schema `cachekeeper` is not installed";
            problems.push(config.source.problem("postgres.url", message, help));
        }
        Err(error) if error.kind == ErrorKind::Standby => return Err(error.into()),
        Err(_) | Ok(_) => {}
    }
    let flaws = context.postgres.schema_flaws().await?;
    if !flaws.is_empty() {
        let help = "run `cachekeeper migrate` as the schema's owner, which mends it".to_owned();
        let message =
            format!("the schema `cachekeeper` is not as this version makes it: {}", flaws.join("; "));
        problems.push(config.source.problem("postgres.url", message, help));
        return Ok(());
    }
    let mut wrong = BTreeSet::new();
    for dataset in context.catalog.iter() {
        let known = problems.len();
        check_dataset(config, context, dataset, problems).await?;
        if problems.iter().skip(known).any(|problem| problem.severity == Severity::Error) {
            wrong.insert(dataset.name().to_owned());
        }
        write::check(config, context, dataset, problems).await?;
    }
    check_overlaps(config, context, problems);
    for conflict in namespaces::conflicts(context, config).await? {
        let help = CONFLICT_HELP.to_owned();
        problems.push(config.source.problem(&conflict.setting, conflict.message, help));
    }
    check_coverage(config, context, &wrong, problems).await
}

/// Whether this Redis can be written at all.
fn check_redis(config: &Config, facts: &ServerFacts, problems: &mut Vec<Diagnostic>) -> bool {
    let (message, help) = if facts.is_cluster_node {
        ("this Redis is a node of a cluster, which Cachekeeper does not support yet", "use a single Redis")
    } else if facts.role != "master" {
        ("this Redis is a replica, where nothing can be stored", "give the address of its master")
    } else {
        return true;
    };
    problems.push(config.source.problem("redis.url", message, help.to_owned()));
    false
}

/// Whether every change would be captured. Nothing is installed here.
async fn check_coverage(
    config: &Config,
    context: &Context,
    wrong: &BTreeSet<String>,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    let coverage = match coverage::look(context, false).await {
        Ok(coverage) => coverage,
        // Said already.
        Err(EngineError::Source(error)) if error.kind == ErrorKind::NoSchema => return Ok(()),
        Err(error) => return Err(error),
    };
    // What is wrong with a dataset is said already, and is mostly why it is not covered.
    for (name, reason) in coverage.gaps().filter(|(name, _)| !wrong.contains(*name)) {
        let is_required =
            context.catalog.get(name).is_some_and(|dataset| dataset.settings.feed == FeedNeed::Required);
        let message = format!("changes of dataset {name} would be missed: {reason}");
        let help = if is_required {
            "the dataset says feed = \"required\", so the worker would not be ready"
        } else {
            "its entries are as fresh as events and lifetimes keep them"
        };
        let setting = format!("dataset.{name}.watch");
        let problem = config.source.problem(&setting, message, help.to_owned());
        problems.push(if is_required { problem } else { problem.into_warning() });
    }
    Ok(())
}

async fn check_dataset(
    config: &Config,
    context: &Context,
    dataset: &Dataset,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    let path = |setting: &str| format!("dataset.{}.{setting}", dataset.name());
    let source = match dataset.source(&context.postgres).await {
        Ok(source) => source,
        Err(EngineError::Dataset { problem, .. }) => {
            let setting = path(problem.setting);
            problems.push(config.source.problem_within(
                &setting,
                problem.offset,
                problem.message,
                problem.help,
            ));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let query = path("query");
    let inspection = match context.postgres.inspect(&dataset.settings.query).await {
        Ok(inspection) => inspection,
        Err(error) if error.is_transient() => return Err(error.into()),
        Err(error) => {
            let message = format!("what the query reads cannot be found out: {}", error.message());
            let help = "grant temporary on the database to the worker's role; until then nothing is covered"
                .to_owned();
            problems.push(config.source.problem(&query, message, help));
            Inspection::default()
        }
    };
    let relations: Vec<String> = inspection.relations.iter().map(|relation| relation.name.clone()).collect();
    for finding in context.postgres.check_dataset(&dataset.settings, &source, &relations).await? {
        let problem = config.source.problem(&path(&finding.setting), finding.message, finding.help);
        let is_warning = finding.is_warning || (finding.setting.starts_with("watch") && !context.feed.is_on);
        problems.push(if is_warning { problem.into_warning() } else { problem });
    }
    for relation in inspection.relations.iter().filter(|relation| relation.kind == 'f') {
        let message = format!(
            "the query reads the foreign table {}, which this server's snapshots do not cover",
            relation.name
        );
        problems.push(config.source.problem(
            &query,
            message,
            "copy its rows into a table of this server".to_owned(),
        ));
    }
    if inspection.has_system_columns {
        let message =
            "the query uses a system column (ctid, xmin or the like), which changes although no row does"
                .to_owned();
        problems.push(config.source.problem(&query, message, "leave it out".to_owned()));
    }
    check_functions(config, dataset, &inspection, problems);
    Ok(())
}

/// Functions whose results do not follow from the rows that are seen.
fn check_functions(
    config: &Config,
    dataset: &Dataset,
    inspection: &Inspection,
    problems: &mut Vec<Diagnostic>,
) {
    let query = format!("dataset.{}.query", dataset.name());
    for function in &inspection.functions {
        let name = &function.name;
        if function.volatility == 'v' {
            let message =
                format!("the query calls {name}, which is volatile: it can return data newer than its stamp");
            let help = "declare the function stable if it is, or leave it out".to_owned();
            problems.push(config.source.problem(&query, message, help));
        } else if matches!(name.as_str(), "now" | "transaction_timestamp" | "statement_timestamp") {
            let message =
                format!("the query calls {name}(): its result changes without any change of the data");
            let help = "give the dataset a short ttl, or leave the time to the readers".to_owned();
            problems.push(config.source.problem(&query, message, help).into_warning());
        } else if function.is_opaque && dataset.settings.reads.is_empty() {
            let message = format!("the query calls {name}, whose body is a text that may read any table");
            let help = "write it `begin atomic`, or name its tables in `reads` and watch them".to_owned();
            problems.push(config.source.problem(&query, message, help).into_warning());
        }
    }
}

/// With the types known, whether two datasets' keys can coincide, or one's with a stream, is known too.
fn check_overlaps(config: &Config, context: &Context, problems: &mut Vec<Diagnostic>) {
    let datasets: Vec<_> = context.catalog.iter().collect();
    for (position, later) in datasets.iter().enumerate() {
        let Some(left) = later.known_source() else { continue };
        let (key, setting) = (&later.settings.key, format!("dataset.{}.key", later.name()));
        for earlier in datasets.iter().take(position) {
            let Some(right) = earlier.known_source() else { continue };
            let other = &earlier.settings.key;
            if key.overlaps(|column| left.alphabet(column), other, |column| right.alphabet(column)) {
                let message = format!("keys {key} and {other} of dataset {} could coincide", earlier.name());
                let help = "begin each dataset's keys with a prefix of its own".to_owned();
                problems.push(config.source.problem(&setting, message, help));
            }
        }
        for (user, used) in config.stream_keys() {
            if key.could_be(|column| left.alphabet(column), &used) {
                let message = format!("keys {key} could coincide with {used}, which {user} uses");
                let help = "give the stream another name, or the dataset's keys another prefix".to_owned();
                problems.push(config.source.problem(&setting, message, help));
            }
        }
    }
}
