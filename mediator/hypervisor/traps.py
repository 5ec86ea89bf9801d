# SPDX-License-Identifier: BSD-2-Clause
"""Dispatch of SMC and HVC traps: who answers a call of the SMC Calling Convention (DEN 0028).

One table look-up by owner decides; a call costs no object. The rules are those of the reference
mediator's host (its ``vsmc.c``):

- A nonzero immediate is an undefined instruction. An SMC from AArch32 is exempt: the syndrome does
  not hold its immediate.
- The function id is the low word of x0. A 32-bit guest has low words only, and a 64-bit convention
  id from it is refused.
- Bits 23:17 of a fast call's id are reserved and must be zero: such an id is nobody's, whatever the
  rest of it says. In a yielding id they belong to the number. Bit 16 is the SVE hint since SMCCC 1.3
  and cleared before anybody looks; before, it is a bit of the number like any other.
- The range below 0x01010000 predates the convention and holds PSCI 0.1 only.
- What nobody serves is answered -1, all 64 bits set; every other register keeps its value.

PSCI itself needs the machine, so :meth:`Dispatcher.dispatch` only says that a call is PSCI's.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Literal, TypeAlias

from mediator.hypervisor.services import (
    FFA_FIRST_NUMBER,
    FFA_LAST_NUMBER,
    MASK32,
    NOT_SUPPORTED,
    PSCI_0_1_CPU_OFF,
    PSCI_0_1_CPU_ON,
    ServiceSettings,
    arch_features,
    compile_answers,
    soc_id,
)
from mediator.hypervisor.tee import Registers, TeeMediator
from smccc.constants import arm_smccc


class TrapOutcome(Enum):
    """Ends of a trap, or of its routing, that are not a register frame."""

    UNDEFINED = "undefined"
    """Inject an undefined instruction exception; nothing was answered."""
    PSCI = "psci"
    """The call belongs to the PSCI implementation, which has yet to run."""
    TEE = "tee"
    """The call belongs to the TEE mediator, which has yet to run. Never the end of a trap."""


UNDEFINED: Final = TrapOutcome.UNDEFINED
PSCI: Final = TrapOutcome.PSCI
TEE: Final = TrapOutcome.TEE

Answer: TypeAlias = Registers | Literal[TrapOutcome.UNDEFINED, TrapOutcome.PSCI]
Route: TypeAlias = Answer | Literal[TrapOutcome.TEE]
SipHook: TypeAlias = Callable[[int, int, Registers], Registers | None]
"""``(guest, vcpu, regs)`` -> registers, or ``None``: unknown. The platform's silicon provider calls."""

_TO_NOBODY, _TO_TEE, _TO_ANSWERS, _TO_STANDARD, _TO_SIP = range(5)


def _owner_table() -> bytes:
    table = bytearray(arm_smccc.OEN_LIMIT)
    table[arm_smccc.ARM_SMCCC_OWNER_ARCH] = _TO_ANSWERS
    table[arm_smccc.ARM_SMCCC_OWNER_HYPERVISOR] = _TO_ANSWERS
    table[arm_smccc.ARM_SMCCC_OWNER_VENDOR_HYP] = _TO_ANSWERS
    table[arm_smccc.ARM_SMCCC_OWNER_STANDARD] = _TO_STANDARD
    table[arm_smccc.ARM_SMCCC_OWNER_SIP] = _TO_SIP
    for owner in range(arm_smccc.OEN_TAP_START, arm_smccc.OEN_TOS_END + 1):
        table[owner] = _TO_TEE
    return bytes(table)


_ROUTE: Final = _owner_table()

_OWNER_SHIFT: Final = arm_smccc.ARM_SMCCC_OWNER_SHIFT
_OWNER_MASK: Final = arm_smccc.ARM_SMCCC_OWNER_MASK
_SMC64_BIT: Final = arm_smccc.ARM_SMCCC_SMC_64 << arm_smccc.ARM_SMCCC_CALL_CONV_SHIFT
_RESERVED_END: Final = arm_smccc.ARM_SMCCC_RESERVED_RANGE_END
_FAST_RESERVED: Final = arm_smccc.FUNCID_FC_RESERVED_MASK << arm_smccc.FUNCID_FC_RESERVED_SHIFT
_FAST_BIT: Final = arm_smccc.ARM_SMCCC_FAST_CALL << arm_smccc.ARM_SMCCC_TYPE_SHIFT
_SVE_HINT: Final = arm_smccc.ARM_SMCCC_1_3_SVE_HINT
_ARCH_FEATURES: Final = arm_smccc.ARM_SMCCC_ARCH_FEATURES_FUNC_ID
_ARCH_SOC_ID: Final = arm_smccc.ARM_SMCCC_ARCH_SOC_ID
_PSCI_0_1: Final = (PSCI_0_1_CPU_OFF, PSCI_0_1_CPU_ON)


