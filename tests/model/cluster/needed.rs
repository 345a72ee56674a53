//! What each rule is needed for: without it the world breaks. What can be done without. And what no rule closes.

use super::holding::{moved_before, two, uncached};
use super::invariants::Invariant;
use super::model::Cluster;
use super::rules::Application::{Fills, FillsUnstamped, Reads};
use super::rules::{Duties, Rule, World};
use super::topology::Fault::{
    BringBack, Crash, EvictEntry, EvictGuard, Failover, Migrate, MoveHome, Restart, TurnBack,
};
use crate::search::search;

/// Makes a test of each world, in which something must break.
macro_rules! breaks {
    ($($(#[$meta:meta])* $name:ident breaks $($broken:ident),+: $world:expr;)+) => {
        $(
            $(#[$meta])*
            #[test]
            fn $name() {
                let broken = [$(Invariant::$broken),+];
                search(stringify!($name), &Cluster { world: $world, watch: Vec::new() }, &broken);
            }
        )+
    };
}

breaks! {
    n01_scripts_do_not_compare_the_guard breaks C1:
        World { application: Fills, faults: &[(Migrate, 0, 1)], ..World::default() }.without(Rule::GuardIsCompared);
    n02_unstamped_fill_without_generation breaks C2:
        World { application: FillsUnstamped, faults: &[(Migrate, 0, 2)], ..uncached() }
        .without(Rule::GenerationIsCompared);
    n03_load_without_generation breaks C2:
        World { application: Fills, faults: &[(Migrate, 0, 2)], ..uncached() }.without(Rule::LoadsNameGeneration);
    n04_generation_comes_again breaks C2:
        World { application: FillsUnstamped, faults: &[(Migrate, 0, 2), (EvictGuard, 0, 1)], ..uncached() }
        .without(Rule::GenerationsAreUnique);
    n05_load_without_generation_or_floor breaks C2:
        World { application: Fills, floors: true, faults: &[(Migrate, 0, 2)], ..uncached() }
        .without(Rule::FloorIsCompared);
    n06_adoption_while_the_slot_moves_on breaks C2:
        World { faults: &[(Migrate, 0, 2), (TurnBack, 0, 1)], ..World::default() }.without(Rule::AdoptionLooksAtNode);
    n07_watermark_covers_what_is_adopted_again breaks C2:
        World { faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..moved_before() }.without(Rule::AdoptionUncovers);
    n08_adopted_is_not_pending breaks C2, C4, C6:
        World { faults: &[(Migrate, 0, 1)], ..World::default() }.without(Rule::PendingUntilLoaded);
    n09_settled_by_an_earlier_adoption breaks C2:
        World {
            tasks: 2, contests: 1, duties: [Duties::All, Duties::Adopts], faults: &[(Migrate, 0, 1)],
            ..World::default()
        }
        .without(Rule::SettlingNamesAdoption);
    n10_nobody_asks_for_keys_elsewhere breaks C2:
        World { ends_early: true, faults: &[(Migrate, 0, 1), (BringBack, 0, 1)], ..World::default() }
        .without(Rule::OthersAreAsked);
    n11_keys_elsewhere_are_asked_for_once breaks C2:
        World { faults: &[(Failover, 0, 1), (BringBack, 0, 1)], ..moved_before() }.without(Rule::OthersAreAskedAgain);
    n12_keys_elsewhere_only_suspend_a_slot breaks C2:
        World { faults: &[(Failover, 0, 1), (BringBack, 0, 1)], ..moved_before() }.without(Rule::LeftOversDropSlot);
    n13_refused_change_counts_as_accepted breaks C2:
        World { faults: &[(Migrate, 0, 2), (TurnBack, 0, 1)], ..World::default() }.without(Rule::RefusedIsDropped);
    n14_cursor_moves_past_a_slot_adopted_meanwhile breaks C2:
        World {
            tasks: 2, duties: [Duties::All, Duties::FollowsOne(1)], idle: 1, faults: &[(Migrate, 0, 1)],
            ..World::default()
        }
        .without(Rule::AdvanceComparesSlots);
    n15_slot_that_nobody_touches breaks C3:
        World { faults: &[(Migrate, 0, 1), (Failover, 0, 1)], ..moved_before() }.without(Rule::AdvanceLooksAtNode);
    n16_slot_that_was_away_and_came_back breaks C4:
        World { faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..moved_before() }.without(Rule::GuardsAreLookedAt);
    n17_node_restarts_within_a_batch breaks C2, C4, C6:
        World { faults: &[(Restart, 0, 1)], ..World::default() }.without(Rule::ClaimsNameRun);
    n18_watermark_names_what_is_pending breaks C2, C4:
        World { faults: &[(Migrate, 0, 1)], ..World::default() }.without(Rule::WatermarkNamesSlots);
    n19_minimum_with_a_watermark_of_another_run breaks C4:
        World { faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..World::default() }.without(Rule::MinimumLooksAtRun);
    n20_minimum_over_a_restart breaks C4:
        World { faults: &[(Migrate, 0, 1), (Restart, 0, 1)], ..moved_before() }.without(Rule::MinimumNamesRuns);
    n21_minimum_without_a_node breaks C4:
        World { faults: &[(MoveHome, 0, 1), (Migrate, 0, 1), (Failover, 0, 1)], ..moved_before() }
        .without(Rule::MinimumLooksAtNode);
    n22_minimum_of_two_incarnations breaks C4:
        World { faults: &[(Crash, 0, 1)], ..World::default() }.without(Rule::MinimumNamesIncarnation);
    n23_reader_without_guard breaks C5:
        World { application: Reads, faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..moved_before() }
        .without(Rule::ReaderLooksAtGuard);
    n24_reader_takes_the_value_first breaks C5:
        World { application: Reads, pipelined: true, ..World::default() }.without(Rule::WatermarkBeforeValue);
    n25_tag_is_listed_first breaks C2:
        World { tags: true, todo: [0, 0, 1], application: Fills, ..uncached() }.without(Rule::TagIsRaisedFirst);
    n26_tag_is_raised_where_it_has_members breaks C2:
        World { tags: true, todo: [0, 0, 1], application: Fills, ..uncached() }.without(Rule::TagIsRaisedEverywhere);
    n27_adoption_adds_no_member breaks C2:
        World { tags: true, todo: [0, 0, 1], faults: &[(Migrate, 0, 1)], ..World::default() }
        .without(Rule::AdoptionAddsMembers);
    n28_floor_below_the_cursor breaks C2:
        World {
            application: Fills, floors: true, cached: [false, false], faults: &[(EvictGuard, 0, 1)],
            ..two(Duties::Adopts)
        }
        .without(Rule::FloorReachesCursor);
    #[ignore = "long: make model"]
    n29_floor_from_before_the_guard_was_read breaks C1:
        World {
            application: Fills, floors: true, has_moved: true, faults: &[(EvictGuard, 0, 1), (Migrate, 0, 2)],
            ..two(Duties::Adopts)
        }
        .without(Rule::FloorComesAfterGuard);
    #[ignore = "long: make model"]
    n30_floor_without_compare_and_set breaks C1:
        World {
            application: Fills, floors: true, has_moved: true, faults: &[(EvictGuard, 0, 1), (Migrate, 0, 2)],
            ..two(Duties::Adopts)
        }
        .without(Rule::AdoptionCompares);
}

// What no rule closes: things that happen between two looks of the feed, or two commands of a reader.
breaks! {
    l01_slot_leaves_and_comes_back_within_a_pipeline breaks C5:
        World {
            application: Reads, pipelined: true, faults: &[(Migrate, 0, 2), (Failover, 0, 1)], ..moved_before()
        };
    l02_keys_come_back_before_anybody_looked breaks C2:
        World { tools_are_slow: false, faults: &[(Failover, 0, 1), (BringBack, 0, 1)], ..moved_before() };
    l05_migration_turns_back_unseen_and_begins_again_before_who_asks_seldom_has_asked breaks C4:
        World { asks_seldom: true, faults: &[(Migrate, 0, 2), (TurnBack, 0, 1)], ..World::default() };
    l04_keys_come_back_before_anybody_asked_who_asks_seldom breaks C2:
        World {
            asks_seldom: true, ends_early: true, faults: &[(Migrate, 0, 2), (TurnBack, 0, 1), (BringBack, 0, 1)],
            ..World::default()
        };
    l03_target_fails_over_within_a_migration_that_turns_back breaks C2:
        World {
            faults: &[(Migrate, 0, 1), (TurnBack, 0, 1), (Failover, 0, 1), (EvictEntry, 0, 1)], ..moved_before()
        };
}
