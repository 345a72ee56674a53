"""The cache for programs with threads, or without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional, TypeVar, Union
from uuid import uuid4

import redis
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from .base import (
    Asked,
    Base,
    are_hashes,
    ask_hashes,
    hashes_of,
    key_of,
    keys_of,
    limit_of,
    target_of,
    token_of,
    value_of,
)
from .connection import PAUSES, build, check_client, explain, where_of
from .directory import Directory, directory_key
from .errors import Unreachable, WriteUnknown
from .events import Event, check_event, fields_of, message_of
from .reading import PAUSE_MAX, PAUSE_MIN, Reading
from .tokens import Token
from .values import VALUE_BYTES_MAX
from .writes import BLOCK, SEND_AGAIN_AFTER, Command, Written, outcome, read_reply

T = TypeVar("T")


def connect(
    url: "str | redis.Redis",
    namespace: str,
    *,
    timeout: float = 5.0,
    value_bytes_max: int = VALUE_BYTES_MAX,
    **options: Any,
) -> "Cache":
    """Connects, and reads what the workers of this namespace tell.

    `url` is `redis://`, `rediss://`, `unix://`, `redis+sentinel://host:port,host:port/service/database`, or a client of
    redis-py. `timeout` limits each command, in seconds. `options` go to redis-py (certificates, for example); `sentinel`
    among them is a dict for the connections to sentinels.
    """
    if isinstance(url, str):
        client, where = build(redis.Redis, Sentinel, Retry, url, timeout, options)
    else:
        client, where = url, where_of(url)
    cache = Cache(client, namespace, value_bytes_max=value_bytes_max, where=where)
    cache._is_own = isinstance(url, str)
    try:
        cache.directory()
    except BaseException:
        cache.close()
        raise
    return cache


class Cache(Base):
    """Reads entries, publishes events, hands over writes. Threads may share it."""

    def __init__(
        self, client: redis.Redis, namespace: str, *, value_bytes_max: int = VALUE_BYTES_MAX, where: str = ""
    ) -> None:
        """Asks nothing yet; `connect` does."""
        check_client(client)
        super().__init__(client, namespace, where or where_of(client), value_bytes_max)

    def get(self, dataset: str, id: Any, *, token: Union[Token, str, None] = None, wait: float = 0.0) -> Any:
        """The value of one entry; `None`: there is no entry, or it is known that there is no row.

        With a token it is at least that fresh, after up to `wait` seconds, or `NotFresh` is raised: ask the database then.
        """
        return self.get_many(dataset, [id], token=token, wait=wait)[0]

    def get_many(
        self, dataset: str, ids: Iterable[Any], *, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> list[Any]:
        """The same for many, in their order, by one command (for each thousand)."""
        token = token_of(token)
        return value_of(self.read_many(dataset, ids, token=token, wait=wait), token)

    def get_key(
        self, key: str, *, dataset: Optional[str] = None, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> Any:
        """The same by the key in full. `dataset` is needed where the key could be of several."""
        token = token_of(token)
        return value_of([self.read_key(key, dataset=dataset, token=token, wait=wait)], token)[0]

    def read(self, dataset: str, id: Any, *, token: Union[Token, str, None] = None, wait: float = 0.0) -> Reading:
        """As `get`, and tells what was found and how fresh it is, and never raises `NotFresh`."""
        return self.read_many(dataset, [id], token=token, wait=wait)[0]

    def read_many(
        self, dataset: str, ids: Iterable[Any], *, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> list[Reading]:
        """The same for many."""
        return self._read(keys_of(self.directory(dataset), dataset, ids), token_of(token), wait)

    def read_key(
        self, key: str, *, dataset: Optional[str] = None, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> Reading:
        """The same by the key in full."""
        return self._read([key_of(self.directory(dataset), key, dataset)], token_of(token), wait)[0]

    def publish(self, event: Event, *, durable: bool = False) -> "int | str":
        """Tells the workers what changed, after it was committed.

        Over pub/sub it answers how many heard it (0: nobody, it is lost); with `durable`, the id of its entry in the stream,
        where it waits for a worker.
        """
        checked = check_event(event)
        target = target_of(checked, self.directory(checked.get("dataset")), durable)
        if durable:
            added = self._call("add an event", "publisher", lambda: self.client.xadd(target, fields_of(checked)))
            return added.decode() if isinstance(added, bytes) else str(added)
        message = message_of(checked)
        return int(self._call("publish an event", "publisher", lambda: self.client.publish(target, message)))

    def write(
        self, dataset: str, params: Mapping[str, Any], *, id: Optional[str] = None, timeout: float = 10.0
    ) -> Written:
        """Hands over a write of the dataset's statement, and waits until it is carried out.

        A write that is said again under its `id` is not carried out again, and gets the same answer. Raises `WriteRejected`,
        `Unreachable` (nothing was handed over) or `WriteUnknown` (say it again with the same id).
        """
        deadline = limit_of(timeout, "timeout")
        directory = self.directory(dataset)
        command = Command.new(directory, dataset, params, id)
        replies = f"{directory.reply_prefix}{uuid4()}"
        is_sent, failure, send_at, patience, pause = False, None, 0.0, SEND_AGAIN_AFTER, PAUSES[0]
        while True:
            now = time.monotonic()
            if deadline <= now or self._is_closed:
                break
            try:
                if send_at <= now:
                    # Where not even this comes back, nothing was sent.
                    self._once("hand over a write", "writer", self.client.ping)
                    is_sent = True
                    self._once("hand over a write", "writer", lambda: self.client.xadd(command.stream, command.fields(replies)))
                    send_at, patience, pause = now + patience, 2 * patience, PAUSES[0]
                block = max(0.01, min(BLOCK, deadline - now, send_at - now))
                answer = self._once("wait for a reply", "writer", lambda: self.client.blpop([replies], block))
            except Unreachable as error:
                # It may be lost with the server: it is sent again, under its id.
                failure, send_at = error, 0.0
                time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
                pause = min(2 * pause, 1.0)
                continue
            if answer is not None:
                reply = read_reply(answer[1])
                if reply.get("id") == command.id:
                    return outcome(command.id, reply)
        if not is_sent:
            raise failure or Unreachable(f"failed to hand over a write within {timeout:g} s: nothing was sent")
        raise WriteUnknown(unanswered(command.id, timeout), command.id, failure)

    def directory(self, dataset: Optional[str] = None) -> Directory:
        """What the workers tell of this namespace, at most ten seconds old."""
        known = self._known(dataset)
        if known is not None:
            return known
        key = directory_key(self.namespace)
        ask = self._call if self._directory is None else self._once
        try:
            return self._note_directory(ask("read the directory", "reader", lambda: self.client.hgetall(key)))
        except Unreachable as error:
            return self._old_directory(dataset, error)

    def close(self) -> None:
        """Closes the connections that were opened here; a client that was given stays open. No call is answered after it."""
        self._is_closed = True
        if self._is_own:
            self.client.close()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, asked: list[Asked], token: Optional[Token], wait: float) -> list[Reading]:
        deadline, pause = limit_of(wait, "wait"), PAUSE_MIN
        while True:
            self._check_open()
            try:
                readings: list[Reading] = []
                for page, keys in self._pages(asked, token):
                    ask = self._hashes if are_hashes(page) else self._strings
                    values = self._call("read entries", "reader", lambda: ask(keys, token))
                    readings += self._readings(page, token, values)
                if token is None or all(one.is_fresh for one in readings) or deadline <= time.monotonic():
                    return readings
            except Unreachable:
                if deadline <= time.monotonic():
                    raise
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(1.5 * pause, PAUSE_MAX)

    def _strings(self, keys: Sequence[str], _token: Optional[Token]) -> Sequence[Any]:
        return self.client.mget(keys)

    def _hashes(self, keys: Sequence[str], token: Optional[Token]) -> Sequence[Any]:
        with self.client.pipeline(transaction=token is not None) as pipeline:
            return hashes_of(ask_hashes(pipeline, keys, token).execute(raise_on_error=False))

    def _call(self, what: str, kind: str, command: Callable[[], T]) -> T:
        for pause in PAUSES:
            try:
                return self._once(what, kind, command)
            except Unreachable as error:
                if isinstance(error.__cause__, (TimeoutError, redis.TimeoutError)):
                    raise
                time.sleep(pause)
        return self._once(what, kind, command)

    def _once(self, what: str, kind: str, command: Callable[[], T]) -> T:
        try:
            return command()
        except (RedisError, OSError) as error:
            raise explain(error, what, self._where, kind) from error


def unanswered(id: str, timeout: float) -> str:
    """That no reply came."""
    return f"no reply to the write {id} within {timeout:g} s: it may have been carried out. Say it again with the same id"
