# SPDX-License-Identifier: BSD-2-Clause
"""The loop looks on after a call where a processor is free for it, and goes to sleep in time."""

from __future__ import annotations

import time

import pytest

from mediator.live import polling
from mediator.live.polling import CROWDED, REST, WINDOW, Polling


class Machine:
    """A clock, and what other threads took of this one's time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processors: int = 2) -> None:
        self.now = 1_000_000_000
        self.waited = 0
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(polling, "_waited", lambda: self.waited)
        monkeypatch.setattr(polling, "_processors", lambda: processors)


def test_a_window_after_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    loop = Polling()
    loop.machines(1)
    assert not loop.look()
    for _ in range(3):
        loop.served()
        machine.now += WINDOW - 1
        assert loop.look()
    machine.now += 1
    assert not loop.look()
    loop.served()
    assert loop.look()


@pytest.mark.parametrize(("processors", "vcpus"), [(1, 1), (2, 2), (4, 8)])
def test_not_where_every_processor_is_a_vcpus(
    processors: int, vcpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch, processors)
    loop = Polling()
    loop.machines(vcpus)
    loop.served()
    assert not loop.look()


def test_it_rests_where_somebody_else_needs_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    loop = Polling()
    loop.machines(1)
    loop.served()
    machine.now += WINDOW
    machine.waited += int(WINDOW * CROWDED) + 1
    assert not loop.look()
    loop.served()
    assert not loop.look()
    machine.now += REST
    loop.served()
    assert loop.look()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    loop = Polling(0)
    loop.machines(1)
    loop.served()
    assert not loop.look()


def test_the_system_tells_how_long_a_thread_waited() -> None:
    assert polling._waited() >= 0
    assert polling._processors() >= 1
