# SPDX-License-Identifier: BSD-2-Clause
"""A TEE of a few lines whose invokes are Python generators: for what a real one does rarely or never.

An invoke handler gets the :class:`Call` and yields from its RPC methods; its return value is the
result (None: success). Registered memory is kept by cookie, so memory references can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from mediator.guest.cpu import Registers
from mediator.guest.memory import PAGE_SIZE
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import MESSAGE, NUM_PARAMS, PARAMS, RET, RET_ORIGIN, message_size
from tests.guest.machine import FakeCpu, FakeMachine

MASK32 = 0xFFFF_FFFF
CLASSIC = smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM | smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL
MODERN = CLASSIC | smc.OPTEE_SMC_SEC_CAP_RPC_ARG
NOTIFYING = MODERN | smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF

ENUMERATION = 0x5340DEDD88A61170
"""First half of the device enumeration's UUID as a message has it."""
ENUMERATION_SESSION = 9
"""Sessions with it have their own number, so that ``invoke`` sees only what a test asked for."""

Answer = tuple[int, int, int, int]
Steps = Generator[Answer, Registers, int | None]
Handler = Callable[["Call"], Steps]

NO_STEPS: tuple[Answer, ...] = ()
"""``yield from`` it makes a handler of a function that asks nobody for anything."""


def nothing(call: Call) -> Steps:
    """The default invoke: succeed at once."""
    yield from NO_STEPS
    return None


class Call:
    """One message in flight in the TEE."""

    def __init__(self, owner: ScriptedTee, thread: int, address: int, rpc_address: int) -> None:
        self.tee = owner
        self.thread = thread
        self.address = address
        self.rpc_address = rpc_address
        self.cookie = 0
        self.fields: list[int] = []
        self.resumed = 0
        """vCPU that resumed the call last."""

    @property
    def function(self) -> int:
        return self.fields[1]

    def param(self, index: int) -> tuple[int, int, int, int]:
        place = PARAMS + 4 * index
        attr, a, b, c = self.fields[place : place + 4]
        return attr, a, b, c

    def set_param(self, index: int, a: int, b: int, c: int = 0) -> None:
        self.fields[PARAMS + 4 * index + 1 : PARAMS + 4 * index + 4] = (a, b, c)

    def foreign_interrupt(self) -> Generator[Answer, Registers, None]:
        yield (smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, self.thread)

    def raw(self, a0: int, a1: int = 0, a2: int = 0) -> Generator[Answer, Registers, Registers]:
        """Any RPC; returns the registers of the resumption."""
        regs = yield (a0, a1, a2, self.thread)
        return regs

    def rpc(
        self, command: int, *params: tuple[int, int, int, int]
    ) -> Generator[Answer, Registers, tuple[int, ...]]:
        """An RPC command; returns the argument as it came back."""
        machine = self.tee.machine
        address, high, low = self.rpc_address, 0, 0
        if not address:
            if not self.cookie:
                yield from self.alloc()
            address = self.tee.rpc_buffers[self.cookie]
            high, low = self.cookie >> 32, self.cookie & MASK32
        flat = [word for param in params for word in param]
        codec = MESSAGE[len(params)]
        data = codec.pack(command, 0, 0, 0, 0, tee.TEE_ERROR_GENERIC, 0, len(params), *flat)
        machine.store(address, data)
        yield (smc.OPTEE_SMC_RETURN_RPC_CMD, high, low, self.thread)
        count = MESSAGE[0].unpack(machine.load(address, 32))[NUM_PARAMS]
        back: tuple[int, ...] = MESSAGE[count].unpack(machine.load(address, message_size(count)))
        return back

    def alloc(self) -> Generator[Answer, Registers, None]:
        """RPC ALLOC of the classic style."""
        owner = self.tee
        if owner.cached:
            self.cookie = owner.cached.pop()
            return
        regs = yield (smc.OPTEE_SMC_RETURN_RPC_ALLOC, message_size(4), 0, self.thread)
        self.cookie = regs[4] << 32 | regs[5]
        owner.rpc_buffers[self.cookie] = regs[1] << 32 | regs[2]

    def read(self, index: int) -> bytes:
        """The bytes of a registered memory reference."""
        _, offset, size, cookie = self.param(index)
        return b"".join(
            self.tee.machine.load(ipa, count)
            for ipa, count in self.tee.pieces(cookie, offset, size)
        )

    def write(self, index: int, data: bytes) -> None:
        _, offset, _, cookie = self.param(index)
        for ipa, count in self.tee.pieces(cookie, offset, len(data)):
            self.tee.machine.store(ipa, data[:count])
            data = data[count:]


