# SPDX-License-Identifier: BSD-2-Clause
"""Reports of a vector run, for people and for programs. Text from files is shown escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

from specs.rules import RuleBook
from specs.vectors.case import Case, FileResult, Verdict
from specs.vectors.errors import InputError

FORMAT: Final = "optee-mediator-vectors-report"
VERSION: Final = 1

DIFFERENCES_SHOWN: Final = 6
"""Differences of one vector in the text report; the JSON report has them all."""

NO_RULE: Final = "no rule explains it"

JsonValue = bool | int | str | Sequence["JsonValue"] | dict[str, "JsonValue"] | None


def exit_code(results: Sequence[FileResult], errors: Sequence[InputError]) -> int:
    """0 all well, 1 a vector that counts differed, 2 a file could not be used."""
    if errors:
        return 2
    return 1 if any(result.count(Verdict.FAILED) for result in results) else 0


def printable(text: str) -> str:
    """``text`` with everything but printable characters escaped, so that no file drives a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def as_text(results: Sequence[FileResult], book: RuleBook, show: int) -> Iterator[str]:
    """The lines of the report for people."""
    width = max((len(printable(result.file)) for result in results), default=0)
    for result in results:
        name, deviations = printable(result.file), result.count(Verdict.DEVIATION)
        text = f"{name:<{width}}  {result.format}: {result.count(Verdict.PASSED)} passed"
        text += f", {result.count(Verdict.FAILED)} failed"
        yield text + (f", {_count(deviations, 'deviation')}" if deviations else "")
    for result in results:
        failed = [case for case in result.cases if case.verdict is Verdict.FAILED]
        if failed and show:
            yield ""
            yield f"{printable(result.file)}: the first of {_count(len(failed), 'failed vector')}"
        for case in failed[:show]:
            yield from _case(case)
    deviating = [
        case for result in results for case in result.cases if case.verdict is Verdict.DEVIATION
    ]
    if deviating:
        yield ""
        yield "Deviations from choices of the recorded mediator (kind quirk, they do not count):"
        yield from _deviations(deviating, book)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _case(case: Case) -> Iterator[str]:
    title = f": {case.title}" if case.title else ""
    yield f"  {printable(case.name + title)} (line {case.line}, {case.category})"
    for difference in case.differences[:DIFFERENCES_SHOWN]:
        yield f"    {printable(str(difference))}"
    more = len(case.differences) - DIFFERENCES_SHOWN
    if more > 0:
        yield f"    and {_count(more, 'more difference')}"


def _deviations(cases: Sequence[Case], book: RuleBook) -> Iterator[str]:
    by_rules: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        by_rules.setdefault(case.explained_by, []).append(case)
    for names, members in by_rules.items():
        for name in names:
            yield f"  {name} ({book[name].level}): {book[name].sentence}"
        if not names:
            yield f"  {NO_RULE}:"
        for case in members:
            yield f"    {printable(f'{case.name}: {case.title}')} ({printable(case.quirk)})"
            if case.differences:
                yield f"      {printable(str(case.differences[0]))}"


def as_json(
    results: Sequence[FileResult],
    errors: Sequence[InputError],
    book: RuleBook,
    preset: str,
    strict_quirks: bool,
    apps: list[dict[str, object]] | None = None,
) -> dict[str, JsonValue]:
    """The report for programs; ``report.schema.json`` describes it.

    ``apps``: isolation of each process, if the mediator lived in one of its own.
    """
    lived = {} if apps is None else {"apps": cast("JsonValue", apps)}
    used = sorted(
        {name for result in results for case in result.cases for name in case.explained_by}
    )
    return {
        "format": FORMAT,
        "version": VERSION,
        **lived,
        "preset": preset,
        "strict_quirks": strict_quirks,
        **{
            f"{verdict}s" if verdict is Verdict.DEVIATION else str(verdict): sum(
                result.count(verdict) for result in results
            )
            for verdict in Verdict
        },
        "files": [_file(result) for result in results],
        "rules": {
            name: {"level": str(book[name].level), "sentence": book[name].sentence} for name in used
        },
        "errors": [
            {"file": error.file, "line": error.line, "field": error.field, "reason": error.reason}
            for error in errors
        ],
    }


def _file(result: FileResult) -> dict[str, JsonValue]:
    return {
        "file": result.file,
        "kind": result.format,
        "vectors": len(result.cases),
        "passed": result.count(Verdict.PASSED),
        "failed": result.count(Verdict.FAILED),
        "deviations": result.count(Verdict.DEVIATION),
        "differing": [
            {
                "name": case.name,
                "line": case.line,
                "kind": case.kind,
                "quirk": case.quirk,
                "category": case.category,
                "title": case.title,
                "verdict": str(case.verdict),
                "explained_by": list(case.explained_by),
                "differences": [
                    {
                        "place": difference.place,
                        "expected": difference.expected,
                        "actual": difference.actual,
                    }
                    for difference in case.differences
                ],
            }
            for case in result.cases
            if case.verdict is not Verdict.PASSED
        ],
    }
