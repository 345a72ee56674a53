"""What the caches for threads and for asyncio have in common: everything but the waiting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Optional, Union

from .directory import Directory, parse_directory, watermark_key
from .errors import InvalidInput, InvalidKey, InvalidWrite, NotFresh, NotRegistered, UnknownDataset, Unreachable
from .events import check_target
from .on_cluster import OnCluster
from .reading import KEYS_MAX, LOOK_AFTER, Asked, Reading, judge, reading_of, why_not_fresh
from .template import is_text
from .tokens import Token
from .values import VALUE_BYTES_MAX

DIRECTORY_AGE = 10.0
"""Seconds after which the directory is read again."""
DIRECTORY_AGE_MIN = 1.0
"""The same for a dataset that it does not name, and after an attempt that failed."""

TIMEOUT = 5.0
"""Seconds for each command, unless `timeout` says so."""
WAIT_MAX = 1e9
"""Seconds that a call may be told to wait."""
SLACK = 0.25
"""Seconds that a call may take beyond the limit that it was given, for what it is just doing."""


class Base:
    """What is known of a namespace, and decisions on it."""

    def __init__(
        self, client: Any, namespace: str, where: str, value_bytes_max: int, timeout: float, connections: int, nodes: Any = None
    ) -> None:
        if not isinstance(namespace, str) or not namespace or not is_text(namespace):
            raise InvalidInput(f"a namespace is text, not {namespace!r}: it is [service] namespace of the worker")
        if isinstance(value_bytes_max, bool) or not isinstance(value_bytes_max, int) or value_bytes_max < 1:
            raise InvalidInput(f"value_bytes_max is a number of bytes, not {value_bytes_max!r}")
        self.client = client
        self.namespace = namespace
        self._where = where
        self._is_own = False
        self._is_closed = False
        self._limit = value_bytes_max
        self._timeout = timeout
        self._connections = connections
        self._directory: Optional[Directory] = None
        self._directory_at = 0.0
        self._look_at = 0.0
        self._nodes = nodes
        self._on_cluster = None if nodes is None else OnCluster(namespace, nodes.map, timeout, value_bytes_max)

    def __repr__(self) -> str:
        closed = " (closed)" if self._is_closed else ""
        return f"<{type(self).__module__}.{type(self).__name__} of {self.namespace!r} at {self._where}{closed}>"

    def _until(self, deadline: Optional[float] = None) -> float:
        """Until when a command may take, in a call with this deadline."""
        until = time.monotonic() + self._timeout
        return until if deadline is None else min(until, deadline)

    def _is_look_due(self, since: float) -> bool:
        """Whether a read that waits since then asks the sentinels where the master is: one of all, once a second."""
        now = time.monotonic()
        if now < since + LOOK_AFTER or now < self._look_at:
            return False
        self._look_at = now + LOOK_AFTER
        return True

    def _busy(self, what: str) -> Unreachable:
        return Unreachable(
            f"failed to {what}: none of the {self._connections} connections of this cache to {self._where} was free in time; "
            "`max_connections` allows more"
        )

    def _known(self, dataset: Optional[str]) -> Optional[Directory]:
        """The directory, if it need not be read again."""
        self._check_open()
        if dataset is not None and not isinstance(dataset, str):
            raise UnknownDataset(f"the name of a dataset is text, not {dataset!r}")
        directory, age = self._directory, time.monotonic() - self._directory_at
        if directory is None or DIRECTORY_AGE < age:
            return None
        if dataset is not None and dataset not in directory.datasets and DIRECTORY_AGE_MIN < age:
            return None
        return directory

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidInput("this cache was closed")

    def _old_directory(self, dataset: Optional[str], failure: Unreachable) -> Directory:
        """The directory as it was, where it cannot be read again now: what is asked next tells whether Redis is there."""
        directory = self._directory
        if directory is None or (dataset is not None and dataset not in directory.datasets):
            raise failure
        self._directory_at = time.monotonic() - DIRECTORY_AGE + DIRECTORY_AGE_MIN
        return directory

    def _note_directory(self, fields: Mapping[Any, Any]) -> Directory:
        try:
            if self._on_cluster is not None and not fields:
                raise NotRegistered(
                    f"no worker has registered the namespace {self.namespace!r} in {self._where}: no shard has a directory of it. "
                    "Check [service] namespace, and that a worker runs"
                )
            self._directory = parse_directory(fields, self.namespace, self._where)
        except NotRegistered:
            # Redis was flushed: the workers write it again, and until then it is as it was.
            if self._directory is None:
                raise
        self._directory_at = time.monotonic()
        assert self._directory is not None
        return self._directory

    def _check_writable(self) -> None:
        if self._on_cluster is not None:
            raise InvalidWrite("nothing is written through on a cluster yet: write to Postgres, and the feed does the rest")

    def _keys(self, page: Sequence[Asked], token: Optional[Token]) -> list[str]:
        """What a round trip asks for; with a token the watermark comes first."""
        head = [] if token is None else [watermark_key(self.namespace)]
        return [*head, *(key for _, key in page)]

    def _readings(self, page: Sequence[Asked], token: Optional[Token], values: Sequence[Any]) -> list[Reading]:
        """What a round trip answered."""
        if token is None:
            return [reading_of(of, key, value, None, self._limit) for (of, key), value in zip(page, values)]
        watermark, now, found = values[0], datetime.now(timezone.utc), []
        verdicts = {of.name: judge(watermark, token, of.name, now) for of, _ in page}
        for (of, key), value in zip(page, values[1:]):
            found.append(reading_of(of, key, value, verdicts[of.name], self._limit))
        return found


def pages(asked: Sequence[Asked]) -> Iterable[Sequence[Asked]]:
    """What each round trip asks for."""
    for at in range(0, len(asked), KEYS_MAX):
        yield asked[at : at + KEYS_MAX]


def are_hashes(page: Sequence[Asked]) -> bool:
    """Whether the entries of this page, all of one dataset, are hashes."""
    return 0 < len(page) and page[0][0].format == "hash"


def ask_hashes(pipeline: Any, keys: Sequence[str], token: Optional[Token]) -> Any:
    """Asks for hashes, and for the watermark where a token is given, whose key comes first then."""
    for at, key in enumerate(keys):
        pipeline.get(key) if token is not None and at == 0 else pipeline.hgetall(key)
    return pipeline


def hashes_of(replies: Sequence[Any]) -> list[Any]:
    """What was found. A key of another type holds no entry: the dataset's format changes, or somebody else wrote there."""
    found = []
    for reply in replies:
        is_wrong_type = isinstance(reply, Exception) and str(reply).startswith("WRONGTYPE")
        if isinstance(reply, Exception) and not is_wrong_type:
            raise reply
        found.append(None if is_wrong_type or reply == {} else reply)
    return found


