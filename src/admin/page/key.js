// Key: why has this key this value?

import { SLOW_MS, get } from "./api.js";
import { button } from "./act.js";
import { el, show } from "./dom.js";
import { parse, toKey } from "./route.js";
import { view } from "./explained.js";

export const title = ({ query }) => (query.get("key") ? `${query.get("key")}` : "Key");

export function open(root, { query }) {
  const key = query.get("key") ?? "";
  const left = new AbortController();
  const result = el("div", { id: "result" });
  const field = el("input", {
    id: "key", name: "key", type: "text", value: key, placeholder: "product:42", autocomplete: "off",
    autocapitalize: "off", spellcheck: "false", required: true,
  });
  const submit = (event) => {
    event.preventDefault();
    const wanted = field.value;
    // The same key again is asked for again.
    if (wanted === parse(location.hash).query.get("key")) explain();
    else location.hash = toKey(wanted);
  };
  show(root,
    el("h1", null, "Why has this key this value?"),
    el("form", { class: "ask", onsubmit: submit },
      el("label", { for: "key" }, "Key in Redis"), field, el("button", { class: "primary" }, "Explain")),
    result);
  async function explain() {
    if (!result.hasChildNodes()) show(result, el("p", { class: "quiet" }, "Asking Redis and Postgres …"));
    try {
      const explained = await get(`explain?${new URLSearchParams({ key })}`, { within: SLOW_MS, signal: left.signal });
      show(result, view(explained, actions(explained, explain)));
    } catch (failure) {
      if (!left.signal.aborted) show(result, el("p", { class: "note bad" }, failure.message));
    }
  }
  if (key) explain();
  else {
    show(result, el("p", { class: "quiet" }, "Type a key as an application reads it. What Redis holds is compared with what Postgres says now; nothing is changed."));
    field.focus();
  }
  return () => left.abort();
}

function actions({ key, dataset }, after) {
  return [
    el("button", { type: "button", onclick: after }, "Look again"),
    dataset && button("Refresh", {
      question: `Refresh 1 entry, ${key}? It is loaded from Postgres and stored; where there is no row it is deleted.`,
      does: "Refresh 1 entry",
      path: "keys/refresh",
      body: { keys: [key] },
      after,
    }),
    button("Delete", {
      question: `Delete 1 entry, ${key}, from Redis? Whoever reads it next misses, until it is stored again.`,
      does: "Delete 1 entry",
      path: "keys/delete",
      body: { keys: [key] },
      after,
      isDangerous: true,
    }),
  ];
}
