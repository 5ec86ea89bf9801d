# SPDX-License-Identifier: BSD-2-Clause
"""Bugs about what the TEE may still use, and about entries of other processors."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_START: Final = "mediator.optee.call:_start"
_ENTER: Final = "mediator.optee.call:_enter"
_CREATED: Final = "mediator.optee.lifecycle:guest_created"

MUTANTS = (
    Mutant(
        id="hold.rpc-page-as-parameter",
        story="Passes references to registered memory on unseen: the TEE knows the mediator's page"
        " for RPC messages by the guest's cookie, and a TA reads and writes it for the guest.",
        bug_class=24,
        breaks=("param.rpc-buffer", "I1", "I2"),
        plant=edits((_START, "if guest.rpc_buffers and", "if not guest.rpc_buffers and")),
    ),
    Mutant(
        id="hold.rpc-page-under-a-used-name",
        story="Compares the cookie of a new RPC buffer with those of other RPC buffers only: a call"
        " on its way names it already, and the TEE may look it up later.",
        bug_class=24,
        breaks=("param.rpc-buffer", "I2"),
        plant=edits(("mediator.optee.rpc:allocated", " or guest.names(cookie)", "")),
    ),
    Mutant(
        id="hold.temporary-of-another-call",
        story="Unpins the temporary buffers of a call at its end, though another call named one by"
        " its reference and the TEE still uses it: the page is given to another guest.",
        bug_class=12,
        breaks=("param.named-buffer", "I2"),
        plant=edits(
            (
                "mediator.optee.core:Core.release_buffer",
                "if guest.names(buffer.reference, call):",
                "if False:",
            )
        ),
    ),
    Mutant(
        id="hold.call-given-up",
        story="Gives a call up whose requests cannot be written to the guest, and releases what it"
        " had: the thread of the TEE is suspended and has it all still.",
        bug_class=12,
        breaks=("progress.undeliverable", "I2"),
        plant=edits(
            (
                _ENTER,
                "call.leaving = False",
                "return await _fail(core, sys, guest, call, regs, tee.TEE_ERROR_COMMUNICATION)",
            )
        ),
    ),
    Mutant(
        id="hold.rpc-page-in-hand",
        story="Gives the page of an RPC buffer back when the TEE frees it, though another processor"
        " is copying an answer there: it lands in the message of another guest.",
        bug_class=14,
        breaks=("contain.secure-world", "I5"),
        plant=edits(("mediator.optee.core:Core.give_rpc_page", " and (not buffer.users)", "")),
    ),
    Mutant(
        id="hold.refused-cookie-frees",
        story="Takes every FREE for what it says: the TEE gives the cookie of a refused answer to ALLOC"
        " back, and the guest had put another thread's there, whose page goes to the next call.",
        bug_class=24,
        breaks=("rpc_free.refused", "I2"),
        plant=edits(
            (
                "mediator.optee.rpc:_means",
                "return buffer.thread == thread or buffer.cookie != refused",
                "return True",
            )
        ),
    ),
    Mutant(
        id="hold.empty-answer-frees",
        story="Takes every SHM_FREE for what it says: the TEE gives the reference of an answer without"
        " memory back, and the guest had put that of a buffer there that another thread uses.",
        bug_class=24,
        breaks=("rpc_free.refused", "I2"),
        plant=edits(("mediator.optee.rpc:_request_out", "if fields[10] == empty:", "if False:")),
    ),
    Mutant(
        id="hold.walk-of-many-buffers",
        story="Asks whether to stop inside a long buffer only: a message of many short ones keeps"
        " the processor as long as the quota allows.",
        bug_class=7,
        breaks=("progress.bounded", "I7"),
        plant=edits(
            (
                "mediator.optee.call:_translate",
                "if walked >= core.settings.limits.walk_entries:",
                "if False:",
            )
        ),
    ),
    Mutant(
        id="hold.guest-dies-at-birth",
        story="Tears a guest down while VM_CREATED is on its way: the creation then reports success"
        " for a guest that the TEE has forgotten, or fails on a record that is gone.",
        bug_class=13,
        breaks=("life.created", "I5"),
        plant=edits((_CREATED, "record.entries += 1", ""), (_CREATED, "record.entries -= 1", "")),
    ),
    Mutant(
        id="hold.client-id-cut",
        story="Hands any guest number on as client id: the TEE looks at 16 bits, and guest 0x10000"
        " gets the sessions and the memory of guest 0.",
        bug_class=13,
        breaks=("life.client-id", "I5"),
        plant=edits((_CREATED, "0 < record.client <= LAST_CLIENT", "record.client")),
    ),
    Mutant(
        id="hold.never-let-go",
        story="Keeps a buffer that another call named until the guest ends: nobody looks when that"
        " call is over.",
        bug_class=5,
        breaks=("limit.allocation-failure", "I3"),
        plant=edits(("mediator.optee.core:Core.release_call", "if guest.lingering:", "if False:")),
    ),
    Mutant(
        id="hold.lost-with-the-guest",
        story="Releases the buffers of a guest that ends by name; those that were held for another"
        " call have none any more.",
        bug_class=17,
        breaks=("life.destroyed-empty", "I3"),
        plant=edits(
            ("mediator.optee.lifecycle:_release_all", "while record.lingering:", "while False:")
        ),
    ),
    Mutant(
        id="hold.low-bits-hidden",
        story="Writes clean page addresses into the TEE's list whatever the guest's entries were: a"
        " list that OP-TEE refuses on bare metal is accepted.",
        bug_class=20,
        breaks=("list.low-bits",),
        plant=edits(
            ("mediator.optee.memory:_pin", "core.settings.entry_offsets and", "False and"),
        ),
    ),
)
