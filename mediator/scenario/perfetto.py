# SPDX-License-Identifier: BSD-2-Clause
"""A run as a picture for Perfetto (https://ui.perfetto.dev) and chrome://tracing.

Processes and their tracks:

* "machine": a track per pCPU with the vCPU that it executes; "control" for timers and tasks;
* "mediator": a track per pCPU with its entries, and inside them those of OP-TEE; "control" for the
  hypervisor's own entries (life cycle of guests);
* "OP-TEE": a track per guest and TEE thread, with what the thread does while it runs;
* each guest: a track per vCPU with its traps, waits and interrupts; counters of shared and pinned
  pages.

Arrows lead from a TEE thread that asks for an RPC to the trap that brings it to the guest, from there
to the trap that answers it, and back to the thread; and from who raised a virtual interrupt to the
vCPU that takes it. Times are virtual, of live guests real. Those of different pCPUs may be apart by a little; an arrow that
would go back in time is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol, cast

from mediator.deployment.el0_app import events as app_events
from mediator.guest import events as guest_events
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from mediator.scenario.recorder import Event, Handler
from mediator.scenario.tally import FOREIGN_INTR, RPC_MASK, rpc_kind
from mediator.scenario.text import printable
from mediator.scenario.trace_file import EDGE, TraceFile, Track, args
from secure_world import events as tee_events
from smccc import names

MACHINE: Final = 1
MEDIATOR: Final = 2
TEE: Final = 3
FIRST_GUEST: Final = 10
"""Process numbers of the trace; guests follow in order of their creation."""

CONTROL: Final = 1000
"""Track of what no pCPU does: timers, tasks of the control domain."""

MARK: Final = 100
"""ns of the slice that stands for a moment at which an arrow begins."""

NEAR: Final = 10
"""ns by which an arrow's end may be drawn late so that it does not go back in time."""

APPS: Final = (
    app_events.AppStarted,
    app_events.AppDied,
    app_events.AppGivenUp,
    app_events.GuestLost,
    app_events.PartitionCleaned,
    app_events.PartitionRenewed,
)
"""What happens to a mediator that lives in a process of its own."""

TEE_RANGES: Final = (0x32, 0xB2, 0xBF)
"""Top bytes of function ids that go to the mediator."""


class Strand(Protocol):
    """Something that executes; see :class:`mediator.hypervisor.scheduler.Strand`."""

    @property
    def order(self) -> int:
        """Number of the pCPU; another number for what no pCPU does."""


class Executor(Protocol):
    """Who knows what executes at this moment: a machine, or whatever stands for one."""

    def strand(self) -> Strand:
        """What executes now."""


