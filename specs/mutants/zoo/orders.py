# SPDX-License-Identifier: BSD-2-Clause
"""Bugs of order: each step is right, and another processor comes between two of them.

Planted for the explorer (:mod:`mediator.explore`), which finds each by itself.
"""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_RESERVE: Final = "mediator.optee.memory:reserve"
_TRANSLATE: Final = "mediator.optee.call:_translate"
_DESTROYED: Final = "mediator.optee.lifecycle:guest_destroyed"
_ENABLE: Final = "mediator.optee.notify:enable"
_WALKED: Final = "call.buffers.append(buffer)"

MUTANTS = (
    Mutant(
        id="order.name-after-walk",
        story="Puts a buffer's name into the table when its pages are pinned: two processors pass the"
        " check of one name, and the buffer of the first is forgotten with its pins.",
        bug_class=15,
        breaks=("I3",),
        plant=edits(
            (_RESERVE, "guest.buffers[reference] = buffer", "pass"),
            (_TRANSLATE, _WALKED, f"{_WALKED}\n        guest.buffers[buffer.reference] = buffer"),
        ),
    ),
    Mutant(
        id="order.quota-after-walk",
        story="Counts a buffer's pages when they are pinned: two processors pass the check of the"
        " quota at once, and the guest pins more than it may.",
        bug_class=15,
        breaks=("I6",),
        plant=edits(
            (_RESERVE, "guest.pages += pages", "pass"),
            (_TRANSLATE, _WALKED, f"{_WALKED}\n        guest.pages += buffer.pages"),
        ),
    ),
    Mutant(
        id="order.dying-too-late",
        story="Marks a guest as dying when everything is released: what a call on another processor"
        " takes meanwhile is found by nobody.",
        bug_class=17,
        breaks=("life.destroyed-empty", "I3"),
        plant=edits((_DESTROYED, "record.dying = True", "pass")),
    ),
    Mutant(
        id="order.rest-without-a-look",
        story="Looks whether a wait is over, then lets the vCPU rest: who wakes it in between finds"
        " nobody resting, and it sleeps its whole time.",
        bug_class=22,
        breaks=("I8",),
        plant=edits(("mediator.optee.notify:_rest", "if call.woken:", "if False:")),
    ),
    Mutant(
        id="order.look-before-the-time",
        story="Looks whether a wait is over already, asks for the time, and notes the wait: a send in"
        " between is remembered for a wait that has looked.",
        bug_class=22,
        breaks=("I8",),
        plant=edits(
            ("mediator.optee.notify:_wait", "now = await sys.now()", "pass"),
            (
                "mediator.optee.notify:_wait",
                "guest.begin_wait(",
                "now = await sys.now()\n    guest.begin_wait(",
            ),
        ),
    ),
    Mutant(
        id="order.drained-before-enabled",
        story="Asks the TEE for old values before it enables notifications: one that comes in"
        " between is told to nobody.",
        bug_class=22,
        breaks=("I8",),
        plant=edits(
            (_ENABLE, "        await _drain(core, sys, guest)\n", ""),
            (
                _ENABLE,
                "answer = await core.fast",
                "await _drain(core, sys, guest)\n    answer = await core.fast",
            ),
        ),
    ),
    Mutant(
        id="order.listening-too-late",
        story="Puts a guest among those that listen when all is done: the interrupt of a value that"
        " comes meanwhile passes it by.",
        bug_class=22,
        breaks=("I8",),
        plant=edits(
            (_ENABLE, "core.listening[guest.id] = None", "pass"),
            (
                _ENABLE,
                "await _interrupt_guest(core, sys, guest, guest.pending)",
                "await _interrupt_guest(core, sys, guest, guest.pending)\n"
                "        core.listening[guest.id] = None",
            ),
        ),
    ),
    Mutant(
        id="order.stop-after-enable",
        story="Takes the STOP whose answer comes last for the last word, though the TEE did ENABLE"
        " after it: the guest is never told of a value again.",
        bug_class=22,
        breaks=("I8",),
        plant=edits(
            ("mediator.optee.notify:stopped", "if guest.enables == call.enables:", "if True:")
        ),
    ),
    Mutant(
        id="order.rest-without-asking",
        story="Lets the vCPU rest without asking the TEE first: a release that came before the wait"
        " was known is told to nobody.",
        bug_class=22,
        breaks=("I8",),
        plant=edits(
            (
                "mediator.optee.notify:_wait",
                "await _drain(core, sys, guest)\n    if call.woken:",
                "if call.woken:",
            )
        ),
    ),
)
