//! The oracle on a Redis Cluster: cluster slots move, masters fail over, nodes are stopped, parted, flushed, added and removed, and workers
//! die, while rows are written, and entries are read as a plain client of the cluster does. Everything that was seen is compared with
//! everything that was committed, and after each fault all comes right by itself.

mod control;
mod fills;
mod node_faults;
mod other_faults;
mod reading;
mod settled;
mod writing;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::{Cluster as Servers, Postgres, Session};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::verdict::Lives;
use super::{schema, seed_of_run, wanted};
use crate::process::{Launch, WorkerProcess};
use node_faults::NodeFault;
use other_faults::OtherFault;
use reading::Observed;

/// One dataset of which every row is to have its entry, and one that is filled by misses. Nothing is filled by a schedule: what is lost
/// must come back because it was lost.
const DATASETS: &str = r#"
    [log]
    level = "info"
    format = "json"
    [invalidation]
    stream = ""
    [feed]
    max_rows = 200
    [dataset.item]
    query = """select i.id, i.version, i.grp, g.version as group_version
               from items i left join groups g on g.id = i.grp"""
    key = "item:{id}"
    tags = ["grp:{grp}"]
    format = "json"
    feed = "required"
    watch = [{ table = "items", key = { id = "id" } }, { table = "groups", tag = "grp:{id}" }]
    warm = { on_start = true }
    [dataset.lazy]
    query = "select i.id, i.version from items i"
    key = "lazy:{id}"
    format = "json"
    ttl = "8s"
    refresh = { ahead = "50%" }
    on_miss = "load"
    feed = "required"
    watch = [{ table = "items", key = { id = "id" } }]
"#;

/// On a machine where a node gets no time for a second, others would take its place without any fault, again and again.
const NODES: [&str; 2] = ["--cluster-node-timeout", "2500"];

/// How large a cluster is.
#[derive(Clone, Copy)]
struct Shape {
    masters: usize,
    /// Of each master.
    replicas: usize,
}

/// What a run shares.
struct Arena {
    postgres: Mutex<Postgres>,
    servers: Mutex<Servers>,
    shape: Shape,
    /// The ports of all nodes: masters, their replicas, and one more that comes and goes.
    ports: Vec<u16>,
    launch: Arc<Launch>,
    config: Config,
    /// That of somebody who looks at it from outside.
    context: Context,
    writer_url: String,
    is_over: AtomicBool,
    /// While it is raised nobody writes whole tables.
    is_gentle: AtomicBool,
    /// Raised before a node is made to go back, and once all nodes agree again: meanwhile it is odd. What was seen in one life may be
    /// older in the next one.
    life: AtomicU64,
    observed: Observed,
}

impl Arena {
    async fn start(shape: Shape, toml: &'static str) -> Arc<Self> {
        let settings = ["max_prepared_transactions=10", "deadlock_timeout=100ms"];
        let (postgres, servers) = tokio::join!(
            Postgres::start(&settings),
            Servers::start_divisible(shape.masters, shape.replicas, &NODES)
        );
        let (postgres, mut servers) = (postgres.unwrap(), servers.unwrap());
        let redis_url = servers.url();
        let spare = servers.add_master(&NODES).await.unwrap();
        servers.remove(spare).await.unwrap();
        postgres.execute(schema::ROLES).await.unwrap();
        let worker_url = postgres.url_as(schema::WORKER);
        Session::open(&worker_url).await.unwrap().execute(schema::TABLES).await.unwrap();
        let environment = environment(&worker_url, &redis_url);
        let (config, _) = Config::load(Path::new("test.toml"), toml.to_owned(), &environment)
            .unwrap_or_else(|problems| panic!("{}", cachekeeper_config::diagnostic::render(&problems)));
        let context = Context::new(&config).unwrap();
        context.postgres.migrate().await.unwrap();
        let launch = Launch {
            program: crate::process::program(),
            toml,
            postgres_url: worker_url,
            redis_url,
            environment: Vec::new(),
        };
        Arc::new(Self {
            ports: (0..servers.len()).map(|position| servers.node(position).unwrap().port()).collect(),
            writer_url: postgres.url_as(schema::WRITER),
            postgres: Mutex::new(postgres),
            servers: Mutex::new(servers),
            shape,
            launch: Arc::new(launch),
            config,
            context,
            is_over: AtomicBool::new(false),
            is_gentle: AtomicBool::new(false),
            life: AtomicU64::new(0),
            observed: Observed::default(),
        })
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// The nodes begin their next life.
    fn next_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    /// The cluster as somebody outside sees it.
    fn cluster(&self) -> &cachekeeper_engine::stores::redis::Cluster {
        self.context.cluster.as_ref().unwrap()
    }

    /// The position of the node that comes and goes.
    fn spare(&self) -> usize {
        self.ports.len() - 1
    }

    async fn text(&self, sql: &str) -> String {
        let mut session = self.postgres.lock().await.session().await.unwrap();
        session.text(sql).await.unwrap().unwrap_or_default()
    }
}

fn environment(postgres: &str, redis: &str) -> BTreeMap<String, String> {
    let pairs = [
        ("CACHEKEEPER__POSTGRES__URL", postgres),
        ("CACHEKEEPER__REDIS__URL", redis),
        ("CACHEKEEPER__SERVICE__NAMESPACE", "test"),
        ("CACHEKEEPER__ADMIN__LISTEN", ""),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect()
}

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A node, or what nodes serve.
    Node(NodeFault),
    /// A worker, or the database.
    Other(OtherFault),
}

impl Fault {
    fn all(shape: Shape) -> Vec<Self> {
        let nodes = NodeFault::of(shape.replicas).into_iter().map(Self::Node);
        let wanted = std::env::var("CACHEKEEPER_ONLY").unwrap_or_default();
        let is_wanted = |fault: &Self| {
            let name = fault.to_string();
            wanted.is_empty() || wanted.split(',').any(|begins| name.starts_with(begins))
        };
        nodes.chain(OtherFault::ALL.iter().copied().map(Self::Other)).filter(is_wanted).collect()
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(fault) => write!(formatter, "{fault:?}"),
            Self::Other(fault) => write!(formatter, "{fault:?}"),
        }
    }
}

