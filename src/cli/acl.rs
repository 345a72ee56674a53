//! `cachekeeper acl`

use serde_json::json;

use super::output::{Exit, Output};
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::rights::{PROGRAMS, Program, Rights, Surroundings};

/// Prints the rules of Redis for this configuration, a line for each kind of program.
pub async fn acl(
    context: &Context,
    config: &Config,
    wanted: Option<&str>,
    out: &Output,
) -> Result<Exit, EngineError> {
    let around = match context.redis.facts().await {
        Ok(facts) => Surroundings::of(context, Some(facts)).await,
        Err(error) => {
            out.note(&format!(
                "note: {}; left out are the command client|no-touch, which Redis knows from 7.2 on, prefixes that applications have \
                 registered, and keys of other definitions whose entries are there",
                error.told()
            ));
            Surroundings { database: context.redis.database(), ..Surroundings::default() }
        }
    };
    let programs =
        PROGRAMS.into_iter().filter(|program| wanted.is_none_or(|wanted| wanted == program.name()));
    for program in programs {
        let rights = Rights::of(program, config, &around);
        let (user, rules) = (user_of(program), rights.rules());
        let quoted: Vec<String> = rules.iter().map(|rule| quote(rule)).collect();
        out.result(
            &format!("ACL SETUSER {user} {}", quoted.join(" ")),
            &json!({ "for": program.name(), "user": user, "rules": rules, "channels": rights.channels, "commands": rights.commands() }),
        );
    }
    if config.datasets.iter().any(|dataset| dataset.on_miss == cachekeeper_config::OnMiss::Load) {
        out.note(
            "note: on_miss = \"load\" needs key-miss events: set notify-keyspace-events to \"Em\" in the server's own configuration, or let \
             the worker do it (+config|get +config|set, with which it may change any setting)",
        );
    }
    Ok(Exit::Ok)
}

fn user_of(program: Program) -> String {
    format!("cachekeeper-{}", program.name())
}

/// As `redis-cli` reads it.
fn quote(rule: &str) -> String {
    let is_plain = !rule.chars().any(|character| matches!(character, '"' | '\'' | '\\'));
    if is_plain {
        rule.to_owned()
    } else {
        format!("\"{}\"", rule.replace('\\', "\\\\").replace('"', "\\\""))
    }
}
