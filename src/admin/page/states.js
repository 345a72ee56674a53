// The states of datasets, verdicts and touches: their words, how grave they are, and what they mean.

import { el } from "./dom.js";

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

const TOUCHES = { stored: "good", gone: "calm", deleted: "calm", refused: "warn", failed: "bad", filled: "good" };

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

/** The gravest first. */
export function byGravity(a, b) {
  const order = Object.keys(DATASETS);
  return order.indexOf(a.state) - order.indexOf(b.state) || a.name.localeCompare(b.name);
}
