//! The checks: what the readers saw against what was committed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_testkit::servers::Postgres;

use super::Arena;
use super::load::Seen;
use super::schema::SHAPES;
use crate::ledger::{Logged, Told};
use crate::support::wait_until;

/// The lives of the database: it may use a transaction id again that an earlier life gave out and did not commit.
#[derive(Default)]
pub struct Lives {
    by_incarnation: HashMap<String, usize>,
    /// Microseconds of the database's clock at which life n + 1 had got its number.
    numbered: Vec<i64>,
}

impl Lives {
    /// The database has just come back: from now on its transactions note the number of this life.
    pub async fn begin(&mut self, arena: &Arena) {
        self.begin_in(&arena.rig.lock().await.postgres).await;
    }

    pub async fn begin_in(&mut self, postgres: &Postgres) {
        let number = self.numbered.len() + 1;
        postgres.execute(&format!("insert into lives values ({number})")).await.unwrap();
        let now =
            ask(postgres, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint::text").await;
        self.numbered.push(now.parse().unwrap());
    }

    /// Notes the incarnation of the present life.
    pub async fn note(&mut self, arena: &Arena) {
        self.note_in(&arena.rig.lock().await.postgres).await;
    }

    pub async fn note_in(&mut self, postgres: &Postgres) {
        let id = ask(postgres, "select id::text from cachekeeper.incarnation").await;
        self.by_incarnation.entry(id).or_insert(self.numbered.len());
    }

    /// The life of an incarnation, if it was noted.
    pub fn of_incarnation(&self, id: &str) -> Option<usize> {
        self.by_incarnation.get(id).copied()
    }

    /// The life of a transaction that began at this time and noted this number. When it noted it says nothing: its snapshot may be
    /// older than the number, where it waited for a row.
    fn of(&self, noted: i64, at: i64) -> usize {
        // None yet: it began between the beginning of a life and its number.
        let before = || self.numbered.iter().filter(|numbered| **numbered <= at).count() + 1;
        usize::try_from(noted).unwrap_or_else(|_none| before())
    }
}

async fn ask(postgres: &Postgres, sql: &str) -> String {
    let mut session = postgres.session().await.unwrap();
    session.text(sql).await.unwrap().unwrap_or_default()
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<String>,
    pub checked: usize,
    pub commits: usize,
    pub unknown_life: usize,
    /// Writes that were handed over, and acknowledgements of which the cache or the token were checked.
    pub handed_over: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} reads checked ({} of a life nobody noted), {} versions committed, {}, {} violations",
            self.checked,
            self.unknown_life,
            self.commits,
            self.handed_over,
            self.violations.len()
        )
    }
}

pub struct Commit {
    pub xid: u64,
    life: usize,
    pub is_deleted: bool,
}

impl Commit {
    /// What an earlier life has committed, a later one knows by the same ids.
    pub fn is_seen(&self, life: usize, snapshot: &str) -> bool {
        self.life <= life && is_visible(self.xid, snapshot)
    }
}

/// Of each row its versions.
pub type History = HashMap<i64, BTreeMap<i64, Commit>>;

pub async fn history(postgres: &Postgres, lives: &Lives, table: &str, deleted: &str) -> History {
    let sql = format!(
        "select coalesce(string_agg(concat_ws(' ', id, version, xid, life, \
         (extract(epoch from at) * 1000000)::bigint, {deleted}), E'\\n'), '') from {table}"
    );
    let mut history = History::new();
    for line in ask(postgres, &sql).await.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let commit = Commit {
            xid: parts[2].parse().unwrap(),
            life: lives.of(parts[3].parse().unwrap(), parts[4].parse().unwrap()),
            is_deleted: parts[5] == "t",
        };
        history.entry(parts[0].parse().unwrap()).or_default().insert(parts[1].parse().unwrap(), commit);
    }
    history
}

/// `xmin:xmax:running,…`
pub fn is_visible(xid: u64, snapshot: &str) -> bool {
    let parts: Vec<&str> = snapshot.split(':').collect();
    let xmax: u64 = parts[1].parse().unwrap();
    xid < xmax && !parts[2].split(',').any(|running| running == xid.to_string())
}

/// Everything that was seen, against everything that was committed.
pub async fn judge(arena: &Arena, lives: &Lives) -> Verdict {
    let seen = arena.observed.all();
    let rig = arena.rig.lock().await;
    let items = history(&rig.postgres, lives, "history", "is_deleted").await;
    let groups = history(&rig.postgres, lives, "group_history", "false").await;
    let shapes = history(&rig.postgres, lives, "shape_history", "false").await;
    drop(rig);
    let mut verdict = Verdict {
        commits: items.values().map(BTreeMap::len).sum(),
        violations: arena.observed.broken.lock().unwrap().clone(),
        ..Verdict::default()
    };
    let mut known = HashSet::new();
    for one in &seen {
        if !known.insert((one.id, one.version, one.group_version, one.shapes, one.snapshot.as_str())) {
            continue;
        }
        verdict.checked += 1;
        // C2: what is readable was committed.
        if items
            .get(&one.id)
            .and_then(|versions| versions.get(&one.version))
            .is_none_or(|commit| commit.is_deleted)
        {
            verdict.violations.push(format!("C2: never committed: {one:?}"));
        }
        if !one.is_covered {
            continue;
        }
        let Some(life) = lives.by_incarnation.get(&one.incarnation) else {
            verdict.unknown_life += 1;
            continue;
        };
        let is_seen = |commit: &Commit| commit.is_seen(*life, &one.snapshot);
        // C3, C6: nothing newer is visible at the watermark, a delete least of all.
        check(&mut verdict, "item", one, items.get(&one.id), one.version, &is_seen);
        check(&mut verdict, "group", one, groups.get(&one.group), one.group_version, &is_seen);
        for (number, (what, version)) in (0..).zip(SHAPES.into_iter().zip(one.shapes)) {
            check(&mut verdict, what, one, shapes.get(&number), version, &is_seen);
        }
    }
    judge_handed_over(arena, lives, &mut verdict).await;
    verdict
}

