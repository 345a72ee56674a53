// Read-your-writes tokens: whether what a token sees is also seen at a snapshot.

import { InvalidToken } from "./errors.js";

// Answers a token, and whether the transaction has written something that is not committed yet: then it is worth nothing.
export const TOKEN_SQL =
  "select cachekeeper.token() as token, pg_current_xact_id_if_assigned() is not null as is_open";

const XMAX_LIMIT = 2 ** 48;
const RUNNING_LIMIT = 65_535;

// A snapshot as `pg_current_snapshot()` prints it (`xmin:xmax:running,running,…`), as far as the order needs it.
export function parseSnapshot(text) {
  const parts = String(text).split(":");
  if (parts.length !== 3 || !/^\+?[0-9]{1,20}$/.test(parts[1])) {
    throw new InvalidToken(`${JSON.stringify(text)} is not a snapshot of the form xmin:xmax:running`);
  }
  const snapshot = { xmax: Number(parts[1]), running: parts[2] === "" ? 0 : parts[2].split(",").length };
  if (XMAX_LIMIT <= snapshot.xmax || RUNNING_LIMIT <= snapshot.running) {
    throw new InvalidToken(`the snapshot ${JSON.stringify(text.slice(0, 40))} is beyond what can be compared`);
  }
  return Object.freeze(snapshot);
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
  const { rows } = await client.query(TOKEN_SQL);
  const { token, is_open: isOpen } = rows[0];
  if (isOpen) {
    throw new InvalidToken("this transaction has written and is not committed: take the token after the commit");
  }
  if (token === null) {
    throw new InvalidToken("there is no token yet: no worker has seen this database since it was started");
  }
  return Token.parse(token);
}
