//! How a worker begins, creates an epoch, and runs its revalidation (R13, R14, R16).

use crate::database::{Database, Rows};
use crate::invariants::Invariant;
use crate::protocol::{Protocol, Say};
use crate::state::{Cursor, Epoch, Incarnation, KEYS, Redis, Set, State, Table, Watermark};
use crate::worker::{Batch, Job, Place, Stage};

impl Protocol {
    /// R16: the header shows a newer definition than this worker's: it stops.
    pub(crate) fn has_retired(&self, state: &State, worker: usize) -> bool {
        self.world.rules.definition_is_an_epoch
            && self.world.blind == Some(worker)
            && state.redis.table.is_some_and(|table| 1 < table.epoch)
    }

    pub(crate) fn read_header(&self, state: &mut State, worker: usize, say: Say<'_>) -> Stage {
        let rules = &self.world.rules;
        let table = state.redis.table;
        let is_new = rules.definition_is_an_epoch && self.world.blind != Some(worker);
        if is_new && table.is_some_and(|table| table.epoch == 1) {
            say(format_args!("W{worker} reads the header: an older definition"));
            return Stage::Floor { shown: Some(1) };
        }
        let went_back = state.swallowed.contains(worker);
        state.swallowed = state.swallowed.without(worker);
        let Some(table) = table else {
            say(format_args!("W{worker} reads the header: missing"));
            return Stage::Floor { shown: None };
        };
        let cursor = state.redis.cursor;
        let in_epoch = cursor.filter(|cursor| cursor.epoch == table.epoch);
        if rules.renews && went_back && in_epoch.is_some() {
            return Self::renew(state, worker, say);
        }
        let Some(cursor) = (if rules.cursor_names_epoch { in_epoch } else { cursor }) else {
            return self.miss_cursor(state, worker, table, say);
        };
        let Table { epoch, incarnation, .. } = table;
        let place = Place { epoch, incarnation, cursor: cursor.snapshot, known: None };
        if state.redis.pending != 0 && rules.pending_is_durable && self.world.keepers == 0 {
            say(format_args!("W{worker} reads the header: epoch {}, a revalidation is pending", table.epoch));
            return Stage::Scan(place);
        }
        say(format_args!("W{worker} reads the header: epoch {}, cursor {}", table.epoch, place.cursor));
        Stage::Poll(place)
    }

    /// R13: Redis was rolled back but is whole. Nothing but the name of the epoch changes.
    fn renew(state: &mut State, worker: usize, say: Say<'_>) -> Stage {
        state.last_epoch += 1;
        let (epoch, redis) = (state.last_epoch, &mut state.redis);
        say(format_args!(
            "W{worker} reads the header: Redis was rolled back; the epoch is called {epoch} now"
        ));
        redis.table = redis.table.map(|table| Table { epoch, ..table });
        redis.cursor = redis.cursor.map(|cursor| Cursor { epoch, ..cursor });
        redis.watermark = redis.watermark.map(|watermark| Watermark { epoch, ..watermark });
        Stage::Start
    }

    fn miss_cursor(&self, state: &mut State, worker: usize, table: Table, say: Say<'_>) -> Stage {
        if self.world.rules.missing_cursor_is_new_epoch {
            say(format_args!("W{worker} reads the header: no cursor"));
            return Stage::Floor { shown: Some(table.epoch) };
        }
        say(format_args!("W{worker} reads the header: no cursor; sets it to now"));
        let Table { epoch, incarnation, .. } = table;
        let (snapshot, seen) = (state.database.snapshot(), state.database.rows);
        state.redis.cursor = Some(Cursor { epoch, snapshot, seen });
        self.breaks(state, Invariant::I6, true);
        Stage::Poll(Place { epoch, incarnation, cursor: snapshot, known: None })
    }

    /// R13: refused where the header is not the one that was read before the snapshot.
    pub(crate) fn create(
        &self,
        state: &mut State,
        worker: usize,
        shown: Option<Epoch>,
        incarnation: Incarnation,
        floor: Cursor,
        say: Say<'_>,
    ) -> Stage {
        let now = state.redis.table.map(|table| table.epoch);
        if self.world.rules.creation_compares && now != shown {
            say(format_args!("W{worker} creates an epoch: another was faster"));
            return Stage::Start;
        }
        let epoch = state.last_epoch + 1;
        say(format_args!("W{worker} creates epoch {epoch} with floor {}", floor.snapshot.stamp()));
        let stamp = floor.snapshot.stamp();
        state.last_epoch = epoch;
        state.redis = Redis {
            table: Some(Table { epoch, incarnation, floor: stamp, slots: [0; 2], born: floor.seen }),
            cursor: Some(Cursor { epoch, ..floor }),
            watermark: None,
            causes: state.redis.causes + 1,
            pending: state.redis.causes + 1,
            pending_slots: [0; 2],
            tag_stamp: 0,
            ..state.redis
        };
        state.count(worker);
        let place = Place { epoch, incarnation, cursor: floor.snapshot, known: None };
        if self.world.keepers == 0 { Stage::Scan(place) } else { Stage::Poll(place) }
    }

    /// R14: the scan is over Redis. A scan over the dataset does not meet the entries whose rows are gone
    /// (X9).
    pub(crate) fn scan(&self, state: &mut State, worker: usize, place: Place, say: Say<'_>) -> Stage {
        let keys: Set = if self.world.rules.revalidation_scans_redis {
            state.redis.existing()
        } else {
            let has_row =
                |key: &usize| Database::query(&state.database.rows, *key, self.world.deleted).is_some();
            KEYS.into_iter().filter(has_row).collect()
        };
        say(format_args!("W{worker} scans for its revalidation and finds {keys}"));
        self.count_read(state, worker);
        if keys.is_empty() {
            return Stage::RevalidationDone(place);
        }
        let batch = Batch { seen: Rows::default(), ..self.batch(state, place, place.cursor) };
        Stage::Load { batch, keys, job: Job::Revalidation }
    }

    /// R9, R14: the claim that the revalidation is done. The watermark is that of the cursor.
    pub(crate) fn revalidation_done(
        &self,
        state: &mut State,
        worker: usize,
        place: Place,
        say: Say<'_>,
    ) -> Stage {
        let rules = &self.world.rules;
        let is_whole = !state.swallowed.contains(worker);
        let table = state.redis.table_of(place.epoch).copied();
        let cursor = state.redis.cursor;
        let in_epoch = cursor.filter(|cursor| !rules.cursor_names_epoch || cursor.epoch == place.epoch);
        let (Some(table), Some(cursor)) =
            (table, in_epoch.filter(|_| is_whole || !rules.revalidations_are_counted))
        else {
            say(format_args!("W{worker} says that the revalidation is done: refused"));
            return Stage::Start;
        };
        self.breaks(state, Invariant::I6, !is_whole);
        say(format_args!("W{worker} says that the revalidation is done: watermark {}", cursor.snapshot));
        state.redis.pending = 0;
        state.redis.watermark = Some(Watermark {
            epoch: place.epoch,
            incarnation: table.incarnation,
            stamp: cursor.snapshot.stamp(),
            seen: cursor.seen,
        });
        state.count(worker);
        Stage::Poll(Place { cursor: cursor.snapshot, ..place })
    }
}
