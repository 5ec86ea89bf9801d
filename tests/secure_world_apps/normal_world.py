# SPDX-License-Identifier: BSD-2-Clause
"""A normal world without hypervisor: a client, a driver and a supplicant in one small object.

It owns flat memory, makes calls with an RPC argument, and serves the RPCs itself: memory, TA images,
files. Everything that OP-TEE stores lies open in `disk`, the same liar that the TA tests use.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from uuid import UUID

from mediator.suspend import run
from secure_world.bus import BusError
from secure_world.settings import SecureWorldSettings
from secure_world.ta import TeeError
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.message import Kind, Message, Param, parse_message, uuid_to_value
from tests.secure_world_apps.environment import Disk

RAM = 0x4000_0000
SIZE = 16 << 20
PAGE = 4096


class FlatBus:
    """All of RAM is everybody's; what matters here is above the bus."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)

    def check(self, client: int, pa: int, n: int) -> bool:
        return pa >= RAM and pa + n <= RAM + SIZE

    def check_pages(self, client: int, pages: bytes) -> bool:
        return all(self.check(client, pa, PAGE) for (pa,) in struct.iter_unpack("<Q", pages))

    def read(self, client: int, pa: int, n: int) -> bytes:
        if not self.check(client, pa, n):
            raise BusError(pa, n)
        return bytes(self.memory[pa - RAM : pa - RAM + n])

    def write(self, client: int, pa: int, data: bytes) -> None:
        if not self.check(client, pa, len(data)):
            raise BusError(pa, len(data), True)
        self.memory[pa - RAM : pa - RAM + len(data)] = data


class Memref:
    """A temporary buffer of the client: contents and direction (6: output, 5: input)."""

    def __init__(self, data: bytes, *, output: bool = False) -> None:
        self.data = data
        self.size = len(data)
        self.output = output


class Words:
    """A value parameter; `kind` 1 input, 2 output, 3 both."""

    def __init__(self, a: int = 0, b: int = 0, kind: int = 3) -> None:
        self.a = a
        self.b = b
        self.kind = kind


Operand = Memref | Words


