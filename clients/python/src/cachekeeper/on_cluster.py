"""What the caches ask of the nodes of a cluster, step by step. Who takes the steps waits for the answers: `nodes` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Optional, TypeVar, Union

from redis.exceptions import ClusterDownError, RedisError

from .cluster import Address, ClusterMap, cluster_slot, guard_key, parse_guard, redirection_of
from .connection import SENTINEL_PATIENCE, is_passing
from .directory import directory_key, watermark_key
from .errors import InvalidInput
from .reading import Asked, Reading, Verdict, Watermark, judge_on_cluster, reading_of
from .tokens import Token

T = TypeVar("T")

ATTEMPTS = 6
"""How often a call is sent before its redirections are an error."""
PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Seconds before each but the first."""

Command = tuple[Any, ...]
Answer = Union[list[Any], Exception]
"""What came of each command, errors of Redis among it; or why nothing came at all."""


@dataclass(frozen=True)
class Request:
    """Commands for one node, in this order, on one connection."""

    node: Address
    commands: Sequence[Command]
    patience: Optional[float] = None
    """Seconds that it may take, beside the limit of the call."""


@dataclass(frozen=True)
class Pause:
    """A wait before the next step."""

    seconds: float


Steps = Generator[Union[Sequence[Request], Pause], Any, T]
"""Steps of a call, and in the end its answer. Each request is answered by an `Answer`, in the order of the requests."""

_MOVING = Verdict("unknown", None, "its cluster slot is migrating")
_AGAIN = Verdict("unknown", None, "the guard of its cluster slot has just changed")


class OnCluster:
    """The calls of one cache."""

    def __init__(self, namespace: str, map: ClusterMap, timeout: float, value_bytes_max: int) -> None:
        self.map, self.namespace, self.limit = map, namespace, value_bytes_max
        self._timeout = timeout
        self._shards: dict[Address, int] = {}

    def shard_of(self, node: Address) -> Sequence[int]:
        """The shard that a guard of this node named last, if any did: most name the same."""
        return [self._shards[node]] if node in self._shards else []

    def note_shard(self, node: Address, shard: int) -> None:
        """Notes what a guard names."""
        self._shards[node] = shard

    def directory(self) -> Steps[dict[Any, Any]]:
        """The directory, as a shard has it; empty: none has one."""
        for pause in (None, *PAUSES):
            if pause:
                yield Pause(pause)
            yield from self._fresh_map()
            failure, is_moved = None, False
            for master in self.map.masters():
                guards = [("GET", guard_key(self.namespace, slot)) for slot in self.map.sample(master)]
                (told,) = yield [Request(master, guards)]
                if isinstance(told, Exception):
                    failure = self._silent(master, told)
                    continue
                replies = list(told)
                for shard in _named_by(told):
                    (found,) = yield [Request(master, [("HGETALL", directory_key(self.namespace, shard))])]
                    replies += [found] if isinstance(found, Exception) else found
                    if isinstance(replies[-1], dict) and replies[-1]:
                        return replies[-1]
                for error in (one for one in replies if isinstance(one, Exception)):
                    if self.is_moved(error, master):
                        is_moved = True
                    else:
                        failure = self.refused(error)
            if not is_moved:
                break
        if failure is not None:
            raise failure
        return {}

    def read(self, page: Sequence[Asked], token: Optional[Token]) -> Steps[list[Reading]]:
        """Reads entries, each at the node that serves it: guard, watermark, value, in this order on one connection."""
        read = _Read(self, page, token)
        for pause in (None, *PAUSES):
            if pause:
                yield Pause(pause)
            yield from self._fresh_map()
            groups = read.groups()
            answers = yield [Request(one.node, read.commands(one)) for one in groups]
            for group, answer in zip(groups, answers):
                if isinstance(answer, Exception):
                    raise self._silent(group.node, answer)
                read.take(group, answer)
            following = read.following()
            answers = yield [Request(node, read.asking(positions)) for node, positions in following.items()]
            for (node, positions), answer in zip(following.items(), answers):
                if not isinstance(answer, Exception):
                    read.take_asked(node, positions, answer[1::2])
            if not read.is_left():
                break
        return read.readings()

    def add(self, stream: str, fields: Mapping[str, str]) -> Steps[Any]:
        """The id of a new entry of a stream."""
        slot, command = cluster_slot(stream), ("XADD", stream, "*", *(part for pair in fields.items() for part in pair))
        for pause in (None, *PAUSES):
            if pause:
                yield Pause(pause)
            yield from self._fresh_map()
            owner = self.owner(slot)
            (told,) = yield [Request(owner, [command])]
            if not isinstance(told, Exception):
                redirection = redirection_of(told[0], owner)
                if redirection is not None and redirection.kind == "ASK":
                    (told,) = yield [Request(self.map.reached(redirection.node), [("ASKING",), command])]
            if isinstance(told, Exception):
                raise self._silent(owner, told)
            reply = told[-1]
            if not isinstance(reply, Exception):
                return reply
            if not self.is_moved(reply, owner):
                raise self.refused(reply)
        raise _restless(reply)

    def publish(self, channel: str, message: bytes) -> Steps[int]:
        """How many heard it at the node where anybody did, which hands it to all others."""
        yield from self._fresh_map()
        failure, is_told = None, False
        for master in self.map.masters():
            (told,) = yield [Request(master, [("PUBLISH", channel, message)])]
            reply = told if isinstance(told, Exception) else told[0]
            if isinstance(told, Exception):
                failure = self._silent(master, told)
            elif isinstance(reply, Exception):
                failure = self.refused(reply)
            elif 0 < reply:
                return int(reply)
            else:
                is_told = True
        if failure is not None and not is_told:
            raise failure
        return 0

    def _fresh_map(self) -> Steps[None]:
        """Fetches the map of the cluster where it may be wrong."""
        if not self.map.is_stale:
            return
        nodes, failure = self.map.to_ask(), None
        # A node that hangs leaves time for the others.
        patience = min(SENTINEL_PATIENCE, self._timeout / (len(nodes) + 1))
        for node in nodes:
            (told,) = yield [Request(node, [("CLUSTER", "SLOTS")], patience)]
            reply = told if isinstance(told, Exception) else told[0]
            if isinstance(reply, RedisError) and "cluster support disabled" in str(reply):
                raise InvalidInput(f"{node[0]}:{node[1]} is no node of a cluster: its URL begins with redis://")
            if isinstance(reply, Exception):
                self.map.fell_silent(node)
                failure = failure or reply
            elif self.map.note(reply, node):
                return
        raise failure or ClusterDownError("no node knows who serves a cluster slot")

    def owner(self, slot: int) -> Address:
        """The master that serves a cluster slot."""
        owner = self.map.owner(slot)
        if owner is None:
            self.map.is_stale = True
            raise ClusterDownError(f"no node serves cluster slot {slot}")
        return owner

    def _silent(self, node: Address, error: Exception) -> Exception:
        self.map.fell_silent(node)
        return error

    def refused(self, error: Exception) -> Exception:
        """An error of Redis, which may be that of a node that serves nothing now."""
        self.map.is_stale = self.map.is_stale or is_passing(error)
        return error

    def is_moved(self, reply: Any, asked: Address) -> bool:
        """Whether this says that the map is wrong, which is noted then; or that another attempt may succeed."""
        redirection = redirection_of(reply, asked)
        if redirection is not None and redirection.kind == "MOVED":
            self.map.moved(self.map.reached(redirection.node), redirection.slot)
        return redirection is not None or str(reply).startswith("TRYAGAIN")


