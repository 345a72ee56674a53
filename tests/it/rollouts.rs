//! Rollouts (R16): two versions of the configuration side by side, one that is taken back, restarts in a loop. The newest definition
//! with a living worker counts; other datasets never notice.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use cachekeeper::app::Worker;
use cachekeeper_engine::epoch;
use cachekeeper_protocol::revision::Revision;
use redis::AsyncCommands;

use crate::capture::{TABLES, plain, watermark};
use crate::feed::{agrees, caught_up, ready};
use crate::support::{Cli, Rig, wait_until};

const MEMOS: &str = "create table memos (id int primary key, text text not null);
    insert into memos select n, 'note ' || n from generate_series(1, 50) n";

fn notes(key: &str, text: &str) -> String {
    format!(
        r#"
        [dataset.note]
        query = "select id, {text} from memos"
        key = "{key}"
        format = "json"
        watch = [{{ table = "memos", key = {{ id = "id" }} }}]
        warm = {{}}
    "#
    )
}

/// Both datasets, each as it was or anew.
fn both(product: bool, note: bool) -> String {
    let products = plain().replace("select id, name, price", "select id, upper(name) as name, price");
    let product = if product { products } else { plain() };
    product + &notes("note:{id}", if note { "upper(text) as text" } else { "text" })
}

async fn rig() -> Rig {
    Rig::start(&format!("{TABLES}\n{MEMOS}")).await
}

async fn start(rig: &Rig, toml: &str) -> Worker {
    Worker::start(rig.config(toml)).await.unwrap()
}

/// The hash of the definition that counts.
async fn registered(rig: &Rig, dataset: &str) -> String {
    let revision: Option<String> =
        rig.client().await.hget("ck:{test:0}:meta", format!("rev:{dataset}")).await.unwrap();
    Revision::from(revision.unwrap_or_default()).definition().to_owned()
}

fn definition(worker: &Worker, dataset: &str) -> String {
    worker.context.catalog.get(dataset).unwrap().definition.clone()
}

async fn counts(rig: &Rig, worker: &Worker, dataset: &str) {
    let own = definition(worker, dataset);
    wait_until("its definition counts", async || {
        let found = registered(rig, dataset).await;
        if found == own { Ok(()) } else { Err(format!("{found} instead of {own}")) }
    })
    .await;
}

/// Waits until what is cached of a key is this, or nothing is.
async fn shows(rig: &Rig, key: &str, text: &str) {
    wait_until("the change is seen", async || {
        let value: Option<String> = rig.client().await.get(key).await.map_err(|error| error.to_string())?;
        match value {
            Some(value) if !value.contains(text) => Err(format!("{key} is {value}, not {text}")),
            _ => Ok(()),
        }
    })
    .await;
}

async fn update(rig: &Rig, table: &str, text: &str) {
    let column = if table == "memos" { "text" } else { "name" };
    rig.postgres.execute(&format!("update {table} set {column} = '{text}' where id = 7")).await.unwrap();
}

