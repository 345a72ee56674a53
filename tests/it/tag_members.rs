//! Members of tags that a backfill adds before its stores, grouped by tag: the stores rely on them only while all of it is there
//! (R8; X37, X38, X39, K15).

use std::time::Duration;

use cachekeeper_engine::backfill::{BackfillOptions, Progress, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::load::LoadReport;
use cachekeeper_engine::stores::redis::{
    AddedMembers, Answer, Claim, Epoch, Precondition, PreconditionFailed, Redis, Settled, StoreMode,
};
use cachekeeper_engine::{epoch, events, invalidate};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::event::Op;
use cachekeeper_protocol::stamp::Stamp;
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

use crate::scripts::begin;
use crate::support::{RedisRig, Rig, wait_until};

const LIFE: Duration = Duration::from_secs(600);

struct Job {
    rig: RedisRig,
    store: Redis,
    epoch: Epoch,
}

impl Job {
    async fn start() -> Self {
        let rig = RedisRig::start(&[]).await;
        let store = rig.store();
        let epoch = begin(&store).await;
        Self { rig, store, epoch }
    }

    fn precondition(&self) -> Precondition<'_> {
        Precondition { epoch: &self.epoch, incarnation: "life", dataset: "d", revision: "r1" }
    }

    async fn add(&self, number: u64) -> Answer<Option<AddedMembers>> {
        let members = [("red", vec!["k:1", "k:2"]), ("blue", vec!["k:1"])];
        self.store.add_members(&self.precondition(), ("job", number), LIFE, &members).await.unwrap()
    }

    async fn added(&self, number: u64) -> AddedMembers {
        match self.add(number).await {
            Answer::Done(Some(added)) => added,
            other => panic!("{other:?}"),
        }
    }

    async fn store_with(&self, added: AddedMembers) -> Answer<Vec<usize>> {
        let mut batch = EntryBatch::default();
        for (key, tags) in [("k:1", ["red", "blue"].as_slice()), ("k:2", &["red"])] {
            let position = batch.push(key, b"value", 60_000);
            tags.iter().for_each(|tag| batch.tag(position, tag));
        }
        let mode = StoreMode::Floor { job: "job", progress: "", members: Some(&added) };
        let stamp = Stamp::new(1_000, 0).unwrap();
        self.store.store(&self.precondition(), stamp, &batch, LIFE, mode).await.unwrap()
    }

    async fn values(&self) -> Vec<Option<String>> {
        self.rig.client().await.mget(&["k:1", "k:2"]).await.unwrap()
    }
}

const LOST: Answer<Vec<usize>> = Answer::Failed(PreconditionFailed::Members);

#[tokio::test]
async fn stores_rely_on_members_that_are_there_and_the_job_ends_with_its_count() {
    let job = Job::start().await;
    let added = job.added(1).await;
    assert_eq!(job.store_with(added).await, Answer::Done(vec![]));
    assert_eq!(job.values().await, [Some("value".to_owned()), Some("value".to_owned())]);
    let high = Stamp::new(2_000, 0).unwrap();
    let sets = job.store.raise_tags(&job.precondition(), high, "", &["red"]).await.unwrap();
    let Answer::Done(sets) = sets else { panic!("{sets:?}") };
    assert_eq!(sets.iter().map(|(_, members)| members).sum::<u64>(), 2, "{sets:?}");
    // Both scripts were counted.
    let settled = Settled::Nothing;
    let ended = job.store.finish_job(&job.precondition(), "job", 2, settled).await.unwrap();
    assert_eq!(ended, Answer::Done(Claim::Accepted));
    let mut client = job.rig.client().await;
    let fields: Vec<String> = client.hkeys(&job.store.keys().metadata().meta).await.unwrap();
    assert!(!fields.iter().any(|field| field.ends_with(":job")), "{fields:?}");
}

#[tokio::test]
async fn x37_members_that_a_rollback_took_are_not_relied_on() {
    let job = Job::start().await;
    let first = job.added(1).await;
    let second = job.added(2).await;
    let mut client = job.rig.client().await;
    let meta = &job.store.keys().metadata().meta;
    // Redis is a copy of before the second script.
    let _: () = client.hset(meta, "members:job", 1).await.unwrap();
    assert_eq!(job.store_with(second).await, LOST);
    assert_eq!(job.values().await, [None, None]);
    assert_eq!(job.add(3).await, Answer::Done(None), "what came before it is lost");
    assert_eq!(job.store_with(first).await, Answer::Done(vec![]), "what the copy has counts");
}

