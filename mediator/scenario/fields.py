# SPDX-License-Identifier: BSD-2-Clause
"""Fields of a file format, declared once: the strict reader and the JSON Schema both come from here.

A reader takes a table apart into a dict with one entry for every declared field. An unknown key, a
wrong type, or a value out of range is a :class:`ScenarioError` with file, line and field.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, cast

import attrs

from mediator.scenario.errors import ScenarioError
from mediator.scenario.toml_lines import KeyLines, Place

Value = bool | int | str | tuple[str, ...] | list["Table"] | None
"""What a field reads as."""

MAX_TEXT: Final = 200
"""Characters of a text: names and descriptions are shown in tables."""

_SIZE: Final = re.compile(r"(\d{1,15}) ?(B|KiB|MiB|GiB)")
_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DURATION: Final = re.compile(r"(\d{1,15}) ?(ns|us|ms|s)")
_NS: Final = {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9}


class Kind(Enum):
    """What a field holds."""

    TEXT = "a text"
    INTEGER = "a whole number"
    FLAG = "true or false"
    SIZE = 'a size in bytes, such as 4096 or "64MiB"'
    DURATION = 'a time in ns, such as 500 or "12ms"'
    CHOICE = "one of the choices"
    CHOICES = "a list of choices"
    TABLES = "a list of tables"
    TABLE = "a table"


@attrs.frozen
class Field:
    """One key. ``low`` and ``high`` bound numbers; ``default`` None without ``required``: may be absent.

    ``parts``: the fields of TABLE and TABLES; ``open``: they are read by whoever takes the table.
    """

    name: str
    kind: Kind
    help: str
    default: Value = None
    required: bool = False
    low: int = 0
    high: int = (1 << 63) - 1
    choices: tuple[str, ...] = ()
    parts: tuple[Field, ...] = ()
    open: bool = False


@attrs.frozen
class Document:
    """A parsed TOML file and where its keys stand."""

    path: str
    values: dict[str, object]
    lines: KeyLines

    def error(self, place: Place, reason: str) -> ScenarioError:
        """The error for what stands at ``place``."""
        return ScenarioError(self.path, self.lines.of(place), name_of(place), reason)

    def top(self) -> Table:
        """The whole document as a table."""
        return Table(self, (), self.values)


@attrs.frozen
class Table:
    """A table of the document, not yet read."""

    document: Document
    place: Place
    values: dict[str, object]

    def error(self, key: str, reason: str) -> ScenarioError:
        """The error for a key of this table; "" is the table itself."""
        return self.document.error((*self.place, key) if key else self.place, reason)

    def read(self, fields: Sequence[Field]) -> dict[str, Value]:
        """All declared fields, defaults filled in. Raises :class:`ScenarioError`."""
        known = {field.name: field for field in fields}
        for key in self.values:
            if key not in known:
                raise self.error(key, f"is not known here; known are {', '.join(known)}")
        return {field.name: self._one(field) for field in fields}

    def _one(self, field: Field) -> Value:
        if field.name not in self.values:
            if field.required:
                raise self.error("", f"the key {field.name} is missing")
            return [] if field.kind is Kind.TABLES else field.default
        value = self.values[field.name]
        try:
            return self._value(field, value)
        except _Wrong as wrong:
            raise self.error(field.name, str(wrong)) from None

    def _value(self, field: Field, value: object) -> Value:
        match field.kind:
            case Kind.FLAG if isinstance(value, bool):
                return value
            case Kind.INTEGER if type(value) is int:
                return _bounded(field, value)
            case Kind.SIZE if type(value) is int or isinstance(value, str):
                return _bounded(field, _scaled(value, _SIZE, _UNITS, field))
            case Kind.DURATION if type(value) is int or isinstance(value, str):
                return _bounded(field, _scaled(value, _DURATION, _NS, field))
            case Kind.TEXT if isinstance(value, str):
                return _text(value)
            case Kind.CHOICE if isinstance(value, str):
                return _chosen(field, value)
            case Kind.CHOICES if isinstance(value, list):
                if not all(isinstance(item, str) for item in value):
                    raise _Wrong("must be a list of texts")
                return tuple([_chosen(field, item) for item in value])
            case Kind.TABLE if isinstance(value, dict):
                return [self._table((*self.place, field.name), value)]
            case Kind.TABLES if isinstance(value, list):
                if not all(isinstance(item, dict) for item in value):
                    raise _Wrong("must be a list of tables")
                return [
                    self._table((*self.place, field.name, index), item)
                    for index, item in enumerate(value)
                ]
        raise _Wrong(f"must be {field.kind.value}, not {_kind(value)}")

    def _table(self, place: Place, value: object) -> Table:
        return Table(self.document, place, cast("dict[str, object]", value))


class _Wrong(Exception):
    """A value is wrong; becomes a :class:`ScenarioError` with file, line and field."""


def name_of(place: Place) -> str:
    """A place as people write it: ``guest[2].ram``."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number with a point", str: "a text"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")


def _bounded(field: Field, value: int) -> int:
    if not field.low <= value <= field.high:
        shown = str(value) if value.bit_length() < 128 else "a number of many digits"
        raise _Wrong(f"{shown} is not in {field.low}..{field.high}")
    return value


def _scaled(value: object, pattern: re.Pattern[str], units: dict[str, int], field: Field) -> int:
    if isinstance(value, int):
        return value
    match = pattern.fullmatch(str(value))
    if match is None:
        raise _Wrong(f"{str(value)[:40]!r} is not {field.kind.value}")
    return int(match[1]) * units[match[2]]


def _text(value: str) -> str:
    if not value or len(value) > MAX_TEXT:
        raise _Wrong(f"must have 1 to {MAX_TEXT} characters, not {len(value)}")
    return value


def _chosen(field: Field, value: str) -> str:
    if value not in field.choices:
        raise _Wrong(f"{value[:40]!r} is none of {', '.join(field.choices)}")
    return value


# The schema

Json = dict[str, object]


def schema_of(fields: Sequence[Field]) -> Json:
    """The JSON Schema of a table with these fields."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [field.name for field in fields if field.required],
        "properties": {field.name: _property(field) for field in fields},
    }


def _property(field: Field) -> Json:
    found: Json = {"description": field.help}
    if field.default is not None:
        default = field.default
        found["default"] = list(default) if isinstance(default, tuple) else default
    number: Json = {"type": "integer", "minimum": field.low, "maximum": field.high}
    match field.kind:
        case Kind.FLAG:
            found["type"] = "boolean"
        case Kind.INTEGER:
            found |= number
        case Kind.SIZE:
            found["anyOf"] = [number, {"type": "string", "pattern": f"^(?:{_SIZE.pattern})$"}]
        case Kind.DURATION:
            found["anyOf"] = [number, {"type": "string", "pattern": f"^(?:{_DURATION.pattern})$"}]
        case Kind.TEXT:
            found |= {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
        case Kind.CHOICE:
            found["enum"] = list(field.choices)
        case Kind.CHOICES:
            found |= {"type": "array", "items": {"enum": list(field.choices)}}
        case Kind.TABLE:
            found |= {"type": "object"} if field.open else schema_of(field.parts)
        case Kind.TABLES:
            item: Json = {"type": "object"} if field.open else schema_of(field.parts)
            found |= {"type": "array", "items": item}
    return found
