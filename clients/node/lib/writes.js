// Writes that are handed over: what is put into the stream, and what the reply says.

import { randomUUID } from "node:crypto";
import { InvalidWrite, WriteRejected } from "./errors.js";
import { shown } from "./template.js";
import { Token } from "./tokens.js";

const ID_BYTES_MAX = 200;
const COMMAND_BYTES_MAX = 1 << 20;
// A write, as it stands in the stream.
export class Command {
  constructor(directory, dataset, params, id = randomUUID()) {
    this.stream = directory.writesTo(dataset);
    const idBytes = typeof id === "string" && id.isWellFormed() ? Buffer.byteLength(id) : 0;
    if (idBytes === 0 || ID_BYTES_MAX < idBytes || id.includes("\0")) {
      throw new InvalidWrite(`the id of a write is text of 1 to ${ID_BYTES_MAX} bytes, not ${shown(id)}`);
    }
    this.dataset = dataset;
    this.id = id;
    this.params = paramsOf(params);
    if (COMMAND_BYTES_MAX - 4096 < Buffer.byteLength(this.params)) {
      throw new InvalidWrite(`a write has at most ${COMMAND_BYTES_MAX} bytes`);
    }
  }

  // Names and values of the stream's entry.
  fields(reply) {
    return ["dataset", this.dataset, "id", this.id, "params", this.params, "reply", reply];
  }
}

// What a reply says; throws WriteRejected where the write was not carried out.
export function outcomeOf(id, reply) {
  if (!reply.ok) throw new WriteRejected(String(reply.error), id, reply);
  const token = reply.token ? Token.parse(reply.token) : null;
  return Object.freeze({ id, rows: reply.rows, token, isCached: reply.cache === "stored", reply });
}

function paramsOf(params) {
  if (!isPlain(params)) {
    throw new InvalidWrite(`the parameters of a write are an object from names to values, not ${shown(params)}`);
  }
  try {
    return JSON.stringify(sendable(params, "the parameters"));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new InvalidWrite("the parameters of a write cannot be sent: they hold themselves, or are too deep", { cause: error });
  }
}

// A value that JSON can say and Postgres reads, with names in order: the same parameters are the same bytes, because under one id
// others would be refused.
function sendable(value, what) {
  if (typeof value === "string") {
    if (value.isWellFormed()) return value;
    throw new InvalidWrite(`${what} is ${shown(value)}, which is no valid text`);
  }
  if (value === null || typeof value === "boolean") return value;
  if (typeof value === "number") {
    if (!Number.isFinite(value)) throw new InvalidWrite(`${what} is ${value}: give a number, or text`);
    return value;
  }
  if (typeof value === "bigint") return String(value);
  if (value instanceof Date && !Number.isNaN(value.getTime())) return value.toISOString();
  if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString("hex")}`;
  if (Array.isArray(value)) return value.map((one) => sendable(one, `a member of ${what}`));
  if (isPlain(value)) {
    const names = Object.keys(value).sort();
    return Object.fromEntries(names.map((name) => [sendable(name, "a name"), sendable(value[name], name)]));
  }
  throw new InvalidWrite(`${what} is ${shown(value)}, which has no text that Postgres is known to read: give one`);
}

function isPlain(value) {
  if (value === null || typeof value !== "object") return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}
