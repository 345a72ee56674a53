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
