# SPDX-License-Identifier: BSD-2-Clause
"""The result of ``optee-mediator run`` for people: tables, the story of the guests, a verdict.

Names come from files and guests: they are shown escaped, and never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs
from rich import box
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from mediator.scenario import model
from mediator.scenario.result import GuestResult, Result
from mediator.scenario.text import printable
from mediator.scenario.workloads.task import DONE, SKIPPED

PLAIN_WIDTH: Final = 118
"""Columns where there is no terminal to ask: what the tables need."""

WIDE: Final = 112
"""Columns from which on the tables have all of their columns."""

FOLD: Final = 9
"""Characters of a column title beyond which it takes two lines where there is little room."""

MAX_PROBLEMS: Final = 30
"""Problems that are shown; the JSON report has them all."""

_GOOD: Final = "green"
_BAD: Final = "bold red"
_DIM: Final = "dim"

_OVERHEAD: Final = (
    "trap",
    "syscall",
    "page_copy",
    "page_pin",
    "world_switch",
    "app_turn",
    "app_copy",
)
"""Kinds of cost that a guest pays for being mediated."""


def print_result(console: Console, result: Result, seconds: float, trace: str) -> None:
    """Print everything. ``seconds`` of wall time; ``trace``: where the trace is, or ""."""
    wide = console.width >= WIDE
    parts: list[RenderableType] = [_heading(result), _guests(result.guests, wide)]
    if result.totals.rpcs:
        parts.append(_rpcs(result.guests, wide))
    parts.append(_costs(result.guests, wide))
    if result.totals.app:
        parts.append(_app(result))
    parts.append(_work(result.guests))
    if result.story:
        parts.append(_story(result))
    if result.checked:
        parts.append(_invariants(result, wide))
    parts += [_totals(result, seconds, trace), _verdict(result)]
    with console.capture() as captured:
        for number, part in enumerate(parts):
            if number:
                console.print()
            console.print(part)
    text = captured.get()
    if not console.is_terminal:  # a file keeps no spaces that only fill up lines
        text = "".join([f"{line.rstrip()}\n" for line in text.splitlines()])
    console.file.write(text)


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


@attrs.frozen
class _Column:
    """A column. ``text``: to the left; ``wide``: only where there is room; ``wrap``: it may wrap."""

    name: str
    text: bool = False
    wide: bool = False
    wrap: bool = False


class _Table:
    """A table in the making. Without room (``wide`` false) its wide columns are left out."""

    def __init__(self, title: str, columns: Sequence[_Column], wide: bool = True) -> None:
        self._shown = [wide or not column.wide for column in columns]
        self.table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for column, shown in zip(columns, self._shown, strict=True):
            if shown:
                justify: JustifyMethod = "left" if column.text else "right"
                self.table.add_column(column.name, justify=justify, no_wrap=not column.wrap)

    def row(self, *cells: str | Text) -> None:
        """Add a row; text is shown as it is, escaped."""
        shown = [cell for cell, kept in zip(cells, self._shown, strict=True) if kept]
        self.table.add_row(*[Text(_safe(c)) if isinstance(c, str) else c for c in shown])


def _guests(guests: Iterable[GuestResult], wide: bool) -> Table:
    columns = (
        _Column("id", text=True, wide=True),
        _Column("guest", text=True, wrap=not wide),
        _Column("kernel", text=True),
        _Column("calls by", text=True),
        _Column("vCPU", wide=True),
        _Column("RAM", wide=True),
        _Column("calls"),
        _Column("SMCs"),
        _Column("RPCs"),
        _Column("sessions", wide=True),
        _Column("shared"),
        _Column("lived"),
        _Column("outcome"),
    )
    made = _Table("Guests", columns, wide)
    for guest in guests:
        style = guest.style or "any"
        made.row(
            str(guest.id) if guest.id >= 0 else "-",
            guest.name,
            guest.kernel,
            f"{style}, {guest.conduit}" if wide else style,
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
    made.table.caption = (
        "calls: yielding calls; SMCs: all, with resumptions; shared: most pages at one time"
    )
    return made.table


def _rpcs(guests: Sequence[GuestResult], wide: bool) -> Table:
    kinds = sorted({kind for guest in guests for kind in guest.rpcs})
    titles = [kind.lower() if wide else _folded(kind.lower()) for kind in kinds]
    columns = [_Column("guest", text=True), *[_Column(title) for title in titles]]
    made = _Table("RPCs: what the TEE asked of its guests", columns)
    for guest in guests:
        if guest.rpcs:
            made.row(guest.name, *[_or_dot(guest.rpcs.get(kind, 0)) for kind in kinds])
    return made.table


def _folded(name: str) -> str:
    """The name of an RPC in two lines."""
    first, _, rest = name.partition("_")
    if not rest and len(first) > FOLD:
        return f"{first[: FOLD - 1]}-\n{first[FOLD - 1 :]}"
    return f"{first}\n{rest}" if rest else first


def _costs(guests: Iterable[GuestResult], wide: bool) -> Table:
    columns = (
        _Column("guest", text=True),
        _Column("traps", wide=True),
        _Column("TEE entries"),
        _Column("syscalls"),
        _Column("per call"),
        _Column("page copies", wide=True),
        _Column("pins + unpins"),
        _Column("vIRQs", wide=True),
        _Column("mediation"),
        _Column("in the TEE"),
    )
    made = _Table("What it cost the host", columns, wide)
    for guest in guests:
        used, spent = guest.operations, guest.spent
        syscalls = used.get("syscall", 0)
        made.row(
            guest.name,
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
    made.table.caption = (
        "syscalls: host services that the mediator used; mediation: time of all but the TEE"
    )
    return made.table


def _app(result: Result) -> Table:
    """What the mediator's process did for whom, and that the sums add up."""
    columns = (
        _Column("for", text=True),
        _Column("entries"),
        _Column("round trips"),
        _Column("calls"),
        _Column("refused"),
        _Column("bytes copied"),
        _Column("shadow pages"),
        _Column("crossing"),
    )
    made = _Table("What the mediator's own process did", columns)
    for name, used, spent in (
        *[(guest.name, guest.app, guest.spent) for guest in result.guests],
        ("hypervisor", result.totals.app_own, None),
        ("all", result.totals.app, None),
    ):
        crossing = "" if spent is None else _ms(spent.get("app_turn", 0) + spent.get("app_copy", 0))
        numbers = [
            used.get(key, 0) for key in ("entries", "turns", "syscalls", "refused", "copied")
        ]
        peak = used.get("shadow_peak")
        made.row(name, *[f"{n:,}" for n in numbers], "" if peak is None else f"{peak:,}", crossing)
    made.table.caption = "all: with guests that came to nothing; shadow pages: most at one time"
    return made.table


