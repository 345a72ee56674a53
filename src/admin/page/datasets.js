// Datasets: one line each, what is wrong first.

import { get, repeat } from "./api.js";
import { button } from "./act.js";
import { code, el, link, prose, show, table } from "./dom.js";
import { bars } from "./chart.js";
import { ago, bytes, clock, count, entries, now, span } from "./format.js";
import { byGravity, datasetMood, datasetWord } from "./states.js";
import { toDataset } from "./route.js";

const EVERY_MS = 1_000;
/** Sizes are looked at seldom, and of so many datasets: each look reads from Redis. */
const SIZES_EVERY_MS = 60_000;
const SIZES_MAX = 50;

export const title = () => "Datasets";

export function open(root) {
  show(root, el("h1", null, "Datasets"), el("p", { class: "quiet" }, "Asking the worker …"));
  const sizes = new Map();
  let known = [];
  const end = repeat(EVERY_MS, async (signal) => {
    try {
      const { datasets } = await get("datasets", { signal });
      known = datasets;
      if (!signal.aborted) show(root, view(datasets, sizes));
    } catch (failure) {
      if (!signal.aborted) show(root, el("h1", null, "Datasets"), el("p", { class: "note bad" }, failure.message));
    }
  });
  const endSizes = repeat(SIZES_EVERY_MS, async (signal) => {
    if (known.length === 0) known = await get("datasets", { signal }).then(({ datasets }) => datasets, () => []);
    for (const { name } of known.slice(0, SIZES_MAX)) {
      const size = await get(`datasets/${encodeURIComponent(name)}/size`, { signal }).catch(() => null);
      if (signal.aborted) return;
      if (size) sizes.set(name, size);
    }
  });
  return () => {
    end();
    endSizes();
  };
}

function view(datasets, sizes) {
  if (datasets.length === 0) return empty();
  const troubled = datasets.filter(({ state }) => ["warn", "bad"].includes(datasetMood(state))).length;
  return [
    el("h1", null, "Datasets"),
    el("p", { class: "lead" }, troubled === 0 ? `${datasets.length === 1 ? "The one dataset is" : `All ${datasets.length} are`} fresh.`
      : `${troubled} of ${datasets.length} ${troubled === 1 ? "is" : "are"} not fresh.`),
    el("div", { class: "scroll", id: "datasets" }, table({
      label: "Datasets",
      rows: [...datasets].sort(byGravity),
      id: ({ name }) => name,
      columns: [
        { head: "Dataset", kind: "name", cell: ({ name, key }) => [link(toDataset(name), name), el("small", null, code(key))] },
        { head: "State", kind: "wide", cell: stateCell },
        { head: "Age", kind: "number", cell: (one) => (one.age_ms === null ? "not known" : `≤ ${span(one.age_ms)}`) },
        { head: "Entries", kind: "number", cell: (one) => count(one.last_backfill_entries) },
        { head: "Size", kind: "number", cell: (one) => size(one, sizes.get(one.name)) },
        { head: "Last backfill", kind: "number", cell: (one) => [lastBackfill(one), next(one)] },
        { head: "Last 30", kind: "trend", cell: ({ backfills }) => trend(backfills) },
        { head: "No entry", kind: "number", cell: withoutEntryCell },
        { head: "Action", kind: "action", cell: (one) => el("div", { class: "buttons" }, warm(one), pause(one)) },
      ],
    })),
    el("p", { class: "quiet" }, "Age: how old an entry may be, by the watermark. Entries: as many as the last backfill stored. Size: keys and values, estimated from up to 500 entries. Last 30: how long each backfill of this worker took, the newest at the right. No entry: rows that cannot be stored as they are."),
  ];
}

function empty() {
  return [
    el("h1", null, "Datasets"),
    el("div", { class: "card calm" },
      el("p", null, "There are no datasets yet."),
      el("p", null, "A dataset is a query and a key template. Write one into the configuration and reload it (Settings):"),
      el("pre", null, "[dataset.product]\nquery = \"select id, name, price from products\"\nkey   = \"product:{id}\"\n"
        + "watch = [{ table = \"products\", key = { id = \"id\" } }]\nwarm  = {}")),
  ];
}

