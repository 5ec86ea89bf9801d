# SPDX-License-Identifier: BSD-2-Clause
"""What the guests do meanwhile: everything that a session has, each result checked and written down.

The programs know that their TEE may be lost (:mod:`mediator.guest.renewal`): the control domain's
begin anew with the next one, all others end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from mediator.guest.client import INOUT, INPUT, OUTPUT, Client, Memref, Session, TeeError, Value
from mediator.guest.driver_settings import ProbeError, RegistrationError
from mediator.guest.guest import Guest, Main
from mediator.guest.kernel import Thread
from mediator.guest.memory import PAGE_SIZE
from secure_world.apps import echo
from secure_world.apps.basic import Arithmetic, Clock, Locker, MemoryReferences
from secure_world.apps.storage import Command, StorageApplication
from smccc.constants import tee

PAGES: Final = (3, 140, 520)
"""Pages of buffers that are registered: a short list, one that is counted as a whole, and one with more
than one page of entries."""
LOCK: Final = 3
"""The lock that all guests want."""
CANCEL: Final = 0x77
MAX_CANCELS: Final = 40
"""Requests for cancellation, one in a millisecond; the work ends by itself soon after the last."""
NS_PER_MS: Final = 1_000_000

_ACCESS: Final = (
    tee.TEE_DATA_FLAG_ACCESS_READ
    | tee.TEE_DATA_FLAG_ACCESS_WRITE
    | tee.TEE_DATA_FLAG_ACCESS_WRITE_META
    | tee.TEE_DATA_FLAG_OVERWRITE
)
_NAME: Final = b"contained"


class WrongResult(AssertionError):
    """The TEE answered, and wrongly."""


class Diary:
    """What one thread of a guest has seen: ``lines``, the last attempt of each ``part``.

    ``lost``: it ended because its TEE did not come back.
    """

    __slots__ = ("lines", "lost")

    def __init__(self) -> None:
        self.lines: list[tuple[str, object]] = []
        self.lost = False

    def write(self, what: str, found: object, wanted: object) -> None:
        """Note a result. Raises :class:`WrongResult` unless it is what was wanted."""
        if found != wanted:
            raise WrongResult(f"{what}: {found!r} instead of {wanted!r}")
        self.lines.append((what, found))


Part = Callable[[Guest, Diary, Random], Awaitable[None]]


def program(part: Part, diary: Diary, seed: int) -> Main:
    """A thread that does ``part`` until it was done in one go, or the TEE is gone for good."""

    async def main(guest: Guest) -> None:
        async def once() -> None:
            diary.lines.clear()
            await part(guest, diary, Random(seed))

        try:
            await guest.renewal.run(once)
        except ProbeError:
            diary.lines.clear()
            diary.lost = True

    main.__name__ = part.__name__
    return main


async def everything(guest: Guest, diary: Diary, rng: Random) -> None:
    """Values, references of every kind, RPCs of every kind, long work, cancellation."""
    async with guest.client() as client:
        async with client.open_session(Arithmetic.uuid) as session:
            a, b = rng.getrandbits(31), rng.getrandbits(31)
            result = Value(0, 0, OUTPUT)
            await session.invoke(Arithmetic.ADD, Value(a, b, INPUT), result)
            diary.write("sum", result.a, a + b)
        await _memory(client, diary, rng)
        async with client.open_session(Clock.uuid) as session:
            # Longer than a time slice: foreign interrupts get through.
            await session.invoke(Clock.WORK, Value(4, 90_000, INPUT))
            await session.invoke(Clock.SLEEP, Value(1, 0, INPUT))
            time = Value(0, 0, OUTPUT)
            await session.invoke(Clock.REE_TIME, time)
            diary.write("time goes on", time.a > 0, True)
            await _cancelled(guest, session, diary)
        # A user TA, loaded by the supplicant.
        async with client.open_session(echo.Echo.uuid) as session:
            await session.invoke(echo.NOTHING)
            diary.write("echo", True, True)


async def brief(guest: Guest, diary: Diary, rng: Random) -> None:
    """As little as a session can have: for those who want hundreds of them in seconds."""
    async with guest.client() as client:
        async with (
            client.open_session(MemoryReferences.uuid) as session,
            await client.allocate(PAGES[0] * PAGE_SIZE) as memory,
        ):
            data = rng.randbytes(64)
            await memory.write(data)
            await session.invoke(MemoryReferences.REVERSE, Memref(memory, 0, 64, INOUT))
            diary.write("reversed", await memory.read(0, 64), data[::-1])
        async with client.open_session(Clock.uuid) as session:
            await session.invoke(Clock.WORK, Value(3, 90_000, INPUT))
            diary.write("worked", True, True)


async def _memory(client: Client, diary: Diary, rng: Random) -> None:
    async with client.open_session(MemoryReferences.uuid) as session:
        data = rng.randbytes(100)
        buffer = await client.buffer_of(data)
        total = Value(0, 0, OUTPUT)
        await session.invoke(MemoryReferences.SUM, Memref(buffer, direction=INPUT), total)
        diary.write("sum of a temporary buffer", total.a, sum(data))
        client.free(buffer)
        null = Value(0, 0, OUTPUT)
        await session.invoke(MemoryReferences.IS_NULL, Memref(None, size=0), null)
        diary.write("no buffer", null.b, 0)
        for pages in PAGES[:2]:
            async with await client.allocate(pages * PAGE_SIZE) as memory:
                data = rng.randbytes(64)
                at = memory.size - PAGE_SIZE + 32
                await memory.write(data, at)
                await session.invoke(MemoryReferences.REVERSE, Memref(memory, at, 64, INOUT))
                diary.write(f"{pages} pages", await memory.read(at, 64), data[::-1])


async def _cancelled(guest: Guest, session: Session, diary: Diary) -> None:
    """Work that would take far longer is cancelled by another thread, which asks until it is."""
    working = [True]

    async def cancel() -> None:
        for _ in range(MAX_CANCELS):
            await guest.kernel.sleep(NS_PER_MS)
            if not working:
                return
            await session.cancel(CANCEL)

    helper = guest.kernel.spawn(cancel(), "cancel")
    try:
        await session.invoke(
            Clock.WORK, Value(MAX_CANCELS * 12, NS_PER_MS // 10, INPUT), cancel_id=CANCEL
        )
        raise WrongResult("long work came to an end")
    except TeeError as error:
        if not guest.driver.lost:
            diary.write("cancelled", error.result, tee.TEE_ERROR_CANCEL)
        else:
            raise
    finally:
        working.clear()
        await _ended(guest, helper)


async def _ended(guest: Guest, helper: Thread) -> None:
    """Wait for a thread of one's own; what it lost with the TEE is no news."""
    try:
        await helper.join()
    except (TeeError, RegistrationError):
        if not guest.driver.lost:
            raise