def _work(guests: Iterable[GuestResult]) -> Table:
    columns = [_Column(name, text=True) for name in ("guest", "program")]
    columns.append(_Column("result", text=True, wrap=True))
    made = _Table("What the guests did, and checked themselves", columns)
    for guest in guests:
        name = guest.name
        for program, text, good in _programs(guest):
            made.row(name, program, Text(_safe(text), "" if good else _BAD))
            name = ""
        found = sum(guest.findings.values())
        if found:
            text = f"{found}, the first: {guest.finding_texts[0]}"
            made.row(name, "findings", Text(_safe(text), "yellow"))
    return made.table


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
            yield name, failed[0], False
            continue
        if group[0].state == SKIPPED:
            yield name, f"skipped: {group[0].problem}", True
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
    columns = (_Column("at"), _Column("event", text=True, wrap=True))
    made = _Table("What happened to them", columns)
    for time, text in result.story:
        made.row(_ms(time), text)
    return made.table


def _invariants(result: Result, wide: bool) -> Table:
    columns = (
        _Column("", text=True),
        _Column("meaning", text=True, wrap=True),
        _Column("looked at"),
        _Column("", text=True, wide=True),
        _Column("violations"),
    )
    made = _Table("Invariants", columns, wide)
    for one in result.invariants:
        number = len(one.violations)
        violations = Text(str(number), _BAD if number else _GOOD)
        made.row(one.id, one.meaning, f"{one.looked_at:,}", one.what, violations)
    return made.table


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
        "Mediator",
        f"{_count(totals.findings, 'finding')}, {_count(totals.preempted_teardowns, 'teardown')} "
        "preempted",
    )
    table.add_row(
        "OP-TEE",
        f"{_count(totals.ta_panics, 'TA panic')}, {_count(totals.thread_limits, 'call')} told to wait "
        f"for a thread, {_count(totals.bus_breaches, 'bus breach', 'bus breaches')}",
    )
    table.add_row("Waits", _waits(result))
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
    else:
        table.add_row(
            "Trace", Text("none; --trace FILE writes one for https://ui.perfetto.dev", _DIM)
        )
    return table


def _waits(result: Result) -> str:
    """How the TEE's threads waited for each other, and who still does."""
    count = sum(guest.waits for guest in result.waits)
    if not count:
        return "no thread of the TEE waited for another"
    kept = sum(guest.kept for guest in result.waits)
    longest = max(guest.longest for guest in result.waits)
    text = f"{count:,} of OP-TEE's threads, {kept:,} kept by the mediator, longest {_ms(longest)}"
    return text + f"; {len(result.waiting)} without end" if result.waiting else text


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


def _or_dot(number: int) -> str:
    return f"{number:,}" if number else "·"


def _ms(ns: int) -> str:
    return f"{ns / 1_000_000:,.2f} ms"


def _bytes(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift and not size & ((1 << shift) - 1):
            return f"{size >> shift} {unit}"
    return f"{size} B"
