# SPDX-License-Identifier: BSD-2-Clause
"""Replay as secure world: our simulated OP-TEE answers the recorded calls, on recorded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import attrs

from secure_world.apps import default_registry
from secure_world.world import SecureWorld
from smccc import wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay import names
from specs.replay.build import settings_for
from specs.replay.chain import Enter, Flight, Leave, Step, adopted, follow
from specs.replay.compare import (
    Difference,
    Field,
    Item,
    Space,
    differences,
    parameters,
    register_item,
)
from specs.replay.conductor import Conductor
from specs.replay.expectation import Kind, plans_of
from specs.replay.judge import RESULT_REGISTERS
from specs.replay.normal_world import NormalWorld, Place
from specs.replay.player import Answer
from specs.replay.reader import Trace
from specs.replay.recorded_memory import FlatMemory, RecordedMemory
from specs.replay.records import (
    MESSAGE_OWNER,
    BufferContent,
    Content,
    Marker,
    Return,
    SecureInterrupt,
)
from specs.replay.result import MAX_DIFFERENCES, SecureClass, SecureResult
from specs.replay.standin import stand_in
from specs.replay.survey import HYPERVISOR, survey

ANSWERED: Final = "answer"

BEFORE: Final = "threads and buffers from before the trace begins"

_VALUE_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
_VALUE_OUT: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT
_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT
_OUT: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT

FS_LAYOUTS: Final = {
    rpc.OPTEE_RPC_FS_OPEN: bytes([_VALUE_IN, _IN, _VALUE_OUT]),
    rpc.OPTEE_RPC_FS_CREATE: bytes([_VALUE_IN, _IN, _VALUE_OUT]),
    rpc.OPTEE_RPC_FS_CLOSE: bytes([_VALUE_IN]),
    rpc.OPTEE_RPC_FS_READ: bytes([_VALUE_IN, _OUT]),
    rpc.OPTEE_RPC_FS_WRITE: bytes([_VALUE_IN, _IN]),
    rpc.OPTEE_RPC_FS_TRUNCATE: bytes([_VALUE_IN]),
    rpc.OPTEE_RPC_FS_REMOVE: bytes([_VALUE_IN, _IN]),
    rpc.OPTEE_RPC_FS_RENAME: bytes([_VALUE_IN, _IN, _IN]),
    rpc.OPTEE_RPC_FS_OPENDIR: bytes([_VALUE_IN, _IN, _VALUE_OUT]),
    rpc.OPTEE_RPC_FS_CLOSEDIR: bytes([_VALUE_IN]),
    rpc.OPTEE_RPC_FS_READDIR: bytes([_VALUE_IN, _OUT]),
}
"""Parameter types of an FS request by its operation (``optee_rpc_cmd.h``), as our secure world makes
them; a test holds the two against each other."""

_INOUT: Final = (msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT, msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT)


SecurePlant = Callable[["SecureReplay", Step, Answer], None]
"""Called after each comparison that found no difference (self-check)."""


@attrs.define
class _Row:
    answers: int = 0
    equal: int = 0
    different: int = 0
    apart: int = 0


class SecureReplay:
    """One trace, answered once by our secure world."""

    def __init__(
        self,
        trace: Trace,
        progress: Callable[[int], None] | None = None,
        plant: SecurePlant | None = None,
    ) -> None:
        self.trace = trace
        self._plant = plant
        self.facts = survey(trace)
        self.memory = RecordedMemory(self.facts)
        self.normal = NormalWorld(FlatMemory(self.memory))
        registry = default_registry()
        self._happenings = follow(trace, self.facts)
        ours = {application.uuid for application in registry.applications()}
        self._plans = plans_of(self._happenings, ours)
        self._conductor = Conductor(self.memory, registry, self._plans.values())
        missing = {p.uuid: None for p in self._plans.values() if p.apart and p.uuid not in ours}
        for identifier in missing:
            if identifier is None:
                continue
            registry.register(stand_in(identifier, self._conductor.script))
        self.settings = settings_for(trace, self.facts, self._plans.values())
        self.world = SecureWorld(self.memory, self.settings, self._conductor, registry=registry)
        self._conductor.world = self.world
        self._progress = progress
        self._rows: dict[str, _Row] = {}
        self._apart: dict[str, int] = {}
        self._differences: list[Difference] = []
        self._direct: dict[int, Answer] = {}
        self._before: set[Flight] = set()
        self._strangers: set[int] = set()
        self._markers = 0
        self._interrupts = 0

    def run(self) -> SecureResult:
        """Replay the trace from end to end."""
        happenings = self._happenings
        if self.facts.virtualization:
            for client in adopted(happenings, self.facts):
                self.world.smc(smc.OPTEE_SMC_VM_CREATED, client)
        for number, (happening, following) in enumerate(
            itertools.zip_longest(happenings, happenings[1:])
        ):
            if isinstance(happening, Enter):
                alone = isinstance(following, Leave) and following.step is happening.step
                self._enter(happening.step, alone)
            elif isinstance(happening, Leave):
                self._leave(happening.step)
            elif isinstance(happening, Marker):
                self._markers += 1
            elif isinstance(happening, SecureInterrupt):
                self._interrupts += happening.entered
            if self._progress is not None and not number & 0xFF:
                self._progress(number)
        rows = sorted(self._rows.items(), key=lambda row: (-row[1].answers, row[0]))
        return SecureResult(
            path=self.trace.path,
            scenario=self.trace.meta.text("scenario"),
            threads=self.facts.threads,
            answers=sum([row.answers for _, row in rows]),
            equal=sum([row.equal for _, row in rows]),
            different=sum([row.different for _, row in rows]),
            classes=tuple(
                [
                    SecureClass(name, row.answers, row.equal, row.different, row.apart)
                    for name, row in rows
                ]
            ),
            apart=dict(sorted(self._apart.items())),
            differences=tuple(self._differences),
            hidden_waits=self._conductor.hidden_waits,
            interrupts=self._interrupts,
            markers=self._markers,
            notes=tuple(
                [f"unknown field {f}, {n} times" for f, n in sorted(self.trace.unknown.items())]
            ),
        )

    # --- entering -----------------------------------------------------------------------------------

    def _enter(self, step: Step, alone: bool) -> None:
        self.normal.enter(step)
        if self._from_before(step):
            return
        if step.flight is not None:
            self._conductor.enter(step, self._plans[step.flight], alone)
        elif step.function >> 31:
            if alone:
                self._fast(step)
        else:
            self._direct[step.call.seq] = self.world.smc(*step.call.regs)

    def _from_before(self, step: Step) -> bool:
        """Whether a call needs a thread or a buffer from before the trace begins: it is left out."""
        if step.flight in self._before:
            return True
        known = True
        if step.function == names.CALL_WITH_REGD_ARG and step.answer is not None:
            refused = low32(step.answer.regs[0]) == smc.OPTEE_SMC_RETURN_EBADADDR
            known = refused or self.normal.met(step)
        elif step.function == names.RETURN_FROM_RPC and step.answer is not None:
            refusals = (smc.OPTEE_SMC_RETURN_ERESUME, smc.OPTEE_SMC_RETURN_ENOTAVAIL)
            known = step.flight is not None or low32(step.answer.regs[0]) in refusals
        if known:
            return False
        if step.flight is not None:
            self._before.add(step.flight)
        self._strangers.add(step.call.seq)
        return True

    def _fast(self, step: Step) -> None:
        if step.function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
            self._notify(step)
        ends = self.facts.virtualization and step.function == smc.OPTEE_SMC_VM_DESTROYED
        ends = ends and step.client == HYPERVISOR
        client = low32(step.call.regs[1]) & 0xFFFF
        if ends:
            self._conductor.before_end_of(client)
        self._direct[step.call.seq] = self.world.smc(*step.call.regs)
        if ends and low32(self._direct[step.call.seq][0]) == smc.OPTEE_SMC_RETURN_OK:
            self._conductor.forget(client)

    def _notify(self, step: Step) -> None:
        """Notifications are stimuli: what the recorded answer shows as pending is made pending."""
        answer = step.answer
        if answer is None or low32(answer.regs[0]) != smc.OPTEE_SMC_RETURN_OK:
            return
        client = step.call.regs[7]
        if answer.regs[2] & smc.OPTEE_SMC_ASYNC_NOTIF_VALID:
            self._make_pending(client, low32(answer.regs[1]))
        if answer.regs[2] & smc.OPTEE_SMC_ASYNC_NOTIF_PENDING:
            for happening in self._happenings:
                other = happening.step.answer if isinstance(happening, Leave) else None
                if (
                    other is not None
                    and other.seq > answer.seq
                    and isinstance(happening, Leave)
                    and happening.step.function == step.function
                    and happening.step.call.regs[7] == client
                ):
                    self._make_pending(client, low32(other.regs[1]))
                    return

    def _make_pending(self, client: int, value: int) -> None:
        if value <= self.settings.max_notification:
            self.world.notify(client, value)

    def _settle(self, step: Step, answer: Return) -> None:
        """Memory as it was recorded at this return, whatever our secure world made of it."""
        flight = step.flight
        if flight is not None:
            for place, content in self._places(step, answer):
                self.normal.store(place, 0, content.data)
        for buffer in answer.buffers:
            self.memory.store(buffer.pa, buffer.data)
        self.normal.leave(step, answer)
        destroyed = step.function == smc.OPTEE_SMC_VM_DESTROYED and step.client == HYPERVISOR
        if destroyed and low32(answer.regs[0]) == smc.OPTEE_SMC_RETURN_OK:
            self.normal.forget(low32(step.call.regs[1]) & 0xFFFF)

    def _places(self, step: Step, answer: Return) -> list[tuple[Place, Content]]:
        """The messages of an answer, and where the normal world keeps them."""
        flight = step.flight
        assert flight is not None
        found: list[tuple[Place, Content]] = []
        place = self.normal.place(flight)
        if answer.msg is not None and place is not None:
            found.append((place, answer.msg))
        if answer.rpc_arg is not None:
            found.append((self.normal.rpc_place(flight, answer.rpc_arg), answer.rpc_arg))
        return found

    # --- leaving ------------------------------------------------------------------------------------

    def _leave(self, step: Step) -> None:
        answer = step.answer
        assert answer is not None
        if step.flight in self._before or step.call.seq in self._strangers:
            row = self._rows.setdefault(step.name, _Row())
            row.answers += 1
            row.apart += 1
            self._apart[BEFORE] = self._apart.get(BEFORE, 0) + 1
        elif step.flight is None:
            if step.call.seq not in self._direct:
                self._fast(step)
            self._count(step, self._direct.pop(step.call.seq), "")
        else:
            plan = self._plans[step.flight]
            apart = plan.ends[plan.steps.index(step)].apart
            self._count(step, self._conductor.leave(step), apart)
        self._settle(step, answer)

    def items(self, step: Step, found: Answer | None) -> list[Item]:
        """What is compared of an answer: a question about memory as it is now."""
        answer = step.answer
        assert answer is not None
        if step.flight is None:
            return self._items(step, answer, found)
        plan = self._plans[step.flight]
        end = next(
            (e for s, e in zip(plan.steps, plan.ends, strict=False) if s.call.seq == step.call.seq)
        )
        items = self._items(step, answer, found, end.kind is not Kind.HELD and not end.apart)
        if plan.apart and end.kind is Kind.FINAL:
            items += self._session(answer)
        if end.kind is Kind.HELD and answer.rpc_arg is not None:
            items += _layout(answer.rpc_arg)
        return items

    def _session(self, answer: Return) -> list[Item]:
        """A stand-in's session must have the recorded number, or later calls would miss it."""
        content = answer.msg
        if content is None:
            return []
        found = self.memory.load(content.pa + 8, 4)
        return [Item("msg.session", content.data[8:12], found)]

    def _items(
        self, step: Step, answer: Return, found: Answer | None, contents: bool = True
    ) -> list[Item]:
        if found is None:
            return [Item("answer", b"\1", None)]
        items: list[Item] = []
        wanted = [0]
        if step.function >> 31:
            count, after_ok = RESULT_REGISTERS.get(step.function, (1, False))
            if after_ok and low32(answer.regs[0]) != smc.OPTEE_SMC_RETURN_OK:
                count = 1
            wanted = list(range(count))
            if step.function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES and count > 1:
                if not answer.regs[1] & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
                    wanted.remove(2)
                if not answer.regs[1] & smc.OPTEE_SMC_SEC_CAP_RPC_ARG:
                    wanted.remove(3)
        elif names.is_rpc(answer.regs[0]):
            wanted = [0, 1, 2, 3]
        items += [register_item(n, answer.regs[n], found[n]) for n in wanted]
        if not contents:
            return items
        if step.flight is not None:
            for place, content in self._places(step, answer):
                field = Field.MSG if content is answer.msg else Field.RPC_ARG
                items.append(self._content(place, content, field))
        for number, buffer in enumerate(answer.buffers):
            if not _written(answer, buffer):
                continue
            data = self.memory.load(buffer.pa, len(buffer.data))
            items.append(
                Item(
                    f"bufs[{number}]",
                    buffer.data,
                    data,
                    Space.BUS,
                    buffer.pa,
                    Field.BUFFERS,
                    number,
                )
            )
        return items

    def _content(self, place: Place, content: Content, field: Field) -> Item:
        data = self.normal.load(place, 0, len(content.data))
        pieces = place.pieces(0, len(content.data))
        # A message that crosses pages lies in two places: those are compared, but not planted in.
        whole = len(pieces) == 1 or not place.pages
        space = Space.BUS if whole else Space.NOWHERE
        return Item(field.value, content.data, data, space, content.pa, field, 0)

    def _count(self, step: Step, found: Answer | None, apart: str) -> None:
        answer = step.answer
        assert answer is not None
        items = self.items(step, found)
        row = self._rows.setdefault(step.name, _Row())
        row.answers += 1
        differing = differences(answer, step.name, ANSWERED, items)
        if self._plant is not None and not differing and found is not None:
            self._plant(self, step, found)
        if differing:
            row.different += 1
            if len(self._differences) < MAX_DIFFERENCES:
                self._differences += differing
        elif apart:
            row.apart += 1
            self._apart[apart] = self._apart.get(apart, 0) + 1
        else:
            row.equal += 1


