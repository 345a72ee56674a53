// Tokens, keys, events and values, as the worker and the package for Python have them.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { ClusterMap, clusterSlot, guardKey, hashTags, parseClusterSlots, parseGuard } from "../lib/cluster.js";
import { watermarkKey } from "../lib/directory.js";
import { InvalidEvent, InvalidKey, InvalidToken, Undecodable } from "../lib/errors.js";
import { checkEvent, fieldsOf, messageOf } from "../lib/events.js";
import { OnCluster } from "../lib/on-cluster.js";
import { Template } from "../lib/template.js";
import { parseSnapshot, Token } from "../lib/tokens.js";
import { decodeValue, decompressZstdInJs } from "../lib/values.js";

const base = process.env.CACHEKEEPER_VECTORS ?? new URL("../../vectors", import.meta.url).pathname;
const vectors = (name) => JSON.parse(readFileSync(`${base}/${name}.json`, "utf8"));
const bytes = (hex) => Buffer.from(hex, "hex");

test("a token is seen by later snapshots of its own life only", () => {
  for (const one of vectors("tokens").seen) {
    const seen = Token.parse(one.token).isSeenAt(one.incarnation, parseSnapshot(one.snapshot));
    assert.equal(seen, one.seen, JSON.stringify(one));
  }
  for (const text of [...vectors("tokens").invalid, 7, null]) assert.throws(() => Token.parse(text), InvalidToken);
});

test("keys are rendered and read back as the worker does", () => {
  const given = vectors("keys");
  for (const one of given.keys) {
    const template = new Template(one.template);
    assert.deepEqual(template.columns, one.columns);
    if (one.key === undefined) {
      assert.throws(() => template.render(one.values), InvalidKey);
    } else {
      assert.equal(template.render(one.values), one.key);
      assert.deepEqual(template.read(one.key), one.values, one.template);
    }
  }
  for (const { template, keys } of given.not_of) {
    for (const key of keys) assert.equal(new Template(template).read(key), undefined, `${template} ${key}`);
  }
  for (const text of given.invalid) assert.throws(() => new Template(text), InvalidKey);
});

test("events are checked before they are sent", () => {
  const given = vectors("events");
  for (const { event } of given.valid) {
    const checked = checkEvent(event);
    const wanted = Object.fromEntries(Object.entries(event).filter(([, value]) => value !== null));
    assert.deepEqual(JSON.parse(messageOf(checked)), wanted);
    const fields = fieldsOf(checked);
    for (let at = 0; at < fields.length; at += 2) {
      assert.equal(typeof fields[at + 1], "string");
      const isList = ["keys", "tags", "ids"].includes(fields[at]);
      if (isList) assert.deepEqual(JSON.parse(fields[at + 1]), event[fields[at]]);
    }
  }
  const more = [
    { key: "a", kay: "b" }, { key: "a".repeat(10_241) }, { keys: Array(100_001).fill("a") }, { key: "\ud800" }, null, [], "a",
  ];
  for (const event of [...given.invalid, ...more]) assert.throws(() => checkEvent(event), InvalidEvent);
  const large = Array.from({ length: 1100 }, (_, at) => String(at).padStart(1000, "0"));
  assert.throws(() => messageOf(checkEvent({ keys: large })), /bytes/);
  assert.equal(messageOf(checkEvent({ dataset: "d", ids: [2n ** 63n] })), '{"dataset":"d","ids":["9223372036854775808"]}');
});