class Picture:
    """A listener that draws a run into a :class:`~mediator.scenario.trace_file.TraceFile`."""

    def __init__(self, file: TraceFile, pcpus: int, client_id_base: int) -> None:
        self._file = file
        self._pcpus = pcpus
        self._base = client_id_base
        self._machine: Executor | None = None
        self._pids: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._next_pid = FIRST_GUEST
        self._threads: dict[tuple[int, int], int] = {}
        self._inside: dict[int, tuple[int, int]] = {}
        """Number of a strand to the (guest, vCPU) whose trap it serves."""
        self._asked: dict[tuple[int, int], int] = {}
        """(guest, vCPU) to the TEE thread whose RPC its trap brings to the guest."""
        self._ends: dict[tuple[str, int, int], tuple[Track, int]] = {}
        """Where arrows are to begin: what they are waiting for, to track and time."""
        self._flow = 0
        self._shared: dict[int, dict[int, int]] = {}
        self._pinned: dict[int, int] = {}
        for pid, name in ((MACHINE, "machine"), (MEDIATOR, "mediator"), (TEE, "OP-TEE")):
            file.process(pid, name)

    def attach(self, machine: Executor) -> None:
        """Ask this machine who executes when something happens."""
        self._machine = machine
        self._file.begun = True

    def handlers(self) -> Mapping[type, Handler]:
        """All events that are drawn."""
        return {
            machine_events.GuestCreated: self._guest_created,
            machine_events.GuestDying: self._guest_dying,
            machine_events.GuestDestroyed: self._guest_destroyed,
            machine_events.VcpuState: self._vcpu_state,
            machine_events.TrapEnter: self._trap_enter,
            machine_events.TrapExit: self._trap_exit,
            machine_events.TrapUndefined: self._trap_undefined,
            machine_events.VirqPending: self._virq_pending,
            machine_events.VirqAcknowledged: self._virq_taken,
            machine_events.VirqEnded: self._virq_ended,
            machine_events.ProgramCrash: self._crash,
            events.CallStarted: self._call_started,
            events.Forwarded: self._forwarded,
            events.Answered: self._answered,
            events.RpcToGuest: self._rpc_to_guest,
            events.RpcAnswered: self._rpc_answered,
            events.Finding: self._finding,
            events.BufferTaken: self._taken,
            events.BufferReleased: self._released,
            host_events.PagesPinned: self._pins,
            host_events.PagesUnpinned: self._unpins,
            host_events.BusBreach: self._breach,
            tee_events.ThreadStarted: self._thread_started,
            tee_events.ThreadSuspended: self._thread_suspended,
            tee_events.ThreadResumed: self._thread_resumed,
            tee_events.ThreadEnded: self._thread_ended,
            tee_events.SessionOpened: self._session_opened,
            tee_events.TaPanicked: self._ta_panicked,
            guest_events.ClientCall: self._client_call,
            **dict.fromkeys(APPS, self._app),
        }

    # --- whose track -----------------------------------------------------------------------------

    def _who(self, guest: int) -> str:
        return self._names.get(guest, f"guest {guest}")

    def _vcpu(self, guest: int, vcpu: int) -> Track:
        pid = self._pids.get(guest)
        if pid is None:
            return self._file.track(MACHINE, CONTROL, "control")
        return self._file.track(pid, vcpu + 1, f"vCPU {vcpu}")

    def _strand(self) -> int:
        """Number of the pCPU that executes, or CONTROL."""
        order = CONTROL if self._machine is None else self._machine.strand().order
        return order if 0 <= order < self._pcpus else CONTROL

    def _here(self, pid: int) -> Track:
        """The track of a process for whoever executes now."""
        strand = self._strand()
        if strand == CONTROL:
            return self._file.track(pid, CONTROL, "control")
        return self._file.track(pid, strand + 1, f"pCPU {strand}")

    def _thread(self, client: int, thread: int) -> Track:
        guest = client - self._base
        # The same id may be another guest's later: that has tracks of its own.
        key = (self._pids.get(guest, 0), thread)
        tid = self._threads.setdefault(key, len(self._threads) + 1)
        return self._file.track(TEE, tid, f"{self._who(guest)}: thread {thread}")

    # --- arrows ----------------------------------------------------------------------------------

    def _leave_from(self, key: tuple[str, int, int], track: Track, time: int) -> None:
        """An arrow will begin at the slice that is open on ``track``."""
        self._ends[key] = track, track.touch(time)

    def _arrive(self, key: tuple[str, int, int], track: Track, time: int, kind: str) -> None:
        """The arrow that waits for ``key``, if there is one, ends at the slice open on ``track``."""
        begin = self._ends.pop(key, None)
        if begin is None or not track.open:
            return
        at = track.touch(time)
        if at <= begin[1] < at + NEAR:
            # Both happened at the same time, and one slice was drawn longer than it is.
            at = track.touch(begin[1] + 2 * EDGE)
        if begin[1] < at:
            self._flow += 1
            self._file.arrow("s", self._flow, *begin, kind)
            self._file.arrow("f", self._flow, track, at, kind)

    # --- guests ----------------------------------------------------------------------------------

    def _guest_created(self, time: int, event: Event) -> None:
        guest, name, _ = cast("machine_events.GuestCreated", event)
        pid, self._next_pid = self._next_pid, self._next_pid + 1
        self._pids[guest] = pid
        self._names[guest] = printable(name)
        self._shared[guest] = {}
        self._pinned[guest] = 0
        self._file.process(pid, f"guest {guest}: {printable(name)}")
        self._file.counter(pid, "shared pages", time, 0)
        self._file.counter(pid, "pinned pages", time, 0)
        self._file.instant(self._here(MACHINE), f"{printable(name)} is created", time)

    def _guest_dying(self, time: int, event: Event) -> None:
        who = self._who(cast("int", event[0]))
        self._file.instant(self._here(MACHINE), f"the end of {who} begins", time)

    def _guest_destroyed(self, time: int, event: Event) -> None:
        who = self._who(cast("int", event[0]))
        self._file.instant(self._here(MACHINE), f"{who} is gone", time)

    def _crash(self, time: int, event: Event) -> None:
        guest, vcpu, text = cast("machine_events.ProgramCrash", event)
        self._file.instant(self._vcpu(guest, vcpu), "crash", time, args(text=printable(text)))

    def _client_call(self, time: int, event: Event) -> None:
        call = cast("guest_events.ClientCall", event)
        if call.result:
            what = f"{call.operation} ends with {names.RESULT.short(call.result)}"
            name = printable(f"{call.guest}: {what}")
            self._file.instant(self._here(MACHINE), name, time)

    # --- vCPUs -----------------------------------------------------------------------------------

    def _vcpu_state(self, time: int, event: Event) -> None:
        guest, vcpu, pcpu, state = cast("machine_events.VcpuState", event)
        file = self._file
        board = file.track(MACHINE, pcpu + 1, f"pCPU {pcpu}")
        if state == "running":
            file.end_all(board, time)
            file.begin(board, f"{guest}/{vcpu}", f"{self._who(guest)} vCPU {vcpu}", time)
        else:
            file.end(board, f"{guest}/{vcpu}", time)
        track = self._vcpu(guest, vcpu)
        file.end(track, "wait", time)
        if state == "waiting":
            file.begin(track, "wait", "WFI", time)
        elif state == "off":
            file.end_all(track, time)

    def _trap_enter(self, time: int, event: Event) -> None:
        guest, vcpu, hvc, immediate, regs = cast("machine_events.TrapEnter", event)
        name = _function(regs[0])
        shown = args(**{f"x{index}": f"{regs[index]:#x}" for index in range(6)})
        if hvc or immediate:
            shown += "," + args(instruction=f"{'hvc' if hvc else 'smc'} #{immediate}")
        self._file.begin(self._vcpu(guest, vcpu), "trap", name, time, shown)
        if regs[0] >> 24 & 0xFF in TEE_RANGES:
            self._inside[self._strand()] = (guest, vcpu)
            where = self._here(MEDIATOR)
            self._file.begin(where, f"{guest}/{vcpu}", f"{self._who(guest)}: {name}", time)

    def _trap_exit(self, time: int, event: Event) -> None:
        guest, vcpu, _, regs = cast("machine_events.TrapExit", event)
        track = self._vcpu(guest, vcpu)
        asked = self._asked.pop((guest, vcpu), None)
        if asked is not None:
            self._arrive(("request", guest, asked), track, time, "RPC request")
            self._leave_from(("service", guest, asked), track, time)
        self._file.end(track, "trap", time, args(answer=f"{regs[0]:#x}"))
        self._leave(guest, vcpu, time)

    def _trap_undefined(self, time: int, event: Event) -> None:
        guest, vcpu = cast("machine_events.TrapUndefined", event)
        track = self._vcpu(guest, vcpu)
        self._file.end(track, "trap", time, args(answer="undefined instruction"))
        self._leave(guest, vcpu, time)

    def _leave(self, guest: int, vcpu: int, time: int) -> None:
        self._file.end(self._here(MEDIATOR), f"{guest}/{vcpu}", time)
        self._inside.pop(self._strand(), None)

    # --- interrupts ------------------------------------------------------------------------------

    def _virq_pending(self, time: int, event: Event) -> None:
        guest, vcpu, intid = cast("machine_events.VirqPending", event)
        track = self._here(MACHINE)
        # Timers expire at their deadlines, which need not be in the order of the pCPUs' clocks.
        draw = self._file.cell if track.tid == CONTROL else self._file.moment
        at = draw(track, f"vIRQ {intid} for {self._who(guest)} vCPU {vcpu}", time, MARK)
        if vcpu >= 0:
            self._ends["virq", guest << 16 | vcpu, intid] = track, at

    def _virq_taken(self, time: int, event: Event) -> None:
        guest, vcpu, intid = cast("machine_events.VirqAcknowledged", event)
        track = self._vcpu(guest, vcpu)
        self._file.begin(track, f"irq {intid}", f"IRQ {intid}", time)
        self._arrive(("virq", guest << 16 | vcpu, intid), track, time, "vIRQ")

    def _virq_ended(self, time: int, event: Event) -> None:
        guest, vcpu, intid, _ = cast("machine_events.VirqEnded", event)
        self._file.end(self._vcpu(guest, vcpu), f"irq {intid}", time)

    # --- the mediator ----------------------------------------------------------------------------

    def _call_started(self, time: int, event: Event) -> None:
        _, call, _, _, command = cast("events.CallStarted", event)
        name = f"call {call}: {names.COMMAND.short(command)}"
        self._file.instant(self._here(MEDIATOR), name, time)

    def _forwarded(self, time: int, event: Event) -> None:
        guest, _, _, regs = cast("events.Forwarded", event)
        track, name = self._here(MEDIATOR), f"OP-TEE: {_function(regs[0])}"
        if guest == events.NO_GUEST:
            self._file.instant(track, name, time, args(x1=f"{regs[1]:#x}"))
        else:
            self._file.begin(track, "tee", name, time, args(client=regs[7]))

    def _answered(self, time: int, event: Event) -> None:
        _, _, _, regs = cast("events.Answered", event)
        self._file.end(self._here(MEDIATOR), "tee", time, args(answer=f"{regs[0]:#x}"))

    def _finding(self, time: int, event: Event) -> None:
        guest, rule, detail = cast("events.Finding", event)
        name = printable(f"finding, {self._who(guest)}: {rule}")
        self._file.instant(self._here(MEDIATOR), name, time, args(detail=printable(detail)))

    def _app(self, time: int, event: Event) -> None:
        names: tuple[str, ...] = getattr(event, "_fields", ())
        told = {name: str(value) for name, value in zip(names, event, strict=True)}
        told = {name: printable(value) for name, value in told.items()}
        track = self._here(MEDIATOR)
        if isinstance(event, app_events.AppDied):
            # What it asked of OP-TEE it has not heard the answer to.
            self._file.end(track, "tee", time, args(answer="the app died"))
        self._file.instant(track, type(event).__name__, time, args(**told))

    def _breach(self, time: int, event: Event) -> None:
        client = cast("host_events.BusBreach", event).client
        self._file.instant(self._here(MACHINE), f"bus breach of client {client}", time)

    # --- RPCs ------------------------------------------------------------------------------------

    def _rpc_to_guest(self, time: int, event: Event) -> None:
        guest, _, thread, _, _ = cast("events.RpcToGuest", event)
        inside = self._inside.get(self._strand())
        if inside is not None and ("request", guest, thread) in self._ends:
            self._asked[inside] = thread

    def _rpc_answered(self, time: int, event: Event) -> None:
        guest, _, thread, vcpu = cast("events.RpcAnswered", event)
        track = self._vcpu(guest, vcpu)
        if ("service", guest, thread) in self._ends:
            self._arrive(("service", guest, thread), track, time, "RPC service")
            self._leave_from(("answer", guest, thread), track, time)

    # --- TEE threads -----------------------------------------------------------------------------

    def _thread_started(self, time: int, event: Event) -> None:
        client, thread, function = cast("tee_events.ThreadStarted", event)
        self._file.begin(self._thread(client, thread), "run", _function(function), time)

    def _thread_suspended(self, time: int, event: Event) -> None:
        client, thread, status, command = cast("tee_events.ThreadSuspended", event)
        track = self._thread(client, thread)
        kind = rpc_kind(status & RPC_MASK, command)
        if kind != FOREIGN_INTR and track.open:
            self._leave_from(("request", client - self._base, thread), track, time)
        self._file.end(track, "run", time, args(asks=kind))

    def _thread_resumed(self, time: int, event: Event) -> None:
        client, thread = cast("tee_events.ThreadResumed", event)
        track = self._thread(client, thread)
        self._file.begin(track, "run", "resumed", time)
        self._arrive(("answer", client - self._base, thread), track, time, "RPC answer")

    def _thread_ended(self, time: int, event: Event) -> None:
        client, thread, result = cast("tee_events.ThreadEnded", event)
        self._file.end(self._thread(client, thread), "run", time, args(status=f"{result:#x}"))

    def _session_opened(self, time: int, event: Event) -> None:
        client, session, uuid = cast("tee_events.SessionOpened", event)
        name = f"{self._who(client - self._base)}: session {session}"
        self._file.instant(self._here(MEDIATOR), name, time, args(ta=uuid.hex()))

    def _ta_panicked(self, time: int, event: Event) -> None:
        client, _, code = cast("tee_events.TaPanicked", event)
        name = f"{self._who(client - self._base)}: a TA panics with {code:#x}"
        self._file.instant(self._here(MEDIATOR), name, time)

    # --- memory ----------------------------------------------------------------------------------

    def _taken(self, time: int, event: Event) -> None:
        guest, _, reference, pages = cast("events.BufferTaken", event)
        shared = self._shared.setdefault(guest, {})
        shared[reference] = pages
        self._pages(guest, "shared pages", time, sum(shared.values()))

    def _released(self, time: int, event: Event) -> None:
        guest, _, reference, _ = cast("events.BufferReleased", event)
        shared = self._shared.setdefault(guest, {})
        if shared.pop(reference, None) is not None:
            self._pages(guest, "shared pages", time, sum(shared.values()))

    def _pins(self, time: int, event: Event) -> None:
        guest, frames = cast("host_events.PagesPinned", event)
        self._pinned[guest] = self._pinned.get(guest, 0) + (len(frames) >> 3)
        self._pages(guest, "pinned pages", time, self._pinned[guest])

    def _unpins(self, time: int, event: Event) -> None:
        guest, frames = cast("host_events.PagesUnpinned", event)
        self._pinned[guest] = self._pinned.get(guest, 0) - (len(frames) >> 3)
        self._pages(guest, "pinned pages", time, self._pinned[guest])

    def _pages(self, guest: int, name: str, time: int, pages: int) -> None:
        self._file.counter(self._pids.get(guest, MACHINE), name, time, pages)


def _function(value: int) -> str:
    """A function id as people call it."""
    low = value & 0xFFFF_FFFF
    name = names.function_name(low)
    if name is None:
        return f"function {low:#010x}"
    return name.removeprefix("OPTEE_SMC_").removeprefix("CALL_GET_")