def _layout(content: Content) -> list[Item]:
    """A request of OP-TEE's store: it must have the layout that our own file service gives it."""
    if names.command(content) != rpc.OPTEE_RPC_CMD_FS:
        return []
    params = parameters(content.data)
    kinds = bytes([_as_registered(param.attr) for param in params])
    expected = FS_LAYOUTS.get(params[0].a if params else -1, b"")
    return [Item("rpc_arg layout", expected, kinds)]


def _as_registered(attr: int) -> int:
    """Temporary memory of the reserved area stands where other builds have registered memory."""
    kind = attr & 0xFF
    shift = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT - msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT
    return kind - shift if wire.PARAM_KIND[kind] == wire.KIND_TMEM else kind


def _written(answer: Return, buffer: BufferContent) -> bool:
    """Whether the secure world wrote a buffer: results of a call, and what a request carries out.

    The content of a buffer that the normal world is to fill is whatever was there before.
    """
    content = answer.msg if buffer.owner == MESSAGE_OWNER else answer.rpc_arg
    if content is None:
        return False
    for param in parameters(content.data):
        if param.number == buffer.param:
            output = bool(wire.PARAM_OUTPUT[param.attr & 0xFF])
            if buffer.owner == MESSAGE_OWNER:
                return output
            return not output or param.attr & 0xFF in _INOUT
    return False


def replay_as_secure_world(
    trace: Trace, progress: Callable[[int], None] | None = None
) -> SecureResult:
    """Let our simulated OP-TEE answer the calls of a trace."""
    return SecureReplay(trace, progress).run()
