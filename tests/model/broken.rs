//! Worlds with one rule left out. Each must break what it says: a test fails where the model is blind to it.
//!
//! The first invariant named is what a reader of the cache would notice; the others are broken on the way.

use crate::faults::Fault::{
    ClockBack, Crash, CrashLosing, DropWindow, EvictCursor, EvictEntry, EvictTable, EvictTag, Failover,
    Flush, Kill, LoadFails,
};
use crate::rules::{LateWriters, LeftOut, Page, Refusal, TokenRead};
use crate::worlds::{
    FILL0, Growth, OnChange, TagScripts, WARM, WARM0, WARM1, World, crowd, ddl, filled, filled_rows, kept,
    members_first, prepared, row, switched, worlds,
};

worlds! {
    // Counterexamples of the review: docs/protocol.md as it could be read before, one rule left out.
    // R9: the batch is counted; the cursor alone is where the worker left it.
    x01_failover_inside_a_batch_is_noticed breaks I2, I6:
        World { faults: &[(Failover, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.batches_are_counted = false);
    // R12: cursor and watermark in one script.
    x02_watermark_in_a_second_script_outlives_a_failover breaks I2, I4:
        World { faults: &[(Failover, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.watermark_moves_with_cursor = false);
    // R19: the public words name the failover.
    x03_promise_1_needs_the_words_on_failover breaks I1:
        World { faults: &[(Failover, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.failover_may_go_back = false);
    // R11: the idle tick runs the cursor script.
    x04_idle_worker_notices_a_failover breaks I12, I11:
        World { faults: &[(Failover, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.idle_looks_at_redis = false);
    // R11.
    x05_idle_worker_notices_a_missing_table breaks I12:
        World { faults: &[(EvictTable, 1)], ..crowd([0, 0, 0]) }
        .under(|rules| rules.idle_looks_at_redis = false);
    // R14: what is pending is written in Redis.
    x06_pending_outlives_a_worker_killed_after_a_crash breaks I11, I12:
        World { faults: &[(CrashLosing, 1), (Kill, 1)], ..row([2, 0, 0]) }
        .under(|rules| rules.pending_is_durable = false);
    // R14.
    x07_pending_outlives_a_worker_killed_after_an_eviction breaks I11, I12:
        World { faults: &[(EvictTable, 1), (Kill, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.pending_is_durable = false);
    // R14: what is pending holds back the watermark of all workers.
    x08_pending_holds_back_the_second_worker breaks I2:
        World { workers: 2, faults: &[(EvictTable, 1)], ..row([1, 1, 0]) }
        .under(|rules| rules.pending_is_durable = false);
    // R14: the scan is over Redis, so it meets what the table no longer has.
    x09_pass_meets_entries_whose_rows_are_gone breaks I2, I5:
        World { faults: &[(EvictTable, 1)], ..row([0, 1, 0]) }
        .under(|rules| rules.revalidation_scans_redis = false);
    // R4: the cursor script names the epoch too, for xids return.
    x10_cursor_script_names_the_epoch breaks I2, I4, I6:
        World { workers: 2, faults: &[(CrashLosing, 1)], ..row([3, 0, 0]) }
        .under(|rules| rules.cursor_names_epoch = false);
    // R8: no expiry on tag sets.
    x11_tag_sets_are_not_evicted breaks I2, I8:
        World { tags: true, faults: &[(EvictTag, 1)], ..row([0, 0, 1]) }
        .under(|rules| rules.tag_sets_stay = false);
    // R13.
    x12_missing_cursor_is_a_new_epoch breaks I11, I6:
        World { faults: &[(EvictCursor, 1), (Kill, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.missing_cursor_is_new_epoch = false);
    // R18: one MGET.
    x13_value_read_before_the_watermark breaks I10:
        World { has_reader: true, ..row([1, 0, 0]) }
        .under(|rules| rules.token_read = TokenRead::ValueFirst);
    // R18.
    x14_watermark_read_before_a_failover_and_the_value_after breaks I10:
        World { has_reader: true, faults: &[(Failover, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.token_read = TokenRead::WatermarkFirst);
    // R7: a script that writes raises what covers it.
    x15_floor_raised_after_the_page breaks I1, I11:
        World { loaders: &[WARM, WARM0], workers: 0, ..row([1, 0, 0]) }
        .under(|rules| rules.page = Page::FloorAfter);
    // R9 for revalidations.
    x16_failover_inside_a_pass_is_noticed breaks I2, I5, I6:
        World { faults: &[(Failover, 1), (EvictTable, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.revalidations_are_counted = false);
    // R4: a store names the incarnation of its load.
    x17_load_of_a_lost_history_is_refused breaks I3, I11:
        World { loaders: &[WARM0], faults: &[(CrashLosing, 1)], ..row([1, 0, 0]) }
        .under(|rules| { rules.store_names_incarnation = false; rules.epoch_before_load = false; });
    // R11: the poll returns the incarnation.
    x18_idle_poll_names_the_incarnation breaks I11, I12:
        World { faults: &[(CrashLosing, 1)], ..row([2, 0, 0]) }
        .under(|rules| {
            rules.poll_names_incarnation = false;
            rules.store_names_incarnation = false;
        });
    // R4, as X17, from the other side.
    x19_load_of_a_new_history_is_refused_by_the_old_epoch breaks I2, I1:
        World { loaders: &[WARM0], faults: &[(CrashLosing, 1)], ..row([1, 1, 0]) }
        .under(|rules| rules.store_names_incarnation = false);
    // R16: no rule left out but the one that definitions are epochs, which e01 keeps.
    x20_worker_of_an_old_definition_stops breaks I2: World { workers: 2, blind: Some(0), ..row([0, 0, 1]) };
    // R20: no rule of one server helps; no watermark in Cluster until a shard that goes back is noticed.
    x21_shard_that_fails_over_alone breaks I2:
        World { is_sharded: true, slots: [0, 1], faults: &[(Failover, 1)], ..row([0, 1, 0]) };
    // R9: reads that a claim rests on are counted.
    x22_scan_of_redis_is_counted breaks I2, I5:
        World { faults: &[(EvictTable, 1), (EvictEntry, 1), (Failover, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.reads_are_counted = false);
    // R9.
    x23_enumeration_of_a_tag_is_counted breaks I2:
        World { tags: true, faults: &[(EvictEntry, 1), (Failover, 1)], ..row([0, 0, 1]) }
        .under(|rules| rules.reads_are_counted = false);
    // R7.
    x24_floor_raised_before_a_failover_and_the_page_after breaks I1, I11:
        World { loaders: &[WARM, WARM0], workers: 0, faults: &[(Failover, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.page = Page::FloorBefore);
    // R8: one script, or no tags in Cluster.
    x25_store_of_three_scripts_across_a_failover breaks I2, I8:
        World {
            tags: true, tag_scripts: TagScripts::Three, loaders: &[FILL0], is_cold: true,
            faults: &[(Failover, 1)], ..row([0, 0, 1])
        };

    // R12: what the feed followed by is recorded in Redis; a worker that begins knows nothing else.
    x26_fingerprint_is_lost_with_the_worker breaks I2, I11:
        World { faults: &[(Kill, 1)], ..ddl([0, 0, 1]) }
        .under(|rules| rules.fingerprint_is_recorded = false);
    // R12.
    x27_watermark_passes_an_unverified_snapshot breaks I2:
        ddl([0, 0, 1]).under(|rules| rules.watermark_is_verified = false);
    // R12: fingerprint and cause in one script.
    x28_cause_in_a_script_after_the_fingerprint breaks I2, I11:
        World { faults: &[(Kill, 1)], ..ddl([0, 0, 1]) }
        .under(|rules| rules.fingerprint_comes_with_cause = false);
    // R14a: a number, not a date.
    x29_clock_goes_back_between_a_revalidation_and_a_cause breaks I2, I11:
        World { faults: &[(ClockBack, 1)], ..ddl([0, 0, 2]) }
        .under(|rules| rules.causes_are_numbers = false);
    // R14a: what comes later is not settled.
    x30_revalidation_settles_what_came_after_its_load breaks I2, I11:
        ddl([0, 0, 2]).under(|rules| rules.cause_is_read_first = false);
    // R9, R14a: a rollback takes causes back, and their numbers are given again.
    x31_revalidation_begins_uncounted breaks I2, I11:
        World { faults: &[(Failover, 1)], ..ddl([0, 0, 2]) }
        .under(|rules| rules.beginnings_are_counted = false);
    // R14a: no stamp slot was raised, so only the revision can refuse.
    x32_load_outlives_the_revalidation_of_a_key_it_did_not_find breaks I2, I11:
        World { loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..ddl([0, 0, 1]) }
        .under(|rules| rules.cause_raises_revision = false);
    // R14a: of two loads with equal stamps the one that was planned first shows less.
    x33_revision_read_after_the_statement_was_sent breaks I2, I11:
        World { loaders: &[WARM0], ..ddl([0, 0, 1]) }
        .under(|rules| rules.revision_is_read_first = false);
    // R14a: a counter in Redis is rolled back with it.
    x34_revision_is_used_again_after_a_failover breaks I2:
        World { loaders: &[WARM0], faults: &[(Failover, 1)], ..ddl([0, 0, 2]) }
        .under(|rules| rules.revisions_are_unique = false);

    // R10: what was left out is recorded with the move of the cursor, or before.
    x35_what_was_left_out_is_recorded_after_the_advance breaks I2, I11:
        World { faults: &[(LoadFails, 1), (Kill, 1)], ..kept([1, 0, 0]) }
        .under(|rules| rules.left_out = LeftOut::AfterAdvance);
    // R14a: what is added later has a number of its own.
    x36_stamp_slots_are_added_to_a_cause_that_was_read breaks I2, I11:
        World { faults: &[(LoadFails, 2)], ..kept([2, 0, 0]) }
        .under(|rules| rules.slots_take_a_new_cause = false);
    // R8, R9: members by an earlier script, and Redis was rolled back in between.
    x37_members_are_lost_before_the_store breaks I2, I8:
        World { loaders: &[FILL0], faults: &[(Failover, 1)], ..members_first([0, 0, 1]) }
        .under(|rules| rules.store_names_count = false);
    // R8: a deletion took the member out of the set.
    x38_members_are_removed_before_the_store breaks I2, I8:
        World {
            loaders: &[FILL0], removes_members: true, on_change: OnChange::Delete, ..members_first([0, 0, 2])
        }
        .under(|rules| rules.store_names_removals = false);
    // R8: or their window was dropped.
    x39_window_is_dropped_before_the_store breaks I2, I8:
        World { loaders: &[FILL0], faults: &[(DropWindow, 1)], ..members_first([0, 0, 1]) }
        .under(|rules| rules.store_names_removals = false);

    // R12: what a prepared transaction wrote to the outbox does not outlive a crash; the transaction does.
    x40_prepared_transaction_outlives_a_crash breaks I2, I11:
        prepared([1, 0, 0]).under(|rules| rules.prepared_are_awaited = false);
    // R12: a fingerprint of the incarnation before says nothing about this one.
    x41_coverage_outlives_its_incarnation breaks I2, I11:
        prepared([1, 0, 0]).under(|rules| rules.fingerprint_names_incarnation = false);
    // R12.
    x42_late_writer_is_not_awaited breaks I2, I11:
        switched([1, 0, 0]).under(|rules| rules.late_writers = LateWriters::Nobody);
    // R12: `xmax` is one above the newest id that has ended, so an open transaction may have it.
    x43_late_writer_is_not_below_xmax breaks I2, I11:
        switched([1, 0, 0]).under(|rules| rules.late_writers = LateWriters::BelowXmax);
    // R12.
    x44_fingerprint_does_not_tell_that_the_capture_was_off breaks I2, I11:
        switched([1, 0, 0]).under(|rules| rules.fingerprint_names_capture = false);
    // R12: a statement runs the trigger function as it was when it began, and takes its id with its first row.
    x45_late_writer_has_no_id_yet breaks I2, I11:
        switched([1, 0, 0]).under(|rules| rules.late_writers = LateWriters::Ids);

    // R14: what the backfill of a revalidation could not store, the scan must see to.
    x46_refused_rows_of_a_backfill_are_passed_over breaks I2, I11:
        filled([0, 1, 1]).under(|rules| rules.refused_rows_are_loaded = false);
    // R9: the scan relies on the scripts of the backfill.
    x47_backfill_of_a_revalidation_is_not_counted breaks I2, I11:
        World { faults: &[(Failover, 1)], ..filled([0, 0, 1]) }
        .under(|rules| rules.fills_are_counted = false);
    // R14: a scan of Redis does not find what is missing there.
    x48_scan_settles_what_is_missing breaks I14:
        World { faults: &[(Flush, 1)], ..filled_rows([0, 0, 0]) }
        .under(|rules| rules.missing_is_filled = false);
    // R14a: the statement of the backfill is the first one, so the cause is read before it.
    x49_backfill_settles_what_came_after_its_statement breaks I2, I11:
        filled([0, 0, 2]).under(|rules| rules.cause_is_read_first = false);
    // R12: what a tree has grown by is not all that may be new.
    x50_growth_hides_a_ddl breaks I2, I11:
        World { grows: Some(Growth::Empty), ..ddl([0, 0, 1]) }
        .under(|rules| rules.growth_is_compared = false);
    // R12.
    x51_partition_with_rows_is_taken_for_growth breaks I2, I11:
        World { grows: Some(Growth::WithRows), ..ddl([0, 0, 0]) }
        .under(|rules| rules.rows_are_a_change = false);

    // Controls: a model that does not see these is blind.
    k01_no_stamps breaks I2:
        World { loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.stamps_are_compared = false);
    k02_store_that_does_not_raise breaks I1:
        World { loaders: &[WARM0, WARM0], ..row([1, 0, 0]) }.under(|rules| rules.store_raises = false);
    k03_exists_before_the_raise breaks I2:
        World { loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.raise_answers = false);
    // R5.
    k04_refused_store_counts_as_applied breaks I2:
        World { loaders: &[WARM1], ..row([2, 0, 0]) }.under(|rules| rules.refusal = Refusal::CountsAsDone);
    k05_tag_checked_before_registration breaks I11:
        World {
            tags: true, tag_scripts: TagScripts::Three, has_tag_event: true, workers: 0, loaders: &[FILL0],
            is_cold: true, ..crowd([0, 0, 1])
        }
        .under(|rules| rules.registers_before_check = false);
    k06_tag_enumerated_before_the_raise breaks I11:
        World {
            tags: true, tag_scripts: TagScripts::Three, has_tag_event: true, workers: 0, loaders: &[FILL0],
            is_cold: true, ..crowd([0, 0, 1])
        }
        .under(|rules| rules.tag_is_raised_first = false);
    k07_absent_members_are_not_raised breaks I11:
        World {
            tags: true, tag_scripts: TagScripts::Three, has_tag_event: true, workers: 0, loaders: &[FILL0],
            is_cold: true, ..crowd([0, 0, 1])
        }
        .under(|rules| rules.absent_members_are_raised = false);
    k08_page_that_raises_nothing breaks I1:
        World { loaders: &[WARM, WARM0], workers: 0, ..row([1, 0, 0]) }
        .under(|rules| rules.page = Page::Nothing);
    // It may go either way: creation without comparison costs work. Over a crash it brings a retired life
    // back (k12).
    k09_epochs_created_without_comparison:
        World { workers: 2, loaders: &[WARM], faults: &[(EvictTable, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.creation_compares = false);
    // R4: a stamp of the old history bars the slot until the xids have caught up.
    k10_invalidation_without_epoch breaks I13:
        World { events: 1, faults: &[(CrashLosing, 1)], ..row([2, 0, 0]) }
        .under(|rules| rules.invalidation_names_epoch = false);
    k11_outbox_and_snapshot_in_two_statements breaks I2:
        row([1, 1, 0]).under(|rules| rules.poll_is_one_statement = false);
    // R13.
    k12_epochs_created_without_comparison_over_a_crash breaks I9:
        World { workers: 2, faults: &[(EvictTable, 1), (Crash, 1)], ..row([1, 0, 0]) }
        .under(|rules| rules.creation_compares = false);
    // R6.
    k13_raise_that_sets breaks I7:
        World { loaders: &[WARM0], events: 1, ..row([1, 1, 0]) }
        .under(|rules| rules.raises_only_rise = false);
    // R10.
    k14_kept_entries_lie_under_the_watermark breaks I2:
        World { faults: &[(LoadFails, 1)], ..kept([1, 0, 0]) }
        .under(|rules| rules.left_out = LeftOut::Never);
    // R10.
    k16_what_is_left_out_without_being_raised breaks I2:
        World { loaders: &[FILL0], faults: &[(LoadFails, 1), (EvictEntry, 1)], ..kept([1, 0, 0]) }
        .under(|rules| {
            rules.feed_raises_first = false;
            rules.left_out_is_raised = false;
        });
    // R8.
    k15_members_first_and_no_look_at_the_tag breaks I2:
        World { loaders: &[FILL0], ..members_first([0, 0, 1]) }
        .under(|rules| rules.store_checks_tag = false);
}
