# SPDX-License-Identifier: BSD-2-Clause
"""I3 pins balance, I4 checked is used, I6 bounded: what is counted per guest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import cast

from mediator.checkers.verdict import Event, Handler, Report
from mediator.checkers.view import MachineView
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from mediator.optee.mediator import GuestInfo
from mediator.optee.settings import Limits

InfoOf = Callable[[int], GuestInfo | None]


class PinsBalance:
    """I3: pins are what buffers account for; nothing is pinned for a guest that is gone."""

    def __init__(self, view: MachineView, info: InfoOf, report: Report) -> None:
        self._view = view
        self._info = info
        self._report = report
        self._pins: Counter[int] = Counter()

    def handlers(self) -> Mapping[type, Handler]:
        """Guests that come, every pin and release, and the end of a guest."""
        return {
            host_events.GuestAdded: self._added,
            host_events.PagesPinned: self._pinned,
            host_events.PagesUnpinned: self._unpinned,
            events.GuestTornDown: self._gone,
        }

    def _added(self, event: Event) -> None:
        # Also for a guest of which nothing is ever pinned the mediator must account for nothing.
        self._pins[cast("int", event[0])] = 0

    def _pinned(self, event: Event) -> None:
        guest, frames = cast("host_events.PagesPinned", event)
        self._pins[guest] += len(frames) // 8

    def _unpinned(self, event: Event) -> None:
        guest, frames = cast("host_events.PagesUnpinned", event)
        self._pins[guest] -= len(frames) // 8
        if self._pins[guest] < 0:
            self._report("I3", guest, "more pages are released than were pinned")

    def _gone(self, event: Event) -> None:
        guest = cast("events.GuestTornDown", event).guest
        left = self._pins.pop(guest, 0)
        held = self._view.pinned(guest)
        if left or held:
            self._report("I3", guest, f"{max(left, held)} pins are left after destruction")

    def finish(self, report: Report) -> None:
        """At rest the machine's count is the mediator's: buffers that are complete, RPC pages."""
        # Who is asked about a guest may change what there is: an app that dies of the question.
        for guest, pins in list(self._pins.items()):
            held = self._view.pinned(guest)
            info = self._info(guest)
            expected = 0 if info is None else info.pages + info.rpc_buffers
            if held != pins:
                report("I3", guest, f"the machine counts {held} pins, the events say {pins}")
            elif held != expected and (info is None or not info.calls):
                report(
                    "I3", guest, f"{held} pages are pinned, the mediator accounts for {expected}"
                )


class FetchedOnce:
    """I4: within one trap the mediator reads no byte of a guest's memory twice.

    Only judged while one trap of the guest is inside: of two at once the events do not say whose
    read it is. Page lists may name a page many times, and are bounded by their size.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._inside: Counter[int] = Counter()
        self._read: dict[int, list[tuple[int, int]]] = {}

    def handlers(self) -> Mapping[type, Handler]:
        """Traps and reads."""
        return {
            machine_events.TrapEnter: self._enter,
            machine_events.TrapExit: self._exit,
            machine_events.TrapUndefined: self._exit,
            host_events.GuestRead: self._fetch,
            host_events.PinnedRead: self._fetch,
        }

    def _enter(self, event: Event) -> None:
        guest = cast("int", event[0])
        self._inside[guest] += 1
        self._read[guest] = []

    def _exit(self, event: Event) -> None:
        guest = cast("int", event[0])
        self._inside[guest] -= 1
        self._read[guest] = []

    def _fetch(self, event: Event) -> None:
        guest, start, length = cast("tuple[int, int, int]", event)
        if self._inside[guest] != 1:
            return
        end = start + length
        seen = self._read[guest]
        for low, high in seen:
            if start < high and low < end:
                self._report(
                    "I4", guest, f"bytes at {max(start, low):#x} are read twice in one trap"
                )
                return
        seen.append((start, end))

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""


class Bounded:
    """I6: calls, buffers and pages of a guest stay within the limits."""

    def __init__(self, limits: Limits, threads: Callable[[], int], report: Report) -> None:
        self._limits = limits
        self._threads = threads
        self._report = report
        self._calls: Counter[int] = Counter()
        self._buffers: Counter[int] = Counter()
        self._pages: Counter[int] = Counter()

    def handlers(self) -> Mapping[type, Handler]:
        """Calls and buffers as they come and go."""
        return {
            events.CallStarted: self._started,
            events.CallEnded: self._ended,
            events.BufferTaken: self._taken,
            events.BufferReleased: self._released,
            events.GuestTornDown: self._gone,
        }

    def _started(self, event: Event) -> None:
        guest = cast("int", event[0])
        self._calls[guest] += 1
        limit = self._limits.call_limit(self._threads())
        if self._calls[guest] > limit:
            self._report("I6", guest, f"{self._calls[guest]} calls at once, the limit is {limit}")

    def _ended(self, event: Event) -> None:
        self._calls[cast("int", event[0])] -= 1

    def _taken(self, event: Event) -> None:
        guest, _, _, pages = cast("events.BufferTaken", event)
        self._buffers[guest] += 1
        self._pages[guest] += pages
        if pages > self._limits.buffer_pages:
            self._report("I6", guest, f"a buffer has {pages} pages")
        if self._buffers[guest] > self._limits.buffers:
            self._report("I6", guest, f"{self._buffers[guest]} buffers at once")
        if self._pages[guest] > self._limits.total_pages:
            self._report("I6", guest, f"{self._pages[guest]} pages in all buffers")

    def _released(self, event: Event) -> None:
        guest, _, _, pages = cast("events.BufferReleased", event)
        if pages:
            self._buffers[guest] -= 1
            self._pages[guest] -= pages

    def _gone(self, event: Event) -> None:
        guest = cast("events.GuestTornDown", event).guest
        for counter in (self._calls, self._buffers, self._pages):
            counter.pop(guest, None)

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""
