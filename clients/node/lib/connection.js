// Clients of Redis from URLs, and what their errors mean.

import { Redis } from "ioredis";
import { InvalidInput, PermissionDenied, RedisRefused, Unreachable } from "./errors.js";

// How often a connection is tried before what waits for it is told.
const ATTEMPTS = 3;
const [PAUSE_MIN_MS, PAUSE_MAX_MS] = [50, 1_000];

// A server that is no master any more: the connection is made anew, and what was asked is asked there.
const IS_OTHER_MASTER = /^(READONLY|UNBLOCKED|MASTERDOWN)/;
// Replies of a server that is about to be, or to find, a master: another attempt may succeed.
const IS_PASSING = /^(LOADING|MASTERDOWN|READONLY|UNBLOCKED|TRYAGAIN|CLUSTERDOWN)/;
const IS_NO_CONNECTION =
  /^(Connection is closed|Command timed out|Socket timeout|Reached the max retries|All sentinels are unreachable|Stream isn't writeable|Blocking command timed out)/;

// A client for a URL, and where it leads to, without secrets.
export function build(url, timeoutMs, more) {
  const options = {
    connectTimeout: timeoutMs,
    commandTimeout: timeoutMs,
    socketTimeout: timeoutMs,
    maxRetriesPerRequest: ATTEMPTS,
    retryStrategy: (times) => Math.min(PAUSE_MIN_MS * 2 ** Math.min(times - 1, 10), PAUSE_MAX_MS),
    reconnectOnError: (error) => (IS_OTHER_MASTER.test(error.message) ? 2 : false),
    // It asks INFO, which applications need no right to.
    enableReadyCheck: false,
    ...more,
  };
  const sentinels = parseSentinels(url);
  if (sentinels !== undefined) {
    const nodes = sentinels.sentinels.map(({ host, port }) => `${host}:${port}`).join(", ");
    const where = `redis (service ${sentinels.name} of the sentinels ${nodes})`;
    return { client: new Redis({ ...options, ...sentinels }), where };
  }
  if (!/^(rediss?|unix):\/\//.test(url)) {
    throw new InvalidInput("the URL of Redis begins with redis://, rediss://, unix:// or redis+sentinel://");
  }
  const path = url.startsWith("unix://") ? unixOf(url) : undefined;
  const client = path === undefined ? new Redis(url, options) : new Redis({ ...options, ...path });
  return { client, where: whereOf(client) };
}

// Where a client leads to, without secrets.
export function whereOf(client) {
  const { path, host, port, sentinels, name } = client.options ?? {};
  if (sentinels) return `redis (service ${name} of its sentinels)`;
  return path ? `redis at ${path}` : `redis at ${host}:${port}`;
}

function unixOf(url) {
  const { pathname, searchParams } = new URL(url);
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
    const { hostname, port } = new URL(`redis://${host}`);
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
  const text = (isWithout && last?.message) || error.message;
  if (/^(NOAUTH|WRONGPASS)|invalid username-password|AUTH failed/.test(text)) {
    return new PermissionDenied(`${where} refused the login: ${text}`, { cause: error });
  }
  if (text.startsWith("NOPERM")) {
    const hint = `this user of ${where} lacks a right (${text}); see \`cachekeeper acl --for ${kind}\``;
    return new PermissionDenied(`failed to ${what}: ${hint}`, { cause: error });
  }
  if (isWithout || IS_PASSING.test(text)) {
    const why = text === error.message ? text : `${text} (${error.message})`;
    return new Unreachable(`failed to ${what}: ${where} cannot be reached: ${why}`, { cause: error });
  }
  return new RedisRefused(`failed to ${what}: ${where} answered: ${text}`, { cause: error });
}
