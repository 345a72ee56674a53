//! Worlds of the repaired protocol that are exhausted in seconds: no invariant breaks.

use crate::faults::Fault::{
    Crash, CrashLosing, DropWindow, EvictCursor, EvictEntry, EvictTable, Failover, Flush, Kill, LoadFails,
};
use crate::rules::{LeftOut, Page, TokenRead};
use crate::worlds::{
    FILL0, FILL1, Growth, OnChange, TagScripts, WARM, WARM0, World, crowd, ddl, filled, filled_rows, kept,
    members_first, prepared, row, switched, worlds,
};

worlds! {
    // Repaired, nothing lost.
    a01_page_and_fill_with_commits_out_of_order:
        World { loaders: &[WARM, FILL0], faults: &[(EvictEntry, 1)], ..crowd([1, 1, 1]) };
    a02_page_and_fill_in_different_slots:
        World { loaders: &[WARM, FILL0], slots: [0, 1], faults: &[(EvictEntry, 1)], ..crowd([1, 1, 1]) };
    a03_row_is_deleted_and_inserted_again:
        World { loaders: &[WARM, FILL1], faults: &[(EvictEntry, 1)], ..crowd([1, 2, 0]) };
    a04_event_is_duplicated_beside_a_page: World { loaders: &[WARM, FILL1], events: 2, ..crowd([1, 1, 0]) };
    a05_two_workers_one_a_zombie: World { workers: 2, loaders: &[WARM], ..row([1, 0, 1]) };
    a06_two_workers_with_overlapping_commits:
        World { workers: 2, faults: &[(Kill, 1)], ..crowd([1, 1, 0]) };
    a07_changed_entries_are_deleted:
        World { on_change: OnChange::Delete, loaders: &[WARM, FILL0, FILL1], ..crowd([1, 1, 0]) };
    a08_pages_raise_the_floor_in_each_script:
        World { loaders: &[WARM, WARM], ..row([1, 0, 1]) }
        .under(|rules| rules.page = Page::FloorInEachScript);
    a09_equal_bytes_need_not_raise:
        World { loaders: &[WARM, FILL0], faults: &[(EvictEntry, 1)], ..crowd([1, 0, 1]) }
        .under(|rules| rules.equal_bytes_raise = false);

    // Redis loses things.
    b01_table_is_evicted_and_the_worker_killed:
        World { loaders: &[WARM], faults: &[(EvictTable, 1), (Kill, 1)], ..row([1, 1, 0]) };
    b02_two_workers_race_to_create_an_epoch:
        World { workers: 2, faults: &[(EvictTable, 1)], ..row([1, 1, 0]) };
    b03_flush: World { loaders: &[WARM, FILL0], faults: &[(Flush, 1), (Kill, 1)], ..row([1, 1, 0]) };
    b04_cursor_is_evicted_alone:
        World { loaders: &[WARM], faults: &[(EvictCursor, 1), (Kill, 1)], ..row([1, 1, 0]) };
    b05_failover_to_an_old_copy: World { loaders: &[WARM], faults: &[(Failover, 1)], ..row([1, 1, 0]) };
    b06_failover_under_two_workers: World { workers: 2, faults: &[(Failover, 1)], ..row([1, 1, 0]) };
    b07_failover_and_eviction_of_the_table:
        World { loaders: &[FILL0], faults: &[(Failover, 1), (EvictTable, 1)], ..row([1, 1, 0]) };
    b08_table_is_evicted_twice:
        World { workers: 2, loaders: &[WARM], faults: &[(EvictTable, 2)], ..row([1, 0, 0]) };

    // Postgres crashes.
    c01_crash_with_open_transactions_uses_xids_again:
        World { loaders: &[WARM], faults: &[(Crash, 1)], ..crowd([1, 1, 0]) };
    c02_crash_loses_the_last_commit:
        World { loaders: &[WARM], faults: &[(CrashLosing, 1)], ..row([2, 1, 0]) };
    c03_crash_loses_a_commit_under_a_zombie:
        World { workers: 2, faults: &[(CrashLosing, 1)], ..row([2, 0, 0]) };
    c04_crash_and_failover:
        World { loaders: &[FILL0], faults: &[(CrashLosing, 1), (Failover, 1)], ..row([2, 0, 0]) };
    c05_crash_and_the_worker_killed_in_the_revalidation:
        World { loaders: &[FILL0], faults: &[(CrashLosing, 1), (Kill, 1)], ..row([2, 1, 0]) };

    // Tags.
    d01_tag_through_the_feed:
        World { tags: true, loaders: &[WARM, FILL0], faults: &[(EvictEntry, 1)], ..crowd([1, 0, 1]) };
    d02_tag_event_and_a_store_of_three_scripts:
        World {
            tags: true, tag_scripts: TagScripts::Three, has_tag_event: true, workers: 0,
            loaders: &[FILL0, FILL1], is_cold: true, ..crowd([0, 0, 1])
        };
    d03_feed_and_a_store_of_three_scripts:
        World {
            tags: true, tag_scripts: TagScripts::Three, loaders: &[FILL0, FILL1], is_cold: true,
            ..row([0, 0, 2])
        };

    // DDL, which no captured row tells of; revalidations beside the feed.
    i01_ddl_beside_a_fill: World { loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..ddl([1, 0, 1]) };
    i02_ddl_twice_beside_a_page: World { loaders: &[WARM0], ..ddl([0, 0, 2]) };
    i03_ddl_and_the_worker_killed: World { faults: &[(Kill, 1)], ..ddl([1, 0, 2]) };
    i04_ddl_under_two_revalidations: World { keepers: 2, ..ddl([0, 0, 2]) };
    i05_ddl_failover_and_kill: World { faults: &[(Failover, 1), (Kill, 1)], ..ddl([0, 0, 2]) };
    i06_ddl_and_an_evicted_table: World { faults: &[(EvictTable, 1)], ..ddl([1, 0, 1]) };
    i07_ddl_beside_open_transactions: World { overlap: true, ..ddl([1, 1, 1]) };
    i08_ddl_lost_by_a_crash: World { faults: &[(CrashLosing, 1)], ..ddl([0, 0, 2]) };

    // Loads fail for many keys: the entries are kept, and their stamp slots are pending.
    j01_left_out_beside_a_fill:
        World { loaders: &[FILL0], faults: &[(LoadFails, 1), (EvictEntry, 1)], ..kept([1, 1, 0]) };
    j02_left_out_twice: World { faults: &[(LoadFails, 2)], ..kept([2, 1, 0]) };
    j03_left_out_beside_a_page_of_the_same_key:
        World { loaders: &[WARM0], faults: &[(LoadFails, 2)], ..kept([2, 0, 0]) };
    j04_left_out_and_the_worker_killed: World { faults: &[(LoadFails, 1), (Kill, 1)], ..kept([1, 1, 0]) };
    j05_left_out_failover_and_kill:
        World { faults: &[(LoadFails, 1), (Failover, 1), (Kill, 1)], ..kept([2, 0, 0]) };
    j06_left_out_under_two_workers: World { workers: 2, faults: &[(LoadFails, 1)], ..kept([1, 1, 0]) };
    j07_left_out_and_a_crash: World { faults: &[(LoadFails, 1), (CrashLosing, 1)], ..kept([2, 0, 0]) };
    j08_left_out_and_an_evicted_table: World { faults: &[(LoadFails, 1), (EvictTable, 1)], ..kept([2, 0, 0]) };
    j09_left_out_is_recorded_before_the_advance:
        World { faults: &[(LoadFails, 1), (Kill, 1)], ..kept([2, 0, 0]) }
        .under(|rules| rules.left_out = LeftOut::BeforeAdvance);
    j10_left_out_beside_ddl: World { faults: &[(LoadFails, 1)], ..ddl([2, 0, 1]) };
    j11_left_out_under_two_revalidations: World { keepers: 2, faults: &[(LoadFails, 1)], ..kept([1, 1, 0]) };
    j12_left_out_members_of_a_tag: World { tags: true, faults: &[(LoadFails, 1)], ..kept([1, 0, 1]) };
    j13_left_out_in_one_slot_beside_pages_that_raise_the_floor:
        World { slots: [0, 0], loaders: &[WARM, FILL0], faults: &[(LoadFails, 1)], ..kept([1, 1, 0]) }
        .under(|rules| rules.page = Page::FloorInEachScript);
    j14_left_out_and_a_reader_with_a_token:
        World { has_reader: true, faults: &[(LoadFails, 1), (Failover, 1)], ..kept([1, 0, 0]) };

    // The feed loads every key that changed, and raises by its stores alone.
    l01_loads_unraised_beside_a_page_and_a_fill:
        World { loaders: &[WARM, FILL0], faults: &[(EvictEntry, 1)], ..crowd([1, 1, 1]) }
        .under(|rules| rules.feed_raises_first = false);
    l02_loads_unraised_with_deleted_rows:
        World { loaders: &[WARM, FILL1], faults: &[(EvictEntry, 1)], ..crowd([1, 2, 0]) }
        .under(|rules| rules.feed_raises_first = false);
    l03_loads_unraised_under_two_workers_and_a_failover:
        World { workers: 2, faults: &[(Failover, 1)], ..row([1, 1, 0]) }
        .under(|rules| rules.feed_raises_first = false);
    l04_loads_unraised_by_tag:
        World { tags: true, loaders: &[WARM, FILL0], faults: &[(EvictEntry, 1)], ..crowd([1, 0, 1]) }
        .under(|rules| rules.feed_raises_first = false);
    l05_loads_unraised_and_left_out_beside_a_fill:
        World { loaders: &[FILL0], faults: &[(LoadFails, 1), (EvictEntry, 1)], ..kept([1, 1, 0]) }
        .under(|rules| rules.feed_raises_first = false);
    l06_loads_unraised_left_out_and_killed:
        World { loaders: &[WARM0], faults: &[(LoadFails, 1), (Kill, 1)], ..kept([2, 0, 0]) }
        .under(|rules| rules.feed_raises_first = false);
    l07_loads_unraised_over_a_crash:
        World { loaders: &[WARM], faults: &[(CrashLosing, 1)], ..row([2, 1, 0]) }
        .under(|rules| rules.feed_raises_first = false);
    l08_loads_unraised_beside_ddl:
        World { loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..ddl([1, 0, 1]) }
        .under(|rules| rules.feed_raises_first = false);

    // Members of tags by a script before the stores.
    m01_members_first_and_a_failover:
        World { loaders: &[FILL0], faults: &[(Failover, 1)], ..members_first([0, 0, 2]) };
    m02_members_first_a_page_a_fill_and_an_expiry:
        World { loaders: &[WARM, FILL0], faults: &[(EvictEntry, 1)], ..members_first([0, 0, 1]) };
    m03_members_first_and_an_event_that_removes_them:
        World {
            has_tag_event: true, removes_members: true, workers: 0, loaders: &[FILL0, FILL1],
            overlap: true, ..members_first([0, 0, 1])
        };
    m04_members_first_and_a_feed_that_removes_them:
        World {
            removes_members: true, on_change: OnChange::Delete, loaders: &[WARM, FILL0],
            ..members_first([0, 0, 2])
        };
    m05_members_first_and_a_dropped_window:
        World { loaders: &[FILL0], faults: &[(DropWindow, 1)], ..members_first([0, 0, 2]) };
    m06_members_first_failover_and_an_evicted_table:
        World { loaders: &[WARM], faults: &[(Failover, 1), (EvictTable, 1)], ..members_first([0, 0, 1]) };
    m07_members_first_crash_and_a_dropped_window:
        World { loaders: &[WARM0], faults: &[(CrashLosing, 1), (DropWindow, 1)], ..members_first([0, 0, 2]) };
    m08_members_first_and_pages_that_raise_the_floor:
        World { loaders: &[WARM], faults: &[(Failover, 1)], ..members_first([1, 0, 1]) }
        .under(|rules| rules.page = Page::FloorInEachScript);
    m09_one_script_and_a_feed_that_removes_members:
        World {
            tags: true, removes_members: true, on_change: OnChange::Delete, loaders: &[WARM, FILL0],
            ..row([1, 0, 1])
        };

    // Redis is to hold every row: a revalidation begins with a backfill, and a scan sees to the rest.
    f01_fill_first_beside_ddl: filled([1, 1, 1]);
    f02_fill_first_beside_a_page: World { loaders: &[WARM0], ..filled([0, 1, 1]) };
    f03_fill_first_beside_a_fill:
        World { loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..filled([0, 1, 1]) };
    f04_fill_first_and_a_failover: World { faults: &[(Failover, 1)], ..filled([0, 1, 1]) };
    f05_fill_first_and_the_worker_killed: World { faults: &[(Kill, 1)], ..filled([1, 0, 2]) };
    f06_fill_first_with_a_row_that_is_gone_and_comes_again:
        World { faults: &[(EvictTable, 1)], ..filled_rows([1, 2, 0]) };
    f07_fill_first_after_a_flush: World { faults: &[(Flush, 1)], ..filled_rows([1, 1, 0]) };
    f08_fill_first_and_a_crash: World { faults: &[(CrashLosing, 1)], ..filled_rows([2, 1, 0]) };
    f09_fill_first_beside_loads_that_fail: World { faults: &[(LoadFails, 1)], ..filled([1, 0, 1]) };

    // A tree of tables that grows.
    t01_tree_grows_beside_ddl: World { grows: Some(Growth::Empty), ..ddl([1, 0, 1]) };
    t02_partition_comes_with_rows:
        World { grows: Some(Growth::WithRows), loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..ddl([1, 0, 0]) };
    t03_tree_grows_and_the_worker_is_killed:
        World { grows: Some(Growth::Empty), faults: &[(Kill, 1)], ..ddl([0, 0, 2]) };
    t04_tree_grows_and_a_failover:
        World { grows: Some(Growth::Empty), faults: &[(Failover, 1)], ..ddl([0, 0, 1]) };
    t05_partition_comes_with_rows_beside_ddl: World { grows: Some(Growth::WithRows), ..ddl([0, 0, 1]) };

    // Prepared transactions across a crash.
    p01_prepared_transaction_and_a_crash: prepared([1, 0, 0]);
    p02_prepared_and_another_transaction: prepared([1, 1, 0]);
    p03_prepared_transaction_beside_a_fill:
        World { loaders: &[FILL0], faults: &[(Crash, 1), (EvictEntry, 1)], ..prepared([1, 0, 0]) };
    p04_prepared_transaction_and_two_crashes: World { faults: &[(Crash, 2)], ..prepared([1, 0, 0]) };
    p05_prepared_transaction_and_a_failover:
        World { faults: &[(Crash, 1), (Failover, 1)], ..prepared([1, 0, 0]) };

    // The capture is switched off and on again.
    s01_capture_is_switched_beside_two_writers: switched([1, 1, 0]);
    s02_capture_is_switched_beside_a_fill:
        World { loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..switched([1, 0, 0]) };
    s03_capture_is_switched_and_the_worker_killed: World { faults: &[(Kill, 1)], ..switched([2, 0, 0]) };
    s04_capture_is_switched_and_a_failover: World { faults: &[(Failover, 1)], ..switched([1, 0, 0]) };
    s05_capture_is_switched_beside_a_page: World { loaders: &[WARM0], ..switched([2, 0, 0]) };

    // Reading what one has written.
    r01_token_with_watermark_and_value_in_one_read:
        World { has_reader: true, faults: &[(Failover, 1)], ..row([1, 0, 1]) };
    r02_token_with_watermark_first_without_failover:
        World { has_reader: true, loaders: &[FILL0], faults: &[(EvictEntry, 1)], ..crowd([1, 0, 1]) }
        .under(|rules| rules.token_read = TokenRead::WatermarkFirst);
}
