//! `cachekeeper pause` and `resume`

use serde_json::json;

use super::choose::choose;
use super::output::{Exit, Output};
use crate::actors::clock::now_ms;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;

/// Pauses datasets for every worker of the namespace, or resumes them.
pub async fn pause(
    context: &Context,
    names: &[String],
    is_paused: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    let chosen = match choose(context, names, out) {
        Ok(chosen) => chosen,
        Err(exit) => return Ok(exit),
    };
    for dataset in chosen {
        let name = dataset.name();
        let text = if is_paused {
            context.redis.pause(name, now_ms()).await?;
            "is paused: no backfill by schedule, no refreshing ahead, no audit; changes are applied all the same"
        } else if context.redis.resume(name).await? {
            "goes on"
        } else {
            "was not paused"
        };
        out.result(&format!("{name} {text}"), &json!({ "dataset": name, "paused": is_paused }));
    }
    Ok(Exit::Ok)
}
