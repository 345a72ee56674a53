//! A slow, locked or unreachable database never empties the cache: old values stay readable, the watermark leaves the dataset
//! out, other datasets go on, and what changed is revalidated once the database can be read again.

use std::collections::HashSet;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_config::OnNewEpoch;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::metrics::{ByDataset, ByDatasetCause};
use cachekeeper_engine::refresh::Outage;
use cachekeeper_engine::stores::redis::{Answer, Failed, Settled, StoreMode};
use cachekeeper_engine::{coverage, epoch, revalidation, tokens};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::slot_set::SlotSet;
use cachekeeper_protocol::token::Token;
use cachekeeper_testkit::servers::Session;
use redis::AsyncCommands;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::capture::follower;
use crate::feed::{agrees, caught_up, ready};
use crate::support::{Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, name text, price int);
    create table notes (id int primary key, note text);
    insert into products select n, 'old', n from generate_series(1, 3000) n;
    insert into notes select n, 'old' from generate_series(1, 10) n;";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, name, price from products"
    key = "product:{id}"
    format = "json"
    watch = [{ table = "products", key = { id = "id" } }]
    warm = { on_start = true }
    [dataset.note]
    query = "select id, note from notes"
    key = "note:{id}"
    format = "json"
    watch = [{ table = "notes", key = { id = "id" } }]
    warm = { on_start = true }
"#;

/// How many entries of a dataset are readable.
async fn entries(rig: &Rig, prefix: &str) -> usize {
    let mut client = rig.client().await;
    let (mut cursor, mut found) = (0_u64, HashSet::<String>::new());
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{prefix}:*")).arg("COUNT").arg(5_000);
        let (next, keys): (u64, Vec<String>) = scan.query_async(&mut client).await.unwrap();
        found.extend(keys);
        cursor = next;
        if cursor == 0 {
            return found.len();
        }
    }
}

/// Waits until what was committed until now is visible, and the watermark says so of this dataset.
async fn is_fresh(context: &Context, dataset: &str) {
    let token = tokens::token(context).await.unwrap();
    wait_until(&format!("{dataset} is fresh"), async || {
        let waited = tokens::wait(context, &token, Some(dataset), Duration::ZERO).await;
        match waited.map_err(|error| error.to_string())? {
            (_, true) => Ok(()),
            (watermark, false) => Err(format!("{watermark:?}")),
        }
    })
    .await;
}

