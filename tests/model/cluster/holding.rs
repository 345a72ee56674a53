//! Worlds that keep all rules, or do without one that is not needed: each must be exhausted without a violation.

use super::model::Cluster;
use super::rules::Application::{Fills, FillsUnstamped, Reads};
use super::rules::{Duties, Rule, World};
use super::topology::Fault::{
    BringBack, Crash, EvictGuard, Failover, Flush, Kill, Migrate, MoveHome, Restart, TurnBack,
};
use crate::search::search;

/// No entry is there in the beginning.
pub(super) fn uncached() -> World {
    World { cached: [false, false], ..World::default() }
}

/// Slot 0 has been B's for a while, and A may fail over to what it held before.
pub(super) fn moved_before() -> World {
    World { has_moved: true, ..World::default() }
}

/// Two leaders: the second one only adopts, or only follows the node to which slot 0 moves.
pub(super) fn two(second: Duties) -> World {
    World { tasks: 2, contests: 1, duties: [Duties::All, second], ..World::default() }
}

/// The others are asked seldom, and tools wait until they were asked.
fn seldom(world: World) -> World {
    World { asks_seldom: true, tools_wait_for_it: true, ..world }
}

macro_rules! worlds {
    ($($(#[$meta:meta])* $name:ident: $world:expr;)+) => {
        $(
            $(#[$meta])*
            #[test]
            fn $name() {
                search(stringify!($name), &Cluster { world: $world, watch: Vec::new() }, &[]);
            }
        )+
    };
}

worlds! {
    a01_slot_moves: World { faults: &[(Migrate, 0, 1)], ..World::default() };
    a02_slot_moves_beside_a_fill: World { application: Fills, faults: &[(Migrate, 0, 1)], ..World::default() };
    a03_slot_moves_to_and_fro_beside_a_fill:
        World { application: Fills, faults: &[(Migrate, 0, 2)], ..World::default() };
    a04_slot_moves_to_and_fro_beside_an_unstamped_fill:
        World { application: FillsUnstamped, faults: &[(Migrate, 0, 2)], ..uncached() };
    #[ignore = "long: make model"]
    a05_guard_is_evicted_beside_an_unstamped_fill:
        World { application: FillsUnstamped, faults: &[(Migrate, 0, 2), (EvictGuard, 0, 1)], ..uncached() };
    #[ignore = "long: make model"]
    a06_two_leaders: World { faults: &[(Migrate, 0, 1)], ..two(Duties::All) };
    #[ignore = "long: make model"]
    a07_two_leaders_and_a_failover: World { faults: &[(Failover, 0, 1)], ..two(Duties::All) };
    a08_migration_turns_back:
        World { faults: &[(Migrate, 0, 2), (TurnBack, 0, 1)], ..World::default() };
    #[ignore = "long: make model"]
    a09_migration_turns_back_beside_a_fill:
        World { application: Fills, faults: &[(Migrate, 0, 2), (TurnBack, 0, 1)], ..World::default() };
    a10_home_slot_moves: World { application: Fills, faults: &[(MoveHome, 0, 1)], ..World::default() };
    #[ignore = "long: make model"]
    a11_home_slot_and_slot_move:
        World { application: Fills, faults: &[(MoveHome, 0, 1), (Migrate, 0, 1)], ..World::default() };
    a12_owner_fails_over: World { application: Fills, faults: &[(Failover, 0, 1)], ..World::default() };
    #[ignore = "long: make model"]
    a13_slot_moves_and_its_former_owner_fails_over:
        World { faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..World::default() };
    #[ignore = "long: make model"]
    a14_slot_moves_and_its_new_owner_fails_over:
        World { faults: &[(Migrate, 0, 2), (Failover, 1, 1)], ..World::default() };
    a15_owner_is_flushed: World { faults: &[(Migrate, 0, 1), (Flush, 0, 1), (Flush, 1, 1)], ..World::default() };
    #[ignore = "long: make model"]
    a16_guard_is_evicted:
        World { application: Fills, faults: &[(Migrate, 0, 1), (EvictGuard, 0, 1)], ..World::default() };
    a17_database_loses_a_commit: World { faults: &[(Migrate, 0, 1), (Crash, 0, 1)], ..World::default() };
    #[ignore = "long: make model"]
    a18_database_loses_a_commit_beside_a_fill:
        World { application: Fills, faults: &[(Migrate, 0, 1), (Crash, 0, 1)], ..World::default() };
    a19_reader_with_a_token: World { application: Reads, faults: &[(Migrate, 0, 2)], ..World::default() };
    #[ignore = "long: make model"]
    a20_reader_with_a_pipeline:
        World { application: Reads, pipelined: true, faults: &[(Migrate, 0, 2)], ..World::default() };
    a21_tag_over_two_shards:
        World { tags: true, todo: [0, 0, 1], application: Fills, faults: &[(Migrate, 0, 1)], ..World::default() };
    a22_keys_come_back:
        World { ends_early: true, faults: &[(Migrate, 0, 1), (BringBack, 0, 1)], ..World::default() };
    a23_task_is_killed: World { faults: &[(Migrate, 0, 1), (Kill, 0, 1)], ..World::default() };
    a24_two_follow_the_new_owner: World { idle: 1, faults: &[(Migrate, 0, 1)], ..two(Duties::FollowsOne(1)) };
    a25_two_adopt: World { faults: &[(Migrate, 0, 1)], ..two(Duties::Adopts) };
    #[ignore = "long: make model"]
    a26_two_adopt_beside_a_fill:
        World { application: Fills, faults: &[(Migrate, 0, 1)], ..two(Duties::Adopts) };
    a27_two_changes_of_two_keys:
        World { todo: [1, 1, 0], cached: [true, true], faults: &[(Migrate, 0, 1)], ..World::default() };
    #[ignore = "long: make model"]
    a28_both_slots_move:
        World { cached: [true, true], faults: &[(Migrate, 0, 2), (Migrate, 1, 2)], ..World::default() };
    a29_node_restarts_with_an_old_dump: World { faults: &[(Restart, 0, 1)], ..World::default() };
    a30_moving_slot_is_closed_to_scripts:
        World { moving_is_closed: true, faults: &[(Migrate, 0, 2), (TurnBack, 0, 1)], ..World::default() };
    a31_guard_is_evicted_beside_two_that_adopt:
        World {
            application: Fills, cached: [false, false], faults: &[(EvictGuard, 0, 1)], ..two(Duties::Adopts)
        };

    // The others are asked for keys where a server or a migration is another than before, and now and then.
    s02_keys_come_back: seldom(World { ends_early: true, faults: &[(Migrate, 0, 1), (BringBack, 0, 1)], ..World::default() });
    s03_keys_of_a_former_owner_come_back: seldom(World { faults: &[(Failover, 0, 1), (BringBack, 0, 1)], ..moved_before() });
    s04_former_owner_restarts:
        World { asks_seldom: true, idle: 1, faults: &[(Migrate, 0, 1), (Restart, 0, 1)], ..moved_before() };
    s05_migration_to_a_former_owner_turns_back:
        World { asks_seldom: true, faults: &[(Migrate, 0, 1), (TurnBack, 0, 1), (Failover, 0, 1)], ..moved_before() };
    s06_former_owner_restarts_and_keys_come_back:
        seldom(World { idle: 1, faults: &[(Restart, 0, 1), (BringBack, 0, 1)], ..moved_before() });
    #[ignore = "long: make model"]
    s08_keys_come_back_after_a_migration:
        seldom(World { ends_early: true, faults: &[(Migrate, 0, 1), (Failover, 0, 1), (BringBack, 0, 1)], ..moved_before() });

    // A's replica is still where it was before slot 0 moved to B.
    b01_former_owner_fails_over: World { faults: &[(Migrate, 0, 1), (Failover, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b02_former_owner_fails_over_and_the_slot_comes_twice:
        World { faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..moved_before() };
    b03_former_owner_restarts: World { idle: 1, faults: &[(Migrate, 0, 1), (Restart, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b04_former_owner_restarts_and_the_owner_is_flushed:
        World { faults: &[(Migrate, 0, 1), (Restart, 0, 1), (Flush, 1, 1)], ..moved_before() };
    b05_keys_of_a_former_owner_come_back:
        World { faults: &[(Failover, 0, 1), (BringBack, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b06_keys_come_back_after_a_migration:
        World { ends_early: true, faults: &[(Migrate, 0, 1), (Failover, 0, 1), (BringBack, 0, 1)], ..moved_before() };
    b07_migration_to_a_former_owner_turns_back:
        World { faults: &[(Migrate, 0, 1), (TurnBack, 0, 1), (Failover, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b08_keys_come_back_after_a_turn:
        World { ends_early: true, faults: &[(Migrate, 0, 2), (TurnBack, 0, 1), (BringBack, 0, 1)], ..World::default() };
    #[ignore = "long: make model"]
    b09_reader_and_a_former_owner:
        World { application: Reads, faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b10_home_slot_moves_and_the_slot_too:
        World { faults: &[(MoveHome, 0, 1), (Migrate, 0, 1), (Failover, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b11_tag_and_a_former_owner:
        World {
            tags: true, todo: [0, 0, 1], application: Fills, faults: &[(Migrate, 0, 1), (Failover, 0, 1)],
            ..moved_before()
        };
    #[ignore = "long: make model"]
    b12_two_leaders_and_a_former_owner:
        World { faults: &[(Migrate, 0, 1), (Failover, 0, 1)], has_moved: true, ..two(Duties::FollowsOne(1)) };
    #[ignore = "long: make model"]
    b13_two_adopt_and_a_former_owner_restarts:
        World { faults: &[(Migrate, 0, 1), (Restart, 0, 1)], has_moved: true, ..two(Duties::Adopts) };
    #[ignore = "long: make model"]
    b14_former_owner_fails_over_twice:
        World { faults: &[(Migrate, 0, 1), (Failover, 0, 2)], ..moved_before() };
    #[ignore = "long: make model"]
    b15_former_owner_fails_over_and_the_database_loses_a_commit:
        World { faults: &[(Migrate, 0, 1), (Failover, 0, 1), (Crash, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b16_former_owner_fails_over_and_the_guard_is_evicted:
        World { faults: &[(Migrate, 0, 2), (Failover, 0, 1), (EvictGuard, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b17_former_owner_fails_over_beside_a_fill:
        World { application: Fills, faults: &[(Migrate, 0, 1), (Failover, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b18_former_owner_fails_over_and_two_changes:
        World { todo: [2, 0, 0], faults: &[(Migrate, 0, 1), (Failover, 0, 1)], ..moved_before() };
    #[ignore = "long: make model"]
    b19_former_owner_fails_over_beside_an_unstamped_fill:
        World {
            application: FillsUnstamped, cached: [false, false], faults: &[(Migrate, 0, 1), (Failover, 0, 1)],
            ..moved_before()
        };

    // What can be done without.
    w01_generations_are_enough_without_compare_and_set:
        World { faults: &[(Migrate, 0, 1)], ..two(Duties::Adopts) }.without(Rule::AdoptionCompares);
    w02_floors_are_enough_without_generations:
        World { application: Fills, floors: true, faults: &[(Migrate, 0, 2)], ..uncached() };
    w03_floors_beside_two_that_adopt:
        World {
            application: Fills, floors: true, cached: [false, false], faults: &[(EvictGuard, 0, 1)],
            ..two(Duties::Adopts)
        };
    w04_floor_of_an_incarnation_that_is_over:
        World { floors: true, faults: &[(Migrate, 0, 1), (Crash, 0, 1)], ..World::default() }
        .without(Rule::FloorNamesIncarnation);
    w05_rolled_back_and_no_new_epoch:
        World { faults: &[(Migrate, 0, 1), (Restart, 0, 1)], ..moved_before() }.without(Rule::RolledBackIsNewEpoch);
}
