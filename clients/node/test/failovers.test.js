// What calls do while another server becomes the master.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Redis } from "ioredis";
import { connect } from "../lib/index.js";
import { bulk, CLOSE, DIRECTORY, play, serve, urlOf, workerOf } from "../testkit/servers.js";

// For a write. None of these takes so long, but where it is not sent again.
const timeoutMs = 30_000;
const READONLY = "-READONLY You can't write against a read only replica.\r\n";
const [ADDED, NOTHING] = ["$3\r\n1-0\r\n", "*-1\r\n"];

// An old master takes everything, and nobody reads it there.
const silent = { xadd: ADDED, blpop: () => new Promise((resolve) => setTimeout(resolve, 50, NOTHING)) };

// A URL of a sentinel that names these in turn, and the last for ever.
async function bySentinel(context, ...ports) {
  const name = () => bulk("127.0.0.1", String(ports.length === 1 ? ports[0] : ports.shift()));
  return `redis+sentinel://127.0.0.1:${await serve(context, { sentinel: name })}/shop/0`;
}

// A cache that is closed with the test, also where that fails.
async function open(context, urlOrClient, options = { timeoutMs: 2_000 }) {
  const cache = await connect(urlOrClient, "shop", options);
  context.after(() => cache.close());
  return cache;
}

const write = (cache) => cache.write("product", { id: 1 }, { timeoutMs });

test("what was sent before replies were first waited for elsewhere is sent again", async (context) => {
  // The old master still takes the write; the connection for replies leads to the new one at once.
  const [old, next] = [await serve(context, silent), await serve(context, workerOf())];
  const cache = await open(context, await bySentinel(context, old, next));
  assert.equal((await write(cache)).rows, 1);
});

test("the same holds for a client that was given", async (context) => {
  const [old, next] = [await serve(context, silent), await serve(context, workerOf())];
  const sentinel = Number(new URL(await bySentinel(context, old, next)).port);
  const client = new Redis({ sentinels: [{ host: "127.0.0.1", port: sentinel }], name: "shop", enableReadyCheck: false });
  context.after(() => client.disconnect());
  assert.equal((await write(await open(context, client, {}))).rows, 1);
});

test("what was sent to another master than replies are waited for is sent again", async (context) => {
  // The connection for replies breaks first and reaches the new master; the sentinels still name the old one for a while.
  const old = await serve(context, { ...silent, blpop: CLOSE });
  const next = await serve(context, workerOf());
  const cache = await open(context, await bySentinel(context, old, old, next, next, old, next));
  assert.equal((await write(cache)).rows, 1);
});

test("a connection that is older than that for replies does not keep writes", async (context) => {
  // One address, which leads to the new master now. The old one takes writes until the end.
  const [ids, waits] = [[], []];
  const worker = workerOf(ids);
  const server = await play(context, { ...worker, blpop: (words) => (waits.push(words) === 1 ? CLOSE : worker.blpop(words)) });
  const cache = await open(context, urlOf(server.port));
  server.becomeOld({ xadd: ADDED });
  assert.equal((await write(cache)).rows, 1);
  assert.equal(ids.length, 1);
});

test("a connection that is just being made is not closed for ever", async (context) => {
  // The sentinels name the new master, and answer slowly while both connections are made anew and they are asked again.
  const [old, next] = [await serve(context, silent), await serve(context, workerOf())];
  let asked = 0;
  const sentinel = await serve(context, {
    sentinel: async () => {
      asked += 1;
      if (asked === 4 || asked === 5) await new Promise((resolve) => setTimeout(resolve, 2_500));
      return bulk("127.0.0.1", String(asked < 3 ? old : next));
    },
  });
  const url = `redis+sentinel://127.0.0.1:${sentinel}/shop/0`;
  const cache = await open(context, url, { timeoutMs: 8_000, redis: { sentinelCommandTimeout: 6_000 } });
  assert.equal((await write(cache)).rows, 1);
  assert.deepEqual(await cache.get("product", 1), { id: 1 });
});

for (const kind of ["a URL", "a client"]) {
  const given = (context, { port }) => {
    if (kind === "a URL") return urlOf(port);
    const client = new Redis({ port, host: "127.0.0.1", enableReadyCheck: false, maxRetriesPerRequest: 3 });
    context.after(() => client.disconnect());
    return client;
  };
  const cacheOf = (context, server) => open(context, given(context, server), kind === "a URL" ? { timeoutMs: 2_000 } : {});

  test(`a connection on which a master became a replica is made anew (${kind})`, async (context) => {
    const server = await play(context, workerOf());
    const cache = await cacheOf(context, server);
    server.becomeOld({ xadd: READONLY, blpop: READONLY });
    assert.equal((await write(cache)).rows, 1);
  });

  test(`a master that becomes a replica while replies are waited for is left (${kind})`, async (context) => {
    const ids = [];
    const worker = workerOf(ids);
    let isMoved = false;
    const server = await play(context, {
      ...worker,
      xadd: (words) => (isMoved ? worker.xadd(words) : ADDED),
      blpop: (words) => {
        if (isMoved) return worker.blpop(words);
        isMoved = true;
        server.becomeOld({ xadd: READONLY, blpop: READONLY });
        return "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n";
      },
    });
    assert.equal((await write(await cacheOf(context, server))).rows, 1);
  });

  test(`a durable event is added where the master is now (${kind})`, async (context) => {
    const directory = [...DIRECTORY];
    directory[1] = JSON.stringify({ ...JSON.parse(directory[1]), events: { channels: ["c"], stream: "e" } });
    const server = await play(context, { hgetall: bulk(...directory), xadd: ADDED });
    const cache = await cacheOf(context, server);
    server.becomeOld({ xadd: READONLY });
    assert.equal(await cache.publish({ key: "product:1" }, { durable: true }), "1-0");
  });
}

test("an event that nobody hears is published where the master is now", async (context) => {
  const [old, next] = [await serve(context, { publish: ":0\r\n" }), await serve(context, { publish: ":1\r\n" })];
  const cache = await open(context, await bySentinel(context, old, next));
  assert.equal(await cache.publish({ key: "product:1" }), 1);
});

test("a read that waits asks where the master is now", async (context) => {
  const told = (snapshot) => JSON.stringify({ incarnation: "life", snapshot, as_of: "2026-11-27T12:00:00Z", not_covered: [] });
  const old = await serve(context, { mget: bulk(told("1:1:"), '{"id":1}') });
  const next = await serve(context, { mget: bulk(told("9:9:"), '{"id":1}') });
  const cache = await open(context, await bySentinel(context, old, next));
  assert.deepEqual(await cache.get("product", 1, { token: "life/5:5:", waitMs: timeoutMs }), { id: 1 });
});

for (const command of ["ping", "xadd", "blpop"]) {
  test(`a master that hangs at ${command} is left as soon as the sentinels name another`, async (context) => {
    const old = await play(context, { ...silent, blpop: null, [command]: null });
    const next = await serve(context, workerOf());
    // Far below the time-out of each command.
    const cache = await open(context, await bySentinel(context, old.port, old.port, next), { timeoutMs: 12_000 });
    const began = performance.now();
    assert.equal((await write(cache)).rows, 1);
    assert.ok(performance.now() - began < 10_000);
  });
}
