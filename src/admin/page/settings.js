// Settings: what counts and where it comes from, what a reload would change, and who did what.

import { button, unasked } from "./act.js";
import { get, post, repeat } from "./api.js";
import { code, el, facts, show, table } from "./dom.js";
import { ago, clock, count } from "./format.js";

const EVERY_MS = 2_000;
const LEVELS = ["error", "warn", "info", "debug", "trace"];

export const title = () => "Settings";

export function open(root) {
  const parts = { state: el("section", { id: "file" }), changes: el("section", { id: "changes" }),
    given: el("section", { id: "given" }), actions: el("section", { id: "actions" }) };
  const compared = { answer: null, failure: null };
  const level = el("select", { id: "level" }, LEVELS.map((one) => el("option", { value: one }, one)));
  let isChosen = false;
  level.onchange = () => { isChosen = true; };
  const seeChanges = () => show(parts.changes, changes(compared, seeChanges));
  async function look(signal) {
    try {
      const [settings, { actions }] = await Promise.all([get("settings", { signal }), get("actions", { signal })]);
      if (signal.aborted) return;
      if (!isChosen && LEVELS.includes(settings.log_level)) level.value = settings.log_level;
      show(parts.state, file(settings));
      show(parts.given, given(settings));
      show(parts.actions, done(actions));
    } catch (failure) {
      if (!signal.aborted) show(parts.state, el("p", { class: "note bad" }, failure.message));
    }
  }
  show(parts.state, el("p", { class: "quiet" }, "Asking the worker …"));
  seeChanges();
  show(root, el("h1", null, "Settings"), parts.state, parts.changes,
    el("section", { id: "log" }, el("h2", null, "Level of the log"),
      el("div", { class: "level" }, el("label", { for: "level" }, "Level"), level,
        button("Set the level", {
          question: () => `Log at the level ${level.value}? It counts until the configuration is loaded again.`,
          does: "Set the level",
          path: "log-level",
          body: () => ({ level: level.value }),
        }))),
    parts.given, parts.actions);
  return repeat(EVERY_MS, look);
}

function file({ file: path, log_level: level, last_reload: last, started_ms: started }) {
  return [
    el("h2", null, "The file"),
    facts(
      ["File", path ? code(path) : "none: this worker runs inside of another program"],
      ["Since", `${clock(started)}, ${ago(started)}`],
      level && ["Log level", code(level)],
      ["Last reload", !last ? "none since the start" : `${clock(last.at_ms)}, ${ago(last.at_ms)}: ${last.error ? "failed; the configuration stayed as it was" : outcome(last.changes)}`],
    ),
    last?.error && el("pre", { class: "bad", id: "reload-error", tabindex: "0", "aria-label": "Why the last reload failed" }, last.error),
  ];
}

const outcome = ({ changes: all }) => (all.length === 1 ? "1 setting changed" : `${count(all.length)} settings changed`);

function changes(compared, bring) {
  const compare = async () => {
    compared.failure = null;
    try {
      compared.answer = await post("reload?dry_run=true", {});
    } catch (failure) {
      Object.assign(compared, { answer: null, failure: failure.message });
    }
    bring();
  };
  const forget = () => {
    Object.assign(compared, { answer: null, failure: null });
    bring();
  };
  return [
    el("h2", null, "What a reload would change"),
    el("div", { class: "buttons" },
      unasked("Compare with the file", compare),
      button("Reload", {
        question: async () => `Load the configuration again? ${told(await post("reload?dry_run=true", {}))}`,
        does: "Reload",
        path: "reload",
        body: {},
        after: forget,
      })),
    compared.failure && el("pre", { class: "bad", tabindex: "0", "aria-label": "Why it cannot be loaded" }, compared.failure),
    compared.answer && differences(compared.answer),
  ];
}

function told({ changes: all, needs_restart: later }) {
  const names = all.map(({ setting }) => setting);
  const more = names.length > 5 ? ` and ${count(names.length - 5)} more` : "";
  const now = names.length === 0 ? "Nothing in it differs from what counts."
    : `${names.length === 1 ? "1 setting changes" : `${count(names.length)} settings change`}: ${names.slice(0, 5).join(", ")}${more}.`;
  return `${now}${later.length ? ` ${count(later.length)} more after a restart only.` : ""}`;
}

function differences({ changes: all, needs_restart: later, warnings }) {
  const rows = [...all, ...later.map((change) => ({ ...change, isLater: true }))];
  return [
    rows.length === 0 ? el("p", { class: "quiet" }, "The file says what counts already.")
      : table({
        label: "Differences",
        rows,
        id: ({ setting }) => setting,
        columns: [
          { head: "Setting", kind: "name", cell: ({ setting }) => code(setting) },
          { head: "Counts now", kind: "wide", cell: ({ before }) => (before === null ? "not given" : code(before)) },
          { head: "In the file", kind: "wide", cell: ({ after }) => (after === null ? "not given" : code(after)) },
          { head: "When", cell: ({ isLater }) => (isLater ? "after a restart" : "by a reload") },
        ],
      }),
    warnings.length > 0 && el("pre", { tabindex: "0", "aria-label": "Warnings" }, warnings.join("\n\n")),
  ];
}

export function from(origin) {
  if (!origin) return "";
  if (origin.from === "environment") return ["environment", el("small", null, code(origin.variable))];
  if (origin.from === "file") return origin.line === null ? "file" : `line ${count(origin.line)}`;
  return "default";
}

function given({ settings }) {
  return [
    el("h2", null, `Given settings (${count(settings.length)})`),
    el("p", { class: "quiet" }, "Everything else has its default. Secrets are not shown."),
    settings.length > 0 && table({
      label: "Given settings",
      rows: settings,
      id: ({ name }) => name,
      columns: [
        { head: "Setting", kind: "name", cell: ({ name }) => code(name) },
        { head: "Value", kind: "wide", cell: ({ value }) => code(value) },
        { head: "From", cell: ({ origin }) => from(origin) },
      ],
    }),
  ];
}

function done(actions) {
  return [
    el("h2", null, "Who did what"),
    actions.length === 0 ? el("p", { class: "quiet" }, "Nobody has done anything over this listener since the process started.")
      : table({
        label: "Who did what",
        rows: actions,
        id: ({ at_ms: at, action }) => `${at} ${action}`,
        columns: [
          { head: "When", kind: "time", cell: ({ at_ms: at }) => clock(at) },
          { head: "Who", cell: ({ user, role, peer }) => [user ?? `may ${role}`, peer && el("small", null, peer)] },
          { head: "Action", kind: "wide", cell: ({ action }) => code(action) },
          { head: "Outcome", cell: ({ outcome: how, status }) => `${how} (${status})` },
          { head: "What was done", kind: "wide", cell: ({ done: what }) => what ?? "" },
        ],
      }),
    actions.length > 0 && el("p", { class: "quiet" }, "The newest 200 since the process started, refused ones too. The log has all of them, with the target ", code("audit"), "."),
  ];
}
