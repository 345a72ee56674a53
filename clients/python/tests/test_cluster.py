"""Reads on a Redis Cluster, which is real; its worker is played."""

import asyncio
import shutil
import signal
import threading
import time

import pytest
import redis

import cachekeeper
from cachekeeper import aio
from cachekeeper.cluster import ClusterMap, cluster_slot, guard_key, redirection_of
from cachekeeper.directory import watermark_key
from cachekeeper.nodes import parse_nodes
from private_cluster import LIMIT, Cluster, Worker, ids_at, wait_until
from test_limits import hung, serve

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server")
kinds = pytest.mark.parametrize("kind", ["threads", "asyncio"])


class Driven:
    """A cache of either kind, called the same way."""

    def __init__(self, kind, given, namespace="shop", **options):
        self.loop = asyncio.new_event_loop() if kind == "asyncio" else None
        module = aio if self.loop else cachekeeper
        try:
            self.cache = self._run(lambda: module.connect(given() if callable(given) else given, namespace, **options))
        except BaseException:
            self._end()
            raise

    def __getattr__(self, name):
        return lambda *arguments, **options: self._run(lambda: getattr(self.cache, name)(*arguments, **options))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._run(self.cache.close)
        self._end()

    def _end(self):
        if self.loop:
            self.loop.close()

    def _run(self, call):
        async def awaited():
            return await call()

        return self.loop.run_until_complete(awaited()) if self.loop else call()


@pytest.fixture(scope="module")
def cluster():
    one = Cluster()
    yield one
    one.close()


@pytest.fixture
def worker(cluster):
    cluster.settle()
    for position in range(3):
        cluster.ask(position, "FLUSHALL")
    return Worker(cluster)


