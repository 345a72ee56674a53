"""The cache for asyncio. The same as `cachekeeper`, with `await`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Optional, TypeVar, Union

import redis as sync_redis
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from .base import (
    TIMEOUT,
    Base,
    are_hashes,
    ask_hashes,
    hashes_of,
    key_of,
    keys_of,
    limit_of,
    pages,
    read_limit,
    target_of,
    token_of,
    value_of,
)
from .client import unanswered
from .connection import PAUSES, build, check_client, connections_of, explain, is_passing, timeout_of, where_of
from .directory import Directory, directory_key
from .errors import CachekeeperError, InvalidInput, Unreachable, WriteUnknown
from .events import Event, check_event, fields_of, message_of
from .nodes import AioNodes, nodes_of_client, nodes_of_url, within
from .reading import PAUSE_MAX, PAUSE_MIN, Asked, Reading
from .replies import Place, Replies
from .tokens import TOKEN_SQL, Token, token_of_row
from .values import VALUE_BYTES_MAX
from .writes import PAUSE_MAX as WRITE_PAUSE_MAX
from .writes import Command, Written, outcome

T = TypeVar("T")

LOOK_EVERY = 0.25
"""Seconds between two looks of a waiting write at where replies are waited for."""


def connect(
    url: "str | redis.Redis | redis.RedisCluster",
    namespace: str,
    *,
    timeout: float = TIMEOUT,
    value_bytes_max: int = VALUE_BYTES_MAX,
    max_connections: Optional[int] = None,
    **options: Any,
) -> "Connecting":
    """As `cachekeeper.connect`; a client is one of `redis.asyncio`. `await connect(…)`, or `async with connect(…) as cache`."""
    return Connecting(_connect(url, namespace, timeout, value_bytes_max, max_connections, options))


class Connecting(Coroutine[Any, Any, "Cache"]):
    """A cache that is awaited, or entered."""

    def __init__(self, begun: "Coroutine[Any, Any, Cache]") -> None:
        self._begun = begun
        self._cache: Optional[Cache] = None

    def __await__(self) -> "Generator[Any, Any, Cache]":
        return self._begun.__await__()

    def send(self, value: Any) -> Any:
        return self._begun.send(value)

    def throw(self, *error: Any) -> Any:
        return self._begun.throw(*error)

    def close(self) -> None:
        self._begun.close()

    async def __aenter__(self) -> "Cache":
        self._cache = await self._begun
        return self._cache

    async def __aexit__(self, *_: object) -> None:
        if self._cache is not None:
            await self._cache.close()


async def _connect(
    url: "str | redis.Redis | redis.RedisCluster",
    namespace: str,
    timeout: float,
    value_bytes_max: int,
    max_connections: Optional[int],
    options: dict[str, Any],
) -> "Cache":
    client: Any = url
    where, is_own = "", isinstance(url, str)
    if isinstance(url, str):
        client = nodes_of_url(url, timeout_of(timeout), options, False)
        if client is None:
            client, where = build(redis.Redis, Sentinel, Retry, url, timeout_of(timeout), options, False)
    elif options:
        raise InvalidInput(f"options for redis-py ({', '.join(options)}) are for a URL: a client has its own")
    cache = Cache(
        client, namespace, timeout=timeout, value_bytes_max=value_bytes_max, max_connections=max_connections, where=where
    )
    cache._is_own = is_own
    try:
        await cache.directory()
    except (TypeError, ValueError, OverflowError) as error:
        await cache.close()
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"an option for redis-py cannot be used: {error}") from error
    except BaseException:
        await cache.close()
        raise
    return cache


async def take_token(connection: Any) -> Token:
    """Takes a token of this moment, after your commit, through a connection of psycopg (async) or asyncpg."""
    if not hasattr(connection, "fetchrow") and not hasattr(connection, "execute"):
        raise InvalidInput(f"a token is taken through a connection of psycopg or asyncpg, not {type(connection).__name__}")
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
        self,
        client: "redis.Redis | redis.RedisCluster | AioNodes",
        namespace: str,
        *,
        timeout: float = TIMEOUT,
        value_bytes_max: int = VALUE_BYTES_MAX,
        max_connections: Optional[int] = None,
        where: str = "",
    ) -> None:
        """Asks nothing yet; `connect` does."""
        nodes = client if isinstance(client, AioNodes) else nodes_of_client(client, False)
        if nodes is None:
            check_client(client, sync_redis.Redis)
        connections = connections_of(client, max_connections)
        where = where or where_of(nodes or client)
        super().__init__(client, namespace, where, value_bytes_max, timeout_of(timeout), connections, nodes)
        self._slots = asyncio.Semaphore(connections)
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._replies: Optional[Replies] = None

    async def get(self, dataset: str, id: Any, *, token: Union[Token, str, None] = None, wait: float = 0.0) -> Any:
        """The value of one entry; `None`: there is no entry, or it is known that there is no row.

        With a token it is at least that fresh, after up to `wait` seconds, or `NotFresh` is raised: ask the database then.
        """
        return (await self.get_many(dataset, [id], token=token, wait=wait))[0]

    async def get_many(
        self, dataset: str, ids: Iterable[Any], *, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> list[Any]:
        """The same for many, in their order, by one command (for each thousand); on a cluster by one round trip for each node."""
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
        until, wanted = limit_of(wait, "wait"), token_of(token)
        directory = await self._told(dataset, read_limit(until, wait))
        return await self._read(keys_of(directory, dataset, ids), wanted, until, wait)

    async def read_key(
        self, key: str, *, dataset: Optional[str] = None, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> Reading:
        """The same by the key in full."""
        until, wanted = limit_of(wait, "wait"), token_of(token)
        directory = await self._told(dataset, read_limit(until, wait))
        return (await self._read([key_of(directory, key, dataset)], wanted, until, wait))[0]

    async def publish(self, event: Event, *, durable: bool = False) -> "int | str":
        """Tells the workers what changed, after it was committed.

        Over pub/sub it answers how many heard it, on a cluster at one node (0: nobody, it is lost); with `durable`, the id of its entry in the stream,
        where it waits for a worker.
        """
        checked = check_event(event)
        target = target_of(checked, await self.directory(checked.get("dataset")), durable)
        if durable:
            fields, until = fields_of(checked), self._until()
            added = await self._call("add an event", "publisher", lambda: self._xadd(target, fields, until), until)
            return added.decode() if isinstance(added, bytes) else str(added)
        message, until = message_of(checked), self._until()
        heard = await self._call("publish an event", "publisher", lambda: self._publish(target, message, until), until)
        if heard == 0 and await self._look(self._until()) is not None:
            # On a server that is no master any more nobody listens.
            until = self._until()
            heard = await self._call("publish an event", "publisher", lambda: self._publish(target, message, until), until)
        return int(heard)

    async def write(
        self, dataset: str, params: Mapping[str, Any], *, id: Optional[str] = None, timeout: float = 10.0
    ) -> Written:
        """Hands over a write of the dataset's statement, and waits until it is carried out.

        A write that is said again under its `id` is not carried out again, and gets the same answer. Raises `WriteRejected`,
        `Unreachable` (nothing was handed over) or `WriteUnknown` (say it again with the same id). All writes of a cache wait on
        one connection.
        """
        deadline = limit_of(timeout, "timeout")
        self._check_writable()
        directory = await self._told(dataset, deadline)
        command = Command.new(directory, dataset, params, id)
        if self._replies is None:
            self._replies = Replies(self._explain, self.client, directory.reply_prefix, self._timeout)
        hand_over = _HandOver(self, command, self._replies, deadline)
        with self._replies.expect(command.id) as reply:
            await hand_over.until(reply)
            if reply.done():
                return outcome(command.id, reply.result())
        if not hand_over.is_sent:
            raise hand_over.failure or Unreachable(f"failed to hand over a write within {timeout:g} s: nothing was sent")
        raise WriteUnknown(unanswered(command.id, timeout, self._is_closed), command.id, hand_over.failure)

    async def directory(self, dataset: Optional[str] = None) -> Directory:
        """What the workers tell of this namespace, at most ten seconds old."""
        return await self._told(dataset, None)

    async def close(self) -> None:
        """Closes the connections that were opened here; a client that was given stays open. No call is answered after it."""
        self._is_closed = True
        if self._replies is not None:
            await self._replies.close()
        if self._nodes is not None:
            await self._nodes.aclose()
        elif self._is_own:
            await self.client.aclose()

    async def __aenter__(self) -> "Cache":
        self._check_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _told(self, dataset: Optional[str], deadline: Optional[float]) -> Directory:
        known = self._known(dataset)
        if known is not None:
            return known
        ask = self._call if self._directory is None else self._once
        what, until = "read the directory", self._until(deadline)
        try:
            return self._note_directory(await ask(what, "reader", lambda: self._fields(until), until))
        except Unreachable as error:
            return self._old_directory(dataset, error)

    async def _read(self, asked: list[Asked], token: Optional[Token], deadline: float, wait: float) -> list[Reading]:
        pause, limit, began = PAUSE_MIN, read_limit(deadline, wait), time.monotonic()
        while True:
            self._check_open()
            try:
                readings: list[Reading] = []
                for page in pages(asked):
                    until = self._until(limit)
                    readings += await self._call("read entries", "reader", lambda: self._page(page, token, until), until)
                if token is None or all(one.is_fresh for one in readings) or deadline <= time.monotonic():
                    return readings
            except Unreachable:
                if deadline <= time.monotonic():
                    raise
            if self._is_look_due(began):
                # A server that is no master any more becomes no fresher.
                await self._look(self._until(limit))
            await asyncio.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(1.5 * pause, PAUSE_MAX)

    async def _look(self, until: float) -> Any:
        """The master that sentinels name; none: they do not answer, or there are none. Connections to another one that nobody uses
        are closed by this. On a cluster the map is fetched again by what is asked next."""
        if self._nodes is not None:
            self._nodes.map.is_stale = True
            return None
        ask = getattr(self.client.connection_pool, "get_master_address", None)
        try:
            return None if ask is None else await within(ask(), until - time.monotonic())
        except (RedisError, OSError, asyncio.TimeoutError):
            return None

    async def _fields(self, until: float) -> Any:
        if self._nodes is not None and self._on_cluster is not None:
            return await self._nodes.run(self._on_cluster.directory(), until)
        return await self.client.hgetall(directory_key(self.namespace))

    async def _page(self, page: Sequence[Asked], token: Optional[Token], until: float) -> list[Reading]:
        if self._nodes is not None and self._on_cluster is not None:
            readings: list[Reading] = await self._nodes.run(self._on_cluster.read(page, token), until)
            return readings
        keys = self._keys(page, token)
        values = await (self._hashes(keys, token) if are_hashes(page) else self._strings(keys, token))
        return self._readings(page, token, values)

    async def _xadd(self, stream: str, fields: Mapping[str, str], until: float) -> Any:
        if self._nodes is not None and self._on_cluster is not None:
            return await self._nodes.run(self._on_cluster.add(stream, fields), until)
        return await self.client.xadd(stream, fields)

    async def _publish(self, channel: str, message: bytes, until: float) -> Any:
        if self._nodes is not None and self._on_cluster is not None:
            return await self._nodes.run(self._on_cluster.publish(channel, message), until)
        return await self.client.publish(channel, message)

    async def _strings(self, keys: Sequence[str], _token: Optional[Token]) -> Sequence[Any]:
        values: Sequence[Any] = await self.client.mget(keys)
        return values

    async def _hashes(self, keys: Sequence[str], token: Optional[Token]) -> Sequence[Any]:
        async with self.client.pipeline(transaction=token is not None) as pipeline:
            return hashes_of(await ask_hashes(pipeline, keys, token).execute(raise_on_error=False))

    async def _call(self, what: str, kind: str, command: Callable[[], Awaitable[T]], until: float) -> T:
        for pause in PAUSES:
            try:
                return await self._once(what, kind, command, until)
            except Unreachable as error:
                if until <= time.monotonic() + pause or isinstance(error.__cause__, (asyncio.TimeoutError, TimeoutError, RedisTimeout)):
                    raise
                await asyncio.sleep(pause)
        return await self._once(what, kind, command, until)

    async def _once(self, what: str, kind: str, command: Callable[[], Awaitable[T]], until: float) -> T:
        is_free = False

        async def ask() -> T:
            nonlocal is_free
            async with self._slots:
                is_free = True
                return await command()

        try:
            return await within(ask(), until - time.monotonic())
        except (RedisError, OSError, asyncio.TimeoutError) as error:
            if self._nodes is None and is_passing(error):
                await self.client.connection_pool.disconnect(inuse_connections=False)
            raise explain(error, what, self._where, kind) if is_free else self._busy(what) from error

    def _explain(self, error: Exception) -> CachekeeperError:
        return explain(error, "wait for a reply", self._where, "writer")

    def _check_open(self) -> None:
        super()._check_open()
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise InvalidInput("this cache belongs to another event loop: make one for each")
        self._loop = loop


class _HandOver:
    """One write, which is sent again wherever what was sent may be lost."""

    def __init__(self, cache: Cache, command: Command, replies: Replies, deadline: float) -> None:
        self.is_sent = False
        self.failure: Optional[Unreachable] = None
        self._cache, self._command, self._replies, self._deadline = cache, command, replies, deadline
        self._sent: Optional[Place] = None
        self._where: Callable[[], Optional[Place]] = _nowhere

    async def until(self, reply: "asyncio.Future[Any]") -> None:
        """Sends until the reply comes, or the time is over."""
        due, pause = time.monotonic(), PAUSES[0]
        while (now := time.monotonic()) < self._deadline and not self._cache._is_closed and not reply.done():
            is_lost = self._replies.is_lost(self._sent)
            if is_lost and due <= now:
                due, pause = now + pause, min(2 * pause, WRITE_PAUSE_MAX)
                await self._send(reply)
                continue
            look = min(LOOK_EVERY, due - now) if is_lost else LOOK_EVERY
            await asyncio.wait({reply}, timeout=max(0.0, min(look, self._deadline - now)))

    async def _send(self, reply: "asyncio.Future[Any]") -> None:
        call = self._cache._once("hand over a write", "writer", self._add, self._cache._until(self._deadline))
        sending, self._sent, self._where = asyncio.ensure_future(call), None, _nowhere
        try:
            # A server that hangs is not waited for where replies are waited for elsewhere.
            while not sending.done() and not reply.done():
                await asyncio.wait({sending, reply}, timeout=LOOK_EVERY)
                where = self._where()
                if where is not None and self._replies.is_lost(where):
                    break
            self._sent = sending.result() if sending.done() else None
        except Unreachable as error:
            self.failure = error
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _add(self) -> Optional[Place]:
        async with self._replies.sender() as (held, self._where):
            # Where not even this comes back, nothing was sent.
            await held.ping()
            self.is_sent = True
            await held.xadd(self._command.stream, self._command.fields(self._replies.name))
            return self._where()


def _nowhere() -> Optional[Place]:
    return None
