# SPDX-License-Identifier: BSD-2-Clause
"""Running the mediator's coroutines: only the system call ``smc`` suspends them.

Calls that the mediator makes for itself (probe, life cycle, notification polling) are answered here
and counted; everything else is left to the replay, which knows the record.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Final, NamedTuple

import attrs

from mediator.deployment.in_hypervisor import DirectSyscalls
from mediator.suspend import Suspend
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay import names
from specs.replay.chain import Step
from specs.replay.compare import Difference
from specs.replay.survey import Survey

VM_CALLS: Final = (smc.OPTEE_SMC_VM_CREATED, smc.OPTEE_SMC_VM_DESTROYED)
OWN_CALLS: Final = (*VM_CALLS, smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)
"""What a mediator may ask for itself while it serves a guest."""

NO_ANSWER: Final = (smc.OPTEE_SMC_RETURN_ENOMEM, 0, 0, 0)
"""Ends an entry for which the trace has no answer."""

_DEFAULT_ANSWERS: Final = {
    smc.OPTEE_SMC_CALLS_UID: (
        msg.OPTEE_MSG_UID_0,
        msg.OPTEE_MSG_UID_1,
        msg.OPTEE_MSG_UID_2,
        msg.OPTEE_MSG_UID_3,
    ),
    smc.OPTEE_SMC_CALLS_REVISION: (
        msg.OPTEE_MSG_REVISION_MAJOR,
        msg.OPTEE_MSG_REVISION_MINOR,
        0,
        0,
    ),
}
"""Answers to the mediator's own calls where the trace has none; any other is RETURN_OK."""

Answer = tuple[int, int, int, int]
Work = Coroutine[object, Answer | None, object]


class SmcRequest(NamedTuple):
    """The mediator enters the secure world."""

    regs: tuple[int, int, int, int, int, int, int, int]


class ReplaySyscalls(DirectSyscalls):
    """System calls of which only ``smc`` suspends."""

    __slots__ = ()

    async def smc(
        self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
    ) -> tuple[int, int, int, int]:
        """Hand the call to the harness and wait for the recorded answer."""
        return await secure_call(a0, a1, a2, a3, a4, a5, a6, a7)


async def secure_call(
    a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int
) -> tuple[int, int, int, int]:
    """The secure world of a replay: the harness knows the answer."""
    answer: tuple[int, int, int, int] = await Suspend(SmcRequest((a0, a1, a2, a3, a4, a5, a6, a7)))
    return answer


@attrs.define(eq=False)
class Entry:
    """One entry of the mediator for a recorded call, from its start to the end of its coroutine.

    ``forwarded``: the registers that reached the secure world, None if the mediator answered by
    itself. ``found`` and ``rules``: differences of the call, and rules that explain them.
    ``work``: None for a hypervisor's own call, which no mediator sees. ``diverted``: the rule by which
    the mediator keeps a recorded request from the guest.
    """

    step: Step
    work: Work | None
    forwarded: tuple[int, ...] | None = None
    finished: bool = False
    result: object = None
    found: list[Difference] = attrs.Factory(list)
    rules: list[str] = attrs.Factory(list)
    diverted: str = ""

    @property
    def regs(self) -> tuple[int, ...]:
        """The guest's registers afterwards; a call that is not the mediator's answers -1."""
        if isinstance(self.result, tuple):
            return self.result
        return (smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION, *self.step.call.regs[1:])


class Driver:
    """Drives entries. ``own``: name of each of the mediator's own calls to how often it was made.

    ``pending``: client to the notification values that it is told of next.
    """

    def __init__(self, facts: Survey) -> None:
        self._facts = facts
        self.own: dict[str, int] = {}
        self.pending: dict[int, list[int]] = {}

    def answer(self, request: SmcRequest) -> Answer:
        """Answer a call of the mediator's own, as recorded wherever the trace has it."""
        function = low32(request.regs[0])
        name = names.function_name(function)
        self.own[name] = self.own.get(name, 0) + 1
        if function == smc.OPTEE_SMC_GET_THREAD_COUNT:
            return smc.OPTEE_SMC_RETURN_OK, self._facts.threads, 0, 0
        numbers = self.pending.get(request.regs[7])
        if function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE and numbers:
            number = numbers.pop(0)
            more = smc.OPTEE_SMC_ASYNC_NOTIF_PENDING if numbers else 0
            return smc.OPTEE_SMC_RETURN_OK, number, smc.OPTEE_SMC_ASYNC_NOTIF_VALID | more, 0
        if function in OWN_CALLS:
            return smc.OPTEE_SMC_RETURN_OK, 0, 0, 0
        answer = self._facts.answers.get(function, _DEFAULT_ANSWERS.get(function))
        if answer is None:
            return smc.OPTEE_SMC_RETURN_OK, 0, 0, 0
        return answer[0], answer[1], answer[2], answer[3]

    def complete(self, work: Work) -> object:
        """Drive something that the mediator does for itself to its end, and give its result."""
        value: Answer | None = None
        while True:
            try:
                request = work.send(value)
            except StopIteration as stop:
                return stop.value
            assert isinstance(request, SmcRequest)
            value = self.answer(request)

    def drive(self, entry: Entry, value: Answer | None) -> SmcRequest | None:
        """Run an entry until its next smc, or to its end (None). An exception is a difference."""
        assert entry.work is not None
        try:
            request = entry.work.send(value)
        except StopIteration as stop:
            entry.finished = True
            entry.result = stop.value
            return None
        except Exception as error:
            # A mediator that raises is one of the things that are looked for.
            entry.finished = True
            call = entry.step.call
            text = f"{type(error).__name__}: {error}"
            entry.found.append(
                Difference(
                    call.seq, call.line, entry.step.name, "mediator", "exception", "none", text
                )
            )
            return None
        assert isinstance(request, SmcRequest)
        return request

    def start(self, entry: Entry) -> None:
        """Run an entry up to its forwarded call; its own calls on the way are answered here."""
        expected = entry.step.function
        request = self.drive(entry, None)
        while request is not None:
            function = low32(request.regs[0])
            if function == expected or function not in OWN_CALLS:
                break
            request = self.drive(entry, self.answer(request))
        entry.forwarded = None if request is None else request.regs
