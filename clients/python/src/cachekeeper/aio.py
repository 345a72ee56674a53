"""The cache for asyncio. The same as `cachekeeper`, with `await`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Optional, TypeVar, Union

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout

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
from .client import unanswered
from .connection import PAUSES, build, check_client, explain, where_of
from .directory import Directory, directory_key
from .errors import Unreachable, WriteUnknown
from .events import Event, check_event, fields_of, message_of
from .reading import PAUSE_MAX, PAUSE_MIN, Reading
from .replies import Replies
from .tokens import TOKEN_SQL, Token, token_of_row
from .values import VALUE_BYTES_MAX
from .writes import SEND_AGAIN_AFTER, Command, Written, outcome

T = TypeVar("T")

LOOK_EVERY = 0.25
"""Seconds between two looks of a waiting write at whether the connection for replies was lost."""


async def connect(
    url: "str | redis.Redis",
    namespace: str,
    *,
    timeout: float = 5.0,
    value_bytes_max: int = VALUE_BYTES_MAX,
    **options: Any,
) -> "Cache":
    """As `cachekeeper.connect`; a client is one of `redis.asyncio`."""
    if isinstance(url, str):
        client, where = build(redis.Redis, Sentinel, Retry, url, timeout, options)
    else:
        client, where = url, where_of(url)
    cache = Cache(client, namespace, value_bytes_max=value_bytes_max, where=where)
    cache._is_own = isinstance(url, str)
    try:
        await cache.directory()
    except BaseException:
        await cache.close()
        raise
    return cache


async def take_token(connection: Any) -> Token:
    """Takes a token of this moment, after your commit, through a connection of psycopg (async) or asyncpg."""
    if hasattr(connection, "fetchrow"):
        return token_of_row(await connection.fetchrow(TOKEN_SQL))
    was_idle = connection.info.transaction_status == 0
    cursor = await connection.execute(TOKEN_SQL)
    try:
        return token_of_row(await cursor.fetchone())
    finally:
        await cursor.close()
        if was_idle and not connection.autocommit:
            await connection.rollback()


class Cache(Base):
    """Reads entries, publishes events, hands over writes. The tasks of one loop may share it."""

    def __init__(
        self, client: redis.Redis, namespace: str, *, value_bytes_max: int = VALUE_BYTES_MAX, where: str = ""
    ) -> None:
        """Asks nothing yet; `connect` does."""
        check_client(client)
        super().__init__(client, namespace, where or where_of(client), value_bytes_max)
        self._replies: Optional[Replies] = None

    async def get(self, dataset: str, id: Any, *, token: Union[Token, str, None] = None, wait: float = 0.0) -> Any:
        """The value of one entry; `None`: there is no entry, or it is known that there is no row.

        With a token it is at least that fresh, after up to `wait` seconds, or `NotFresh` is raised: ask the database then.
        """
        return (await self.get_many(dataset, [id], token=token, wait=wait))[0]

    async def get_many(
        self, dataset: str, ids: Iterable[Any], *, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> list[Any]:
        """The same for many, in their order, by one command (for each thousand)."""
        token = token_of(token)
        return value_of(await self.read_many(dataset, ids, token=token, wait=wait), token)

    async def get_key(
        self, key: str, *, dataset: Optional[str] = None, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> Any:
        """The same by the key in full. `dataset` is needed where the key could be of several."""
        token = token_of(token)
        return value_of([await self.read_key(key, dataset=dataset, token=token, wait=wait)], token)[0]

    async def read(self, dataset: str, id: Any, *, token: Union[Token, str, None] = None, wait: float = 0.0) -> Reading:
        """As `get`, and tells what was found and how fresh it is, and never raises `NotFresh`."""
        return (await self.read_many(dataset, [id], token=token, wait=wait))[0]

    async def read_many(
        self, dataset: str, ids: Iterable[Any], *, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> list[Reading]:
        """The same for many."""
        return await self._read(keys_of(await self.directory(dataset), dataset, ids), token_of(token), wait)

    async def read_key(
        self, key: str, *, dataset: Optional[str] = None, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> Reading:
        """The same by the key in full."""
        directory = await self.directory(dataset)
        return (await self._read([key_of(directory, key, dataset)], token_of(token), wait))[0]

    async def publish(self, event: Event, *, durable: bool = False) -> "int | str":
        """Tells the workers what changed, after it was committed.

        Over pub/sub it answers how many heard it (0: nobody, it is lost); with `durable`, the id of its entry in the stream,
        where it waits for a worker.
        """
        checked = check_event(event)
        target = target_of(checked, await self.directory(checked.get("dataset")), durable)
        if durable:
            added = await self._call("add an event", "publisher", lambda: self.client.xadd(target, fields_of(checked)))
            return added.decode() if isinstance(added, bytes) else str(added)
        message = message_of(checked)
        return await self._call("publish an event", "publisher", lambda: self.client.publish(target, message))

    async def write(
        self, dataset: str, params: Mapping[str, Any], *, id: Optional[str] = None, timeout: float = 10.0
    ) -> Written:
        """Hands over a write of the dataset's statement, and waits until it is carried out.

        A write that is said again under its `id` is not carried out again, and gets the same answer. Raises `WriteRejected`,
        `Unreachable` (nothing was handed over) or `WriteUnknown` (say it again with the same id). All writes of a cache wait on
        one connection.
        """
        deadline = limit_of(timeout, "timeout")
        directory = await self.directory(dataset)
        command = Command.new(directory, dataset, params, id)
        if self._replies is None:
            self._replies = Replies(self._once, self.client, directory.reply_prefix)
        replies, is_sent, failure = self._replies, False, None
        send_at, patience, pause, losses = 0.0, SEND_AGAIN_AFTER, PAUSES[0], 0
        with replies.expect(command.id) as reply:
            while True:
                now = time.monotonic()
                if deadline <= now or self._is_closed:
                    break
                try:
                    # What was sent may be lost with the server: it is sent again, under its id.
                    if send_at <= now or losses != replies.losses:
                        losses = replies.losses
                        # Where not even this comes back, nothing was sent.
                        await self._once("hand over a write", "writer", self.client.ping)
                        is_sent = True
                        fields = command.fields(replies.name)
                        await self._once("hand over a write", "writer", lambda: self.client.xadd(command.stream, fields))
                        send_at, patience, pause = now + patience, 2 * patience, PAUSES[0]
                except Unreachable as error:
                    failure, send_at = error, 0.0
                    await asyncio.sleep(max(0.0, min(pause, deadline - time.monotonic())))
                    pause = min(2 * pause, 1.0)
                    continue
                await asyncio.wait({reply}, timeout=max(0.0, min(LOOK_EVERY, deadline - time.monotonic())))
                if reply.done():
                    return outcome(command.id, reply.result())
        if not is_sent:
            raise failure or Unreachable(f"failed to hand over a write within {timeout:g} s: nothing was sent")
        raise WriteUnknown(unanswered(command.id, timeout), command.id, failure)

    async def directory(self, dataset: Optional[str] = None) -> Directory:
        """What the workers tell of this namespace, at most ten seconds old."""
        known = self._known(dataset)
        if known is not None:
            return known
        key = directory_key(self.namespace)
        ask = self._call if self._directory is None else self._once
        try:
            return self._note_directory(await ask("read the directory", "reader", lambda: self.client.hgetall(key)))
        except Unreachable as error:
            return self._old_directory(dataset, error)

    async def close(self) -> None:
        """Closes the connections that were opened here; a client that was given stays open. No call is answered after it."""
        self._is_closed = True
        if self._replies is not None:
            await self._replies.close()
        if self._is_own:
            await self.client.aclose()

    async def __aenter__(self) -> "Cache":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self, asked: list[Asked], token: Optional[Token], wait: float) -> list[Reading]:
        deadline, pause = limit_of(wait, "wait"), PAUSE_MIN
        while True:
            self._check_open()
            try:
                readings: list[Reading] = []
                for page, keys in self._pages(asked, token):
                    ask = self._hashes if are_hashes(page) else self._strings
                    values = await self._call("read entries", "reader", lambda: ask(keys, token))
                    readings += self._readings(page, token, values)
                if token is None or all(one.is_fresh for one in readings) or deadline <= time.monotonic():
                    return readings
            except Unreachable:
                if deadline <= time.monotonic():
                    raise
            await asyncio.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(1.5 * pause, PAUSE_MAX)

    async def _strings(self, keys: Sequence[str], _token: Optional[Token]) -> Sequence[Any]:
        return await self.client.mget(keys)

    async def _hashes(self, keys: Sequence[str], token: Optional[Token]) -> Sequence[Any]:
        async with self.client.pipeline(transaction=token is not None) as pipeline:
            return hashes_of(await ask_hashes(pipeline, keys, token).execute(raise_on_error=False))

    async def _call(self, what: str, kind: str, command: Callable[[], Awaitable[T]]) -> T:
        for pause in PAUSES:
            try:
                return await self._once(what, kind, command)
            except Unreachable as error:
                if isinstance(error.__cause__, (TimeoutError, RedisTimeout)):
                    raise
                await asyncio.sleep(pause)
        return await self._once(what, kind, command)

    async def _once(self, what: str, kind: str, command: Callable[[], Awaitable[T]]) -> T:
        try:
            return await command()
        except (RedisError, OSError, asyncio.TimeoutError) as error:
            raise explain(error, what, self._where, kind) from error
