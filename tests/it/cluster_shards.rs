//! The scripts on the shards of a real cluster: they act only where a guard says what the caller knows, whatever happens to the
//! cluster slots (R20).

use std::sync::Arc;
use std::time::Duration;

use cachekeeper_config::{Redis as Settings, Secret};
use cachekeeper_engine::stores::redis::{
    Adopted, Adoption, Advance, Advanced, Answer, Cluster, ClusterMap, Epoch, Precondition,
    PreconditionFailed, Redis, ShardAdvance, ShardServer, StoreMode, Survey, Watermark,
};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::keyspace::Keyspace;
use cachekeeper_protocol::stamp::{Snapshot, Stamp};
use cachekeeper_testkit::servers::Cluster as Servers;

use crate::scripts::begin;
use crate::support::wait_until;

const LIFE: Duration = Duration::from_secs(600);
const KEY: &str = "product:42";

/// A shard, as a worker that has just looked knows it.
struct Shard {
    redis: Redis,
    epoch: Epoch,
    position: usize,
    number: u32,
}

struct Rig {
    servers: Servers,
    cluster: Cluster,
    shards: Vec<Shard>,
}

fn slot() -> ClusterSlot {
    ClusterSlot::of(KEY.as_bytes())
}

fn only(slot: ClusterSlot) -> ClusterSlotSet {
    [slot].into_iter().collect()
}

fn batch(keys: &[&str], value: &str) -> EntryBatch {
    let mut batch = EntryBatch::default();
    for key in keys {
        batch.push(key, value.as_bytes(), 600_000);
    }
    batch
}

fn at(xmax: u64) -> Stamp {
    Stamp::new(xmax, 0).unwrap()
}

impl Rig {
    async fn start(replicas: usize) -> Self {
        let servers = Servers::start(3, replicas).await.unwrap();
        let settings = Settings::new(Secret::new(servers.url()));
        let cluster = Cluster::new(&settings, "shop").unwrap().unwrap();
        let map = cluster.map().await.unwrap();
        let mut shards = Vec::new();
        for node in &map.masters {
            let number = Keyspace::new("shop").shard_within(&node.serves, &[]).unwrap();
            let redis = cluster.shard(&node.address, number).unwrap();
            let epoch = begin(&redis).await;
            let port = node.address.1;
            let position = (0..3).find(|at| servers.node(*at).unwrap().port() == port).unwrap();
            shards.push(Shard { redis, epoch, position, number });
        }
        shards.sort_by_key(|shard| shard.position);
        Self { servers, cluster, shards }
    }

    /// The position of the shard whose server serves the key.
    async fn owner(&self) -> usize {
        self.servers.owner(slot(), 0).await.unwrap()
    }

    async fn map(&self) -> ClusterMap {
        self.cluster.map().await.unwrap()
    }

    async fn survey(&self) -> Survey {
        self.cluster.survey(&self.map().await, None).await.unwrap()
    }

    async fn get(&self, position: usize, key: &str) -> Option<String> {
        self.servers.ask(position, redis::cmd("GET").arg(key)).await.unwrap()
    }
}

