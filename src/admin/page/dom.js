// Elements from data. What comes from users gets into the page as text only: nothing here, or elsewhere, parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "onsubmit", "oninput", "onchange"];

/** An element: attributes by name, handlers by `on…`, children as text or elements; null and false leave out. */
export function el(name, attributes, ...children) {
  return build(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (HANDLERS.includes(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Makes what `parent` holds like these nodes, and touches only what differs: focus, selection and scrolling stay. */
export function show(parent, ...nodes) {
  const wanted = nodes.flat(3).filter((node) => node !== null && node !== undefined && node !== false)
    .map((node) => (node instanceof Node ? node : document.createTextNode(String(node))));
  const present = [...parent.childNodes];
  wanted.forEach((node, at) => {
    if (at < present.length) patch(present[at], node);
    else parent.append(node);
  });
  present.slice(wanted.length).forEach((node) => node.remove());
}

function patch(old, wanted) {
  const isSame = old.nodeType === wanted.nodeType && old.nodeName === wanted.nodeName
    && old.id === wanted.id && old.dataset?.row === wanted.dataset?.row;
  if (!isSame) {
    old.replaceWith(wanted);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What a person opened stays open.
    if (!wanted.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of HANDLERS) old[name] = wanted[name];
  show(old, ...wanted.childNodes);
}

/** A table of `[{head, cell(row), kind}]`; on a phone each row is a card, where `head` names the cell. */
export function table({ label, columns, rows, id }) {
  const heads = columns.map(({ head, kind }) => el("th", { scope: "col", role: "columnheader", class: kind }, head));
  const cell = ({ head, cell: of, kind }, row) =>
    el("td", { role: "cell", class: kind, "data-head": head }, el("div", { class: "cell" }, of(row)));
  const body = rows.map((row) =>
    el("tr", { role: "row", "data-row": id ? id(row) : null }, columns.map((column) => cell(column, row))));
  return el("table", { role: "table", "aria-label": label },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)),
    el("tbody", { role: "rowgroup" }, body));
}

/** Pairs of a word and what it stands for. */
export function facts(...pairs) {
  const given = pairs.filter((pair) => pair && pair[1] !== null && pair[1] !== undefined && pair[1] !== "");
  return el("dl", { class: "facts" },
    given.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value))));
}

/** A sentence of the worker's, in which commands and names stand between backticks. */
export function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? code(part) : part)).filter((part) => part !== "");
}

export const code = (text) => el("code", null, text);
export const link = (href, ...children) => el("a", { href }, ...children);

/** Tags of an entry, each once: two templates may make the same one. */
export const tagList = (tags) => [...new Set(tags)].map((tag, at) => [at ? ", " : null, code(tag)]);
