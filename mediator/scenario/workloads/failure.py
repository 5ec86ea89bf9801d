# SPDX-License-Identifier: BSD-2-Clause
"""What goes wrong inside the TEE: panics, refused sessions, results that a TA chooses."""

from __future__ import annotations

from typing import Final

from mediator.guest.client import INPUT, TeeError, Value
from mediator.scenario.workloads.task import Task, WorkloadFailed, WorkloadKind
from secure_world.apps import echo
from secure_world.apps.basic import Panicker
from secure_world.apps.echo import Echo
from smccc.constants import tee

CHOSEN: Final = 0xFFFF_1234
"""A result that the TA is told to return."""


async def panic(task: Task) -> None:
    """A TA panics: its sessions are dead, new ones are not, and other TAs do not notice."""
    client = task.client

    async def body(number: int) -> None:
        witness = await client.open_session(Echo.uuid)
        session = await client.open_session(Echo.uuid)
        await session.invoke(echo.NOTHING)
        for what in ("a panic", "a session of a TA that is dead"):
            await task.refused(
                session.invoke(echo.PANIC, Value(number, 0, INPUT)),
                tee.TEE_ERROR_TARGET_DEAD,
                what,
            )
        await session.close()
        await witness.invoke(echo.NOTHING)
        await task.refused(
            client.open_session(Panicker.uuid, Value(tee.TEE_ERROR_ACCESS_DENIED, 1, INPUT)),
            tee.TEE_ERROR_ACCESS_DENIED,
            "a session that the TA refuses",
        )
        try:
            await witness.invoke(echo.RETURN, Value(CHOSEN, 0, INPUT))
        except TeeError as error:
            wanted = (CHOSEN, tee.TEE_ORIGIN_TRUSTED_APP)
            task.expect((error.result, error.origin), wanted, "the result that the TA chose")
        else:
            raise WorkloadFailed("the TA was to return an error")
        await witness.close()

    await task.each_round(body)


KINDS: Final = (WorkloadKind("panic", "a TA that panics, and sessions that are refused", panic),)
