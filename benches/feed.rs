//! What following changes costs, and how long a change takes to show up in Redis.
//!
//! `make bench`. Timings are of this machine and this moment: look at the ratios. `ROWS=100000` makes it shorter, `PARTS=lag,drain`
//! runs these parts alone.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_config::Config;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::revalidation;
use cachekeeper_engine::stores::postgres::FeedReader;
use cachekeeper_protocol::stamp::Snapshot;
use cachekeeper_testkit::servers::{Postgres, Redis};
use redis::AsyncCommands;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Bench {
    postgres: Postgres,
    redis: Redis,
    rows: u64,
}

#[tokio::main]
async fn main() {
    let rows = std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(1_000_000);
    let (postgres, redis) = tokio::try_join!(
        Postgres::start(&["shared_buffers=512MB", "max_parallel_workers_per_gather=0", "max_wal_size=4GB"]),
        Redis::start(&[])
    )
    .unwrap();
    let bench = Bench { postgres, redis, rows };
    let parts = std::env::var("PARTS").unwrap_or_default();
    let is_asked = |part: &str| parts.is_empty() || parts.split(',').any(|asked| asked == part);
    for fsync in ["on", "off"].into_iter().filter(|_| is_asked("writers")) {
        writers(fsync).await;
    }
    bench.fill().await;
    if is_asked("lag") {
        bench.lag().await;
    }
    if is_asked("drain") {
        bench.drain().await;
    }
    if is_asked("whole") {
        bench.whole_table().await;
    }
    if is_asked("open") {
        bench.poll_under_a_long_transaction().await;
    }
    if is_asked("idle") {
        idle_with_many_tables().await;
    }
}

impl Bench {
    async fn fill(&self) {
        let sql = format!(
            "create table items (id int primary key, name text, description text, price int, category_id int, \
             in_stock bool, updated_at timestamptz); \
             insert into items select n, 'item number ' || n, repeat('some words about it ', 8), n % 10000, n % 100, \
             n % 2 = 0, '2026-01-01'::timestamptz + n * interval '1 second' from generate_series(1, {}) n; \
             analyze items; checkpoint",
            self.rows
        );
        self.postgres.execute(&sql).await.unwrap();
        self.context("").postgres.migrate().await.unwrap();
        println!("{} rows, 2 cores shared by Postgres, Redis and the worker\n", self.rows);
    }

    fn config(&self, more: &str) -> Config {
        self.config_of(&format!(
            "[service]\nnamespace = \"bench\"\n[log]\nlevel = \"error\"\n[admin]\nlisten = \"\"\n[dataset.item]\n\
             query = \"select * from items\"\nkey = \"item:{{id}}\"\nformat = \"json\"\nttl = \"1h\"\nwarm = {{}}\n\
             watch = [{{ table = \"items\", key = {{ id = \"id\" }} }}]\n{more}"
        ))
    }

    fn config_of(&self, text: &str) -> Config {
        let environment: BTreeMap<String, String> = [
            ("CACHEKEEPER__POSTGRES__URL".to_owned(), self.postgres.url()),
            ("CACHEKEEPER__REDIS__URL".to_owned(), self.redis.url()),
        ]
        .into();
        Config::load(Path::new("bench.toml"), text.to_owned(), &environment).unwrap().0
    }

    fn context(&self, more: &str) -> Context {
        Context::of_worker(&self.config(more)).unwrap()
    }

    fn context_of(&self, datasets: &str) -> Context {
        Context::of_worker(&self.config_of(&format!("[service]\nnamespace = \"bench\"\n{datasets}"))).unwrap()
    }

    async fn client(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }

