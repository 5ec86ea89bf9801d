# SPDX-License-Identifier: BSD-2-Clause
"""A bare-metal normal world on our simulated OP-TEE, recorded as the tracer in EL3 records.

What it issues are the unusual calls that real programs issued to learn OP-TEE's edges; the answers are
those of our secure world, which behaves as measured. Nothing translates here: addresses are physical.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc import wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.registers import low32, split
from specs.replay.reader import Trace, build_trace
from specs.replay.recorded_memory import RecordedMemory
from specs.replay.recorder import Recorder
from specs.replay.records import Meta, Record
from specs.replay.survey import Survey

RAM = 0x4000_0000
RAM_SIZE = 0x1000_0000
RESERVED = (0x4200_0000, 0x20_0000)
PAGE = 4096
LIST = 0x20A
"""Attribute of a registration: TMEM_OUTPUT | NONCONTIG."""

Param = tuple[int, int, int, int]
EMPTY: Param = (0, 0, 0, 0)
DEVICES = bytes.fromhex("7011a688ddde4053a5a97b3c4ddf13b8")
INVOKE_TESTS = bytes.fromhex("d96a5b40c3e521e387941002a5d5c61b")
ECHO = bytes.fromhex("7a3b9a4e5c1d4f0e9a550f1e2d3c4b5a")


def uuid_param(octets: bytes) -> Param:
    return (0x101, *struct.unpack("<2Q", octets), 0)


def message(
    command: int,
    *params: Param,
    func: int = 0,
    session: int = 0,
    count: int | None = None,
) -> bytes:
    number = len(params) if count is None else count
    header = struct.pack("<8I", command, func, session, 0, 0, 0, 0, number)
    return header + b"".join([struct.pack("<4Q", *param) for param in params])


class BareMetal:
    """One program. ``answer``: serves RPC commands; the default is :meth:`serve`."""

    def __init__(self, settings: SecureWorldSettings | None = None, **meta: object) -> None:
        settings = settings or SecureWorldSettings(virtualization=False, reserved_shm=RESERVED)
        self.settings = settings
        facts = Survey(
            threads=settings.threads,
            ram=((RAM, RAM_SIZE),),
            reserved=settings.reserved_shm,
            virtualization=settings.virtualization,
            answers={},
            events=0,
            slots=(),
        )
        self.memory = RecordedMemory(facts)
        self.world = SecureWorld(self.memory, settings)
        self.records: list[Record] = []
        self.recorder = Recorder(self.memory.load, self.records.append)
        reserved = "n"
        if settings.reserved_shm is not None:
            start, size = settings.reserved_shm
            reserved = f"y ({start:#x} + {size >> 20} MiB)"
        self.meta = Meta(
            {
                "scenario": "bare metal",
                "ram": [[hex(RAM), hex(RAM_SIZE)]],
                "optee_config": f"CFG_NUM_THREADS={settings.threads}, "
                f"CFG_CORE_RESERVED_SHM={reserved}, "
                f"CFG_NS_VIRTUALIZATION={'y' if settings.virtualization else 'n'}",
                **meta,
            }
        )
        self.client = 1 if settings.virtualization else 0
        self.next_page = RAM + 0x100_0000
        self.lists: dict[int, int] = {}

    def trace(self) -> Trace:
        return build_trace("bare-metal", iter([self.meta, *self.records]), {})

    # --- memory ---------------------------------------------------------------------------------

    def pages(self, count: int = 1) -> int:
        address = self.next_page
        self.next_page += count * PAGE
        return address

    def place(self, data: bytes, address: int | None = None) -> int:
        where = self.pages() if address is None else address
        assert self.memory.store(where, data)
        return where

    def result(self, address: int) -> tuple[int, int]:
        """(ret, ret_origin) of a message."""
        data = self.memory.load(address + 20, 8)
        assert data is not None
        first, second = struct.unpack("<2I", data)
        return first, second

    def session(self, address: int) -> int:
        data = self.memory.load(address + 8, 4)
        assert data is not None
        return int.from_bytes(data, "little")

    def page_list(self, entries: Sequence[int], *, link: int | None = None) -> int:
        """Write a list; several list pages follow each other in memory."""
        chunks = [entries[i : i + 511] for i in range(0, max(len(entries), 1), 511)]
        first = self.pages(len(chunks))
        for number, chunk in enumerate(chunks):
            at = first + number * PAGE
            self.place(struct.pack(f"<{len(chunk)}Q", *chunk), at)
            following = at + PAGE if number + 1 < len(chunks) else 0
            if link is not None and not number:
                following = link
            self.place(struct.pack("<Q", following), at + 4088)
        return first

    # --- calls ----------------------------------------------------------------------------------

    def enter(
        self, a0: int, *args: int, cpu: int = 0, client: int | None = None
    ) -> tuple[int, ...]:
        regs = [a0, *args, *[0] * (7 - len(args))]
        regs[7] = self.client if client is None else client
        self.recorder.call(cpu, tuple(regs))
        answer = self.world.smc(*regs)
        self.recorder.answer(cpu, answer)
        return answer

    def resume(
        self, thread: int, *args: int, client: int | None = None, cpu: int = 0
    ) -> tuple[int, ...]:
        a1, a2, a4, a5 = args or (0, 0, 0, 0)
        return self.enter(
            smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, a1, a2, thread, a4, a5, cpu=cpu, client=client
        )

    def call(
        self,
        data: bytes,
        *,
        address: int | None = None,
        function: int = smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
        serve: Callable[[BareMetal, int, tuple[int, ...]], tuple[int, ...]] | None = None,
        client: int | None = None,
    ) -> int:
        """Place a message, call, serve all RPCs; the message's address."""
        where = self.place(data, address)
        answer = self.enter(function, *split(where), client=client)
        self.finish(where, answer, serve=serve, client=client)
        return where

    def finish(
        self,
        where: int,
        answer: tuple[int, ...],
        *,
        serve: Callable[[BareMetal, int, tuple[int, ...]], tuple[int, ...]] | None = None,
        client: int | None = None,
    ) -> tuple[int, ...]:
        while low32(answer[0]) >= 0xFFFF0000 and low32(answer[0]) != 0xFFFFFFFF:
            back = (serve or serve_rpc)(self, where, answer)
            answer = self.resume(answer[3], *back, client=client)
        return answer

    def register(
        self, entries: Sequence[int], cookie: int, *, size: int | None = None, offset: int = 0
    ) -> int:
        """REGISTER_SHM; the message's address."""
        listed = self.page_list(entries)
        length = len(entries) * PAGE - offset if size is None else size
        param = (LIST, listed | offset, length, cookie)
        return self.call(message(msg.OPTEE_MSG_CMD_REGISTER_SHM, param))

    def unregister(self, cookie: int) -> int:
        return self.call(message(msg.OPTEE_MSG_CMD_UNREGISTER_SHM, (5, 0, 0, cookie)))

    def open(self, octets: bytes, **kwargs: Any) -> tuple[int, int]:
        """OPEN_SESSION; the message's address and the session."""
        data = message(msg.OPTEE_MSG_CMD_OPEN_SESSION, uuid_param(octets), (0x101, 0, 0, 0))
        where = self.call(data, **kwargs)
        return where, self.session(where)

    def invoke(self, session: int, func: int, *params: Param, **kwargs: Any) -> int:
        data = message(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, *params, func=func, session=session)
        return self.call(data, **kwargs)

    def close(self, session: int) -> int:
        return self.call(message(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session))


