# SPDX-License-Identifier: BSD-2-Clause
"""The mediator as part of the hypervisor: every system call is a direct call of the host.

:class:`InHypervisor` is the public face for hosts that know nothing of coroutines: they implement
:class:`mediator.host.Host` and call :meth:`~InHypervisor.handle` for each trap. Nested use from
inside a host method is supported (the model of another processor trapping meanwhile); use from two
OS threads at once is a named error, :class:`ConcurrentEntry`.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from threading import get_ident
from typing import Final, TypeVar, cast

import attrs

from mediator.deployment.direct import DirectSyscalls as DirectSyscalls
from mediator.deployment.errors import ConcurrentEntry as ConcurrentEntry
from mediator.deployment.suspending import SuspendingSyscalls as SuspendingSyscalls
from mediator.host import Host
from mediator.optee.events import Sink
from mediator.optee.lifecycle import Probe
from mediator.optee.mediator import GuestInfo, OpteeMediator, Wait
from mediator.optee.settings import MediatorSettings
from mediator.optee.syscalls import Syscalls
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


class InHypervisor:
    """A mediator on a host, in the hypervisor.

    ``host``: the services. ``settings``: offers and limits. ``sink``: gets the mediator's events.
    ``suspending``: every system call of the async methods is a switch point.
    """

    __slots__ = ("_depth", "_direct", "_owner", "_syscalls", "host", "mediator")

    def __init__(
        self,
        host: Host,
        settings: MediatorSettings | None = None,
        sink: Sink | None = None,
        *,
        suspending: bool = False,
    ) -> None:
        self.host = host
        self.mediator = OpteeMediator(settings, sink)
        self._direct: Syscalls = DirectSyscalls(host)
        self._syscalls: Syscalls = SuspendingSyscalls(host) if suspending else self._direct
        self._owner: int | None = None
        self._depth = 0

    def guest_of(self, client: int) -> int:
        """The guest behind a client id of the TEE."""
        return self.mediator.guest_of(client)

    def close(self) -> None:
        """Nothing has to be ended here."""

    # --- for hosts without coroutines -------------------------------------------------------

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

    def probe(self, *, device_tree_node: bool = True) -> Probe:
        """Look for OP-TEE. Without its device tree node the TEE is not even asked."""
        if not device_tree_node:
            return Probe(False, 0, "no linaro,optee-tz node in the device tree")
        return self._run(self.mediator.probe(self._direct))

    def create_guest(self, guest: int) -> Done | Refused:
        """Tell the TEE of a new guest. ``Refused``: it has no room for it."""
        taken = self._run(self.mediator.guest_created(self._direct, guest))
        return DONE if taken else REFUSED

    def destroy_guest(self, guest: int) -> Done | Preempted:
        """Release everything of a guest. ``Preempted``: enter again."""
        done = self._run(self.mediator.guest_destroyed(self._direct, guest))
        return DONE if done else PREEMPTED

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
        out = self._run(self.mediator.handle(self._direct, guest, vcpu, frame))
        if out is None:
            return NOT_MINE
        return Completed(tuple([value & MASK32 for value in out]) if aarch32 else out)

    def notification_interrupt(self) -> Done | Preempted:
        """The TEE raised its notification interrupt. ``Preempted``: enter again."""
        done = self._run(self.mediator.notification_interrupt(self._direct))
        return DONE if done else PREEMPTED

    def waits(self) -> tuple[Wait, ...]:
        """The threads of the TEE that wait now."""
        return self.mediator.waits()

    def guest_info(self, guest: int) -> GuestInfo | None:
        """Counters of a guest, ``None`` if it has no context."""
        return self.mediator.guest_info(guest)

    def snapshot(self) -> dict[str, object]:
        """The mediator's state as plain data, between entries."""
        return self.mediator.snapshot()

    def restore(self, data: dict[str, object]) -> None:
        """Go back to a snapshot. ``ValueError`` if it is none of this version."""
        self._run(self.mediator.restore(self._direct, data))

    # --- for hosts that are coroutines themselves -------------------------------------------

    def handle_regs(
        self, guest: int, vcpu: int, regs: Registers8
    ) -> Coroutine[object, None, Registers8 | None]:
        """As :meth:`handle`, for a driver of coroutines; ``None``: not mine."""
        out = self.mediator.handle(self._syscalls, guest, vcpu, regs)
        return cast("Coroutine[object, None, Registers8 | None]", out)

    async def guest_created(self, guest: int) -> bool:
        """``False``: the TEE refused."""
        return await self.mediator.guest_created(self._syscalls, guest)

    async def physical_interrupt(self, intid: int) -> bool:
        """The TEE raised interrupt ``intid``, and it has only one. ``False``: enter again."""
        return await self.mediator.notification_interrupt(self._syscalls)

    async def timer_expired(self) -> bool:
        """Nothing here sets a timer: what waits is asked for when its vCPU has rested."""
        return True

    async def guest_destroyed(self, guest: int) -> bool:
        """``False``: enter again."""
        return await self.mediator.guest_destroyed(self._syscalls, guest)