    /// From a commit until a GET returns the new value, at 1,000 commits a second; then what idling costs.
    async fn lag(&self) {
        let mut worker = Worker::start(self.config("")).await.unwrap();
        self.caught_up(&worker.context).await;
        let mut tasks = Vec::new();
        let seconds = 10;
        for writer in 0..4_u64 {
            let mut session = self.postgres.session().await.unwrap();
            let mut client = self.client().await;
            let rows = self.rows;
            tasks.push(tokio::spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_millis(4));
                let mut lags = Vec::new();
                for number in 0..seconds * 250_u64 {
                    pace.tick().await;
                    let id = 1 + (number * 7919 + writer * 104_729) % rows;
                    let price = 1_000_000 + number * 4 + writer;
                    session
                        .execute(&format!("update items set price = {price} where id = {id}"))
                        .await
                        .unwrap();
                    let committed = Instant::now();
                    // One in ten is watched; the others only make the load.
                    if number % 10 != 0 {
                        continue;
                    }
                    let expected = format!("\"price\":{price},");
                    while !client.get::<_, String>(format!("item:{id}")).await.unwrap().contains(&expected) {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                    lags.push(committed.elapsed().as_secs_f64() * 1e3);
                }
                lags
            }));
        }
        let before = (cpu_ms(std::process::id()), self.sessions_cpu_ms().await, self.redis_cpu().await);
        let began = Instant::now();
        let mut lags = Vec::new();
        for task in tasks {
            lags.extend(task.await.unwrap());
        }
        lags.sort_by(f64::total_cmp);
        let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
        println!(
            "commit to visible at {:.0} commits a second: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms ({} watched)",
            (seconds * 1_000) as f64 / began.elapsed().as_secs_f64(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0),
            lags.len()
        );
        println!(
            "meanwhile of a core: worker with these writers and readers {:.0} %, its Postgres sessions {:.0} %, Redis {:.0} %",
            (cpu_ms(std::process::id()) - before.0) / (seconds * 10) as f64,
            (self.sessions_cpu_ms().await - before.1) / (seconds * 10) as f64,
            (self.redis_cpu().await - before.2) / seconds as f64 * 100.0
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = (cpu_ms(std::process::id()), self.sessions_cpu_ms().await);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let after = (cpu_ms(std::process::id()), self.sessions_cpu_ms().await);
        println!(
            "idle: worker {:.2} % of a core, its Postgres sessions {:.2} %\n",
            (after.0 - before.0) / 100.0,
            (after.1 - before.1) / 100.0
        );
        let ended = tokio::time::timeout(Duration::from_millis(1), worker.ended()).await;
        assert!(ended.is_err());
        worker.stop().await;
    }

    /// Transactions a second.
    fn pgbench(&self, arguments: &[&str]) -> f64 {
        let done = Command::new("pgbench").args(arguments).arg(self.postgres.url()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        text.lines()
            .find_map(|line| line.strip_prefix("tps = "))
            .and_then(|rest| rest.split_whitespace().next())
            .map_or(0.0, |number| number.parse::<f64>().unwrap())
    }

    async fn switch_triggers(&self, table: &str, is_on: bool) {
        let triggers = format!(
            "select string_agg(format('enable always trigger %I', tgname), ', ') from pg_trigger \
             where tgrelid = '{table}'::regclass and tgname like 'cachekeeper%'"
        );
        let mode = match is_on {
            true => self.postgres.session().await.unwrap().text(&triggers).await.unwrap().unwrap(),
            false => "disable trigger all".to_owned(),
        };
        self.postgres.execute(&format!("alter table {table} {mode}")).await.unwrap();
    }

    /// CPU time of the worker's sessions in milliseconds.
    async fn sessions_cpu_ms(&self) -> f64 {
        let sql =
            "select string_agg(pid::text, ' ') from pg_stat_activity where application_name = 'cachekeeper'";
        let pids = self.postgres.session().await.unwrap().text(sql).await.unwrap().unwrap();
        pids.split(' ').map(|pid| cpu_ms(pid.parse().unwrap())).sum()
    }

    /// What Redis has used of its core, in seconds.
    async fn redis_cpu(&self) -> f64 {
        let info: String = redis::cmd("INFO").arg("cpu").query_async(&mut self.client().await).await.unwrap();
        let number = |name: &str| -> f64 {
            info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
        };
        number("used_cpu_user:") + number("used_cpu_sys:")
    }

    async fn caught_up(&self, context: &Context) {
        let now = loop {
            match context.postgres.poll().await {
                Ok(now) => break now,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        loop {
            if let Some(watermark) = context.redis.watermark().await.unwrap() {
                let at: Snapshot = watermark.snapshot.parse().unwrap();
                if now.snapshot.stamp() <= at.stamp() && !watermark.not_covered.contains(&"item".to_owned()) {
                    let size: u64 = redis::cmd("DBSIZE").query_async(&mut self.client().await).await.unwrap();
                    if self.rows <= size {
                        return;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Changes that waited while no worker ran, each row named: how fast they are applied.
    async fn drain(&self) {
        let context = self.context("");
        context.set_coverage(coverage::look(&context, true).await.unwrap());
        let mut follower = FeedConsumer::new(&context);
        while follower.step(true).await.unwrap() != Step::Idle {}
        let changed = self.rows.min(500_000);
        for first in (0..changed).step_by(10_000) {
            let sql =
                format!("update items set price = price + 1 where id > {first} and id <= {}", first + 10_000);
            self.postgres.execute(&sql).await.unwrap();
        }
        let before = (cpu_ms(std::process::id()), self.redis_cpu().await, self.sessions_cpu_ms().await);
        let began = Instant::now();
        while follower.step(false).await.unwrap() != Step::Idle {}
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{changed} changed cached keys applied in {seconds:.2} s: {:.0} a second (CPU: worker {:.1} s, Redis {:.1} s, Postgres {:.1} s)",
            changed as f64 / seconds,
            (cpu_ms(std::process::id()) - before.0) / 1e3,
            self.redis_cpu().await - before.1,
            (self.sessions_cpu_ms().await - before.2) / 1e3
        );
        let plain = self.rows as f64 / self.plain_backfill(&context).await;
        println!(
            "that is {:.2} of the {plain:.0} rows a second of a plain backfill",
            changed as f64 / seconds / plain
        );
        // Single commits that waited, as after a restart.
        self.postgres
            .execute("do $$ begin for n in 1..20000 loop update items set price = price + 1 where id = n; commit; end loop; end $$")
            .await
            .unwrap();
        let began = Instant::now();
        while follower.step(false).await.unwrap() != Step::Idle {}
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "20000 single commits that waited applied in {seconds:.2} s: {:.0} a second\n",
            20_000.0 / seconds
        );
    }

    /// Seconds that a backfill of all rows takes.
    async fn plain_backfill(&self, context: &Context) -> f64 {
        let options =
            BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
        let began = Instant::now();
        backfill(context, context.catalog.get("item").unwrap(), &options).await.unwrap();
        began.elapsed().as_secs_f64()
    }

    /// One statement that changes every row, beside a plain backfill.
    async fn whole_table(&self) {
        let context = self.context("");
        context.set_coverage(coverage::look(&context, true).await.unwrap());
        let mut follower = FeedConsumer::new(&context);
        while follower.step(true).await.unwrap() != Step::Idle {}
        // Where nothing is in Redis, nothing has to be revalidated.
        self.plain_backfill(&context).await;
        self.postgres.execute("update items set price = price + 1").await.unwrap();
        self.postgres.execute("vacuum items").await.unwrap();
        let dataset = context.catalog.get("item").unwrap();
        let began = Instant::now();
        while follower.step(true).await.unwrap() != Step::Idle {}
        let policy = cachekeeper_config::OnNewEpoch::Refresh;
        revalidation::run(&context, dataset, policy, &CancellationToken::new()).await.unwrap();
        let drained = began.elapsed().as_secs_f64();
        let warmed = self.plain_backfill(&context).await;
        println!(
            "an update of all {} rows in one statement: revalidated in {drained:.1} s ({:.0} rows a second), \
             a plain backfill {warmed:.1} s: {:.2}\n",
            self.rows,
            self.rows as f64 / drained,
            drained / warmed
        );
    }

    /// A poll while a transaction has been open for long and the outbox is large.
    async fn poll_under_a_long_transaction(&self) {
        let mut open = self.postgres.session().await.unwrap();
        open.execute("begin; create table held (n int)").await.unwrap();
        self.postgres
            .execute("do $$ begin for n in 1..100000 loop update items set price = price + 1 where id = n; commit; end loop; end $$")
            .await
            .unwrap();
        let context = self.context("");
        context.set_coverage(coverage::look(&context, true).await.unwrap());
        let mut reader = FeedReader::new(&context.postgres);
        let cursor = context.postgres.poll().await.unwrap().snapshot;
        let mut times = [Vec::new(), Vec::new()];
        let mut writer = self.postgres.session().await.unwrap();
        for number in 0..2_000 {
            // Half of the polls meet a snapshot that has moved, so that the outbox is looked at.
            let cursor = if number % 2 == 0 {
                context.postgres.poll().await.unwrap().snapshot
            } else {
                cursor.clone()
            };
            if number == 0 {
                writer.execute("select pg_current_xact_id()").await.unwrap();
            }
            let began = Instant::now();
            reader.poll(cursor.as_str(), None).await.unwrap();
            times[number % 2].push(began.elapsed().as_secs_f64() * 1e3);
        }
        println!(
            "a poll under an open transaction, 100000 rows in the outbox: unchanged snapshot {:.2} ms, changed {:.2} ms (median)",
            median(&mut times[0]),
            median(&mut times[1])
        );
        open.execute("rollback").await.unwrap();
    }
}

/// Pairs of which the median counts.
const PAIRS: usize = 7;

/// Statements of an application, each with the table whose capture they meet.
const STATEMENTS: [(&str, &str, &str); 3] = [
    (
        "update of 50,000 rows by row (above max_rows, so one row is captured)",
        "pgbench_accounts",
        "update pgbench_accounts set abalance = abalance + 1 where aid <= 50000",
    ),
    (
        "update of 50,000 rows by statement",
        "bulk",
        "update bulk set abalance = abalance + 1 where aid <= 50000",
    ),
    ("update of 1,000 rows with 200 KB out of line", "wide", "update wide set price = price + 1"),
];

/// What the statements are run against.
const TABLES: &str = "create table bulk (like pgbench_accounts including all); insert into bulk select * from pgbench_accounts; \
     create table wide (id int primary key, price int, body text); alter table wide alter body set storage external; \
     insert into wide select n, n, repeat(md5(n::text), 6400) from generate_series(1, 1000) n";

/// pgbench's simple update, and statements that change much, with and without the triggers, in turns.
async fn writers(fsync: &str) {
    let fsync_setting = format!("fsync={fsync}");
    let settings = ["shared_buffers=512MB", "max_wal_size=4GB", "autovacuum=off", fsync_setting.as_str()];
    let (postgres, redis) = tokio::try_join!(Postgres::start(&settings), Redis::start(&[])).unwrap();
    let bench = Bench { postgres, redis, rows: 0 };
    bench.pgbench(&["-i", "-q", "-s", "5"]);
    bench.postgres.execute(TABLES).await.unwrap();
    bench.postgres.execute("vacuum analyze").await.unwrap();
    let watched = |table: &str, id: &str, capture: &str| {
        format!(
            "[dataset.{table}]\nquery = \"select {id} from {table}\"\nkey = \"{table}:{{{id}}}\"\n\
             watch = [{{ table = \"{table}\", key = {{ {id} = \"{id}\" }}{capture} }}]\n"
        )
    };
    let by_statement = watched("bulk", "aid", ", capture = \"statement\"");
    let datasets = watched("pgbench_accounts", "aid", "") + &by_statement + &watched("wide", "id", "");
    let context = bench.context_of(&datasets);
    context.postgres.migrate().await.unwrap();
    let coverage = coverage::look(&context, true).await.unwrap();
    assert!(coverage.gaps().next().is_none());
    let mut rates = [Vec::new(), Vec::new()];
    let mut times = STATEMENTS.map(|_| [Vec::new(), Vec::new()]);
    for _ in 0..PAIRS {
        for with in [0, 1] {
            for (_, table, _) in STATEMENTS {
                bench.switch_triggers(table, with == 1).await;
            }
            rates[with].push(bench.pgbench(&["-N", "-n", "-c", "4", "-j", "2", "-T", "5"]));
            for ((_, table, statement), times) in STATEMENTS.iter().zip(&mut times) {
                let began = Instant::now();
                bench.postgres.execute(statement).await.unwrap();
                times[with].push(began.elapsed().as_secs_f64());
                bench.postgres.execute(&format!("vacuum {table}")).await.unwrap();
            }
        }
    }
    let (without, with) = (median(&mut rates[0]), median(&mut rates[1]));
    println!(
        "fsync {fsync}: pgbench -N, 4 clients: {without:.0} tps without capture, {with:.0} with: {:.2}",
        with / without
    );
    for ((name, _, _), times) in STATEMENTS.iter().zip(&mut times) {
        let (without, with) = (median(&mut times[0]), median(&mut times[1]));
        let (without_ms, with_ms) = (without * 1e3, with * 1e3);
        println!("{name}: {without_ms:.0} ms without, {with_ms:.0} ms with: {:.2}", with / without);
    }
    println!();
}

/// What a worker costs that has nothing to do, with 50 datasets on 200 tables.
async fn idle_with_many_tables() {
    let (postgres, redis) = tokio::try_join!(Postgres::start(&[]), Redis::start(&[])).unwrap();
    let bench = Bench { postgres, redis, rows: 0 };
    let mut datasets = String::from("[admin]\nlisten = \"\"\n[log]\nlevel = \"error\"\n");
    for first in (0..200).step_by(4) {
        for table in first..first + 4 {
            let sql = format!("create table t{table} (id int primary key, a int, b text, c timestamptz)");
            bench.postgres.execute(&sql).await.unwrap();
        }
        let watch: Vec<String> = (first..first + 4)
            .map(|table| format!("{{ table = \"t{table}\", key = {{ id = \"id\" }} }}"))
            .collect();
        datasets += &format!(
            "[dataset.d{first}]\nquery = \"select x.id, x.a, y.b, z.c, w.a as aa from t{first} x join t{} y using (id) join t{} z using (id) \
             join t{} w using (id)\"\nkey = \"d{first}:{{id}}\"\nwatch = [{}]\n",
            first + 1,
            first + 2,
            first + 3,
            watch.join(", ")
        );
    }
    let config = bench.config_of(&format!("[service]\nnamespace = \"bench\"\n{datasets}"));
    Context::of_worker(&config).unwrap().postgres.migrate().await.unwrap();
    let mut worker = Worker::start(config).await.unwrap();
    loop {
        let watermark = worker.context.redis.watermark().await.unwrap();
        if watermark.is_some_and(|watermark| watermark.not_covered.is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = (cpu_ms(std::process::id()), bench.sessions_cpu_ms().await, bench.redis_cpu().await);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let after = (cpu_ms(std::process::id()), bench.sessions_cpu_ms().await, bench.redis_cpu().await);
    println!(
        "idle with 50 datasets on 200 tables: worker {:.2} % of a core, its Postgres sessions {:.2} %, Redis {:.2} %\n",
        (after.0 - before.0) / 200.0,
        (after.1 - before.1) / 200.0,
        (after.2 - before.2) * 5.0
    );
    let ended = tokio::time::timeout(Duration::from_millis(1), worker.ended()).await;
    assert!(ended.is_err());
    worker.stop().await;
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of a process in milliseconds (`utime` and `stime` of proc(5), at 100 ticks a second).
fn cpu_ms(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10.0
}
