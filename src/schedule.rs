//! Cron schedules in time zones. Only the worker needs them: applications that use the library compile no `cron`.
//!
//! The `cron` crate finds the next wall-clock time that fits, over wall-clock time disguised as UTC. What such a time
//! means in the zone is decided here, because the bare crate skips jobs in a gap, runs them twice in an overlap, and
//! goes backwards there.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Duration, NaiveDate, NaiveDateTime, NaiveTime, Timelike, Utc};
use chrono_tz::Tz;

mod field;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod zone;

use cachekeeper_config::{ScheduleProblem, ScheduleText, Warm};
use field::{Field, UNITS, Unit};
use zone::Moments;

/// The years that the `cron` crate knows.
const YEAR_MIN: i32 = 1970;
const YEAR_MAX: i32 = 2100;

/// When something runs: a cron expression in a time zone.
///
/// - **Days**: where the day of the month and the day of the week are both restricted, either may fit, as in every
///   Unix cron. A field that begins with `*` restricts nothing: with `*/2` both must fit.
/// - **Clocks go forward**: what was to run in the gap runs once, at the first moment after it. Only a schedule for
///   every hour keeps its pace instead.
/// - **Clocks go back**: certain times run once, at the first of the two. A schedule whose minutes or hours are
///   written with `*` or a step keeps its pace and runs through both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    expression: String,
    zone: Tz,
    /// Two where both kinds of days are restricted.
    alternatives: Vec<cron::Schedule>,
    repeats_in_overlap: bool,
    catches_up_after_gap: bool,
}

/// Why an expression is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleError {
    /// What is wrong and what to do.
    pub message: String,
}

impl ScheduleError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl Schedule {
    /// Parses an expression for a zone of the IANA database.
    ///
    /// Five fields (minute, hour, day of the month, month, day of the week), six (a second before them), or `@hourly`,
    /// `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`. Weekdays are those of Unix: 0 to 7, where
    /// 0 and 7 are Sunday, or names.
    ///
    /// # Errors
    /// [`ScheduleError`], also for a date that never comes, such as the 31st of February.
    pub fn parse(expression: &str, zone: &str) -> Result<Self, ScheduleError> {
        let zone = zone::parse(zone)?;
        let fields = read_fields(expand(expression.trim())?)?;
        let [second, minute, hour, day, month, weekday] = &fields;
        refuse_impossible_date(day, month, weekday)?;
        let (any_day, any_weekday) = (Field::any(Unit::Day), Field::any(Unit::Weekday));
        let either_day_fits = !day.is_wild && !weekday.is_wild;
        let days = if either_day_fits {
            vec![(day, &any_weekday), (&any_day, weekday)]
        } else {
            vec![(day, weekday)]
        };
        let mut alternatives = Vec::new();
        for (day, weekday) in days {
            let columns = [second, minute, hour, day, month, weekday].map(Field::to_crate);
            let alternative = cron::Schedule::from_str(&columns.join(" "))
                .map_err(|error| ScheduleError::new(format!("{expression:?} is not a schedule: {error}")))?;
            alternatives.push(alternative);
        }
        let keeps_pace = |field: &Field| field.is_paced || field.allows_all();
        Ok(Self {
            expression: expression.trim().to_owned(),
            zone,
            alternatives,
            repeats_in_overlap: keeps_pace(minute) || keeps_pace(hour),
            catches_up_after_gap: !hour.allows_all(),
        })
    }

    /// The first moment after `now` at which the schedule fires; none if that is after the year 2100.
    #[must_use]
    pub fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let now = known_second(now)?;
        let offset = zone::offset(self.zone, now);
        let wall = now.naive_utc() + offset;
        let ahead = self.next_ahead(wall, now);
        let repeated = self.next_repeated(wall, now);
        let found = ahead.into_iter().chain(repeated).min();
        debug_assert!(found.is_none_or(|found| now < found), "{self} fires at {found:?}, not after {now}");
        found
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

    /// The first moment after `now` whose wall-clock time is after `wall`, the one of `now`.
    fn next_ahead(&self, mut wall: NaiveDateTime, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Each turn moves `wall` on, and the crate ends in the year 2100. Gaps and overlaps are left in one step
        // where the schedule does not run in them, so that a schedule for every second takes no thousands of turns.
        loop {
            wall = self.next_wall(wall)?;
            match zone::moments(self.zone, wall) {
                Moments::Once(moment) => return Some(moment),
                Moments::Twice { earlier, .. } if now < earlier => return Some(earlier),
                Moments::Twice { later, .. } if self.repeats_in_overlap => return Some(later),
                // `now` is in the second half already.
                Moments::Twice { .. } => {}
                Moments::Never { after_gap } if self.catches_up_after_gap => return Some(after_gap),
                Moments::Never { after_gap } => {
                    let offset = zone::offset(self.zone, after_gap);
                    wall = after_gap.naive_utc() + offset - Duration::seconds(1);
                }
            }
        }
    }

