//! The oracle: while programs write and servers die, readers log what they see; then everything they saw is checked
//! against the history that the writers left in the database.

mod faults;
mod load;
mod producers;
mod settled;
mod verdict;
mod writer_faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::ledger::Told;
use crate::process::{Launch, WorkerProcess};
use crate::support::{Rig, wait_until};
use faults::Fault;
use load::Observed;
use verdict::Lives;

const TABLES: &str = "
    create table counters (id int primary key, version bigint not null default 0);
    create table groups (id int primary key, version bigint not null default 0);
    create table items (id int primary key, version bigint not null, grp int not null check (0 <= grp)) partition by range (id);
    create table items_low partition of items for values from (0) to (150);
    create table items_high partition of items for values from (150) to (100000);
    create unlogged table lives (number int not null, started timestamptz not null default pg_postmaster_start_time());
    create function life() returns int language sql as $$
        select coalesce(max(number), -1) from lives where started = pg_postmaster_start_time() $$;
    insert into lives values (0);
    create table history (id int, version bigint, is_deleted boolean, xid xid8 default pg_current_xact_id(),
        life int default life(), at timestamptz default clock_timestamp());
    create table group_history (id int, version bigint, xid xid8 default pg_current_xact_id(),
        life int default life(), at timestamptz default clock_timestamp());
    create table command_log (seq bigserial primary key, producer text not null, id int not null, n int not null check (0 < n),
        version bigint not null, xid xid8 default pg_current_xact_id(),
        life int default life(), at timestamptz default clock_timestamp());
    create table trouble (code text not null, chance float not null);
    create function make_trouble() returns trigger language plpgsql as $$
        declare wanted record;
        begin
            select * into wanted from trouble where random() < chance limit 1;
            if found then raise exception 'trouble' using errcode = wanted.code; end if;
            return new;
        end $$;
    create trigger make_trouble before insert on command_log for each row execute function make_trouble();
    create constraint trigger make_trouble_at_commit after insert on command_log deferrable initially deferred
        for each row execute function make_trouble();
    insert into counters select n, 1 from generate_series(0, 299) n;
    insert into groups select n, 1 from generate_series(0, 9) n;
    insert into group_history select n, 1 from generate_series(0, 9) n;
    insert into items select n, 1, n % 10 from generate_series(0, 299) n;
    insert into history select n, 1, false from generate_series(0, 299) n;";

pub const DATASETS: &str = r#"
    [log]
    level = "info"
    format = "json"
    [feed]
    max_rows = 200
    [dataset.item]
    query = """select i.id, i.version, i.grp, g.version as group_version
               from items i left join groups g on g.id = i.grp"""
    key = "item:{id}"
    tags = ["grp:{grp}"]
    format = "json"
    ttl = "20s"
    refresh = { ahead = "50%" }
    feed = "required"
    watch = [
        { table = "items", key = { id = "id" } },
        { table = "groups", tag = "grp:{id}" },
    ]
    warm = { schedule = "*/2 * * * * *" }
    [dataset.item.write]
    statement = """
        with bumped as (update counters set version = version + 1 where id = :id returning id, version),
             noted as (insert into history (id, version, is_deleted) select id, version, false from bumped),
             logged as (insert into command_log (producer, id, n, version)
                        select :producer::text, id, :n::int, version from bumped)
        insert into items (id, version, grp) select id, version, :grp::int from bumped
        on conflict (id) do update set version = excluded.version, grp = excluded.grp"""
"#;

/// What a run shares.
pub struct Arena {
    pub rig: tokio::sync::Mutex<Rig>,
    /// How workers are started.
    pub launch: Arc<Launch>,
    pub is_over: AtomicBool,
    /// Raised when Redis was made to go back: from then on older values may be seen until a worker notices.
    pub redis_life: std::sync::atomic::AtomicU64,
    pub observed: Observed,
}

