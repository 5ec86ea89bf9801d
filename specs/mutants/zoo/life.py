# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in the life of a guest, in fast calls, and in what a guest is offered."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_PROBE: Final = "mediator.optee.lifecycle:probe"
_CREATED: Final = "mediator.optee.lifecycle:guest_created"
_DESTROYED: Final = "mediator.optee.lifecycle:guest_destroyed"
_RELEASE_ALL: Final = "mediator.optee.lifecycle:_release_all"
_HANDLE: Final = "mediator.optee.mediator:OpteeMediator.handle"
_CAPABILITIES: Final = "mediator.optee.fast:exchange_capabilities"
_DISABLE: Final = "mediator.optee.fast:disable_shm_cache"

LIVES = (
    Mutant(
        id="life.client-id-of-guest",
        story="Uses the guest's number as client id: guest 0 is the hypervisor to the TEE.",
        bug_class=13,
        breaks=("call.client-id", "life.created", "I5"),
        plant=edits((_CREATED, "settings.client_id_base + guest", "guest")),
    ),
    Mutant(
        id="life.served-before-created",
        story="Serves a guest as soon as its record is there, while VM_CREATED is still on its way.",
        bug_class=13,
        breaks=("life.created", "I5"),
        plant=edits((_CREATED, "record.dying = True", "pass")),
    ),
    Mutant(
        id="life.same-id-twice",
        story="Lets a guest be created under an id that is in use: the buffers of the first are"
        " forgotten with their pins.",
        bug_class=13,
        breaks=("life.id-reuse", "I3", "I5"),
        plant=edits((_CREATED, "if guest in core.guests:", "if False:")),
    ),
    Mutant(
        id="life.refused-guest-stays",
        story="Fails the creation when the TEE refuses a guest and leaves its context there: the id"
        " can never be used again.",
        bug_class=5,
        breaks=("life.created",),
        plant=edits(
            (
                _CREATED,
                "if answer[0] & M32 != OK:\n        del core.guests[guest]",
                "if answer[0] & M32 != OK:\n        pass",
            )
        ),
    ),
    Mutant(
        id="life.refusal-ignored",
        story="Does not look at the answer to VM_CREATED: the guest runs, and the TEE refuses each"
        " of its calls.",
        bug_class=13,
        breaks=("life.created",),
        plant=edits((_CREATED, "if answer[0] & M32 != OK:", "if False:")),
    ),
    Mutant(
        id="life.torn-down-under-a-call",
        story="Tears a guest down while one of its processors is inside the TEE: its call comes"
        " back to records that are gone.",
        bug_class=17,
        breaks=("life.destroyed-empty", "life.told-last", "I3"),
        plant=edits((_DESTROYED, "if record.entries:", "if False:")),
    ),
    Mutant(
        id="life.dying-guest-is-served",
        story="Serves calls of a guest whose teardown was preempted: buffers that it registers then"
        " are found by nobody.",
        bug_class=17,
        breaks=("life.told-last", "I3"),
        plant=edits((_HANDLE, " or record.dying", "")),
    ),
    Mutant(
        id="life.suspended-calls-forgotten",
        story="Drops the list of suspended calls with the guest, without what each of them holds.",
        bug_class=17,
        breaks=("life.destroyed-empty", "I3"),
        plant=edits(
            (
                _RELEASE_ALL,
                "await core.drop_call(sys, record, call)",
                "record.live_calls.clear()\n        record.suspended.clear()",
            )
        ),
    ),
    Mutant(
        id="life.message-buffers-forgotten",
        story="Expects the guest to have drained the cache before it goes; one that crashed has"
        " not.",
        bug_class=17,
        breaks=("life.destroyed-empty", "I3"),
        plant=edits((_RELEASE_ALL, "while record.rpc_buffers:", "while False:")),
    ),
    Mutant(
        id="life.told-first",
        story="Tells the TEE that the guest is gone before it releases: when teardown is preempted"
        " and entered again, the TEE is told twice.",
        bug_class=13,
        breaks=("life.told-last",),
        plant=edits(
            (
                _RELEASE_ALL,
                "while record.rpc_buffers:",
                "answer = await core.fast(sys, None, smc.OPTEE_SMC_VM_DESTROYED, record.client)\n"
                "    while record.rpc_buffers:",
            ),
            (
                _RELEASE_ALL,
                "return False\n    answer = await core.fast(sys, None, smc.OPTEE_SMC_VM_DESTROYED,"
                " record.client)\n    core.guests",
                "return False\n    core.guests",
            ),
        ),
    ),
    Mutant(
        id="life.teardown-in-one-go",
        story="Releases all buffers of a guest in one go: a guest with many keeps the processor.",
        bug_class=7,
        breaks=("life.preemptible", "I7"),
        plant=edits(
            (
                _RELEASE_ALL,
                "while record.buffers:\n        if await sys.should_preempt():\n"
                "            return False",
                "while record.buffers:",
            )
        ),
    ),
    Mutant(
        id="life.held-buffers-in-one-go",
        story="Lets the buffers that a suspended call names go with that call: a guest that dies"
        " with one call and thousands of them keeps the processor.",
        bug_class=7,
        breaks=("life.preemptible", "I7"),
        plant=edits(
            (
                _RELEASE_ALL,
                "call.buffers, call.walk, call.named = ([], None, [])",
                "call.buffers, call.walk = ([], None)",
            )
        ),
    ),
    Mutant(
        id="life.preempted-is-done",
        story="Reports a preempted teardown as done: the host gives the guest's pages away while"
        " the TEE may still write to them.",
        bug_class=12,
        breaks=("life.destroyed-empty", "life.preemptible", "I2", "I3"),
        plant=edits(
            (
                _DESTROYED,
                "return await _release_all(core, sys, record)",
                "await _release_all(core, sys, record)\n        return True",
            )
        ),
    ),
    Mutant(
        id="life.no-quarantine",
        story="Ignores the answer to VM_DESTROYED, as there is nothing to be done about it: the"
        " host gives pages away that the TEE has not let go of.",
        bug_class=12,
        breaks=("life.destroyed-whatever-answer", "I2"),
        plant=edits((_RELEASE_ALL, "if answer[0] & M32 != OK:", "if False:")),
    ),
    Mutant(
        id="life.refused-end-keeps-the-guest",
        story="Keeps everything of a guest until the TEE agrees to its end: a TEE that does not"
        " lets its memory stay pinned for ever.",
        bug_class=12,
        breaks=("life.destroyed-whatever-answer", "I3", "I7"),
        plant=edits(
            (
                _RELEASE_ALL,
                "core.guests.pop(record.id, None)",
                "if answer[0] & M32 != OK:\n        return False\n"
                "    core.guests.pop(record.id, None)",
            )
        ),
    ),
    Mutant(
        id="probe.all-of-each-word",
        story="Compares the UID as 64-bit registers: left-overs in the upper halves, which the"
        " convention allows, and there is no TEE.",
        bug_class=8,
        breaks=("probe.uid",),
        plant=edits((_PROBE, "word & M32 for word in uid", "word for word in uid")),
    ),
    Mutant(
        id="probe.virtualization-assumed",
        story="Does not ask whether the TEE keeps guests apart: one that does not gives every guest"
        " the sessions of all others.",
        bug_class=13,
        breaks=("probe.virtualization", "I5"),
        plant=edits((_PROBE, "if gone[0] == UNKNOWN_FUNCTION:", "if False:")),
    ),
)

