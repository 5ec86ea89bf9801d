# SPDX-License-Identifier: BSD-2-Clause
"""The kernel's own client: the random number generator that OP-TEE offers (``optee-rng`` of Linux).

It finds its pseudo TA by the device enumeration, opens one session as the kernel, keeps one registered
page and fills that from the TA whenever somebody reads. Sources: behaviour of Linux
``drivers/char/hw_random/optee-rng.c`` (``optee_rng_probe``, ``get_optee_rng_data``) and ``core.c``;
recorded traffic of Linux 6.1 and 6.12. The code is our own.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from mediator.guest.driver import Driver
from mediator.guest.shm import Shm
from smccc.constants import optee_msg as msg
from smccc.wire import RET, SESSION

RNG_PTA: Final = UUID("ab7a617c-b8e7-4d8f-8301-d09b61036b64")
GET_ENTROPY: Final = 0
GET_INFO: Final = 1
POOL_SIZE: Final = 4096
"""Octets that are registered (MAX_ENTROPY_REQ_SZ)."""
READ_SIZE: Final = 64
"""Octets that the core asks for: one line of the cache (``rng_buffer_size``)."""

_NO_WORDS: Final = (0, 0, 0, 0)


class RngError(Exception):
    """The TA refused; ``result`` is its TEE_Result."""

    def __init__(self, result: int) -> None:
        super().__init__(f"random numbers: {result:#x}")
        self.result = result


class RngDevice:
    """One bound device: :meth:`probe` it first, :meth:`remove` it before the driver is unloaded."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.data_rate = 0
        """Octets per second that the TA claims to make."""
        self._session = 0
        self._pool: Shm | None = None

    @property
    def bound(self) -> bool:
        """True between :meth:`probe` and :meth:`remove`."""
        return self._pool is not None

    async def probe(self) -> None:
        """Open the session, ask for the rate, register the pool. Raises :class:`RngError`."""
        driver = self.driver
        opened = await driver.open_session(RNG_PTA, 0, (), nowait=True)
        if opened[RET]:
            raise RngError(opened[RET])
        self._session = opened[SESSION]
        rate = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT, 0, 0, 0)
        info = await driver.invoke(self._session, GET_INFO, (*rate, *_NO_WORDS * 3))
        if info[RET]:
            await driver.close_session(self._session)
            raise RngError(info[RET])
        self.data_rate = info[9]
        self._pool = await driver.alloc_kernel(POOL_SIZE)
        if driver.settings.profile.early_randomness:
            await self.read(driver.settings.profile.early_randomness)

    async def read(self, size: int = READ_SIZE) -> bytes:
        """Up to ``size`` octets (1 to 4096), as many as the TA gave. Raises :class:`RngError`."""
        pool = self._pool
        if pool is None:
            raise RngError(0)
        room = (msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT, 0, min(size, pool.size), pool.cookie)
        reply = await self.driver.invoke(self._session, GET_ENTROPY, (*room, *_NO_WORDS * 3))
        if reply[RET]:
            raise RngError(reply[RET])
        return await self.driver.kernel.cpu.read(pool.ipa, min(reply[10], size))

    async def remove(self) -> None:
        """Close the session and give the pool back."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await self.driver.close_session(self._session)
            await self.driver.unregister(pool)
