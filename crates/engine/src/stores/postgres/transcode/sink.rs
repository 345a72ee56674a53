//! Where values go: MessagePack or JSON, written as they come.

use std::io::Write as _;

use super::read::Malformed;

/// One of the two formats.
pub(crate) trait Sink {
    /// Whether readers can tell bytes from text, and any number from any other.
    const IS_BINARY: bool;
    fn output(&mut self) -> &mut Vec<u8>;
    fn null(&mut self);
    fn bool(&mut self, value: bool);
    fn integer(&mut self, value: i64);
    fn text(&mut self, value: &str);
    fn bytes(&mut self, value: &[u8]);
    fn float4(&mut self, value: f32, text: &str);
    fn float8(&mut self, value: f64, text: &str);
    /// A number given as text, that is no special value.
    fn number_text(&mut self, text: &str) -> Result<(), Malformed>;
    /// JSON text, embedded.
    fn json(&mut self, text: &[u8]) -> Result<(), Malformed>;
    fn begin_list(&mut self, length: usize);
    fn begin_map(&mut self, length: usize);
    /// Before each element but the first of a list, and each field but the first of a map.
    fn separate(&mut self);
    fn field(&mut self, name: &str);
    fn end_list(&mut self);
    fn end_map(&mut self);
}

/// MessagePack, with rmp-serde's conventions: the smallest encoding of each integer, maps with names.
pub(crate) struct PackSink<'a>(pub &'a mut Vec<u8>);

/// A length as MessagePack counts; a longer one does not fit Postgres's gigabyte either.
fn length32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

// Writing into a vector cannot fail, so the results are dropped.
impl Sink for PackSink<'_> {
    const IS_BINARY: bool = true;

    fn output(&mut self) -> &mut Vec<u8> {
        self.0
    }

    fn null(&mut self) {
        self.0.push(0xc0);
    }

    fn bool(&mut self, value: bool) {
        self.0.push(if value { 0xc3 } else { 0xc2 });
    }

    fn integer(&mut self, value: i64) {
        drop(rmp::encode::write_sint(self.0, value));
    }

    fn text(&mut self, value: &str) {
        drop(rmp::encode::write_str(self.0, value));
    }

    fn bytes(&mut self, value: &[u8]) {
        drop(rmp::encode::write_bin(self.0, value));
    }

    fn float4(&mut self, value: f32, _text: &str) {
        drop(rmp::encode::write_f32(self.0, value));
    }

    fn float8(&mut self, value: f64, _text: &str) {
        drop(rmp::encode::write_f64(self.0, value));
    }

    fn number_text(&mut self, text: &str) -> Result<(), Malformed> {
        if let Ok(integer) = text.parse::<i64>() {
            self.integer(integer);
        } else if let Ok(integer) = text.parse::<u64>() {
            drop(rmp::encode::write_uint(self.0, integer));
        } else {
            let float = text.parse().ok().filter(|value: &f64| value.is_finite());
            self.float8(float.ok_or(Malformed("numeric: beyond 64-bit floats"))?, text);
        }
        Ok(())
    }

    fn json(&mut self, text: &[u8]) -> Result<(), Malformed> {
        super::json::to_message_pack(text, self.0)
    }

    fn begin_list(&mut self, length: usize) {
        drop(rmp::encode::write_array_len(self.0, length32(length)));
    }

    fn begin_map(&mut self, length: usize) {
        drop(rmp::encode::write_map_len(self.0, length32(length)));
    }

    fn separate(&mut self) {}

    fn field(&mut self, name: &str) {
        self.text(name);
    }

    fn end_list(&mut self) {}

    fn end_map(&mut self) {}
}

/// JSON without blanks.
pub(crate) struct JsonSink<'a>(pub &'a mut Vec<u8>);

impl Sink for JsonSink<'_> {
    const IS_BINARY: bool = false;

    fn output(&mut self) -> &mut Vec<u8> {
        self.0
    }

    fn null(&mut self) {
        self.0.extend_from_slice(b"null");
    }

    fn bool(&mut self, value: bool) {
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn integer(&mut self, value: i64) {
        self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    fn text(&mut self, value: &str) {
        write_json_text(value, self.0);
    }

    fn bytes(&mut self, value: &[u8]) {
        self.0.extend_from_slice(b"\"\\\\x");
        for byte in value {
            // Writing into a vector cannot fail.
            drop(write!(self.0, "{byte:02x}"));
        }
        self.0.push(b'"');
    }

    fn float4(&mut self, value: f32, text: &str) {
        self.float8(f64::from(value), text);
    }

    fn float8(&mut self, value: f64, text: &str) {
        // JSON has no such numbers; `to_json` quotes them.
        if value.is_finite() {
            self.0.extend_from_slice(text.as_bytes());
        } else {
            self.text(text);
        }
    }

    fn number_text(&mut self, text: &str) -> Result<(), Malformed> {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn json(&mut self, text: &[u8]) -> Result<(), Malformed> {
        self.0.extend_from_slice(text);
        Ok(())
    }

    fn begin_list(&mut self, _length: usize) {
        self.0.push(b'[');
    }

    fn begin_map(&mut self, _length: usize) {
        self.0.push(b'{');
    }

    fn separate(&mut self) {
        self.0.push(b',');
    }

    fn field(&mut self, name: &str) {
        self.text(name);
        self.0.push(b':');
    }

    fn end_list(&mut self) {
        self.0.push(b']');
    }

    fn end_map(&mut self) {
        self.0.push(b'}');
    }
}

/// A JSON string (RFC 8259, section 7): most text needs no escape and is copied in one piece.
pub(crate) fn write_json_text(text: &str, output: &mut Vec<u8>) {
    output.push(b'"');
    let mut copied = 0;
    let bytes = text.as_bytes();
    for (position, byte) in bytes.iter().enumerate() {
        if 0x20 <= *byte && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        output.extend_from_slice(bytes.get(copied..position).unwrap_or_default());
        copied = position + 1;
        match byte {
            b'"' => output.extend_from_slice(b"\\\""),
            b'\\' => output.extend_from_slice(b"\\\\"),
            0x08 => output.extend_from_slice(b"\\b"),
            0x0c => output.extend_from_slice(b"\\f"),
            b'\n' => output.extend_from_slice(b"\\n"),
            b'\r' => output.extend_from_slice(b"\\r"),
            b'\t' => output.extend_from_slice(b"\\t"),
            other => drop(write!(output, "\\u{other:04x}")),
        }
    }
    output.extend_from_slice(bytes.get(copied..).unwrap_or_default());
    output.push(b'"');
}
