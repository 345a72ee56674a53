//! What a dataset would be in Redis, and how it would be loaded: nothing is written, in Postgres or in Redis. What is asked has a
//! limit, in time and in rows, and what was given up is said.

mod limit;
pub mod memory;
mod path;
mod rows;
mod sample;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use self::limit::{is_over, left};
use self::memory::MemoryModel;
pub use self::path::{LoadPath, PathVerdict, load_path};
pub use self::rows::{RowAsStored, rows_as_stored};
use self::sample::Sampling;
pub use self::sample::{Example, Sample};
use crate::catalog::{Catalog, Dataset};
use crate::context::Context;
use crate::coverage::migration_script;
use crate::error::EngineError;
use crate::stores::postgres::DatasetSource;
use crate::stores::redis::MemoryFacts;
use cachekeeper_config::Format;

/// Limits of a plan.
#[derive(Debug, Clone, Copy)]
pub struct PlanOptions {
    /// Most keys whose rows are read.
    pub sample: usize,
    /// How long Postgres may be asked about one dataset.
    pub within: Duration,
}

/// What a dataset would be.
#[derive(Debug, Clone, Default)]
pub struct DatasetPlan {
    /// How many rows the planner takes the query to have.
    pub estimated_rows: Option<u64>,
    /// What was counted; none: that took too long.
    pub counted: Option<Counted>,
    /// How many keys there are, as far as it is known.
    pub keys: u64,
    /// How many entries a backfill stores; none: the dataset has none.
    pub backfilled: Option<u64>,
    /// What the rows of some keys become.
    pub sample: Sample,
    /// How long an explicit null for a key without a row lives, and its bytes.
    pub negative: Option<(Duration, usize)>,
    /// What it would take in Redis, if every key had an entry; none: Redis does not tell what it is.
    pub memory: Option<MemoryPlan>,
    /// How many of the sampled keys are in Redis; none: it was not asked.
    pub present: Option<usize>,
    /// How a load by key finds its rows.
    pub path: LoadPath,
    /// What `migrate` would do for its changes; none: they are not to be captured.
    pub triggers: Option<Triggers>,
    /// Limits that were met, and what was done instead.
    pub limits: Vec<String>,
}

/// What was counted, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Rows of the query.
    pub rows: u64,
    /// Rows with a null in the key, which have no entry.
    pub keyless_rows: u64,
    /// Keys with several rows.
    pub shared_keys: u64,
    /// The most rows of a key.
    pub rows_max: u64,
}

/// Memory in Redis, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Of all entries, with their places in the server's tables.
    pub entries: u64,
    /// Of the sets of their tags.
    pub tags: u64,
    /// How many different tags there are; none: they were not counted.
    pub different_tags: Option<u64>,
}

/// What `migrate` would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Triggers {
    /// The statements that make triggers.
    pub statements: Vec<String>,
    /// How many statements it would run in all; 0: nothing is to be done.
    pub total: usize,
    /// Why it cannot be told, or what is to be done before.
    pub obstacle: Option<String>,
}

/// Plans a dataset. `memory` is what Redis says of itself; none: Redis is not asked for anything.
///
/// # Errors
/// [`EngineError`] where a server cannot be asked, or the dataset is wrong.
pub async fn plan(
    context: &Context,
    dataset: &Arc<Dataset>,
    memory: Option<&MemoryFacts>,
    options: PlanOptions,
) -> Result<DatasetPlan, EngineError> {
    let postgres = &context.postgres;
    let source = dataset.source(postgres).await?;
    let until = Instant::now() + options.within;
    let mut plan = DatasetPlan {
        estimated_rows: postgres.estimated_rows(&dataset.settings).await?,
        path: load_path(postgres, dataset, &source).await?,
        ..DatasetPlan::default()
    };
    let keys = count(context, &source, options, until, &mut plan).await?;
    let mut sampling = Sampling::new(dataset, &source);
    let is_cut = sampling.read(postgres, &keys, until).await?;
    if let Some(read) = is_cut {
        plan.limits.push(format!("reading the rows of {} keys took too long: {read} were read", keys.len()));
    }
    plan.sample = Sample { is_random: plan.counted.is_some(), ..sampling.finish() };
    plan.backfilled =
        dataset.settings.warm.as_ref().map(|warm| warm.limit.map_or(plan.keys, |limit| limit.min(plan.keys)));
    plan.negative = dataset.settings.negative_ttl.zip(null_bytes(&dataset.settings.format));
    if let Some(facts) = memory {
        plan.memory = Some(of_memory(context, dataset, &source, (facts, until), &mut plan).await?);
        let present = context.redis.present(&plan.sample.keys).await?;
        plan.present = Some(present.into_iter().filter(|is_there| *is_there).count());
    }
    plan.triggers = triggers(context, dataset).await?;
    Ok(plan)
}

