//! Cron schedules in time zones.
//!
//! The `cron` crate finds the next time that fits; everything around it is here, because the bare crate counts
//! weekdays from Sunday = 1, refuses five fields, skips jobs in a DST gap and runs them twice in an overlap. It runs
//! over wall-clock time disguised as UTC; what a wall-clock time means in the zone is decided below.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Duration, LocalResult, NaiveDateTime, Offset, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

/// When something runs.
#[derive(Clone, Debug)]
pub struct Schedule {
    expression: String,
    zone: Tz,
    /// Two where both the day of the month and the day of the week are restricted: either may fit.
    alternatives: Vec<cron::Schedule>,
    /// Every hour, or every few: keeps its pace through an overlap, and needs no catching up after a gap.
    is_periodic: bool,
}

/// Why an expression is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleError {
    /// What is wrong and what to do.
    pub message: String,
}

fn wrong(message: impl Into<String>) -> ScheduleError {
    ScheduleError { message: message.into() }
}

const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];
const FIELDS: [&str; 5] = ["second", "minute", "hour", "day of the month", "month"];
/// Steps of one search. A schedule whose next thousand wall-clock times all fall into gaps does not exist.
const STEPS_MAX: usize = 1_000;

impl Schedule {
    /// Parses an expression of five fields (minute, hour, day of the month, month, day of the week) or six (a second
    /// before them), or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. Weekdays are 0 to 7, both ends Sunday,
    /// or names. `zone` is a name of the IANA database.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub fn parse(expression: &str, zone: &str) -> Result<Self, ScheduleError> {
        let zone = Tz::from_str(zone).map_err(|_unknown| wrong(unknown_zone(zone)))?;
        let spelled = match expression.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let mut fields: Vec<&str> = spelled.split_whitespace().collect();
        match fields.len() {
            5 => fields.insert(0, "0"),
            6 => {}
            7 => return Err(wrong("a schedule has five or six fields; a year cannot be given")),
            count => {
                let example = "for example \"0 */5 * * * *\" or \"30 3 * * 1-5\"";
                return Err(wrong(format!("a schedule has five or six fields, this has {count}; {example}")));
            }
        }
        let [second, minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(wrong("a schedule has five or six fields"));
        };
        let weekdays = read_weekdays(weekday)?;
        let parse = |day: &str, weekdays: &str| {
            let text = format!("{second} {minute} {hour} {day} {month} {weekdays}");
            cron::Schedule::from_str(&text).map_err(|error| wrong(explain(&fields, &error)))
        };
        let both_restricted = !day.starts_with(['*', '?']) && !weekday.starts_with(['*', '?']);
        let alternatives = if both_restricted {
            vec![parse(day, "*")?, parse("*", &weekdays)?]
        } else {
            vec![parse(day, &weekdays)?]
        };
        let schedule = Self {
            expression: expression.to_owned(),
            zone,
            alternatives,
            is_periodic: hour.starts_with('*'),
        };
        if schedule.next_wall(NaiveDateTime::default()).is_none() {
            return Err(wrong("this date never comes"));
        }
        Ok(schedule)
    }

    /// The first moment after `now` at which the schedule fires; none if it never does again.
    #[must_use]
    pub fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let offset = self.offset(now);
        let mut wall = now.naive_utc() + offset;
        for _ in 0..STEPS_MAX {
            wall = self.next_wall(wall)?;
            let Some(found) = self.resolve(wall, now) else {
                continue;
            };
            if self.is_periodic && self.offset(found) < offset {
                return Some(self.inside_overlap(now, found));
            }
            return Some(found);
        }
        None
    }

    /// The expression as it was written.
    #[must_use]
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// The name of the zone.
    #[must_use]
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }

    fn next_wall(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let next = |schedule: &cron::Schedule| schedule.after(&after.and_utc()).next();
        self.alternatives.iter().filter_map(next).min().map(|found| found.naive_utc())
    }

    /// What a wall-clock time means, if it means a moment after `now`.
    fn resolve(&self, wall: NaiveDateTime, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let found = match self.zone.from_local_datetime(&wall) {
            LocalResult::Single(found) => found.to_utc(),
            // A fixed time in an overlap runs once, at the first of the two.
            LocalResult::Ambiguous(first, _) if !self.is_periodic => first.to_utc(),
            LocalResult::Ambiguous(first, second) if first.to_utc() <= now => second.to_utc(),
            LocalResult::Ambiguous(first, _) => first.to_utc(),
            LocalResult::None if self.is_periodic => return None,
            LocalResult::None => self.end_of_gap(wall),
        };
        (now < found).then_some(found)
    }

    /// The first moment after the gap in which this wall-clock time falls.
    fn end_of_gap(&self, wall: NaiveDateTime) -> DateTime<Utc> {
        // Under the offset before the gap, the skipped time is a moment after the transition.
        let before = self.offset((wall - Duration::days(1)).and_utc());
        self.transition((wall - before - Duration::days(1)).and_utc(), (wall - before).and_utc())
    }

    /// Clocks went back between `now` and `found`: the first time that fits in the repeated stretch.
    fn inside_overlap(&self, now: DateTime<Utc>, found: DateTime<Utc>) -> DateTime<Utc> {
        let transition = self.transition(now, found);
        let offset = self.offset(transition);
        let before = transition.naive_utc() + offset - Duration::seconds(1);
        let repeated = self.next_wall(before).map(|wall| (wall - offset).and_utc());
        repeated.filter(|repeated| now < *repeated).map_or(found, |repeated| repeated.min(found))
    }

    /// The moment between these two at which the offset changes.
    fn transition(&self, early: DateTime<Utc>, late: DateTime<Utc>) -> DateTime<Utc> {
        let offset = self.offset(early);
        let (mut low, mut high) = (early, late);
        while Duration::seconds(1) < high - low {
            let middle = low + (high - low) / 2;
            if self.offset(middle) == offset { low = middle } else { high = middle }
        }
        // Transitions fall on whole seconds.
        if high.nanosecond() == 0 { high } else { high.with_nanosecond(0).unwrap_or(high) }
    }

    fn offset(&self, moment: DateTime<Utc>) -> Duration {
        let offset = self.zone.offset_from_utc_datetime(&moment.naive_utc());
        Duration::seconds(i64::from(offset.fix().local_minus_utc()))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.expression, self.zone.name())
    }
}

