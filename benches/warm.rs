//! What warming and invalidating cost, beside what a user would do instead, in the same run.
//!
//! `make bench`. Timings are of this machine and this moment: look at the ratios. `ROWS=100000` makes it shorter.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cachekeeper_config::Config;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::invalidate;
use cachekeeper_protocol::event::Op;
use cachekeeper_testkit::servers::{Postgres, Redis};
use redis::AsyncCommands;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 3;

struct Bench {
    postgres: Postgres,
    redis: Redis,
    rows: u64,
}

#[tokio::main]
async fn main() {
    let rows = std::env::var("ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(1_000_000);
    let (postgres, redis) = tokio::try_join!(
        Postgres::start(&["shared_buffers=512MB", "max_parallel_workers_per_gather=0"]),
        Redis::start(&[])
    )
    .unwrap();
    let bench = Bench { postgres, redis, rows };
    bench.fill().await;
    bench.warm().await;
    bench.invalidate().await;
    bench.many_tags().await;
}

impl Bench {
    /// Eight columns, about 320 bytes as JSON.
    async fn fill(&self) {
        let sql = format!(
            "create table items (id int primary key, name text, description text, price_cents int, category_id int, \
             tenth int, in_stock bool, updated_at timestamptz); \
             insert into items select n, 'item number ' || n, repeat('some words about it ', 8), n % 10000, n % 500, \
             n % ({} / 100000 + 1), n % 2 = 0, '2026-01-01'::timestamptz + n * interval '1 second' \
             from generate_series(1, {}) n; analyze items; checkpoint",
            self.rows, self.rows
        );
        self.postgres.execute(&sql).await.unwrap();
        self.context("json", "[]").postgres.migrate().await.unwrap();
        println!("{} rows, 2 cores shared by Postgres, Redis and the worker\n", self.rows);
    }

    fn context(&self, format: &str, tags: &str) -> Context {
        self.context_of("select * from items", format, tags)
    }

    fn context_of(&self, query: &str, format: &str, tags: &str) -> Context {
        let text = format!(
            "[service]\nnamespace = \"bench\"\n[dataset.item]\nquery = \"{query}\"\nkey = \"item:{{id}}\"\n\
             format = \"{format}\"\ntags = {tags}\nttl = \"1h\"\nwarm = {{}}\n"
        );
        let environment: BTreeMap<String, String> = [
            ("CACHEKEEPER__POSTGRES__URL".to_owned(), self.postgres.url()),
            ("CACHEKEEPER__REDIS__URL".to_owned(), self.redis.url()),
        ]
        .into();
        let (config, _) = Config::load(Path::new("bench.toml"), text, &environment).unwrap();
        Context::of_worker(&config).unwrap()
    }

    async fn client(&self) -> redis::aio::MultiplexedConnection {
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let client = redis::Client::open(self.redis.url()).unwrap();
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
    }

    async fn flush(&self) {
        let mut client = self.client().await;
        let _: () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
    }

    async fn used_memory(&self) -> u64 {
        self.context("json", "[]").redis.facts().await.unwrap().used_memory
    }

    /// The usual way: psql writes Redis's own protocol, redis-cli passes it on.
    fn psql_to_redis_cli(&self, sql: &str) {
        let mut psql = Command::new("psql")
            .args(["-At", "-c", sql, &self.postgres.url()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = Command::new("redis-cli")
            .args(["-p", &self.redis.port().to_string(), "--pipe"])
            .stdin(psql.stdout.take().unwrap())
            .output()
            .unwrap();
        assert!(psql.wait().unwrap().success());
        let said = String::from_utf8_lossy(&pipe.stdout).into_owned();
        assert!(said.contains("errors: 0"), "{said}");
    }

    fn baseline(&self) -> Duration {
        let began = Instant::now();
        self.psql_to_redis_cli(
            "select E'*5\\r\\n$3\\r\\nSET\\r\\n$' || octet_length(k) || E'\\r\\n' || k || E'\\r\\n$' || octet_length(v) || E'\\r\\n' || v \
             || E'\\r\\n$2\\r\\nEX\\r\\n$4\\r\\n3600\\r' from (select 'item:' || id as k, row_to_json(items)::text as v from items) e",
        );
        began.elapsed()
    }

    async fn ours(&self, format: &str, tags: &str) -> Duration {
        self.ours_of("select * from items", format, tags).await
    }

    async fn ours_of(&self, query: &str, format: &str, tags: &str) -> Duration {
        let context = self.context_of(query, format, tags);
        let dataset = context.catalog.get("item").unwrap();
        let began = Instant::now();
        let options =
            BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
        let report = backfill(&context, dataset, &options).await.unwrap();
        assert_eq!(report.stored, self.rows);
        began.elapsed()
    }

    /// What Redis has used of its core, in seconds.
    async fn redis_cpu(&self) -> f64 {
        let mut client = self.client().await;
        let info: String = redis::cmd("INFO").arg("cpu").query_async(&mut client).await.unwrap();
        let number = |name: &str| -> f64 {
            info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
        };
        number("used_cpu_user:") + number("used_cpu_sys:")
    }

    /// The least that Redis can spend where a script stores: `SET … PX` in Lua, 256 a script; then the memberships, each tag's
    /// keys together. Answers its CPU seconds without and with tags.
    async fn floor(&self) -> (f64, f64) {
        let store = redis::Script::new(
            "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i]) end",
        );
        let mut client = self.client().await;
        let value = vec![b'x'; 318];
        let before = self.redis_cpu().await;
        for first in (1..=self.rows).step_by(256) {
            let mut script = store.prepare_invoke();
            for id in first..(first + 256).min(self.rows + 1) {
                script.key(format!("item:{id}")).arg(&value).arg(3_300_000 + id % 300_000);
            }
            script.invoke_async::<()>(&mut client).await.unwrap();
        }
        let stored = self.redis_cpu().await;
        for category in 0..500 {
            let keys: Vec<u64> = (1..=self.rows).filter(|id| id % 500 == category).collect();
            for keys in keys.chunks(131) {
                let mut add = redis::cmd("SADD");
                add.arg(format!("floor:category:{category}"));
                for id in keys {
                    add.arg(format!("item:{id}"));
                }
                add.query_async::<()>(&mut client).await.unwrap();
            }
        }
        (stored - before, self.redis_cpu().await - before)
    }

    async fn warm(&self) {
        let tag = "[\"category:{category_id}\"]";
        let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut cpu: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut memory = BTreeMap::new();
        let empty = self.used_memory().await;
        for _ in 0..ROUNDS {
            self.flush().await;
            let before = self.redis_cpu().await;
            times.entry("psql | redis-cli --pipe").or_default().push(self.baseline().as_secs_f64());
            cpu.entry("psql | redis-cli --pipe").or_default().push(self.redis_cpu().await - before);
            memory.insert("plain", self.used_memory().await - empty);
            for (name, format, tags) in [
                ("json, no tag", "json", "[]"),
                ("json, one tag", "json", tag),
                ("msgpack, one tag", "msgpack", tag),
            ] {
                self.flush().await;
                let before = self.redis_cpu().await;
                times.entry(name).or_default().push(self.ours(format, tags).await.as_secs_f64());
                cpu.entry(name).or_default().push(self.redis_cpu().await - before);
                memory.insert(name, self.used_memory().await - empty);
            }
        }
        println!(
            "warming, median of {ROUNDS} (seconds, ratio to the baseline of the same round, Redis's CPU)"
        );
        let base = times["psql | redis-cli --pipe"].clone();
        for (name, seconds) in &times {
            let ratios: Vec<f64> = seconds.iter().zip(&base).map(|(ours, base)| ours / base).collect();
            let cpu = median(&cpu[name]);
            println!("  {name:<26} {:>6.2} s  {:>5.2}  {cpu:>6.2} s", median(seconds), median(&ratios));
        }
        self.flush().await;
        let (plain, tagged) = self.floor().await;
        println!("\nRedis's CPU beside the floor: SET … PX in Lua, and the members of each tag together");
        println!("  no tag   {:>5.2} of {plain:.2} s", median(&cpu["json, no tag"]) / plain);
        println!("  one tag  {:>5.2} of {tagged:.2} s", median(&cpu["json, one tag"]) / tagged);
        println!(
            "  one tag  {:>5.2} of no tag",
            median(&cpu["json, one tag"]) / median(&cpu["json, no tag"])
        );
        let rows = self.rows as f64;
        let tables = 2.0 * 1_048_584.0;
        println!("\nbytes of Redis an entry (constant tables apart)");
        println!("  plain SET … EX             {:>7.1}", memory["plain"] as f64 / rows);
        println!("  json, no tag               {:>7.1}", (memory["json, no tag"] as f64 - tables) / rows);
        let with_tag = memory["json, one tag"] as f64 - memory["json, no tag"] as f64;
        println!("  and for each tag           {:>7.1}", with_tag / rows);
        println!("\nworker's peak memory: {}\n", peak_memory());
    }

    /// Twenty tags a row, spread over 500 values each.
    async fn many_tags(&self) {
        let columns: Vec<String> =
            (0..20).map(|n| format!("(id * {} + {n}) % 500 as t{n}", 2 * n + 1)).collect();
        let tags: Vec<String> = (0..20).map(|n| format!("\"t{n}:{{t{n}}}\"")).collect();
        let view = format!("create view tagged as select id, name, {} from items", columns.join(", "));
        self.postgres.execute(&view).await.unwrap();
        self.flush().await;
        let before = self.redis_cpu().await;
        let took = self.ours_of("select * from tagged", "json", &format!("[{}]", tags.join(", "))).await;
        println!(
            "20 tags a row: {:.1} s, Redis's CPU {:.1} s, worker's peak memory {}\n",
            took.as_secs_f64(),
            self.redis_cpu().await - before,
            peak_memory()
        );
    }

    async fn invalidate(&self) {
        println!("invalidating a tag (delete), beside UNLINK of the same keys through redis-cli --pipe");
        for (name, tags, tag, members) in [
            ("a tenth", "[\"tenth:{tenth}\"]", "tenth:1", "tenth = 1"),
            ("everything", "[\"everything\"]", "everything", "true"),
        ] {
            self.flush().await;
            self.ours("json", tags).await;
            let began = Instant::now();
            self.psql_to_redis_cli(&format!(
                "select E'*2\\r\\n$6\\r\\nUNLINK\\r\\n$' || octet_length(k) || E'\\r\\n' || k || E'\\r' \
                 from (select 'item:' || id as k from items where {members}) e"
            ));
            let unlink = began.elapsed();
            self.flush().await;
            self.ours("json", tags).await;
            let context = self.context("json", tags);
            let stop = CancellationToken::new();
            let prober = tokio::spawn(slowest_get(self.client().await, stop.clone()));
            let began = Instant::now();
            let report = invalidate::tags(&context, &[tag.to_owned()], Some(Op::Delete)).await.unwrap();
            let took = began.elapsed();
            stop.cancel();
            let (slowest, gets) = prober.await.unwrap();
            println!(
                "  {name:<11} {:>8} keys  {:>6.2} s  UNLINK {:>6.2} s  ratio {:>5.2}  slowest GET meanwhile {:.1} ms of {gets}",
                report.invalidated,
                took.as_secs_f64(),
                unlink.as_secs_f64(),
                took.as_secs_f64() / unlink.as_secs_f64(),
                slowest.as_secs_f64() * 1000.0
            );
        }
    }
}

async fn slowest_get(
    mut client: redis::aio::MultiplexedConnection,
    stop: CancellationToken,
) -> (Duration, u64) {
    let mut slowest = Duration::ZERO;
    let mut gets = 0;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let _: Option<Vec<u8>> = client.get("item:1").await.unwrap();
        slowest = slowest.max(began.elapsed());
        gets += 1;
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    (slowest, gets)
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    peak.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
