# SPDX-License-Identifier: BSD-2-Clause
"""A guest without a kernel: vCPUs that speak the protocol by themselves, correctly or not.

It costs a tenth of a simulated Linux. What its vCPUs do is drawn operation by operation from weights
that differ from guest to guest (swarm testing): one guest registers and forgets, another one waits
for locks, a third one lies. :mod:`fuzz.campaign.operations` has the operations.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from random import Random
from typing import Final
from uuid import UUID

import attrs

from mediator.guest.cpu import FIRST_PPI, GuestAbort, GuestCpu, GuestUndefined, Registers
from mediator.guest.hostile import LIES, Lie
from mediator.guest.memory import PAGE_SIZE
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.page_list import ENTRIES
from smccc.wire import HEADER_SIZE, MAX_PARAMS, MESSAGE, NUM_PARAMS, PARAMS, RET

M32: Final = 0xFFFF_FFFF
M64: Final = (1 << 64) - 1
RAM: Final = 0x4000_0000
"""IPA of a cell's RAM."""

MESSAGES: Final = 12
LISTS: Final = 6
ARGUMENTS: Final = 12
DATA: Final = 24
REGION: Final = MESSAGES + LISTS + ARGUMENTS + DATA
"""Pages of one vCPU: messages, page lists, RPC arguments of classic calls, payload."""

FOREIGN_PAGES: Final = 2
"""Pages of another guest that are mapped behind the RAM of a cell, if there is another guest."""

MAX_SERVED: Final = 48
"""RPCs that are served in a row before a call is left for later."""
MAX_LEFT: Final = 6
"""Calls that a cell leaves for later at one time."""
MAX_SPINS: Final = 3
"""Rests in a wait before the guest comes back for no reason, which a driver may."""
REST: Final = 40_000
"""ns of such a rest."""

NOTIFICATION: Final = 219
"""Interrupt of the mediator's notifications (its default setting)."""

CALL_WITH_ARG: Final = smc.OPTEE_SMC_CALL_WITH_ARG
CALL_WITH_RPC_ARG: Final = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
CALL_WITH_REGD_ARG: Final = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
RETURN_FROM_RPC: Final = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
RPC_PREFIX: Final = smc.OPTEE_SMC_RETURN_RPC_PREFIX
UNKNOWN: Final = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
NONCONTIG_OUTPUT: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG

_HEAD: Final = struct.Struct("<8I")
_PARAM: Final = struct.Struct("<4Q")
_LIES: Final[tuple[Lie, ...]] = tuple(LIES.values())

Param = tuple[int, int, int, int]
Operation = Callable[["Hand"], Awaitable[None]]


@attrs.frozen(kw_only=True)
class CellPlan:
    """How a cell is. ``weights``: operation by name to how often, 0 for never.

    ``styles``: functions by which messages are sent. ``lie``, ``leave``: share of RPC answers that are
    false, and of RPCs that are left for later. ``rubbish``: high words of registers are not zero.
    """

    name: str
    vcpus: int = 1
    rounds: int = 100
    weights: Mapping[str, float] = attrs.field(factory=dict)
    styles: tuple[int, ...] = (CALL_WITH_ARG, CALL_WITH_RPC_ARG)
    lie: float = 0.0
    leave: float = 0.0
    rubbish: bool = False
    notified: bool = False
    cache: bool = False
    hvc: bool = False
    bits: int = 64
    scatter: bool = True

    @property
    def pages(self) -> int:
        """Pages of RAM."""
        return self.vcpus * REGION


class Left:
    """A call that is suspended, as the guest remembers it."""

    __slots__ = ("argument", "regs")

    def __init__(self, regs: Registers, argument: int) -> None:
        self.regs = regs
        self.argument = argument