/// A weekday field as names in a list, which is the one form that means the same everywhere.
fn read_weekdays(field: &str) -> Result<String, ScheduleError> {
    let mut wanted = [false; 7];
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let step = step.map_or(Ok(1), str::parse::<usize>).ok().filter(|step| 0 < *step);
        let step =
            step.ok_or_else(|| wrong(format!("day of the week {part:?}: the step is a number above 0")))?;
        let (from, to) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (0, 6),
            Some((from, to)) => {
                let (from, to) = (read_weekday(from)?, read_weekday(to)?);
                // `FRI-SUN` ends with the Sunday after.
                (from, if to < from && to == 0 { 7 } else { to })
            }
            None if part.contains('/') => (read_weekday(range)?, 6),
            None => (read_weekday(range)?, read_weekday(range)?),
        };
        if to < from {
            return Err(wrong(format!("day of the week {part:?}: the range runs backwards")));
        }
        for day in (from..=to).step_by(step) {
            if let Some(wanted) = wanted.get_mut(day % 7) {
                *wanted = true;
            }
        }
    }
    if wanted.iter().all(|wanted| *wanted) {
        return Ok("*".to_owned());
    }
    let names: Vec<&str> =
        DAYS.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(name, _)| *name).collect();
    Ok(names.join(","))
}

fn read_weekday(text: &str) -> Result<usize, ScheduleError> {
    if let Some(number) = text.parse().ok().filter(|number| *number <= 7) {
        return Ok(number);
    }
    let short = text.get(..3).unwrap_or(text).to_uppercase();
    let found = DAYS.iter().position(|name| *name == short);
    found.ok_or_else(|| {
        wrong(format!("day of the week {text:?}: give 0 to 7 (0 and 7 are Sunday) or sun … sat"))
    })
}

