// Connections to the nodes of a cluster: plain clients of ioredis, one for each node.

import { Redis } from "ioredis";
import { PORT } from "./cluster-url.js";
import { addressOf, ClusterMap } from "./cluster.js";
import { nodeOptions } from "./connection.js";
import { InvalidInput } from "./errors.js";
import { within } from "./time.js";

// The nodes of a client of a cluster, with its settings, on connections of their own.
export class Nodes {
  #clients = new Map();
  #settings;

  // `timeoutMs`: the limit of each command, where the client has none.
  constructor(client, timeoutMs) {
    if (client.options.scaleReads !== "master") {
      throw new InvalidInput("this client reads from replicas, of which nobody knows how fresh they are: give one without scaleReads");
    }
    const known = [...client.nodes("all").map(({ options }) => options), ...client.startupNodes.map(startOf)];
    const own = { ...known.at(-1), ...client.options.redisOptions, ...client.nodes("master")[0]?.options };
    this.#settings = { ...nodeOptions(timeoutMs), ...own, commandTimeout: own.commandTimeout ?? timeoutMs };
    const { natMap } = client.options;
    const mapped = (node) => (typeof natMap === "function" ? natMap(node) : natMap?.[node]);
    const remap = (node) => (mapped(node) ? nodeOf(mapped(node)) : node);
    this.map = new ClusterMap(known.map(nodeOf), remap);
  }

  // What came of each command on one connection to a node, in this order: values, and errors of Redis. Throws where nothing came.
  // `limitMs`: what it may take, beside the limit of each command.
  async ask(node, commands, limitMs) {
    const connection = this.#connect(node);
    const pipeline = connection.client.pipeline(commands);
    const replies = await (limitMs === undefined ? pipeline.exec() : within(pipeline.exec(), limitMs));
    if (replies === undefined) throw new Error("Command timed out");
    const lost = replies.find(([error]) => error && error.name !== "ReplyError");
    if (lost !== undefined) throw (connection.client.status === "end" && connection.lastError) || lost[0];
    return replies.map(([error, reply]) => error ?? reply);
  }

  close() {
    for (const { client } of this.#clients.values()) client.disconnect();
    this.#clients.clear();
  }

  #connect(node) {
    for (const [other, { client }] of this.#clients) {
      if (other !== node && !this.map.isKnown(other)) this.#leave(other, client);
    }
    const known = this.#clients.get(node);
    if (known !== undefined) return known;
    // A connection that is lost is not made anew by itself: what was asked on it is asked again by who knows where to. None ever
    // says READONLY, so no replica answers.
    const own = { retryStrategy: null, readOnly: false, lazyConnect: true, enableOfflineQueue: true, keyPrefix: undefined };
    const client = new Redis({ ...this.#settings, ...own, ...addressOf(node) });
    const connection = { client, lastError: undefined };
    client.on("error", (error) => (connection.lastError = error));
    client.on("end", () => this.#leave(node, client));
    this.#clients.set(node, connection);
    return connection;
  }

  #leave(node, client) {
    if (this.#clients.get(node)?.client === client) this.#clients.delete(node);
    if (client.status !== "end") client.disconnect();
  }
}

const nodeOf = ({ host, port }) => `${host}:${port}`;

// Host, port and settings of a node as a client may be given it.
function startOf(given) {
  if (typeof given === "number" || /^\d+$/.test(given)) return { host: "127.0.0.1", port: Number(given) };
  if (typeof given !== "string") return { host: "127.0.0.1", port: PORT, ...given };
  const { hostname, port, password, username } = new URL(given.includes("://") ? given : `redis://${given}`);
  return {
    host: hostname.replace(/^\[|\]$/g, ""),
    port: Number(port || PORT),
    ...(username && { username: decodeURIComponent(username) }),
    ...(password && { password: decodeURIComponent(password) }),
    ...(given.startsWith("rediss://") && { tls: {} }),
  };
}
