"""A private Redis Cluster for the tests, and a worker that is played: it writes guards, watermarks and entries."""

import itertools
import json
import shutil
import socket
import subprocess
import tempfile
import time

import redis

from cachekeeper.cluster import CLUSTER_SLOTS, cluster_slot, guard_key
from cachekeeper.directory import directory_key, watermark_key
from test_calls import DIRECTORY

LIMIT = 30
"""Seconds for whatever is waited for."""
GENERATION = "0" * 15 + "1"


def wait_until(is_so, what):
    until = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < until, f"waited too long for {what}"
        time.sleep(0.01)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Cluster:
    """Masters that share the cluster slots evenly, then their replicas; nodes are named by their position."""

    def __init__(self, masters=3, replicas=0, options=(), **login):
        self.directory = tempfile.mkdtemp(prefix="cachekeeper-cluster-")
        self.processes, self.ports, self._buses, self._moved, self.login = [], [], [], [], login
        try:
            for _ in range(masters * (1 + replicas)):
                self._start(options)
            self._join(masters)
        except BaseException:
            self.close()
            raise

    @property
    def url(self):
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def ask(self, position, *command):
        """What a node answers, whatever cluster slot it is about."""
        with redis.Redis(port=self.ports[position], **self.login) as client:
            return client.execute_command(*command)

    def owner(self, slot, asked=None):
        """The position of the master that serves a cluster slot."""
        for position in range(len(self.ports)) if asked is None else (asked,):
            if self.processes[position].poll() is None:
                for first, last, master, *_ in self.ask(position, "CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return self.ports.index(int(master[1]))
        raise AssertionError(f"nobody serves {slot}")

    def slots(self):
        """The cluster slots of each master, by its position."""
        found = {}
        for first, last, master, *_ in self.ask(0, "CLUSTER", "SLOTS"):
            found.setdefault(self.ports.index(int(master[1])), []).extend(range(first, last + 1))
        return found

    def begin_move(self, slot, to):
        """Both nodes show the cluster slot as moving."""
        self._moved.append(slot)
        origin = self.owner(slot)
        source, target = (self.ask(one, "CLUSTER", "MYID").decode() for one in (origin, to))
        self.ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", source)
        self.ask(origin, "CLUSTER", "SETSLOT", slot, "MIGRATING", target)

    def move_keys(self, slot, to, *keys):
        """Moves these keys, else all."""
        origin = self.owner(slot)
        for key in keys or self.ask(origin, "CLUSTER", "GETKEYSINSLOT", slot, 1000):
            self.ask(origin, "MIGRATE", "127.0.0.1", self.ports[to], key, 0, 5000, "REPLACE")

    def end_move(self, slot, to):
        """Ends it; all others learn it by and by."""
        origin, target = self.owner(slot), self.ask(to, "CLUSTER", "MYID").decode()
        for position in (to, origin):
            self.ask(position, "CLUSTER", "SETSLOT", slot, "NODE", target)

    def move(self, slot, to):
        self.begin_move(slot, to)
        self.move_keys(slot, to)
        self.end_move(slot, to)

    def replicate(self, master):
        """Waits until the replicas of a master have all that it has."""

        def are_in_step():
            _, offset, replicas = self.ask(master, "ROLE")
            return replicas and all(int(one[2]) == offset for one in replicas)

        wait_until(are_in_step, "the replicas to be in step")

    def settle(self):
        """Ends what migrates where it is, and waits until all nodes name the same owners."""
        for slot in self._moved:
            for position in range(len(self.ports)):
                self.ask(position, "CLUSTER", "SETSLOT", slot, "STABLE")
            wait_until(lambda: len({self.owner(slot, position) for position in range(len(self.ports))}) == 1, "the nodes to agree")
        self._moved.clear()

    def take_over(self, replica):
        """Makes a replica master in place of its own, which need not run."""
        self.ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER")
        wait_until(lambda: self.ask(replica, "ROLE")[0] == b"master", "a replica to take over")

    def kill(self, position):
        self.processes[position].kill()
        self.processes[position].wait()

    def close(self):
        for one in self.processes:
            one.kill()
            one.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, options):
        port, bus = free_port(), free_port()
        words = {
            "port": port, "bind": "127.0.0.1", "cluster-enabled": "yes", "cluster-port": bus, "dir": self.directory,
            "cluster-config-file": f"{port}.conf", "cluster-node-timeout": 20000, "save": "", "repl-diskless-sync-delay": 0,
            "cluster-allow-replica-migration": "no", "cluster-require-full-coverage": "no",
        }
        command = ["redis-server", *(part for name, value in words.items() for part in (f"--{name}", str(value))), *options]
        self.processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        self.ports.append(port)
        self._buses.append(bus)

        def answers():
            try:
                return self.ask(len(self.ports) - 1, "PING")
            except redis.ConnectionError:
                return False

        wait_until(answers, "a node to start")

    def _join(self, masters):
        for position in range(masters):
            first, end = CLUSTER_SLOTS * position // masters, CLUSTER_SLOTS * (position + 1) // masters
            self.ask(position, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            self.ask(position, "CLUSTER", "SET-CONFIG-EPOCH", position + 1)
        for position in range(1, len(self.ports)):
            self.ask(0, "CLUSTER", "MEET", "127.0.0.1", self.ports[position], self._buses[position])
        known = b"cluster_known_nodes:%d\r" % len(self.ports)

        def is_whole():
            told = [self.ask(position, "CLUSTER", "INFO") for position in range(len(self.ports))]
            return all(known in one and b"cluster_state:ok" in one for one in told)

        wait_until(is_whole, "the nodes to know each other")
        for position in range(masters, len(self.ports)):
            self.ask(position, "CLUSTER", "REPLICATE", self.ask(position % masters, "CLUSTER", "MYID"))
            wait_until(lambda: self.ask(position, "ROLE")[3] == b"connected", "a replica to be in step")


class Worker:
    """Guards, watermarks and entries, as a worker leaves them: every cluster slot is adopted. `shards`: the number of each master,
    by its position."""

    LIFE = "life"

    def __init__(self, cluster, namespace="shop"):
        self.cluster, self.namespace, self.shards = cluster, namespace, {}
        by_owner = cluster.slots()
        owners = {slot: position for position, slots in by_owner.items() for slot in slots}
        for number in itertools.count():
            self.shards.setdefault(owners[cluster_slot(directory_key(namespace, number))], number)
            if len(self.shards) == len(by_owner):
                break
        for shard in self.shards.values():
            self._tell(directory_key(namespace, shard), "HSET", *(part for pair in DIRECTORY.items() for part in pair))
        for position, slots in by_owner.items():
            with redis.Redis(port=cluster.ports[position], **cluster.login) as client, client.pipeline(transaction=False) as pipeline:
                for slot in slots:
                    pipeline.set(guard_key(namespace, slot), f"{self.shards[position]} {GENERATION}")
                pipeline.execute()

    def write(self, version, *ids):
        """Entries of product."""
        for id in ids:
            key = f"product:{id}"
            self._tell(key, "SET", json.dumps({"id": id, "version": version}))

    def adopt(self, *ids, shard=None):
        """The cluster slots of these entries are those of a shard, else of that of their master."""
        for id in ids:
            slot = cluster_slot(f"product:{id}")
            of = self.shards[self.cluster.owner(slot)] if shard is None else shard
            self._tell(guard_key(self.namespace, slot), "SET", f"{of} {GENERATION}")

    def take_events(self, stream):
        """Tells of a stream for durable events."""
        told = json.loads(DIRECTORY["service"])
        told["events"]["stream"] = stream
        for shard in self.shards.values():
            self._tell(directory_key(self.namespace, shard), "HSET", "service", json.dumps(told))

    def drop(self, id):
        """Nobody has adopted the cluster slot of this entry."""
        self._tell(guard_key(self.namespace, cluster_slot(f"product:{id}")), "DEL")

    def reach(self, xmax, shard=None, covers=f"0-{CLUSTER_SLOTS - 1}", not_covered=(), life=LIFE):
        """The watermark of a shard, or of all."""
        if shard is None:
            for one in self.shards.values():
                self.reach(xmax, one, covers, not_covered, life)
            return
        told = {
            "epoch": "e", "incarnation": life, "snapshot": f"{xmax}:{xmax}:", "as_of": "2026-11-28T00:00:00Z",
            "not_covered": list(not_covered), "covers": covers, "node": "n", "runs": [],
        }
        self._tell(watermark_key(self.namespace, shard), "SET", json.dumps(told))

    def token(self, xmax):
        return f"{self.LIFE}/{xmax}:{xmax}:"

    def _tell(self, key, name, *arguments):
        self.cluster.ask(self.cluster.owner(cluster_slot(key)), name, key, *arguments)


def ids_at(cluster, position, count=3):
    """Ids of entries that this node serves."""
    slots, ids = set(cluster.slots()[position]), itertools.count(1)
    return list(itertools.islice((id for id in ids if cluster_slot(f"product:{id}") in slots), count))
