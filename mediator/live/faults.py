# SPDX-License-Identifier: BSD-2-Clause
"""Faults against a real driver: at some calls of one guest something goes wrong; what does it do?

A fault is written ``kind@number`` or ``kind@number+calls``: the number counts the guest's calls to
the TEE from 1. What is planted in the secure world is a lie in its registers or in the memory that
it writes; the mediator has to live with it as well.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import attrs

from mediator.hypervisor.host import FaultPlan
from mediator.live.guest import LiveGuest
from mediator.live.initramfs import AGAIN, SERVED
from mediator.live.result import (
    BROKE,
    FAIL,
    HUNG,
    KILLED,
    MISSED,
    SERVED_AGAIN,
    SURVIVED,
    GuestResult,
    is_known,
)
from secure_world.fault import Registers4, Registers8
from smccc.constants import optee_smc as smc
from smccc.wire import HEADER_SIZE, MESSAGE, PARAM_SIZE

KILL: Final = "kill"
KILL_APP: Final = "kill-app"
"""The process that the mediator lives in is killed when the secure world has answered in that call; where
the mediator does not ask it, right before the call."""
NO_INTERRUPTS: Final = "no-interrupts"
LATE_INTERRUPTS: Final = "late-interrupts"
DROP_INTERRUPT: Final = "drop-interrupt"
DROP_NOTIFICATION: Final = "drop-notification"
"""The secure world's next interrupt, which is for the mediator, is lost."""
INTERRUPTS: Final = (NO_INTERRUPTS, LATE_INTERRUPTS, DROP_INTERRUPT, DROP_NOTIFICATION)
LATE: Final = 100_000_000
"""ns by which an interrupt is late: dozens of a kernel's ticks."""

REFUSALS: Final[Mapping[str, str]] = {
    "no-pin": "pin_pages",
    "no-shadow": "alloc_shadow",
    "no-list": "read_page_list",
    "no-read": "read_guest",
    "no-write": "write_guest",
}
"""The host refuses one service of the mediator, at its next use from that call on."""

_NOWHERE: Final = 0xDEAD_BEEF
"""Half of an address or cookie that nobody has given out."""

LIES: Final[Mapping[str, Registers4 | int]] = {
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
    "rpc-nowhere": (smc.OPTEE_SMC_RETURN_RPC_CMD, _NOWHERE, _NOWHERE, 0),
    "rpc-free-nowhere": (smc.OPTEE_SMC_RETURN_RPC_FREE, _NOWHERE, _NOWHERE, 0),
    "rpc-alloc-huge": (smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xFFFF_FFFF, 0, 0),
    "rpc-unknown": (smc.OPTEE_SMC_RETURN_RPC_PREFIX | 0x63, 0, 0, 0),
}
"""The secure world says this instead of its answer: a status, or all four registers."""

_RPC: Final = MESSAGE[4]
_RPC_SIZE: Final = HEADER_SIZE + 4 * PARAM_SIZE
_RESULT: Final = struct.Struct("<2I")
_RESULT_AT: Final = 20
"""Where result and origin stand in a message (``struct optee_msg_arg``); messages lie at multiples of 32."""


def _bad_result(_dice: random.Random, pa: int, data: bytes) -> bytes:
    """The result of a call is a code that does not exist, of an origin that does not exist."""
    if pa % HEADER_SIZE != _RESULT_AT or len(data) < _RESULT.size:
        return data
    return _RESULT.pack(0x5EA1_BEEF, 0x5EA1_BEEF) + data[_RESULT.size :]


def _rpc(change: Callable[[list[int]], None]) -> Callable[[random.Random, int, bytes], bytes]:
    """A lie about the fields of an RPC's message; what is not one stays."""

    def lie(_dice: random.Random, _pa: int, data: bytes) -> bytes:
        if len(data) != _RPC_SIZE:
            return data
        fields = list(_RPC.unpack(data))
        change(fields)
        return _RPC.pack(*fields)

    return lie


def _rpc_command(fields: list[int]) -> None:
    fields[0] = 0x7FFF


def _rpc_count(fields: list[int]) -> None:
    fields[7] = 0xFFFF_FFFF


def _rpc_attributes(fields: list[int]) -> None:
    fields[8::4] = [0xFFFF_FFFF_FFFF_FFFF] * 4


def _rpc_values(fields: list[int]) -> None:
    for at in (9, 10, 11):
        fields[at::4] = [0x7FFF_FFFF_FFFF_F000 | at] * 4


def _garbage(dice: random.Random, _pa: int, data: bytes) -> bytes:
    return dice.randbytes(len(data))


def _flip(dice: random.Random, _pa: int, data: bytes) -> bytes:
    bit = dice.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


def _zeroes(_dice: random.Random, _pa: int, data: bytes) -> bytes:
    return bytes(len(data))


FORGERIES: Final[Mapping[str, Callable[[random.Random, int, bytes], bytes]]] = {
    "forge-result": _bad_result,
    "forge-rpc-command": _rpc(_rpc_command),
    "forge-rpc-count": _rpc(_rpc_count),
    "forge-rpc-attributes": _rpc(_rpc_attributes),
    "forge-rpc-values": _rpc(_rpc_values),
    "forge-bit": _flip,
    "forge-zeroes": _zeroes,
    "forge-all": _garbage,
}
"""The secure world writes this to memory instead of what it would, in all of the call."""

KINDS: Final = (KILL, KILL_APP, *INTERRUPTS, *REFUSALS, *LIES, *FORGERIES)
_ONCE: Final = (KILL, KILL_APP, *INTERRUPTS)
MAX_CALLS: Final = 1_000_000


