//! Programs that hand writes over: by the stream, as careful applications in any language do, and by the library.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cachekeeper_client::{Cache, CacheState, Parameter, Parameters, WriteError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Arena;
use super::load::{GROUPS, ITEMS};
use super::schema::are_hashes;
use crate::ledger::Told;

/// Keys that each producer writes; all write the same ones, and plain SQL writes them too.
const KEYS: usize = 7;
const BY_STREAM: [&str; 2] = ["json", "msgpack"];
/// Commands that are in the stream at the same time.
pub const AT_ONCE: usize = KEYS * BY_STREAM.len();
/// Numbers of writes that are wrong begin here: they must never be seen.
const WRONG: i64 = 1_000_000;
/// How long a producer waits for an answer after the last fault.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// What a producer was told about a write that was carried out, and what it saw then.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub producer: String,
    pub key: i64,
    pub number: i64,
    pub token: Option<String>,
    /// The version that a plain GET showed after the answer that Redis has it.
    pub seen: Option<i64>,
}

pub async fn start(arena: &Arc<Arena>, seed: u64) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    let mut numbers = 1_000..;
    for producer in BY_STREAM {
        for at in 0..KEYS {
            let random = StdRng::seed_from_u64(seed ^ numbers.next().unwrap());
            tasks.push(tokio::spawn(hand_over(Arc::clone(arena), producer, key(at), random)));
        }
    }
    for (number, producer) in numbers.zip(["library one", "library two"]) {
        let config = arena.config().await;
        let cache = Cache::open(&config).unwrap().build();
        let random = StdRng::seed_from_u64(seed ^ number);
        tasks.push(tokio::spawn(write(Arc::clone(arena), cache, producer, random)));
    }
    tasks
}

fn key(at: usize) -> i64 {
    i64::try_from(at).unwrap() * 41 % ITEMS
}

impl Arena {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    pub fn break_promise(&self, text: String) {
        self.observed.broken.lock().unwrap().push(text);
    }

    fn tell(&self, producer: &str, key: i64, number: i64, told: Told) {
        self.observed.told.lock().unwrap().note(producer, key, number, told);
    }
}

/// Goes on to the next write of its key only after it knows of the last one.
async fn hand_over(arena: Arc<Arena>, producer: &'static str, key: i64, mut random: StdRng) {
    let mut link = Link::new(&arena, format!("cache:reply:{producer}:{key}"));
    let mut number = 0;
    while !arena.is_over() {
        if random.random_bool(0.08) {
            let id = format!("{producer}/{key}/wrong{number}");
            let command = link.command(&id, wrong(key, &mut random), producer);
            let Some(reply) = link.answered(&arena, &id, &command, &mut random).await else { return };
            if reply["ok"] == true || reply["error"].as_str().is_none_or(str::is_empty) {
                arena.break_promise(format!("W2: {id}: carried out: {reply}"));
            }
            arena.tell(producer, key, WRONG + number, Told::Refused);
        }
        number += 1;
        let id = format!("{producer}/{key}/{number}");
        let group = random.random_range(0..GROUPS);
        let parameters = json!({ "producer": producer, "id": key, "n": number, "grp": group });
        let command = link.command(&id, Wrong { dataset: "item", parameters: Ok(parameters) }, producer);
        let life = arena.redis_life.load(Ordering::SeqCst);
        let Some(reply) = link.answered(&arena, &id, &command, &mut random).await else { return };
        if reply["ok"] != true || reply["rows"] != 1 {
            arena.break_promise(format!("W2: {id}: not carried out: {reply}"));
        }
        arena.tell(producer, key, number, Told::Done);
        let seen = if reply["cache"] == "stored" { link.version(&arena, key, life).await } else { None };
        arena.observed.acknowledged.lock().unwrap().push(Acknowledged {
            producer: producer.to_owned(),
            key,
            number,
            token: reply["token"].as_str().map(str::to_owned),
            seen,
        });
        tokio::time::sleep(Duration::from_millis(random.random_range(1..40))).await;
    }
}

