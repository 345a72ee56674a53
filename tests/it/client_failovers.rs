//! Programs on the packages for Python and Node under exactly the rights of `cachekeeper acl`, and through failovers of Redis.

use std::process::Stdio;

use cachekeeper::app::Worker;
use cachekeeper_config::Secret;
use cachekeeper_testkit::servers::{Redis, Sentinels};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout};

use crate::client_programs::{Caller, filled, install, program};
use crate::clients;
use crate::feed::ready;
use crate::rights::{client, config, make_users, refused, url};
use crate::support::{Cli, Rig};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_program_lives_with_exactly_the_rights_of_its_rule() {
    install();
    let rig = Rig::start(clients::TABLES).await;
    make_users(&rig, &Cli::new(&rig, clients::DATASETS)).await;
    let worker = Worker::start(config(&rig, clients::DATASETS, "worker")).await.unwrap();
    filled(&worker).await;
    let token =
        rig.postgres.session().await.unwrap().text("select cachekeeper.token()").await.unwrap().unwrap();
    let all = |kind: &str| Caller::start_all(&url(&rig, kind), "test");
    for mut reader in all("reader") {
        let options = json!({ "token": token, "wait": 60 });
        assert_eq!(reader.call("get", json!(["packed", 7]), options)["id"], 7);
        reader.call("get_many", json!(["json", [1, 2]]), json!({}));
    }
    for mut publisher in all("publisher") {
        for durable in [false, true] {
            publisher.call(
                "publish",
                json!([{ "dataset": "loose", "ids": [9] }]),
                json!({ "durable": durable }),
            );
        }
    }
    for mut writer in all("writer") {
        let params = json!(["packed", { "id": 3, "name": writer.name }]);
        assert_eq!(writer.call("write", params, json!({ "timeout": 60 }))["rows"], 1);
    }
    assert_eq!(refused(&rig).await, Vec::<String>::new());
    // Who may not is told what, and by which rule he could.
    for mut reader in all("reader") {
        let parts = ["lacks a right", "NOPERM", "cachekeeper acl --for"];
        reader.fails_with(("publish", json!([{ "key": "loose:9" }]), json!({})), "PermissionDenied", &parts);
        let params = json!(["packed", { "id": 3, "name": "x" }]);
        reader.fails_with(("write", params, json!({ "timeout": 60 })), "PermissionDenied", &parts);
    }
    for mut publisher in all("publisher") {
        publisher.fails_with(("get", json!(["packed", 7]), json!({})), "PermissionDenied", &["--for reader"]);
    }
    drop(client(&rig, "reader").await);
    worker.stop().await;
}

const ACCOUNTS: &str = "
    create table accounts (id int primary key, balance bigint not null default 0);
    create table log (id int not null, producer text not null, number int not null);
    insert into accounts select n from generate_series(1, 10) n";

const DATASET: &str = r#"
    [dataset.account]
    query = "select id, balance from accounts"
    key = "account:{id}"
    watch = [{ table = "accounts", key = { id = "id" } }]
    warm = {}
    [dataset.account.write]
    statement = """
        with noted as (insert into log values (:id, :producer, :number))
        update accounts set balance = balance + :amount where id = :id"""
"#;

/// Writes of each program; something happens to Redis after the first part of them.
const WRITES: usize = 60;
const BEFORE: usize = 20;

/// Written from the packages' READMEs alone.
const PROGRAMS: [&str; 3] = ["own_writes.py", "own_writes_aio.py", "own_writes.mjs"];

/// A program that hands over writes and reads each of them back.
struct OwnWrites {
    name: &'static str,
    child: Child,
    output: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl OwnWrites {
    fn start_all(url: &str) -> Vec<Self> {
        let start = |(account, name): (usize, &'static str)| {
            let mut command = tokio::process::Command::from(program(name));
            command.args([url, "test", &(account + 1).to_string(), &WRITES.to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn().unwrap();
            let output = BufReader::new(child.stdout.take().unwrap()).lines();
            Self { name, child, output }
        };
        PROGRAMS.into_iter().enumerate().map(start).collect()
    }

    /// Reads on until a write was read back.
    async fn has_read(&mut self, number: usize) {
        loop {
            let Some(line) = self.output.next_line().await.unwrap() else {
                let mut said = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
                panic!("{} ended before write {number}: {said}", self.name);
            };
            if line == number.to_string() {
                return;
            }
        }
    }
}

/// Each write was carried out once: what was read back was compared by the programs.
async fn each_write_is_there_once(rig: &Rig) {
    let mut session = rig.postgres.session().await.unwrap();
    let expected = PROGRAMS.len() * WRITES;
    for sql in [
        "select count(*)::text from log",
        "select count(distinct (id, number))::text from log",
        "select sum(balance)::text from accounts",
    ] {
        assert_eq!(session.text(sql).await.unwrap(), Some(expected.to_string()), "{sql}");
    }
}

/// Reads on until each program has read back its last write.
async fn all_end(programs: &mut [OwnWrites]) {
    for one in programs {
        one.has_read(WRITES).await;
        assert!(one.child.wait().await.unwrap().success(), "{}", one.name);
    }
}

/// What becomes of the master.
#[derive(Clone, Copy)]
enum Failover {
    /// Killed, as by a power cut: what the replica did not get is lost.
    Crash,
    /// The sentinels make the replica the master; the old one goes on, and becomes a replica seconds later.
    Switch,
}

async fn programs_go_on_through(failover: Failover) {
    install();
    let rig = Rig::start(ACCOUNTS).await;
    let port = rig.redis.port();
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {port}")]).await.unwrap();
    let sentinels = Sentinels::start(port, &[]).await.unwrap();
    let mut config = rig.config(DATASET);
    config.redis.url = Secret::new(sentinels.url());
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    let mut programs = OwnWrites::start_all(&sentinels.url());
    for one in &mut programs {
        one.has_read(BEFORE).await;
    }
    match failover {
        Failover::Crash => rig.redis.crash(),
        Failover::Switch => sentinels.fail_over().await.unwrap(),
    }
    all_end(&mut programs).await;
    each_write_is_there_once(&rig).await;
    worker.stop().await;
    drop(replica);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_read_their_own_writes_through_failovers_by_sentinels() {
    programs_go_on_through(Failover::Crash).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_read_their_own_writes_through_a_switch_over_by_sentinels() {
    programs_go_on_through(Failover::Switch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_read_their_own_writes_through_a_restart_that_loses_everything() {
    install();
    let mut rig = Rig::start(ACCOUNTS).await;
    let worker = Worker::start(rig.config(DATASET)).await.unwrap();
    ready(&worker).await;
    let mut programs = OwnWrites::start_all(&rig.redis.url());
    for one in &mut programs {
        one.has_read(BEFORE).await;
    }
    rig.redis.kill();
    rig.redis.start_again().await.unwrap();
    all_end(&mut programs).await;
    each_write_is_there_once(&rig).await;
    worker.stop().await;
}
