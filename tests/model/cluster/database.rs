//! Postgres, as far as a cluster needs it: transactions that are one step each, so that their number is the stamp.

use super::state::{SLOTS, Value};

pub(super) const SHARED: usize = SLOTS;

/// A version of a row: its number, and the incarnation that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Version {
    number: u8,
    incarnation: u8,
}

impl Version {
    pub(super) fn number(self) -> u8 {
        self.number
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}{}", self.number, "'".repeat(usize::from(self.incarnation) - 1))
    }
}

/// A snapshot: what a statement sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Snapshot {
    pub(super) stamp: u8,
    pub(super) incarnation: u8,
    pub(super) rows: [Version; SLOTS + 1],
}

impl Snapshot {
    pub(super) fn value(&self, slot: usize) -> Value {
        Value { own: self.rows[slot], shared: self.rows[SHARED] }
    }

    /// The slots whose own row is another since; and whether the shared row is.
    pub(super) fn changes(&self, since: &Self) -> ([bool; SLOTS], bool) {
        let differs = |row: usize| self.rows[row] != since.rows[row];
        ([differs(0), differs(1)], differs(SHARED))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    now: Snapshot,
    todo: [u8; SLOTS + 1],
    /// The last commit, which a crash may lose, and what was there before.
    last: Option<(usize, Version)>,
    lost: Option<(usize, Version)>,
}

impl Database {
    pub(super) fn new(todo: [u8; SLOTS + 1]) -> Self {
        let rows = [Version { number: 1, incarnation: 1 }; SLOTS + 1];
        Self { now: Snapshot { stamp: 1, incarnation: 1, rows }, todo, last: None, lost: None }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.now
    }

    pub(super) fn can_commit(&self, row: usize) -> bool {
        0 < self.todo[row]
    }

    pub(super) fn commit(&mut self, row: usize) -> Version {
        let before = self.now.rows[row];
        self.todo[row] -= 1;
        self.last = Some((row, before));
        self.now.stamp += 1;
        self.now.rows[row] = Version { number: before.number + 1, incarnation: self.now.incarnation };
        self.now.rows[row]
    }

    pub(super) fn can_lose(&self) -> bool {
        self.last.is_some()
    }

    /// A failover to a standby that lags, or a restored copy: stamps begin again below where they were.
    pub(super) fn crash(&mut self) {
        self.now.incarnation += 1;
        if let Some((row, before)) = self.last.take() {
            self.lost = Some((row, self.now.rows[row]));
            self.now.rows[row] = before;
            self.now.stamp -= 1;
        }
    }

    /// Whether a value is of a commit that is no more.
    pub(super) fn is_lost(&self, slot: usize, value: Value) -> bool {
        self.lost.is_some_and(|(row, version)| {
            row == slot && value.own == version || row == SHARED && value.shared == version
        })
    }
}
