//! Dates, times and intervals as Postgres prints them under `DateStyle = ISO` and `IntervalStyle = iso_8601`.

use super::number::push_padded;
use super::read::{Malformed, Reader};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// Days from 1970-01-01 to Postgres's own zero, 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;

/// What stands between date and time, and behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    /// `2026-01-02 03:04:05+00`, as `::text` prints.
    Text,
    /// `2026-01-02T03:04:05+00:00`, as `to_json` prints (RFC 3339).
    Json,
}

/// `date`.
pub(crate) fn write_date(bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "date");
    let days = reader.i32()?;
    reader.end()?;
    match days {
        i32::MAX => output.push_str("infinity"),
        i32::MIN => output.push_str("-infinity"),
        days => {
            let is_bc = push_date(i64::from(days), output);
            push_bc(is_bc, output);
        }
    }
    Ok(())
}

/// `timestamp`, or with a zone `timestamptz`, which is printed in UTC.
pub(crate) fn write_timestamp(
    bytes: &[u8],
    zone: bool,
    style: Style,
    output: &mut String,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "timestamp");
    let micros = reader.i64()?;
    reader.end()?;
    match micros {
        i64::MAX => output.push_str("infinity"),
        i64::MIN => output.push_str("-infinity"),
        micros => {
            let is_bc = push_date(micros.div_euclid(MICROS_PER_DAY), output);
            output.push(if style == Style::Json { 'T' } else { ' ' });
            push_time(micros.rem_euclid(MICROS_PER_DAY), output);
            if zone {
                output.push_str(if style == Style::Json { "+00:00" } else { "+00" });
            }
            push_bc(is_bc, output);
        }
    }
    Ok(())
}

/// `time`.
pub(crate) fn write_time(bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "time");
    let micros = reader.i64()?;
    reader.end()?;
    if !(0..=MICROS_PER_DAY).contains(&micros) {
        return Err(Malformed("time"));
    }
    push_time(micros, output);
    Ok(())
}

/// `timetz`, with its own zone.
pub(crate) fn write_timetz(bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "timetz");
    let micros = reader.i64()?;
    // Seconds west of Greenwich.
    let west = reader.i32()?;
    reader.end()?;
    if !(0..=MICROS_PER_DAY).contains(&micros) || 86_400 <= west.unsigned_abs() {
        return Err(Malformed("timetz"));
    }
    push_time(micros, output);
    output.push(if 0 < west { '-' } else { '+' });
    let east = west.unsigned_abs();
    push_two(i64::from(east / 3600), output);
    if east % 3600 != 0 {
        output.push(':');
        push_two(i64::from(east / 60 % 60), output);
    }
    if east % 60 != 0 {
        output.push(':');
        push_two(i64::from(east % 60), output);
    }
    Ok(())
}

/// `interval`, as ISO 8601 with designators.
pub(crate) fn write_interval(bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "interval");
    let (micros, days, months) = (reader.i64()?, reader.i32()?, reader.i32()?);
    reader.end()?;
    match (micros, days, months) {
        (0, 0, 0) => output.push_str("PT0S"),
        (i64::MAX, i32::MAX, i32::MAX) => output.push_str("infinity"),
        (i64::MIN, i32::MIN, i32::MIN) => output.push_str("-infinity"),
        _ => {
            output.push('P');
            push_part(i64::from(months / 12), 'Y', output);
            push_part(i64::from(months % 12), 'M', output);
            push_part(i64::from(days), 'D', output);
            if micros != 0 {
                output.push('T');
                push_part(micros / (3600 * MICROS_PER_SECOND), 'H', output);
                push_part(micros / (60 * MICROS_PER_SECOND) % 60, 'M', output);
                push_seconds(micros % (60 * MICROS_PER_SECOND), output);
            }
        }
    }
    Ok(())
}

fn push_part(number: i64, designator: char, output: &mut String) {
    if number != 0 {
        output.push_str(itoa::Buffer::new().format(number));
        output.push(designator);
    }
}

fn push_seconds(micros: i64, output: &mut String) {
    if micros == 0 {
        return;
    }
    if micros < 0 {
        output.push('-');
    }
    let micros = micros.unsigned_abs();
    output.push_str(itoa::Buffer::new().format(micros / 1_000_000));
    push_fraction(micros % 1_000_000, output);
    output.push('S');
}

/// Days since 2000-01-01 as a date; true: before Christ. (The civil calendar from days: Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.)
fn push_date(days: i64, output: &mut String) -> bool {
    let shifted = days + EPOCH_DAYS + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let is_bc = year <= 0;
    let shown = if is_bc { 1 - year } else { year };
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(shown);
    for _ in text.len()..4 {
        output.push('0');
    }
    output.push_str(text);
    output.push('-');
    push_two(month, output);
    output.push('-');
    push_two(day, output);
    is_bc
}

fn push_bc(is_bc: bool, output: &mut String) {
    if is_bc {
        output.push_str(" BC");
    }
}

fn push_time(micros: i64, output: &mut String) {
    let seconds = micros / MICROS_PER_SECOND;
    push_two(seconds / 3600, output);
    output.push(':');
    push_two(seconds / 60 % 60, output);
    output.push(':');
    push_two(seconds % 60, output);
    push_fraction((micros % MICROS_PER_SECOND).unsigned_abs(), output);
}

fn push_fraction(micros: u64, output: &mut String) {
    if micros == 0 {
        return;
    }
    output.push('.');
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(micros);
    for _ in text.len()..6 {
        output.push('0');
    }
    output.push_str(text.trim_end_matches('0'));
}

fn push_two(number: i64, output: &mut String) {
    push_padded(u16::try_from(number).unwrap_or_default(), 2, output);
}
