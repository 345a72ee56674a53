//! What stands between the workers and the servers: proxies whose connections can be cut, held, delayed and re-homed one by one, and a
//! pooler. Faults and observers come to the servers directly.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cachekeeper_testkit::proxy::{Link, Proxy};
use cachekeeper_testkit::servers::{PgBouncer, Redis};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::Mutex;

use super::faults::Fault;
use super::schema::WORKER;
use super::{Arena, World, suffer_with};
use crate::support::{Rig, wait_until};

/// A connection that nobody has used for so long after it was re-homed is not in use.
const IDLE: Duration = Duration::from_secs(5);

/// The way from workers and libraries to the servers.
pub struct Network {
    to_redis: Proxy,
    to_postgres: Proxy,
    pooler: Mutex<PgBouncer>,
    /// Another Redis, which knows nothing.
    stranger: Redis,
}

impl Network {
    pub async fn before(rig: &Rig) -> Self {
        // A pooler that waits between attempts, or for a free session, is no fault of Cachekeeper.
        let settings = ["default_pool_size = 90", "server_login_retry = 1"];
        let pooler = PgBouncer::start(&rig.postgres, "session", &settings).await.unwrap();
        Self {
            to_redis: Proxy::start(rig.redis.port()).await.unwrap(),
            to_postgres: Proxy::start(pooler.port()).await.unwrap(),
            pooler: Mutex::new(pooler),
            stranger: Redis::start(&[]).await.unwrap(),
        }
    }

    pub fn redis_url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.to_redis.port())
    }

    pub fn postgres_url(&self) -> String {
        format!("postgres://{WORKER}@127.0.0.1:{}/postgres?sslmode=disable", self.to_postgres.port())
    }

    /// Some connections to one of the servers.
    fn some(&self, random: &mut StdRng) -> Vec<Link> {
        let proxy = if random.random_bool(0.5) { &self.to_redis } else { &self.to_postgres };
        let mut links = proxy.links();
        links.retain(|_| random.random_bool(0.5));
        println!(
            "  {} connections to {}",
            links.len(),
            if proxy.port() == self.to_redis.port() { "redis" } else { "postgres" }
        );
        links
    }
}

pub async fn inject(fault: Fault, arena: &Arena, some_time: Duration, random: &mut StdRng) {
    let network = arena.network.as_ref().expect("this run has no network");
    match fault {
        Fault::CutLinks => network.some(random).iter().for_each(Link::cut),
        // Nobody lets go of them: whoever waits has to give them up.
        Fault::HeldLinks => {
            network.some(random).iter().for_each(|link| link.change(|behaviour| behaviour.is_held = true));
        }
        Fault::SlowLinks => {
            let links = network.some(random);
            let delay = Duration::from_millis(random.random_range(5..60));
            links.iter().for_each(|link| link.change(|behaviour| behaviour.delay = delay));
            tokio::time::sleep(some_time * 5).await;
            links.iter().for_each(|link| link.change(|behaviour| behaviour.delay = Duration::ZERO));
        }
        Fault::RehomedLinks => {
            let (stranger, mut links) = (network.stranger.port(), network.to_redis.links());
            links.retain(|_| random.random_bool(0.5));
            arena.is_split.store(true, Ordering::SeqCst);
            arena.redis_life.fetch_add(1, Ordering::SeqCst);
            let began = tokio::time::Instant::now();
            links.iter().for_each(|link| link.change(|behaviour| behaviour.target = stranger));
            wait_until("connections to the other server are given up", async || {
                if links.iter().all(|link| !link.is_open()) {
                    return Ok(());
                }
                // What is in use is looked at each second. What nobody uses stays: whoever uses it again looks first.
                let users = users_of(&network.stranger).await?;
                let is_idle = users.is_empty() && IDLE <= began.elapsed();
                if is_idle { Ok(()) } else { Err(users.join("\n")) }
            })
            .await;
            println!("  {} connections, given up after {:?}", links.len(), began.elapsed());
            arena.redis_life.fetch_add(1, Ordering::SeqCst);
            arena.is_split.store(false, Ordering::SeqCst);
        }
        Fault::KillPooler => {
            let mut pooler = network.pooler.lock().await;
            pooler.kill();
            tokio::time::sleep(some_time).await;
            pooler.start_again().await.unwrap();
        }
        _ => panic!("{fault:?} is not done to the network"),
    }
}

/// Those who have sent commands to a Redis, as it tells of them.
async fn users_of(redis: &Redis) -> Result<Vec<String>, String> {
    let text = |error: redis::RedisError| error.to_string();
    let client = redis::Client::open(redis.url()).map_err(text)?;
    let mut client = client.get_multiplexed_async_connection().await.map_err(text)?;
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut client).await.map_err(text)?;
    let is_user = |line: &&str| !line.contains("cmd=NULL") && !line.contains("cmd=client|list");
    Ok(list.lines().filter(is_user).map(str::to_owned).collect())
}

/// Each fault of the network once; with `CACHEKEEPER_FAULTS` that many, in pairs with those of workers and servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_the_network_breaks_a_promise() {
    suffer_with(World::Network, Fault::ON_NETWORK, Fault::beside_the_network()).await;
}
