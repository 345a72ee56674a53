// Reads on a Redis Cluster, which is real; its worker is played.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Redis, Cluster as Client } from "ioredis";
import { connect } from "../lib/index.js";
import * as errors from "../lib/errors.js";
import { ClusterMap, clusterSlot, guardKey } from "../lib/cluster.js";
import { parseNodes } from "../lib/cluster-url.js";
import { watermarkKey } from "../lib/directory.js";
import { Nodes } from "../lib/nodes.js";
import { Cluster, hasServers, idsAt, LIMIT_MS, slotOf, tokenOf, waitUntil, Worker } from "../testkit/cluster.js";
import { hung, serve } from "../testkit/servers.js";

const skip = hasServers ? false : "there is no redis-server";
const isOf = (kind, text = /./) => (error) => {
  assert.equal(error.constructor, kind, error.stack);
  assert.match(error.message, text);
  return true;
};

// A cluster of this test alone.
async function started(context, options) {
  const cluster = await Cluster.start((close) => context.after(close), options);
  return { cluster, worker: await Worker.start(cluster), open: opener(context, cluster) };
}

// The one that those tests share that change no node.
let [shared, end] = [undefined, () => {}];
after(() => end());
async function emptied(context) {
  shared ??= await Cluster.start((close) => (end = close));
  for (const position of [0, 1, 2]) await shared.ask(position, "FLUSHALL");
  return { cluster: shared, worker: await Worker.start(shared), open: opener(context, shared) };
}

// What opens a cache, which is closed with the test.
const opener = (context, cluster) => async (given = cluster.url, more) => {
  const cache = await connect(given, "shop", more);
  context.after(() => cache.close());
  return cache;
};

// Freshness and reason of each.
const told = async (cache, ...ids) =>
  (await cache.readMany("product", ids, { token: tokenOf(10) })).map(({ freshness, reason }) => `${freshness} ${reason}`.trim());
const values = (...ids) => ids.map((id) => ({ id, version: 1 }));

test("values of all nodes are read, and their freshness is that of their shard", { skip }, async (context) => {
  const { cluster, worker, open } = await emptied(context);
  const byNode = [await idsAt(cluster, 0), await idsAt(cluster, 1), await idsAt(cluster, 2)];
  const ids = byNode.flat();
  await worker.write(1, ...ids);
  await worker.reach(10);
  const cache = await open();
  assert.deepEqual(await cache.getMany("product", [...ids, 10 ** 9]), [...values(...ids), undefined]);
  assert.deepEqual(await told(cache, ...ids), Array(9).fill("fresh"));
  assert.equal((await cache.get("product", ids[0], { token: tokenOf(10) })).version, 1);
  assert.deepEqual(await cache.getMany("product", []), []);
  // One shard is behind, and one covers not all.
  const slot = slotOf(byNode[1][0]);
  await worker.reach(9, { shard: worker.shards.get(0) });
  await worker.reach(10, { shard: worker.shards.get(1), covers: `0-${slot - 1},${slot + 1}-16383` });
  const late = "stale the watermark has not reached the token";
  assert.deepEqual(await told(cache, ...ids), [
    late, late, late, `unknown the watermark does not cover cluster slot ${slot}`, ...Array(5).fill("fresh"),
  ]);
  const reaches = [
    [{ notCovered: ["product"] }, "unknown the watermark does not cover dataset product"],
    [{ life: "other" }, "unknown token and watermark are of two incarnations of the database"],
    [{ covers: "5-3" }, "unknown the watermark cannot be read"],
  ];
  for (const [more, wanted] of reaches) {
    await worker.reach(10, { shard: worker.shards.get(2), ...more });
    assert.deepEqual(await told(cache, byNode[2][0]), [wanted]);
  }
});

test("what no guard vouches for is not fresh", { skip }, async (context) => {
  const { cluster, worker, open } = await emptied(context);
  const [plain, foreign, odd, none] = await idsAt(cluster, 0, 4);
  await worker.write(1, plain, foreign, odd, none);
  const other = worker.shards.get(1);
  await worker.adopt(foreign, other);
  await cluster.ask(0, "SET", guardKey("shop", slotOf(odd)), "7");
  await worker.drop(none);
  await worker.reach(10);
  const cache = await open();
  for (let round = 0; round < 2; round += 1) {
    assert.deepEqual(await told(cache, plain, foreign, odd, none), [
      "fresh",
      `unknown the node of its cluster slot has no watermark of shard ${other}, which has adopted it`,
      "unknown the guard of its cluster slot cannot be read",
      "unknown no shard has adopted its cluster slot",
    ]);
  }
  await worker.adopt(none);
  assert.deepEqual(await told(cache, none), ["fresh"]);
  await assert.rejects(cache.get("product", foreign, { token: tokenOf(10) }), isOf(errors.NotFresh, /no watermark of shard/));
});

