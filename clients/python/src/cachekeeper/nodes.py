"""Connections to the nodes of a cluster: plain clients of redis-py, one for each node, which take the steps of `on_cluster`."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Optional, TypeVar
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio as aio_redis
from redis.asyncio.cluster import RedisCluster as AioRedisCluster
from redis.asyncio.retry import Retry as AioRetry
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import RedisError
from redis.retry import Retry

from .cluster import Address, ClusterMap
from .connection import limit, limited
from .errors import InvalidInput
from .on_cluster import Pause, Request, Steps

T = TypeVar("T")

PORT = 6379
_FORM = "a URL of a cluster is redis+cluster://user:password@host:port,host:port"


class Nodes:
    """The nodes of a cluster, for threads. It stands where caches have a client of redis-py."""

    def __init__(self, make: Callable[[Address], Any], seeds: list[Address], remap: Any = None) -> None:
        self.map = ClusterMap(seeds, remap)
        self._make, self._clients, self._lock = make, dict[Address, Any](), threading.Lock()

    def run(self, steps: Steps[T], until: float) -> T:
        """Takes the steps of a call, whose commands end at this moment."""
        answers: Any = None
        while True:
            try:
                step = steps.send(answers)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Pause):
                time.sleep(max(0.0, min(step.seconds, until - time.monotonic())))
                answers = None
            else:
                answers = [self._ask(one, until) for one in step]

    def close(self) -> None:
        """Closes all connections."""
        for client in self._clients.values():
            client.connection_pool.disconnect()

    def _ask(self, request: Request, until: float) -> Any:
        try:
            with limit(_end(request, until)), self._client(request.node).pipeline(transaction=False) as pipeline:
                for command in request.commands:
                    pipeline.execute_command(*command)
                return pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            return error

    def _client(self, node: Address) -> Any:
        with self._lock:
            for other in [one for one in self._clients if one != node and not self.map.is_known(one)]:
                self._clients.pop(other).connection_pool.disconnect(inuse_connections=False)
            if node not in self._clients:
                self._clients[node] = self._make(node)
            return self._clients[node]


class AioNodes:
    """The same for asyncio."""

    def __init__(self, make: Callable[[Address], Any], seeds: list[Address], remap: Any = None) -> None:
        self.map = ClusterMap(seeds, remap)
        self._make, self._clients = make, dict[Address, Any]()

    async def run(self, steps: Steps[T], until: float) -> T:
        """Takes the steps of a call, whose commands end at this moment."""
        answers: Any = None
        while True:
            try:
                step = steps.send(answers)
            except StopIteration as end:
                result: T = end.value
                return result
            if isinstance(step, Pause):
                await asyncio.sleep(max(0.0, min(step.seconds, until - time.monotonic())))
                answers = None
            else:
                answers = await asyncio.gather(*[self._ask(one, until) for one in step])

    async def aclose(self) -> None:
        """Closes all connections."""
        for client in self._clients.values():
            await client.connection_pool.disconnect()

    async def _ask(self, request: Request, until: float) -> Any:
        try:
            return await within(self._send(request), _end(request, until) - time.monotonic())
        except (RedisError, OSError, asyncio.TimeoutError) as error:
            return error

    async def _send(self, request: Request) -> Any:
        client = await self._client(request.node)
        async with client.pipeline(transaction=False) as pipeline:
            for command in request.commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    async def _client(self, node: Address) -> Any:
        for other in [one for one in self._clients if one != node and not self.map.is_known(one)]:
            await self._clients.pop(other).connection_pool.disconnect(inuse_connections=False)
        if node not in self._clients:
            self._clients[node] = self._make(node)
        return self._clients[node]


def nodes_of_url(url: str, timeout: float, options: dict[str, Any], for_threads: bool) -> "Optional[Nodes | AioNodes]":
    """The nodes of `redis+cluster://user:password@host:port,host:port`; none: it is another URL. Every wait has a limit."""
    found = parse_nodes(url)
    if found is None:
        return None
    (seeds, settings), remap = found, options.pop("address_remap", None)
    kind, retry = (redis.Redis, Retry) if for_threads else (aio_redis.Redis, AioRetry)
    own = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry(NoBackoff(), 0)}
    settings = {**own, **options, **settings}

    def make(node: Address) -> Any:
        client = kind(host=node[0], port=node[1], **settings)
        return _checked(client, for_threads)

    try:
        # Nothing is connected by this, but wrong options show.
        make(seeds[0])
    except (ValueError, TypeError, AttributeError, RedisError) as error:
        raise InvalidInput(f"the URL of Redis, or an option for redis-py, cannot be used: {error}") from None
    return (Nodes if for_threads else AioNodes)(make, seeds, remap)


def nodes_of_client(client: Any, for_threads: bool) -> "Optional[Nodes | AioNodes]":
    """The nodes of a client of a cluster, with its settings, on connections of their own; none: it is another client."""
    if not isinstance(client, (RedisCluster, AioRedisCluster)):
        return None
    if isinstance(client, AioRedisCluster) is for_threads:
        wanted = "redis.cluster.RedisCluster" if for_threads else "redis.asyncio.cluster.RedisCluster"
        raise InvalidInput(f"connect takes a URL, or a client of {wanted}, not {type(client).__module__}.{type(client).__name__}")
    if client.read_from_replicas or getattr(client, "load_balancing_strategy", None) is not None:
        raise InvalidInput("this client reads from replicas, of which nobody knows how fresh they are: give one that does not")
    manager = client.nodes_manager
    known: list[Any] = [*manager.startup_nodes.values(), *client.get_nodes()]
    kind, settings = _settings_of(known, for_threads)
    if settings.get("decode_responses"):
        raise InvalidInput("this client decodes every response as text: give one without decode_responses=True")
    pool: Any = redis.ConnectionPool if for_threads else aio_redis.ConnectionPool
    whole: Any = redis.Redis if for_threads else aio_redis.Redis
    settings["retry"] = Retry(NoBackoff(), 0) if for_threads else AioRetry(NoBackoff(), 0)

    def make(node: Address) -> Any:
        own = {**settings, "host": node[0], "port": node[1]}
        return _checked(whole(connection_pool=pool(connection_class=kind, **own)), for_threads)

    remap = getattr(manager, "address_remap", None)
    return (Nodes if for_threads else AioNodes)(make, [(one.host, int(one.port)) for one in known], remap)


def parse_nodes(url: str) -> Optional[tuple[list[Address], dict[str, Any]]]:
    """Nodes of a URL, and the settings of their connections."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis+cluster", "rediss+cluster"):
        return None
    authority, _, path = rest.partition("/")
    login, at, hosts = authority.rpartition("@")
    if path not in ("", "0"):
        raise InvalidInput("a cluster has database 0 alone: the URL ends behind its hosts")
    nodes: list[Address] = []
    for host in hosts.split(","):
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname, parts.port
        except ValueError:
            name, port = None, None
        if name is None:
            raise InvalidInput(_FORM)
        nodes.append((name, port or PORT))
    settings: dict[str, Any] = {"ssl": True} if scheme == "rediss+cluster" else {}
    user, _, password = login.partition(":")
    if at and user:
        settings["username"] = unquote(user)
    if at and password:
        settings["password"] = unquote(password)
    return nodes, settings


async def within(call: Coroutine[Any, Any, T], seconds: float) -> T:
    """What this answers in so many seconds."""
    if sys.version_info < (3, 11):
        return await asyncio.wait_for(call, seconds)
    async with asyncio.timeout(seconds):
        return await call


def _end(request: Request, until: float) -> float:
    return until if request.patience is None else min(until, time.monotonic() + request.patience)


def _checked(client: Any, for_threads: bool) -> Any:
    pool = client.connection_pool
    pool.connection_class(**pool.connection_kwargs)
    if for_threads:
        pool.connection_class = limited(pool.connection_class)
    return client


def _settings_of(known: list[Any], for_threads: bool) -> tuple[Any, dict[str, Any]]:
    """The class of connections, and what they are made with."""
    for node in known:
        if not for_threads:
            return node.connection_class, dict(node.connection_kwargs)
        if node.redis_connection is not None:
            pool = node.redis_connection.connection_pool
            return pool.connection_class, dict(pool.connection_kwargs)
    raise InvalidInput("this client of a cluster knows no node")