def rpc_at(world: BareMetal, where: int) -> int:
    """Address of the RPC argument behind a message."""
    data = world.memory.load(where + 28, 4)
    assert data is not None
    return where + wire.message_size(int.from_bytes(data, "little"))


def respond(world: BareMetal, at: int, ret: int, origin: int, *params: Param) -> None:
    """Write an RPC answer: result, and parameters that replace the request's."""
    world.place(struct.pack("<2I", ret, origin), at + 20)
    if params:
        world.place(struct.pack("<I", len(params)), at + 28)
        world.place(b"".join([struct.pack("<4Q", *param) for param in params]), at + 32)


def serve_rpc(world: BareMetal, where: int, answer: tuple[int, ...]) -> tuple[int, ...]:
    """A plain driver with a supplicant that has the echo TA's image."""
    status = low32(answer[0])
    if status == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
        page = world.pages()
        return (*split(page), *split(0xA000_0000_0000 | page))
    if status != smc.OPTEE_SMC_RETURN_RPC_CMD:
        return (0, 0, 0, 0)
    at = rpc_at(world, where)
    cookie = answer[1] << 32 | answer[2]
    if cookie:
        at = cookie & 0xFFFF_FFFF
    data = world.memory.load(at, wire.message_size(4))
    assert data is not None
    fields = wire.MESSAGE[4].unpack(data)
    command = fields[0]
    if command == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
        size = fields[10]
        count = -(-size // PAGE)
        pages = [world.pages() for _ in range(count)]
        listed = world.page_list(pages[::-1])
        respond(world, at, 0, 2, (LIST, listed, size, 0xB000_0000_0000 | listed))
    elif command == rpc.OPTEE_RPC_CMD_LOAD_TA:
        image = world.world.registry.images().get(_uuid(fields))
        if image is None:
            respond(world, at, 0xFFFF0008, 2)
        elif fields[12] & 0xFF == 0xA:
            respond(world, at, 0, 2, fields[8:12], (fields[12], 0, len(image), 0))
        else:
            _fill(world, fields[15], image)
            respond(world, at, 0, 2, fields[8:12], (fields[12], 0, len(image), fields[15]))
    elif command == rpc.OPTEE_RPC_CMD_GET_TIME:
        respond(world, at, 0, 0, (2, 1000, 500, 0))
    else:
        respond(world, at, 0, 0)
    return (*split(cookie), 0, 0)


def _uuid(fields: tuple[int, ...]) -> UUID:
    return UUID(bytes=struct.pack("<2Q", fields[9], fields[10]))


def _fill(world: BareMetal, cookie: int, data: bytes) -> None:
    """Write into memory that serve_rpc allocated."""
    listed = world.lists.get(cookie, cookie & 0xFFFF_FFFF)
    words = world.memory.load(listed, PAGE)
    assert words is not None
    for number, at in enumerate(range(0, len(data), PAGE)):
        page = int.from_bytes(words[8 * number : 8 * number + 8], "little")
        world.place(data[at : at + PAGE], page)
