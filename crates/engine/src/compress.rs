//! Standard frames, so that every language's usual library reads them: zstd (RFC 8878), LZ4 frame format.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::{Read, Write};

use cachekeeper_config::Codec;

const ZSTD_LEVEL: i32 = 3;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

thread_local! {
    // A compression context is a few hundred kilobytes: one a thread, used again.
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses `value` as one frame that tells its content's size; false: not possible (memory).
pub fn compress(codec: Codec, value: &[u8], output: &mut Vec<u8>) -> bool {
    match codec {
        Codec::Zstd => ZSTD.with(|slot| {
            let mut slot = slot.borrow_mut();
            if slot.is_none() {
                *slot = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
            }
            let Some(compressor) = slot.as_mut() else {
                return false;
            };
            output.resize(zstd::zstd_safe::compress_bound(value.len()), 0);
            match compressor.compress_to_buffer(value, output) {
                Ok(length) => {
                    output.truncate(length);
                    true
                }
                Err(_memory) => false,
            }
        }),
        Codec::Lz4 => {
            let info = lz4_flex::frame::FrameInfo::new().content_size(Some(value.len() as u64));
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, output);
            encoder.write_all(value).is_ok() && encoder.finish().is_ok()
        }
    }
}

/// Why a value cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The frame is damaged.
    #[error("the compressed frame is damaged")]
    Damaged(#[source] std::io::Error),
    /// It would be larger than allowed.
    #[error("the value would be larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}

/// Decompresses a value if it begins as a frame does.
pub fn decompress(value: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, DecompressError> {
    let mut output = Vec::new();
    let most = limit as u64 + 1;
    let read = if value.starts_with(&ZSTD_MAGIC) {
        zstd::stream::read::Decoder::new(value)
            .and_then(|decoder| decoder.take(most).read_to_end(&mut output))
    } else if value.starts_with(&LZ4_MAGIC) {
        lz4_flex::frame::FrameDecoder::new(value).take(most).read_to_end(&mut output)
    } else {
        return Ok(Cow::Borrowed(value));
    };
    read.map_err(DecompressError::Damaged)?;
    if limit < output.len() {
        return Err(DecompressError::TooLarge { limit });
    }
    Ok(Cow::Owned(output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_bombs_do_not() {
        let value = "a long text that repeats ".repeat(1000).into_bytes();
        for codec in [Codec::Zstd, Codec::Lz4] {
            let mut packed = Vec::new();
            assert!(compress(codec, &value, &mut packed));
            assert!(packed.len() < value.len() / 10);
            assert_eq!(decompress(&packed, 100_000).unwrap().as_ref(), value);
            assert!(matches!(decompress(&packed, 100), Err(DecompressError::TooLarge { .. })));
            let cut = packed.get(..packed.len() / 2).unwrap();
            assert!(decompress(cut, 100_000).is_err(), "{codec:?}");
        }
        assert_eq!(decompress(b"plain", 100).unwrap().as_ref(), b"plain");
    }
}
