//! The datasets that the documents show: each is right for the tables beside it, and Redis has the entries that are shown.

use std::path::Path;

use cachekeeper::app::Worker;
use redis::AsyncCommands;

use crate::readme::blocks;
use crate::support::{Cli, Rig, wait_until};

/// What a small shop would have, so that the entries are those of `docs/datasets.md`.
const ROWS: &str = "
    insert into categories values (7, 'Kitchen');
    insert into products values (1, 'Teapot', 2900, 4, 7), (2, 'Cup', 900, 9, 7);
    insert into reviews values (10, 1, 5, 'good'), (11, 1, 3, 'drips');
    insert into users values (1, 'ann@example.org', 'Ann');
    insert into documents values (3, 8, 'Plan');
    insert into orders values (100, '2026-11-01', 5, 3800);
    insert into settings values ('currency', 'EUR');";

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

fn blocks_in(page: &str, language: &str) -> Vec<String> {
    blocks(page).into_iter().filter(|(found, _)| found == language).map(|(_, text)| text).collect()
}

/// The page with the examples: its tables, what stands before each example, and the examples.
fn examples() -> (String, String, Vec<String>) {
    let page = page("datasets.md");
    let mut examples = blocks_in(&page, "toml");
    let head = examples.remove(0);
    assert!(examples.len() >= 11, "{examples:?}");
    (blocks_in(&page, "sql").concat(), head, examples)
}

/// The entries that a page shows: `    key = value`.
fn shown(page: &str) -> Vec<(&str, &str)> {
    page.lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once(" = "))
        .filter(|(key, _)| !key.contains(' '))
        .collect()
}

/// What `check` says of a file: nothing is wrong.
fn checked(rig: &Rig, toml: &str) -> String {
    Cli::new(rig, toml).says(&["check"], 0, &["configuration is right: ", ", servers asked"])
}

#[tokio::test]
async fn check_accepts_every_dataset_of_the_examples_alone_and_all_in_one_file() {
    let (tables, head, examples) = examples();
    let rig = Rig::start(&tables).await;
    let all = format!("{head}{}", examples.concat());
    Cli::new(&rig, &all).says(&["migrate"], 0, &["dataset settings: changes are captured"]);
    for example in &examples {
        let said = checked(&rig, &format!("{head}{example}"));
        // The page says of this one that `check` warns, and why that is well.
        let is_noted = example.contains("[dataset.settings]");
        assert_eq!(said.contains("each load by key reads the whole of public.settings"), is_noted, "{said}");
        assert_eq!(said.contains("warning") || said.contains("note"), is_noted, "{example}\n{said}");
    }
    checked(&rig, &all);
}

#[tokio::test]
async fn check_accepts_the_datasets_of_other_pages() {
    let (tables, head, examples) = examples();
    let rig = Rig::start(&tables).await;
    let configuration = blocks_in(&page("configuration.md"), "toml");
    checked(&rig, &configuration[0]);
    let write = blocks_in(&page("write-through.md"), "toml");
    checked(&rig, &format!("{head}{}{}", examples[0], write[0]));
}

#[tokio::test]
async fn redis_has_the_entries_that_the_examples_show() {
    let (tables, head, examples) = examples();
    let rig = Rig::start(&tables).await;
    let worker = Worker::start(rig.config(&format!("{head}{}", examples.concat()))).await.unwrap();
    rig.postgres.execute(ROWS).await.unwrap();
    let page = page("datasets.md");
    let entries = shown(&page);
    assert!(entries.len() >= 10, "{entries:?}");
    let client = rig.client().await;
    for (key, value) in entries {
        wait_until(&format!("{key} is what the page shows"), async || {
            let found: Option<String> = client.clone().get(key).await.unwrap();
            if found.as_deref() == Some(value) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
    worker.stop().await;
}