/// The datasets that any watermark has left out, until it is dropped.
struct Watched {
    left_out: Arc<Mutex<BTreeSet<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watched {
    fn start(worker: &Worker) -> Self {
        let (left_out, redis) = (Arc::<Mutex<BTreeSet<String>>>::default(), worker.context.redis.clone());
        let found = Arc::clone(&left_out);
        let task = tokio::spawn(async move {
            loop {
                if let Ok(Some(watermark)) = redis.watermark().await {
                    found.lock().unwrap().extend(watermark.not_covered);
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        Self { left_out, task }
    }

    fn left_out(self) -> BTreeSet<String> {
        self.task.abort();
        self.left_out.lock().unwrap().clone()
    }
}

/// Faults D1: the older worker followed nothing any more, for any dataset, until it was restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_is_taken_back_leaves_other_datasets_alone() {
    let rig = rig().await;
    let older = start(&rig, &both(false, false)).await;
    ready(&older).await;
    let watched = Watched::start(&older);
    let newer = start(&rig, &both(true, false)).await;
    counts(&rig, &newer, "product").await;
    ready(&newer).await;
    agrees(&newer).await;
    assert!(older.context.catalog.get("product").unwrap().is_superseded());
    for (table, key) in [("memos", "note:7"), ("products", "product:7")] {
        update(&rig, table, "FIRST").await;
        shows(&rig, key, "FIRST").await;
    }
    assert!(newer.stop().await);
    let ended = std::time::Instant::now();
    update(&rig, "memos", "second").await;
    shows(&rig, "note:7", "second").await;
    println!("changes of the other dataset are seen {:?} after the newer worker has ended", ended.elapsed());
    counts(&rig, &older, "product").await;
    ready(&older).await;
    println!("the older worker serves again after {:?}", ended.elapsed());
    agrees(&older).await;
    update(&rig, "products", "third").await;
    caught_up(&older).await;
    shows(&rig, "product:7", "third").await;
    agrees(&older).await;
    let left_out = watched.left_out();
    assert!(!left_out.contains("note"), "{left_out:?}");
    assert!(older.stop().await);
}

/// Each of two workers has the newer definition of one dataset: neither has all that count, and still both are followed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_follows_definitions_that_it_has_not() {
    let rig = rig().await;
    // The order in which definitions are first seen.
    epoch::ensure(&rig.context(&both(false, false)), "").await.unwrap();
    let one = start(&rig, &both(true, false)).await;
    counts(&rig, &one, "product").await;
    let two = start(&rig, &both(false, true)).await;
    counts(&rig, &two, "note").await;
    counts(&rig, &one, "product").await;
    ready(&two).await;
    agrees_of(&one, "product").await;
    agrees_of(&two, "note").await;
    for round in 0..3 {
        let text = format!("ROUND {round}");
        for (table, key) in [("memos", "note:7"), ("products", "product:7")] {
            update(&rig, table, &text).await;
            shows(&rig, key, &text).await;
        }
        caught_up(&one).await;
        agrees_of(&one, "product").await;
        agrees_of(&two, "note").await;
    }
    assert_eq!(registered(&rig, "product").await, definition(&one, "product"));
    assert_eq!(registered(&rig, "note").await, definition(&two, "note"));
    assert!(one.stop().await && two.stop().await);
}

/// What is cached of one dataset is what the database has, and nothing is missing.
async fn agrees_of(worker: &Worker, name: &str) {
    use cachekeeper_engine::audit::{Extent, compare};
    let dataset = worker.context.catalog.get(name).unwrap();
    wait_until("entries and rows agree", async || {
        let report = compare(&worker.context, dataset, &Extent::default()).await;
        let report = report.map_err(|error| error.to_string())?;
        if report.is_clean() { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_older_worker_takes_nothing_back_while_a_newer_one_lives() {
    let rig = rig().await;
    let older = start(&rig, &both(false, false)).await;
    ready(&older).await;
    let newer = start(&rig, &both(true, false)).await;
    ready(&newer).await;
    assert!(older.stop().await);
    let watched = Watched::start(&newer);
    let again = start(&rig, &both(false, false)).await;
    // It has registered, and it has looked again after that: a second later.
    for _ in 0..3 {
        let before = newer.context.redis.metadata("").await.unwrap().now_ms;
        wait_until("another look", async || {
            let now = newer.context.redis.metadata("").await.unwrap().now_ms;
            if before + 1_000 < now { Ok(()) } else { Err(format!("{now} ms")) }
        })
        .await;
        epoch::ensure(&again.context, "").await.unwrap();
        assert_eq!(registered(&rig, "product").await, definition(&newer, "product"));
    }
    assert!(again.context.catalog.get("product").unwrap().is_superseded());
    // It is ready, or whoever rolls back would wait for it with the newer one running.
    ready(&again).await;
    let notes = again.health.facts().notes();
    let note = "dataset product: another worker has a newer definition of it, which is served";
    assert!(notes.iter().any(|one| one.starts_with(note)), "{notes:?}");
    assert_eq!(watched.left_out(), BTreeSet::new());
    assert!(newer.stop().await);
    counts(&rig, &again, "product").await;
    ready(&again).await;
    agrees(&again).await;
    assert!(again.stop().await);
}

/// Faults D3: a worker that is restarted often took itself for superseded by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_restarted_in_a_loop_is_never_superseded_by_itself() {
    let rig = rig().await;
    ready_and_stopped(&rig, &both(false, false)).await;
    for _ in 0..5 {
        let worker = start(&rig, &both(true, true)).await;
        counts(&rig, &worker, "product").await;
        assert!(worker.context.catalog.iter().all(|dataset| !dataset.is_superseded()));
        assert!(worker.stop().await);
    }
    // Everything that Redis knew of the order is gone.
    let worker = start(&rig, &both(true, true)).await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut rig.client().await).await.unwrap();
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.context.catalog.iter().all(|dataset| !dataset.is_superseded()));
    assert!(worker.stop().await);
}

async fn ready_and_stopped(rig: &Rig, toml: &str) {
    let worker = start(rig, toml).await;
    ready(&worker).await;
    assert!(worker.stop().await);
}

/// An earlier definition that is brought back on purpose, beside a worker with the later one that was forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_release_counts_whatever_was_seen_first() {
    let rig = rig().await;
    ready_and_stopped(&rig, &both(false, false)).await;
    let forgotten = start(&rig, &both(true, false)).await;
    ready(&forgotten).await;
    let reverted = start(&rig, &format!("[service]\nrelease = 20261126\n{}", both(false, false))).await;
    counts(&rig, &reverted, "product").await;
    ready(&reverted).await;
    agrees(&reverted).await;
    assert!(forgotten.context.catalog.get("product").unwrap().is_superseded());
    assert!(reverted.stop().await && forgotten.stop().await);
}

/// Entries under the keys of a former definition stay right while a worker that has it lives, and then go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_under_former_keys_are_followed_and_then_deleted() {
    let rig = rig().await;
    let older = start(&rig, &(plain() + &notes("note:{id}", "text"))).await;
    ready(&older).await;
    let newer = start(&rig, &(plain() + &notes("memo:{id}", "text"))).await;
    counts(&rig, &newer, "note").await;
    ready(&newer).await;
    let mut client = rig.client().await;
    let both_are_there: u64 = client.exists(&["note:7", "memo:7", "note:8", "memo:8"]).await.unwrap();
    assert_eq!(both_are_there, 4, "one beside the other");
    update(&rig, "memos", "changed").await;
    shows(&rig, "memo:7", "changed").await;
    shows(&rig, "note:7", "changed").await;
    let untouched: bool = client.exists("note:8").await.unwrap();
    assert!(untouched, "what has not changed stays");
    assert!(older.stop().await);
    wait_until("nothing is left under former keys", async || {
        let left: Vec<String> = rig.client().await.keys("note:*").await.map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{} keys", left.len())) }
    })
    .await;
    ready(&newer).await;
    agrees(&newer).await;
    let fields: Vec<String> = client.hkeys("ck:{test:0}:meta").await.unwrap();
    assert!(!fields.iter().any(|field| field.contains('@')), "{fields:?}");
    assert_eq!(watermark(&newer.context).await.not_covered, Vec::<String>::new());
    assert!(newer.stop().await);
}

/// A dataset that only one of two workers has is followed whoever leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_that_is_added_is_served_while_older_workers_live() {
    let rig = rig().await;
    let older = start(&rig, &plain()).await;
    ready(&older).await;
    let newer = start(&rig, &both(false, false)).await;
    counts(&rig, &newer, "note").await;
    ready(&newer).await;
    agrees(&newer).await;
    update(&rig, "memos", "changed").await;
    caught_up(&newer).await;
    agrees(&newer).await;
    assert!(newer.stop().await);
    // Now nobody has it: what changes of it goes.
    update(&rig, "memos", "again").await;
    shows(&rig, "note:7", "again").await;
    assert!(older.stop().await);
}

/// A later version of Cachekeeper, with rules that this one does not know, works in the namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_later_version_nothing_is_done() {
    let rig = rig().await;
    let worker = start(&rig, &plain()).await;
    ready(&worker).await;
    let before = registered(&rig, "product").await;
    let mut client = rig.client().await;
    let _: () = client.hset("ck:{test:0}:meta", "version", 1_000).await.unwrap();
    wait_until("the worker says so", async || {
        let reasons = worker.health.reasons().join("; ");
        if reasons.contains("a later version of cachekeeper") { Ok(()) } else { Err(reasons) }
    })
    .await;
    let stands: String = client.hget("ck:{test:0}:meta", "cursor").await.unwrap();
    update(&rig, "products", "new").await;
    let newer = rig.context(&both(true, false));
    assert!(epoch::ensure(&newer, "").await.is_err());
    assert_eq!(registered(&rig, "product").await, before);
    assert_eq!(client.hget::<_, _, String>("ck:{test:0}:meta", "cursor").await.unwrap(), stands);
    // It is gone again.
    let _: () = client.hdel("ck:{test:0}:meta", "version").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// Another name of a placeholder renders the same keys: there are no former ones to be deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_placeholder_makes_no_former_keys() {
    let rig = rig().await;
    let older = start(&rig, &notes("note:{id}", "text")).await;
    ready(&older).await;
    let renamed =
        notes("note:{nid}", "text").replace("select id,", "select id as nid,").replace("{ id = ", "{ nid = ");
    let newer = start(&rig, &renamed).await;
    counts(&rig, &newer, "note").await;
    ready(&newer).await;
    assert!(older.stop().await);
    for round in 0..3 {
        update(&rig, "memos", &format!("round {round}")).await;
        caught_up(&newer).await;
        agrees(&newer).await;
    }
    let fields: Vec<String> = rig.client().await.hkeys("ck:{test:0}:meta").await.unwrap();
    assert!(!fields.iter().any(|field| field.contains('@')), "{fields:?}");
    assert!(newer.stop().await);
}

