# SPDX-License-Identifier: BSD-2-Clause
"""Several threads in the TEE at once: locks, signals, long work, cancellation."""

from __future__ import annotations

from typing import Final

from mediator.guest.client import INPUT, Session, TeeError, Value
from mediator.scenario.fields import Field, Kind
from mediator.scenario.workloads.task import Task, WorkloadFailed, WorkloadKind
from secure_world.apps.basic import Clock, Locker
from smccc.constants import tee

NS_PER_MS: Final = 10**6
CLOCK_SKEW: Final = 10 * NS_PER_MS
"""How far vCPUs' clocks may be apart: in direct mode one in the TEE runs a whole time slice ahead."""

CANCEL_ID: Final = 0x5EED


async def contention(task: Task) -> None:
    """Holds a lock that all instances want: waiters leave by RPC NOTIFICATION.

    If the lock lets one in at a time, what all have held it for is no more than the time that has
    passed since the first of them asked.
    """
    kernel, shared = task.guest.kernel, task.shared
    lock, everywhere = task.integer("lock"), task.flag("shared")
    first, held = f"lock {lock} first wanted", f"lock {lock} held for"
    plain = Locker.HOLD_SHARED if everywhere else Locker.HOLD
    sleeping = Locker.HOLD_SHARED_ASLEEP if everywhere else Locker.HOLD_ASLEEP
    async with task.client.open_session(Locker.uuid) as session:

        async def body(number: int) -> None:
            asleep = number % 2 and task.integer("sleep") >= NS_PER_MS
            command = sleeping if asleep else plain
            amount = task.integer("sleep") // NS_PER_MS if asleep else task.integer("steps")
            shared.setdefault(first, kernel.cpu.now())
            await session.invoke(command, Value(amount, lock, INPUT))
            duration = amount * (NS_PER_MS if asleep else Locker.STEP_NS)
            shared[held] = shared.get(held, 0) + duration
            passed = kernel.cpu.now() - shared[first]
            task.expect(shared[held] <= passed + CLOCK_SKEW, True, "one holder at a time")

        await task.each_round(body)


async def signals(task: Task) -> None:
    """Instances in pairs: the even one waits on a condition variable, the odd one signals it."""
    shared = task.shared
    lock = task.number // 2 % Locker.LOCKS
    sent, taken = f"signals {lock} sent", f"signals {lock} taken"
    async with task.client.open_session(Locker.uuid) as session:

        async def body(_: int) -> None:
            if task.number % 2:
                shared[sent] = shared.get(sent, 0) + 1
                await session.invoke(Locker.SIGNAL, Value(1, lock, INPUT))
                return
            await session.invoke(Locker.WAIT_SIGNAL, Value(1, lock, INPUT))
            shared[taken] = shared.get(taken, 0) + 1
            task.expect(shared[taken] <= shared.get(sent, 0), True, "a signal that was sent")

        await task.each_round(body)


async def busy(task: Task) -> None:
    """Works in the TEE for longer than a time slice: foreign interrupts get through."""
    async with task.client.open_session(Clock.uuid) as session:

        async def body(_: int) -> None:
            kernel = task.guest.kernel
            before = kernel.cpu.now()
            steps, step = task.integer("steps"), task.integer("step")
            await session.invoke(Clock.WORK, Value(steps, step, INPUT))
            worked = kernel.cpu.now() - before
            task.expect(worked > steps * step - CLOCK_SKEW, True, "virtual time goes on")

        await task.each_round(body)


async def cancellation(task: Task) -> None:
    """A second thread cancels work that would take far longer."""
    kernel = task.guest.kernel
    async with task.client.open_session(Clock.uuid) as session:
        cancelled = 0

        async def body(_: int) -> None:
            nonlocal cancelled
            under_way = [True]
            helper = kernel.spawn(_cancel(task, session, under_way), f"{task.name}/cancel")
            steps, step = task.integer("steps"), task.integer("step")
            try:
                await session.invoke(Clock.WORK, Value(steps, step, INPUT), cancel_id=CANCEL_ID)
            except TeeError as error:
                task.expect(error.result, tee.TEE_ERROR_CANCEL, "work that was cancelled")
                cancelled += 1
            finally:
                under_way.clear()
            await helper.join()

        await task.each_round(body)
        if not cancelled and not task.tolerated:
            raise WorkloadFailed("every operation ran to its end before it was cancelled")


async def _cancel(task: Task, session: Session, under_way: list[bool]) -> None:
    """Ask again and again: the operation may not have begun when the first request arrives."""
    while under_way:
        await task.guest.kernel.sleep(task.integer("after"))
        if under_way:
            await session.cancel(CANCEL_ID)


KINDS: Final = (
    WorkloadKind(
        "contention",
        "a lock in a TA that all instances want (RPC NOTIFICATION)",
        contention,
        (
            Field("lock", Kind.INTEGER, "which lock", 0, high=Locker.LOCKS - 1),
            Field(
                "shared",
                Kind.FLAG,
                "it is one for all guests: they wait for each other inside the TEE",
                False,
            ),
            Field("steps", Kind.INTEGER, "checkpoints that it is held for", 20, high=100_000),
            Field(
                "sleep",
                Kind.DURATION,
                "how long it is held asleep in every other round, 0: not at all",
                NS_PER_MS,
                high=10_000 * NS_PER_MS,
            ),
        ),
    ),
    WorkloadKind(
        "signals", "pairs of instances that wait for and signal a condition variable", signals
    ),
    WorkloadKind(
        "busy",
        "work in the TEE that outlasts time slices (foreign interrupts)",
        busy,
        (
            Field("steps", Kind.INTEGER, "pieces of work", 100, low=1, high=1_000_000),
            Field("step", Kind.DURATION, "length of a piece", 100_000, high=NS_PER_MS),
        ),
    ),
    WorkloadKind(
        "cancellation",
        "work that another thread cancels",
        cancellation,
        (
            Field("steps", Kind.INTEGER, "pieces of work", 20_000, low=1, high=1_000_000),
            Field("step", Kind.DURATION, "length of a piece", 100_000, high=NS_PER_MS),
            Field("after", Kind.DURATION, "when it is cancelled", 3 * NS_PER_MS, high=10**10),
        ),
    ),
)