/// Counts, and chooses the keys whose rows are read: at random where all could be counted, else the first ones.
async fn count(
    context: &Context,
    source: &DatasetSource,
    options: PlanOptions,
    until: Instant,
    plan: &mut DatasetPlan,
) -> Result<Vec<Vec<String>>, EngineError> {
    let postgres = &context.postgres;
    // What is left is for the rows of the sample.
    match postgres.census(source, options.sample, left(until).mul_f64(0.6)).await {
        Ok(census) => {
            plan.keys = census.keys;
            plan.counted = Some(Counted {
                rows: census.rows,
                keyless_rows: census.keyless_rows,
                shared_keys: census.shared_keys,
                rows_max: census.rows_max,
            });
            return Ok(census.sample);
        }
        Err(error) if is_over(&error) => {}
        Err(error) => return Err(error.into()),
    }
    plan.keys = plan.estimated_rows.unwrap_or_default();
    match postgres.some_keys(source, options.sample, left(until).mul_f64(0.5)).await {
        Ok(keys) => {
            plan.limits.push(format!(
                "counting took too long: the number of keys is an estimate, and the first {} keys are looked at instead of some at random",
                keys.len()
            ));
            Ok(keys)
        }
        Err(error) if is_over(&error) => {
            plan.limits.push(
                "counting took too long, and so did finding a few keys: no row was looked at".to_owned(),
            );
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// The bytes of an explicit null.
fn null_bytes(format: &Format) -> Option<usize> {
    match format {
        Format::MessagePack { .. } => Some(1),
        Format::Json { .. } => Some(4),
        Format::Raw { .. } | Format::Hash => None,
    }
}

async fn of_memory(
    context: &Context,
    dataset: &Dataset,
    source: &DatasetSource,
    (facts, until): (&MemoryFacts, Instant),
    plan: &mut DatasetPlan,
) -> Result<MemoryPlan, EngineError> {
    let model = MemoryModel::of(&facts.product, facts.version, facts.quantum);
    let sizes = &plan.sample.sizes;
    if sizes.is_empty() {
        return Ok(MemoryPlan::default());
    }
    let each: usize = sizes.iter().map(|size| model.entry(*size)).sum();
    let others = facts.keys;
    let places = model.places(others + plan.keys).saturating_sub(model.places(others));
    let mut memory =
        MemoryPlan { entries: share(each, plan.keys, sizes.len()) + places, ..MemoryPlan::default() };
    if dataset.settings.tags.is_empty() || plan.sample.tags == 0 {
        return Ok(memory);
    }
    let mut different = 0;
    for tag in 0..dataset.settings.tags.len() {
        match context.postgres.count_tags(&dataset.settings, source, tag, left(until)).await {
            Ok(count) => different += count,
            Err(error) if is_over(&error) => {
                plan.limits.push("counting the tags took too long: their memory is left out".to_owned());
                return Ok(memory);
            }
            Err(error) => return Err(error.into()),
        }
    }
    let members = share(plan.sample.tags, plan.keys, sizes.len());
    let (key, tag) = (plan.sample.mean_key(), plan.sample.mean_tag());
    let name = context.redis.keys().metadata().tag_prefix.len() + tag + WINDOW;
    // Tags are spread evenly here: that is the most that they take.
    let in_each = members.checked_div(different).unwrap_or_default().max(1);
    memory.tags = different * model.set(name, in_each, key)
        + model.places(others + plan.keys + different).saturating_sub(model.places(others + plan.keys)) / 2
        + model.set(name, different, tag);
    memory.different_tags = Some(different);
    Ok(memory)
}

/// The digits of a window behind the name of a tag's set, and what stands before them.
const WINDOW: usize = 11;

/// What so many have, if some of them have this.
fn share(of_some: usize, all: u64, some: usize) -> u64 {
    let product = u128::from(all) * of_some as u128;
    u64::try_from(product / (some as u128).max(1)).unwrap_or(u64::MAX)
}

async fn triggers(context: &Context, dataset: &Arc<Dataset>) -> Result<Option<Triggers>, EngineError> {
    if !context.feed.is_on || dataset.settings.watch.is_empty() {
        return Ok(None);
    }
    let only = context.with(Catalog::of(vec![Arc::clone(dataset)]));
    let script = match migration_script(&only, None).await {
        Ok(script) => script,
        Err(error) if error.is_unreachable() => return Err(error),
        Err(error) => {
            let obstacle = Some(error.told());
            return Ok(Some(Triggers { obstacle, ..Triggers::default() }));
        }
    };
    let statements = script.iter().filter(|statement| statement.contains("create trigger"));
    let obstacle = script
        .iter()
        .any(|statement| statement.starts_with("-- print"))
        .then(|| "the schema is of an earlier version: what it would do then is known after that".to_owned());
    Ok(Some(Triggers { statements: statements.cloned().collect(), total: script.len(), obstacle }))
}
