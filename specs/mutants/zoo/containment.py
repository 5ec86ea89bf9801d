# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in what happens when an app dies: burial, restart, lost guests, the control domain."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import one_edit

_EL0: Final = "mediator.deployment.el0_app"
_APP: Final = f"{_EL0}.deployment:El0App"
_LIVES: Final = f"{_EL0}.lives:Lives"
_SUPERVISOR: Final = f"{_EL0}.supervisor:Supervisor"
_LEAK: Final = 5
_LIFE: Final = 13
_DEAD: Final = 12
_WAITS: Final = 22
_STUCK: Final = 28

MUTANTS = (
    one_edit(
        "containment.pins-of-the-lost",
        "Ends the partition of a lost guest and forgets what was pinned for it: the app is gone that"
        " would have known.",
        _LEAK,
        ("I3", "I9"),
        f"{_SUPERVISOR}._clean",
        "host.unpin_pages(grant.guest, pins.everything())",
        "pass",
    ),
    one_edit(
        "containment.shadows-of-the-dead",
        "Takes the pages of a dead app out of the books and never gives them back.",
        _LEAK,
        ("I3", "I9"),
        f"{_SUPERVISOR}.bury",
        "self._host.free_shadow(shadow)",
        "pass",
    ),
    one_edit(
        "containment.partition-outlives-the-app",
        "Releases the pages of a lost guest and leaves its partition: the TEE writes into memory that"
        " is somebody else's soon.",
        _DEAD,
        ("life.told-last", "I9"),
        f"{_SUPERVISOR}._clean",
        "if grant.partition:",
        "if False:",
    ),
    one_edit(
        "containment.client-id-again",
        "Gives the control domain the same new client id at each death: what the TEE still knows of the"
        " last one meets the next.",
        _LIFE,
        ("I5", "I9"),
        f"{_SUPERVISOR}.renew",
        "self.next_client -= 1",
        "pass",
    ),
    one_edit(
        "containment.old-client-id",
        "Renews the partition of the control domain under the client id that it had.",
        _LIFE,
        ("I5", "I9"),
        f"{_SUPERVISOR}.renew",
        "Grant(old.guest, self.next_client)",
        "Grant(old.guest, old.client)",
    ),
    one_edit(
        "containment.restart-without-init",
        "Starts an app again and does not let it say what it wants to be entered for.",
        _LIFE,
        ("I9",),
        f"{_LIVES}.start",
        "answer = self._run(self._entrance.initialise(instance, b'', mode, self.threads or 0))",
        "if number:\n            return instance\n"
        "        answer = self._run(self._entrance.initialise(instance, b'', mode, self.threads or 0))",
    ),
    one_edit(
        "containment.lost-guest-is-served",
        "Looks for the app of a guest whose state was lost: there is none, and the hypervisor stops.",
        17,
        ("I9",),
        f"{_APP}._trap",
        "if grant.lost or grant.renewed:",
        "if grant.renewed:",
    ),
    one_edit(
        "containment.buried-under-a-call",
        "Ends partitions as soon as the app is dead, while the TEE executes for one of them.",
        14,
        ("I2", "I9"),
        f"{_LIVES}.kill",
        "if not instance.open:",
        "if True:",
    ),
    one_edit(
        "containment.renewed-under-a-call",
        "Gives the control domain a new partition while a call of it is inside the old one, because"
        " another app was buried.",
        14,
        ("I9",),
        f"{_SUPERVISOR}.must_renew",
        " and (old.guest not in homes)",
        "",
    ),
    one_edit(
        "containment.control-shares-an-app",
        "Takes the spare app for the control domain, and gives it to the next guest as well.",
        _LIFE,
        ("I9",),
        f"{_LIVES}._buried",
        "self._instance(instance)",
        "self._spare",
    ),
    one_edit(
        "containment.nobody-is-told",
        "Does not interrupt a lost guest: its threads wait for values that nobody will send.",
        _WAITS,
        ("I8", "I9"),
        f"{_SUPERVISOR}.died",
        "if grant.listens:",
        "if False:",
    ),
    one_edit(
        "containment.one-start-only",
        "Gives up for good when an app dies while it is started again.",
        _STUCK,
        ("I9",),
        f"{_SUPERVISOR}.restart",
        "while self._deaths < MAX_RESTARTS:",
        "if self._deaths < MAX_RESTARTS:",
    ),
    one_edit(
        "containment.no-app-again",
        "Keeps the dead app as the one that new guests get.",
        _STUCK,
        ("I9",),
        f"{_LIVES}._buried",
        "if self._spare is instance:",
        "if False:",
    ),
    one_edit(
        "containment.panic-is-free",
        "Counts a turn when it was good: an app that ends in panic has used nothing.",
        7,
        ("I6", "I9"),
        f"{_EL0}.instance:Instance.turn",
        "grant.turns += 1",
        "grant.turns += final.number != PANIC",
    ),
    one_edit(
        "containment.loss-not-reported",
        "Takes the guests from a dead app and tells nobody.",
        17,
        ("I9",),
        f"{_SUPERVISOR}.died",
        "self._emit(GuestLost(instance.app, grant.guest))",
        "pass",
    ),
    one_edit(
        "containment.refusal-believed",
        "Believes an app that a guest was refused although the TEE has taken it: the app will refuse it"
        " for ever.",
        25,
        ("I9",),
        f"{_LIVES}._create",
        "elif grant.partition:",
        "elif False:",
    ),
    one_edit(
        "containment.app-outlives-its-guest",
        "Keeps the app of a guest that is gone, with its process and its memory.",
        _LEAK,
        ("I6", "I9"),
        f"{_LIVES}._dismiss",
        "if not instance.open:",
        "if False:",
    ),
    one_edit(
        "containment.control-refused-at-birth",
        "Says that the control domain was refused because the first app died of it; the second one"
        " serves it.",
        _LIFE,
        ("I9",),
        f"{_LIVES}._create",
        "return now is not None and now is not grant and (not now.lost)",
        "return False",
    ),
    one_edit(
        "containment.served-before-it-probes",
        "Serves the control domain at once: numbers of old sessions and threads are those of new ones.",
        24,
        ("I5", "I9"),
        f"{_EL0}.supervisor:_inherit",
        "(True, old.listens, old.owed)",
        "(False, old.listens, old.owed)",
    ),
)
