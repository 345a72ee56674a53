// Key templates: `product:{id}`. A key can be read back, so a value that would make that impossible is refused.

import { InvalidKey } from "./errors.js";

// Literals, and the columns between them: one literal more than columns.
export class Template {
  constructor(text) {
    this.text = text;
    this.literals = [];
    this.columns = [];
    this.literals.push(this.#parse(text));
    if (this.columns.length === 0 && this.literals[0] === "") throw new InvalidKey("a template of keys is empty");
    Object.freeze(this);
  }

  #parse(text) {
    const wrong = () => new InvalidKey(`${JSON.stringify(text)} is no template of keys`);
    let literal = "";
    for (let at = 0; at < text.length; ) {
      const one = text[at];
      if ((one === "{" || one === "}") && text[at + 1] === one) {
        literal += one;
        at += 2;
      } else if (one === "{") {
        const end = text.indexOf("}", at);
        const column = text.slice(at + 1, end);
        if (end < 0 || column === "" || column.includes("{") || (this.columns.length > 0 && literal === "")) throw wrong();
        this.literals.push(literal);
        this.columns.push(column);
        literal = "";
        at = end + 1;
      } else if (one === "}") {
        throw wrong();
      } else {
        literal += one;
        at += 1;
      }
    }
    return literal;
  }

  // The key with these values: one, an array in the order of the columns, or an object by column.
  render(id) {
    const values = this.#values(id);
    let key = this.literals[0];
    this.columns.forEach((column, at) => {
      const [value, behind] = [values[at], this.literals[at + 1]];
      if (value === "") throw new InvalidKey(`${column} of the key ${this.text} is empty`);
      if (at + 1 < this.columns.length && value.includes(behind)) {
        const what = `contains ${JSON.stringify(behind)}, which separates it from the next column`;
        throw new InvalidKey(`${column} of the key ${this.text} ${what}`);
      }
      key += value + behind;
    });
    return key;
  }

  // The values that render to this key; undefined: it is not of this template.
  read(key) {
    if (!key.startsWith(this.literals[0])) return undefined;
    let rest = key.slice(this.literals[0].length);
    const values = [];
    for (let at = 0; at < this.columns.length; at += 1) {
      const behind = this.literals[at + 1];
      const isLast = at + 1 === this.columns.length;
      const length = isLast ? (rest.endsWith(behind) ? rest.length - behind.length : -1) : rest.indexOf(behind);
      if (length <= 0) return undefined;
      values.push(rest.slice(0, length));
      rest = rest.slice(length + behind.length);
    }
    return rest === "" ? values : undefined;
  }

  #values(id) {
    const names = this.columns.join(", ") || "no column";
    let given = Array.isArray(id) ? id : [id];
    if (id !== null && typeof id === "object" && !Array.isArray(id)) {
      const own = Object.keys(id);
      if (own.length !== this.columns.length || !this.columns.every((column) => own.includes(column))) {
        throw new InvalidKey(`the key ${this.text} takes ${names}, not ${own.join(", ") || "nothing"}`);
      }
      given = this.columns.map((column) => id[column]);
    }
    if (given.length !== this.columns.length) {
      throw new InvalidKey(`the key ${this.text} takes ${this.columns.length} values (${names}), not ${given.length}`);
    }
    return given.map((value, at) => textOf(value, this.columns[at]));
  }
}

// A value as Postgres prints it. What it might print in several ways is refused: give the text then.
export function textOf(value, what) {
  if (typeof value === "string" && !value.isWellFormed()) {
    throw new InvalidKey(`${what} is ${shown(value)}, which is no valid text`);
  }
  if (typeof value === "string") return value;
  if (typeof value === "bigint" || Number.isSafeInteger(value)) return String(value);
  throw new InvalidKey(`${what} is ${shown(value)}: a key takes text, whole numbers below 2^53 and BigInts`);
}

export function shown(value) {
  try {
    if (typeof value === "number") return String(value);
    return (typeof value === "bigint" ? `${value}n` : JSON.stringify(value))?.slice(0, 200) ?? String(value);
  } catch {
    return String(value);
  }
}
