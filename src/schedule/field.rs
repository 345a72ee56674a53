//! One field of an expression: the numbers that it allows.
//!
//! Fields are read here and handed to the `cron` crate as plain lists of numbers. Why not hand them over as written:
//! the crate counts weekdays from Sunday = 1, so `1-5` would mean Sunday to Thursday, and its errors name no field.

use super::ScheduleError;

/// What a field is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Weekday,
}

/// In the order in which they stand in an expression.
pub(super) const UNITS: [Unit; 6] =
    [Unit::Second, Unit::Minute, Unit::Hour, Unit::Day, Unit::Month, Unit::Weekday];

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day of the month",
            Self::Month => "month",
            Self::Weekday => "day of the week",
        }
    }

    /// The numbers that may be written.
    fn limits(self) -> (u32, u32) {
        match self {
            Self::Second | Self::Minute => (0, 59),
            Self::Hour => (0, 23),
            Self::Day => (1, 31),
            Self::Month => (1, 12),
            // 0 and 7 are both Sunday.
            Self::Weekday => (0, 7),
        }
    }

    /// The last of the different numbers.
    fn last(self) -> u32 {
        match self {
            Self::Weekday => 6,
            Self::Second | Self::Minute | Self::Hour | Self::Day | Self::Month => self.limits().1,
        }
    }

    fn allowed(self) -> &'static str {
        match self {
            Self::Second | Self::Minute => "0 to 59, with `*`, lists `1,2`, ranges `1-5` and steps `*/5`",
            Self::Hour => "0 to 23, with `*`, lists `1,2`, ranges `9-17` and steps `*/2`",
            Self::Day => "1 to 31, with `*`, lists `1,15`, ranges `1-7` and steps `*/2`",
            Self::Month => "1 to 12 or JAN to DEC, with `*`, lists, ranges and steps",
            Self::Weekday => "0 to 7 (0 and 7 are Sunday) or SUN to SAT, with `*`, lists, ranges and steps",
        }
    }

    fn names(self) -> (&'static [&'static str], u32) {
        match self {
            Self::Month => (&MONTHS, 1),
            Self::Weekday => (&WEEKDAYS, 0),
            Self::Second | Self::Minute | Self::Hour | Self::Day => (&[], 0),
        }
    }

    /// The number at which the `cron` crate begins where Unix begins at 0.
    fn offset_in_crate(self) -> u32 {
        u32::from(self == Self::Weekday)
    }
}

/// The numbers that one field allows, and how it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Field {
    unit: Unit,
    /// Bit `n` stands for the number `n`.
    allowed: u64,
    /// Begins with `*` or `?`: the field restricts nothing as far as days are concerned.
    pub(super) is_wild: bool,
    /// Written with `*`, `?` or a step, so a pace is meant rather than certain times.
    pub(super) is_paced: bool,
}

impl Field {
    pub(super) fn parse(unit: Unit, text: &str) -> Result<Self, ScheduleError> {
        let mut allowed = 0;
        for item in text.split(',') {
            allowed |= read_item(unit, item).map_err(|problem| complain(unit, text, &problem))?;
        }
        Ok(Self {
            unit,
            allowed,
            is_wild: text.starts_with(['*', '?']),
            is_paced: text.contains(['*', '?', '/']),
        })
    }

    /// A field that allows everything.
    pub(super) fn any(unit: Unit) -> Self {
        let (first, _) = unit.limits();
        Self {
            unit,
            allowed: (first..=unit.last()).fold(0, |bits, number| bits | 1 << number),
            is_wild: true,
            is_paced: true,
        }
    }

    pub(super) fn allows_all(&self) -> bool {
        self.allowed == Self::any(self.unit).allowed
    }

    pub(super) fn allows(&self, number: u32) -> bool {
        self.allowed >> number & 1 == 1
    }

    /// The smallest number that is allowed.
    pub(super) fn first(&self) -> u32 {
        self.allowed.trailing_zeros()
    }

