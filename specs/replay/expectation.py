# SPDX-License-Identifier: BSD-2-Clause
"""What the recorded OP-TEE did with each slice of a flight, seen from a secure world that must follow.

Foreign interrupts and notifications happened to the recorded OP-TEE: they are stimuli, raised for ours
at the same place. Requests of OP-TEE's own store (its files, the buffer for them) and of TAs that we do
not have are held in place by a wait. Everything else our secure world must ask by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from enum import Enum
from typing import Final
from uuid import UUID

import attrs

from secure_world.apps.devices import DEVICES, DEVICES_WITH_SUPPLICANT, DeviceEnumeration
from secure_world.apps.echo import PANIC, Echo, EchoShared
from secure_world.apps.invoke_tests import MEMREF_NULL, PARAMS, TRACE, InvokeTests
from smccc import wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.registers import low32
from specs.replay import names
from specs.replay.chain import Enter, Flight, Happening, Leave, Step
from specs.replay.compare import parameters
from specs.replay.records import Return

STORE: Final = "OP-TEE's own store"


class Kind(Enum):
    """What ends a slice."""

    FINAL = "the call ends"
    INTERRUPT = "foreign interrupt"
    NOTIFICATION = "notification"
    HELD = "held in place"
    NATURAL = "our secure world's own request"


@attrs.define(eq=False)
class Expectation:
    """How a slice ended in the recording. ``apart``: why it is not compared, empty if it is."""

    kind: Kind
    answer: Return
    apart: str = ""
    notification: tuple[int, int] = (0, 0)
    """Operation and value of a NOTIFICATION."""
    allocates: bool = False
    """RPC ALLOC: it comes by itself before the request that needs it, which ``kind`` describes."""

    @property
    def waits(self) -> bool:
        """Whether the recorded thread had to wait here for another."""
        waiting = self.notification[0] == rpc.OPTEE_RPC_NOTIFICATION_WAIT
        return self.kind is Kind.NOTIFICATION and waiting

    @property
    def sends(self) -> bool:
        """Whether the recorded thread told another to go on: it had released a lock."""
        sending = self.notification[0] == rpc.OPTEE_RPC_NOTIFICATION_SEND
        return self.kind is Kind.NOTIFICATION and sending


@attrs.define(eq=False)
class Plan:
    """A flight with the ends of its slices in order.

    ``uuid``: the TA it concerns, None if none; ``session``: the session it uses or opened.
    ``apart``: set if the TA is not ours.
    """

    flight: Flight
    steps: list[Step] = attrs.Factory(list)
    ends: list[Expectation] = attrs.Factory(list)
    uuid: UUID | None = None
    session: int = 0
    apart: str = ""

    @property
    def command(self) -> int | None:
        """Message command."""
        return names.command(self.flight.start.msg)

    @property
    def shown(self) -> int:
        """``seq`` of the first answer that shows the flight's thread; 0: none does."""
        for end in self.ends:
            if names.is_rpc(end.answer.regs[0]):
                return end.answer.seq
        return 0

    def asks_after(self, index: int) -> bool:
        """Whether our secure world makes a request of its own in or after slice ``index``."""
        return any(end.kind is Kind.NATURAL for end in self.ends[index:])


def result_of(answer: Return | None) -> tuple[int, int]:
    """(ret, ret_origin) of a final answer's message."""
    if answer is None or answer.msg is None:
        return 0, 0
    return (
        int.from_bytes(answer.msg.data[20:24], "little"),
        int.from_bytes(answer.msg.data[24:28], "little"),
    )


MODELLED: Final = {
    DeviceEnumeration.uuid: (DEVICES, DEVICES_WITH_SUPPLICANT),
    InvokeTests.uuid: (TRACE, PARAMS, MEMREF_NULL),
    Echo.uuid: tuple(range(PANIC + 1)),
    EchoShared.uuid: tuple(range(PANIC + 1)),
}
"""Commands of recorded TAs that our own of that name have; another one is refused by ours."""

