/** Cachekeeper for Node: read entries, read your own writes, publish events, hand over writes. */

import type { Cluster, Redis, RedisOptions } from "ioredis";

/** One value, an array in the order of the key's columns, or an object by column. Values are the text that Postgres prints. */
export type Id = string | number | bigint | ReadonlyArray<string | number | bigint> | Readonly<Record<string, string | number | bigint>>;

export interface ConnectOptions {
  /** Limit of each command and of each attempt to connect. Default: 5,000. */
  timeoutMs?: number;
  /** What a compressed value may grow to. Default: 256 MiB. */
  valueBytesMax?: number;
  /** Whole numbers that a number does not hold exactly (beyond 2^53) are BigInts; `false`: numbers, rounded. Default: true. */
  bigints?: boolean;
  /** Options of ioredis, for example `tls` or `sentinelPassword`. */
  redis?: RedisOptions;
}

export interface ReadOptions {
  /** What must be seen: the token of a write, or `takeToken` after your own commit. */
  token?: Token | string | null;
  /** How long to wait until it is. Default: 0. */
  waitMs?: number;
}

export interface KeyOptions extends ReadOptions {
  /** Needed where the key could be of several datasets. */
  dataset?: string;
}

/** `negative`: it is known that there is no row; `missing`: there is no entry. */
export type Found<T = unknown> =
  | { readonly state: "hit"; readonly value: T }
  | { readonly state: "negative"; readonly value: null }
  | { readonly state: "missing"; readonly value: undefined };

export type Reading<T = unknown> = Found<T> & Verdict;

export interface Verdict {
  readonly key: string;
  /** Whether the token sees nothing that this value could lack. Without a token: false. */
  readonly isFresh: boolean;
  /** With a token. */
  readonly freshness?: "fresh" | "stale" | "unknown";
  /** Of a stale one: it is at most so old, by the clocks of the database and of this machine. */
  readonly behindMs?: number;
  /** Why it is not fresh. */
  readonly reason?: string;
}

/** What changed. Keys, tags and a dataset may stand side by side. */
export interface Event {
  key?: string | null;
  keys?: readonly string[] | null;
  tag?: string | null;
  tags?: readonly string[] | null;
  dataset?: string | null;
  ids?: ReadonlyArray<string | number | bigint | ReadonlyArray<string | number | bigint>> | null;
  op?: "refresh" | "delete" | null;
  id?: string | null;
  /** When it was published, in Unix milliseconds. */
  at?: number | null;
}

export type Param = null | string | number | bigint | boolean | Date | Uint8Array | readonly Param[] | { readonly [name: string]: Param };

export interface WriteOptions {
  /** By it the worker knows a write again. Default: a UUID. */
  id?: string;
  /** Default: 10,000. */
  timeoutMs?: number;
}

/** A write that was carried out. */
export interface Written {
  readonly id: string;
  /** Rows that it touched in the database. */
  readonly rows: number;
  /** For the next read: it sees this write. */
  readonly token: Token | null;
  /** Whether Redis has the new values already; else the worker sees to it. */
  readonly isCached: boolean;
  readonly reply: Readonly<Record<string, unknown>>;
}

/**
 * Connects, and reads what the workers of this namespace tell. A URL is `redis://`, `rediss://`, `unix://`,
 * `redis+sentinel://host:port,host:port/service/database` or `redis+cluster://host:port,host:port`.
 */
export function connect(urlOrClient: string | Redis | Cluster, namespace: string, options?: ConnectOptions): Promise<Cache>;

export class Cache {
  /** Asks nothing yet; `connect` does. */
  constructor(client: Redis | Cluster, namespace: string, options?: Pick<ConnectOptions, "valueBytesMax" | "bigints" | "timeoutMs">);
  /** What was given. For a URL of a cluster a client that is not connected: the cache has connections of its own. */
  readonly client: Redis | Cluster;
  readonly namespace: string;

  /**
   * The value of one entry; `undefined`: there is no entry; `null`: it is known that there is no row. With a token it is at least
   * that fresh, after up to `waitMs`, or `NotFresh` is thrown: ask the database then.
   */
  get<T = unknown>(dataset: string, id: Id, options?: ReadOptions): Promise<T | null | undefined>;
  /** The same for many, in their order, by one command (for each thousand); on a cluster by one round trip to each node. */
  getMany<T = unknown>(dataset: string, ids: readonly Id[], options?: ReadOptions): Promise<Array<T | null | undefined>>;
  /** The same by the key in full. */
  getKey<T = unknown>(key: string, options?: KeyOptions): Promise<T | null | undefined>;

