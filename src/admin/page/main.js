// The frame: which screen is open, what is at the top of every one, and one loop that asks how things are.

import { mayNotAct } from "./act.js";
import { el, link, show } from "./dom.js";
import { clock, span } from "./format.js";
import { parse } from "./route.js";
import { sample } from "./samples.js";
import * as dataset from "./dataset.js";
import * as datasets from "./datasets.js";
import * as key from "./key.js";
import * as live from "./live.js";
import * as machine from "./machine.js";
import * as now from "./now.js";
import * as settings from "./settings.js";

const SCREENS = { now, datasets, key, live, machine, settings };
const COLOURS = { good: "#2e8b57", warn: "#c78500", bad: "#c8372d", calm: "#888888" };

const place = (id) => document.getElementById(id);
let close = () => {};
let listener = null;
let samples = { now: null, age: [], rates: {}, failure: null };

/** For a screen that shows what the loop hears. Answers what ends it. */
function follow(heard) {
  listener = heard;
  heard(samples);
  return () => { listener = null; };
}

function open(isFirst) {
  const route = parse(location.hash);
  const screen = Object.hasOwn(SCREENS, route.screen) ? route.screen : "now";
  const opened = screen === "datasets" && route.name ? dataset : SCREENS[screen];
  close();
  const root = el("main", { id: "screen", tabindex: "-1" });
  place("screen").replaceWith(root);
  close = opened.open(root, route, { follow }) ?? (() => {});
  show(place("screens"), Object.entries(SCREENS).map(([name, one]) =>
    el("a", { href: `#/${name}`, "aria-current": name === screen ? "page" : null }, one.title({ query: new URLSearchParams() }))));
  named = opened.title(route);
  frame();
  // Who goes to another screen by keyboard, or hears the page, begins at its content.
  if (!isFirst && !root.contains(document.activeElement)) root.focus({ preventScroll: true });
  if (!isFirst) window.scrollTo(0, 0);
}

let named = "Now";

function frame() {
  const { now: known, failure, heardAt } = samples;
  const mood = failure ? "bad" : !known ? "calm" : !known.ready ? "bad" : known.attention.length ? "warn" : "good";
  const said = failure ? "no answer" : !known ? "asking" : !known.ready ? "not ready"
    : known.watermark_age_ms === null ? "ready" : span(known.watermark_age_ms);
  document.title = `${mood === "bad" ? "(!) " : ""}${named}${known ? ` – ${known.namespace}` : ""} – Cachekeeper`;
  place("icon").setAttribute("href", icon(COLOURS[mood]));
  show(place("brand"), "Cachekeeper", known && el("span", null, known.namespace));
  const pulse = place("pulse");
  pulse.className = `pulse ${mood}`;
  pulse.setAttribute("aria-label", `State: ${said}`);
  show(pulse, said);
  document.body.classList.toggle("stale", Boolean(failure));
  show(place("trouble"), failure && el("p", { class: "note bad" }, failure.message,
    heardAt ? ` What you see is from ${clock(heardAt)}.` : ""));
  show(place("foot"), known && [el("span", null, `Cachekeeper ${known.version}`), known.may_not_act && el("span", null, `Read only: ${known.may_not_act}.`),
    link("metrics", "Metrics"), link("readyz", "Readiness"), link("api/v1/now", "API")]);
}

const icon = (colour) =>
  `data:image/svg+xml,${encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${colour}"/></svg>`)}`;

document.querySelector(".skip").onclick = (event) => {
  // The address is that of the screen, and stays it.
  event.preventDefault();
  place("screen").focus();
};
window.addEventListener("hashchange", () => open(false));
if (!location.hash) history.replaceState(null, "", "#/now");
open(true);
sample((heard) => {
  samples = heard;
  mayNotAct(heard.now?.may_not_act ?? null);
  frame();
  listener?.(heard);
});
