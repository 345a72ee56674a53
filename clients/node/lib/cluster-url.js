// The URL of a cluster.

import { InvalidInput } from "./errors.js";

export const PORT = 6_379;

// Reads redis+cluster://user:password@host:port,host:port; undefined: it is another URL.
export function parseNodes(url) {
  const found = /^(rediss?)\+cluster:\/\/([^/]*)(?:\/(.*))?$/.exec(url);
  if (found === null) return undefined;
  const [, scheme, authority, path = ""] = found;
  if (path !== "" && path !== "0") throw new InvalidInput("a cluster has database 0 alone: the URL ends behind its hosts");
  const at = authority.lastIndexOf("@");
  const [login, hosts] = at < 0 ? ["", authority] : [authority.slice(0, at), authority.slice(at + 1)];
  const colon = login.indexOf(":");
  const [user, password] = colon < 0 ? [login, ""] : [login.slice(0, colon), login.slice(colon + 1)];
  const nodes = hosts.split(",").map((host) => {
    const named = /^(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+)(?::(\d{1,5}))?$/.exec(host);
    const port = Number(named?.[2] ?? PORT);
    if (named === null || 65_535 < port) {
      throw new InvalidInput("a URL of a cluster is redis+cluster://user:password@host:port,host:port");
    }
    return { host: named[1].replace(/^\[|\]$/g, ""), port };
  });
  const redisOptions = {
    ...(user && { username: decodeURIComponent(user) }),
    ...(password && { password: decodeURIComponent(password) }),
    ...(scheme === "rediss" && { tls: {} }),
  };
  return { nodes, redisOptions };
}
