//! Where Postgres is: every form of its URL, and the primary among several servers.

use std::path::Path;

use cachekeeper::app::Worker;
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::Postgres;
use redis::AsyncCommands;

use crate::support::{Cli, Rig, wait_until};

const TABLE: &str =
    "create table products (id int primary key, name text); insert into products values (1, 'one');";
const DATASET: &str = r#"
    [postgres]
    connect_timeout = "2s"
    [dataset.product]
    query = "select id, name from products"
    key = "product:{id}"
    format = "json"
    warm = {}
    watch = [{ table = "products", key = { id = "id" } }]
"#;
const URL: &str = "CACHEKEEPER__POSTGRES__URL";

fn config(rig: &Rig, url: &str, toml: &str) -> Config {
    let mut environment = rig.environment();
    environment.insert(URL.to_owned(), url.to_owned());
    match Config::load(Path::new("test.toml"), toml.to_owned(), &environment) {
        Ok((config, _warnings)) => config,
        Err(problems) => panic!("{}", cachekeeper_config::diagnostic::render(&problems)),
    }
}

fn context(rig: &Rig, url: &str) -> Context {
    Context::of_worker(&config(rig, url, "")).unwrap()
}

#[tokio::test]
async fn every_form_of_a_url_reaches_the_server() {
    let sockets = std::env::temp_dir().join("cachekeeper-sockets");
    std::fs::create_dir_all(&sockets).unwrap();
    // The server runs as another user where this is root.
    drop(std::process::Command::new("chmod").arg("1777").arg(&sockets).status());
    let (directory, encoded) =
        (sockets.display().to_string(), sockets.display().to_string().replace('/', "%2F"));
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    let listen = if has_ipv6 { "listen_addresses=127.0.0.1,::1" } else { "listen_addresses=127.0.0.1" };
    let rig = Rig::start_with("", &[&format!("unix_socket_directories={directory}"), listen], &[]).await;
    let port = rig.postgres.port();
    let mut urls = vec![
        format!("postgres://postgres@127.0.0.1:{port}/postgres"),
        format!("postgresql://postgres@localhost:{port}/postgres?sslmode=disable"),
        format!("postgres:///postgres?host={directory}&port={port}&user=postgres"),
        format!("postgres://postgres@{encoded}:{port}/postgres"),
        format!("postgres://postgres@/postgres?host={directory}&port={port}&sslmode=require"),
        format!(
            "postgres:///?hostaddr=127.0.0.1&host=nowhere.invalid&port={port}&user=postgres&dbname=postgres"
        ),
        format!("postgres://postgres@127.0.0.1:1,127.0.0.1:{port}/postgres"),
        format!("postgres://postgres@/postgres?host=127.0.0.1,127.0.0.1&port=1,{port}"),
        format!(
            "postgres://postgres@127.0.0.1:{port}/postgres?options=-c%20work_mem%3D1MB&connect_timeout=3"
        ),
        format!(
            "postgres://postgres@127.0.0.1:{port}/postgres?target_session_attrs=primary&gssencmode=prefer"
        ),
    ];
    if has_ipv6 {
        urls.push(format!("postgres://postgres@[::1]:{port}/postgres"));
        urls.push(format!("postgres://postgres@/postgres?host=::1&port={port}"));
    }
    for url in urls {
        let context = context(&rig, &url);
        context.postgres.ping().await.unwrap_or_else(|error| panic!("{url}: {}", error.told()));
        context.postgres.poll().await.unwrap_or_else(|error| panic!("{url}: {}", error.told()));
    }
}

#[tokio::test]
async fn a_parameter_that_is_not_supported_is_named_with_its_place() {
    let rig = Rig::start("").await;
    let url = "postgres://postgres@127.0.0.1:1/postgres?application_name=x&channel_binding=require";
    let toml = format!("[postgres]\nurl = \"{url}\"\n");
    let mut cli = Cli::new(&rig, &toml);
    cli.environment.retain(|(name, _)| name != URL);
    let column = "url = \"".len() + url.find("channel_binding").unwrap() + 1;
    let place = format!(":2:{column}\n");
    cli.says(&["check", "--offline"], 78, &[&place, "channel_binding", "sslmode=verify-full"]);
}

#[tokio::test]
async fn of_several_servers_the_primary_is_found_and_without_one_each_is_told_of() {
    let rig = Rig::start(TABLE).await;
    let standby = rig.postgres.standby(None).await.unwrap();
    let (first, second) = (standby.port(), rig.postgres.port());
    let both = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres");
    for end in ["", "?target_session_attrs=read-write", "?target_session_attrs=any"] {
        let context = context(&rig, &format!("{both}{end}"));
        context.postgres.ping().await.unwrap();
        context.postgres.poll().await.unwrap();
    }
    // Sessions that may not write are told from those that may, if that is asked for.
    rig.postgres.execute("alter role postgres set default_transaction_read_only = on").await.unwrap();
    context(&rig, &both).postgres.ping().await.unwrap();
    let asking = context(&rig, &format!("{both}?target_session_attrs=read-write"));
    let told = asking.postgres.ping().await.unwrap_err().told();
    assert!(told.contains("default_transaction_read_only"), "{told}");
    rig.postgres
        .execute("begin read write; alter role postgres reset default_transaction_read_only; commit")
        .await
        .unwrap();
    let cli = Cli::new(&rig, DATASET).with(URL, &format!("postgres://postgres@127.0.0.1:{first}/postgres"));
    cli.says(&["check"], 78, &["is a standby", "the primary"]);
    let nobody = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:1/postgres");
    let parts = [&format!("127.0.0.1:{first}: this server is a standby"), "127.0.0.1:1: connection refused"];
    Cli::new(&rig, DATASET).with(URL, &nobody).says(&["check"], 69, &parts);
}

async fn arrives(rig: &Rig, primary: &Postgres, name: &str) {
    // Whether the row was captured or not: a promotion begins a new epoch.
    wait_until(&format!("{name} is written"), || async {
        let sql = format!("set statement_timeout = '5s'; update products set name = '{name}' where id = 1");
        primary.execute(&sql).await.map_err(|error| error.to_string())
    })
    .await;
    let client = rig.client().await;
    wait_until(&format!("the entry is {name}"), || {
        let mut client = client.clone();
        async move {
            let value: Result<Option<String>, _> = client.get("product:1").await;
            match value {
                Ok(Some(value)) if value.contains(name) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_worker_follows_a_promotion_and_stays_with_the_new_primary_when_the_old_one_is_a_standby() {
    let mut rig = Rig::start(TABLE).await;
    let standby = rig.postgres.standby(None).await.unwrap();
    let (first, second) = (rig.postgres.port(), standby.port());
    let url = format!(
        "postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres?target_session_attrs=read-write"
    );
    let worker = Worker::start(config(&rig, &url, DATASET)).await.unwrap();
    arrives(&rig, &rig.postgres, "before").await;
    rig.postgres.kill();
    standby.promote().await.unwrap();
    arrives(&rig, &standby, "promoted").await;
    // What was the primary is now a standby, and stands first in the URL.
    let back = standby.standby(Some(first)).await.unwrap();
    standby
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cachekeeper'",
        )
        .await
        .unwrap();
    arrives(&rig, &standby, "again").await;
    let sessions = "select count(*)::text from pg_stat_activity where application_name = 'cachekeeper'";
    let found = back.session().await.unwrap().text(sessions).await.unwrap();
    assert_eq!(found.as_deref(), Some("0"), "sessions on the standby");
    worker.stop().await;
}
