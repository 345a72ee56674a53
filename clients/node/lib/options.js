// Options as they may be given.

import { InvalidInput } from "./errors.js";
import { shown } from "./template.js";

// The options, if none has another name than these.
export function optionsOf(given, ...names) {
  if (given === null || typeof given !== "object") throw new InvalidInput(`options are an object, not ${shown(given)}`);
  const unknown = Object.keys(given).filter((name) => !names.includes(name));
  if (0 < unknown.length) {
    throw new InvalidInput(`there is no option ${unknown.join(", ")} here; there are ${names.join(", ")}`);
  }
  return given;
}

// What a timer can wait.
export const TIMER_MS_MAX = 2 ** 31 - 1;

// A whole number in these bounds.
export function wholeOf(given, what, min, max) {
  if (!Number.isSafeInteger(given) || given < min || max < given) {
    throw new InvalidInput(`${what} is a whole number from ${min} to ${max}, not ${shown(given)}`);
  }
  return given;
}