impl Shard {
    fn precondition(&self) -> Precondition<'_> {
        Precondition { epoch: &self.epoch, incarnation: "life", dataset: "d", revision: "r1" }
    }

    fn on_epoch(&self) -> Precondition<'_> {
        Precondition::of_epoch(&self.epoch, "life")
    }

    async fn adopted(&self) -> Arc<Adopted> {
        self.redis.read_adopted(&self.epoch).await.unwrap().unwrap()
    }

    /// The server of this shard in a survey.
    fn server<'a>(&self, survey: &'a Survey) -> &'a ShardServer {
        let home = self.redis.keys().metadata().home_slot();
        survey.servers.iter().find(|server| server.serves.contains(home)).unwrap()
    }

    async fn run(&self) -> String {
        self.redis.facts().await.unwrap().run_id.unwrap()
    }

    async fn adopt(&self, slots: &[ClusterSlot]) -> Adoption {
        let answer = self.redis.adopt(&self.on_epoch(), &self.run().await, slots).await.unwrap();
        let Answer::Done(adoption) = answer else { panic!("{answer:?}") };
        adoption
    }

    /// Adopts and settles, as if there were no entries.
    async fn take(&self, slots: &[ClusterSlot]) {
        for part in slots.chunks(500) {
            let adoption = self.adopt(part).await;
            assert!(adoption.refused.is_empty(), "{adoption:?}");
            let (run, generation) = (self.run().await, adoption.generation);
            let settled = self.redis.settle(&self.on_epoch(), &run, &generation, part).await.unwrap();
            assert_eq!(settled, Answer::Done(ClusterSlotSet::default()));
        }
    }

    /// Stores under what was known when `adopted` was read.
    async fn store(&self, adopted: &Arc<Adopted>, stamp: Stamp, batch: &EntryBatch) -> Answer<Vec<usize>> {
        let redis = self.redis.with_adopted(Arc::clone(adopted));
        redis.store(&self.precondition(), stamp, batch, LIFE, StoreMode::Slots).await.unwrap()
    }

    async fn advance(
        &self,
        to: &str,
        survey: &Survey,
        adopted: &Arc<Adopted>,
        refused: &ClusterSlotSet,
    ) -> Answer<Advanced> {
        let metadata = self.redis.metadata("feed").await.unwrap();
        let (cursor, to): (String, Snapshot) = (metadata.cursor.unwrap(), to.parse().unwrap());
        let (runs, server) = (survey.runs(), self.server(survey));
        let of_shard = ShardAdvance { server, runs: &runs, adopted, clear: &survey.clear, refused };
        let advance = Advance {
            job: ("feed", metadata.counted),
            from: &cursor,
            to: &to,
            watermark: Some("2026-01-01T00:00:00Z"),
            waits_for_former: false,
            followed: &[],
            of_shard: Some(&of_shard),
        };
        self.redis.advance(&self.epoch, "life", &advance).await.unwrap()
    }

    async fn watermark(&self) -> Watermark {
        self.redis.watermark().await.unwrap().unwrap()
    }

    async fn covers(&self, slot: ClusterSlot) -> bool {
        self.watermark().await.covers.unwrap().contains(slot)
    }
}

const DONE: Answer<Vec<usize>> = Answer::Done(Vec::new());
const GUARD: Answer<Vec<usize>> = Answer::Failed(PreconditionFailed::Guard);

#[tokio::test]
async fn a_load_is_stored_only_under_the_adoption_that_it_began_in() {
    let rig = Rig::start(0).await;
    let shard = &rig.shards[rig.owner().await];
    let before = shard.adopted().await;
    assert_eq!(shard.store(&before, at(9), &batch(&[KEY], "none")).await, GUARD);
    assert_eq!(rig.get(shard.position, KEY).await, None);

    let first = shard.adopt(&[slot()]).await;
    let adopted = shard.adopted().await;
    assert_eq!((adopted.pending(), adopted.settled()), (only(slot()), ClusterSlotSet::default()));
    assert_eq!(shard.store(&before, at(9), &batch(&[KEY], "none")).await, GUARD);
    assert_eq!(shard.store(&adopted, at(9), &batch(&[KEY], "nine")).await, DONE);
    // The stamp rule is what it is on a single Redis.
    assert_eq!(shard.store(&adopted, at(7), &batch(&[KEY], "seven")).await, Answer::Done(vec![0]));

    let second = shard.adopt(&[slot()]).await;
    assert_eq!(shard.store(&adopted, at(12), &batch(&[KEY], "late")).await, GUARD);
    assert_eq!(rig.get(shard.position, KEY).await.as_deref(), Some("nine"));
    let run = shard.run().await;
    let settle = async |adoption: &Adoption| {
        let (on, generation) = (shard.on_epoch(), &adoption.generation);
        shard.redis.settle(&on, &run, generation, &[slot()]).await.unwrap()
    };
    assert_eq!(settle(&first).await, Answer::Done(only(slot())), "an older adoption settles nothing");
    assert_eq!(settle(&second).await, Answer::Done(ClusterSlotSet::default()));
    assert_eq!(shard.adopted().await.settled(), only(slot()));
}

