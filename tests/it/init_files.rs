//! `init --from rdi FILE` and `--from sequin FILE`: what has a counterpart is taken over, what has none is named and counted.

use std::path::PathBuf;

use crate::support::{Cli, Rig};

const TABLES: &str = "
    create schema sales;
    create table sales.invoice (\"InvoiceId\" int primary key, total numeric(10,2));
    create table users (id int primary key, email text);
    create table logs (note text);";

struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("cachekeeper-import-{:016x}.yaml", rand::random::<u64>()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

#[tokio::test]
async fn a_job_of_rdi_becomes_a_dataset_and_says_what_is_lost() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, "");
    let job = File::new(
        "name: Invoices\nsource:\n  schema: sales\n  table: invoice\n  row_format: full\ntransform:\n  - uses: rename_field\n    \
         with: {from_field: total, to_field: sum}\noutput:\n  - uses: redis.write\n    with:\n      connection: target\n      \
         data_type: json\n      key:\n        expression: concat(['invoice_id:', InvoiceId])\n        language: jmespath\n      expire: 100\n",
    );
    let text =
        cli.says(&["init", "--from", "rdi", &job.name(), "--url", &rig.postgres.url()], 0, &["2 parts of"]);
    for part in [
        "key = \"invoice_id:{InvoiceId}\"",
        "ttl = \"100s\"",
        "format = \"json\"",
        "No counterpart: source.row_format: \"full\"",
        "No counterpart: transform:",
        "table = \"sales.invoice\"",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let text = cli.json(&["init", "--from", "rdi", &job.name(), "--url", &rig.postgres.url()])["text"]
        .as_str()
        .unwrap()
        .to_owned();
    Cli::new(&rig, &text).says(&["check"], 0, &["1 dataset"]);
    for (yaml, code, says) in [
        ("source:\n  table: \"*\"\n", 1, "is a job for all tables"),
        (
            "source:\n  table: users\noutput:\n  - uses: redis.write\n    with: {data_type: set, key: {expression: \"'u:' || id\"}}\n",
            1,
            "writes a Redis set",
        ),
        ("source:\n  table: users\n", 0, "the key was by RDI's default"),
        ("source:\n  table: nowhere\n", 1, "there is no table \"nowhere\""),
        ("source:\n  table: logs\n", 1, "has no key"),
        ("output: []\n", 1, "is no job of Redis Data Integration"),
        ("a: [", 1, "is no YAML"),
        ("", 1, "holds nothing"),
    ] {
        let file = File::new(yaml);
        cli.says(&["init", "--from", "rdi", &file.name(), "--url", &rig.postgres.url()], code, &[says]);
    }
    cli.says(&["init", "--from", "other", &job.name()], 2, &["known are rdi and sequin"]);
    cli.says(&["init", "--from", "rdi", "/nowhere/job.yaml"], 1, &["/nowhere/job.yaml cannot be read"]);
    cli.says(&["init", "--from", "rdi"], 2, &["2 values"]);
}

#[tokio::test]
async fn sinks_of_sequin_become_datasets_without_their_secrets() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, "");
    let file = File::new(
        "account: {name: a}\ndatabases:\n  - {name: d, hostname: h, password: a-secret}\nsinks:\n  - name: users-cache\n    database: d\n    \
         table: public.users\n    batch_size: 10\n    filters:\n      - {column_name: email, operator: is not null}\n    destination:\n      \
         {type: redis_string, host: h, port: 6379, password: a-secret, other: a-secret, expire_ms: 5000}\n  - name: out\n    table: users\n    \
         destination: {type: kafka, topic: t}\n  - name: all\n    destination: {type: redis_string}\n  - name: two\n    source:\n      \
         include_tables: [sales.invoice]\n    destination: {type: redis_string}\n",
    );
    let text =
        cli.says(&["init", "--from", "sequin", &file.name(), "--url", &rig.postgres.url()], 1, &["parts of"]);
    let flat = text.replace("\n# ", " ");
    for part in [
        "key = \"users:{id}\"",
        "ttl = \"5000ms\"",
        "No counterpart: filters:",
        "No counterpart: batch_size",
        "sink out: writes to kafka",
        "sink all: names no tables",
        "key = \"invoice:{InvoiceId}\"",
        "No counterpart: destination.other.",
    ] {
        assert!(flat.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("a-secret"), "{text}");
    let json = cli.json(&["init", "--from", "sequin", &file.name(), "--url", &rig.postgres.url()]);
    Cli::new(&rig, json["text"].as_str().unwrap()).says(&["check"], 0, &["2 datasets"]);
}
