// Datasets: one line each, what is wrong first.

import { get, repeat } from "./api.js";
import { button } from "./act.js";
import { code, el, link, show, table } from "./dom.js";
import { ago, count, entries } from "./format.js";
import { byGravity, datasetMood, datasetWord } from "./states.js";
import { toDataset } from "./route.js";

const EVERY_MS = 2_000;

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
        { head: "Refused rows", kind: "number", cell: refusedCell },
        { head: "Action", kind: "action", cell: warm },
      ],
    }),
    el("p", { class: "quiet" }, "Entries: as many as the last backfill stored."),
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
  return [datasetWord(state), reason && el("small", null, reason), progress && bar(progress)];
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
