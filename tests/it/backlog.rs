//! Whatever waits in the outbox, a worker reads it in parts: its memory is bounded by bytes, not by rows (faults A11).

use std::process::Stdio;

use cachekeeper::app::Worker;
use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::tokens;

use crate::feed::ready;
use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "create table products (id int primary key, name text, price int);
    create table notes (id int primary key, text text); insert into notes values (1, 'a')";

const DATASETS: &str = r#"
    [feed]
    max_rows = 1000000
    [dataset.product]
    query = "select id, length(name) as name, price from products"
    key = "product:{id}"
    format = "json"
    scope = "cached"
    watch = [{ table = "products", key = { id = "id" } }, { table = "products", tag = "name:{name}" }]
    [dataset.note]
    query = "select id, text from notes"
    key = "note:{id}"
    format = "json"
    watch = [{ table = "notes", key = { id = "id" } }]
    warm = {}
"#;

/// Of the process, at its highest, in MiB.
pub fn memory_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[tokio::test]
async fn a_backlog_of_long_keys_is_read_in_parts() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
    // Just short enough to be named: 280 MB wait, and many rows of one transaction.
    for part in 0..20 {
        let sql = format!(
            "begin; insert into products select n + {part} * 10000, repeat(chr(1 + n % 100), 7000), n from generate_series(1, 1000) n;
             update products set price = 0 where id > {part} * 10000; commit"
        );
        rig.postgres.execute(&sql).await.unwrap();
    }
    rig.postgres.execute("update notes set text = 'b'").await.unwrap();
    let context = rig.context(DATASETS);
    let token = tokens::token(&context).await.unwrap();
    let cli = Cli::new(&rig, DATASETS);
    let mut child = cli.command(&["run"]).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the backlog is worked off", async || {
        for dataset in ["note", "product"] {
            let waited = tokens::wait(&context, &token, Some(dataset), std::time::Duration::ZERO).await;
            let (watermark, is_fresh) = waited.map_err(|error| error.to_string())?;
            if !is_fresh {
                return Err(format!("{watermark:?}"));
            }
        }
        Ok(())
    })
    .await;
    let memory = memory_of(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    println!("{memory} MiB");
    assert!(memory < 160, "{memory} MiB");
    let found = compare(&context, context.catalog.get("note").unwrap(), &Extent::default()).await.unwrap();
    assert!(found.is_clean() && found.checked == 1, "{found}");
}

#[tokio::test]
async fn the_changes_that_wait_are_counted() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
    let sql = "update notes set text = 'b'; insert into products select n, 'x' || n, n from generate_series(1, 12) n";
    rig.postgres.execute(sql).await.unwrap();
    let context = rig.context(DATASETS);
    let cursor = context.redis.metadata("").await.unwrap().cursor.unwrap();
    assert_eq!(context.postgres.changes_behind(&cursor, 100).await.unwrap(), 13);
    assert_eq!(context.postgres.changes_behind(&cursor, 5).await.unwrap(), 5);
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    wait_until("none waits", async || {
        let text = worker.context.metrics.render().unwrap();
        let counted = text.lines().find(|line| line.starts_with("cachekeeper_changes_waiting "));
        if counted == Some("cachekeeper_changes_waiting 0") { Ok(()) } else { Err(format!("{counted:?}")) }
    })
    .await;
    worker.stop().await;
}