test("a migration is followed, and claims nothing until the new shard has adopted", { skip }, async (context) => {
  const { cluster, worker, open } = await started(context);
  const [moves, stays, guarded] = await idsAt(cluster, 0);
  await worker.write(1, moves, stays, guarded);
  await worker.reach(10);
  const [cache, slot, moving] = [await open(), slotOf(moves), "unknown its cluster slot is migrating"];
  assert.deepEqual(await told(cache, moves, stays), ["fresh", "fresh"]);
  await cluster.beginMove(slot, 1);
  assert.deepEqual(await told(cache, moves, stays), ["fresh", "fresh"]);
  // The value is at the target, the guard is not.
  await cluster.moveKeys(slot, 1, `product:${moves}`);
  assert.deepEqual(await cache.get("product", moves), { id: moves, version: 1 });
  assert.deepEqual(await told(cache, moves, stays), [moving, "fresh"]);
  await cluster.moveKeys(slot, 1);
  assert.deepEqual(await told(cache, moves, stays), [moving, "fresh"]);
  await cluster.endMove(slot, 1);
  await waitUntil(async () => (await cluster.owner(slot, 0)) === 1, "the old owner to know");
  const [moved, stayed] = await told(cache, moves, stays);
  assert.match(moved, new RegExp(`^unknown .*no watermark of shard ${worker.shards.get(0)}`));
  assert.equal(stayed, "fresh");
  assert.deepEqual(await cache.getMany("product", [moves, stays]), values(moves, stays));
  await worker.adopt(moves);
  assert.deepEqual(await told(cache, moves, stays), ["fresh", "fresh"]);
  // Here the guard goes first.
  await cluster.beginMove(slotOf(guarded), 2);
  await cluster.moveKeys(slotOf(guarded), 2, guardKey("shop", slotOf(guarded)));
  assert.deepEqual(await told(cache, guarded), [moving]);
});

test("a read that waits sees the shard adopt, and its watermark move", { skip }, async (context) => {
  const { cluster, worker, open } = await emptied(context);
  const [id] = await idsAt(cluster, 0, 1);
  await worker.write(1, id);
  await worker.drop(id);
  const read = (await open()).get("product", id, { token: tokenOf(10), waitMs: LIMIT_MS });
  await worker.adopt(id);
  await worker.reach(9);
  await worker.write(2, id);
  await worker.reach(10);
  assert.equal((await read).version, 2);
});

for (const end of ["killed", "demoted"]) {
  test(`a failover is followed (the master is ${end})`, { skip }, async (context) => {
    const { cluster, worker, open } = await started(context, { replicas: 1 });
    const ids = (await Promise.all([0, 1, 2].map((position) => idsAt(cluster, position, 2)))).flat();
    await worker.write(1, ...ids);
    await worker.reach(10);
    assert.equal(await cluster.ask(0, "WAIT", 1, 5000), 1);
    const cache = await open(cluster.url, { timeoutMs: 2_000 });
    assert.deepEqual(await told(cache, ...ids), Array(6).fill("fresh"));
    if (end === "killed") {
      await cluster.kill(0);
      await assert.rejects(cache.get("product", ids[0]), isOf(errors.Unreachable, /ECONNREFUSED|ECONNRESET|closed/));
      // The others are read on.
      assert.equal((await cache.get("product", ids[5])).version, 1);
    }
    await cluster.takeOver(3);
    await waitUntil(async () => (await cluster.owner(slotOf(ids[0]), 1)) === 3, "the others to know");
    const read = await cache.get("product", ids[0], { token: tokenOf(10), waitMs: LIMIT_MS });
    assert.deepEqual(read, { id: ids[0], version: 1 });
    assert.deepEqual(await told(cache, ...ids), Array(6).fill("fresh"));
  });
}

test("a replica is never read", { skip }, async (context) => {
  const { cluster, worker } = await started(context, { replicas: 1 });
  const [id] = await idsAt(cluster, 0, 1);
  await worker.write(1, id);
  assert.equal(await cluster.ask(0, "WAIT", 1, 5000), 1);
  const client = new Client([{ host: "127.0.0.1", port: cluster.ports[3] }], { redisOptions: { readOnly: true } });
  context.after(() => client.disconnect());
  const nodes = new Nodes(client, 2_000);
  context.after(() => nodes.close());
  const [reply] = await nodes.ask(`127.0.0.1:${cluster.ports[3]}`, [["get", `product:${id}`]]);
  assert.match(reply.message, new RegExp(`^MOVED ${slotOf(id)} .*:${cluster.ports[0]}$`));
});

