//! Write-through as a whole: programs in other languages hand writes over while workers are killed, and in the end Postgres,
//! Redis, the log, the records and the replies agree.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_testkit::servers::Session;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt, SeedableRng};

use crate::ledger::{Ledger, Logged, Told};
use crate::oracle::seed_of_run;
use crate::process::{Launch, WorkerProcess};
use crate::readers::writers;
use crate::support::{Rig, wait_until};

/// Every write pays one cent into an account and notes itself in the log, with who carried it out.
const TABLES: &str = "
    create table accounts (id int primary key, balance bigint not null default 0, writes int not null default 0,
        history text not null default '');
    create table log (seq bigserial primary key, id int not null, producer text not null, number int not null,
        worker text not null default session_user);
    insert into accounts select n from generate_series(1, 100) n;
    create role worker_one superuser login;
    create role worker_two superuser login";

const DATASETS: &str = r#"
    [log]
    format = "json"
    [dataset.account]
    query = "select id, balance, writes, history from accounts"
    key = "account:{id}"
    format = "json"
    watch = [{ table = "accounts", key = { id = "id" } }]
    [dataset.account.write]
    statement = """
        with noted as (insert into log (id, producer, number) values (:id, :producer, :number))
        update accounts set balance = balance + :amount, writes = writes + 1,
            history = history || left(:producer, 1) || :number::int || ','
        where id = :id"""
"#;

const WORKERS: [&str; 2] = ["worker_one", "worker_two"];
const WRITES: usize = 10_000;
const ACCOUNTS: usize = 100;
/// Workers that are killed; so many of them while they carry writes out, which costs up to the life of a lease each.
const KILLS: usize = 8;
const LEADERS_KILLED: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_hand_over_twenty_thousand_writes_while_workers_are_killed() {
    let mut random = StdRng::seed_from_u64(seed_of_run());
    let rig = Rig::start(TABLES).await;
    let launch = |role: &str| Launch {
        program: crate::process::program(),
        toml: DATASETS,
        postgres_url: rig.postgres.url().replace("postgres@", &format!("{role}@")),
        redis_url: rig.redis.url(),
        environment: Vec::new(),
    };
    let mut workers = WORKERS.map(|role| WorkerProcess::start(&Arc::new(launch(role)), ""));
    let mut programs = Vec::new();
    for (name, command) in writers() {
        let mut program = tokio::process::Command::new(&command[0]);
        program.args(&command[1..]).arg(rig.redis.url()).arg(name);
        program.arg(WRITES.to_string()).arg(ACCOUNTS.to_string());
        program.env("READERS", format!("{}/target/readers", env!("CARGO_MANIFEST_DIR")));
        program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        programs.push((name, tokio::spawn(program.spawn().unwrap().wait_with_output())));
    }

    // At a random moment of the work somebody is killed: sometimes the one who does it, sometimes the other.
    let mut session = rig.postgres.session().await.unwrap();
    let mut moments: Vec<usize> = (0..KILLS).map(|_| random.random_range(1..2 * WRITES * 9 / 10)).collect();
    moments.sort_unstable();
    let mut hits: [bool; KILLS] = std::array::from_fn(|position| position < LEADERS_KILLED);
    hits.shuffle(&mut random);
    for (moment, hits_leader) in moments.into_iter().zip(hits) {
        carried_out(&mut session, moment).await;
        let leader = last_worker(&mut session).await;
        let victim = WORKERS.iter().position(|name| (*name == leader) == hits_leader).unwrap();
        println!("{moment}: {leader} works, {} is killed", WORKERS[victim]);
        workers[victim].replace("");
    }
    for (name, program) in programs {
        let output = program.await.unwrap().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    everything_agrees(&rig, &mut session).await;
}

/// Who carried out the last write that is committed: the first numbers may be those of a transaction that is still open.
async fn last_worker(session: &mut Session) -> String {
    loop {
        let last = "select (select worker from log order by seq desc limit 1)";
        if let Some(worker) = session.text(last).await.unwrap() {
            return worker;
        }
    }
}

async fn carried_out(session: &mut Session, at_least: usize) {
    // Nothing but the log's own counter: the moment is between any two steps of the work.
    tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let last = session.text("select last_value::text from log_seq_seq").await.unwrap().unwrap();
            if at_least <= last.parse().unwrap() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    })
    .await
    .unwrap_or_else(|_elapsed| panic!("{at_least} writes were not carried out"));
}

async fn everything_agrees(rig: &Rig, session: &mut Session) {
    // Each once, and in the order in which its producer numbered it.
    let mut ledger = Ledger::default();
    for at in 0..WRITES {
        let (account, number) = (at % ACCOUNTS + 1, at / ACCOUNTS + 1);
        for (name, _) in writers() {
            ledger.note(name, account.try_into().unwrap(), number.try_into().unwrap(), Told::Done);
        }
    }
    let sql = "select string_agg(producer || ' ' || id || ' ' || number, E'\\n' order by seq) from log";
    let text = session.text(sql).await.unwrap().unwrap();
    let read = |line: &str| {
        let parts: Vec<&str> = line.split(' ').collect();
        let (key, number) = (parts[1].parse().unwrap(), parts[2].parse().unwrap());
        Logged { producer: parts[0].to_owned(), key, number }
    };
    let log: Vec<Logged> = text.lines().map(read).collect();
    assert_eq!(ledger.disagreements(&log), Vec::<String>::new());
    assert_eq!(log.len(), 2 * WRITES);
    let each = 2 * WRITES / ACCOUNTS;
    for (what, sql, expected) in [
        ("accounts", format!("select count(*)::text from accounts where balance = {each} and writes = {each}"), ACCOUNTS),
        (
            "histories",
            "select count(*)::text from accounts a where history = \
             (select string_agg(left(producer, 1) || number || ',', '' order by seq) from log l where l.id = a.id)"
                .to_owned(),
            ACCOUNTS,
        ),
        ("records", "select count(*)::text from cachekeeper.applied where error is null".to_owned(), 2 * WRITES),
        ("all records", "select count(*)::text from cachekeeper.applied".to_owned(), 2 * WRITES),
        // The first leader that was killed was one.
        ("changed hands", "select count(*)::text from cachekeeper.writer where 1 < token".to_owned(), 1),
    ] {
        assert_eq!(session.text(&sql).await.unwrap(), Some(expected.to_string()), "{what}");
    }
    // The programs have taken their replies, one for each write; nothing is left in Redis but the entries.
    let context = rig.context(DATASETS);
    let state = context.redis.stream_state("cache:writes", "cachekeeper:test").await.unwrap();
    assert_eq!((state.length, state.pending, state.dead), (0, 0, 0), "{state:?}");
    let mut client = rig.client().await;
    let lists: Vec<String> = redis::cmd("KEYS").arg("cache:reply:*").query_async(&mut client).await.unwrap();
    assert!(lists.is_empty(), "{lists:?}");
    let dataset = context.catalog.get("account").unwrap();
    wait_until("every entry equals its row", async || {
        let found =
            compare(&context, dataset, &Extent::default()).await.map_err(|error| error.to_string())?;
        if found.is_clean() && found.right == ACCOUNTS as u64 { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}
