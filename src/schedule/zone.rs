//! What a wall-clock time means in a zone, and where its clocks are changed.

use std::str::FromStr;

use chrono::{DateTime, Duration, LocalResult, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};

use super::ScheduleError;

/// The moments at which clocks show some wall-clock time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moments {
    Once(DateTime<Utc>),
    /// Clocks go back: the time is shown twice.
    Twice {
        earlier: DateTime<Utc>,
        later: DateTime<Utc>,
    },
    /// Clocks go forward past this time; the first moment after the gap.
    Never {
        after_gap: DateTime<Utc>,
    },
}

/// No zone has ever been further from UTC than this.
const OFFSET_MAX: Duration = Duration::hours(26);

pub(super) fn parse(name: &str) -> Result<Tz, ScheduleError> {
    if let Ok(zone) = Tz::from_str(name) {
        return Ok(zone);
    }
    let help = match nearest_name(name) {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => "use a name of the IANA database, such as \"UTC\" or \"Europe/Berlin\"".to_owned(),
    };
    Err(ScheduleError::new(format!("time zone {name:?} is not known; {help}")))
}

pub(super) fn offset(zone: Tz, moment: DateTime<Utc>) -> Duration {
    let offset = zone.offset_from_utc_datetime(&moment.naive_utc());
    Duration::seconds(i64::from(offset.fix().local_minus_utc()))
}

pub(super) fn moments(zone: Tz, wall: NaiveDateTime) -> Moments {
    match zone.from_local_datetime(&wall) {
        LocalResult::Single(moment) => Moments::Once(moment.to_utc()),
        LocalResult::Ambiguous(one, other) => {
            Moments::Twice { earlier: one.min(other).to_utc(), later: one.max(other).to_utc() }
        }
        LocalResult::None => {
            let (early, late) = (wall.and_utc() - OFFSET_MAX, wall.and_utc() + OFFSET_MAX);
            let after_gap =
                first_moment(early, late, |moment| wall < moment.naive_utc() + offset(zone, moment));
            Moments::Never { after_gap }
        }
    }
}

/// The moment between these two at which the offset changes.
pub(super) fn transition(zone: Tz, early: DateTime<Utc>, late: DateTime<Utc>) -> DateTime<Utc> {
    let before = offset(zone, early);
    first_moment(early, late, |moment| offset(zone, moment) != before)
}

/// The first whole second after `early`, at most `late`, from which on the condition holds.
fn first_moment(
    early: DateTime<Utc>,
    late: DateTime<Utc>,
    holds: impl Fn(DateTime<Utc>) -> bool,
) -> DateTime<Utc> {
    let (mut low, mut high) = (0, (late - early).num_seconds());
    while 1 < high - low {
        let middle = low + (high - low) / 2;
        if holds(early + Duration::seconds(middle)) {
            high = middle;
        } else {
            low = middle;
        }
    }
    early + Duration::seconds(high)
}

/// The known name that was probably meant.
fn nearest_name(name: &str) -> Option<&'static str> {
    let wanted = name.trim().to_lowercase().replace(' ', "_");
    // Nobody means a zone with a long text, and distances cost the product of the lengths.
    if wanted.is_empty() || 64 < wanted.len() {
        return None;
    }
    let city = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let distance_to = |known: &str| {
        let known = known.to_lowercase();
        // `Berlin` is almost as good as `Europe/Berlin`.
        (2 * distance(&wanted, &known)).min(2 * distance(&city(&wanted), &city(&known)) + 1)
    };
    let names = TZ_VARIANTS.iter().map(|zone| zone.name());
    let (distance, nearest) =
        names.map(|known| (distance_to(known), known)).min_by_key(|(distance, _)| *distance)?;
    // One wrong letter in four: `EST` would be no help for `PST`.
    let limit = 2 * (wanted.len() / 4) + 1;
    (distance <= limit).then_some(nearest)
}

/// How many characters must be inserted, removed or replaced.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (position, character) in left.chars().enumerate() {
        let mut diagonal = position;
        let mut beside = position + 1;
        let mut next = vec![beside];
        for (other, above) in right.iter().zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(*other != character);
            beside = replaced.min(above + 1).min(beside + 1);
            diagonal = *above;
            next.push(beside);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
