# SPDX-License-Identifier: BSD-2-Clause
"""Sessions, value parameters, time: what needs no shared memory of the client."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from mediator.guest.client import INPUT, OUTPUT, Session, Value
from mediator.scenario.fields import Field, Kind
from mediator.scenario.workloads.task import Task, WorkloadKind
from secure_world.apps import echo
from secure_world.apps.basic import Arithmetic, Clock
from secure_world.apps.echo import Echo
from secure_world.apps.invoke_tests import PARAMS, InvokeTests
from smccc.constants import tee

MASK32: Final = 0xFFFF_FFFF
NOBODY: Final = UUID("00000000-0000-4000-8000-000000000000")
"""A UUID that no TA has."""

NS_PER_S: Final = 10**9
NS_PER_MS: Final = 10**6


async def values(task: Task) -> None:
    """Arithmetic on value parameters, compared with Python's."""
    rng = task.rng
    async with task.client.open_session(Arithmetic.uuid) as session:

        async def body(_: int) -> None:
            a, b = rng.getrandbits(32), rng.getrandbits(32) | 1
            total, product = a + b, a * b
            cases = (
                (Arithmetic.ADD, (total & MASK32, total >> 32)),
                (Arithmetic.SUBTRACT, ((a - b) & MASK32, int(a < b))),
                (Arithmetic.MULTIPLY, (product & MASK32, product >> 32)),
                (Arithmetic.DIVIDE, divmod(a, b)),
            )
            for command, wanted in cases:
                answer = Value(direction=OUTPUT)
                await session.invoke(command, Value(a, b, INPUT), answer)
                task.expect((answer.a, answer.b), wanted, f"command {command} of {a} and {b}")
            await task.refused(
                session.invoke(Arithmetic.DIVIDE, Value(a, 0, INPUT), Value(direction=OUTPUT)),
                tee.TEE_ERROR_BAD_PARAMETERS,
                "a division by zero",
            )

        await task.each_round(body)


async def sessions(task: Task) -> None:
    """Several sessions with several TAs at once, user TAs loaded through the supplicant."""
    client = task.client

    async def body(number: int) -> None:
        held: list[Session] = []
        for index in range(task.integer("sessions")):
            uuid = (Echo.uuid, InvokeTests.uuid, Arithmetic.uuid)[index % 3]
            held.append(await client.open_session(uuid))
        ids = [session.id for session in held]
        task.expect(len(set(ids)), len(ids), "different session ids")
        await task.refused(
            client.open_session(NOBODY),
            tee.TEE_ERROR_ITEM_NOT_FOUND,
            "a session with a TA that does not exist",
        )
        for session in held:
            value = Value(number & MASK32, 3)
            if session.uuid == Echo.uuid:
                await session.invoke(echo.ECHO, value)
                task.expect((value.a, value.b), (number + 1, 5), "values that the TA counts up")
            elif session.uuid == InvokeTests.uuid:
                await session.invoke(PARAMS, value)
                task.expect(value.a, number + 3, "the sum in an inout value")
        # The youngest first, then from the front: ids are given back in no order.
        while held:
            await held.pop().close()
            if held:
                await held.pop(0).close()

    await task.each_round(body)


async def time(task: Task) -> None:
    """Asks the TA for the time (RPC GET_TIME) and lets it sleep (RPC SUSPEND)."""
    kernel = task.guest.kernel
    epoch = task.guest.driver.settings.epoch
    async with task.client.open_session(Clock.uuid) as session:

        async def body(_: int) -> None:
            answer = Value(direction=OUTPUT)
            earliest = kernel.cpu.now() + epoch
            await session.invoke(Clock.REE_TIME, answer)
            told = answer.a * NS_PER_S + answer.b * NS_PER_MS
            latest = kernel.cpu.now() + epoch
            # The answer is cut to milliseconds; vCPUs may be apart by less than one.
            task.expect(
                earliest - 2 * NS_PER_MS <= told <= latest + NS_PER_MS,
                True,
                f"a time between {earliest} and {latest}: {told}",
            )
            milliseconds = task.integer("sleep") // NS_PER_MS
            if milliseconds:
                before = kernel.cpu.now()
                await session.invoke(Clock.SLEEP, Value(milliseconds, 0, INPUT))
                slept = kernel.cpu.now() - before
                task.expect(
                    slept >= (milliseconds - 1) * NS_PER_MS, True, f"{milliseconds} ms: {slept} ns"
                )

        await task.each_round(body)


KINDS: Final = (
    WorkloadKind("values", "arithmetic on value parameters in a pseudo TA", values),
    WorkloadKind(
        "sessions",
        "many sessions at once, user TAs loaded from the guest (RPC LOAD_TA)",
        sessions,
        (Field("sessions", Kind.INTEGER, "sessions at once", 4, low=1, high=64),),
    ),
    WorkloadKind(
        "time",
        "the normal world's time and sleeping (RPCs GET_TIME and SUSPEND)",
        time,
        (
            Field(
                "sleep",
                Kind.DURATION,
                "how long the TA sleeps, in whole ms",
                2 * NS_PER_MS,
                high=10 * NS_PER_S,
            ),
        ),
    ),
)