    /// `now` is in the first half of an overlap: the first moment of the second half, whose wall-clock time is
    /// before that of `now` or equal to it.
    fn next_repeated(&self, wall: NaiveDateTime, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let Moments::Twice { earlier, later } = zone::moments(self.zone, wall) else {
            return None;
        };
        if !self.repeats_in_overlap || now != earlier {
            return None;
        }
        let back = zone::transition(self.zone, now, later);
        let offset = zone::offset(self.zone, back);
        let before = back.naive_utc() + offset - Duration::seconds(1);
        let repeated = self.next_wall(before)?;
        Some((repeated - offset).and_utc()).filter(|_| repeated <= wall)
    }

    /// The first wall-clock time after this one that fits.
    fn next_wall(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let after = after.and_utc();
        let next = |schedule: &cron::Schedule| schedule.after(&after).next();
        let next = self.alternatives.iter().filter_map(next).min()?;
        debug_assert!(after < next, "the crate moved from {after} back to {next}");
        Some(next.naive_utc())
    }
}

/// The check that the configuration's loader takes: which parts of a schedule are wrong, so that each is shown at its place.
#[must_use]
pub fn check(text: &ScheduleText) -> Vec<ScheduleProblem> {
    // The zone first: parsing would not say which of the two it refused.
    let zone = zone::parse(&text.timezone).err();
    let parsed = Schedule::parse(&text.expression, if zone.is_some() { "UTC" } else { &text.timezone });
    let zone = zone.map(|error| ScheduleProblem::TimeZone(error.message));
    zone.into_iter().chain(parsed.err().map(|error| ScheduleProblem::Expression(error.message))).collect()
}

/// When the next backfill of a dataset is due by its schedule. None also for a schedule that [`check`] refuses, with
/// which no worker starts.
#[must_use]
pub fn next_fire(warm: &Warm, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let text = warm.schedule.as_ref()?;
    Schedule::parse(&text.expression, &text.timezone).ok()?.next_after(now)
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.expression, self.zone.name())
    }
}

/// The whole second of a moment, moved into the years that the crate knows; none where they are over.
fn known_second(now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if YEAR_MAX < now.year() {
        return None;
    }
    if now.year() < YEAR_MIN {
        let last = NaiveDate::from_ymd_opt(YEAR_MIN - 1, 12, 31)?;
        return Some(last.and_time(NaiveTime::MIN).and_utc());
    }
    now.with_nanosecond(0)
}

/// Shorthands spelled out.
fn expand(expression: &str) -> Result<&str, ScheduleError> {
    match expression {
        "@hourly" => Ok("0 * * * *"),
        "@daily" | "@midnight" => Ok("0 0 * * *"),
        "@weekly" => Ok("0 0 * * 0"),
        "@monthly" => Ok("0 0 1 * *"),
        "@yearly" | "@annually" => Ok("0 0 1 1 *"),
        other if other.starts_with('@') => Err(ScheduleError::new(format!(
            "{other:?} is not known; use @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually or fields"
        ))),
        other => Ok(other),
    }
}

fn read_fields(expression: &str) -> Result<[Field; 6], ScheduleError> {
    let mut texts: Vec<&str> = expression.split_whitespace().collect();
    if texts.len() == 5 {
        texts.insert(0, "0");
    }
    let Ok(texts): Result<[&str; 6], _> = texts.try_into() else {
        return Err(ScheduleError::new(wrong_count(expression)));
    };
    let mut fields = Vec::new();
    for (unit, text) in UNITS.into_iter().zip(texts) {
        fields.push(Field::parse(unit, text)?);
    }
    fields.try_into().map_err(|_fields| ScheduleError::new(wrong_count(expression)))
}

fn wrong_count(expression: &str) -> String {
    let example = "such as \"30 3 * * 1-5\" or \"0 */5 * * * *\"";
    match expression.split_whitespace().count() {
        0 => format!("the schedule is empty; give five or six fields, {example}"),
        7 => "a schedule has no field for years: remove the seventh field".to_owned(),
        count => {
            format!("a schedule has five fields, or six with seconds first, this has {count}; {example}")
        }
    }
}

/// A restricted weekday always comes; a day of the month may not exist in any of the months.
fn refuse_impossible_date(day: &Field, month: &Field, weekday: &Field) -> Result<(), ScheduleError> {
    let either_day_fits = !day.is_wild && !weekday.is_wild;
    let last_day = |month| match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let comes = (1..=12).any(|number| month.allows(number) && day.first() <= last_day(number));
    if comes || either_day_fits {
        return Ok(());
    }
    let first = day.first();
    Err(ScheduleError::new(format!("this date never comes: none of the months has a day {first}")))
}