@pytest.fixture
def others():
    """Clusters of single tests, ended with them."""
    made = []

    def start(*given, **options):
        made.append(Cluster(*given, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


def slot_of(id):
    return cluster_slot(f"product:{id}")


def told(cache, worker, *ids, xmax=10):
    """Freshness and reason of each."""
    return [(one.freshness, one.reason) for one in cache.read_many("product", ids, token=worker.token(xmax))]


@kinds
def test_values_of_all_nodes_are_read_and_their_freshness_is_that_of_their_shard(cluster, worker, kind):
    by_node = [ids_at(cluster, position) for position in range(3)]
    ids = [id for some in by_node for id in some]
    worker.write(1, *ids)
    worker.reach(10)
    with Driven(kind, cluster.url) as cache:
        assert cache.get_many("product", [*ids, 10**9]) == [*({"id": id, "version": 1} for id in ids), None]
        assert told(cache, worker, *ids) == [("fresh", "")] * 9
        assert cache.get("product", ids[0], token=worker.token(10))["version"] == 1
        # One shard is behind, and one covers not all.
        worker.reach(9, worker.shards[0])
        worker.reach(10, worker.shards[1], covers=f"0-{slot_of(by_node[1][0]) - 1},{slot_of(by_node[1][0]) + 1}-16383")
        found = told(cache, worker, *ids)
        assert {one for one, _ in found[:3]} == {"stale"} and {one for one, _ in found[6:]} == {"fresh"}
        assert found[3] == ("unknown", f"the watermark does not cover cluster slot {slot_of(by_node[1][0])}")
        assert [one for one, _ in found[4:6]] == ["fresh", "fresh"]
        worker.reach(10, worker.shards[2], not_covered=["product"])
        assert told(cache, worker, by_node[2][0]) == [("unknown", "the watermark does not cover dataset product")]
        worker.reach(10, worker.shards[2], life="other")
        assert told(cache, worker, by_node[2][0])[0][0] == "unknown"
        worker.reach(10, worker.shards[2], covers="5-3")
        assert told(cache, worker, by_node[2][0]) == [("unknown", "the watermark cannot be read")]
        assert cache.get_many("product", []) == []


@kinds
def test_what_no_guard_vouches_for_is_not_fresh(cluster, worker, kind):
    plain, foreign, odd, none = ids_at(cluster, 0, 4)
    worker.write(1, plain, foreign, odd, none)
    worker.drop(none)
    worker.adopt(foreign, shard=worker.shards[1])
    worker.reach(10)
    worker.cluster.ask(0, "SET", guard_key("shop", slot_of(odd)), "7")
    with Driven(kind, cluster.url) as cache:
        for _ in range(2):
            found = told(cache, worker, plain, foreign, odd, none)
            assert [one for one, _ in found] == ["fresh", "unknown", "unknown", "unknown"]
            reasons = ["", f"no watermark of shard {worker.shards[1]}", "the guard of its cluster slot cannot be read", "no shard has adopted"]
            assert all(part in reason for part, (_, reason) in zip(reasons, found)), found
        # Adopted meanwhile by a shard of the same node.
        worker.adopt(none)
        assert told(cache, worker, none) == [("fresh", "")]
        with pytest.raises(cachekeeper.NotFresh, match="no watermark of shard"):
            cache.get("product", foreign, token=worker.token(10))


@kinds
def test_a_migration_is_followed_and_claims_nothing_until_the_new_shard_has_adopted(cluster, worker, kind):
    moves, stays = ids_at(cluster, 0, 2)
    worker.write(1, moves, stays)
    worker.reach(10)
    slot = slot_of(moves)
    with Driven(kind, cluster.url) as cache:
        assert told(cache, worker, moves, stays) == [("fresh", "")] * 2
        cluster.begin_move(slot, 1)
        assert told(cache, worker, moves, stays) == [("fresh", "")] * 2
        # The value is at the target, the guard is not.
        cluster.move_keys(slot, 1, f"product:{moves}")
        assert cache.get("product", moves) == {"id": moves, "version": 1}
        assert told(cache, worker, moves, stays) == [("unknown", "its cluster slot is migrating"), ("fresh", "")]
        cluster.move_keys(slot, 1)
        assert told(cache, worker, moves, stays)[0] == ("unknown", "its cluster slot is migrating")
        cluster.end_move(slot, 1)
        wait_until(lambda: cluster.owner(slot, 0) == 1, "the old owner to know")
        (freshness, reason), stayed = told(cache, worker, moves, stays)
        assert freshness == "unknown" and f"no watermark of shard {worker.shards[0]}" in reason and stayed == ("fresh", "")
        assert cache.get_many("product", [moves, stays]) == [{"id": one, "version": 1} for one in (moves, stays)]
        worker.adopt(moves)
        assert told(cache, worker, moves, stays) == [("fresh", "")] * 2


@kinds
def test_a_guard_that_migrates_before_its_entries_claims_nothing(cluster, worker, kind):
    (id,) = ids_at(cluster, 0, 1)
    worker.write(1, id)
    worker.reach(10)
    slot = slot_of(id)
    with Driven(kind, cluster.url) as cache:
        assert told(cache, worker, id) == [("fresh", "")]
        cluster.begin_move(slot, 2)
        cluster.move_keys(slot, 2, guard_key("shop", slot))
        assert told(cache, worker, id) == [("unknown", "its cluster slot is migrating")]


@kinds
def test_a_read_that_waits_sees_the_shard_adopt_and_its_watermark_move(cluster, worker, kind):
    (id,) = ids_at(cluster, 0, 1)
    worker.write(1, id)
    worker.drop(id)

    def later():
        threading.Event().wait(0.1)
        worker.adopt(id)
        worker.reach(9)
        threading.Event().wait(0.1)
        worker.write(2, id)
        worker.reach(10)

    with Driven(kind, cluster.url) as cache:
        thread = threading.Thread(target=later)
        thread.start()
        assert cache.get("product", id, token=worker.token(10), wait=LIMIT)["version"] == 2
        thread.join()


@kinds
@pytest.mark.parametrize("end", ["killed", "demoted"])
def test_a_failover_is_followed(others, kind, end):
    cluster = others(replicas=1)
    worker = Worker(cluster)
    ids = [id for position in range(3) for id in ids_at(cluster, position, 2)]
    worker.write(1, *ids)
    worker.reach(10)
    cluster.replicate(0)
    with Driven(kind, cluster.url, timeout=2) as cache:
        assert told(cache, worker, *ids) == [("fresh", "")] * 6
        if end == "killed":
            cluster.kill(0)
            with pytest.raises(cachekeeper.Unreachable):
                cache.get("product", ids[0])
            # The others are read on.
            assert cache.get("product", ids[-1])["version"] == 1
        cluster.take_over(3)
        wait_until(lambda: cluster.owner(slot_of(ids[0]), 1) == 3, "the others to know")
        assert cache.get("product", ids[0], token=worker.token(10), wait=LIMIT) == {"id": ids[0], "version": 1}
        assert told(cache, worker, *ids) == [("fresh", "")] * 6


@kinds
def test_a_replica_is_never_read_and_an_old_map_is_mended(others, kind):
    cluster = others(replicas=1)
    worker = Worker(cluster)
    (id,) = ids_at(cluster, 0, 1)
    worker.write(1, id)
    worker.reach(10)
    cluster.replicate(0)
    with Driven(kind, cluster.url) as cache:
        map = cache.cache._nodes.map
        master, replica = (("127.0.0.1", cluster.ports[position]) for position in (0, 3))
        for wrong in (replica, ("127.0.0.1", cluster.ports[1])):
            map._owners[slot_of(id)] = wrong
            assert told(cache, worker, id) == [("fresh", "")]
            assert map.owner(slot_of(id)) == master


@kinds
def test_nodes_that_hang_or_are_gone_are_passed_over(cluster, worker, kind, hung):
    (id,) = ids_at(cluster, 0, 1)
    worker.write(1, id)
    url = f"redis+cluster://127.0.0.1:{hung},127.0.0.1:1,127.0.0.1:{cluster.ports[2]}"
    began = time.monotonic()
    with Driven(kind, url, timeout=20) as cache:
        assert cache.get("product", id) == {"id": id, "version": 1}
    assert time.monotonic() - began < 10
    with pytest.raises(cachekeeper.Unreachable):
        Driven(kind, f"redis+cluster://127.0.0.1:{hung},127.0.0.1:1", timeout=0.5)


@kinds
def test_a_master_that_hangs_takes_no_longer_than_the_limit_and_the_others_are_read_on(others, kind):
    cluster = others()
    worker = Worker(cluster)
    (hangs,), (runs,) = ids_at(cluster, 0, 1), ids_at(cluster, 1, 1)
    worker.write(1, hangs, runs)
    worker.reach(10)
    with Driven(kind, cluster.url, timeout=1) as cache:
        assert told(cache, worker, hangs, runs) == [("fresh", "")] * 2
        cluster.processes[0].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(cachekeeper.Unreachable):
            cache.get("product", hangs)
        with pytest.raises(cachekeeper.Unreachable):
            cache.get("product", hangs, token=worker.token(10), wait=0.2)
        assert told(cache, worker, runs) == [("fresh", "")]
        assert time.monotonic() - began < 8
        cluster.processes[0].send_signal(signal.SIGCONT)
        assert cache.get("product", hangs, token=worker.token(10), wait=LIMIT)["version"] == 1


@kinds
def test_an_event_is_heard_whatever_node_it_is_published_on(cluster, worker, kind):
    with Driven(kind, cluster.url) as cache:
        assert cache.publish({"key": "product:1"}) == 0
        for position in range(3):
            with redis.Redis(port=cluster.ports[position]) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
                heard.subscribe("c")
                wait_until(lambda: dict(client.pubsub_numsub("c"))[b"c"] == 1, "the subscription")
                assert cache.publish({"key": "product:1"}) == 1
                messages = []
                wait_until(lambda: messages.append(heard.get_message(timeout=0.1)) or any(messages), "the event")


@kinds
def test_a_durable_event_is_added_where_its_stream_is_now(cluster, worker, kind):
    slot = cluster_slot("events")
    worker.take_events("events")
    with Driven(kind, cluster.url) as cache:
        added = [cache.publish({"key": "product:1"}, durable=True)]
        origin = cluster.owner(slot)
        cluster.begin_move(slot, (origin + 1) % 3)
        cluster.move_keys(slot, (origin + 1) % 3)
        added.append(cache.publish({"keys": ["product:2"]}, durable=True))
        cluster.end_move(slot, (origin + 1) % 3)
        added.append(cache.publish({"key": "product:3"}, durable=True))
    entries = cluster.ask((origin + 1) % 3, "XRANGE", "events", "-", "+")
    assert [one[0].decode() for one in entries] == added
    assert entries[1][1] == {b"keys": b'["product:2"]'}


@kinds
def test_what_does_not_work_on_a_cluster_says_what_to_do(cluster, worker, kind):
    with Driven(kind, cluster.url) as cache:
        with pytest.raises(cachekeeper.InvalidWrite, match="on a cluster yet: write to Postgres"):
            cache.write("product", {"id": 1})
        with pytest.raises(cachekeeper.InvalidInput, match="no stream for events: publish without `durable`"):
            cache.publish({"key": "product:1"}, durable=True)
    with pytest.raises(cachekeeper.NotRegistered, match="'other' in redis cluster at .*no shard has a directory"):
        Driven(kind, cluster.url, "other")
    # The directory is another node's, or entries are.
    kind_of_node = f"redis://127.0.0.1:{cluster.ports[cluster.owner(cluster_slot(watermark_key('shop')))]}/0"
    with Driven(kind, kind_of_node) as cache, pytest.raises(cachekeeper.RedisRefused, match=r"redis\+cluster://"):
        cache.read("product", ids_at(cluster, 0, 1)[0], token=worker.token(1))
    with pytest.raises(cachekeeper.RedisRefused, match=r"is a node of a cluster .*redis\+cluster://"):
        for port in cluster.ports:
            Driven(kind, f"redis://127.0.0.1:{port}/0").close()


@kinds
def test_a_server_alone_is_no_cluster(kind, serve):
    server = serve(cluster=b"-ERR This instance has cluster support disabled\r\n")
    with pytest.raises(cachekeeper.InvalidInput, match="no node of a cluster: its URL begins with redis://"):
        Driven(kind, f"redis+cluster://127.0.0.1:{server.port}", protocol=2)


@kinds
def test_a_client_of_a_cluster_is_taken_with_its_settings_and_stays_open(others, kind):
    cluster = others(options=("--requirepass", "sesame", "--masterauth", "sesame"), password="sesame")
    worker = Worker(cluster)
    (id,) = ids_at(cluster, 1, 1)
    worker.write(1, id)
    made = []
    module = redis.asyncio if kind == "asyncio" else redis

    def client(**options):
        made.append(module.RedisCluster(host="127.0.0.1", port=cluster.ports[0], password="sesame", **options))
        return made[-1]

    with Driven(kind, client) as cache:
        assert cache.get("product", id) == {"id": id, "version": 1}
        assert cache.cache.client is made[0]
    url = cluster.url.replace("://", "://:sesame@")
    with Driven(kind, url) as cache:
        assert cache.get("product", id) == {"id": id, "version": 1}
        assert "sesame" not in repr(cache.cache)
    with pytest.raises(cachekeeper.PermissionDenied) as denied:
        Driven(kind, cluster.url.replace("://", "://nobody:wrong@"))
    assert "wrong@" not in str(denied.value)
    # The rights of the README are enough, and each of them is needed.
    needed = ["+cluster|slots", "+get", "+hgetall", "+asking", "+publish"]
    url = cluster.url.replace("://", "://reader:pw@")
    for rights in (needed, *([one for one in needed if one != without] for without in needed if without != "+asking")):
        for position in range(3):
            cluster.ask(position, "ACL", "SETUSER", "reader", "reset", "on", ">pw", "~product:*", "~ck:*", "&c", *rights)
        if rights == needed:
            with Driven(kind, url) as cache:
                assert cache.get("product", id)["id"] == id and cache.publish({"key": "product:1"}) == 0
        else:
            with pytest.raises(cachekeeper.PermissionDenied, match="lacks a right .*cachekeeper acl"), Driven(kind, url) as cache:
                cache.publish({"key": "product:1"})
    for options, part in [({"read_from_replicas": True}, "reads from replicas"), ({"decode_responses": True}, "decodes every response")]:
        with pytest.raises(cachekeeper.InvalidInput, match=part):
            Driven(kind, lambda: client(**options))
    other = "threads" if kind == "asyncio" else "asyncio"
    with pytest.raises(cachekeeper.InvalidInput, match="RedisCluster, not redis"):
        Driven(other, client)
    if kind == "threads":
        assert made[0].get(f"product:{id}") is not None
        for one in made:
            one.close()


def test_urls_of_clusters_are_those_of_the_worker():
    assert parse_nodes("rediss+cluster://us:p%40ss@one:1,two,[::1]:3/") == (
        [("one", 1), ("two", 6379), ("::1", 3)], {"ssl": True, "username": "us", "password": "p@ss"}
    )
    assert parse_nodes("redis://h") is None
    for url in ("redis+cluster://", "redis+cluster://a:x", "redis+cluster://a:1,", "redis+cluster://a:1/3", "redis+cluster://a:99999"):
        for connect in (cachekeeper.connect, lambda *given: asyncio.run(aio.connect(*given))):
            with pytest.raises(cachekeeper.InvalidInput):
                connect(url, "shop")
    with pytest.raises(cachekeeper.InvalidInput, match="tiemout"):
        cachekeeper.connect("redis+cluster://a:1", "shop", tiemout=1)


@kinds
def test_addresses_are_remapped_as_they_are_told(cluster, worker, kind):
    (id,) = ids_at(cluster, 1, 1)
    worker.write(1, id)
    there = {("127.0.0.1", port): ("localhost", port) for port in cluster.ports}
    with Driven(kind, cluster.url, address_remap=lambda node: there[node]) as cache:
        assert cache.get("product", id) == {"id": id, "version": 1}
        assert {host for host, _ in cache.cache._nodes.map.masters()} == {"localhost"}


def test_what_a_node_tells_of_others_is_read():
    map = ClusterMap([("asked", 5), ("asked", 5)])
    assert not map.note([], ("asked", 5)) and list(map.to_ask()) == [("asked", 5)]
    told = [[0, 5, [b"a", 1, b"id"]], [6, 7, [b"", 9, b"id"], [b"r", 1, b"id"]], [8, 8, [None, 9, b"id"]]]
    assert map.note(told, ("asked", 5)) and not map.is_stale
    assert [map.owner(slot) for slot in (5, 6, 8, 9)] == [("a", 1), ("asked", 9), ("asked", 9), None]
    # The next one to be asked is another; those that are silent come last.
    assert list(map.to_ask()) == [("a", 1), ("asked", 9), ("asked", 5)]
    map.fell_silent(("a", 1))
    assert map.is_stale and list(map.to_ask()) == [("asked", 9), ("asked", 5), ("a", 1)]
    for text, kind, node in [("MOVED 9 ::1:7", "MOVED", ("::1", 7)), ("ASK 9 :7", "ASK", ("asked", 7)), ("MOVED 16384 a:1", None, None)]:
        found = redirection_of(redis.ResponseError(text), ("asked", 5))
        assert (found and (found.kind, found.node)) == (kind and (kind, node)), text
    assert redirection_of(redis.exceptions.MovedError("9 h:7"), ("asked", 5)).node == ("h", 7)
    assert redirection_of(redis.exceptions.AskError("9 h:7"), ("asked", 5)).kind == "ASK"


def test_threads_share_a_cache_while_cluster_slots_move(cluster, worker):
    ids = [id for position in range(3) for id in ids_at(cluster, position)]
    worker.write(1, *ids)
    worker.reach(10)
    failures, is_over = [], threading.Event()

    def read(cache):
        while not is_over.is_set():
            try:
                found = cache.read_many("product", ids, token=worker.token(10))
            except cachekeeper.CachekeeperError as error:
                failures.append(error)
                return
            if [one.value for one in found] != [{"id": id, "version": 1} for id in ids]:
                failures.append(found)

    with cachekeeper.connect(cluster.url, "shop", timeout=60, max_connections=4) as cache:
        threads = [threading.Thread(target=read, args=(cache,)) for _ in range(6)]
        for one in threads:
            one.start()
        for id in ids:
            cluster.move(slot_of(id), (cluster.owner(slot_of(id)) + 1) % 3)
        is_over.set()
        for one in threads:
            one.join()
    assert not failures
