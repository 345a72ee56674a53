//! The value of an entry that is a hash in Redis, as one piece of bytes: so it travels, is compared and is decoded as any other value.
//!
//! It is a MessagePack list of names and values in turn, in the order of the names. The same fields are always the same bytes, in whatever
//! order Redis tells them, so two values are equal where their bytes are. Texts and bytes both stand there as MessagePack's `str`, in its
//! forms of old: the scripts in Redis read the list, and know no other.

/// A MessagePack list whose length is told in four bytes, whatever it is.
const LIST: u8 = 0xdd;
const HEADER: usize = 5;
/// Bytes whose length is told in the same byte, and in two and four bytes more.
const SHORT: u8 = 0xa0;
const SHORT_MAX: u8 = 31;
const MIDDLE: u8 = 0xda;
const LONG: u8 = 0xdb;

/// Appends the beginning of a value and answers where that is, for [`end`].
pub fn begin(output: &mut Vec<u8>) -> usize {
    output.extend_from_slice(&[LIST, 0, 0, 0, 0]);
    output.len() - HEADER
}

/// Appends a name, or the value after it.
pub fn push(output: &mut Vec<u8>, bytes: &[u8]) {
    let length = bytes.len();
    if let Some(length) = u8::try_from(length).ok().filter(|length| *length <= SHORT_MAX) {
        output.push(SHORT | length);
    } else if let Ok(length) = u16::try_from(length) {
        output.push(MIDDLE);
        output.extend_from_slice(&length.to_be_bytes());
    } else {
        output.push(LONG);
        // A longer one fits neither Postgres nor Redis.
        output.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }
    output.extend_from_slice(bytes);
}

/// Ends a value that has so many fields.
pub fn end(output: &mut [u8], start: usize, fields: u32) {
    if let Some(length) = output.get_mut(start + 1..start + HEADER) {
        length.copy_from_slice(&(2 * fields).to_be_bytes());
    }
}

/// The value of these fields, which come in the order of their names.
pub fn encode<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut output = Vec::with_capacity(256);
    let start = begin(&mut output);
    let mut count = 0;
    for (name, value) in fields {
        push(&mut output, name);
        push(&mut output, value);
        count += 1;
    }
    end(&mut output, start, count);
    output
}

/// A name and a value.
pub type Field<'a> = (&'a [u8], &'a [u8]);

/// The fields of a value; none: these bytes are none.
#[must_use]
pub fn decode(value: &[u8]) -> Option<Vec<Field<'_>>> {
    let (header, mut rest) = value.split_first_chunk::<HEADER>()?;
    let [LIST, length @ ..] = header else { return None };
    let count = u32::from_be_bytes(*length);
    let mut fields = Vec::new();
    for _ in 0..count / 2 {
        fields.push((take(&mut rest)?, take(&mut rest)?));
    }
    (count % 2 == 0 && rest.is_empty()).then_some(fields)
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (kind, after) = rest.split_first()?;
    let (length, after) = match *kind {
        MIDDLE => {
            let (size, after) = after.split_first_chunk::<2>()?;
            (u32::from(u16::from_be_bytes(*size)), after)
        }
        LONG => {
            let (size, after) = after.split_first_chunk::<4>()?;
            (u32::from_be_bytes(*size), after)
        }
        kind if kind & !SHORT_MAX == SHORT => (u32::from(kind & SHORT_MAX), after),
        _ => return None,
    };
    let (taken, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_whatever_bytes_they_have() {
        let (all, long): (Vec<u8>, Vec<u8>) = ((0..=255).collect(), vec![b'x'; 70_000]);
        let fields: Vec<Field<'_>> = vec![(b"", b""), (b"a", &all), (&all, b"b"), (b"long", &long)];
        let value = encode(fields.iter().copied());
        assert_eq!(decode(&value), Some(fields));
        assert_eq!(decode(&encode(std::iter::empty())), Some(Vec::new()));
    }

    #[test]
    fn what_is_cut_or_has_something_behind_it_is_no_value() {
        let mut value = encode([(&b"a"[..], &b"1"[..]), (b"b", b"22")].into_iter());
        for length in 0..value.len() {
            assert_eq!(decode(&value[..length]), None, "{length} bytes");
        }
        value.push(0);
        assert_eq!(decode(&value), None);
        assert_eq!(decode(b"\xdd\x00\x00\x00\x01\xa0"), None, "a name without a value");
        assert_eq!(decode(b"\xdd\xff\xff\xff\xff"), None);
    }
}
