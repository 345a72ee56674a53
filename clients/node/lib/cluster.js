// Redis Cluster: which node serves a key, and who vouches for it. Nothing here asks anybody. Nodes are written host:port.

// How many cluster slots there are.
export const CLUSTER_SLOTS = 16_384;
// Cluster slots of a master at most whose guards are looked at to learn which shard it is.
const SAMPLE_MAX = 16;

const LETTERS = Buffer.from("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
const HASH_TAG_LETTERS_MAX = 3;

// CRC-16/XMODEM, byte by byte.
const CRC_TABLE = Uint16Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 8;
  for (let bit = 0; bit < 8; bit += 1) crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1;
  return crc;
});
const crc16 = (crc, byte) => ((crc << 8) ^ CRC_TABLE[((crc >> 8) ^ byte) & 0xff]) & 0xffff;

// The cluster slot of a key: of what stands between its first `{` and the next `}` if that is anything, else of all of it.
export function clusterSlot(key) {
  const whole = Buffer.from(key);
  const opening = whole.indexOf("{");
  const closing = opening < 0 ? -1 : whole.indexOf("}", opening);
  const hashed = opening + 1 < closing ? whole.subarray(opening + 1, closing) : whole;
  return hashed.reduce(crc16, 0) % CLUSTER_SLOTS;
}

let tags;

// For each cluster slot the first hash tag of it: short ones before long ones, then in the order of the letters.
export function hashTags() {
  if (tags !== undefined) return tags;
  const found = Array(CLUSTER_SLOTS);
  let left = CLUSTER_SLOTS;
  let shorter = [["", 0]];
  for (let length = 0; length < HASH_TAG_LETTERS_MAX; length += 1) {
    const longer = [];
    for (const [tag, before] of shorter) {
      for (const letter of LETTERS) {
        const [one, crc] = [tag + String.fromCharCode(letter), crc16(before, letter)];
        if (found[crc % CLUSTER_SLOTS] === undefined) {
          found[crc % CLUSTER_SLOTS] = one;
          left -= 1;
        }
        if (length + 1 < HASH_TAG_LETTERS_MAX) longer.push([one, crc]);
      }
      if (left === 0) break;
    }
    shorter = longer;
  }
  return (tags = Object.freeze(found));
}

// Where the guard of a cluster slot stands: in that cluster slot, with which it migrates.
export const guardKey = (namespace, slot) => `ck:{${hashTags()[slot]}}:${namespace}:g`;

// The number of the shard that a guard names; undefined: this is no guard.
export function parseGuard(text) {
  const found = /^(0|[1-9]\d{0,9}) [0-9a-f]{16}$/.exec(text);
  return found !== null && Number(found[1]) < 2 ** 32 ? Number(found[1]) : undefined;
}

// A set of cluster slots, written as ranges such as `0-5460,5462`: not zero at each that is in it. Throws RangeError.
export function parseClusterSlots(text) {
  if (typeof text !== "string") throw new RangeError("cluster slots are text");
  const covered = new Uint8Array(CLUSTER_SLOTS);
  for (const part of text === "" ? [] : text.split(",")) {
    const ends = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(part);
    const [first, last] = ends === null ? [1, 0] : [Number(ends[1]), Number(ends[2] ?? ends[1])];
    if (last < first || CLUSTER_SLOTS <= last) throw new RangeError(`${JSON.stringify(part.slice(0, 40))} is no range of cluster slots`);
    covered.fill(1, first, last + 1);
  }
  return covered;
}

// What a node says of a key that it does not have: `MOVED` (another one serves the cluster slot) or `ASK` (it migrates); undefined:
// this is no redirection. `asked`: who said it.
export function redirectionOf(reply, asked) {
  const found = reply instanceof Error ? /^(MOVED|ASK) (\d{1,5}) (\S*):(\d{1,5})/.exec(reply.message) : null;
  if (found === null || CLUSTER_SLOTS <= Number(found[2])) return undefined;
  return { kind: found[1], slot: Number(found[2]), node: `${found[3] || addressOf(asked).host}:${found[4]}` };
}

// Host and port of a node.
export function addressOf(node) {
  const colon = node.lastIndexOf(":");
  return { host: node.slice(0, colon).replace(/^\[|\]$/g, ""), port: Number(node.slice(colon + 1)) };
}

// Which node serves which cluster slot, as far as is known. `remap` makes of a node one by which it can be reached.
export class ClusterMap {
  // Whether it is to be fetched before anything else is asked.
  isStale = true;
  #asked;
  #moved = [];
  #owners = Array(CLUSTER_SLOTS);
  #remap;
  #samples = new Map();
  #silent = new Set();

  constructor(seeds, remap = (node) => node) {
    this.seeds = [...new Set(seeds)];
    this.#remap = remap;
  }

  // The master that serves a cluster slot; undefined: nobody is known to.
  owner(slot) {
    return this.#owners[slot];
  }

  // All masters that serve anything.
  masters() {
    return [...this.#samples.keys()].sort();
  }

  // Whether it serves anything, or is one of those that were named.
  isKnown(node) {
    return this.#samples.has(node) || this.seeds.includes(node);
  }

  // Some of the cluster slots that a master serves.
  sample(master) {
    return this.#samples.get(master) ?? [];
  }

  // Who may know, in the order in which they are to be asked. Another one comes first each time, because a node that is cut off
  // knows what was; those that did not answer come last.
  toAsk() {
    const masters = this.masters();
    const at = masters.indexOf(this.#asked) + 1;
    const known = [...new Set([...this.#moved, ...masters.slice(at), ...masters.slice(0, at), ...this.seeds])];
    return [...known.filter((node) => !this.#silent.has(node)), ...known.filter((node) => this.#silent.has(node))];
  }

  // Notes that another node serves a cluster slot. That one knows best, and is asked first.
  moved(node, slot) {
    this.#owners[slot] = node;
    this.#moved = [node];
    if (!this.#samples.has(node)) this.#samples.set(node, [slot]);
    this.isStale = true;
  }

  // The node as it can be reached that others name so.
  reached(node) {
    return this.#remap(node);
  }

  // Notes that a node did not answer.
  fellSilent(node) {
    this.#silent.add(node);
    this.isStale = true;
  }

  // Takes what a node answered to `CLUSTER SLOTS`; answers whether it knows of any cluster slot that is served.
  note(reply, asked) {
    const [owners, served] = [Array(CLUSTER_SLOTS), new Map()];
    for (const [first, last, [host, port]] of Array.isArray(reply) ? reply : []) {
      const isNamed = host !== null && !["", "?"].includes(String(host));
      const node = this.#remap(`${isNamed ? host : addressOf(asked).host}:${port}`);
      owners.fill(node, Number(first), Number(last) + 1);
    }
    owners.forEach((owner, slot) => (served.has(owner) ? served.get(owner).push(slot) : served.set(owner, [slot])));
    if (served.size === 0) return false;
    const isSampled = (slots) => (_slot, at) => at % Math.ceil(slots.length / SAMPLE_MAX) === 0;
    this.#samples = new Map([...served].map(([owner, slots]) => [owner, slots.filter(isSampled(slots))]));
    [this.#owners, this.#asked, this.#moved, this.isStale] = [owners, asked, [], false];
    this.#silent.delete(asked);
    return true;
  }
}
