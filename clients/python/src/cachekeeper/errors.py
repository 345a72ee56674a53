"""What can go wrong. Everything that this package raises is a `CachekeeperError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from .reading import Reading


class CachekeeperError(Exception):
    """The base of all errors of this package."""


class Unreachable(CachekeeperError):
    """No connection to Redis: refused, broken, or no answer in time. For a write: nothing was handed over."""


class RedisRefused(CachekeeperError):
    """Redis answered with an error, for example because its memory is full."""


class PermissionDenied(CachekeeperError):
    """The login was refused, or this user may not do that."""


class NotRegistered(CachekeeperError):
    """No worker has registered anything under this namespace in this database."""


class UnsupportedVersion(CachekeeperError):
    """The workers are newer than this package can understand."""


class InvalidInput(CachekeeperError, ValueError):
    """What the caller gave cannot be used. Nothing was sent."""


class UnknownDataset(InvalidInput):
    """No worker has a dataset of this name."""


class InvalidKey(InvalidInput):
    """No key can be made of these values, or the key is of no dataset."""


class InvalidToken(InvalidInput):
    """The text is no token, or none is worth anything now: the transaction is not committed."""


class InvalidEvent(InvalidInput):
    """The worker would not take this event."""


class InvalidWrite(InvalidInput):
    """The worker would not take this write."""


class NoToken(CachekeeperError):
    """The database has no token yet: it was started, and no worker has seen it since."""


class Undecodable(CachekeeperError):
    """The bytes under a key are no value of the dataset's format. `value` holds them."""

    def __init__(self, message: str, key: str = "", value: bytes = b"") -> None:
        super().__init__(message)
        self.key = key
        self.value = value


class NotFresh(CachekeeperError):
    """The value may be older than the token: ask the database. `readings` holds what was read."""

    def __init__(self, message: str, readings: "list[Reading]") -> None:
        super().__init__(message)
        self.readings = readings

    @property
    def reading(self) -> "Reading":
        """The first of the readings that are not fresh."""
        return next(one for one in self.readings if not one.is_fresh)


class WriteRejected(CachekeeperError):
    """The worker did not carry out the write; the text says why. Nothing was changed in the database."""

    def __init__(self, reason: str, id: str, reply: dict[str, Any]) -> None:
        super().__init__(reason)
        self.id = id
        self.reply = reply


class WriteUnknown(CachekeeperError):
    """No reply in time: the write may have been carried out, or may be later. Say it again with the same `id`."""

    def __init__(self, message: str, id: str, cause: Optional[BaseException] = None) -> None:
        super().__init__(message)
        self.id = id
        self.__cause__ = cause
