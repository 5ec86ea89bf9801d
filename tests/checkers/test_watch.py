# SPDX-License-Identifier: BSD-2-Clause
"""The watch itself: one look-up for an event, all who want it hear it, and lists that stay short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.checkers.balance import FetchedOnce
from mediator.checkers.progress import MAX_LINE
from mediator.checkers.standard import standard_watch
from mediator.checkers.verdict import Event, Handler, Report
from mediator.checkers.watch import MAX_VIOLATIONS, InvariantViolated, Watch
from mediator.hypervisor import events as host
from mediator.hypervisor import machine_events as machine
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from mediator.optee import events
from mediator.optee.mediator import OpteeMediator

KINDS = [
    *[value for value in vars(host).values() if isinstance(value, type)],
    *[value for value in vars(machine).values() if isinstance(value, type)],
    *[value for value in vars(events).values() if isinstance(value, type)],
]


class Listener:
    """Reports every event of the kinds that it wants, and once more at the end."""

    def __init__(self, watch: Watch, *kinds: type) -> None:
        self.watch = watch
        self.kinds = kinds
        self.heard: list[Event] = []

    def handlers(self) -> Mapping[type, Handler]:
        return dict.fromkeys(self.kinds, self.hear)

    def hear(self, event: Event) -> None:
        self.heard.append(event)
        self.watch.report("I1", 0, "heard")

    def finish(self, report: Report) -> None:
        report("I2", 0, "the end")


def test_all_who_want_an_event_hear_it_and_nobody_else() -> None:
    watch = Watch()
    first = Listener(watch, host.GuestRead, host.GuestWritten)
    second = Listener(watch, host.GuestRead)
    for listener in (first, second):
        watch.add(listener)
    read, written = host.GuestRead(0, 1, 2), host.GuestWritten(0, 1, ())
    for event in (read, written, host.GuestAdded(0)):
        watch(event)
    assert (first.heard, second.heard) == ([read, written], [read])
    assert watch.events == 3
    assert [violation.number for violation in watch.violations] == [1, 1, 2]


@given(st.integers(0, 5 * MAX_VIOLATIONS))
def test_the_list_of_violations_is_bounded_and_keeps_the_first(count: int) -> None:
    watch = Watch()
    for number in range(count):
        watch.report("I4", number, "again")
    assert watch.total == count
    kept = [violation.guest for violation in watch.violations]
    assert kept == list(range(min(count, MAX_VIOLATIONS)))
    if count:
        with pytest.raises(
            InvariantViolated, match=f"^{count} violations of invariants\n"
        ) as error:
            watch.check()
        assert error.value.total == count
        assert str(error.value).count("\n") == min(count, 10)
    else:
        watch.check()


def test_a_run_that_goes_wrong_for_ever_does_not_fill_the_memory() -> None:
    watch = Watch()
    watch.add(FetchedOnce(watch.report))
    watch(machine.TrapEnter(0, 0, False, 0, (0,) * 8))
    for _ in range(1000):
        watch(host.GuestRead(0, 0x1000, 8))
    assert len(watch.violations) == MAX_VIOLATIONS
    assert watch.total == 999
    assert MAX_LINE <= 1 << 20


def test_without_violations_a_check_is_silent() -> None:
    watch = Watch()
    assert watch.finish() == ()
    watch.check()


def everything() -> Watch:
    """All checkers on an idle machine."""
    memory = PhysicalMemory(1024, 0x8_0000)
    return standard_watch(Watch(), memory, ReferenceHost(memory), OpteeMediator())


def test_the_standard_watch_has_a_checker_for_each_invariant() -> None:
    watch = everything()
    names = sorted(type(checker).__name__ for checker in watch._checkers)
    assert names == [
        "Bounded",
        "FetchedOnce",
        "HandedPages",
        "NoLeak",
        "OwnMemoryOnly",
        "PinsBalance",
        "Progress",
        "Strangers",
        "WakeUps",
    ]
    assert watch.finish() == ()


NUMBER = st.integers(0, (1 << 64) - 1) | st.integers(0, 5)
SEGMENTS = st.lists(st.tuples(st.integers(0, 4095), st.binary(max_size=80)), max_size=3).map(
    lambda pairs: tuple(pairs)
)
REGISTERS = st.lists(NUMBER, min_size=8, max_size=8).map(lambda words: tuple(words))
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "registers": REGISTERS,
    "regs": REGISTERS,
    "frames": st.lists(NUMBER, max_size=3).map(
        lambda w: b"".join(n.to_bytes(8, "little") for n in w)
    ),
    "segments": SEGMENTS,
    "guest": st.integers(-1, 3),
    "vcpu": st.integers(0, 2),
    "call": st.integers(-1, 3),
}


@st.composite
def event(draw: st.DrawFn) -> Event:
    """Any event with any numbers in it."""
    kind = draw(st.sampled_from([kind for kind in KINDS if issubclass(kind, tuple)]))
    fields = getattr(kind, "_fields", ())
    values = [draw(FIELDS.get(name, NUMBER)) for name in fields]
    return cast("Callable[..., Event]", kind)(*values)


@given(st.lists(event(), max_size=40))
def test_no_sequence_of_events_breaks_a_checker(log: list[Event]) -> None:
    """Whatever happens, in whatever order: checkers say something or nothing, and never raise."""
    watch = everything()
    for item in log:
        watch(item)
    assert len(watch.finish()) <= MAX_VIOLATIONS
    assert watch.events == len(log)
