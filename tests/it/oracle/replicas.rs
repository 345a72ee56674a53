//! Servers with replicas: Redis by three sentinels, Postgres with a standby that loses no commit. Workers and libraries find the masters
//! themselves; observers and programs come to an address that is led to them.

use std::sync::atomic::Ordering;

use cachekeeper_testkit::proxy::Proxy;
use cachekeeper_testkit::servers::{Postgres, Redis, Sentinels};
use tokio::sync::Mutex;

use super::faults::Fault;
use super::schema::WORKER;
use super::verdict::Lives;
use super::{Arena, World, suffer_with};
use crate::support::{Rig, wait_until};

/// The replicas of a run, and the addresses of the masters.
pub struct Replicas {
    redis: Mutex<Redis>,
    sentinels: Sentinels,
    standby: Mutex<Postgres>,
    to_redis: Proxy,
    to_postgres: Proxy,
    hosts: String,
}

impl Replicas {
    pub async fn beside(rig: &Rig) -> Self {
        let master = format!("127.0.0.1 {}", rig.redis.port());
        let redis = Redis::start(&["--replicaof", &master, "--enable-debug-command", "yes"]).await.unwrap();
        let standby = rig.postgres.standby(None).await.unwrap();
        loses_no_commit(&rig.postgres).await;
        Self {
            redis: Mutex::new(redis),
            sentinels: Sentinels::start(rig.redis.port(), &[]).await.unwrap(),
            hosts: format!("127.0.0.1:{},127.0.0.1:{}", rig.postgres.port(), standby.port()),
            standby: Mutex::new(standby),
            to_redis: Proxy::start(rig.redis.port()).await.unwrap(),
            to_postgres: Proxy::start(rig.postgres.port()).await.unwrap(),
        }
    }

    /// How workers come to Postgres.
    pub fn postgres_url(&self) -> String {
        format!("postgres://{WORKER}@{}/postgres?sslmode=disable&target_session_attrs=read-write", self.hosts)
    }

    /// How workers come to Redis.
    pub fn redis_url(&self) -> String {
        self.sentinels.url()
    }

    /// How anybody comes to the master.
    pub fn redis_address(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.to_redis.port())
    }

    /// How a role comes to the primary.
    pub fn postgres_address(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/postgres?sslmode=disable", self.to_postgres.port())
    }
}

/// From now on a commit waits for the standby.
async fn loses_no_commit(primary: &Postgres) {
    wait_until("the standby follows", async || {
        let mut session = primary.session().await.map_err(|error| error.to_string())?;
        let sql = "select count(*)::text from pg_stat_replication where state = 'streaming'";
        let following = session.text(sql).await.map_err(|error| error.to_string())?;
        if following.as_deref() == Some("1") { Ok(()) } else { Err(format!("{following:?}")) }
    })
    .await;
    primary.execute("alter system set synchronous_standby_names = '*'").await.unwrap();
    primary.execute("select pg_reload_conf()").await.unwrap();
}

pub async fn inject(fault: Fault, arena: &Arena, lives: &mut Lives) {
    let replicas = arena.replicas.as_ref().expect("this run has no replicas");
    if fault == Fault::PromotedStandby {
        promote(arena, replicas, lives).await;
    } else {
        fail_over(fault, arena, replicas).await;
    }
}

/// The primary is gone, its standby takes its place, and gets a standby of its own.
async fn promote(arena: &Arena, replicas: &Replicas, lives: &mut Lives) {
    let mut standby = replicas.standby.lock().await;
    let mut rig = arena.rig.lock().await;
    let port = rig.postgres.port();
    rig.postgres.kill();
    standby.promote().await.unwrap();
    // It has none itself.
    standby.execute("alter system reset synchronous_standby_names").await.unwrap();
    standby.execute("select pg_reload_conf()").await.unwrap();
    std::mem::swap(&mut rig.postgres, &mut standby);
    replicas.to_postgres.lead_to(rig.postgres.port());
    drop(rig);
    lives.begin(arena).await;
    let rig = arena.rig.lock().await;
    *standby = rig.postgres.standby(Some(port)).await.unwrap();
    loses_no_commit(&rig.postgres).await;
}

/// Sentinels make the replica the master: because the master is lost, or because they are asked to.
async fn fail_over(fault: Fault, arena: &Arena, replicas: &Replicas) {
    let mut replica = replicas.redis.lock().await;
    let mut rig = arena.rig.lock().await;
    let before = rig.redis.port();
    // What the master had said before may not be known at the other one.
    arena.is_split.store(true, Ordering::SeqCst);
    arena.redis_life.fetch_add(1, Ordering::SeqCst);
    if fault == Fault::LostMaster {
        rig.redis.kill();
    } else {
        wait_until("the sentinels take the order", async || {
            replicas.sentinels.fail_over().await.map_err(|error| error.to_string())
        })
        .await;
    }
    wait_until("all sentinels name another master", async || {
        for position in 0..3 {
            let named = replicas.sentinels.master(position).await.map_err(|error| error.to_string())?;
            if named == before {
                return Err(format!("{position} still names {before}"));
            }
        }
        Ok(())
    })
    .await;
    std::mem::swap(&mut rig.redis, &mut replica);
    // What was read meanwhile was read at the former one.
    arena.redis_life.fetch_add(1, Ordering::SeqCst);
    replicas.to_redis.lead_to(rig.redis.port());
    if fault == Fault::LostMaster {
        replica.start_again().await.unwrap();
    }
    wait_until("the former master is a replica", async || {
        let client = redis::Client::open(replica.url()).map_err(|error| error.to_string())?;
        let mut client =
            client.get_multiplexed_async_connection().await.map_err(|error| error.to_string())?;
        let info = redis::cmd("INFO").arg("replication").query_async::<String>(&mut client).await;
        let info = info.map_err(|error| error.to_string())?;
        if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
    })
    .await;
    arena.redis_life.fetch_add(1, Ordering::SeqCst);
    arena.is_split.store(false, Ordering::SeqCst);
}

/// Each failover once; with `CACHEKEEPER_FAULTS` that many, in pairs with faults of workers and servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_failover_breaks_a_promise() {
    suffer_with(World::Replicas, Fault::FAILOVERS, Fault::beside_failovers()).await;
}
