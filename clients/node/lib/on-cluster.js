// What a cache asks of the nodes of a cluster.

import { setTimeout as sleep } from "node:timers/promises";
import { clusterSlot, guardKey, parseGuard, redirectionOf } from "./cluster.js";
import { explain, isPassing, SENTINEL_MS } from "./connection.js";
import { directoryKey, watermarkKey } from "./directory.js";
import { CachekeeperError, InvalidInput, Unreachable } from "./errors.js";
import { judgeOnCluster, parseWatermark, readingOf } from "./reading.js";
import { within } from "./time.js";

// Before each attempt but the first to follow redirections, after which they are an error.
const PAUSES_MS = [0, 10, 20, 50, 100];
// Before a call is made again where a connection broke, or was refused.
const LOSS_PAUSES_MS = [50, 100, 200];

const unknown = (reason) => ({ freshness: "unknown", reason });
const MOVING = unknown("its cluster slot is migrating");
const AGAIN = unknown("the guard of its cluster slot has just changed");

export class OnCluster {
  #limitMs;
  #namespace;
  #nodes;
  #options;
  #shards = new Map();

  constructor(namespace, nodes, timeoutMs, options) {
    [this.#namespace, this.#nodes, this.#limitMs, this.#options] = [namespace, nodes, timeoutMs, options];
  }

  get map() {
    return this.#nodes.map;
  }

  close() {
    this.#nodes.close();
  }

  // The directory, as a shard has it; no fields: none has one.
  directory() {
    return this.#untilReached(() => this.#untilSettled(() => this.#directory()));
  }

  // Reads entries, each at the node that serves it: guard, watermark, value, in this order on one connection.
  read(page, token) {
    return this.#untilReached(async () => {
      const read = new Read(this, page, token);
      await this.#untilSettled(() => this.#readOnce(read), true);
      return read.readings();
    });
  }

  // The id of a new entry of a stream.
  add(stream, fields) {
    const [slot, command] = [clusterSlot(stream), ["xadd", stream, "*", ...fields]];
    return this.#untilReached(() => this.#untilSettled(() => this.#send(slot, command)));
  }

  // How many heard it at the node where anybody did, which hands it to all others.
  publish(channel, message) {
    return this.#untilReached(async () => {
      await this.#freshMap();
      let [failure, isTold] = [undefined, false];
      for (const master of this.map.masters()) {
        try {
          const heard = this.checked((await this.#ask(master, [["publish", channel, message]]))[0]);
          if (0 < heard) return heard;
          isTold = true;
        } catch (error) {
          failure = error;
        }
      }
      if (!isTold) throw failure;
      return 0;
    });
  }

  // The commands that read guards and watermarks, and the shard that a guard of this node named last: most name the same.
  guard = (slot) => ["getBuffer", guardKey(this.#namespace, slot)];
  watermark = (shard) => ["getBuffer", watermarkKey(this.#namespace, shard)];
  shardOf = (node) => (this.#shards.has(node) ? [this.#shards.get(node)] : []);
  noteShard = (node, shard) => this.#shards.set(node, shard);

  reading(of, key, value, verdict) {
    return readingOf(of, key, value, verdict, this.#options);
  }

  // The master that serves a cluster slot.
  owner(slot) {
    const owner = this.map.owner(slot);
    if (owner !== undefined) return owner;
    this.map.isStale = true;
    throw new Error(`CLUSTERDOWN no node serves cluster slot ${slot}`);
  }

  // A reply that is no error; else it is thrown. It may be that of a node that serves nothing now.
  checked(reply) {
    if (!(reply instanceof Error)) return reply;
    this.map.isStale ||= isPassing(reply);
    throw reply;
  }

  // Whether this says that the map is wrong, which is noted then; or that another attempt may succeed.
  isMoved(reply, asked) {
    const redirection = redirectionOf(reply, asked);
    if (redirection?.kind === "MOVED") this.map.moved(this.map.reached(redirection.node), redirection.slot);
    return redirection !== undefined || reply.message.startsWith("TRYAGAIN");
  }

  async #ask(node, commands, limitMs) {
    try {
      return await this.#nodes.ask(node, commands, limitMs);
    } catch (error) {
      this.map.fellSilent(node);
      throw error;
    }
  }

  // Fetches the map of the cluster where it may be wrong.
  async #freshMap() {
    if (!this.map.isStale) return;
    const nodes = this.map.toAsk();
    // A node that hangs leaves time for the others.
    const limitMs = Math.max(1, Math.min(SENTINEL_MS, Math.floor(this.#limitMs / (nodes.length + 1))));
    let failure;
    for (const node of nodes) {
      const [reply] = await this.#ask(node, [["cluster", "SLOTS"]], limitMs).catch((error) => [error]);
      if (/cluster support disabled/.test(reply?.message)) {
        throw new InvalidInput(`${node} is no node of a cluster: its URL begins with redis://`);
      }
      if (reply instanceof Error) {
        this.map.fellSilent(node);
        failure ??= reply;
      } else if (this.map.note(reply, node)) {
        return;
      }
    }
    throw failure ?? new Error("CLUSTERDOWN no node knows who serves a cluster slot");
  }

  // Calls until an answer comes that is no redirection. `attempt` answers undefined where there was one, and whether it may be
  // that the last answer stands: `isEnough`.
  async #untilSettled(attempt, isEnough = false) {
    for (const pause of [0, ...PAUSES_MS]) {
      if (0 < pause) await sleep(pause);
      await this.#freshMap();
      const answer = await attempt();
      if (answer !== undefined) return answer;
    }
    if (isEnough) return undefined;
    throw restless();
  }

  // Calls again where a connection is lost or a node serves nothing now, as clients of a single Redis do, within the limit of a
  // command. What was not answered in time is not asked again.
  async #untilReached(call) {
    const answer = await within(this.#untilUnbroken(call), this.#limitMs);
    if (answer === undefined) throw new Error("Command timed out");
    return answer;
  }

  async #untilUnbroken(call) {
    for (const pause of LOSS_PAUSES_MS) {
      try {
        return await call();
      } catch (error) {
        const isLost = explain(error, "", "", "") instanceof Unreachable && !/timed out|ETIMEDOUT/.test(error.message);
        if (error instanceof CachekeeperError || !isLost) throw error;
        await sleep(pause);
      }
    }
    return call();
  }

  async #directory() {
    let [failure, isMoved] = [undefined, false];
    for (const master of this.map.masters()) {
      const replies = await this.#ask(master, this.map.sample(master).map(this.guard)).catch((error) => [error]);
      for (const shard of namedBy(replies)) {
        const [fields] = await this.#ask(master, [["hgetall", directoryKey(this.#namespace, shard)]]).catch((error) => [error]);
        if (!(fields instanceof Error) && fields.service !== undefined) return fields;
        replies.push(fields);
      }
      for (const error of replies.filter((one) => one instanceof Error)) {
        if (this.isMoved(error, master)) isMoved = true;
        else failure = error;
      }
    }
    if (isMoved) return undefined;
    return failure === undefined ? {} : this.checked(failure);
  }

  async #readOnce(read) {
    await Promise.all(read.groups().map(async (group) => read.take(group, await this.#ask(group.node, read.commands(group)))));
    const following = [...read.following()].map(async ([node, positions]) => {
      const replies = await this.#ask(node, read.asking(positions)).catch(() => undefined);
      if (replies !== undefined) read.takeAsked(node, positions, replies.filter((_, at) => at % 2 === 1));
    });
    await Promise.all(following);
    return read.isLeft ? undefined : true;
  }

  async #send(slot, command) {
    const owner = this.owner(slot);
    let [reply] = await this.#ask(owner, [command]);
    const redirection = redirectionOf(reply, owner);
    if (redirection?.kind === "ASK") [, reply] = await this.#ask(this.map.reached(redirection.node), [["asking"], command]);
    return reply instanceof Error && this.isMoved(reply, owner) ? undefined : this.checked(reply);
  }
}

// One page of keys, on its way.
class Read {
  #calls;
  #failure;
  #following = new Map();
  #found = new Map();
  #left;
  #named = new Map();
  #page;
  #slots;
  #token;

  constructor(calls, page, token) {
    [this.#calls, this.#page, this.#token] = [calls, page, token];
    this.#slots = page.map(({ key }) => clusterSlot(key));
    this.#left = new Set(page.keys());
  }

  // Whether anything is to be asked again.
  get isLeft() {
    return 0 < this.#left.size;
  }

  // What is still to be read at each node: guards, watermarks of shards, values.
  groups() {
    const byNode = new Map();
    for (const position of this.#left) {
      const owner = this.#calls.owner(this.#slots[position]);
      if (!byNode.has(owner)) byNode.set(owner, []);
      byNode.get(owner).push(position);
    }
    return [...byNode].map(([node, positions]) => this.#group(node, positions));
  }

  // The guard says which shard has adopted a cluster slot; its watermark is taken before the values.
  commands({ slots, shards, positions }) {
    const values = positions.map((position) => this.#command(position));
    return [...slots.map(this.#calls.guard), ...shards.map(this.#calls.watermark), ...values];
  }

  // Takes what the node answered.
  take({ node, slots, shards, positions }, replies) {
    const guards = new Map(slots.map((slot, at) => [slot, replies[at]]));
    const told = new Map(shards.map((shard, at) => [shard, replies[slots.length + at]]));
    const judged = new Judged(this.#calls, this.#token, node, told, this.#named);
    positions.forEach((position, at) => {
      const reply = replies[slots.length + shards.length + at];
      const redirection = redirectionOf(reply, node);
      if (redirection?.kind === "ASK") {
        const target = this.#calls.map.reached(redirection.node);
        this.#following.set(target, [...(this.#following.get(target) ?? []), position]);
      } else if (this.#isValue(reply, node)) {
        const slot = this.#slots[position];
        const verdict = this.#token && judged.verdict(guards.get(slot), slot, this.#page[position].of.name);
        this.#note(position, reply, verdict);
        if (verdict === AGAIN) this.#left.add(position);
      }
    });
  }

  // What has migrated already, by the node that has it.
  following() {
    const following = this.#following;
    this.#following = new Map();
    return following;
  }

  // The commands for what has migrated.
  asking(positions) {
    return positions.flatMap((position) => [["asking"], this.#command(position)]);
  }

  // Takes what has migrated. Nobody vouches for it: the node may have held it since an earlier migration.
  takeAsked(node, positions, replies) {
    positions.forEach((position, at) => {
      if (this.#isValue(replies[at], node)) this.#note(position, replies[at], this.#token && MOVING);
    });
  }

  // What was found; throws where a key was not.
  readings() {
    if (this.#found.size < this.#page.length) throw restless(this.#failure);
    return this.#page.map((_, position) => this.#found.get(position));
  }

  #group(node, positions) {
    if (this.#token === undefined) return { node, positions, slots: [], shards: [] };
    const slots = [...new Set(positions.map((position) => this.#slots[position]))];
    const named = slots.filter((slot) => this.#named.has(slot)).map((slot) => this.#named.get(slot));
    return { node, positions, slots, shards: [...new Set([...this.#calls.shardOf(node), ...named])] };
  }

  #command(position) {
    const { of, key } = this.#page[position];
    return [of.format === "hash" ? "hgetallBuffer" : "getBuffer", key];
  }

  // Whether this is what stands under a key. A key of another type holds no entry.
  #isValue(reply, node) {
    if (!(reply instanceof Error) || reply.message.startsWith("WRONGTYPE")) return true;
    if (!this.#calls.isMoved(reply, node)) this.#calls.checked(reply);
    this.#failure = reply;
    return false;
  }

  #note(position, reply, verdict) {
    const { of, key } = this.#page[position];
    const isNone = reply instanceof Error || (of.format === "hash" && Object.keys(reply).length === 0);
    this.#found.set(position, this.#calls.reading(of, key, isNone ? null : reply, verdict));
    this.#left.delete(position);
  }
}

// Verdicts on what one node answered.
class Judged {
  #calls;
  #named;
  #node;
  #nowMs = Date.now();
  #token;
  #told;
  #watermarks = new Map();

  constructor(calls, token, node, told, named) {
    [this.#calls, this.#token, this.#node, this.#told, this.#named] = [calls, token, node, told, named];
  }

  // The verdict on an entry of a dataset in this cluster slot, whose guard was read first.
  verdict(guard, slot, dataset) {
    if (guard instanceof Error) {
      if (redirectionOf(guard, this.#node)?.kind === "ASK") return MOVING;
      if (!this.#calls.isMoved(guard, this.#node)) this.#calls.checked(guard);
      return AGAIN;
    }
    if (guard === null) return unknown("no shard has adopted its cluster slot");
    const shard = parseGuard(guard.toString());
    if (shard === undefined) return unknown("the guard of its cluster slot cannot be read");
    if (!this.#told.has(shard)) {
      this.#named.set(slot, shard);
      this.#calls.noteShard(this.#node, shard);
      return AGAIN;
    }
    const told = this.#told.get(shard);
    if (told === null || told instanceof Error) {
      return unknown(`the node of its cluster slot has no watermark of shard ${shard}, which has adopted it`);
    }
    if (!this.#watermarks.has(shard)) this.#watermarks.set(shard, parseWatermark(told));
    return judgeOnCluster(this.#watermarks.get(shard), slot, this.#token, dataset, this.#nowMs);
  }
}

// The shards that guards name, the one first that most of them do.
function namedBy(guards) {
  const named = new Map();
  for (const guard of guards) {
    const shard = Buffer.isBuffer(guard) ? parseGuard(guard.toString()) : undefined;
    if (shard !== undefined) named.set(shard, (named.get(shard) ?? 0) + 1);
  }
  return [...named].sort(([, one], [, other]) => other - one).map(([shard]) => shard);
}

function restless(last) {
  const attempts = PAUSES_MS.length + 1;
  return new Error(`CLUSTERDOWN each node that was asked named another one, ${attempts} times; at last: ${last?.message}`);
}
