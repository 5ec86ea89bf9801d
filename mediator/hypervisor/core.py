# SPDX-License-Identifier: BSD-2-Clause
"""What the parts of one machine share: settings, scheduler, memory, dispatcher, sink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from attrs import field, frozen

from mediator.hypervisor.accounting import CostTable
from mediator.hypervisor.guest import Guest, MachineMemory
from mediator.hypervisor.machine_events import Sink
from mediator.hypervisor.scheduler import Chooser, Mode, Scheduler
from mediator.hypervisor.services import ServiceSettings
from mediator.hypervisor.traps import Dispatcher

MAX_PCPUS: Final = 256
"""Physical CPUs of one machine: the scheduler looks at each of them per step."""

DEFAULT_TIME_SLICE: Final = 4_000_000
"""ns; a tick of 250 Hz, the rate at which recorded OP-TEE calls were interrupted by Linux."""

DEFAULT_QUANTUM: Final = 100_000
"""ns a pCPU may run ahead of the others: about 100 traps, so a switch costs next to nothing."""


LoseInterrupt: TypeAlias = Callable[[int, int, int], bool]
"""A fault plan: ``(guest, intid, vcpu)`` -> whether this edge gets lost."""


@frozen
class MachineSettings:
    """The shape of the machine. Times are virtual nanoseconds.

    ``destroy_on_shutdown``: a guest that switches itself off is destroyed at once; otherwise it
    stays until somebody destroys it.
    """

    pcpus: int = 2
    mode: Mode = Mode.DIRECT
    time_slice: int = DEFAULT_TIME_SLICE
    quantum: int = DEFAULT_QUANTUM
    costs: CostTable = field(factory=CostTable)
    services: ServiceSettings = field(factory=ServiceSettings)
    max_guests: int = 65_534
    """Guest ids are 0 .. max_guests - 1; a TEE sees client ids of 16 bits, one more than ours."""
    destroy_on_shutdown: bool = True

    def __attrs_post_init__(self) -> None:
        if not 0 < self.pcpus <= MAX_PCPUS:
            raise ValueError(f"{self.pcpus} pCPUs, not 1 to {MAX_PCPUS}")
        if self.time_slice <= 0 or self.quantum < 0:
            raise ValueError("the time slice must be positive, the quantum not negative")


class Lifecycle(Protocol):
    """What happens to whole guests; the machine does it."""

    def shut_down(self, guest: Guest, reason: str) -> None:
        """``guest`` switched itself off (``off``) or wants to start again (``reset``)."""

    def vcpu_gone(self, guest: Guest) -> None:
        """A vCPU of ``guest`` has left its program for good."""


class Core:
    """Shared parts of one machine. ``fault``: an exception of the machine's own parts or of its
    sink that came up inside a guest program, which must not be able to swallow it."""

    __slots__ = (
        "_sink",
        "costs",
        "dispatcher",
        "emit",
        "fault",
        "lifecycle",
        "lose_interrupt",
        "memory",
        "scheduler",
        "settings",
    )

    def __init__(
        self,
        settings: MachineSettings,
        memory: MachineMemory,
        dispatcher: Dispatcher,
        choose: Chooser,
        lifecycle: Lifecycle,
        sink: Sink | None,
    ) -> None:
        self.settings = settings
        self.memory = memory
        self.dispatcher = dispatcher
        self.scheduler = Scheduler(settings.mode, settings.quantum, choose)
        self.costs = settings.costs.by_kind()
        self.lifecycle = lifecycle
        self.fault: Exception | None = None
        self.lose_interrupt: LoseInterrupt | None = None
        self._sink = sink
        self.emit: Sink | None = None if sink is None else self._guarded

    def _guarded(self, event: tuple[object, ...]) -> None:
        """Pass an event on; a sink that raises (a checker) stops the machine, wherever it happens."""
        sink = self._sink
        if sink is not None:
            try:
                sink(event)
            except Exception as error:
                self.fault = self.fault or error
                current = self.scheduler.current
                if current is not None:
                    current.urge()
                raise
