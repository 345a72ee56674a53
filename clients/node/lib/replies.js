// Replies to the writes of one cache: one list and one connection, however many wait.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { areApart, hasMoved, reconnectOnError, renew, steady } from "./connection.js";
import { Unreachable } from "./errors.js";

// Seconds for which Redis is asked to wait at once, and milliseconds after them, or the time-out of commands where that is longer,
// after which the connection counts as lost. No command ends here before Redis has answered it: what it takes would be lost.
const [BLOCK, BLOCK_SLACK_MS] = [1, 500];
// Replies that are taken by one command, beside the first.
const TAKEN_AT_ONCE = 500;
const [PAUSE_MIN_MS, PAUSE_MAX_MS] = [50, 250];
// Between two questions to the sentinels where the master is. A server that hangs does not say that it is none any more.
const LOOK_EVERY_MS = 1_000;

// Hands each reply to whoever waits for it; listens as long as anybody does.
export class Replies {
  #client;
  #connection;
  #explain;
  #isClosed = false;
  #isListening = false;
  #isLooking = false;
  #onLoss;
  #waiting = new Map();

  // `onLoss` is told when the connection was lost, as soon as there is another one.
  constructor(client, prefix, explain, onLoss) {
    this.#client = client;
    this.#explain = explain;
    this.#onLoss = onLoss;
    this.name = `${prefix}${randomUUID()}`;
    // How often the connection was made anew: what was sent before that may be lost with a server, and is sent again.
    this.losses = 0;
  }

  // Calls `take` with the reply to the write of this id, or with an error that no waiting mends. Answers what ends that.
  expect(id, take) {
    const takers = this.#waiting.get(id) ?? new Set();
    this.#waiting.set(id, takers.add(take));
    if (!this.#isListening) void this.#listen();
    return () => {
      takers.delete(take);
      if (takers.size === 0 && this.#waiting.get(id) === takers) this.#waiting.delete(id);
    };
  }

  close() {
    this.#isClosed = true;
    this.#connection?.disconnect();
  }

  async #listen() {
    this.#isListening = true;
    const looking = setInterval(() => void this.#look(), LOOK_EVERY_MS).unref();
    let pause = PAUSE_MIN_MS;
    while (0 < this.#waiting.size && !this.#isClosed) {
      try {
        const connection = this.#connect();
        const first = await connection.blpop(this.name, BLOCK);
        if (first !== null) {
          this.#handOver(first[1]);
          const more = (await connection.lpop(this.name, TAKEN_AT_ONCE)) ?? [];
          for (const text of more) this.#handOver(text);
        }
        pause = PAUSE_MIN_MS;
      } catch (error) {
        const explained = this.#explain(error);
        if (!(explained instanceof Unreachable)) {
          this.#handAll(explained);
          break;
        }
        await sleep(pause);
        pause = Math.min(2 * pause, PAUSE_MAX_MS);
      }
    }
    this.#isListening = false;
    clearInterval(looking);
    // Whoever came at the last moment.
    if (0 < this.#waiting.size && !this.#isClosed) void this.#listen();
  }

  // Replies are waited for at the master that the sentinels name, and writes are sent there: whatever leads elsewhere is made anew.
  async #look() {
    const [connection, client] = [this.#connection, this.#client];
    if (connection === undefined || this.#isLooking) return;
    this.#isLooking = true;
    const isMoved = await hasMoved(connection);
    this.#isLooking = false;
    if (this.#isClosed) return;
    const isClientMoved = isMoved !== areApart(client, connection) && 0 < (client.options?.sentinels?.length ?? 0);
    if (isMoved) renew(connection);
    if (isClientMoved) renew(client);
  }

  #connect() {
    if (this.#connection === undefined) {
      const patience = Math.max(BLOCK_SLACK_MS, Math.min(this.#client.options?.commandTimeout ?? 0, 5_000));
      const own = { commandTimeout: undefined, socketTimeout: 1_000 * BLOCK + patience, reconnectOnError };
      this.#connection = steady(this.#client.duplicate(own));
      this.#connection.on("error", () => {});
      // The command that waits is asked again by the client itself, so the loss shows only here.
      let lostAt;
      this.#connection.on("close", () => (lostAt ??= performance.now()));
      this.#connection.on("ready", () => {
        if (lostAt === undefined) return;
        this.#onLoss(lostAt);
        this.losses += 1;
        lostAt = undefined;
      });
    }
    return this.#connection;
  }

  #handOver(text) {
    const reply = JSON.parse(text);
    for (const take of this.#waiting.get(reply.id) ?? []) take(null, reply);
  }

  #handAll(error) {
    const all = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const takers of all) for (const take of takers) take(error);
  }
}
