//! Every order of bulk loads, DDL, backfills, causes and restarts (faults A1, A4): whatever comes after what, nothing is called fresh
//! while it is older than the database was, and in the end Redis equals the query.

use std::time::{Duration, Instant};

use cachekeeper::app::Worker;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::{events, tokens};
use cachekeeper_protocol::token::Token;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::feed::{agrees, ready};
use crate::support::Rig;

/// Every value only grows, and no row goes for good.
const TABLES: &str = "
    create function extra() returns bigint language sql immutable as 'select 0::bigint';
    create function added(bigint) returns bigint language sql immutable as 'select $1 + extra()';
    create table rows (id int primary key, v int not null) partition by range (id);
    create table rows_0 partition of rows for values from (0) to (1000);
    insert into rows select n, n from generate_series(1, 50) n;";

const DATASETS: &str = r#"
    [feed]
    max_rows = 100
    [dataset.row]
    query = "select id, added(v)::text as v from rows"
    key = "row:{id}"
    format = "raw"
    value = "v"
    watch = [{ table = "rows", key = { id = "id" } }]
    warm = { on_start = true }
"#;

const STEPS_FOR: Duration = Duration::from_secs(10);

/// What was read in the database before the token was taken.
struct Claim {
    step: String,
    token: Token,
    values: Vec<(i32, i64)>,
}

struct World {
    rig: Rig,
    context: Context,
    random: StdRng,
    worker: Option<Worker>,
    partitions: i32,
    extra: i64,
    is_wide: bool,
    log: Vec<String>,
    claims: Vec<Claim>,
}

impl World {
    /// A statement of the application or of its owner, or something that the worker meets.
    async fn step(&mut self) {
        let start = self.partitions * 1000;
        let sql = match self.random.random_range(0..11) {
            0 | 1 => {
                let id = self.random.random_range(1..50);
                format!("update rows set v = v + 1 where id = {id}")
            }
            2 => "update rows set v = v + 1".to_owned(),
            3 => format!(
                "insert into rows select n, 1 from generate_series({start} + 100, {start} + 300) n on conflict (id) do update set v = rows.v + 1",
                start = start - 1000
            ),
            4 => "begin; create temporary table kept as select id, v + 1 as v from rows; truncate rows;
                insert into rows select id, v from kept; drop table kept; commit"
                .to_owned(),
            5 => {
                self.is_wide = !self.is_wide;
                let kind = if self.is_wide { "bigint" } else { "int" };
                format!("alter table rows alter column v type {kind} using v + 10")
            }
            6 => {
                self.extra += 1;
                let extra = self.extra;
                format!("create or replace function extra() returns bigint language sql immutable as 'select {extra}::bigint'")
            }
            7 => {
                self.partitions += 1;
                let name = format!("rows_{}", self.partitions);
                let end = start + 1000;
                if self.random.random() {
                    format!("create table {name} partition of rows for values from ({start}) to ({end})")
                } else {
                    format!(
                        "create table {name} (like rows including all); insert into {name} values ({start}, 1);
                         alter table rows attach partition {name} for values from ({start}) to ({end})"
                    )
                }
            }
            8 => "begin; alter table rows disable trigger all; update rows set v = v + 1; alter table rows enable trigger all; commit"
                .to_owned(),
            9 => return self.restart().await,
            _ => return self.work().await,
        };
        self.rig.postgres.execute(&sql).await.unwrap();
        self.claim(sql).await;
    }

    async fn restart(&mut self) {
        match self.worker.take() {
            Some(worker) => drop(worker.stop().await),
            None => self.start().await,
        }
        self.log.push(format!("worker runs: {}", self.worker.is_some()));
    }

    async fn start(&mut self) {
        self.worker = Some(Worker::start(self.rig.config(DATASETS)).await.unwrap());
    }

    /// What somebody else does meanwhile: a backfill, or a cause of its own.
    async fn work(&mut self) {
        let dataset = self.context.catalog.get("row").unwrap().clone();
        if self.random.random() {
            let options = BackfillOptions {
                cancel: CancellationToken::new(),
                rate: None,
                progress: None,
                resume: true,
            };
            // The query may change under it; then it is not whole, and says so.
            let done = backfill(&self.context, &dataset, &options).await;
            self.log.push(format!("backfill: {}", done.is_ok()));
        } else {
            let marked = events::mark_pending(&self.context, &["row".to_owned()], "test", None).await;
            self.log.push(format!("cause: {}", marked.is_ok()));
        }
    }

    async fn claim(&mut self, step: String) {
        let mut session = self.rig.postgres.session().await.unwrap();
        let sql = "select string_agg(id || ' ' || added(v), ',') from rows where id % 10 = 0";
        let text = session.text(sql).await.unwrap().unwrap();
        let values = text.split(',').map(|pair| {
            let (id, v) = pair.split_once(' ').unwrap();
            (id.parse().unwrap(), v.parse().unwrap())
        });
        let values = values.collect();
        let token = tokens::token(&self.context).await.unwrap();
        self.log.push(step.clone());
        self.claims.push(Claim { step, token, values });
    }

    /// Compares what is called fresh with what the database said. Answers how many claims are left.
    async fn check(&mut self) -> usize {
        let mut redis = self.rig.client().await;
        let mut left = Vec::new();
        for claim in std::mem::take(&mut self.claims) {
            let (_, is_fresh) =
                tokens::wait(&self.context, &claim.token, Some("row"), Duration::ZERO).await.unwrap();
            if !is_fresh {
                left.push(claim);
                continue;
            }
            let keys: Vec<String> = claim.values.iter().map(|(id, _)| format!("row:{id}")).collect();
            let found: Vec<Option<i64>> = redis.mget(&keys).await.unwrap();
            for ((id, expected), found) in claim.values.iter().zip(found) {
                assert!(
                    found.is_none_or(|found| *expected <= found),
                    "row {id} is called fresh after {:?}, and is {found:?} instead of {expected}: {:#?}",
                    claim.step,
                    self.log
                );
            }
        }
        self.claims = left;
        self.claims.len()
    }
}

#[tokio::test]
async fn nothing_is_called_fresh_too_early_in_any_order() {
    let seed = crate::oracle::seed_of_run();
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    let mut world = World {
        context,
        random: StdRng::seed_from_u64(seed),
        worker: None,
        partitions: 1,
        extra: 0,
        is_wide: false,
        log: Vec::new(),
        claims: Vec::new(),
        rig,
    };
    world.start().await;
    ready(world.worker.as_ref().unwrap()).await;
    let began = Instant::now();
    while began.elapsed() < STEPS_FOR {
        world.step().await;
        world.check().await;
        if world.random.random_range(0..4) == 0 {
            // Sometimes everything comes to rest in between.
            if world.worker.is_none() {
                world.start().await;
            }
            world.come_to_rest().await;
        }
    }
    if world.worker.is_none() {
        world.start().await;
    }
    world.come_to_rest().await;
    println!("{} steps", world.log.len());
    agrees(world.worker.as_ref().unwrap()).await;
    world.worker.take().unwrap().stop().await;
}

impl World {
    async fn come_to_rest(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while 0 < self.check().await {
            assert!(Instant::now() < deadline, "not fresh: {:#?}", self.log);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.log.push("at rest".to_owned());
        ready(self.worker.as_ref().unwrap()).await;
    }
}
