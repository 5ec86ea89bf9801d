# SPDX-License-Identifier: BSD-2-Clause
"""The built-in workload of live guests, for a simulated one.

The same steps in the same order as the start script (:mod:`mediator.live.initramfs`) and the client
program (``workload.c``); only times that mean nothing to the driver are shorter. Where a program's
buffers lie in their pages is the program's own affair, so it comes from outside (:class:`Placement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from mediator.guest.client import (
    INOUT,
    INPUT,
    OUTPUT,
    Client,
    Memref,
    Param,
    Session,
    TeeError,
    Value,
)
from mediator.guest.guest import Guest
from mediator.guest.hwrng import RngDevice
from mediator.guest.memory import Buffer
from smccc.constants import tee

_PTA: Final = "5f1c6a52-9d0e-4c64-9b53-3d6f2a7be0{:02x}"
ARITHMETIC, MEMORY, LOCKER, CLOCK, PANICKER, NOBODY = (
    UUID(_PTA.format(last)) for last in (1, 2, 3, 4, 5, 0xFF)
)
ECHO: Final = UUID("7a3b9a4e-5c1d-4f0e-9a55-0f1e2d3c4b5a")
STORAGE: Final = UUID("c0a6b1f2-93d7-4e0c-8d55-7f1b0a64e2c9")

RNG_READS: Final = 6
"""By ``dd``, 320 octets in reads of 64, and one by the kernel's own thread."""
WORKERS: Final = 6
PAUSE: Final = 1_000_000
"""ns between steps, for everything pending to get done."""


class Placement:
    """Where buffers begin in their first page: by size, in the order in which they are asked for."""

    def __init__(self, offsets: Mapping[int, Iterable[int]]) -> None:
        self._offsets = {size: list(found) for size, found in offsets.items()}
        self._asked: dict[int, int] = {}

    def take(self, size: int) -> int | None:
        """The offset of the next buffer that is first used with ``size``; None if nobody knows."""
        known = self._offsets.get(size)
        if not known:
            return None
        number = self._asked.get(size, 0)
        self._asked[size] = number + 1
        return known[min(number, len(known) - 1)]


class Unexpected(AssertionError):
    """The workload got another result than the real one gets."""


async def _fails(session: Session, command: int, *params: Param, result: int) -> None:
    try:
        await session.invoke(command, *params)
    except TeeError as error:
        if error.result == result:
            return
        raise
    raise Unexpected(f"command {command} did not fail with {result:#x}")


