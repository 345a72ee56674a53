// What calls do where Redis is gone or silent, or the cache closed. Redis is played here.

import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import { test } from "node:test";
import { connect } from "../lib/index.js";
import * as errors from "../lib/errors.js";

const DIRECTORY = {
  service: JSON.stringify({
    version: 1,
    events: { channels: ["c"], stream: null },
    writes: { stream: "w", reply_prefix: "r:" },
  }),
  "dataset:product": JSON.stringify({
    key: "product:{id}", format: "json", rows: "one", compression: null, negative: false, write: true,
  }),
};

// As much of Redis as the calls need. `losses`: commands that fail from now on; `silent`: the command that is never answered.
class Client extends EventEmitter {
  options = { host: "h", port: 1 };
  asked = [];
  losses = 0;
  silent = undefined;
  replies = [];
  waiting = undefined;

  async #ask(name) {
    this.asked.push(name);
    if (name === this.silent) await new Promise(() => {});
    if (0 < this.losses) {
      this.losses -= 1;
      throw Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" });
    }
  }

  hgetall = () => this.#ask("hgetall").then(() => DIRECTORY);
  mgetBuffer = (keys) => this.#ask("mget").then(() => keys.map(() => Buffer.from('{"id":1}')));
  publish = () => this.#ask("publish").then(() => 1);
  ping = () => this.#ask("ping");
  xadd = async (_stream, _star, ...fields) => {
    await this.#ask("xadd");
    const reply = JSON.stringify({ id: fields[fields.indexOf("id") + 1], ok: true, rows: 1 });
    if (this.waiting === undefined) this.replies.push(reply);
    else this.waiting(["r", reply]);
  };

  // The connection for replies.
  duplicate() {
    const blpop = () =>
      new Promise((resolve) => {
        if (0 < this.replies.length) return resolve(["r", this.replies.shift()]);
        this.waiting = (reply) => {
          this.waiting = undefined;
          resolve(reply);
        };
      });
    return Object.assign(new EventEmitter(), { blpop, lpop: async () => null, disconnect() {} });
  }
}

// A cache, and what makes its directory older than its limit.
async function played(context) {
  const [client, clock] = [new Client(), performance.now.bind(performance)];
  let ahead = 0;
  context.mock.method(performance, "now", () => clock() + ahead);
  const cache = await connect(client, "shop");
  return { cache, client, age: () => (ahead += 60_000) };
}

test("an old directory serves where it cannot be read again", async (context) => {
  const { cache, client, age } = await played(context);
  const calls = [
    [() => cache.get("product", 1), "mget"],
    [() => cache.publish({ dataset: "product" }), "publish"],
    [() => cache.write("product", { id: 1 }), "xadd"],
  ];
  for (const [call, name] of calls) {
    age();
    [client.asked, client.losses] = [[], 1];
    await call();
    assert.equal(client.asked[0], "hgetall");
    assert.ok(client.asked.includes(name));
  }
  age();
  client.losses = 2;
  assert.equal((await cache.write("product", { id: 1 })).rows, 1);
  age();
  client.losses = 1;
  await assert.rejects(cache.get("other", 1), errors.Unreachable);
  const first = Object.assign(new Client(), { losses: 1 });
  await assert.rejects(connect(first, "shop"), errors.Unreachable);
});

test("a write ends within its limit, whatever is silent, and says whether it was sent", async (context) => {
  for (const [silent, kind] of [["hgetall", errors.Unreachable], ["ping", errors.Unreachable], ["xadd", errors.WriteUnknown]]) {
    const { cache, client, age } = await played(context);
    age();
    client.silent = silent;
    await assert.rejects(cache.write("product", { id: 1 }, { timeoutMs: 20 }), kind, silent);
    context.mock.restoreAll();
  }
});

test("what was given up is not sent later", async (context) => {
  const { cache, client } = await played(context);
  let answer;
  client.ping = () => new Promise((resolve) => (answer = resolve));
  await assert.rejects(cache.write("product", { id: 1 }, { timeoutMs: 20 }), errors.Unreachable);
  answer();
  await new Promise(setImmediate);
  assert.ok(!client.asked.includes("xadd"));
});

test("options of another name are refused", async (context) => {
  const { cache, client } = await played(context);
  const calls = [
    () => connect(client, "shop", { timeout: 1 }),
    () => cache.get("product", 1, { wait: 1 }),
    () => cache.readMany("product", [1], { timeoutMs: 1 }),
    () => cache.getKey("product:1", { wait: 1 }),
    () => cache.publish({ key: "product:1" }, { durably: true }),
    () => cache.write("product", {}, { timeout: 1 }),
    () => cache.write("product", {}, null),
  ];
  for (const call of calls) await assert.rejects(call(), /^InvalidInput: (there is no option|options are)/, String(call));
});

test("a closed cache says so", async (context) => {
  const { cache } = await played(context);
  await cache.close();
  const calls = [
    () => cache.get("product", 1),
    () => cache.publish({ key: "product:1" }),
    () => cache.write("product", { id: 1 }),
    () => cache.directory(),
  ];
  for (const call of calls) {
    await assert.rejects(call(), (error) => error instanceof errors.InvalidInput && /this cache was closed/.test(error.message));
  }
});
