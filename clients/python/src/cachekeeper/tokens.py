"""Read-your-writes tokens: whether what a token sees is also seen at a snapshot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput, InvalidToken, NoToken

TOKEN_SQL = "select cachekeeper.token() as token, pg_current_xact_id_if_assigned() is not null as is_open"
"""Answers a token, and whether the transaction has written something that is not committed yet: then it is worth nothing."""

_XMAX_LIMIT = 1 << 48
_RUNNING_LIMIT = 65_535


@dataclass(frozen=True)
class Snapshot:
    """A database snapshot, as far as the order of snapshots of one life needs it."""

    xmax: int
    running: int

    @classmethod
    def parse(cls, text: str) -> "Snapshot":
        """Reads what `pg_current_snapshot()` prints: `xmin:xmax:running,running,…`."""
        parts = text.split(":")
        numbers = [*parts[:2], *(parts[2].split(",") if len(parts) == 3 and parts[2] else [])]
        if len(parts) != 3 or not all(re.fullmatch(r"[0-9]{1,20}", one) for one in numbers):
            raise InvalidToken(f"{text[:60]!r} is not a snapshot of the form xmin:xmax:running")
        xmin, xmax, *running = map(int, numbers)
        if _XMAX_LIMIT <= xmax or _RUNNING_LIMIT <= len(running):
            raise InvalidToken(f"the snapshot {text[:40]!r} is beyond what can be compared")
        if xmax < xmin or any(not xmin <= one < xmax for one in running) or sorted(set(running)) != running:
            raise InvalidToken(f"no database has the snapshot {text[:60]!r}: what runs is in order, from xmin to below xmax")
        return cls(xmax, len(running))

    def is_seen_at(self, other: "Snapshot") -> bool:
        """Whether everything that this one sees is seen by the other one too."""
        return (self.xmax, -self.running) <= (other.xmax, -other.running)


@dataclass(frozen=True)
class Token:
    """A snapshot after a commit, and the life of the database that it belongs to. `str` is its text."""

    text: str
    incarnation: str
    snapshot: Snapshot

    @classmethod
    def parse(cls, text: "str | Token") -> "Token":
        """Reads a token's text, as `cachekeeper.token()` and the replies to writes have it."""
        if isinstance(text, Token):
            return text
        if not isinstance(text, str):
            raise InvalidToken(f"a token is text, not {type(text).__name__}")
        incarnation, slash, snapshot = text.strip().partition("/")
        if not slash or not incarnation:
            raise InvalidToken(f"{text[:60]!r} is no token: an incarnation, a slash, a snapshot")
        return cls(text.strip(), incarnation, Snapshot.parse(snapshot))

    def is_seen_at(self, incarnation: str, snapshot: Snapshot) -> bool:
        """Whether everything that this token sees is seen at a snapshot of that life."""
        return self.incarnation == incarnation and self.snapshot.is_seen_at(snapshot)

    def __str__(self) -> str:
        return self.text


def token_of_row(row: Any) -> Token:
    """The token of the row that `TOKEN_SQL` answers."""
    # Rows are mappings where the connection makes them so (psycopg's dict_row).
    token, is_open = (row["token"], row["is_open"]) if isinstance(row, Mapping) else (row[0], row[1])
    if is_open:
        raise InvalidToken("this transaction has written and is not committed: take the token after the commit")
    if token is None:
        raise NoToken(
            "there is no token yet: no worker has seen this database since it was started. Ask the database what must be fresh, "
            "and take a token again when a worker is back"
        )
    return Token.parse(token)


def take_token(connection: Any) -> Token:
    """Takes a token of this moment, after your commit, through any DB-API connection (psycopg, psycopg2, pg8000 …).

    Where the connection had no open transaction it has none afterwards.
    """
    if not hasattr(connection, "cursor"):
        raise InvalidInput(f"a token is taken through a connection of DB-API, not {type(connection).__name__}")
    info = getattr(connection, "info", None)
    was_idle = getattr(info, "transaction_status", None) == 0
    cursor = connection.cursor()
    try:
        cursor.execute(TOKEN_SQL)
        return token_of_row(cursor.fetchone())
    finally:
        cursor.close()
        if was_idle and not getattr(connection, "autocommit", False):
            connection.rollback()
