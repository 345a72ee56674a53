use chrono::Datelike;

use super::*;

const BERLIN: &str = "Europe/Berlin";

fn utc(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

fn instants(expression: &str, zone: &str, from: &str, count: usize) -> Vec<DateTime<Utc>> {
    let schedule = Schedule::parse(expression, zone).unwrap();
    let mut now = utc(from);
    let mut found = Vec::new();
    for _ in 0..count {
        let next = schedule.next_after(now).unwrap();
        assert!(now < next, "{schedule}: {next} is not after {now}");
        found.push(next);
        now = next;
    }
    found
}

/// The next fires as the zone's clocks show them.
#[track_caller]
fn check(expression: &str, zone: &str, from: &str, expected: &[&str]) {
    let clock: Tz = zone.parse().unwrap();
    let fires: Vec<String> = instants(expression, zone, from, expected.len())
        .into_iter()
        .map(|fire| fire.with_timezone(&clock).format("%a %d %H:%M %:z").to_string())
        .collect();
    assert_eq!(fires, expected, "{expression} in {zone}");
}

/// As [`check`], with seconds and without the day.
#[track_caller]
fn check_clock(expression: &str, zone: &str, from: &str, expected: &[&str]) {
    let clock: Tz = zone.parse().unwrap();
    let fires: Vec<String> = instants(expression, zone, from, expected.len())
        .into_iter()
        .map(|fire| fire.with_timezone(&clock).format("%H:%M:%S %:z").to_string())
        .collect();
    assert_eq!(fires, expected, "{expression} in {zone}");
}

#[track_caller]
fn check_error(expression: &str, zone: &str, parts: &[&str]) {
    let message = Schedule::parse(expression, zone).unwrap_err().message;
    for part in parts {
        assert!(message.contains(part), "{expression:?} in {zone:?}: {message}");
    }
}

#[test]
fn weekdays_are_those_of_unix() {
    let from = "2026-11-24T12:00:00Z";
    let weekdays = [
        "Wed 25 09:00 +00:00",
        "Thu 26 09:00 +00:00",
        "Fri 27 09:00 +00:00",
        "Mon 30 09:00 +00:00",
        "Tue 01 09:00 +00:00",
    ];
    for expression in [
        "0 0 9 * * 1-5",
        "0 9 * * 1-5",
        "0 9 * * MON-FRI",
        "0 9 * * mon-Friday",
        "0 9 * * 1,2,3,4,5",
        "0 9 ? * 1-4,fri",
    ] {
        check(expression, "UTC", from, &weekdays);
    }
    for sunday in ["0", "7", "SUN", "sunday", "0-0", "7-7", "0,7"] {
        let expression = format!("0 9 * * {sunday}");
        check(&expression, "UTC", from, &["Sun 29 09:00 +00:00", "Sun 06 09:00 +00:00"]);
    }
    for weekend in ["6-7", "6,0", "SAT-SUN", "sat,sun", "6/1,0"] {
        let expected = ["Sat 28 09:00 +00:00", "Sun 29 09:00 +00:00", "Sat 05 09:00 +00:00"];
        check(&format!("0 9 * * {weekend}"), "UTC", from, &expected);
    }
    // Sunday, Tuesday, Thursday, Saturday.
    let every_other =
        ["Thu 26 09:00 +00:00", "Sat 28 09:00 +00:00", "Sun 29 09:00 +00:00", "Tue 01 09:00 +00:00"];
    check("0 9 * * */2", "UTC", from, &every_other);
}

#[test]
fn five_fields_six_fields_and_shorthands() {
    let from = "2026-12-30T22:59:30.5Z";
    check_clock("0 23 * * *", "UTC", from, &["23:00:00 +00:00"]);
    check_clock("*/20 * * * * *", "UTC", from, &["22:59:40 +00:00", "23:00:00 +00:00"]);
    check_clock("40/10 59 22 * * *", "UTC", from, &["22:59:40 +00:00", "22:59:50 +00:00"]);
    for (shorthand, expected) in [
        ("@hourly", ["Wed 30 23:00 +00:00", "Thu 31 00:00 +00:00"]),
        ("@daily", ["Thu 31 00:00 +00:00", "Fri 01 00:00 +00:00"]),
        (" @midnight ", ["Thu 31 00:00 +00:00", "Fri 01 00:00 +00:00"]),
        ("@weekly", ["Sun 03 00:00 +00:00", "Sun 10 00:00 +00:00"]),
        ("@monthly", ["Fri 01 00:00 +00:00", "Mon 01 00:00 +00:00"]),
        ("@yearly", ["Fri 01 00:00 +00:00", "Sat 01 00:00 +00:00"]),
        ("@annually", ["Fri 01 00:00 +00:00", "Sat 01 00:00 +00:00"]),
    ] {
        check(shorthand, "UTC", from, &expected);
    }
}

#[test]
fn either_kind_of_day_fits_unless_one_begins_with_a_star() {
    let from = "2026-11-10T00:00:00Z";
    // The 13th, and every Friday.
    let either = [
        "Fri 13 00:00 +00:00",
        "Fri 20 00:00 +00:00",
        "Fri 27 00:00 +00:00",
        "Fri 04 00:00 +00:00",
        "Fri 11 00:00 +00:00",
        "Sun 13 00:00 +00:00",
    ];
    check("0 0 13 * 5", "UTC", from, &either);
    // As Vixie cron has it, `*/2` is no restriction of its own: odd days that are Fridays.
    check("0 0 */2 * 5", "UTC", from, &["Fri 13 00:00 +00:00", "Fri 27 00:00 +00:00"]);
    // The 30th of February never comes, its Mondays do.
    check("0 0 30 2 1", "UTC", from, &["Mon 01 00:00 +00:00"]);
}

#[test]
fn a_job_in_a_gap_runs_once_right_after_it() {
    let before = "2026-03-28T12:00:00Z";
    let berlin = ["Sun 29 03:00 +02:00", "Mon 30 02:30 +02:00"];
    check("30 2 * * *", BERLIN, before, &berlin);
    // Several times of one gap are one run; one at the end of the gap is the same run.
    let merged = ["Sun 29 03:00 +02:00", "Mon 30 02:00 +02:00"];
    check("0,15,30 2 * * *", BERLIN, before, &merged);
    check("*/15 2 * * *", BERLIN, before, &merged);
    let ranged = ["Sun 29 01:30 +01:00", "Sun 29 03:00 +02:00", "Sun 29 03:30 +02:00", "Mon 30 01:30 +02:00"];
    check("30 1-3 * * *", BERLIN, before, &ranged);
    let new_york = ["Sun 08 03:00 -04:00", "Mon 09 02:30 -04:00"];
    check("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", &new_york);
    // Half an hour: 02:00 becomes 02:30.
    let lord_howe = ["Sun 04 02:30 +11:00", "Mon 05 02:15 +11:00"];
    check("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", &lord_howe);
    // A whole day was left out.
    let apia = ["Thu 29 12:00 -10:00", "Sat 31 00:00 +14:00", "Sat 31 12:00 +14:00"];
    check("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", &apia);
    // Midnight itself does not exist.
    let beirut = ["Sun 29 01:00 +03:00", "Mon 30 00:00 +03:00"];
    check("0 0 * * *", "Asia/Beirut", "2026-03-28T12:00:00Z", &beirut);
}

#[test]
fn a_schedule_for_every_hour_keeps_its_pace_over_a_gap() {
    let before = "2026-03-29T00:15:00Z";
    let half_hours = ["Sun 29 01:30 +01:00", "Sun 29 03:00 +02:00", "Sun 29 03:30 +02:00"];
    check("*/30 * * * *", BERLIN, before, &half_hours);
    check("7 * * * *", BERLIN, before, &["Sun 29 03:07 +02:00", "Sun 29 04:07 +02:00"]);
    // 3,600 wall-clock times in a row do not exist.
    let seconds = ["01:59:59 +01:00", "03:00:00 +02:00", "03:00:01 +02:00"];
    check_clock("* * * * * *", BERLIN, "2026-03-29T00:59:58Z", &seconds);
    let a_day_left_out = ["23:59:59 -10:00", "00:00:00 +14:00"];
    check_clock("* * * * * *", "Pacific/Apia", "2011-12-30T09:59:58Z", &a_day_left_out);
}

#[test]
fn a_certain_time_in_an_overlap_runs_once() {
    let before = "2026-10-24T12:00:00Z";
    let berlin = ["Sun 25 02:30 +02:00", "Mon 26 02:30 +01:00"];
    check("30 2 * * *", BERLIN, before, &berlin);
    let listed = ["Sun 25 02:00 +02:00", "Sun 25 02:30 +02:00", "Mon 26 02:00 +01:00"];
    check("0,30 2 * * *", BERLIN, before, &listed);
    let ranged = ["Sun 25 01:00 +02:00", "Sun 25 02:00 +02:00", "Sun 25 03:00 +01:00"];
    check("0 1-3 * * *", BERLIN, before, &ranged);
    let new_york = ["Sun 01 01:30 -04:00", "Mon 02 01:30 -05:00"];
    check("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", &new_york);
    let lord_howe = ["Sun 05 01:45 +11:00", "Mon 06 01:45 +10:30"];
    check("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", &lord_howe);
    // Asked in the second half, when it has run.
    let asked_late = ["Mon 26 02:30 +01:00"];
    check("30 2 * * *", BERLIN, "2026-10-25T01:00:00Z", &asked_late);
    check("30 2 * * *", BERLIN, "2026-10-25T01:45:00Z", &asked_late);
}

#[test]
fn a_pace_is_kept_through_an_overlap_in_order() {
    let half_hours = [
        "Sun 25 02:00 +02:00",
        "Sun 25 02:30 +02:00",
        "Sun 25 02:00 +01:00",
        "Sun 25 02:30 +01:00",
        "Sun 25 03:00 +01:00",
    ];
    let before = "2026-10-24T23:45:00Z";
    check("*/30 * * * *", BERLIN, before, &half_hours);
    check("0,30 * * * *", BERLIN, before, &half_hours);
    check("*/30 1-4 * * *", BERLIN, before, &half_hours);
    check("0-30/30 0-23 * * *", BERLIN, before, &half_hours);
    // Only the second half lies ahead, or the last run of the first half has been.
    check("*/30 * * * *", BERLIN, "2026-10-25T00:30:00Z", &half_hours[2..]);
    check("*/30 * * * *", BERLIN, "2026-10-25T00:59:59.9Z", &half_hours[2..]);
    check("*/30 * * * *", BERLIN, "2026-10-25T01:00:00Z", &half_hours[3..]);
    let lord_howe = [
        "Sun 05 01:40 +11:00",
        "Sun 05 01:30 +10:30",
        "Sun 05 01:40 +10:30",
        "Sun 05 01:50 +10:30",
        "Sun 05 02:00 +10:30",
    ];
    check("*/10 * * * *", "Australia/Lord_Howe", "2026-04-04T14:30:00Z", &{
        let mut expected = vec!["Sun 05 01:40 +11:00", "Sun 05 01:50 +11:00"];
        expected.extend(&lord_howe[1..]);
        expected
    });
    check_clock(
        "* * * * * *",
        BERLIN,
        "2026-10-25T00:59:58Z",
        &["02:59:59 +02:00", "02:00:00 +01:00", "02:00:01 +01:00"],
    );
}

#[test]
fn the_ends_of_known_time_are_no_accident() {
    let schedule = Schedule::parse("* * * * * *", BERLIN).unwrap();
    assert_eq!(schedule.next_after(DateTime::<Utc>::MAX_UTC), None);
    assert_eq!(schedule.next_after(utc("2101-01-01T00:00:00Z")), None);
    assert_eq!(schedule.next_after(utc("2100-12-31T23:00:00Z")), None);
    assert_eq!(
        schedule.next_after(DateTime::<Utc>::MIN_UTC).unwrap().year(),
        1969,
        "in Berlin it is 1970 already"
    );
    // A leap second is held as 59 seconds and more than a thousand million nanoseconds.
    let leap = utc("2016-12-31T23:59:60.5Z");
    assert_eq!(schedule.next_after(leap), Some(utc("2017-01-01T00:00:00Z")));
    let leap_day = instants("0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", 0);
    assert!(leap_day.is_empty());
    let leap_day = Schedule::parse("0 0 29 2 *", "UTC").unwrap();
    assert_eq!(leap_day.next_after(utc("2096-03-01T00:00:00Z")), None);
    assert_eq!(leap_day.next_after(utc("2027-01-01T00:00:00Z")), Some(utc("2028-02-29T00:00:00Z")));
}

#[test]
fn errors_name_the_field_and_what_is_allowed() {
    check_error("0 25 * * *", "UTC", &["hour \"25\"", "25 is out of range", "0 to 23"]);
    check_error("60 * * * *", "UTC", &["minute \"60\"", "0 to 59"]);
    check_error("99 0 * * * *", "UTC", &["second \"99\"", "0 to 59"]);
    check_error("0 0 0 * *", "UTC", &["day of the month \"0\"", "1 to 31"]);
    check_error("0 0 * 13 *", "UTC", &["month \"13\"", "JAN to DEC"]);
    check_error("0 0 * foo *", "UTC", &["month \"foo\"", "not a number or a name"]);
    check_error("0 0 * * 8", "UTC", &["day of the week \"8\"", "0 and 7 are Sunday"]);
    check_error("0 0 * * sunshine", "UTC", &["\"sunshine\" is not"]);
    check_error("0 0 * * 5-1", "UTC", &["runs backwards", "5-6,0-1"]);
    check_error("0 22-2 * * *", "UTC", &["hour", "22-23,0-2"]);
    check_error("*/0 * * * *", "UTC", &["minute \"*/0\"", "never moves"]);
    check_error("*/60 * * * *", "UTC", &["the step 60 is larger than 59"]);
    check_error("*/x * * * *", "UTC", &["the step \"x\" is not a number"]);
    check_error("1,,2 * * * *", "UTC", &["a number is missing"]);
    check_error("? * * * *", "UTC", &["minute \"?\""]);
    check_error("+5 * * * *", "UTC", &["\"+5\" is not a number"]);
    check_error("0 0 L * *", "UTC", &["day of the month \"L\"", "not supported"]);
    check_error("99999999999999999999 * * * *", "UTC", &["out of range"]);
    check_error("0 0 9 * * 1-5 2027", "UTC", &["years", "seventh"]);
    check_error("0 9 * *", "UTC", &["this has 4", "30 3 * * 1-5"]);
    check_error("5m", "UTC", &["this has 1"]);
    check_error(" ", "UTC", &["empty"]);
    check_error("@reboot", "UTC", &["@reboot", "@hourly"]);
    check_error("0 0 31 2 *", "UTC", &["never comes", "day 31"]);
    check_error("0 0 31 4,6,9,11 *", "UTC", &["never comes"]);
}

#[test]
fn unknown_zones_are_answered_with_the_nearest() {
    for (wrong, right) in [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("New York", "America/New_York"),
        ("America/NewYork", "America/New_York"),
        ("Asia/Calcuta", "Asia/Calcutta"),
        ("utc", "UTC"),
    ] {
        let expected = format!("time zone {wrong:?} is not known; did you mean {right:?}?");
        let error = Schedule::parse("0 9 * * *", wrong).unwrap_err();
        assert_eq!(error.message, expected);
    }
    for unclear in ["PST", "", "+02:00", "local", "Mars/Olympus_Mons"] {
        check_error("0 9 * * *", unclear, &["time zone", "IANA"]);
    }
}

#[test]
fn it_shows_itself_as_written() {
    let schedule = Schedule::parse(" 0 9 * * 1-5 ", BERLIN).unwrap();
    assert_eq!(schedule.expression(), "0 9 * * 1-5");
    assert_eq!(schedule.zone(), BERLIN);
    assert_eq!(schedule.to_string(), "0 9 * * 1-5 (Europe/Berlin)");
    assert_eq!(schedule.clone(), schedule);
}
