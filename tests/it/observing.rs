//! What others watch a worker by: the table of metrics, alert rules with their paragraphs, the dashboard, and what `/metrics` says.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cachekeeper_engine::metrics::{Description, Metrics};
use serde_json::Value;

use crate::cli::http_get;
use crate::support::{Cli, Rig, wait_until};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// docs/metrics.md, as the code has it.
fn table() -> String {
    let mut text = "# Metrics\n\nMade from the code (`CACHEKEEPER_BLESS=1 cargo nextest run the_table_of_metrics` writes it): every metric of a worker. Those \
                    of the library (`reads`, `loads`, `locks` and the like) are counted in applications, which export them with `Cache::render_metrics`. Labels \
                    are names of the configuration or fixed words, never keys. What is worth an alert: [alerts.md](alerts.md).\n\n\
                    | metric | kind | labels | what it says |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for one in Metrics::described() {
        let labels: Vec<String> = one.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind, help) = (one.queried(), one.kind, one.help);
        writeln!(text, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
    }
    text
}

#[test]
fn the_table_of_metrics_is_what_the_code_registers() {
    if std::env::var_os("CACHEKEEPER_BLESS").is_some() {
        std::fs::write(at("docs/metrics.md"), table()).unwrap();
    }
    assert!(
        read("docs/metrics.md") == table(),
        "write it again: CACHEKEEPER_BLESS=1 cargo nextest run the_table_of_metrics"
    );
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|one: char| !one.is_ascii_alphanumeric() && one != '_');
    let is_ours = |word: &&str| word.starts_with("cachekeeper_") || word.starts_with("process_");
    words.filter(is_ours).map(str::to_owned).collect()
}

fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if matches!(name.as_str(), "expr" | "query" | "definition") => {
                        found.push(text.clone());
                    }
                    value => expressions(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[test]
fn alerts_documents_and_dashboard_name_only_metrics_that_exist() {
    let all = Metrics::described();
    let samples: BTreeSet<String> = all.iter().flat_map(Description::samples).collect();
    let mut expressions_of_dashboard = Vec::new();
    let dashboard = serde_json::from_str(&read("deploy/grafana/cachekeeper.json")).unwrap();
    expressions(&dashboard, &mut expressions_of_dashboard);
    assert!(40 < expressions_of_dashboard.len(), "the dashboard was not read");
    let texts = [
        ("the dashboard", expressions_of_dashboard.join("\n")),
        ("deploy/prometheus/alerts.yml", read("deploy/prometheus/alerts.yml")),
        ("deploy/prometheus/alerts.test.yml", read("deploy/prometheus/alerts.test.yml")),
        ("docs/alerts.md", read("docs/alerts.md")),
        ("docs/admin.md", read("docs/admin.md")),
    ];
    for (place, text) in texts {
        let unknown: Vec<String> = named(&text).difference(&samples).cloned().collect();
        assert!(unknown.is_empty(), "{place} names metrics that do not exist: {unknown:?}");
    }
    let shown = named(&expressions_of_dashboard.join("\n"));
    let is_shown = |one: &&Description| one.samples().iter().any(|sample| shown.contains(sample));
    assert!(40 < all.iter().filter(is_shown).count(), "the dashboard shows few metrics: {shown:?}");
}

#[test]
fn every_alert_has_a_paragraph_and_is_tested() {
    let after = |text: &str, head: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(head));
        lines.map(|name| name.trim().to_owned()).collect()
    };
    let rules = read("deploy/prometheus/alerts.yml");
    let alerts = after(&rules, "- alert:");
    assert!(15 < alerts.len());
    assert_eq!(
        alerts,
        after(&rules, "runbook: docs/alerts.md#")
            .iter()
            .zip(&alerts)
            .map(|(anchor, name)| {
                assert_eq!(*anchor, name.to_lowercase());
                name.clone()
            })
            .collect::<Vec<_>>()
    );
    assert_eq!(alerts, after(&read("docs/alerts.md"), "## "), "a paragraph for each alert, in their order");
    for paragraph in read("docs/alerts.md").split("\n## ").skip(1) {
        for part in ["**Means**", "**People see**", "**Do**"] {
            let one_line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(one_line.contains(part), "{part} is missing: {paragraph}");
        }
    }
    let fires = read("deploy/prometheus/alerts.test.yml");
    for alert in alerts {
        assert!(fires.contains(&format!("#{}", alert.to_lowercase())), "no test lets {alert} fire");
    }
}

