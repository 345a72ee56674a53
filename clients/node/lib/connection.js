// Clients of Redis from URLs, and what their errors mean.

import { Cluster, Redis } from "ioredis";
import { parseNodes } from "./cluster-url.js";
import { CachekeeperError, InvalidInput, PermissionDenied, RedisRefused, Unreachable } from "./errors.js";
import { TIMER_MS_MAX, wholeOf } from "./options.js";
import { shown } from "./template.js";

// How often a connection is tried before what waits for it is told.
const ATTEMPTS = 3;
const [PAUSE_MIN_MS, PAUSE_MAX_MS] = [50, 250];
// For a sentinel at most: one that hangs is passed over.
export const SENTINEL_MS = 500;

// A server that is no master any more: the connection is made anew, and what was asked is asked there.
const IS_OTHER_MASTER = /^(READONLY|UNBLOCKED|MASTERDOWN)/;
export const isOtherMaster = (error) => IS_OTHER_MASTER.test(error.message);
export const reconnectOnError = (error) => (isOtherMaster(error) ? 2 : false);
// Replies of a server that is about to be, or to find, a master: another attempt may succeed.
const IS_PASSING = /^(LOADING|MASTERDOWN|READONLY|UNBLOCKED|TRYAGAIN|CLUSTERDOWN)/;
export const isPassing = (error) => IS_PASSING.test(error.message);
// What only a node of a cluster says, to a client that does not expect it.
const IS_OF_CLUSTER = /^(MOVED|ASK|CROSSSLOT)/;
const IS_NO_CONNECTION =
  /^(Connection is closed|Command timed out|Socket timeout|Reached the max retries|All sentinels are unreachable|Stream isn't writeable|Blocking command timed out)/;

// Options of ioredis for a server whose commands are limited so.
export function nodeOptions(timeoutMs) {
  return {
    connectTimeout: timeoutMs,
    commandTimeout: timeoutMs,
    socketTimeout: timeoutMs,
    // A server that hangs is left soon.
    disconnectTimeout: 500,
    // It asks INFO, which applications need no right to.
    enableReadyCheck: false,
  };
}

// A client for a URL, and where it leads to, without secrets. It connects with its first command.
export function build(url, timeoutMs, more) {
  wholeOf(timeoutMs, "timeoutMs", 1, TIMER_MS_MAX);
  if (more === null || typeof more !== "object") throw new InvalidInput(`redis: options are an object, not ${shown(more)}`);
  for (const name of ["connectTimeout", "commandTimeout", "socketTimeout", "sentinelCommandTimeout", "disconnectTimeout"]) {
    if (more[name] !== undefined) wholeOf(more[name], `redis.${name}`, 1, TIMER_MS_MAX);
  }
  if (more.port !== undefined) wholeOf(more.port, "redis.port", 0, 65_535);
  const [sentinels, cluster] = [parseSentinels(url), parseNodes(url)];
  // A sentinel that hangs leaves time for the next one, and for the master.
  const share = sentinels && Math.max(1, Math.min(SENTINEL_MS, Math.floor(timeoutMs / (sentinels.sentinels.length + 1))));
  const options = {
    ...nodeOptions(timeoutMs),
    connectTimeout: share ?? timeoutMs,
    sentinelCommandTimeout: share,
    updateSentinels: false,
    maxRetriesPerRequest: ATTEMPTS,
    retryStrategy: (times) => Math.min(PAUSE_MIN_MS * 2 ** Math.min(times - 1, 10), PAUSE_MAX_MS),
    reconnectOnError,
    ...more,
    lazyConnect: true,
  };
  // A URL only says that TLS is spoken, options say how.
  const tls = more.tls && { tls: more.tls };
  try {
    if (cluster !== undefined) {
      // It is never connected: it says how to reach its nodes.
      const redisOptions = { ...nodeOptions(timeoutMs), ...more, ...cluster.redisOptions, ...tls };
      const client = new Cluster(cluster.nodes, { lazyConnect: true, redisOptions });
      return { client, where: whereOf(client) };
    }
    const client = sentinels === undefined ? clientOf(url, options) : new Redis({ ...options, ...sentinels, ...tls });
    // Errors come with the calls; nobody else need listen.
    client.on("error", () => {});
    wholeOf(client.options.db, "the database of the URL", 0, 2 ** 31 - 1);
    if (sentinels === undefined) return { client, where: whereOf(client) };
    const nodes = sentinels.sentinels.map(({ host, port }) => `${host}:${port}`).join(", ");
    return { client: steady(client), where: `redis (service ${sentinels.name} of the sentinels ${nodes})` };
  } catch (error) {
    if (error instanceof CachekeeperError) throw error;
    throw new InvalidInput(`the URL of Redis, or an option for ioredis, cannot be used: ${error.message}`, { cause: error });
  }
}

// What the sentinels said last, by client, and what asks one of them.
const MASTERS = new WeakMap();

// The sentinel that answered is asked first the next time (ioredis would go on with the one after it), and what it said is kept.
export function steady(client) {
  const { connector } = client;
  if (typeof connector?.resolve !== "function") return client;
  const known = { ask: connector.resolve.bind(connector), last: undefined };
  connector.resolve = async (sentinel) => (known.last = await known.ask(sentinel));
  MASTERS.set(client, known);
  return client.on("connect", () => connector.sentinelIterator?.reset?.(true));
}

// Whether the sentinels name another master than the one this client is connected to, which may not know that itself for seconds.
export async function hasMoved(client) {
  const { ask, last } = MASTERS.get(client) ?? {};
  for (const sentinel of last ? client.options.sentinels : []) {
    const master = await ask(sentinel).catch(() => null);
    if (master) return master.host !== last.host || master.port !== last.port;
  }
  return false;
}

// Makes the connection of a client anew. One that is just being made is left: ioredis would end it for ever.
export function renew(client) {
  if (client.status === "ready" || client.status === "connect") client.disconnect(true);
}

// Whether two clients of the same sentinels are connected to two servers.
export function areApart(one, other) {
  const [first, second] = [one, other].map(({ stream }) => stream?.remotePort && `${stream.remoteAddress} ${stream.remotePort}`);
  return 0 < (one.options?.sentinels?.length ?? 0) && Boolean(first && second) && first !== second;
}

function clientOf(url, options) {
  const scheme = /^(redis|rediss|unix):\/\//.exec(url)?.[1];
  if (scheme === undefined) {
    throw new InvalidInput("the URL of Redis begins with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://");
  }
  const parsed = parseUrl(url);
  if (scheme === "unix") return new Redis({ ...options, ...unixOf(parsed) });
  if (!/^\/?\d*$/.test(parsed.pathname)) {
    throw new InvalidInput(`the URL of Redis ends with the number of a database, such as /0, not with ${parsed.pathname}`);
  }
  return new Redis(url, options);
}

function parseUrl(url) {
  try {
    return new URL(url);
  } catch {
    throw new InvalidInput("the URL of Redis cannot be read: is the port a number up to 65535?");
  }
}

// Whether this is a client, as far as the calls need it.
export function checkClient(client) {
  const isClient = client !== null && typeof client === "object" && ["on", "hgetall", "duplicate"].every((name) => typeof client[name] === "function");
  if (!isClient) throw new InvalidInput(`connect takes the text of a URL, or a client of ioredis, not ${shown(client)}`);
}

// Where a client leads to, without secrets.
export function whereOf(client) {
  if (isCluster(client)) return `redis cluster at ${client.startupNodes.map(nameOf).join(", ")}`;
  const { path, host, port, sentinels, name } = client.options ?? {};
  if (sentinels) return `redis (service ${name} of its sentinels)`;
  return path ? `redis at ${path}` : `redis at ${host}:${port}`;
}

export const isCluster = (client) => client?.isCluster === true;

// A node as a client of a cluster may be given it, without secrets.
function nameOf(node) {
  if (typeof node === "object") return `${node.host ?? "127.0.0.1"}:${node.port ?? 6_379}`;
  return String(node).replace(/^.*[/@]/, "");
}

function unixOf({ pathname, searchParams }) {
  return { path: decodeURIComponent(pathname), db: Number(searchParams.get("db") ?? 0) };
}

// Reads redis+sentinel://user:password@host:port,host:port/service/database; undefined: it is another URL.
export function parseSentinels(url) {
  const found = /^(rediss?)\+sentinel:\/\/(?:(.*)@)?([^/@]+)\/([^/]+)(?:\/(\d*))?$/.exec(url);
  if (found === null) {
    if (/^rediss?\+sentinel:/.test(url)) {
      throw new InvalidInput("a URL of sentinels is redis+sentinel://host:port,host:port/service/database");
    }
    return undefined;
  }
  const [, scheme, login = "", hosts, service, database] = found;
  const colon = login.indexOf(":");
  const [user, password] = colon < 0 ? [login, ""] : [login.slice(0, colon), login.slice(colon + 1)];
  const sentinels = hosts.split(",").map((host) => {
    const { hostname, port } = parseUrl(`redis://${host}`);
    return { host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || 26379) };
  });
  return {
    sentinels,
    name: decodeURIComponent(service),
    db: Number(database || 0),
    ...(user && { username: decodeURIComponent(user) }),
    ...(password && { password: decodeURIComponent(password) }),
    ...(scheme === "rediss" && { tls: {}, enableTLSForSentinelMode: true }),
  };
}

