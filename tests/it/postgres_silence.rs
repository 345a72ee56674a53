//! A Postgres, or what stands before it, that accepts and says nothing more: nobody waits for ever (faults C11).

use std::process::Stdio;

use cachekeeper_testkit::proxy::Proxy;

use crate::support::{Cli, Rig, wait_until};

const TABLE: &str = "create table products (id int primary key, name text);
    insert into products select n, repeat('x', 100) from generate_series(1, 20000) n;";
const DATASET: &str = r#"
    [service]
    shutdown_timeout = "5s"
    [postgres]
    connect_timeout = "500ms"
    statement_timeout = "1s"
    [dataset.product]
    query = "select id, name from products"
    key = "product:{id}"
    format = "json"
    warm = {}
    watch = [{ table = "products", key = { id = "id" } }]
"#;
const URL: &str = "CACHEKEEPER__POSTGRES__URL";

async fn proxy_of(rig: &Rig) -> (Proxy, String) {
    let proxy = Proxy::start(rig.postgres.port()).await.unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", proxy.port());
    (proxy, url)
}

/// Before the greeting, in its middle, while settings are made, and in the middle of results.
const MOMENTS: [u64; 6] = [0, 5, 300, 600, 900, 30_000];

#[tokio::test(flavor = "multi_thread")]
async fn no_verb_waits_for_ever_for_a_server_that_falls_silent() {
    let rig = Rig::start(TABLE).await;
    let (mut running, mut proxies) = (Vec::new(), Vec::new());
    for moment in MOMENTS {
        let (proxy, url) = proxy_of(&rig).await;
        proxy.change_new(|behaviour| behaviour.held_after = Some(moment));
        let cli = Cli::new(&rig, DATASET).with(URL, &url);
        for verb in ["check", "status", "migrate", "warm", "audit"] {
            let child = cli.command(&[verb]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            running.push((moment, verb, child));
        }
        proxies.push((proxy, cli));
    }
    for (moment, verb, mut child) in running {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        let code = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status.code(),
                None if deadline < tokio::time::Instant::now() => {
                    child.kill().unwrap();
                    panic!("{verb} waits for ever for a server that falls silent after {moment} bytes");
                }
                None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        // Some have all they need before the moment.
        assert!(matches!(code, Some(69 | 0 | 1)), "{verb} after {moment} bytes: {code:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stops_and_goes_on_whatever_the_server_says_no_more() {
    let rig = Rig::start(TABLE).await;
    let (proxy, url) = proxy_of(&rig).await;
    let cli = Cli::new(&rig, DATASET).with(URL, &url);
    let log = cli.file.with_extension("log");
    let file = std::fs::File::create(&log).unwrap();
    let mut child = cli.command(&["run"]).stdout(Stdio::null()).stderr(file).spawn().unwrap();
    let client = rig.client().await;
    let is_cached = |key: &'static str| {
        let mut client = client.clone();
        async move {
            let found: Result<bool, _> = redis::AsyncCommands::exists(&mut client, key).await;
            if matches!(found, Ok(true)) { Ok(()) } else { Err(format!("{found:?}")) }
        }
    };
    wait_until("the worker works", || is_cached("product:20000")).await;
    // For a while: then it goes on.
    proxy.change_all(|behaviour| behaviour.is_held = true);
    rig.postgres.execute("insert into products values (20001, 'later')").await.unwrap();
    proxy.change_new(|behaviour| behaviour.is_held = false);
    wait_until("it has connected anew", || is_cached("product:20001")).await;
    proxy.change_all(|behaviour| behaviour.is_held = true);
    let sent = std::process::Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
    assert!(sent.unwrap().success());
    wait_until("it has stopped", || {
        let ended = child.try_wait().unwrap();
        async move { ended.ok_or_else(|| "it runs".to_owned()) }
    })
    .await;
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("stopped"), "{said}");
    std::fs::remove_file(log).unwrap();
}