async def large(guest: Guest, diary: Diary, rng: Random) -> None:
    """A buffer whose list has several pages, and secure storage."""
    async with guest.client() as client:
        async with (
            client.open_session(MemoryReferences.uuid) as session,
            await client.allocate(PAGES[2] * PAGE_SIZE) as memory,
        ):
            data = rng.randbytes(64)
            await memory.write(data, memory.size - 64)
            part = Memref(memory, memory.size - 64, 64, INOUT)
            await session.invoke(MemoryReferences.REVERSE, part)
            diary.write("many pages", await memory.read(memory.size - 64, 64), data[::-1])
        async with client.open_session(StorageApplication.uuid) as session:
            await _stored(client, session, diary, rng)


async def _stored(client: Client, session: Session, diary: Diary, rng: Random) -> None:
    data = rng.randbytes(300)
    name, content = await client.buffer_of(_NAME), await client.buffer_of(data)
    called = Memref(name, direction=INPUT)
    storage = Value(tee.TEE_STORAGE_PRIVATE, 0, INPUT)
    value = Value(_ACCESS)
    await session.invoke(Command.CREATE, called, value, storage, Memref(content, direction=INPUT))
    room = client.buffer(len(data))
    start = Value(tee.TEE_DATA_SEEK_SET)
    await session.invoke(Command.SEEK, Value(value.b, 0, INPUT), start)
    await session.invoke(Command.READ, Memref(room, direction=OUTPUT), Value(value.b))
    diary.write("stored", await room.read(), data)
    await session.invoke(Command.UNLINK, Value(value.b, 0, INPUT))
    for buffer in (name, content, room):
        client.free(buffer)


async def pair(guest: Guest, diary: Diary, rng: Random) -> None:
    """Two threads: a lock that all guests want, held asleep, and a condition that one of them signals."""
    helper = guest.kernel.spawn(_signal(guest), "signal")
    try:
        async with guest.client() as client, client.open_session(Locker.uuid) as session:
            await session.invoke(Locker.HOLD_SHARED_ASLEEP, Value(1, LOCK, INPUT))
            await session.invoke(Locker.WAIT_SIGNAL, Value(0, 1, INPUT))
            await session.invoke(Locker.HOLD_SHARED, Value(3, LOCK, INPUT))
            diary.write("signalled", True, True)
    finally:
        if not guest.kernel.stopping:
            await _ended(guest, helper)


async def _signal(guest: Guest) -> None:
    async with guest.client() as client, client.open_session(Locker.uuid) as session:
        await session.invoke(Locker.HOLD_SHARED_ASLEEP, Value(2, LOCK, INPUT))
        await session.invoke(Locker.SIGNAL, Value(1, 1, INPUT))
        await session.invoke(Locker.HOLD_SHARED, Value(3, LOCK, INPUT))
