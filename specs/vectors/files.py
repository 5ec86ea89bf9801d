# SPDX-License-Identifier: BSD-2-Clause
"""Golden vector files: what a file is, by its content, and what became of every vector in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import field, frozen

from specs.rules import RuleBook, rules
from specs.target import TargetFactory
from specs.vectors.case import Case, FileResult, Verdict, judged
from specs.vectors.errors import InputError
from specs.vectors.headers import constants_cases, layout_cases, register_cases
from specs.vectors.play import play
from specs.vectors.reader import read_scenario
from specs.vectors.source import Json, Value, json_lines, line_of, parse_json, read_bytes
from specs.vectors.wire import (
    FUNCTION_ID_FIELDS,
    MESSAGE_FIELDS,
    PAGE_LIST_FIELDS,
    function_id_case,
    message_case,
    page_list_case,
)

BEHAVIOUR: Final = "behaviour scenarios"

_SCENARIO_FIELDS: Final = ("id", "cat", "title", "kind", "domains", "steps")
_LINES: Final[tuple[tuple[str, tuple[str, ...], Callable[[Value], Case] | None], ...]] = (
    (BEHAVIOUR, _SCENARIO_FIELDS, None),
    ("function ids", FUNCTION_ID_FIELDS, function_id_case),
    ("messages", MESSAGE_FIELDS, message_case),
    ("page lists", PAGE_LIST_FIELDS, page_list_case),
)
_DOCUMENTS: Final[tuple[tuple[str, tuple[str, ...], Callable[[Value], list[Case]]], ...]] = (
    ("constants", ("_sources", "derived", "function_ids", "smccc", "tee"), constants_cases),
    ("structure layouts", ("_format", "variants", "optee_msg", "tee_api"), layout_cases),
    ("register tables", ("return_codes", "optee_calls", "optee_rpc"), register_cases),
)
_LIKELY: Final = 0.5
"""Share of a format's fields that a file must show to be taken for that format."""

Progress = Callable[[int, int], None]
"""``(vectors done, vectors in all)``."""


@frozen
class Options:
    """How vectors are run. ``strict_quirks``: a quirk that differs counts like kind abi."""

    target: TargetFactory
    preset: str
    strict_quirks: bool = False
    progress: Progress | None = None
    rules: RuleBook = field(factory=rules)


def run_file(path: Path, options: Options) -> FileResult:
    """Run every vector of a file. Raises :class:`InputError` for a file that cannot be used."""
    name = str(path)
    data = read_bytes(path)
    document = _document(data, name)
    if isinstance(document, dict):
        for title, keys, cases in _DOCUMENTS:
            if _share(document, keys) > _LIKELY:
                try:
                    return FileResult(name, title, tuple(cases(Value(document, name, 0))))
                except InputError as error:
                    line = line_of(data, error.field)
                    raise InputError(name, line, error.field, error.reason) from error
    lines = list(json_lines(data, name))
    title, run = _recognise(lines[0][1], name, lines[0][0])
    results = []
    for done, (number, raw) in enumerate(lines):
        if options.progress is not None:
            options.progress(done, len(lines))
        value = Value(raw, name, number)
        results.append(_behaviour(value, options) if run is None else run(value))
    if options.progress is not None:
        options.progress(len(lines), len(lines))
    return FileResult(name, title, tuple(results))


def _document(data: bytes, name: str) -> Json:
    """The file as one JSON value, None if it is lines of them."""
    first, _, rest = data.strip().partition(b"\n")
    if not first:
        raise InputError(name, 0, "", "empty")
    if rest and first.rstrip().endswith((b"{", b"[", b",")):
        return parse_json(data, name, 0)
    return None if rest else parse_json(data, name, 1)


def _share(raw: Json, keys: tuple[str, ...]) -> float:
    return sum(key in raw for key in keys) / len(keys) if isinstance(raw, dict) else 0.0


def _recognise(raw: Json, file: str, line: int) -> tuple[str, Callable[[Value], Case] | None]:
    shares = [(_share(raw, keys), title, run) for title, keys, run in _LINES]
    share, title, run = max(shares, key=lambda item: item[0])
    if share < _LIKELY:
        known = [title for title, _, _ in (*_LINES, *_DOCUMENTS)]
        raise InputError(file, line, "", f"none of the known kinds ({', '.join(known)})")
    return title, run


def _behaviour(value: Value, options: Options) -> Case:
    scenario = read_scenario(value)
    played = play(scenario, options.target, options.preset)
    if scenario.kind == "abi":
        return judged(
            scenario.name,
            scenario.line,
            list(played.differences),
            category=scenario.category,
            title=scenario.title,
        )
    verdict = Verdict.PASSED
    explained: tuple[str, ...] = ()
    if played.differences:
        verdict = Verdict.FAILED if options.strict_quirks else Verdict.DEVIATION
        explained = tuple(rule.id for rule in options.rules.explaining(played.facts))
    return Case(
        scenario.name,
        scenario.line,
        scenario.kind,
        scenario.quirk,
        scenario.category,
        scenario.title,
        verdict,
        played.differences,
        explained,
    )
