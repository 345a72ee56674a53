"""What calls do where Redis is gone, or the cache closed. Redis is played here."""

import asyncio
import json
import time

import pytest
import redis

import cachekeeper
from cachekeeper import aio, base

DIRECTORY = {
    "service": json.dumps(
        {"version": 1, "events": {"channels": ["c"], "stream": None}, "writes": {"stream": "w", "reply_prefix": "r:"}}
    ),
    "dataset:product": json.dumps(
        {"key": "product:{id}", "format": "json", "rows": "one", "compression": None, "negative": False, "write": True}
    ),
}


class Pool:
    connection_kwargs = {"host": "h"}


class Held:
    """The connection of a write."""

    socket_timeout = retry = None
    is_connected = True

    def disconnect(self):
        pass


class AioHeld(Held):
    async def disconnect(self, nowait=False):
        pass


class Client:
    """As much of Redis as the calls need. `losses`: commands that fail from now on."""

    connection_pool = Pool()
    connection = Held()

    def __init__(self):
        self.losses, self.sent, self.asked = 0, None, []

    def _ask(self, name):
        self.asked.append(name)
        if self.losses:
            self.losses -= 1
            raise redis.ConnectionError("refused")

    def hgetall(self, _key):
        self._ask("hgetall")
        return DIRECTORY

    def mget(self, keys):
        self._ask("mget")
        return [b'{"id":1}' for _ in keys]

    def client(self):
        return self

    def close(self):
        pass

    def ping(self):
        self._ask("ping")

    def publish(self, _channel, _message):
        self._ask("publish")
        return 1

    def xadd(self, _stream, fields):
        self._ask("xadd")
        self.sent = fields

    def blpop(self, _names, _seconds):
        self._ask("blpop")
        sent, self.sent = self.sent, None
        return b"r", json.dumps({"id": sent["id"], "ok": True, "rows": 1}).encode()


class AioClient:
    """The same, to be awaited."""

    connection_pool = Pool()
    connection = AioHeld()

    def __init__(self):
        self.inner = Client()

    def __getattr__(self, name):
        async def call(*given):
            while name == "blpop" and self.inner.sent is None:
                await asyncio.sleep(0.001)
            return getattr(self.inner, name)(*given)

        return call

    def client(self):
        return self

    async def initialize(self):
        pass

    async def aclose(self):
        pass

    async def lpop(self, *_):
        return None


@pytest.fixture
def old():
    """A cache whose directory is older than its limit."""
    client = Client()
    return outdated(cachekeeper.connect(client, "shop")), client


def outdated(cache):
    cache._directory_at = time.monotonic() - 2 * base.DIRECTORY_AGE
    return cache


def test_an_old_directory_serves_where_it_cannot_be_read_again(old):
    cache, client = old
    for call, name in [
        (lambda: cache.get("product", 1), "mget"),
        (lambda: cache.publish({"dataset": "product"}), "publish"),
        (lambda: cache.write("product", {"id": 1}), "xadd"),
    ]:
        client.asked.clear()
        client.losses = 1
        outdated(cache)
        call()
        assert client.asked[0] == "hgetall" and name in client.asked
    client.losses = 2
    outdated(cache)
    assert cache.write("product", {"id": 1}).rows == 1
    client.losses = 1
    with pytest.raises(cachekeeper.Unreachable):
        outdated(cache).get("other", 1)


def test_a_first_directory_is_read_or_the_call_fails():
    client = Client()
    client.losses = 99
    with pytest.raises(cachekeeper.Unreachable):
        cachekeeper.connect(client, "shop")


def test_a_write_of_which_nothing_was_sent_says_so(old):
    cache, client = old
    for losses in (0, 99):
        client.losses = losses
        with pytest.raises(cachekeeper.Unreachable):
            outdated(cache).write("product", {"id": 1}, timeout=0)
    assert client.sent is None


def test_the_same_holds_for_asyncio():
    async def run():
        client = AioClient()
        cache = await aio.connect(client, "shop")
        client.inner.losses = 1
        assert await outdated(cache).get("product", 1) == {"id": 1}
        client.inner.losses = 2
        assert (await outdated(cache).write("product", {"id": 1})).rows == 1
        with pytest.raises(cachekeeper.Unreachable):
            await cache.write("product", {"id": 1}, timeout=0)
        with pytest.raises(cachekeeper.InvalidEvent, match="an event is an object"):
            await cache.publish(7)
        await cache.close()
        with pytest.raises(cachekeeper.InvalidInput, match="this cache was closed"):
            await cache.get("product", 1)

    asyncio.run(run())


def test_an_event_is_a_mapping(old):
    cache, _ = old
    for event in (None, 7, "product:1", ["product:1"]):
        with pytest.raises(cachekeeper.InvalidEvent, match='an event is an object such as {"key": "product:42"}, not '):
            cache.publish(event)
    with pytest.raises(cachekeeper.InvalidEvent, match="`dataset` must be text"):
        cache.publish({"dataset": ["product"]})


def test_a_closed_cache_says_so(old):
    cache, _ = old
    cache.close()
    for call in (
        lambda: cache.get("product", 1),
        lambda: cache.publish({"key": "product:1"}),
        lambda: cache.write("product", {"id": 1}),
        cache.directory,
    ):
        with pytest.raises(cachekeeper.InvalidInput, match="this cache was closed"):
            call()
