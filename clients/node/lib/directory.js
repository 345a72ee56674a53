// What the workers of a namespace tell applications: where events and writes go, and how entries are named and read.

import { InvalidKey, InvalidWrite, NotRegistered, UnknownDataset, UnsupportedVersion } from "./errors.js";
import { shown, Template } from "./template.js";

// The version of the directory that this package understands.
export const VERSION = 1;

// Where the directory of a namespace and the watermark of a shard stand; a single Redis is shard 0.
export const directoryKey = (namespace, shard = 0) => `ck:{${namespace}:${shard}}:directory`;
export const watermarkKey = (namespace, shard = 0) => `ck:{${namespace}:${shard}}:watermark`;

// How the entries of a dataset are named and read.
export class Dataset {
  constructor(name, told) {
    this.name = name;
    this.template = new Template(told.key);
    this.format = told.format;
    this.rows = told.rows;
    this.hasNegatives = told.negative;
    this.isWritable = told.write;
    Object.freeze(this);
  }

  // The key of the entry with this id.
  key(id) {
    try {
      return this.template.render(id);
    } catch (error) {
      throw error instanceof InvalidKey ? new InvalidKey(`dataset ${this.name}: ${error.message}`) : error;
    }
  }
}

// What is known of a namespace.
export class Directory {
  constructor(namespace, service, datasets) {
    this.namespace = namespace;
    this.channels = service.events.channels;
    this.eventStream = service.events.stream;
    this.writeStream = service.writes.stream;
    this.replyPrefix = service.writes.reply_prefix;
    this.datasets = datasets;
    Object.freeze(this);
  }

  // Reads the fields of the hash, as Redis answers them.
  static parse(fields, namespace, where) {
    if (fields.service === undefined) {
      throw new NotRegistered(
        `no worker has registered the namespace ${JSON.stringify(namespace)} in this database of ${where}: there is no ` +
          `${directoryKey(namespace)}. Check [service] namespace, the database number, and that a worker runs`,
      );
    }
    const service = JSON.parse(fields.service);
    if (service.version !== VERSION) {
      const of = `the directory of namespace ${JSON.stringify(namespace)} has version ${service.version}`;
      throw new UnsupportedVersion(`${of}, this package reads ${VERSION}`);
    }
    const datasets = new Map();
    for (const [field, text] of Object.entries(fields)) {
      if (!field.startsWith("dataset:")) continue;
      const name = field.slice("dataset:".length);
      datasets.set(name, new Dataset(name, JSON.parse(text)));
    }
    return new Directory(namespace, service, datasets);
  }

  dataset(name) {
    const found = this.datasets.get(name);
    if (found !== undefined) return found;
    const known = [...this.datasets.keys()].sort().join(", ") || "none";
    const of = `namespace ${JSON.stringify(this.namespace)} has no dataset ${shown(name)}`;
    throw new UnknownDataset(`${of}; it has: ${known}`);
  }

  // The dataset of a key in full: the one that is named, else the one that it can belong to.
  ofKey(key, name) {
    if (typeof key !== "string" || !key.isWellFormed()) throw new InvalidKey(`a key is text, not ${shown(key)}`);
    if (name !== undefined) {
      const { template } = this.dataset(name);
      // What is no key of the dataset is not kept by its rules, so no verdict of the dataset holds for it.
      if (template.read(key) !== undefined) return this.dataset(name);
      throw new InvalidKey(`${JSON.stringify(key)} is no key of dataset ${name}, whose keys are ${template.text}`);
    }
    const found = [...this.datasets.values()].filter((one) => one.template.read(key) !== undefined);
    if (found.length === 1) return found[0];
    if (found.length === 0) {
      throw new InvalidKey(`${JSON.stringify(key)} is no key of a dataset of namespace ${JSON.stringify(this.namespace)}`);
    }
    const names = found.map((one) => one.name).sort().join(", ");
    throw new InvalidKey(`${JSON.stringify(key)} could be of several datasets (${names}): say which`);
  }

  // The stream for writes of this dataset.
  writesTo(dataset) {
    if (!this.dataset(dataset).isWritable) throw new InvalidWrite(`dataset ${dataset} has no write statement`);
    if (this.writeStream === null) {
      throw new InvalidWrite(`namespace ${JSON.stringify(this.namespace)} has no stream for writes`);
    }
    return this.writeStream;
  }
}
