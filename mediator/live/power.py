# SPDX-License-Identifier: BSD-2-Clause
"""PSCI for guests whose emulator has none (the stub at EL3): the machine's own rules, live vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mediator.hypervisor import psci
from mediator.hypervisor.psci import PsciAction
from mediator.hypervisor.services import PSCI_FUNCTIONS
from mediator.live.mailbox import Mailbox
from smccc.constants import psci as numbers

if TYPE_CHECKING:
    from mediator.hypervisor.psci import PsciGuest

_MASK64 = (1 << 64) - 1


class Power:
    """Which vCPUs of a guest are on; the first is from the beginning."""

    aarch32 = False

    def __init__(self, mailboxes: list[Mailbox]) -> None:
        self._mailboxes = tuple(mailboxes)
        self._on = [index == 0 for index in range(len(mailboxes))]

    @property
    def vcpu_count(self) -> int:
        """vCPUs of the guest, on or off."""
        return len(self._on)

    def power_state(self, vcpu: int) -> int:
        """PSCI_0_2_AFFINITY_LEVEL_ON or _OFF."""
        on = self._on[vcpu]
        return numbers.PSCI_0_2_AFFINITY_LEVEL_ON if on else numbers.PSCI_0_2_AFFINITY_LEVEL_OFF

    def power_on(self, vcpu: int, entry: int, context: int) -> None:
        """Let a vCPU that is off start."""
        self._on[vcpu] = True
        self._mailboxes[vcpu].start_at(entry, context)

    def call(self, vcpu: int, regs: tuple[int, ...]) -> tuple[int, ...] | PsciAction:
        """Serve a call: the registers of the answer, CPU_OFF (done), SYSTEM_OFF or SYSTEM_RESET.

        Standby returns at once: a kernel that idles so only spins.
        """
        frame = (regs[0], regs[1], regs[2], regs[3], regs[4], regs[5], regs[6], regs[7])
        result = psci.call(self, vcpu, frame, PSCI_FUNCTIONS)
        if result is PsciAction.CPU_OFF:
            self._on[vcpu] = False
            self._mailboxes[vcpu].switch_off()
            return PsciAction.CPU_OFF
        if isinstance(result, PsciAction):
            if result in (PsciAction.SYSTEM_OFF, PsciAction.SYSTEM_RESET):
                return result
            denied = result is PsciAction.SYSTEM_SUSPEND
            result = numbers.PSCI_E_DENIED if denied else numbers.PSCI_E_SUCCESS
        return (result & _MASK64, *regs[1:])


if TYPE_CHECKING:

    def _is_a_guest(power: Power) -> PsciGuest:
        return power
