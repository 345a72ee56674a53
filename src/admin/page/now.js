// Now: is it right, how fresh is it, what needs somebody.

import { code, el, facts, link, prose, show, table } from "./dom.js";
import { ago, clock, count, rate, span } from "./format.js";
import { line } from "./chart.js";
import { toDataset } from "./route.js";

/** What is counted, in the order of its way through the worker. */
const TOTALS = [
  ["changes", "Changes", "committed changes that the feed applied"],
  ["changed_keys", "Changed keys", "keys that changes touched"],
  ["stored", "Stored", "entries that were stored"],
  ["deleted", "Deleted", "entries that were deleted"],
  ["refused", "Refused", "stores that something newer had overtaken"],
  ["failed", "Failed", "entries that could not be loaded or stored"],
  ["events", "Events", "invalidation events that were applied"],
  ["misses", "Misses", "misses of applications that were filled"],
  ["written", "Written", "write commands that were applied"],
];

export const title = () => "Now";

export function open(root, route, { follow }) {
  return follow((samples) => show(root, view(samples)));
}

function view({ now, age, rates }) {
  if (!now) return [el("h1", { class: "truth" }, "Asking the worker …")];
  const mood = !now.ready ? "bad" : now.attention.length ? "warn" : "good";
  const state = !now.ready ? "Not ready" : now.attention.length ? "Ready, with something to look at" : "Ready";
  return [
    el("section", { class: `hero ${mood}` },
      el("p", { class: "state" }, state),
      el("h1", { class: "truth" }, now.sentence)),
    attention(now),
    freshness(now, age),
    counts(now, rates),
    0 < now.notes.length && el("section", { class: "quiet" },
      el("h2", null, "Worth knowing"), el("ul", null, now.notes.map((note) => el("li", null, prose(note))))),
  ];
}

function attention(now) {
  if (now.attention.length === 0) {
    return el("section", { class: "calm", id: "attention" },
      el("h2", null, "Needs attention"), el("p", null, "Nothing needs you."));
  }
  return el("section", { id: "attention" },
    el("h2", null, `Needs attention (${now.attention.length})`),
    el("ol", { class: "attention" }, now.attention.map((item) =>
      el("li", { class: "card" },
        el("h3", null, prose(item.what)),
        facts(
          item.since_ms && ["Since", [`${clock(item.since_ms)}, ${ago(item.since_ms)}`]],
          ["Consequence", prose(item.consequence)],
          ["Next step", prose(item.next)],
        ),
        item.dataset && el("p", null, link(toDataset(item.dataset), `Open ${item.dataset}`))))));
}

function freshness(now, age) {
  const known = age.filter((one) => one.value !== null).map((one) => one.value).sort((a, b) => a - b);
  const share = (part) => known[Math.min(known.length - 1, Math.floor(known.length * part))];
  const minutes = "what this page saw in the last 5 minutes";
  return el("section", { class: "fresh" },
    el("div", null,
      el("h2", null, "Watermark age"),
      el("p", { class: "figure", id: "age" }, now.watermark_age_ms === null ? "unknown" : span(now.watermark_age_ms)),
      el("p", { class: "quiet" }, known.length < 2 ? "There is no line yet."
        : `p50 ${span(share(0.5))}, p99 ${span(share(0.99))} of ${minutes}`)),
    line({ samples: age, label: `Watermark age, ${minutes}`, format: span }));
}

function counts(now, rates) {
  const known = TOTALS.filter(([name]) => now.totals[name] !== undefined);
  return el("section", { class: "counts" },
    el("h2", null, "What the worker does"),
    el("div", { class: "scroll" }, table({
      label: "Counts",
      rows: known,
      id: ([name]) => name,
      columns: [
        { head: "What", cell: ([, label, meaning]) => [label, el("small", null, meaning)] },
        { head: "In a second", kind: "number", cell: ([name]) => rate(rates[name] ?? null) },
        { head: "Since the start", kind: "number", cell: ([name]) => count(now.totals[name]) },
      ],
    })),
    el("p", { class: "quiet" }, "In a second: the mean of the last 10 seconds. The worker's own counts since it started."),
    el("p", { class: "quiet" }, "Hits: applications read Redis without the worker, so it knows none. They are in the applications' own metrics: ",
      code("cachekeeper_reads_total"), " of the library, or the hits and misses of Redis (", code("INFO stats"), ") for everything that reads it."));
}
