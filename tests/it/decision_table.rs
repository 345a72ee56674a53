//! The decision table, run by the scripts on a real Redis and by the double in memory.

use std::time::Duration;

use cachekeeper_engine::stores::memory::Memory;
use cachekeeper_engine::stores::redis::{
    Answer as Reply, CounterRule, Creation, Epoch, NewEpoch, Precondition, PreconditionFailed, Redis,
    StoreMode,
};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::{Snapshot, Stamp};
use redis::AsyncCommands;

use crate::decisions::{Answer, Broken, Case, Kind, Outcome, Raised, Value, cases, differences};
use crate::support::{RedisRig, register};

const KEY: &str = "k:1";
const TAG: &str = "red";
const LIFE: Duration = Duration::from_secs(600);
/// Around the bytes where a comparison of strings by collation goes wrong.
const XMAX: [u64; 10] = [0, 6, 97, 127, 128, 255, 256, 65_535, 65_536, 1 << 30];

fn stamp(number: u8) -> Stamp {
    if number == 0 { Stamp::ZERO } else { Stamp::new(XMAX[usize::from(number)], 0).unwrap() }
}

fn number(of: Stamp) -> u8 {
    (0..10).find(|number| stamp(*number) == of).unwrap()
}

/// Another name of the same slot: raising its counter raises that of the first, and nothing else.
fn twin(name: &str) -> String {
    let same = |other: &String| slot(other.as_bytes()) == slot(name.as_bytes());
    (0..).map(|n| format!("twin:{n}")).find(same).unwrap()
}

fn batch(value: &str, case: &Case) -> EntryBatch {
    let mut batch = EntryBatch::default();
    let position = match case.is_gone {
        true => batch.push_gone(KEY),
        false => batch.push(KEY, value.as_bytes(), 600_000),
    };
    if case.tag.is_some() {
        batch.tag(position, TAG);
    }
    batch
}

fn old() -> EntryBatch {
    let mut batch = EntryBatch::default();
    batch.push(KEY, b"old", 600_000);
    batch
}

/// The tags that a fill names before it loads.
fn named(case: &Case) -> Vec<String> {
    let is_named = case.tag.is_some() && case.raised != Raised::Other;
    is_named.then(|| TAG.to_owned()).into_iter().collect()
}

fn value(bytes: Option<&[u8]>) -> Value {
    match bytes {
        None => Value::None,
        Some(b"old") => Value::Old,
        Some(b"new") => Value::New,
        Some(other) => panic!("{other:?}"),
    }
}

fn answer(refused: &[usize]) -> Answer {
    if refused.is_empty() { Answer::Stored } else { Answer::Refused }
}

async fn begin(store: &Redis, client: &mut redis::aio::MultiplexedConnection, floor: u8) -> Epoch {
    let _: () = redis::cmd("FLUSHALL").query_async(client).await.unwrap();
    let xmax = XMAX[usize::from(floor)];
    let snapshot: Snapshot = format!("{xmax}:{xmax}:").parse().unwrap();
    let new = NewEpoch {
        incarnation: "first",
        snapshot: &snapshot,
        reason: "test",
        datasets: &[],
        is_renewal: false,
        place: "",
        grace: None,
        was_covered: true,
    };
    let seen = store.metadata("").await.unwrap();
    let Creation::Created(epoch) = store.create_epoch(&seen, &new).await.unwrap() else { panic!() };
    register(store, (&epoch, "first"), "d", ("r1", 1)).await;
    epoch
}

