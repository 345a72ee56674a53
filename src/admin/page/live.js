// Live: what the worker does, as it does it.

import { address, get, mayAsk } from "./api.js";
import { el, show, table } from "./dom.js";
import { clock, count, now } from "./format.js";
import { KINDS } from "./states.js";
import { touchColumns } from "./explained.js";
import { replace, to } from "./route.js";

/** So many are kept; the oldest go. */
const ROWS_MAX = 300;
const RETRY_MIN_MS = 1_000;
const RETRY_MAX_MS = 15_000;

export const title = () => "Live";

export function open(root, { query }) {
  const filters = { dataset: query.get("dataset") ?? "", what: query.get("what") ?? "", key: query.get("key") ?? "" };
  const state = { rows: [], last: 0, seen: 0, isSampled: false, lost: 0, isPaused: false, failure: null, since: now() };
  const body = el("div", { id: "touches" });
  const datasets = el("select", { id: "dataset", onchange: (event) => change({ dataset: event.target.value }) });
  const pause = el("button", { type: "button", id: "pause", onclick: () => turn(!state.isPaused) }, "Pause");
  const bring = () => show(body, view(state, filters));
  const stream = follow(filters, state, bring);

  function change(part) {
    Object.assign(filters, part);
    replace(to("live", "", filters));
    Object.assign(state, { rows: [], last: 0, seen: 0, lost: 0, since: now(), failure: null });
    bring();
    stream.restart();
  }
  function turn(isPaused) {
    state.isPaused = isPaused;
    pause.textContent = isPaused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", String(isPaused));
    bring();
    stream.restart();
  }

  show(root,
    el("div", { class: "head" }, el("h1", null, "Live"), pause),
    el("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
      labelled("Dataset", "dataset", datasets),
      labelled("What", "what", el("select", { id: "what", onchange: (event) => change({ what: event.target.value }) },
        choice("", "all", filters.what), KINDS.map((kind) => choice(kind, kind, filters.what)))),
      labelled("Key", "pattern", el("input", {
        id: "pattern", type: "text", value: filters.key, placeholder: "product:*", autocomplete: "off", spellcheck: "false",
        onchange: (event) => change({ key: event.target.value }),
      }))),
    body);
  choices(datasets, filters.dataset);
  bring();
  stream.restart();
  return stream.end;
}

const choice = (value, label, chosen) => el("option", { value, selected: value === chosen }, label);

const labelled = (label, id, control) => el("div", null, el("label", { for: id }, label), control);

/** The names are a help: without them the one of the address is still there. */
async function choices(select, chosen) {
  const names = new Set(chosen ? [chosen] : []);
  const fill = () => show(select, choice("", "all", chosen), [...names].map((name) => choice(name, name, chosen)));
  fill();
  try {
    for (const { name } of (await get("datasets")).datasets) names.add(name);
    fill();
  } catch {
    // The page says at its top that the worker does not answer.
  }
}

/** The stream, opened again wherever it breaks off; closed while the tab is hidden or somebody paused it. */
function follow(filters, state, bring) {
  let source = null;
  let timer = null;
  let pauseMs = RETRY_MIN_MS;
  let isEnded = false;
  const close = () => {
    source?.close();
    source = null;
    clearTimeout(timer);
  };
  const restart = () => {
    close();
    if (isEnded || state.isPaused || !mayAsk()) return;
    const asked = new URLSearchParams(Object.entries(filters).filter(([, value]) => value));
    if (state.last) asked.set("after", String(state.last));
    source = new EventSource(address(`live?${asked}`));
    source.addEventListener("open", () => {
      pauseMs = RETRY_MIN_MS;
      state.failure = null;
      bring();
    });
    source.addEventListener("touches", (event) => {
      take(state, JSON.parse(event.data));
      bring();
    });
    source.addEventListener("lost", (event) => {
      state.lost += JSON.parse(event.data).lost;
      bring();
    });
    source.addEventListener("error", () => broken());
  };
  async function broken() {
    close();
    timer = setTimeout(restart, pauseMs);
    pauseMs = Math.min(2 * pauseMs, RETRY_MAX_MS);
    // A stream that fails does not say why; the same question without one does.
    const failure = await get(`touches?${new URLSearchParams({ limit: "1" })}`).then(() => null, (why) => why);
    state.failure = failure?.message ?? "The stream broke off. It is opened again.";
    if (!isEnded && source === null) bring();
  }
  document.addEventListener("visibilitychange", restart);
  return {
    restart,
    end: () => {
      isEnded = true;
      close();
      document.removeEventListener("visibilitychange", restart);
    },
  };
}

function take(state, { touches, last, is_sampled: isSampled }) {
  state.failure = null;
  // Of an overlap after the stream was opened again each is shown once.
  const fresh = touches.filter(({ number }) => state.last < number);
  state.rows = [...fresh.reverse(), ...state.rows].slice(0, ROWS_MAX);
  state.seen += fresh.length;
  state.last = Math.max(state.last, last ?? 0);
  state.isSampled = isSampled;
}

function view(state, filters) {
  const isFiltered = Object.values(filters).some(Boolean);
  const nothing = isFiltered ? "Nothing that the filters let through yet." : "Nothing yet. What is stored, deleted or refused appears here.";
  return [
    el("p", { class: "quiet", id: "live-state" }, state.isPaused ? "Paused. " : "",
      `${count(state.seen)} since ${clock(state.since)}${state.rows.length < state.seen ? `; the newest ${count(state.rows.length)} are shown` : ""}.`,
      state.isSampled && el("strong", null, " Sampled: there are more than can be shown, and some are left out.")),
    0 < state.lost && el("p", { class: "note bad", id: "lost" }, `${count(state.lost)} ${state.lost === 1 ? "touch" : "touches"} went by unseen: they came faster than this page could take them. Filters make it fewer.`),
    state.failure && el("p", { class: "note bad" }, state.failure),
    state.rows.length === 0 ? el("p", { class: "card calm" }, nothing)
      : table({ label: "Touches, the newest first", rows: state.rows, id: ({ number }) => number, columns: touchColumns() }),
  ];
}