/// A command's contents: parameters, or bytes that are none.
struct Wrong {
    dataset: &'static str,
    parameters: Result<Value, &'static [u8]>,
}

/// Commands that must have no effect.
fn wrong(key: i64, random: &mut StdRng) -> Wrong {
    let number = WRONG + 1;
    let good = json!({ "producer": "wrong", "id": key, "n": number, "grp": 1 });
    let with = |name: &str, value: Value| {
        let mut parameters = good.clone();
        parameters[name] = value;
        Wrong { dataset: "item", parameters: Ok(parameters) }
    };
    match random.random_range(0..9) {
        // Constraints: of the row, of the log, which is written before the row.
        0..2 => with("grp", json!(-1)),
        2 => with("n", json!(0)),
        3 => with("grp", Value::Null),
        4 => with("id", json!(ITEMS * 10)),
        5 => with("n", json!("many")),
        6 => with("colour", json!("red")),
        7 => Wrong { dataset: "item", parameters: Err(b"{\"id\":") },
        _ => Wrong { dataset: "nothing", parameters: Ok(good.clone()) },
    }
}

type Fields = Vec<(&'static str, Vec<u8>)>;

/// A program's connection, and the list on which it is answered.
struct Link {
    client: redis::Client,
    connection: Option<MultiplexedConnection>,
    list: String,
}

impl Link {
    fn new(arena: &Arena, list: String) -> Self {
        let client = redis::Client::open(arena.redis_url.clone()).unwrap();
        Self { client, connection: None, list }
    }

    fn command(&self, id: &str, contents: Wrong, producer: &str) -> Fields {
        let params = match contents.parameters {
            Ok(parameters) if producer == "msgpack" => rmp_serde::to_vec_named(&parameters).unwrap(),
            Ok(parameters) => parameters.to_string().into_bytes(),
            Err(bytes) => bytes.to_vec(),
        };
        vec![
            ("dataset", contents.dataset.as_bytes().to_vec()),
            ("id", id.as_bytes().to_vec()),
            ("params", params),
            ("reply", self.list.as_bytes().to_vec()),
        ]
    }

    async fn run<T: redis::FromRedisValue>(&mut self, command: &redis::Cmd) -> Option<T> {
        if self.connection.is_none() {
            let limits = redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(Duration::from_secs(1)))
                .set_response_timeout(Some(Duration::from_secs(4)));
            let opened = self.client.get_multiplexed_async_connection_with_config(&limits).await;
            self.connection = opened.ok();
        }
        let done = command.query_async(self.connection.as_mut()?).await;
        if done.is_err() {
            self.connection = None;
        }
        done.ok()
    }

    /// Sends the command, again and again with the same id, until it is answered. Redis may lose commands and replies.
    async fn answered(
        &mut self,
        arena: &Arena,
        id: &str,
        fields: &Fields,
        random: &mut StdRng,
    ) -> Option<Value> {
        let mut send = redis::cmd("XADD");
        send.arg("cache:writes").arg("*").arg(fields);
        let (began, mut is_over_since) = (Instant::now(), None);
        loop {
            let sent: Option<String> = self.run(&send).await;
            let patience = Duration::from_millis(random.random_range(300..2_000));
            let until = Instant::now() + patience;
            while let Some(reply) = self.reply(until).await {
                if reply["id"] == id {
                    let mut longest = arena.observed.longest_wait.lock().unwrap();
                    *longest = began.elapsed().max(*longest);
                    arena.observed.answered.fetch_add(1, Ordering::SeqCst);
                    return Some(reply);
                }
                // An earlier command that had been sent twice.
                let was_wrong = reply["id"].as_str().is_some_and(|id| id.contains("wrong"));
                if reply["ok"] == was_wrong {
                    arena.break_promise(format!("W2: answered otherwise when it came again: {reply}"));
                }
            }
            if sent.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if arena.is_over() && ANSWERED_WITHIN < is_over_since.get_or_insert_with(Instant::now).elapsed() {
                arena.break_promise(format!("W3: {id} was not answered within {ANSWERED_WITHIN:?}"));
                return None;
            }
        }
    }

    async fn reply(&mut self, until: Instant) -> Option<Value> {
        let left = until.checked_duration_since(Instant::now())?;
        let mut wait = redis::cmd("BLPOP");
        wait.arg(&self.list).arg(left.as_secs_f64().max(0.01));
        let (_list, reply) = self.run::<Option<(String, String)>>(&wait).await??;
        Some(serde_json::from_str(&reply).unwrap())
    }

    /// The version that Redis shows, where Redis was not made to go back since that life.
    async fn version(&mut self, arena: &Arena, key: i64, life: u64) -> Option<i64> {
        let key = format!("item:{key}");
        let version = if are_hashes() {
            let text: Option<String> = self.run(redis::cmd("HGET").arg(key).arg("version")).await?;
            text?.parse().ok()
        } else {
            let text: Option<String> = self.run(redis::cmd("GET").arg(key)).await?;
            let value: Value = serde_json::from_str(&text?).unwrap();
            value["version"].as_i64()
        };
        let is_same_life = life == arena.redis_life.load(Ordering::SeqCst);
        version.filter(|_| is_same_life && !arena.is_split.load(Ordering::SeqCst))
    }
}

