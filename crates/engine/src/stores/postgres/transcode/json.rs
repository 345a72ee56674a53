//! JSON text to MessagePack, without a value in between.
//!
//! MessagePack wants the number of elements first, JSON tells it last: one byte is left for the header, and where it
//! turns out to need more, the body is moved once.

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::read::{Malformed, Reader};

/// Appends the MessagePack of a JSON text. Integers beyond 64 bits become floats.
pub(crate) fn to_message_pack(text: &[u8], output: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    parser.deserialize_any(Writer(output)).map_err(|_json| {
        Malformed("json: nested more than 128 deep, a number beyond 64-bit floats, or half a surrogate pair")
    })?;
    parser.end().map_err(|_json| Malformed("json"))
}

/// `jsonb` begins with the version of its format, 1.
pub(crate) fn jsonb_text(bytes: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = Reader::new(bytes, "jsonb");
    if reader.u8()? != 1 {
        return Err(Malformed("jsonb"));
    }
    Ok(reader.rest())
}

struct Writer<'a>(&'a mut Vec<u8>);

impl<'de> serde::de::DeserializeSeed<'de> for Writer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

// Writing into a vector cannot fail, so the results are dropped.
impl<'de> Visitor<'de> for Writer<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.push(0xc0);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.push(if value { 0xc3 } else { 0xc2 });
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        drop(rmp::encode::write_sint(self.0, value));
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        drop(rmp::encode::write_uint(self.0, value));
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        drop(rmp::encode::write_f64(self.0, value));
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        drop(rmp::encode::write_str(self.0, value));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let start = self.0.len();
        self.0.push(0);
        let mut count = 0_u32;
        while items.next_element_seed(Writer(self.0))?.is_some() {
            count += 1;
        }
        finish(self.0, start, count, 0x90, [0xdc, 0xdd]).ok_or_else(|| A::Error::custom("too long"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let start = self.0.len();
        self.0.push(0);
        let mut count = 0_u32;
        while fields.next_key_seed(Writer(self.0))?.is_some() {
            fields.next_value_seed(Writer(self.0))?;
            count += 1;
        }
        finish(self.0, start, count, 0x80, [0xde, 0xdf]).ok_or_else(|| A::Error::custom("too long"))
    }
}

/// Writes the header at `start`, where one byte was left for it (MessagePack specification, "Array and map").
fn finish(output: &mut Vec<u8>, start: usize, count: u32, fixed: u8, long: [u8; 2]) -> Option<()> {
    if let Ok(short @ 0..=15) = u8::try_from(count) {
        *output.get_mut(start)? = fixed | short;
        return Some(());
    }
    *output.get_mut(start)? = if let Ok(count) = u16::try_from(count) {
        output.splice(start + 1..start + 1, count.to_be_bytes());
        long[0]
    } else {
        output.splice(start + 1..start + 1, count.to_be_bytes());
        long[1]
    };
    Some(())
}