#[tokio::test]
async fn x38_members_that_were_removed_are_not_relied_on() {
    let job = Job::start().await;
    let at = Stamp::new(1_000, 0).unwrap();
    for (number, by_application) in [(1, false), (2, true)] {
        let added = job.added(number).await;
        let raised = job.store.raise_tags(&job.precondition(), at, "", &["blue"]).await.unwrap();
        let Answer::Done(sets) = raised else { panic!("{raised:?}") };
        let (set, _) = sets.first().unwrap();
        if by_application {
            job.store.invalidate_keys(&["k:1"], set).await.unwrap();
        } else {
            job.store.invalidate(&job.precondition(), at, &["k:1"], "", set).await.unwrap();
        }
        assert_eq!(job.store_with(added).await, LOST);
        assert_eq!(job.values().await, [None, None]);
    }
    // A removal that removes nothing does no harm.
    let added = job.added(3).await;
    job.store.invalidate(&job.precondition(), at, &["k:1"], "", "ck:{test:0}:tag:none:1").await.unwrap();
    assert_eq!(job.store_with(added).await, Answer::Done(vec![]));
}

#[tokio::test]
async fn x39_no_entry_outlives_the_window_that_its_members_are_in() {
    let job = Job::start().await;
    let added = job.added(1).await;
    let now: (u64, u64) = redis::cmd("TIME").query_async(&mut job.rig.client().await).await.unwrap();
    assert!(now.0 + LIFE.as_secs() < added.window);
    let late = AddedMembers { window: now.0 + LIFE.as_secs() - 1, ..added };
    assert_eq!(job.store_with(late).await, LOST);
    assert_eq!(job.store_with(added).await, Answer::Done(vec![]));
    // A window that was dropped counts as a removal: the clock may be set back afterwards.
    let mut client = job.rig.client().await;
    let windows = job.store.keys().metadata().windows.clone();
    let _: i64 = client.sadd(format!("{windows}:1000"), "old").await.unwrap();
    let _: i64 = client.zadd(&windows, "1000", 1_000).await.unwrap();
    let dropped = job.store.drop_old_windows(10).await.unwrap();
    assert_eq!((dropped.sets, dropped.has_more), (1, false));
    assert_eq!(job.store_with(added).await, LOST);
}

#[tokio::test]
async fn k15_a_tag_that_was_raised_refuses_whoever_added_the_members() {
    let job = Job::start().await;
    let added = job.added(1).await;
    let high = Stamp::new(2_000, 0).unwrap();
    job.store.raise_tags(&job.precondition(), high, "", &["blue"]).await.unwrap();
    assert_eq!(job.store_with(added).await, LOST);
    assert_eq!(job.values().await, [None, None]);
}

/// The script that adds members is the first of a page to notice that the dataset was defined anew.
#[tokio::test]
async fn members_of_a_former_definition_are_not_added() {
    let job = Job::start().await;
    let former = Precondition { revision: "r0", ..job.precondition() };
    let members = [("red", vec!["k:1"])];
    let answer = job.store.add_members(&former, ("job", 1), LIFE, &members).await.unwrap();
    assert_eq!(answer, Answer::Failed(PreconditionFailed::Revision));
    let mut client = job.rig.client().await;
    let sets: Vec<String> = client.keys("ck:{test:0}:tag:*").await.unwrap();
    assert!(sets.is_empty(), "{sets:?}");
}

const SPREAD: &str = "create table t (id int primary key, name text, part int);
    insert into t select n, 'name ' || n, n % 499 from generate_series(1, 40000) n;";

const TAGGED: &str = "[dataset.t]\nquery = \"select id, name, part from t\"\nkey = \"t:{id}\"\nformat = \"json\"\nwarm = {}\n\
    tags = [\"part:{part}\", \"all\"]";

/// A backfill that is slow enough for something to happen in its middle.
async fn interrupted(context: &Context, middle: impl Future<Output = ()>) -> Result<LoadReport, EngineError> {
    let (progress, mut told) = tokio::sync::watch::channel(Progress::default());
    let options = BackfillOptions {
        cancel: CancellationToken::new(),
        rate: Some(40_000),
        progress: Some(progress),
        resume: false,
    };
    let happening = async {
        told.wait_for(|progress| 2_000 < progress.entries).await.unwrap();
        middle.await;
    };
    tokio::join!(backfill(context, context.catalog.get("t").unwrap(), &options), happening).0
}

