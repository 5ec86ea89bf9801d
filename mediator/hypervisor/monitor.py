# SPDX-License-Identifier: BSD-2-Clause
"""The machine as others see it from inside a call: time, charges, interrupts.

One object serves three users, which are made before the machine is: the secure world
(:class:`secure_world.monitor.Monitor`), the host services of the mediator, and the deployment.
Until :meth:`MachineMonitor.attach` there is no machine: time stands at what was charged, nothing
is ever pending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from mediator.hypervisor.accounting import APP_COPY, APP_TURN, SECURE_WORLD
from mediator.hypervisor.timer import NEVER

if TYPE_CHECKING:
    from mediator.hypervisor.machine import Machine

NOTIFICATION_INTID: Final = 32
"""The physical interrupt that the secure world's notification raises: the first SPI of the board."""

PreemptHook: TypeAlias = Callable[[], bool]


class MachineMonitor:
    """Services of a machine to the layers below it.

    ``preempt``: overrides :meth:`should_preempt`, e.g. with a fault schedule.
    """

    __slots__ = ("_before", "_machine", "notification_intid", "preempt")

    def __init__(self, notification_intid: int = NOTIFICATION_INTID) -> None:
        self._machine: Machine | None = None
        self._before = 0
        self.notification_intid = notification_intid
        self.preempt: PreemptHook | None = None

    def attach(self, machine: Machine) -> None:
        """From now on serve for ``machine``; once only."""
        if self._machine is not None:
            raise ValueError("this monitor serves a machine already")
        self._machine = machine

    # --- secure world ----------------------------------------------------------------------------

    def now(self) -> int:
        """Virtual time in ns; never decreases."""
        machine = self._machine
        return self._before if machine is None else machine.scheduler.now()

    def charge(self, ns: int) -> None:
        """The secure world worked for ``ns`` nanoseconds on behalf of whoever executes."""
        machine = self._machine
        if machine is None:
            self._before += ns
            return
        strand = machine.scheduler.current or machine.strand()
        strand.clock += ns
        account = strand.account
        account.counts[SECURE_WORLD] += 1
        account.extra[SECURE_WORLD] += ns

    def foreign_interrupt_pending(self) -> bool:
        """Whether an interrupt of the normal world waits on this pCPU.

        The slice is over, a timer is due, or another pCPU sent an interrupt to the vCPU that
        executes here. The last one is reported once: it has then done its work, the call left the
        secure world, and whether the guest takes its interrupt is the guest's business.
        """
        machine = self._machine
        if machine is None:
            return False
        strand = machine.scheduler.current or machine.strand()
        if strand.kicked:
            strand.kicked = False
            return True
        if strand.slice_end == NEVER:
            # The control domain's synchronous calls are nobody's time slice.
            return False
        clock = strand.clock
        return clock >= strand.slice_end or clock >= machine.scheduler.timers.next

    def raise_notification(self) -> None:
        """The physical interrupt of asynchronous notifications; it names no guest."""
        if self._machine is not None:
            self._machine.physical_interrupt(self.notification_intid)

    # --- host services ---------------------------------------------------------------------------

    def should_preempt(self) -> bool:
        """Whether a mediator's long work should stop here."""
        if self.preempt is not None:
            return self.preempt()
        return self.foreign_interrupt_pending()

    def count(self, kind: int, times: int = 1) -> None:
        """Charge ``times`` operations of ``kind`` (see :mod:`.accounting`) to whoever executes."""
        machine = self._machine
        if machine is not None:
            strand = machine.scheduler.current or machine.strand()
            strand.account.counts[kind] += times
            strand.clock += machine.costs[kind] * times

    def charge_app(self, turns: int, pages: int) -> None:
        """Charge crossings to an app, and pages copied there, to whoever executes."""
        self.count(APP_TURN, turns)
        if pages:
            self.count(APP_COPY, pages)

    @contextmanager
    def on_account(self, guest: int) -> Iterator[None]:
        """Within it, what is charged goes to ``guest``, whoever executes; to the control domain's account
        if there is no such guest (-1). The time passes where it is spent all the same."""
        machine = self._machine
        if machine is None:
            yield
            return
        strand = machine.strand()
        before, strand.account = strand.account, machine.account(guest)
        try:
            yield
        finally:
            strand.account = before

    def inject_virq(self, guest: int, intid: int) -> None:
        """Make ``intid`` pending for ``guest``; a guest that is gone gets nothing."""
        if self._machine is not None:
            self._machine.inject(guest, intid)

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        """Let a vCPU rest until ``until`` ns after the trap that it is in."""
        if self._machine is not None:
            self._machine.park_vcpu(guest, vcpu, until)

    def wake_vcpu(self, guest: int, vcpu: int) -> None:
        """End the rest of a vCPU."""
        if self._machine is not None:
            self._machine.wake_vcpu(guest, vcpu)

    def set_timer(self, deadline: int | None) -> None:
        """Program the mediator's timer; its entry runs at ``deadline`` ns (``None``: never)."""
        if self._machine is not None:
            self._machine.set_mediator_timer(deadline)

    def quarantine(self, guest: int, answer: int) -> None:
        """The TEE answered the end of ``guest`` with ``answer`` instead of OK."""
        if self._machine is not None:
            self._machine.quarantine(guest, answer)