class NormalWorld:
    """One guest with a client id; several may share a `Machine`."""

    def __init__(self, machine: Machine, client: int, disk: Disk | None = None) -> None:
        self.machine = machine
        self.client = client
        self.disk = disk if disk is not None else Disk()
        self.served: list[int] = []
        self.shm: dict[int, int] = {}
        self._cookie = 0

    # Client side.

    def open(self, uuid: UUID) -> int:
        """Open a session and return its id; `TeeError` otherwise."""
        a, b = uuid_to_value(uuid)
        meta = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
        params = (Param(meta, a, b, 0), Param(meta, 0, 0, tee.TEE_LOGIN_PUBLIC))
        answer = self._message(Message(msg.OPTEE_MSG_CMD_OPEN_SESSION, params=params))
        if answer.ret:
            raise TeeError(answer.ret)
        return answer.session

    def close(self, session: int) -> None:
        self._message(Message(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session))

    def invoke(self, session: int, command: int, *operands: Operand) -> int:
        """Invoke a command, update the operands, and return the result code."""
        heap = self.machine.heap
        params = []
        places = []
        for operand in operands:
            if isinstance(operand, Words):
                places.append(0)
                params.append(Param(operand.kind, operand.a, operand.b))
                continue
            at = self.machine.alloc(max(len(operand.data), 1))
            pages = -(-max(len(operand.data), 1) // PAGE)
            table = self.machine.alloc(-(-pages // 511) * PAGE)
            self.machine.page_list(table, at, pages)
            self.machine.bus.write(0, at, operand.data)
            kind = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT + int(operand.output)
            places.append(at)
            self._cookie += 1
            params.append(
                Param(kind | msg.OPTEE_MSG_ATTR_NONCONTIG, table, len(operand.data), self._cookie)
            )
        request = Message(
            msg.OPTEE_MSG_CMD_INVOKE_COMMAND, func=command, session=session, params=tuple(params)
        )
        answer = self._message(request)
        for operand, at, param in zip(operands, places, answer.params, strict=True):
            if isinstance(operand, Words):
                operand.a, operand.b = param.a & 0xFFFFFFFF, param.b & 0xFFFFFFFF
            elif operand.output:
                operand.size = param.b
                operand.data = self.machine.bus.read(0, at, len(operand.data))
        self.machine.heap = heap
        return answer.ret

    # Driver side.

    def _message(self, message: Message) -> Message:
        page = self.machine.alloc(PAGE)
        self.machine.bus.write(0, page, message.build())
        regs = (smc.OPTEE_SMC_CALL_WITH_RPC_ARG, page >> 32, page & 0xFFFFFFFF, 0)
        argument = page + message.size
        while True:
            a0, _, _, a3 = self.machine.world.smc(*regs, 0, 0, 0, self.client)
            if a0 == smc.OPTEE_SMC_RETURN_RPC_CMD:
                self._serve(argument)
            elif a0 != smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
                break
            regs = (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, a3)
        assert a0 == smc.OPTEE_SMC_RETURN_OK
        return parse_message(self.machine.bus.read(0, page, message.size))

    def _serve(self, at: int) -> None:
        request = parse_message(self.machine.bus.read(0, at, 32 + 32 * 4))
        params = list(request.params)
        self.served.append(request.cmd)
        code = tee.TEE_SUCCESS
        try:
            match request.cmd:
                case rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                    params[0] = self._shm_alloc(params[0].b)
                case rpc.OPTEE_RPC_CMD_SHM_FREE:
                    del self.shm[params[0].b]
                case rpc.OPTEE_RPC_CMD_LOAD_TA:
                    self._load_ta(params)
                case rpc.OPTEE_RPC_CMD_FS:
                    run(self._fs(params))
                case rpc.OPTEE_RPC_CMD_GET_TIME:
                    params[0] = Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT, 1000, 0)
                case _:
                    code = tee.TEE_ERROR_NOT_SUPPORTED
        except TeeError as error:
            code = error.code
        answer = request._replace(ret=code, ret_origin=tee.TEE_ORIGIN_COMMS, params=tuple(params))
        self.machine.bus.write(0, at, answer.build())

    def _shm_alloc(self, size: int) -> Param:
        self._cookie += 1
        at = self.machine.alloc(size)
        self.shm[self._cookie] = at
        return Param(msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT, at, size, self._cookie)

    def _memory(self, param: Param) -> int:
        # OP-TEE names contiguous memory by address, other memory by cookie and offset.
        return param.a if param.kind == Kind.TMEM else self.shm[param.c] + param.a

    def _load_ta(self, params: list[Param]) -> None:
        uuid = UUID(bytes=struct.pack("<2Q", params[0].a, params[0].b))
        try:
            image = self.machine.world.registry.image(uuid)
        except KeyError:
            raise TeeError(tee.TEE_ERROR_ITEM_NOT_FOUND) from None
        if params[1].b >= len(image):
            self.machine.bus.write(0, self._memory(params[1]), image)
        params[1] = params[1]._replace(b=len(image))

    def _name(self, param: Param) -> str:
        data = self.machine.bus.read(0, self._memory(param), param.b)
        return data.split(b"\0")[0].decode()

    async def _fs(self, params: list[Param]) -> None:
        operation, first, second = params[0].a, params[0].b, params[0].c
        match operation:
            case rpc.OPTEE_RPC_FS_OPEN | rpc.OPTEE_RPC_FS_CREATE:
                name = self._name(params[1])
                create = operation == rpc.OPTEE_RPC_FS_CREATE
                fd = await (self.disk.create(name) if create else self.disk.open(name))
                params[2] = params[2]._replace(a=fd)
            case rpc.OPTEE_RPC_FS_CLOSE:
                await self.disk.close(first)
            case rpc.OPTEE_RPC_FS_READ:
                data = await self.disk.read(first, second, params[1].b)
                self.machine.bus.write(0, self._memory(params[1]), data)
                params[1] = params[1]._replace(b=len(data))
            case rpc.OPTEE_RPC_FS_WRITE:
                data = self.machine.bus.read(0, self._memory(params[1]), params[1].b)
                await self.disk.write(first, second, data)
            case rpc.OPTEE_RPC_FS_REMOVE:
                await self.disk.remove(self._name(params[1]))
            case _:
                raise TeeError(tee.TEE_ERROR_NOT_SUPPORTED)


class Machine:
    """A secure world on flat memory, with a bump allocator for the guests' buffers."""

    def __init__(self, settings: SecureWorldSettings | None = None) -> None:
        self.bus = FlatBus()
        self.world = SecureWorld(self.bus, settings)
        self.heap = RAM + PAGE

    def guest(self, client: int, disk: Disk | None = None) -> NormalWorld:
        assert self.world.smc(smc.OPTEE_SMC_VM_CREATED, client)[0] == smc.OPTEE_SMC_RETURN_OK
        return NormalWorld(self, client, disk)

    def destroy(self, guest: NormalWorld) -> None:
        self.world.smc(smc.OPTEE_SMC_VM_DESTROYED, guest.client)

    def alloc(self, size: int) -> int:
        """Page-aligned memory; wraps around when the end is reached, long after its first use."""
        pages = -(-size // PAGE)
        if self.heap + pages * PAGE > RAM + SIZE:
            self.heap = RAM + PAGE
        at = self.heap
        self.heap += pages * PAGE
        return at

    def page_list(self, table: int, start: int, pages: int) -> None:
        words: Sequence[int] = range(start, start + pages * PAGE, PAGE)
        for at in range(0, pages, 511):
            part = words[at : at + 511]
            page = struct.pack(f"<{len(part)}Q", *part).ljust(511 * 8, b"\0")
            table_page = table + at // 511 * PAGE
            self.bus.write(0, table_page, page + struct.pack("<Q", table_page + PAGE))
