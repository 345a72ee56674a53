//! Whose certificates a file holds: an authority's, or a server's or client's. Only as much of X.509 is read as tells that; whether a
//! certificate is right is for those who use it.

use std::path::Path;

/// What a certificate says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// It may sign others.
    pub is_authority: bool,
    /// It names itself as its issuer.
    pub is_self_issued: bool,
}

const SEQUENCE: u8 = 0x30;
const BOOLEAN: u8 = 0x01;
const IDENTIFIER: u8 = 0x06;
const OCTETS: u8 = 0x04;
/// The version, and the extensions, among the parts of a certificate.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `basicConstraints`: 2.5.29.19.
const BASIC_CONSTRAINTS: [u8; 3] = [0x55, 0x1d, 0x13];

impl Certificate {
    /// The certificates of a file in PEM form that can be read, in its order.
    #[must_use]
    pub fn all_of(pem: &[u8]) -> Vec<Self> {
        let text = String::from_utf8_lossy(pem);
        let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
        let bodies = blocks.filter_map(|block| Some(block.split_once("-----END")?.0));
        bodies.filter_map(|body| Self::of_der(&decoded(body)?)).collect()
    }

    fn of_der(der: &[u8]) -> Option<Self> {
        let (_, certificate, _) = element(der)?;
        let (_, parts, _) = element(certificate)?;
        let parts: Vec<(u8, &[u8])> = Elements(parts).collect();
        let mut names = parts.iter().filter(|(tag, _)| *tag != VERSION);
        // Serial number, algorithm, issuer, validity, subject.
        let issuer = names.nth(2)?;
        let subject = names.nth(1)?;
        let extensions = parts.iter().find(|(tag, _)| *tag == EXTENSIONS);
        let is_authority = extensions.is_some_and(|(_, wrapped)| may_sign(wrapped).unwrap_or_default());
        Some(Self { is_authority, is_self_issued: issuer == subject })
    }
}

/// What is odd about a file of authorities that are to be trusted.
pub(crate) fn oddity_of_authorities(file: &Path) -> Option<&'static str> {
    let found = Certificate::all_of(&std::fs::read(file).ok()?);
    let is_trusted = |one: &Certificate| one.is_authority || one.is_self_issued;
    let is_odd = !found.is_empty() && !found.iter().any(is_trusted);
    is_odd.then_some(
        "holds the certificate of a server or client, and not that of the authority that has signed it",
    )
}

/// What is odd about a file that begins with one's own certificate. One that signs itself may be meant.
pub(crate) fn oddity_of_identity(file: &Path) -> Option<&'static str> {
    let found = Certificate::all_of(&std::fs::read(file).ok()?);
    let is_odd = found.first().is_some_and(|own| own.is_authority && !own.is_self_issued);
    is_odd.then_some("begins with the certificate of an authority, and not with one's own")
}

/// Whether the extensions say that it is an authority.
fn may_sign(wrapped: &[u8]) -> Option<bool> {
    let (_, list, _) = element(wrapped)?;
    for (_, extension) in Elements(list) {
        let mut parts = Elements(extension);
        if parts.next() != Some((IDENTIFIER, &BASIC_CONSTRAINTS)) {
            continue;
        }
        let (_, value) = parts.find(|(tag, _)| *tag == OCTETS)?;
        let (tag, constraints, _) = element(value)?;
        let first = Elements(constraints).next();
        return Some(tag == SEQUENCE && first.is_some_and(|(tag, value)| tag == BOOLEAN && value != [0]));
    }
    None
}

/// Elements of DER that follow each other.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, content, rest) = element(self.0)?;
        self.0 = rest;
        Some((tag, content))
    }
}

/// The first element: its tag, its content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if first & 0x80 == 0 {
        (usize::from(*first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let add = |length: usize, digit: &u8| length.checked_mul(256)?.checked_add(usize::from(*digit));
        (digits.iter().try_fold(0, add)?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// Base64, with line breaks.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for one in text.bytes().filter(|one| !one.is_ascii_whitespace() && *one != b'=') {
        let digit = match one {
            b'A'..=b'Z' => one - b'A',
            b'a'..=b'z' => one - b'a' + 26,
            b'0'..=b'9' => one - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, held) = (bits << 6 | u32::from(digit), held + 6);
        if 8 <= held {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_left_out() {
        let noise = "-----BEGIN CERTIFICATE-----\nMIIB/////w==\n-----END CERTIFICATE-----\n";
        assert_eq!(Certificate::all_of(noise.as_bytes()), []);
        assert_eq!(Certificate::all_of(b"\xff"), []);
        assert_eq!(
            Certificate::all_of(b"-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n"),
            []
        );
    }

    #[test]
    fn base64_is_read() {
        assert_eq!(decoded("Y2Fja\nGU=").as_deref(), Some(b"cache".as_slice()));
    }
}
