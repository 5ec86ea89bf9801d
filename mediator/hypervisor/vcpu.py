# SPDX-License-Identifier: BSD-2-Clause
"""A virtual CPU: the machine's side of :class:`mediator.guest.cpu.GuestCpu`.

The guest program is a coroutine; each of its awaits ends here. A trap is dispatched and the
mediator entered *inline*, on the program's own stack: in direct mode nothing is suspended unless
the vCPU waits, its time is up or somebody wants it stopped. In interleave mode every await is a
switch point first.

A trap that has begun is never abandoned: the mediator's entry runs to its end on the pCPU where it
began, and only then is a vCPU whose guest is dying taken away from its program.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Final

from mediator.guest.cpu import TIMER_PPI, GuestAbort, GuestUndefined, VcpuProgram
from mediator.hypervisor import psci
from mediator.hypervisor.accounting import COMPUTE, GUEST_ACCESS, TRAP, VIRQ, WAIT
from mediator.hypervisor.core import Core
from mediator.hypervisor.guest import Guest
from mediator.hypervisor.machine_events import (
    DeviceAccess,
    PsciCall,
    TrapEnter,
    TrapExit,
    TrapUndefined,
    VcpuState,
    VirqAcknowledged,
    VirqEnded,
    VirqLost,
    VirqPending,
)
from mediator.hypervisor.requests import Fault, PowerOff, Restart, Stop, Wait
from mediator.hypervisor.scheduler import Mode, Strand
from mediator.hypervisor.services import MASK32
from mediator.hypervisor.tee import NoTee, Registers, TeeDevices
from mediator.hypervisor.timer import Timer
from mediator.hypervisor.traps import (
    PSCI,
    TEE,
    UNDEFINED,
    TrapOutcome,
    advance_pc,
    low_words,
    not_supported,
)
from mediator.suspend import PREEMPTION_POINT, Suspend
from smccc.constants import psci as psci_abi

if TYPE_CHECKING:
    from mediator.hypervisor.pcpu import Pcpu

OFF: Final = "off"
READY: Final = "ready"
RUNNING: Final = "running"
WAITING: Final = "waiting"
PAUSED: Final = "paused"

_MASK64: Final = (1 << 64) - 1
_SGI_COUNT: Final = 16
_EMULATED: Final = (1, 2, 4, 8)
"""Bytes of an access whose syndrome says enough to emulate it (Arm DDI 0487, ESR_ELx.ISV): one register.
"""

# Gates that a program must pass at each await; open is 0 so that one test of truth is enough.
_OPEN: Final = 0
_SWITCH: Final = 1
_SHUT: Final = 2
_LEAVE: Final = 3


_STOP: Final = Suspend[None](Stop())
_WAIT: Final = Suspend[None](Wait())
_POWER_OFF: Final = Suspend[None](PowerOff())
_RESTART: Final = Suspend[None](Restart())


async def _as_coroutine(program: Awaitable[None]) -> None:
    await program


def _devices_of(tee: object) -> TeeDevices | None:
    return tee if isinstance(tee, TeeDevices) else None


class Vcpu:
    """One vCPU. Implements :class:`mediator.guest.cpu.GuestCpu` for its program.

    ``in_trap``: the hypervisor or the mediator works for it. ``entry`` and ``context``: the boot
    arguments that PSCI CPU_ON gave, 0 for vCPUs that start with the guest.
    """

    __slots__ = (
        "_aarch32",
        "_access_cost",
        "_core",
        "_counts",
        "_devices",
        "_emit",
        "_gate",
        "_has_hint",
        "_load",
        "_rest",
        "_rest_timer",
        "_route",
        "_serve",
        "_store",
        "_timer",
        "_trap_cost",
        "_vgic",
        "context",
        "coroutine",
        "entry",
        "guest",
        "guest_id",
        "has_run",
        "in_trap",
        "index",
        "pcpu",
        "program",
        "state",
    )

    def __init__(
        self, core: Core, guest: Guest, index: int, pcpu: Pcpu, program: VcpuProgram
    ) -> None:
        tee = core.dispatcher.tee
        self._core = core
        self._emit = core.emit
        self._route = core.dispatcher.route
        self._serve = (NoTee() if tee is None else tee).handle_regs
        self._devices = _devices_of(tee)
        self._has_hint = core.dispatcher.has_hint
        self._load = core.memory.guest_read
        self._store = core.memory.guest_write
        self._trap_cost = core.costs[TRAP]
        self._access_cost = core.costs[GUEST_ACCESS]
        self._counts = guest.account.counts
        self._vgic = guest.vgic
        self._aarch32 = guest.aarch32
        self._gate = _SHUT
        self._timer: Timer | None = None
        self._rest = 0
        self._rest_timer: Timer | None = None
        self.guest = guest
        self.guest_id = guest.id
        self.index = index
        self.pcpu = pcpu
        self.program = program
        self.coroutine: Coroutine[object, None, None] | None = None
        self.state = OFF
        self.has_run = False
        self.in_trap = False
        self.entry = 0
        self.context = 0

    def __repr__(self) -> str:
        return f"<guest {self.guest_id} vCPU {self.index} {self.state}>"

    # --- what the guest program calls ------------------------------------------------------------

    def smc(
        self,
        a0: int,
        a1: int = 0,
        a2: int = 0,
        a3: int = 0,
        a4: int = 0,
        a5: int = 0,
        a6: int = 0,
        a7: int = 0,
        *,
        immediate: int = 0,
    ) -> Coroutine[object, None, Registers]:
        """``smc #immediate``; raises ``GuestUndefined``. Words are unsigned 64-bit."""
        return self._trap((a0, a1, a2, a3, a4, a5, a6, a7), immediate, False)

    def hvc(
        self,
        a0: int,
        a1: int = 0,
        a2: int = 0,
        a3: int = 0,
        a4: int = 0,
        a5: int = 0,
        a6: int = 0,
        a7: int = 0,
        *,
        immediate: int = 0,
    ) -> Coroutine[object, None, Registers]:
        """``hvc #immediate``; raises ``GuestUndefined``. Words are unsigned 64-bit."""
        return self._trap((a0, a1, a2, a3, a4, a5, a6, a7), immediate, True)

    async def wfi(self) -> None:
        """Wait for a deliverable interrupt; returns at once if there is one."""
        if self._gate:
            await self._pass_gate()
        pcpu = self.pcpu
        pcpu.clock += self._core.costs[WAIT]
        self._counts[WAIT] += 1
        # One that need not wait gives way, too: a guest that never takes its interrupt must not
        # keep the machine from asking whether the run is over.
        await (_STOP if self._vgic.deliverable(self.index) else _WAIT)

    async def read(self, ipa: int, length: int) -> bytes:
        """Load ``length`` bytes; raises ``GuestAbort``."""
        if self._gate:
            if self._gate != _SWITCH:
                await self._pass_gate()
            await PREEMPTION_POINT
        pcpu = self.pcpu
        pcpu.clock += self._access_cost
        self._counts[GUEST_ACCESS] += 1
        try:
            data = self._load(self.guest_id, ipa, length)
        except GuestAbort as abort:
            data = await self._emulated(abort, ipa, length, None)
        if pcpu.clock >= pcpu.stop_at:
            await _STOP
        return data

    async def write(self, ipa: int, data: bytes) -> None:
        """Store ``data``; raises ``GuestAbort``."""
        if self._gate:
            if self._gate != _SWITCH:
                await self._pass_gate()
            await PREEMPTION_POINT
        pcpu = self.pcpu
        pcpu.clock += self._access_cost
        self._counts[GUEST_ACCESS] += 1
        try:
            self._store(self.guest_id, ipa, data)
        except GuestAbort as abort:
            await self._emulated(abort, ipa, len(data), int.from_bytes(data, "little"))
        if pcpu.clock >= pcpu.stop_at:
            await _STOP

    async def compute(self, ns: int) -> None:
        """Use ``ns`` nanoseconds of processor time in guest code; slices and timers cut in."""
        account = self.guest.account
        while ns > 0:
            if self._gate:
                await self._pass_gate()
            pcpu = self.pcpu
            step = min(ns, max(pcpu.stop_at - pcpu.clock, 1))
            ns -= step
            pcpu.clock += step
            account.extra[COMPUTE] += step
            if pcpu.clock >= pcpu.stop_at:
                await _STOP

    def now(self) -> int:
        """The virtual counter, ns. Reading it takes time, so that a loop on it ends."""
        pcpu = self.pcpu
        pcpu.clock += self._access_cost
        self._counts[GUEST_ACCESS] += 1
        return pcpu.clock

    def set_timer(self, deadline: int | None) -> None:
        """Program the virtual timer, a level-sensitive interrupt: high from ``deadline`` ns on."""
        self._vgic.set_line(TIMER_PPI, False, self.index)
        timer = self._timer
        if timer is None:
            if deadline is None:
                return
            timer = self._timer = Timer(self._timer_expired)
        if deadline is not None and deadline <= self.pcpu.clock:
            self._core.scheduler.arm(timer, None)
            self.raise_line(TIMER_PPI)
        else:
            self._core.scheduler.arm(timer, deadline)

    def acknowledge(self) -> int | None:
        """Take the most urgent interrupt, ``None`` if nothing is deliverable."""
        intid = self._vgic.acknowledge(self.index)
        self.pcpu.kicked = False
        emit = self._emit
        if emit is not None and intid is not None:
            emit(VirqAcknowledged(self.guest_id, self.index, intid))
        return intid

    def end_of_interrupt(self, intid: int) -> None:
        """End an interrupt. One that is not active here is ignored, as the hardware does."""
        ended = self._vgic.end_of_interrupt(self.index, intid)
        emit = self._emit
        if emit is not None:
            emit(VirqEnded(self.guest_id, self.index, intid, int(ended)))
        if ended:
            # A level that is still high may be another vCPU's business by now.
            target = self._vgic.target(intid, self.index)
            if target >= 0:
                self.guest.vcpus[target].look()

    def send_sgi(self, target: int, intid: int) -> None:
        """Interrupt vCPU ``target`` of this guest. Ids and targets that do not exist are ignored."""
        self.pcpu.clock += self._access_cost
        self._counts[GUEST_ACCESS] += 1
        if 0 <= intid < _SGI_COUNT and 0 <= target < len(self.guest.vcpus):
            interrupt(self._core, self.guest, intid, target)

    # --- traps -----------------------------------------------------------------------------------

    async def _trap(self, regs: Registers, immediate: int, hvc: bool) -> Registers:
        if self._gate:
            if self._gate != _SWITCH:
                await self._pass_gate()
            await PREEMPTION_POINT
        pcpu = self.pcpu
        pcpu.clock += self._trap_cost
        self._counts[TRAP] += 1
        emit = self._emit
        if emit is not None:
            emit(TrapEnter(self.guest_id, self.index, hvc, immediate, regs))
        aarch32 = self._aarch32
        self.in_trap = True
        try:
            if aarch32 or self._has_hint:
                regs = self._core.dispatcher.normalise(regs, aarch32)
            answer = self._route(self.guest_id, self.index, regs, hvc, immediate, aarch32)
            if answer is TEE:
                served = await self._serve(self.guest_id, self.index, regs)
                answer = served or not_supported(regs)
        except Exception as error:
            # Not the guest's doing: its program must not see it, the caller of run() must.
            await Suspend[None](Fault(error))
            raise
        self.in_trap = False
        if answer is UNDEFINED or answer is PSCI:
            answer = await self._other_outcome(answer, regs, hvc)
        elif emit is not None:
            emit(TrapExit(self.guest_id, self.index, advance_pc(hvc, answer), answer))
        if self._rest:
            await self._take_rest()
        if pcpu.clock >= pcpu.stop_at:
            await _STOP
        return low_words(answer) if aarch32 else answer

    async def _other_outcome(self, outcome: TrapOutcome, regs: Registers, hvc: bool) -> Registers:
        """Undefined instruction or PSCI: the ends of a trap that the dispatcher leaves to us."""
        emit = self._emit
        if outcome is UNDEFINED:
            if emit is not None:
                emit(TrapUndefined(self.guest_id, self.index))
            if self.pcpu.clock >= self.pcpu.stop_at:
                await _STOP
            raise GuestUndefined
        functions = self._core.settings.services.psci_features
        result = psci.call(self.guest, self.index, regs, functions)
        if emit is not None:
            shown = result if isinstance(result, int) else result.value
            emit(PsciCall(self.guest_id, self.index, regs[0] & MASK32, shown))
        if not isinstance(result, int):
            result = await self._perform(result, regs)
        answer = (result & _MASK64, *regs[1:])
        if emit is not None:
            emit(TrapExit(self.guest_id, self.index, advance_pc(hvc, answer), answer))
        return answer

    async def _perform(self, action: psci.PsciAction, regs: Registers) -> int:
        """Carry out what PSCI decided; only standby comes back to the program."""
        if action is psci.PsciAction.CPU_OFF:
            await _POWER_OFF
        elif action is psci.PsciAction.SYSTEM_OFF or action is psci.PsciAction.SYSTEM_RESET:
            reason = "off" if action is psci.PsciAction.SYSTEM_OFF else "reset"
            self._core.lifecycle.shut_down(self.guest, reason)
            await _POWER_OFF
        else:
            while not self._vgic.deliverable(self.index):
                await _WAIT
            if action is psci.PsciAction.SYSTEM_SUSPEND:
                self.entry, self.context, _ = psci.arguments(regs)
                await _RESTART
        return psci_abi.PSCI_E_SUCCESS

    async def _emulated(self, abort: GuestAbort, ipa: int, size: int, value: int | None) -> bytes:
        """An access that stage 2 refuses: a device of the mediator's, or an abort of the guest's."""
        devices = self._devices
        if (
            devices is None
            or size not in _EMULATED
            or ipa & size - 1
            or not devices.wants_access(self.guest_id, ipa)
        ):
            raise abort
        pcpu = self.pcpu
        pcpu.clock += self._trap_cost
        self._counts[TRAP] += 1
        self.in_trap = True
        try:
            answer = await devices.handle_access(self.guest_id, self.index, ipa, size, value)
        except Exception as error:
            # As in a trap: not the guest's doing.
            await Suspend[None](Fault(error))
            raise
        self.in_trap = False
        emit = self._emit
        if emit is not None:
            shown = (answer or 0) if value is None else value
            served, write = int(answer is not None), int(value is not None)
            emit(DeviceAccess(self.guest_id, self.index, ipa, size, write, shown, served))
        if self._rest:
            await self._take_rest()
        if answer is None:
            if pcpu.clock >= pcpu.stop_at:
                await _STOP
            raise abort
        return answer.to_bytes(size, "little") if value is None else b""

    async def _take_rest(self) -> None:
        """Stay out of the guest until the rest is over, somebody ends it, or an interrupt comes."""
        scheduler = self._core.scheduler
        timer = self._rest_timer
        if timer is None:
            timer = self._rest_timer = Timer(self._rested)
        scheduler.arm(timer, self._rest)
        while self._rest > self.pcpu.clock and not self._vgic.deliverable(self.index):
            await _WAIT
        self._rest = 0
        scheduler.arm(timer, None)

    async def _pass_gate(self) -> None:
        if self._gate == _SHUT:
            # The program is being closed and awaits something in its clean-up.
            raise GeneratorExit
        if self._gate == _LEAVE:
            await _STOP
        await PREEMPTION_POINT

    # --- the machine's side ----------------------------------------------------------------------

    @property
    def is_off(self) -> bool:
        """Whether it is switched off (never started, ended, crashed, or its guest is gone)."""
        return self.state is OFF

    @property
    def is_executing(self) -> bool:
        """Whether its program, or a trap of it, is on the Python stack at this moment."""
        pcpu = self.pcpu
        return pcpu.current is self and self._core.scheduler.current is pcpu

    def set_state(self, state: str) -> None:
        """Note and announce a new state."""
        self.state = state
        emit = self._emit
        if emit is not None:
            emit(VcpuState(self.guest_id, self.index, self.pcpu.index, state))

    def power_on(self, entry: int, context: int) -> None:
        """Switch on: the program is created when the vCPU first gets its pCPU."""
        self.entry = entry
        self.context = context
        self.has_run = False
        self._gate = _SWITCH if self._core.settings.mode is Mode.INTERLEAVE else _OPEN
        self._vgic.set_online(self.index, True)
        self.make_runnable()

    def create_program(self) -> None:
        """Make the coroutine. Raises whatever the program's first part raises."""
        program = self.program(self)
        if not isinstance(program, Coroutine):
            program = _as_coroutine(program)
        self.coroutine = program
        self.has_run = True

    def make_runnable(self) -> None:
        """Queue it on its pCPU, or keep it aside while its guest is paused."""
        if self.guest.paused:
            self.set_state(PAUSED)
        else:
            self.pcpu.enqueue(self, self._core.scheduler.instant())

    def leave(self) -> None:
        """The guest is halted while this vCPU is in a trap, or on the Python stack: go no further."""
        self._gate = _LEAVE
        self.pcpu.urge()

    def look(self) -> None:
        """An interrupt may have become deliverable: wake the vCPU, or interrupt what it does."""
        if self.state is WAITING:
            if self._vgic.deliverable(self.index):
                self.make_runnable()
        elif self.in_trap and self._core.scheduler.current is not self.pcpu:
            self.pcpu.kicked = True

    def rest(self, until: int) -> None:
        """After the trap that it is in, back in the guest at ``until`` ns or when woken."""
        self._rest = until

    def end_rest(self) -> None:
        """The reason to rest is gone."""
        if self._rest:
            self._rest = 0
            if self.state is WAITING:
                self.make_runnable()

    def _rested(self, deadline: int) -> None:
        self.end_rest()

    def raise_line(self, intid: int) -> None:
        """Drive a private interrupt line of this vCPU high."""
        core = self._core
        count_interrupt(core, self.guest)
        self._vgic.set_line(intid, True, self.index)
        if core.emit is not None:
            core.emit(VirqPending(self.guest_id, self.index, intid))
        self.look()

    def _timer_expired(self, deadline: int) -> None:
        self.raise_line(TIMER_PPI)

    def close(self) -> BaseException | None:
        """End the program for good and switch off. Returns what it raised on the way, if anything."""
        self._gate = _SHUT
        coroutine, self.coroutine = self.coroutine, None
        self.in_trap = False
        self._rest = 0
        if self._rest_timer is not None:
            self._core.scheduler.arm(self._rest_timer, None)
        if self._timer is not None:
            self._core.scheduler.arm(self._timer, None)
            self._vgic.set_line(TIMER_PPI, False, self.index)
        self.set_state(OFF)
        moved = self._vgic.set_online(self.index, False)
        if moved >= 0:
            # Unrouted shared interrupts now go to another vCPU.
            self.guest.vcpus[moved].look()
        try:
            if coroutine is not None:
                coroutine.close()
        except (Exception, SystemExit) as error:
            return error
        return None


def count_interrupt(core: Core, guest: Guest) -> None:
    """Charge one virtual interrupt to ``guest``, on whichever strand causes it."""
    guest.account.counts[VIRQ] += 1
    current: Strand | None = core.scheduler.current
    if current is not None:
        current.clock += core.costs[VIRQ]


def interrupt(core: Core, guest: Guest, intid: int, vcpu: int = 0) -> None:
    """Latch ``intid`` (``vcpu`` matters for private ones) and let the target notice."""
    count_interrupt(core, guest)
    if core.lose_interrupt is not None and core.lose_interrupt(guest.id, intid, vcpu):
        if core.emit is not None:
            core.emit(VirqLost(guest.id, guest.vgic.target(intid, vcpu), intid))
        return
    target = guest.vgic.inject(intid, vcpu)
    if core.emit is not None:
        core.emit(VirqPending(guest.id, target, intid))
    if target >= 0:
        guest.vcpus[target].look()
