//! The rules under test, as switches. The default is the repaired protocol: every rule holds.

/// One field per rule, or per part of one that can be left out by itself; `true` means that the rule is kept.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one rule, switched off by itself")]
pub(crate) struct Rules {
    /// R5: a store below the slot, the floor or the tag is refused.
    pub(crate) stamps_are_compared: bool,
    /// R5: an accepted store raises its slot.
    pub(crate) store_raises: bool,
    /// R5: a refused store is never done.
    pub(crate) refusal: Refusal,
    /// R6: raising and asking which keys exist is one script.
    pub(crate) raise_answers: bool,
    /// R4: an invalidation names its epoch.
    pub(crate) invalidation_names_epoch: bool,
    /// R6: a raise takes the newer stamp of its own and the one that is there.
    pub(crate) raises_only_rise: bool,
    /// R4: a store names the incarnation of its load.
    pub(crate) store_names_incarnation: bool,
    /// R4: the cursor script names the epoch, not the cursor alone.
    pub(crate) cursor_names_epoch: bool,
    /// R8: tag sets have no expiry, so no eviction policy takes them first.
    pub(crate) tag_sets_stay: bool,
    /// R8: an invalidation by tag raises members that have no value, too.
    pub(crate) absent_members_are_raised: bool,
    /// R8: an invalidation raises the tag before it enumerates.
    pub(crate) tag_is_raised_first: bool,
    /// R8: a store registers its key before it checks the tag.
    pub(crate) registers_before_check: bool,
    /// R9: the cursor script refuses a batch of which Redis lost a script.
    pub(crate) batches_are_counted: bool,
    /// R9: the claim is refused where Redis lost a script of the revalidation.
    pub(crate) revalidations_are_counted: bool,
    /// R9: a script that only reads what the job relies on (SCAN page, members) is counted as well.
    pub(crate) reads_are_counted: bool,
    /// R10: snapshot and outbox rows come from one statement.
    pub(crate) poll_is_one_statement: bool,
    /// R11: an idle worker runs the cursor script all the same.
    pub(crate) idle_looks_at_redis: bool,
    /// R11: the poll returns the incarnation.
    pub(crate) poll_names_incarnation: bool,
    /// R12: cursor and watermark move in one script.
    pub(crate) watermark_moves_with_cursor: bool,
    /// R13: creating an epoch is a compare-and-set on the header read before the floor's snapshot.
    pub(crate) creation_compares: bool,
    /// R13: a missing cursor is a new epoch, not "go on from now".
    pub(crate) missing_cursor_is_new_epoch: bool,
    /// R14: what a new epoch makes pending is written in Redis and holds the watermark back.
    pub(crate) pending_is_durable: bool,
    /// R14: the revalidation of a new epoch scans Redis, not the table of the dataset.
    pub(crate) revalidation_scans_redis: bool,
    /// R18: a reader takes watermark and value in one MGET.
    pub(crate) token_read: TokenRead,
    /// R7: how a page covers what it writes.
    pub(crate) page: Page,
    /// R13: Redis was rolled back but is whole: the same record goes on under a new epoch id (allowed, not needed
    /// here).
    pub(crate) renews: bool,
    /// R5: a store of the bytes that are already there need not raise (allowed).
    pub(crate) equal_bytes_raise: bool,
    /// R15: a loader takes the epoch before its load. Reading it at the store is safe while R4 compares
    /// incarnations.
    pub(crate) epoch_before_load: bool,
    /// R16: a new definition of a dataset is a new epoch, and workers of the old one stop.
    pub(crate) definition_is_an_epoch: bool,
    /// R12: the fingerprint that the feed followed by is recorded in Redis; a worker that begins has no other.
    pub(crate) fingerprint_is_recorded: bool,
    /// R12: the script that replaces a fingerprint records the cause of the revalidation.
    pub(crate) fingerprint_comes_with_cause: bool,
    /// R12: the watermark moves only to a snapshot at which the fingerprint was verified.
    pub(crate) watermark_is_verified: bool,
    /// R14a: causes are numbers from a counter in Redis. Else they are dates by Redis's clock.
    pub(crate) causes_are_numbers: bool,
    /// R14a: a revalidation reads the newest cause before its first statement, not when it makes its claim.
    pub(crate) cause_is_read_first: bool,
    /// R9, R14a: reading the newest cause is a counted script.
    pub(crate) beginnings_are_counted: bool,
    /// R14a: a cause without a captured row raises the dataset's revision, in its script.
    pub(crate) cause_raises_revision: bool,
    /// R14a: a load carries the revision that was read before its statement was sent.
    pub(crate) revision_is_read_first: bool,
    /// R14a: a revision is never used again, also where Redis was rolled back.
    pub(crate) revisions_are_unique: bool,
    /// R12: coverage belongs to an incarnation.
    pub(crate) fingerprint_names_incarnation: bool,
    /// R12: the fingerprint tells a capture that was off for a while from one that never was.
    pub(crate) fingerprint_names_capture: bool,
    /// R12: where a tree only grew, the recorded fingerprint is replaced only if it is that of now without what is new.
    pub(crate) growth_is_compared: bool,
    /// R12: a partition that came with rows is a change.
    pub(crate) rows_are_a_change: bool,
    /// R12: a dataset is not covered while a prepared transaction of before the crash is open.
    pub(crate) prepared_are_awaited: bool,
    /// R12: nor while somebody may still write without capture.
    pub(crate) late_writers: LateWriters,
    /// R10: what the feed could not load is recorded with the move of the cursor.
    pub(crate) left_out: LeftOut,
    /// R10: the feed raises what changed before it loads. Where it loads every key, whether it has an entry or not, its stores
    /// raise early enough (allowed).
    pub(crate) feed_raises_first: bool,
    /// R10: then what it could not load is raised before the cursor moves.
    pub(crate) left_out_is_raised: bool,
    /// R10, R14a: stamp slots that are added to what is pending take a new cause.
    pub(crate) slots_take_a_new_cause: bool,
    /// R8: where members are added by an earlier script, the store names its job's count.
    pub(crate) store_names_count: bool,
    /// R8: and it checks that no member was removed since.
    pub(crate) store_names_removals: bool,
    /// R8: and, as any store, it checks the tag's stamp.
    pub(crate) store_checks_tag: bool,
    /// R14: where Redis is to hold every row, only a backfill settles what may be missing.
    pub(crate) missing_is_filled: bool,
    /// R14: what a backfill could not store is loaded again by key, and the scan behind it does not pass over that.
    pub(crate) refused_rows_are_loaded: bool,
    /// R9: the scripts of such a backfill are counted with the scan that relies on them.
    pub(crate) fills_are_counted: bool,
    /// R19: a failover is a legal step back. Promise 1 as first worded did not say so.
    pub(crate) failover_may_go_back: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            stamps_are_compared: true,
            store_raises: true,
            refusal: Refusal::LoadsAgain,
            raise_answers: true,
            invalidation_names_epoch: true,
            raises_only_rise: true,
            store_names_incarnation: true,
            cursor_names_epoch: true,
            tag_sets_stay: true,
            absent_members_are_raised: true,
            tag_is_raised_first: true,
            registers_before_check: true,
            batches_are_counted: true,
            revalidations_are_counted: true,
            reads_are_counted: true,
            poll_is_one_statement: true,
            idle_looks_at_redis: true,
            poll_names_incarnation: true,
            watermark_moves_with_cursor: true,
            creation_compares: true,
            missing_cursor_is_new_epoch: true,
            pending_is_durable: true,
            revalidation_scans_redis: true,
            token_read: TokenRead::Together,
            page: Page::Slots,
            renews: false,
            equal_bytes_raise: true,
            epoch_before_load: true,
            definition_is_an_epoch: false,
            fingerprint_is_recorded: true,
            fingerprint_comes_with_cause: true,
            watermark_is_verified: true,
            causes_are_numbers: true,
            cause_is_read_first: true,
            beginnings_are_counted: true,
            cause_raises_revision: true,
            revision_is_read_first: true,
            revisions_are_unique: true,
            fingerprint_names_incarnation: true,
            fingerprint_names_capture: true,
            growth_is_compared: true,
            rows_are_a_change: true,
            prepared_are_awaited: true,
            late_writers: LateWriters::Transactions,
            left_out: LeftOut::WithAdvance,
            feed_raises_first: true,
            left_out_is_raised: true,
            slots_take_a_new_cause: true,
            store_names_count: true,
            store_names_removals: true,
            store_checks_tag: true,
            missing_is_filled: true,
            refused_rows_are_loaded: true,
            fills_are_counted: true,
            failover_may_go_back: true,
        }
    }
}

