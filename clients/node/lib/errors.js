// What can go wrong. Everything that this package throws is a CachekeeperError.

export class CachekeeperError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

// No connection to Redis: refused, broken, or no answer in time. For a write: nothing was handed over.
export class Unreachable extends CachekeeperError {}

// Redis answered with an error, for example because its memory is full.
export class RedisRefused extends CachekeeperError {}

// The login was refused, or this user may not do that.
export class PermissionDenied extends CachekeeperError {}

// No worker has registered anything under this namespace in this database.
export class NotRegistered extends CachekeeperError {}

// The workers are newer than this package can understand.
export class UnsupportedVersion extends CachekeeperError {}

// What the caller gave cannot be used. Nothing was sent.
export class InvalidInput extends CachekeeperError {}

export class UnknownDataset extends InvalidInput {}
export class InvalidKey extends InvalidInput {}
export class InvalidToken extends InvalidInput {}
export class InvalidEvent extends InvalidInput {}
export class InvalidWrite extends InvalidInput {}

// The database has no token yet: it was started, and no worker has seen it since.
export class NoToken extends CachekeeperError {}

// The bytes under a key are no value of the dataset's format.
export class Undecodable extends CachekeeperError {
  constructor(message, key, value, options) {
    super(message, options);
    this.key = key;
    this.value = value;
  }
}

// The value may be older than the token: ask the database.
export class NotFresh extends CachekeeperError {
  constructor(message, readings) {
    super(message);
    this.readings = readings;
  }
}

// The worker did not carry out the write; the message says why. Nothing was changed in the database.
export class WriteRejected extends CachekeeperError {
  constructor(reason, id, reply) {
    super(reason);
    this.id = id;
    this.reply = reply;
  }
}

// No reply in time: the write may have been carried out, or may be later. Say it again with the same id.
export class WriteUnknown extends CachekeeperError {
  constructor(message, id, options) {
    super(message, options);
    this.id = id;
  }
}