class Cell:
    """What the vCPUs of one such guest share."""

    def __init__(
        self,
        plan: CellPlan,
        seed: int,
        operations: Mapping[str, Operation],
        images: Mapping[UUID, bytes],
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.images = images
        names = [name for name in operations if plan.weights.get(name)]
        self.names = tuple(names)
        self.operations = tuple([operations[name] for name in names])
        self.cumulative = list(accumulate(plan.weights[name] for name in names))
        self.lives = 0
        self.forget()

    def forget(self) -> None:
        """A new life: nothing is known."""
        self.sessions: list[tuple[int, UUID]] = []
        self.registered: dict[int, Sequence[int]] = {}
        self.carriers: dict[int, tuple[int, int]] = {}
        self.arguments: dict[int, int] = {}
        self.allocated: dict[int, tuple[int, Sequence[int]]] = {}
        self.left: list[Left] = []
        self.sent: dict[int, None] = {}
        self.cookie = 0x1_0000_1000
        self.rpc_params = 4
        self.enabled = False

    def program(self, life: int) -> Callable[[GuestCpu], Awaitable[None]]:
        """The program of every vCPU in this life."""

        async def run(cpu: GuestCpu) -> None:
            await Hand(self, cpu, Random(self.seed * 64 + cpu.index + 8 * life)).run()

        return run

    def next_cookie(self) -> int:
        """A name for a buffer; both words change."""
        self.cookie += 0x1_0000_1000
        return self.cookie


class Hand:
    """One vCPU of a cell at work."""

    def __init__(self, cell: Cell, cpu: GuestCpu, rng: Random) -> None:
        self.cell = cell
        self.cpu = cpu
        self.rng = rng
        self.random = rng.random
        self.trap = cpu.hvc if cell.plan.hvc else cpu.smc
        base = RAM + cpu.index * REGION * PAGE_SIZE
        self.base = base
        self.foreign = RAM + cell.plan.pages * PAGE_SIZE
        self.lists = base + MESSAGES * PAGE_SIZE
        first = self.lists + LISTS * PAGE_SIZE
        self.data = [first + (ARGUMENTS + page) * PAGE_SIZE for page in range(DATA)]
        self._arguments = [first + page * PAGE_SIZE for page in range(ARGUMENTS)]
        self._message = 0
        self._argument = 0
        self._junk = 0

    # --- the program ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Probe, then one operation after the other."""
        cell, rng = self.cell, self.rng
        plan = cell.plan
        choose, operations, cumulative = rng.choices, cell.operations, cell.cumulative
        if self.cpu.index == 0:
            await self.probe()
        for _ in range(plan.rounds):
            (operation,) = choose(operations, cum_weights=cumulative)
            if plan.rubbish:
                self._junk = rng.getrandbits(32) << 32
            with suppress(GuestAbort, GuestUndefined):
                await operation(self)
            await self.interrupts()

    async def probe(self) -> None:
        """What a driver asks first."""
        plan, cell = self.cell.plan, self.cell
        answer = await self.trap(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 0)
        if not answer[0] and answer[1] & smc.OPTEE_SMC_SEC_CAP_RPC_ARG:
            cell.rpc_params = answer[3] & 0xFF
        if plan.cache:
            await self.trap(smc.OPTEE_SMC_ENABLE_SHM_CACHE)
        if plan.notified:
            await self.trap(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)

    async def interrupts(self) -> None:
        """Take what is pending."""
        cpu = self.cpu
        for _ in range(8):
            intid = cpu.acknowledge()
            if intid is None:
                return
            if intid == NOTIFICATION:
                await self.values()
            elif FIRST_PPI <= intid < 32:
                cpu.set_timer(None)
            cpu.end_of_interrupt(intid)

    async def values(self) -> None:
        """Read notification values until there is none."""
        for _ in range(80):
            status, value, flags, *_ = await self.trap(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)
            if status or not flags & smc.OPTEE_SMC_ASYNC_NOTIF_VALID:
                return
            self.cell.sent[value] = None
            if not flags & smc.OPTEE_SMC_ASYNC_NOTIF_PENDING:
                return

    async def rest(self) -> None:
        """Wait for a while, or for an interrupt."""
        cpu = self.cpu
        cpu.set_timer(cpu.now() + REST)
        await cpu.wfi()
        await self.interrupts()
        cpu.set_timer(None)

    # --- memory -----------------------------------------------------------------------------------

    def page(self) -> int:
        """The next page for a message."""
        self._message = (self._message + 1) % MESSAGES
        return self.base + self._message * PAGE_SIZE

    def some_pages(self, count: int) -> list[int]:
        """Pages of payload; the same may come several times."""
        if count < DATA:
            return self.rng.choices(self.data, k=count)
        first = self.rng.randrange(DATA)
        deck = self.data[first:] + self.data[:first]
        return (deck * (count // DATA + 1))[:count]

    async def store_list(self, pages: Sequence[int], link: int | None = None) -> int:
        """A page list, from the first list page on; ``link``: what its pages link to instead."""
        at = self.lists
        words: list[int] = []
        for first in range(0, len(pages), ENTRIES):
            part = pages[first : first + ENTRIES]
            words += part
            words += [0] * (ENTRIES - len(part))
            at += PAGE_SIZE
            words.append(at if link is None else link)
        if len(pages) < ENTRIES:
            await self.cpu.write(self.lists, struct.pack(f"<{len(pages)}Q", *pages))
        else:
            await self.cpu.write(self.lists, struct.pack(f"<{len(words)}Q", *words))
        return self.lists

    # --- calls ------------------------------------------------------------------------------------

    async def fast(self, function: int, a1: int = 0) -> Registers:
        """A fast call."""
        return await self.trap(function | self._junk, a1 | self._junk)

    async def send(
        self,
        command: int,
        params: Sequence[Param] = (),
        *,
        function: int = 0,
        session: int = 0,
        cancel_id: int = 0,
        count: int | None = None,
        style: int = 0,
    ) -> tuple[int, ...]:
        """Send a message and serve its RPCs: its fields afterwards, () if there is no result yet."""
        head = _HEAD.pack(
            command,
            function,
            session,
            cancel_id,
            0,
            0,
            0,
            len(params) if count is None else count,
        )
        data = head + b"".join([_PARAM.pack(*param) for param in params])
        cell = self.cell
        style = style or self.rng.choice(cell.plan.styles)
        if style == CALL_WITH_REGD_ARG and cell.carriers:
            return await self._send_registered(data)
        if style == CALL_WITH_REGD_ARG:
            style = CALL_WITH_RPC_ARG
        place = self.page()
        cpu, junk = self.cpu, self._junk
        await cpu.write(place, data)
        regs = await self.trap(style | junk, place >> 32 | junk, place & M32 | junk)
        argument = place + len(data) if style == CALL_WITH_RPC_ARG else 0
        if not await self.serve(regs, argument):
            return ()
        back = await cpu.read(place, HEADER_SIZE)
        return _HEAD.unpack(back)

    async def _send_registered(self, data: bytes) -> tuple[int, ...]:
        """The same with a message in a registered buffer, perhaps across its page boundary."""
        cell, rng = self.cell, self.rng
        cookie = rng.choice(tuple(cell.carriers))
        first, second = cell.carriers[cookie]
        end = len(data) + HEADER_SIZE + 32 * cell.rpc_params
        # The message may cross into the second page; its RPC argument then lies there.
        offset = rng.choice((0, 512, PAGE_SIZE - 32, PAGE_SIZE - end & ~7, PAGE_SIZE))
        for start in range(0, len(data), 32):
            place = offset + start
            page = second if place >= PAGE_SIZE else first
            await self.cpu.write(page + place % PAGE_SIZE, data[start : start + 32])
        junk = self._junk
        regs = await self.trap(
            CALL_WITH_REGD_ARG | junk, cookie >> 32 | junk, cookie & M32 | junk, offset | junk
        )
        place = offset + len(data)
        argument = (second if place >= PAGE_SIZE else first) + place % PAGE_SIZE
        if not await self.serve(regs, argument):
            return ()
        page = second if offset >= PAGE_SIZE else first
        return _HEAD.unpack(await self.cpu.read(page + offset % PAGE_SIZE, HEADER_SIZE))

    async def serve(self, regs: Registers, argument: int = 0) -> bool:
        """Answer RPCs until the call has ended (True) or is left for later (False)."""
        cell = self.cell
        plan = cell.plan
        for _ in range(MAX_SERVED):
            status = regs[0] & M32
            if status < RPC_PREFIX or status == UNKNOWN:
                return True
            if plan.leave and self.random() < plan.leave and len(cell.left) < MAX_LEFT:
                break
            regs = await self._answer(regs, argument)
        else:
            status = regs[0] & M32
            if status < RPC_PREFIX or status == UNKNOWN:
                return True
        cell.left.append(Left(regs, argument))
        return False

    async def go_on(self) -> None:
        """Take up a call that was left, on whichever vCPU this is."""
        if self.cell.left:
            left = self.cell.left.pop(self.rng.randrange(len(self.cell.left)))
            await self.serve(left.regs, left.argument)

    async def _answer(self, regs: Registers, argument: int) -> Registers:
        function = regs[0] & 0xFFFF
        a1, a2, thread = regs[1] & M32, regs[2] & M32, regs[3] & M32
        a4 = a5 = 0
        cell = self.cell
        if function == smc.OPTEE_SMC_RPC_FUNC_CMD:
            where = argument or cell.arguments.get(a1 << 32 | a2, 0)
            if where:
                with suppress(GuestAbort):
                    await self._command(where)
        elif function == smc.OPTEE_SMC_RPC_FUNC_ALLOC:
            self._argument = (self._argument + 1) % ARGUMENTS
            page = self._arguments[self._argument]
            cookie = cell.next_cookie()
            if cell.plan.lie and self.random() < cell.plan.lie:
                page = self.rng.choice((page, 0, page + 8, M64, 0x8_0000_0000))
                cookie = self.rng.choice((0, cookie, *cell.arguments, *cell.registered))
            cell.arguments[cookie] = page
            a1, a2, a4, a5 = page >> 32, page & M32, cookie >> 32, cookie & M32
        elif function == smc.OPTEE_SMC_RPC_FUNC_FREE:
            cell.arguments.pop(a1 << 32 | a2, None)
        junk = self._junk
        return await self.trap(
            RETURN_FROM_RPC | junk, a1 | junk, a2 | junk, thread | junk, a4 | junk, a5 | junk
        )

    # --- RPC commands -------------------------------------------------------------------------------

    async def _command(self, where: int) -> None:
        """Serve the command in the RPC argument at ``where``."""
        image = await self.cpu.read(where, HEADER_SIZE + 32 * 4)
        count = image[28]
        if count > 4:
            return
        fields = list(MESSAGE[count].unpack_from(image))
        fields[RET] = await self._serve_command(fields, count)
        if self.cell.plan.lie and self.random() < self.cell.plan.lie:
            self.rng.choice(_LIES)(fields)
            fields = [value & M64 for value in fields]
        stored = fields[NUM_PARAMS]
        given = (len(fields) - PARAMS) // 4
        body = b"".join([_PARAM.pack(*fields[at : at + 4]) for at in range(PARAMS, len(fields), 4)])
        head = _HEAD.pack(*[value & M32 for value in fields[:PARAMS]])
        room = PAGE_SIZE - where % PAGE_SIZE
        if stored <= MAX_PARAMS or given:
            await self.cpu.write(where, (head + body)[:room])

    async def _serve_command(self, fields: list[int], count: int) -> int:
        command = fields[0]
        cell = self.cell
        if command == rpc.OPTEE_RPC_CMD_NOTIFICATION and count:
            return await self._notification(fields[9], fields[10])
        if command == rpc.OPTEE_RPC_CMD_SHM_ALLOC and count:
            return await self._allocate(fields)
        if command == rpc.OPTEE_RPC_CMD_SHM_FREE and count:
            cell.allocated.pop(fields[10], None)
            return tee.TEE_SUCCESS
        if command == rpc.OPTEE_RPC_CMD_GET_TIME and count:
            fields[9], fields[10] = 1_800_000_000, 5
            return tee.TEE_SUCCESS
        if command == rpc.OPTEE_RPC_CMD_SUSPEND:
            return tee.TEE_SUCCESS
        if command == rpc.OPTEE_RPC_CMD_LOAD_TA and count >= 2:
            return await self._load(fields)
        if command == rpc.OPTEE_RPC_CMD_FS:
            return tee.TEE_ERROR_ITEM_NOT_FOUND
        return tee.TEE_ERROR_NOT_SUPPORTED

    async def _notification(self, operation: int, key: int) -> int:
        sent = self.cell.sent
        if operation == rpc.OPTEE_RPC_NOTIFICATION_SEND:
            sent[key] = None
        else:
            for _ in range(MAX_SPINS):
                if key in sent:
                    break
                await self.rest()
            sent.pop(key, None)
        return tee.TEE_SUCCESS

    async def _allocate(self, fields: list[int]) -> int:
        size = fields[10]
        count = (size + PAGE_SIZE - 1) // PAGE_SIZE
        if not 0 < count <= DATA:
            return tee.TEE_ERROR_OUT_OF_MEMORY
        cell, rng = self.cell, self.rng
        first = rng.randrange(DATA - count + 1)
        pages = self.data[first : first + count]
        cookie = cell.next_cookie()
        cell.allocated[cookie] = (0, pages)
        if rng.random() < 0.25:
            fields[8:12] = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT, pages[0], count * PAGE_SIZE, cookie
        else:
            at = await self.store_list(pages)
            fields[8:12] = NONCONTIG_OUTPUT, at, count * PAGE_SIZE, cookie
        return tee.TEE_SUCCESS

    async def _load(self, fields: list[int]) -> int:
        uuid = UUID(bytes=struct.pack("<2Q", fields[9], fields[10]))
        image = self.cell.images.get(uuid)
        if image is None:
            return tee.TEE_ERROR_ITEM_NOT_FOUND
        size, fields[14] = fields[14], len(image)
        if size >= len(image) and fields[15] in self.cell.allocated:
            _, pages = self.cell.allocated[fields[15]]
            for start in range(0, len(image), PAGE_SIZE):
                await self.cpu.write(pages[start // PAGE_SIZE], image[start : start + PAGE_SIZE])
        return tee.TEE_SUCCESS
