// A closer look at one dataset: its relations, some lifetimes, some rows. It asks the servers, so it is done once, and again by a button.

import { SLOW_MS, get } from "./api.js";
import { bars } from "./chart.js";
import { code, el, link, prose, show, table, tagList } from "./dom.js";
import { bytes, count, span, value } from "./format.js";
import { tick } from "./states.js";
import { toKey } from "./route.js";

const BARS = 24;

/** `{root, look, end}` of a part of a screen. */
export function closer(name) {
  const left = new AbortController();
  const parts = [["relations", "Relations", relations], ["lifetimes", "Lifetimes", lifetimes], ["rows", "Rows as they would be stored", rows]];
  const places = parts.map(([id, title]) => el("section", { id }, el("h2", null, title)));
  async function look() {
    for (const [at, [path, title, view]] of parts.entries()) {
      const shown = await get(`datasets/${encodeURIComponent(name)}/${path}`, { within: SLOW_MS, signal: left.signal })
        .then(view, (failure) => el("p", { class: "note bad" }, failure.message));
      if (left.signal.aborted) return;
      show(places[at], el("h2", null, title), shown);
    }
  }
  const again = el("button", { type: "button", onclick: look }, "Look again");
  const root = el("div", { id: "closer" }, ...places, el("p", null, again));
  return { root, look, end: () => left.abort() };
}

function relations({ relations: all }) {
  if (all.length === 0) return el("p", { class: "quiet" }, "Its query reads no table, and no rule watches one.");
  return table({
    label: "Relations",
    rows: all,
    id: (one) => one.name,
    columns: [
      { head: "Relation", kind: "name", cell: (one) => code(one.name) },
      { head: "Query reads it", cell: (one) => tick(one.is_read) },
      { head: "Watched", cell: (one) => tick(one.is_watched) },
      { head: "Changes captured", cell: (one) => tick(one.is_captured) },
      { head: "What is wrong", kind: "wide", cell: ({ flaw }) => (flaw ? prose(flaw) : "") },
    ],
  });
}

function lifetimes({ left_ms: left, endless, is_whole: isWhole }) {
  const all = left.length + endless;
  if (all === 0) {
    return el("p", { class: "quiet" }, isWhole ? "There is no entry in Redis."
      : "No entry was met among the keys that were looked at: Redis holds many others.");
  }
  const of = isWhole ? `all ${count(all)}` : `${count(all)} at random`;
  const ends = [
    el("p", null, `What is left to ${of}: ${left.length ? `between ${span(left[0])} and ${span(left.at(-1))}, half of them at most ${span(left[Math.floor(left.length / 2)])}` : "no end"}`,
      endless > 0 && left.length > 0 && `; ${count(endless)} without end`, "."),
  ];
  if (left.length === 0) return ends;
  const end = Math.max(left.at(-1), 1);
  const values = new Array(BARS).fill(0);
  for (const one of left) values[Math.min(BARS - 1, Math.floor((BARS * one) / end))] += 1;
  return [...ends, el("div", { class: "histogram" },
    bars({ values, places: BARS, label: `Entries by the lifetime that is left, from none to ${span(end)}: ${values.join(", ")}` }),
    el("div", { class: "scale", "aria-hidden": "true" }, el("span", null, "ends now"), el("span", null, `in ${span(end)}`)))];
}

function rows({ rows: all, values_hidden: hidden }) {
  if (all.length === 0) return el("p", { class: "quiet" }, "The query has no row with a key.");
  return [
    el("p", { class: "quiet" }, `The first ${count(all.length)} by their keys, from Postgres as it is now. Nothing was stored.`,
      hidden && " Values are hidden: [admin] hide_values = true."),
    table({
      label: "Rows as they would be stored",
      rows: all,
      id: ({ key }) => key,
      columns: [
        { head: "Key", kind: "name", cell: ({ key }) => link(toKey(key), code(key)) },
        { head: "Value", kind: "wide", cell: (one) => (one.refused ? `refused: ${one.refused}` : one.value === null ? "hidden" : code(value(one.value))) },
        { head: "Tags", kind: "wide", cell: ({ tags }) => tagList(tags) },
        { head: "Size", kind: "number", cell: (one) => (one.refused ? "" : bytes(one.bytes)) },
      ],
    }),
  ];
}
