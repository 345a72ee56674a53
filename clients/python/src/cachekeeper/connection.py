"""Clients of Redis from URLs, and what their errors mean."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Optional
from urllib.parse import unquote, urlsplit

import redis.exceptions as redis_errors
from redis.backoff import NoBackoff

from .errors import CachekeeperError, InvalidInput, PermissionDenied, RedisRefused, Unreachable

PAUSES = (0.05, 0.1, 0.2)
"""Seconds before a command is tried again where the connection breaks or is refused."""

CONNECTIONS = 50
"""Connections of a cache, unless `max_connections` is given. Calls wait for a free one."""

SECONDS_MAX = 86_400.0
"""What `timeout` may be."""
LATE = 1.25
"""Seconds without an answer after which a server may be no master any more: longer than Redis is asked to wait for a reply."""
SENTINEL_PATIENCE = 0.5
"""Seconds for a sentinel at most: one that hangs is passed over, and asked last from then on."""

# Replies of a server that is about to be, or to find, a master: another attempt may succeed. Redis-py takes the word out of some.
_PASSING = ("LOADING", "MASTERDOWN", "READONLY", "UNBLOCKED", "TRYAGAIN", "CLUSTERDOWN")
_PASSING_ERRORS = (
    redis_errors.ReadOnlyError, redis_errors.MasterDownError, redis_errors.TryAgainError, redis_errors.ClusterDownError
)

# What only a node of a cluster says, to a client that does not expect it.
_OF_CLUSTER = ("MOVED ", "ASK ", "CROSSSLOT", "Keys in request don't hash to the same slot")


@dataclass(frozen=True)
class Sentinels:
    """The master that sentinels name."""

    nodes: list[tuple[str, int]]
    service: str
    settings: dict[str, Any]


def parse_sentinels(url: str) -> Optional[Sentinels]:
    """Reads `redis+sentinel://user:password@host:port,host:port/service/database`; none: it is another URL."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis+sentinel", "rediss+sentinel"):
        return None
    login, at, rest = rest.rpartition("@")
    hosts, _, path = rest.partition("/")
    service, _, database = path.partition("/")
    nodes = []
    for host in hosts.split(","):
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname, parts.port
        except ValueError:
            name, port = None, None
        if name is None:
            raise InvalidInput("a URL of sentinels is redis+sentinel://host:port,host:port/service/database")
        nodes.append((name, port or 26379))
    if not service or not (database or "0").isdecimal():
        raise InvalidInput("a URL of sentinels ends with the name of the service, and perhaps a database: /service/0")
    settings: dict[str, Any] = {"db": int(database or 0), "ssl": True} if scheme[5] == "s" else {"db": int(database or 0)}
    user, _, password = login.partition(":")
    if at and user:
        settings["username"] = unquote(user)
    if at and password:
        settings["password"] = unquote(password)
    return Sentinels(nodes, unquote(service), settings)


Watch = Callable[[Any], bool]
"""Whether this connection leads to a server that is given up."""


class _Limit(threading.local):
    until: Optional[float] = None
    watch: Optional[Watch] = None


_LIMIT = _Limit()


@contextmanager
def limit(until: float, watch: Optional[Watch] = None) -> Iterator[None]:
    """Until when this thread may wait for a server in what follows, and what is asked where an answer is late."""
    before, _LIMIT.until, _LIMIT.watch = (_LIMIT.until, _LIMIT.watch), until, watch
    try:
        yield
    finally:
        _LIMIT.until, _LIMIT.watch = before


