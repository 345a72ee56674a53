//! Values as bytes. They stay plain: MessagePack maps with field names, or JSON, in standard frames where compressed, so
//! that every language reads them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use cachekeeper_config::Compression;
use cachekeeper_engine::compress::{compress, decompress};

/// What a compressed value may grow to, so that a small entry cannot fill the memory.
const DECOMPRESSED_MAX: usize = 256 << 20;

/// The bytes of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFormat {
    /// Maps with field names (the default).
    MessagePack,
    /// JSON.
    Json,
}

/// How values become bytes and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codec {
    /// The format.
    pub format: ValueFormat,
    /// Above which size, and how, values are compressed.
    pub compression: Option<Compression>,
}

impl Codec {
    /// The value's bytes.
    ///
    /// # Errors
    /// Why it cannot be encoded.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(128);
        self.encode_into(value, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends the value's bytes. After an error, what was appended means nothing.
    ///
    /// # Errors
    /// Why it cannot be encoded.
    pub fn encode_into<T: Serialize + ?Sized>(self, value: &T, output: &mut Vec<u8>) -> Result<(), String> {
        let start = output.len();
        match self.format {
            ValueFormat::MessagePack => {
                rmp_serde::encode::write_named(output, value).map_err(|error| error.to_string())?;
            }
            ValueFormat::Json => {
                serde_json::to_writer(&mut *output, value).map_err(|error| error.to_string())?;
            }
        }
        if let Some(compression) = self.compression
            && start + compression.min_size <= output.len()
        {
            let plain = output.split_off(start);
            if DECOMPRESSED_MAX < plain.len() {
                return Err(format!(
                    "it has {} bytes, and compressed values are read up to {DECOMPRESSED_MAX}",
                    plain.len()
                ));
            }
            let mut packed = Vec::new();
            let is_packed = compress(compression.codec, &plain, &mut packed);
            output.extend_from_slice(if is_packed { &packed } else { &plain });
        }
        Ok(())
    }

    /// The value of these bytes.
    ///
    /// # Errors
    /// Why they are not a value of this type.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, String> {
        let plain = match decompress(bytes, DECOMPRESSED_MAX) {
            Ok(plain) => plain,
            Err(error) => return Err(error.to_string()),
        };
        self.decode_plain(&plain)
    }

    fn decode_plain<T: DeserializeOwned>(self, plain: &[u8]) -> Result<T, String> {
        match self.format {
            ValueFormat::MessagePack => {
                // By reference: strings are copied once, into the value.
                let mut rest = rmp_serde::Deserializer::from_read_ref(plain);
                let value = T::deserialize(&mut rest).map_err(|error| error.to_string())?;
                // Bytes behind the value mean that this was something else.
                match serde::de::IgnoredAny::deserialize(&mut rest) {
                    Err(rmp_serde::decode::Error::InvalidMarkerRead(_end)) => Ok(value),
                    Ok(_) | Err(_) => Err("bytes follow the value".to_owned()),
                }
            }
            ValueFormat::Json => serde_json::from_slice(plain).map_err(|error| error.to_string()),
        }
    }

    /// The value of these bytes; none for an explicit null, unless the type has a value that is written so.
    pub(super) fn decode_or_null<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<Option<T>, String> {
        match self.decode(bytes) {
            Ok(value) => Ok(Some(value)),
            Err(_) if bytes == self.null() => Ok(None),
            Err(reason) => Err(reason),
        }
    }

    /// An explicit null: known to be absent.
    pub(super) fn null(self) -> &'static [u8] {
        match self.format {
            ValueFormat::MessagePack => &[0xc0],
            ValueFormat::Json => b"null",
        }
    }
}
