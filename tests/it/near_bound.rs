//! The near cache's bound: readers, a writer, and faults on the way between the process and Redis. No read is older than what was told.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_client::{Aged, Cache, Near, Policy, Space};
use cachekeeper_testkit::proxy::{Link, Proxy};
use cachekeeper_testkit::servers::Redis;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::oracle::seed_of_run;
use crate::support::wait_until;

const KEYS: usize = 20;
const STALENESS: Duration = Duration::from_millis(300);
/// How long commands may go to a demoted server.
const DEMOTED_FOR: Duration = Duration::from_secs(3);
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Cut,
    Held,
    Slow,
    Rehomed,
    Killed,
    Paused,
    /// The other server takes over, and this one follows it; connections stay where they are.
    Switched,
    /// The server ends all connections of applications.
    ThrownOut,
}

const FAULTS: [Fault; 8] = [
    Fault::Cut,
    Fault::Held,
    Fault::Slow,
    Fault::Rehomed,
    Fault::Killed,
    Fault::Paused,
    Fault::Switched,
    Fault::ThrownOut,
];

struct Arena {
    servers: tokio::sync::Mutex<[Redis; 2]>,
    /// Which of them is the master; held while that changes.
    master: tokio::sync::RwLock<u16>,
    stranger: Redis,
    way: Proxy,
    /// What was written, by key, with when it was acknowledged.
    written: Mutex<Vec<Vec<(Instant, u64)>>>,
    violations: Mutex<Vec<String>>,
    /// When a server was demoted whose connections live on.
    demoted: Mutex<Option<Instant>>,
    near: AtomicU64,
    reads: AtomicU64,
    is_over: AtomicBool,
}

async fn connect(port: u16) -> Option<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    client.get_multiplexed_async_connection().await.ok()
}

async fn command(port: u16, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| drop(command.arg(word).clone()));
    let mut client = connect(port).await.unwrap();
    let _: redis::Value = command.query_async(&mut client).await.unwrap();
}

impl Arena {
    async fn start() -> Arc<Self> {
        let first = Redis::start(&DURABLE).await.unwrap();
        let second = Redis::start(&DURABLE).await.unwrap();
        // Not at its start: it may be started again as the master.
        command(second.port(), &["REPLICAOF", "127.0.0.1", &first.port().to_string()]).await;
        let way = Proxy::start(first.port()).await.unwrap();
        Arc::new(Self {
            master: tokio::sync::RwLock::new(first.port()),
            servers: tokio::sync::Mutex::new([first, second]),
            stranger: Redis::start(&[]).await.unwrap(),
            way,
            written: Mutex::new(vec![Vec::new(); KEYS]),
            violations: Mutex::default(),
            demoted: Mutex::default(),
            near: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        })
    }

    fn space(&self, near: Near) -> Space<usize, u64> {
        let url = format!("redis://127.0.0.1:{}/0", self.way.port());
        let cache = Cache::connect(&url, "test").unwrap().build();
        let policy = Policy::ttl(Duration::from_secs(3600));
        cache.space::<usize, u64>("n").policy(policy).near(near).build().unwrap()
    }

