"""Cachekeeper for Python: read entries, read your own writes, publish events, hand over writes.

    import cachekeeper
    cache = cachekeeper.connect("redis://localhost:6379/0", "shop")
    product = cache.get("product", 42)

`cachekeeper.aio` has the same for asyncio.
"""

from .client import Cache, connect
from .directory import Dataset, Directory
from .errors import (
    CachekeeperError,
    InvalidEvent,
    InvalidInput,
    InvalidKey,
    InvalidToken,
    InvalidWrite,
    NoToken,
    NotFresh,
    NotRegistered,
    PermissionDenied,
    RedisRefused,
    Undecodable,
    UnknownDataset,
    Unreachable,
    UnsupportedVersion,
    WriteRejected,
    WriteUnknown,
)
from .events import Event
from .reading import Reading
from .tokens import TOKEN_SQL, Token, take_token
from .writes import Written

__version__ = "0.1.0"

__all__ = [
    "TOKEN_SQL", "Cache", "CachekeeperError", "Dataset", "Directory", "Event", "InvalidEvent", "InvalidInput", "InvalidKey",
    "InvalidToken", "InvalidWrite", "NoToken", "NotFresh", "NotRegistered", "PermissionDenied", "Reading", "RedisRefused", "Token",
    "Undecodable", "UnknownDataset", "Unreachable", "UnsupportedVersion", "WriteRejected", "WriteUnknown", "Written",
    "connect", "take_token",
]
