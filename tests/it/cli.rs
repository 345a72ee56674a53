//! The command line, as a user types it.

use std::process::{Command, Stdio};

use redis::AsyncCommands;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, name text, price numeric);
    insert into products select n, 'product ' || n, n from generate_series(1, 500) n;
    create function slow() returns int language sql volatile as 'select 1';";

const DATASETS: &str = r#"
    [log]
    level = "warn"
    [feed]
    mode = "off"
    [dataset.product]
    query = "select id, name, price from products"
    key = "product:{id}"
    tags = ["all"]
    compression = { codec = "lz4", min_size = "1B" }
    warm = {}
"#;

#[tokio::test]
async fn verbs_do_their_work_without_a_running_worker() {
    let rig = Rig::start(TABLES).await;
    let cli = Cli::new(&rig, DATASETS);
    let note = "note: dataset product: what the start fills ends after its ttl (1h) and is not filled again";
    let checked = cli.says(&["check"], 0, &["configuration is right: 1 dataset, servers asked\n", note]);
    assert_eq!(checked.lines().count(), 2, "{checked}");
    let (code, text) = cli.run(&["status"]);
    assert!(code == 1 && text.contains("no worker has run here"), "{text}");
    let (code, text) = cli.run(&["warm", "--json"]);
    assert!(code == 0 && text.contains("\"stored\":500"), "{text}");
    let (code, text) = cli.run(&["get", "product:42"]);
    assert!(
        code == 0 && text.contains("\"name\": \"product 42\"") && text.contains("dataset product"),
        "{text}"
    );
    let (code, text) = cli.run(&["get", "product:9999"]);
    assert!(code == 1 && text.contains("is not in Redis"), "{text}");
    let (code, text) = cli.run(&["audit"]);
    assert!(code == 0 && text.contains("500 entries looked at, 500 right"), "{text}");
    let mut client = rig.client().await;
    // Of the format: `{"id": 7}`.
    let _: () = client.set("product:7", &[0x81, 0xa2, b'i', b'd', 7][..]).await.unwrap();
    let _: () = client.set("product:7777", "planted").await.unwrap();
    let _: () = client.del(&["product:8", "product:9"]).await.unwrap();
    // What is no string at all is looked at like any other wrong value.
    let _: () = client.rpush("product:9", "a list").await.unwrap();
    let _: () = client.sadd("product:9999", "a set").await.unwrap();
    let (code, text) = cli.run(&["audit", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 1);
    let keys = |outcome: &str| {
        let mut keys: Vec<String> = serde_json::from_value(found[outcome].clone()).unwrap();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys("stale"), ["product:7"]);
    assert_eq!(keys("undecodable"), ["product:9"]);
    assert_eq!(keys("extra"), ["product:7777", "product:9999"]);
    assert_eq!(found["missing"], serde_json::json!(["product:8"]));
    assert_eq!(cli.run(&["audit", "--fix"]).0, 0);
    assert_eq!(cli.run(&["audit"]).0, 0);
    rig.postgres
        .execute("update products set name = 'new' where id = 9; delete from products where id = 10")
        .await
        .unwrap();
    let (code, text) = cli.run(&["refresh", "product:9", "product:10"]);
    assert_eq!((code, text.as_str()), (0, "1 stored again, 1 gone, 0 deleted\n"));
    let (code, text) = cli.run(&["invalidate", "--tag", "all", "--delete"]);
    // The two that were planted by hand have left the tag by then, or were never in it.
    assert!(code == 0 && text.contains("499 deleted"), "{text}");
    let (code, text) = cli.run(&["refresh", "-d", "product"]);
    assert!(code == 0 && text.contains("499 stored again"), "{text}");
    assert_eq!(cli.run(&["status"]).0, 0);
}

#[tokio::test]
async fn mistakes_are_told_with_the_agreed_exit_codes() {
    let mut rig = Rig::start(TABLES).await;
    let cases: &[(&str, &[&str])] = &[
        (
            "[dataset.p]\nquery = \"select idd from products\"\nkey = \"p:{id}\"",
            &["t.toml:2:", "column \"idd\" does not exist"],
        ),
        (
            "[dataset.p]\nquery = \"select id from products\"\nkey = \"p:{idd}\"",
            &[":3:11", "no such column", "columns: id"],
        ),
        ("[dataset.p]\nquery = \"select id from products where\"\nkey = \"p:{id}\"", &["syntax error"]),
        (
            "[dataset.p]\nquery = \"select id, slow() from products\"\nkey = \"p:{id}\"",
            &["slow, which is volatile"],
        ),
        (
            "[dataset.p]\nquery = \"select id, random() as r from products\"\nkey = \"p:{id}\"",
            &["random, which is volatile"],
        ),
        ("[dataset.p]\nquery = \"select id, id from products\"\nkey = \"p:{id}\"", &["two columns named id"]),
        (
            "[dataset.p]\nquery = \"delete from products returning id\"\nkey = \"p:{id}\"",
            &["does not accept the query"],
        ),
        (
            "[dataset.p]\nquery = \"select 1 as id; drop table products\"\nkey = \"p:{id}\"",
            &["does not accept the query"],
        ),
        (
            "[dataset.p]\nquery = \"select name as id from products\"\nkey = \"p:{id}\"\n[dataset.q]\nquery = \"select id from products\"\nkey = \"p:x:{id}\"",
            &["could coincide"],
        ),
    ];
    for (toml, fragments) in cases {
        let cli = Cli::new(&rig, toml);
        let (code, text) = cli.run(&["check"]);
        assert_eq!(code, 78, "{toml}\n{text}");
        for fragment in *fragments {
            let fragment = fragment.replace("t.toml", &cli.file.display().to_string());
            assert!(text.contains(&fragment), "{toml}\ndoes not say {fragment:?}:\n{text}");
        }
    }
    let cli = Cli::new(&rig, DATASETS);
    assert_eq!(cli.run(&["warm", "nosuch"]).0, 2);
    assert_eq!(cli.run(&["frobnicate"]).0, 2);
    assert_eq!(cli.run(&["check", "-c", "/nowhere.toml"]).0, 2, "given twice");
    let wrong = Cli { file: "/nowhere.toml".into(), environment: cli.environment.clone() };
    assert!(wrong.run(&["check"]).1.contains("cannot be read"));
    assert_eq!(wrong.run(&["check"]).0, 78);
    let mut broken = Cli::new(&rig, "[dataset.p]\nkey = 5");
    assert_eq!(broken.run(&["run"]).0, 78);
    // Another namespace in the same database is refused where it is not known what that one uses.
    assert_eq!(cli.run(&["warm"]).0, 0);
    broken.environment.iter_mut().find(|(name, _)| name.ends_with("NAMESPACE")).unwrap().1 =
        "other".to_owned();
    let other = Cli { file: cli.file.clone(), environment: broken.environment.clone() };
    let (code, text) = other.run(&["run"]);
    assert!(code == 78 && text.contains("already serves"), "{text}");
    std::mem::forget(other);
    // So is a namespace that a worker of an earlier version leads, or whose database it shares with another one.
    let mut redis = rig.client().await;
    let _: () = redis.set("ck:{test}:lock:feed", "somebody").await.unwrap();
    let (code, text) = cli.run(&["run"]);
    assert!(code == 78 && text.contains("a worker of an earlier version leads the namespace"), "{text}");
    let _: () = redis.del("ck:{test}:lock:feed").await.unwrap();
    let _: () = redis.hset("ck:{former}:head", "epoch", "e").await.unwrap();
    let (code, text) = cli.run(&["run"]);
    assert!(code == 78 && text.contains("already serves the namespace \"former\""), "{text}");
    let _: () = redis.del("ck:{former}:head").await.unwrap();
    rig.postgres.stop();
    let (code, text) = cli.run(&["warm"]);
    assert!(code == 69 && text.contains("cannot connect to"), "{code} {text}");
    rig.redis.kill();
    let (code, text) = cli.run(&["get", "product:1"]);
    assert!(code == 69, "{code} {text}");
}

#[tokio::test]
async fn a_wrong_password_is_said_to_be_one() {
    let rig = Rig::start_with(TABLES, &[], &["--requirepass", "right"]).await;
    let cli = Cli::new(&rig, DATASETS);
    let (code, text) = cli.run(&["warm"]);
    assert!(code == 78 && text.contains("password"), "{code} {text}");
    let rig = Rig::start(TABLES).await;
    for (part, other, said) in
        [("postgres@", "nobody@", "role \"nobody\""), ("/postgres?", "/nowhere?", "database \"nowhere\"")]
    {
        let mut cli = Cli::new(&rig, DATASETS);
        let url = cli.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap();
        assert!(url.1.contains(part), "{}", url.1);
        url.1 = url.1.replace(part, other);
        cli.says(&["warm"], 78, &[said]);
        cli.says(&["status"], 78, &[said]);
    }
}

/// Whoever asked for JSON gets JSON, also where there is no result.
#[tokio::test]
async fn what_fails_is_told_in_json_too() {
    let mut rig = Rig::start(TABLES).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut cli = Cli::new(&rig, DATASETS);
    let off = cli.json(&["healthcheck"]);
    assert!(off["error"].as_str().unwrap().contains("the admin listener is off"), "{off}");
    cli.environment.retain(|(name, _)| !name.contains("ADMIN"));
    cli.environment.push(("CACHEKEEPER__ADMIN__LISTEN".to_owned(), format!("127.0.0.1:{port}")));
    let found = cli.json(&["healthcheck", "--ready"]);
    assert_eq!(found["ok"], false);
    assert!(found["error"].as_str().unwrap().contains("does not answer"), "{found}");
    cli.says(&["healthcheck", "--json"], 69, &["{\"error\":", "error: "]);
    for (arguments, part) in [
        (&["warm", "nosuch"][..], "no dataset is named nosuch"),
        (&["audit", "nosuch"], "no dataset is named nosuch"),
        (&["invalidate", "--delete"], "nothing is named"),
        (&["write", "product", "id=1"], "statement"),
        (&["writes", "replay", "1-1"], "no rejected command"),
        (&["purge"], "say --yes"),
    ] {
        let found = cli.json(arguments);
        assert!(found["error"].as_str().is_some_and(|error| error.contains(part)), "{arguments:?}: {found}");
    }
    rig.redis.kill();
    for verb in ["status", "audit", "warm", "purge"] {
        let found = cli.json(&[verb]);
        assert!(found["ok"] == false && found["error"].is_string(), "{verb}: {found}");
    }
    rig.postgres.stop();
    let found = cli.json(&["migrate"]);
    assert!(found["error"].as_str().unwrap().contains("cannot connect to"), "{found}");
}

#[tokio::test]
async fn a_signal_stops_the_worker_in_order() {
    let rig = Rig::start(TABLES).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut cli = Cli::new(&rig, DATASETS);
    cli.environment.retain(|(name, _)| !name.contains("ADMIN"));
    cli.environment.push(("CACHEKEEPER__ADMIN__LISTEN".to_owned(), format!("127.0.0.1:{port}")));
    let mut child = cli.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the worker is ready", || async {
        let (code, text) = cli.run(&["healthcheck", "--ready"]);
        if code == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(cli.run(&["healthcheck"]), (0, "ok\n".to_owned()));
    let client = http_get(port, "/metrics").await;
    assert!(
        client.contains("cachekeeper_entries_stored_total{dataset=\"product\",cause=\"backfill\"} 500"),
        "{client}"
    );
    assert!(http_get(port, "/api/v1/status").await.contains("\"warmed\":true"));
    Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut redis = rig.client().await;
    let leases: Vec<String> = redis.keys("ck:{test:0}:lock:*").await.unwrap();
    assert_eq!(leases, Vec::<String>::new());
}

pub async fn http_get(port: u16, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_role_that_only_reads_can_run_the_worker() {
    let rig = Rig::start(TABLES).await;
    rig.postgres
        .execute("create role reader login; grant select on products to reader; revoke all on schema public from public; grant usage on schema public to reader")
        .await
        .unwrap();
    let mut cli = Cli::new(&rig, DATASETS);
    let url = rig.postgres.url().replace("postgres@", "reader@");
    let as_reader = |cli: &mut Cli| {
        cli.environment.iter_mut().find(|(name, _)| name.ends_with("POSTGRES__URL")).unwrap().1 = url.clone();
    };
    let (code, text) = cli.run(&["migrate", "--grant", "reader"]);
    assert!(code == 0 && text.contains("the schema is up to date"), "{text}");
    as_reader(&mut cli);
    rig.postgres.execute("delete from cachekeeper.incarnation").await.unwrap();
    let (code, text) = cli.run(&["warm"]);
    assert!(code == 0 && text.contains("500 entries stored"), "{text}");
    // Nothing is to be done, so it needs no right to do it.
    cli.says(&["migrate"], 0, &["the schema is up to date"]);
    rig.postgres.execute("drop table cachekeeper.outbox").await.unwrap();
    let way = "cachekeeper migrate --grant reader";
    cli.says(&["migrate"], 78, &["must be owner of schema cachekeeper", "owns the watched tables", way]);
    cli.says(&["migrate", "--print"], 1, &["the schema is damaged", "table outbox was missing"]);
}

#[tokio::test]
async fn a_second_signal_ends_the_worker_at_once() {
    let rig = Rig::start(TABLES).await;
    // Redis does not answer, so an orderly stop takes its time.
    let cli = Cli::new(&rig, &format!("{DATASETS}\n[redis]\nresponse_timeout = \"60s\""));
    let mut child = cli.command(&["run"]).stderr(Stdio::null()).spawn().unwrap();
    let mut client = rig.client().await;
    wait_until("it works", || {
        let mut client = client.clone();
        async move {
            let leases: Vec<String> =
                client.keys("ck:{test:0}:*").await.map_err(|error| error.to_string())?;
            if leases.len() > 2 { Ok(()) } else { Err(format!("{leases:?}")) }
        }
    })
    .await;
    let _: () = client.publish("cache:invalidation", "product:1").await.unwrap();
    rig.redis.pause();
    let pid = child.id();
    let signal = || Command::new("kill").args(["-s", "INT", &pid.to_string()]).status().unwrap();
    signal();
    wait_until("the first signal was taken", || async {
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| error.to_string())?;
        // No signal is pending any more.
        let pending = status.lines().filter(|line| line.starts_with("SigPnd") || line.starts_with("ShdPnd"));
        if pending.clone().all(|line| line.ends_with("0000000000000000")) { Ok(()) } else { Err(status) }
    })
    .await;
    let code = wait_until("it has ended", || {
        signal();
        let ended = child.try_wait().unwrap();
        async move { ended.ok_or_else(|| "still running".to_owned()) }
    })
    .await;
    assert_eq!(code.code(), Some(130));
    rig.redis.resume();
}

#[tokio::test]
async fn capture_is_installed_checked_switched_and_removed() {
    let rig = Rig::start(TABLES).await;
    let followed = DATASETS
        .replace("mode = \"off\"", "mode = \"outbox\"")
        .replace("warm = {}", "warm = {}\n    watch = [{ table = \"products\", key = { id = \"id\" } }]");
    let cli = Cli::new(&rig, &followed);
    let says = |arguments: &[&str], code: i32, text: &str| {
        let (found, output) = cli.run(arguments);
        assert!(found == code && output.contains(text), "{arguments:?}: {found}\n{output}");
    };
    says(&["check"], 0, "products has no triggers; run `cachekeeper migrate`");
    says(&["migrate"], 0, "dataset product: changes are captured");
    says(&["check"], 0, "configuration is right: 1 dataset, servers asked");
    assert!(!cli.run(&["check"]).1.contains("would be missed"));
    says(&["status"], 1, "watermark  none");
    says(&["capture", "off"], 0, "1 captures switched, of namespace test");
    says(&["check"], 0, "switched off");
    says(&["capture", "on"], 0, "captured again");
    says(&["capture", "perhaps"], 2, "possible values: on, off");
    says(&["migrate", "--print"], 0, "-- nothing is to be done");
    let required = Cli::new(
        &rig,
        &followed
            .replace("warm = {}", "feed = \"required\"\n    warm = {}")
            .replace("table = \"products\"", "table = \"product\""),
    );
    let (code, text) = required.run(&["check"]);
    assert!(code == 78 && text.contains("there is no table product"), "{code} {text}");
    says(&["warm"], 0, "product");
    says(&["audit", "--sample", "100"], 0, "right");
    says(&["migrate", "--uninstall", "--yes"], 0, "the schema cachekeeper is removed");
}

/// Both are made of the command line's definition, so no verb can be forgotten; a packager asks for them without a configuration.
#[test]
fn shells_and_manual_pages_know_every_verb() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeeper"));
        let output = command.args(arguments).current_dir("/").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let help = run(&["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let verbs: Vec<&str> = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(20 < verbs.len(), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let text = run(&["completions", shell]);
        for word in verbs.iter().chain(&["uninstall", "from-table", "dead-letters"]) {
            assert!(text.contains(word), "{shell} does not complete {word}");
        }
    }
    let directory = std::env::temp_dir().join(format!("cachekeeper-manual-{:016x}", rand::random::<u64>()));
    std::fs::create_dir(&directory).unwrap();
    let pages = run(&["man", "--dir", directory.to_str().unwrap()]);
    for verb in &verbs {
        let name = format!("cachekeeper-{verb}.1");
        assert!(pages.lines().any(|line| line == name), "{name} is not among\n{pages}");
        let page = std::fs::read_to_string(directory.join(&name)).unwrap();
        assert!(page.contains(".SH OPTIONS"), "{page}");
    }
    let first = std::fs::read_to_string(directory.join("cachekeeper.1")).unwrap();
    for part in
        ["EXIT STATUS", "/etc/cachekeeper/cachekeeper.toml", &format!("cachekeeper\\-{}(1)", verbs[0])]
    {
        assert!(first.contains(part), "{part}\n{first}");
    }
    assert_eq!(run(&["man"]).trim_end(), first.trim_end());
    std::fs::remove_dir_all(&directory).unwrap();
}