#[tokio::test]
async fn a_batch_over_many_cluster_slots_is_stored_or_refused_as_a_whole() {
    let rig = Rig::start(0).await;
    let map = rig.map().await;
    let shard = &rig.shards[0];
    let home = shard.redis.keys().metadata().home_slot();
    let serves = map.master_of(home).unwrap().serves.clone();
    let all: Vec<String> = (0..3_000).map(|n| format!("product:{n}")).collect();
    let is_served = |key: &&String| serves.contains(ClusterSlot::of(key.as_bytes()));
    let keys: Vec<&str> = all.iter().filter(is_served).take(600).map(String::as_str).collect();
    shard.take(&serves.iter().collect::<Vec<_>>()).await;
    let adopted = shard.adopted().await;
    assert_eq!(adopted.settled(), serves);
    let mut tagged = batch(&keys, "first");
    for position in 0..600 {
        tagged.tag(position, "all");
    }
    assert_eq!(shard.store(&adopted, at(9), &tagged).await, DONE);
    assert_eq!(rig.get(shard.position, keys[599]).await.as_deref(), Some("first"));

    let moved = ClusterSlot::of(keys[300].as_bytes());
    rig.servers.move_slot(moved, shard.position, 1).await.unwrap();
    assert_eq!(shard.store(&adopted, at(12), &batch(&keys, "second")).await, GUARD);
    assert_eq!(rig.get(shard.position, keys[0]).await.as_deref(), Some("first"));

    let here: Vec<&str> =
        keys.iter().copied().filter(|key| ClusterSlot::of(key.as_bytes()) != moved).collect();
    let redis = shard.redis.with_adopted(adopted);
    let raised = redis.raise(&shard.precondition(), at(13), &here, "").await.unwrap();
    assert_eq!(raised, Answer::Done((0..here.len()).collect()));
    let deleted = redis.invalidate(&shard.precondition(), at(13), &here, "", "").await.unwrap();
    assert_eq!(deleted, Answer::Done(here.len() as u64));
    assert_eq!(rig.get(shard.position, keys[0]).await, None);
}

#[tokio::test]
async fn nothing_is_written_in_a_cluster_slot_that_moves_or_has_moved() {
    let rig = Rig::start(0).await;
    let from = rig.owner().await;
    let to = (from + 1) % 3;
    let (source, target) = (&rig.shards[from], &rig.shards[to]);
    source.take(&[slot()]).await;
    let adopted = source.adopted().await;
    assert_eq!(source.store(&adopted, at(9), &batch(&[KEY], "nine")).await, DONE);
    let late = batch(&[KEY], "late");

    rig.servers.begin_move(slot(), from, to).await.unwrap();
    assert_eq!(source.store(&adopted, at(10), &late).await, GUARD, "while it moves, all keys are here");
    assert_eq!(source.adopt(&[slot()]).await.refused, only(slot()));
    assert_eq!(target.adopt(&[slot()]).await.refused, only(slot()));
    rig.servers.turn_back(slot(), from, to).await.unwrap();
    assert_eq!(source.store(&adopted, at(10), &batch(&[KEY], "ten")).await, DONE, "it has turned back");

    rig.servers.begin_move(slot(), from, to).await.unwrap();
    rig.servers.move_key(KEY.as_bytes(), from, to).await.unwrap();
    assert_eq!(source.store(&adopted, at(11), &late).await, GUARD, "half way");
    rig.servers.turn_back(slot(), from, to).await.unwrap();
    let left = rig.survey().await;
    assert_eq!(ClusterSlotSet::all().without(&left.clear), only(slot()), "an entry is left elsewhere");

    rig.servers.move_slot(slot(), from, to).await.unwrap();
    assert_eq!(source.store(&adopted, at(12), &late).await, GUARD);
    let unknown = target.adopted().await;
    assert_eq!(target.store(&unknown, at(12), &late).await, GUARD, "its guard names the source");
    target.take(&[slot()]).await;
    let second = target.adopted().await;
    assert_eq!(target.store(&second, at(12), &batch(&[KEY], "twelve")).await, DONE);

    rig.servers.move_slot(slot(), to, from).await.unwrap();
    assert_eq!(target.store(&second, at(13), &late).await, GUARD);
    assert_eq!(source.store(&adopted, at(13), &late).await, GUARD, "others have had it meanwhile");
    assert_eq!(rig.get(from, KEY).await.as_deref(), Some("twelve"));
}

