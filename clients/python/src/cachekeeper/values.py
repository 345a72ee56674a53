"""From the bytes under a key to a value. Values are plain: the format's bytes, perhaps in a standard frame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Union

import msgpack

from .errors import Undecodable

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LZ4_MAGIC = b"\x04\x22\x4d\x18"
VALUE_BYTES_MAX = 256 << 20
"""What a value may grow to when it is decompressed, so that a small entry cannot fill the memory."""


def decode(value: bytes, format: str, key: str, limit: int = VALUE_BYTES_MAX) -> Any:
    """The value of these bytes; `None` is an explicit null."""
    try:
        plain = _decompress(value, limit)
        if format == "raw":
            return plain
        if format not in ("msgpack", "json"):
            raise ValueError(f"this version of the package cannot read the format {format!r}")
        # While a dataset changes from one format to the other both stand in Redis, and the first byte tells them apart:
        # an entry is a map, a list or null, which in MessagePack never begin with one of these.
        if plain[:1] in (b"{", b"[", b"n"):
            return json.loads(plain)
        return msgpack.unpackb(plain, strict_map_key=False, timestamp=3)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise Undecodable(f"the value of {key} cannot be read: {str(error) or type(error).__name__}", key, value) from error


def decode_hash(fields: Mapping[bytes, bytes]) -> dict[str, Union[str, bytes]]:
    """The fields of a hash as texts; a value that is no text stays what it is: bytes."""
    return {name.decode(errors="replace"): _text(value) for name, value in fields.items()}


def _text(value: bytes) -> Union[str, bytes]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _decompress(value: bytes, limit: int) -> bytes:
    if value.startswith(ZSTD_MAGIC):
        return _zstd(value, limit)
    if value.startswith(LZ4_MAGIC):
        return _lz4(value, limit)
    return value


def _zstd(value: bytes, limit: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise ValueError("it is compressed with zstd: pip install 'cachekeeper[zstd]'") from None
    try:
        # Frames tell their size, but are not believed: no more than the limit is ever read.
        if limit < zstandard.frame_content_size(value):
            raise ValueError(f"it would be larger than {limit} bytes")
        with zstandard.ZstdDecompressor().stream_reader(value) as reader:
            plain = reader.read(limit + 1)
        wanted = zstandard.frame_content_size(value)
    except zstandard.ZstdError as error:
        raise ValueError(f"the compressed frame is damaged: {error}") from error
    return _checked(plain, limit, wanted < 0 or len(plain) == wanted)


def _lz4(value: bytes, limit: int) -> bytes:
    try:
        import lz4.frame
    except ImportError:
        raise ValueError("it is compressed with lz4: pip install 'cachekeeper[lz4]'") from None
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        plain = decompressor.decompress(value, max_length=limit + 1)
    except RuntimeError as error:
        raise ValueError(f"the compressed frame is damaged: {error}") from error
    return _checked(plain, limit, decompressor.eof)


def _checked(plain: bytes, limit: int, is_whole: bool) -> bytes:
    if limit < len(plain):
        raise ValueError(f"it would be larger than {limit} bytes")
    if not is_whole:
        raise ValueError("the compressed frame is damaged: it ends early")
    return plain
