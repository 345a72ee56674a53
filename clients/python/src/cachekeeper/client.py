"""The cache for programs with threads, or without."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Optional, TypeVar, Union
from uuid import uuid4

import redis
import redis.asyncio as aio_redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from .base import (
    SLACK,
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
from .connection import PAUSES, Watch, build, check_client, connections_of, explain, is_elsewhere, is_passing, limit, timeout_of, where_of
from .directory import Directory, directory_key
from .errors import CachekeeperError, InvalidInput, Unreachable, WriteUnknown
from .events import Event, check_event, fields_of, message_of
from .nodes import Nodes, nodes_of_client, nodes_of_url
from .reading import PAUSE_MAX, PAUSE_MIN, Asked, Reading
from .tokens import Token
from .values import VALUE_BYTES_MAX
from .writes import BLOCK, BLOCK_SLACK, Command, Written, outcome, read_reply
from .writes import PAUSE_MAX as WRITE_PAUSE_MAX

T = TypeVar("T")


def connect(
    url: "str | redis.Redis | redis.RedisCluster",
    namespace: str,
    *,
    timeout: float = TIMEOUT,
    value_bytes_max: int = VALUE_BYTES_MAX,
    max_connections: Optional[int] = None,
    **options: Any,
) -> "Cache":
    """Connects, and reads what the workers of this namespace tell.

    `url` is `redis://`, `rediss://`, `unix://`, `redis+sentinel://host:port,host:port/service/database`,
    `redis+cluster://host:port,host:port`, or a client of redis-py (of a single Redis or of a cluster). `timeout` limits each
    command, in seconds. `options` go to redis-py (certificates, for example); `sentinel` among them is a dict for the
    connections to sentinels.
    """
    client: Any = url
    where, is_own = "", isinstance(url, str)
    if isinstance(url, str):
        client = nodes_of_url(url, timeout_of(timeout), options, True)
        if client is None:
            client, where = build(redis.Redis, Sentinel, Retry, url, timeout_of(timeout), options, True)
    elif options:
        raise InvalidInput(f"options for redis-py ({', '.join(options)}) are for a URL: a client has its own")
    cache = Cache(
        client, namespace, timeout=timeout, value_bytes_max=value_bytes_max, max_connections=max_connections, where=where
    )
    cache._is_own = is_own
    try:
        cache.directory()
    except (TypeError, ValueError, OverflowError) as error:
        cache.close()
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"an option for redis-py cannot be used: {error}") from error
    except BaseException:
        cache.close()
        raise
    return cache


class Cache(Base):
    """Reads entries, publishes events, hands over writes. Threads may share it."""

    def __init__(
        self,
        client: "redis.Redis | redis.RedisCluster | Nodes",
        namespace: str,
        *,
        timeout: float = TIMEOUT,
        value_bytes_max: int = VALUE_BYTES_MAX,
        max_connections: Optional[int] = None,
        where: str = "",
    ) -> None:
        """Asks nothing yet; `connect` does."""
        nodes = client if isinstance(client, Nodes) else nodes_of_client(client, True)
        if nodes is None:
            check_client(client, aio_redis.Redis)
        connections = connections_of(client, max_connections)
        where = where or where_of(nodes or client)
        super().__init__(client, namespace, where, value_bytes_max, timeout_of(timeout), connections, nodes)
        self._slots = threading.Semaphore(connections)

    def get(self, dataset: str, id: Any, *, token: Union[Token, str, None] = None, wait: float = 0.0) -> Any:
        """The value of one entry; `None`: there is no entry, or it is known that there is no row.

        With a token it is at least that fresh, after up to `wait` seconds, or `NotFresh` is raised: ask the database then.
        """
        return self.get_many(dataset, [id], token=token, wait=wait)[0]

    def get_many(
        self, dataset: str, ids: Iterable[Any], *, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> list[Any]:
        """The same for many, in their order, by one command (for each thousand); on a cluster by one round trip for each node."""
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
        until, wanted = limit_of(wait, "wait"), token_of(token)
        directory = self._told(dataset, read_limit(until, wait))
        return self._read(keys_of(directory, dataset, ids), wanted, until, wait)

    def read_key(
        self, key: str, *, dataset: Optional[str] = None, token: Union[Token, str, None] = None, wait: float = 0.0
    ) -> Reading:
        """The same by the key in full."""
        until, wanted = limit_of(wait, "wait"), token_of(token)
        directory = self._told(dataset, read_limit(until, wait))
        return self._read([key_of(directory, key, dataset)], wanted, until, wait)[0]

    def publish(self, event: Event, *, durable: bool = False) -> "int | str":
        """Tells the workers what changed, after it was committed.

        Over pub/sub it answers how many heard it, on a cluster at one node (0: nobody, it is lost); with `durable`, the id of its entry in the stream,
        where it waits for a worker.
        """
        checked = check_event(event)
        target = target_of(checked, self.directory(checked.get("dataset")), durable)
        if durable:
            fields, until = fields_of(checked), self._until()
            added = self._call("add an event", "publisher", lambda: self._xadd(target, fields, until), until)
            return added.decode() if isinstance(added, bytes) else str(added)
        message, until = message_of(checked), self._until()
        heard = self._call("publish an event", "publisher", lambda: self._publish(target, message, until), until)
        if heard == 0 and self._look(self._until()) is not None:
            # On a server that is no master any more nobody listens.
            until = self._until()
            heard = self._call("publish an event", "publisher", lambda: self._publish(target, message, until), until)
        return int(heard)

    def write(
        self, dataset: str, params: Mapping[str, Any], *, id: Optional[str] = None, timeout: float = 10.0
    ) -> Written:
        """Hands over a write of the dataset's statement, and waits until it is carried out.

        A write that is said again under its `id` is not carried out again, and gets the same answer. Raises `WriteRejected`,
        `Unreachable` (nothing was handed over) or `WriteUnknown` (say it again with the same id).
        """
        deadline = limit_of(timeout, "timeout")
        self._check_writable()
        directory = self._told(dataset, deadline)
        command = Command.new(directory, dataset, params, id)
        list_name = f"{directory.reply_prefix}{uuid4()}"
        is_sent, failure, pause, watch = False, None, PAUSES[0], partial(self._has_moved, deadline)
        held: Optional[_Held] = None
        try:
            while time.monotonic() < deadline and not self._is_closed:
                try:
                    if held is None:
                        # It is handed over and waited for on one connection: where that is lost, what was sent may be lost with
                        # the server, and it is sent again, under its id.
                        what, until = "hand over a write", self._until(deadline)
                        held = self._ask(what, "writer", lambda: _Held(self.client), until)
                        # Where not even this comes back, nothing was sent.
                        self._ask(what, "writer", held.client.ping, until, watch)
                        is_sent, fields = True, command.fields(list_name)
                        add = partial(held.client.xadd, command.stream, fields)
                        self._ask(what, "writer", add, self._until(deadline), watch)
                        pause = PAUSES[0]
                    answer = self._wait(held.client, list_name, deadline)
                except Unreachable as error:
                    _lost(held)
                    failure, held = error, None
                    time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
                    pause = min(2 * pause, WRITE_PAUSE_MAX)
                    continue
                if answer is None and watch(held.client.connection):
                    _lost(held)
                    held = None
                elif answer is not None:
                    reply = read_reply(answer[1])
                    if reply.get("id") == command.id:
                        return outcome(command.id, reply)
        finally:
            if held is not None:
                held.release()
        if not is_sent:
            raise failure or Unreachable(f"failed to hand over a write within {timeout:g} s: nothing was sent")
        raise WriteUnknown(unanswered(command.id, timeout, self._is_closed), command.id, failure)

    def directory(self, dataset: Optional[str] = None) -> Directory:
        """What the workers tell of this namespace, at most ten seconds old."""
        return self._told(dataset, None)

    def close(self) -> None:
        """Closes the connections that were opened here; a client that was given stays open. No call is answered after it."""
        self._is_closed = True
        if self._nodes is not None:
            self._nodes.close()
        elif self._is_own:
            self.client.close()

    def __enter__(self) -> "Cache":
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _told(self, dataset: Optional[str], deadline: Optional[float]) -> Directory:
        known = self._known(dataset)
        if known is not None:
            return known
        ask = self._call if self._directory is None else self._once
        what, until = "read the directory", self._until(deadline)
        try:
            return self._note_directory(ask(what, "reader", lambda: self._fields(until), until))
        except Unreachable as error:
            return self._old_directory(dataset, error)

    def _read(self, asked: list[Asked], token: Optional[Token], deadline: float, wait: float) -> list[Reading]:
        pause, limit, began = PAUSE_MIN, read_limit(deadline, wait), time.monotonic()
        while True:
            self._check_open()
            try:
                readings: list[Reading] = []
                for page in pages(asked):
                    until = self._until(limit)
                    readings += self._call("read entries", "reader", lambda: self._page(page, token, until), until)
                if token is None or all(one.is_fresh for one in readings) or deadline <= time.monotonic():
                    return readings
            except Unreachable:
                if deadline <= time.monotonic():
                    raise
            if self._is_look_due(began):
                # A server that is no master any more becomes no fresher.
                self._look(self._until(limit))
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(1.5 * pause, PAUSE_MAX)

    def _has_moved(self, deadline: float, connection: Any) -> bool:
        address = self._look(self._until(deadline))
        return address is not None and is_elsewhere(connection, address)

    def _look(self, until: float) -> Any:
        """The master that sentinels name; none: they do not answer, or there are none. Connections to another one that nobody uses
        are closed by this. On a cluster the map is fetched again by what is asked next."""
        if self._nodes is not None:
            self._nodes.map.is_stale = True
            return None
        ask = getattr(self.client.connection_pool, "get_master_address", None)
        try:
            return None if ask is None else self._ask("ask the sentinels", "reader", ask, until)
        except CachekeeperError:
            return None

    def _wait(self, held: Any, list_name: str, deadline: float) -> Any:
        left = max(0.0, deadline - time.monotonic())
        block = max(0.01, min(BLOCK, left))
        if not self._is_own and held.connection is not None and held.connection.socket_timeout:
            # A client that was given has a limit of its own for each command.
            block = min(block, held.connection.socket_timeout / 2)
        patience = min(block + max(BLOCK_SLACK, self._timeout), left + SLACK)
        until, watch = time.monotonic() + patience, partial(self._has_moved, deadline)
        return self._ask("wait for a reply", "writer", lambda: held.blpop([list_name], block), until, watch)

    def _fields(self, until: float) -> Any:
        if self._nodes is not None and self._on_cluster is not None:
            return self._nodes.run(self._on_cluster.directory(), until)
        return self.client.hgetall(directory_key(self.namespace))

    def _page(self, page: Sequence[Asked], token: Optional[Token], until: float) -> list[Reading]:
        if self._nodes is not None and self._on_cluster is not None:
            readings: list[Reading] = self._nodes.run(self._on_cluster.read(page, token), until)
            return readings
        keys = self._keys(page, token)
        return self._readings(page, token, self._hashes(keys, token) if are_hashes(page) else self._strings(keys, token))

    def _xadd(self, stream: str, fields: Mapping[str, str], until: float) -> Any:
        if self._nodes is not None and self._on_cluster is not None:
            return self._nodes.run(self._on_cluster.add(stream, fields), until)
        return self.client.xadd(stream, fields)

    def _publish(self, channel: str, message: bytes, until: float) -> Any:
        if self._nodes is not None and self._on_cluster is not None:
            return self._nodes.run(self._on_cluster.publish(channel, message), until)
        return self.client.publish(channel, message)

    def _strings(self, keys: Sequence[str], _token: Optional[Token]) -> Sequence[Any]:
        values: Sequence[Any] = self.client.mget(keys)
        return values

    def _hashes(self, keys: Sequence[str], token: Optional[Token]) -> Sequence[Any]:
        with self.client.pipeline(transaction=token is not None) as pipeline:
            return hashes_of(ask_hashes(pipeline, keys, token).execute(raise_on_error=False))

    def _call(self, what: str, kind: str, command: Callable[[], T], until: float) -> T:
        for pause in PAUSES:
            try:
                return self._once(what, kind, command, until)
            except Unreachable as error:
                if until <= time.monotonic() + pause or isinstance(error.__cause__, (TimeoutError, redis.TimeoutError)):
                    raise
                time.sleep(pause)
        return self._once(what, kind, command, until)

    def _once(self, what: str, kind: str, command: Callable[[], T], until: float) -> T:
        if not self._slots.acquire(timeout=max(0.0, until - time.monotonic())):
            raise self._busy(what)
        try:
            return self._ask(what, kind, command, until)
        except Unreachable as error:
            if self._nodes is None and error.__cause__ is not None and is_passing(error.__cause__):
                with suppress(TypeError):
                    self.client.connection_pool.disconnect(inuse_connections=False)
            raise
        finally:
            self._slots.release()

    def _ask(self, what: str, kind: str, command: Callable[[], T], until: float, watch: Optional[Watch] = None) -> T:
        try:
            with limit(until, watch):
                return command()
        except (RedisError, OSError) as error:
            raise explain(error, what, self._where, kind) from error


def unanswered(id: str, timeout: float, is_closed: bool) -> str:
    """That no reply came."""
    until = "before this cache was closed" if is_closed else f"within {timeout:g} s"
    return f"no reply to the write {id} {until}: it may have been carried out. Say it again with the same id"


class _Held:
    """The connection of a write, as a client. It is not made anew by itself, as a client that was given would do: its loss shows."""

    def __init__(self, client: Any) -> None:
        self.client = client.client()
        self._own = self.client.connection.retry
        self.client.connection.retry = Retry(NoBackoff(), 0)

    def release(self) -> None:
        """Gives the connection back."""
        self.client.connection.retry = self._own
        self.client.close()


def _lost(held: Optional[_Held]) -> None:
    """A connection that may lead to no master is made anew by whoever has it next."""
    if held is not None:
        held.client.connection.disconnect()
        held.release()