/// Writes by the library. What it answers decides whether the write is in the log.
async fn write(arena: Arc<Arena>, cache: Cache, producer: &'static str, mut random: StdRng) {
    let items = cache.dataset("item").unwrap();
    let mut link = Link::new(&arena, String::new());
    let mut numbers: HashMap<i64, i64> = HashMap::new();
    while !arena.is_over() {
        let key = key(random.random_range(0..KEYS));
        let number = numbers.entry(key).or_default();
        *number += 1;
        let group = if random.random_bool(0.05) { -1 } else { random.random_range(0..GROUPS) };
        let given = [("producer", Parameter::from(producer)), ("id", key.into()), ("n", (*number).into())];
        let mut given: Parameters = given.map(|(name, value)| (name.to_owned(), value)).into();
        given.insert("grp".to_owned(), group.into());
        let life = arena.redis_life.load(Ordering::SeqCst);
        let written = match items.write(&given).await {
            Ok(written) => written,
            Err(error) => {
                let is_unknown = matches!(error, WriteError::Unknown(_));
                arena.tell(producer, key, *number, if is_unknown { Told::Unknown } else { Told::Refused });
                tokio::time::sleep(Duration::from_millis(random.random_range(1..40))).await;
                continue;
            }
        };
        if group < 0 || written.rows != 1 {
            arena.break_promise(format!("W2: {producer}/{key}/{number}: group {group}, {written:?}"));
        }
        arena.tell(producer, key, *number, Told::Done);
        let is_stored = written.cache == CacheState::Stored;
        let seen = if is_stored { link.version(&arena, key, life).await } else { None };
        arena.observed.acknowledged.lock().unwrap().push(Acknowledged {
            producer: producer.to_owned(),
            key,
            number: *number,
            token: written.token.as_ref().map(ToString::to_string),
            seen,
        });
        if let Some(token) = written.token.as_ref().filter(|_| random.random_bool(0.3)) {
            let id = key.to_string();
            let after: Option<Value> = items.written(&written, &[&id]).unwrap();
            let fresh: Option<Value> = items.get_since(&[&id], token).await.ok().flatten();
            let version = |value: &Option<Value>| value.as_ref().and_then(|value| value["version"].as_i64());
            if let (Some(after), Some(fresh)) = (version(&after), version(&fresh))
                && fresh < after
            {
                let text =
                    format!("W4: {producer}/{key}/{number}: read with its token: {fresh}, not {after}");
                arena.break_promise(text);
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(1..40))).await;
    }
}