def _restless(last: Optional[Exception]) -> Exception:
    return ClusterDownError(f"each node that was asked named another one, {ATTEMPTS} times; at last: {last}")


def _named_by(guards: Sequence[Any]) -> Sequence[int]:
    """The shards that guards name, the one first that most of them do."""
    named: Counter[int] = Counter()
    for guard in guards:
        if isinstance(guard, (bytes, str)):
            try:
                named[parse_guard(guard)] += 1
            except ValueError:
                continue
    return [shard for shard, _ in named.most_common()]


@dataclass(frozen=True)
class _Group:
    """What is read at one node: guards, watermarks of shards, values."""

    node: Address
    slots: Sequence[int]
    shards: Sequence[int]
    positions: Sequence[int]


class _Read:
    """One page of keys, on its way."""

    def __init__(self, calls: OnCluster, page: Sequence[Asked], token: Optional[Token]) -> None:
        self._calls, self._page, self._token = calls, page, token
        self._slots = [cluster_slot(key) for _, key in page]
        self._left = dict.fromkeys(range(len(page)))
        self._found: dict[int, Reading] = {}
        self._following: dict[Address, list[int]] = {}
        self._named: dict[int, int] = {}
        self._failure: Optional[Exception] = None

    def is_left(self) -> bool:
        """Whether anything is to be asked again."""
        return bool(self._left)

    def groups(self) -> Sequence[_Group]:
        """What is still to be read, by node."""
        by_node: dict[Address, list[int]] = {}
        for position in self._left:
            by_node.setdefault(self._calls.owner(self._slots[position]), []).append(position)
        return [self._group(node, positions) for node, positions in by_node.items()]

    def commands(self, group: _Group) -> Sequence[Command]:
        """The guard says which shard has adopted a cluster slot; its watermark is taken before the values."""
        namespace = self._calls.namespace
        guards = [("GET", guard_key(namespace, slot)) for slot in group.slots]
        watermarks = [("GET", watermark_key(namespace, shard)) for shard in group.shards]
        return [*guards, *watermarks, *map(self._command, group.positions)]

    def take(self, group: _Group, replies: Sequence[Any]) -> None:
        """Takes what the node answered."""
        told, values = replies[: -len(group.positions)], replies[-len(group.positions) :]
        watermarks = dict(zip(group.shards, told[len(group.slots) :]))
        judged = _Judged(self._calls, self._token, group.node, watermarks, self._named)
        guards = dict(zip(group.slots, told))
        for position, reply in zip(group.positions, values):
            redirection = redirection_of(reply, group.node)
            if redirection is not None and redirection.kind == "ASK":
                self._following.setdefault(self._calls.map.reached(redirection.node), []).append(position)
            elif self._is_value(reply, group.node):
                slot, of = self._slots[position], self._page[position][0]
                verdict = None if self._token is None else judged.verdict(guards[slot], slot, of.name)
                self._note(position, reply, verdict)
                if verdict is _AGAIN:
                    self._left[position] = None

    def following(self) -> dict[Address, list[int]]:
        """What has migrated already, by the node that has it."""
        following, self._following = self._following, {}
        return following

    def asking(self, positions: Sequence[int]) -> Sequence[Command]:
        """The commands for what has migrated."""
        return [one for position in positions for one in (("ASKING",), self._command(position))]

    def take_asked(self, node: Address, positions: Sequence[int], values: Sequence[Any]) -> None:
        """Takes what has migrated. Nobody vouches for it: the node may have held it since an earlier migration."""
        for position, reply in zip(positions, values):
            if self._is_value(reply, node):
                self._note(position, reply, None if self._token is None else _MOVING)

    def readings(self) -> list[Reading]:
        """What was found; raises what the last redirection was where a key was not."""
        if len(self._found) < len(self._page):
            raise _restless(self._failure)
        return [self._found[position] for position in range(len(self._page))]

    def _group(self, node: Address, positions: Sequence[int]) -> _Group:
        if self._token is None:
            return _Group(node, (), (), positions)
        slots = list(dict.fromkeys(self._slots[position] for position in positions))
        named = [self._named[slot] for slot in slots if slot in self._named]
        return _Group(node, slots, list(dict.fromkeys([*self._calls.shard_of(node), *named])), positions)

    def _command(self, position: int) -> Command:
        of, key = self._page[position]
        return ("HGETALL" if of.format == "hash" else "GET", key)

    def _is_value(self, reply: Any, node: Address) -> bool:
        """Whether this is what stands under a key. A key of another type holds no entry."""
        if not isinstance(reply, Exception) or str(reply).startswith("WRONGTYPE"):
            return True
        if not self._calls.is_moved(reply, node):
            raise self._calls.refused(reply)
        self._failure = reply
        return False

    def _note(self, position: int, reply: Any, verdict: Optional[Verdict]) -> None:
        (of, key), is_none = self._page[position], isinstance(reply, Exception) or reply == {}
        self._found[position] = reading_of(of, key, None if is_none else reply, verdict, self._calls.limit)
        del self._left[position]