/// Which field the crate did not take, found by trying each alone.
fn explain(fields: &[&str], error: &cron::error::Error) -> String {
    for (position, name) in FIELDS.iter().enumerate() {
        let alone: Vec<&str> = (0..6)
            .map(|at| if at == position { fields.get(at).copied() } else { None })
            .map(|field| field.unwrap_or("*"))
            .collect();
        if cron::Schedule::from_str(&alone.join(" ")).is_err() {
            let allowed = ["0 to 59", "0 to 59", "0 to 23", "1 to 31", "1 to 12 or jan … dec"];
            let text = fields.get(position).copied().unwrap_or_default();
            let range = allowed.get(position).copied().unwrap_or_default();
            return format!("{name} {text:?}: give {range}, lists with `,`, ranges with `-`, steps with `/`");
        }
    }
    error.to_string()
}

fn unknown_zone(zone: &str) -> String {
    let wanted = zone.to_lowercase();
    let last = wanted.rsplit('/').next().unwrap_or_default();
    let close = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()).find(|name| {
        let name = name.to_lowercase();
        name == wanted || (!last.is_empty() && name.rsplit('/').next() == Some(last))
    });
    let help = close.map_or("use a name such as \"UTC\" or \"Europe/Berlin\"".to_owned(), |close| {
        format!("did you mean {close:?}?")
    });
    format!("time zone {zone:?} is not known; {help}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utc(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    /// The next fires, as local times with their offset.
    fn fires(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(expression, zone).unwrap();
        let mut now = utc(from);
        let mut fires = Vec::new();
        for _ in 0..count {
            let next = schedule.next_after(now).unwrap();
            assert!(now < next, "{expression}: {next} is not after {now}");
            now = next;
            fires.push(next.with_timezone(&Tz::from_str(zone).unwrap()).format("%a %d %H:%M %z").to_string());
        }
        fires
    }

    #[test]
    fn weekdays_are_those_of_unix() {
        let expected = [
            "Tue 24 09:00 +0000",
            "Wed 25 09:00 +0000",
            "Thu 26 09:00 +0000",
            "Fri 27 09:00 +0000",
            "Mon 30 09:00 +0000",
        ];
        for expression in ["0 0 9 * * 1-5", "0 9 * * 1-5", "0 9 * * MON-FRI", "0 9 * * mon,tue,wed,thu,fri"] {
            assert_eq!(fires(expression, "UTC", "2026-11-24T00:00:00Z", 5), expected, "{expression}");
        }
        for expression in ["0 9 * * 0", "0 9 * * 7", "0 9 * * sunday", "@weekly"] {
            assert!(
                fires(expression, "UTC", "2026-11-24T00:00:00Z", 1)[0].starts_with("Sun 29"),
                "{expression}"
            );
        }
        assert_eq!(fires("0 9 * * fri-sun", "UTC", "2026-11-24T00:00:00Z", 3)[2], "Sun 29 09:00 +0000");
    }

    #[test]
    fn a_job_in_a_gap_runs_once_after_it() {
        let berlin = fires("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 3);
        assert_eq!(berlin, ["Sun 29 03:00 +0200", "Mon 30 02:30 +0200", "Tue 31 02:30 +0200"]);
        let york = fires("15 2 * * *", "America/New_York", "2026-03-08T05:00:00Z", 2);
        assert_eq!(york, ["Sun 08 03:00 -0400", "Mon 09 02:15 -0400"]);
        let howe = fires("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", 2);
        assert_eq!(howe, ["Sun 04 02:30 +1100", "Mon 05 02:15 +1100"]);
    }

    #[test]
    fn a_fixed_time_in_an_overlap_runs_once() {
        let berlin = fires("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(berlin, ["Sun 25 02:30 +0200", "Mon 26 02:30 +0100"]);
        let between = fires("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 1);
        assert_eq!(between, ["Mon 26 02:30 +0100"], "the second 02:30 is not another one");
    }

    #[test]
    fn a_periodic_job_keeps_its_pace() {
        let overlap = fires("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:45:00Z", 6);
        assert_eq!(
            overlap,
            [
                "Sun 25 02:00 +0200",
                "Sun 25 02:30 +0200",
                "Sun 25 02:00 +0100",
                "Sun 25 02:30 +0100",
                "Sun 25 03:00 +0100",
                "Sun 25 03:30 +0100"
            ]
        );
        let gap = fires("15,45 * * * *", "Europe/Berlin", "2026-03-29T00:40:00Z", 3);
        assert_eq!(gap, ["Sun 29 01:45 +0100", "Sun 29 03:15 +0200", "Sun 29 03:45 +0200"]);
        let howe = fires("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04T14:40:00Z", 4);
        assert_eq!(
            howe,
            ["Sun 05 01:45 +1100", "Sun 05 01:30 +1030", "Sun 05 01:45 +1030", "Sun 05 02:00 +1030"]
        );
    }

    #[test]
    fn day_of_month_or_day_of_week() {
        let both = fires("0 12 13 * 5", "UTC", "2026-11-01T00:00:00Z", 4);
        assert_eq!(
            both,
            ["Fri 06 12:00 +0000", "Fri 13 12:00 +0000", "Fri 20 12:00 +0000", "Fri 27 12:00 +0000"]
        );
    }

    #[test]
    fn errors_name_the_field_and_what_is_allowed() {
        for (expression, zone, fragment) in [
            ("* * *", "UTC", "five or six fields, this has 3"),
            ("0 0 0 1 1 * 2026", "UTC", "a year cannot be given"),
            ("61 * * * *", "UTC", "minute \"61\""),
            ("0 25 * * *", "UTC", "hour \"25\""),
            ("0 0 * * 8", "UTC", "day of the week \"8\""),
            ("0 0 * * 5-2", "UTC", "backwards"),
            ("0 0 * * 1/0", "UTC", "step"),
            ("0 0 * * *", "Berlin", "Europe/Berlin"),
            ("0 0 * * *", "Mars/Base", "is not known"),
            ("0 0 31 2 *", "UTC", "never comes"),
        ] {
            let error = Schedule::parse(expression, zone).unwrap_err();
            assert!(error.message.contains(fragment), "{expression}: {error}");
        }
    }

    fn field(low: u32, high: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            Just("*".to_owned()),
            (low..=high).prop_map(|n| n.to_string()),
            (2..=(high - low).max(2)).prop_map(|n| format!("*/{n}")),
            (low..=high, low..=high).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            (low..=high, low..=high).prop_map(|(a, b)| format!("{a},{b}")),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_another_implementation(
            minute in field(0, 59), hour in field(0, 23), day in field(1, 28), month in field(1, 12), weekday in field(0, 6),
            start in 1_767_225_600_i64..1_893_456_000,
        ) {
            // Stepped days of the month count as a restriction for one of the two and not for the other.
            prop_assume!(!day.starts_with("*/") && !weekday.starts_with("*/"));
            let expression = format!("{minute} {hour} {day} {month} {weekday}");
            let ours = Schedule::parse(&expression, "UTC").unwrap();
            let theirs: croner::Cron = expression.parse().unwrap();
            let mut now = DateTime::from_timestamp(start, 0).unwrap();
            for _ in 0..5 {
                let next = ours.next_after(now).unwrap();
                prop_assert_eq!(Some(next), theirs.find_next_occurrence(&now, false).ok(), "{}", expression);
                now = next;
            }
        }

        #[test]
        fn fires_always_move_forward(
            minute in field(0, 59), hour in field(0, 23), start in 1_767_225_600_i64..1_893_456_000,
            zone in prop_oneof![Just("Europe/Berlin"), Just("America/New_York"), Just("Australia/Lord_Howe"), Just("Asia/Kolkata")],
        ) {
            let schedule = Schedule::parse(&format!("{minute} {hour} * * *"), zone).unwrap();
            let mut now = DateTime::from_timestamp(start, 0).unwrap();
            for _ in 0..20 {
                let next = schedule.next_after(now).unwrap();
                prop_assert!(now < next && next - now <= Duration::hours(50));
                now = next;
            }
        }
    }
}
