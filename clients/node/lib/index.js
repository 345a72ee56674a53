// Cachekeeper for Node: read entries, read your own writes, publish events, hand over writes. README.md shows how.

export { Cache, connect } from "./cache.js";
export * from "./errors.js";
export { Dataset, Directory } from "./directory.js";
export { TOKEN_SQL, Token, takeToken } from "./tokens.js";
