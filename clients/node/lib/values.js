// From the bytes under a key to a value. Values are plain: the format's bytes, perhaps in a standard frame.

import { randomUUID } from "node:crypto";
import zlib from "node:zlib";
import { decode as unpack } from "@msgpack/msgpack";
import { Decompress } from "fzstd";
import { Undecodable } from "./errors.js";
import { decompressLz4 } from "./lz4.js";

const ZSTD_MAGIC = 0xfd2fb528;
const LZ4_MAGIC = 0x184d2204;
// A window that every reader should have memory for (RFC 8878, 3.1.1.1.2).
const ZSTD_WINDOW_MAX = 8 << 20;
// What a value may grow to when it is decompressed, so that a small entry cannot fill the memory.
export const VALUE_BYTES_MAX = 256 << 20;

// The value of these bytes; null is an explicit null.
export function decodeValue(value, format, key, { valueBytesMax = VALUE_BYTES_MAX, bigints = true } = {}) {
  try {
    const plain = decompress(value, valueBytesMax);
    if (format === "raw") return plain;
    if (format !== "msgpack" && format !== "json") {
      throw new RangeError(`this version of the package cannot read the format ${JSON.stringify(format)}`);
    }
    // While a dataset changes from one format to the other both stand in Redis, and the first byte tells them apart: an entry is
    // a map, a list or null, which in MessagePack never begin with one of these.
    const first = String.fromCharCode(plain[0]);
    if ("{[n".includes(first)) return parseJson(plain.toString("utf8"), bigints);
    return bigints ? narrow(unpack(plain, { useBigInt64: true })) : unpack(plain);
  } catch (error) {
    throw new Undecodable(`the value of ${key} cannot be read: ${error.message}`, key, value, { cause: error });
  }
}

const TEXT = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

// The fields of a hash as texts; a value that is no text stays what it is: bytes.
export function decodeHash(fields) {
  const decoded = {};
  for (const [name, value] of Object.entries(fields)) {
    let text;
    try {
      text = TEXT.decode(value);
    } catch {
      text = value;
    }
    Object.defineProperty(decoded, name, { value: text, enumerable: true, configurable: true, writable: true });
  }
  return decoded;
}

function decompress(value, limit) {
  const magic = value.length < 4 ? 0 : value.readUInt32LE(0);
  if (magic === ZSTD_MAGIC) return decompressZstd(value, limit);
  return magic === LZ4_MAGIC ? decompressLz4(value, limit) : value;
}

function decompressZstd(value, limit) {
  if (zlib.zstdDecompressSync) {
    try {
      return zlib.zstdDecompressSync(value, { maxOutputLength: limit });
    } catch (error) {
      const isTooLarge = error.code === "ERR_BUFFER_TOO_LARGE";
      throw new RangeError(isTooLarge ? `it would be larger than ${limit} bytes` : `the compressed frame is damaged: ${error.message}`);
    }
  }
  return decompressZstdInJs(value, limit);
}

// Before Node 22.15, which has it built in.
export function decompressZstdInJs(value, limit) {
  const tooLarge = () => new RangeError(`it would be larger than ${limit} bytes`);
  const { size, window } = zstdHeader(value);
  if (limit < size || Math.max(limit, ZSTD_WINDOW_MAX) < window) throw tooLarge();
  const parts = [];
  let total = 0;
  let isTooLarge = false;
  const stream = new Decompress((part) => {
    total += part.length;
    isTooLarge ||= limit < total;
    if (isTooLarge) throw tooLarge();
    parts.push(part);
  });
  try {
    stream.push(value, true);
  } catch (error) {
    throw isTooLarge ? error : new RangeError(`the compressed frame is damaged: ${error.message}`);
  }
  return Buffer.concat(parts);
}

// The size of a frame's content, else of the window that its reader has to keep (RFC 8878, 3.1.1.1).
function zstdHeader(value) {
  const flags = value[4];
  const isSingle = (flags >> 5) & 1;
  const sizeBytes = [isSingle, 2, 4, 8][flags >> 6];
  const at = 5 + (isSingle ? 0 : 1) + [0, 1, 2, 4][flags & 3];
  if (value.length < at + sizeBytes) throw new RangeError("the compressed frame is damaged: it ends early");
  if (sizeBytes === 8) return { size: Number(value.readBigUInt64LE(at)), window: 0 };
  if (0 < sizeBytes) return { size: value.readUIntLE(at, sizeBytes) + (sizeBytes === 2 ? 256 : 0), window: 0 };
  const base = 2 ** (10 + (value[5] >> 3));
  return { size: 0, window: base + (base / 8) * (value[5] & 7) };
}

// Whole numbers that a Number holds exactly become Numbers again.
function narrow(value) {
  if (typeof value === "bigint") {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }
  if (Array.isArray(value)) return value.map(narrow);
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value) || value instanceof Date) return value;
  for (const name of Object.keys(value)) value[name] = narrow(value[name]);
  return value;
}

const MARK = `bigint ${randomUUID()} `;

// JSON.parse rounds whole numbers beyond 2^53, so these become BigInts where any are.
function parseJson(text, bigints) {
  if (!bigints || !/\d{16}/.test(text)) return JSON.parse(text);
  const marked = text.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g, (part) => {
    const isUnsafe = /^-?\d{16,}$/.test(part) && !Number.isSafeInteger(Number(part));
    return isUnsafe ? JSON.stringify(MARK + part) : part;
  });
  return JSON.parse(marked, (_name, value) =>
    typeof value === "string" && value.startsWith(MARK) ? BigInt(value.slice(MARK.length)) : value,
  );
}
