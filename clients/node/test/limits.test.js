// What calls do where servers hang or are slow, and what is made of wrong options.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import { Redis } from "ioredis";
import * as errors from "../lib/errors.js";
import { connect, takeToken, Token } from "../lib/index.js";
import { bulk, hung, serve, urlOf } from "../testkit/servers.js";

const isOf = (kind, text = /./) => (error) => {
  assert.equal(error.constructor, kind, error.stack);
  assert.match(error.message, text);
  return true;
};

test("a sentinel that hangs takes its share only", async (context) => {
  const master = await serve(context);
  const sentinel = await serve(context, { sentinel: bulk("127.0.0.1", String(master)) });
  const url = `redis+sentinel://127.0.0.1:${await hung(context)},127.0.0.1:${sentinel}/shop/0`;
  const began = performance.now();
  const cache = await connect(url, "shop", { timeoutMs: 20_000 });
  assert.deepEqual(await cache.get("product", 1), { id: 1 });
  // The one that answered comes first from then on.
  assert.equal(cache.client.connector.sentinelIterator.next().value.port, sentinel);
  await cache.close();
  assert.ok(performance.now() - began < 10_000);
});

test("sentinels that are gone are an error within the limit", async (context) => {
  const url = `redis+sentinel://127.0.0.1:1,127.0.0.1:${await hung(context)}/shop/0`;
  const began = performance.now();
  await assert.rejects(connect(url, "shop", { timeoutMs: 500 }), isOf(errors.Unreachable));
  assert.ok(performance.now() - began < 5_000);
});

test("a write to a slow worker is sent once", async (context) => {
  const ids = [];
  let waits = 0;
  const port = await serve(context, {
    xadd: (words) => {
      ids.push(words[words.indexOf("id") + 1]);
      return "$3\r\n1-0\r\n";
    },
    blpop: async (words) => {
      await new Promise((resolve) => setTimeout(resolve, 400));
      waits += 1;
      return waits < 3 || ids.length === 0 ? "*-1\r\n" : bulk(words[1], JSON.stringify({ id: ids[0], ok: true, rows: 1 }));
    },
    lpop: "*-1\r\n",
  });
  const cache = await connect(urlOf(port), "shop", { timeoutMs: 200 });
  assert.equal((await cache.write("product", { id: 1 }, { timeoutMs: 30_000 })).rows, 1);
  assert.equal(ids.length, 1);
  await cache.close();
});

test("what was sent before a connection was lost is sent again", async (context) => {
  const ids = [];
  let waits = 0;
  const port = await serve(context, {
    xadd: (words) => {
      ids.push(words[words.indexOf("id") + 1]);
      return "$3\r\n1-0\r\n";
    },
    // The first wait is never answered: the server hangs.
    blpop: (words) => ((waits += 1) === 1 ? null : ids.length < 2 ? "*-1\r\n" : bulk(words[1], JSON.stringify({ id: ids[0], ok: true, rows: 1 }))),
    lpop: "*-1\r\n",
  });
  const cache = await connect(urlOf(port), "shop", { timeoutMs: 200 });
  assert.equal((await cache.write("product", { id: 1 }, { timeoutMs: 30_000 })).rows, 1);
  await cache.close();
});

test("a write goes to the master that the sentinels name now", async (context) => {
  // The old master was switched over, takes writes all the same, and nobody reads them there.
  const wait = () => new Promise((resolve) => setTimeout(resolve, 50));
  const old = await serve(context, { xadd: "$3\r\n1-0\r\n", blpop: () => wait().then(() => "*-1\r\n") });
  let id;
  const next = await serve(context, {
    xadd: (words) => {
      id = words[words.indexOf("id") + 1];
      return "$3\r\n1-0\r\n";
    },
    blpop: async (words) => {
      await wait();
      return id === undefined ? "*-1\r\n" : bulk(words[1], JSON.stringify({ id, ok: true, rows: 1 }));
    },
    lpop: "*-1\r\n",
  });
  let master = old;
  const sentinel = await serve(context, { sentinel: () => bulk("127.0.0.1", String(master)) });
  const cache = await connect(`redis+sentinel://127.0.0.1:${sentinel}/shop/0`, "shop", { timeoutMs: 2_000 });
  const written = cache.write("product", { id: 1 }, { timeoutMs: 30_000 });
  setTimeout(() => (master = next), 200);
  assert.equal((await written).rows, 1);
  await cache.close();
});

