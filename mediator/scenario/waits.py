# SPDX-License-Identifier: BSD-2-Clause
"""Who waits for whom: the waits of the TEE's threads, counted, and those that never end told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

from mediator.optee import events
from mediator.scenario.recorder import Event, Handler
from mediator.scenario.result import OpenWait, WaitTotals
from secure_world import events as tee_events
from secure_world.world import LockWait

STORY_LINES: Final = 8
"""Last happenings around one guest's waits that are told if a wait never ends."""

Lines = deque[tuple[int, str]]


class WaitLog:
    """Listens to the waits of all guests. Times are virtual ns.

    ``guest_of``: client id to guest id.
    """

    def __init__(self, guest_of: Callable[[int], int]) -> None:
        self._guest_of = guest_of
        self._open: dict[tuple[int, int], tuple[int, int, bool]] = {}
        self._lines: dict[int, Lines] = {}
        self._totals: dict[int, list[int]] = {}

    def handlers(self) -> Mapping[type, Handler]:
        """Beginnings and ends of waits, and what might end one."""
        return {
            events.WaitBegan: self._began,
            events.WaitEnded: self._ended,
            events.SendKept: self._kept,
            events.NotificationsTaken: self._taken,
            events.GuestInterrupted: self._interrupted,
            tee_events.NotificationRaised: self._raised,
            events.GuestTornDown: self._gone,
        }

    def _tell(self, time: int, guest: int, text: str) -> None:
        self._lines.setdefault(guest, deque(maxlen=STORY_LINES)).append((time, text))

    def _began(self, time: int, event: Event) -> None:
        guest, _, thread, key, held = cast("events.WaitBegan", event)
        self._open[guest, thread] = (key, time, bool(held))
        totals = self._totals.setdefault(guest, [0, 0, 0])
        totals[0] += 1
        totals[1] += held
        keeper = "the mediator keeps the wait" if held else "the guest's driver keeps the wait"
        self._tell(time, guest, f"thread {thread} waits for key {key:#x}: {keeper}")

    def _ended(self, time: int, event: Event) -> None:
        guest, _, thread, key = cast("events.WaitEnded", event)
        began = self._open.pop((guest, thread), None)
        if began is not None:
            totals = self._totals[guest]
            totals[2] = max(totals[2], time - began[1])
        self._tell(time, guest, f"thread {thread} waits for key {key:#x} no more")

    def _kept(self, time: int, event: Event) -> None:
        guest, key = cast("events.SendKept", event)
        self._tell(time, guest, f"key {key:#x} is sent by a thread of the same guest")

    def _taken(self, time: int, event: Event) -> None:
        guest, values = cast("events.NotificationsTaken", event)
        shown = ", ".join(f"{bit:#x}" for bit in range(values.bit_length()) if values >> bit & 1)
        self._tell(time, guest, f"the mediator takes notification values {shown}")

    def _interrupted(self, time: int, event: Event) -> None:
        guest, intid = cast("events.GuestInterrupted", event)
        self._tell(time, guest, f"vIRQ {intid} for it")

    def _raised(self, time: int, event: Event) -> None:
        client, key = cast("tee_events.NotificationRaised", event)
        self._tell(time, self._guest_of(client), f"the TEE raises its interrupt for value {key:#x}")

    def _gone(self, _time: int, event: Event) -> None:
        guest = cast("events.GuestTornDown", event).guest
        self._lines.pop(guest, None)
        for place in [place for place in self._open if place[0] == guest]:
            del self._open[place]

    def totals(self, names: Mapping[int, str]) -> tuple[WaitTotals, ...]:
        """Per guest id, with the name of whoever has or had it last."""
        return tuple(
            [
                WaitTotals(
                    guest=names.get(guest, str(guest)), waits=count, kept=kept, longest=longest
                )
                for guest, (count, kept, longest) in sorted(self._totals.items())
            ]
        )

    def still_waiting(
        self, names: Mapping[int, str], locks: tuple[LockWait, ...]
    ) -> Iterator[tuple[int, OpenWait]]:
        """Guest id and wait, for every thread that waits now; ``locks``: as the TEE sees it."""
        known = {(self._guest_of(lock.client), lock.thread): lock for lock in locks}
        for (guest, thread), (key, since, held) in self._open.items():
            lock = known.get((guest, thread))
            owner = ""
            if lock is not None and lock.owner_thread >= 0:
                holder = self._guest_of(lock.owner_client)
                owner = f"{names.get(holder, holder)}, thread {lock.owner_thread}"
            yield (
                guest,
                OpenWait(
                    guest=names.get(guest, str(guest)),
                    thread=thread,
                    key=key,
                    since=since,
                    kept=held,
                    lock="" if lock is None else lock.lock,
                    owner=owner,
                    story=tuple(self._lines.get(guest, ())),
                ),
            )
