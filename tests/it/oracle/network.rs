//! What stands between the workers and the servers: proxies whose connections can be cut, held, delayed and re-homed one by one, and a
//! pooler; plainly, or over TLS. Faults and observers come to the servers directly.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cachekeeper_testkit::certificates::{Authority, Certificate};
use cachekeeper_testkit::proxy::{Link, Proxy};
use cachekeeper_testkit::servers::{PgBouncer, Redis, free_port};
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
    encryption: Option<Encryption>,
}

/// The servers' certificate, and where Redis speaks TLS.
pub struct Encryption {
    authority: Authority,
    server: Certificate,
    redis_port: u16,
}

impl Encryption {
    pub fn new() -> Self {
        let authority = Authority::new().unwrap();
        let server = authority.issue("server", "IP:127.0.0.1").unwrap().for_server().unwrap();
        Self { authority, server, redis_port: free_port().unwrap() }
    }

    /// What the servers' clients trust.
    pub fn trusted(&self) -> PathBuf {
        self.authority.certificate()
    }

    fn files(&self) -> [String; 3] {
        [&self.server.certificate, &self.server.key, &self.trusted()].map(|path| path.display().to_string())
    }

    /// With which Redis is started.
    pub fn of_redis(&self) -> Vec<String> {
        let [certificate, key, trusted] = self.files();
        let port = self.redis_port.to_string();
        let arguments = [
            ["--tls-port", port.as_str()],
            ["--tls-cert-file", &certificate],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &trusted],
            ["--tls-auth-clients", "no"],
        ];
        arguments.as_flattened().iter().map(ToString::to_string).collect()
    }

    fn of_pooler(&self) -> Vec<String> {
        let [certificate, key, _] = self.files();
        vec![
            "client_tls_sslmode = allow".to_owned(),
            format!("client_tls_cert_file = {certificate}"),
            format!("client_tls_key_file = {key}"),
        ]
    }
}

impl Network {
    pub async fn before(rig: &Rig, encryption: Option<Encryption>) -> Self {
        // A pooler that waits between attempts, or for a free session, is no fault of Cachekeeper.
        let mut settings = vec!["default_pool_size = 90".to_owned(), "server_login_retry = 1".to_owned()];
        settings.extend(encryption.iter().flat_map(Encryption::of_pooler));
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let pooler = PgBouncer::start(&rig.postgres, "session", &settings).await.unwrap();
        let redis_port = encryption.as_ref().map_or(rig.redis.port(), |encryption| encryption.redis_port);
        Self {
            to_redis: Proxy::start(redis_port).await.unwrap(),
            to_postgres: Proxy::start(pooler.port()).await.unwrap(),
            pooler: Mutex::new(pooler),
            stranger: Redis::start(&[]).await.unwrap(),
            encryption,
        }
    }

    pub fn redis_url(&self) -> String {
        let scheme = if self.encryption.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}/0", self.to_redis.port())
    }

    pub fn postgres_url(&self) -> String {
        let security = self.trusted().map_or("sslmode=disable".to_owned(), |trusted| {
            format!("sslmode=verify-full&sslrootcert={}", trusted.display())
        });
        format!("postgres://{WORKER}@127.0.0.1:{}/postgres?{security}", self.to_postgres.port())
    }

    /// What workers trust; none: they do not speak TLS.
    pub fn trusted(&self) -> Option<PathBuf> {
        self.encryption.as_ref().map(Encryption::trusted)
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

/// The same over TLS. Certificates have their time, so clocks stay as they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_the_network_breaks_a_promise_over_tls() {
    let mut others = Fault::beside_the_network();
    others.retain(|fault| !Fault::ON_CLOCKS.contains(fault));
    suffer_with(World::Tls, Fault::ON_NETWORK, others).await;
}
