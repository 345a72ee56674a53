"""What calls do while another server becomes the master. Servers and sentinels are played on sockets here."""

import asyncio
import json
import threading
import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import cachekeeper
from cachekeeper import aio
from test_calls import DIRECTORY
from test_limits import CLOSE, PLAIN, bulk, serve, url_of

LIMIT = 30
"""Seconds for a write. None of these takes so long, but where it is not sent again."""
READONLY = b"-READONLY You can't write against a read only replica.\r\n"
ADDED, NOTHING = b"$3\r\n1-0\r\n", b"*-1\r\n"


class Worker:
    """Replies to writes as soon as it has them."""

    def __init__(self):
        self.ids = []

    def xadd(self, words):
        self.ids.append(words[words.index(b"id") + 1].decode())
        return ADDED

    def blpop(self, words):
        threading.Event().wait(0.05)
        return bulk(words[1].decode(), json.dumps({"id": self.ids[-1], "ok": True, "rows": 1})) if self.ids else NOTHING

    def answers(self):
        return {"xadd": self.xadd, "blpop": self.blpop, "lpop": NOTHING}


def silent_worker(_words=None):
    """An old master takes everything, and nobody reads it there."""
    threading.Event().wait(0.05)
    return NOTHING


def by_sentinel(serve, *ports):
    """A URL of a sentinel that names these in turn: ports, or what answers one. The last is named for ever."""
    left = list(ports)

    def masters(_words):
        port = left.pop(0) if 1 < len(left) else left[0]
        port = port() if callable(port) else port
        state = {"name": "shop", "ip": "127.0.0.1", "port": str(port), "flags": "master", "num-other-sentinels": "2"}
        return b"*1\r\n" + bulk(*[one for pair in state.items() for one in pair])

    return f"redis+sentinel://127.0.0.1:{serve(sentinel=masters).port}/shop/0"


def through(kind, url, call, timeout=2.0):
    """Calls with a cache of this kind."""
    options = {"timeout": timeout, **PLAIN}
    if "sentinel" in url:
        options["sentinel"] = {"socket_timeout": 30, **PLAIN}
    if kind == "threads":
        with cachekeeper.connect(url, "shop", **options) as cache:
            return call(cache)

    async def run():
        async with aio.connect(url, "shop", **options) as cache:
            answer = call(cache)
            return await answer

    return asyncio.run(run())


def write(before=lambda: None):
    def call(cache):
        before()
        return cache.write("product", {"id": 1}, timeout=LIMIT)

    return call


kinds = pytest.mark.parametrize("kind", ["threads", "asyncio"])


@kinds
def test_what_was_sent_before_replies_were_first_waited_for_elsewhere_is_sent_again(serve, kind):
    worker, is_sent = Worker(), threading.Event()

    def take(_words):
        is_sent.set()
        return ADDED

    # The old master still takes the write; the next connection leads to the new one.
    old, new = serve(xadd=take, blpop=silent_worker), serve(**worker.answers())
    url = by_sentinel(serve, old.port, lambda: (is_sent.wait(1), new.port)[1])
    assert through(kind, url, write()).rows == 1
    assert worker.ids


def test_what_was_sent_to_another_master_than_replies_are_waited_for_is_sent_again(serve):
    # The connection for replies breaks first and reaches the new master; of the sentinels some still name the old one.
    worker, taken = Worker(), []
    old, new = serve(xadd=lambda _: taken.append(1) or ADDED, blpop=CLOSE), serve(**worker.answers())
    url = by_sentinel(serve, old.port, old.port, new.port, old.port, old.port, old.port, new.port)
    assert through("asyncio", url, write()).rows == 1
    assert worker.ids


def test_a_connection_that_is_older_than_that_for_replies_does_not_keep_writes(serve):
    # One address, which leads to the new master now. The old one takes writes until the end.
    worker, taken = Worker(), []
    server = serve(**worker.answers(), mget=lambda _: (threading.Event().wait(0.1), bulk('{"id":1}'))[1])

    async def call(cache):
        await asyncio.gather(*[cache.get("product", 1) for _ in range(3)])
        server.become_old(xadd=lambda words: taken.append(words) or ADDED, blpop=CLOSE)
        return await cache.write("product", {"id": 1}, timeout=LIMIT)

    assert through("asyncio", url_of(server), call).rows == 1
    assert worker.ids


