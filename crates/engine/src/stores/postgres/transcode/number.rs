//! Numbers as Postgres prints them.

use std::borrow::Cow;

use super::read::{Malformed, Reader};

/// No float needs more digits to be told from others.
const DIGITS_MAX: usize = 17;

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const INFINITY: u16 = 0xd000;
const MINUS_INFINITY: u16 = 0xf000;

/// `numeric`: groups of four decimal digits (src/backend/utils/adt/numeric.c, `numeric_send`).
pub(crate) fn write_numeric(bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    let malformed = Malformed("numeric");
    let mut reader = Reader::new(bytes, "numeric");
    let groups = reader.u16()?;
    let weight = i32::from(reader.i16()?);
    let sign = reader.u16()?;
    let scale = usize::from(reader.u16()?);
    match sign {
        NAN => output.push_str("NaN"),
        INFINITY => output.push_str("Infinity"),
        MINUS_INFINITY => output.push_str("-Infinity"),
        POSITIVE | NEGATIVE => {
            if sign == NEGATIVE {
                output.push('-');
            }
            let mut digits = Vec::with_capacity(usize::from(groups));
            for _ in 0..groups {
                let group = reader.u16()?;
                if 9_999 < group {
                    return Err(malformed);
                }
                digits.push(group);
            }
            write_digits(&digits, weight, scale, output);
        }
        _ => return Err(malformed),
    }
    reader.end()
}

fn write_digits(digits: &[u16], weight: i32, scale: usize, output: &mut String) {
    let group =
        |position: i32| usize::try_from(position).ok().and_then(|at| digits.get(at)).copied().unwrap_or(0);
    if weight < 0 {
        output.push('0');
    }
    for position in 0..=weight {
        let text = group(position);
        if position == 0 {
            output.push_str(itoa::Buffer::new().format(text));
        } else {
            push_padded(text, 4, output);
        }
    }
    if scale == 0 {
        return;
    }
    output.push('.');
    let end = output.len() + scale;
    let mut position = weight + 1;
    while output.len() < end {
        push_padded(group(position), 4, output);
        position += 1;
    }
    output.truncate(end);
}

/// Appends a number with leading zeros.
pub(crate) fn push_padded(number: u16, width: usize, output: &mut String) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(number);
    for _ in text.len()..width {
        output.push('0');
    }
    output.push_str(text);
}

/// A float with the fewest digits that read back as the same, laid out as Postgres does: with an exponent from
/// `digits_max` digits on, or below 0.0001.
fn layout(shortest: &str, digits_max: i32, output: &mut String) {
    let (sign, shortest) = match shortest.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", shortest),
    };
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = if fraction == "0" { "" } else { fraction };
    let all = format!("{whole}{fraction}");
    let leading = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0');
    output.push_str(sign);
    if digits.is_empty() {
        output.push('0');
        return;
    }
    let whole_digits = i32::try_from(whole.len()).unwrap_or_default();
    let leading = i32::try_from(leading).unwrap_or_default();
    // The value is 0.DIGITS times ten to this power.
    let power = whole_digits - leading + exponent;
    let count = i32::try_from(digits.len()).unwrap_or_default();
    if power < -3 || digits_max < power {
        let (first, others) = digits.split_at(1);
        output.push_str(first);
        if !others.is_empty() {
            output.push('.');
            output.push_str(others);
        }
        output.push('e');
        output.push(if power <= 0 { '-' } else { '+' });
        push_padded(u16::try_from((power - 1).unsigned_abs()).unwrap_or_default(), 2, output);
    } else if power <= 0 {
        output.push_str("0.");
        output.extend(std::iter::repeat_n('0', usize::try_from(-power).unwrap_or_default()));
        output.push_str(digits);
    } else if count <= power {
        output.push_str(digits);
        output.extend(std::iter::repeat_n('0', usize::try_from(power - count).unwrap_or_default()));
    } else {
        let (whole, fraction) = digits.split_at(usize::try_from(power).unwrap_or_default());
        output.push_str(whole);
        output.push('.');
        output.push_str(fraction);
    }
}

/// A float as `mantissa` times two to the power of `exponent`.
struct Binary {
    mantissa: u64,
    exponent: i32,
    /// The float below is nearer than the one above.
    is_lowest: bool,
}

impl Binary {
    fn new(fraction: u64, biased: u64, fraction_bits: u32, bias: i32) -> Self {
        let exponent = i32::try_from(biased.max(1)).unwrap_or_default() - bias;
        let mantissa = if biased == 0 { fraction } else { fraction | 1 << fraction_bits };
        Self { mantissa, exponent, is_lowest: fraction == 0 && 1 < biased }
    }

