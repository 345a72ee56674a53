//! A text on the stack: a near read costs less than an allocation would.

use std::fmt;

/// Longer keys are made on the heap.
const BYTES: usize = 96;

/// A text of at most so many bytes; writing more is an error.
pub(super) struct ShortText {
    bytes: [u8; BYTES],
    length: usize,
}

impl ShortText {
    pub fn new() -> Self {
        Self { bytes: [0; BYTES], length: 0 }
    }

    pub fn as_str(&self) -> Option<&str> {
        // It is made of whole texts.
        std::str::from_utf8(self.bytes.get(..self.length)?).ok()
    }
}

impl fmt::Write for ShortText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        let place = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn it_takes_what_fits_and_no_more() {
        let mut text = ShortText::new();
        write!(text, "rate:{}", 7).unwrap();
        assert_eq!(text.as_str(), Some("rate:7"));
        assert!(text.write_str(&"x".repeat(91)).is_err());
        text.write_str(&"ü".repeat(45)).unwrap();
        assert_eq!(text.as_str().map(str::len), Some(96));
        assert!(text.write_str("x").is_err());
    }
}
