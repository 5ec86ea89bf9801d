# SPDX-License-Identifier: BSD-2-Clause
"""Results of a replay for people and for programs. Text from traces is foreign: it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from specs.replay.compare import Difference
from specs.replay.records import TraceError
from specs.replay.result import MAX_DIFFERENCES, MediatorResult, SecureResult
from specs.replay.rules import NOT_COMPARED, RULES
from specs.replay.selfcheck import SelfCheck

FORMAT: Final = "optee-mediator-replay-report"
VERSION: Final = 1
MEDIATOR: Final = "mediator"
SECURE_WORLD: Final = "secure-world"

Result = MediatorResult | SecureResult
MAX_TEXT: Final = 200


def printable(text: str) -> str:
    """Foreign text on one line, control characters escaped, not longer than a line or two."""
    shown = "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])
    return shown if len(shown) <= MAX_TEXT else f"{shown[:MAX_TEXT]}..."


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns: the first to the left, numbers to the right, zeros as a dot."""
    cells = [[str(cell) if cell != 0 else "." for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    lines: list[str] = []
    for row in [list(head), *cells]:
        first = row[0].ljust(widths[0])
        rest = "".join(
            [f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        lines.append(f"    {first}{rest}")
    return lines


def _share(part: int, whole: int) -> str:
    if part == whole:
        return "100 %"
    return f"{100 * part / whole:.2f} %" if whole else "none"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join([f"{printable(name)} {count}" for name, count in counts.items()]) or "none"


def _differences(found: Sequence[Difference], events: int, show: int) -> list[str]:
    if not found:
        return []
    few = "" if len(found) < MAX_DIFFERENCES else "at least "
    lines = [f"  {few}{len(found)} differences in {events} events:"]
    lines += [f"    {printable(str(difference))}" for difference in found[:show]]
    if len(found) > show:
        lines.append(f"    ... {len(found) - show} more (--show, or --json for all)")
    return lines


def mediator_text(result: MediatorResult, check: SelfCheck | None, show: int) -> list[str]:
    """One trace, as mediator."""
    verdict = "transparent" if result.ok else "NOT transparent"
    lines = [
        f"{printable(result.path)}: as mediator, {verdict}",
        f"  {printable(result.scenario)}",
        f"  {result.transparent} of {result.events} events transparent "
        f"({_share(result.transparent, result.events)}); {result.threads} threads",
        "",
    ]
    lines += _table(
        ("calls and their answers", "events", "identical", "by rule", "different"),
        [
            *[(c.name, c.events, c.identical, c.by_rule, c.different) for c in result.classes],
            (
                "all",
                result.events,
                sum([c.identical for c in result.classes]),
                sum([c.by_rule for c in result.classes]),
                result.different_events,
            ),
        ],
    )
    lines.append("")
    lines += _differences(result.differences, result.different_events, show)
    if result.rules:
        lines.append("  allowed by rule:")
        for name, count in result.rules.items():
            rule = RULES[name]
            lines.append(f"    {name} ({count}): {rule.sentence} [{rule.source}]")
    if result.answered_by_mediator:
        lines.append(f"  answered by the mediator itself: {result.answered_by_mediator} calls")
    if result.unanswered:
        lines.append(f"  without a recorded answer: {result.unanswered} calls")
    for reason, count in result.blind.items():
        lines.append(f"  not compared here: {count} {reason}")
    lines.append(f"  the mediator's own calls, apart: {_counts(result.own_calls)}")
    lines.append(f"  apart: {result.interrupts} secure interrupts, {result.markers} markers")
    lines.append(
        f"  pins: {result.pinned_before_teardown} when the trace ends, "
        f"{result.pinned} after the guests are gone"
    )
    lines += [f"  finding of the mediator: {printable(text)}" for text in result.findings]
    lines += [f"  note: {printable(text)}" for text in result.notes]
    return lines + _check_text(check)


def secure_text(result: SecureResult, check: SelfCheck | None, show: int) -> list[str]:
    """One trace, as secure world."""
    compared = result.equal + result.different
    verdict = "all answers equal" if result.ok else "answers differ"
    lines = [
        f"{printable(result.path)}: as secure world, {verdict}",
        f"  {printable(result.scenario)}",
        f"  {result.equal} of {compared} compared answers equal "
        f"({_share(result.equal, compared)}), {result.answers - compared} apart; "
        f"{result.threads} threads",
        "",
    ]
    lines += _table(
        ("answers to", "answers", "equal", "different", "apart"),
        [
            *[(c.name, c.answers, c.equal, c.different, c.apart) for c in result.classes],
            (
                "all",
                result.answers,
                result.equal,
                result.different,
                result.answers - compared,
            ),
        ],
    )
    lines.append("")
    lines += _differences(result.differences, result.different, show)
    if result.apart:
        lines.append("  apart (the normal world's side is as recorded, the answer is not ours):")
        lines += [f"    {count:6} {printable(name)}" for name, count in result.apart.items()]
    lines.append(
        f"  locks taken in another order than recorded: {result.hidden_waits} waits or wake-ups"
    )
    lines.append(f"  apart: {result.interrupts} secure interrupts, {result.markers} markers")
    lines += [f"  note: {printable(text)}" for text in result.notes]
    return lines + _check_text(check)


def _check_text(check: SelfCheck | None) -> list[str]:
    if check is None:
        return []
    lines = [f"  self-check, seed {check.seed}:"]
    for kind, (planted, reported) in check.kinds.items():
        lines.append(f"    {kind}: {reported} of {planted} reported")
    for plant in check.missed:
        lines.append(
            f"    MISSED: {plant.kind}, call {plant.seq}, {plant.side}: {printable(plant.where)}"
        )
    return lines


def as_text(results: Sequence[Result], checks: Sequence[SelfCheck | None], show: int) -> list[str]:
    """The whole report."""
    lines: list[str] = []
    for result, check in zip(results, checks, strict=True):
        if isinstance(result, MediatorResult):
            lines += mediator_text(result, check, show)
        else:
            lines += secure_text(result, check, show)
        lines.append("")
    if results:
        lines.append("not compared:")
        lines += [f"  {what}: {why}" for what, why in not_compared(results)]
    if len(results) > 1:
        lines += ["", *_summary(results)]
    return lines


def _summary(results: Sequence[Result]) -> list[str]:
    good = sum([result.ok for result in results])
    events = sum([r.events if isinstance(r, MediatorResult) else r.answers for r in results])
    fine = sum([r.transparent if isinstance(r, MediatorResult) else r.equal for r in results])
    word = "transparent" if isinstance(results[0], MediatorResult) else "equal"
    return [f"{good} of {len(results)} traces without a difference; {fine} of {events} {word}"]


SECURE_NOT_COMPARED: Final = (
    ("a1 to a3 of final answers of yielding calls", "left-over values of the real one"),
    ("contents of FS requests", "OP-TEE's own store: kind and layout are compared"),
    ("answers of TAs that we do not have", "counted apart, by name"),
    ("contents of buffers that the normal world is to fill", "whatever was there before"),
    ("when and where a thread is interrupted", "a stimulus, raised where the answer shows it"),
)


def not_compared(results: Sequence[Result]) -> list[tuple[str, str]]:
    """What is not compared, and why: for the kinds of replay that were made."""
    found: list[tuple[str, str]] = []
    if any(isinstance(result, MediatorResult) for result in results):
        found += NOT_COMPARED
    if any(isinstance(result, SecureResult) for result in results):
        found += SECURE_NOT_COMPARED
    return found


# --- for programs ---------------------------------------------------------------------------------


def _difference(difference: Difference) -> dict[str, object]:
    return dict(difference._asdict())


def _check_json(check: SelfCheck | None) -> dict[str, object] | None:
    if check is None:
        return None
    return {
        "seed": check.seed,
        "complete": check.ok,
        "kinds": {kind: {"planted": p, "reported": r} for kind, (p, r) in check.kinds.items()},
        "missed": [
            {"kind": p.kind, "seq": p.seq, "side": p.side, "where": p.where} for p in check.missed
        ],
    }


def _mediator_json(result: MediatorResult) -> dict[str, object]:
    return {
        "file": result.path,
        "as": MEDIATOR,
        "ok": result.ok,
        "scenario": result.scenario,
        "threads": result.threads,
        "events": result.events,
        "transparent": result.transparent,
        "classes": [
            {
                "name": c.name,
                "events": c.events,
                "identical": c.identical,
                "by_rule": c.by_rule,
                "different": c.different,
            }
            for c in result.classes
        ],
        "rules": result.rules,
        "differences": [_difference(d) for d in result.differences],
        "answered_by_mediator": result.answered_by_mediator,
        "unanswered": result.unanswered,
        "own_calls": result.own_calls,
        "blind": result.blind,
        "interrupts": result.interrupts,
        "markers": result.markers,
        "pinned_before_teardown": result.pinned_before_teardown,
        "pinned": result.pinned,
        "findings": list(result.findings),
        "notes": list(result.notes),
    }


def _secure_json(result: SecureResult) -> dict[str, object]:
    return {
        "file": result.path,
        "as": SECURE_WORLD,
        "ok": result.ok,
        "scenario": result.scenario,
        "threads": result.threads,
        "answers": result.answers,
        "equal": result.equal,
        "different": result.different,
        "classes": [
            {
                "name": c.name,
                "answers": c.answers,
                "equal": c.equal,
                "different": c.different,
                "apart": c.apart,
            }
            for c in result.classes
        ],
        "apart": result.apart,
        "differences": [_difference(d) for d in result.differences],
        "hidden_waits": result.hidden_waits,
        "interrupts": result.interrupts,
        "markers": result.markers,
        "notes": list(result.notes),
    }


def as_json(
    results: Sequence[Result],
    checks: Sequence[SelfCheck | None],
    errors: Sequence[TraceError],
    apps: list[dict[str, object]] | None = None,
) -> dict[str, object]:
    """The whole report; ``specs/replay/report.schema.json`` describes it.

    ``apps``: isolation of each process, if the mediator lived in one of its own.
    """
    traces: list[dict[str, object]] = []
    for result, check in zip(results, checks, strict=True):
        one = _mediator_json(result) if isinstance(result, MediatorResult) else _secure_json(result)
        one["self_check"] = _check_json(check)
        traces.append(one)
    lived = {} if apps is None else {"apps": apps}
    return {
        "format": FORMAT,
        "version": VERSION,
        **lived,
        "exit": exit_code(results, checks, errors),
        "traces": traces,
        "rules": [
            {"id": rule.id, "sentence": rule.sentence, "source": rule.source}
            for rule in RULES.values()
        ],
        "not_compared": [{"what": what, "why": why} for what, why in not_compared(results)],
        "errors": [
            {"file": e.path, "line": e.line, "field": e.field, "reason": e.reason} for e in errors
        ],
    }


def exit_code(
    results: Sequence[Result],
    checks: Sequence[SelfCheck | None],
    errors: Sequence[TraceError],
) -> int:
    """2: a file cannot be used; 1: a difference, or a planted error was missed; 0: all well."""
    if errors:
        return 2
    missed = any(check is not None and not check.ok for check in checks)
    return int(missed or not all(result.ok for result in results))
