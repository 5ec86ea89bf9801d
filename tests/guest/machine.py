# SPDX-License-Identifier: BSD-2-Clause
"""The least machine a guest can run on: memory, vCPUs, interrupts, virtual time, and a TEE function.

No stage 2 and no mediator: an IPA is a physical address, and the TEE is called directly. By default
nothing suspends but WFI; with ``suspending`` every trap and every memory access is a switch point,
and a seeded choice says which vCPU goes next.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from random import Random

from mediator.guest.cpu import TIMER_PPI, GuestAbort, Registers, VcpuProgram
from mediator.suspend import PREEMPTION_POINT, Suspend

Tee = Callable[["FakeCpu", Registers], tuple[int, int, int, int]]
"""Answers one SMC: (vCPU, x0..x7) to x0..x3."""

SMC_NS = 1000
"""Virtual time that one SMC takes."""

_WFI = object()


class FakeCpu:
    def __init__(self, machine: FakeMachine, index: int) -> None:
        self.machine = machine
        self.index = index
        self.guest_id = 0
        self.pending: list[int] = []
        self.active: list[int] = []
        self.deadline: int | None = None
        self.waiting = False

    async def smc(
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
    ) -> Registers:
        machine = self.machine
        if machine.suspending:
            await PREEMPTION_POINT
        machine.now += SMC_NS
        x0, x1, x2, x3 = machine.tee(self, (a0, a1, a2, a3, a4, a5, a6, a7))
        return (x0, x1, x2, x3, a4, a5, a6, a7)

    hvc = smc

    async def wfi(self) -> None:
        if self.machine.suspending:
            await PREEMPTION_POINT
        if not self.deliverable:
            await Suspend[None](_WFI)

    async def read(self, ipa: int, length: int) -> bytes:
        if self.machine.suspending:
            await PREEMPTION_POINT
        return self.machine.load(ipa, length)

    async def write(self, ipa: int, data: bytes) -> None:
        if self.machine.suspending:
            await PREEMPTION_POINT
        self.machine.store(ipa, data)

    def now(self) -> int:
        return self.machine.now

    def set_timer(self, deadline: int | None) -> None:
        self.deadline = deadline

    @property
    def deliverable(self) -> bool:
        return any(intid not in self.active for intid in self._asserted())

    def _asserted(self) -> list[int]:
        if self.deadline is not None and self.machine.now >= self.deadline:
            return sorted([*self.pending, TIMER_PPI])
        return sorted(self.pending)

    def acknowledge(self) -> int | None:
        for intid in self._asserted():
            if intid not in self.active:
                self.active.append(intid)
                if intid in self.pending:
                    self.pending.remove(intid)
                return intid
        return None

    def end_of_interrupt(self, intid: int) -> None:
        self.active.remove(intid)

    def send_sgi(self, target: int, intid: int) -> None:
        self.machine.cpus[target].inject(intid)

    def inject(self, intid: int) -> None:
        """Make an interrupt pending."""
        if intid not in self.pending:
            self.pending.append(intid)


class FakeMachine:
    def __init__(
        self,
        ram: Sequence[tuple[int, int]],
        tee: Tee,
        vcpus: int = 1,
        seed: int = 0,
        suspending: bool = False,
    ) -> None:
        self.memory = [(ipa, bytearray(pages * 4096)) for ipa, pages in ram]
        self.tee = tee
        self.cpus = [FakeCpu(self, index) for index in range(vcpus)]
        self.now = 0
        self.suspending = suspending
        self.rng = Random(seed)

    def load(self, ipa: int, length: int) -> bytes:
        for base, data in self.memory:
            if base <= ipa and ipa + length <= base + len(data):
                return bytes(data[ipa - base : ipa - base + length])
        raise GuestAbort(ipa, False)

    def store(self, ipa: int, content: bytes) -> None:
        for base, data in self.memory:
            if base <= ipa and ipa + len(content) <= base + len(data):
                data[ipa - base : ipa - base + len(content)] = content
                return
        raise GuestAbort(ipa, True)

    def run(self, programs: Sequence[VcpuProgram], steps: int = 1_000_000) -> bool:
        """Run the vCPUs to their end; False if all of them wait for something that never comes."""
        bodies: dict[int, Coroutine[object, object, None]] = {}
        for cpu, program in zip(self.cpus, programs, strict=True):
            bodies[cpu.index] = _body(program, cpu)
        turn = 0
        for _ in range(steps):
            if not bodies:
                return True
            ready = [
                index
                for index in bodies
                if not self.cpus[index].waiting or self.cpus[index].deliverable
            ]
            if not ready:
                deadlines = [c.deadline for c in self.cpus if c.deadline is not None]
                if not deadlines:
                    break
                self.now = max(self.now, min(deadlines))
                if not any(c.deliverable for c in self.cpus):
                    break
                continue
            turn += 1
            index = self.rng.choice(ready) if self.suspending else ready[turn % len(ready)]
            self.cpus[index].waiting = False
            try:
                request = bodies[index].send(None)
            except StopIteration:
                del bodies[index]
            else:
                self.cpus[index].waiting = request is _WFI
        for body in bodies.values():
            body.close()
        return not bodies


async def _body(program: VcpuProgram, cpu: FakeCpu) -> None:
    await program(cpu)
