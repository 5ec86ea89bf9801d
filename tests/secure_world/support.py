# SPDX-License-Identifier: BSD-2-Clause
"""A bytearray as memory, and a normal world that issues calls on it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from uuid import UUID

from secure_world.bus import BusError
from secure_world.monitor import Monitor
from secure_world.settings import SecureWorldSettings
from secure_world.ta import Params, TaEnvironment, TaRegistry, TeeError, TrustedApplication
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee

BASE = 0x4000_0000
PAGE = 4096
RAM_PAGES = 4096
RESERVED = BASE + 0x20_0000
RESERVED_SIZE = 0x10_0000
SECURE = 0x0E10_0000
MMIO = 0x0900_0000
PAST_RAM = BASE + RAM_PAGES * PAGE
M32 = 0xFFFF_FFFF
REG_ATTR = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
META = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
NOTHING = (0, 0, 0, 0)

ECHO = UUID("7a3b9a4e-5c1d-4f0e-9a55-0f1e2d3c4b5a")
ECHO_SHARED = UUID("7a3b9a4e-5c1d-4f0e-9a55-0f1e2d3c4b5b")
DEVICES = UUID("7011a688-ddde-4053-a5a9-7b3c4ddf13b8")
INVOKE_TESTS = UUID("d96a5b40-c3e5-21e3-8794-1002a5d5c61b")
ARITHMETIC = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be001")
MEMREFS = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be002")
LOCKER = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be003")
CLOCK = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be004")
PANICKER = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be005")

Param = tuple[int, int, int, int]

__all__ = ["BusError", "Params", "TaRegistry", "TaEnvironment", "TeeError", "TrustedApplication"]


class RamBus:
    """One contiguous RAM; everything else is refused. Counts accesses."""

    def __init__(self, pages: int = RAM_PAGES, base: int = BASE) -> None:
        self.ram = bytearray(pages * PAGE)
        self.base = base
        self.denied: set[int] = set()
        self.reads = 0
        self.writes: list[tuple[int, int, int]] = []
        self.before_read: Callable[[int, int], object] | None = None
        """Told address and length of each read before it happens."""

    def _ok(self, pa: int, n: int) -> bool:
        if not (self.base <= pa and pa + n <= self.base + len(self.ram)):
            return False
        if not self.denied:
            return True
        pages = range(pa >> 12, (pa + max(n, 1) - 1 >> 12) + 1)
        return not any(page in self.denied for page in pages)

    def read(self, client: int, pa: int, n: int) -> bytes:
        if self.before_read is not None:
            self.before_read(pa, n)
        if not self._ok(pa, n):
            raise BusError(pa, n)
        self.reads += 1
        return bytes(self.ram[pa - self.base : pa - self.base + n])

    def write(self, client: int, pa: int, data: bytes) -> None:
        if not self._ok(pa, len(data)):
            raise BusError(pa, len(data), write=True)
        self.writes.append((client, pa, len(data)))
        self.ram[pa - self.base : pa - self.base + len(data)] = data

    def check(self, client: int, pa: int, n: int) -> bool:
        return self._ok(pa, n)

    def check_pages(self, client: int, pages: bytes) -> bool:
        return all(self._ok(page, PAGE) for (page,) in struct.iter_unpack("<Q", pages))


class Scripted:
    """A monitor whose interrupts and clock are under the test's control."""

    def __init__(self) -> None:
        self.time = 0
        self.pending = 0
        self.notifications = 0

    def now(self) -> int:
        return self.time

    def charge(self, ns: int) -> None:
        self.time += ns

    def foreign_interrupt_pending(self) -> bool:
        if self.pending:
            self.pending -= 1
            return True
        return False

    def raise_notification(self) -> None:
        self.notifications += 1


def message(cmd: int, params: Iterable[Param] = (), *, func: int = 0, session: int = 0) -> bytes:
    items = list(params)
    head = struct.pack("<8I", cmd, func, session, 0, 0, 0, 0, len(items))
    return head + b"".join([struct.pack("<4Q", *item) for item in items])