/// How long all took to come right after faults, by what had struck.
#[derive(Default)]
struct Recoveries(BTreeMap<String, Vec<Duration>>);

impl Recoveries {
    fn note(&mut self, chosen: &[Fault], took: Duration) {
        let name = match chosen {
            [one] => one.to_string(),
            _ => "(pairs)".to_owned(),
        };
        self.0.entry(name).or_default().push(took);
    }

    fn show(&mut self) {
        for (name, took) in &mut self.0 {
            took.sort_unstable();
            let (median, most) = (took[(took.len() - 1) / 2], took[took.len() - 1]);
            let times = took.len();
            println!(
                "{name}: {times} times, right again after {:.1} s (p50), {:.1} s (max)",
                median.as_secs_f64(),
                most.as_secs_f64()
            );
        }
    }
}

/// Every one of these faults once, then more of them, alone and two at once, up to that number.
async fn suffer(shape: Shape, every: Vec<Fault>, wanted: usize) {
    let arena = Arena::start(shape, DATASETS).await;
    let seed = seed_of_run();
    let mut random = StdRng::seed_from_u64(seed);
    let mut workers = vec![WorkerProcess::start(&arena.launch, ""), WorkerProcess::start(&arena.launch, "")];
    let mut tasks = writing::start(&arena, seed);
    tasks.extend(reading::start(&arena, seed));
    tasks.push(tokio::spawn(fills::late(Arc::clone(&arena), StdRng::seed_from_u64(seed ^ 300))));
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note_in(&*arena.postgres.lock().await).await;
    let (began, mut recoveries) = (Instant::now(), Recoveries::default());
    let (mut first, mut struck) = (VecDeque::from(every.clone()), 0);
    while !first.is_empty() || struck < wanted {
        let mut pick = || every[random.random_range(0..every.len())];
        let mut chosen = vec![first.pop_front().unwrap_or_else(&mut pick)];
        if every.len() <= struck && random.random_bool(0.4) {
            chosen.push(every[random.random_range(0..every.len())]);
        }
        let names: Vec<String> = chosen.iter().map(Fault::to_string).collect();
        println!("{struck} {}, after {:.1} s", names.join(" and "), began.elapsed().as_secs_f64());
        strike(&arena, &chosen, &mut workers, &mut random, &mut lives).await;
        let ended = Instant::now();
        settled::caught_up(&arena).await;
        recoveries.note(&chosen, ended.elapsed());
        println!("  right again after {:.1} s", ended.elapsed().as_secs_f64());
        lives.note_in(&*arena.postgres.lock().await).await;
        struck += chosen.len();
    }
    conclude(&arena, tasks, &mut lives, (struck, seed)).await;
    recoveries.show();
}

/// Faults of nodes and others at the same time, those of each kind one after the other.
async fn strike(
    arena: &Arena,
    chosen: &[Fault],
    workers: &mut [WorkerProcess],
    random: &mut StdRng,
    lives: &mut Lives,
) {
    let mut of_nodes = StdRng::seed_from_u64(random.random());
    let nodes = async {
        for fault in chosen {
            if let Fault::Node(fault) = fault {
                fault.strike(arena, &mut of_nodes).await;
            }
        }
    };
    let others = async {
        for fault in chosen {
            if let Fault::Other(fault) = fault {
                fault.strike(arena, workers, random, lives).await;
            }
        }
    };
    tokio::join!(nodes, others);
}

/// Lets everything come to rest, and judges what was seen.
async fn conclude(
    arena: &Arena,
    tasks: Vec<JoinHandle<()>>,
    lives: &mut Lives,
    (struck, seed): (usize, u64),
) {
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    settled::caught_up(arena).await;
    lives.note_in(&*arena.postgres.lock().await).await;
    settled::agrees(arena).await;
    let verdict = reading::judge(arena, lives).await;
    println!("{struck} faults, {verdict}");
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", verdict.violations.join("\n"));
    let enough = (50 * struck).min(1_000);
    assert!(enough < verdict.checked && 100 < verdict.versions, "too little was looked at: {verdict}");
}

/// Three masters, each with a replica. `CACHEKEEPER_FAULTS` faults, of all kinds, one by one and two at once; without that number a few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_a_cluster_breaks_a_promise() {
    let shape = Shape { masters: 3, replicas: 1 };
    let few = [
        Fault::Node(NodeFault::TurnsBack),
        Fault::Node(NodeFault::LosesSuffix),
        Fault::Node(NodeFault::ComesOrGoes),
        Fault::Node(NodeFault::IsFlushed),
        Fault::Other(OtherFault::KillWorkers),
        Fault::Node(NodeFault::Moves),
    ];
    match wanted() {
        Some(wanted) => suffer(shape, Fault::all(shape), wanted).await,
        None => suffer(shape, few.to_vec(), 0).await,
    }
}

/// Six masters alone: what is lost with one of them nobody else has. Only where `CACHEKEEPER_FAULTS` asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_a_larger_cluster_breaks_a_promise() {
    let shape = Shape { masters: 6, replicas: 0 };
    if let Some(wanted) = wanted() {
        suffer(shape, Fault::all(shape), wanted).await;
    }
}