/// What a worker does about keys whose stores were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    LoadsAgain,
    /// R10: after some refusals it invalidates instead (here after the first: more of them add no other
    /// step).
    Invalidates,
    /// K4.
    CountsAsDone,
}

/// Who is waited for after the capture was off, before the dataset is covered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LateWriters {
    /// All that were open when the switch had been committed, with an id or without.
    Transactions,
    /// Those that had an id then (X45).
    Ids,
    /// Those below `xmax` of a snapshot of then (X43).
    BelowXmax,
    /// X42.
    Nobody,
}

/// When the stamp slots of keys that the feed could not load are recorded as pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftOut {
    WithAdvance,
    /// In a script of its own, which comes first (allowed).
    BeforeAdvance,
    /// X35.
    AfterAdvance,
    /// K14: the entries are kept, and nothing says so.
    Never,
}

/// How a reader with a token asks Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenRead {
    Together,
    WatermarkFirst,
    ValueFirst,
}

/// What a page of a loader raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// The slot of each key, as any store does.
    Slots,
    /// The floor, in each script that writes (the backfill of docs/protocol.md).
    FloorInEachScript,
    /// The floor, once before the page: a failover inside the page loses it (X24).
    FloorBefore,
    /// The floor, once after the page: a stalled neighbour writes in between (X15).
    FloorAfter,
    /// Nothing (K8).
    Nothing,
}
