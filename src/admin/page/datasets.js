// Datasets: one line each, what is wrong first.

import { get, repeat } from "./api.js";
import { button } from "./act.js";
import { code, el, link, prose, show, table } from "./dom.js";
import { bars } from "./chart.js";
import { ago, count, entries, span } from "./format.js";
import { byGravity, datasetMood, datasetWord } from "./states.js";
import { toDataset } from "./route.js";

const EVERY_MS = 1_000;

export const title = () => "Datasets";

export function open(root) {
  show(root, el("h1", null, "Datasets"), el("p", { class: "quiet" }, "Asking the worker …"));
  const end = repeat(EVERY_MS, async (signal) => {
    try {
      const { datasets } = await get("datasets", { signal });
      if (!signal.aborted) show(root, view(datasets));
    } catch (failure) {
      if (!signal.aborted) show(root, el("h1", null, "Datasets"), el("p", { class: "note bad" }, failure.message));
    }
  });
  return end;
}

function view(datasets) {
  if (datasets.length === 0) return empty();
  const troubled = datasets.filter(({ state }) => datasetMood(state) !== "good").length;
  return [
    el("h1", null, "Datasets"),
    el("p", { class: "lead" }, troubled === 0 ? `${datasets.length === 1 ? "The one dataset is" : `All ${datasets.length} are`} fresh.`
      : `${troubled} of ${datasets.length} ${troubled === 1 ? "is" : "are"} not fresh.`),
    table({
      label: "Datasets",
      rows: [...datasets].sort(byGravity),
      id: ({ name }) => name,
      columns: [
        { head: "Dataset", kind: "name", cell: ({ name, key }) => [link(toDataset(name), name), el("small", null, code(key))] },
        { head: "State", kind: "wide", cell: stateCell },
        { head: "Entries", kind: "number", cell: (one) => count(one.last_backfill_entries) },
        { head: "Last backfill", kind: "number", cell: (one) => (one.last_backfill_ms === null ? "none yet" : ago(one.last_backfill_ms)) },
        { head: "Last 30", kind: "trend", cell: ({ backfills }) => trend(backfills) },
        { head: "Refused rows", kind: "number", cell: refusedCell },
        { head: "Action", kind: "action", cell: warm },
      ],
    }),
    el("p", { class: "quiet" }, "Entries: as many as the last backfill stored. Last 30: how long each backfill of this worker took, the newest at the right."),
  ];
}

function empty() {
  return [
    el("h1", null, "Datasets"),
    el("div", { class: "card calm" },
      el("p", null, "There are no datasets yet."),
      el("p", null, "A dataset is a query and a key template. Write one into the configuration, and start the worker again:"),
      el("pre", null, "[dataset.product]\nquery = \"select id, name, price from products\"\nkey   = \"product:{id}\"\n"
        + "watch = [{ table = \"products\", key = { id = \"id\" } }]\nwarm  = {}")),
  ];
}

export function stateCell({ state, reason, progress }) {
  return [datasetWord(state), reason && el("small", null, prose(reason)), progress && bar(progress)];
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

function refusedCell({ name, refused_rows: refused }) {
  return refused ? link(toDataset(name), count(refused)) : "0";
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
