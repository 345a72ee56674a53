"""What calls do where servers hang, are slow, or are asked by many at once. Servers are played on sockets here."""

import asyncio
import json
import socket
import socketserver
import threading
import time

import pytest
import redis

import cachekeeper
from cachekeeper import aio
from cachekeeper.connection import guarded
from cachekeeper.tokens import Token
from cachekeeper.values import decode
from test_calls import DIRECTORY, AioClient, Client

PLAIN = {"protocol": 2}
CLOSE = object()


def bulk(*texts):
    """An array of texts, as Redis answers it."""
    return b"*%d\r\n" % len(texts) + b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in map(str.encode, texts))


class Server(socketserver.ThreadingTCPServer):
    """As much of a server as a test needs: `answers` by command; None is no answer, ever, and CLOSE ends the connection.

    After `become_old` the connections that are there then are answered otherwise.
    """

    daemon_threads = allow_reuse_address = True
    block_on_close = False

    def __init__(self, **answers):
        self.answers, self.asked, self.end, self.sessions = answers, [], threading.Event(), []
        super().__init__(("127.0.0.1", 0), Session)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, words, old):
        name = words[0].decode().lower()
        self.asked.append(name)
        told = old.get(name, self.answers.get(name, b"+OK\r\n"))
        return told(words) if callable(told) else told

    def become_old(self, **answers):
        for one in self.sessions:
            one.old = answers


class Session(socketserver.StreamRequestHandler):
    def handle(self):
        self.old = {}
        self.server.sessions.append(self)
        while head := self.rfile.readline():
            words = []
            for _ in range(int(head[1:])):
                words.append(self.rfile.read(int(self.rfile.readline()[1:]) + 2)[:-2])
            told = self.server.answer(words, self.old)
            if told is None:
                self.server.end.wait()
            if told in (None, CLOSE):
                return
            self.wfile.write(told)


@pytest.fixture
def serve():
    servers = []

    def start(**answers):
        flat = [one for pair in DIRECTORY.items() for one in pair]
        servers.append(Server(**{"hgetall": bulk(*flat), "mget": bulk('{"id":1}'), "ping": b"+PONG\r\n", **answers}))
        return servers[-1]

    yield start
    for one in servers:
        one.end.set()
        one.shutdown()
        one.server_close()


