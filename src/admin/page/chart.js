// A small line of the last minutes. Where nothing was known the line has a gap.

import { el, svg } from "./dom.js";
import { now } from "./format.js";

const SPAN_MS = 5 * 60_000;
const WIDTH = 600;
const HEIGHT = 80;

/** `samples`: `[{at, value}]`, the oldest first; a value is null where it was not known. */
export function line({ samples, label, format }) {
  const end = now();
  const shown = samples.filter(({ at }) => end - SPAN_MS <= at);
  const known = shown.filter(({ value }) => value !== null).map(({ value }) => value);
  const top = ceiling(Math.max(0, ...known));
  const x = (at) => (WIDTH * (1 - (end - at) / SPAN_MS)).toFixed(1);
  const y = (value) => (HEIGHT - 2 - (HEIGHT - 4) * (value / top)).toFixed(1);
  const spoken = known.length ? `${label}: between ${format(Math.min(...known))} and ${format(Math.max(...known))}`
    : `${label}: nothing is known yet`;
  return el("div", { class: "chart" },
    el("span", { class: "top", "aria-hidden": "true" }, format(top)),
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": spoken },
      svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: 2, y2: 2 }),
      svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT - 2, y2: HEIGHT - 2 }),
      svg("path", { class: "line", d: path(shown, x, y) })),
    el("div", { class: "scale", "aria-hidden": "true" }, el("span", null, "5 min ago"), el("span", null, "now")));
}

/** Bars from the left to the right; where there are fewer than places they stand at the right. */
export function bars({ values, places, label }) {
  const top = Math.max(1, ...values);
  const first = places - values.length;
  // Also the smallest is seen; what is none is not.
  const height = (value) => (value === 0 ? 0 : Math.max(1, (24 * value) / top)).toFixed(1);
  return svg("svg", { class: "bars", viewBox: `0 0 ${4 * places} 24`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("title", null, label),
    values.map((value, at) =>
      svg("rect", { x: 4 * (first + at), y: 24 - height(value), width: 3, height: height(value) })));
}

function path(shown, x, y) {
  let before = null;
  const parts = [];
  for (const sample of shown) {
    // A tab that was hidden asked nothing, so the line has no part for that time.
    const isGap = before === null || 10_000 < sample.at - before.at;
    if (sample.value !== null) parts.push(`${isGap ? "M" : "L"}${x(sample.at)} ${y(sample.value)}`);
    before = sample.value === null ? null : sample;
  }
  return parts.join("");
}

/** The next round number above: 1, 2 or 5 with zeros, so that the scale does not move with each sample. */
function ceiling(value) {
  const size = 10 ** Math.floor(Math.log10(Math.max(value, 10)));
  return [1, 2, 5, 10].map((step) => step * size).find((step) => value <= step) ?? 10 * size;
}