test("nodes that hang or are gone are passed over", { skip }, async (context) => {
  const { cluster, worker, open } = await emptied(context);
  const [id] = await idsAt(cluster, 0, 1);
  await worker.write(1, id);
  const [silent, began] = [await hung(context), performance.now()];
  const cache = await open(`redis+cluster://127.0.0.1:${silent},127.0.0.1:1,127.0.0.1:${cluster.ports[2]}`, { timeoutMs: 20_000 });
  assert.deepEqual(await cache.get("product", id), { id, version: 1 });
  assert.ok(performance.now() - began < 10_000);
  await assert.rejects(open(`redis+cluster://127.0.0.1:${silent},127.0.0.1:1`, { timeoutMs: 500 }), isOf(errors.Unreachable));
});

test("a master that hangs takes no longer than the limit, and the others are read on", { skip }, async (context) => {
  const { cluster, worker, open } = await started(context);
  const [[hangs], [runs]] = [await idsAt(cluster, 0, 1), await idsAt(cluster, 1, 1)];
  await worker.write(1, hangs, runs);
  await worker.reach(10);
  const cache = await open(cluster.url, { timeoutMs: 1_000 });
  assert.deepEqual(await told(cache, hangs, runs), ["fresh", "fresh"]);
  cluster.processes[0].kill("SIGSTOP");
  const began = performance.now();
  await assert.rejects(cache.get("product", hangs), isOf(errors.Unreachable, /timed? ?out/i));
  await assert.rejects(cache.get("product", hangs, { token: tokenOf(10), waitMs: 200 }), isOf(errors.Unreachable, /in time|timed? ?out/i));
  assert.deepEqual(await told(cache, runs), ["fresh"]);
  assert.ok(performance.now() - began < 8_000);
  cluster.processes[0].kill("SIGCONT");
  assert.equal((await cache.get("product", hangs, { token: tokenOf(10), waitMs: LIMIT_MS })).version, 1);
});

test("an event is heard whatever node it is published on", { skip }, async (context) => {
  const { cluster, open } = await emptied(context);
  const cache = await open();
  assert.equal(await cache.publish({ key: "product:1" }), 0);
  for (const port of cluster.ports) {
    const client = new Redis(port);
    context.after(() => client.disconnect());
    const heard = new Promise((resolve) => client.on("message", (_channel, message) => resolve(JSON.parse(message))));
    await client.subscribe("c");
    assert.equal(await cache.publish({ key: "product:1" }), 1);
    assert.deepEqual(await heard, { key: "product:1" });
    await client.unsubscribe();
  }
});

test("a durable event is added where its stream is now", { skip }, async (context) => {
  const { cluster, worker, open } = await started(context);
  await worker.takeEvents("events");
  const [cache, slot] = [await open(), clusterSlot("events")];
  const added = [await cache.publish({ key: "product:1" }, { durable: true })];
  const target = ((await cluster.owner(slot)) + 1) % 3;
  await cluster.beginMove(slot, target);
  await cluster.moveKeys(slot, target);
  added.push(await cache.publish({ keys: ["product:2"] }, { durable: true }));
  await cluster.endMove(slot, target);
  added.push(await cache.publish({ key: "product:3" }, { durable: true }));
  const entries = await cluster.ask(target, "XRANGE", "events", "-", "+");
  assert.deepEqual(entries.map(([id]) => id), added);
  assert.deepEqual(entries[1][1], ["keys", '["product:2"]']);
});

