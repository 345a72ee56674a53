//! Any expression at any time: croner, a crate of another author, must agree.

use chrono::TimeZone;
use proptest::prelude::*;

use super::*;

const BERLIN: &str = "Europe/Berlin";
const CASES: u32 = 400;

/// A field of a five-field expression that both crates take.
fn field(first: u32, last: u32) -> impl Strategy<Value = String> {
    let number = first..=last;
    let item = prop_oneof![
        number.clone().prop_map(|one| one.to_string()),
        (number.clone(), number.clone()).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        (number.clone(), number, 1..=last).prop_map(|(a, b, step)| {
            // croner wants a step no longer than its range.
            let (low, high) = (a.min(b), a.max(b));
            format!("{low}-{high}/{}", step.min((high - low).max(1)))
        }),
    ];
    prop_oneof![
        2 => Just("*".to_owned()),
        3 => prop::collection::vec(item, 1..3).prop_map(|items| items.join(",")),
    ]
}

fn expression() -> impl Strategy<Value = String> {
    let minute = prop_oneof![field(0, 59), (1_u32..=30).prop_map(|step| format!("*/{step}"))];
    let hour = prop_oneof![field(0, 23), (1_u32..=12).prop_map(|step| format!("*/{step}"))];
    (minute, hour, field(1, 31), field(1, 12), field(0, 7))
        .prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"))
}

/// The expression as both crates read it; none for a date that never comes, which croner seeks for thousands of years.
fn both(expression: &str, zone: &str) -> Option<(croner::Cron, Schedule)> {
    let croner = expression.parse().unwrap_or_else(|error| panic!("croner refuses {expression:?}: {error}"));
    match Schedule::parse(expression, zone) {
        Ok(schedule) => Some((croner, schedule)),
        Err(error) if error.message.contains("never comes") => None,
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    /// Also where days of both kinds are restricted.
    #[test]
    fn agrees_with_croner_in_utc(expression in expression(), start in 946_684_800_i64..2_500_000_000) {
        let Some((croner, ours)) = both(&expression, "UTC") else {
            return Ok(());
        };
        let mut now = Utc.timestamp_opt(start, 0).unwrap();
        for _ in 0..20 {
            let expected = croner.find_next_occurrence(&now, false).unwrap();
            if 2100 < expected.year() {
                prop_assert_eq!(ours.next_after(now), None);
                break;
            }
            prop_assert_eq!(ours.next_after(now), Some(expected), "{} after {}", &expression, now);
            now = expected;
        }
    }

    /// From November to the end of February and from April to September clocks are left alone.
    #[test]
    fn agrees_with_croner_in_berlin(
        expression in expression(),
        year in 2000_i32..2030,
        month in prop::sample::select(vec![11, 12, 1, 2, 4, 5, 6, 7, 8, 9]),
        minute in 0_i64..(28 * 24 * 60),
    ) {
        let Some((croner, ours)) = both(&expression, BERLIN) else {
            return Ok(());
        };
        let zone: Tz = BERLIN.parse().unwrap();
        let mut now = zone.with_ymd_and_hms(year, month, 1, 0, 0, 0).unwrap() + Duration::minutes(minute);
        for _ in 0..10 {
            let expected = croner.find_next_occurrence(&now, false).unwrap();
            if expected.offset() != now.offset() || 200 < (expected - now).num_days() {
                break;
            }
            prop_assert_eq!(ours.next_after(now.to_utc()), Some(expected.to_utc()), "{} after {}", &expression, now);
            now = expected;
        }
    }

    /// Everywhere, always: the next moment is later, and no other moment lies between the two.
    #[test]
    fn time_goes_forward_through_every_transition(
        expression in expression(),
        zone in prop::sample::select(vec![
            BERLIN, "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Beirut", "America/Havana",
        ]),
        year in 2000_i32..2030,
        change in prop::sample::select(vec![3_u32, 4, 10, 11]),
        second in 0_i64..(31 * 86_400),
        ahead in 1_i64..7_200,
    ) {
        let Ok(schedule) = Schedule::parse(&expression, zone) else {
            return Ok(());
        };
        let start = Utc.with_ymd_and_hms(year, change, 1, 0, 0, 0).unwrap() + Duration::seconds(second);
        let mut now = start;
        for _ in 0..30 {
            let Some(next) = schedule.next_after(now) else { break };
            prop_assert!(now < next, "{} in {}: {} after {}", &expression, zone, next, now);
            let between = (now + Duration::seconds(ahead)).min(next - Duration::seconds(1));
            prop_assert_eq!(schedule.next_after(between), Some(next), "{} in {} from {}", &expression, zone, between);
            now = next;
        }
    }

    #[test]
    fn no_text_and_no_time_make_it_panic(
        expression in prop_oneof![r"[-0-9*/,?A-Za-z@ ]{0,24}", r"\PC{0,24}", expression()],
        zone in r"\PC{0,12}",
        seconds in -70_000_000_000_i64..10_000_000_000,
    ) {
        let now = Utc.timestamp_opt(seconds, 0).unwrap();
        for zone in [zone.as_str(), BERLIN] {
            if let Ok(schedule) = Schedule::parse(&expression, zone) {
                prop_assert!(schedule.next_after(now).is_none_or(|next| now < next));
            }
        }
    }
}
