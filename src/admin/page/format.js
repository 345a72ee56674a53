// Numbers and times as people read them. Times are the worker's: its clock may be another than the browser's.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

let offset = 0;

/** The worker says what time it is. */
export function setTime(atMs) {
  offset = atMs - Date.now();
}

export const now = () => Date.now() + offset;

export const count = (number) => (number === null || number === undefined ? "–" : WHOLE.format(number));

export function entries(number) {
  return `${count(number)} ${number === 1 ? "entry" : "entries"}`;
}

/** A span of time in its one or two largest units: 4 ms, 1.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1).replace(/\.0$/, "")} s`;
  const units = [["d", 86_400_000], ["h", 3_600_000], ["min", 60_000], ["s", 1000]];
  const first = units.findIndex(([, size]) => size <= ms);
  const [name, size] = units[first];
  const [lower, part] = units[first + 1] ?? [];
  const rest = lower ? Math.floor((ms % size) / part) : 0;
  return `${Math.floor(ms / size)} ${name}${rest ? ` ${rest} ${lower}` : ""}`;
}

export function ago(atMs) {
  return atMs === null || atMs === undefined ? "–" : `${span(Math.max(0, now() - atMs))} ago`;
}

/** The time of day, with the day where it is another. */
export function clock(atMs) {
  const at = new Date(atMs);
  const time = at.toLocaleTimeString("en", CLOCK);
  return at.toDateString() === new Date().toDateString() ? time : `${day(at)} ${time}`;
}

export function clockMs(atMs) {
  return `${clock(atMs)}.${String(Math.floor(atMs % 1000)).padStart(3, "0")}`;
}

const two = (number) => String(number).padStart(2, "0");
const day = (at) => `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;

/** How often in a second: 0, 0.4, 12, 1,234. */
export function rate(perSecond) {
  if (perSecond === null) return "–";
  if (perSecond === 0) return "0";
  if (perSecond < 0.05) return "< 0.1";
  return perSecond < 9.95 ? perSecond.toFixed(1) : WHOLE.format(perSecond);
}

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  if (number < 1024) return `${number} bytes`;
  const units = ["KiB", "MiB", "GiB"];
  const at = Math.min(Math.floor(Math.log(number) / Math.log(1024)) - 1, units.length - 1);
  return `${(number / 1024 ** (at + 1)).toFixed(1)} ${units[at]}`;
}

/** A value of data: text as it is, anything else as JSON. */
export function value(data, indent) {
  if (typeof data === "string") return data;
  return JSON.stringify(data, null, indent) ?? "";
}