def advance_pc(hvc: bool, answer: Answer) -> bool:
    """Whether the host must step over the trapped instruction.

    An HVC returns behind itself by architecture; an SMC is trapped *at* the instruction. An
    undefined instruction is never stepped over.
    """
    return not hvc and answer is not UNDEFINED


def not_supported(regs: Registers) -> Registers:
    """The answer to a call that nobody serves."""
    return (NOT_SUPPORTED, *regs[1:])


def low_words(regs: Registers) -> Registers:
    """The 32-bit view of a register frame."""
    a0, a1, a2, a3, a4, a5, a6, a7 = regs
    return (
        a0 & MASK32,
        a1 & MASK32,
        a2 & MASK32,
        a3 & MASK32,
        a4 & MASK32,
        a5 & MASK32,
        a6 & MASK32,
        a7 & MASK32,
    )


class Dispatcher:
    """Routes traps. ``sip`` serves the platform's SiP range; without it that range is unknown.

    ``tee``: the mediator; a machine without one refuses the TEE ranges. ``has_hint``: bit 16 of a
    function id is a hint and must be cleared by :meth:`normalise`.
    """

    __slots__ = ("_answers", "_psci", "_settings", "_sip", "has_hint", "tee")

    def __init__(
        self, settings: ServiceSettings, tee: TeeMediator | None, sip: SipHook | None = None
    ) -> None:
        self._settings = settings
        self._sip = sip
        self._answers = compile_answers(settings)
        self._psci = frozenset(settings.psci_functions)
        self.tee = tee
        self.has_hint = settings.smccc_version >= arm_smccc.ARM_SMCCC_VERSION_1_3

    async def dispatch(
        self,
        guest: int,
        vcpu: int,
        regs: Registers,
        hvc: bool = False,
        immediate: int = 0,
        aarch32: bool = False,
    ) -> Answer:
        """Answer one trap: new x0..x7, :data:`UNDEFINED`, or :data:`PSCI` (nothing done yet).

        ``aarch32``: the calling guest runs in AArch32; its registers are cut to their low words
        before anybody sees them.
        """
        if aarch32 or self.has_hint:
            regs = self.normalise(regs, aarch32)
        answer = self.route(guest, vcpu, regs, hvc, immediate, aarch32)
        if answer is TEE:
            tee = self.tee
            served = None if tee is None else await tee.handle_regs(guest, vcpu, regs)
            return not_supported(regs) if served is None else served
        return answer

    def normalise(self, regs: Registers, aarch32: bool) -> Registers:
        """What the caller is entitled to pass: low words only, and no hint in the function id."""
        if aarch32:
            regs = low_words(regs)
        if self.has_hint and regs[0] & _SVE_HINT and regs[0] & MASK32 > _RESERVED_END:
            regs = (regs[0] & ~_SVE_HINT, *regs[1:])
        return regs

    def route(
        self, guest: int, vcpu: int, regs: Registers, hvc: bool, immediate: int, aarch32: bool
    ) -> Route:
        """Decide who answers, and answer what the hypervisor answers itself. Never suspends.

        ``regs`` are normalised. :data:`TEE`: await ``tee.handle_regs``; ``None`` from it means
        :func:`not_supported`.
        """
        if immediate and (hvc or not aarch32):
            return UNDEFINED
        function = regs[0] & MASK32
        if aarch32 and function & _SMC64_BIT:
            return not_supported(regs)
        if function & _FAST_RESERVED and function & _FAST_BIT:
            return not_supported(regs)
        route = _ROUTE[function >> _OWNER_SHIFT & _OWNER_MASK]
        if route == _TO_TEE:
            return TEE if self.tee is not None else not_supported(regs)
        if function <= _RESERVED_END:
            return PSCI if function in _PSCI_0_1 else not_supported(regs)
        answer: Registers | None = None
        if route == _TO_STANDARD:
            if function in self._psci:
                return PSCI
            number = function & arm_smccc.ARM_SMCCC_FUNC_MASK
            if FFA_FIRST_NUMBER <= number <= FFA_LAST_NUMBER and self.tee is not None:
                return TEE
            answer = self._constant(regs, function)
        elif route == _TO_ANSWERS:
            answer = self._constant(regs, function)
        elif route == _TO_SIP and self._sip is not None:
            answer = self._sip(guest, vcpu, regs)
        return not_supported(regs) if answer is None else answer

    def _constant(self, regs: Registers, function: int) -> Registers | None:
        words = self._answers.get(function)
        if words is None:
            if function == _ARCH_FEATURES:
                word = arch_features(self._settings, regs[1] & MASK32)
            elif function == _ARCH_SOC_ID:
                word = soc_id(self._settings, regs[1] & MASK32)
            else:
                return None
            return None if word is None else (word, *regs[1:])
        a0, a1, a2, a3, a4, a5, a6, a7 = (*words, *regs[len(words) :])
        return a0, a1, a2, a3, a4, a5, a6, a7
