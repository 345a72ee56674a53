//! Verbs on a Redis Cluster: what is done on each shard, what is read of all of them, and what does not work there yet.

use serde_json::json;

use super::output::{Exit, Output};
use super::verb::Verb;
use super::{acl, audit, explain, get, invalidate, pause, warm};
use crate::shards;
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::stores::redis::{Cluster, LeaseAttempt, PlacedShard};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::event::Op;

/// Runs a verb on a cluster; answers it where it is the same as on a single Redis, because it asks Postgres alone.
pub(super) async fn run(
    verb: Verb,
    config: &Config,
    (context, cluster): (&Context, &Cluster),
    out: &Output,
) -> Result<Verb, Result<Exit, EngineError>> {
    let name = match verb {
        Verb::Migrate { uninstall: false, .. } | Verb::Capture { .. } => return Ok(verb),
        Verb::Warm { .. }
        | Verb::Pause { .. }
        | Verb::Resume { .. }
        | Verb::Invalidate(_)
        | Verb::Refresh(_)
        | Verb::Audit { .. } => return Err(on_each(verb, config, (context, cluster), out).await),
        Verb::Get { .. } | Verb::Explain { .. } => {
            return Err(at_owner(&verb, config, (context, cluster), out).await);
        }
        Verb::Acl { program } => {
            // What is registered is the same on each; where none can be asked, what is known is told.
            let shards = shards::all(config, context).await.unwrap_or_default();
            return Err(acl::acl(shards.first().unwrap_or(context), config, program.as_deref(), out).await);
        }
        Verb::Status { watch: false } => return Err(status(config, (context, cluster), out).await),
        Verb::Status { .. } => "status --watch",
        Verb::Migrate { .. } => "migrate --uninstall",
        Verb::Plan(_) => "plan",
        Verb::Purge { .. } => "purge",
        Verb::Write(_) => "write",
        Verb::Writes(_) => "writes",
        verb => return Ok(verb),
    };
    out.failure(&format!(
        "`cachekeeper {name}` does not work on a Redis Cluster yet: docs/cluster.md lists what does, and what to do instead"
    ));
    Err(Ok(Exit::Configuration))
}

async fn on_each(
    verb: Verb,
    config: &Config,
    of: (&Context, &Cluster),
    out: &Output,
) -> Result<Exit, EngineError> {
    let shards: Vec<(PlacedShard, Context)> = shards::of_cluster(config, of).await?;
    if !matches!(verb, Verb::Pause { .. } | Verb::Resume { .. }) {
        for (shard, context) in &shards {
            if context.redis.watermark().await?.is_none() {
                let (number, address) = (shard.number, address_of(shard));
                out.failure(&format!(
                    "no worker follows shard {number} at {address} yet, and nothing is stored there before that: start one with `cachekeeper run`"
                ));
                return Ok(Exit::Failed);
            }
        }
    }
    let contexts: Vec<Context> = shards.iter().map(|(_, context)| context.clone()).collect();
    match &verb {
        Verb::Invalidate(targets) => return invalidate::invalidate(&contexts, targets, None, out).await,
        Verb::Refresh(targets) => {
            return invalidate::invalidate(&contexts, targets, Some(Op::Refresh), out).await;
        }
        Verb::Audit { datasets, fix, sample } => {
            return audit::audit(&contexts, datasets, *fix, *sample, out).await;
        }
        _ => {}
    }
    let mut exit = Exit::Ok;
    for (shard, context) in &shards {
        out.note(&format!("shard {} at {}", shard.number, address_of(shard)));
        let done = match &verb {
            Verb::Warm { datasets, restart } => warm::warm(context, datasets, !restart, out).await?,
            Verb::Pause { datasets } => pause::pause(context, datasets, true, out).await?,
            Verb::Resume { datasets } => pause::pause(context, datasets, false, out).await?,
            _ => Exit::Usage,
        };
        if done != Exit::Ok {
            exit = done;
        }
    }
    Ok(exit)
}