class Workload:
    """All steps. ``storage``: the secure world has the cryptography that secure storage needs."""

    def __init__(self, guest: Guest, placement: Placement, *, storage: bool = True) -> None:
        self.guest = guest
        self.place = placement
        self.storage = storage
        self.client = guest.client("live-workload")

    def _buffer(self, size: int, first: int | None = None, client: Client | None = None) -> Buffer:
        offset = self.place.take(size if first is None else first)
        return (client or self.client).buffer(size, offset=offset)

    async def run(self) -> None:
        """From the probed driver to the second unload."""
        guest = self.guest
        rng = RngDevice(guest.driver)
        await rng.probe()
        for _ in range(RNG_READS):
            await rng.read()
        await guest.supplicant.start()
        await self._tests()
        guest.supplicant.stop()
        await guest.kernel.sleep(PAUSE)
        await rng.remove()
        await guest.driver.remove()
        await guest.driver.probe()
        await guest.driver.remove()

    async def _tests(self) -> None:
        for test in (
            self._sessions,
            self._values,
            self._temporary,
            self._null,
            self._shared,
            self._load,
            self._panic,
        ):
            await test()
        if self.storage:
            await self._stored()
        for test in (self._time, self._slow, self._cancel, self._concurrent):
            await self.guest.kernel.sleep(PAUSE)
            await test()

    async def _sessions(self) -> None:
        for _ in range(3):
            many = [await self.client.open_session(ARITHMETIC) for _ in range(20)]
            for session in many:
                await session.close()
        try:
            await self.client.open_session(NOBODY)
        except TeeError as error:
            if error.result != tee.TEE_ERROR_ITEM_NOT_FOUND:
                raise
        else:
            raise Unexpected("a TA that nobody has was opened")

    async def _values(self) -> None:
        async with self.client.open_session(ARITHMETIC) as session:
            for i in range(50):
                await session.invoke(
                    0, Value((0xFFFF_FFF0 + i) & 0xFFFF_FFFF, 3 * i, INPUT), Value(direction=OUTPUT)
                )
            by_zero = (Value(1, 0, INPUT), Value(direction=OUTPUT))
            await _fails(session, 3, *by_zero, result=tee.TEE_ERROR_BAD_PARAMETERS)
            await _fails(session, 99, *by_zero, result=tee.TEE_ERROR_NOT_SUPPORTED)

    async def _temporary(self) -> None:
        limit = 1 << 20
        async with self.client.open_session(MEMORY) as session:
            data = self._buffer(limit, first=1)
            copy = self._buffer(limit)
            for n, size in enumerate((1, 8, 64, 4095, 4096, 4097, 70000, limit)):
                content = bytes([(i * 7 + n) & 0xFF for i in range(256)]) * (size // 256 + 1)
                await data.write(content[:size])
                await session.invoke(
                    0, Memref(data, size=size, direction=INPUT), Value(direction=OUTPUT)
                )
                both = Memref(data, size=size, direction=INPUT), Memref(copy, direction=OUTPUT)
                await session.invoke(3, *both)
                if both[1].size != size or await copy.read(0, size) != content[:size]:
                    raise Unexpected("a copy is not the same")
                await session.invoke(2, Memref(copy, size=size, direction=INOUT))
            fill = Memref(copy, size=10, direction=OUTPUT)
            pattern = Value(0x5A, 100, INPUT)
            await _fails(session, 1, fill, pattern, result=tee.TEE_ERROR_SHORT_BUFFER)
            await session.invoke(1, fill, pattern)
        self.client.free(data)
        self.client.free(copy)

    async def _null(self) -> None:
        async with self.client.open_session(MEMORY) as session:
            for direction in (INPUT, OUTPUT, INOUT):
                await session.invoke(4, Memref(None, direction=direction), Value(direction=OUTPUT))

    async def _shared(self) -> None:
        async with self.client.open_session(MEMORY) as session:
            own = await self.client.allocate(3 * 4096)
            given = await self.client.register(self._buffer(10_000))
            await own.write(b"\1" * own.size)
            await given.write(b"\2" * given.size)
            refused = tee.TEE_ERROR_BAD_PARAMETERS
            await _fails(session, 0, Memref(own), Value(direction=OUTPUT), result=refused)
            output = Memref(given, 77, 6000, OUTPUT)
            for _ in range(20):
                await session.invoke(3, Memref(own, 4000, 5000, INPUT), output)
            await own.release()
            await given.release()

    async def _load(self) -> None:
        text = self._buffer(16)
        await text.write(b"abcdefghijklmno\0")
        for _ in range(3):
            async with self.client.open_session(ECHO) as session:
                await session.invoke(1, Value(41, 5), Value(direction=OUTPUT), Memref(text))

    async def _panic(self) -> None:
        dead = tee.TEE_ERROR_TARGET_DEAD
        async with self.client.open_session(PANICKER) as session:
            await _fails(session, 0, Value(7, 0, INPUT), result=dead)
            await _fails(session, 3, result=dead)
        async with self.client.open_session(PANICKER) as session:
            await session.invoke(3)

    async def _stored(self) -> None:
        async with self.client.open_session(STORAGE) as session:
            name, data = self._buffer(12), self._buffer(5000)
            back = self._buffer(5000)
            await name.write(b"live object\0")
            await data.write(bytes([(i ^ i >> 8) & 0xFF for i in range(5000)]))
            handle = Value(7 | 0x400)
            kind = Value(1, 0, INPUT)
            await session.invoke(
                4, Memref(name, direction=INPUT), handle, kind, Memref(data, direction=INPUT)
            )
            await session.invoke(1, Value(handle.b, 0, INPUT))
            handle = Value(7, handle.b)
            await session.invoke(0, Memref(name, direction=INPUT), handle, kind)
            await session.invoke(2, Memref(back, direction=OUTPUT), Value(handle.b, 0))
            await session.invoke(6, Value(handle.b, 0, INPUT))
            again = Value(7, handle.b)
            gone = tee.TEE_ERROR_ITEM_NOT_FOUND
            await _fails(session, 0, Memref(name, direction=INPUT), again, kind, result=gone)

    async def _time(self) -> None:
        async with self.client.open_session(CLOCK) as session:
            now = Value(direction=OUTPUT)
            await session.invoke(2, now)
            # The program uses the operation again and sets one of its two numbers.
            await session.invoke(1, Value(60, now.b, INPUT))

    async def _slow(self) -> None:
        async with self.client.open_session(CLOCK) as session:
            await session.invoke(0, Value(100, 1_000_000, INPUT))

    async def _cancel(self) -> None:
        kernel = self.guest.kernel
        async with self.client.open_session(CLOCK) as session:

            async def cancel() -> None:
                await kernel.sleep(20_000_000)
                await session.cancel()

            thread = kernel.spawn(cancel(), "cancel")
            await _fails(session, 0, Value(10_000, 1_000_000, INPUT), result=tee.TEE_ERROR_CANCEL)
            await thread.join()

    async def _concurrent(self) -> None:
        kernel = self.guest.kernel
        threads = [
            kernel.spawn(self._work(number), f"worker/{number}") for number in range(WORKERS)
        ]
        for thread in threads:
            await thread.join()

    async def _work(self, number: int) -> None:
        client = self.guest.client(f"worker/{number}")
        data = self._buffer(3000, client=client)
        async with client.open_session(LOCKER if number % 2 else MEMORY) as session:
            for i in range(10):
                if number % 2:
                    steps = Value(200 if i % 5 else 20, 0, INPUT)
                    await session.invoke(0 if i % 5 else 2, steps)
                    continue
                await data.write(bytes([number + i]) * 3000)
                await session.invoke(0, Memref(data, direction=INPUT), Value(direction=OUTPUT))
