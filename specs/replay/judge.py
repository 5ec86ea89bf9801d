# SPDX-License-Identifier: BSD-2-Clause
"""The comparison of replay as mediator: what was forwarded, and what the guest got, with the record.

Pure questions about the present state of memory: asking twice gives the same answer, which is what
the self-check relies on.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from mediator.host import PAGE_MASK, PAGE_SIZE
from mediator.optee.settings import MediatorSettings
from secure_world.bus import BusError
from smccc import page_list, wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc, tee
from smccc.constants import optee_smc as smc
from smccc.registers import MASK32, low32, pair
from specs.replay import names, rules
from specs.replay.chain import Step
from specs.replay.compare import (
    Field,
    Item,
    Parameter,
    Space,
    extents,
    parameters,
    register_item,
    temporary,
)
from specs.replay.machine import Machine
from specs.replay.normal_world import NormalWorld
from specs.replay.records import Content, ListPage
from specs.replay.scripted import MAX_LIST, Handed, ScriptedSecureWorld, list_words
from specs.replay.survey import Survey

NONCONTIG: Final = msg.OPTEE_MSG_ATTR_NONCONTIG
_ALWAYS: Final = 0

RPC_PARAMS: Final = 4
"""Parameters of an RPC argument behind a message (what OP-TEE announces)."""

RESULT_REGISTERS: Final = {
    smc.OPTEE_SMC_CALLS_COUNT: (1, False),
    smc.OPTEE_SMC_CALLS_UID: (4, False),
    smc.OPTEE_SMC_CALLS_REVISION: (2, False),
    smc.OPTEE_SMC_CALL_GET_OS_UUID: (4, False),
    smc.OPTEE_SMC_CALL_GET_OS_REVISION: (3, False),
    smc.OPTEE_SMC_GET_SHM_CONFIG: (4, True),
    smc.OPTEE_SMC_EXCHANGE_CAPABILITIES: (4, True),
    smc.OPTEE_SMC_DISABLE_SHM_CACHE: (3, True),
    smc.OPTEE_SMC_GET_THREAD_COUNT: (2, True),
    smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE: (3, True),
    smc.OPTEE_SMC_GET_PROTMEM_CONFIG: (4, True),
}
"""Fast call to its result registers, counted from a0, and whether only after RETURN_OK
(``optee_smc.h``, the comment of each call). Every other fast call returns a0 alone."""


@attrs.define
class Sight:
    """What a comparison saw: the items, the rules that shaped what was expected, and what it could
    not compare, by reason."""

    items: list[Item] = attrs.Factory(list)
    rules: list[str] = attrs.Factory(list)
    blind: list[str] = attrs.Factory(list)

    @property
    def equal(self) -> bool:
        """Whether everything agrees."""
        return all(item.equal for item in self.items)


class Judge:
    """Compares. ``tainted``: (client, cookie) pairs that mean two things since a rule applied;
    ``dropped``: RPC message buffers that OP-TEE took and the mediator, by a rule, did not."""

    def __init__(
        self,
        facts: Survey,
        machine: Machine,
        normal: NormalWorld,
        scripted: ScriptedSecureWorld,
        settings: MediatorSettings,
    ) -> None:
        self._machine = machine
        self._normal = normal
        self._scripted = scripted
        self._settings = settings
        self._facts = facts
        self.tainted: set[tuple[int, int]] = set()
        self.dropped: set[tuple[int, int]] = set()

    # --- forwarded ----------------------------------------------------------------------------------

    def forwarded(self, step: Step, regs: tuple[int, ...]) -> Sight:
        """What reached the secure world for a recorded call."""
        sight = Sight()
        function = step.function
        if function == names.CALL_WITH_REGD_ARG:
            function = names.CALL_WITH_RPC_ARG
        sight.items.append(register_item(0, function, regs[0]))
        sight.items.append(register_item(7, step.client, regs[7], 0xFFFF, recorded=False))
        if step.function in names.CALLS_WITH_MESSAGE:
            self._message(step, regs, sight)
        elif step.function == names.RETURN_FROM_RPC:
            self._resumption(step, regs, sight)
        return sight

    def _message(self, step: Step, regs: tuple[int, ...], sight: Sight) -> None:
        content = step.call.msg
        if content is None:
            return
        self._own_address(step, content, sight)
        try:
            handed = self._scripted.look(step, regs)
        except BusError as error:
            sight.items.append(Item(f"msg at {error.address:#x}", content.data, None))
            return
        assert handed is not None
        self._compare(step, content, handed.message, handed.data, Field.MSG, sight)
        self._buffers(step, handed, content, sight)

    def _own_address(self, step: Step, content: Content, sight: Sight) -> None:
        """The trace itself: the call's registers must lead to the message that it shows."""
        place = self._normal.message_place(step)
        where = [] if place is None else place.pieces(0, 1)
        found = where[0][0] if where else None
        if step.function == names.CALL_WITH_REGD_ARG and not self._normal.knows(step):
            found = None
        sight.items.append(Item("msg_pa", _word(content.pa), _word(found)))

    def _resumption(self, step: Step, regs: tuple[int, ...], sight: Sight) -> None:
        sight.items.append(register_item(3, step.call.regs[3], regs[3]))
        request, content = step.request, step.call.rpc_arg
        if request is None or step.flight is None:
            return
        function = low32(request.regs[0]) & 0xFFFF
        if function == smc.OPTEE_SMC_RPC_FUNC_ALLOC:
            for number in (4, 5):
                sight.items.append(register_item(number, step.call.regs[number], regs[number]))
            self._rpc_buffer(step, regs, sight)
        elif function == smc.OPTEE_SMC_RPC_FUNC_CMD and content is not None:
            handed = self._scripted.handed(step.flight)
            if handed is None or handed.rpc_message is None:
                sight.items.append(Item("rpc_arg", content.data, None))
                return
            at = handed.rpc_message
            room = RPC_PARAMS if step.flight.with_rpc_arg else wire.MAX_PARAMS
            try:
                if content.num_params > room:
                    self._crowded(step, at, sight)
                    return
                data = self._machine.bus.read(step.client, at, len(content.data))
                self._compare(step, content, at, data, Field.RPC_ARG, sight)
                self._buffers(step, handed, content, sight)
            except BusError as error:
                sight.items.append(Item(f"rpc_arg at {error.address:#x}", content.data, None))

    def _rpc_buffer(self, step: Step, regs: tuple[int, ...], sight: Sight) -> None:
        """The answer to RPC ALLOC: a page of the mediator instead of the guest's, or none for none."""
        given = pair(step.call.regs[1], step.call.regs[2])
        cookie = pair(step.call.regs[4], step.call.regs[5])
        expected = given != 0
        if given & PAGE_MASK and self._facts.in_reserved(given):
            sight.rules.append(rules.RESERVED)
            self.dropped.add((step.client, cookie))
            expected = False
        elif given and (
            given & PAGE_MASK
            or self._machine.to_pa(step.client, given) is None
            or self._scripted.knows_rpc_buffer(step.client, cookie)
        ):
            sight.rules.append(rules.RPC_BUFFER)
            expected = False
        address = pair(regs[1], regs[2])
        usable = address != 0 and self._machine.bus.check(step.client, address, PAGE_SIZE)
        observed = 1 if usable else 2 * (address != 0)
        sight.items.append(Item("RPC message page", bytes([expected]), bytes([observed])))

    def _crowded(self, step: Step, at: int, sight: Sight) -> None:
        """An answer that does not fit the RPC argument: OP-TEE is told of an error instead."""
        error = tee.TEE_ERROR_GENERIC.to_bytes(4, "little")
        sight.items.append(
            Item("rpc_arg.ret", error, self._machine.bus.read(step.client, at + 20, 4))
        )
        sight.rules.append(rules.CROWDED)

    def _compare(
        self, step: Step, content: Content, at: int, data: bytes, field: Field, sight: Sight
    ) -> None:
        """A message byte by byte, but for the addresses in it."""
        holes: list[tuple[int, int]] = []
        seen = {param.number: param for param in parameters(data)}
        for param in temporary(content.data):
            found = seen.get(param.number)
            holes.append((param.at + 8, param.at + 16))
            if self._judged_list(step, field, param):
                if not param.attr & NONCONTIG:
                    holes += [(param.at, param.at + 8), (param.at + 24, param.at + 32)]
                    sight.rules.append(rules.CONTIGUOUS)
                self._temporary(step, at, param, found, field, sight)
            else:
                sight.rules.append(rules.ZEROED)
                word = data[param.at + 8 : param.at + 16]
                sight.items.append(Item(f"{field.value}.address", bytes(8), word))
        for extent in extents(content, holes):
            sight.items.append(
                Item(
                    field.value,
                    content.data[extent.start : extent.end],
                    data[extent.start : extent.end],
                    Space.BUS,
                    at + extent.start,
                    field,
                    extent.start,
                )
            )

    @staticmethod
    def _judged_list(step: Step, field: Field, param: Parameter) -> bool:
        """Whether an address leads to memory that the secure world gets: the mediator's judgement.

        In a message always; in an RPC answer only the memory that SHM_ALLOC asked for.
        """
        if field is Field.MSG:
            return True
        assert step.request is not None
        content = step.call.rpc_arg
        assert content is not None
        return (
            names.command(step.request.rpc_arg) == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC
            and content.num_params == 1
            and not int.from_bytes(content.data[20:24], "little")
            and param.attr & 0xFF == msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT
        )

    def _temporary(
        self,
        step: Step,
        at: int,
        param: Parameter,
        found: Parameter | None,
        field: Field,
        sight: Sight,
    ) -> None:
        """Temporary memory: the same pages in the same order, and the same offset in the first."""
        name = f"{field.value}.params[{param.number}]"
        if found is None:
            sight.items.append(Item(name, struct.pack("<Q", param.a), None))
            return
        offset = (param.a & PAGE_MASK).to_bytes(2, "little")
        sight.items.append(
            Item(
                f"{name}.offset",
                offset,
                (found.a & PAGE_MASK).to_bytes(2, "little"),
                Space.BUS,
                at + param.at + 8,
                field,
                param.at + 8,
                PAGE_MASK,
            )
        )
        if not param.attr & NONCONTIG:
            attr = struct.pack("<Q", param.attr | NONCONTIG)
            sight.items.append(Item(f"{name}.attr", attr, struct.pack("<Q", found.attr)))
        entries, recorded = self._entries(step, param)
        dropped = not self._settings.entry_offsets and _refused(step)
        if dropped and any(entry & PAGE_MASK for entry in entries):
            # OP-TEE refuses such a list, so nothing that it accepts is mistaken here.
            entries = [entry & ~PAGE_MASK for entry in entries]
            sight.rules.append(rules.PAGE_NUMBERS)
        expected = b"".join([_word(self._machine.to_pa(step.client, entry)) for entry in entries])
        try:
            observed = list_words(self._machine.bus, step.client, found)
            pages = _list_pages(self._machine, step.client, found)
        except BusError as error:
            sight.items.append(Item(f"{name} list at {error.address:#x}", expected, None))
            return
        if recorded:
            # A list that is broken off in the trace: what is there is compared.
            observed = observed[: max(len(expected), 0)]
        if len(observed) != len(expected):
            sight.items.append(Item(f"{name} list", expected, observed))
            return
        step_bytes = 8 * page_list.ENTRIES
        for number, page in enumerate(pages):
            start = number * step_bytes
            sight.items.append(
                Item(
                    "page_list",
                    expected[start : start + step_bytes],
                    observed[start : start + step_bytes],
                    Space.BUS,
                    page,
                    Field.PAGE_LIST if recorded else Field.NONE,
                    number * page_list.ENTRIES,
                )
            )

    def _entries(self, step: Step, param: Parameter) -> tuple[list[int], bool]:
        """The guest's page addresses of a parameter, and whether the trace has them."""
        count = page_list.entry_count(param.a & PAGE_MASK, param.b)
        if not param.attr & NONCONTIG:
            first = param.a & ~PAGE_MASK
            return [first + PAGE_SIZE * i for i in range(min(count, MAX_LIST))], False
        recorded = step.call.page_list
        if recorded is not None and param.number == 0:
            return _flat(recorded)[:count], True
        entries: list[int] = []
        at = param.a & ~PAGE_MASK
        while len(entries) < min(count, MAX_LIST):
            page = self._machine.load(step.client, at, PAGE_SIZE)
            if page is None:
                break
            wanted = min(count - len(entries), page_list.ENTRIES)
            entries += struct.unpack_from(f"<{wanted}Q", page)
            at = int.from_bytes(page[page_list.LINK_OFFSET :], "little")
        return entries, False

    def _buffers(self, step: Step, handed: Handed, content: Content, sight: Sight) -> None:
        """The bytes behind memory parameters, found by the address that was handed over."""
        for number, buffer in enumerate(step.call.buffers):
            if self._is_tainted(step.client, content, buffer.param):
                sight.blind.append("buffers of a cookie that was registered twice")
                continue
            address = self._scripted.buffer_address(handed, content, buffer)
            if address is None:
                sight.blind.append("buffers whose registration the recorded OP-TEE was not told")
                continue
            sight.items.append(
                Item(
                    f"bufs[{number}].pa",
                    _word(self._machine.to_pa(step.client, buffer.pa)),
                    _word(address),
                    field=Field.BUFFERS,
                    position=number,
                    mask=_ALWAYS,
                )
            )
            try:
                data = self._machine.bus.read(step.client, address, len(buffer.data))
            except BusError:
                sight.items.append(Item(f"bufs[{number}]", buffer.data, None))
                continue
            sight.items.append(
                Item(
                    f"bufs[{number}]",
                    buffer.data,
                    data,
                    Space.BUS,
                    address,
                    Field.BUFFERS,
                    number,
                )
            )

    def _is_tainted(self, client: int, content: Content, index: int) -> bool:
        if not self.tainted:
            return False
        for param in parameters(content.data):
            if param.number == index and param.kind == wire.KIND_RMEM:
                return (client, param.c) in self.tainted
        return False

    # --- answered -----------------------------------------------------------------------------------

    def answered(self, step: Step, regs: tuple[int, ...]) -> Sight:
        """What the guest got for a recorded return. ``regs``: its x0..x3 afterwards."""
        sight = Sight()
        answer = step.answer
        assert answer is not None
        status = low32(answer.regs[0])
        if step.function >> 31:
            self._fast(step, regs, sight)
        else:
            sight.items.append(register_item(0, answer.regs[0], regs[0]))
            if names.is_rpc(status):
                for number in (1, 2, 3):
                    sight.items.append(register_item(number, answer.regs[number], regs[number]))
        flight = step.flight
        if flight is None:
            return sight
        if answer.rpc_arg is not None:
            place = self._normal.rpc_place(flight, answer.rpc_arg)
            data = self._normal.load(place, 0, len(answer.rpc_arg.data))
            self._memory(answer.rpc_arg, place.pieces(0, 1), data, Field.RPC_ARG, sight)
        elif answer.msg is not None:
            at = self._normal.place(flight)
            data = None if at is None else self._normal.load(at, 0, len(answer.msg.data))
            pieces = [] if at is None else at.pieces(0, 1)
            self._memory(answer.msg, pieces, data, Field.MSG, sight)
        content = answer.rpc_arg or answer.msg
        for number, buffer in enumerate(answer.buffers):
            if content is not None and self._is_tainted(step.client, content, buffer.param):
                sight.blind.append("buffers of a cookie that was registered twice")
                continue
            sight.items.append(
                Item(
                    f"bufs[{number}]",
                    buffer.data,
                    self._machine.load(step.client, buffer.pa, len(buffer.data)),
                    Space.GUEST,
                    buffer.pa,
                    Field.BUFFERS,
                    number,
                )
            )
        return sight

    @staticmethod
    def _memory(
        content: Content,
        pieces: list[tuple[int, int]],
        data: bytes | None,
        field: Field,
        sight: Sight,
    ) -> None:
        if data is None or not pieces:
            sight.items.append(Item(field.value, content.data, None))
            return
        address = pieces[0][0]
        sight.items.append(Item(f"{field.value}_pa", _word(content.pa), _word(address)))
        sight.items.append(Item(field.value, content.data, data, Space.GUEST, address, field, 0))

    def _fast(self, step: Step, regs: tuple[int, ...], sight: Sight) -> None:
        answer = step.answer
        assert answer is not None
        count, after_ok = RESULT_REGISTERS.get(step.function, (1, False))
        if after_ok and low32(answer.regs[0]) != smc.OPTEE_SMC_RETURN_OK:
            count = 1
        expected = list(answer.regs[:4])
        masks = [MASK32] * 4
        wanted = list(range(count))
        if step.function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES and count > 1:
            offered = expected[1] & self._settings.capabilities
            if not offered & smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM:
                expected[0], wanted, masks[0] = smc.OPTEE_SMC_RETURN_ENOTAVAIL, [0], 0
                sight.rules.append(rules.HIDDEN_CAPABILITIES)
            else:
                if offered != low32(expected[1]):
                    sight.rules.append(rules.HIDDEN_CAPABILITIES)
                expected[1], masks[1] = offered, self._settings.capabilities & MASK32
                if not offered & smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
                    wanted.remove(2)
                if not offered & smc.OPTEE_SMC_SEC_CAP_RPC_ARG:
                    wanted.remove(3)
        for number in wanted:
            sight.items.append(register_item(number, expected[number], regs[number], masks[number]))

    # --- the mediator's own results -----------------------------------------------------------------

    def result_in_message(self, step: Step) -> tuple[int, int] | None:
        """(ret, ret_origin) in the guest's message now, None without a message."""
        place = None if step.flight is None else self._normal.place(step.flight)
        data = None if place is None else self._normal.load(place, 0, wire.HEADER_SIZE)
        if data is None:
            return None
        return int.from_bytes(data[20:24], "little"), int.from_bytes(data[24:28], "little")

    def refused_with(self, step: Step, code: int) -> bool:
        """Whether the mediator wrote ``code`` with origin COMMS into the message."""
        return self.result_in_message(step) == (code, tee.TEE_ORIGIN_COMMS)

    def guest_list(self, step: Step, param: Parameter) -> list[int]:
        """The guest's page addresses of a parameter as they are in its memory or in the trace."""
        return self._entries(step, param)[0]


def _word(value: int | None) -> bytes:
    """Eight bytes; an address that nobody has for a page that is not there."""
    return struct.pack("<Q", (1 << 64) - 1 if value is None else value)


def _refused(step: Step) -> bool:
    """Whether OP-TEE ended the flight with an error of its own in the message."""
    final = None if step.flight is None else step.flight.final
    return final is not None and final.msg is not None and any(final.msg.data[20:24])


def _flat(pages: tuple[ListPage, ...]) -> list[int]:
    return [entry for page in pages for entry in page.entries]


def _list_pages(machine: Machine, client: int, param: Parameter) -> list[int]:
    """Addresses of the list pages of a parameter. Raises :class:`BusError`."""
    missing = min(page_list.entry_count(param.a & PAGE_MASK, param.b), MAX_LIST)
    at = param.a & ~PAGE_MASK
    found: list[int] = []
    while missing > 0:
        found.append(at)
        missing -= page_list.ENTRIES
        if missing > 0:
            at = struct.unpack("<Q", machine.bus.read(client, at + page_list.LINK_OFFSET, 8))[0]
    return found
