"""Redis Cluster: which node serves a key, and who vouches for it. Nothing here asks anybody."""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Optional, Union

CLUSTER_SLOTS = 16_384
"""How many cluster slots there are."""

SAMPLE_MAX = 16
"""Cluster slots of a master at most whose guards are looked at to learn which shard it is."""

Address = tuple[str, int]
"""Host and port of a node."""

_LETTERS = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HASH_TAG_LETTERS_MAX = 3
_GUARD = re.compile(r"(0|[1-9][0-9]{0,9}) [0-9a-f]{16}")
_SHARD_MAX = (1 << 32) - 1
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def cluster_slot(key: Union[str, bytes]) -> int:
    """The cluster slot of a key: of what stands between its first `{` and the next `}` if that is anything, else of all of it."""
    whole = key.encode() if isinstance(key, str) else key
    _, _, behind = whole.partition(b"{")
    tag, closing, _ = behind.partition(b"}")
    # CRC-16/XMODEM.
    return crc_hqx(tag if tag and closing else whole, 0) % CLUSTER_SLOTS


@lru_cache(maxsize=1)
def hash_tags() -> Sequence[str]:
    """For each cluster slot the first hash tag of it: short ones before long ones, then in the order of the letters."""
    found: dict[int, bytes] = {}
    shorter = [(b"", 0)]
    for _length in range(_HASH_TAG_LETTERS_MAX):
        tags = []
        for tag, before in shorter:
            for letter in _LETTERS:
                one = bytes((letter,))
                crc = crc_hqx(one, before)
                tags.append((tag + one, crc))
                found.setdefault(crc % CLUSTER_SLOTS, tag + one)
            if len(found) == CLUSTER_SLOTS:
                break
        shorter = tags
    return tuple(found[slot].decode() for slot in range(CLUSTER_SLOTS))


def guard_key(namespace: str, slot: int) -> str:
    """Where the guard of a cluster slot stands: in that cluster slot, with which it migrates."""
    return f"ck:{{{hash_tags()[slot]}}}:{namespace}:g"


def parse_guard(text: Union[str, bytes]) -> int:
    """The number of the shard that a guard names; raises `ValueError`."""
    told = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    found = _GUARD.fullmatch(told)
    if found is None or _SHARD_MAX < int(found[1]):
        raise ValueError(f"{told[:40]!r} is no guard: a number and a generation")
    return int(found[1])


def parse_cluster_slots(text: str) -> bytearray:
    """A set of cluster slots, written as ranges such as `0-5460,5462`: not zero at each that is in it. Raises `ValueError`."""
    found = bytearray(CLUSTER_SLOTS)
    for part in text.split(",") if text else []:
        ends = _RANGE.fullmatch(part)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < CLUSTER_SLOTS:
            raise ValueError(f"{part[:40]!r} is no range of cluster slots")
        found[first : last + 1] = b"\1" * (last + 1 - first)
    return found


@dataclass(frozen=True)
class Redirection:
    """What a node says of a key that it does not have: `MOVED` (another one serves the cluster slot) or `ASK` (it migrates)."""

    kind: Literal["MOVED", "ASK"]
    slot: int
    node: Address


def redirection_of(reply: Any, asked: Address) -> Optional[Redirection]:
    """The redirection that this reply is; none: it is none. `asked`: who said it."""
    if not isinstance(reply, Exception):
        return None
    text, kind = str(reply), type(reply).__name__
    # Some clients take the word out, and make a class of it.
    word = {"MovedError": "MOVED ", "AskError": "ASK "}.get(kind, "")
    found = re.match(r"(MOVED|ASK) ([0-9]{1,5}) (\S*):([0-9]{1,5})", text if text.startswith(("MOVED ", "ASK ")) else word + text)
    if found is None or CLUSTER_SLOTS <= int(found[2]):
        return None
    host = found[3].strip("[]") or asked[0]
    return Redirection("MOVED" if found[1] == "MOVED" else "ASK", int(found[2]), (host, int(found[4])))


class ClusterMap:
    """Which node serves which cluster slot, as far as is known. `remap` makes of an address one by which a node can be reached."""

    def __init__(self, seeds: Iterable[Address], remap: Optional[Callable[[Address], Address]] = None) -> None:
        self.is_stale = True
        """Whether it is to be fetched before anything else is asked."""
        self.seeds, self._remap = tuple(dict.fromkeys(seeds)), remap
        self._owners: list[Optional[Address]] = [None] * CLUSTER_SLOTS
        self._samples: dict[Address, tuple[int, ...]] = {}
        self._moved: tuple[Address, ...] = ()
        self._asked: Optional[Address] = None
        self._silent: frozenset[Address] = frozenset()

    def owner(self, slot: int) -> Optional[Address]:
        """The master that serves a cluster slot; none: nobody is known to."""
        return self._owners[slot]

    def masters(self) -> Sequence[Address]:
        """All masters that serve anything."""
        return sorted(self._samples)

    def is_known(self, node: Address) -> bool:
        """Whether it serves anything, or is one of those that were named."""
        return node in self._samples or node in self.seeds

    def sample(self, master: Address) -> Sequence[int]:
        """Some of the cluster slots that a master serves."""
        return self._samples.get(master, ())

    def to_ask(self) -> Sequence[Address]:
        """Who may know, in the order in which they are to be asked.

        Another one comes first each time, because a node that is cut off knows what was; those that did not answer come last.
        """
        masters = self.masters()
        at = masters.index(self._asked) + 1 if self._asked in masters else 0
        known = dict.fromkeys([*self._moved, *masters[at:], *masters[:at], *self.seeds])
        return sorted(known, key=lambda node: node in self._silent)

    def moved(self, node: Address, slot: int) -> None:
        """Notes that another node serves a cluster slot. That one knows best, and is asked first."""
        self._owners[slot], self._moved = node, (node,)
        self._samples = {node: (slot,), **self._samples}
        self.is_stale = True

    def reached(self, node: Address) -> Address:
        """The address by which a node can be reached that others name so."""
        return node if self._remap is None else self._remap(node)

    def fell_silent(self, node: Address) -> None:
        """Notes that a node did not answer."""
        self._silent |= {node}
        self.is_stale = True

    def note(self, reply: Any, asked: Address) -> bool:
        """Takes what a node answered to `CLUSTER SLOTS`; answers whether it knows of any cluster slot that is served."""
        owners: list[Optional[Address]] = [None] * CLUSTER_SLOTS
        for first, last, master, *_ in reply if isinstance(reply, (list, tuple)) else ():
            host = master[0].decode() if isinstance(master[0], bytes) else master[0]
            node = self.reached((asked[0] if host in (None, "", "?") else host, int(master[1])))
            owners[int(first) : int(last) + 1] = [node] * (int(last) + 1 - int(first))
        served: dict[Address, list[int]] = {}
        for slot, owner in enumerate(owners):
            if owner is not None:
                served.setdefault(owner, []).append(slot)
        if not served:
            return False
        self._samples = {owner: tuple(slots[:: -(-len(slots) // SAMPLE_MAX)]) for owner, slots in served.items()}
        self._owners, self._asked, self._moved, self.is_stale = owners, asked, (), False
        self._silent -= {asked}
        return True