FAST = (
    Mutant(
        id="cache.disable-forwards-enable",
        story="A copy of the line above: DISABLE_SHM_CACHE is forwarded with the id of ENABLE, is"
        " always OK, and a driver that drains the cache never ends.",
        bug_class=10,
        breaks=("cache.drain-id",),
        plant=edits((_DISABLE, "OPTEE_SMC_DISABLE_SHM_CACHE", "OPTEE_SMC_ENABLE_SHM_CACHE")),
    ),
    Mutant(
        id="cache.drained-is-ok",
        story="Answers OK when the cache is empty, since that is what the guest wanted: it asks"
        " again, for ever.",
        bug_class=10,
        breaks=("cache.drain-id", "I7"),
        plant=edits((_DISABLE, "return (answer[0], *regs[1:])", "return (OK, *regs[1:])")),
    ),
    Mutant(
        id="cache.drained-buffer-stays",
        story="Hands the drained cookie to the guest and waits for nothing: the buffer's page stays"
        " pinned.",
        bug_class=3,
        breaks=("rpc_free.before-guest", "cache.drain-id", "I3"),
        plant=edits((_DISABLE, "if buffer is not None and buffer.live:", "if False:")),
    ),
    Mutant(
        id="cache.cookie-words-swapped",
        story="Looks for the drained cookie with its words swapped.",
        bug_class=9,
        breaks=("cache.drain-id", "I3"),
        plant=edits((_DISABLE, "pair(answer[1], answer[2])", "pair(answer[2], answer[1])")),
    ),
    Mutant(
        id="offer.unknown-is-forwarded",
        story="Forwards fast calls that it does not know: a guest tells the TEE that a guest was"
        " created, or destroyed.",
        bug_class=10,
        breaks=("offer.hidden-functions", "I5"),
        plant=edits(
            (
                _HANDLE,
                "if handler is None:\n            return None",
                "if handler is None:\n"
                "            answer = await core.fast(sys, record, function, regs[1])\n"
                "            return (*answer, *regs[4:])",
            )
        ),
    ),
    Mutant(
        id="offer.arguments-pass",
        story="Forwards fast calls with the guest's own registers, a7 too: the guest chooses whose"
        " cache it enables.",
        bug_class=13,
        breaks=("offer.no-guest-arguments", "I5"),
        plant=edits(
            (
                "mediator.optee.fast:enable_shm_cache",
                "answer = await core.fast(sys, guest, smc.OPTEE_SMC_ENABLE_SHM_CACHE)",
                "answer = await sys.smc(smc.OPTEE_SMC_ENABLE_SHM_CACHE, *regs[1:])",
            )
        ),
    ),
    Mutant(
        id="offer.four-results-of-everything",
        story="Sets x0..x3 after every fast call: what the TEE left in the registers that have no"
        " meaning reaches the guest.",
        bug_class=27,
        breaks=("offer.result-registers", "I1"),
        plant=edits(
            (
                "mediator.optee.fast:calls_revision",
                "return (*answer[:2], *regs[2:])",
                "return (*answer, *regs[4:])",
            ),
            (
                "mediator.optee.notify:value",
                "return (*answer[:3], *regs[3:])",
                "return (*answer, *regs[4:])",
            ),
        ),
    ),
    Mutant(
        id="offer.build-id-lost",
        story="GET_OS_REVISION with two results, as it was before the build id came.",
        bug_class=27,
        breaks=("offer.os-revision-build-id",),
        plant=edits(
            (
                "mediator.optee.fast:os_revision",
                "3 if core.settings.build_id else 2",
                "2",
            )
        ),
    ),
    Mutant(
        id="offer.value-of-another-error",
        story="Sets the result registers of GET_ASYNC_NOTIF_VALUE also when it failed.",
        bug_class=27,
        breaks=("offer.result-registers",),
        plant=edits(
            ("mediator.optee.notify:value", "if answer[0] & M32 != OK:", "if False:"),
        ),
    ),
    Mutant(
        id="caps.unfiltered",
        story="Passes the TEE's capabilities on: the guest uses reserved memory, which is one for"
        " all guests.",
        bug_class=11,
        breaks=("caps.filter", "I2"),
        plant=edits((_CAPABILITIES, "answer[1] & core.settings.capabilities", "answer[1]")),
    ),
    Mutant(
        id="caps.null-references-hidden",
        story="Masks with the capabilities of an old version: the driver believes that the TEE does"
        " not understand null references and allocates memory to ask for a size.",
        bug_class=11,
        breaks=("caps.filter",),
        plant=edits(
            (
                _CAPABILITIES,
                "answer[1] & core.settings.capabilities",
                "answer[1] & core.settings.capabilities & ~smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL",
            )
        ),
    ),
    Mutant(
        id="caps.status-of-64-bits",
        story="Tests all of x0 for OK: left-overs in the upper half make an error of a success.",
        bug_class=8,
        breaks=("smccc.function-low-word",),
        plant=edits((_CAPABILITIES, "if answer[0] & M32 != OK:", "if answer[0] != OK:")),
    ),
    Mutant(
        id="caps.error-shows-registers",
        story="Sets x1..x3 to the TEE's registers also when the exchange failed.",
        bug_class=27,
        breaks=("caps.error-passed", "offer.result-registers"),
        plant=edits(
            (
                _CAPABILITIES,
                "if answer[0] & M32 != OK:\n        return (answer[0], *regs[1:])",
                "if answer[0] & M32 != OK:\n        return (*answer, *regs[4:])",
            )
        ),
    ),
)

MUTANTS = (*LIVES, *FAST)
