# SPDX-License-Identifier: BSD-2-Clause
"""Bugs with messages in registered memory (CALL_WITH_REGD_ARG)."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_REGD: Final = "mediator.optee.call:call_with_regd_arg"
_ENTER: Final = "mediator.optee.call:_enter"
_LOOK: Final = "carrier = guest.buffers.get((regs[1] & M32) << 32 | regs[2] & M32)"

REGISTERED_MESSAGES = (
    Mutant(
        id="regd.forwarded-as-itself",
        story="Forwards CALL_WITH_REGD_ARG as it came, which works: the TEE finds the message"
        " through the registered buffer, in memory that the guest can change under it.",
        bug_class=10,
        breaks=("regd.as-rpc-arg", "I4"),
        plant=edits(
            (
                _ENTER,
                "answer = await sys.smc(a0, a1, a2, a3, a4, a5, 0, guest.client)",
                "if call.carrier is not None and a0 == CALL_WITH_RPC_ARG:\n"
                "            reference = call.carrier.reference\n"
                "            a0, a1 = (smc.OPTEE_SMC_CALL_WITH_REGD_ARG, reference >> 32)\n"
                "            a2, a3 = (reference & M32, call.position)\n"
                "        answer = await sys.smc(a0, a1, a2, a3, a4, a5, 0, guest.client)",
            )
        ),
    ),
    Mutant(
        id="regd.found-while-dying",
        story="Keeps the name of a buffer until its last user has gone: a call can still begin in a"
        " buffer that the TEE does not know any more.",
        bug_class=14,
        breaks=("regd.carrier-held", "I3"),
        plant=edits(
            (
                "mediator.optee.core:Core.release_buffer",
                "if named:\n        del",
                "if named and not buffer.users:\n        del",
            )
        ),
    ),
    Mutant(
        id="regd.held-too-late",
        story="Looks the carrier up, reads the message, and then counts itself as a user: in"
        " between the carrier's pins can go.",
        bug_class=14,
        breaks=("regd.carrier-held", "I2"),
        plant=edits(
            (_REGD, "carrier.users += 1\n    ", ""),
            (
                _REGD,
                "if call.shadow is None:",
                "carrier.users += 1\n        if call.shadow is None:",
            ),
        ),
    ),
    Mutant(
        id="regd.unfinished-registration-found",
        story="Accepts a carrier whose registration the TEE has not confirmed: if it refuses, the"
        " pages are gone in the middle of the call.",
        bug_class=14,
        breaks=("regd.carrier-held", "regd.checked", "I2"),
        plant=edits((_REGD, "not carrier.live", "False")),
    ),
    Mutant(
        id="regd.carrier-not-held",
        story="UNREGISTER of the carrier unpins it although a call in flight has its message there:"
        " the results are written into a page that may have a new owner.",
        bug_class=12,
        breaks=("regd.carrier-held", "I1", "I2"),
        plant=edits(
            (
                "mediator.optee.core:Core.release_buffer",
                "if buffer.users:",
                "if False:",
            )
        ),
    ),
    Mutant(
        id="regd.last-user-forgets-the-others",
        story="The end of any call in the carrier counts as the end of all of them: the second one"
        " writes its results into pages that were given back.",
        bug_class=15,
        breaks=("secure.find-and-hold", "regd.carrier-held", "I3"),
        plant=edits(
            (
                "mediator.optee.core:Core.release_call",
                "carrier.users -= 1",
                "carrier.users = 0",
            )
        ),
    ),
    Mutant(
        id="regd.any-kind-carries",
        story="Takes any live buffer as the carrier of a message, also memory that was allocated"
        " for the TEE by RPC.",
        bug_class=18,
        breaks=("register.param-shape", "regd.checked", "I5"),
        plant=edits((_REGD, "carrier.kind != REGISTERED or ", "")),
    ),
    Mutant(
        id="regd.cookie-low-word",
        story="Looks the carrier up by the low word of the cookie, which is enough on a small"
        " system: the kernel's pointers differ in the upper one.",
        bug_class=24,
        breaks=("regd.checked", "I5"),
        plant=edits(
            (
                _REGD,
                _LOOK,
                _LOOK + "\n"
                "    for reference in guest.buffers:\n"
                "        if carrier is None and reference & M32 == regs[2] & M32:\n"
                "            carrier = guest.buffers[reference]",
            )
        ),
    ),
    Mutant(
        id="regd.any-offset",
        story="Does not look at the alignment of the offset: a header across two pages has a field"
        " across two pages.",
        bug_class=20,
        breaks=("regd.checked",),
        plant=edits((_REGD, "position & 7 or ", "")),
    ),
    Mutant(
        id="regd.offset-at-the-end",
        story="Checks that the message begins inside the buffer, not that it fits.",
        bug_class=20,
        breaks=("regd.checked", "I2"),
        plant=edits(
            (_REGD, "position + HEADER_SIZE > carrier.length", "position > carrier.length")
        ),
    ),
    Mutant(
        id="regd.length-of-whole-pages",
        story="Takes the pages of a buffer for its length, although it begins inside the first one.",
        bug_class=30,
        breaks=("regd.checked", "param.tail-page"),
        plant=edits(
            (
                "mediator.optee.records:Buffer.length.fget",
                "(self.pages << PAGE_SHIFT) - self.offset",
                "self.pages << PAGE_SHIFT",
            )
        ),
    ),
    Mutant(
        id="regd.offset-of-the-buffer-forgotten",
        story="Counts the position of a message from the start of the first page instead of the"
        " first byte of the buffer.",
        bug_class=30,
        breaks=("param.tail-page", "regd.own-slot", "I4"),
        plant=edits(
            ("mediator.optee.records:Buffer.pa", "position += self.offset", "pass"),
        ),
    ),
)

MUTANTS = (*REGISTERED_MESSAGES,)
