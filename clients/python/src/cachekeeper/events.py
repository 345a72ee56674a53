"""Events: checked as the worker checks them, before they are sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional, TypedDict, Union

from .directory import Directory
from .errors import InvalidEvent
from .template import text_of

EVENT_BYTES_MAX = 1 << 20
TEXT_BYTES_MAX = 10 * 1024
MEMBERS_MAX = 100_000
ID_PARTS_MAX = 32

Id = Union[str, int, "list[Union[str, int]]", "tuple[Union[str, int], ...]"]


class Event(TypedDict, total=False):
    """What changed. Keys, tags and a dataset may stand side by side."""

    key: Optional[str]
    keys: Optional[list[str]]
    tag: Optional[str]
    tags: Optional[list[str]]
    dataset: Optional[str]
    ids: Optional[list[Id]]
    op: Optional[str]
    id: Optional[str]
    at: Optional[int]


_NAMES = ("op", "id", "at", "key", "keys", "tag", "tags", "dataset", "ids")


def check_event(event: Mapping[str, Any], directory: Optional[Directory] = None) -> dict[str, Any]:
    """The event as it is sent; raises `InvalidEvent` where the worker would not take it, or knows no such dataset."""
    if not isinstance(event, Mapping):
        raise InvalidEvent(f'an event is an object such as {{"key": "product:42"}}, not {event!r}')
    unknown = [str(name) for name in event if name not in _NAMES]
    if unknown:
        raise InvalidEvent(f"an event has no field {', '.join(unknown)}; it has {', '.join(_NAMES)}")
    checked: dict[str, Any] = {name: value for name, value in event.items() if value is not None}
    for name in ("id", "key", "tag", "dataset"):
        if name in checked:
            _text(f"`{name}`", checked[name])
    for name in ("keys", "tags", "ids"):
        if name in checked:
            checked[name] = _list(name, checked[name])
    for key in [*checked.get("keys", []), *([checked["key"]] if "key" in checked else [])]:
        if key.startswith("ck:"):
            raise InvalidEvent(f"keys under ck: belong to Cachekeeper: {key[:60]!r}")
    _check_op_and_at(checked)
    check_target(checked, directory)
    return checked


def message_of(event: Mapping[str, Any]) -> bytes:
    """A checked event as a message of pub/sub."""
    message = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    if EVENT_BYTES_MAX < len(message):
        raise InvalidEvent(f"the event has {len(message)} bytes, at most {EVENT_BYTES_MAX} are read")
    return message


def fields_of(event: Mapping[str, Any]) -> dict[str, str]:
    """A checked event as the fields of an entry of the stream."""
    message_of(event)
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
        for name, value in event.items()
    }


def _check_op_and_at(event: Mapping[str, Any]) -> None:
    if event.get("op", "refresh") not in ("refresh", "delete"):
        raise InvalidEvent(f"`op` must be \"refresh\" or \"delete\", not {event['op']!r}")
    at = event.get("at", 0)
    if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < 1 << 53:
        raise InvalidEvent(f"`at` must be a number of milliseconds, not {at!r}")


def check_target(event: Mapping[str, Any], directory: Optional[Directory]) -> None:
    """Raises `InvalidEvent` where an event names nothing, or ids that cannot be of the dataset."""
    if "ids" in event and "dataset" not in event:
        raise InvalidEvent("`ids` need the `dataset` that they are of")
    if not (event.get("key") or event.get("keys") or event.get("tag") or event.get("tags") or event.get("dataset")):
        raise InvalidEvent("no `key`, `keys`, `tag`, `tags` or `dataset` is named")
    if directory is None or "dataset" not in event:
        return
    columns = directory.dataset(event["dataset"]).template.columns
    for id in event.get("ids", []):
        parts = id if isinstance(id, list) else [id]
        if len(parts) != len(columns):
            raise InvalidEvent(f"an id of {event['dataset']} has {len(columns)} parts ({', '.join(columns)}): {id!r}")


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidEvent(f"{what} must be text, not {value!r}")
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidEvent(f"{what} is no valid text") from None
    if not 0 < length <= TEXT_BYTES_MAX:
        raise InvalidEvent(f"{what} has {length} bytes; it takes 1 to {TEXT_BYTES_MAX}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidEvent(f"`{name}` must be a list that is not empty, not {value!r}")
    if MEMBERS_MAX < len(value):
        raise InvalidEvent(f"`{name}` has more than {MEMBERS_MAX} members")
    what = f"a member of `{name}`"
    return [_id(what, one) if name == "ids" else _text(what, one) for one in value]


def _id(what: str, value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return _scalar(what, value)
    if not 0 < len(value) <= ID_PARTS_MAX:
        raise InvalidEvent(f"{what} has {len(value)} parts; it takes 1 to {ID_PARTS_MAX}")
    return [_scalar(what, part) for part in value]


def _scalar(what: str, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 64:
        return value
    try:
        return _text(what, text_of(value, what))
    except ValueError as error:
        raise error if isinstance(error, InvalidEvent) else InvalidEvent(str(error)) from None