test("the limit of a read that waits holds where Redis hangs", async (context) => {
  const port = await serve(context, { mget: null });
  const began = performance.now();
  const cache = await connect(urlOf(port), "shop", { timeoutMs: 12_000 });
  await assert.rejects(cache.get("product", 1, { token: "life/1:1:", waitMs: 100 }), isOf(errors.Unreachable, /in time/));
  await cache.close();
  assert.ok(performance.now() - began < 10_000);
});

test("what is given wrong is InvalidInput", async (context) => {
  const url = urlOf(await serve(context));
  const refused = [
    [null], [{}], [5], [new URL(url)], [`${url.slice(0, -1)}x`], ["redis://h:99999"], ["redis+sentinel://h:99999/shop"], [url, { redis: 5 }],
    [url, { redis: { commandTimeout: NaN } }], [url, { redis: { port: 1e6 } }], [url.slice(0, -2), { redis: { db: "x" } }], [url, { valueBytesMax: -1 }],
    [url, { bigints: 1 }], ...[-1, 0, NaN, "1", true, null, 2 ** 31, Infinity].map((timeoutMs) => [url, { timeoutMs }]),
  ];
  for (const [given, options] of refused) await assert.rejects(connect(given, "shop", options), isOf(errors.InvalidInput), inspect(options));
  await assert.rejects(connect(url, "\ud800"), isOf(errors.InvalidInput));
  await assert.rejects(connect(url, "shop", { timeoutMs: NaN }), isOf(errors.InvalidInput, /not NaN/));
  for (const client of [null, {}]) await assert.rejects(takeToken(client), isOf(errors.InvalidInput));
  const cache = await connect(url, "shop");
  const loop = { id: 1 };
  loop.self = loop;
  const calls = [
    [() => cache.get("product", "\ud800"), errors.InvalidKey],
    ...[null, 5, "product:\ud800"].map((key) => [() => cache.getKey(key), errors.InvalidKey]),
    [() => cache.write("product", { id: "\ud800" }), errors.InvalidWrite],
    [() => cache.write("product", loop), errors.InvalidWrite],
    [() => cache.write("product", {}, { id: "\ud800" }), errors.InvalidWrite],
    [() => cache.write("product", {}, { timeoutMs: null }), errors.InvalidInput],
    [() => cache.get(5n, 1), errors.UnknownDataset],
  ];
  for (const [call, kind] of calls) await assert.rejects(call(), isOf(kind), String(call));
  await cache.close();
});

test("a database that does not exist is an error", async (context) => {
  const port = await serve(context, { select: "-ERR DB index is out of range\r\n" });
  await assert.rejects(connect(`redis://127.0.0.1:${port}/99`, "shop"), isOf(errors.RedisRefused, /DB index/));
});

test("a key that is not of the dataset named is refused", async (context) => {
  const cache = await connect(urlOf(await serve(context)), "shop");
  assert.deepEqual(await cache.getKey("product:1", { dataset: "product" }), { id: 1 });
  for (const key of ["plain:3", "app:session:1", "product:"]) {
    const read = cache.readKey(key, { dataset: "product", token: "life/1:1:" });
    await assert.rejects(read, isOf(errors.InvalidKey, /no key of dataset product, whose keys are product:\{id\}/));
  }
  await cache.close();
});

test("snapshots that no database has are no tokens", () => {
  for (const snapshot of ["-1:1:", "5:1:", "+1:1:", "1:5:5", "2:5:1", "1:5:3,2", "1:5:2,2", "1:5:x", "1:5:2,"]) {
    assert.throws(() => Token.parse(`life/${snapshot}`), isOf(errors.InvalidToken));
  }
});

test("a database that no worker has seen has no token", async () => {
  const client = { query: async () => ({ rows: [{ token: null, is_open: false }] }) };
  await assert.rejects(takeToken(client), isOf(errors.NoToken, /no worker has seen/));
});

test("a cache says what it is", async (context) => {
  const port = await serve(context);
  const client = new Redis(port);
  const cache = await connect(client, "shop");
  assert.match(inspect(cache), new RegExp(`^Cache of "shop" at redis at .*:${port}$`));
  await cache.close();
  assert.match(inspect(cache), /closed/);
  client.disconnect();
});
