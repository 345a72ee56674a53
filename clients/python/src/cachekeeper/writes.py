"""Writes that are handed over: what is put into the stream, and what the reply says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Optional
from uuid import UUID, uuid4

from .directory import Directory
from .errors import InvalidWrite, WriteRejected
from .template import is_text
from .tokens import Token

ID_BYTES_MAX = 200
COMMAND_BYTES_MAX = 1 << 20
BLOCK = 1.0
"""Seconds for which Redis is asked to wait for a reply at once."""
BLOCK_SLACK = 0.5
"""Seconds after them, or the time-out of commands where that is longer, after which the connection counts as lost."""
PAUSE_MAX = 0.25
"""Seconds at most between two attempts to hand over."""


@dataclass(frozen=True)
class Written:
    """A write that was carried out."""

    id: str
    rows: int
    """Rows that it touched in the database."""
    token: Optional[Token]
    """For the next read: it sees this write."""
    is_cached: bool
    """Whether Redis has the new values already; else the worker sees to it."""
    reply: Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """A write, as it stands in the stream."""

    stream: str
    dataset: str
    id: str
    params: str

    @classmethod
    def new(cls, directory: Directory, dataset: str, params: Mapping[str, Any], id: Optional[str]) -> "Command":
        """Checks what can be checked here."""
        stream = directory.writes_to(dataset)
        if id is None:
            id = str(uuid4())
        if not isinstance(id, str) or not is_text(id) or not 0 < len(id.encode()) <= ID_BYTES_MAX or "\0" in id:
            raise InvalidWrite(f"the id of a write is text of 1 to {ID_BYTES_MAX} bytes, not {id!r}")
        text = _params(params)
        if COMMAND_BYTES_MAX - 4096 < len(text.encode()):
            raise InvalidWrite(f"a write has at most {COMMAND_BYTES_MAX} bytes")
        return cls(stream, dataset, id, text)

    def fields(self, reply: str) -> dict[str, str]:
        """The fields of the stream's entry."""
        return {"dataset": self.dataset, "id": self.id, "params": self.params, "reply": reply}


def read_reply(text: Any) -> dict[str, Any]:
    """A reply as the worker wrote it."""
    reply = json.loads(text)
    return reply if isinstance(reply, dict) else {}


def outcome(id: str, reply: Mapping[str, Any]) -> Written:
    """What a reply says; raises `WriteRejected` where the write was not carried out."""
    if not reply.get("ok"):
        raise WriteRejected(str(reply.get("error")), id, dict(reply))
    token = reply.get("token")
    return Written(id, reply["rows"], Token.parse(token) if token else None, reply.get("cache") == "stored", reply)


def _params(params: Mapping[str, Any]) -> str:
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise InvalidWrite(f"the parameters of a write are a mapping from names to values, not {params!r}")
    try:
        # The same parameters are the same bytes: under one id others would be refused.
        text = json.dumps(
            params, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False, default=_text
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidWrite(f"the parameters of a write cannot be sent: {error}") from error
    if not is_text(text):
        raise InvalidWrite("the parameters of a write cannot be sent: one holds half of a surrogate pair, which is no valid text")
    return text


def _text(value: Any) -> Any:
    """A value as text that Postgres reads."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"\\x{bytes(value).hex()}"
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} has no text that Postgres is known to read: give one")
