// Write commands that were rejected: why, and what may become of them.

import { button } from "./act.js";
import { code, el, table } from "./dom.js";
import { clock, count, value } from "./format.js";

export function letters({ stream, length, pending, count: number, dead_letters: kept, values_hidden: hidden, failure }) {
  const section = (...parts) => el("section", { id: "letters" }, el("h2", null, "Write commands"), ...parts);
  if (failure) return section(el("p", { class: "note bad" }, failure.message));
  if (stream === null) return section(el("p", { class: "quiet" }, "There is no stream of them: [writes] stream is empty."));
  const state = el("p", null, "In the stream ", code(stream), `: ${count(length)}, of which ${count(pending)} are being carried out. Rejected: ${count(number)}.`);
  if (kept.length === 0) return section(state);
  const ids = kept.map(({ letter }) => letter);
  return section(
    state,
    el("p", { class: "quiet" }, "A rejected command has written nothing. Mend what its reason names, then replay it; or discard it.",
      hidden && " Values are hidden: [admin] hide_values = true."),
    table({
      label: "Rejected write commands",
      rows: kept,
      id: ({ letter }) => letter,
      columns: [
        { head: "Rejected", kind: "time", cell: ({ at_ms: at }) => clock(at) },
        { head: "Dataset", cell: ({ dataset }) => dataset ?? "none named" },
        { head: "Reason", kind: "wide", cell: ({ reason }) => reason },
        { head: "Parameters", kind: "wide", cell: ({ parameters }) => (hidden ? "hidden" : parameters === null ? "none" : code(value(parameters))) },
        { head: "Id", cell: ({ id }) => (id ? code(id) : "none") },
        { head: "Action", kind: "action", cell: ({ letter }) => el("div", { class: "buttons" }, replay([letter], "Replay"), discard([letter], "Discard")) },
      ],
    }),
    kept.length < number && el("p", { class: "quiet" }, `The oldest ${count(kept.length)} of ${count(number)} are shown.`),
    1 < kept.length && el("div", { class: "buttons" }, replay(ids, `Replay these ${count(ids.length)}`), discard(ids, `Discard these ${count(ids.length)}`)));
}

const commands = (ids) => (ids.length === 1 ? "1 command" : `${count(ids.length)} commands`);

function replay(ids, label) {
  return button(label, {
    question: `Replay ${commands(ids)}? Each is put back into the stream behind what is there, and tried again.`,
    does: `Replay ${commands(ids)}`,
    path: "dead-letters/replay",
    body: { letters: ids },
  });
}

function discard(ids, label) {
  return button(label, {
    question: `Discard ${commands(ids)} for good? What ${ids.length === 1 ? "it was" : "they were"} to write is lost.`,
    does: `Discard ${commands(ids)}`,
    path: "dead-letters/discard",
    body: { letters: ids },
    isDangerous: true,
  });
}
