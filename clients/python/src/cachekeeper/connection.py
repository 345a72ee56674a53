"""Clients of Redis from URLs, and what their errors mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional
from urllib.parse import unquote, urlsplit

import redis.exceptions as broken
from redis.backoff import NoBackoff

from .errors import CachekeeperError, InvalidInput, PermissionDenied, RedisRefused, Unreachable

PAUSES = (0.05, 0.1, 0.2)
"""Seconds before a command is tried again where the connection breaks or is refused."""

# Replies of a server that is about to be, or to find, a master: another attempt may succeed.
_PASSING = ("LOADING", "MASTERDOWN", "READONLY", "UNBLOCKED", "TRYAGAIN", "CLUSTERDOWN")


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
        parts = urlsplit(f"//{host}")
        if parts.hostname is None:
            raise InvalidInput("a URL of sentinels is redis+sentinel://host:port,host:port/service/database")
        nodes.append((parts.hostname, parts.port or 26379))
    if not service or not (database or "0").isdecimal():
        raise InvalidInput("a URL of sentinels ends with the name of the service, and perhaps a database: /service/0")
    settings: dict[str, Any] = {"db": int(database or 0), "ssl": True} if scheme[5] == "s" else {"db": int(database or 0)}
    user, _, password = login.partition(":")
    if at and user:
        settings["username"] = unquote(user)
    if at and password:
        settings["password"] = unquote(password)
    return Sentinels(nodes, unquote(service), settings)


def settings_of(timeout: float, retry: type, more: dict[str, Any]) -> dict[str, Any]:
    """How connections are made: every wait has a limit. Attempts are counted by the caches, which notice each loss."""
    settings = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": retry(NoBackoff(), 0)}
    return {**settings, **more}


def build(redis: Any, sentinel: Any, retry: type, url: str, timeout: float, options: dict[str, Any]) -> tuple[Any, str]:
    """A client for a URL, of the classes given, and where it leads to, without secrets."""
    sentinel_options = options.pop("sentinel", {})
    settings = settings_of(timeout, retry, options)
    sentinels = parse_sentinels(url)
    if sentinels is None:
        try:
            client = redis.from_url(url, **settings)
        except ValueError as error:
            raise InvalidInput(f"the URL of Redis cannot be used: {error}") from None
        return client, where_of(client)
    ssl = {"ssl": True} if sentinels.settings.get("ssl") else {}
    own = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **ssl, **sentinel_options}
    guard = sentinel(sentinels.nodes, sentinel_kwargs=own)
    client = guard.master_for(sentinels.service, redis_class=redis, **{**settings, **sentinels.settings})
    nodes = ", ".join(f"{host}:{port}" for host, port in sentinels.nodes)
    return client, f"redis (service {sentinels.service} of the sentinels {nodes})"


def where_of(client: Any) -> str:
    """Where a client leads to, without secrets."""
    settings = client.connection_pool.connection_kwargs
    if settings.get("path"):
        return f"redis at {settings['path']}"
    if settings.get("host"):
        return f"redis at {settings['host']}:{settings.get('port', 6379)}"
    return "redis"


def check_client(client: Any) -> None:
    """Values are bytes; a client that makes text of everything cannot read them."""
    if client.connection_pool.connection_kwargs.get("decode_responses"):
        raise InvalidInput("this client decodes every response as text: give one without decode_responses=True")


def explain(error: Exception, what: str, where: str, kind: str) -> CachekeeperError:
    """What an error of the client means. `kind`: for whom `cachekeeper acl` has the missing right."""
    text = str(error)
    if isinstance(error, (broken.AuthenticationError, broken.AuthorizationError)) or text.startswith(("NOAUTH", "WRONGPASS")):
        return PermissionDenied(f"{where} refused the login: {text}")
    if isinstance(error, broken.NoPermissionError) or text.startswith("NOPERM"):
        # redis-py leaves the word out that people look for.
        text = text if text.startswith("NOPERM") else f"NOPERM {text}"
        return PermissionDenied(
            f"failed to {what}: this user of {where} lacks a right ({text}); see `cachekeeper acl --for {kind}`"
        )
    if isinstance(error, (broken.ConnectionError, broken.TimeoutError, OSError, TimeoutError)) or text.startswith(_PASSING):
        return Unreachable(f"failed to {what}: {where} cannot be reached: {text or type(error).__name__}")
    return RedisRefused(f"failed to {what}: {where} answered: {text}")
