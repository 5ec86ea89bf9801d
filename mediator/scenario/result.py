# SPDX-License-Identifier: BSD-2-Clause
"""What a run came to, as frozen values. Times are virtual ns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from secure_world import events as tee_events

INVARIANTS: Final[tuple[tuple[str, str, str, tuple[type, ...]], ...]] = (
    (
        "I1",
        "no leak: guests see no physical address and no byte of others",
        "answers, writes",
        (machine_events.TrapExit, host_events.GuestWritten, host_events.PinnedWritten),
    ),
    (
        "I2",
        "own memory only: the TEE gets the guest's pinned pages, or copies",
        "TEE entries",
        (events.Forwarded,),
    ),
    (
        "I3",
        "pins balance: every pin is released exactly once",
        "pins, releases",
        (host_events.PagesPinned, host_events.PagesUnpinned),
    ),
    (
        "I4",
        "checked is used: no byte of a guest is fetched twice in a trap",
        "fetches",
        (host_events.GuestRead, host_events.PinnedRead, host_events.PageListRead),
    ),
    (
        "I5",
        "guests are strangers: threads and client ids stay in their guest",
        "entries, RPCs",
        (events.Forwarded, tee_events.ThreadSuspended, tee_events.ThreadResumed, events.RpcToGuest),
    ),
    (
        "I6",
        "bounded: calls, buffers and pages stay within the limits",
        "calls, buffers",
        (events.CallStarted, events.BufferTaken),
    ),
    (
        "I7",
        "progress: every SMC returns after a bounded number of steps",
        "traps",
        (machine_events.TrapEnter,),
    ),
    (
        "I8",
        "no lost wake-up: who waits for what has happened runs again",
        "waits, vIRQs",
        (events.RpcAnswered, machine_events.VirqPending),
    ),
)
"""Number, meaning, what was looked at, and the events that are counted for it."""


@attrs.frozen(kw_only=True)
class WorkloadResult:
    """How one instance of a client program ended. ``state``: see ``workloads.task``."""

    name: str
    run: str
    state: str
    rounds: int
    checks: int
    tolerated: int
    problem: str


@attrs.frozen(kw_only=True)
class ReplayResult:
    """A replayed guest. Of the recorded ``answers``, so many were ``alike`` or ``different``;
    ``astray``: calls that took another way, so that nothing can be compared.
    """

    recording: str
    calls: int
    answers: int
    alike: int
    astray: int
    different: int
    differences: tuple[str, ...]


@attrs.frozen(kw_only=True)
class HostileResult:
    """A hostile guest: attacks made, and how often each status came back."""

    attacks: int
    statuses: Mapping[str, int]


@attrs.frozen(kw_only=True)
class GuestResult:
    """One guest. ``outcome``: done, destroyed, stuck, refused or "never created".

    ``operations``: what host, mediator and TEE did for it, counted by kind; ``spent``: the same in
    ns of virtual time. ``app``: what the mediator did for it in a process of its own, empty otherwise (see
    :class:`mediator.deployment.el0_app.events.AppUsed`). ``checks``: results that its clients compared and found right.
    """

    name: str
    id: int
    kernel: str
    style: str
    conduit: str
    vcpus: int
    ram: int
    outcome: str
    created: int
    ended: int
    calls: int
    traps: int
    sessions: int
    rpcs: Mapping[str, int]
    pages_peak: int
    pinned_peak: int
    findings: Mapping[str, int]
    finding_texts: tuple[str, ...]
    operations: Mapping[str, int]
    spent: Mapping[str, int]
    app: Mapping[str, int]
    counters: Mapping[str, int]
    checks: int
    workloads: tuple[WorkloadResult, ...]
    replay: ReplayResult | None
    hostile: HostileResult | None


@attrs.frozen(kw_only=True)
class InvariantResult:
    """One invariant: how many things were looked at, and what was wrong."""

    id: str
    meaning: str
    looked_at: int
    what: str
    violations: tuple[str, ...]


@attrs.frozen(kw_only=True)
class WaitTotals:
    """Waits of the TEE's threads on behalf of one guest. ``kept``: by the mediator, because the
    guest has no notifications; ``longest``: ns."""

    guest: str
    waits: int
    kept: int
    longest: int


@attrs.frozen(kw_only=True)
class OpenWait:
    """A thread of the TEE that waits when the run ends.

    ``lock`` and ``owner``: what it waits for and who has that, as the TEE sees it, or empty.
    ``story``: times and last happenings around the waits of its guest.
    """

    guest: str
    thread: int
    key: int
    since: int
    kept: bool
    lock: str
    owner: str
    story: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        what = f"thread {self.thread} of the TEE waits for key {self.key:#x}"
        if self.lock:
            what += f" ({self.lock})"
        if self.owner:
            what += f", held by {self.owner}"
        lines = [f"{what} since {self.since} ns"]
        return "\n".join(lines + [f"{time} ns: {text}" for time, text in self.story])


@attrs.frozen(kw_only=True)
class Problem:
    """Something that should not have happened. ``where``: a guest's name, or what else it was."""

    where: str
    what: str


@attrs.frozen(kw_only=True)
class Totals:
    """The whole run. ``pins`` and ``shadow_pages`` are counted after every guest is gone.

    ``shadow_cache``: the most pages that the mediator may keep for the next call. ``app``: what all apps did
    for all guests and for the hypervisor itself, which is ``app_own``; empty without apps.
    """

    time: int
    steps: int
    events: int
    calls: int
    traps: int
    rpcs: Mapping[str, int]
    sessions: int
    ta_panics: int
    thread_limits: int
    bus_breaches: int
    preempted_teardowns: int
    findings: int
    pins: int
    shadow_pages: int
    shadow_cache: int
    violations: int
    app: Mapping[str, int]
    app_own: Mapping[str, int]


@attrs.frozen(kw_only=True)
class Result:
    """A run. ``digest``: SHA-256 of all events with their times; ``end``: why it ended."""

    scenario: str
    description: str
    path: str
    seed: int
    mode: str
    pcpus: int
    threads: int
    preset: str
    checked: bool
    end: str
    digest: str
    guests: tuple[GuestResult, ...]
    invariants: tuple[InvariantResult, ...]
    story: tuple[tuple[int, str], ...]
    waits: tuple[WaitTotals, ...]
    waiting: tuple[OpenWait, ...]
    totals: Totals
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether everything was as it should be."""
        return not self.problems