async fn by_the_scripts(
    store: &Redis,
    client: &mut redis::aio::MultiplexedConnection,
    case: &Case,
) -> Outcome {
    let current = begin(store, client, case.floor).await;
    let keys = store.keys().metadata_of(KEY).clone();
    let right = Precondition { epoch: &current, incarnation: "first", dataset: "d", revision: "r1" };
    store.fill(&old(), CounterRule::Raise, None).await.unwrap();
    store.raise(&right, stamp(case.slot), &[KEY], "").await.unwrap();
    store.raise_tags(&right, stamp(case.tag.unwrap_or_default()), "", &[TAG]).await.unwrap();
    let (_, seen) = store.read_with_counters(&[KEY], &named(case), None).await.unwrap();
    match case.raised {
        Raised::None => {}
        Raised::Key => drop(store.invalidate_keys(&[twin(KEY)], "").await.unwrap()),
        Raised::Tag => drop(store.invalidate_tags(&[twin(TAG)]).await.unwrap()),
        Raised::Other => drop(store.invalidate_tags(&["green"]).await.unwrap()),
        // It was made again, and its counters happen to be the same.
        Raised::Table => client.setrange(&keys.counters, 0, "another!").await.unwrap(),
    }
    let other = Epoch::random();
    let mut used = right;
    match case.broken {
        None => {}
        Some(Broken::Epoch) => used.epoch = &other,
        Some(Broken::Incarnation) => used.incarnation = "second",
        Some(Broken::Revision) => used.revision = "r2",
        Some(Broken::Table) => client.rename(&keys.tag_stamps, "kept").await.unwrap(),
    }
    let (entries, at) = (batch("new", case), case.stamp.map(stamp));
    let stamped = at.map(|at| (used, at));
    let reply = match case.kind {
        Kind::Load => store.store(&used, at.unwrap(), &entries, LIFE, StoreMode::Slots).await,
        Kind::Backfill => {
            let mode = StoreMode::Floor { job: "", progress: "", members: None };
            store.store(&used, at.unwrap(), &entries, LIFE, mode).await
        }
        Kind::Fill => store.fill(&entries, CounterRule::Unchanged(&seen), stamped).await,
        Kind::Set => store.fill(&entries, CounterRule::Raise, stamped).await,
    };
    let answer = match reply.unwrap() {
        Reply::Done(refused) => answer(&refused),
        Reply::Failed(PreconditionFailed::Epoch) => Answer::Failed(Broken::Epoch),
        Reply::Failed(PreconditionFailed::Incarnation) => Answer::Failed(Broken::Incarnation),
        Reply::Failed(PreconditionFailed::Revision) => Answer::Failed(Broken::Revision),
        Reply::Failed(
            failed @ (PreconditionFailed::Outdated
            | PreconditionFailed::Members
            | PreconditionFailed::Version
            | PreconditionFailed::Guard
            | PreconditionFailed::Adopted
            | PreconditionFailed::Run),
        ) => {
            panic!("no case is about that: {failed}")
        }
        Reply::Failed(PreconditionFailed::Table) => Answer::Failed(Broken::Table),
    };
    if case.broken == Some(Broken::Table) {
        let _: () = client.rename("kept", &keys.tag_stamps).await.unwrap();
    }
    let bytes: Option<Vec<u8>> = client.get(KEY).await.unwrap();
    let start = 8 + isize::try_from(slot(KEY.as_bytes())).unwrap() * 8;
    let in_slot: Vec<u8> = client.getrange(&keys.stamps, start, start + 7).await.unwrap();
    let sets = store.raise_tags(&right, Stamp::ZERO, "", &[TAG]).await.unwrap();
    let Reply::Done(sets) = sets else { panic!("{sets:?}") };
    let mut is_member = false;
    for (set, _) in sets {
        is_member |= client.sismember::<_, _, bool>(set, KEY).await.unwrap();
    }
    let floor = store.metadata("").await.unwrap().floor.unwrap();
    let fill = store.fill(&entries, CounterRule::Unchanged(&seen), None).await.unwrap();
    Outcome {
        answer,
        value: value(bytes.as_deref()),
        floor: number(floor),
        slot: number(Stamp::from_bytes(in_slot.try_into().unwrap())),
        fills: fill == Reply::Done(Vec::new()),
        is_member,
    }
}

fn in_memory(case: &Case) -> Outcome {
    let mut memory = Memory::new(stamp(case.floor));
    memory.fill(&old(), None, None);
    memory.raise(stamp(case.slot), &[KEY]);
    memory.raise_tag(stamp(case.tag.unwrap_or_default()), TAG);
    let seen = memory.counters(&[KEY], &named(case));
    match case.raised {
        Raised::None => {}
        Raised::Key => drop(memory.invalidate_keys(&[twin(KEY)])),
        Raised::Tag => drop(memory.invalidate_tags(&[twin(TAG)])),
        Raised::Other => drop(memory.invalidate_tags(&["green"])),
        Raised::Table => panic!("the double keeps its counters"),
    }
    let (entries, at) = (batch("new", case), case.stamp.map(stamp));
    let refused = match case.kind {
        Kind::Load => memory.store(at.unwrap(), &entries),
        Kind::Backfill => memory.store_page(at.unwrap(), &entries),
        Kind::Fill => memory.fill(&entries, Some(&seen), at),
        Kind::Set => memory.fill(&entries, None, at),
    };
    // The oldest load that a key still takes tells what its slot or the floor is.
    let limit = |key: &str| {
        let mut probe = EntryBatch::default();
        probe.push(key, b"", 1_000);
        (0..10).find(|number| memory.clone().store(stamp(*number), &probe).is_empty()).unwrap()
    };
    let (floor, slot) = (limit("k:2"), limit(KEY));
    Outcome {
        answer: answer(&refused),
        value: value(memory.get(KEY)),
        floor,
        // Below the floor a slot does not show.
        slot: if slot == floor { case.expected.slot.min(floor) } else { slot },
        fills: memory.clone().fill(&entries, Some(&seen), None).is_empty(),
        is_member: memory.clone().raise_tag(Stamp::ZERO, TAG).contains(KEY),
    }
}

#[tokio::test]
async fn the_scripts_decide_as_the_table_says() {
    let redis = RedisRig::start(&[]).await;
    let (store, mut client) = (redis.store(), redis.client().await);
    let mut outcomes = Vec::new();
    for case in cases() {
        outcomes.push((case, by_the_scripts(&store, &mut client, &case).await));
    }
    let wrong = differences(outcomes.into_iter());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The control: scripts that compare no stamps are caught.
#[tokio::test]
async fn the_table_sees_scripts_that_compare_no_stamps() {
    let redis = RedisRig::start(&[]).await;
    let (store, mut client) = (redis.store().without_stamps(), redis.client().await);
    let mut outcomes = Vec::new();
    for case in cases() {
        outcomes.push((case, by_the_scripts(&store, &mut client, &case).await));
    }
    assert!(10 < differences(outcomes.into_iter()).len());
}

#[test]
fn the_double_in_memory_decides_as_the_table_says() {
    // It holds one epoch and never loses its counters: where a script looks at these, it has nothing to look at.
    let all = cases().into_iter();
    let own =
        all.filter(|case| (case.broken.is_none() || case.stamp.is_none()) && case.raised != Raised::Table);
    let wrong = differences(own.map(|case| (case, in_memory(&case))));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
