//! What a state consists of: Postgres, Redis, the copy on its replica, and where each process stands.
//!
//! Everything is a byte or a few of them, so that a million states fit in memory and hash quickly.

use std::fmt;

use crate::coverage::Fingerprint;
use crate::database::{Database, ROW_NAMES, Rows, Snapshot, Stamp, Version};
use crate::faults::FAULTS;
use crate::invariants::Broken;
use crate::keeper::Keeper;
use crate::loaders::Loader;
use crate::signals::{Event, Reader, TagEvent};
use crate::worker::Stage;

pub(crate) type Epoch = u8;
pub(crate) type Incarnation = u8;
/// The number of a cause of pending revalidation (R14a); 0 is none.
pub(crate) type Cause = u8;
/// The dataset's revision, which a load and its store must share (R4).
pub(crate) type Revision = u8;

pub(crate) const KEYS: [usize; 2] = [0, 1];
/// Key `k` is a join of its own row `k` and of this row, which both keys share.
pub(crate) const SHARED: usize = 2;

/// A set of keys, rows or workers; in words it is one of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Set(u8);

impl Set {
    pub(crate) fn with(self, item: usize) -> Self {
        Self(self.0 | 1 << item)
    }

    pub(crate) fn without(self, item: usize) -> Self {
        Self(self.0 & !(1 << item))
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn contains(self, item: usize) -> bool {
        self.0 >> item & 1 == 1
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn first(self) -> Option<usize> {
        self.iter().next()
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |item| self.contains(*item))
    }
}

impl FromIterator<usize> for Set {
    fn from_iter<T: IntoIterator<Item = usize>>(items: T) -> Self {
        items.into_iter().fold(Self::default(), Self::with)
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(|key| format!("k{key}")).collect();
        f.write_str(if names.is_empty() { "no keys" } else { "" })?;
        f.write_str(&names.join(" and "))
    }
}

/// A set of rows in words.
pub(crate) struct RowsOf(pub(crate) Set);

impl fmt::Display for RowsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|row| ROW_NAMES[row]).collect();
        f.write_str(if names.is_empty() { "no rows" } else { "rows " })?;
        f.write_str(&names.join(" and "))
    }
}

/// A value: the versions of the two rows that it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) own: Version,
    pub(crate) shared: Version,
}

impl Entry {
    /// Whether this value of `key` misses something that a reader of `rows` saw.
    pub(crate) fn is_behind(self, key: usize, rows: &Rows) -> bool {
        self.own.number() < rows[key].number() || self.shared.number() < rows[SHARED].number()
    }
}

/// An entry in words; no entry means that the row, or the key, is gone.
pub(crate) struct Words(pub(crate) Option<Entry>);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(entry) => write!(f, "({}, {})", entry.own, entry.shared),
            None => f.write_str("gone"),
        }
    }
}

/// The stamp table with the parts of `head` that scripts compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Table {
    pub(crate) epoch: Epoch,
    pub(crate) incarnation: Incarnation,
    pub(crate) floor: Stamp,
    pub(crate) slots: [Stamp; 2],
    /// What the snapshot of the epoch's floor saw: only the check of I5 looks at it.
    pub(crate) born: Rows,
}

/// The cursor of the feed, and what its snapshot saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cursor {
    pub(crate) epoch: Epoch,
    pub(crate) snapshot: Snapshot,
    pub(crate) seen: Rows,
}

/// The watermark, and what its snapshot saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Watermark {
    pub(crate) epoch: Epoch,
    pub(crate) incarnation: Incarnation,
    pub(crate) stamp: Stamp,
    pub(crate) seen: Rows,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Redis {
    pub(crate) table: Option<Table>,
    pub(crate) entries: [Option<Entry>; 2],
    pub(crate) cursor: Option<Cursor>,
    pub(crate) watermark: Option<Watermark>,
    /// R14a: the number of the newest cause.
    pub(crate) causes: Cause,
    /// R14: the newest cause for which every entry must be revalidated.
    pub(crate) pending: Cause,
    /// R10: for each stamp slot the newest cause for which its entries must be revalidated.
    pub(crate) pending_slots: [Cause; 2],
    pub(crate) revision: Revision,
    /// R12: the fingerprint under which the feed last followed the dataset; none where it was not covered.
    pub(crate) covered: Option<Fingerprint>,
    /// The members of the one tag: both keys would carry it.
    pub(crate) members: Set,
    pub(crate) tag_stamp: Stamp,
    /// How often members were removed: a store that relies on an earlier script compares it.
    pub(crate) removals: u8,
    /// R9: the jobs (`Job` in numbers) that ran a script since the copy was taken. They lose it in a failover.
    pub(crate) counted: Set,
}

impl Redis {
    pub(crate) fn existing(&self) -> Set {
        KEYS.into_iter().filter(|key| self.entries[*key].is_some()).collect()
    }

    pub(crate) fn table_of(&self, epoch: Epoch) -> Option<&Table> {
        self.table.as_ref().filter(|table| table.epoch == epoch)
    }
}

/// The newest version ever accepted for a key in an epoch: a ghost, which only I1 and X3 look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Newest {
    pub(crate) epoch: Epoch,
    pub(crate) revision: Revision,
    pub(crate) own: u8,
    pub(crate) shared: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) database: Database,
    pub(crate) redis: Redis,
    /// What the replica had when it stopped receiving, ghosts included.
    pub(crate) copy: Option<(Redis, [Option<Newest>; 2])>,
    pub(crate) newest: [Option<Newest>; 2],
    pub(crate) workers: [Stage; 2],
    pub(crate) keepers: [Keeper; 2],
    pub(crate) loaders: [Loader; 3],
    pub(crate) events: [Event; 2],
    pub(crate) tag_event: TagEvent,
    pub(crate) reader: Reader,
    /// How often each fault may still happen, in the order of `Fault`.
    pub(crate) faults: [u8; FAULTS],
    pub(crate) last_epoch: Epoch,
    /// Of any Redis: revisions are never used again, unless a world says so.
    pub(crate) last_revision: Revision,
    /// R9: the jobs of which a failover swallowed a script.
    pub(crate) swallowed: Set,
    /// The invariants that the step into this state broke. Such a state has no successors.
    pub(crate) broken: Broken,
}

impl State {
    /// R9: a script that is counted in this job.
    pub(crate) fn count(&mut self, job: usize) {
        if self.copy.is_some() {
            self.redis.counted = self.redis.counted.with(job);
        }
    }

    /// A process that begins a job knows of no script before it.
    pub(crate) fn begin_job(&mut self, job: usize) {
        self.swallowed = self.swallowed.without(job);
        self.redis.counted = self.redis.counted.without(job);
    }
}
