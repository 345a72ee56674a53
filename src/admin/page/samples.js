// What `now` said in the last minutes: one loop for the whole page, which every screen may listen to.

import { get, repeat } from "./api.js";
import { setTime } from "./format.js";

const EVERY_MS = 1_000;
const KEPT_MS = 5 * 60_000;
/** Rates are means over this time: single seconds jump. */
const RATE_MS = 10_000;

/** Asks for ever; `heard` gets the state after each answer, and after each failure. */
export function sample(heard) {
  const state = { now: null, age: [], rates: {}, failure: null, heardAt: null };
  let totals = [];
  repeat(EVERY_MS, async (signal) => {
    try {
      const now = await get("now", { signal });
      setTime(now.at_ms);
      totals = withNew(totals, now);
      state.now = now;
      state.rates = rates(totals);
      state.failure = null;
      state.heardAt = now.at_ms;
      add(state, now.at_ms, now.watermark_age_ms);
    } catch (failure) {
      state.failure = failure;
    }
    heard(state);
  });
}

function add(state, at, value) {
  state.age = state.age.filter((one) => at - KEPT_MS <= one.at);
  state.age.push({ at, value });
}

/** A worker that was restarted counts from zero again, and so does this. */
function withNew(totals, { at_ms: at, totals: values }) {
  const last = totals.at(-1);
  const isRestarted = last && Object.entries(values).some(([name, value]) => value < last.values[name]);
  const kept = isRestarted ? [] : totals.filter((one) => at - RATE_MS - EVERY_MS <= one.at);
  return [...kept, { at, values }];
}

function rates(totals) {
  const [first, last] = [totals[0], totals.at(-1)];
  const seconds = (last.at - first.at) / 1000;
  if (seconds <= 0) return {};
  const names = Object.keys(last.values);
  return Object.fromEntries(names.map((name) => [name, (last.values[name] - first.values[name]) / seconds]));
}
