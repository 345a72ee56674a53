// An application in Node: reads entries with its usual libraries, or publishes an event.
//
// reader.mjs URL get KEY…      prints each value as a line of JSON; a URL of a cluster names its nodes: redis+cluster://host:port,host:port
// reader.mjs URL publish KIND TARGET      KIND: bare, json, msgpack

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.READERS}/`));
const Redis = require("ioredis");
const { decode, encode } = require("@msgpack/msgpack");
const { decompress } = require("fzstd");

function read(value) {
  if (value === null) return { missing: true };
  let bytes = value;
  if (bytes.readUInt32LE(0) === 0xfd2fb528) bytes = Buffer.from(decompress(bytes));
  const first = String.fromCharCode(bytes[0]);
  return first === "{" || first === "[" ? JSON.parse(bytes.toString("utf8")) : decode(bytes);
}

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])]));
}

const [url, verb, ...rest] = process.argv.slice(2);
const nodes = /^redis\+cluster:\/\/(.*)$/.exec(url)?.[1].split(",");
const client = nodes === undefined ? new Redis(url) : new Redis.Cluster(nodes.map((node) => `redis://${node}`));
if (verb === "get") {
  for (const key of rest) console.log(JSON.stringify(sorted(read(await client.getBuffer(key)))));
} else {
  const [kind, target] = rest;
  const body = {
    bare: () => target,
    json: () => JSON.stringify({ key: target }),
    msgpack: () => Buffer.from(encode({ key: target })),
  }[kind]();
  await client.publish("cache:invalidation", body);
}
await client.quit();
