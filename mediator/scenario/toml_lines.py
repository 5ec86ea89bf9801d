# SPDX-License-Identifier: BSD-2-Clause
"""On which line of a TOML file a key stands: tomllib does not say, and an error message should.

A scan of text that tomllib has accepted, so it needs to know only what moves the position: headers,
keys, strings of several lines and arrays of several lines. Keys inside inline tables have no line
of their own; they are found under the key that holds them.
"""

from __future__ import annotations

import re
from typing import Final

Place = tuple[str | int, ...]
"""Keys and array indices from the top of the document down."""

_PART: Final = r"(?:[A-Za-z0-9_-]+|\"(?:[^\"\\]|\\.)*\"|'[^']*')"
_KEY: Final = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_HEADER: Final = re.compile(rf"\s*(\[\[?)\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]")
_SPLIT: Final = re.compile(_PART)
_TOKEN: Final = re.compile(
    r"\"\"\"|'''|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|#[^\n]*|[\[\]{}]", re.DOTALL
)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _SPLIT.findall(text))


class KeyLines:
    """Lines (from 1) of the keys and tables of a TOML text."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Place, int] = {(): 1}
        self._arrays: dict[Place, int] = {}
        table: Place = ()
        depth = 0
        quote = ""
        for number, line in enumerate(text.splitlines(), 1):
            if not quote and not depth:
                header = _HEADER.match(line)
                if header is not None:
                    table = self._enter(_parts(header[2]), header[1] == "[[", number)
                    continue
                key = _KEY.match(line)
                if key is not None:
                    self._lines.setdefault((*table, *_parts(key[1])), number)
            depth, quote = _after(line, depth, quote)

    def _enter(self, parts: tuple[str, ...], array: bool, number: int) -> Place:
        place: Place = ()
        for index, part in enumerate(parts):
            place = (*place, part)
            if index == len(parts) - 1 and array:
                self._lines.setdefault(place, number)
                self._arrays[place] = self._arrays.get(place, 0) + 1
            if place in self._arrays:
                place = (*place, self._arrays[place] - 1)
        self._lines[place] = number
        return place

    def of(self, place: Place) -> int:
        """The line of ``place``, or of the nearest thing around it that has one."""
        while place not in self._lines:
            place = place[:-1]
        return self._lines[place]


def _after(line: str, depth: int, quote: str) -> tuple[int, str]:
    """Bracket depth, and the quotes that a string of several lines needs, after a line."""
    at = 0
    while True:
        if quote:
            end = _closing(line, quote, at)
            if end < 0:
                return depth, quote
            at, quote = end + 3, ""
        token = _TOKEN.search(line, at)
        if token is None:
            return depth, ""
        at = token.end()
        if token[0] in ('"""', "'''"):
            quote = token[0]
        elif token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1


def _closing(line: str, quote: str, at: int) -> int:
    """Where the closing quotes begin, -1 if they are not on this line."""
    if quote == "'''":
        return line.find(quote, at)
    while True:
        end = line.find(quote, at)
        back = line.find("\\", at)
        if end < 0 or not 0 <= back < end:
            return end
        at = back + 2
