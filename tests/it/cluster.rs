//! A Redis Cluster: what its nodes say, and what they do while cluster slots move and nodes fail.

use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_testkit::servers::Cluster;
use redis::{Cmd, RedisError};

use crate::support::wait_until;

/// A plain client's read at one node, without following where it is sent.
async fn get(cluster: &Cluster, node: usize, key: &str) -> Result<Option<String>, String> {
    let mut connection = cluster.connect(node).await.unwrap();
    let value: Result<_, RedisError> = redis::cmd("GET").arg(key).query_async(&mut connection).await;
    value.map_err(|error| error.code().unwrap_or_default().to_owned())
}

fn set(key: &str, value: &str) -> Cmd {
    redis::cmd("SET").arg(key).arg(value).to_owned()
}

#[tokio::test]
async fn a_server_finds_the_same_cluster_slots() {
    let cluster = Cluster::start(1, 0).await.unwrap();
    let mut connection = cluster.connect(0).await.unwrap();
    let tags = ClusterSlot::all().map(|slot| format!("ck:{{{}}}:shop:g", slot.hash_tag()));
    let odd = ["", "{}", "{}a", "a{", "a{}b{c}", "{{a}}", "ключ{метка}", "a}{b}"].map(str::to_owned);
    let keys: Vec<String> = tags.chain(odd).chain((0..1_000).map(|n| format!("product:{n}"))).collect();
    let mut pipeline = redis::pipe();
    for key in &keys {
        pipeline.cmd("CLUSTER").arg("KEYSLOT").arg(key);
    }
    let found: Vec<u16> = pipeline.query_async(&mut connection).await.unwrap();
    let ours: Vec<u16> = keys.iter().map(|key| ClusterSlot::of(key.as_bytes()).number()).collect();
    assert_eq!(found, ours);
}

#[tokio::test]
async fn cluster_slots_move_half_way_and_turn_back() {
    let cluster = Cluster::start(3, 0).await.unwrap();
    let keys: Vec<String> = (0..4).map(|n| format!("{{product}}:{n}")).collect();
    let slot = ClusterSlot::of(keys[0].as_bytes());
    let from = cluster.owner(slot, 0).await.unwrap();
    let (to, third) = ((from + 1) % 3, (from + 2) % 3);
    for key in &keys {
        cluster.ask::<()>(from, &set(key, "first")).await.unwrap();
    }
    cluster.begin_move(slot, from, to).await.unwrap();
    assert_eq!(cluster.move_keys(slot, from, to, 2).await.unwrap(), 2);
    let mut asked = 0;
    for key in &keys {
        match get(&cluster, from, key).await {
            Ok(value) => assert_eq!(value.as_deref(), Some("first")),
            Err(code) => {
                assert_eq!(code, "ASK");
                asked += 1;
            }
        }
    }
    assert_eq!(asked, 2, "half of the keys have moved");
    cluster.turn_back(slot, from, to).await.unwrap();
    let there: Vec<String> =
        cluster.ask(to, redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot.number()).arg(10)).await.unwrap();
    assert_eq!(there.len(), 2, "what had moved is left where it is not served");
    cluster.begin_move(slot, from, to).await.unwrap();
    while cluster.move_keys(slot, from, to, 10).await.unwrap() != 0 {}
    cluster.end_move(slot, from, to).await.unwrap();
    cluster.move_slot(slot, to, third).await.unwrap();
    assert_eq!(get(&cluster, third, &keys[0]).await, Ok(Some("first".to_owned())));
    assert_eq!(get(&cluster, from, &keys[0]).await, Err("MOVED".to_owned()));
}

#[tokio::test]
async fn a_replica_that_was_cut_off_takes_over_without_what_came_later() {
    let mut cluster = Cluster::start(3, 1).await.unwrap();
    let slot = ClusterSlot::of(b"product:42");
    let master = cluster.owner(slot, 0).await.unwrap();
    let replica = master + 3;
    let mut connection = cluster.connect(master).await.unwrap();
    let _: () = set("product:42", "first").query_async(&mut connection).await.unwrap();
    wait_until("the replica has it", async || {
        let arrived = redis::cmd("WAIT").arg(1).arg(100).query_async::<u64>(&mut connection.clone()).await;
        if matches!(arrived, Ok(1)) { Ok(()) } else { Err(format!("{arrived:?}")) }
    })
    .await;
    cluster.cut_off(replica, master).await.unwrap();
    cluster.ask::<()>(master, &set("product:42", "second")).await.unwrap();
    cluster.node_mut(master).unwrap().kill();
    cluster.take_over(replica).await.unwrap();
    assert_eq!(get(&cluster, replica, "product:42").await, Ok(Some("first".to_owned())));
    wait_until("the others know the new master", async || {
        if cluster.agrees_on(slot, replica).await { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    cluster.node_mut(master).unwrap().start_again().await.unwrap();
}

#[tokio::test]
async fn a_node_is_added_takes_a_cluster_slot_and_is_removed() {
    let mut cluster = Cluster::start(3, 0).await.unwrap();
    let slot = ClusterSlot::of(b"product:42");
    let from = cluster.owner(slot, 0).await.unwrap();
    cluster.ask::<()>(from, &set("product:42", "first")).await.unwrap();
    let added = cluster.add_master(&[]).await.unwrap();
    cluster.move_slot(slot, from, added).await.unwrap();
    assert_eq!(get(&cluster, added, "product:42").await, Ok(Some("first".to_owned())));
    cluster.move_slot(slot, added, from).await.unwrap();
    cluster.remove(added).await.unwrap();
    assert_eq!(get(&cluster, from, "product:42").await, Ok(Some("first".to_owned())));
}

#[tokio::test]
async fn a_master_that_hears_nothing_from_the_others_is_replaced_and_clients_still_reach_it() {
    let cluster = Cluster::start_divisible(3, 1, &[]).await.unwrap();
    cluster.part(0);
    wait_until("the replica has taken over", async || {
        if cluster.is_master(3).await { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert!(cluster.is_master(0).await, "nobody has told it");
    cluster.unite(0);
    wait_until("all agree again", async || cluster.agree(&[0, 1, 2, 3, 4, 5]).await).await;
    assert!(!cluster.is_master(0).await);
}

#[tokio::test]
async fn a_node_that_was_removed_joins_again_as_another_one() {
    let mut cluster = Cluster::start_divisible(3, 0, &[]).await.unwrap();
    let slot = ClusterSlot::of(b"product:42");
    let from = cluster.owner(slot, 0).await.unwrap();
    let added = cluster.add_master(&[]).await.unwrap();
    cluster.remove(added).await.unwrap();
    cluster.join(added).await.unwrap();
    cluster.move_slot(slot, from, added).await.unwrap();
    assert!(cluster.served(added).await.unwrap().contains(slot));
    cluster.agree(&[0, 1, 2, added]).await.unwrap();
}
