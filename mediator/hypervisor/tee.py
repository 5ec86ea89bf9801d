# SPDX-License-Identifier: BSD-2-Clause
"""What the reference hypervisor asks of a TEE mediator: three entries, and three optional ones.

The hypervisor knows no TEE. It hands over every trap of the Trusted Application and Trusted OS
owner ranges (SMCCC, DEN 0028, table 6-1) and the beginning and end of each guest; the mediator
that a deployment puts here answers. Entries are coroutines: they may suspend wherever the
deployment makes a system call a switch point, and run inline where it does not.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

Registers: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""x0..x7 of a trap as unsigned 64-bit words."""


class TeeMediator(Protocol):
    """The entries of a mediator. None of them raises for something that a guest did."""

    async def handle_regs(self, guest: int, vcpu: int, regs: Registers) -> Registers | None:
        """Serve one SMC or HVC of ``vcpu``; ``None``: not a call of this mediator."""

    async def guest_created(self, guest: int) -> bool:
        """Make ``guest`` known to the TEE; ``False``: the TEE refused it."""

    async def guest_destroyed(self, guest: int) -> bool:
        """Forget ``guest``, release every pin; ``False``: preempted, call again.

        If the TEE does not let go, the mediator says so with ``Host.quarantine``.
        """


@runtime_checkable
class TeeInterrupts(Protocol):
    """Optional: a mediator that wants physical interrupts of the TEE and timer entries."""

    async def physical_interrupt(self, intid: int) -> bool:
        """The TEE raised interrupt ``intid``; ``False``: preempted, call again."""

    async def timer_expired(self) -> bool:
        """The deadline set with ``Host.set_timer`` has come; ``False``: preempted, call again."""


@runtime_checkable
class TeeDevices(Protocol):
    """Optional: a mediator that stands for devices at addresses where a guest has no memory."""

    def wants_access(self, guest: int, ipa: int) -> bool:
        """Whether accesses of ``guest`` at ``ipa`` that stage 2 refuses are to be handed over."""

    async def handle_access(
        self, guest: int, vcpu: int, ipa: int, size: int, value: int | None
    ) -> int | None:
        """Serve a load of ``size`` bytes, or a store of ``value``: what a load gives (a store: anything).

        ``None``: not a device of this mediator after all, the guest gets its abort.
        """


class NoTee:
    """The mediator of a machine without a TEE: refuses every guest that wants one."""

    async def handle_regs(self, guest: int, vcpu: int, regs: Registers) -> Registers | None:
        """Nothing is served."""
        return None

    async def guest_created(self, guest: int) -> bool:
        """There is no TEE that could accept the guest."""
        return False

    async def guest_destroyed(self, guest: int) -> bool:
        """Nothing to forget."""
        return True
