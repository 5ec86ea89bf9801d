# SPDX-License-Identifier: BSD-2-Clause
"""What ordinary clients seldom do, for a simulated guest: the same steps as ``edges.c``.

With the shell around it: the supplicant is killed and started again, a client is killed while it waits
for one, a supplicant dies with a request that it has not taken.
"""

from __future__ import annotations

from typing import Final

from mediator.guest.client import INOUT, INPUT, OUTPUT, Client, Memref, Session, TeeError, Value
from mediator.guest.guest import Guest
from mediator.guest.hwrng import RngDevice
from mediator.guest.identity import group_identity, user_identity
from mediator.live.comparison.workload import (
    ARITHMETIC,
    CLOCK,
    ECHO,
    MEMORY,
    PAUSE,
    RNG_READS,
    Placement,
    Unexpected,
)
from smccc.constants import tee

PAGES: Final = (510, 511, 512, 513, 1022, 1023)
"""List pages: one, exactly one, one more; the same with two."""
CROWD: Final = 14
"""Programs at once: more than a page has message slots (10), and than the secure world has threads."""
_SECOND: Final = 1_000_000_000


class Edges:
    """All steps."""

    def __init__(self, guest: Guest, placement: Placement) -> None:
        self.guest = guest
        self.place = placement
        self.client = guest.client("edges")

    async def run(self) -> None:
        """From the probed driver to the second unload."""
        guest = self.guest
        rng = RngDevice(guest.driver)
        await rng.probe()
        for _ in range(RNG_READS):
            await rng.read()
        await guest.supplicant.start()
        for step in (
            self._params,
            self._lists,
            self._zero,
            self._twice,
            self._login,
            self._refused,
            self._leave,
            self._killed,
            self._supplicants,
            self._crowd,
        ):
            await step()
        guest.supplicant.stop()
        await guest.kernel.sleep(PAUSE)
        await rng.remove()
        await guest.driver.remove()
        await guest.driver.probe()
        await guest.driver.remove()

    async def _params(self) -> None:
        client = self.client
        own = await client.allocate(5000)
        data = client.buffer(100, offset=100)
        await data.write(b"\1" * 100)
        async with client.open_session(
            MEMORY,
            Value(1, 2),
            Memref(data, direction=INPUT),
            Memref(own, 16, 32, INOUT),
            Value(direction=OUTPUT),
        ):
            pass
        await own.release()

    async def _lists(self) -> None:
        for pages in PAGES:
            buffer = self.client.buffer(pages * 4096, offset=0)
            await (await self.client.register(buffer)).release()
            self.client.free(buffer)

    async def _zero(self) -> None:
        client = self.client
        async with client.open_session(MEMORY) as session:
            data = client.buffer(4096, offset=0)
            await session.invoke(4, Memref(data, size=0, direction=INPUT), Value(direction=OUTPUT))
            for _ in range(2):
                await (await client.register(client.buffer(0, offset=0))).release()

    async def _twice(self) -> None:
        client = self.client
        async with client.open_session(MEMORY) as session:
            data = client.buffer(8192, offset=0)
            await data.write(b"\1" * 8192)
            one, two = await client.register(data), await client.register(data)
            await session.invoke(3, Memref(one, 0, 100, INPUT), Memref(two, 4000, 200, OUTPUT))
            await one.release()
            await two.release()

    async def _login(self) -> None:
        """An application's login and the kernel's are refused before they become calls."""
        for login, identity in (
            (tee.TEE_LOGIN_USER, user_identity(0)),
            (tee.TEE_LOGIN_GROUP, group_identity(0)),
        ):
            async with self.client.open_session(ARITHMETIC, login=login, identity=identity):
                pass

    async def _refused(self) -> None:
        session = await self.client.open_session(ARITHMETIC)
        await session.close()
        try:
            await session.invoke(0)
        except TeeError as error:
            if error.result != tee.TEE_ERROR_BAD_PARAMETERS:
                raise
        else:
            raise Unexpected("a closed session was invoked")
        await session.close()

    async def _leave(self) -> None:
        leaver = self.guest.client("leaver")
        await leaver.allocate(4096)
        await leaver.open_session(ARITHMETIC)
        await leaver.register(leaver.buffer(8192, offset=0))
        await leaver.open_session(MEMORY)
        await leaver.exit()

    async def _killed(self) -> None:
        """A process that is killed inside a call ends when the call has."""
        child = self.guest.client("child")
        session = await child.open_session(CLOCK)
        await session.invoke(0, Value(300, 1_000_000, INPUT))
        await child.exit()

    async def _load(self, result: int = tee.TEE_SUCCESS) -> None:
        loader = self.guest.client("loader")
        try:
            async with loader.open_session(ECHO):
                pass
        except TeeError as error:
            if error.result != result:
                raise
        else:
            if result:
                raise Unexpected("a TA was loaded without a supplicant")

    async def _supplicants(self) -> None:
        kernel, supplicant = self.guest.kernel, self.guest.supplicant
        supplicant.stop()
        waiting = kernel.spawn(self._load(), "load/1")
        await kernel.sleep(_SECOND // 5)
        await supplicant.start()
        await waiting.join()
        supplicant.stop()
        waiting = kernel.spawn(self._load(tee.TEE_ERROR_COMMUNICATION), "load/2")
        await kernel.sleep(_SECOND // 5)
        if not self.guest.driver.supplicant.interrupt(waiting):
            raise Unexpected("nobody waits for a supplicant")
        await waiting.join()
        supplicant.threads = 0  # stopped: it has the device open and takes nothing
        await supplicant.start()
        waiting = kernel.spawn(self._load(tee.TEE_ERROR_COMMUNICATION), "load/3")
        await kernel.sleep(_SECOND // 5)
        supplicant.stop()
        await waiting.join()
        supplicant.threads = 2
        await supplicant.start()

    async def _crowd(self) -> None:
        kernel = self.guest.kernel
        async with self.client.open_session(CLOCK) as session:
            await session.invoke(1, Value(1, 0, INPUT))
            await session.cancel()
        opened: list[tuple[Client, Session]] = []

        async def open_one(number: int) -> None:
            client = self.guest.client(f"sleeper/{number}")
            opened.append((client, await client.open_session(CLOCK)))

        async def sleep(session: Session) -> None:
            await session.invoke(1, Value(100, 0, INPUT))

        threads = [kernel.spawn(open_one(number), f"open/{number}") for number in range(CROWD)]
        for thread in threads:
            await thread.join()
        threads = [kernel.spawn(sleep(session), f"sleep/{session.id}") for _, session in opened]
        for thread in threads:
            await thread.join()
        for _, session in opened:
            await session.close()


def is_edges(sizes: dict[int, list[int]]) -> bool:
    """Whether a recording with registrations of these sizes is one of ``edges.c``."""
    return all(pages * 4096 in sizes for pages in PAGES)
