//! Entries that are not there, and nobody is told that they are: explicit nulls that end, and a Redis that is full.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::epoch;
use cachekeeper_engine::refresh::{RefreshScan, fill_missed};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::feed::ready;
use crate::support::{Cli, Rig, wait_until};

const TABLES: &str =
    "create table products (id int primary key, name text); insert into products values (1, 'x'), (2, 'y')";
const DATASET: &str = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\nformat = \"json\"\n\
                       watch = [{ table = \"products\", key = { id = \"id\" } }]\n";

/// Whoever asks for keys at random would else have Postgres asked for them for ever.
#[tokio::test]
async fn an_explicit_null_is_not_kept_by_refreshing_ahead() {
    let rig = Rig::start(TABLES).await;
    for more in ["on_miss = \"load\"", "on_miss = \"load\"\nwarm = {}"] {
        let toml = format!(
            "{DATASET}ttl = \"100s\"\nnegative_ttl = \"15s\"\nrefresh = {{ ahead = \"20%\" }}\n{more}\n"
        );
        let context = rig.context(&toml);
        epoch::ensure(&context, "").await.unwrap();
        let dataset = context.catalog.get("product").unwrap();
        let cancel = CancellationToken::new();
        let options = BackfillOptions { cancel, rate: None, progress: None, resume: false };
        backfill(&context, dataset, &options).await.unwrap();
        let mut client = rig.client().await;
        fill_missed(&context, ["product:1", "product:404"].map(str::to_owned).to_vec()).await;
        let null: Option<String> = client.get("product:404").await.unwrap();
        assert_eq!(null.as_deref(), Some("null"));
        // Read, and due: the one that has a row is loaded again, the null goes on towards its end.
        for key in ["product:1", "product:404"] {
            let _: bool = client.pexpire(key, 12_000).await.unwrap();
            let _: Option<String> = client.get(key).await.unwrap();
        }
        let facts = context.redis.facts().await.unwrap();
        let mut scan = RefreshScan::new(&facts, Duration::from_secs(1));
        while !scan.step(&context, None).await.unwrap() {}
        assert_eq!(scan.report.refreshed, 1, "{more}");
        let left: (i64, i64) =
            (client.pttl("product:1").await.unwrap(), client.pttl("product:404").await.unwrap());
        assert!(50_000 < left.0 && left.1 <= 12_000, "{left:?}");
    }
}

/// The old entry is gone, so nobody reads it, but the new one is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_a_full_redis_does_not_store_is_pending() {
    let rig = Rig::start(TABLES).await;
    let write = "[dataset.product.write]\nstatement = \"update products set name = :name where id = :id\"\n";
    let toml = format!("{DATASET}warm = {{}}\n{write}");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    let full: () =
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query_async(&mut client).await.unwrap();
    let cli = Cli::new(&rig, &toml);
    let said = cli.json(&["write", "product", "id=1", "name=z"]);
    assert_eq!(
        (said["rows"].as_u64(), said["cache"].as_str()),
        (Some(1), Some("pending")),
        "{said} {full:?}"
    );
    assert!(!client.exists::<_, bool>("product:1").await.unwrap());
    // Everybody who is asked says so.
    wait_until("the worker knows", async || {
        let notes = worker.health.facts().notes();
        if notes.iter().any(|note| note.starts_with("redis is full")) {
            Ok(())
        } else {
            Err(format!("{notes:?}"))
        }
    })
    .await;
    assert!(worker.stop().await);
    cli.says(&["check"], 0, &["redis is full", "maxmemory 0 MiB", "raise maxmemory"]);
    cli.says(&["status"], 1, &["redis is full"]);
}