    /// The shortest digits that lie strictly nearer to this float than to any other, as Postgres has it
    /// (src/common/d2s.c, `acceptBounds`). Those of `shortest` may lie half way, where readers round to the even one.
    fn inside<'a>(
        &self,
        shortest: &'a str,
        value: impl std::fmt::LowerExp,
        is_it: impl Fn(&str) -> bool,
    ) -> Cow<'a, str> {
        // Readers would round away from an odd one.
        if !self.mantissa.is_multiple_of(2) || !self.is_half_way(shortest) {
            return Cow::Borrowed(shortest);
        }
        let longer = (1..DIGITS_MAX).map(|behind_point| format!("{value:.behind_point$e}"));
        let inside = longer.into_iter().find(|text| is_it(text) && !self.is_half_way(text));
        inside.map_or(Cow::Borrowed(shortest), Cow::Owned)
    }

    /// Whether a decimal is half way between this float and one of its neighbours.
    fn is_half_way(&self, text: &str) -> bool {
        let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        let digits: String = whole.chars().chain(fraction.chars()).filter(char::is_ascii_digit).collect();
        let behind_point = i32::try_from(fraction.len()).unwrap_or_default();
        let ends_in = digits.len() - digits.trim_end_matches('0').len();
        let power = exponent - behind_point + i32::try_from(ends_in).unwrap_or_default();
        let Ok(number) = digits.trim_end_matches('0').parse::<u128>() else { return false };
        let mantissa = u128::from(self.mantissa);
        let below = if self.is_lowest {
            (4 * mantissa).checked_sub(1).map(|odd| (odd, self.exponent - 2))
        } else {
            (2 * mantissa).checked_sub(1).map(|odd| (odd, self.exponent - 1))
        };
        let above = (2 * mantissa + 1, self.exponent - 1);
        below.into_iter().chain([above]).any(|(odd, twos)| is_equal(number, power, odd, twos))
    }
}

/// Whether `number` times ten to `power` is the odd number times two to `twos`.
fn is_equal(number: u128, power: i32, odd: u128, twos: i32) -> bool {
    let zeros = |number: u128| i32::try_from(number.trailing_zeros()).unwrap_or_default();
    match u32::try_from(power) {
        // More fives than an odd number of 54 bits can have.
        Ok(24..) => false,
        Ok(tens) => {
            let fives = number.saturating_mul(5_u128.pow(tens));
            fives >> zeros(fives) == odd && zeros(fives) + power == twos
        }
        // More digits than a shortest decimal has.
        Err(_negative) if power < -3 => false,
        Err(_negative) => {
            let fives = odd * 5_u128.pow(power.unsigned_abs());
            number >> zeros(number) == fives && zeros(number) == twos - power
        }
    }
}

/// The name of a float that is no number.
pub fn special(value: f64) -> Option<&'static str> {
    match value {
        value if value.is_nan() => Some("NaN"),
        value if value == f64::INFINITY => Some("Infinity"),
        value if value == f64::NEG_INFINITY => Some("-Infinity"),
        _ => None,
    }
}

/// `float8`.
pub(crate) fn write_f64(value: f64, output: &mut String) {
    match special(value) {
        Some(name) => output.push_str(name),
        None => {
            let bits = value.to_bits();
            let binary = Binary::new(bits & (u64::MAX >> 12), bits >> 52 & 0x7ff, 52, 1_075);
            let is_it = |text: &str| text.parse() == Ok(value);
            layout(&binary.inside(ryu::Buffer::new().format_finite(value), value, is_it), 15, output);
        }
    }
}

/// `float4`.
pub(crate) fn write_f32(value: f32, output: &mut String) {
    match special(f64::from(value)) {
        Some(name) => output.push_str(name),
        None => {
            let bits = u64::from(value.to_bits());
            let binary = Binary::new(bits & 0x7f_ffff, bits >> 23 & 0xff, 23, 150);
            let is_it = |text: &str| text.parse() == Ok(value);
            layout(&binary.inside(ryu::Buffer::new().format_finite(value), value, is_it), 6, output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_laid_out_as_postgres_does() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (100_000.0, "100000"),
            (1e14, "100000000000000"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e15, "1e+15"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (f64::NAN, "NaN"),
        ] {
            let mut output = String::new();
            write_f64(value, &mut output);
            assert_eq!(output, text);
        }
        let mut output = String::new();
        write_f32(1_000_000.0, &mut output);
        assert_eq!(output, "1e+06");
        // Half way between two floats, the shortest digits are of the even one; Postgres wants more of them.
        for (value, text) in
            [(-35_364_128.0, "-3.5364128e+07"), (8_388_608.0, "8.388608e+06"), (1e10, "1e+10")]
        {
            let mut output = String::new();
            write_f32(value, &mut output);
            assert_eq!(output, text);
        }
    }

    #[test]
    fn malformed_numerics_are_refused() {
        let mut output = String::new();
        assert!(write_numeric(&[0, 1, 0, 0, 0, 0, 0, 0], &mut output).is_err());
        assert!(write_numeric(&[0, 0, 0, 0, 0x12, 0, 0, 0], &mut output).is_err());
        assert!(write_numeric(&[0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff], &mut output).is_err());
    }
}
