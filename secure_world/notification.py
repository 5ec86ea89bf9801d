# SPDX-License-Identifier: BSD-2-Clause
"""Asynchronous notification values of one partition (OP-TEE OS ``kernel/notif.c``)."""

from __future__ import annotations

from smccc.constants import optee_smc as smc

_VALID = smc.OPTEE_SMC_ASYNC_NOTIF_VALID
_PENDING = smc.OPTEE_SMC_ASYNC_NOTIF_PENDING


class Notifications:
    """Bitmaps over the values 0 to ``highest``: pending, allocated, masked.

    Value 0 (do bottom half) is always allocated. A masked value may become pending but is neither
    reported nor raised until it is unmasked.
    """

    __slots__ = ("allocated", "enabled", "highest", "masked", "pending")

    def __init__(self, highest: int) -> None:
        self.highest = highest
        self.enabled = False
        self.pending = 0
        self.masked = 0
        self.allocated = 1 << smc.OPTEE_SMC_ASYNC_NOTIF_VALUE_DO_BOTTOM_HALF

    def allocate(self, limit: int) -> int:
        """The lowest free value below ``limit``, or -1."""
        free = ~self.allocated & (1 << limit) - 1
        if not free:
            return -1
        value = (free & -free).bit_length() - 1
        self.allocated |= 1 << value
        return value

    def free(self, value: int) -> None:
        """Give a value back; a pending one is forgotten."""
        if value != smc.OPTEE_SMC_ASYNC_NOTIF_VALUE_DO_BOTTOM_HALF:
            self.allocated &= ~(1 << value)
            self.pending &= ~(1 << value)
            self.masked &= ~(1 << value)

    def set(self, value: int) -> bool:
        """Make ``value`` pending; True if the normal world has something new to look at."""
        if not 0 <= value <= self.highest:
            return False
        bit = 1 << value
        self.pending |= bit
        return not self.masked & bit

    def mask(self, value: int, masked: bool) -> bool:
        """Mask or unmask a value; True if it is now visible and pending."""
        bit = 1 << value
        if masked:
            self.masked |= bit
            return False
        self.masked &= ~bit
        return bool(self.pending & bit)

    def take(self) -> tuple[int, int]:
        """GET_ASYNC_NOTIF_VALUE: the lowest pending value, consumed, and the flags for a2."""
        visible = self.pending & ~self.masked
        if not visible:
            return 0, 0
        lowest = visible & -visible
        self.pending ^= lowest
        return lowest.bit_length() - 1, _VALID | (_PENDING if visible ^ lowest else 0)
