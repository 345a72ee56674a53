// The states of datasets, verdicts and touches: their words, how grave they are, and what they mean.

import { el } from "./dom.js";
import { span } from "./format.js";

/** The watermark moves about each second. Where it is older than this, nobody would call its entries fresh. */
const FRESH_WITHIN_MS = 10_000;

const DATASETS = {
  broken: ["broken", "bad", "Its query fails, so nothing of it can be loaded."],
  not_covered: ["not covered", "bad", "Changes of it may be missed: the watermark does not speak for it."],
  left_out: ["left out", "warn", "Changed entries cannot be loaded now. They keep their values, and the watermark leaves it out."],
  superseded: ["superseded", "warn", "Another worker has another definition of it. This one loads nothing of it."],
  pending: ["pending", "warn", "Its entries are to be revalidated."],
  paused: ["paused", "calm", "A person has paused its backfills, its refreshing ahead and its audit. Changes are applied."],
  not_warmed: ["not warmed", "warn", "Its first backfill has not ended yet."],
  not_known: ["not known", "warn", "Redis cannot be reached, so nothing new is known of its entries."],
  behind: ["not fresh", "warn", "Its entries are older than they mostly are."],
  fresh: ["fresh", "good", "Every entry is at least as fresh as the watermark."],
};

const VERDICTS = {
  right: ["Right", "good"],
  absent: ["Absent", "calm"],
  behind: ["Behind", "warn"],
  wrong: ["Wrong", "bad"],
  unknown: ["Unknown", "warn"],
  foreign: ["Not one of ours", "calm"],
};

const TOUCHES = { stored: "good", gone: "calm", deleted: "calm", refused: "warn", failed: "bad" };

export const KINDS = Object.keys(TOUCHES);

const known = (list, state) => list[state] ?? [String(state).replaceAll("_", " "), "calm", ""];

const word = ([label, mood, meaning]) => el("span", { class: `word ${mood}`, title: meaning || null }, label);

export const datasetWord = (state) => word(known(DATASETS, state));
export const datasetMood = (state) => known(DATASETS, state)[1];
export const datasetMeaning = (state) => known(DATASETS, state)[2] ?? "";
export const verdict = (state) => known(VERDICTS, state);
export const touchWord = (what) => word([what, TOUCHES[what] ?? "calm"]);
export const tick = (is) => el("span", { class: `tick ${is ? "good" : "bad"}` }, is ? "✓ yes" : "✗ no");
export const upWord = (isUp) => word(isUp ? ["up", "good"] : ["down", "bad"]);

/** Why no dataset is fresh, by what the machine room says: `{state, why, means}`; null: nothing that concerns all of them. */
export function outage({ servers, reasons }) {
  const isDown = (server) => servers.some(({ name, is_up: isUp }) => name === server && !isUp);
  if (isDown("redis")) return { state: "not_known", why: "Redis cannot be reached", means: "how fresh the datasets are is not known" };
  if (isDown("postgres")) return { state: "behind", why: "Postgres cannot be reached", means: "entries stay readable and grow old" };
  if (reasons.some((reason) => reason.startsWith("feed: "))) {
    return { state: "behind", why: "Changes are not followed, or not fast enough", means: "entries grow old" };
  }
  return null;
}

/** A dataset as it is said: the worker calls fresh also what it cannot know of, or what the watermark has left behind. */
export function settled(one, trouble) {
  const stored = one.last_backfill_entries ?? one.backfills?.at(-1)?.stored ?? null;
  const age = one.age_ms === null ? null : `as fresh as ${span(one.age_ms)} ago`;
  const said = (state, ...reasons) => ({ ...one, last_backfill_entries: stored, state, reason: reasons.filter(Boolean).join("; ") || null });
  if (one.state !== "fresh") return said(one.state, one.reason);
  if (trouble?.state === "not_known") return said(trouble.state, trouble.why, age && `last known: ${age}`);
  if (trouble) return said(trouble.state, trouble.why, age);
  if (age && FRESH_WITHIN_MS < one.age_ms) return said("behind", age);
  return said(one.state, one.reason);
}

/** The gravest first. */
export function byGravity(a, b) {
  const order = Object.keys(DATASETS);
  return order.indexOf(a.state) - order.indexOf(b.state) || a.name.localeCompare(b.name);
}
