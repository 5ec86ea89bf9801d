# SPDX-License-Identifier: BSD-2-Clause
"""What goes wrong in a system: a monitor that interferes, a host that refuses, a TEE that lies.

All of it is drawn from the system's seed, and counted by kind when it has really happened.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final

from mediator.hypervisor.host import REFUSABLE, FaultPlan
from mediator.hypervisor.monitor import MachineMonitor
from secure_world.fault import Registers4, Registers8
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc

Count = Callable[[str], None]

M32: Final = 0xFFFF_FFFF
MAX_PREEMPTED: Final = 6
"""Answers "stop here" in a row: a host that says so for ever gets nothing done."""

LOST_PHYSICAL: Final = "notification interrupt lost"
PREEMPTED: Final = "preemption forced"
LIES: Final = (
    "lie: status",
    "lie: thread",
    "lie: RPC function",
    "lie: cookie",
    "lie: notification value",
    "lie: capabilities",
    "lie: thread count",
    "lie: VM_CREATED refused",
    "lie: VM_DESTROYED refused",
    "lie: command",
    "lie: parameter count",
    "lie: parameter type",
    "lie: physical address",
    "lie: result",
)
"""Kinds of false answers and false stores of a secure world."""

_NONE: Final = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
_RPC: Final = smc.OPTEE_SMC_RETURN_RPC_PREFIX
_YIELDING: Final = frozenset(
    (
        smc.OPTEE_SMC_CALL_WITH_ARG,
        smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
        smc.OPTEE_SMC_CALL_RETURN_FROM_RPC,
    )
)
_RARE: Final = frozenset(
    (
        smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
        smc.OPTEE_SMC_GET_THREAD_COUNT,
        smc.OPTEE_SMC_VM_CREATED,
        smc.OPTEE_SMC_VM_DESTROYED,
    )
)
ARGUMENT_RATE: Final = 0.15
"""Share of RPC arguments of a liar that are false."""
RARE_RATE: Final = 0.6
"""Share of false answers to functions that are seldom called."""
_ARGUMENT: Final = 32 + 4 * 32
"""Bytes of an RPC argument, as the simulated OP-TEE writes it."""


def denied(call: str) -> str:
    """The name of the fault that a service of the host is refused."""
    return f"denied: {call}"


DENIED: Final = tuple([denied(call) for call in REFUSABLE])


class Denials(FaultPlan):
    """Refuses calls of the host at a drawn distance from each other. ``rate``: share of calls."""

    __slots__ = ("_count", "_rate", "_rng", "active")

    def __init__(self, rng: Random, rates: dict[str, float], count: Count) -> None:
        super().__init__()
        self._rng = rng
        self._rate = rates
        self._count = count
        self.active = True

    def strikes(self, call: str) -> bool:
        """Whether this call is refused."""
        rate = self._rate.get(call)
        if rate is None or not self.active or self._rng.random() >= rate:
            return False
        self.hits += 1
        self._count(denied(call))
        return True


class FaultyMonitor(MachineMonitor):
    """Loses notification interrupts and asks the mediator to stop. ``lost``, ``preempted``: shares."""

    __slots__ = ("_count", "_lost", "_preempted", "_rng", "_row")

    def __init__(self, rng: Random, lost: float, preempted: float, count: Count) -> None:
        super().__init__()
        self._rng = rng
        self._lost = lost
        self._preempted = preempted
        self._count = count
        self._row = 0

    def calm(self) -> None:
        """From now on all is well."""
        self._lost = self._preempted = 0.0

    def raise_notification(self) -> None:
        """The physical interrupt, if it does not get lost."""
        if self._lost and self._rng.random() < self._lost:
            self._count(LOST_PHYSICAL)
        else:
            super().raise_notification()

    def should_preempt(self) -> bool:
        """What the machine says, or a drawn yes."""
        if self._preempted and self._row < MAX_PREEMPTED and self._rng.random() < self._preempted:
            self._row += 1
            self._count(PREEMPTED)
            return True
        self._row = 0
        return super().should_preempt()


class Liar:
    """A secure world that lies now and then. ``rate``: share of answers and of stores.

    It lies about what it says, not about whom it says it to; a page that it was never given it cannot
    touch.
    """

    def __init__(self, rng: Random, rate: float, count: Count) -> None:
        self._rng = rng
        self._rate = rate
        self._count = count
        self.active = False
        self.told: Counter[str] = Counter()

    def _tell(self, kind: str) -> None:
        self.told[kind] += 1
        self._count(kind)

    def answer(self, call: Registers8, registers: Registers4) -> Registers4:
        """See :class:`secure_world.fault.Fault`."""
        rng = self._rng
        function = call[0] & M32
        rate = RARE_RATE if function in _RARE else self._rate
        if not self.active or rng.random() >= rate:
            return registers
        a0, a1, a2, a3 = registers
        if function in _YIELDING:
            return self._yielding(registers)
        if function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
            self._tell("lie: notification value")
            value = rng.choice((0, 1, 64, 65, 8191, 8192, M32))
            return (a0, value, rng.choice((1, 3, 0)), a3)
        if function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
            self._tell("lie: capabilities")
            bits = rng.getrandbits(10) & rng.choice((M32, ~smc.OPTEE_SMC_SEC_CAP_VIRTUALIZATION))
            return (rng.choice((a0, a0, a0, a0, a0, 7)), bits, rng.getrandbits(32), a3)
        if function == smc.OPTEE_SMC_GET_THREAD_COUNT:
            self._tell("lie: thread count")
            return (a0, rng.choice((0, 1, M32)), a2, a3)
        if function == smc.OPTEE_SMC_VM_CREATED:
            self._tell("lie: VM_CREATED refused")
            return (smc.OPTEE_SMC_RETURN_ENOTAVAIL, a1, a2, a3)
        if function == smc.OPTEE_SMC_VM_DESTROYED:
            self._tell("lie: VM_DESTROYED refused")
            return (rng.choice((smc.OPTEE_SMC_RETURN_ENOTAVAIL, M32)), a1, a2, a3)
        self._tell("lie: status")
        return (rng.choice((1, 2, 3, 4, 5, 6, 7, _NONE, 0x1234)), a1, a2, a3)

    def _yielding(self, registers: Registers4) -> Registers4:
        rng = self._rng
        a0, a1, a2, a3 = registers
        if a0 >= _RPC and a0 != _NONE:
            what = rng.choice((0, 0, 1, 2, 2))
            if what == 0:
                self._tell("lie: thread")
                return (a0, a1, a2, rng.choice((0, 1, 2, 7, 0x1_0000, 0x1_0001, M32)))
            if what == 1:
                self._tell("lie: RPC function")
                return (_RPC | rng.choice((0, 1, 2, 3, 4, 5, 6, 0x7FFF)), a1, a2, a3)
            self._tell("lie: cookie")
            return (a0, rng.choice((0, 1, a1)), rng.choice((0, 0x1000, 0x2000, M32)), a3)
        self._tell("lie: status")
        return (rng.choice((1, 2, 3, 4, 5, 6, 7, _NONE, 0x1234)), a1, a2, a3)

    def written(self, client: int, pa: int, data: bytes) -> bytes:
        """See :class:`secure_world.fault.Fault`."""
        rng = self._rng
        # An RPC argument is rarer than other stores, and there is more to lie about.
        rate = ARGUMENT_RATE if len(data) == _ARGUMENT else self._rate
        if not self.active or len(data) < 8 or rng.random() >= rate:
            return data
        image = bytearray(data)
        if len(data) != _ARGUMENT:
            self._tell("lie: result")
            image[:4] = struct.pack("<I", rng.getrandbits(32))
            return bytes(image)
        what = rng.randrange(4)
        if what == 0:
            self._tell("lie: command")
            command = rng.choice((*range(13), *range(20, 25), 99, rpc.OPTEE_RPC_CMD_SHM_FREE))
            image[:4] = struct.pack("<I", command)
        elif what == 1:
            self._tell("lie: parameter count")
            image[28:32] = struct.pack("<I", rng.choice((0, 1, 4, 5, 127, 128, M32)))
        elif what == 2:
            self._tell("lie: parameter type")
            image[32:40] = struct.pack("<Q", rng.getrandbits(10))
        else:
            self._tell("lie: physical address")
            attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT + rng.randrange(3)
            image[32:48] = struct.pack("<2Q", attr, pa & ~0xFFF)
        return bytes(image)
