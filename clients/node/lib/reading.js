// What a read found, and how fresh it is.

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

// Whether entries of a dataset, read together with this watermark, are at least as fresh as the token (R18).
export function judge(watermark, token, dataset, nowMs) {
  const unknown = (reason) => ({ freshness: "unknown", reason });
  if (watermark === null) return unknown("there is no watermark");
  let told;
  let snapshot;
  try {
    told = JSON.parse(watermark.toString());
    snapshot = parseSnapshot(told.snapshot);
    if (!Array.isArray(told.not_covered)) throw new TypeError("no list");
  } catch {
    return unknown("the watermark cannot be read");
  }
  if (told.not_covered.includes(dataset)) return unknown(`the watermark does not cover dataset ${dataset}`);
  if (told.incarnation !== token.incarnation) return unknown("token and watermark are of two incarnations of the database");
  if (token.isSeenAt(told.incarnation, snapshot)) return { freshness: "fresh", reason: "" };
  const behind = nowMs - Date.parse(told.as_of);
  const behindMs = Number.isNaN(behind) ? undefined : Math.max(0, behind);
  return { freshness: "stale", behindMs, reason: "the watermark has not reached the token" };
}

export function whyNotFresh(readings) {
  const late = readings.filter((one) => !one.isFresh);
  const more = 1 < late.length ? ` and ${late.length - 1} more` : "";
  return `${late[0].key}${more} may be older than the token: ${late[0].reason}`;
}
