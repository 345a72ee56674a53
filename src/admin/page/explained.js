// What `explain` says of a key, the verdict first.

import { code, el, facts, link, prose, table, tagList } from "./dom.js";
import { bytes, clockMs, count, span, value } from "./format.js";
import { touchWord, verdict } from "./states.js";
import { toDataset } from "./route.js";

export function view(explained, actions) {
  const [label, mood] = verdict(explained.verdict.state);
  return [
    el("section", { class: `hero ${mood}`, id: "verdict" },
      el("p", { class: "state" }, label),
      el("h2", { class: "truth" }, prose(explained.verdict.sentence)),
      el("div", { class: "buttons" }, actions)),
    explained.values_hidden ? hidden(explained) : compared(explained),
    about(explained),
    history(explained.touches),
  ];
}

const isRecord = (data) => data !== null && typeof data === "object" && !Array.isArray(data);

function compared({ entry, row, differences }) {
  const heads = { redis: prose(redisState(entry)), postgres: prose(postgresState(row)) };
  const sides = [entry && !entry.undecodable ? entry.value : null, row?.exists ? row.value : null];
  const areRecords = sides.some(isRecord) && sides.every((side) => side === null || side === undefined || isRecord(side));
  return el("section", { id: "compared" },
    el("h2", null, "In Redis and in Postgres"),
    areRecords ? columns(sides, heads, differences) : whole(sides, heads),
    differences.length > 0 && !areRecords && el("ul", null, differences.map((one) =>
      el("li", null, code(one.column), ": ", value(one.redis), " in Redis, ", value(one.postgres), " in Postgres"))));
}

function hidden({ entry, row, differences }) {
  return el("section", { id: "compared" },
    el("h2", null, "In Redis and in Postgres"),
    el("p", { class: "quiet" }, "Values are hidden: [admin] hide_values = true."),
    facts(["Redis", prose(redisState(entry))], ["Postgres", prose(postgresState(row))],
      ["Differ", differences.length ? differences.map(({ column }, at) => [at ? ", " : null, code(column || "the value")]) : "nothing"]));
}

function redisState(entry) {
  if (!entry) return "no entry";
  if (entry.undecodable) return `cannot be decoded: ${entry.undecodable}`;
  return `${bytes(entry.bytes)}, ${entry.left_ms === null || entry.left_ms === undefined ? "without end" : `${span(entry.left_ms)} left`}`;
}

function postgresState(row) {
  if (!row || row.not_asked) return `not asked: ${row?.not_asked ?? "no dataset makes this key"}`;
  if (row.refused) return `refused: ${row.refused}`;
  if (row.exists === null || row.exists === undefined) return "not known";
  if (row.spelled) return `a row whose key is ${row.spelled}`;
  return row.exists ? "the row as it would be stored now" : "no row";
}

function columns([redis, postgres], heads, differences) {
  const differing = new Set(differences.map(({ column }) => column));
  const names = [...new Set([...Object.keys(redis ?? {}), ...Object.keys(postgres ?? {})])];
  const side = (of, name) => (of && name in of ? code(value(of[name])) : el("span", { class: "quiet" }, "–"));
  const head = (label, state) => el("th", { scope: "col" }, label, el("small", null, state));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Columns side by side" }, el("table", { class: "compare" },
    el("thead", null, el("tr", null, el("th", { scope: "col" }, "Column"), head("Redis", heads.redis), head("Postgres", heads.postgres))),
    el("tbody", null, names.map((name) =>
      el("tr", { class: differing.has(name) ? "differs" : null },
        el("th", { scope: "row" }, name, differing.has(name) && el("small", null, "differs")),
        el("td", null, side(redis, name)), el("td", null, side(postgres, name)))))));
}

function whole([redis, postgres], heads) {
  const pane = (label, state, data) => el("div", { class: "pane" },
    el("h3", null, label, " ", el("small", null, state)),
    data === null || data === undefined ? null : el("pre", { tabindex: "0", "aria-label": label }, value(data, 2)));
  return el("div", { class: "panes" }, pane("Redis", heads.redis, redis), pane("Postgres", heads.postgres, postgres));
}

function about({ key, dataset, placeholders, is_superseded: isSuperseded, row, slot, watermark, not_covered: notCovered, pending }) {
  const given = Object.entries(placeholders ?? {});
  return el("section", null,
    el("h2", null, "What concerns it"),
    facts(
      ["Key", code(key)],
      ["Dataset", dataset ? [link(toDataset(dataset), dataset), isSuperseded && " (superseded: another worker has another definition)"] : "none has this key"],
      given.length > 0 && ["Placeholders", given.map(([name, text], at) => [at ? ", " : null, code(`${name} = ${text}`)])],
      row?.tags?.length > 0 && ["Tags", tagList(row.tags)],
      ["Watermark", watermark ? `as of ${watermark.as_of}${watermark.age_ms === null || watermark.age_ms === undefined ? "" : `, ${span(watermark.age_ms)} old`}` : "not known"],
      ["Not covered", notCovered && prose(notCovered)],
      ["Pending", pending?.length ? pending.map((one) => el("div", null, value(one))) : "nothing"],
      slot && ["Stamp slot", [count(slot.number), el("small", null, `stamp ${value(slot.stamp ?? "none")}, floor ${value(slot.floor ?? "none")}`)]],
    ));
}

function history(touches) {
  const head = el("h2", null, "What touched it last");
  if (!touches) return el("section", null, head, el("p", { class: "quiet" }, "Only a running worker knows."));
  if (touches.length === 0) {
    return el("section", null, head, el("p", { class: "quiet" }, "Nothing that this worker still remembers."));
  }
  return el("section", { id: "history" }, head, table({
    label: "What touched it last",
    rows: [...touches].sort((a, b) => b.number - a.number),
    columns: touchColumns().filter(({ head: name }) => name !== "Key" && name !== "Dataset"),
  }));
}

/** Of a list of touches, here and live. */
export function touchColumns() {
  return [
    { head: "At", kind: "time", cell: ({ at_ms: at }) => clockMs(at) },
    { head: "What", cell: ({ what }) => touchWord(what) },
    { head: "Cause", cell: ({ cause }) => cause },
    { head: "Key", kind: "name", cell: ({ key }) => (key ? link(`#/key?${new URLSearchParams({ key })}`, code(key)) : "all of the dataset") },
    { head: "Dataset", cell: ({ dataset }) => dataset ?? "" },
    { head: "Reason", kind: "wide", cell: ({ reason }) => reason ?? "" },
  ];
}
