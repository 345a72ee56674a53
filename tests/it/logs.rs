//! What is printed and logged: to full disks, to closed pipes, to pipes that nobody reads, and how much of it.

use std::fs::File;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use redis::AsyncCommands;

use crate::cli::http_get;
use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "create table products (id int primary key, name text not null);
    insert into products select n, 'product ' || n from generate_series(1, 50) n";
const DATASETS: &str = r#"
[dataset.product]
query = "select id, name from products"
key = "product:{id}"
ttl = "1h"
format = "json"
warm = { on_start = true }
watch = [{ table = "products", key = { id = "id" } }]
"#;

/// A worker as a process, with an admin listener.
struct Logged {
    cli: Cli,
    port: u16,
    child: Child,
}

impl Logged {
    fn start(rig: &Rig, toml: &str, standard_error: Stdio) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut cli = Cli::new(rig, toml);
        cli.environment.retain(|(name, _)| !name.contains("ADMIN"));
        cli.environment.push(("CACHEKEEPER__ADMIN__LISTEN".to_owned(), format!("127.0.0.1:{port}")));
        let child = cli.command(&["run"]).stderr(standard_error).spawn().unwrap();
        Self { cli, port, child }
    }

    async fn is_ready(&self) {
        wait_until("the worker is ready", || async {
            let (code, text) = self.cli.run(&["healthcheck", "--ready"]);
            if code == 0 { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// The value of a counter without labels.
    async fn counted(&self, name: &str) -> u64 {
        let metrics = http_get(self.port, "/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    }

    /// Asks it to stop; answers how it ended.
    fn stop(&mut self) -> Option<i32> {
        Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status().unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A function that says ten kilobytes for each row.
const NOISY: &str = "create function noisy(text) returns text language plpgsql stable as
        $$ begin raise warning '%', repeat('x', 10000); return $1; end $$;
    insert into products select n, 'product ' || n from generate_series(51, 300) n";

fn noisy() -> String {
    DATASETS
        .replace("select id, name from products", "select id, noisy(name) as name from products")
        .replace("ttl =", "reads = []\nttl =")
}

const LOST: &str = "cachekeeper_log_lines_lost_total";

#[tokio::test]
async fn a_worker_whose_log_lines_meet_a_full_disk_or_a_closed_pipe_goes_on_and_counts_them() {
    let rig = Rig::start(TABLES).await;
    let closed = {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for standard_error in [full, closed] {
        let mut worker = Logged::start(&rig, DATASETS, standard_error);
        worker.is_ready().await;
        wait_until("lost lines are counted", async || {
            let lost = worker.counted(LOST).await;
            if 0 < lost { Ok(()) } else { Err(format!("{lost} lost")) }
        })
        .await;
        assert_eq!(worker.stop(), Some(0));
    }
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_stops_no_worker_and_is_told_how_much_it_has_missed() {
    let rig = Rig::start(TABLES).await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    rig.postgres.execute(NOISY).await.unwrap();
    let toml = format!("[log]\nlevel = \"info,sqlx=info\"\n{}", noisy());
    let mut worker = Logged::start(&rig, &toml, writer.into());
    worker.is_ready().await;
    wait_until("the pipe and the queue are full", async || {
        let lost = worker.counted(LOST).await;
        if 0 < lost { Ok(()) } else { Err(format!("{lost} lost")) }
    })
    .await;
    worker.is_ready().await;
    rig.postgres.execute("update products set name = 'x' where id = 7").await.unwrap();
    let client = rig.client().await;
    wait_until("the worker works", async || {
        let value: String =
            redis::cmd("GET").arg("product:7").query_async(&mut client.clone()).await.unwrap();
        if value.contains("\"x\"") { Ok(()) } else { Err(value) }
    })
    .await;
    let told = tokio::task::spawn_blocking(move || {
        let (mut text, mut part) = (String::new(), [0; 65_536]);
        while !text.contains("log lines could not be written") {
            let read = reader.read(&mut part).unwrap();
            assert!(0 < read, "it was never told");
            text.push_str(&String::from_utf8_lossy(&part[..read]));
        }
        // Nobody reads it any more.
        reader
    });
    let _reader = told.await.unwrap();
    assert_eq!(worker.stop(), Some(0), "and it stops, although its last lines find no reader");
}

#[tokio::test]
async fn a_verb_ends_quietly_where_its_reader_has_gone_and_fails_where_the_disk_is_full() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, DATASETS);
    cli.says(&["warm"], 0, &[]);
    for verb in [&["check"][..], &["get", "product:7"], &["schema"], &["schema", "--toml"], &["--help"]] {
        let run = |output: Stdio| {
            let ended = cli.command(verb).stdout(output).stderr(Stdio::piped()).output().unwrap();
            (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
        };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, text) = run(writer.into());
        assert_eq!(code, Some(0), "{verb:?}: {text}");
        assert!(!text.contains("panicked") && !text.contains("error"), "{verb:?}: {text}");
        let (code, text) = run(File::options().write(true).open("/dev/full").unwrap().into());
        assert_eq!(code, Some(1), "{verb:?}: {text}");
        assert!(!text.contains("panicked"), "{verb:?}: {text}");
    }
    // Notes and errors that cannot be shown.
    for (verb, code) in
        [(&["get", "nothing:7"][..], 1), (&["warm", "nothing"], 2), (&["--json", "warm", "no"], 2)]
    {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert_eq!(cli.command(verb).stderr(full).status().unwrap().code(), Some(code), "{verb:?}");
    }
}

#[tokio::test]
async fn what_repeats_is_told_in_a_line_with_a_count() {
    let rig = Rig::start(TABLES).await;
    rig.postgres.execute(NOISY).await.unwrap();
    let file = std::env::temp_dir().join(format!("cachekeeper-log-{:016x}", rand::random::<u64>()));
    let pair =
        "[dataset.pair]\nquery = \"select id, name from products\"\nkey = \"pair:{id}:{name}\"\nttl = \"1h\"";
    let mut worker = Logged::start(&rig, &format!("{}{pair}", noisy()), File::create(&file).unwrap().into());
    worker.is_ready().await;
    let client = rig.client().await;
    // Each id alone is wrong: the key has two placeholders.
    let ids: Vec<u32> = (0..99_000).collect();
    let event = serde_json::json!({ "dataset": "pair", "ids": ids }).to_string();
    let _: i64 = client.clone().publish("cache:invalidation", event).await.unwrap();
    for _ in 0..200 {
        let mut pipeline = redis::pipe();
        for _ in 0..100 {
            pipeline.publish("cache:invalidation", "{\"nonsense\":1}").ignore();
            pipeline.cmd("XADD").arg("cache:invalidation:log").arg("*").arg("nonsense").arg("x").ignore();
        }
        let () = pipeline.query_async(&mut client.clone()).await.unwrap();
    }
    wait_until("all of it is counted", async || {
        let metrics = http_get(worker.port, "/metrics").await;
        let invalid: Vec<&str> =
            metrics.lines().filter(|line| line.starts_with("cachekeeper_events_invalid")).collect();
        let counts = invalid.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        if counts.sum::<u64>() == 139_000 { Ok(()) } else { Err(format!("{invalid:?}")) }
    })
    .await;
    assert_eq!(worker.stop(), Some(0));
    let log = std::fs::read_to_string(&file).unwrap();
    drop(std::fs::remove_file(&file));
    println!("{} bytes of log", log.len());
    let told = |what: &str| {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let of_kind =
            lines.filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with(what)));
        of_kind.map(|line| line["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(told("events have ids with another number of parts than the key"), 99_000);
    assert_eq!(told("events of the stream cannot be read"), 20_000);
    assert_eq!(told("events cannot be read"), 20_000);
    assert!(!log.contains("xxxx"), "messages of the server are left out");
    assert!(log.len() < 50_000, "{} bytes: {}", log.len(), &log[..2000]);
}

/// What a worker tries again and again while Postgres is down is no line each time.
#[tokio::test]
async fn attempts_while_postgres_is_down_are_counted() {
    let mut rig = Rig::start(TABLES).await;
    let file = std::env::temp_dir().join(format!("cachekeeper-log-{:016x}", rand::random::<u64>()));
    let writing = "write = { statement = \"update products set name = :name where id = :id\" }\n";
    let toml = format!("{DATASETS}{writing}");
    let mut worker = Logged::start(&rig, &toml, File::create(&file).unwrap().into());
    worker.is_ready().await;
    rig.postgres.stop();
    wait_until("attempts are counted", async || {
        let log = std::fs::read_to_string(&file).unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let attempts = lines.filter(|line| {
            line["message"].as_str().is_some_and(|text| text.starts_with("old records of write commands"))
        });
        let attempts: Vec<Option<u64>> =
            attempts.map(|line| line["attempts"].as_u64().or(line["count"].as_u64())).collect();
        let is_counted =
            attempts.iter().all(Option::is_some) && attempts.iter().any(|attempts| *attempts >= Some(2));
        if is_counted { Ok(()) } else { Err(format!("{attempts:?}")) }
    })
    .await;
    worker.stop();
    drop(std::fs::remove_file(&file));
}