@attrs.frozen
class PlannedFault:
    """``kind`` (one of :data:`KINDS`) at call ``number`` (from 1) of the first guest.

    ``calls``: so many calls in a row, from that one on.
    """

    kind: str
    number: int
    calls: int = 1

    def __str__(self) -> str:
        return f"{self.kind}@{self.number}" + (f"+{self.calls}" if self.calls > 1 else "")


def parse_fault(text: str) -> PlannedFault:
    """``kind@number`` or ``kind@number+calls``; ``ValueError`` for anything else."""
    found = re.fullmatch(r"([a-z-]+)@([1-9]\d{0,8})(?:\+([1-9]\d{0,5}))?", text)
    if found is None or found[1] not in KINDS:
        raise ValueError(
            f"{text!r} is not KIND@NUMBER or KIND@NUMBER+CALLS; kinds: {', '.join(KINDS)}"
        )
    if found[3] is not None and found[1] in _ONCE:
        raise ValueError(f"{text!r}: {found[1]} has no number of calls")
    return PlannedFault(found[1], int(found[2]), int(found[3] or 1))


class Saboteur:
    """Carries out planned faults on the guest ``ident``. A liar for the secure world, too."""

    def __init__(self, planned: tuple[PlannedFault, ...], ident: int = 0, seed: int = 1) -> None:
        self._left = sorted(planned, key=lambda fault: fault.number)
        self._lasting: list[PlannedFault] = []
        self._ident = ident
        self._dice = random.Random(seed)
        self._lie: Registers4 | int | None = None
        self._forgery: Callable[[random.Random, int, bytes], bytes] | None = None
        self._drop = 0
        self._drop_notification = 0
        self._kill_app = False
        self.kill_app: Callable[[], None] | None = None
        """Ends the process of the mediator."""
        self.struck = 0
        """How often it did."""
        self.plan = FaultPlan()
        self.done: list[PlannedFault] = []
        self.interrupts = True
        """Whether interrupts still get through."""
        self.late = 0
        """ns by which they are late."""

    def stop(self) -> None:
        """Nothing more goes wrong."""
        self._left.clear()
        self._lasting.clear()
        self._kill_app = False

    def before(self, guest: LiveGuest) -> bool:
        """A call of ``guest`` is about to be served; ``True``: kill the guest instead."""
        self._end_app()  # the last call never asked the secure world
        self._lie = self._forgery = None
        if guest.ident != self._ident:
            return False
        number = guest.served + 1
        while self._left and self._left[0].number <= number:
            fault = self._left.pop(0)
            self.done.append(fault)
            self._lasting.append(fault)
        kill = False
        for fault in self._lasting:
            kill |= self._strike(fault.kind)
        self._lasting = [f for f in self._lasting if f.number + f.calls > number + 1]
        return kill

    def _strike(self, kind: str) -> bool:
        if kind == NO_INTERRUPTS:
            self.interrupts = False
        elif kind == LATE_INTERRUPTS:
            self.late = LATE
        elif kind == DROP_INTERRUPT:
            self._drop += 1
        elif kind == DROP_NOTIFICATION:
            self._drop_notification += 1
        elif kind == KILL_APP:
            self._kill_app = True
        elif kind in REFUSALS:
            self.plan.fail(REFUSALS[kind])
        elif kind in FORGERIES:
            self._forgery = FORGERIES[kind]
        elif kind != KILL:
            self._lie = LIES[kind]
        return kind == KILL

    def interrupt(self, ident: int) -> int | None:
        """An interrupt is for the guest ``ident``: by how many ns it is late; ``None``: it is lost."""
        if ident != self._ident:
            return 0
        if not self.interrupts:
            return None
        if self._drop:
            self._drop -= 1
            return None
        return self.late

    def notification(self) -> bool:
        """The secure world raises its interrupt; ``True``: it is lost."""
        if not self._drop_notification:
            return False
        self._drop_notification -= 1
        return True

    def _end_app(self) -> None:
        if self._kill_app and self.kill_app is not None:
            self._kill_app = False
            self.struck += 1
            self.kill_app()

    def answer(self, _call: Registers8, registers: Registers4) -> Registers4:
        """See :class:`secure_world.fault.Fault`."""
        self._end_app()
        if self._lie is None:
            return registers
        lie, self._lie = self._lie, None
        return (lie, *registers[1:]) if isinstance(lie, int) else (*lie[:3], registers[3])

    def written(self, _client: int, pa: int, data: bytes) -> bytes:
        """See :class:`secure_world.fault.Fault`."""
        if self._forgery is None or not data:
            return data
        return self._forgery(self._dice, pa, data)


def verdict(result: GuestResult, saboteur: Saboteur) -> str:
    """What became of the guest that the faults were for."""
    if any(not is_known(alarm) for alarm in result.alarms):
        return BROKE
    if any(fault.kind == KILL for fault in saboteur.done):
        return KILLED
    if not saboteur.done or (kills_app(saboteur.done) and not saboteur.struck):
        return MISSED
    if not result.finished:
        return HUNG
    return SERVED_AGAIN if kills_app(saboteur.done) and served_again(result) else SURVIVED


def kills_app(faults: Iterable[PlannedFault]) -> bool:
    """Whether one of them ends the mediator's process, so that the driver must probe again."""
    return any(fault.kind == KILL_APP for fault in faults)


def served_again(result: GuestResult) -> bool:
    """Whether the driver probed again, and the whole workload passed afterwards."""
    again = [check for check in result.checks if check.name.startswith(AGAIN)]
    return any(c.name == SERVED for c in again) and all(c.state != FAIL for c in again)
