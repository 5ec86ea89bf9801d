# SPDX-License-Identifier: BSD-2-Clause
"""Faults against a real driver: at one call of one guest something goes wrong; what does it do?

A fault is written ``kind@number``: the number counts the guest's calls to the TEE from 1. What is
planted in the secure world is a lie about one answer; the mediator has to live with it as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from mediator.hypervisor.host import FaultPlan
from mediator.live.guest import LiveGuest
from mediator.live.result import BROKE, HUNG, KILLED, MISSED, SURVIVED, GuestResult
from secure_world.fault import Registers4, Registers8
from smccc.constants import optee_smc as smc

KILL: Final = "kill"
NO_INTERRUPTS: Final = "no-interrupts"

REFUSALS: Final[Mapping[str, str]] = {
    "no-pin": "pin_pages",
    "no-shadow": "alloc_shadow",
    "no-list": "read_page_list",
    "no-read": "read_guest",
    "no-write": "write_guest",
}
"""The host refuses one service of the mediator, at its next use from that call on."""

LIES: Final[Mapping[str, int]] = {
    "thread-limit": smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT,
    "busy": smc.OPTEE_SMC_RETURN_EBUSY,
    "bad-resume": smc.OPTEE_SMC_RETURN_ERESUME,
    "bad-address": smc.OPTEE_SMC_RETURN_EBADADDR,
    "bad-command": smc.OPTEE_SMC_RETURN_EBADCMD,
    "no-memory": smc.OPTEE_SMC_RETURN_ENOMEM,
    "not-available": smc.OPTEE_SMC_RETURN_ENOTAVAIL,
    "unknown": smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION,
    "interrupt": smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR,
    "nonsense": 0x5EA1_BEEF,
}
"""The secure world says this instead of its answer, once."""

KINDS: Final = (KILL, NO_INTERRUPTS, *REFUSALS, *LIES)


@attrs.frozen
class PlannedFault:
    """``kind`` (one of :data:`KINDS`) at call ``number`` (from 1) of the first guest."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.number}"


def parse_fault(text: str) -> PlannedFault:
    """``kind@number``; ``ValueError`` for anything else."""
    found = re.fullmatch(r"([a-z-]+)@([1-9]\d{0,8})", text)
    if found is None or found[1] not in KINDS:
        raise ValueError(f"{text!r} is not KIND@NUMBER with one of {', '.join(KINDS)}")
    return PlannedFault(found[1], int(found[2]))


class Saboteur:
    """Carries out planned faults on the guest ``ident``. A liar for the secure world, too."""

    def __init__(self, planned: tuple[PlannedFault, ...], ident: int = 0) -> None:
        self._left = sorted(planned, key=lambda fault: fault.number)
        self._ident = ident
        self._lie: int | None = None
        self.plan = FaultPlan()
        self.done: list[PlannedFault] = []
        self.interrupts = True
        """Whether interrupts still get through."""

    def before(self, guest: LiveGuest) -> bool:
        """A call of ``guest`` is about to be served; ``True``: kill the guest instead."""
        if guest.ident != self._ident:
            return False
        self._lie = None
        kill = False
        while self._left and self._left[0].number <= guest.served + 1:
            fault = self._left.pop(0)
            self.done.append(fault)
            if fault.kind == KILL:
                kill = True
            elif fault.kind == NO_INTERRUPTS:
                self.interrupts = False
            elif fault.kind in REFUSALS:
                self.plan.fail(REFUSALS[fault.kind])
            else:
                self._lie = LIES[fault.kind]
        return kill

    def answer(self, _call: Registers8, registers: Registers4) -> Registers4:
        """See :class:`secure_world.fault.Fault`."""
        if self._lie is None:
            return registers
        lie, self._lie = self._lie, None
        return (lie, *registers[1:])

    def written(self, _client: int, _pa: int, data: bytes) -> bytes:
        """See :class:`secure_world.fault.Fault`: memory is left honest."""
        return data


def verdict(result: GuestResult, saboteur: Saboteur) -> str:
    """What became of the guest that the faults were for."""
    if result.alarms:
        return BROKE
    if any(fault.kind == KILL for fault in saboteur.done):
        return KILLED
    if not any(check.name == "end" for check in result.checks):
        return HUNG
    return SURVIVED if saboteur.done else MISSED
