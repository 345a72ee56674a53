// The cache.

import { setTimeout as sleep } from "node:timers/promises";
import { build, checkClient, explain, hasMoved, isCluster, isOtherMaster, renew, whereOf } from "./connection.js";
import { Directory, directoryKey, watermarkKey } from "./directory.js";
import { CachekeeperError, InvalidInput, InvalidWrite, NotFresh, NotRegistered, Unreachable, WriteUnknown } from "./errors.js";
import { checkEvent, fieldsOf, messageOf } from "./events.js";
import { Nodes } from "./nodes.js";
import { OnCluster } from "./on-cluster.js";
import { optionsOf, TIMER_MS_MAX, wholeOf } from "./options.js";
import { judge, KEYS_MAX, PAUSE_MAX_MS, PAUSE_MIN_MS, readingOf, whyNotFresh } from "./reading.js";
import { Replies } from "./replies.js";
import { shown } from "./template.js";
import { now, within } from "./time.js";
import { Token } from "./tokens.js";
import { Command, outcomeOf } from "./writes.js";

// After so long the directory is read again; the same for a dataset that it does not name, and after an attempt that failed.
const [DIRECTORY_AGE_MS, DIRECTORY_AGE_MIN_MS] = [10_000, 1_000];
// Between two looks of a waiting write at whether the connection for replies was lost.
const LOOK_EVERY_MS = 250;
// After so long a read that waits asks the sentinels where the master is.
const LOOK_AFTER_MS = 1_000;
// What a read may take beyond `waitMs`, for what it is just doing; and the pause between two attempts to hand over at most.
const [SLACK_MS, SEND_PAUSE_MAX_MS] = [250, 250];

// Connects, and reads what the workers of this namespace tell.
export async function connect(urlOrClient, namespace, options = {}) {
  const names = ["timeoutMs", "valueBytesMax", "bigints", "redis"];
  const { timeoutMs = 5_000, valueBytesMax, bigints, redis = {} } = optionsOf(options, ...names);
  const isOwn = typeof urlOrClient === "string";
  if (!isOwn) checkClient(urlOrClient);
  const { client, where } = isOwn
    ? build(urlOrClient, timeoutMs, redis)
    : { client: urlOrClient, where: whereOf(urlOrClient) };
  try {
    const cache = new Cache(client, namespace, { valueBytesMax, bigints, timeoutMs, where, isOwn });
    // The client reads database 0 where this one does not exist.
    if (!isCluster(client) && client.options?.db) await client.select(client.options.db).catch((error) => cache[EXPLAIN](error));
    await cache.directory();
    return cache;
  } catch (error) {
    if (isOwn) client.disconnect();
    throw error;
  }
}

const EXPLAIN = Symbol("explain");

export class Cache {
  #cluster;
  // How often the connection was made, and when last.
  #connections = 0;
  #connectedAt = -Infinity;
  #detach;
  #directory;
  #directoryAt = -Infinity;
  #isClosed = false;
  #lastError;
  #isOwn;
  #lookAt = -Infinity;
  #options;
  #replies;
  #where;