def token_of(token: Union[Token, str, None]) -> Optional[Token]:
    """A token as it may be given."""
    return None if token is None else Token.parse(token)


def keys_of(directory: Directory, dataset: str, ids: Iterable[Any]) -> list[Asked]:
    """The keys of these ids."""
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
        raise InvalidInput(f"ids are a list, not {ids!r}")
    of = directory.dataset(dataset)
    return [(of, of.key(id)) for id in ids]


def key_of(directory: Directory, key: str, dataset: Optional[str]) -> Asked:
    """A key in full, with the dataset that it is of."""
    if not isinstance(key, str) or not is_text(key):
        raise InvalidKey(f"a key is text, not {key!r}")
    if dataset is None:
        return (directory.of_key(key), key)
    of = directory.dataset(dataset)
    # What is no key of the dataset is not kept by its rules, so no verdict of the dataset holds for it.
    if of.template.read(key) is None:
        raise InvalidKey(f"{key!r} is no key of dataset {dataset}, whose keys are {of.template.text}")
    return (of, key)


def limit_of(seconds: float, what: str) -> float:
    """A time limit, as it may be given."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= WAIT_MAX:
        raise InvalidInput(f"{what} is a number of seconds, at most {WAIT_MAX:g}, not {seconds!r}")
    return time.monotonic() + seconds


def read_limit(deadline: float, wait: float) -> Optional[float]:
    """Until when the commands of a read may take beside the limit of each."""
    return deadline + SLACK if 0 < wait else None


def value_of(readings: Sequence[Reading], token: Optional[Token]) -> list[Any]:
    """The values alone, where the token allows it."""
    if token is not None and not all(one.is_fresh for one in readings):
        raise NotFresh(why_not_fresh(readings), list(readings))
    return [one.value for one in readings]


def target_of(event: Mapping[str, Any], directory: Directory, durable: bool) -> str:
    """Where a checked event goes."""
    check_target(event, directory)
    target = directory.event_stream if durable else next(iter(directory.channels), None)
    if target is None:
        what = "stream for events: publish without `durable`" if durable else "channel for events"
        raise InvalidInput(f"namespace {directory.namespace!r} has no {what}")
    return target
