// What callers give, what Redis tells, and what is made of it.

import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, takeToken, Token } from "../lib/index.js";
import * as errors from "../lib/errors.js";
import { build, explain, parseSentinels } from "../lib/connection.js";
import { Directory } from "../lib/directory.js";
import { judge } from "../lib/reading.js";
import { Template } from "../lib/template.js";
import { Command, outcomeOf } from "../lib/writes.js";

const SERVICE = {
  version: 1,
  events: { channels: ["c"], stream: null },
  writes: { stream: "w", reply_prefix: "r:" },
  later: "ignored",
};

function entries(key = "product:{id}", more = {}) {
  return { key, format: "json", rows: "one", compression: null, negative: false, write: true, ...more };
}

function directory(datasets) {
  const told = Object.entries(datasets).map(([name, one]) => [`dataset:${name}`, JSON.stringify(one)]);
  return Directory.parse({ service: JSON.stringify(SERVICE), ...Object.fromEntries(told) }, "shop", "redis at h:1");
}

test("a namespace that nobody registered is named", () => {
  const parse = (fields) => () => Directory.parse(fields, "shop", "redis at h:1");
  assert.throws(parse({}), (error) => error instanceof errors.NotRegistered && /"shop".*h:1.*ck:\{shop:0\}/.test(error.message));
  assert.throws(parse({ service: JSON.stringify({ ...SERVICE, version: 2 }) }), errors.UnsupportedVersion);
});

test("a key belongs to one dataset, or it is asked which", () => {
  const found = directory({ product: entries(), other: entries("{any}"), stock: entries("stock:{id}:{city}") });
  assert.equal(found.dataset("stock").key([42, "berlin"]), "stock:42:berlin");
  assert.equal(found.dataset("stock").key({ city: "berlin", id: 42n }), "stock:42:berlin");
  assert.equal(found.ofKey("elsewhere").name, "other");
  assert.throws(() => found.ofKey("product:1"), /other, product/);
  assert.throws(() => found.dataset("prodcut"), /no dataset "prodcut"; it has: other, product, stock/);
  for (const id of [42, [1, 2, 3], { id: 1 }, [1, null], [1, true], [1, 1.5], [1, ""], [1, 2 ** 53], null, undefined]) {
    assert.throws(() => found.dataset("stock").key(id), /dataset stock: /);
  }
  assert.equal(new Template("k:{a}").render(2n ** 70n), `k:${2n ** 70n}`);
});

test("a verdict needs the life, the cover and the snapshot", () => {
  const token = Token.parse("life/1:100:");
  const nowMs = Date.parse("2026-01-01T12:00:01Z");
  const check = (expected, more = {}, behindMs = undefined) => {
    const told = { incarnation: "life", snapshot: "1:100:", as_of: "2026-01-01T12:00:00.12345+00:00", not_covered: [], ...more };
    const verdict = judge(Buffer.from(JSON.stringify(told)), token, "product", nowMs);
    assert.deepEqual([verdict.freshness, verdict.behindMs], [expected, behindMs]);
    assert.equal(verdict.reason === "", expected === "fresh");
  };
  check("fresh");
  check("fresh", { not_covered: ["other"] });
  check("stale", { snapshot: "1:99:" }, 877);
  check("stale", { snapshot: "1:99:", as_of: "2026-01-01T12:00:05Z" }, 0);
  check("unknown", { incarnation: "other" });
  check("unknown", { not_covered: ["product"] });
  check("unknown", { snapshot: "none" });
  assert.equal(judge(null, token, "product", nowMs).freshness, "unknown");
  assert.equal(judge(Buffer.from("[]"), token, "product", nowMs).freshness, "unknown");
});