_REFUSALS: Final = (
    tee.TEE_ERROR_BAD_PARAMETERS,
    tee.TEE_ERROR_NOT_SUPPORTED,
    tee.TEE_ERROR_NOT_IMPLEMENTED,
)


def _foreign_command(plan: Plan) -> str:
    """A command that the recorded TA has and ours of that name has not; empty if there is none."""
    content = plan.flight.start.msg
    if content is None or plan.command != msg.OPTEE_MSG_CMD_INVOKE_COMMAND:
        return ""
    known = MODELLED.get(plan.uuid) if plan.uuid is not None else None
    function = int.from_bytes(content.data[4:8], "little")
    result, origin = result_of(plan.flight.final)
    refused = result in _REFUSALS and origin == tee.TEE_ORIGIN_TRUSTED_APP
    if known is None or function in known or refused or origin == tee.TEE_ORIGIN_TEE:
        return ""
    return f"TA {plan.uuid}, command {function}"


def plans_of(happenings: list[Happening], have: set[UUID]) -> dict[Flight, Plan]:
    """Plan of every flight. ``have``: UUIDs of the TAs that our secure world has."""
    plans: dict[Flight, Plan] = {}
    sessions: dict[tuple[int, int], UUID] = {}
    for happening in happenings:
        if isinstance(happening, Enter):
            step = happening.step
            if step.flight is not None:
                plan = plans.setdefault(step.flight, Plan(step.flight))
                plan.steps.append(step)
                if len(plan.steps) == 1:
                    _name(plan, sessions)
        elif isinstance(happening, Leave):
            step = happening.step
            if step.flight is not None and step.answer is step.flight.final:
                _end(plans[step.flight], sessions)
            elif step.function == smc.OPTEE_SMC_VM_DESTROYED:
                gone = low32(step.call.regs[1]) & 0xFFFF
                for key in [key for key in sessions if key[0] == gone]:
                    del sessions[key]
    missing = _missing(plans.values(), have)
    for plan in plans.values():
        if plan.uuid in missing:
            plan.apart = f"TA {plan.uuid}"
        elif plan.session and plan.uuid is None:
            plan.apart = _stranger(plan)
        else:
            plan.apart = _foreign_command(plan)
        _expect(plan)
    return plans


def _name(plan: Plan, sessions: dict[tuple[int, int], UUID]) -> None:
    """Which TA a flight is about."""
    content = plan.flight.start.msg
    if content is None:
        return
    number = int.from_bytes(content.data[8:12], "little")
    if plan.command == msg.OPTEE_MSG_CMD_OPEN_SESSION:
        params = parameters(content.data)
        if len(params) >= 2:
            octets = params[0].a.to_bytes(8, "little") + params[0].b.to_bytes(8, "little")
            plan.uuid = UUID(bytes=octets)
    elif plan.command in (
        msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
        msg.OPTEE_MSG_CMD_CLOSE_SESSION,
        msg.OPTEE_MSG_CMD_CANCEL,
    ):
        plan.session = number
        plan.uuid = sessions.get((plan.flight.client, number))


def _end(plan: Plan, sessions: dict[tuple[int, int], UUID]) -> None:
    final = plan.flight.final
    if final is None or final.msg is None or low32(final.regs[0]):
        return
    result, _ = result_of(final)
    if plan.command == msg.OPTEE_MSG_CMD_OPEN_SESSION and not result and plan.uuid is not None:
        plan.session = int.from_bytes(final.msg.data[8:12], "little")
        sessions[plan.flight.client, plan.session] = plan.uuid
    elif plan.command == msg.OPTEE_MSG_CMD_CLOSE_SESSION and not result:
        sessions.pop((plan.flight.client, plan.session), None)


