# SPDX-License-Identifier: BSD-2-Clause
"""The rules of TEE mediation as data: who must do what, why, and what tests it.

The rules stand in ``rules.toml`` beside this module; :func:`load` reads that file or another one of
the same format. Ids are dotted names that are never reused. The file format is described by
``rules.schema.json``; this reader checks the same without needing a validator.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from attrs import frozen

FORMAT: Final = "optee-mediator-rules"
VERSION: Final = 1
"""The newest version of the format that this reader knows; it accepts all earlier ones."""

INVARIANTS: Final = tuple(f"I{number}" for number in range(1, 11))
BUG_CLASSES: Final = range(1, 31)
_NAME: Final = re.compile(r"[a-z0-9_]+(\.[a-z0-9_-]+)+")
_FACT: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TEXTS: Final = ("id", "level", "sentence", "source")
_LISTS: Final = ("invariants", "bug_classes", "categories", "facts")


class RuleError(ValueError):
    """A rule file that cannot be used: ``file``, ``rule`` (its id or number), ``field``, reason."""

    def __init__(self, file: str, rule: str, field: str, reason: str) -> None:
        place = ": ".join(part for part in (file, rule, field) if part)
        super().__init__(f"{place}: {reason}")
        self.file = file
        self.rule = rule
        self.field = field
        self.reason = reason


class Level(StrEnum):
    """How binding a rule is."""

    MUST = "must"
    """Any mediator of this ABI."""
    SHOULD = "should"
    """A mediator without it works, but worse."""
    MAY = "may"
    """A choice; the sentence says what we chose."""


@frozen
class Rule:
    """One rule.

    ``categories``: of behaviour vectors that test it. ``facts``: a scenario in which one of them
    holds may end differently under this rule than in the recording of the reference mediator.
    """

    id: str
    level: Level
    sentence: str
    source: str
    invariants: tuple[str, ...] = ()
    bug_classes: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()
    facts: frozenset[str] = frozenset()


@frozen
class RuleBook:
    """All rules of one file, in its order."""

    rules: tuple[Rule, ...]
    by_id: Mapping[str, Rule]

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __getitem__(self, name: str) -> Rule:
        return self.by_id[name]

    def explaining(self, facts: Iterable[str]) -> tuple[Rule, ...]:
        """The rules under which a scenario with these facts may differ from the recording."""
        found = frozenset(str(fact) for fact in facts)
        return tuple(rule for rule in self.rules if rule.facts & found)

    def of_bug_class(self, number: int) -> tuple[Rule, ...]:
        """The rules whose breach is a bug of this class."""
        return tuple(rule for rule in self.rules if number in rule.bug_classes)


@cache
def rules() -> RuleBook:
    """The rules that come with the package."""
    text = resources.files(__package__).joinpath("rules.toml").read_text("utf-8")
    return _parse(text, "rules.toml")


def load(path: Path) -> RuleBook:
    """The rules of a file. Raises :class:`RuleError`."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RuleError(str(path), "", "", f"not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise RuleError(str(path), "", "", error.strerror or str(error)) from error
    return _parse(text, str(path))


def _parse(text: str, file: str) -> RuleBook:
    try:
        document: dict[str, object] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RuleError(file, "", "", f"not TOML: {error}") from error
    if document.get("format") != FORMAT:
        raise RuleError(file, "", "format", f"must be {FORMAT!r}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise RuleError(file, "", "version", "must be a whole number from 1")
    if version > VERSION:
        raise RuleError(
            file, "", "version", f"{FORMAT} {version} is newer than {VERSION}, which we know"
        )
    for key in document:
        if key not in ("format", "version", "rule"):
            raise RuleError(file, "", key, "unknown field")
    tables = document.get("rule", [])
    if not isinstance(tables, list):
        raise RuleError(file, "", "rule", "must be an array of tables")
    found: list[Rule] = []
    for number, table in enumerate(tables, 1):
        found.append(_rule(table, file, f"rule {number}"))
    by_id = {rule.id: rule for rule in found}
    if len(by_id) != len(found):
        names = [rule.id for rule in found]
        twice = next(name for name in names if names.count(name) > 1)
        raise RuleError(file, twice, "id", "used twice")
    return RuleBook(tuple(found), by_id)


def _rule(table: object, file: str, place: str) -> Rule:
    if not isinstance(table, dict):
        raise RuleError(file, place, "", "must be a table")
    if isinstance(table.get("id"), str):
        place = ascii(table["id"])[1:-1]
    for key in table:
        if key not in _TEXTS and key not in _LISTS:
            raise RuleError(file, place, ascii(key)[1:-1], "unknown field")
    texts = {}
    for key in _TEXTS:
        value = table.get(key)
        if not isinstance(value, str) or not value.strip():
            raise RuleError(file, place, key, "must be a text")
        texts[key] = value
    if not _NAME.fullmatch(texts["id"]):
        raise RuleError(file, place, "id", "must be a dotted name like call.client-id")
    if texts["level"] not in tuple(Level):
        raise RuleError(file, place, "level", f"must be one of {', '.join(Level)}")
    invariants = _strings(table, "invariants", file, place)
    for name in invariants:
        if name not in INVARIANTS:
            raise RuleError(file, place, "invariants", f"{name!r} is none of I1 to I10")
    facts = _strings(table, "facts", file, place)
    for name in facts:
        if not _FACT.fullmatch(name):
            raise RuleError(file, place, "facts", f"{name!r} is no name like large-buffer")
    return Rule(
        texts["id"],
        Level(texts["level"]),
        texts["sentence"],
        texts["source"],
        invariants,
        _classes(table, file, place),
        _strings(table, "categories", file, place),
        frozenset(facts),
    )


def _list(table: dict[str, object], key: str, file: str, place: str) -> list[object]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise RuleError(file, place, key, "must be a list")
    return value


def _strings(table: dict[str, object], key: str, file: str, place: str) -> tuple[str, ...]:
    found = []
    for item in _list(table, key, file, place):
        if not isinstance(item, str):
            raise RuleError(file, place, key, "must hold texts")
        found.append(item)
    return tuple(found)


def _classes(table: dict[str, object], file: str, place: str) -> tuple[int, ...]:
    found = []
    for item in _list(table, "bug_classes", file, place):
        if not isinstance(item, int) or isinstance(item, bool) or item not in BUG_CLASSES:
            raise RuleError(file, place, "bug_classes", "must hold numbers from 1 to 30")
        found.append(item)
    return tuple(found)
