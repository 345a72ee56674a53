// Calls the package for Node as client.py does the one for Python: names and units of what is called are Node's here.
//
// client.mjs URL NAMESPACE

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.READERS}/`));
const { CachekeeperError, connect } = await import(pathToFileURL(require.resolve("cachekeeper")));

const camel = (name) => name.replace(/_(.)/g, (_whole, first) => first.toUpperCase());
const snake = (name) => name.replace(/[A-Z]/g, (one) => `_${one.toLowerCase()}`);

// Seconds are milliseconds here, and their names say so.
function optionsOf(options) {
  const own = ([name, value]) => (["wait", "timeout"].includes(name) ? [`${name}Ms`, 1000 * value] : [name, value]);
  return Object.fromEntries(Object.entries(options).map(own));
}

// As JSON can say it; fields of this package's own have Python's names, and what there is none of is left out.
function plain(value, isOwn = false) {
  if (Buffer.isBuffer(value) || value instanceof Uint8Array) return { hex: Buffer.from(value).toString("hex") };
  if (typeof value === "bigint") return { int: String(value) };
  if (Array.isArray(value)) return value.map((one) => plain(one, isOwn));
  if (value === null || typeof value !== "object" || typeof value.toJSON === "function") return value;
  const isReading = isOwn || "isFresh" in value || "isCached" in value;
  const fields = Object.entries(value).map(([name, one]) => [isReading ? snake(name) : name, plain(one)]);
  return Object.fromEntries(fields);
}

const [url, namespace] = process.argv.slice(2);
let cache;
for await (const line of createInterface({ input: process.stdin })) {
  const [method, args, options] = JSON.parse(line);
  let told;
  try {
    cache ??= await connect(url, namespace, { timeoutMs: 20_000 });
    told = { value: plain((await cache[camel(method)](...args, optionsOf(options))) ?? null) };
  } catch (error) {
    if (!(error instanceof CachekeeperError)) throw error;
    told = { error: error.name, message: error.message };
  }
  console.log(JSON.stringify(told));
}
await cache?.close();
