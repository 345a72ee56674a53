//! Larger worlds of the repaired protocol. The long ones run with `--ignored`, in a release build.

use crate::faults::Fault::{
    Crash, CrashLosing, DropWindow, EvictCursor, EvictEntry, EvictTable, Failover, Flush, Kill, LoadFails,
    Rollback,
};
use crate::rules::{Page, Refusal};
use crate::worlds::{
    FILL0, FILL1, OnChange, TagScripts, WARM, WARM_TWICE, WARM0, WARM1, World, crowd, ddl, kept,
    members_first, prepared, row, switched, worlds,
};

worlds! {
    // Several faults at once.
    e01_rolling_deploy_with_a_new_definition:
        World { workers: 2, blind: Some(0), loaders: &[WARM], faults: &[(Kill, 1)], ..row([1, 0, 1]) }
        .under(|rules| rules.definition_is_an_epoch = true);
    e02_failover_and_evictions_of_table_and_entry:
        World {
            loaders: &[FILL0], faults: &[(EvictTable, 1), (EvictEntry, 1), (Failover, 1)], ..row([1, 1, 0])
        };
    e03_tags_with_failover_and_expiry:
        World {
            tags: true, loaders: &[FILL0], faults: &[(EvictEntry, 1), (Failover, 1)], ..row([1, 0, 1])
        };
    #[ignore = "long: make model"]
    e04_two_workers_failover_kill_and_page:
        World { workers: 2, loaders: &[WARM], faults: &[(Failover, 1), (Kill, 1)], ..row([1, 1, 0]) };
    #[ignore = "long: make model"]
    e05_two_workers_crash_failover_and_a_zombie_fill:
        World {
            workers: 2, loaders: &[WARM0], faults: &[(CrashLosing, 1), (Failover, 1)], ..row([2, 0, 0])
        }
        .under(|rules| rules.epoch_before_load = false);
    e06_two_failovers:
        World { loaders: &[WARM], faults: &[(Failover, 2), (EvictEntry, 1)], ..row([1, 1, 0]) };
    e07_crash_eviction_of_the_table_and_kill:
        World {
            loaders: &[WARM], faults: &[(CrashLosing, 1), (EvictTable, 1), (Kill, 1)], ..row([2, 1, 0])
        }
        .under(|rules| rules.epoch_before_load = false);
    e08_commits_out_of_order_rollback_failover_event:
        World { loaders: &[WARM], events: 1, faults: &[(Failover, 1), (Rollback, 1)], ..crowd([1, 1, 0]) };
    #[ignore = "long: make model"]
    e09_three_transactions_fill_page_event:
        World { loaders: &[WARM, FILL0], events: 1, ..crowd([1, 1, 1]) };
    e10_two_workers_page_and_crash:
        World { workers: 2, loaders: &[WARM], faults: &[(Crash, 1)], ..crowd([1, 1, 0]) };
    e11_reader_with_a_token_crash_and_failover:
        World {
            has_reader: true, loaders: &[FILL0],
            faults: &[(CrashLosing, 1), (Failover, 1), (EvictEntry, 1)], ..row([2, 0, 0])
        };
    e12_rest_stays_in_reach_after_failover_and_eviction:
        World { workers: 2, faults: &[(Failover, 1), (EvictTable, 1)], ..row([1, 1, 0]) };
    e13_rest_stays_in_reach_after_crash_and_kill:
        World { workers: 2, loaders: &[WARM], faults: &[(CrashLosing, 1), (Kill, 1)], ..row([2, 0, 0]) };
    e14_rest_stays_in_reach_beside_page_fill_and_event:
        World { loaders: &[WARM, FILL0], events: 1, ..row([1, 1, 1]) };
    #[ignore = "long: make model"]
    e15_epoch_read_late_over_flush_and_crash:
        World {
            workers: 2, loaders: &[WARM], faults: &[(Flush, 1), (CrashLosing, 1)], ..row([1, 1, 0])
        }
        .under(|rules| rules.epoch_before_load = false);
    e16_pages_that_raise_the_floor_beside_feed_and_failover:
        World { loaders: &[WARM, WARM], faults: &[(Failover, 1)], ..row([1, 1, 0]) }
        .under(|rules| rules.page = Page::FloorInEachScript);
    e17_equal_bytes_failover_and_eviction:
        World { loaders: &[WARM, WARM], faults: &[(EvictEntry, 1), (Failover, 1)], ..row([2, 0, 0]) }
        .under(|rules| rules.equal_bytes_raise = false);
    e18_epoch_is_renewed_after_a_failover:
        World { workers: 2, loaders: &[WARM], faults: &[(Failover, 1)], ..row([1, 1, 0]) }
        .under(|rules| rules.renews = true);
    #[ignore = "long: make model"]
    e19_two_workers_evictions_failover_kill:
        World {
            workers: 2, loaders: &[FILL0],
            faults: &[(EvictTable, 1), (EvictEntry, 1), (Failover, 1), (Kill, 1)], ..row([1, 0, 0])
        };
    e20_store_of_three_scripts_feed_and_events:
        World {
            tags: true, tag_scripts: TagScripts::Three, loaders: &[FILL0, FILL1], is_cold: true, events: 1,
            faults: &[(EvictEntry, 1)], ..crowd([1, 0, 1])
        };
    #[ignore = "long: make model"]
    e21_page_that_loads_twice_fill_and_deletes:
        World { workers: 2, loaders: &[WARM_TWICE, FILL1], ..row([1, 2, 0]) };
    #[ignore = "long: make model"]
    e22_different_slots_rollback_failover_event_eviction:
        World {
            slots: [0, 1], loaders: &[WARM], events: 1,
            faults: &[(Failover, 1), (Rollback, 1), (EvictEntry, 1)], ..crowd([1, 1, 0])
        };

    // What docs/protocol.md does and the review did not search: floors of backfills, giving up, events over new epochs.
    h01_event_across_an_evicted_table:
        World { loaders: &[FILL0], events: 1, faults: &[(EvictTable, 1), (Kill, 1)], ..row([1, 1, 0]) };
    h02_event_across_crash_and_failover:
        World {
            loaders: &[FILL0], events: 1, faults: &[(CrashLosing, 1), (Failover, 1)], ..row([2, 0, 0])
        };
    #[ignore = "long: make model"]
    h03_pass_that_raises_the_floor_over_eviction_and_failover:
        World {
            workers: 2, loaders: &[WARM], faults: &[(EvictTable, 1), (Failover, 1)], ..row([1, 1, 0])
        }
        .under(|rules| rules.page = Page::FloorInEachScript);
    h04_pass_that_raises_the_floor_over_crash_and_kill:
        World {
            loaders: &[WARM], faults: &[(CrashLosing, 1), (EvictTable, 1), (Kill, 1)], ..row([2, 1, 0])
        }
        .under(|rules| rules.page = Page::FloorInEachScript);
    h05_tags_over_an_evicted_table_and_failover:
        World {
            tags: true, loaders: &[FILL0], faults: &[(EvictTable, 1), (Failover, 1)], ..row([1, 0, 1])
        };
    h06_tags_over_a_crash:
        World { tags: true, workers: 2, loaders: &[WARM], faults: &[(CrashLosing, 1)], ..row([1, 0, 1]) };
    h07_tags_beside_pages_that_raise_the_floor:
        World {
            tags: true, loaders: &[WARM], faults: &[(Failover, 1), (EvictEntry, 1)], ..row([1, 0, 1])
        }
        .under(|rules| rules.page = Page::FloorInEachScript);
    #[ignore = "long: make model"]
    h08_changed_entries_are_deleted_over_eviction_and_failover:
        World {
            workers: 2, on_change: OnChange::Delete, loaders: &[FILL0],
            faults: &[(EvictTable, 1), (Failover, 1)], ..row([1, 1, 0])
        };
    #[ignore = "long: make model"]
    h09_renewed_epoch_and_an_evicted_table:
        World {
            workers: 2, loaders: &[FILL0], faults: &[(Failover, 1), (EvictTable, 1)], ..row([1, 1, 0])
        }
        .under(|rules| rules.renews = true);
    #[ignore = "long: make model"]
    h10_cursor_evicted_beside_a_failover:
        World {
            workers: 2, loaders: &[WARM], faults: &[(EvictCursor, 1), (Failover, 1)], ..row([1, 1, 0])
        };
    h11_refused_keys_are_invalidated_beside_pages_and_failover:
        World { loaders: &[WARM, WARM1], faults: &[(Failover, 1), (EvictEntry, 1)], ..row([1, 1, 0]) }
        .under(|rules| rules.refusal = Refusal::Invalidates);
    #[ignore = "long: make model"]
    h12_refused_keys_are_invalidated_over_eviction_and_crash:
        World {
            workers: 2, loaders: &[WARM], faults: &[(EvictTable, 1), (CrashLosing, 1)], ..row([1, 1, 0])
        }
        .under(|rules| rules.refusal = Refusal::Invalidates);
    h13_refused_keys_are_invalidated_beside_open_transactions:
        World { loaders: &[WARM, FILL0], ..crowd([1, 1, 1]) }
        .under(|rules| rules.refusal = Refusal::Invalidates);

    // DDL.
    #[ignore = "long: make model"]
    i11_ddl_fill_failover_kill_expiry:
        World {
            loaders: &[FILL0], faults: &[(EvictEntry, 1), (Failover, 1), (Kill, 1)], ..ddl([0, 0, 2])
        };
    #[ignore = "long: make model"]
    i12_ddl_two_workers_and_a_page: World { workers: 2, loaders: &[WARM0], ..ddl([1, 0, 1]) };
    #[ignore = "long: make model"]
    i13_ddl_two_workers_and_a_kill: World { workers: 2, faults: &[(Kill, 1)], ..ddl([1, 0, 2]) };
    #[ignore = "long: make model"]
    i14_ddl_page_and_crash: World { loaders: &[WARM0], faults: &[(Crash, 1)], ..ddl([1, 0, 1]) };
    #[ignore = "long: make model"]
    i15_ddl_page_and_open_transactions: World { overlap: true, loaders: &[WARM0], ..ddl([1, 1, 1]) };
    #[ignore = "long: make model"]
    i16_ddl_page_that_raises_the_floor_failover:
        World { loaders: &[WARM], faults: &[(Failover, 1)], ..ddl([0, 0, 2]) }
        .under(|rules| rules.page = Page::FloorInEachScript);
    // A revision that is counted is enough where every rollback renews the epoch: only while its worker lives.
    #[ignore = "long: make model"]
    i17_ddl_page_failover_renewed_epoch_counted_revisions:
        World { loaders: &[WARM0], faults: &[(Failover, 1)], ..ddl([0, 0, 3]) }
        .under(|rules| {
            rules.revisions_are_unique = false;
            rules.renews = true;
        });

    // Loads that fail, members that come first.
    #[ignore = "long: make model"]
    j21_left_out_two_workers_failover_kill_fill:
        World {
            workers: 2, loaders: &[FILL0], faults: &[(LoadFails, 2), (Failover, 1), (Kill, 1)],
            ..kept([2, 0, 0])
        };
    #[ignore = "long: make model"]
    j22_left_out_two_revalidations_page_and_ddl:
        World { keepers: 2, loaders: &[WARM0], faults: &[(LoadFails, 2)], ..ddl([2, 0, 1]) };
    #[ignore = "long: make model"]
    m11_members_first_failover_and_removal:
        World {
            loaders: &[WARM, FILL0], removes_members: true, on_change: OnChange::Delete,
            faults: &[(Failover, 1), (DropWindow, 1)], ..members_first([0, 0, 1])
        };

    // Prepared transactions, and a capture that is switched off and on again.
    #[ignore = "long: make model"]
    p11_prepared_transaction_two_workers_kill_failover:
        World {
            workers: 2, faults: &[(Crash, 1), (Kill, 1), (Failover, 1)], ..prepared([1, 0, 0])
        };
    #[ignore = "long: make model"]
    p12_prepared_transaction_beside_others_and_a_page:
        World { loaders: &[WARM0], ..prepared([1, 1, 0]) };
    #[ignore = "long: make model"]
    s11_capture_is_switched_two_workers_and_a_failover:
        World { workers: 2, faults: &[(Failover, 1)], ..switched([1, 0, 0]) };
    #[ignore = "long: make model"]
    s12_capture_is_switched_beside_two_writers_and_a_page:
        World { loaders: &[WARM0], ..switched([1, 1, 0]) };

    // The largest.
    g01_two_workers_page_and_failover:
        World { workers: 2, loaders: &[WARM], faults: &[(Failover, 1)], ..crowd([1, 1, 0]) };
    #[ignore = "long: make model"]
    g02_tags_two_workers_page_failover_expiry:
        World {
            tags: true, workers: 2, loaders: &[WARM], faults: &[(Failover, 1), (EvictEntry, 1)],
            ..row([1, 0, 1])
        };
    #[ignore = "long: make model"]
    g03_three_transactions_two_fills_and_a_page:
        World { loaders: &[WARM, FILL0, FILL1], faults: &[(EvictEntry, 1)], ..crowd([1, 1, 1]) };
    #[ignore = "long: make model"]
    g04_two_workers_crash_evictions_failover_fill:
        World {
            workers: 2, loaders: &[FILL0], faults: &[(CrashLosing, 1), (EvictTable, 1), (Failover, 1)],
            ..row([2, 0, 0])
        }
        .under(|rules| rules.epoch_before_load = false);
    #[ignore = "long: make model"]
    g05_two_workers_reader_with_a_token_failover:
        World {
            workers: 2, has_reader: true, loaders: &[FILL0], faults: &[(Failover, 1), (EvictEntry, 1)],
            ..row([1, 1, 0])
        };
    #[ignore = "long: make model"]
    g06_two_workers_deletes_page_kill_event:
        World { workers: 2, loaders: &[WARM], events: 1, faults: &[(Kill, 1)], ..row([0, 2, 1]) };
}
