// Read-your-writes tokens: whether what a token sees is also seen at a snapshot.

import { InvalidInput, InvalidToken, NoToken } from "./errors.js";

// Answers a token, and whether the transaction has written something that is not committed yet: then it is worth nothing.
export const TOKEN_SQL =
  "select cachekeeper.token() as token, pg_current_xact_id_if_assigned() is not null as is_open";

const XMAX_LIMIT = 2 ** 48;
const RUNNING_LIMIT = 65_535;

// A snapshot as `pg_current_snapshot()` prints it (`xmin:xmax:running,running,…`), as far as the order needs it.
export function parseSnapshot(text) {
  const parts = String(text).split(":");
  const numbers = [...parts.slice(0, 2), ...(parts[2] ? parts[2].split(",") : [])];
  const start = JSON.stringify(String(text).slice(0, 60));
  if (parts.length !== 3 || !numbers.every((one) => /^[0-9]{1,20}$/.test(one))) {
    throw new InvalidToken(`${start} is not a snapshot of the form xmin:xmax:running`);
  }
  const [xmin, xmax, ...running] = numbers.map(Number);
  if (XMAX_LIMIT <= xmax || RUNNING_LIMIT <= running.length) {
    throw new InvalidToken(`the snapshot ${start} is beyond what can be compared`);
  }
  const isInOrder = running.every((one, at) => (at === 0 ? xmin <= one : running[at - 1] < one) && one < xmax);
  if (xmax < xmin || !isInOrder) {
    throw new InvalidToken(`no database has the snapshot ${start}: what runs is in order, from xmin to below xmax`);
  }
  return Object.freeze({ xmax, running: running.length });
}

// A snapshot after a commit, and the life of the database that it belongs to.
export class Token {
  constructor(text, incarnation, snapshot) {
    this.text = text;
    this.incarnation = incarnation;
    this.snapshot = snapshot;
    Object.freeze(this);
  }

  static parse(text) {
    if (text instanceof Token) return text;
    if (typeof text !== "string") throw new InvalidToken(`a token is text, not ${typeof text}`);
    const trimmed = text.trim();
    const slash = trimmed.indexOf("/");
    if (slash <= 0) {
      throw new InvalidToken(`${JSON.stringify(text.slice(0, 60))} is no token: an incarnation, a slash, a snapshot`);
    }
    return new Token(trimmed, trimmed.slice(0, slash), parseSnapshot(trimmed.slice(slash + 1)));
  }

  // Whether everything that this token sees is seen at a snapshot of that life.
  isSeenAt(incarnation, snapshot) {
    const own = this.snapshot;
    const isSeen = own.xmax < snapshot.xmax || (own.xmax === snapshot.xmax && snapshot.running <= own.running);
    return this.incarnation === incarnation && isSeen;
  }

  toString() {
    return this.text;
  }

  toJSON() {
    return this.text;
  }
}

// Takes a token of this moment, after your commit, through a client of `pg`, or anything whose `query` answers `rows`.
export async function takeToken(client) {
  if (typeof client?.query !== "function") {
    throw new InvalidInput("a token is taken through a client of `pg`, or anything whose query(sql) answers { rows }");
  }
  const { rows } = await client.query(TOKEN_SQL);
  const { token, is_open: isOpen } = rows[0];
  if (isOpen) {
    throw new InvalidToken("this transaction has written and is not committed: take the token after the commit");
  }
  if (token === null) {
    const todo = "Ask the database what must be fresh, and take a token again when a worker is back";
    throw new NoToken(`there is no token yet: no worker has seen this database since it was started. ${todo}`);
  }
  return Token.parse(token);
}
