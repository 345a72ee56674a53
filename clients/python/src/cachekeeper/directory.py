"""What the workers of a namespace tell applications: where events and writes go, and how entries are named and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .errors import InvalidKey, InvalidWrite, NotRegistered, UnknownDataset, UnsupportedVersion
from .template import Template

VERSION = 1
"""The version of the directory that this package understands."""


@dataclass(frozen=True)
class Dataset:
    """How the entries of a dataset are named and read."""

    name: str
    template: Template
    format: str
    rows: str
    has_negatives: bool
    is_writable: bool

    def key(self, id: Any) -> str:
        """The key of the entry with this id."""
        try:
            return self.template.render(id)
        except InvalidKey as error:
            raise InvalidKey(f"dataset {self.name}: {error}") from None


@dataclass(frozen=True)
class Directory:
    """What is known of a namespace."""

    namespace: str
    channels: tuple[str, ...]
    event_stream: Optional[str]
    write_stream: Optional[str]
    reply_prefix: str
    datasets: Mapping[str, Dataset]

    def dataset(self, name: str) -> Dataset:
        """The dataset of this name."""
        found = self.datasets.get(name)
        if found is None:
            known = ", ".join(sorted(self.datasets)) or "none"
            raise UnknownDataset(f"namespace {self.namespace!r} has no dataset {name!r}; it has: {known}")
        return found

    def of_key(self, key: str) -> Dataset:
        """The one dataset that a key can belong to."""
        found = [one for one in self.datasets.values() if one.template.read(key) is not None]
        if len(found) == 1:
            return found[0]
        if not found:
            raise InvalidKey(f"{key!r} is no key of a dataset of namespace {self.namespace!r}")
        names = ", ".join(sorted(one.name for one in found))
        raise InvalidKey(f"{key!r} could be of several datasets ({names}): say which")

    def writes_to(self, dataset: str) -> str:
        """The stream for writes of this dataset."""
        if not self.dataset(dataset).is_writable:
            raise InvalidWrite(f"dataset {dataset} has no write statement")
        if self.write_stream is None:
            raise InvalidWrite(f"namespace {self.namespace!r} has no stream for writes")
        return self.write_stream


def directory_key(namespace: str, shard: int = 0) -> str:
    """Where the directory of a namespace stands; a single Redis is shard 0."""
    return f"ck:{{{namespace}:{shard}}}:directory"


def watermark_key(namespace: str, shard: int = 0) -> str:
    """Where the watermark of a shard stands."""
    return f"ck:{{{namespace}:{shard}}}:watermark"


def parse_directory(fields: Mapping[Any, Any], namespace: str, where: str) -> Directory:
    """Reads the fields of the hash, as Redis answers them."""
    texts = {_text(name): _text(value) for name, value in fields.items()}
    if "service" not in texts:
        raise NotRegistered(
            f"no worker has registered the namespace {namespace!r} in this database of {where}: there is no "
            f"{directory_key(namespace)}. Check [service] namespace, the database number, and that a worker runs"
        )
    service = json.loads(texts["service"])
    if service.get("version") != VERSION:
        raise UnsupportedVersion(
            f"the directory of namespace {namespace!r} has version {service.get('version')}, this package reads {VERSION}"
        )
    datasets = {}
    for field, text in texts.items():
        kind, _, name = field.partition(":")
        if kind == "dataset":
            datasets[name] = _dataset(name, json.loads(text))
    events, writes = service["events"], service["writes"]
    return Directory(
        namespace, tuple(events["channels"]), events["stream"], writes["stream"], writes["reply_prefix"], datasets
    )


def _dataset(name: str, told: Mapping[str, Any]) -> Dataset:
    template = Template.parse(told["key"])
    return Dataset(name, template, told["format"], told["rows"], told["negative"], told["write"])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value
