//! The text of a value, as Postgres prints it under the settings that Cachekeeper pins.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::json::jsonb_text;
use super::kind::Kind;
use super::number;
use super::read::{Malformed, Reader, utf8};
use super::time::{self, Style};

/// Enough for every text that is not a user's own.
pub(crate) const TEXT_MAX: usize = 64;

thread_local! {
    // One buffer a thread: a row of eight columns would otherwise allocate several times.
    static TEXT: RefCell<String> = RefCell::new(String::with_capacity(TEXT_MAX));
}

/// Lends an empty text.
pub(crate) fn with_text<T>(work: impl FnOnce(&mut String) -> Result<T, Malformed>) -> Result<T, Malformed> {
    TEXT.with(|text| match text.try_borrow_mut() {
        Ok(mut text) => {
            text.clear();
            work(&mut text)
        }
        Err(_in_use) => work(&mut String::new()),
    })
}

/// Appends the text of a value that is not null.
pub(crate) fn write_column_text(kind: &Kind, bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "value");
    match kind {
        Kind::Bool => output.push_str(if reader.u8()? == 0 { "false" } else { "true" }),
        Kind::Int2 => output.push_str(itoa::Buffer::new().format(reader.i16()?)),
        Kind::Int4 => output.push_str(itoa::Buffer::new().format(reader.i32()?)),
        Kind::Int8 => output.push_str(itoa::Buffer::new().format(reader.i64()?)),
        Kind::Oid => output.push_str(itoa::Buffer::new().format(reader.i32()?.cast_unsigned())),
        Kind::Float4 => number::write_f32(f32::from_bits(reader.i32()?.cast_unsigned()), output),
        Kind::Float8 => number::write_f64(f64::from_bits(reader.i64()?.cast_unsigned()), output),
        Kind::Numeric => number::write_numeric(bytes, output)?,
        Kind::Text | Kind::Json | Kind::Shown | Kind::ShownAsJson | Kind::Guided(_) => {
            output.push_str(utf8(bytes, "text")?);
        }
        Kind::Jsonb => output.push_str(utf8(jsonb_text(bytes)?, "jsonb")?),
        Kind::Char => write_char(reader.u8()?, output),
        Kind::Bytes => {
            output.push_str("\\x");
            push_hex(bytes, output);
        }
        Kind::Uuid => write_uuid(bytes, output)?,
        Kind::Date => time::write_date(bytes, output)?,
        Kind::Time => time::write_time(bytes, output)?,
        Kind::TimeTz => time::write_timetz(bytes, output)?,
        Kind::Timestamp => time::write_timestamp(bytes, false, Style::Text, output)?,
        Kind::TimestampTz => time::write_timestamp(bytes, true, Style::Text, output)?,
        Kind::Interval => time::write_interval(bytes, output)?,
        Kind::Inet => write_address(bytes, false, output)?,
        Kind::Cidr => write_address(bytes, true, output)?,
        Kind::MacAddress => {
            for (position, byte) in bytes.iter().enumerate() {
                if 0 < position {
                    output.push(':');
                }
                push_hex(&[*byte], output);
            }
        }
        Kind::Bits => write_bits(bytes, output)?,
        Kind::Array(_) | Kind::Composite(_) => {
            return Err(Malformed("text: a list or composite has no text here"));
        }
    }
    Ok(())
}

fn push_hex(bytes: &[u8], output: &mut String) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            output.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
}

/// `"char"`: zero is the empty text, bytes beyond ASCII are printed in octal.
fn write_char(byte: u8, output: &mut String) {
    match byte {
        0 => {}
        1..=127 => output.push(char::from(byte)),
        128.. => output.push_str(&format!("\\{byte:03o}")),
    }
}

fn write_uuid(bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    if bytes.len() != 16 {
        return Err(Malformed("uuid"));
    }
    for (position, byte) in bytes.iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            output.push('-');
        }
        push_hex(&[*byte], output);
    }
    Ok(())
}

/// Family, bits, whether it is a network, length, address (src/backend/utils/adt/network.c, `network_send`).
fn write_address(bytes: &[u8], is_network: bool, output: &mut String) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "inet");
    let (_family, bits, _is_cidr, length) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
    let address = reader.take(usize::from(length))?;
    reader.end()?;
    let all_bits = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(four), _) => {
            output.push_str(&format!("{}", Ipv4Addr::from(four)));
            32
        }
        (_, Ok(sixteen)) => {
            let address = Ipv6Addr::from(sixteen);
            // Postgres prints the last four bytes as those of an IPv4 address where the six words before them are zero
            // (src/port/inet_net_ntop.c).
            match (address.segments(), address.to_ipv4()) {
                ([0, 0, 0, 0, 0, 0, seventh, _], Some(four)) if seventh != 0 => {
                    output.push_str(&format!("::{four}"));
                }
                _ => output.push_str(&format!("{address}")),
            }
            128
        }
        _ => return Err(Malformed("inet")),
    };
    if is_network || bits != all_bits {
        output.push_str(&format!("/{bits}"));
    }
    Ok(())
}

fn write_bits(bytes: &[u8], output: &mut String) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "bit");
    let length = reader.length()?;
    let packed = reader.rest();
    if packed.len() != length.div_ceil(8) {
        return Err(Malformed("bit"));
    }
    for position in 0..length {
        let byte = packed.get(position / 8).copied().unwrap_or_default();
        output.push(if byte >> (7 - position % 8) & 1 == 1 { '1' } else { '0' });
    }
    Ok(())
}