#[tokio::test]
async fn a_watermark_covers_only_settled_cluster_slots_that_are_served_and_clear() {
    let rig = Rig::start(0).await;
    let from = rig.owner().await;
    let to = (from + 1) % 3;
    let (source, target) = (&rig.shards[from], &rig.shards[to]);
    let none = ClusterSlotSet::default();
    let done = Answer::Done(Advanced::Done);
    source.adopt(&[slot()]).await;
    let survey = rig.survey().await;
    let pending = source.adopted().await;
    assert_eq!(source.advance("10:10:", &survey, &pending, &none).await, done);
    assert!(!source.covers(slot()).await, "its entries were not loaded again");
    source.take(&[slot()]).await;
    let stale = Answer::Failed(PreconditionFailed::Adopted);
    assert_eq!(source.advance("11:11:", &survey, &pending, &none).await, stale);
    assert_eq!(source.advance("11:11:", &survey, &source.adopted().await, &none).await, done);
    let watermark = source.watermark().await;
    assert_eq!((watermark.covers, watermark.snapshot.as_str()), (Some(only(slot())), "11:11:"));
    assert_eq!(watermark.node.as_ref(), Some(&source.server(&survey).node));
    assert_eq!(watermark.runs, Some(survey.runs()));

    // What is adopted again is not covered by what was published before.
    source.adopt(&[slot()]).await;
    assert!(!source.covers(slot()).await);
    source.take(&[slot()]).await;
    let adopted = source.adopted().await;
    assert_eq!(source.advance("12:12:", &survey, &adopted, &none).await, done);
    assert!(source.covers(slot()).await);

    // A change of it was refused: it is dropped, and its load comes too late.
    assert_eq!(source.advance("13:13:", &survey, &adopted, &only(slot())).await, done);
    assert!(!source.covers(slot()).await && source.adopted().await.all().is_empty());

    source.take(&[slot()]).await;
    let adopted = source.adopted().await;
    assert_eq!(source.advance("14:14:", &survey, &adopted, &none).await, done);
    rig.servers.move_slot(slot(), from, to).await.unwrap();
    assert_eq!(source.advance("15:15:", &survey, &adopted, &none).await, stale, "it is not served");
    let survey = rig.survey().await;
    assert_eq!(source.advance("15:15:", &survey, &adopted, &none).await, done);
    assert!(!source.covers(slot()).await && source.adopted().await.all().is_empty());
    target.take(&[slot()]).await;
    assert_eq!(target.advance("15:15:", &survey, &target.adopted().await, &none).await, done);
    assert!(target.covers(slot()).await);

    // An entry that another node holds: nobody knows which of the two is the newer.
    let (slot, other) = (slot(), (to + 1) % 3);
    rig.servers.begin_move(slot, to, other).await.unwrap();
    let survey = rig.survey().await;
    assert!(!survey.clear.contains(slot), "it shows as moving");
    rig.servers.turn_back(slot, to, other).await.unwrap();
    assert_eq!(target.advance("16:16:", &survey, &target.adopted().await, &none).await, done);
    assert!(!target.covers(slot).await && target.adopted().await.all().is_empty());
}

