# SPDX-License-Identifier: BSD-2-Clause
"""What became of one vector and of one file of vectors."""

from __future__ import annotations

from enum import StrEnum

from attrs import frozen


@frozen
class Difference:
    """One difference: where in the vector, what was recorded, what we do."""

    place: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.place}: expected {self.expected}, got {self.actual}"


class Verdict(StrEnum):
    """How a vector counts."""

    PASSED = "passed"
    FAILED = "failed"
    """A vector of kind abi that differs: decides the exit code."""
    DEVIATION = "deviation"
    """A vector of kind quirk that differs: reported with the rule that explains it."""


@frozen
class Case:
    """One vector. ``explained_by``: ids of the rules that explain a deviation."""

    name: str
    line: int
    kind: str
    quirk: str
    category: str
    title: str
    verdict: Verdict
    differences: tuple[Difference, ...] = ()
    explained_by: tuple[str, ...] = ()


@frozen
class FileResult:
    """All vectors of one file. ``format``: what the file was recognised as."""

    file: str
    format: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()

    def count(self, verdict: Verdict) -> int:
        """How many vectors ended like this."""
        return sum(case.verdict is verdict for case in self.cases)


def judged(
    name: str, line: int, differences: list[Difference], *, category: str, title: str = ""
) -> Case:
    """The case of a vector of kind abi."""
    verdict = Verdict.FAILED if differences else Verdict.PASSED
    return Case(name, line, "abi", "", category, title, verdict, tuple(differences))


class Comparison:
    """Collects the differences of one vector."""

    __slots__ = ("differences",)

    def __init__(self) -> None:
        self.differences: list[Difference] = []

    def equal(self, place: str, expected: object, actual: object) -> None:
        """Note a difference unless both are the same value of the same type."""
        if expected != actual or type(expected) is not type(actual):
            self.differences.append(Difference(place, shown(expected), shown(actual)))

    def differ(self, place: str, expected: str, actual: str) -> None:
        """Note a difference."""
        self.differences.append(Difference(place, expected, actual))


def shown(value: object) -> str:
    """A value as a report shows it: numbers that may be addresses or flags in hexadecimal too."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if -10 < value < 10 else f"{value} ({value:#x})"
    if isinstance(value, bytes):
        text = value.hex()
        return text if len(text) <= 64 else f"{text[:61]}..."
    text = ascii(value)[1:-1] if isinstance(value, str) else ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
