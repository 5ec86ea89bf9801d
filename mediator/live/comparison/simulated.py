# SPDX-License-Identifier: BSD-2-Clause
"""The simulated guest, recorded as a live one is: before the same mediator and secure world.

Memory map, seed, number of threads and trusted applications are those of the live platform
(:mod:`mediator.live.platform`); the recorder is the one that records live guests.
"""

from __future__ import annotations

from typing import Final

import attrs

from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings
from mediator.guest.memory import PAGE_MASK, PAGE_SIZE
from mediator.guest.profile import Profile
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.machine_events import TrapEnter, TrapExit
from mediator.hypervisor.stage2 import OWN_RW
from mediator.live.comparison.edges import Edges
from mediator.live.comparison.workload import Placement, Workload
from mediator.live.mailbox import KERNEL_RAM
from mediator.optee.settings import OFFERED_CAPABILITIES, MediatorSettings
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps.rng import registry_with_rng
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_smc as smc
from specs.replay.recorder import Recorder
from specs.replay.records import Call, Record, Return

RAM_PAGES: Final = 0x8000
"""128 MB, from where a live guest's RAM begins."""
THREADS: Final = 4
DESCRIPTORS: Final = 4
"""Free from there on in a supplicant that a shell started in the background."""
SEED: Final = 1
"""Of the live platform, by default."""
_OWNERS: Final = (0x32, 0xB2, 0xBF)
"""Bits 31 to 24 of calls to the trusted OS: yielding, fast, and the fast ones for the API itself."""


@attrs.frozen(kw_only=True)
class Simulation:
    """What a recording is compared with. ``storage``: whether secure storage is tried.
    ``edges``: the client of ``edges.c`` instead of the built-in one."""

    profile: Profile
    classic: bool = False
    vcpus: int = 1
    storage: bool = True
    edges: bool = False


class _Tap:
    """Hands the traps of one guest to a recorder."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.platform: Platform | None = None
        self.guest = 0
        self._open: set[int] = set()
        self._recorder = Recorder(self._read, self._write)

    def _read(self, ipa: int, length: int) -> bytes | None:
        """Guest memory, behind the back of the checkers (who count reads by the mediator)."""
        assert self.platform is not None
        pfn, kind = self.platform.host.record(self.guest).stage2.lookup(ipa // PAGE_SIZE)
        if kind != OWN_RW:
            return None
        return self.platform.memory.read(pfn * PAGE_SIZE + (ipa & PAGE_MASK), length)

    def _write(self, record: Record) -> None:
        self.records.append(record)

    def __call__(self, event: tuple[object, ...]) -> None:
        if isinstance(event, TrapEnter):
            self.guest = event.guest
            if event.regs[0] >> 24 & 0xFF in _OWNERS:
                self._open.add(event.vcpu)
                self._recorder.call(event.vcpu, event.regs, self._time())
        elif isinstance(event, TrapExit) and event.vcpu in self._open:
            self._open.remove(event.vcpu)
            self._recorder.answer(event.vcpu, event.regs, self._time())

    def _time(self) -> float:
        assert self.platform is not None
        return self.platform.monitor.now() / 1000


def simulate(what: Simulation, placement: Placement) -> tuple[Call | Return, ...]:
    """Run the workload; the recorded calls and answers, in order. Raises what the guest raised."""
    capabilities = OFFERED_CAPABILITIES
    if what.classic:
        capabilities &= ~smc.OPTEE_SMC_SEC_CAP_RPC_ARG
    tap = _Tap()
    platform = Platform(
        PlatformSettings(
            seed=SEED,
            machine=MachineSettings(pcpus=what.vcpus),
            mediator=MediatorSettings(capabilities=capabilities),
            secure_world=SecureWorldSettings(threads=THREADS),
        ),
        sinks=[tap],
        registry=registry_with_rng(),
    )
    tap.platform = platform

    async def main(guest: Guest) -> None:
        if what.edges:
            await Edges(guest, placement).run()
        else:
            await Workload(guest, placement, storage=what.storage).run()

    settings = GuestSettings(
        "simulated",
        ((KERNEL_RAM, RAM_PAGES),),
        vcpus=what.vcpus,
        driver=DriverSettings(profile=what.profile),
        supplicant=False,
        descriptors=DESCRIPTORS,
        unload=False,
    )
    number = platform.add_guest(settings, main)
    platform.run()
    platform.guests[number].check()
    platform.check()
    return tuple([r for r in tap.records if isinstance(r, Call | Return)])