pub fn seed_of_run() -> u64 {
    let given = std::env::var("CACHEKEEPER_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("CACHEKEEPER_SEED={seed}");
    seed
}

async fn start_arena() -> Arc<Arena> {
    let settings = ["max_prepared_transactions=10", "deadlock_timeout=100ms"];
    let rig = Rig::start_with(TABLES, &settings, &["--enable-debug-command", "yes"]).await;
    let (postgres_url, redis_url) = (rig.postgres.url(), rig.redis.url());
    Arc::new(Arena {
        launch: Arc::new(Launch { toml: DATASETS, postgres_url, redis_url }),
        rig: tokio::sync::Mutex::new(rig),
        is_over: AtomicBool::new(false),
        redis_life: std::sync::atomic::AtomicU64::new(0),
        observed: Observed::default(),
    })
}

/// `CACHEKEEPER_FAULTS` faults under load, one by one and in pairs: no promise is broken, and nobody lends a hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_breaks_a_promise() {
    let seed = seed_of_run();
    let mut random = StdRng::seed_from_u64(seed);
    let wanted: usize =
        std::env::var("CACHEKEEPER_FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let arena = start_arena().await;
    let mut workers = vec![WorkerProcess::start(&arena.launch, ""), WorkerProcess::start(&arena.launch, "")];
    let mut tasks = load::start(&arena, seed);
    tasks.extend(producers::start(&arena, seed).await);
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    // Every fault once; the long form goes on in random order.
    let only = std::env::var("CACHEKEEPER_ONLY").unwrap_or_default();
    let is_chosen =
        |fault: &Fault| only.is_empty() || only.split(',').any(|name| format!("{fault:?}").starts_with(name));
    let every: Vec<Fault> = Fault::all().filter(is_chosen).collect();
    let mut plan = every.clone();
    while plan.len() < wanted {
        plan.push(every[random.random_range(0..every.len())]);
    }
    let began = tokio::time::Instant::now();
    let mut injected = 0;
    let mut position = 0;
    while position < plan.len() {
        let pair = every.len() <= position && random.random_bool(0.3) && position + 1 < plan.len();
        let chosen = if pair { &plan[position..position + 2] } else { &plan[position..=position] };
        position += chosen.len();
        for fault in chosen {
            println!("{injected} {fault:?}, after {:?}", began.elapsed());
            fault.inject(&arena, &mut workers, &mut random, &mut lives).await;
            injected += 1;
        }
        settled::caught_up(&arena).await;
        settled::writes_go_on(&arena).await;
        lives.note(&arena).await;
    }
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    settled::caught_up(&arena).await;
    settled::no_command_is_left(&arena).await;
    lives.note(&arena).await;
    verdict::agrees(&arena).await;
    let verdict = verdict::judge(&arena, &lives).await;
    println!("{injected} faults, {verdict}");
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", verdict.violations.join("\n"));
    assert!(1_000 < verdict.checked && 100 < verdict.commits, "too little was looked at: {verdict}");
    let carried_out = arena.observed.told.lock().unwrap().count(Told::Done);
    assert!(1_000 < carried_out, "only {carried_out} writes were handed over");
}

/// The same checks must see the bug when the stamps are switched off: a test that cannot fail proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_stamps_the_oracle_finds_violations() {
    let seed = seed_of_run();
    let arena = start_arena().await;
    let rig = arena.rig.lock().await;
    let config = rig.config(DATASETS);
    drop(rig);
    let mut context = cachekeeper_engine::context::Context::new(&config).unwrap();
    context.redis = context.redis.without_stamps();
    let worker = cachekeeper::app::Worker::start_with(config, context.clone()).await.unwrap();
    let tasks = load::start(&arena, seed);
    let fills = load::start_stalled_fills(&arena, &context);
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    wait_until("the oracle has found a violation", || async {
        let verdict = verdict::judge(&arena, &lives).await;
        if verdict.violations.is_empty() { Err(verdict.to_string()) } else { Ok(()) }
    })
    .await;
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks.into_iter().chain(fills) {
        task.await.unwrap();
    }
    worker.stop().await;
}

/// With the stamps on, the same stalled fills break nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_fills_break_nothing() {
    let seed = seed_of_run();
    let arena = start_arena().await;
    let config = arena.rig.lock().await.config(DATASETS);
    let context = cachekeeper_engine::context::Context::new(&config).unwrap();
    let worker = cachekeeper::app::Worker::start_with(config, context.clone()).await.unwrap();
    let tasks = load::start(&arena, seed);
    let fills = load::start_stalled_fills(&arena, &context);
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    wait_until("enough was seen", || async {
        let seen = arena.observed.len();
        if 3_000 < seen { Ok(()) } else { Err(format!("{seen}")) }
    })
    .await;
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks.into_iter().chain(fills) {
        task.await.unwrap();
    }
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    verdict::agrees(&arena).await;
    let verdict = verdict::judge(&arena, &lives).await;
    println!("{verdict}");
    assert!(verdict.violations.is_empty(), "{}", verdict.violations.join("\n"));
    tokio::time::timeout(Duration::from_secs(30), worker.stop()).await.unwrap();
}
