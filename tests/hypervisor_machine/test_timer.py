# SPDX-License-Identifier: BSD-2-Clause
"""The timer queue: order, replacement, and that it does not grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mediator.hypervisor.timer import NEVER, Timer, TimerQueue


def _ignore(deadline: int) -> None:
    """Nobody is called here: the queue only hands timers out."""


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 4), st.none() | st.integers(0, 30)),
            st.integers(0, 30),
        ),
        max_size=60,
    )
)
def test_agrees_with_a_list_of_deadlines(script: list[tuple[int, int | None] | int]) -> None:
    queue = TimerQueue()
    timers = [Timer(_ignore) for _ in range(5)]
    armed: list[tuple[int, int]] = []  # (deadline, timer), in order of arming
    for step in script:
        if isinstance(step, tuple):
            number, deadline = step
            queue.set(timers[number], deadline)
            armed = [entry for entry in armed if entry[1] != number]
            if deadline is not None:
                armed.append((deadline, number))
        else:
            due = [entry for entry in armed if entry[0] <= step]
            timer = queue.pop(step)
            if due:
                first = min(due, key=lambda entry: entry[0])
                assert timer is timers[first[1]]
                armed.remove(first)
            else:
                assert timer is None
        assert queue.next == min((entry[0] for entry in armed), default=NEVER)
        assert len(queue) == len(armed)


def test_timers_of_one_instant_fire_in_the_order_of_arming() -> None:
    queue = TimerQueue()
    timers = [Timer(_ignore) for _ in range(4)]
    for timer in (timers[2], timers[0], timers[3], timers[1]):
        queue.set(timer, 100)
    queue.set(timers[0], 100)  # armed again: last now
    assert [queue.pop(100) for _ in range(5)] == [timers[2], timers[3], timers[1], timers[0], None]


def test_rearming_for_ever_does_not_grow_the_queue() -> None:
    queue = TimerQueue()
    timer, other = Timer(_ignore), Timer(_ignore)
    queue.set(other, 10**9)
    for deadline in range(10_000):
        queue.set(timer, 10**6 - deadline)
        if deadline % 3 == 1:
            queue.set(timer, None)
    assert len(queue._heap) < 200
    assert queue.pop(10**6) is timer
    assert queue.next == 10**9
