// An application in Node that does not write to Postgres itself: it hands its writes over and learns what became of each.
//
// writer.mjs URL NAME WRITES ACCOUNTS      pays into accounts 1 to ACCOUNTS in turn; ends with an error if one write went wrong
//
// A write is an entry of the stream: the dataset, the parameters of its write statement (here as MessagePack), an id by which
// the worker knows it again (so that a program that got no reply may send it once more), and the list on which it is answered.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.READERS}/`));
const Redis = require("ioredis");
const { encode } = require("@msgpack/msgpack");

const BATCH = 500;
const PATIENCE = 60; // seconds without any reply

// Sends everything, many entries a round trip, and waits for nothing. Answers the ids.
async function handOver(client, name, writes, accounts) {
  const ids = new Set();
  for (let begin = 0; begin < writes; begin += BATCH) {
    const pipeline = client.pipeline();
    for (let at = begin; at < Math.min(begin + BATCH, writes); at += 1) {
      const [account, number] = [(at % accounts) + 1, Math.floor(at / accounts) + 1];
      const params = Buffer.from(encode({ id: account, producer: name, number, amount: 1 }));
      const id = `${name}/${account}/${number}`;
      ids.add(id);
      pipeline.xadd("cache:writes", "*", "dataset", "account", "id", id, "params", params, "reply", `cache:reply:${name}`);
    }
    for (const [error] of await pipeline.exec()) if (error) throw error;
  }
  return ids;
}

// Yields replies as they come.
async function* replies(client, name) {
  for (;;) {
    const first = await client.blpop(`cache:reply:${name}`, PATIENCE);
    if (first === null) return;
    const more = (await client.lpop(`cache:reply:${name}`, BATCH)) ?? [];
    for (const text of [first[1], ...more]) yield JSON.parse(text);
  }
}

const [url, name, writes, accounts] = process.argv.slice(2);
const client = new Redis(url);
const waiting = await handOver(client, name, Number(writes), Number(accounts));
for await (const reply of replies(client, name)) {
  if (!reply.ok || reply.rows !== 1 || !reply.token) throw new Error(`not carried out: ${JSON.stringify(reply)}`);
  if (!waiting.delete(reply.id)) {
    throw new Error(`nobody waits for this reply, or it came twice: ${JSON.stringify(reply)}`);
  }
  if (waiting.size === 0) break;
}
if (0 < waiting.size) {
  const [one] = waiting;
  throw new Error(`${waiting.size} writes were not answered within ${PATIENCE} seconds, such as ${one}`);
}
await client.quit();
