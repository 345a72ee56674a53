"""What a read found, and how fresh it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, Optional

from .directory import Dataset
from .errors import InvalidToken
from .tokens import Snapshot, Token
from .values import decode, decode_hash

State = Literal["hit", "negative", "missing"]
Freshness = Literal["fresh", "stale", "unknown"]

KEYS_MAX = 1_000
"""Keys of one round trip."""
PAUSE_MIN, PAUSE_MAX = 0.002, 0.1
"""Seconds between two looks at the watermark."""
LOOK_AFTER = 1.0
"""Seconds after which reads that wait ask the sentinels where the master is, and between two times."""


@dataclass(frozen=True)
class Verdict:
    """Whether what was read is at least as fresh as a token."""

    freshness: Freshness
    behind_ms: Optional[int]
    reason: str


@dataclass(frozen=True)
class Reading:
    """What was found under a key."""

    key: str
    state: State
    """`hit`; `negative`: it is known that there is no row; `missing`: there is no entry."""
    value: Any
    """`None` unless it is a hit."""
    freshness: Optional[Freshness] = None
    """With a token: `fresh`, `stale`, or `unknown`. Without one: None."""
    behind_ms: Optional[int] = None
    """Of a stale one: it is at most so old, by the clocks of the database and of this machine."""
    reason: str = ""
    """Why it is not fresh."""

    @property
    def is_fresh(self) -> bool:
        """Whether the token sees nothing that this value could lack. Without a token: False."""
        return self.freshness == "fresh"


def reading_of(dataset: Dataset, key: str, value: Any, verdict: Optional[Verdict], limit: int) -> Reading:
    """Decodes what stood under a key: bytes, or the fields of a hash."""
    state: State = "missing"
    decoded: Any = None
    if isinstance(value, Mapping):
        state, decoded = "hit", decode_hash(value)
    elif value is not None:
        decoded = decode(value, dataset.format, key, limit)
        state = "negative" if decoded is None else "hit"
    if verdict is None:
        return Reading(key, state, decoded)
    return Reading(key, state, decoded, verdict.freshness, verdict.behind_ms, verdict.reason)


def judge(watermark: Optional[bytes], token: Token, dataset: str, now: datetime) -> Verdict:
    """Whether entries of a dataset, read together with this watermark, are at least as fresh as the token (R18)."""
    if watermark is None:
        return Verdict("unknown", None, "there is no watermark")
    try:
        told = json.loads(watermark)
        incarnation, not_covered = told["incarnation"], told["not_covered"]
        snapshot, as_of = Snapshot.parse(told["snapshot"]), told["as_of"]
    except (ValueError, KeyError, TypeError, InvalidToken):
        return Verdict("unknown", None, "the watermark cannot be read")
    if dataset in not_covered:
        return Verdict("unknown", None, f"the watermark does not cover dataset {dataset}")
    if incarnation != token.incarnation:
        return Verdict("unknown", None, "token and watermark are of two incarnations of the database")
    if token.is_seen_at(incarnation, snapshot):
        return Verdict("fresh", None, "")
    behind = _behind_ms(as_of, now)
    return Verdict("stale", behind, "the watermark has not reached the token")


def why_not_fresh(readings: Sequence[Reading]) -> str:
    """For an error's text."""
    late = [one for one in readings if not one.is_fresh]
    more = f" and {len(late) - 1} more" if 1 < len(late) else ""
    return f"{late[0].key}{more} may be older than the token: {late[0].reason}"


def _behind_ms(as_of: str, now: datetime) -> Optional[int]:
    # Some versions of Python read three or six digits of a second only.
    text = re.sub(r"\.(\d+)", lambda found: "." + found[1][:6].ljust(6, "0"), as_of.replace("Z", "+00:00"))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0, round((now - moment).total_seconds() * 1000))