@pytest.fixture
def hung():
    """The port of a server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def url_of(server):
    return f"redis://127.0.0.1:{server.port}/0"


def test_a_sentinel_that_hangs_takes_its_share_only(serve, hung):
    master = serve()
    state = {"name": "shop", "ip": "127.0.0.1", "port": str(master.port), "flags": "master", "num-other-sentinels": "2"}
    sentinel = serve(sentinel=b"*1\r\n" + bulk(*[one for pair in state.items() for one in pair]))
    url = f"redis+sentinel://127.0.0.1:{hung},127.0.0.1:{sentinel.port}/shop/0"
    began = time.monotonic()
    with cachekeeper.connect(url, "shop", timeout=20, sentinel=PLAIN, **PLAIN) as cache:
        assert cache.get("product", 1) == {"id": 1}

    async def run():
        async with aio.connect(url, "shop", timeout=20, sentinel=PLAIN, **PLAIN) as cache:
            assert await cache.get("product", 1) == {"id": 1}

    asyncio.run(run())
    assert time.monotonic() - began < 15


def test_sentinels_that_are_gone_are_named_shortly(hung):
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{hung}/shop/0"
    began = time.monotonic()
    with pytest.raises(cachekeeper.Unreachable, match="no sentinel answered") as caught:
        cachekeeper.connect(url, "shop", timeout=0.5)
    with pytest.raises(cachekeeper.Unreachable):
        asyncio.run(aio.connect(url, "shop", timeout=0.5))
    assert len(str(caught.value)) < 300
    assert time.monotonic() - began < 10


def test_no_sentinel_is_forgotten_where_several_ask_at_once():
    class Sentinel:
        def __init__(self):
            self.sentinels = ["hung", "one", "two"]

        async def discover_master(self, _name):
            asked = self.sentinels
            await asyncio.sleep(0)
            asked[0], asked[1] = "one", asked[0]
            return "h", 1

    async def run():
        guard = guarded(Sentinel)()
        await asyncio.gather(*[guard.discover_master("shop") for _ in range(4)])
        assert sorted(guard.sentinels) == ["hung", "one", "two"]

    asyncio.run(run())


class SlowWorker:
    """Replies to a write after a wait that is longer than the time-out of the commands."""

    def __init__(self):
        self.ids, self.waits = [], 0

    def xadd(self, words):
        self.ids.append(words[words.index(b"id") + 1].decode())
        return b"$3\r\n1-0\r\n"

    def blpop(self, words):
        threading.Event().wait(0.4)
        self.waits += 1
        if self.waits < 3 or not self.ids:
            return b"*-1\r\n"
        return bulk(words[1].decode(), json.dumps({"id": self.ids[0], "ok": True, "rows": 1}))

    def answers(self):
        return {"xadd": self.xadd, "blpop": self.blpop, "lpop": b"*-1\r\n"}


def test_a_write_to_a_slow_worker_is_sent_once(serve):
    worker = SlowWorker()
    with cachekeeper.connect(url_of(serve(**worker.answers())), "shop", timeout=0.2, **PLAIN) as cache:
        assert cache.write("product", {"id": 1}, timeout=30).rows == 1
    assert len(worker.ids) == 1

    async def run():
        worker = SlowWorker()
        async with aio.connect(url_of(serve(**worker.answers())), "shop", timeout=0.2, **PLAIN) as cache:
            assert (await cache.write("product", {"id": 1}, timeout=30)).rows == 1
        assert len(worker.ids) == 1

    asyncio.run(run())


def test_the_limit_of_a_call_holds_where_redis_hangs(serve):
    began = time.monotonic()
    for silent, kind in (("ping", cachekeeper.Unreachable), ("xadd", cachekeeper.WriteUnknown), ("blpop", cachekeeper.WriteUnknown)):
        server = serve(**{silent: None, "mget": None})
        with cachekeeper.connect(url_of(server), "shop", timeout=30, **PLAIN) as cache:
            with pytest.raises(kind):
                cache.write("product", {"id": 1}, timeout=0.1)
            with pytest.raises(cachekeeper.Unreachable):
                cache.get("product", 1, token="life/1:1:", wait=0.1)

        async def run():
            cache = await aio.connect(url_of(server), "shop", timeout=30, **PLAIN)
            if silent != "ping":
                with pytest.raises(kind):
                    await cache.write("product", {"id": 1}, timeout=0.1)
            with pytest.raises(cachekeeper.Unreachable):
                await cache.get("product", 1, token="life/1:1:", wait=0.1)
            await cache.close()

        asyncio.run(run())
    assert time.monotonic() - began < 20


def test_many_at_once_wait_for_a_free_connection():
    class Counting(Client):
        now = most = 0
        lock = threading.Lock()

        def mget(self, keys):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            threading.Event().wait(0.001)
            with self.lock:
                self.now -= 1
            return super().mget(keys)

    client, found = Counting(), []
    cache = cachekeeper.connect(client, "shop", timeout=60, max_connections=2)
    threads = [threading.Thread(target=lambda: found.append(cache.get("product", 1))) for _ in range(50)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [{"id": 1}] * 50 and client.most <= 2

    async def run():
        now = most = 0

        class AioCounting(AioClient):
            async def mget(self, keys):
                nonlocal now, most
                now, most = now + 1, max(most, now + 1)
                await asyncio.sleep(0)
                now -= 1
                return self.inner.mget(keys)

        cache = await aio.connect(AioCounting(), "shop", timeout=60, max_connections=2)
        assert await asyncio.gather(*[cache.get("product", 1) for _ in range(2_000)]) == [{"id": 1}] * 2_000
        assert most == 2

    asyncio.run(run())


def test_what_is_given_wrong_is_invalid_input(serve):
    server = serve()
    url = url_of(server)
    for given, more in [
        (None, {}), (5, {}), (redis.asyncio.Redis(), {}), (url[:-1] + "x", {}), ("redis://h:99999/0", {}),
        ("redis+sentinel://h:x/shop", {}), (url, {"tiemout": 1}), (url, {"sentinel": 5}),
        ("redis+sentinel://h/shop", {"sentinel": {"pasword": "x"}}), (url, {"value_bytes_max": -1}), (url, {"max_connections": 0}),
        *[(url, {"timeout": one}) for one in (-1, 0, None, True, "1", float("nan"), float("inf"), 10**400)],
    ]:
        with pytest.raises(cachekeeper.InvalidInput):
            cachekeeper.connect(given, "shop", **more)
        if not isinstance(given, redis.asyncio.Redis):
            with pytest.raises(cachekeeper.InvalidInput):
                asyncio.run(aio.connect(given, "shop", **more))
    for call in (lambda: aio.connect(redis.Redis(), "shop"), lambda: aio.take_token(None)):
        with pytest.raises(cachekeeper.InvalidInput):
            asyncio.run(call())
    cache = cachekeeper.connect(Client(), "shop")
    loop = {"id": 1}
    loop["self"] = loop
    for call, kind in [
        (lambda: cachekeeper.connect(url, "\ud800"), cachekeeper.InvalidInput),
        (lambda: cachekeeper.take_token(None), cachekeeper.InvalidInput),
        (lambda: cache.get(["product"], 1), cachekeeper.UnknownDataset),
        (lambda: cache.get("product", "\ud800"), cachekeeper.InvalidKey),
        *[(lambda key=key: cache.get_key(key), cachekeeper.InvalidKey) for key in (None, 5, b"product:1", "product:\ud800")],
        (lambda: cache.get("product", 1, token="life/1:1:", wait=10**400), cachekeeper.InvalidInput),
        (lambda: cache.write("product", {"id": "\ud800"}), cachekeeper.InvalidWrite),
        (lambda: cache.write("product", loop), cachekeeper.InvalidWrite),
        (lambda: cache.write("product", {}, id="\ud800"), cachekeeper.InvalidWrite),
    ]:
        with pytest.raises(kind):
            call()


def test_a_database_that_does_not_exist_is_an_error(serve):
    server = serve(select=b"-ERR DB index is out of range\r\n")
    with pytest.raises(cachekeeper.RedisRefused, match="DB index"):
        cachekeeper.connect(f"redis://127.0.0.1:{server.port}/99", "shop", **PLAIN)


def test_a_key_that_is_not_of_the_dataset_named_is_refused():
    cache = cachekeeper.connect(Client(), "shop")
    assert cache.get_key("product:1", dataset="product") == {"id": 1}
    for key in ("plain:3", "app:session:1", "product:"):
        with pytest.raises(cachekeeper.InvalidKey, match="no key of dataset product, whose keys are product:{id}"):
            cache.read_key(key, dataset="product", token="life/1:1:")


def test_snapshots_that_no_database_has_are_no_tokens():
    for snapshot in ("-1:1:", "5:1:", "+1:1:", "1:5:5", "2:5:1", "1:5:3,2", "1:5:2,2", "1:5:x", "1:5:2,"):
        with pytest.raises(cachekeeper.InvalidToken):
            Token.parse(f"life/{snapshot}")


def test_a_value_that_cannot_be_read_says_why():
    for value in (b"\x81", b"\xc1", b"", b"\x91" * 5_000):
        with pytest.raises(cachekeeper.Undecodable, match="cannot be read: .+"):
            decode(value, "msgpack", "product:1")


def test_a_cache_is_entered_and_says_what_it_is():
    cache = cachekeeper.connect(Client(), "shop")
    assert "Cache of 'shop' at redis at h:6379" in repr(cache)
    cache.close()
    assert "closed" in repr(cache)
    with pytest.raises(cachekeeper.InvalidInput, match="closed"), cache:
        pass

    async def run():
        async with aio.connect(AioClient(), "shop") as cache:
            assert await cache.get("product", 1) == {"id": 1}
        with pytest.raises(cachekeeper.InvalidInput, match="closed"):
            await cache.__aenter__()
        return await aio.connect(AioClient(), "shop")

    other = asyncio.run(run())
    with pytest.raises(cachekeeper.InvalidInput, match="another event loop"):
        asyncio.run(other.get("product", 1))


def test_a_write_goes_to_the_master_that_the_sentinels_name_now(serve):
    # The old master was switched over, takes writes all the same, and nobody reads them there.
    old = serve(xadd=b"$3\r\n1-0\r\n", blpop=b"*-1\r\n")
    ports = [old.port]

    def masters(_words):
        state = {"name": "shop", "ip": "127.0.0.1", "port": str(ports[-1]), "flags": "master", "num-other-sentinels": "2"}
        return b"*1\r\n" + bulk(*[one for pair in state.items() for one in pair])

    url = f"redis+sentinel://127.0.0.1:{serve(sentinel=masters).port}/shop/0"

    def switch():
        worker = SlowWorker()
        ports.append(serve(**worker.answers()).port)
        return worker

    with cachekeeper.connect(url, "shop", timeout=2, sentinel=PLAIN, **PLAIN) as cache:
        worker = switch()
        assert cache.write("product", {"id": 1}, timeout=30).rows == 1
    assert len(worker.ids) == 1
