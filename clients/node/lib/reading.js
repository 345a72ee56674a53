// What a read found, and how fresh it is.

import { parseClusterSlots } from "./cluster.js";
import { parseSnapshot } from "./tokens.js";
import { decodeHash, decodeValue } from "./values.js";

// Keys of one round trip.
export const KEYS_MAX = 1_000;
// Milliseconds between two looks at the watermark.
export const [PAUSE_MIN_MS, PAUSE_MAX_MS] = [2, 100];

// Decodes what stood under a key.
export function readingOf(dataset, key, bytes, verdict, options) {
  let [state, value] = ["missing", undefined];
  if (bytes !== null && dataset.format === "hash") {
    [state, value] = ["hit", decodeHash(bytes)];
  } else if (bytes !== null) {
    value = decodeValue(bytes, dataset.format, key, options);
    state = value === null ? "negative" : "hit";
  }
  return Object.freeze({ key, state, value, isFresh: verdict?.freshness === "fresh", ...verdict });
}

// What a worker wrote: how far entries have come, and on a cluster the cluster slots that it holds for; undefined: it cannot be read.
export function parseWatermark(text) {
  try {
    const told = JSON.parse(text.toString());
    if (!Array.isArray(told.not_covered)) return undefined;
    const covers = told.covers === undefined || told.covers === null ? undefined : parseClusterSlots(told.covers);
    return { ...told, snapshot: parseSnapshot(told.snapshot), covers };
  } catch {
    return undefined;
  }
}

// Whether entries of a dataset, read together with this watermark, are at least as fresh as the token (R18).
export function judge(watermark, token, dataset, nowMs) {
  return watermark === null ? unknown("there is no watermark") : judged(parseWatermark(watermark), token, dataset, nowMs);
}

// The same on a cluster, for entries in this cluster slot, whose guard names the shard of this watermark.
export function judgeOnCluster(watermark, slot, token, dataset, nowMs) {
  if (watermark !== undefined && !watermark.covers?.[slot]) return unknown(`the watermark does not cover cluster slot ${slot}`);
  return judged(watermark, token, dataset, nowMs);
}

const unknown = (reason) => ({ freshness: "unknown", reason });

function judged(watermark, token, dataset, nowMs) {
  if (watermark === undefined) return unknown("the watermark cannot be read");
  if (watermark.not_covered.includes(dataset)) return unknown(`the watermark does not cover dataset ${dataset}`);
  if (watermark.incarnation !== token.incarnation) return unknown("token and watermark are of two incarnations of the database");
  if (token.isSeenAt(watermark.incarnation, watermark.snapshot)) return { freshness: "fresh", reason: "" };
  const behind = nowMs - Date.parse(watermark.as_of);
  const behindMs = Number.isNaN(behind) ? undefined : Math.max(0, behind);
  return { freshness: "stale", behindMs, reason: "the watermark has not reached the token" };
}

export function whyNotFresh(readings) {
  const late = readings.filter((one) => !one.isFresh);
  const more = 1 < late.length ? ` and ${late.length - 1} more` : "";
  return `${late[0].key}${more} may be older than the token: ${late[0].reason}`;
}
