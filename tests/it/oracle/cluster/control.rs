//! What guards are needed for: without them a fill that comes late is taken, and the same checks must see it.

use std::time::{Duration, Instant};

use cachekeeper::app::Worker;
use cachekeeper_engine::context::Context;
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::load::put;
use super::super::verdict::Lives;
use super::reading::{Reader, Verdict, judge};
use super::{Arena, Shape, fills, settled};

/// What is not there when its cluster slot comes back is not loaded again: it has no stamp but the one of its last change there.
const UNCACHED: &str = r#"
    [invalidation]
    stream = ""
    [dataset.lazy]
    query = "select i.id, i.version from items i"
    key = "lazy:{id}"
    format = "json"
    feed = "required"
    watch = [{ table = "items", key = { id = "id" } }]
"#;

const ID: i64 = 7;
/// Fills that come late without guards; one of them at least must be found.
const ATTEMPTS: usize = 5;
/// How long a covered read is waited for.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// A row is loaded on a shard; its cluster slot leaves, the row changes, the cluster slot comes back; then the load is stored.
async fn stores_late(is_guarded: bool) -> (bool, Verdict) {
    let arena = Arena::start(Shape { masters: 3, replicas: 0 }, UNCACHED).await;
    let mut context = Context::of_worker(&arena.config).unwrap();
    if !is_guarded {
        context.cluster = context.cluster.map(|cluster| cluster.without_guards());
    }
    let worker = Worker::start_with(arena.config.clone(), context.clone()).await.unwrap();
    settled::caught_up(&arena).await;
    let slot = ClusterSlot::of(format!("lazy:{ID}").as_bytes());
    let servers = arena.servers.lock().await;
    let from = servers.owner(slot, 0).await.unwrap();
    let to = (from + 1) % 3;
    let cluster = context.cluster.as_ref().unwrap();
    let shards = fills::shards(&arena, cluster).await;
    let (_, shard) = shards.iter().find(|(shard, _)| shard.node.serves.contains(slot)).unwrap();
    let loaded = fills::load(shard, &[vec![ID.to_string()]]).await.unwrap();
    servers.move_slot(slot, from, to).await.unwrap();
    settled::caught_up(&arena).await;
    let change = format!("begin; {} commit", put(ID, 1));
    arena.postgres.lock().await.execute(&change).await.unwrap();
    settled::caught_up(&arena).await;
    servers.move_slot(slot, to, from).await.unwrap();
    settled::caught_up(&arena).await;
    drop(servers);
    let is_stored = loaded.store().await;
    let mut lives = Lives::default();
    lives.note_in(&*arena.postgres.lock().await).await;
    let mut reader = Reader::new(&arena, StdRng::seed_from_u64(1));
    let mut verdict = judge(&arena, &lives).await;
    let deadline = Instant::now() + READ_WITHIN;
    // It needs a map first, and a moment at which a watermark covers what it reads.
    while is_stored && verdict.covered == 0 && Instant::now() < deadline {
        reader.read("lazy", ID).await;
        verdict = judge(&arena, &lives).await;
    }
    worker.stop().await;
    (is_stored, verdict)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_guards_the_oracle_finds_a_violation() {
    let mut verdicts = Vec::new();
    // Where the cluster slot is adopted once more after that, for whatever reason, what was stored is loaded again before anybody reads it.
    for _ in 0..ATTEMPTS {
        let (is_stored, verdict) = stores_late(false).await;
        assert!(is_stored, "{verdict}");
        if verdict.violations.iter().any(|text| text.starts_with("C3")) {
            return;
        }
        verdicts.push(verdict);
    }
    panic!("{verdicts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_guards_the_same_fill_is_refused() {
    let (is_stored, verdict) = stores_late(true).await;
    assert!(!is_stored && verdict.violations.is_empty(), "{verdict:?}");
}
