//! Every metric that is registered is also changed somewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cachekeeper_engine::epoch;
use cachekeeper_engine::load::{Cause, Job, LoadOptions, load};
use cachekeeper_engine::metrics::ByDataset;
use cachekeeper_engine::refresh::RefreshScan;
use redis::AsyncCommands;

use crate::support::Rig;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The field of `"name", field: type = value,`, as the tables of `metrics.rs` have it.
fn registered(text: &str) -> Vec<String> {
    let field = |line: &str| {
        let (_name, rest) = line.trim().strip_prefix('"')?.split_once("\", ")?;
        let (field, _kind) = rest.split_once(": ")?;
        Some(field.to_owned())
    };
    text.lines().filter_map(field).collect()
}

#[test]
fn every_registered_metric_is_counted_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths);
    sources(&root.join("crates"), &mut paths);
    let is_table = |path: &Path| {
        let name = path.to_string_lossy().replace('\\', "/");
        name.ends_with("/metrics.rs") || name.ends_with("/metrics/client.rs")
    };
    let (mut fields, mut code) = (Vec::new(), String::new());
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        if is_table(&path) {
            fields.extend(registered(&text));
        } else {
            code.push_str(&text);
        }
    }
    assert!(40 < fields.len(), "{fields:?}");
    // Chains of calls are broken over lines.
    let code: String = code.split_whitespace().collect();
    let is_used = |field: &str| {
        let uses = |base: &str| [".", ";"].iter().any(|end| code.contains(&format!("{base}{field}{end}")));
        uses("metrics.") || uses("metrics.client.")
    };
    // What does not change: the version.
    let never = fields.iter().filter(|field| *field != "build" && !is_used(field));
    assert_eq!(never.collect::<Vec<_>>(), Vec::<&String>::new(), "registered, and never counted");
}

/// An entry that nobody read is counted once: at the last look before it expires.
#[tokio::test]
async fn entries_that_expire_unread_are_counted_once() {
    let rig = Rig::start(
        "create table products (id int primary key, name text); insert into products select n, 'x' from generate_series(1, 20) n",
    )
    .await;
    let toml = r#"
        [dataset.product]
        query = "select id, name from products"
        key = "product:{id}"
        format = "json"
        ttl = "10s"
        ttl_jitter = "0%"
        scope = "cached"
        refresh = { ahead = "90%" }
    "#;
    let context = rig.context(toml);
    epoch::ensure(&context, "").await.unwrap();
    let dataset = context.catalog.get("product").unwrap();
    let keys: Vec<_> = (1..=20).map(|n| (format!("product:{n}"), vec![n.to_string()])).collect();
    load(&context, dataset, &keys, LoadOptions::because(Cause::Backfill), &mut Job::uncounted())
        .await
        .unwrap();
    // As if the first second of their lives had passed without a read: the rest of it they are due.
    let mut client = rig.client().await;
    for n in 1..=20 {
        let _: () = client.pexpire(format!("product:{n}"), 8_999).await.unwrap();
    }
    let facts = context.redis.facts().await.unwrap();
    let counted = || context.metrics.unread.get_or_create(&ByDataset::new("product")).get();
    for (next_scan, expected) in [(Duration::from_secs(1), 0), (Duration::from_secs(10), 20)] {
        let mut scan = RefreshScan::new(&facts, next_scan);
        while !scan.step(&context, None).await.unwrap() {}
        assert_eq!(scan.report.unread, 20);
        assert_eq!(counted(), expected);
    }
}
