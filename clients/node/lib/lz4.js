// LZ4 frames (frame format 1.6). Checksums are not compared: Redis and the network have their own.

const damaged = (why) => new RangeError(`the compressed frame is damaged: ${why}`);
const tooLarge = (limit) => new RangeError(`it would be larger than ${limit} bytes`);

// What has come out so far; earlier blocks may be referred to by later ones.
class Output {
  constructor(size, limit) {
    this.bytes = Buffer.allocUnsafe(size);
    this.length = 0;
    this.limit = limit;
  }

  room(more) {
    const wanted = this.length + more;
    if (this.limit < wanted) throw tooLarge(this.limit);
    if (wanted <= this.bytes.length) return;
    const grown = Buffer.allocUnsafe(Math.min(this.limit, Math.max(wanted, 2 * this.bytes.length)));
    this.bytes.copy(grown, 0, 0, this.length);
    this.bytes = grown;
  }

  append(source, from, to) {
    this.room(to - from);
    source.copy(this.bytes, this.length, from, to);
    this.length += to - from;
  }

  // Copies from what has come out; where it overlaps with what is written, that is repeated.
  repeat(distance, count) {
    if (distance === 0 || this.length < distance) throw damaged("it refers to what is not there");
    this.room(count);
    let from = this.length - distance;
    for (let left = count; 0 < left; left -= 1) this.bytes[this.length++] = this.bytes[from++];
  }
}

export function decompressLz4(frame, limit) {
  const flags = frame[4];
  if (frame.length < 7 || flags >> 6 !== 1) throw damaged("its header is not known");
  let at = 6;
  let size;
  if (flags & 0x08) {
    if (frame.length < at + 8) throw damaged("it ends early");
    size = Number(frame.readBigUInt64LE(at));
    if (limit < size) throw tooLarge(limit);
    at += 8;
  }
  if (flags & 0x01) throw damaged("it needs a dictionary");
  at += 1;
  const output = new Output(size ?? Math.min(limit, 4 * frame.length), limit);
  for (;;) {
    if (frame.length < at + 4) throw damaged("it ends early");
    const word = frame.readUInt32LE(at);
    at += 4;
    if (word === 0) break;
    const end = at + (word & 0x7fffffff);
    if (frame.length < end) throw damaged("it ends early");
    if (word >>> 31) output.append(frame, at, end);
    else decompressBlock(frame, at, end, output);
    at = end + (flags & 0x10 ? 4 : 0);
  }
  if (flags & 0x04 && frame.length < at + 4) throw damaged("it ends early");
  if (size !== undefined && size !== output.length) throw damaged("its size is another one");
  return output.bytes.subarray(0, output.length);
}

function decompressBlock(input, start, end, output) {
  let at = start;
  // A length of 15 goes on in further bytes, until one is below 255.
  const lengthFrom = (first) => {
    let length = first;
    for (let more = first === 15 ? 255 : 0; more === 255; length += more) {
      if (end <= at) throw damaged("it ends early");
      more = input[at++];
    }
    return length;
  };
  while (at < end) {
    const token = input[at++];
    const literals = lengthFrom(token >> 4);
    if (end < at + literals) throw damaged("it ends early");
    output.append(input, at, at + literals);
    at += literals;
    if (at === end) return;
    if (end < at + 2) throw damaged("it ends early");
    const distance = input.readUInt16LE(at);
    at += 2;
    output.repeat(distance, lengthFrom(token & 15) + 4);
  }
}