    /// The field as the `cron` crate reads it.
    pub(super) fn to_crate(&self) -> String {
        if self.allows_all() {
            return "*".to_owned();
        }
        let (first, _) = self.unit.limits();
        let numbers: Vec<String> = (first..=self.unit.last())
            .filter(|number| self.allows(*number))
            .map(|number| (number + self.unit.offset_in_crate()).to_string())
            .collect();
        numbers.join(",")
    }
}

/// The bits of one item of a list: `*`, `5`, `1-5`, each perhaps with `/2`.
fn read_item(unit: Unit, item: &str) -> Result<u64, String> {
    let (range, step) = match item.split_once('/') {
        Some((range, step)) => (range, Some(read_step(unit, step)?)),
        None => (item, None),
    };
    let (first, _) = unit.limits();
    let (from, to) = if range == "*" || (range == "?" && matches!(unit, Unit::Day | Unit::Weekday)) {
        (first, unit.last())
    } else if let Some((from, to)) = range.split_once('-') {
        let (from, to) = (read_number(unit, from)?, read_number(unit, to)?);
        // `FRI-SUN` ends with the Sunday that follows.
        let wraps_to_sunday = unit == Unit::Weekday && to == 0 && 0 < from;
        (from, if wraps_to_sunday { 7 } else { to })
    } else {
        let from = read_number(unit, range)?;
        // `5/10` begins at 5 and goes on to the end.
        (from, if step.is_some() { unit.last().max(from) } else { from })
    };
    if to < from {
        let last = unit.last();
        return Err(format!("the range {range:?} runs backwards; write {from}-{last},{first}-{to}"));
    }
    let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
    let bits = (from..=to).step_by(step).fold(0_u64, |bits, number| {
        let is_second_sunday = unit == Unit::Weekday && number == 7;
        bits | 1 << if is_second_sunday { 0 } else { number }
    });
    Ok(bits)
}

fn read_step(unit: Unit, text: &str) -> Result<u32, String> {
    let (_, last) = unit.limits();
    match read_digits(text) {
        Some(0) => Err("a step of 0 never moves".to_owned()),
        Some(step) if step <= last => Ok(step),
        Some(step) => Err(format!("the step {step} is larger than {last}")),
        None => Err(format!("the step {text:?} is not a number")),
    }
}

fn read_number(unit: Unit, text: &str) -> Result<u32, String> {
    let (first, last) = unit.limits();
    if let Some(number) = read_digits(text) {
        if (first..=last).contains(&number) {
            return Ok(number);
        }
        return Err(format!("{number} is out of range"));
    }
    let (names, start) = unit.names();
    let wanted = text.to_ascii_lowercase();
    // Three letters or more of the name: `mon`, `tues`, `thurs`, `sept`, `wednesday`.
    let found = (3 <= wanted.len())
        .then(|| names.iter().zip(start..).find(|(name, _)| name.starts_with(&wanted)))
        .flatten();
    match found {
        Some((_, number)) => Ok(number),
        None if text.is_empty() => Err("a number is missing".to_owned()),
        None if text.contains(['L', 'W', '#']) => {
            Err(format!("{text:?}: `L`, `W` and `#` are not supported"))
        }
        None => Err(format!("{text:?} is not a number{}", or_a_name(names))),
    }
}

fn or_a_name(names: &[&str]) -> &'static str {
    if names.is_empty() { "" } else { " or a name" }
}

/// Digits only: `parse` alone would also take `+5`.
fn read_digits(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than fit are out of range, not unreadable.
    is_number.then(|| text.parse().unwrap_or(u32::MAX))
}

fn complain(unit: Unit, text: &str, problem: &str) -> ScheduleError {
    let name = unit.name();
    let allowed = unit.allowed();
    ScheduleError::new(format!("{name} {text:?}: {problem}; allowed are {allowed}"))
}
