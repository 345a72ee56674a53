//! Writers that leave a history, readers that log what they see, and fills that stall.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::{Refusal, Session};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;

use super::Arena;
use super::producers::Acknowledged;
use super::schema::{SHAPES, are_hashes};
use super::verdict::is_visible;
use crate::ledger::Ledger;

pub const ITEMS: i64 = 300;
/// Rows with ids from [`ITEMS`] on that only faults write.
pub const EXTRA: i64 = 20;
pub const GROUPS: i64 = 10;

/// One value as a reader saw it, with the watermark of the same moment.
#[derive(Debug, Clone)]
pub struct Seen {
    pub id: i64,
    pub version: i64,
    pub group: i64,
    pub group_version: i64,
    pub shapes: [i64; SHAPES.len()],
    pub incarnation: String,
    pub snapshot: String,
    /// Whether the watermark held for the dataset.
    pub is_covered: bool,
}

/// Everything that was seen, and what broke while it was seen.
#[derive(Default)]
pub struct Observed {
    seen: Mutex<Vec<Seen>>,
    pub broken: Mutex<Vec<String>>,
    /// What the producers of writes were told.
    pub told: Mutex<Ledger>,
    pub acknowledged: Mutex<Vec<Acknowledged>>,
    /// Commands of the stream that were answered.
    pub answered: AtomicUsize,
    pub longest_wait: Mutex<Duration>,
}