class ScriptedTee:
    """``invoke`` handles INVOKE_COMMAND, ``opened`` OPEN_SESSION. ``log`` has every function id."""

    def __init__(
        self,
        capabilities: int = MODERN,
        threads: int = 2,
        invoke: Handler = nothing,
        opened: Handler = nothing,
    ) -> None:
        self.capabilities = capabilities
        self.threads = threads
        self.invoke = invoke
        self.opened = opened
        self.log: list[int] = []
        self.commands: list[int] = []
        self.memory: dict[int, tuple[list[int], int, int]] = {}
        self.rpc_buffers: dict[int, int] = {}
        self.cached: list[int] = []
        self.cache_enabled = False
        self.refuse_registration = 0
        self.values: list[int] = []
        self.notifications_enabled = False
        self.most_in_flight = 0
        self.machine: FakeMachine
        self._running: dict[int, tuple[Call, Steps]] = {}

    def __call__(self, cpu: FakeCpu, regs: Registers) -> Answer:
        self.machine = cpu.machine
        function = regs[0]
        self.log.append(function)
        match function:
            case smc.OPTEE_SMC_CALLS_UID:
                return 0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B
            case smc.OPTEE_SMC_CALL_GET_OS_REVISION:
                return 4, 10, 0, 0
            case smc.OPTEE_SMC_CALLS_REVISION:
                return 2, 0, 0, 0
            case smc.OPTEE_SMC_GET_THREAD_COUNT:
                return 0, self.threads, 0, 0
            case smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
                return 0, self.capabilities, 0x40 + self.threads, 4
            case smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF:
                self.notifications_enabled = True
                return 0, 0, 0, 0
            case smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
                if not self.values:
                    return 0, 0, 0, 0
                value = self.values.pop(0)
                return 0, value, 3 if self.values else 1, 0
            case smc.OPTEE_SMC_ENABLE_SHM_CACHE:
                self.cache_enabled = True
                return 0, 0, 0, 0
            case smc.OPTEE_SMC_DISABLE_SHM_CACHE:
                if self._running:
                    return smc.OPTEE_SMC_RETURN_EBUSY, 0, 0, 0
                if self.cached:
                    cookie = self.cached.pop()
                    # As OP-TEE does: the whole cookie in a2.
                    return 0, cookie >> 32, cookie, 0
                return smc.OPTEE_SMC_RETURN_ENOTAVAIL, 0, 0, 0
            case smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
                if regs[3] not in self._running:
                    return smc.OPTEE_SMC_RETURN_ERESUME, 0, 0, 0
                return self._step(cpu, regs[3], regs)
        return self._begin(cpu, regs)

    def pieces(self, cookie: int, offset: int, size: int) -> list[tuple[int, int]]:
        pages, first, _ = self.memory[cookie]
        position = first + offset
        result = []
        while size > 0:
            page, inside = divmod(position, PAGE_SIZE)
            count = min(size, PAGE_SIZE - inside)
            result.append((pages[page] + inside, count))
            position += count
            size -= count
        return result

    def _begin(self, cpu: FakeCpu, regs: Registers) -> Answer:
        address = regs[1] << 32 | regs[2]
        if regs[0] == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            address = self.pieces(address, regs[3], 1)[0][0]
        elif address % PAGE_SIZE:
            return smc.OPTEE_SMC_RETURN_EBADADDR, 0, 0, 0
        if len(self._running) >= self.threads:
            return smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT, 1, 0x80_0000_0000, 0
        thread = next(n for n in range(self.threads) if n not in self._running)
        count = MESSAGE[0].unpack(self.machine.load(address, 32))[NUM_PARAMS]
        rpc_address = address + message_size(count)
        if regs[0] == smc.OPTEE_SMC_CALL_WITH_ARG:
            rpc_address = 0
        call = Call(self, thread, address, rpc_address)
        call.fields = list(MESSAGE[count].unpack(self.machine.load(address, message_size(count))))
        self.commands.append(call.fields[0])
        self._running[thread] = (call, self._serve(call))
        self.most_in_flight = max(self.most_in_flight, len(self._running))
        return self._step(cpu, thread, None)

    def _step(self, cpu: FakeCpu, thread: int, regs: Registers | None) -> Answer:
        call, steps = self._running[thread]
        call.resumed = cpu.index
        try:
            return next(steps) if regs is None else steps.send(regs)
        except StopIteration as stop:
            del self._running[thread]
            if call.cookie:
                self.cached.append(call.cookie)
            call.fields[RET] = stop.value or 0
            if call.fields[0] <= msg.OPTEE_MSG_CMD_CANCEL:
                call.fields[RET_ORIGIN] = tee.TEE_ORIGIN_TRUSTED_APP
            self.machine.store(call.address, MESSAGE[call.fields[NUM_PARAMS]].pack(*call.fields))
            return 0, 0, 0, 0

    def _serve(self, call: Call) -> Steps:
        match call.fields[0]:
            case msg.OPTEE_MSG_CMD_OPEN_SESSION:
                if call.param(0)[1] == ENUMERATION:
                    call.fields[2] = ENUMERATION_SESSION
                    return 0
                result = yield from self.opened(call)
                call.fields[2] = 0 if result else 1
                return result
            case msg.OPTEE_MSG_CMD_INVOKE_COMMAND:
                if call.fields[2] == ENUMERATION_SESSION:
                    return 0
                return (yield from self.invoke(call))
            case msg.OPTEE_MSG_CMD_REGISTER_SHM:
                return self._register(call)
            case msg.OPTEE_MSG_CMD_UNREGISTER_SHM:
                known = self.memory.pop(call.param(0)[3], None)
                return 0 if known else tee.TEE_ERROR_BAD_PARAMETERS
        return 0

    def _register(self, call: Call) -> int:
        if self.refuse_registration:
            self.refuse_registration -= 1
            return tee.TEE_ERROR_BAD_PARAMETERS
        attr, where, size, cookie = call.param(0)
        assert attr == 0x20A
        self.memory[cookie] = (*self.walk(where, size), size)
        return 0

    def walk(self, where: int, size: int) -> tuple[list[int], int]:
        """Read a page list: (pages, offset)."""
        offset = where % PAGE_SIZE
        missing = (offset + size + PAGE_SIZE - 1) // PAGE_SIZE
        page = where - offset
        pages: list[int] = []
        while missing:
            data = self.machine.load(page, PAGE_SIZE)
            words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, PAGE_SIZE, 8)]
            taken = min(missing, 511)
            pages += words[:taken]
            missing -= taken
            page = words[511]
        return pages, offset