test("what does not work on a cluster says what to do", { skip }, async (context) => {
  const { cluster, open } = await emptied(context);
  const cache = await open();
  await assert.rejects(cache.write("product", { id: 1 }), isOf(errors.InvalidWrite, /on a cluster yet: write to Postgres/));
  const durable = cache.publish({ key: "product:1" }, { durable: true });
  await assert.rejects(durable, isOf(errors.InvalidInput, /no stream for events: publish without `durable`/));
  await assert.rejects(connect(cluster.url, "other"), isOf(errors.NotRegistered, /"other" in redis cluster at .*no shard has a directory/));
  // The directory is another node's, or entries are.
  const owner = await cluster.owner(clusterSlot(watermarkKey("shop")));
  const single = await open(`redis://127.0.0.1:${cluster.ports[owner]}/0`);
  const [id] = await idsAt(cluster, 0, 1);
  await assert.rejects(single.read("product", id, { token: tokenOf(1) }), isOf(errors.RedisRefused, /is a node of a cluster .*redis\+cluster:\/\//));
  const other = cluster.ports[(owner + 1) % 3];
  await assert.rejects(open(`redis://127.0.0.1:${other}/0`), isOf(errors.RedisRefused, /is a node of a cluster .*redis\+cluster:\/\//));
});

test("a server alone is no cluster", async (context) => {
  const port = await serve(context, { cluster: "-ERR This instance has cluster support disabled\r\n" });
  const refused = connect(`redis+cluster://127.0.0.1:${port}`, "shop");
  await assert.rejects(refused, isOf(errors.InvalidInput, /no node of a cluster: its URL begins with redis:/));
});

test("a client of a cluster is taken with its settings, and stays open", { skip }, async (context) => {
  const { cluster, worker, open } = await started(context, { password: "sesame" }).catch((error) => assert.fail(error));
  const [id] = await idsAt(cluster, 1, 1);
  await worker.write(1, id);
  const made = (options) => {
    const client = new Client([{ host: "127.0.0.1", port: cluster.ports[0] }], { redisOptions: { password: "sesame" }, ...options });
    context.after(() => client.disconnect());
    return client.on("error", () => {});
  };
  for (const client of [made(), made({ lazyConnect: true })]) {
    const cache = await open(client);
    assert.equal(cache.client, client);
    assert.deepEqual(await cache.get("product", id), { id, version: 1 });
    await cache.close();
    assert.equal(JSON.parse(await client.get(`product:${id}`)).version, 1);
  }
  const cache = await open(cluster.url.replace("://", "://:sesame@"));
  assert.deepEqual(await cache.get("product", id), { id, version: 1 });
  assert.doesNotMatch(String(Object(cache)[Symbol.for("nodejs.util.inspect.custom")]()), /sesame/);
  const wrong = open(cluster.url.replace("://", "://nobody:wrong@"));
  await assert.rejects(wrong, (error) => isOf(errors.PermissionDenied)(error) && !error.message.includes("wrong@"));
  // The rights of the README are enough, and without one of them it is said which are needed.
  const rights = ["+cluster|slots", "+get", "+hgetall", "+asking", "+publish"];
  const url = cluster.url.replace("://", "://reader:pw@");
  for (const given of [rights, rights.slice(1)]) {
    const words = ["ACL", "SETUSER", "reader", "reset", "on", ">pw", "~product:*", "~ck:*", "&c", ...given];
    for (const position of [0, 1, 2]) await cluster.ask(position, ...words);
    if (given === rights) assert.equal(await (await open(url)).publish({ key: "product:1" }), 0);
    else await assert.rejects(open(url), isOf(errors.PermissionDenied, /lacks a right .*cachekeeper acl/));
  }
  await assert.rejects(open(made(), { timeoutMs: 0 }), isOf(errors.InvalidInput, /timeoutMs/));
  await assert.rejects(open(made({ scaleReads: "slave" })), isOf(errors.InvalidInput, /reads from replicas/));
});

test("addresses are mapped as the client maps them", () => {
  const client = { options: { scaleReads: "master", natMap: { "10.0.0.1:1": { host: "h", port: 7 } } }, nodes: () => [], startupNodes: ["a:1", 2] };
  const { map } = new Nodes(client, 1_000);
  assert.deepEqual(map.seeds, ["a:1", "127.0.0.1:2"]);
  assert.ok(map.note([[0, 5, ["10.0.0.1", 1, "id"]], [6, 7, ["", 9, "id"], ["r", 1, "id"]]], "asked:5"));
  assert.deepEqual([map.owner(5), map.owner(6), map.owner(8), map.masters()], ["h:7", "asked:9", undefined, ["asked:9", "h:7"]]);
  assert.equal(new ClusterMap(["a:1"]).note([], "a:1"), false);
});

test("URLs of clusters are those of the worker", async () => {
  assert.deepEqual(parseNodes("rediss+cluster://us:p%40ss@one:1,two,[::1]:3/"), {
    nodes: [{ host: "one", port: 1 }, { host: "two", port: 6379 }, { host: "::1", port: 3 }],
    redisOptions: { username: "us", password: "p@ss", tls: {} },
  });
  assert.equal(parseNodes("redis://h"), undefined);
  for (const url of ["redis+cluster://", "redis+cluster://a:x", "redis+cluster://a:1,", "redis+cluster://a:1/3", "redis+cluster://a:99999"]) {
    await assert.rejects(connect(url, "shop"), isOf(errors.InvalidInput), url);
  }
});
