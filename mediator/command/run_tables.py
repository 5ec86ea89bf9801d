# SPDX-License-Identifier: BSD-2-Clause
"""The result of ``optee-mediator run`` for people: tables, the story of the guests, a verdict.

Names come from files and guests: they are shown escaped, and never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mediator.scenario import model
from mediator.scenario.result import GuestResult, Result
from mediator.scenario.text import printable
from mediator.scenario.workloads.task import DONE, SKIPPED

PLAIN_WIDTH: Final = 118
"""Columns where there is no terminal to ask: what the tables need."""

MAX_PROBLEMS: Final = 30
"""Problems that are shown; the JSON report has them all."""

_GOOD: Final = "green"
_BAD: Final = "bold red"
_DIM: Final = "dim"

_OVERHEAD: Final = ("trap", "syscall", "page_copy", "page_pin", "world_switch")
"""Kinds of cost that a guest pays for being mediated."""


def print_result(console: Console, result: Result, seconds: float, trace: str) -> None:
    """Print everything. ``seconds`` of wall time; ``trace``: where the trace is, or ""."""
    parts: list[RenderableType] = [_heading(result), _guests(result.guests)]
    if result.totals.rpcs:
        parts.append(_rpcs(result.guests))
    parts += [_costs(result.guests), _work(result.guests)]
    if result.story:
        parts.append(_story(result))
    if result.checked:
        parts.append(_invariants(result))
    parts += [_totals(result, seconds, trace), _verdict(result)]
    for part in parts:
        console.print(part)
        console.print()


def new_console() -> Console:
    """Standard output; as wide as the tables need if it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    return console


def _heading(result: Result) -> RenderableType:
    where = "built in" if result.path.startswith("builtin:") else result.path
    title = Text.assemble(
        ("optee-mediator run", "bold"),
        f": scenario {_safe(result.scenario)} ({_safe(where)}), seed {result.seed}",
    )
    lines = [title]
    if result.description:
        lines.append(Text(_safe(result.description)))
    lines.append(
        Text(
            f"{_count(len(result.guests), 'guest')} on {_count(result.pcpus, 'pCPU')}, one mediator "
            f"(preset {result.preset}), one OP-TEE with {_count(result.threads, 'thread')} a guest; "
            f"{result.mode} mode. Times are virtual.",
            _DIM,
        )
    )
    return Group(*lines)


