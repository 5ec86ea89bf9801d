# SPDX-License-Identifier: BSD-2-Clause
"""No wake-up is lost in the driver, whatever comes first (bug class 22)."""

from __future__ import annotations

from itertools import permutations

import pytest

from mediator.guest.call_queue import CallQueue, Waiter
from mediator.guest.kernel import Kernel
from mediator.guest.notification import Notifications
from tests.guest.test_kernel import run

KEYS = (0x40, 0x41)


@pytest.mark.parametrize("order", list(permutations(["wait 0", "wait 1", "send 0", "send 1"])))
def test_two_waits_and_their_sends_in_every_order(order: tuple[str, ...]) -> None:
    """Each step begins once the one before it has gone as far as it can."""
    kernel = Kernel()
    notifications = Notifications(kernel, 0x7F)
    done: list[int] = []

    async def waiter(key: int) -> None:
        assert await notifications.wait(key, None)
        done.append(key)

    async def main() -> None:
        for step in order:
            key = KEYS[int(step[-1])]
            if step.startswith("wait"):
                kernel.spawn(waiter(key), step)
            else:
                assert notifications.send(key)
            for _ in range(4):
                await kernel.yield_()

    kernel.spawn(main(), "main")
    assert run(kernel)
    assert sorted(done) == list(KEYS)
    assert notifications.waiting == ()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threads", [1, 2])
def test_calls_that_wait_for_a_thread_all_get_one(threads: int, seed: int) -> None:
    """The TEE has fewer threads than there are callers; every end lets the next one in."""
    kernel = Kernel()
    queue = CallQueue(0)
    inside = 0
    most = 0
    done: list[int] = []

    async def caller(number: int) -> None:
        nonlocal inside, most
        waiter = Waiter(kernel)
        for _ in range(3):
            queue.join(waiter, False)
            while inside >= threads:
                await queue.another_call(waiter)
            inside += 1
            most = max(most, inside)
            await kernel.yield_()
            await kernel.cpu.smc(0)
            inside -= 1
            queue.leave(waiter)
        done.append(number)

    for number in range(5):
        kernel.spawn(caller(number), f"caller {number}")
    assert run(kernel, 3, seed=seed, suspending=True)
    assert not kernel.failures
    assert sorted(done) == list(range(5))
    assert most == threads
    assert queue.waiters == []


def test_a_wake_that_was_not_needed_is_passed_on() -> None:
    """A call was told that it may try again and has ended without: two ends, two wake-ups."""
    kernel = Kernel()
    queue = CallQueue(0)
    first, second, third, fourth = (Waiter(kernel) for _ in range(4))
    for waiter in (first, second, third, fourth):
        queue.join(waiter, False)
    queue.leave(first)
    assert [w.completion.done for w in (second, third, fourth)] == [True, False, False]
    queue.leave(second)
    assert [w.completion.done for w in (third, fourth)] == [True, True]
