//! What only the servers know of a configuration: `cachekeeper check` says it, and a reload refuses what is wrong. Syntax and meaning
//! are checked by then.

mod located;
mod write;

use std::collections::BTreeSet;

use self::located::located;
pub use self::write::notes;
use crate::admin::{self, FileProblem};
use cachekeeper_config::diagnostic::{Diagnostic, Severity};
use cachekeeper_config::{Config, FeedNeed};
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::miss_events;
use cachekeeper_engine::namespaces::{self, CONFLICT_HELP};
use cachekeeper_engine::rights;
use cachekeeper_engine::stores::postgres::{
    ErrorKind, Finding, Inspection, SourceProblem, Weight, findings_of_reads,
};
use cachekeeper_engine::stores::redis::{Refusal, ServerFacts};

/// What is wrong with the files of the admin listener, which nobody reads but the worker.
#[must_use]
pub fn of_admin(config: &Config) -> Vec<Diagnostic> {
    let problems = admin::problems(&config.admin).into_iter();
    let located = problems.map(|FileProblem { setting, message, help }| {
        config.source.problem(&format!("admin.{setting}"), message, help.to_owned())
    });
    located.collect()
}

/// Everything that the servers find wrong or odd.
///
/// # Errors
/// A server that does not answer.
pub async fn of_servers(
    config: &Config,
    context: &Context,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    if !reaches_postgres(config, context, problems).await? {
        return Ok(());
    }
    let Some(facts) = redis_facts(config, context, problems).await? else { return Ok(()) };
    if !check_redis(config, &facts, problems) {
        return Ok(());
    }
    if check_rights(config, context, problems).await? {
        check_misses(config, context, problems).await?;
    }
    if let Some(full) = facts.full() {
        problems.push(config.source.problem("redis.url", full, None).into_warning());
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
        Err(error) if error.kind == ErrorKind::Standby => {
            let help = "give the address of the primary".to_owned();
            problems.push(config.source.problem("postgres.url", error.told(), help));
            return Ok(());
        }
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
    let missing = context.postgres.missing_rights().await?;
    if let Some(missing) = &missing {
        let message = format!("the role {} lacks {}", missing.role, missing.rights.join(", "));
        let help = format!("run `cachekeeper migrate --grant {}` as the owner of the schema", missing.role);
        problems.push(config.source.problem("postgres.url", message, help));
    }
    // Datasets of which is said already why they are not covered, or that they are wrong.
    let mut told = BTreeSet::new();
    for dataset in context.catalog.iter() {
        let known = problems.len();
        let mut is_told = false;
        check_dataset(config, context, dataset, (&mut *problems, &mut is_told)).await?;
        if is_told || problems.iter().skip(known).any(|problem| problem.severity == Severity::Error) {
            told.insert(dataset.name().to_owned());
        }
        write::check(config, context, dataset, problems).await?;
    }
    check_namespaces(config, context, problems).await?;
    // Without the rights, what is captured cannot be read.
    if missing.is_some() { Ok(()) } else { check_coverage(config, context, &told, problems).await }
}

/// Whether Postgres lets a worker in; a server that does not answer is an error.
async fn reaches_postgres(
    config: &Config,
    context: &Context,
    problems: &mut Vec<Diagnostic>,
) -> Result<bool, EngineError> {
    match context.postgres.ping().await {
        Err(error) if error.is_of_configuration() => {
            let (message, help) = match error.of_connecting() {
                Some((message, help)) => (message.to_owned(), help),
                None => (error.message(), None),
            };
            problems.push(config.source.problem("postgres.url", message, help.map(str::to_owned)));
            Ok(false)
        }
        reached => {
            reached?;
            Ok(true)
        }
    }
}

/// What this namespace would share with others.
async fn check_namespaces(
    config: &Config,
    context: &Context,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    let conflicts = match namespaces::conflicts(context, config).await {
        // Which rights are missing was said.
        Err(EngineError::Cache(error)) if error.refusal == Refusal::Forbidden || error.is_hidden() => {
            Vec::new()
        }
        conflicts => conflicts?,
    };
    for conflict in conflicts {
        let help = CONFLICT_HELP.to_owned();
        problems.push(config.source.problem(&conflict.setting, conflict.message, help));
    }
    Ok(())
}

/// What Redis says of itself, if it may; none: it says nothing to anybody whom it does not know.
async fn redis_facts(
    config: &Config,
    context: &Context,
    problems: &mut Vec<Diagnostic>,
) -> Result<Option<ServerFacts>, EngineError> {
    match context.redis.facts().await {
        Err(error) if error.is_of_configuration() => {
            let problem = match error.trouble() {
                Some(trouble) => (trouble.setting, trouble.told(), trouble.help),
                None => ("redis.url", error.told(), RIGHTS_HELP),
            };
            let (setting, message, help) = problem;
            problems.push(config.source.problem(setting, message, help.to_owned()));
            Ok(None)
        }
        facts => Ok(Some(facts?)),
    }
}

const RIGHTS_HELP: &str = "`cachekeeper acl --for worker` prints all that the worker's user needs";

/// Whether a worker would be told of misses, where datasets are filled by them.
async fn check_misses(
    config: &Config,
    context: &Context,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    let Some(dataset) = miss_events::wanted_by(&context.catalog) else { return Ok(()) };
    if let Some(reason) = miss_events::obstacle(context).await? {
        let help = "the worker would not be ready; or let it do that itself: +config|get +config|set";
        let setting = format!("dataset.{dataset}.on_miss");
        let message = format!("misses are not filled: {reason}");
        problems.push(config.source.problem(&setting, message, help.to_owned()));
    }
    Ok(())
}

/// What the user may not do in Redis, or the server does not have. Whether all that is needed is there.
async fn check_rights(
    config: &Config,
    context: &Context,
    problems: &mut Vec<Diagnostic>,
) -> Result<bool, EngineError> {
    let missing = rights::missing(context, config).await?;
    for (what, means) in missing.weaker {
        let message = format!("the user in Redis lacks {what}: {means}");
        problems.push(config.source.problem("redis.url", message, RIGHTS_HELP.to_owned()).into_warning());
    }
    if !missing.needed.is_empty() {
        let message = format!("the user in Redis lacks {}", missing.needed.join(", "));
        problems.push(config.source.problem("redis.url", message, RIGHTS_HELP.to_owned()));
    }
    Ok(missing.needed.is_empty())
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
    told: &BTreeSet<String>,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    let coverage = match coverage::look(context, false).await {
        Ok(coverage) => coverage,
        // Said already.
        Err(EngineError::Source(error)) if error.kind == ErrorKind::NoSchema => return Ok(()),
        Err(error) => return Err(error),
    };
    for (name, reason) in coverage.gaps().filter(|(name, _)| !told.contains(*name)) {
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

/// A query that locks rows cannot run: loads are read-only.
fn locking(query: &str) -> SourceProblem {
    let lower = query.to_ascii_lowercase();
    let clauses = ["for update", "for no key update", "for share", "for key share"];
    SourceProblem {
        setting: "query",
        message: "the query locks rows, and loads are read-only".to_owned(),
        help: "leave `for update`, `for share` and the like out: every load is one snapshot".to_owned(),
        offset: clauses.iter().filter_map(|clause| lower.rfind(clause)).max(),
    }
}

async fn check_dataset(
    config: &Config,
    context: &Context,
    dataset: &Dataset,
    (problems, is_told): (&mut Vec<Diagnostic>, &mut bool),
) -> Result<(), EngineError> {
    let path = |setting: &str| format!("dataset.{}.{setting}", dataset.name());
    let source = match dataset.source(&context.postgres).await {
        Ok(source) => source,
        Err(EngineError::Dataset { problem, .. }) => {
            problems.push(located(config, dataset, problem));
            return Ok(());
        }
        Err(EngineError::Source(error)) if error.kind == ErrorKind::Forbidden => {
            let Finding { message, help, .. } = context.postgres.finding_of_rights(&error).await?;
            problems.push(config.source.problem(&path("query"), message, help));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let query = path("query");
    let settings = &dataset.settings;
    let inspection = match context.postgres.inspect(&settings.query).await {
        Ok(inspection) => inspection,
        Err(error) if error.is_transient() => return Err(error.into()),
        Err(error) => {
            let message = format!("what the query reads cannot be found out: {}", error.message());
            let help = "grant temporary on the database to the worker's role, and let no event trigger refuse it; until then the \
                        dataset is not covered"
                .to_owned();
            problems.push(config.source.problem(&query, message, help));
            Inspection::default()
        }
    };
    if inspection.locks_rows {
        problems.push(located(config, dataset, locking(&settings.query)));
        return Ok(());
    }
    let relations: Vec<String> = inspection.relations.iter().map(|relation| relation.name.clone()).collect();
    let mut findings = context.postgres.check_dataset(settings, &source, &relations).await?;
    findings.extend(findings_of_reads(&inspection, settings));
    let is_required = settings.feed == FeedNeed::Required;
    let of_feed = context.postgres.check_watch_rules(settings).await?;
    let is_weak = |finding: &Finding| match finding.weight {
        Weight::Odd => true,
        Weight::NotCovered => !is_required,
        Weight::Wrong => finding.setting.starts_with("watch") && !context.feed.is_on,
    };
    for finding in findings.into_iter().chain(of_feed) {
        *is_told |= finding.is_not_covered();
        let is_warning = is_weak(&finding);
        let problem = config.source.problem(&path(&finding.setting), finding.message, finding.help);
        problems.push(if is_warning { problem.into_warning() } else { problem });
    }
    Ok(())
}
