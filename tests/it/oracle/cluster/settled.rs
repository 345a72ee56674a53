//! Until when a run waits after a fault, and what must be so then.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cachekeeper_engine::stores::redis::Watermark;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::stamp::Snapshot;
use cachekeeper_testkit::servers::Cluster as Servers;
use tokio::time::Instant;

use super::Arena;

/// By when all has to be right again; most of it is for a busy machine, whose nodes may take each other's place meanwhile.
const WITHIN: Duration = Duration::from_secs(180);

/// Waits until the watermark of all shards has passed what is committed now, holds for everything and every cluster slot.
pub async fn caught_up(arena: &Arena) {
    let began = Instant::now();
    let was_gentle = arena.is_gentle.load(Ordering::SeqCst);
    let now: Snapshot = arena.text("select pg_current_snapshot()::text").await.parse().unwrap();
    loop {
        let last = match is_caught_up(arena, &now).await {
            Ok(()) => break,
            Err(last) => last,
        };
        if began + Duration::from_secs(10) <= Instant::now() {
            // On a busy machine whole tables are written faster than they are revalidated.
            arena.is_gentle.store(true, Ordering::SeqCst);
        }
        assert!(
            Instant::now() < began + WITHIN,
            "not right within {WITHIN:?}: {last}\n{}",
            shards(arena).await
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    arena.is_gentle.store(was_gentle, Ordering::SeqCst);
}

/// The watermark of the whole.
pub async fn watermark(arena: &Arena) -> Result<Watermark, String> {
    let cluster = arena.cluster();
    let map = cluster.map().await.map_err(|error| error.to_string())?;
    let placed = cluster.placed_shards(&map, &[]).await.map_err(|error| error.to_string())?;
    let watermark = cluster.watermark(&map, &placed).await.map_err(|error| error.to_string())?;
    watermark.ok_or_else(|| "there is no watermark of the whole".to_owned())
}

async fn is_caught_up(arena: &Arena, now: &Snapshot) -> Result<(), String> {
    let watermark = watermark(arena).await?;
    let incarnation = arena.text("select id::text from cachekeeper.incarnation").await;
    let at: Snapshot = watermark.snapshot.parse().unwrap();
    let is_whole = watermark.covers == Some(ClusterSlotSet::all()) && watermark.not_covered.is_empty();
    if is_whole && watermark.incarnation == incarnation && now.stamp() <= at.stamp() {
        Ok(())
    } else {
        Err(format!("now {}, {watermark:?}", now.as_str()))
    }
}

/// What each shard says of itself.
async fn shards(arena: &Arena) -> String {
    let cluster = arena.cluster();
    let (Ok(map), mut lines) = (cluster.map().await, Vec::new()) else { return "no node answers".to_owned() };
    let placed = cluster.placed_shards(&map, &[]).await.unwrap_or_default();
    for shard in placed {
        let redis = cluster.shard(&shard.node.address, shard.number).unwrap();
        let (watermark, metadata) = (redis.watermark().await, redis.metadata("").await);
        lines.push(format!("{shard:?}: {watermark:?} {metadata:?}"));
    }
    let survey = cluster.survey(&map, None).await;
    lines.push(format!(
        "not clear: {:?}",
        survey.map(|survey| ClusterSlotSet::all().without(&survey.clear).to_string())
    ));
    lines.join("\n")
}

/// At rest what is in Redis is what the query says, without anybody's help.
pub async fn agrees(arena: &Arena) {
    let rows = arena.text(
        "select coalesce(string_agg(concat_ws(' ', i.id, i.version, i.grp, g.version), ',' order by i.id), '')
         from items i left join groups g on g.id = i.grp",
    );
    let (mut items, mut lazy) = (BTreeMap::new(), BTreeMap::new());
    for row in rows.await.split(',').filter(|row| !row.is_empty()) {
        let words: Vec<&str> = row.split(' ').collect();
        let [id, version, group, of_group] = words[..] else { panic!("{row}") };
        let item =
            format!("{{\"id\":{id},\"version\":{version},\"grp\":{group},\"group_version\":{of_group}}}");
        items.insert(format!("item:{id}"), item);
        lazy.insert(format!("lazy:{id}"), format!("{{\"id\":{id},\"version\":{version}}}"));
    }
    let servers = arena.servers.lock().await;
    let mut found = BTreeMap::new();
    for position in 0..servers.len() {
        if servers.is_master(position).await {
            found.extend(entries(&servers, position).await);
        }
    }
    for (key, value) in &found {
        let expected = items.get(key).or_else(|| lazy.get(key));
        assert_eq!(Some(value), expected, "{key} is not what its row is");
    }
    let missing: Vec<&String> = items.keys().filter(|key| !found.contains_key(*key)).collect();
    assert!(missing.is_empty(), "covered, and without their entries: {missing:?}");
}

/// All entries of a node, also of cluster slots that it does not serve.
async fn entries(servers: &Servers, position: usize) -> BTreeMap<String, String> {
    let mut connection = servers.connect(position).await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    let mut found = BTreeMap::new();
    for key in keys.into_iter().filter(|key| !key.starts_with("ck:")) {
        let value: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
        // One that has expired meanwhile is none.
        found.extend(value.map(|value| (key, value)));
    }
    found
}