/// What is said of one key is said by the shard that serves it.
async fn at_owner(
    verb: &Verb,
    config: &Config,
    of: (&Context, &Cluster),
    out: &Output,
) -> Result<Exit, EngineError> {
    let (Verb::Get { key } | Verb::Explain { key }) = verb else { return Ok(Exit::Usage) };
    if let Some(of_shard) = shards::of_key(config, of.0, key).await? {
        return match verb {
            Verb::Get { .. } => get::get(&of_shard, key, out).await,
            _ => explain::explain(&of_shard, config, key, out).await,
        };
    }
    let slot = ClusterSlot::of(key.as_bytes());
    out.failure(&format!("no master serves cluster slot {slot}, which is that of this key"));
    Ok(Exit::Unavailable)
}

/// What stands in each shard, and what all of them together are at least as fresh as. The code is 1 where a shard has no epoch, nobody
/// follows its changes, or there is no watermark of all.
async fn status(config: &Config, of: (&Context, &Cluster), out: &Output) -> Result<Exit, EngineError> {
    let (mut lines, mut told, mut is_right) = (Vec::new(), Vec::new(), true);
    let all = shards::of_cluster(config, of).await?;
    for (shard, context) in &all {
        let metadata = context.redis.metadata("").await?;
        let watermark = context.redis.watermark().await?;
        let held = context.redis.lock_holder(&[LeaseName::FEED.name.into_owned()]).await?;
        let leader = held.and_then(|held| match held {
            LeaseAttempt::Held { owner, .. } => Some(owner),
            LeaseAttempt::Granted(_) => None,
        });
        let pending: Vec<&str> = metadata.reasons().map(|(dataset, _)| dataset).collect();
        is_right &= metadata.is_whole && watermark.is_some() && leader.is_some();
        let covered = watermark.as_ref().and_then(|watermark| watermark.covers.as_ref());
        let (covered, serves) = (covered.map_or(0, |covers| covers.len()), shard.node.serves.len());
        let as_of = watermark.as_ref().map_or("no watermark", |watermark| watermark.as_of.as_str());
        let (number, address) = (shard.number, address_of(shard));
        lines.push(format!(
            "shard {number}  {address}, {covered} of {serves} cluster slots covered, as of {as_of}, {}{}",
            leader.as_deref().map_or("nobody leads".to_owned(), |leader| format!("led by {leader}")),
            if pending.is_empty() { String::new() } else { format!(", pending: {}", pending.join(", ")) },
        ));
        told.push(json!({ "shard": number, "address": address, "node": shard.node.id, "serves": shard.node.serves.to_string(),
            "epoch": metadata.epoch.map(|epoch| epoch.to_string()), "whole": metadata.is_whole, "leader": leader,
            "pending": pending, "watermark": watermark }));
    }
    let map = of.1.map().await?;
    let placed: Vec<PlacedShard> = all.into_iter().map(|(shard, _)| shard).collect();
    let least = of.1.watermark(&map, &placed).await?;
    is_right &= least.is_some() && placed.len() == map.masters.len();
    lines.push(match &least {
        Some(least) => {
            let covered = least.covers.as_ref().map_or(0, |covers| covers.len());
            let left_out = match least.not_covered.as_slice() {
                [] => String::new(),
                names => format!(", but for {}", names.join(", ")),
            };
            format!("watermark  {covered} cluster slots as of {}{left_out}", least.as_of)
        }
        None => "watermark  none of all shards: one has none yet, or they do not all know the same servers"
            .to_owned(),
    });
    out.result(
        &lines.join("\n"),
        &json!({ "shards": told, "watermark": least, "masters": map.masters.len() }),
    );
    Ok(if is_right { Exit::Ok } else { Exit::Failed })
}

fn address_of(shard: &PlacedShard) -> String {
    format!("{}:{}", shard.node.address.0, shard.node.address.1)
}