impl Observed {
    pub fn len(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// How many values of these entries were seen, after so many others, at watermarks that hold and have passed a transaction.
    pub fn past(&self, others: usize, ids: &Range<i64>, xid: u64) -> usize {
        let seen = self.seen.lock().unwrap();
        let is_past = |one: &&Seen| ids.contains(&one.id) && one.is_covered && is_visible(xid, &one.snapshot);
        seen.iter().skip(others).filter(is_past).count()
    }

    pub fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

pub fn start(arena: &Arc<Arena>, seed: u64) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    for number in 0..3 {
        tasks.push(tokio::spawn(write(
            Arc::clone(arena),
            StdRng::seed_from_u64(seed ^ (number + 1)),
            number,
        )));
    }
    for number in 0..2 {
        let random = StdRng::seed_from_u64(seed ^ (100 + number));
        tasks.push(tokio::spawn(read(Arc::clone(arena), random, 0..ITEMS + EXTRA)));
    }
    tasks.push(tokio::spawn(write_alone(Arc::clone(arena))));
    tasks
}

async fn write(arena: Arc<Arena>, mut random: StdRng, number: u64) {
    let mut session: Option<Session> = None;
    while !arena.is_over.load(Ordering::SeqCst) {
        let Some(open) = &mut session else {
            session = connect(&arena.writer_url).await;
            if let Some(open) = &mut session {
                // Prepared before the server was killed, and still holding its locks.
                drop(open.execute(&format!("commit prepared 'p{number}'")).await);
            }
            continue;
        };
        let sql = statement(&mut random, number, arena.is_gentle.load(Ordering::SeqCst));
        // A server that was killed: the transaction happened or did not, and the history happened with it.
        for (number_of_part, part) in sql.split('|').enumerate() {
            if 0 < number_of_part {
                // Not by the server, which would sleep for an hour more where its clock goes back.
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            if let Err(refusal) = open.attempt(part).await {
                arena.judge_refusal(&refusal, BY_OTHERS, part);
                if open.execute("rollback").await.is_err() {
                    session = None;
                } else {
                    // Cancelled between the two steps: nobody else would end it, and its locks stand in everybody's way.
                    drop(open.execute(&format!("commit prepared 'p{number}'")).await);
                }
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(1..8))).await;
    }
}

/// The server stops or starts, or this session was ended.
const BY_SERVER: &[&str] = &["57P01", "57P02", "57P03", "53300"];
/// What writers and faults do to each other where they meet: a deadlock, a table that was swapped meanwhile.
pub const BY_OTHERS: &[&str] = &["40P01", "42P01", "XX000", "23514"];

impl Arena {
    /// Writers come first: what they are refused must have another reason than Cachekeeper (promise 7).
    pub fn judge_refusal(&self, refusal: &Refusal, expected: &[&str], sql: &str) {
        if let Some(broken) = is_refused_by_us(refusal, expected, sql) {
            self.break_promise(broken);
        }
    }
}

/// How a refusal breaks that promise, if it does.
pub fn is_refused_by_us(refusal: &Refusal, expected: &[&str], sql: &str) -> Option<String> {
    let code = refusal.code.as_deref().filter(|code| !BY_SERVER.contains(code))?;
    let is_others = expected.contains(&code) && !refusal.text.contains("cachekeeper");
    (!is_others).then(|| format!("P7: a writer was refused: {code} {}: {sql}", refusal.text))
}

/// Writes a table that nobody else writes: whatever it waits for or is refused by is Cachekeeper's.
async fn write_alone(arena: Arc<Arena>) {
    let mut session: Option<Session> = None;
    let mut id = 0;
    while !arena.is_over.load(Ordering::SeqCst) {
        let Some(open) = &mut session else {
            session = connect(&arena.writer_url).await;
            if let Some(open) = &mut session {
                // Waiting for a lock is what is limited; a server may be paused for longer.
                drop(open.attempt("set lock_timeout = '1s'").await);
            }
            continue;
        };
        id = (id + 1) % 20;
        let sql = format!("update canary set version = version + 1 where id = {id}");
        if let Err(refusal) = open.attempt(&sql).await {
            arena.judge_refusal(&refusal, &[], &sql);
            session = None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn connect(url: &str) -> Option<Session> {
    let session = Session::open(url).await.ok();
    if session.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    session
}

/// A transaction that bumps the version of what it writes and notes it in the history.
pub fn statement(random: &mut StdRng, writer: u64, is_gentle: bool) -> String {
    let id = random.random_range(0..ITEMS);
    let group = random.random_range(0..GROUPS);
    let pause = if random.random_bool(0.1) { "|" } else { "" };
    let chosen = random.random_range(0..100);
    match chosen {
        65..75 | 97 | 98 if is_gentle => format!("begin; {} commit", put(id, group)),
        0..55 => format!("begin; {} {pause} commit", put(id, group)),
        55..65 => format!("begin; {} {pause} commit", delete(id)),
        65..75 => format!(
            "begin; update groups set version = version + 1 where id = {group}; \
             insert into group_history (id, version) select id, version from groups where id = {group}; {pause} commit"
        ),
        75..85 => {
            let other = id + 1 + random.random_range(0..5);
            format!("begin; {} {} commit", put(id, group), put(other.min(ITEMS - 1), group))
        }
        85..92 => format!("begin; {} savepoint s; {} rollback to s; commit", put(id, group), delete(id)),
        92..97 => format!("begin; {} {pause} rollback", put(id, group)),
        // More rows than are captured one by one.
        97 => "begin; update counters set version = version + 1; \
             update items i set version = c.version from counters c where c.id = i.id; \
             insert into history (id, version, is_deleted) select c.id, c.version, i.id is null from counters c left join items i on i.id = c.id; commit".to_owned(),
        98 => "begin; lock table items; update counters set version = version + 1; truncate items; \
             insert into items select id, version, id % 10 from counters where id % 3 > 0; \
             insert into history (id, version, is_deleted) select id, version, id % 3 = 0 from counters; commit".to_owned(),
        _ => format!("begin; {} prepare transaction 'p{writer}'|commit prepared 'p{writer}'", put(id, group)),
    }
}

pub fn put(id: i64, group: i64) -> String {
    format!(
        "update counters set version = version + 1 where id = {id}; \
         insert into items select {id}, version, {group} from counters where id = {id} \
         on conflict (id) do update set version = excluded.version, grp = excluded.grp; \
         insert into history (id, version, is_deleted) select id, version, false from counters where id = {id};"
    )
}

fn delete(id: i64) -> String {
    format!(
        "update counters set version = version + 1 where id = {id}; delete from items where id = {id}; \
         insert into history (id, version, is_deleted) select id, version, true from counters where id = {id};"
    )
}

/// Value, watermark and epoch of one moment. A hash is an object of texts.
const READ: &str = "local epoch = redis.pcall('HGET', KEYS[3], 'epoch')
    if type(epoch) == 'table' then epoch = false end
    local value
    if redis.call('TYPE', KEYS[1]).ok == 'hash' then
      local fields, object = redis.call('HGETALL', KEYS[1]), {}
      for at = 1, #fields, 2 do object[fields[at]] = fields[at + 1] end
      value = cjson.encode(object)
    else
      value = redis.call('GET', KEYS[1])
    end
    return { value, redis.pcall('GET', KEYS[2]), epoch }";

type Reply = (Option<String>, Option<String>, Option<Vec<u8>>);

async fn read(arena: Arc<Arena>, mut random: StdRng, ids: Range<i64>) {
    let client = redis::Client::open(arena.redis_url.clone()).unwrap();
    let mut newest: HashMap<(Vec<u8>, u64, i64), i64> = HashMap::new();
    let mut connection = None;
    while !arena.is_over.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let Some(open) = &mut connection else {
            let limit =
                redis::AsyncConnectionConfig::new().set_connection_timeout(Some(Duration::from_secs(1)));
            connection = client.get_multiplexed_async_connection_with_config(&limit).await.ok();
            continue;
        };
        // What only faults write is looked at more often: there is little time to see it.
        let is_extra = ids.contains(&ITEMS) && random.random_bool(0.2);
        let id = random.random_range(if is_extra { ITEMS..ITEMS + EXTRA } else { ids.clone() });
        let life = arena.redis_life.load(Ordering::SeqCst);
        let reply: Result<Reply, _> = redis::cmd("EVAL")
            .arg(READ)
            .arg(3)
            .arg(format!("item:{id}"))
            .arg("ck:{test:0}:watermark")
            .arg("ck:{test:0}:meta")
            .query_async(open)
            .await;
        let Ok((Some(value), watermark, epoch)) = reply else {
            if reply.is_err() {
                connection = None;
            }
            continue;
        };
        let value: serde_json::Value = serde_json::from_str(&value).unwrap();
        assert_eq!(value["version"].is_string(), are_hashes(), "{value}");
        let number = |name: &str| match &value[name] {
            serde_json::Value::String(text) => text.parse().unwrap(),
            other => other.as_i64().unwrap_or(-1),
        };
        let shape = |name: &str| match &value[name] {
            // A label of an enum: v7.
            serde_json::Value::String(text) => text.trim_start_matches('v').parse().unwrap(),
            other => other.as_i64().unwrap_or(-1),
        };
        let version = number("version");
        // A Redis that was made to go back shows older values until a worker has noticed.
        let is_same_life = life == arena.redis_life.load(Ordering::SeqCst);
        if let Some(epoch) = epoch.filter(|_| is_same_life) {
            let before = newest.entry((epoch, life, id)).or_insert(version);
            if version < *before {
                let text = format!("C1: item:{id} fell from {before} to {version} within one epoch");
                arena.observed.broken.lock().unwrap().push(text);
            }
            *before = version.max(*before);
        }
        let Some(watermark) = watermark else { continue };
        let watermark: serde_json::Value = serde_json::from_str(&watermark).unwrap();
        let text = |name: &str| watermark[name].as_str().unwrap_or_default().to_owned();
        let is_covered =
            watermark["not_covered"].as_array().is_some_and(|names| !names.iter().any(|name| name == "item"));
        if is_same_life {
            arena.observed.seen.lock().unwrap().push(Seen {
                id,
                version,
                group: number("grp"),
                group_version: number("group_version"),
                shapes: SHAPES.map(shape),
                incarnation: text("incarnation"),
                snapshot: text("snapshot"),
                is_covered,
            });
        }
    }
}

/// Few entries, of which much is seen.
pub const FEW: Range<i64> = 0..20;

/// More readers, of few entries.
pub fn start_readers_of_few(arena: &Arc<Arena>, seed: u64) -> Vec<JoinHandle<()>> {
    let random = |number: u64| StdRng::seed_from_u64(seed ^ (200 + number));
    (0..3).map(|number| tokio::spawn(read(Arc::clone(arena), random(number), FEW))).collect()
}

/// Loads whose store comes late, as those of a stalled process do.
pub fn start_stalled_fills(arena: &Arc<Arena>, context: &Context, of: Range<i64>) -> Vec<JoinHandle<()>> {
    let fill = |arena: Arc<Arena>, context: Context, of: Range<i64>| async move {
        let dataset = Arc::clone(context.catalog.get("item").unwrap());
        while !arena.is_over.load(Ordering::SeqCst) {
            let ids: Vec<Vec<String>> =
                (0..20).map(|_| vec![rand::rng().random_range(of.clone()).to_string()]).collect();
            let source = dataset.source(&context.postgres).await.unwrap();
            let loaded = context.postgres.load(&source, &ids).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5 + rand::random::<u64>() % 55)).await;
            let mut batch = cachekeeper_protocol::entry::EntryBatch::default();
            let mut encoder = cachekeeper_engine::encode::Encoder::new(&dataset, &source);
            for row in &loaded.rows {
                encoder.add(row, &mut batch);
            }
            encoder.finish(&mut batch);
            let Some(epoch) = context.epoch() else { continue };
            let standing = dataset.precondition(&epoch, &loaded.poll.incarnation);
            let (stamp, life) = (loaded.poll.snapshot.stamp(), dataset.lifetimes.longest());
            let mode = cachekeeper_engine::stores::redis::StoreMode::Slots;
            drop(context.redis.store(&standing, stamp, &batch, life, mode).await);
        }
    };
    (0..3).map(|_| tokio::spawn(fill(Arc::clone(arena), context.clone(), of.clone()))).collect()
}
