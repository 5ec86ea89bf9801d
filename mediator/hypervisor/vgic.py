# SPDX-License-Identifier: BSD-2-Clause
"""The virtual interrupt controller of one guest: states, routing, priorities. No time, no vCPUs.

A model of the parts of GICv3 (Arm IHI 0069) that software without tricks relies on. Each interrupt
is inactive, pending, active, or active and pending (4.1.2):

- *latched*: made pending by an edge, a software generated interrupt or :meth:`Vgic.inject`;
  acknowledging clears it.
- *line*: the level of its wire. A level-sensitive interrupt is pending while its line is high,
  whatever else happens; the rising edge of an edge-triggered one latches it.
- acknowledging makes the highest pending interrupt active; it cannot be taken again before its
  end of interrupt, but may become pending again meanwhile.

An interrupt is *deliverable* to a vCPU if it is pending, enabled, not active, routed there, and its
priority beats both the mask and everything that is active there. WFI ends exactly then.

Sets of interrupts are integers, bit n for id n: an idle guest costs a few words. Not modelled:
groups, binary points, affinity routing with more than one level, LPIs, register accesses.
"""

from __future__ import annotations

from typing import Final

FIRST_PPI: Final = 16
FIRST_SPI: Final = 32
SPURIOUS_FIRST: Final = 1020
"""Ids from here on are special (IHI 0069, 2.2): no interrupt can have one."""

DEFAULT_PRIORITY: Final = 0xA0
"""What Linux gives every interrupt; smaller is more urgent."""
LOWEST_PRIORITY: Final = 0xFF
NO_VCPU: Final = -1

_ALL_PRIVATE: Final = (1 << FIRST_SPI) - 1
_SGIS: Final = (1 << FIRST_PPI) - 1
_ALL_SPIS: Final = ((1 << SPURIOUS_FIRST) - 1) & ~_ALL_PRIVATE


class _Bank:
    """State of a set of interrupts: the private ones of a vCPU, or the shared ones of a guest."""

    __slots__ = ("active", "enabled", "latched", "level", "line")

    def __init__(self, level: int, enabled: int) -> None:
        self.level = level
        self.enabled = enabled
        self.latched = 0
        self.line = 0
        self.active = 0

    def takeable(self) -> int:
        """Pending, enabled and not active."""
        return (self.latched | (self.line & self.level)) & self.enabled & ~self.active


