# SPDX-License-Identifier: BSD-2-Clause
"""The seam for a misbehaving secure world: a policy that may alter what it says and writes.

Nothing in the core knows of lies; a policy sits between the core and its two ways out, registers
and bus writes.
"""

from __future__ import annotations

from typing import Protocol

from secure_world.bus import Bus

Registers4 = tuple[int, int, int, int]
Registers8 = tuple[int, int, int, int, int, int, int, int]


class Fault(Protocol):
    """A liar. Both methods return what is really said; returning the argument is honesty."""

    def answer(self, call: Registers8, registers: Registers4) -> Registers4:
        """The result registers of an SMC."""

    def written(self, client: int, pa: int, data: bytes) -> bytes:
        """Bytes that the secure world is about to store (the same number must come back)."""


class FaultyBus:
    """A bus whose writes pass through a :class:`Fault`."""

    __slots__ = ("_bus", "_fault")

    def __init__(self, bus: Bus, fault: Fault) -> None:
        self._bus = bus
        self._fault = fault

    def read(self, client: int, pa: int, n: int) -> bytes:
        """See :class:`~secure_world.bus.Bus`."""
        return self._bus.read(client, pa, n)

    def write(self, client: int, pa: int, data: bytes) -> None:
        """See :class:`~secure_world.bus.Bus`; what is stored is the policy's choice."""
        lie = self._fault.written(client, pa, data)
        self._bus.write(client, pa, lie if len(lie) == len(data) else data)

    def check(self, client: int, pa: int, n: int) -> bool:
        """See :class:`~secure_world.bus.Bus`."""
        return self._bus.check(client, pa, n)

    def check_pages(self, client: int, pages: bytes) -> bool:
        """See :class:`~secure_world.bus.Bus`."""
        return self._bus.check_pages(client, pages)
