//! Moments as the watermark has them: `2026-11-27T01:02:03.456789Z`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads a moment in UTC, in years from 1970 to 9999. None: it is none.
#[must_use]
pub fn parse_utc(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(time, ':')?;
    let is_fraction = fraction.len() <= 9 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let fits = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || 23 < hour || 59 < minute || 60 < second || !is_fraction {
        return None;
    }
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    let seconds = ((days(year, month, day)? * 24 + hour) * 60 + minute) * 60 + second;
    Some(UNIX_EPOCH + Duration::new(seconds, nanos))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut next = || parts.next()?.parse().ok();
    let numbers = [next()?, next()?, next()?];
    parts.next().is_none().then_some(numbers)
}

/// Days since 1970-01-01. (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.)
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    (era * 146_097 + of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_what_is_none_is_not() {
        let at = |text: &str| parse_utc(text).map(|at| at.duration_since(UNIX_EPOCH).unwrap());
        assert_eq!(at("1970-01-01T00:00:00.000000Z"), Some(Duration::ZERO));
        assert_eq!(at("2026-11-27T01:02:03.456789Z"), Some(Duration::new(1_795_741_323, 456_789_000)));
        assert_eq!(at("2000-02-29T23:59:59Z"), Some(Duration::from_secs(951_868_799)));
        for text in [
            "",
            "2026-11-27",
            "2026-11-27T01:02:03",
            "2026-13-27T01:02:03Z",
            "1969-12-31T23:59:59Z",
            "2026-11-27T1:2:3.xZ",
        ] {
            assert_eq!(at(text), None, "{text}");
        }
    }
}
