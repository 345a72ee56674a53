// A private Redis Cluster for the tests, and a worker that is played: it writes guards, watermarks and entries.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Redis } from "ioredis";
import { CLUSTER_SLOTS, clusterSlot, guardKey } from "../lib/cluster.js";
import { directoryKey, watermarkKey } from "../lib/directory.js";
import { DIRECTORY } from "./servers.js";

export const hasServers = spawnSync("redis-server", ["--version"]).status === 0;
// For whatever is waited for.
export const LIMIT_MS = 30_000;
const GENERATION = "0000000000000001";

export async function waitUntil(isSo, what) {
  const until = performance.now() + LIMIT_MS;
  while (!(await isSo())) {
    assert.ok(performance.now() < until, `waited too long for ${what}`);
    await sleep(10);
  }
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

// Masters that share the cluster slots evenly, then their replicas; nodes are named by their position.
export class Cluster {
  #buses = [];
  #clients = [];
  #directory = mkdtempSync(join(tmpdir(), "cachekeeper-cluster-"));
  #password;
  ports = [];
  processes = [];

  // `atEnd` is told what ends it.
  static async start(atEnd, { masters = 3, replicas = 0, password } = {}) {
    const cluster = new Cluster();
    cluster.#password = password;
    atEnd(() => cluster.close());
    for (let at = 0; at < masters * (1 + replicas); at += 1) await cluster.#start();
    await cluster.#join(masters);
    return cluster;
  }

  get url() {
    return `redis+cluster://${this.ports.map((port) => `127.0.0.1:${port}`).join(",")}`;
  }

  // What a node answers, whatever cluster slot it is about.
  ask(position, name, ...words) {
    return this.#clients[position].call(name, ...words.map(String));
  }

  // The position of the master that serves a cluster slot, as this node knows it, or the first that runs.
  async owner(slot, asked = this.processes.findIndex(({ exitCode, signalCode }) => exitCode === null && signalCode === null)) {
    const found = (await this.ask(asked, "CLUSTER", "SLOTS")).find(([first, last]) => first <= slot && slot <= last);
    return this.ports.indexOf(Number(found?.[2][1]));
  }

  // Both nodes show the cluster slot as moving.
  async beginMove(slot, to) {
    const origin = await this.owner(slot);
    const [source, target] = [await this.ask(origin, "CLUSTER", "MYID"), await this.ask(to, "CLUSTER", "MYID")];
    await this.ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", source);
    await this.ask(origin, "CLUSTER", "SETSLOT", slot, "MIGRATING", target);
  }

  // Moves these keys, else all.
  async moveKeys(slot, to, ...keys) {
    const origin = await this.owner(slot);
    const all = 0 < keys.length ? keys : await this.ask(origin, "CLUSTER", "GETKEYSINSLOT", slot, 1000);
    for (const key of all) await this.ask(origin, "MIGRATE", "127.0.0.1", this.ports[to], key, 0, 5000, "REPLACE");
  }

  // Ends it; all others learn it by and by.
  async endMove(slot, to) {
    const [origin, target] = [await this.owner(slot), await this.ask(to, "CLUSTER", "MYID")];
    for (const position of [to, origin]) await this.ask(position, "CLUSTER", "SETSLOT", slot, "NODE", target);
  }

  // Makes a replica master in place of its own, which need not run.
  async takeOver(replica) {
    await this.ask(replica, "CLUSTER", "FAILOVER", "TAKEOVER");
    await waitUntil(async () => (await this.ask(replica, "ROLE"))[0] === "master", "a replica to take over");
  }

  async kill(position) {
    const ended = once(this.processes[position], "exit");
    this.processes[position].kill("SIGKILL");
    await ended;
  }

  close() {
    for (const client of this.#clients) client.disconnect();
    for (const one of this.processes) one.kill("SIGKILL");
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #start() {
    const [port, bus] = [await freePort(), await freePort()];
    const options = {
      port, bind: "127.0.0.1", "cluster-enabled": "yes", "cluster-port": bus, dir: this.#directory, "cluster-config-file": `${port}.conf`,
      "cluster-node-timeout": 20000, save: "", "repl-diskless-sync-delay": 0, "cluster-allow-replica-migration": "no",
      "cluster-require-full-coverage": "no",
      ...(this.#password && { requirepass: this.#password, masterauth: this.#password }),
    };
    const words = Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
    this.processes.push(spawn("redis-server", words, { stdio: "ignore" }));
    const client = new Redis({ host: "127.0.0.1", port, password: this.#password, retryStrategy: () => 20, maxRetriesPerRequest: null });
    client.on("error", () => {});
    await client.ping();
    this.ports.push(port);
    this.#buses.push(bus);
    this.#clients.push(client);
  }

  async #join(masters) {
    for (let at = 0; at < masters; at += 1) {
      const [first, end] = [at, at + 1].map((one) => Math.floor((CLUSTER_SLOTS * one) / masters));
      await this.ask(at, "CLUSTER", "ADDSLOTSRANGE", first, end - 1);
      await this.ask(at, "CLUSTER", "SET-CONFIG-EPOCH", at + 1);
    }
    for (let at = 1; at < this.ports.length; at += 1) {
      await this.ask(0, "CLUSTER", "MEET", "127.0.0.1", this.ports[at], this.#buses[at]);
    }
    const isWhole = async () => {
      const told = await Promise.all(this.ports.map((_, position) => this.ask(position, "CLUSTER", "INFO")));
      return told.every((one) => one.includes(`cluster_known_nodes:${this.ports.length}\r`) && one.includes("cluster_state:ok"));
    };
    await waitUntil(isWhole, "the nodes to know each other");
    for (let at = masters; at < this.ports.length; at += 1) {
      await this.ask(at, "CLUSTER", "REPLICATE", await this.ask(at % masters, "CLUSTER", "MYID"));
      await waitUntil(async () => (await this.ask(at, "ROLE"))[3] === "connected", "a replica to be in step");
    }
  }
}

// Guards, watermarks and entries, as a worker leaves them: every cluster slot is adopted. `shards`: the number of each master, by its
// position.
export class Worker {
  shards = new Map();

  static async start(cluster, masters = 3) {
    const worker = new Worker();
    worker.cluster = cluster;
    for (let number = 0; worker.shards.size < masters; number += 1) {
      const owner = await cluster.owner(clusterSlot(directoryKey("shop", number)));
      if (!worker.shards.has(owner)) worker.shards.set(owner, number);
    }
    for (const shard of worker.shards.values()) await worker.#tell("HSET", directoryKey("shop", shard), ...DIRECTORY);
    const ranges = await cluster.ask(0, "CLUSTER", "SLOTS");
    for (const [first, last, master] of ranges) {
      const position = cluster.ports.indexOf(Number(master[1]));
      const slots = Array.from({ length: last + 1 - first }, (_, at) => first + at);
      const guard = `${worker.shards.get(position)} ${GENERATION}`;
      await Promise.all(slots.map((slot) => cluster.ask(position, "SET", guardKey("shop", slot), guard)));
    }
    return worker;
  }

  // Entries of product.
  async write(version, ...ids) {
    for (const id of ids) await this.#tell("SET", `product:${id}`, JSON.stringify({ id, version }));
  }

  // The cluster slot of this entry is that of a shard, else of that of its master.
  async adopt(id, shard) {
    const of = shard ?? this.shards.get(await this.cluster.owner(slotOf(id)));
    await this.#tell("SET", guardKey("shop", slotOf(id)), `${of} ${GENERATION}`);
  }

  // Tells of a stream for durable events.
  async takeEvents(stream) {
    const told = JSON.parse(DIRECTORY[1]);
    told.events.stream = stream;
    for (const shard of this.shards.values()) await this.#tell("HSET", directoryKey("shop", shard), "service", JSON.stringify(told));
  }

  // Nobody has adopted the cluster slot of this entry.
  drop = (id) => this.#tell("DEL", guardKey("shop", slotOf(id)));

  // The watermark of a shard, or of all.
  async reach(xmax, { shard, covers = `0-${CLUSTER_SLOTS - 1}`, notCovered = [], life = "life" } = {}) {
    const told = { epoch: "e", incarnation: life, snapshot: `${xmax}:${xmax}:`, as_of: "2026-11-28T00:00:00Z", not_covered: notCovered, covers };
    for (const one of shard === undefined ? this.shards.values() : [shard]) {
      await this.#tell("SET", watermarkKey("shop", one), JSON.stringify({ ...told, node: "n", runs: [] }));
    }
  }

  async #tell(name, key, ...words) {
    return this.cluster.ask(await this.cluster.owner(clusterSlot(key)), name, key, ...words);
  }
}

export const tokenOf = (xmax) => `life/${xmax}:${xmax}:`;
export const slotOf = (id) => clusterSlot(`product:${id}`);

// Ids of entries that this node serves.
export async function idsAt(cluster, position, count = 3) {
  const found = [];
  for (let id = 1; found.length < count; id += 1) if ((await cluster.owner(slotOf(id))) === position) found.push(id);
  return found;
}