class _Judged:
    """Verdicts on what one node answered, each made once."""

    def __init__(
        self, calls: OnCluster, token: Optional[Token], node: Address, watermarks: dict[int, Any], named: dict[int, int]
    ) -> None:
        self._calls, self._token, self._node, self._named = calls, token, node, named
        self._told, self._now = watermarks, datetime.now(timezone.utc)
        self._watermarks: dict[int, Optional[Watermark]] = {}

    def verdict(self, guard: Any, slot: int, dataset: str) -> Verdict:
        """The verdict on an entry of a dataset in this cluster slot, whose guard was read first."""
        if isinstance(guard, Exception):
            redirection = redirection_of(guard, self._node)
            if redirection is not None and redirection.kind == "ASK":
                return _MOVING
            if not self._calls.is_moved(guard, self._node):
                raise self._calls.refused(guard)
            return _AGAIN
        if guard is None:
            return Verdict("unknown", None, "no shard has adopted its cluster slot")
        try:
            shard = parse_guard(guard)
        except ValueError:
            return Verdict("unknown", None, "the guard of its cluster slot cannot be read")
        if shard not in self._told:
            self._named[slot] = shard
            self._calls.note_shard(self._node, shard)
            return _AGAIN
        told = self._told[shard]
        if told is None or isinstance(told, Exception):
            return Verdict("unknown", None, f"the node of its cluster slot has no watermark of shard {shard}, which has adopted it")
        assert self._token is not None
        if shard not in self._watermarks:
            self._watermarks[shard] = Watermark.parse(told)
        return judge_on_cluster(self._watermarks[shard], slot, self._token, dataset, self._now)
