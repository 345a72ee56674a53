//! Durations, sizes and shares as people write them, always with a unit.

use std::time::Duration;

/// Units of time, in milliseconds.
pub const DURATIONS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];
/// Units of size, in bytes.
pub const SIZES: [(&str, u64); 10] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
];

/// Reads `250ms`, `30s`, `1h 30m`.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let total = parse_sum(text, &DURATIONS, "a duration such as \"30s\", \"5m\" or \"1h 30m\"")?;
    Ok(Duration::from_millis(total))
}

/// Reads `512B`, `1KiB`, `4MiB`.
///
/// # Errors
/// What to write instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse_sum(text, &SIZES, "a size such as \"512B\", \"1KiB\" or \"4MiB\"")
}

/// Reads `20%` as 0.2.
///
/// # Errors
/// What to write instead.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').ok_or_else(|| {
        let is_number = !text.trim().is_empty() && text.trim().chars().all(|one| one.is_ascii_digit());
        let written = if is_number { text.trim() } else { "20" };
        format!("a share ends with %, write \"{written}%\"")
    })?;
    let example = || "a share such as \"20%\"".to_owned();
    let is_plain = number.trim().chars().all(|one| one.is_ascii_digit() || one == '.');
    let share: f64 = number.trim().parse().ok().filter(|_| is_plain).ok_or_else(example)?;
    if (0.0..=100.0).contains(&share) {
        Ok(share / 100.0)
    } else {
        Err("a share is between 0% and 100%".to_owned())
    }
}

fn parse_sum(text: &str, units: &[(&str, u64)], expected: &str) -> Result<u64, String> {
    let mut total = 0_u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(format!("expected {expected}"));
    }
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|character: char| !character.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let number: u64 = number.parse().map_err(|_number| format!("expected {expected}"))?;
        if let Some(fraction) = behind.strip_prefix(['.', ',']) {
            return Err(
                without_fraction(number, fraction, units).unwrap_or_else(|| format!("expected {expected}"))
            );
        }
        if unit.is_empty()
            && let Some(unit) = meant_unit(behind, units)
        {
            return Err(format!("no blank stands before the unit, write \"{number}{unit}\""));
        }
        // Nothing is nothing in every unit: whether it is allowed is told, and not a unit asked for.
        if unit.is_empty() && number == 0 && behind.is_empty() && rest.len() == text.trim().len() {
            return Ok(0);
        }
        if unit.is_empty() {
            let example = units.get(1).map_or("", |(unit, _)| unit);
            return Err(format!("missing unit, write \"{number}{example}\""));
        }
        let Some((_, factor)) = units.iter().find(|(known, _)| *known == unit) else {
            if let Some(meant) = meant_unit(unit, units) {
                return Err(format!("unknown unit {unit:?}, write \"{number}{meant}\""));
            }
            let known: Vec<&str> = units.iter().map(|(known, _)| *known).collect();
            return Err(format!("unknown unit {unit:?}, use one of {}", known.join(", ")));
        };
        let part = number.checked_mul(*factor).and_then(|part| total.checked_add(part));
        total = part.ok_or_else(|| "too large".to_owned())?;
        rest = behind.trim_start();
    }
    Ok(total)
}

/// The unit that a word such as `hours` or `mib` means, at the beginning of a text.
fn meant_unit<'a>(text: &str, units: &[(&'a str, u64)]) -> Option<&'a str> {
    const WORDS: [(&str, &str); 6] =
        [("milli", "ms"), ("sec", "s"), ("min", "m"), ("hour", "h"), ("day", "d"), ("week", "w")];
    let text = text.trim_start();
    let end = text.find(|one: char| !one.is_ascii_alphabetic()).unwrap_or(text.len());
    let word = text.get(..end).unwrap_or_default();
    let same = units.iter().find(|(unit, _)| *unit == word);
    let similar = || units.iter().find(|(unit, _)| unit.eq_ignore_ascii_case(word));
    if let Some((unit, _)) = same.or_else(similar) {
        return Some(unit);
    }
    let lower = word.to_ascii_lowercase();
    let (_, meant) = WORDS.iter().find(|(beginning, _)| lower.starts_with(beginning))?;
    units.iter().find(|(unit, _)| unit == meant).map(|(unit, _)| *unit)
}

