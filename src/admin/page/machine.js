// Machine room: the worker's tasks and servers.

import { get, repeat } from "./api.js";
import { code, el, facts, prose, show, table } from "./dom.js";
import { letters } from "./letters.js";
import { ago, clock, count, now, span, value } from "./format.js";
import { upWord } from "./states.js";

const EVERY_MS = 1_000;
const SERVERS = { postgres: "Postgres", redis: "Redis", subscription: "Subscription for events" };

export const title = () => "Machine room";

export function open(root) {
  const head = () => el("h1", null, "Machine room");
  show(root, head(), el("p", { class: "quiet" }, "Asking the worker …"));
  return repeat(EVERY_MS, async (signal) => {
    try {
      const [machine, writes, held] = await Promise.all([
        get("machine", { signal }),
        // Without Redis the rest is still worth seeing.
        get("dead-letters", { signal }).catch((failure) => ({ failure })),
        get("leases", { signal }).catch((failure) => ({ failure })),
      ]);
      if (!signal.aborted) show(root, head(), view(machine, writes, held));
    } catch (failure) {
      if (!signal.aborted) show(root, head(), el("p", { class: "note bad" }, failure.message));
    }
  });
}

function view({ tasks, servers, epoch, epochs, owner, started_ms: started, reasons }, writes, held) {
  const down = [...servers, ...tasks].filter((one) => !one.is_up).length;
  return [
    el("p", { class: "lead" }, down === 0 ? "Every task runs, and every server answers." : `${count(down)} of its tasks and servers ${down === 1 ? "is" : "are"} down.`),
    reasons.length > 0 && el("div", { class: "note bad" }, el("p", null, "Not ready:"), el("ul", null, reasons.map((reason) => el("li", null, prose(value(reason)))))),
    el("section", null, el("h2", null, "Servers"), table({
      label: "Servers",
      rows: servers,
      id: ({ name }) => name,
      columns: [
        { head: "Server", kind: "name", cell: ({ name }) => SERVERS[name] ?? name },
        { head: "State", cell: ({ is_up: isUp }) => upWord(isUp) },
        { head: "Reason", kind: "wide", cell: ({ reason }) => (reason ? prose(reason) : "") },
      ],
    })),
    el("section", null, el("h2", null, "Tasks"), table({
      label: "Tasks",
      rows: tasks,
      id: ({ name }) => name,
      columns: [
        { head: "Task", kind: "name", cell: ({ name }) => name.replaceAll("_", " ") },
        { head: "State", cell: ({ is_up: isUp }) => upWord(isUp) },
        { head: "Restarts", kind: "number", cell: ({ restarts }) => count(restarts) },
        { head: "Last failure", kind: "wide", cell: ({ ended_ms: at, ended_why: why }) => (at === null ? "" : [why, el("small", null, `${clock(at)}, ${ago(at)}`)]) },
      ],
    })),
    letters(writes),
    leases(held),
    ages(epochs),
    el("section", null, el("h2", null, "This worker"), facts(
      ["Running for", [span(now() - started), el("small", null, `since ${clock(started)}`)]],
      ["Epoch", epoch ? code(value(epoch)) : "none yet"],
      ["Name", owner && code(owner)],
    )),
  ];
}

/** The workers that live, and which of them does what only one may do. */
function leases({ workers, leases: held, failure }) {
  const section = (...parts) => el("section", { id: "leases" }, el("h2", null, "Workers and leases"), ...parts);
  if (failure) return section(el("p", { class: "note bad" }, failure.message));
  const worker = ({ is_own: isOwn }, name) => [code(name), isOwn && el("small", null, "this worker")];
  return section(
    workers.length === 0 && el("p", { class: "quiet" }, "No worker has registered within the last seconds: their definitions count no more."),
    workers.length > 0 && table({
      label: "Workers",
      rows: workers,
      id: ({ name }) => name,
      columns: [
        { head: "Worker", kind: "name", cell: (one) => worker(one, one.name) },
        { head: "Datasets", kind: "number", cell: ({ datasets }) => count(datasets.length) },
        { head: "Leases", kind: "number", cell: ({ name }) => count(held.filter(({ owner }) => owner === name).length) },
        { head: "Registered for", kind: "number", cell: ({ registered_ms: registered }) => span(registered) },
      ],
    }),
    el("p", { class: "quiet" }, held.length === 0 ? "No worker holds a lease now." : "What a lease names only its holder does. Others wait to take over."),
    held.length > 0 && table({
      label: "Leases",
      rows: held,
      id: ({ name }) => name,
      columns: [
        { head: "Lease", kind: "name", cell: ({ name }) => name },
        { head: "Worker", kind: "wide", cell: (one) => worker(one, one.owner) },
        { head: "Ends in, unless renewed", kind: "number", cell: ({ left_ms: left }) => span(left) },
      ],
    }));
}

/** The epochs that this worker has seen. */
function ages(epochs) {
  if (epochs.length === 0) return null;
  return el("section", { id: "epochs" }, el("h2", null, "Epochs"), table({
    label: "Epochs",
    rows: epochs,
    id: ({ id }) => id,
    columns: [
      { head: "Epoch", kind: "name", cell: ({ id }) => code(id) },
      { head: "Seen since", cell: ({ since_ms: since }) => [ago(since), el("small", null, clock(since))] },
      { head: "Why it began", kind: "wide", cell: ({ cause }) => cause ?? "not known" },
    ],
  }));
}