/// Which rows are to have an entry is part of the definition: rows that come while a worker leads that keeps fewer are not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_come_in_a_rollout_to_more_rows_are_there_after_it() {
    let rig = rig().await;
    let all = notes("note:{id}", "text");
    let older = start(&rig, &all.replace("warm = {}", "scope = \"cached\"")).await;
    ready(&older).await;
    let newer = start(&rig, &all).await;
    counts(&rig, &newer, "note").await;
    rig.postgres
        .execute("insert into memos select n, 'late' from generate_series(100, 120) n")
        .await
        .unwrap();
    ready(&newer).await;
    caught_up(&newer).await;
    agrees(&newer).await;
    assert!(older.stop().await && newer.stop().await);
}

/// A release counts while a worker lives that has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_is_lowered_counts_as_it_is() {
    let rig = rig().await;
    ready_and_stopped(&rig, &format!("[service]\nrelease = 5\n{}", both(false, false))).await;
    let older = start(&rig, &both(false, false)).await;
    ready(&older).await;
    let newer = start(&rig, &both(true, false)).await;
    counts(&rig, &newer, "product").await;
    ready(&newer).await;
    agrees(&newer).await;
    assert!(newer.stop().await && older.stop().await);
}

/// While a worker with the former name leads, the new name is not covered: it is said why, and the new worker is ready, or no rollout
/// would ever end the older one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_with_another_name_says_who_has_its_keys() {
    let rig = rig().await;
    let older = start(&rig, &notes("note:{id}", "text")).await;
    ready(&older).await;
    let renamed = notes("note:{id}", "text").replace("dataset.note", "dataset.memo");
    let listen = format!("127.0.0.1:{}", cachekeeper_testkit::servers::free_port().unwrap());
    let mut config = rig.config(&renamed);
    config.admin.listen = Some(listen.clone());
    let newer = Worker::start(config).await.unwrap();
    let says = "its keys belong to dataset note of a worker that still runs";
    let note = format!("dataset memo: {says}");
    wait_until("the reason is noted", async || {
        let notes = newer.health.facts().notes();
        if notes.len() == 1 && notes[0].starts_with(&note) { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
    wait_until("the newer worker is ready", async || {
        let reasons = newer.health.reasons();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    })
    .await;
    let cli = Cli::new(&rig, &renamed).with("CACHEKEEPER__ADMIN__LISTEN", &listen);
    let covered = format!("not covered: {says}");
    cli.says(&["status"], 0, &[&format!("worker     ready; {note}"), &covered]);
    cli.says(&["healthcheck", "--ready"], 0, &[&note]);
    assert!(older.stop().await);
    wait_until("it is covered", async || {
        let watermark = newer.context.redis.watermark().await.unwrap().ok_or("no watermark")?;
        let notes = newer.health.facts().notes();
        let is_covered = !watermark.not_covered.iter().any(|name| name == "memo") && notes.is_empty();
        if is_covered { Ok(()) } else { Err(format!("{watermark:?} {notes:?}")) }
    })
    .await;
    let text = cli.says(&["status"], 0, &[]);
    assert!(!text.contains(says), "{text}");
    assert!(newer.stop().await);
}

/// Once for the new definition and once more when the feed follows it: one revalidation does for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_in_place_loads_each_entry_once() {
    let rig = rig().await;
    let of = |text: &str| notes("note:{id}", text).replace("warm = {}", "scope = \"cached\"");
    let older = start(&rig, &of("text")).await;
    ready(&older).await;
    let cli = Cli::new(&rig, &of("text"));
    cli.says(&["warm"], 0, &["50 entries stored"]);
    let newer = start(&rig, &of("upper(text) as text")).await;
    shows(&rig, "note:9", "NOTE 9").await;
    ready(&newer).await;
    agrees_of(&newer, "note").await;
    wait_until("nothing is pending", async || {
        let metadata = newer.context.redis.metadata("").await.map_err(|error| error.to_string())?;
        if metadata.is_pending("note") { Err(format!("{:?}", metadata.pending)) } else { Ok(()) }
    })
    .await;
    let metrics = newer.context.metrics.render().unwrap();
    let stored = metrics
        .lines()
        .find(|line| line.contains("entries_stored") && line.contains("cause=\"revalidation\""));
    assert!(stored.is_some_and(|line| line.ends_with(" 50")), "{stored:?}");
    assert!(newer.stop().await);
    assert!(older.stop().await);
}

/// Who rolls out another key template grants the rights to the former keys as well, as long as there are any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_of_redis_hold_the_keys_of_registered_definitions() {
    let rig = rig().await;
    let worker = start(&rig, &notes("note:{id}", "text")).await;
    ready(&worker).await;
    let cli = Cli::new(&rig, &notes("memo:{id}", "text"));
    cli.says(&["acl", "--for", "worker"], 0, &["~memo:*", "~note:*"]);
    assert!(worker.stop().await);
}