test("values of every format are read", () => {
  const given = vectors("values");
  for (const one of given.values) assert.deepEqual(decodeValue(bytes(one.bytes), one.format, "k"), one.value);
  for (const one of given.integers) {
    const value = decodeValue(bytes(one.bytes), one.format, "k");
    for (const [name, text] of Object.entries(one.integers)) {
      const isSafe = Number.isSafeInteger(Number(text));
      assert.equal(value[name], isSafe ? Number(text) : BigInt(text));
    }
    assert.equal(value.d[0], BigInt(one.last));
    const rounded = decodeValue(bytes(one.bytes), one.format, "k", { bigints: false });
    assert.equal(rounded.a, 2 ** 63);
  }
  for (const one of given.frames) {
    const { plain, times } = one.repeats ?? { plain: one.plain, times: 1 };
    const [frame, whole] = [bytes(one.frame), Buffer.concat(Array(times).fill(bytes(plain)))];
    const read = (valueBytesMax) => decodeValue(frame, "raw", "k", { valueBytesMax });
    assert.deepEqual(read(undefined), whole, one.name);
    assert.deepEqual(read(whole.length), whole, one.name);
    if (whole.length > 0) assert.throws(() => read(whole.length - 1), /larger than/, one.name);
    if (one.codec !== "zstd") continue;
    assert.deepEqual(decompressZstdInJs(frame, 1 << 20), whole, one.name);
    assert.throws(() => decompressZstdInJs(frame, whole.length - 1), /larger than/, one.name);
    assert.throws(() => decompressZstdInJs(frame.subarray(0, -8), 1 << 20), /damaged/, one.name);
  }
});

test("what cannot be read says which key", () => {
  for (const one of vectors("values").broken) {
    const read = () => decodeValue(bytes(one.bytes), one.format, "product:1");
    assert.throws(read, (error) => error instanceof Undecodable && error.key === "product:1", JSON.stringify(one));
  }
});

test("a damaged lz4 frame is an error, wherever it is damaged", () => {
  for (const one of vectors("values").frames.filter((frame) => frame.codec === "lz4")) {
    const frame = bytes(one.frame);
    for (let at = 4; at < frame.length; at += 1) {
      for (const cut of [frame.subarray(0, at), Buffer.from(frame)]) {
        if (cut.length === frame.length) cut[at] ^= 0x55;
        try {
          decodeValue(cut, "raw", "k", { valueBytesMax: 1 << 20 });
        } catch (error) {
          assert.ok(error instanceof Undecodable, `${one.name} ${at}: ${error.stack}`);
        }
      }
      if (at > 15) assert.throws(() => decodeValue(frame.subarray(0, at), "raw", "k"), Undecodable);
    }
  }
});

test("cluster slots and guards are those of the worker", () => {
  const given = vectors("cluster");
  for (const { key, slot } of given.slots) assert.equal(clusterSlot(key), slot, key);
  const tags = hashTags();
  const checksum = Buffer.from(tags.join(",")).reduce((sum, byte) => (Math.imul(sum, 31) + byte) >>> 0, 0);
  assert.deepEqual([tags.slice(0, 8), tags.slice(-2), checksum], [given.hash_tags.first, given.hash_tags.last, given.hash_tags.checksum]);
  assert.equal(new Set(tags).size, 16_384);
  for (const { namespace, key, guard } of given.guards) {
    assert.equal(guardKey(namespace, clusterSlot(key)), guard);
    assert.equal(clusterSlot(guard), clusterSlot(key));
  }
  for (const { text, shard } of given.guard_texts) assert.equal(parseGuard(text), shard);
  for (const text of given.invalid_guards) assert.equal(parseGuard(text), undefined, text);
  for (const one of given.covers) {
    const covered = parseClusterSlots(one.text);
    assert.ok(one.in.every((slot) => covered[slot]) && !one.out.some((slot) => covered[slot]), one.text);
  }
  for (const text of [...given.invalid_covers, null, 5]) assert.throws(() => parseClusterSlots(text), RangeError, text);
});

test("freshness on a cluster is that of guard and watermark", async () => {
  for (const one of vectors("cluster").verdicts) {
    const map = new ClusterMap(["h:1"]);
    assert.ok(map.note([[0, 16_383, ["h", 1, "id"]]], "h:1"));
    const key = `{${hashTags()[one.slot]}}`;
    const there = new Map([
      [guardKey("shop", one.slot), one.guard],
      [watermarkKey("shop", one.shard), one.watermark && JSON.stringify(one.watermark)],
      [key, '{"id":1}'],
    ]);
    const answer = ([, name]) => (there.get(name) ? Buffer.from(there.get(name)) : null);
    const nodes = { map, ask: async (_node, commands) => commands.map(answer) };
    const page = [{ of: { name: "product", format: "json" }, key }];
    const [found] = await new OnCluster("shop", nodes, 1_000, {}).read(page, Token.parse(one.token));
    assert.deepEqual([found.freshness, found.value], [one.freshness, { id: 1 }], JSON.stringify(one));
  }
});
