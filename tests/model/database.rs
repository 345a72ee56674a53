//! Postgres: three rows, transactions that overlap and commit in any order, the outbox, snapshots, crashes.

use std::fmt;

use crate::state::{Entry, Incarnation, SHARED, Set};

pub(crate) type Xid = u8;
/// The stamp of docs/protocol.md in small: `xmax`, then how few transactions were running.
pub(crate) type Stamp = u8;

/// The first transaction of every world; what is older is visible to all.
pub(crate) const FIRST: Xid = 10;
pub(crate) const ROW_NAMES: [&str; 3] = ["p0", "p1", "c"];

/// A version of a row: its number, and the incarnation of the server that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Version(u8);

pub(crate) type Rows = [Version; 3];

impl Version {
    pub(crate) fn new(number: u8, incarnation: Incarnation) -> Self {
        Self(number << 3 | incarnation)
    }

    pub(crate) fn number(self) -> u8 {
        self.0 >> 3
    }

    fn incarnation(self) -> Incarnation {
        self.0 & 7
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.number())?;
        (1..self.incarnation()).try_for_each(|_| f.write_str("'"))
    }
}

/// `pg_current_snapshot()`: below `xmax` all is visible that was not running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Snapshot {
    xmax: Xid,
    /// Bit `i` stands for transaction `FIRST + i`.
    running: u8,
}

impl Snapshot {
    pub(crate) fn stamp(self) -> Stamp {
        let running = u8::try_from(self.running.count_ones()).unwrap();
        self.xmax * 8 + 7 - running
    }

    /// The oldest transaction that may be running.
    pub(crate) fn xmin(self) -> Xid {
        let bits = u8::try_from(self.running.trailing_zeros()).unwrap();
        if self.running == 0 { self.xmax } else { FIRST + bits }
    }

    fn sees(self, xid: Xid) -> bool {
        xid < self.xmax && (xid < FIRST || self.running >> (xid - FIRST) & 1 == 0)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.xmax)?;
        let running = (0..8).filter(|bit| self.running >> bit & 1 == 1);
        let mut names = running.map(|bit| FIRST + bit);
        names.try_for_each(|xid| write!(f, " without {xid}"))
    }
}

/// A row of the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Change {
    /// 0 where there is none.
    xid: Xid,
    row: u8,
    old: Version,
    new: Version,
    /// Whether the outbox has it. What has none is here too, because a crash may lose it.
    is_captured: bool,
}

/// The switch of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Capture {
    On,
    Off,
    /// On again.
    Back {
        /// The next id.
        next: Xid,
        /// `xmax` of a snapshot.
        xmax: Xid,
        /// The rows whose transactions were open then, with an id or without.
        open: Set,
    },
}

/// The tree of tables that the rows are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tree {
    AsBefore,
    /// A partition was added that had no rows.
    Grown,
    /// One that came with rows, which no outbox tells of: p0 is another one.
    GrownWithRows,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    next: Xid,
    max_finished: Xid,
    /// For each row the transaction that holds its lock, or 0.
    running: [Xid; 3],
    /// The rows whose running transaction writes nothing to the outbox.
    uncaptured: Set,
    /// The rows whose statement runs and has written nothing yet, so it has no id; and those that began while the capture
    /// was off.
    opened: Set,
    opened_off: Set,
    /// The rows whose running transaction is prepared, and those that were so when the server crashed: what these wrote
    /// to the outbox is lost.
    prepared: Set,
    pub(crate) unknown: Set,
    pub(crate) capture: Capture,
    pub(crate) tree: Tree,
    /// In the order of commit.
    outbox: [Change; 4],
    pub(crate) rows: Rows,
    pub(crate) incarnation: Incarnation,
    /// How many transactions each row still gets.
    todo: [u8; 3],
    /// The commit that a crash lost.
    lost: Option<(u8, Version)>,
}