class Vgic:
    """One guest's interrupts.

    Methods that can make something deliverable return the vCPU to look at (:data:`NO_VCPU` for
    nobody): the machine wakes it if :meth:`deliverable` says so. Everything starts enabled, SGIs
    edge-triggered, PPIs level-sensitive, SPIs edge-triggered (a simulated guest has no distributor
    driver that would set them up). ``ValueError`` for ids or vCPUs that do not exist.
    """

    __slots__ = (
        "_mask",
        "_online",
        "_priority",
        "_private",
        "_route",
        "_running",
        "_spis",
    )

    def __init__(self, vcpus: int) -> None:
        self._private = [_Bank(_ALL_PRIVATE & ~_SGIS, _ALL_PRIVATE) for _ in range(vcpus)]
        self._spis = _Bank(0, _ALL_SPIS)
        self._online = 0
        self._running: list[list[int]] = [[] for _ in range(vcpus)]
        # Sparse tables: nothing is stored for an interrupt that was never configured or taken.
        self._priority: dict[int, int] = {}
        self._route: dict[int, int] = {}
        self._mask: dict[int, int] = {}

    # Set-up -----------------------------------------------------------------------------------

    def configure(self, intid: int, *, level: bool) -> None:
        """Make an SPI level-sensitive or edge-triggered."""
        self._check_spi(intid)
        bit = 1 << intid
        self._spis.level = self._spis.level | bit if level else self._spis.level & ~bit

    def enable(self, intid: int, on: bool, vcpu: int = 0) -> int:
        """Enable or disable an interrupt (``vcpu`` matters for private ones). Returns whom to look at."""
        bank = self._bank(intid, vcpu)
        bit = 1 << intid
        bank.enabled = bank.enabled | bit if on else bank.enabled & ~bit
        return self._target(intid, vcpu)

    def set_priority(self, intid: int, priority: int) -> None:
        """Set the priority (0 most urgent .. 255) of an interrupt, on all vCPUs for private ones."""
        self._bank(intid, 0)
        if not 0 <= priority <= LOWEST_PRIORITY:
            raise ValueError(f"priority {priority}")
        self._priority[intid] = priority

    def set_mask(self, vcpu: int, mask: int) -> None:
        """Set a vCPU's priority mask: only smaller priorities get through (ICC_PMR)."""
        self._check_vcpu(vcpu)
        self._mask[vcpu] = mask

    def route(self, intid: int, vcpu: int | None) -> int:
        """Send an SPI to ``vcpu``; ``None``: to the first vCPU that is online. Returns whom to look at."""
        self._check_spi(intid)
        if vcpu is None:
            self._route.pop(intid, None)
        else:
            self._check_vcpu(vcpu)
            self._route[intid] = vcpu
        return self._target(intid, 0)

    def set_online(self, vcpu: int, online: bool) -> int:
        """Tell that a vCPU was switched on or off. Off: its private state is reset, active too.

        Returns whom to look at: unrouted SPIs may have moved to another vCPU.
        """
        self._check_vcpu(vcpu)
        if online:
            self._online |= 1 << vcpu
        else:
            self._online &= ~(1 << vcpu)
            bank = self._private[vcpu]
            bank.latched = bank.active = 0
            for intid in self._running[vcpu]:
                # Nobody is left who could end it: an SPI in service would be lost for ever.
                if intid >= FIRST_SPI:
                    self._spis.active &= ~(1 << intid)
            self._running[vcpu].clear()
        return self.first_online()

    def first_online(self) -> int:
        """Lowest vCPU that is online, the target of unrouted SPIs."""
        online = self._online
        return (online & -online).bit_length() - 1 if online else NO_VCPU

    # Making pending ---------------------------------------------------------------------------

    def inject(self, intid: int, vcpu: int = 0) -> int:
        """Latch ``intid`` (one edge). Returns whom to look at."""
        self._bank(intid, vcpu).latched |= 1 << intid
        return self._target(intid, vcpu)

    def set_line(self, intid: int, high: bool, vcpu: int = 0) -> int:
        """Drive the wire of ``intid``. Returns whom to look at."""
        bank = self._bank(intid, vcpu)
        bit = 1 << intid
        if not high:
            bank.line &= ~bit
            return NO_VCPU
        if not bank.line & bit:
            bank.line |= bit
            if not bank.level & bit:
                bank.latched |= bit
        return self._target(intid, vcpu)

    # Taking -----------------------------------------------------------------------------------

    def deliverable(self, vcpu: int) -> bool:
        """Whether an interrupt would be signalled to ``vcpu`` now."""
        if not self._private[vcpu].takeable() and not self._spis.takeable():
            return False
        return self._best(vcpu) >= 0

    def acknowledge(self, vcpu: int) -> int | None:
        """Make the most urgent deliverable interrupt active; ``None``: there is none."""
        intid = self._best(vcpu)
        if intid < 0:
            return None
        bit = 1 << intid
        bank = self._private[vcpu] if intid < FIRST_SPI else self._spis
        bank.latched &= ~bit
        bank.active |= bit
        self._running[vcpu].append(intid)
        return intid

    def end_of_interrupt(self, vcpu: int, intid: int) -> bool:
        """Deactivate ``intid``. ``False``: it is not active on this vCPU, nothing happens."""
        running = self._running[vcpu]
        if intid not in running:
            return False
        running.remove(intid)
        bank = self._private[vcpu] if intid < FIRST_SPI else self._spis
        bank.active &= ~(1 << intid)
        return True

    def target(self, intid: int, vcpu: int = 0) -> int:
        """The vCPU that would take ``intid`` now (``vcpu`` itself for a private one)."""
        self._bank(intid, vcpu)
        return self._target(intid, vcpu)

    def is_pending(self, intid: int, vcpu: int = 0) -> bool:
        """Whether ``intid`` is pending (enabled or not)."""
        bank = self._bank(intid, vcpu)
        return bool((bank.latched | (bank.line & bank.level)) >> intid & 1)

    def is_active(self, intid: int, vcpu: int = 0) -> bool:
        """Whether ``intid`` was acknowledged and not ended."""
        return bool(self._bank(intid, vcpu).active >> intid & 1)

    # ------------------------------------------------------------------------------------------

    def _best(self, vcpu: int) -> int:
        takeable = self._private[vcpu].takeable()
        shared = self._spis.takeable()
        if shared:
            takeable |= self._mine(shared, vcpu)
        if not takeable:
            return -1
        limit = self._mask.get(vcpu, LOWEST_PRIORITY)
        for intid in self._running[vcpu]:
            limit = min(limit, self._priority.get(intid, DEFAULT_PRIORITY))
        best = -1
        if not self._priority:
            return (takeable & -takeable).bit_length() - 1 if limit > DEFAULT_PRIORITY else -1
        while takeable:
            bit = takeable & -takeable
            takeable ^= bit
            intid = bit.bit_length() - 1
            priority = self._priority.get(intid, DEFAULT_PRIORITY)
            if priority < limit:
                limit = priority
                best = intid
        return best

    def _mine(self, shared: int, vcpu: int) -> int:
        """The part of ``shared`` that is routed to ``vcpu``."""
        default = shared if self.first_online() == vcpu else 0
        for intid, routed in self._route.items():
            bit = 1 << intid
            default = default | (shared & bit) if routed == vcpu else default & ~bit
        return default

    def _target(self, intid: int, vcpu: int) -> int:
        if intid < FIRST_SPI:
            return vcpu
        return self._route.get(intid, self.first_online())

    def _bank(self, intid: int, vcpu: int) -> _Bank:
        if 0 <= intid < FIRST_SPI:
            self._check_vcpu(vcpu)
            return self._private[vcpu]
        self._check_spi(intid)
        return self._spis

    def _check_vcpu(self, vcpu: int) -> None:
        if not 0 <= vcpu < len(self._private):
            raise ValueError(f"vCPU {vcpu} of {len(self._private)}")

    def _check_spi(self, intid: int) -> None:
        if not FIRST_SPI <= intid < SPURIOUS_FIRST:
            raise ValueError(f"interrupt id {intid} is no SPI")