// What an error of the client means. `kind`: for whom `cachekeeper acl` has the missing right. `last`: what went wrong with its
// connection last, which says more than that there is none.
export function explain(error, what, where, kind, last) {
  const isReply = error.name === "ReplyError";
  const isWithout = !isReply && (error.code !== undefined || IS_NO_CONNECTION.test(error.message));
  const told = (isWithout && last?.message) || error.message;
  const text = told.length <= 300 ? told : `${told.slice(0, 300)} …`;
  if (/^(NOAUTH|WRONGPASS)|invalid username-password|AUTH failed/.test(text)) {
    return new PermissionDenied(`${where} refused the login: ${text}`, { cause: error });
  }
  if (text.startsWith("NOPERM")) {
    const hint = `this user of ${where} lacks a right (${text}); see \`cachekeeper acl --for ${kind}\``;
    return new PermissionDenied(`failed to ${what}: ${hint}`, { cause: error });
  }
  if (isReply && IS_OF_CLUSTER.test(text)) {
    const hint = `${where} is a node of a cluster (${text}): give a URL that begins with redis+cluster://`;
    return new RedisRefused(`failed to ${what}: ${hint}`, { cause: error });
  }
  if (isWithout || IS_PASSING.test(text)) {
    const why = told === error.message ? text : `${text} (${error.message})`;
    return new Unreachable(`failed to ${what}: ${where} cannot be reached: ${why}`, { cause: error });
  }
  return new RedisRefused(`failed to ${what}: ${where} answered: ${text}`, { cause: error });
}