/// Runs `promtool`, which must find nothing.
#[track_caller]
fn promtool(arguments: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(at("deploy/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: make servers");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn the_alerts_fire_when_they_should_and_not_otherwise() {
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts.test.yml"], "");
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An application may be scraped as well: it must not look like a worker that is not ready.
#[test]
fn what_only_a_worker_knows_is_not_told_by_applications() {
    let text = Metrics::default().render().unwrap();
    for name in ["cachekeeper_ready", "cachekeeper_watermark_age_seconds", "process_cpu_seconds"] {
        assert!(!text.contains(&format!("\n{name}")), "{text}");
    }
}

#[tokio::test]
async fn prometheus_finds_nothing_odd_in_what_a_worker_says() {
    let rig = Rig::start(
        "create table products (id int primary key, name text); insert into products select n, 'x' from generate_series(1, 50) n",
    )
    .await;
    let port = cachekeeper_testkit::servers::free_port().unwrap();
    let toml = "[dataset.product]\nquery = \"select id, name from products\"\nkey = \"product:{id}\"\nwarm = {}\n\
                watch = [{ table = \"products\", key = { id = \"id\" } }]\n";
    let cli = Cli::new(&rig, toml).with("CACHEKEEPER__ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
    let _worker = Running(cli.command(&["run"]).stderr(Stdio::null()).spawn().unwrap());
    wait_until("the worker is ready", async || {
        let (code, text) = cli.run(&["healthcheck", "--ready"]);
        if code == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    rig.postgres.execute("update products set name = 'y' where id < 10").await.unwrap();
    let metrics = wait_until("the changes are counted, and all is well", async || {
        let answer = http_get(port, "/metrics").await;
        let (_, text) = answer.split_once("\r\n\r\n").unwrap();
        let says = [
            "cachekeeper_changed_keys_total{dataset=\"product\"} 9",
            "cachekeeper_ready 1",
            "cachekeeper_dataset_covered{dataset=\"product\"} 1",
            "cachekeeper_dataset_broken{dataset=\"product\"} 0",
        ];
        let is_there = says.iter().all(|line| text.lines().any(|one| one == *line));
        if is_there { Ok(text.to_owned()) } else { Err(answer) }
    })
    .await;
    promtool(&["check", "metrics"], &metrics);
    let typed = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let typed: BTreeSet<(String, String)> =
        typed.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    let known = Metrics::described();
    let known: BTreeSet<_> = known.iter().map(|one| (one.queried(), one.kind.to_owned())).collect();
    let unknown: Vec<_> = typed.difference(&known).collect();
    assert!(unknown.is_empty(), "not in the table, or of another kind: {unknown:?}");
    assert!(30 < typed.len(), "{typed:?}");
    // Who asks for OpenMetrics gets it, with the same numbers.
    let newer = Command::new("curl")
        .args(["-s", "-H", "Accept: application/openmetrics-text;version=1.0.0", "-i"])
        .arg(format!("http://127.0.0.1:{port}/metrics"))
        .output()
        .unwrap();
    let newer = String::from_utf8(newer.stdout).unwrap();
    assert!(
        newer.contains("content-type: application/openmetrics-text") && newer.ends_with("# EOF\n"),
        "{newer}"
    );
    assert!(
        newer.contains("# TYPE cachekeeper_changes counter") && newer.contains("process_cpu_seconds_total ")
    );
}