/// How to write a number with a fraction (`1.5h`) without one.
fn without_fraction(number: u64, fraction: &str, units: &[(&str, u64)]) -> Option<String> {
    let digits = fraction.find(|character: char| !character.is_ascii_digit()).unwrap_or(fraction.len());
    let (digits, unit) = fraction.split_at_checked(digits)?;
    let (_, factor) = units.iter().find(|(known, _)| *known == unit.trim())?;
    let scale = 10_u64.checked_pow(u32::try_from(digits.len()).ok()?)?;
    let scaled = number.checked_mul(scale)?.checked_add(digits.parse().ok()?)?.checked_mul(*factor)?;
    // A part of the smallest unit is not a whole number of anything.
    let amount = scaled.is_multiple_of(scale).then_some(scaled / scale).filter(|amount| 0 < *amount)?;
    let (unit, factor) = units
        .iter()
        .rev()
        .filter(|(_, factor)| amount.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor)?;
    Some(format!("fractions are not understood, write \"{}{unit}\"", amount / factor))
}

/// A duration in the largest unit that shows it exactly.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fitting = DURATIONS
        .iter()
        .rev()
        .find(|(unit, factor)| *unit != "w" && millis.is_multiple_of(*factor) && 0 < millis / factor);
    fitting.map_or_else(|| format!("{millis}ms"), |(unit, factor)| format!("{}{unit}", millis / factor))
}

/// A size in the largest of B, KiB, MiB and GiB that shows it exactly.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let fitting = SIZES
        .iter()
        .filter(|(unit, factor)| {
            matches!(*unit, "B" | "KiB" | "MiB" | "GiB")
                && bytes.is_multiple_of(*factor)
                && 0 < bytes / factor
        })
        .max_by_key(|(_, factor)| *factor);
    fitting.map_or_else(|| format!("{bytes}B"), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_shown() {
        for (text, millis) in
            [("250ms", 250), ("30s", 30_000), ("1h 30m", 5_400_000), ("2d", 172_800_000), (" 5m ", 300_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("1KiB"), Ok(1024));
        assert_eq!(parse_size("1MB"), Ok(1_000_000));
        assert_eq!(parse_share("20%"), Ok(0.2));
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(3600)), "1h");
    }

    #[test]
    fn errors_say_what_to_write() {
        for (text, fragment) in [
            ("30", "write \"30s\""),
            ("30x", "unknown unit"),
            ("1h 0", "write \"0s\""),
            ("", "expected"),
            ("s", "expected"),
            ("99999999999999999d", "too large"),
            ("1.5h", "write \"90m\""),
            ("0.25s", "write \"250ms\""),
            ("1h 2,5m", "write \"150s\""),
            ("0.5ms", "expected a duration"),
            ("1.5", "expected a duration"),
            ("1.", "expected a duration"),
        ] {
            assert!(parse_duration(text).unwrap_err().contains(fragment), "{text}");
        }
        assert!(parse_size("1.5KiB").unwrap_err().contains("write \"1536B\""));
        assert!(parse_share("20").unwrap_err().contains("\"20%\""));
        assert!(parse_share("120%").unwrap_err().contains("between"));
        for odd in ["+5%", "-0%", "1e1%", "nan%", "%", ".%"] {
            assert!(parse_share(odd).unwrap_err().contains("\"20%\""), "{odd}");
        }
        assert_eq!((parse_share(".5%"), parse_share("5. %")), (Ok(0.005), Ok(0.05)));
    }
}