  // Asks nothing yet; `connect` does.
  constructor(client, namespace, options = {}) {
    const names = ["valueBytesMax", "bigints", "timeoutMs", "where", "isOwn"];
    const { valueBytesMax, bigints, timeoutMs = 5_000, where, isOwn = false } = optionsOf(options, ...names);
    checkClient(client);
    if (valueBytesMax !== undefined) wholeOf(valueBytesMax, "valueBytesMax", 1, Number.MAX_SAFE_INTEGER);
    if (bigints !== undefined && typeof bigints !== "boolean") {
      throw new InvalidInput(`bigints is true or false, not ${shown(bigints)}`);
    }
    if (typeof namespace !== "string" || namespace === "" || !namespace.isWellFormed()) {
      throw new InvalidInput(`a namespace is text, not ${shown(namespace)}: it is [service] namespace of the worker`);
    }
    this.client = client;
    this.namespace = namespace;
    this.#options = { valueBytesMax, bigints };
    this.#where = where ?? whereOf(client);
    this.#isOwn = isOwn;
    if (isCluster(client)) {
      wholeOf(timeoutMs, "timeoutMs", 1, TIMER_MS_MAX);
      this.#cluster = new OnCluster(namespace, new Nodes(client, timeoutMs), timeoutMs, this.#options);
    }
    const onError = (error) => (this.#lastError = error);
    const onReady = () => {
      this.#lastError = undefined;
      this.#connections += 1;
      this.#connectedAt = now();
    };
    client.on("error", onError).on("ready", onReady);
    this.#detach = () => client.off("error", onError).off("ready", onReady);
  }

  async get(dataset, id, options) {
    return (await this.getMany(dataset, [id], options))[0];
  }

  async getMany(dataset, ids, options = {}) {
    return valuesOf(await this.readMany(dataset, ids, options), options.token);
  }

  async getKey(key, options = {}) {
    return valuesOf([await this.readKey(key, options)], options.token)[0];
  }

  async read(dataset, id, options) {
    return (await this.readMany(dataset, [id], options))[0];
  }

  async readMany(dataset, ids, options = {}) {
    optionsOf(options, "token", "waitMs");
    if (!Array.isArray(ids)) throw new InvalidInput(`ids are an array, not ${shown(ids)}`);
    const { token, deadline, limit } = limitsOf(options);
    const of = (await this.#told(dataset, limit)).dataset(dataset);
    return this.#read(ids.map((id) => ({ of, key: of.key(id) })), token, deadline, limit);
  }

  async readKey(key, options = {}) {
    const { dataset } = optionsOf(options, "token", "waitMs", "dataset");
    const { token, deadline, limit } = limitsOf(options);
    const of = (await this.#told(dataset, limit)).ofKey(key, dataset);
    return (await this.#read([{ of, key }], token, deadline, limit))[0];
  }

  async publish(event, options = {}) {
    const { durable = false } = optionsOf(options, "durable");
    const directory = await this.directory(event?.dataset);
    const checked = checkEvent(event, directory);
    const target = durable ? directory.eventStream : directory.channels[0];
    if (target === null || target === undefined) {
      const what = durable ? "stream for events: publish without `durable`" : "channel for events";
      throw new InvalidInput(`namespace ${JSON.stringify(this.namespace)} has no ${what}`);
    }
    if (durable) {
      const fields = fieldsOf(checked);
      const add = () => this.#cluster?.add(target, fields) ?? this.client.xadd(target, "*", ...fields);
      return this.#ask("add an event", "publisher", add);
    }
    const message = messageOf(checked);
    const send = () => this.#cluster?.publish(target, message) ?? this.client.publish(target, message);
    const publish = () => this.#ask("publish an event", "publisher", send);
    const heard = await publish();
    // On a server that is no master any more nobody listens.
    return heard === 0 && (await this.#leaveIfMoved()) ? publish() : heard;
  }

  async write(dataset, params, options = {}) {
    const { id, timeoutMs = 10_000 } = optionsOf(options, "id", "timeoutMs");
    const deadline = deadlineOf(timeoutMs, "timeoutMs");
    if (this.#cluster) {
      throw new InvalidWrite("nothing is written through on a cluster yet: write to Postgres, and the feed does the rest");
    }
    const unsent = () => {
      const text = `failed to hand over a write within ${timeoutMs} ms: nothing was sent to ${this.#where}`;
      return new Unreachable(text, { cause: this.#lastError });
    };
    const directory = await within(this.directory(dataset), deadline - now());
    if (directory === undefined) throw unsent();
    const command = new Command(directory, dataset, params, id);
    const explainReply = (error) => explain(error, "wait for a reply", this.#where, "writer", this.#lastError);
    // Where replies are waited for anew, a connection that is older may still lead to the server that was left.
    const onLoss = (lostAt) => this.#isOwn && this.#connectedAt < lostAt && renew(this.client);
    this.#replies ??= new Replies(this.client, directory.replyPrefix, explainReply, onLoss);
    const sending = { isSent: false, isOver: false, failure: undefined };
    let end;
    const answered = new Promise((resolve, reject) => {
      end = this.#replies.expect(command.id, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
    answered.catch(() => {});
    try {
      const reply = await this.#sendUntilAnswered(command, answered, deadline, sending);
      if (reply !== undefined) return outcomeOf(command.id, reply);
    } finally {
      sending.isOver = true;
      end();
    }
    if (!sending.isSent) throw sending.failure ?? unsent();
    const until = this.#isClosed ? "before this cache was closed" : `within ${timeoutMs} ms`;
    const text = `no reply to the write ${command.id} ${until}: it may have been carried out`;
    throw new WriteUnknown(`${text}. Say it again with the same id`, command.id, { cause: sending.failure });
  }

  // What the workers tell of this namespace, at most ten seconds old.
  async directory(dataset) {
    this.#checkOpen();
    const age = now() - this.#directoryAt;
    const isNamed = () => dataset === undefined || this.#directory?.datasets.has(dataset);
    const isKnown = isNamed() || age < DIRECTORY_AGE_MIN_MS;
    if (this.#directory !== undefined && age < DIRECTORY_AGE_MS && isKnown) return this.#directory;
    const read = () => this.#cluster?.directory() ?? this.client.hgetall(directoryKey(this.namespace));
    try {
      const fields = await this.#ask("read the directory", "reader", read);
      if (this.#cluster && fields.service === undefined) {
        const what = `no worker has registered the namespace ${JSON.stringify(this.namespace)} in ${this.#where}`;
        throw new NotRegistered(`${what}: no shard has a directory of it. Check [service] namespace, and that a worker runs`);
      }
      this.#directory = Directory.parse(fields, this.namespace, this.#where);
    } catch (error) {
      // Redis is away, and what is asked next tells whether it still is.
      if (error instanceof Unreachable && this.#directory !== undefined && isNamed()) {
        this.#directoryAt = now() - DIRECTORY_AGE_MS + DIRECTORY_AGE_MIN_MS;
        return this.#directory;
      }
      // Redis was flushed: the workers write it again, and until then it is as it was.
      if (!(error instanceof NotRegistered) || this.#directory === undefined) throw error;
    }
    this.#directoryAt = now();
    return this.#directory;
  }

  // Closes what was opened here; a client that was given stays open.
  async close() {
    this.#isClosed = true;
    this.#replies?.close();
    this.#cluster?.close();
    if (this.#isOwn) this.client.disconnect();
    else this.#detach();
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  get [Symbol.toStringTag]() {
    return "Cache";
  }

  [Symbol.for("nodejs.util.inspect.custom")]() {
    return `Cache of ${JSON.stringify(this.namespace)} at ${this.#where}${this.#isClosed ? " (closed)" : ""}`;
  }

  [EXPLAIN](error) {
    throw explain(error, "select the database", this.#where, "reader", this.#lastError);
  }

  // The directory, or what is known of it where the limit of the call passes.
  async #told(dataset, limit) {
    if (limit === undefined) return this.directory(dataset);
    const told = await within(this.directory(dataset), limit - now());
    if (told !== undefined) return told;
    if (this.#directory === undefined) throw this.#late("read the directory");
    return this.#directory;
  }

  #late(what) {
    return new Unreachable(`failed to ${what}: ${this.#where} did not answer in time`, { cause: this.#lastError });
  }

  #checkOpen() {
    if (this.#isClosed) throw new InvalidInput("this cache was closed");
  }

  async #sendUntilAnswered(command, answered, deadline, sending) {
    let [isDue, pause] = [true, PAUSE_MIN_MS];
    while (now() < deadline && !this.#isClosed) {
      try {
        // What was sent may be lost with the server: it is sent again, under its id.
        if (isDue || sending.losses !== this.#losses()) {
          const sent = await within(this.#send(command, sending), deadline - now());
          if (sent === undefined) break;
          [isDue, pause] = [false, PAUSE_MIN_MS];
        }
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        [sending.failure, isDue] = [error, true];
        await sleep(Math.max(0, Math.min(pause, deadline - now())));
        pause = Math.min(2 * pause, SEND_PAUSE_MAX_MS);
        continue;
      }
      const reply = await within(answered, Math.min(LOOK_EVERY_MS, deadline - now()));
      if (reply !== undefined) return reply;
    }
    return undefined;
  }

  // How often connections were made anew: that for replies, and that by which writes are sent.
  #losses() {
    return this.#replies.losses + this.#connections;
  }

  async #send(command, sending) {
    const what = "hand over a write";
    // Where not even this comes back, nothing was sent.
    await this.#ask(what, "writer", () => this.client.ping());
    if (sending.isOver) return false;
    [sending.isSent, sending.losses] = [true, this.#losses()];
    const fields = command.fields(this.#replies.name);
    await this.#ask(what, "writer", () => this.client.xadd(command.stream, "*", ...fields));
    return true;
  }

  async #read(asked, token, deadline, limit) {
    const began = now();
    let pause = PAUSE_MIN_MS;
    for (;;) {
      this.#checkOpen();
      try {
        const readings = [];
        for (let at = 0; at < asked.length; at += KEYS_MAX) {
          const page = this.#readPage(asked.slice(at, at + KEYS_MAX), token);
          const found = limit === undefined ? await page : await within(page, limit - now());
          if (found === undefined) throw this.#late("read entries");
          readings.push(...found);
        }
        if (token === undefined || readings.every((one) => one.isFresh) || deadline <= now()) return readings;
      } catch (error) {
        this.#checkOpen();
        if (!(error instanceof Unreachable) || deadline <= now()) throw error;
      }
      // A server that is no master any more becomes no fresher: one of all reads that wait asks the sentinels, once a second.
      if (Math.max(began + LOOK_AFTER_MS, this.#lookAt) <= now()) {
        this.#lookAt = now() + LOOK_AFTER_MS;
        void this.#leaveIfMoved();
      }
      await sleep(Math.max(0, Math.min(pause, deadline - now())));
      pause = Math.min(1.5 * pause, PAUSE_MAX_MS);
    }
  }

  // One round trip; with a token the watermark comes first. All keys are of one dataset.
  async #readPage(page, token) {
    if (this.#cluster) return this.#ask("read entries", "reader", () => this.#cluster.read(page, token));
    const keys = page.map(({ key }) => key);
    if (token !== undefined) keys.unshift(watermarkKey(this.namespace));
    const isHash = page[0]?.of.format === "hash";
    const read = isHash ? () => this.#readHashes(keys, token) : () => this.client.mgetBuffer(keys);
    const values = await this.#ask("read entries", "reader", read);
    const watermark = token === undefined ? undefined : values.shift();
    const nowMs = Date.now();
    const verdict = (of) => (token === undefined ? undefined : judge(watermark, token, of.name, nowMs));
    return page.map(({ of, key }, at) => readingOf(of, key, values[at], verdict(of), this.#options));
  }

  // A key of another type holds no entry: the dataset's format changes, or somebody else wrote there.
  async #readHashes(keys, token) {
    const pipeline = token === undefined ? this.client.pipeline() : this.client.multi();
    keys.forEach((key, at) => (token !== undefined && at === 0 ? pipeline.getBuffer(key) : pipeline.hgetallBuffer(key)));
    const replies = await pipeline.exec();
    return replies.map(([error, reply], at) => {
      if (error && !error.message.startsWith("WRONGTYPE")) throw error;
      if (token !== undefined && at === 0) return reply;
      return error || Object.keys(reply).length === 0 ? null : reply;
    });
  }

  // Where the sentinels name another master, the connection is made anew. Answers whether it is.
  async #leaveIfMoved() {
    if (this.#cluster) {
      // The map is fetched again by what is asked next.
      this.#cluster.map.isStale = true;
      return false;
    }
    if (!(await hasMoved(this.client)) || this.#isClosed) return false;
    renew(this.client);
    return true;
  }

  async #ask(what, kind, command) {
    try {
      return await this.#asked(command);
    } catch (error) {
      throw error instanceof CachekeeperError ? error : explain(error, what, this.#where, kind, this.#lastError);
    }
  }

  async #asked(command) {
    try {
      return await command();
    } catch (error) {
      // Clients that were made here make the connection anew and ask again by themselves.
      if (this.#isOwn || this.#cluster || !isOtherMaster(error)) throw error;
      renew(this.client);
      return command();
    }
  }
}

// The values alone, where the token allows it.
function valuesOf(readings, token) {
  if (token !== undefined && token !== null && !readings.every((one) => one.isFresh)) {
    throw new NotFresh(whyNotFresh(readings), readings);
  }
  return readings.map((one) => one.value);
}

// Of a read: its token, how long it may wait for that, and until when its commands may take beside the limit of each.
function limitsOf({ token, waitMs = 0 }) {
  const deadline = deadlineOf(waitMs, "waitMs");
  const wanted = token === undefined || token === null ? undefined : Token.parse(token);
  return { token: wanted, deadline, limit: 0 < waitMs ? deadline + SLACK_MS : undefined };
}

function deadlineOf(limitMs, what) {
  if (!Number.isFinite(limitMs) || limitMs < 0) {
    throw new InvalidInput(`${what} is a number of milliseconds, not ${shown(limitMs)}`);
  }
  return now() + limitMs;
}