def limited(kind: Any, is_sentinel: bool = False) -> Any:
    """Connections, for threads, that keep the limit of the call; those to sentinels keep their own too."""

    class Limited(kind):  # type: ignore[misc]
        def _connect(self) -> Any:
            mine: Any = self
            own = mine.socket_connect_timeout, mine.socket_timeout
            mine.socket_connect_timeout, mine.socket_timeout = self._left(own[0]), self._left(own[1])
            try:
                sock = super()._connect()
            finally:
                mine.socket_connect_timeout, mine.socket_timeout = own
            sock.settimeout(own[1])
            return sock

        def read_response(self, *args: Any, **options: Any) -> Any:
            sock = self._sock
            if _LIMIT.until is None or sock is None:
                return super().read_response(*args, **options)
            if _LIMIT.watch is not None:
                self._watch(_LIMIT.until, _LIMIT.watch)
            sock.settimeout(self._left(self.socket_timeout if is_sentinel else None))
            try:
                return super().read_response(*args, **options)
            finally:
                with suppress(OSError):
                    sock.settimeout(self.socket_timeout)

        def _watch(self, until: float, watch: Watch) -> None:
            while 0 < (left := until - time.monotonic()) and not self.can_read(min(LATE, left)):
                if watch(self):
                    self.disconnect()
                    raise redis_errors.ConnectionError("the sentinels name another master now")

        def _left(self, own: Optional[float]) -> Optional[float]:
            if _LIMIT.until is None:
                return own
            left = max(0.001, _LIMIT.until - time.monotonic())
            return left if own is None else min(own, left)

    return Limited


def guarded(sentinel: Any) -> Any:
    """Sentinels of which the one that answered is asked first. Redis-py's own may lose some where several ask at once."""

    class Guard(sentinel):  # type: ignore[misc]
        sentinels: list[Any]

        def discover_master(self, service_name: str) -> Any:
            asked = copy.copy(self)
            asked.sentinels = list(self.sentinels)
            found = super(Guard, asked).discover_master(service_name)
            if not hasattr(found, "__await__"):
                self.sentinels = asked.sentinels
                return found
            return self._noted(found, asked)

        async def _noted(self, found: Any, asked: Any) -> Any:
            address = await found
            self.sentinels = asked.sentinels
            return address

    return Guard


def build(
    redis: Any, sentinel: Any, retry: type, url: str, timeout: float, options: dict[str, Any], for_threads: bool
) -> tuple[Any, str]:
    """A client for a URL, of the classes given, and where it leads to, without secrets.

    Every wait of its connections has a limit. Attempts are counted by the caches, which notice each loss.
    """
    sentinel_options = options.pop("sentinel", {})
    if not isinstance(sentinel_options, dict):
        raise InvalidInput(f"`sentinel` is a dict of options of redis-py, not {sentinel_options!r}")
    once = {"retry": retry(NoBackoff(), 0)}
    settings = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **once, **options}
    sentinels, clients = parse_sentinels(url), []
    try:
        if sentinels is None:
            _check_path(url)
            client = redis.from_url(url, **settings)
            where = where_of(client)
        else:
            patience = min(SENTINEL_PATIENCE, timeout / (len(sentinels.nodes) + 1))
            ssl = {"ssl": True} if sentinels.settings.get("ssl") else {}
            own = {"socket_timeout": patience, "socket_connect_timeout": patience, **once, **ssl, **sentinel_options}
            guard = guarded(sentinel)(sentinels.nodes, sentinel_kwargs=own)
            clients = guard.sentinels
            client = guard.master_for(sentinels.service, redis_class=redis, **{**settings, **sentinels.settings})
            nodes = ", ".join(f"{host}:{port}" for host, port in sentinels.nodes)
            where = f"redis (service {sentinels.service} of the sentinels {nodes})"
        for one in (client, *clients):
            pool = one.connection_pool
            # Nothing is connected by this, but wrong options show.
            pool.connection_class(**pool.connection_kwargs)
            if for_threads:
                pool.connection_class = limited(pool.connection_class, one is not client)
    except (ValueError, TypeError, AttributeError, redis_errors.RedisError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"the URL of Redis, or an option for redis-py, cannot be used: {error}") from None
    return client, where


def _check_path(url: str) -> None:
    """Redis-py reads database 0 where the path is no number."""
    parts = urlsplit(url)
    database = parts.path.strip("/")
    if parts.scheme in ("redis", "rediss") and database and not (database.isascii() and database.isdecimal()):
        raise InvalidInput(f"the URL of Redis ends with the number of a database, such as /0, not with /{database}")


