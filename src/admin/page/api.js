// What the page asks the worker, each with a limit: an answer, or a sentence why there is none.

const ANSWER_WITHIN_MS = 5_000;
/** `explain` asks both servers, and a warm run has to be recorded in Redis. */
export const SLOW_MS = 15_000;

/** Once a token counts no more nothing is asked again: at each answer the browser would ask for another one. */
let isLockedOut = false;

export const mayAsk = () => !isLockedOut && !document.hidden;

const LOCKED_OUT = "The token does not count any more. Load this page again to give another one.";

/** The address of a path of the API: without a name and a password that somebody wrote into that of the page, with which nothing may be asked. */
export const address = (path) => `${location.origin}${location.pathname}api/v1/${path}`;

/** Why there is no answer, in words for people. `status` is 0 where the worker was not reached. */
export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const get = (path, options) => ask(path, { method: "GET" }, options);

export const post = (path, body) => ask(path, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
}, { within: SLOW_MS });

async function ask(path, request, { within = ANSWER_WITHIN_MS, signal } = {}) {
  if (isLockedOut) throw new Failure(LOCKED_OUT, 401);
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), within);
  const leave = () => limit.abort();
  signal?.addEventListener("abort", leave);
  try {
    const response = await fetch(address(path), { ...request, signal: limit.signal });
    const body = await response.json().catch(() => null);
    isLockedOut ||= response.status === 401;
    if (!response.ok) throw new Failure(refused(response.status, body), response.status);
    if (body === null) throw new Failure("The answer is no JSON; is this the worker, or something in front of it?", response.status);
    return body;
  } catch (error) {
    if (error instanceof Failure) throw error;
    if (signal?.aborted) throw new Failure("left", 0);
    if (limit.signal.aborted) throw new Failure(`The worker did not answer within ${within / 1000} s.`, 0);
    throw new Failure("The worker does not answer. Is it running, and does the network lead to it?", 0);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", leave);
  }
}

function refused(status, body) {
  if (status === 401) return LOCKED_OUT;
  const said = typeof body?.error === "string" ? body.error : "";
  // A problem of the configuration with its place: its lines stay as they are.
  if (said.includes("\n")) return said;
  return said ? `${said[0].toUpperCase()}${said.slice(1)}${/[.!?]$/.test(said) ? "" : "."}` : `The worker answered ${status}.`;
}

/**
 * Does `task` again and again, the next one `every` milliseconds after the last has ended; not while the tab is hidden.
 * Answers what ends it, the task under way included.
 */
export function repeat(every, task) {
  const left = new AbortController();
  let timer = null;
  let isRunning = false;
  async function run() {
    clearTimeout(timer);
    if (isRunning || left.signal.aborted || document.hidden) return;
    isRunning = true;
    await task(left.signal);
    isRunning = false;
    if (!left.signal.aborted && !document.hidden) timer = setTimeout(run, every);
  }
  const changed = () => (document.hidden ? clearTimeout(timer) : run());
  document.addEventListener("visibilitychange", changed);
  run();
  return () => {
    left.abort();
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", changed);
  };
}
