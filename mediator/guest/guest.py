# SPDX-License-Identifier: BSD-2-Clause
"""A whole simulated guest: kernel, OP-TEE driver, supplicant and the programs that run on it.

A machine runs :attr:`Guest.programs`, one per vCPU. The boot thread probes the driver, starts the
supplicant, runs the given client programs side by side and, when all have ended, unloads the
driver; then every vCPU returns.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from random import Random
from uuid import UUID

import attrs

from mediator.guest.client import Client
from mediator.guest.cpu import GuestCpu, VcpuProgram
from mediator.guest.driver import Driver
from mediator.guest.driver_settings import DriverSettings, RegistrationError
from mediator.guest.events import GuestBooted, GuestStopped, Sink
from mediator.guest.kernel import Kernel, Thread
from mediator.guest.memory import PageAllocator
from mediator.guest.renewal import Renewal
from mediator.guest.storage import FIRST_DESCRIPTOR, FileStore
from mediator.guest.supplicant import Plugin, Supplicant
from smccc.constants import psci

Main = Callable[["Guest"], Coroutine[object, object, object]]
"""A client program: a coroutine function that gets its guest."""


class GuestFailed(Exception):
    """Threads of a guest ended by exceptions nobody caught; ``failures`` are (thread name, error)."""

    def __init__(self, guest: str, failures: tuple[tuple[str, Exception], ...]) -> None:
        told = "; ".join(f"{thread}: {error!r}" for thread, error in failures)
        super().__init__(f"guest {guest}: {told}")
        self.failures = failures


@attrs.frozen
class GuestSettings:
    """What a guest is made of.

    ``ram``: (IPA, pages) of each extent, as its device tree would say. ``seed``: places user
    memory. ``images``: TA images of the supplicant by UUID, ``plugins`` likewise. ``supplicant``:
    whether one is started. ``unload``: remove the driver at the end. ``bring_up``: vCPU 0 starts
    the others by PSCI CPU_ON (a machine that starts them by itself must not be asked).
    ``descriptors``: the lowest file descriptor that the supplicant has free.
    """

    name: str
    ram: tuple[tuple[int, int], ...]
    vcpus: int = 2
    seed: int = 0
    driver: DriverSettings = attrs.field(factory=DriverSettings)
    images: Mapping[UUID, bytes] = attrs.field(factory=dict)
    plugins: Mapping[UUID, Plugin] = attrs.field(factory=dict)
    supplicant: bool = True
    unload: bool = True
    bring_up: bool = False
    descriptors: int = FIRST_DESCRIPTOR


class Guest:
    """One guest. ``store`` is its disk; pass one in to keep it across guests."""

    def __init__(
        self, settings: GuestSettings, sink: Sink | None = None, store: FileStore | None = None
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.sink = sink
        self._rng: Random | None = None
        self.kernel = Kernel()
        self.pages = PageAllocator(settings.ram, settings.seed)
        self.store = store or FileStore()
        self.driver = Driver(self.kernel, self.pages, settings.driver, processors=settings.vcpus)
        self.supplicant = Supplicant(
            self.driver,
            settings.images,
            self.store,
            settings.plugins,
            descriptors=settings.descriptors,
        )
        self.renewal = Renewal(self)
        self.booted = False
        """True once driver and supplicant are ready and the programs begin."""
        self._mains: tuple[Main, ...] | None = None

    @property
    def programs(self) -> tuple[VcpuProgram, ...]:
        """The programs of the vCPUs, to be run by a machine."""
        return (self._run,) * self.settings.vcpus

    async def _run(self, cpu: GuestCpu) -> None:
        mains, self._mains = self._mains, None
        if mains is not None:
            # Made here, so that a guest which is never run leaves no coroutine behind.
            self.kernel.spawn(self._boot(mains), "boot")
        await self.kernel.run(cpu)

    @property
    def rng(self) -> Random:
        """The guest's own generator, for its programs to draw from."""
        if self._rng is None:
            self._rng = Random(self.settings.seed)
        return self._rng

    def start(self, *mains: Main) -> None:
        """Boot as soon as a vCPU runs, and then run ``mains`` as threads of their own."""
        self._mains = mains

    async def _boot(self, mains: tuple[Main, ...]) -> None:
        if self.settings.bring_up:
            await self._bring_up()
        await self.renewal.begin()
        self.booted = True
        if self.sink is not None:
            driver = self.driver
            self.sink(
                GuestBooted(
                    self.name,
                    driver.settings.profile.name,
                    driver.capabilities,
                    driver.queue.total_threads,
                    len(driver.devices),
                )
            )
        threads = [self.spawn(main) for main in mains]
        for thread in threads:
            await thread.finish()
        if self.settings.unload:
            if self.settings.supplicant:
                self.supplicant.stop()
            await self._unload()
        if self.sink is not None:
            self.sink(GuestStopped(self.name, len(self.kernel.failures)))

    async def _unload(self) -> None:
        try:
            await self.driver.remove()
        except RegistrationError:
            if not self.driver.lost:
                raise

    def spawn(self, main: Main, name: str | None = None) -> Thread:
        """Run one more client program as a thread."""
        return self.kernel.spawn(main(self), name or str(getattr(main, "__name__", "main")))

    async def _bring_up(self) -> None:
        cpu: GuestCpu = self.kernel.cpu
        conduit = cpu.hvc if self.settings.driver.hvc else cpu.smc
        for index in range(1, self.settings.vcpus):
            affinity = (index & 0xF) | index >> 4 << 8
            # The entry point means nothing to a simulated vCPU, but has to lie in memory.
            entry = self.settings.ram[0][0]
            await conduit(psci.PSCI_CPU_ON_AARCH64, affinity, entry, index)

    def client(self, name: str = "") -> Client:
        """A connection to the TEE for one client program."""
        return Client(self.driver, self.rng, name or self.name, self.sink)

    def check(self) -> None:
        """Raise :class:`GuestFailed` if a thread ended by an exception that nobody caught."""
        failures = tuple([(thread.name, error) for thread, error in self.kernel.failures])
        if failures:
            raise GuestFailed(self.name, failures)

    def close(self) -> None:
        """Throw the guest away; needed only for one that no machine ever ran."""
        self.kernel.close()

    def stuck(self) -> tuple[tuple[str, str], ...]:
        """(thread, what it waits for) of every thread that is no service and has not ended."""
        threads = (*self.kernel.threads, *self.kernel.abandoned)
        return tuple([(t.name, t.waiting_for) for t in threads if not t.daemon])

    def counters(self) -> dict[str, int]:
        """All counters of the guest by name, for tables."""
        driver = self.driver.counters
        kernel = self.kernel.counters
        numbers: dict[str, int] = {
            name: getattr(driver, name) for name in driver.__slots__ if name != "rpcs"
        }
        numbers["rpcs"] = sum(driver.rpcs.values())
        numbers |= {f"kernel_{name}": getattr(kernel, name) for name in kernel.__slots__}
        numbers["supplicant_requests"] = sum(self.supplicant.served.values())
        numbers["pages_in_use"] = self.pages.in_use
        numbers["shared_memories"] = len(self.driver.shms)
        return numbers