@kinds
def test_a_connection_on_which_a_master_became_a_replica_is_made_anew(serve, kind):
    # By an address that leads to the new master now, while the old one closes nothing.
    worker = Worker()
    server = serve(**worker.answers())
    assert through(kind, url_of(server), write(lambda: server.become_old(xadd=READONLY, blpop=READONLY))).rows == 1


@kinds
def test_a_master_that_becomes_a_replica_while_replies_are_waited_for_is_left(serve, kind):
    worker = Worker()

    def switch(_words):
        server.become_old(xadd=READONLY, blpop=READONLY)
        server.answers.update(worker.answers())
        return b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n"

    server = serve(xadd=ADDED, blpop=switch)
    assert through(kind, url_of(server), write()).rows == 1
    assert worker.ids


@kinds
def test_a_durable_event_is_added_where_the_master_is_now(serve, kind):
    added = []
    flat = [one for pair in DIRECTORY.items() for one in pair]
    flat[1] = json.dumps({**json.loads(flat[1]), "events": {"channels": ["c"], "stream": "e"}})
    server = serve(hgetall=bulk(*flat), xadd=lambda words: added.append(words) or ADDED)

    def call(cache):
        server.become_old(xadd=READONLY)
        return cache.publish({"key": "product:1"}, durable=True)

    assert through(kind, url_of(server), call) == "1-0"
    assert len(added) == 1


@kinds
def test_an_event_that_nobody_hears_is_published_where_the_master_is_now(serve, kind):
    old, new = serve(publish=b":0\r\n"), serve(publish=b":1\r\n")
    assert through(kind, by_sentinel(serve, old.port, new.port), lambda cache: cache.publish({"key": "product:1"})) == 1


@kinds
def test_a_read_that_waits_asks_where_the_master_is_now(serve, kind):
    def watermark(snapshot):
        told = {"incarnation": "life", "snapshot": snapshot, "as_of": "2026-11-27T12:00:00Z", "not_covered": []}
        return bulk(json.dumps(told), '{"id":1}')

    old, new = serve(mget=watermark("1:1:")), serve(mget=watermark("9:9:"))
    url = by_sentinel(serve, old.port, new.port)
    assert through(kind, url, lambda cache: cache.get("product", 1, token="life/5:5:", wait=LIMIT)) == {"id": 1}


@kinds
def test_a_client_that_was_given_hides_no_loss(serve, kind):
    # It would ask again by itself, elsewhere, and nobody would know that what was sent is lost.
    worker, waits = Worker(), []

    def wait(words):
        waits.append(words)
        return CLOSE if len(waits) == 1 else worker.blpop(words) if 1 < len(worker.ids) else silent_worker()

    server = serve(**{**worker.answers(), "blpop": wait})
    options = {"port": server.port, "retry": Retry(NoBackoff(), 3), **PLAIN}
    if kind == "threads":
        assert cachekeeper.connect(redis.Redis(**options), "shop").write("product", {"id": 1}, timeout=LIMIT).rows == 1
        return

    async def run():
        options["retry"] = redis.asyncio.retry.Retry(NoBackoff(), 3)
        async with redis.asyncio.Redis(**options) as client, aio.connect(client, "shop") as cache:
            assert (await cache.write("product", {"id": 1}, timeout=LIMIT)).rows == 1

    asyncio.run(run())


@kinds
@pytest.mark.parametrize("silent", ["ping", "xadd", "blpop"])
def test_a_master_that_hangs_is_left_as_soon_as_the_sentinels_name_another(serve, kind, silent):
    worker = Worker()
    old = serve(xadd=ADDED, blpop=silent_worker)
    new = serve(**worker.answers())
    began = time.monotonic()

    def hang():
        old.become_old(**{silent: None, "blpop": None})

    # Far below the time-out of each command.
    assert through(kind, by_sentinel(serve, old.port, new.port), write(hang), timeout=25.0).rows == 1
    assert time.monotonic() - began < 15