/** Estimated: what some entries take, for as many as there are. */
function size({ last_backfill_entries: stored }, sample) {
  if (!sample) return "–";
  if (sample.entries === 0) return sample.is_whole ? "0 bytes" : "not known";
  const all = sample.is_whole ? sample.entries : stored;
  if (all === null) return `> ${bytes(sample.bytes)}`;
  return `≈ ${bytes(Math.round((sample.bytes / sample.entries) * all))}`;
}

/** When it began. That is recorded in Redis, so where none is, it may only be that Redis was not asked. */
export function lastBackfill({ last_backfill_ms: at, last_backfill_entries: stored, state }) {
  if (at !== null) return ago(at);
  return state === "not_known" || stored !== null ? "not known" : "none yet";
}

export function next({ next_run_ms: at }) {
  return at !== null && el("small", { title: clock(at) }, `next in ${span(Math.max(0, at - now()))}`);
}

/** A backfill under way. */
export function backfill({ backfill: running }) {
  if (!running) return null;
  const rate = running.rate === null ? "" : `, ${count(running.rate)} a second`;
  const left = running.left_ms === null ? "" : `, about ${span(running.left_ms)} left`;
  const of = running.expected === null ? "" : ` of about ${count(running.expected)}`;
  return el("div", { class: "progress" },
    running.expected !== null && el("progress", { max: Math.max(running.expected, running.entries, 1), value: running.entries, "aria-label": "Backfill" }),
    el("small", null, `Backfill: ${entries(running.entries)}${of} in ${span(running.took_ms)}${rate}${left}`));
}

export function stateCell(one) {
  const { state, reason, progress } = one;
  return [datasetWord(state), reason && el("small", null, prose(reason)), progress && bar(progress), backfill(one)];
}

/** How long the last backfills took. */
export function trend(backfills) {
  const known = backfills ?? [];
  if (known.length === 0) return null;
  const took = known.map((one) => one.took_ms);
  const label = known.length === 1 ? `1 backfill: ${span(took[0])}`
    : `${count(known.length)} backfills: ${span(Math.min(...took))} to ${span(Math.max(...took))}, the last one ${span(took.at(-1))}`;
  return bars({ values: took, places: 30, label });
}

export function bar({ done, total }) {
  const part = total ? Math.min(100, Math.floor((100 * done) / total)) : 0;
  return el("div", { class: "progress" },
    el("progress", { max: total || 1, value: done, "aria-label": "Progress" }),
    el("small", null, `${count(done)} of ${count(total)} (${part} %)`));
}

function withoutEntryCell({ name, rows_without_entry: number }) {
  return number ? link(toDataset(name), count(number)) : "0";
}

export function warm({ name, last_backfill_entries: last }) {
  const size = last === null || last === undefined ? "How many entries that is, is not known yet." : `The last backfill stored ${entries(last)}.`;
  return button("Warm", {
    question: `Warm ${name}? Every row of its query is read from Postgres and stored in Redis. ${size}`,
    does: last ? `Warm ${entries(last)}` : "Warm it",
    path: `datasets/${encodeURIComponent(name)}/warm`,
    body: {},
  });
}

const path = (name, act) => `datasets/${encodeURIComponent(name)}/${act}`;

/** To pause it, or to go on. */
export function pause({ name, paused_since_ms: since, last_backfill_entries: last }) {
  const of = last === null || last === undefined ? "its entries" : entries(last);
  if (since !== null && since !== undefined) {
    return button("Resume", {
      question: `Resume ${name}, for all workers? It has been paused for ${span(Math.max(0, now() - since))}. Backfills by schedule, refreshing ahead and the audit of ${of} go on.`,
      does: `Resume ${name}`,
      path: path(name, "resume"),
      body: {},
    });
  }
  return button("Pause", {
    question: `Pause ${name}, for all workers? Backfills by schedule, refreshing ahead and the audit of ${of} rest until somebody resumes it. Changes are applied all the same.`,
    does: `Pause ${name}`,
    path: path(name, "pause"),
    body: {},
  });
}

/** Of the backfill that runs. */
export function cancel({ name, backfill: running }) {
  return button("Cancel the backfill", {
    question: `Cancel the backfill of ${name}? The ${entries(running.entries)} that it has stored stay; the rest is missing until another backfill, or as it was.`,
    does: "Cancel the backfill",
    path: path(name, "cancel"),
    body: {},
    isDangerous: true,
  });
}
