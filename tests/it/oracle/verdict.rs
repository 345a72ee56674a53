//! The checks: what the readers saw against what was committed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use cachekeeper::flows::compare::{Extent, compare};

use super::load::Seen;
use super::{Arena, DATASETS};
use crate::support::wait_until;

/// When each life of the database began, as far as it is known: xids mean something within one life only.
#[derive(Default)]
pub struct Lives {
    by_incarnation: HashMap<String, usize>,
    /// Microseconds of the database's clock at which life n + 1 had begun.
    began: Vec<i64>,
}

impl Lives {
    /// The database has just come back from a crash.
    pub async fn begin(&mut self, arena: &Arena) {
        let now = ask(arena, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint::text").await;
        self.began.push(now.parse().unwrap());
    }

    /// Notes the incarnation of the present life.
    pub async fn note(&mut self, arena: &Arena) {
        let id = ask(arena, "select id::text from cachekeeper.incarnation").await;
        self.by_incarnation.entry(id).or_insert(self.began.len());
    }

    fn of_time(&self, at: i64) -> usize {
        self.began.iter().filter(|began| **began <= at).count()
    }
}

async fn ask(arena: &Arena, sql: &str) -> String {
    let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
    session.text(sql).await.unwrap().unwrap_or_default()
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<String>,
    pub checked: usize,
    pub commits: usize,
    pub unknown_life: usize,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} reads checked ({} of a life nobody noted), {} versions committed, {} violations",
            self.checked,
            self.unknown_life,
            self.commits,
            self.violations.len()
        )
    }
}

struct Commit {
    xid: u64,
    at: i64,
    is_deleted: bool,
}

type History = HashMap<i64, BTreeMap<i64, Commit>>;

async fn history(arena: &Arena, table: &str, deleted: &str) -> History {
    let sql = format!(
        "select coalesce(string_agg(id || ' ' || version || ' ' || xid || ' ' || \
         (extract(epoch from at) * 1000000)::bigint || ' ' || {deleted}, E'\\n'), '') from {table}"
    );
    let mut history = History::new();
    for line in ask(arena, &sql).await.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let commit = Commit {
            xid: parts[2].parse().unwrap(),
            at: parts[3].parse().unwrap(),
            is_deleted: parts[4] == "true",
        };
        history.entry(parts[0].parse().unwrap()).or_default().insert(parts[1].parse().unwrap(), commit);
    }
    history
}

/// `xmin:xmax:running,…`
fn is_visible(xid: u64, snapshot: &str) -> bool {
    let parts: Vec<&str> = snapshot.split(':').collect();
    let xmax: u64 = parts[1].parse().unwrap();
    xid < xmax && !parts[2].split(',').any(|running| running == xid.to_string())
}

/// Everything that was seen, against everything that was committed.
pub async fn judge(arena: &Arena, lives: &Lives) -> Verdict {
    let seen = arena.observed.all();
    let items = history(arena, "history", "is_deleted").await;
    let groups = history(arena, "group_history", "false").await;
    let mut verdict = Verdict {
        commits: items.values().map(BTreeMap::len).sum(),
        violations: arena.observed.broken.lock().unwrap().clone(),
        ..Verdict::default()
    };
    let mut known: HashSet<(i64, i64, String)> = HashSet::new();
    for one in &seen {
        if !known.insert((one.id, one.version, one.snapshot.clone())) {
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
        let is_seen = |commit: &Commit| {
            let began = lives.of_time(commit.at);
            began < *life || (began == *life && is_visible(commit.xid, &one.snapshot))
        };
        // C3, C6: nothing newer is visible at the watermark, a delete least of all.
        check(&mut verdict, "item", one, items.get(&one.id), one.version, &is_seen);
        check(&mut verdict, "group", one, groups.get(&one.group), one.group_version, &is_seen);
    }
    verdict
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
    let context = arena.rig.lock().await.context(DATASETS);
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
