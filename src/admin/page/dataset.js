// One dataset: what it is, how it is, and which of its rows could not be stored.

import { get, repeat } from "./api.js";
import { closer } from "./closer.js";
import { backfill, bar, cancel, lastBackfill, next, pause, trend, warm } from "./datasets.js";
import { code, el, facts, link, prose, show, table } from "./dom.js";
import { ago, clock, count, entries, span, value } from "./format.js";
import { datasetMeaning, datasetWord } from "./states.js";
import { from } from "./settings.js";
import { to, toKey } from "./route.js";

const EVERY_MS = 1_000;

export const title = ({ name }) => name;

export function open(root, { name }) {
  const back = el("p", { class: "back" }, link("#/datasets", "All datasets"));
  const state = el("div", { id: "state" }, el("h1", null, name), el("p", { class: "quiet" }, "Asking the worker …"));
  const looked = closer(name);
  show(root, back, state);
  const end = repeat(EVERY_MS, async (signal) => {
    try {
      const dataset = await get(`datasets/${encodeURIComponent(name)}`, { signal });
      if (signal.aborted) return;
      show(state, view(dataset));
      // Only of what there is, and once: it asks the servers.
      if (!looked.root.isConnected) {
        root.append(looked.root);
        looked.look();
      }
    } catch (failure) {
      if (!signal.aborted) show(state, el("h1", null, name), el("p", { class: "note bad" }, failure.message));
    }
  });
  return () => {
    end();
    looked.end();
  };
}

function view(one) {
  const stored = one.last_backfill_ms !== null && one.last_backfill_entries !== null ? `, ${entries(one.last_backfill_entries)}` : "";
  return [
    el("div", { class: "head" }, el("h1", null, one.name), el("div", { class: "buttons" },
      link(to("live", "", { dataset: one.name }), "Watch it live"), warm(one), pause(one))),
    el("p", { class: "lead" }, datasetWord(one.state), " ", prose(one.reason ?? datasetMeaning(one.state))),
    one.progress && bar(one.progress),
    one.backfill && el("section", { id: "backfill" }, el("h2", null, "Backfill under way"), backfill(one), el("p", null, cancel(one))),
    withoutEntry(one),
    el("section", null,
      el("h2", null, "What it is"),
      facts(
        ["Key template", code(one.key)],
        ["Tags", list(one.tags)],
        ["Scope", one.scope],
        ["Format", value(one.format)],
        ["Lifetime", one.ttl_ms === null || one.ttl_ms === undefined ? "without end" : span(one.ttl_ms)],
        ["Last 30 backfills", one.backfills?.length ? [trend(one.backfills), el("small", null, "how long each of this worker took, the newest at the right")] : null],
        ["Last backfill", [`${lastBackfill(one)}${stored}`, next(one)]],
        ["Age", one.age_ms === null ? null : `at most ${span(one.age_ms)}`],
      ),
      el("h3", null, "Query"),
      el("pre", { tabindex: "0", "aria-label": "Query" }, one.query)),
    settings(one.settings ?? {}, one.origins ?? {}),
  ];
}

const list = (tags) => (tags?.length ? tags.map((tag, at) => [at ? ", " : null, code(tag)]) : "none");

function withoutEntry({ without_entry: given, rows_without_entry: number }) {
  const rows = given?.rows ?? [];
  const keyless = given?.without_key && el("p", null,
    `${count(given.without_key.rows)} of them have no key, since ${clock(given.without_key.since_ms)}, as the last backfill has met them: `,
    prose(given.without_key.reason));
  if (rows.length === 0 && !keyless) {
    return el("section", { id: "without-entry" }, el("h2", null, "Rows without an entry"),
      el("p", { class: "quiet" }, number ? `${count(number)}; which, is not known any more.` : "None that this worker has met: a backfill looks at every row, changes at theirs."));
  }
  return el("section", { id: "without-entry" },
    el("h2", null, `Rows without an entry (${count(number ?? rows.length)})`),
    el("p", null, "These rows have no entry, because they cannot be stored as they are. Mend the row or the query; the next change of it, or a backfill, tries again."),
    keyless,
    rows.length > 0 && table({
      label: "Rows without an entry",
      rows,
      id: ({ key }) => key,
      columns: [
        { head: "Key", kind: "name", cell: ({ key }) => link(toKey(key), code(key)) },
        { head: "Reason", kind: "wide", cell: ({ reason }) => reason },
        { head: "Since", kind: "number", cell: ({ since_ms: since }) => [ago(since), el("small", null, clock(since))] },
      ],
    }),
    given.has_more && el("p", { class: "quiet" }, "There are more than are shown."));
}

function setting(name, of) {
  if (of === null) return "not set";
  return code(name.endsWith("_ms") ? span(of) : value(of));
}

function settings(given, origins) {
  const rows = Object.entries(given);
  if (rows.length === 0) return null;
  return el("section", null,
    el("h2", null, "Settings in effect"),
    el("dl", { class: "settings" }, rows.map(([name, of]) =>
      el("div", null, el("dt", null, code(name.replace(/_ms$/, ""))), el("dd", null, setting(name, of), origins[name] && el("small", null, from(origins[name])))))));
}
