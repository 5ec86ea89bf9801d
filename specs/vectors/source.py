# SPDX-License-Identifier: BSD-2-Clause
"""Reading JSON and JSON-lines files with strict types and errors that name file, line and field.

Responsible for bytes, text, JSON and the types of fields. Knows nothing of what a field means.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from specs.vectors.errors import InputError

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

MAX_FILE_BYTES = 256 << 20
"""A vector file larger than this (unpacked) is refused, so that no gzip bomb fills the memory."""

MAX_SHOWN = 60
"""Characters of a wrong value shown in an error message."""

_PATH = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """The content of ``path``, unpacked if it is gzip (by content, not by name)."""
    name = str(path)
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == _GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(name, 0, "", f"broken gzip file ({error})") from error
    except OSError as error:
        raise InputError(name, 0, "", error.strerror or str(error)) from error
    if len(data) > MAX_FILE_BYTES:
        raise InputError(name, 0, "", f"larger than {MAX_FILE_BYTES} bytes")
    return data


def parse_json(text: bytes, file: str, line: int) -> Json:
    """One JSON value. Refuses NaN, duplicate keys, bad UTF-8 and absurd nesting."""

    def pairs(items: list[tuple[str, Json]]) -> dict[str, Json]:
        result = dict(items)
        if len(result) != len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(file, line, shown(twice), "the same field twice")
        return result

    def constant(word: str) -> NoReturn:
        raise InputError(file, line, "", f"{word} is not JSON")

    try:
        value: Json = json.loads(
            text.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant
        )
    except UnicodeDecodeError as error:
        at = max(line, 1) + text.count(b"\n", 0, error.start)
        raise InputError(file, at, "", f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1 if line else error.lineno
        raise InputError(file, at, "", f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise InputError(file, line, "", "nested too deeply") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise InputError(file, line, "", "not usable: a number has too many digits") from error
    return value


def json_lines(data: bytes, file: str) -> Iterator[tuple[int, Json]]:
    """``(line number, value)`` for every non-empty line."""
    for number, text in enumerate(data.split(b"\n"), 1):
        if text.strip():
            yield number, parse_json(text, file, number)


def line_of(text: bytes, field: str) -> int:
    """The line on which ``field`` (like ``calls[3].name``) stands in a JSON document, 0 if unknown.

    As much of the path is followed as exists, so a missing field leads to its object.
    """
    document = text.decode("utf-8", "replace")
    place = 0
    try:
        for key, index in _PATH.findall(field):
            place = _step(document, _skip(document, place), int(index) if index else key)
    except (ValueError, IndexError, RecursionError):
        pass
    return document.count("\n", 0, place) + 1


def _skip(text: str, place: int) -> int:
    while text[place] in " \t\r\n,:":
        place += 1
    return place


def _step(text: str, place: int, key: str | int) -> int:
    """The place of the element ``key`` of the object or list at ``place``."""
    decoder = json.JSONDecoder()
    place = _skip(text, place + 1)
    number = 0
    while text[place] not in "]}":
        if isinstance(key, str):
            name, place = decoder.raw_decode(text, place)
            if name == key:
                return place
            place = _skip(text, place)
        elif number == key:
            return place
        _, place = decoder.raw_decode(text, place)
        place = _skip(text, place)
        number += 1
    raise IndexError(key)


def shown(value: object) -> str:
    """A short, escaped form of a value for messages."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class Value:
    """A JSON value together with where it stands; every accessor checks the type."""

    __slots__ = ("file", "line", "path", "raw")

    def __init__(self, raw: Json, file: str, line: int, path: str = "") -> None:
        self.raw = raw
        self.file = file
        self.line = line
        self.path = path

    def fail(self, reason: str) -> NoReturn:
        """Raise the error that names this field."""
        raise InputError(self.file, self.line, self.path, reason)

    def fields(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Value]:
        """The object's fields; missing and unknown ones are errors."""
        raw = self.raw
        if not isinstance(raw, dict):
            self.fail(f"must be an object, not {shown(raw)}")
        for name in required:
            if name not in raw:
                self.at(name).fail("is missing")
        dot = self.path + "." if self.path else ""
        result = {}
        for name, value in raw.items():
            if name not in required and name not in optional:
                raise InputError(self.file, self.line, dot + shown(name)[1:-1], "unknown field")
            result[name] = Value(value, self.file, self.line, dot + name)
        return result

    def members(self) -> dict[str, Value]:
        """All fields of an object whose names are data."""
        raw = self.raw
        if not isinstance(raw, dict):
            self.fail(f"must be an object, not {shown(raw)}")
        return {name: self.at(name) for name in raw}

    def at(self, name: str) -> Value:
        """The field ``name`` (None if it is missing)."""
        raw = self.raw
        child = raw.get(name) if isinstance(raw, dict) else None
        safe = shown(name)[1:-1]
        return Value(child, self.file, self.line, f"{self.path}.{safe}" if self.path else safe)

    def items(self, length: int | Sequence[int] | None = None) -> list[Value]:
        """The elements of a list, of one of the given lengths."""
        raw = self.raw
        if not isinstance(raw, list):
            self.fail(f"must be a list, not {shown(raw)}")
        allowed = (length,) if isinstance(length, int) else length
        if allowed is not None and len(raw) not in allowed:
            wanted = " or ".join(str(n) for n in allowed)
            self.fail(f"must have {wanted} elements, has {len(raw)}")
        return [
            Value(item, self.file, self.line, f"{self.path}[{index}]")
            for index, item in enumerate(raw)
        ]

    def integer(self, low: int = 0, high: int = (1 << 64) - 1) -> int:
        """A number within ``low..high``."""
        raw = self.raw
        if not isinstance(raw, int) or isinstance(raw, bool):
            self.fail(f"must be a whole number, not {shown(raw)}")
        if not low <= raw <= high:
            self.fail(f"must lie in {low}..{high}, is {shown(raw)}")
        return raw

    def boolean(self) -> bool:
        """True or false."""
        raw = self.raw
        if not isinstance(raw, bool):
            self.fail(f"must be true or false, not {shown(raw)}")
        return raw

    def text(self, choices: Collection[str] | None = None) -> str:
        """A string, one of ``choices`` if given."""
        raw = self.raw
        if not isinstance(raw, str):
            self.fail(f"must be a string, not {shown(raw)}")
        if choices is not None and raw not in choices:
            self.fail(f"must be one of {', '.join(choices)}, not {shown(raw)}")
        return raw

    def hex(self, bits: int = 64) -> int:
        """A hexadecimal string in its one canonical form (``0x1f``, lower case, no zeros)."""
        text = self.text()
        value = hex_value(text)
        if value is None or value >> bits:
            self.fail(f"must be a {bits}-bit hexadecimal string like 0x1f, not {shown(text)}")
        return value

    def function_id(self) -> int:
        """A 32-bit number with all of its eight lower-case hexadecimal digits."""
        text = self.text()
        if len(text) != 10 or not text.startswith("0x") or text[2:].strip("0123456789abcdef"):
            self.fail(f"must be like 0x3200000a, not {shown(text)}")
        return int(text, 16)

    def data(self) -> bytes:
        """Bytes as lower-case hexadecimal digits without prefix."""
        text = self.text()
        if len(text) % 2 or text.strip("0123456789abcdef"):
            self.fail(f"must be pairs of lower-case hexadecimal digits, not {shown(text)}")
        return bytes.fromhex(text)


def hex_value(text: str) -> int | None:
    """The value of a canonical hexadecimal string, else None."""
    digits = text[2:]
    if not text.startswith("0x") or not digits or len(digits) > 16:
        return None
    if digits.strip("0123456789abcdef") or (digits[0] == "0" and len(digits) > 1):
        return None
    return int(digits, 16)