def _missing(plans: Iterable[Plan], have: set[UUID]) -> set[UUID]:
    """TAs that answered in the recording and that we do not have.

    A TA that never answered (no open reached it) does not exist there either: then its error is
    OP-TEE's own, and ours must give the same.
    """
    found: set[UUID] = set()
    for plan in plans:
        if plan.uuid is None or plan.uuid in have or plan.flight.final is None:
            continue
        if plan.command != msg.OPTEE_MSG_CMD_OPEN_SESSION:
            continue
        result, origin = result_of(plan.flight.final)
        if low32(plan.flight.final.regs[0]) == 0 and (
            not result or origin == tee.TEE_ORIGIN_TRUSTED_APP
        ):
            found.add(plan.uuid)
    return found


def _stranger(plan: Plan) -> str:
    """A session that nobody opened in the trace: an error, or one from before its beginning."""
    result, origin = result_of(plan.flight.final)
    if origin == tee.TEE_ORIGIN_TRUSTED_APP or (not result and plan.flight.final is not None):
        return "sessions opened before the trace begins"
    return ""


def _expect(plan: Plan) -> None:
    """Decide for every slice what ended it."""
    store = _store_cookies(plan)
    for step in plan.steps:
        if step.answer is None:
            break
        plan.ends.append(_slice(plan, step.answer, store, step))
    # An ALLOC comes with the request that follows it.
    for end, following in itertools.pairwise(plan.ends):
        if low32(end.answer.regs[0]) == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            end.allocates = True
            if following.kind in (Kind.NOTIFICATION, Kind.HELD):
                end.kind, end.notification = following.kind, following.notification


def _slice(plan: Plan, answer: Return, store: set[int], step: Step) -> Expectation:
    status = low32(answer.regs[0])
    if not names.is_rpc(status):
        return Expectation(Kind.FINAL, answer, plan.apart)
    if status == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
        return Expectation(Kind.INTERRUPT, answer, plan.apart)
    if status == smc.OPTEE_SMC_RETURN_RPC_ALLOC or status != smc.OPTEE_SMC_RETURN_RPC_CMD:
        return Expectation(Kind.NATURAL, answer, plan.apart)
    command = names.command(answer.rpc_arg)
    params = parameters(answer.rpc_arg.data) if answer.rpc_arg is not None else []
    if command == rpc.OPTEE_RPC_CMD_NOTIFICATION and params:
        what = (params[0].a, params[0].b)
        return Expectation(Kind.NOTIFICATION, answer, plan.apart, what)
    if command == rpc.OPTEE_RPC_CMD_FS:
        return Expectation(Kind.HELD, answer, plan.apart or f"{STORE}: FS")
    if command == rpc.OPTEE_RPC_CMD_SHM_ALLOC and _given(plan, step) in store:
        return Expectation(Kind.HELD, answer, plan.apart or f"{STORE}: SHM_ALLOC")
    if command == rpc.OPTEE_RPC_CMD_SHM_FREE and params and params[0].b in store:
        return Expectation(Kind.HELD, answer, plan.apart or f"{STORE}: SHM_FREE")
    if plan.apart:
        return Expectation(Kind.HELD, answer, plan.apart)
    return Expectation(Kind.NATURAL, answer)


def _store_cookies(plan: Plan) -> set[int]:
    """Cookies of the buffers through which OP-TEE's store talks to its files."""
    found: set[int] = set()
    for step in plan.steps:
        content = None if step.answer is None else step.answer.rpc_arg
        if content is not None and names.command(content) == rpc.OPTEE_RPC_CMD_FS:
            found.update(p.c for p in parameters(content.data) if p.kind == wire.KIND_RMEM and p.c)
    return found


def _given(plan: Plan, step: Step) -> int:
    """The cookie that the normal world gave for the SHM_ALLOC that ended ``step``; 0: none."""
    for other in plan.steps:
        if other.request is step.answer and other.call.rpc_arg is not None:
            params = parameters(other.call.rpc_arg.data)
            return params[0].c if params and params[0].kind == wire.KIND_TMEM else 0
    return 0