test("the same parameters are the same bytes", () => {
  const known = directory({ product: entries(), page: entries("page:{id}", { write: false }) });
  const params = { b: 2n ** 64n, a: Buffer.from([0, 255]), d: new Date("2026-01-02T00:00:00Z"), n: null, c: { z: 1, y: [true] } };
  const command = new Command(known, "product", params, "one");
  const text = '{"a":"\\\\x00ff","b":"18446744073709551616","c":{"y":[true],"z":1},"d":"2026-01-02T00:00:00.000Z","n":null}';
  assert.equal(command.params, text);
  assert.deepEqual(command.fields("r:1"), ["dataset", "product", "id", "one", "params", text, "reply", "r:1"]);
  const refused = [
    ["page", {}], ["product", []], ["product", null], ["product", { a: NaN }], ["product", { a: undefined }], ["product", new Map()],
    ["product", { a: () => 1 }], ["product", {}, ""], ["product", {}, "x".repeat(201)], ["product", {}, 7],
    ["product", { a: "x".repeat(1 << 20) }],
  ];
  for (const given of refused) assert.throws(() => new Command(known, ...given), errors.InvalidWrite, String(given));
});

test("a reply is a result, or an error with the worker's text", () => {
  const written = outcomeOf("one", { ok: true, rows: 1, token: "life/1:2:", cache: "stored" });
  assert.deepEqual([written.rows, String(written.token), written.isCached], [1, "life/1:2:", true]);
  const rejected = () => outcomeOf("one", { ok: false, error: "no row was touched" });
  assert.throws(rejected, (error) => error instanceof errors.WriteRejected && error.message === "no row was touched" && error.id === "one");
});

test("a token is taken after the commit only", async () => {
  const client = (token, isOpen) => ({ query: async () => ({ rows: [{ token, is_open: isOpen }] }) });
  assert.equal(String(await takeToken(client("life/1:2:", false))), "life/1:2:");
  await assert.rejects(takeToken(client("life/1:2:", true)), /after the commit/);
  await assert.rejects(takeToken(client(null, false)), /no worker has seen/);
});

test("URLs of sentinels are read", () => {
  const found = parseSentinels("rediss+sentinel://me:p%40ss@a:1,b/shop/3");
  assert.deepEqual(found.sentinels, [{ host: "a", port: 1 }, { host: "b", port: 26379 }]);
  assert.deepEqual([found.name, found.db, found.username, found.password], ["shop", 3, "me", "p@ss"]);
  assert.equal(parseSentinels("redis://h/0"), undefined);
  for (const url of ["redis+sentinel://a:1", "redis+sentinel:///shop", "redis+sentinel://a:1/shop/x"]) {
    assert.throws(() => parseSentinels(url), errors.InvalidInput);
  }
});

test("errors are of their kind and tell no secret", async () => {
  const reply = (message) => Object.assign(new Error(message), { name: "ReplyError" });
  const cases = [
    [Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" }), errors.Unreachable, "cannot be reached"],
    [new Error("Command timed out"), errors.Unreachable, "timed out"],
    [reply("LOADING Redis is loading"), errors.Unreachable, "LOADING"],
    [reply("READONLY You can't write"), errors.Unreachable, "READONLY"],
    [reply("WRONGPASS invalid"), errors.PermissionDenied, "login"],
    [reply("NOPERM this user"), errors.PermissionDenied, "acl --for reader"],
    [reply("OOM command not allowed"), errors.RedisRefused, "OOM"],
  ];
  for (const [error, kind, said] of cases) {
    const explained = explain(error, "read", "redis at h:1", "reader");
    assert.equal(explained.constructor, kind, explained.message);
    assert.match(explained.message, new RegExp(said));
  }
  await assert.rejects(connect("redis://me:secret@127.0.0.1:1/0", "shop"), (error) => {
    assert.ok(error instanceof errors.Unreachable, error.stack);
    assert.match(error.message, /127\.0\.0\.1:1/);
    assert.doesNotMatch(error.message, /secret/);
    return true;
  });
  for (const url of ["http://h", "h:6379"]) await assert.rejects(connect(url, "shop"), errors.InvalidInput);
  await assert.rejects(connect("redis://127.0.0.1:1", ""), errors.InvalidInput);
});

test("options of TLS hold for every kind of URL", () => {
  const settingsOf = ({ client }) => client.options.redisOptions ?? client.options;
  for (const url of ["rediss://h/0", "rediss+sentinel://h/shop/0", "rediss+cluster://h"]) {
    const { tls } = settingsOf(build(url, 1_000, { tls: { ca: "a" } }));
    assert.equal(tls.ca, "a", url);
    assert.ok(settingsOf(build(url, 1_000, {})).tls, url);
  }
});
