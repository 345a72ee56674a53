//! Another version of the configuration is rolled out beside the workers, and taken back.

use std::sync::Arc;
use std::time::Duration;

use cachekeeper_protocol::revision::Revision;
use rand::RngExt;
use rand::rngs::StdRng;
use redis::AsyncCommands;

use super::schema::DATASETS;
use super::{Arena, settled};
use crate::process::{Launch, WorkerProcess};
use crate::support::wait_until;

/// What is changed of a dataset's definition. Its values stay what they are.
#[derive(Debug, Clone, Copy)]
enum Change {
    Query,
    Key,
    OtherDataset,
}

impl Change {
    fn of(self, version: u64) -> (String, &'static str) {
        let (from, to, dataset) = match self {
            Self::Query => ("select i.id,", format!("select /* {version} */ i.id,"), "item"),
            Self::Key => ("key = \"item:{id}\"", format!("key = \"item{version}:{{id}}\""), "item"),
            Self::OtherDataset => {
                ("select id, version, 100", format!("select /* {version} */ id, version, 100"), "canary")
            }
        };
        (DATASETS.replace(from, &to), dataset)
    }
}

async fn registered(arena: &Arena, dataset: &str) -> Result<String, String> {
    let client = redis::Client::open(arena.redis_url.clone()).map_err(|error| error.to_string())?;
    let mut client = client.get_multiplexed_async_connection().await.map_err(|error| error.to_string())?;
    let field = format!("rev:{dataset}");
    let revision: Option<String> =
        client.hget("ck:{test:0}:meta", field).await.map_err(|error| error.to_string())?;
    Ok(Revision::from(revision.unwrap_or_default()).definition().to_owned())
}

/// How workers of this build are started with another configuration.
pub fn with(arena: &Arena, toml: String) -> Launch {
    Launch { toml: Box::leak(toml.into_boxed_str()), ..(*arena.launch).clone() }
}

/// Waits until another definition counts than this one.
async fn differs(arena: &Arena, dataset: &str, from: &str) -> String {
    wait_until("another definition counts", async || match registered(arena, dataset).await? {
        now if now.is_empty() || now == from => Err(format!("{now:?}")),
        now => Ok(now),
    })
    .await
}

pub async fn inject(arena: &Arena, random: &mut StdRng) {
    let change = [Change::Query, Change::Key, Change::OtherDataset][random.random_range(0..3)];
    let (toml, dataset) = change.of(random.random());
    println!("  {change:?} of {dataset}");
    let before = registered(arena, dataset).await.unwrap();
    let newer = WorkerProcess::start(&Arc::new(with(arena, toml)), "");
    let new = differs(arena, dataset, &before).await;
    if random.random_bool(0.5) {
        settled::caught_up(arena).await;
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
    if random.random_bool(0.5) {
        newer.signal("TERM");
    }
    drop(newer);
    let again = differs(arena, dataset, &new).await;
    assert_eq!(again, before, "the older definition counts again");
}