    /// Writes without end, each value higher than the one before, and notes what was acknowledged.
    async fn write(self: Arc<Self>, mut random: StdRng) {
        let (mut client, mut of) = (None, 0);
        let mut value = 0_u64;
        while !self.is_over.load(Ordering::SeqCst) {
            let master = self.master.read().await;
            if client.is_none() || of != *master {
                (client, of) = (connect(*master).await, *master);
            }
            let Some(connection) = &mut client else { continue };
            let key = random.random_range(0..KEYS);
            value += 1;
            let mut set = redis::cmd("SET");
            set.arg(format!("n:{key}")).arg(rmp_serde::to_vec(&value).unwrap()).arg("PX").arg(3_600_000);
            let sent =
                tokio::time::timeout(Duration::from_secs(2), set.query_async::<String>(connection)).await;
            match sent {
                Ok(Ok(_)) => self.written.lock().unwrap()[key].push((Instant::now(), value)),
                // It may have been written or not, and nothing is claimed of it.
                Ok(Err(_)) | Err(_) => client = None,
            }
            drop(master);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn read(self: Arc<Self>, space: Space<usize, u64>, mut random: StdRng) {
        while !self.is_over.load(Ordering::SeqCst) {
            let key = random.random_range(0..KEYS);
            let began = Instant::now();
            let Ok(Ok(read)) = tokio::time::timeout(Duration::from_secs(5), space.get_aged(&key)).await
            else {
                // While the circuit breaker is open it fails at once, and others must have their turn.
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.near.fetch_add(u64::from(!read.behind_redis.is_zero()), Ordering::Relaxed);
            self.judge(key, began, &read);
            // Others have their turn too.
            tokio::task::yield_now().await;
        }
    }

    fn judge(&self, key: usize, began: Instant, read: &Aged<u64>) {
        // It may answer what is not near for a while.
        let is_demoted = self.demoted.lock().unwrap().is_some_and(|demoted| demoted.elapsed() < DEMOTED_FOR);
        if is_demoted && read.behind_redis.is_zero() {
            return;
        }
        let before = began - read.behind_redis;
        let written = self.written.lock().unwrap();
        let newest = written[key].iter().rev().find(|(at, _)| *at <= before);
        let is_old = newest.is_some_and(|(_, newest)| read.value.is_none_or(|value| value < *newest));
        if is_old || STALENESS < read.behind_redis {
            let text = format!("n:{key} was {newest:?}, and read as {read:?} at {began:?}");
            self.violations.lock().unwrap().push(text);
        }
    }

    fn some_links(&self, random: &mut StdRng) -> Vec<Link> {
        let mut links = self.way.links();
        links.retain(|_| random.random_bool(0.6));
        links
    }

    async fn inject(&self, fault: Fault, random: &mut StdRng) {
        let some_time = Duration::from_millis(random.random_range(50..900));
        match fault {
            Fault::Cut => self.some_links(random).iter().for_each(Link::cut),
            Fault::Held => {
                self.some_links(random).iter().for_each(|link| link.change(|now| now.is_held = true));
            }
            Fault::Slow => {
                let (links, delay) = (self.some_links(random), some_time / 4);
                links.iter().for_each(|link| link.change(|now| now.delay = delay));
                tokio::time::sleep(2 * some_time).await;
                links.iter().for_each(|link| link.change(|now| now.delay = Duration::ZERO));
            }
            // Only connections on which nothing is read: what the stranger answers is of another server, as far as it is not noticed.
            Fault::Rehomed => {
                let stranger = self.stranger.port();
                let tracking = self.tracking().await;
                let is_moved = tracking.iter().filter(|port| self.way.rehome(**port, stranger)).count();
                println!("  {is_moved} connections that track lead elsewhere");
            }
            Fault::Killed => {
                let master = self.master.write().await;
                let mut servers = self.servers.lock().await;
                let server = servers.iter_mut().find(|server| server.port() == *master).unwrap();
                server.kill();
                tokio::time::sleep(some_time).await;
                server.start_again().await.unwrap();
            }
            Fault::Paused => {
                let master = *self.master.read().await;
                let servers = self.servers.lock().await;
                let server = servers.iter().find(|server| server.port() == master).unwrap();
                server.pause();
                tokio::time::sleep(2 * some_time).await;
                server.resume();
            }
            Fault::Switched => self.switch().await,
            Fault::ThrownOut => {
                let master = *self.master.read().await;
                for kind in ["normal", "pubsub"] {
                    command(master, &["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await;
                }
            }
        }
        tokio::time::sleep(some_time).await;
    }

    /// The ports from which connections come to the master that are told of changes.
    async fn tracking(&self) -> Vec<u16> {
        let mut client = connect(*self.master.read().await).await.unwrap();
        let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut client).await.unwrap();
        let is_told =
            |line: &&str| line.split(' ').any(|field| field.starts_with("flags=") && field.contains('B'));
        let port = |line: &str| {
            let address = line.split(' ').find_map(|field| field.strip_prefix("addr="))?;
            address.rsplit_once(':')?.1.parse().ok()
        };
        list.lines().filter(is_told).filter_map(port).collect()
    }

    /// Nothing is lost: the replica has everything before it takes over, and nobody writes meanwhile.
    async fn switch(&self) {
        let mut master = self.master.write().await;
        let servers = self.servers.lock().await;
        let other = servers.iter().find(|server| server.port() != *master).unwrap().port();
        let (old, held) = (*master, AtomicU16::new(0));
        wait_until("the replica has everything", async || {
            let mut client = connect(old).await.ok_or("not reached")?;
            // WAIT waits for what its own connection wrote: without a write, any replica will do.
            let mut write = redis::cmd("SET");
            let written: Result<(), _> = write.arg("last").arg(1).query_async(&mut client).await;
            written.map_err(|error| error.to_string())?;
            let mut wait = redis::cmd("WAIT");
            let count: Result<u16, _> = wait.arg(1).arg(100).query_async(&mut client).await;
            held.store(count.map_err(|error| error.to_string())?, Ordering::Relaxed);
            if held.load(Ordering::Relaxed) == 1 { Ok(()) } else { Err("no replica".to_owned()) }
        })
        .await;
        *self.demoted.lock().unwrap() = Some(Instant::now());
        command(other, &["REPLICAOF", "NO", "ONE"]).await;
        command(old, &["REPLICAOF", "127.0.0.1", &other.to_string()]).await;
        self.way.aim(other);
        *self.demoted.lock().unwrap() = Some(Instant::now());
        *master = other;
    }

    async fn serves_near(&self) {
        let before = self.near.load(Ordering::Relaxed);
        wait_until("reads are near again", async || {
            let now = self.near.load(Ordering::Relaxed);
            if before + 50 < now { Ok(()) } else { Err(format!("{before} and {now}")) }
        })
        .await;
    }
}

async fn suffer(near: Near, faults: &[Fault], is_enough: impl Fn(&Arena, usize) -> bool) -> Arc<Arena> {
    let mut random = StdRng::seed_from_u64(seed_of_run());
    let arena = Arena::start().await;
    let space = arena.space(near);
    let mut tasks = vec![tokio::spawn(arena.clone().write(StdRng::from_rng(&mut random)))];
    for _ in 0..3 {
        tasks.push(tokio::spawn(arena.clone().read(space.clone(), StdRng::from_rng(&mut random))));
    }
    let mut injected = 0;
    arena.serves_near().await;
    while !is_enough(&arena, injected) {
        let fault = faults.get(injected).copied().unwrap_or(faults[random.random_range(0..faults.len())]);
        println!("{injected} {fault:?}");
        arena.inject(fault, &mut random).await;
        injected += 1;
        arena.serves_near().await;
    }
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    println!(
        "{injected} faults, {} reads, {} of them near, {} too old",
        arena.reads.load(Ordering::Relaxed),
        arena.near.load(Ordering::Relaxed),
        arena.violations.lock().unwrap().len()
    );
    arena
}

/// Each fault once; with `CACHEKEEPER_FAULTS` so many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_near_read_is_older_than_its_bound() {
    let wanted = std::env::var("CACHEKEEPER_FAULTS").ok().and_then(|text| text.parse().ok());
    let wanted: usize = wanted.unwrap_or(FAULTS.len());
    let near = Near::bytes("1MiB").staleness(STALENESS);
    let arena = suffer(near, &FAULTS, |_, injected| wanted <= injected).await;
    let violations = arena.violations.lock().unwrap();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert!(1_000 < arena.near.load(Ordering::Relaxed), "hardly anything was near");
}

/// The same run must see it go wrong where what is near is served without proof.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_proof_near_reads_are_too_old() {
    let near = Near::bytes("1MiB").staleness(STALENESS).unproved();
    let arena = suffer(near, &[Fault::Held], |arena, _| !arena.violations.lock().unwrap().is_empty()).await;
    assert!(!arena.violations.lock().unwrap().is_empty());
}
