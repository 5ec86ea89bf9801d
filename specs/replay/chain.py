# SPDX-License-Identifier: BSD-2-Clause
"""Which events of a trace belong together: a call and its answer, and the rounds of one flight.

A *flight* is a yielding call from its start to its final answer, across all the RPCs on the way,
whichever processor answers them. It is followed by client id and thread id, as OP-TEE does.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay import names
from specs.replay.reader import Trace
from specs.replay.records import Call, Marker, Return, SecureInterrupt
from specs.replay.survey import HYPERVISOR, SOLE_GUEST, Survey


@attrs.define(eq=False)
class Flight:
    """A yielding call. ``final``: its last answer, None if the trace ends before."""

    number: int
    client: int
    start: Call
    thread: int | None = None
    final: Return | None = None
    answers: int = 0
    """Returns so far in the trace, the final one included."""

    @property
    def name(self) -> str:
        """Class of the call that started it."""
        return names.call_name(self.start)

    @property
    def with_rpc_arg(self) -> bool:
        """Whether the RPC argument lies behind the message (not so for CALL_WITH_ARG)."""
        return low32(self.start.regs[0]) != names.CALL_WITH_ARG


@attrs.define(eq=False)
class Step:
    """One entry of OP-TEE: the call, its answer (None if the trace ends before), its flight.

    ``request``: for RETURN_FROM_RPC, the RPC that the normal world comes back from; None if no
    thread is suspended under that id, as far as the trace shows.
    """

    call: Call
    client: int
    answer: Return | None = None
    flight: Flight | None = None
    request: Return | None = None

    @property
    def function(self) -> int:
        """SMC function id (low word)."""
        return low32(self.call.regs[0])

    @property
    def name(self) -> str:
        """Class of the call event."""
        return names.call_name(self.call, self.request)

    @property
    def answer_name(self) -> str:
        """Class of the return event."""
        assert self.answer is not None
        status = self.answer.regs[0]
        if self.flight is None:
            return f"answer to {names.function_name(self.function)}"
        if names.is_rpc(status):
            return f"RPC {names.rpc_name(status, self.answer.rpc_arg)}"
        return f"end of {self.flight.name}"


@attrs.frozen
class Enter:
    """A call event: OP-TEE is entered."""

    step: Step


@attrs.frozen
class Leave:
    """A return event: OP-TEE comes back from the step."""

    step: Step


Happening: TypeAlias = Enter | Leave | Marker | SecureInterrupt


def follow(trace: Trace, facts: Survey) -> list[Happening]:
    """All records in order, calls and returns tied to their step and flight."""
    happenings: list[Happening] = []
    on_cpu: dict[int, Step] = {}
    suspended: dict[tuple[int, int], tuple[Flight, Return]] = {}
    flights = 0
    for record in trace.records:
        if isinstance(record, (Marker, SecureInterrupt)):
            happenings.append(record)
        elif isinstance(record, Call):
            step = Step(record, facts.client(record), trace.answers.get(record.seq))
            on_cpu[record.cpu] = step
            if step.function in names.CALLS_WITH_MESSAGE:
                step.flight = Flight(flights, step.client, record)
                flights += 1
            elif step.function == names.RETURN_FROM_RPC:
                _resume(step, suspended)
            happenings.append(Enter(step))
        else:
            step = on_cpu.pop(record.cpu)
            _leave(step, record, suspended)
            happenings.append(Leave(step))
    return happenings


def _resume(step: Step, suspended: dict[tuple[int, int], tuple[Flight, Return]]) -> None:
    refusals = (smc.OPTEE_SMC_RETURN_ERESUME, smc.OPTEE_SMC_RETURN_ENOTAVAIL)
    if step.answer is not None and low32(step.answer.regs[0]) in refusals:
        return
    found = suspended.pop((step.client, low32(step.call.regs[3])), None)
    if found is not None:
        step.flight, step.request = found


def _leave(
    step: Step, answer: Return, suspended: dict[tuple[int, int], tuple[Flight, Return]]
) -> None:
    flight = step.flight
    if flight is not None:
        flight.answers += 1
        if names.is_rpc(answer.regs[0]):
            flight.thread = low32(answer.regs[3])
            suspended[flight.client, flight.thread] = flight, answer
        else:
            flight.final = answer
    elif step.function == smc.OPTEE_SMC_VM_DESTROYED and step.client == HYPERVISOR:
        gone = low32(step.call.regs[1]) & 0xFFFF
        if low32(answer.regs[0]) == smc.OPTEE_SMC_RETURN_OK:
            for key in [key for key in suspended if key[0] == gone]:
                del suspended[key]


def adopted(happenings: list[Happening], facts: Survey) -> list[int]:
    """Client ids of the guests that exist when the trace begins.

    With virtualization: those that are answered (other than ENOTAVAIL) before they are created.
    """
    if not facts.virtualization:
        return [SOLE_GUEST]
    found: dict[int, None] = {}
    created: set[int] = set()
    for happening in happenings:
        if not isinstance(happening, Leave):
            continue
        step = happening.step
        assert step.answer is not None
        if step.client == HYPERVISOR:
            if step.function == smc.OPTEE_SMC_VM_CREATED:
                created.add(low32(step.call.regs[1]) & 0xFFFF)
        elif (
            step.client not in created
            and low32(step.answer.regs[0]) != smc.OPTEE_SMC_RETURN_ENOTAVAIL
        ):
            found.setdefault(step.client)
    return list(found)