impl Database {
    pub(crate) fn new(todo: [u8; 3]) -> Self {
        Self {
            next: FIRST,
            max_finished: FIRST - 1,
            running: [0; 3],
            uncaptured: Set::default(),
            opened: Set::default(),
            opened_off: Set::default(),
            prepared: Set::default(),
            unknown: Set::default(),
            capture: Capture::On,
            tree: Tree::AsBefore,
            outbox: [Change::default(); 4],
            rows: [Version::new(1, 1); 3],
            incarnation: 1,
            todo,
            lost: None,
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let xmax = self.max_finished + 1;
        let bits = self.running.iter().filter(|xid| **xid != 0 && **xid < xmax);
        Snapshot { xmax, running: bits.fold(0, |all, xid| all | 1 << (xid - FIRST)) }
    }

    /// What a query for `key` returns from `rows`; `deleted` names the version that is a deletion.
    pub(crate) fn query(rows: &Rows, key: usize, deleted: [u8; 2]) -> Option<Entry> {
        let own = rows[key];
        (deleted[key] == 0 || own.number() != deleted[key]).then_some(Entry { own, shared: rows[SHARED] })
    }

    pub(crate) fn can_begin(&self, row: usize) -> bool {
        0 < self.todo[row] && self.running[row] == 0
    }

    /// No transaction below this id is running.
    pub(crate) fn oldest_running(&self) -> Xid {
        self.running.into_iter().filter(|xid| *xid != 0).fold(self.next, Xid::min)
    }

    pub(crate) fn can_open(&self, row: usize) -> bool {
        self.can_begin(row) && !self.opened.contains(row)
    }

    pub(crate) fn has_opened(&self, row: usize) -> bool {
        self.opened.contains(row)
    }

    /// A statement begins. It will run the trigger function as it is now, however long it takes.
    pub(crate) fn open(&mut self, row: usize) {
        self.opened = self.opened.with(row);
        if self.capture == Capture::Off {
            self.opened_off = self.opened_off.with(row);
        }
    }

    /// Whether a transaction that writes now is captured; where its statement began before, that decides.
    pub(crate) fn is_captured(&self, row: usize) -> bool {
        if self.opened.contains(row) { !self.opened_off.contains(row) } else { self.capture != Capture::Off }
    }

    /// Off, and on again.
    pub(crate) fn switch(&mut self) {
        self.capture = match self.capture {
            Capture::On => Capture::Off,
            Capture::Off | Capture::Back { .. } => {
                let running = (0..3_usize).filter(|row| self.running[*row] != 0);
                let open = running.fold(self.opened, Set::with);
                Capture::Back { next: self.next, xmax: self.max_finished + 1, open }
            }
        };
    }

    pub(crate) fn can_grow(&self) -> bool {
        self.tree == Tree::AsBefore && self.running[0] == 0
    }

    /// A partition is added.
    pub(crate) fn grow(&mut self, has_rows: bool) {
        if has_rows {
            self.tree = Tree::GrownWithRows;
            self.todo[0] += 1;
            self.begin(0, false);
            self.commit(0);
        } else {
            self.tree = Tree::Grown;
            self.max_finished = self.max_finished.max(self.next);
            self.next += 1;
        }
    }

    pub(crate) fn can_prepare(&self, row: usize) -> bool {
        self.running[row] != 0 && !self.prepared.contains(row)
    }

    pub(crate) fn prepare(&mut self, row: usize) -> Xid {
        self.prepared = self.prepared.with(row);
        self.running[row]
    }

    pub(crate) fn begin(&mut self, row: usize, is_captured: bool) -> Xid {
        self.opened = self.opened.without(row);
        self.opened_off = self.opened_off.without(row);
        let xid = self.next;
        if !is_captured {
            self.uncaptured = self.uncaptured.with(row);
        }
        self.next += 1;
        self.running[row] = xid;
        self.todo[row] -= 1;
        xid
    }

    pub(crate) fn running(&self, row: usize) -> Option<Xid> {
        (self.running[row] != 0).then_some(self.running[row])
    }

    fn finish(&mut self, row: usize) -> Xid {
        self.uncaptured = self.uncaptured.without(row);
        self.prepared = self.prepared.without(row);
        self.unknown = self.unknown.without(row);
        if let Capture::Back { open, .. } = &mut self.capture {
            *open = open.without(row);
        }
        let xid = std::mem::take(&mut self.running[row]);
        self.max_finished = self.max_finished.max(xid);
        xid
    }

    pub(crate) fn commit(&mut self, row: usize) -> Xid {
        let is_captured = !self.uncaptured.contains(row);
        let xid = self.finish(row);
        let old = self.rows[row];
        let new = Version::new(old.number() + 1, self.incarnation);
        self.rows[row] = new;
        let free = self.outbox.iter_mut().find(|change| change.xid == 0).unwrap();
        *free = Change { xid, row: u8::try_from(row).unwrap(), old, new, is_captured };
        xid
    }

    pub(crate) fn rollback(&mut self, row: usize) -> Xid {
        self.finish(row)
    }

    pub(crate) fn has_changes(&self) -> bool {
        self.outbox[0].xid != 0
    }

    /// The rows of the outbox that `to` sees and `from` did not: never "id > last", for commits come out of
    /// order.
    pub(crate) fn changed(&self, from: Snapshot, to: Snapshot) -> Set {
        let changes = self.outbox.iter().filter(|change| change.xid != 0 && change.is_captured);
        changes
            .filter(|change| !from.sees(change.xid) && to.sees(change.xid))
            .map(|change| usize::from(change.row))
            .collect()
    }

    fn last_change(&self) -> Option<usize> {
        self.outbox.iter().rposition(|change| change.xid != 0)
    }

    /// Whether a crash now could lose a commit of this incarnation (asynchronous commit).
    pub(crate) fn can_lose(&self) -> bool {
        self.last_change().is_some_and(|last| self.outbox[last].new.incarnation() == self.incarnation)
    }

    /// Running transactions are gone and their xids are used again: a new incarnation. Prepared ones go on, and the outbox
    /// has lost what they wrote.
    pub(crate) fn crash(&mut self, loses: bool) {
        if let Some(last) = self.last_change().filter(|_| loses) {
            let change = std::mem::take(&mut self.outbox[last]);
            self.rows[usize::from(change.row)] = change.old;
            assert!(self.lost.replace((change.row, change.new)).is_none(), "one lost commit at most");
        }
        for row in 0..3 {
            if !self.prepared.contains(row) {
                self.running[row] = 0;
            }
        }
        let ids = self.outbox.iter().map(|change| change.xid).chain(self.running);
        self.max_finished = ids.fold(FIRST - 1, Xid::max);
        self.next = self.max_finished + 1;
        (self.opened, self.opened_off) = (Set::default(), Set::default());
        (self.unknown, self.uncaptured) = (self.prepared, self.prepared);
        self.incarnation += 1;
    }

    /// Whether `entry` shows the commit that a crash lost.
    pub(crate) fn has_lost(&self, key: usize, entry: Entry) -> bool {
        self.lost.is_some_and(|(row, version)| {
            let row = usize::from(row);
            row == key && version == entry.own || row == SHARED && version == entry.shared
        })
    }
}