def timeout_of(seconds: Any) -> float:
    """A limit for commands, as it may be given."""
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 0 < seconds <= SECONDS_MAX:
        raise InvalidInput(f"timeout is a number of seconds above 0, at most {SECONDS_MAX:g}, not {seconds!r}")
    return float(seconds)


def connections_of(client: Any, given: Any) -> int:
    """How many connections a cache may use at once."""
    if given is None:
        of_pool = getattr(getattr(client, "connection_pool", None), "max_connections", None)
        return min(CONNECTIONS, of_pool) if isinstance(of_pool, int) and 0 < of_pool else CONNECTIONS
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InvalidInput(f"max_connections is a whole number above 0, not {given!r}")
    return given


def is_elsewhere(connection: Any, address: Any) -> bool:
    """Whether this connection leads to a master that is none any more: for seconds it may not know that itself."""
    return connection is not None and (connection.host, int(connection.port)) != (address[0], int(address[1]))


def is_passing(error: BaseException) -> bool:
    """Whether this is a reply of a server that is no master now: its connections are to be made anew."""
    return isinstance(error, _PASSING_ERRORS) or str(error).startswith(_PASSING)


def where_of(client: Any) -> str:
    """Where a client leads to, without secrets."""
    if not hasattr(client, "connection_pool"):
        return f"redis cluster at {', '.join(f'{host}:{port}' for host, port in client.map.seeds)}"
    settings = client.connection_pool.connection_kwargs
    if settings.get("path"):
        return f"redis at {settings['path']}"
    if settings.get("host"):
        return f"redis at {settings['host']}:{settings.get('port', 6379)}"
    return "redis"


def check_client(client: Any, other: type) -> None:
    """Values are bytes; a client that makes text of everything cannot read them. `other`: clients of the other kind."""
    settings = getattr(getattr(client, "connection_pool", None), "connection_kwargs", None)
    if isinstance(client, other) or settings is None:
        wanted = "redis.Redis" if other.__module__.startswith("redis.asyncio") else "redis.asyncio.Redis"
        raise InvalidInput(f"connect takes a URL, or a client of {wanted}, not {type(client).__module__}.{type(client).__name__}")
    if settings.get("decode_responses"):
        raise InvalidInput("this client decodes every response as text: give one without decode_responses=True")


def explain(error: Exception, what: str, where: str, kind: str) -> CachekeeperError:
    """What an error of the client means. `kind`: for whom `cachekeeper acl` has the missing right."""
    text = str(error)
    if type(error).__name__ == "MasterNotFoundError":
        text = f"{text.partition(' : ')[0]}: no sentinel answered, or none knows a master that is up"
    text = text if len(text) <= 300 else f"{text[:300]} …"
    if isinstance(error, (redis_errors.AuthenticationError, redis_errors.AuthorizationError)) or text.startswith(("NOAUTH", "WRONGPASS")):
        return PermissionDenied(f"{where} refused the login: {text}")
    if isinstance(error, redis_errors.NoPermissionError) or text.startswith("NOPERM"):
        # redis-py leaves the word out that people look for.
        text = text if text.startswith("NOPERM") else f"NOPERM {text}"
        return PermissionDenied(
            f"failed to {what}: this user of {where} lacks a right ({text}); see `cachekeeper acl --for {kind}`"
        )
    if isinstance(error, redis_errors.AskError) or text.startswith(_OF_CLUSTER):
        return RedisRefused(f"failed to {what}: {where} is a node of a cluster ({text}): give a URL that begins with redis+cluster://")
    if isinstance(error, (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError, TimeoutError)) or is_passing(error):
        return Unreachable(f"failed to {what}: {where} cannot be reached: {text or type(error).__name__}")
    return RedisRefused(f"failed to {what}: {where} answered: {text}")
