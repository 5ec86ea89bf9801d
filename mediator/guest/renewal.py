# SPDX-License-Identifier: BSD-2-Clause
"""Client programs of a guest whose mediator may die under them.

The control domain cannot be made anew. When its mediator died it has a new, empty partition: sessions,
shared memory and threads of the old one are gone. Its driver must be probed again, and before that
every program that used the old one has to leave; then each begins anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from mediator.guest.client import TeeError
from mediator.guest.driver_settings import ProbeError, RegistrationError
from mediator.guest.kernel import Completion

if TYPE_CHECKING:
    from mediator.guest.guest import Guest

ATTEMPTS: Final = 4
"""Probes in a row that may fail: a mediator that dies while it is probed is started again."""

PAUSE: Final = 1_000_000
"""ns between two of them."""


class Renewal:
    """Probes the driver of one guest again, once everybody has left. ``renewed``: how often it did."""

    __slots__ = ("_busy", "_guest", "_inside", "_waiting", "renewed")

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._inside = 0
        self._busy = False
        self._waiting: list[Completion] = []
        self.renewed = 0

    async def run(self, program: Callable[[], Awaitable[None]]) -> None:
        """Run ``program``, which uses the driver, and once more after each renewal until it succeeds.

        An error that comes with a driver that is not lost passes through, and so does the
        :class:`~mediator.guest.driver_settings.ProbeError` of a secure world that does not come back.
        """
        while True:
            seen = self.renewed
            self._inside += 1
            try:
                await program()
                return
            except (TeeError, RegistrationError):
                if not self._guest.driver.lost and seen == self.renewed:
                    raise
            finally:
                self._inside -= 1
                self._wake()
            await self._after(seen)

    async def begin(self) -> None:
        """Probe for the first time, and start the supplicant."""
        guest = self._guest
        driver = guest.driver
        try:
            await driver.probe()
            if guest.settings.supplicant:
                await guest.supplicant.start()
        except (ProbeError, RegistrationError):
            driver.lose()
            if not driver.lost:
                raise
        if driver.lost:
            await self._again()

    async def _after(self, seen: int) -> None:
        """Return when the driver was renewed since ``seen``; do it if nobody else does."""
        while self.renewed == seen:
            if self._busy or self._inside:
                turn = Completion(self._guest.kernel, "everybody to leave the driver")
                self._waiting.append(turn)
                await turn.wait()
                continue
            self._busy = True
            try:
                await self._again()
            finally:
                self._busy = False
                self._wake()

    async def _again(self) -> None:
        guest = self._guest
        for attempt in range(ATTEMPTS):
            if attempt:
                await guest.kernel.sleep(PAUSE)
            if guest.supplicant.running:
                guest.supplicant.stop()
            guest.supplicant.forget()
            try:
                await guest.driver.renew()
                if guest.settings.supplicant:
                    await guest.supplicant.start()
                if not guest.driver.lost:
                    self.renewed += 1
                    return
            except (ProbeError, RegistrationError):
                guest.driver.lose()
        raise ProbeError("the secure world does not come back")

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.complete()
