# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in the simulated driver: what a real one does that a TEE and a mediator rely on."""

from __future__ import annotations

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

MUTANTS = (
    Mutant(
        id="guest.send-before-wait-lost",
        story="Wakes who waits; a send that comes before its wait is gone, and the wait never"
        " ends.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                "mediator.guest.notification:Notifications.send",
                "self._remembered.add(key)",
                "pass",
            )
        ),
    ),
    Mutant(
        id="guest.completion-before-wait-lost",
        story="Completes those who wait now: who was about to wait sleeps for ever.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                "mediator.guest.kernel:Completion.complete",
                "self.count += 1",
                "self.count += bool(self._waiters)",
            )
        ),
    ),
    Mutant(
        id="guest.wake-not-passed-on",
        story="A call that was woken but did not need it ends without waking the next one: the last"
        " of the waiting calls waits for ever.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                "mediator.guest.call_queue:CallQueue.leave",
                "if completion.count:\n            self._wake_one()",
                "pass",
            )
        ),
    ),
)