/// A write as it noted itself: its place in the log, the version that it made, and its transaction.
struct HandedOver {
    logged: Logged,
    version: i64,
    commit: Commit,
}

async fn command_log(arena: &Arena, lives: &Lives) -> Vec<HandedOver> {
    let lines = ask(
        &arena.rig.lock().await.postgres,
        "select coalesce(string_agg(concat_ws(E'\\t', producer, id, n, version, xid, life, \
         (extract(epoch from at) * 1000000)::bigint), E'\\n' order by seq), '') from command_log",
    )
    .await;
    let read = |line: &str| {
        let parts: Vec<&str> = line.split('\t').collect();
        let number = |at: usize| parts[at].parse::<i64>().unwrap();
        HandedOver {
            logged: Logged { producer: parts[0].to_owned(), key: number(1), number: number(2) },
            version: number(3),
            commit: Commit {
                xid: number(4).unsigned_abs(),
                life: lives.of(number(5), number(6)),
                is_deleted: false,
            },
        }
    };
    lines.lines().map(read).collect()
}

/// W1: each write is there once and in order, as its producer was told. W2, W3, W4: noted by the producers. W5: who was
/// told that Redis has it reads it there. W6: a token sees its write.
async fn judge_handed_over(arena: &Arena, lives: &Lives, verdict: &mut Verdict) {
    let log = command_log(arena, lives).await;
    let logged: Vec<Logged> = log.iter().map(|one| one.logged.clone()).collect();
    let told = arena.observed.told.lock().unwrap().disagreements(&logged);
    verdict.violations.extend(told.into_iter().map(|text| format!("W1: {text}")));
    let by_place: HashMap<(&str, i64, i64), &HandedOver> = log
        .iter()
        .map(|one| ((one.logged.producer.as_str(), one.logged.key, one.logged.number), one))
        .collect();
    let acknowledged = arena.observed.acknowledged.lock().unwrap().clone();
    let (mut read, mut tokens) = (0, 0);
    for one in &acknowledged {
        let Some(own) = by_place.get(&(one.producer.as_str(), one.key, one.number)) else { continue };
        if let Some(seen) = one.seen {
            read += 1;
            if seen < own.version {
                verdict.violations.push(format!("W5: redis was to have version {}: {one:?}", own.version));
            }
        }
        let token = one.token.as_ref().and_then(|token| token.split_once('/'));
        let Some((incarnation, snapshot)) = token else { continue };
        let Some(life) = lives.by_incarnation.get(incarnation) else { continue };
        tokens += 1;
        if !own.commit.is_seen(*life, snapshot) {
            let commit = format!("xid {} of life {}", own.commit.xid, own.commit.life);
            verdict.violations.push(format!("W6: {commit} is not seen by the token of life {life}: {one:?}"));
        }
    }
    let by_stream = logged.iter().filter(|one| !one.producer.starts_with("library")).count();
    let sql = "select count(*)::text from cachekeeper.applied where error is null";
    let records = ask(&arena.rig.lock().await.postgres, sql).await;
    if records != by_stream.to_string() {
        verdict.violations.push(format!("W1: {records} records of {by_stream} carried out commands"));
    }
    let told = arena.observed.told.lock().unwrap();
    verdict.handed_over = format!(
        "{} writes handed over ({by_stream} by the stream, {} unknown, {} refused, {read} read, {tokens} tokens, \
         the longest wait {:?})",
        told.count(Told::Done),
        told.count(Told::Unknown),
        told.count(Told::Refused),
        arena.observed.longest_wait.lock().unwrap(),
    );
}

fn check(
    verdict: &mut Verdict,
    what: &str,
    one: &Seen,
    versions: Option<&BTreeMap<i64, Commit>>,
    version: i64,
    is_seen: &dyn Fn(&Commit) -> bool,
) {
    let next = versions.and_then(|versions| versions.range(version + 1..).next());
    if let Some((newer, commit)) = next
        && is_seen(commit)
    {
        verdict.violations.push(format!(
            "C3: {what} version {newer} (xid {}) is visible at the watermark: {one:?}",
            commit.xid
        ));
    }
}

/// C5: at rest Redis is what the query says, without anybody's help.
pub async fn agrees(arena: &Arena) {
    let context = arena.context().await;
    for dataset in context.catalog.iter() {
        let found = compare(&context, dataset, &Extent::default()).await.unwrap();
        assert!(found.stale.is_empty() && found.extra.is_empty(), "{found}");
        // What was deleted or evicted is filled by the next pass.
        wait_until("Redis is whole", || async {
            let found =
                compare(&context, dataset, &Extent::default()).await.map_err(|error| error.to_string())?;
            if found.is_clean() { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
    }
}
