//! `cachekeeper plan`: what would be in Redis, and how it would come there. Nothing is written.

mod show;

use std::time::Duration;

use super::choose::{choose, exit_of, with_reason};
use super::output::{Exit, Output};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::plan::{PlanOptions, plan as plan_dataset};
use cachekeeper_protocol::units::parse_duration;

/// The longest that Postgres may be asked about one dataset.
const WITHIN_MAX: Duration = Duration::from_secs(3_600);

/// What is planned, and how long it may take.
#[derive(Debug, clap::Args)]
pub struct Request {
    /// Which datasets [default: all]
    datasets: Vec<String>,
    /// How long Postgres may be asked about each of them
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = limit)]
    within: Duration,
    /// Read the rows of so many keys of each
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    sample: u64,
}

fn limit(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    let is_right = (Duration::from_millis(100)..=WITHIN_MAX).contains(&duration);
    if is_right { Ok(duration) } else { Err("between 100ms and 1h".to_owned()) }
}

/// Plans datasets, one after another. One that is wrong does not keep the others from being planned.
pub async fn plan(context: &Context, request: &Request, out: &Output) -> Result<Exit, EngineError> {
    let chosen = match choose(context, &request.datasets, out) {
        Ok(chosen) => chosen,
        Err(exit) => return Ok(exit),
    };
    let facts = match context.redis.memory_facts().await {
        Ok(facts) => {
            if facts.is_none() {
                out.note("note: this Redis does not tell what it is (INFO is hidden): memory is left out");
            }
            facts
        }
        Err(error) if error.is_unreachable() => {
            out.note(&format!("note: {}; what is in Redis, and memory, are left out", error.told()));
            None
        }
        Err(error) => return Err(error.into()),
    };
    let sample = usize::try_from(request.sample).unwrap_or(usize::MAX);
    let options = PlanOptions { sample, within: request.within };
    let mut exit = Exit::Ok;
    let mut planned = Vec::new();
    for dataset in chosen {
        match plan_dataset(context, dataset, facts.as_ref(), options).await {
            Ok(plan) => {
                if out.json {
                    planned.push(show::facts(dataset, &plan));
                } else {
                    out.line(&show::text(dataset, &plan, facts.as_ref()));
                }
            }
            Err(error) if error.is_unreachable() => return Err(error),
            Err(error) => {
                let error = with_reason(context, error).await;
                out.error(&format!("dataset {}: {}", dataset.name(), error.told()));
                planned.push(serde_json::json!({ "dataset": dataset.name(), "error": error.told() }));
                exit = exit_of(&error);
            }
        }
    }
    if out.json {
        let redis = facts.as_ref().map(show::redis);
        out.line(
            &serde_json::json!({ "ok": exit == Exit::Ok, "redis": redis, "datasets": planned }).to_string(),
        );
    } else if let Some(facts) = &facts {
        out.line(&show::server(facts));
    }
    Ok(exit)
}
