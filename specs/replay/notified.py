# SPDX-License-Identifier: BSD-2-Clause
"""Notification values of a recorded session, told to the mediator before the guest asks for them.

The recorded driver asked OP-TEE itself. A mediator asks on behalf of the guests when the interrupt
comes, and a guest that listens is answered from what it kept: so the interrupt, and the values that
the driver then read, come just before the driver asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay.chain import Step

VALID: Final = smc.OPTEE_SMC_ASYNC_NOTIF_VALID
PENDING: Final = smc.OPTEE_SMC_ASYNC_NOTIF_PENDING

Notify = Callable[[int, list[int]], None]
"""Client and the values that became pending for it."""


class Values:
    """``answers``: per client, what GET_ASYNC_NOTIF_VALUE answered: (a1, a2), in order."""

    def __init__(self, answers: dict[int, deque[tuple[int, int]]]) -> None:
        self._answers = answers
        self._told: dict[int, set[int]] = {}

    def tell(self, step: Step, notify: Notify) -> None:
        """``step`` is about to ask: see to it that there is what it was answered, and no less.

        If more was pending, the value that is read next is, too.
        """
        recorded = self._answers.get(step.client)
        if not recorded:
            return
        value, flags = recorded.popleft()
        if not flags & VALID:
            return
        wanted = {value}
        if flags & PENDING:
            following, more = recorded[0] if recorded else (value + 1, VALID)
            wanted.add(following if more & VALID and following > value else value + 1)
        told = self._told.setdefault(step.client, set())
        missing = sorted(wanted - told)
        if missing:
            notify(step.client, missing)
        told |= wanted
        told.discard(value)


def values_read(entered: Iterable[Step]) -> Values:
    """What the clients of a session read, from its calls in the order in which they began."""
    answers: dict[int, deque[tuple[int, int]]] = {}
    for step in entered:
        if step.function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
            answer = step.answer
            read = (0, 0)
            if answer is not None and low32(answer.regs[0]) == smc.OPTEE_SMC_RETURN_OK:
                read = (low32(answer.regs[1]), low32(answer.regs[2]))
            answers.setdefault(step.client, deque()).append(read)
    return Values(answers)
