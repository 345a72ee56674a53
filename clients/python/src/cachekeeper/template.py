"""Key templates: `product:{id}`. A key can be read back, so a value that would make that impossible is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Optional
from uuid import UUID

from .errors import InvalidKey


@dataclass(frozen=True)
class Template:
    """A parsed template: literals, and columns in the places of odd number."""

    text: str
    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Reads a template; `{{` and `}}` stand for braces."""
        literals: list[str] = []
        columns: list[str] = []
        literal, at = "", 0
        while at < len(text):
            one = text[at]
            if one in "{}" and text[at : at + 2] == one * 2:
                literal += one
                at += 2
            elif one == "{":
                end = text.find("}", at)
                column = text[at + 1 : end]
                if end < 0 or not column or "{" in column or (columns and not literal):
                    raise InvalidKey(f"{text!r} is no template of keys")
                literals.append(literal)
                columns.append(column)
                literal, at = "", end + 1
            elif one == "}":
                raise InvalidKey(f"{text!r} is no template of keys")
            else:
                literal += one
                at += 1
        if not literal and not columns:
            raise InvalidKey("a template of keys is empty")
        return cls(text, (*literals, literal), tuple(columns))

    def render(self, id: Any) -> str:
        """The key with these values: one, a sequence in the order of the columns, or a mapping by column."""
        values = self._values(id)
        parts = [self.literals[0]]
        for at, (column, value) in enumerate(zip(self.columns, values)):
            behind = self.literals[at + 1]
            if not value:
                raise InvalidKey(f"{column} of the key {self.text} is empty")
            if at + 1 < len(self.columns) and behind in value:
                raise InvalidKey(
                    f"{column} of the key {self.text} contains {behind!r}, which separates it from the next column"
                )
            parts += [value, behind]
        return "".join(parts)

    def read(self, key: str) -> Optional[list[str]]:
        """The values that render to this key; none: it is not of this template."""
        if not key.startswith(self.literals[0]):
            return None
        rest, values = key[len(self.literals[0]) :], []
        for at in range(len(self.columns)):
            behind = self.literals[at + 1]
            if at + 1 < len(self.columns):
                value, found, rest = rest.partition(behind)
                is_there = found == behind
            else:
                is_there = rest.endswith(behind)
                value, rest = rest[: len(rest) - len(behind)], ""
            if not is_there or not value:
                return None
            values.append(value)
        return None if rest else values

    def _values(self, id: Any) -> list[str]:
        names = ", ".join(self.columns) or "no column"
        if isinstance(id, Mapping):
            if set(id) != set(self.columns):
                raise InvalidKey(f"the key {self.text} takes {names}, not {', '.join(map(str, id)) or 'nothing'}")
            given: Sequence[Any] = [id[column] for column in self.columns]
        else:
            given = id if isinstance(id, (tuple, list)) else [id]
        if len(given) != len(self.columns):
            raise InvalidKey(f"the key {self.text} takes {len(self.columns)} values ({names}), not {len(given)}")
        return [text_of(value, column) for column, value in zip(self.columns, given)]


def text_of(value: Any, what: str) -> str:
    """A value as Postgres prints it. What it might print in several ways is refused: give the text then."""
    if isinstance(value, str):
        if not is_text(value):
            raise InvalidKey(f"{what} is {value!r}, which is no valid text")
        return value
    if isinstance(value, bool) or isinstance(value, datetime):
        raise InvalidKey(f"{what} is {value!r}: give the text that Postgres prints")
    if isinstance(value, (int, UUID)):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    if isinstance(value, date):
        return value.isoformat()
    raise InvalidKey(f"{what} is {value!r}: a key takes text, integers, UUIDs, decimals and dates")


def is_text(value: str) -> bool:
    """Whether this can be sent: a text may hold halves of surrogate pairs, which are no characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