#[tokio::test]
async fn a_survey_goes_by_the_last_one_only_while_nothing_has_changed() {
    let rig = Rig::start(0).await;
    let from = rig.owner().await;
    let to = (from + 1) % 3;
    let shard = &rig.shards[from];
    shard.take(&[slot()]).await;
    assert_eq!(shard.store(&shard.adopted().await, at(9), &batch(&[KEY], "nine")).await, DONE);
    let first = rig.survey().await;
    assert_eq!(first.clear, ClusterSlotSet::all());
    let look = async |last: &Survey| rig.cluster.survey(&rig.map().await, Some(last)).await.unwrap();
    rig.servers.begin_move(slot(), from, to).await.unwrap();
    let second = look(&first).await;
    assert!(!second.clear.contains(slot()), "it shows as moving");
    rig.servers.move_key(KEY.as_bytes(), from, to).await.unwrap();
    rig.servers.turn_back(slot(), from, to).await.unwrap();
    let third = look(&second).await;
    assert!(!third.clear.contains(slot()), "an entry is left");
    rig.servers.ask::<()>(to, redis::cmd("FLUSHALL").arg("SYNC")).await.unwrap();
    wait_until("all are asked again, though nothing else has changed", async || {
        let survey = look(&third).await;
        if survey.clear.contains(slot()) { Ok(()) } else { Err(format!("{survey:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_was_known_of_a_server_does_not_hold_after_a_failover() {
    let mut rig = Rig::start(1).await;
    let position = rig.owner().await;
    let replica = position + 3;
    let none = ClusterSlotSet::default();
    rig.shards[position].take(&[slot()]).await;
    let survey = rig.survey().await;
    let adopted = rig.shards[position].adopted().await;
    let answer = rig.shards[position].advance("10:10:", &survey, &adopted, &none).await;
    assert_eq!(answer, Answer::Done(Advanced::Done));
    wait_until("the replica has the guard", async || {
        let guard = Keyspace::new("shop").guard(slot());
        let mut connection = rig.servers.connect(replica).await.map_err(|error| error.to_string())?;
        let mut read = redis::pipe();
        read.cmd("READONLY").ignore().cmd("GET").arg(guard);
        let (guard,): (Option<String>,) =
            read.query_async(&mut connection).await.map_err(|error| error.to_string())?;
        guard.map(drop).ok_or_else(|| "it has not".to_owned())
    })
    .await;
    rig.servers.cut_off(replica, position).await.unwrap();
    let answer = rig.shards[position].store(&adopted, at(12), &batch(&[KEY], "lost")).await;
    assert_eq!(answer, DONE);
    rig.servers.node_mut(position).unwrap().kill();
    rig.servers.take_over(replica).await.unwrap();

    wait_until("all know the new master", async || {
        if rig.servers.agrees_on(slot(), replica).await { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let map = rig.map().await;
    let node = map.master_of(slot()).unwrap();
    assert_eq!(node.address.1, rig.servers.node(replica).unwrap().port());
    let number = rig.shards[position].number;
    let redis = rig.cluster.shard(&node.address, number).unwrap();
    let shard = Shard { redis, epoch: rig.shards[position].epoch, position: replica, number };
    let run = Answer::Failed(PreconditionFailed::Run);
    let mut before = rig.survey().await;
    let now = before.clone();
    for server in before.servers.iter_mut().filter(|server| server.serves.contains(slot())) {
        server.run.clone_from(&shard.server(&survey).run);
    }
    assert_eq!(shard.advance("20:20:", &before, &adopted, &none).await, run);
    let old_run = &shard.server(&survey).run;
    let answer = shard.redis.adopt(&shard.on_epoch(), old_run, &[slot()]).await.unwrap();
    assert_eq!(answer, Answer::Failed(PreconditionFailed::Run));

    // Where any server has another run, a guard that names another shard drops its cluster slot.
    let guard = rig.shards[position].redis.keys().guard(slot());
    let foreign = format!("{} 0123456789abcdef", number + 1);
    rig.servers.ask::<()>(replica, redis::cmd("SET").arg(&guard).arg(foreign)).await.unwrap();
    let answer = shard.advance("20:20:", &now, &shard.adopted().await, &none).await;
    assert_eq!(answer, Answer::Done(Advanced::Done));
    assert!(!shard.covers(slot()).await && shard.adopted().await.all().is_empty());
}

#[tokio::test]
async fn a_node_that_was_flushed_has_adopted_nothing() {
    let rig = Rig::start(0).await;
    let position = rig.owner().await;
    let shard = &rig.shards[position];
    shard.take(&[slot()]).await;
    let adopted = shard.adopted().await;
    rig.servers.ask::<()>(position, &redis::cmd("FLUSHALL")).await.unwrap();
    assert_eq!(shard.store(&adopted, at(9), &batch(&[KEY], "nine")).await, GUARD);
    assert!(shard.redis.read_adopted(&shard.epoch).await.unwrap().is_none());
    assert!(!shard.redis.metadata("").await.unwrap().is_whole);
    let epoch = begin(&shard.redis).await;
    let shard = Shard { redis: shard.redis.clone(), epoch, position, number: shard.number };
    assert!(shard.adopted().await.all().is_empty());
    assert_eq!(shard.store(&adopted, at(9), &batch(&[KEY], "nine")).await, GUARD);
    shard.take(&[slot()]).await;
    assert_eq!(shard.store(&shard.adopted().await, at(9), &batch(&[KEY], "nine")).await, DONE);
    // The table alone is lost: then the epoch is over.
    let table = &shard.redis.keys().metadata().adopted;
    rig.servers.ask::<()>(position, redis::cmd("DEL").arg(table)).await.unwrap();
    assert!(!shard.redis.metadata("").await.unwrap().is_whole);
}