/// A backfill whose statement waits for a lock, so that what happens meanwhile is met by its first script: the one that adds members.
async fn behind_a_lock(
    rig: &Rig,
    context: &Context,
    meanwhile: impl Future<Output = ()>,
) -> Result<LoadReport, EngineError> {
    let dataset = context.catalog.get("t").unwrap();
    epoch::ensure(context, "").await.unwrap();
    // The description of the query would wait too.
    dataset.source(&context.postgres).await.unwrap();
    let mut locker = rig.postgres.session().await.unwrap();
    locker.execute("begin; lock table t in access exclusive mode").await.unwrap();
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    let happening = async {
        wait_until("the statement waits", async || {
            let mut look = rig.postgres.session().await.unwrap();
            let waits = look.text("select count(*)::text from pg_locks where not granted").await.unwrap();
            if waits.as_deref() == Some("1") { Ok(()) } else { Err(format!("{waits:?}")) }
        })
        .await;
        meanwhile.await;
        locker.execute("commit").await.unwrap();
    };
    tokio::join!(backfill(context, dataset, &options), happening).0
}

/// A newer worker defines the dataset anew while an older one fills it: the older one is superseded, and knows it.
#[tokio::test]
async fn a_backfill_that_is_superseded_meanwhile_says_so() {
    let rig = Rig::start(SPREAD).await;
    let older = rig.context(TAGGED);
    let newer = rig.context(&TAGGED.replace("select id, name, part", "select id, upper(name) as name, part"));
    let ended = behind_a_lock(&rig, &older, async {
        epoch::ensure(&newer, "").await.unwrap();
    })
    .await;
    let is_told = match &ended {
        Err(EngineError::PreconditionFailed(failed)) => *failed == PreconditionFailed::Revision,
        Err(EngineError::Superseded { .. }) => true,
        _ => false,
    };
    assert!(is_told, "{ended:?}");
    epoch::ensure(&older, "").await.unwrap();
    assert!(older.catalog.get("t").unwrap().is_superseded());
    let mut client = rig.client().await;
    let stored: Vec<String> = client.keys("t:*").await.unwrap();
    assert!(stored.is_empty(), "{} entries", stored.len());
}

/// Something was lost meanwhile: the backfill ends, and the one after it reads the revision anew.
#[tokio::test]
async fn a_backfill_whose_revision_is_outdated_meanwhile_ends_and_the_next_one_is_whole() {
    let rig = Rig::start(SPREAD).await;
    let context = rig.context(TAGGED);
    epoch::ensure(&context, "").await.unwrap();
    let cause = context.redis.next_cause().await.unwrap();
    let ended = behind_a_lock(&rig, &context, async {
        events::mark_pending(&context, &["t".to_owned()], "events lost", Some(cause)).await.unwrap();
    })
    .await;
    let outdated = EngineError::PreconditionFailed(PreconditionFailed::Outdated);
    assert_eq!(ended.map_err(|error| error.to_string()), Err(outdated.to_string()));
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    let whole = backfill(&context, context.catalog.get("t").unwrap(), &options).await.unwrap();
    assert_eq!(whole.stored, 40_000);
}

#[tokio::test]
async fn a_backfill_with_spread_tags_reaches_every_member_under_removals() {
    let rig = Rig::start(SPREAD).await;
    let context = rig.context(TAGGED);
    // Members of a page are removed while it is being stored.
    interrupted(&context, async {
        invalidate::tags(&context, &["part:5".to_owned()], Some(Op::Delete)).await.unwrap();
    })
    .await
    .unwrap();
    // Whatever is there is a member: an invalidation by tag leaves none of them.
    let mut client = rig.client().await;
    for part in [5_u32, 6, 96] {
        invalidate::tags(&context, &[format!("part:{part}")], Some(Op::Delete)).await.unwrap();
        let keys: Vec<String> =
            (1..=40_000_u32).filter(|id| id % 499 == part).map(|id| format!("t:{id}")).collect();
        let left: u64 = client.exists(&keys).await.unwrap();
        assert_eq!(left, 0, "part {part}");
    }
    let found = invalidate::tags(&context, &["all".to_owned()], Some(Op::Delete)).await.unwrap();
    assert!(30_000 < found.invalidated, "{found:?}");
    let left: u64 = context.redis.key_count().await.unwrap();
    let sets: Vec<String> = client.keys("t:*").await.unwrap();
    assert!(sets.is_empty(), "{} of {left}", sets.len());
}
