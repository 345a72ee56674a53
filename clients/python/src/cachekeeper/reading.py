"""What a read found, and how fresh it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, Optional, Union

from .cluster import parse_cluster_slots
from .directory import Dataset
from .errors import InvalidToken
from .tokens import Snapshot, Token
from .values import decode, decode_hash

State = Literal["hit", "negative", "missing"]
Freshness = Literal["fresh", "stale", "unknown"]

Asked = tuple[Dataset, str]
"""A key, and the dataset that it is of."""

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


@dataclass(frozen=True)
class Watermark:
    """How far entries have come: at least to the snapshot, but for datasets that it does not cover."""

    incarnation: str
    snapshot: Snapshot
    as_of: str
    not_covered: Sequence[str]
    covers: Optional[bytearray]
    """On a cluster: the cluster slots that it holds for."""

    @classmethod
    def parse(cls, text: Union[str, bytes]) -> "Optional[Watermark]":
        """Reads what a worker wrote; none: it cannot be read."""
        try:
            told = json.loads(text)
            covers = told.get("covers")
            return cls(
                told["incarnation"], Snapshot.parse(told["snapshot"]), told["as_of"], list(told["not_covered"]),
                None if covers is None else parse_cluster_slots(covers),
            )
        except (ValueError, KeyError, TypeError, AttributeError, InvalidToken):
            return None


def judge(watermark: Optional[bytes], token: Token, dataset: str, now: datetime) -> Verdict:
    """Whether entries of a dataset, read together with this watermark, are at least as fresh as the token (R18)."""
    if watermark is None:
        return Verdict("unknown", None, "there is no watermark")
    return _judge(Watermark.parse(watermark), token, dataset, now)


def judge_on_cluster(watermark: Optional[Watermark], slot: int, token: Token, dataset: str, now: datetime) -> Verdict:
    """The same on a cluster, for entries in this cluster slot, whose guard names the shard of this watermark."""
    if watermark is not None and (watermark.covers is None or not watermark.covers[slot]):
        return Verdict("unknown", None, f"the watermark does not cover cluster slot {slot}")
    return _judge(watermark, token, dataset, now)


def _judge(watermark: Optional[Watermark], token: Token, dataset: str, now: datetime) -> Verdict:
    if watermark is None:
        return Verdict("unknown", None, "the watermark cannot be read")
    if dataset in watermark.not_covered:
        return Verdict("unknown", None, f"the watermark does not cover dataset {dataset}")
    if watermark.incarnation != token.incarnation:
        return Verdict("unknown", None, "token and watermark are of two incarnations of the database")
    if token.is_seen_at(watermark.incarnation, watermark.snapshot):
        return Verdict("fresh", None, "")
    return Verdict("stale", _behind_ms(watermark.as_of, now), "the watermark has not reached the token")


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
