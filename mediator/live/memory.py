# SPDX-License-Identifier: BSD-2-Clause
"""Physical memory of live guests: RAM that comes with a guest, and goes with it."""

from __future__ import annotations

from mediator.hypervisor.memory import BANK_SHIFT, PhysicalMemory


class LiveMemory(PhysicalMemory):
    """Physical memory from which the RAM of an ended guest can be taken away again."""

    __slots__ = ()

    def detach(self, pa: int, length: int) -> None:
        """Undo :meth:`attach`: the range reads as zeroes, the buffer is left as it is.

        For a guest whose emulator has ended: nobody will use its RAM again, so nobody wipes it.
        """
        for number in range(pa >> BANK_SHIFT, pa + length >> BANK_SHIFT):
            self._attached.pop(number, None)
            self.banks.pop(number, None)