async fn names_product(worker: &Worker) {
    wait_until("readiness names the dataset", async || {
        let reasons = worker.health.reasons();
        let is_named = reasons.iter().any(|reason| reason.contains("dataset product: changed entries"));
        if is_named { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
}

async fn left_out(context: &Context, expected: &[&str]) {
    wait_until(&format!("{expected:?} are left out"), async || {
        let watermark = context.redis.watermark().await.map_err(|error| error.to_string())?;
        match watermark {
            Some(watermark) if watermark.not_covered == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Changes rows, and locks their table before anybody can read what became of them.
struct Locked {
    session: Session,
}

impl Locked {
    async fn behind(rig: &Rig, change: &str, table: &str) -> Self {
        let mut writer = rig.postgres.session().await.unwrap();
        writer.execute(&format!("begin; {change}")).await.unwrap();
        let mut session = rig.postgres.session().await.unwrap();
        let lock = format!("begin; lock table {table} in access exclusive mode");
        let locking = tokio::spawn(async move { session.execute(&lock).await.map(|()| session) });
        let mut look = rig.postgres.session().await.unwrap();
        loop {
            let waits = look.text("select count(*)::text from pg_locks where not granted").await.unwrap();
            if waits.as_deref() != Some("0") {
                break;
            }
            tokio::task::yield_now().await;
        }
        writer.execute("commit").await.unwrap();
        Self { session: locking.await.unwrap().unwrap() }
    }

    async fn release(mut self) {
        self.session.execute("commit").await.unwrap();
    }
}

#[tokio::test]
async fn a_locked_table_empties_nothing_and_holds_up_nobody_else() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    let locked = Locked::behind(
        &rig,
        "update products set name = 'new'; delete from products where id = 7; insert into products values (5000, 'new', 1)",
        "products",
    )
    .await;
    let began = Instant::now();
    rig.postgres.execute("update notes set note = 'new' where id = 3").await.unwrap();
    is_fresh(context, "note").await;
    println!("the other dataset is fresh after {:?}", began.elapsed());
    left_out(context, &["product"]).await;
    assert_eq!(entries(&rig, "product").await, 3000, "nothing is deleted");
    let value: String = rig.client().await.get("note:3").await.unwrap();
    assert!(value.contains("new"));
    names_product(&worker).await;
    locked.release().await;
    let released = Instant::now();
    ready(&worker).await;
    println!("all is right {:?} after the lock is gone", released.elapsed());
    caught_up(&worker).await;
    agrees(&worker).await;
    assert_eq!(entries(&rig, "product").await, 3000, "one row is gone, one has come");
    worker.stop().await;
}

/// What could not be loaded is recorded in Redis: whoever comes next sees to it.
#[tokio::test]
async fn what_could_not_be_loaded_outlives_the_worker_that_tried() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let locked = Locked::behind(&rig, "update products set name = 'new'", "products").await;
    left_out(&worker.context, &["product"]).await;
    worker.stop().await;
    locked.release().await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    caught_up(&worker).await;
    agrees(&worker).await;
    assert_eq!(entries(&rig, "product").await, 3000);
    worker.stop().await;
}

async fn take_all_connections(rig: &Rig, sessions: &mut Vec<Session>) {
    while let Ok(session) = rig.postgres.session().await {
        sessions.push(session);
    }
}

/// No connection is to be had: everything stands, and says why.
#[tokio::test]
async fn a_database_without_free_connections_empties_nothing() {
    let settings = ["max_connections=24", "superuser_reserved_connections=0"];
    let rig = Rig::start_with(TABLES, &settings, &[]).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut sessions = Vec::new();
    take_all_connections(&rig, &mut sessions).await;
    // Those that the worker has go too.
    let others = "from pg_stat_activity where application_name = 'cachekeeper'";
    loop {
        let left = sessions[0].text(&format!("select count(*)::text {others}")).await.unwrap();
        let before = sessions.len();
        take_all_connections(&rig, &mut sessions).await;
        if left.as_deref() == Some("0") && sessions.len() == before {
            break;
        }
        sessions[0].text(&format!("select count(pg_terminate_backend(pid))::text {others}")).await.unwrap();
    }
    let change = "update products set name = 'new' where id <= 100; update notes set note = 'new'";
    sessions[0].execute(change).await.unwrap();
    let since = sessions[0].text("select cachekeeper.token()").await.unwrap().unwrap();
    let since: Token = since.parse().unwrap();
    wait_until("readiness names the database, and why", async || {
        let reasons = worker.health.reasons();
        let is_named = reasons.iter().any(|reason| reason.contains("too many clients already"));
        if is_named { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
    assert_eq!((entries(&rig, "product").await, entries(&rig, "note").await), (3000, 10));
    let (_, is_fresh) = tokens::wait(&worker.context, &since, Some("note"), Duration::ZERO).await.unwrap();
    assert!(!is_fresh, "the watermark stands");
    drop(sessions);
    ready(&worker).await;
    caught_up(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

/// A query that the server does not survive (the kernel kills its process, as where memory is short) is not repeated for ever: whoever
/// writes to the database comes first.
#[tokio::test]
async fn a_backfill_that_ends_the_server_each_time_is_tried_seldom_and_called_broken() {
    let rig = Rig::start(TABLES).await;
    let deadly = r#"
        [dataset.deadly]
        query = "select id, pg_sleep(60)::text as slept from notes"
        key = "deadly:{id}"
        format = "json"
        warm = { on_start = true }
    "#;
    let worker = Worker::start(rig.config(&format!("{DATASETS}{deadly}"))).await.unwrap();
    let told = || worker.health.facts().broken.get("deadly").cloned();
    let find = "select pid::text from pg_stat_activity where application_name = 'cachekeeper' and query like '%pg_sleep(60)%'
        and state = 'active'";
    let mut killed = 0;
    while told().is_none() {
        wait_until("the backfill is under way, or given up", async || {
            if told().is_some() {
                return Ok(());
            }
            let mut session = rig.postgres.session().await.map_err(|error| error.to_string())?;
            let pid = session.text(find).await.map_err(|error| error.to_string())?.unwrap_or_default();
            let is_killed = std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
            if is_killed.success() { Ok(()) } else { Err(format!("process {pid:?}")) }
        })
        .await;
        killed += 1;
        assert!(killed < 12, "it is tried again and again");
    }
    assert!(3 <= killed);
    wait_until("it is called broken", async || match told() {
        Some(text) if text.contains("during each of its last 3 backfills") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    wait_until("the others are served again", async || {
        let found = (entries(&rig, "product").await, entries(&rig, "note").await);
        if found == (3000, 10) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    worker.stop().await;
}

/// Processes that use all the time there is, until they are dropped.
struct Busy(Vec<std::process::Child>);

impl Busy {
    fn start(count: usize) -> Self {
        let spin = || std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..count).map(|_| spin()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for process in &mut self.0 {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// Both cores are busy with other things: all is slower, and nothing else.
#[tokio::test]
async fn busy_cores_cost_time_and_no_entry() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let busy = Busy::start(6);
    for price in 0..5 {
        rig.postgres.execute(&format!("update products set price = {price}")).await.unwrap();
        rig.postgres.execute("update notes set note = note || '.'").await.unwrap();
        assert_eq!((entries(&rig, "product").await, entries(&rig, "note").await), (3000, 10));
    }
    is_fresh(&worker.context, "note").await;
    is_fresh(&worker.context, "product").await;
    drop(busy);
    assert_eq!((entries(&rig, "product").await, entries(&rig, "note").await), (3000, 10));
    for dataset in ["product", "note"] {
        let deleted = &worker.context.metrics.deleted;
        assert_eq!(deleted.get_or_create(&ByDatasetCause::new(dataset, "change")).get(), 0);
    }
    ready(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

/// A row that takes longer to read than any statement may: its dataset waits until somebody changes that.
#[tokio::test]
async fn a_query_slower_than_the_statements_limit_costs_its_own_dataset_only() {
    let rig = Rig::start(TABLES).await;
    // Immutable, as its author says, so that the dataset is covered.
    let nap = "create function nap(price int) returns text language plpgsql immutable as
        $$ begin perform pg_sleep(5); return ''; end $$";
    rig.postgres.execute(nap).await.unwrap();
    let slow = DATASETS.replace(
        "select id, name, price from products",
        "select id, name, price, case when name = 'slow' then nap(price) end as nap from products",
    );
    let toml = format!("[postgres]\nstatement_timeout = \"1s\"\n{slow}");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    let change = "update products set name = case id when 5 then 'slow' else 'new' end where id < 100";
    rig.postgres.execute(change).await.unwrap();
    rig.postgres.execute("update notes set note = 'new' where id = 3").await.unwrap();
    is_fresh(&worker.context, "note").await;
    left_out(&worker.context, &["product"]).await;
    names_product(&worker).await;
    assert_eq!(entries(&rig, "product").await, 3000);
    rig.postgres.execute("update products set name = 'quick' where id = 5").await.unwrap();
    ready(&worker).await;
    caught_up(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

/// A server that falls silent, as one whose machine is too busy to answer.
#[tokio::test]
async fn a_database_that_does_not_answer_empties_nothing() {
    let rig = Rig::start(TABLES).await;
    let toml = format!("[feed]\nmax_lag = \"1s\"\n{DATASETS}");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("update products set name = 'new'").await.unwrap();
    rig.postgres.pause();
    wait_until("readiness says that something stands", async || {
        let reasons = worker.health.reasons();
        assert!(!reasons.iter().any(|reason| reason.starts_with("redis")), "Redis is blamed: {reasons:?}");
        if reasons.is_empty() { Err("ready".to_owned()) } else { Ok(()) }
    })
    .await;
    assert_eq!((entries(&rig, "product").await, entries(&rig, "note").await), (3000, 10));
    rig.postgres.resume();
    ready(&worker).await;
    caught_up(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

/// What cannot be refreshed because its table is locked is kept; what can be is refreshed.
#[tokio::test]
async fn entries_due_for_a_refresh_outlive_a_locked_table() {
    let rig = Rig::start(TABLES).await;
    let brief = DATASETS.replace(
        "warm = { on_start = true }",
        "warm = { on_start = true }\n    ttl = \"12s\"\n    refresh = { ahead = \"50%\" }",
    );
    let worker = Worker::start(rig.config(&brief)).await.unwrap();
    ready(&worker).await;
    let mut locker = rig.postgres.session().await.unwrap();
    locker.execute("begin; lock table products in access exclusive mode").await.unwrap();
    let metrics = &worker.context.metrics;
    let count = |dataset: &str| {
        let labels = ByDataset::new(dataset);
        (metrics.extended.get_or_create(&labels).get(), metrics.refreshed.get_or_create(&labels).get())
    };
    wait_until("each entry was kept twice, and each of the other dataset refreshed twice", async || {
        let (products, notes) = (count("product"), count("note"));
        let is_done = 6000 <= products.0 && 20 <= notes.1;
        if is_done { Ok(()) } else { Err(format!("{products:?}, {notes:?}")) }
    })
    .await;
    assert_eq!((entries(&rig, "product").await, entries(&rig, "note").await), (3000, 10));
    locker.execute("commit").await.unwrap();
    let kept = count("product").1;
    wait_until("entries are refreshed again", async || {
        let outages = worker.context.redis.metadata("").await.unwrap().outages;
        if kept + 3000 < count("product").1 && outages.is_empty() {
            Ok(())
        } else {
            Err(format!("{outages:?}"))
        }
    })
    .await;
    agrees(&worker).await;
    worker.stop().await;
}

/// An outage that only one worker meets does not grow old.
#[tokio::test]
async fn the_age_of_an_outage_counts_by_the_watermark() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    let mut feed = FeedConsumer::new(&context);
    while feed.step(true).await.unwrap() != Step::Idle {}
    let since = context.redis.metadata("").await.unwrap().now_ms - 3_600_000;
    context.redis.note_outage(None, Some(since)).await.unwrap();
    let age = async || {
        let metadata = context.redis.metadata("").await.unwrap();
        Outage::read(&metadata, metadata.now_ms).unwrap().lasted
    };
    assert!(Duration::from_secs(3_600) <= age().await, "nobody reaches Postgres");
    assert_eq!(feed.step(true).await.unwrap(), Step::Idle);
    assert_eq!(age().await, Duration::ZERO, "another worker does");
}

/// A row that errs costs its own entry, and nobody waits for it.
#[tokio::test]
async fn a_row_that_errs_alone_costs_that_entry_only() {
    let rig = Rig::start(TABLES).await;
    let toml = DATASETS.replace("select id, name, price from", "select id, name, 100 / price as share from");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("update products set price = case id when 5 then 0 else 7 end").await.unwrap();
    caught_up(&worker).await;
    let mut client = rig.client().await;
    assert_eq!(entries(&rig, "product").await, 2999);
    assert!(!client.exists::<_, bool>("product:5").await.unwrap());
    let value: String = client.get("product:6").await.unwrap();
    assert!(value.contains("\"share\":14"), "{value}");
    rig.postgres.execute("update products set price = 10 where id = 5").await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

/// The same where everything is filled, and where the row's own function says that it errs.
#[tokio::test]
async fn a_backfill_goes_past_a_row_that_errs() {
    let rig = Rig::start(TABLES).await;
    let raises = "create function share(price int) returns int language plpgsql immutable as
        $$ begin if price = 0 then raise exception 'free of charge'; end if; return 100 / price; end $$";
    rig.postgres.execute(raises).await.unwrap();
    rig.postgres.execute("update products set price = 0 where id in (5, 2000)").await.unwrap();
    for share in ["100 / price", "share(price)"] {
        let toml =
            DATASETS.replace("select id, name, price from", &format!("select id, {share} as share from"));
        let worker = Worker::start(rig.config(&toml)).await.unwrap();
        ready(&worker).await;
        assert_eq!(entries(&rig, "product").await, 2998, "{share}");
        worker.stop().await;
        let _: () = redis::cmd("FLUSHALL").query_async(&mut rig.client().await).await.unwrap();
    }
}

/// Whoever asks for a refresh wants to keep the old value; whoever does not wants it gone.
#[tokio::test]
async fn a_refresh_that_is_asked_for_while_postgres_is_down_deletes_nothing() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    rig.postgres.stop();
    for event in [r#"{"key":"product:1","op":"refresh"}"#, r#"{"key":"product:2"}"#] {
        let _: () = client.publish("cache:invalidation", event).await.unwrap();
    }
    wait_until("the second one is deleted", async || {
        let is_there: bool = client.clone().exists("product:2").await.unwrap();
        if is_there { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    assert!(client.exists::<_, bool>("product:1").await.unwrap());
    rig.postgres.start_again().await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    worker.stop().await;
}

/// Work settles what it has seen. What is noted while it runs stays, and a bitmap that Redis has evicted means every entry.
#[tokio::test]
async fn only_slots_that_were_seen_are_settled() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    let state = epoch::ensure(&context, "").await.unwrap();
    let dataset = context.catalog.get("product").unwrap().clone();
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    backfill(&context, &dataset, &options).await.unwrap();
    let revalidate = async || {
        let cancel = CancellationToken::new();
        revalidation::run(&context, &dataset, OnNewEpoch::Drop, &cancel).await.unwrap()
    };
    revalidate().await;
    backfill(&context, &dataset, &options).await.unwrap();
    let at = (&state.epoch, state.poll.incarnation.as_str());
    let mark = async |keys: &[&str]| {
        let mut failed = Failed::default();
        keys.iter().for_each(|key| failed.kept.insert(key));
        match context.redis.mark_slots(at, ("product", "test"), &failed, "").await.unwrap() {
            Answer::Done(cause) => cause,
            Answer::Failed(failed) => panic!("{failed}"),
        }
    };
    let precondition = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let seen = async || match context.redis.pending_slots(&precondition, "test").await.unwrap() {
        Answer::Done(seen) => seen,
        Answer::Failed(failed) => panic!("{failed}"),
    };
    let has = |slots: &SlotSet| [1, 2, 3, 4].map(|n| slots.contains(&format!("product:{n}")));

    mark(&["product:1"]).await;
    let first = seen().await;
    assert_eq!(has(&first.slots), [true, false, false, false]);
    // Two more come while that is worked off; its claim settles none of them.
    mark(&["product:2"]).await;
    mark(&["product:3"]).await;
    assert_eq!(has(&seen().await.slots), [true, true, true, false]);
    let settled = Settled::Slots { cause: first.cause };
    context.redis.finish_job(&precondition, "test", 2, settled).await.unwrap();
    assert_eq!(has(&seen().await.slots), [false, true, true, false]);

    // An entry that is in none of them is not loaded.
    let report = revalidate().await;
    assert_eq!((report.stored, report.invalidated), (2, 0), "nothing is dropped, whatever a new epoch does");
    assert!(context.redis.metadata("").await.unwrap().slots.is_empty());
    let mut client = rig.client().await;
    let bitmaps = async |client: &mut redis::aio::MultiplexedConnection| -> Vec<String> {
        redis::cmd("KEYS").arg("ck:{test:0}:pending:*").query_async(client).await.unwrap()
    };
    assert!(bitmaps(&mut client).await.is_empty());

    mark(&["product:4"]).await;
    let evicted = bitmaps(&mut client).await;
    let _: () = client.del(&evicted).await.unwrap();
    assert_eq!(revalidate().await.stored, 3000);
    assert!(context.redis.metadata("").await.unwrap().slots.is_empty());
}

/// Every changed key of the dataset is to be loaded, so none is raised before that. What could not be loaded is raised then: a load of
/// before the change, of a key that has no entry, would not be found by the revalidation (K16).
#[tokio::test]
async fn what_is_left_out_takes_nothing_that_was_loaded_before_the_change() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(DATASETS);
    let mut feed = follower(&context).await;
    let state = epoch::ensure(&context, "").await.unwrap();
    let dataset = context.catalog.get("product").unwrap();
    // Somebody has loaded an entry that is not in Redis, and is slow to store it.
    let before = context.postgres.poll().await.unwrap();
    let mut entries = EntryBatch::default();
    entries.push("product:1", br#"{"id":1,"name":"old","price":1}"#, 60_000);
    let locked = Locked::behind(&rig, "update products set name = 'new' where id = 1", "products").await;
    while feed.step(true).await.unwrap() != Step::Idle {}
    assert!(context.redis.metadata("").await.unwrap().unfilled.contains_key("product"));
    let precondition = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let stamp = before.snapshot.stamp();
    let stored =
        context.redis.store(&precondition, stamp, &entries, Duration::from_secs(60), StoreMode::Slots);
    assert_eq!(stored.await.unwrap(), Answer::Done(vec![0]), "the old value is refused");
    locked.release().await;
}

/// The figure of faults.md A7, with the other dataset's tokens measured once a second. It holds the table for 45 s, so it runs only
/// when asked for: `cargo test --release --test it forty_five -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_hundred_thousand_changed_rows_behind_a_lock_of_forty_five_seconds() {
    const ROWS: usize = 100_000;
    const HELD: Duration = Duration::from_secs(45);
    let rig = Rig::start(&TABLES.replace("generate_series(1, 3000)", "generate_series(1, 100000)")).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    // No statement changes more rows than are named one by one.
    let parts: Vec<String> =
        (0..20).map(|part| format!("update products set name = 'new' where id % 20 = {part}")).collect();
    let locked = Locked::behind(&rig, &parts.join("; "), "products").await;
    let locked_at = Instant::now();
    let (mut fewest, mut slowest, mut rounds) = (ROWS, Duration::ZERO, 0);
    while locked_at.elapsed() < HELD {
        let committed = Instant::now();
        rig.postgres.execute("update notes set note = note || '.' where id = 3").await.unwrap();
        is_fresh(&worker.context, "note").await;
        (slowest, rounds) = (slowest.max(committed.elapsed()), rounds + 1);
        fewest = fewest.min(entries(&rig, "product").await);
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(committed.elapsed())).await;
    }
    locked.release().await;
    let released = Instant::now();
    ready(&worker).await;
    caught_up(&worker).await;
    let right_after = released.elapsed();
    agrees(&worker).await;
    println!(
        "readable at least {fewest} of {ROWS}; slowest of {rounds} tokens of the other dataset {slowest:?}; all right \
         {right_after:?} after the lock was gone"
    );
    assert!(ROWS * 99 / 100 <= fewest, "{fewest}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    worker.stop().await;
}
