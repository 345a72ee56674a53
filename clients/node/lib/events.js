// Events: checked as the worker checks them, before they are sent.

import { InvalidEvent, InvalidInput } from "./errors.js";
import { shown, textOf } from "./template.js";

const EVENT_BYTES_MAX = 1 << 20;
const TEXT_BYTES_MAX = 10 * 1024;
const MEMBERS_MAX = 100_000;
const ID_PARTS_MAX = 32;
const NAMES = ["op", "id", "at", "key", "keys", "tag", "tags", "dataset", "ids"];

// The event as it is sent; throws InvalidEvent where the worker would not take it, or knows no such dataset.
export function checkEvent(event, directory) {
  if (event === null || typeof event !== "object" || Array.isArray(event)) {
    throw new InvalidEvent(`an event is an object such as { key: "product:42" }, not ${shown(event)}`);
  }
  const unknown = Object.keys(event).filter((name) => !NAMES.includes(name));
  if (0 < unknown.length) {
    throw new InvalidEvent(`an event has no field ${unknown.join(", ")}; it has ${NAMES.join(", ")}`);
  }
  const given = Object.entries(event).filter(([, value]) => value !== null && value !== undefined);
  const checked = Object.fromEntries(given);
  for (const name of ["id", "key", "tag", "dataset"]) if (name in checked) checkText(`\`${name}\``, checked[name]);
  for (const name of ["keys", "tags", "ids"]) if (name in checked) checked[name] = checkList(name, checked[name]);
  for (const key of [...(checked.keys ?? []), checked.key ?? ""]) {
    if (key.startsWith("ck:")) throw new InvalidEvent(`keys under ck: belong to Cachekeeper: ${shown(key.slice(0, 60))}`);
  }
  if (!["refresh", "delete"].includes(checked.op ?? "refresh")) {
    throw new InvalidEvent(`\`op\` must be "refresh" or "delete", not ${shown(checked.op)}`);
  }
  const at = checked.at ?? 0;
  if (!Number.isSafeInteger(at) || at < 0) {
    throw new InvalidEvent(`\`at\` must be a number of milliseconds, not ${shown(at)}`);
  }
  checkTarget(checked, directory);
  return checked;
}

// A checked event as a message of pub/sub.
export function messageOf(event) {
  const message = toJson(event);
  const bytes = Buffer.byteLength(message);
  if (EVENT_BYTES_MAX < bytes) throw new InvalidEvent(`the event has ${bytes} bytes, at most ${EVENT_BYTES_MAX} are read`);
  return message;
}

// A checked event as names and values of an entry of the stream.
export function fieldsOf(event) {
  messageOf(event);
  return Object.entries(event).flatMap(([name, value]) => [name, Array.isArray(value) ? toJson(value) : String(value)]);
}

// BigInts are text: an id means the same.
const toJson = (value) => JSON.stringify(value, (_name, one) => (typeof one === "bigint" ? String(one) : one));

function checkTarget(event, directory) {
  if ("ids" in event && !("dataset" in event)) throw new InvalidEvent("`ids` need the `dataset` that they are of");
  if (!["key", "keys", "tag", "tags", "dataset"].some((name) => name in event)) {
    throw new InvalidEvent("no `key`, `keys`, `tag`, `tags` or `dataset` is named");
  }
  if (directory === undefined || !("dataset" in event)) return;
  const { columns } = directory.dataset(event.dataset).template;
  for (const id of event.ids ?? []) {
    const count = Array.isArray(id) ? id.length : 1;
    if (count !== columns.length) {
      const what = `an id of ${event.dataset} has ${columns.length} parts (${columns.join(", ")})`;
      throw new InvalidEvent(`${what}: ${shown(id)}`);
    }
  }
}

function checkText(what, value) {
  if (typeof value !== "string") throw new InvalidEvent(`${what} must be text, not ${shown(value)}`);
  if (!value.isWellFormed()) throw new InvalidEvent(`${what} is no valid text`);
  const bytes = Buffer.byteLength(value);
  if (bytes === 0 || TEXT_BYTES_MAX < bytes) {
    throw new InvalidEvent(`${what} has ${bytes} bytes; it takes 1 to ${TEXT_BYTES_MAX}`);
  }
  return value;
}

function checkList(name, value) {
  if (!Array.isArray(value) || value.length === 0) {
    throw new InvalidEvent(`\`${name}\` must be a list that is not empty, not ${shown(value)}`);
  }
  if (MEMBERS_MAX < value.length) throw new InvalidEvent(`\`${name}\` has more than ${MEMBERS_MAX} members`);
  const what = `a member of \`${name}\``;
  return value.map((one) => (name === "ids" ? checkId(what, one) : checkText(what, one)));
}

function checkId(what, value) {
  if (!Array.isArray(value)) return checkScalar(what, value);
  if (value.length === 0 || ID_PARTS_MAX < value.length) {
    throw new InvalidEvent(`${what} has ${value.length} parts; it takes 1 to ${ID_PARTS_MAX}`);
  }
  return value.map((part) => checkScalar(what, part));
}

function checkScalar(what, value) {
  try {
    checkText(what, textOf(value, what));
    return value;
  } catch (error) {
    throw error instanceof InvalidInput ? new InvalidEvent(error.message) : error;
  }
}
