# SPDX-License-Identifier: BSD-2-Clause
"""What happened to each guest, counted from the events: the numbers of the result table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, cast

from mediator.deployment.el0_app import events as app_events
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from mediator.scenario.recorder import Event, Handler
from secure_world import events as tee_events
from smccc import names
from smccc.constants import optee_smc as smc

MAX_STORY: Final = 200
"""Entries of the story that are kept; a run of hours must not grow."""

MAX_TEXTS: Final = 20
"""Findings and crashes of one guest whose text is kept; the rest is counted."""

FOREIGN_INTR: Final = "FOREIGN_INTR"
"""The RPC that asks for nothing: an interrupt of the normal world came while the TEE worked."""

THREAD_LIMIT: Final = smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
YIELDING: Final = smc.OPTEE_SMC_CALL_WITH_ARG >> 24
"""Top byte of the function ids of yielding calls."""

RPC_MASK: Final = smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK
_COMMAND: Final = smc.OPTEE_SMC_RPC_FUNC_CMD


def rpc_kind(function: int, command: int) -> str:
    """The name of an RPC: its function, or the command of the function CMD."""
    if function & RPC_MASK == _COMMAND:
        return names.RPC_COMMAND.short(command)
    status = smc.OPTEE_SMC_RETURN_RPC_PREFIX | function & RPC_MASK
    return names.RPC_STATUS.short(status)


class GuestTally:
    """The numbers of one guest, from its creation to its end. Times are virtual ns."""

    __slots__ = (
        "app",
        "calls",
        "crashes",
        "created",
        "dying",
        "ended",
        "finding_texts",
        "findings",
        "id",
        "in_flight",
        "last",
        "name",
        "pages",
        "pages_peak",
        "pinned",
        "pinned_peak",
        "quarantined",
        "rpcs",
        "sessions",
        "shared",
        "traps",
    )

    def __init__(self, ident: int, name: str, created: int) -> None:
        self.id = ident
        self.name = name
        self.created = created
        self.last = created
        """When the latest of its vCPUs switched off."""
        self.dying: int | None = None
        self.ended: int | None = None
        self.quarantined = False
        self.traps = 0
        """SMCs and HVCs of the guest, resumptions and fast calls included."""
        self.calls = 0
        """Yielding calls that the mediator accepted."""
        self.in_flight: dict[int, str] = {}
        """Calls that have not ended, with what they wait for ("" if nothing)."""
        self.rpcs: Counter[str] = Counter()
        self.sessions = 0
        self.pages = 0
        self.pages_peak = 0
        """Pages in shared buffers, and the most there were at one time."""
        self.shared: dict[int, int] = {}
        """Pages of each buffer by its reference."""
        self.pinned = 0
        self.pinned_peak = 0
        self.findings: Counter[str] = Counter()
        self.finding_texts: list[str] = []
        self.crashes: list[str] = []
        self.app: Counter[str] = Counter()
        """What the mediator did for it, if that lived in a process of its own; known when it is gone."""


class Tally:
    """A listener that keeps a :class:`GuestTally` for every guest that ever lived.

    ``story``: (time, text) of what happened to whole guests, in order.
    """

    def __init__(self, client_id_base: int) -> None:
        self._base = client_id_base
        self._now: dict[int, GuestTally] = {}
        self.guests: list[GuestTally] = []
        self.story: list[tuple[int, str]] = []
        self.refused: list[tuple[str, str]] = []
        """(name, reason) of guests that could not be created."""
        self.breaches = 0
        self.panics = 0
        self.thread_limits = 0
        """Calls that were told to come back when a thread is free."""
        self._yielding: dict[tuple[int, int], bool] = {}
        """(guest, vCPU) to whether its last trap was a yielding call."""
        self.preempted_teardowns = 0
        self.app_for_others: Counter[str] = Counter()
        """What apps did for guests that came to nothing."""

    def handlers(self) -> Mapping[type, Handler]:
        """Everything that counts for a guest."""
        return {
            machine_events.GuestCreated: self._created,
            machine_events.GuestRefused: self._refused,
            machine_events.GuestDying: self._dying,
            machine_events.GuestDestroyed: self._destroyed,
            machine_events.TeardownPreempted: self._teardown,
            machine_events.VcpuState: self._vcpu,
            machine_events.TrapEnter: self._trap,
            machine_events.TrapExit: self._trap_exit,
            machine_events.ProgramCrash: self._crash,
            events.CallStarted: self._call,
            events.CallEnded: self._call_ended,
            events.RpcToGuest: self._rpc,
            events.RpcAnswered: self._rpc_answered,
            events.BufferTaken: self._taken,
            events.BufferReleased: self._released,
            events.Finding: self._finding,
            host_events.PagesPinned: self._pinned,
            host_events.PagesUnpinned: self._unpinned,
            host_events.BusBreach: self._breach,
            tee_events.SessionOpened: self._session,
            tee_events.TaPanicked: self._panic,
            app_events.AppUsed: self._used,
        }

    def of(self, guest: int) -> GuestTally | None:
        """The numbers of the guest that has this id now, or had it last."""
        return self._now.get(guest)

    def tell(self, time: int, text: str) -> None:
        """Add to the story."""
        if len(self.story) < MAX_STORY:
            self.story.append((time, text))

    # Guests

    def _created(self, time: int, event: Event) -> None:
        guest, name, _ = cast("machine_events.GuestCreated", event)
        tally = self._now[guest] = GuestTally(guest, name, time)
        self.guests.append(tally)

    def _refused(self, time: int, event: Event) -> None:
        _, name, reason = cast("machine_events.GuestRefused", event)
        self.refused.append((name, reason))

    def _dying(self, time: int, event: Event) -> None:
        tally = self._now.get(cast("int", event[0]))
        if tally is not None:
            tally.dying = time

    def _destroyed(self, time: int, event: Event) -> None:
        guest, quarantined = cast("machine_events.GuestDestroyed", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.ended = time
            tally.quarantined = bool(quarantined)

    def _teardown(self, time: int, event: Event) -> None:
        self.preempted_teardowns += 1

    def _vcpu(self, time: int, event: Event) -> None:
        guest, _, _, state = cast("machine_events.VcpuState", event)
        tally = self._now.get(guest)
        if tally is not None and state == "off":
            tally.last = max(tally.last, time)

    def _crash(self, time: int, event: Event) -> None:
        guest, vcpu, text = cast("machine_events.ProgramCrash", event)
        tally = self._now.get(guest)
        if tally is not None and len(tally.crashes) < MAX_TEXTS:
            tally.crashes.append(f"vCPU {vcpu}: {text}")

    def _used(self, time: int, event: Event) -> None:
        used = cast("app_events.AppUsed", event)
        tally = self._now.get(used.guest)
        account = self.app_for_others if tally is None or tally.ended is not None else tally.app
        peak = account["shadow_peak"]
        account.update(dict(zip(used._fields[1:], used[1:], strict=True)))
        # More than one app, one after the other: a peak is no sum.
        account["shadow_peak"] = max(peak, used.shadow_peak)

    # Calls

    def _trap(self, time: int, event: Event) -> None:
        guest, vcpu, _, _, regs = cast("machine_events.TrapEnter", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.traps += 1
        self._yielding[guest, vcpu] = regs[0] >> 24 & 0xFF == YIELDING

    def _trap_exit(self, time: int, event: Event) -> None:
        guest, vcpu, _, regs = cast("machine_events.TrapExit", event)
        if regs[0] & 0xFFFF_FFFF == THREAD_LIMIT and self._yielding.get((guest, vcpu)):
            self.thread_limits += 1

    def _call(self, time: int, event: Event) -> None:
        guest, call, _, _, _ = cast("events.CallStarted", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.calls += 1
            tally.in_flight[call] = ""

    def _call_ended(self, time: int, event: Event) -> None:
        guest, call, _, _ = cast("events.CallEnded", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.in_flight.pop(call, None)

    def _rpc(self, time: int, event: Event) -> None:
        guest, call, _, function, command = cast("events.RpcToGuest", event)
        tally = self._now.get(guest)
        if tally is not None:
            kind = rpc_kind(function, command)
            tally.rpcs[kind] += 1
            tally.in_flight[call] = "" if kind == FOREIGN_INTR else kind

    def _rpc_answered(self, time: int, event: Event) -> None:
        guest, call, _, _ = cast("events.RpcAnswered", event)
        tally = self._now.get(guest)
        if tally is not None and call in tally.in_flight:
            tally.in_flight[call] = ""

    def _session(self, time: int, event: Event) -> None:
        tally = self._now.get(cast("int", event[0]) - self._base)
        if tally is not None:
            tally.sessions += 1

    def _finding(self, time: int, event: Event) -> None:
        guest, rule, detail = cast("events.Finding", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.findings[rule] += 1
            if len(tally.finding_texts) < MAX_TEXTS:
                tally.finding_texts.append(f"{rule}: {detail}")

    # Memory

    def _taken(self, time: int, event: Event) -> None:
        guest, _, reference, pages = cast("events.BufferTaken", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.shared[reference] = pages
            tally.pages += pages
            tally.pages_peak = max(tally.pages_peak, tally.pages)

    def _released(self, time: int, event: Event) -> None:
        guest, _, reference, _ = cast("events.BufferReleased", event)
        tally = self._now.get(guest)
        if tally is not None:
            # A buffer that was given up half-way was never taken.
            tally.pages -= tally.shared.pop(reference, 0)

    def _pinned(self, time: int, event: Event) -> None:
        guest, frames = cast("host_events.PagesPinned", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.pinned += len(frames) >> 3
            tally.pinned_peak = max(tally.pinned_peak, tally.pinned)

    def _unpinned(self, time: int, event: Event) -> None:
        guest, frames = cast("host_events.PagesUnpinned", event)
        tally = self._now.get(guest)
        if tally is not None:
            tally.pinned -= len(frames) >> 3

    # The secure world

    def _breach(self, time: int, event: Event) -> None:
        self.breaches += 1

    def _panic(self, time: int, event: Event) -> None:
        self.panics += 1