def uuid_param(uuid: UUID) -> Param:
    a, b = struct.unpack("<2Q", uuid.bytes)
    return (META, a, b, 0)


class Reply:
    """What a call left in its message."""

    def __init__(self, registers: tuple[int, int, int, int], data: bytes) -> None:
        self.registers = registers
        self.a0 = registers[0]
        head: tuple[int, ...] = struct.unpack_from("<8I", data)
        self.cmd, self.func, self.session = head[:3]
        self.ret, self.origin, self.count = head[5:8]
        self.params: list[Param] = [
            struct.unpack_from("<4Q", data, 32 + 32 * i) for i in range(self.count)
        ]

    @property
    def result(self) -> tuple[int, int]:
        return self.ret, self.origin


class Normal:
    """A small normal world. Messages go through fresh pages; RPCs are served by ``services``."""

    def __init__(
        self,
        settings: SecureWorldSettings | None = None,
        *,
        client: int = 1,
        monitor: Monitor | None = None,
        registry: TaRegistry | None = None,
        world: SecureWorld | None = None,
        bus: RamBus | None = None,
        pages: int = RAM_PAGES,
    ) -> None:
        self.bus = bus if bus is not None else RamBus(pages)
        self.events: list[tuple[object, ...]] = []
        if world is None:
            self.settings = settings or SecureWorldSettings(
                virtualization=False, reserved_shm=(RESERVED, RESERVED_SIZE)
            )
            world = SecureWorld(
                self.bus,
                self.settings,
                monitor,
                self.events.append,
                registry=registry,
            )
        else:
            self.settings = world.settings
        self.world = world
        self.client = client if self.settings.virtualization else 0
        if self.settings.virtualization and world.partition(client) is None:
            assert world.smc(smc.OPTEE_SMC_VM_CREATED, client)[0] == 0
        self._next = BASE + 0x1000 + 0x40_0000 * (client - 1)
        self._cookie = 0xF000
        self.files: dict[str, bytearray] = {}
        self.fds: dict[int, str] = {}
        self.images = {u.bytes: i for u, i in world.registry.images().items()}
        self.rpcs: list[tuple[int, tuple[Param, ...]]] = []
        self.shm: dict[int, tuple[int, int]] = {}
        self.on_rpc: Callable[[int, list[int]], bool] | None = None
        self.rpc_alloc: list[tuple[int, int]] = []

    # Memory.

    def pages(self, count: int = 1) -> int:
        address = self._next
        self._next += count * PAGE
        if address < RESERVED <= self._next and not self.settings.virtualization:
            self._next = RESERVED + RESERVED_SIZE
            return self.pages(count)
        return address

    def cookie(self) -> int:
        self._cookie += 0x1_0000_0010
        return self._cookie

    def put(self, pa: int, data: bytes) -> None:
        self.bus.ram[pa - BASE : pa - BASE + len(data)] = data

    def get(self, pa: int, n: int) -> bytes:
        return bytes(self.bus.ram[pa - BASE : pa - BASE + n])

    def page_list(self, entries: Iterable[int]) -> int:
        """Write a NONCONTIG list; returns its first page."""
        words = list(entries)
        count = max((len(words) + 510) // 511, 1)
        first = self.pages(count)
        for i in range(count):
            chunk = words[511 * i : 511 * (i + 1)]
            self.put(first + i * PAGE, struct.pack(f"<{len(chunk)}Q", *chunk))
            if i + 1 < count:
                self.put(first + i * PAGE + 4088, struct.pack("<Q", first + (i + 1) * PAGE))
        return first

    # Calls.

    def raw(
        self, a0: int, a1: int = 0, a2: int = 0, a3: int = 0, a4: int = 0, a5: int = 0, a6: int = 0
    ) -> tuple[int, int, int, int]:
        return self.world.smc(a0, a1, a2, a3, a4, a5, a6, self.client)

    def start(
        self, data: bytes, *, function: int = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
    ) -> tuple[int, tuple[int, int, int, int]]:
        """Begin a call in a fresh page; returns the page and the registers."""
        page = self.pages()
        self.put(page, data)
        return page, self.raw(function, page >> 32, page & M32)

    def resume(
        self, thread: int, a1: int = 0, a2: int = 0, a4: int = 0, a5: int = 0
    ) -> tuple[int, int, int, int]:
        return self.world.smc(
            smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, a1, a2, thread, a4, a5, 0, self.client
        )

    def call(
        self,
        cmd: int,
        params: Iterable[Param] = (),
        *,
        func: int = 0,
        session: int = 0,
        function: int = smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
    ) -> Reply:
        data = message(cmd, params, func=func, session=session)
        page, registers = self.start(data, function=function)
        return self.finish(page, registers, len(data))

    def finish(self, page: int, registers: tuple[int, int, int, int], size: int) -> Reply:
        count = struct.unpack("<I", self.get(page + 28, 4))[0]
        registers = self.serve(page + 32 + 32 * count, registers)
        return Reply(registers, self.get(page, size))

    def serve(
        self, rpc_arg: int, registers: tuple[int, int, int, int]
    ) -> tuple[int, int, int, int]:
        """Serve RPCs until the call is over."""
        for _ in range(100_000):
            if registers[0] >> 16 != 0xFFFF or registers[0] == M32:
                return registers
            registers = self.serve_one(rpc_arg, registers)
        raise AssertionError("the call does not end")

    def serve_one(
        self, rpc_arg: int, registers: tuple[int, int, int, int]
    ) -> tuple[int, int, int, int]:
        a0, a1, a2, thread = registers
        if a0 == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
            return self.resume(thread)
        if a0 == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            page, cookie = self.pages(), self.cookie()
            self.rpc_alloc.append((cookie, page))
            return self.resume(thread, page >> 32, page & M32, cookie >> 32, cookie & M32)
        if a0 == smc.OPTEE_SMC_RETURN_RPC_FREE:
            cookie = a1 << 32 | a2
            self.rpc_alloc = [pair for pair in self.rpc_alloc if pair[0] != cookie]
            return self.resume(thread)
        cookie = a1 << 32 | a2
        at = rpc_arg if not cookie else dict(self.rpc_alloc)[cookie]
        self.answer(at)
        return self.resume(thread, a1, a2)

    def answer(self, at: int) -> None:
        """Serve the RPC command whose argument is at ``at``."""
        fields = list(struct.unpack("<8I16Q", self.get(at, 160)))
        count = fields[7]
        quads = [fields[8 + 4 * i : 12 + 4 * i] for i in range(count)]
        self.rpcs.append((fields[0], tuple([(attr, a, b, c) for attr, a, b, c in quads])))
        if self.on_rpc is None or not self.on_rpc(fields[0], fields):
            fields[5], fields[6] = self._service(fields), tee.TEE_ORIGIN_COMMS
        self.put(at, struct.pack("<8I16Q", *fields))

    def _service(self, fields: list[int]) -> int:
        command = fields[0]
        if command == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
            size = fields[10]
            count = (size + PAGE - 1) // PAGE
            first, cookie = self.pages(count), self.cookie()
            self.shm[cookie] = (first, size)
            pages = [first + i * PAGE for i in range(count)]
            fields[8:12] = [REG_ATTR, self.page_list(pages), size, cookie]
        elif command == rpc.OPTEE_RPC_CMD_SHM_FREE:
            del self.shm[fields[10]]
        elif command == rpc.OPTEE_RPC_CMD_LOAD_TA:
            uuid = struct.pack("<2Q", fields[9], fields[10])
            image = self.images.get(uuid)
            if image is None:
                return tee.TEE_ERROR_ITEM_NOT_FOUND
            if fields[12] == msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT:
                self.put(self.shm[fields[15]][0] + fields[13], image)
            fields[14] = len(image)
        elif command == rpc.OPTEE_RPC_CMD_GET_TIME:
            fields[9], fields[10] = 1_790_000_000, 123_456_789
        elif command == rpc.OPTEE_RPC_CMD_FS:
            return self._fs(fields)
        elif command not in (rpc.OPTEE_RPC_CMD_SUSPEND, rpc.OPTEE_RPC_CMD_NOTIFICATION):
            return tee.TEE_ERROR_NOT_SUPPORTED
        return 0

    def _fs(self, fields: list[int]) -> int:
        operation = fields[9]
        if operation in (rpc.OPTEE_RPC_FS_OPEN, rpc.OPTEE_RPC_FS_CREATE, rpc.OPTEE_RPC_FS_REMOVE):
            first, _ = self.shm[fields[15]]
            name = self.get(first + fields[13], fields[14]).split(b"\0")[0].decode()
            if operation == rpc.OPTEE_RPC_FS_CREATE:
                self.files[name] = bytearray()
            if name not in self.files:
                return tee.TEE_ERROR_ITEM_NOT_FOUND
            if operation == rpc.OPTEE_RPC_FS_REMOVE:
                del self.files[name]
            else:
                fd = len(self.fds) + 3
                self.fds[fd] = name
                fields[17] = fd
        elif operation == rpc.OPTEE_RPC_FS_READ:
            found = self.files[self.fds[fields[10]]][fields[11] : fields[11] + fields[14]]
            self.put(self.shm[fields[15]][0] + fields[13], bytes(found))
            fields[14] = len(found)
        elif operation == rpc.OPTEE_RPC_FS_WRITE:
            if fields[10] not in self.fds:
                return tee.TEE_ERROR_BAD_PARAMETERS
            content = self.files[self.fds[fields[10]]]
            content.extend(bytes(max(fields[11] + fields[14] - len(content), 0)))
            data = self.get(self.shm[fields[15]][0] + fields[13], fields[14])
            content[fields[11] : fields[11] + fields[14]] = data
        elif operation == rpc.OPTEE_RPC_FS_TRUNCATE:
            del self.files[self.fds[fields[10]]][fields[11] :]
        elif operation == rpc.OPTEE_RPC_FS_RENAME:
            old = self.get(self.shm[fields[15]][0] + fields[13], 350).split(b"\0")[0].decode()
            new = self.get(self.shm[fields[19]][0] + fields[17], 350).split(b"\0")[0].decode()
            if new in self.files and not fields[10]:
                return tee.TEE_ERROR_ACCESS_CONFLICT
            self.files[new] = self.files.pop(old)
        return 0

    # Common commands.

    def open(self, uuid: UUID, params: Iterable[Param] = (), *, login: int = 0) -> Reply:
        return self.call(
            msg.OPTEE_MSG_CMD_OPEN_SESSION, [uuid_param(uuid), (META, 0, 0, login), *params]
        )

    def session(self, uuid: UUID) -> int:
        reply = self.open(uuid)
        assert reply.result == (0, tee.TEE_ORIGIN_TRUSTED_APP), hex(reply.ret)
        return reply.session

    def invoke(self, session: int, func: int, params: Iterable[Param] = ()) -> Reply:
        items = list(params)
        items += [NOTHING] * (4 - len(items))
        return self.call(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, items, func=func, session=session)

    def close(self, session: int) -> Reply:
        return self.call(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session)

    def register(
        self, entries: Iterable[int], size: int, offset: int = 0, cookie: int | None = None
    ) -> tuple[int, Reply]:
        name = self.cookie() if cookie is None else cookie
        address = self.page_list(entries)
        reply = self.call(
            msg.OPTEE_MSG_CMD_REGISTER_SHM, [(REG_ATTR, address | offset, size, name)]
        )
        return name, reply

    def buffer(self, size: int, offset: int = 0) -> tuple[int, int]:
        """A registered buffer: cookie and address of its first byte."""
        count = (offset + size + PAGE - 1) // PAGE
        first = self.pages(count)
        cookie, reply = self.register([first + i * PAGE for i in range(count)], size, offset)
        assert (reply.a0, reply.ret) == (0, 0)
        return cookie, first + offset

    def unregister(self, cookie: int) -> Reply:
        return self.call(
            msg.OPTEE_MSG_CMD_UNREGISTER_SHM,
            [(msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT, 0, 0, cookie)],
        )

    def of(self, kind: type) -> list[tuple[object, ...]]:
        """Events of one class."""
        return [event for event in self.events if isinstance(event, kind)]