/// A right that is missing on the schema of one dataset's table is that dataset's trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_may_not_be_used_stops_no_other_dataset() {
    let rig = rig().await;
    rig.postgres
        .execute("create schema apart; create table apart.memos (id int primary key, text text not null); create role cache login")
        .await
        .unwrap();
    let apart =
        notes("apart:{id}", "text").replace("dataset.note", "dataset.apart").replace("memos", "apart.memos");
    let toml = notes("note:{id}", "text") + &apart;
    let grant =
        "grant select on all tables in schema public, apart to cache; grant usage on schema apart to cache";
    rig.postgres.execute(grant).await.unwrap();
    Cli::new(&rig, &toml).says(&["migrate", "--grant", "cache"], 0, &[]);
    let mut config = rig.config(&toml);
    config.postgres.url = cachekeeper_config::Secret::new(rig.postgres.url_as("cache"));
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("revoke usage on schema apart from cache").await.unwrap();
    rig.postgres.execute("insert into apart.memos values (1, 'one')").await.unwrap();
    wait_until("it is told of that dataset", async || {
        let reasons = worker.health.reasons().join("; ");
        let facts = worker.health.facts();
        let told = reasons + &format!("{:?} {:?}", facts.uncovered, facts.broken);
        if told.contains("permission denied for schema apart") { Ok(()) } else { Err(told) }
    })
    .await;
    update(&rig, "memos", "goes on").await;
    shows(&rig, "note:7", "goes on").await;
    wait_until("the watermark leaves out that one", async || {
        let watermark = watermark(&worker.context).await;
        if watermark.not_covered == ["apart"] { Ok(()) } else { Err(format!("{watermark:?}")) }
    })
    .await;
    assert_eq!(worker.health.facts().schema, None);
    rig.postgres.execute("grant usage on schema apart to cache").await.unwrap();
    ready(&worker).await;
    agrees_of(&worker, "apart").await;
    assert!(worker.stop().await);
}

/// The backfill of the start meets another definition; once that has ended, it is done after all.
#[tokio::test]
async fn a_worker_that_is_taken_back_to_is_warmed_and_ready() {
    let rig = rig().await;
    let warmed = both(false, false).replace("warm = {}", "warm = { on_start = true }");
    ready_and_stopped(&rig, &warmed).await;
    ready_and_stopped(&rig, &both(true, true)).await;
    let worker = start(&rig, &warmed).await;
    counts(&rig, &worker, "product").await;
    ready(&worker).await;
    assert!(worker.health.facts().not_warmed.is_empty());
    assert!(worker.stop().await);
}