  /** As `get`, and tells what was found and how fresh it is, and never throws `NotFresh`. */
  read<T = unknown>(dataset: string, id: Id, options?: ReadOptions): Promise<Reading<T>>;
  readMany<T = unknown>(dataset: string, ids: readonly Id[], options?: ReadOptions): Promise<Array<Reading<T>>>;
  readKey<T = unknown>(key: string, options?: KeyOptions): Promise<Reading<T>>;

  /** Tells the workers what changed, after it was committed. Answers how many heard it, on a cluster at one node (0: nobody, it is lost). */
  publish(event: Event, options?: { durable?: false }): Promise<number>;
  /** The same through the stream, where it waits for a worker. Answers the id of its entry. */
  publish(event: Event, options: { durable: true }): Promise<string>;

  /**
   * Hands over a write of the dataset's statement, and waits until it is carried out. A write that is said again under its `id` is
   * not carried out again, and gets the same answer. Throws `WriteRejected`, `Unreachable` (nothing was handed over) or
   * `WriteUnknown` (say it again with the same id).
   */
  write(dataset: string, params: Readonly<Record<string, Param>>, options?: WriteOptions): Promise<Written>;

  /** What the workers tell of this namespace, at most ten seconds old. */
  directory(dataset?: string): Promise<Directory>;
  /** Closes the connections that were opened here; a client that was given stays open. Calls after it throw InvalidInput. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export class Directory {
  readonly namespace: string;
  readonly channels: readonly string[];
  readonly eventStream: string | null;
  readonly writeStream: string | null;
  readonly replyPrefix: string;
  readonly datasets: ReadonlyMap<string, Dataset>;
  dataset(name: string): Dataset;
  ofKey(key: string): Dataset;
}

export class Dataset {
  readonly name: string;
  readonly format: string;
  readonly rows: string;
  readonly hasNegatives: boolean;
  readonly isWritable: boolean;
  key(id: Id): string;
}

/** A snapshot after a commit, and the life of the database that it belongs to. */
export class Token {
  static parse(text: string | Token): Token;
  readonly text: string;
  readonly incarnation: string;
  toString(): string;
  toJSON(): string;
}

/** What `takeToken` asks the database. */
export const TOKEN_SQL: string;
/** Takes a token of this moment, after your commit, through a client of `pg`, or anything whose `query` answers `rows`. */
export function takeToken(client: { query(sql: string): Promise<{ rows: any[] }> }): Promise<Token>;

export class CachekeeperError extends Error {}
/** No connection to Redis: refused, broken, or no answer in time. For a write: nothing was handed over. */
export class Unreachable extends CachekeeperError {}
/** Redis answered with an error, for example because its memory is full. */
export class RedisRefused extends CachekeeperError {}
/** The login was refused, or this user may not do that. */
export class PermissionDenied extends CachekeeperError {}
/** No worker has registered anything under this namespace in this database. */
export class NotRegistered extends CachekeeperError {}
/** The workers are newer than this package can understand. */
export class UnsupportedVersion extends CachekeeperError {}
/** What the caller gave cannot be used. Nothing was sent. */
export class InvalidInput extends CachekeeperError {}
export class UnknownDataset extends InvalidInput {}
export class InvalidKey extends InvalidInput {}
export class InvalidToken extends InvalidInput {}
export class InvalidEvent extends InvalidInput {}
export class InvalidWrite extends InvalidInput {}
/** The database has no token yet: it was started, and no worker has seen it since. */
export class NoToken extends CachekeeperError {}
/** The bytes under a key are no value of the dataset's format. */
export class Undecodable extends CachekeeperError {
  readonly key: string;
  readonly value: Buffer;
}
/** The value may be older than the token: ask the database. */
export class NotFresh extends CachekeeperError {
  readonly readings: readonly Reading[];
}
/** The worker did not carry out the write; the message says why. Nothing was changed in the database. */
export class WriteRejected extends CachekeeperError {
  readonly id: string;
  readonly reply: Readonly<Record<string, unknown>>;
}
/** No reply in time: the write may have been carried out, or may be later. Say it again with the same id. */
export class WriteUnknown extends CachekeeperError {
  readonly id: string;
}
