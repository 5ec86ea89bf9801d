# SPDX-License-Identifier: BSD-2-Clause
"""What every deployment shows to a host without coroutines: how it is entered, and what comes out.

Nested use from inside a host method is supported (the model of another processor trapping meanwhile);
use from two OS threads at once is a named error, :class:`ConcurrentEntry`.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from threading import get_ident
from typing import Final, TypeVar

import attrs

from mediator.deployment.errors import ConcurrentEntry as ConcurrentEntry
from mediator.suspend import UnexpectedSuspension

T = TypeVar("T")
Registers8 = tuple[int, int, int, int, int, int, int, int]

REGISTERS: Final = 8
"""x0..x7: no OP-TEE call uses more."""

MASK32: Final = (1 << 32) - 1
MASK64: Final = (1 << 64) - 1


@attrs.frozen
class Completed:
    """The trap was served; ``regs`` are the guest's x0..x7 now."""

    regs: tuple[int, ...]


@attrs.frozen
class NotMine:
    """Not a call of this mediator: the host answers "unknown function" (-1) or asks another."""


@attrs.frozen
class Undefined:
    """The trap is no SMCCC call: the host injects an undefined-instruction exception."""


@attrs.frozen
class Done:
    """A life-cycle step is complete: the guest has a TEE, or nothing of it is left."""


@attrs.frozen
class Refused:
    """The TEE did not take the new guest, which lives on without one: its calls are ``NotMine``."""


@attrs.frozen
class Preempted:
    """A life-cycle step stopped on the way: enter again."""


NOT_MINE: Final = NotMine()
UNDEFINED: Final = Undefined()
DONE: Final = Done()
REFUSED: Final = Refused()
PREEMPTED: Final = Preempted()


class Face:
    """Runs coroutines of a deployment inline, and checks what a trap hands in."""

    __slots__ = ("_depth", "_owner")

    def __init__(self) -> None:
        self._owner: int | None = None
        self._depth = 0

    def _run(self, coroutine: Coroutine[object, None, T]) -> T:
        thread = get_ident()
        if self._depth and self._owner != thread:
            coroutine.close()
            raise ConcurrentEntry("the mediator was entered from two threads at once")
        self._owner = thread
        self._depth += 1
        try:
            # As mediator.suspend.run does it, without a call more for every trap.
            request = coroutine.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            self._depth -= 1
        coroutine.close()
        raise UnexpectedSuspension(f"coroutine suspended with request {request!r}")

    def _trapped(
        self, guest: int, vcpu: int, regs: tuple[int, ...]
    ) -> Coroutine[object, None, tuple[int, ...] | None]:
        """Serve a trap without suspending; ``None``: not mine."""
        raise NotImplementedError

    def serve(self, guest: int, vcpu: int, regs: Registers8) -> tuple[int, ...] | None:
        """As :meth:`handle`, for a host that has checked immediate and width itself: x0..x7 in
        and out, ``None``: not mine. The registers are not looked at before they are used."""
        return self._run(self._trapped(guest, vcpu, regs))

    def handle(
        self,
        guest: int,
        vcpu: int,
        regs: Sequence[int],
        *,
        immediate: int = 0,
        aarch32: bool = False,
    ) -> Completed | NotMine | Undefined:
        """Serve a trapped SMC or HVC with ``regs`` = x0..x7 (unsigned, 64 bits each).

        ``immediate``: of the instruction; nonzero is no SMCCC call (from AArch32 it is not in the
        syndrome: pass 0). ``aarch32``: only the low words of the registers count, and the answer
        has no others. ``ValueError`` for registers that no guest can have.
        """
        if immediate:
            return UNDEFINED
        if len(regs) != REGISTERS:
            raise ValueError(f"regs: {REGISTERS} registers are needed, got {len(regs)}")
        frame = tuple(regs)
        x0, x1, x2, x3, x4, x5, x6, x7 = frame
        if not 0 <= x0 | x1 | x2 | x3 | x4 | x5 | x6 | x7 <= MASK64:
            index = next(i for i, value in enumerate(frame) if not 0 <= value <= MASK64)
            raise ValueError(
                f"regs[{index}]: {frame[index]:#x} does not fit an unsigned 64-bit register"
            )
        if aarch32:
            frame = tuple(value & MASK32 for value in frame)
        out = self._run(self._trapped(guest, vcpu, frame))
        if out is None:
            return NOT_MINE
        return Completed(tuple([value & MASK32 for value in out]) if aarch32 else out)
