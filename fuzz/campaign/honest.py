# SPDX-License-Identifier: BSD-2-Clause
"""What the simulated Linux guests of a system do: short, correct, and with results that are checked."""

from __future__ import annotations

from random import Random

from mediator.guest.client import INOUT, INPUT, OUTPUT, Memref, TeeError, Value
from mediator.guest.guest import Guest, Main
from secure_world.apps import echo
from secure_world.apps.basic import Arithmetic, Locker, MemoryReferences

_SUPPLICANT_PAUSE = 150_000
"""ns between the end of a supplicant and the next one."""


class WrongResult(AssertionError):
    """The TEE answered, and wrongly."""


def mains(seed: int, rounds: int, *, tolerant: bool, supplicant_dies: bool) -> tuple[Main, ...]:
    """The threads. ``tolerant``: operations may fail, only a wrong result is an error."""

    async def body(guest: Guest, number: int) -> None:
        rng = Random(seed + number)
        try:
            async with guest.client() as client:
                async with client.open_session(Arithmetic.uuid) as session:
                    for _ in range(rounds):
                        a, b = rng.getrandbits(31), rng.getrandbits(31)
                        result = Value(0, 0, OUTPUT)
                        await session.invoke(Arithmetic.ADD, Value(a, b, INPUT), result)
                        if result.a != a + b:
                            raise WrongResult(f"{a} + {b} is not {result.a}")
                async with client.open_session(Locker.uuid) as session:
                    for _ in range(rounds):
                        command = rng.choice((Locker.HOLD, Locker.HOLD_SHARED))
                        await session.invoke(command, Value(rng.randrange(3), 0, INPUT))
                async with client.open_session(MemoryReferences.uuid) as session:
                    memory = await client.allocate(rng.choice((64, 5000)))
                    async with memory:
                        data = rng.randbytes(64)
                        await memory.write(data)
                        part = Memref(memory, 0, 64, INOUT)
                        await session.invoke(MemoryReferences.REVERSE, part)
                        if await memory.read(0, 64) != data[::-1]:
                            raise WrongResult("64 bytes are not reversed")
                async with client.open_session(echo.Echo.uuid) as session:
                    await session.invoke(echo.REE_TIME, Value(0, 0, OUTPUT))
        except TeeError:
            if not (tolerant or supplicant_dies):
                raise

    async def first(guest: Guest) -> None:
        await body(guest, 0)

    async def second(guest: Guest) -> None:
        await body(guest, 1)

    async def undertaker(guest: Guest) -> None:
        for _ in range(2):
            await guest.kernel.sleep(_SUPPLICANT_PAUSE)
            guest.supplicant.stop()
            await guest.kernel.sleep(_SUPPLICANT_PAUSE)
            await guest.supplicant.start()

    return (first, second, undertaker) if supplicant_dies else (first, second)
