// Machine room: the worker's tasks and servers.

import { get, repeat } from "./api.js";
import { code, el, facts, prose, show, table } from "./dom.js";
import { letters } from "./letters.js";
import { clock, count, now, span, value } from "./format.js";
import { upWord } from "./states.js";

const EVERY_MS = 1_000;
const SERVERS = { postgres: "Postgres", redis: "Redis", subscription: "Subscription for events" };

export const title = () => "Machine room";

export function open(root) {
  const head = () => el("h1", null, "Machine room");
  show(root, head(), el("p", { class: "quiet" }, "Asking the worker …"));
  return repeat(EVERY_MS, async (signal) => {
    try {
      const [machine, writes] = await Promise.all([
        get("machine", { signal }),
        // Without Redis the rest is still worth seeing.
        get("dead-letters", { signal }).catch((failure) => ({ failure })),
      ]);
      if (!signal.aborted) show(root, head(), view(machine, writes));
    } catch (failure) {
      if (!signal.aborted) show(root, head(), el("p", { class: "note bad" }, failure.message));
    }
  });
}

function view({ tasks, servers, epoch, started_ms: started, reasons, leader }, writes) {
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
    el("section", { class: "counts" }, el("h2", null, "Tasks"), table({
      label: "Tasks",
      rows: tasks,
      id: ({ name }) => name,
      columns: [
        { head: "Task", kind: "name", cell: ({ name }) => name.replaceAll("_", " ") },
        { head: "State", cell: ({ is_up: isUp }) => upWord(isUp) },
        { head: "Restarts", kind: "number", cell: ({ restarts }) => count(restarts) },
      ],
    })),
    letters(writes),
    el("section", null, el("h2", null, "This worker"), facts(
      ["Running for", [span(now() - started), el("small", null, `since ${clock(started)}`)]],
      ["Epoch", epoch ? code(value(epoch)) : "none yet"],
      leader !== undefined && ["Leader", value(leader)],
    )),
  ];
}