def _table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """A table whose first ``left`` columns are text and the others numbers."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return table


def _guests(guests: Iterable[GuestResult]) -> Table:
    columns = ("id", "guest", "kernel", "calls by", "vCPU", "RAM", "calls", "SMCs", "RPCs")
    table = _table("Guests", (*columns, "sessions", "shared", "lived", "outcome"), 4)
    for guest in guests:
        table.add_row(
            str(guest.id) if guest.id >= 0 else "-",
            Text(_safe(guest.name)),
            guest.kernel,
            f"{guest.style or 'any'}, {guest.conduit}",
            str(guest.vcpus),
            _bytes(guest.ram),
            f"{guest.calls:,}",
            f"{guest.traps:,}",
            f"{sum(guest.rpcs.values()):,}",
            f"{guest.sessions:,}",
            f"{guest.pages_peak:,}",
            _ms(guest.ended - guest.created),
            Text(guest.outcome, _GOOD if guest.outcome == model.DONE else "yellow"),
        )
    table.caption = (
        "calls: yielding calls; SMCs: all, with resumptions; shared: most pages at one time"
    )
    return table


def _rpcs(guests: Sequence[GuestResult]) -> Table:
    kinds = sorted({kind for guest in guests for kind in guest.rpcs})
    table = _table("RPCs: what the TEE asked of its guests", ("guest", *[k.lower() for k in kinds]))
    for guest in guests:
        if guest.rpcs:
            counts = [f"{guest.rpcs[kind]:,}" if kind in guest.rpcs else "·" for kind in kinds]
            table.add_row(Text(_safe(guest.name)), *counts)
    return table


def _costs(guests: Iterable[GuestResult]) -> Table:
    table = _table(
        "What it cost the host",
        (
            "guest",
            "traps",
            "TEE entries",
            "syscalls",
            "per call",
            "page copies",
            "pins + unpins",
            "vIRQs",
            "mediation",
            "in the TEE",
        ),
    )
    for guest in guests:
        used, spent = guest.operations, guest.spent
        syscalls = used.get("syscall", 0)
        table.add_row(
            Text(_safe(guest.name)),
            f"{used.get('trap', 0):,}",
            f"{used.get('world_switch', 0):,}",
            f"{syscalls:,}",
            f"{syscalls / guest.calls:.1f}" if guest.calls else "-",
            f"{used.get('page_copy', 0):,}",
            f"{used.get('page_pin', 0):,}",
            f"{used.get('virq', 0):,}",
            _ms(sum(spent.get(kind, 0) for kind in _OVERHEAD)),
            _ms(spent.get("secure_world", 0)),
        )
    table.caption = (
        "syscalls: host services that the mediator used; mediation: time of all but the TEE"
    )
    return table


def _work(guests: Iterable[GuestResult]) -> Table:
    table = _table("What the guests did, and checked themselves", ("guest", "program", "result"), 3)
    table.columns[-1].no_wrap = False
    for guest in guests:
        name = _safe(guest.name)
        for program, text, good in _programs(guest):
            table.add_row(Text(name), Text(program), Text(text, "" if good else _BAD))
            name = ""
        found = sum(guest.findings.values())
        if found:
            text = f"{found}, the first: {guest.finding_texts[0]}"
            table.add_row(Text(name), "findings", Text(_safe(text), "yellow"))
    return table


def _programs(guest: GuestResult) -> Iterable[tuple[str, str, bool]]:
    """(program, how it went, whether that is good) of everything that a guest ran."""
    if guest.replay is not None:
        replay = guest.replay
        text = f"{replay.alike} of {replay.answers} answers as recorded"
        if replay.astray:
            text += f", {replay.astray} not comparable"
        if replay.different:
            text += f", {replay.different} different"
        yield f"{replay.calls} recorded SMCs", text, not replay.different
    if guest.hostile is not None:
        shown = ", ".join(f"{name} {number}" for name, number in guest.hostile.statuses.items())
        yield f"{guest.hostile.attacks} attacks", f"answers: {shown}", True
    for run in dict.fromkeys(workload.run for workload in guest.workloads):
        group = [workload for workload in guest.workloads if workload.run == run]
        name = run if len(group) == 1 else f"{run} in {len(group)} threads"
        failed = [w.problem for w in group if w.state not in (DONE, SKIPPED) and w.problem]
        if failed:
            yield name, _safe(failed[0]), False
            continue
        if group[0].state == SKIPPED:
            yield name, _safe(f"skipped: {group[0].problem}"), True
            continue
        rounds, checks = sum(w.rounds for w in group), sum(w.checks for w in group)
        text = f"{_count(rounds, 'round')}, {_count(checks, 'check')} passed"
        tolerated = sum(w.tolerated for w in group)
        if tolerated:
            text += f", {tolerated} rounds ended by a tolerated error"
        if any(w.state != DONE for w in group):
            text += f", then {guest.outcome}"
        yield name, text, True


def _story(result: Result) -> Table:
    table = _table("What happened to them", ("at", "event"), 2)
    table.columns[0].justify = "right"
    table.columns[1].no_wrap = False
    for time, text in result.story:
        table.add_row(_ms(time), Text(_safe(text)))
    return table


def _invariants(result: Result) -> Table:
    table = _table("Invariants", ("", "meaning", "looked at", "", "violations"), 2)
    table.columns[3].justify = "left"
    for one in result.invariants:
        number = len(one.violations)
        table.add_row(
            one.id,
            one.meaning,
            f"{one.looked_at:,}",
            one.what,
            Text(str(number), _BAD if number else _GOOD),
        )
    return table


def _totals(result: Result, seconds: float, trace: str) -> RenderableType:
    totals = result.totals
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "Run",
        f"{_ms(totals.time)} of virtual time in {seconds:.1f} s; {totals.calls:,} calls, "
        f"{totals.traps:,} SMCs, {sum(totals.rpcs.values()):,} RPCs, {totals.sessions:,} sessions, "
        f"{totals.events:,} events",
    )
    table.add_row(
        "OP-TEE",
        f"{_count(totals.ta_panics, 'TA panic')}, {_count(totals.thread_limits, 'call')} told to wait "
        f"for a thread, {_count(totals.bus_breaches, 'bus breach', 'bus breaches')}",
    )
    table.add_row(
        "At the end",
        Text(
            f"{_count(totals.pins, 'page')} pinned; the mediator keeps {totals.shadow_pages} of its "
            f"own for the next call (at most {totals.shadow_cache})"
        ),
    )
    table.add_row("Digest", f"sha256 {result.digest}")
    if trace:
        table.add_row("Trace", Text(f"{_safe(trace)}: open it at https://ui.perfetto.dev"))
    return table


def _verdict(result: Result) -> RenderableType:
    if result.ok:
        checked = "no invariant was violated, " if result.checked else ""
        text = f"OK: {checked}every guest ended as expected, nothing is left pinned"
        skipped = [w for guest in result.guests for w in guest.workloads if w.state == SKIPPED]
        if skipped:
            text += f"; {_count(len(skipped), 'program')} skipped: {skipped[0].problem}"
        return Text(_safe(text), _GOOD)
    lines = [Text(f"FAILED: {_count(len(result.problems), 'problem')}", _BAD)]
    for problem in result.problems[:MAX_PROBLEMS]:
        where, *more = _lines(f"{problem.where}: {problem.what}")
        lines.append(Text(f"  {where}"))
        lines += [Text(f"    {line}") for line in more]
    hidden = len(result.problems) - MAX_PROBLEMS
    if hidden > 0:
        lines.append(Text(f"  and {_count(hidden, 'more problem', 'more problems')}"))
    return Group(*lines)


def _safe(text: str) -> str:
    return printable(text)


def _lines(text: str) -> list[str]:
    """A text of several lines (a traceback), each escaped."""
    return [printable(line) for line in text.split("\n")]


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _ms(ns: int) -> str:
    return f"{ns / 1_000_000:,.2f} ms"


def _bytes(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift and not size & ((1 << shift) - 1):
            return f"{size >> shift} {unit}"
    return f"{size} B"
