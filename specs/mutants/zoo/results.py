# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in registers, parameters and results: what is taken for what."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_BY_ADDRESS: Final = "mediator.optee.call:_by_address"
_REGD: Final = "mediator.optee.call:call_with_regd_arg"
_START: Final = "mediator.optee.call:_start"
_GIVEN: Final = "mediator.optee.call:_given"
_ENTER: Final = "mediator.optee.call:_enter"
_END: Final = "mediator.optee.call:_end"
_PLAN: Final = "mediator.optee.plan:Plan.__init__"
_HANDLE: Final = "mediator.optee.mediator:OpteeMediator.handle"
_ADDRESS: Final = "ipa = (regs[1] & M32) << 32 | regs[2] & M32"
_LOOK: Final = "carrier = guest.buffers.get((regs[1] & M32) << 32 | regs[2] & M32)"

WORDS = (
    Mutant(
        id="trap.all-of-x0",
        story="Selects the function by all 64 bits of x0: a 32-bit kernel's left-overs in the upper"
        " half make every call unknown.",
        bug_class=8,
        breaks=("smccc.function-low-word",),
        plant=edits((_HANDLE, "function = regs[0] & M32", "function = regs[0]")),
    ),
    Mutant(
        id="trap.all-of-x3",
        story="Looks a thread up by all 64 bits of x3.",
        bug_class=8,
        breaks=("smccc.function-low-word", "rpc.resume-suspended-only"),
        plant=edits(
            ("mediator.optee.call:return_from_rpc", "thread = regs[3] & M32", "thread = regs[3]")
        ),
    ),
    Mutant(
        id="call.all-of-the-address-words",
        story="Builds the message address from whole registers: left-overs in the upper halves make"
        " another address.",
        bug_class=8,
        breaks=("smccc.function-low-word", "call.high-low"),
        plant=edits((_BY_ADDRESS, _ADDRESS, "ipa = regs[1] << 32 | regs[2]")),
    ),
    Mutant(
        id="call.status-of-64-bits",
        story="Compares all of the answer's x0 with 0xFFFFFFFF: an unknown function, -1 with its"
        " sign extended, is taken for an RPC.",
        bug_class=8,
        breaks=("result.unknown-function-ends", "rpc.recognised"),
        plant=edits((_ENTER, "status = answer[0] & M32", "status = answer[0]")),
    ),
    Mutant(
        id="call.address-words-swapped",
        story="Takes x1 for the low word of the message address.",
        bug_class=9,
        breaks=("call.high-low",),
        plant=edits((_BY_ADDRESS, _ADDRESS, "ipa = (regs[2] & M32) << 32 | regs[1] & M32")),
    ),
    Mutant(
        id="call.shadow-words-swapped",
        story="Hands the shadow page's address to the TEE low word first: works for as long as"
        " mediator memory lies at a palindrome.",
        bug_class=9,
        breaks=("call.high-low", "I2"),
        plant=edits(
            (_START, "call.function, pa >> 32, pa & M32, 1", "call.function, pa & M32, pa >> 32, 1")
        ),
    ),
    Mutant(
        id="call.resumed-shadow-words-swapped",
        story="The same in the copy of that line for a call that was preempted before the TEE.",
        bug_class=9,
        breaks=("call.high-low", "progress.own-threads"),
        plant=edits(
            (
                "mediator.optee.call:_resume_own",
                "call.function, shadow.pa >> 32, shadow.pa & M32, 1",
                "call.function, shadow.pa & M32, shadow.pa >> 32, 1",
            )
        ),
    ),
    Mutant(
        id="regd.cookie-words-swapped",
        story="Takes x1 for the low word of the carrier's cookie.",
        bug_class=9,
        breaks=("call.high-low", "register.whole-cookie"),
        plant=edits(
            (_REGD, _LOOK, "carrier = guest.buffers.get((regs[2] & M32) << 32 | regs[1] & M32)")
        ),
    ),
    Mutant(
        id="call.arg-becomes-rpc-arg",
        story="Uses the modern function towards the TEE for every call: the TEE then puts RPC"
        " arguments behind a classic message, where the guest does not look.",
        bug_class=10,
        breaks=("call.function-forwarded",),
        plant=edits(
            (
                _START,
                "return await _enter(core, sys, guest, vcpu, regs, call, call.function,",
                "return await _enter(core, sys, guest, vcpu, regs, call, CALL_WITH_RPC_ARG,",
            )
        ),
    ),
    Mutant(
        id="call.client-id-of-the-guest",
        story="Passes a7 on if the guest set it: on bare metal it is zero, so nobody notices.",
        bug_class=13,
        breaks=("call.client-id", "I5"),
        plant=edits(
            (
                _ENTER,
                "answer = await sys.smc(a0, a1, a2, a3, a4, a5, 0, guest.client)",
                "answer = await sys.smc(a0, a1, a2, a3, a4, a5, 0, regs[7] or guest.client)",
            ),
            (
                _ENTER,
                "sent = (a0, a1, a2, a3, a4, a5, 0, guest.client)",
                "sent = (a0, a1, a2, a3, a4, a5, 0, regs[7] or guest.client)",
            ),
        ),
    ),
    Mutant(
        id="call.unaligned-message",
        story="Reads the message wherever x1:x2 points: its second half may lie in a page that was"
        " never looked at.",
        bug_class=20,
        breaks=("call.message-aligned",),
        plant=edits((_BY_ADDRESS, "if ipa & PAGE_MASK:", "if ipa & 7:")),
    ),
)

RESULTS = (
    Mutant(
        id="call.too-many-params-undefined",
        story="Says BAD_PARAMETERS in the message and leaves x0 as it was, the function id: a"
        " driver takes it for a status.",
        bug_class=27,
        breaks=("call.defined-result", "call.too-many-params"),
        plant=edits(
            (
                _START,
                "return await _fail(core, sys, guest, call, regs, tee.TEE_ERROR_BAD_PARAMETERS)",
                "await _fail(core, sys, guest, call, regs, tee.TEE_ERROR_BAD_PARAMETERS)\n"
                "        return regs",
            )
        ),
    ),
    Mutant(
        id="call.end-shows-secure-registers",
        story="Copies x0..x3 of every answer to the guest: at the end of a yielding call x1..x3"
        " hold whatever the TEE left there.",
        bug_class=27,
        breaks=("result.registers", "I1"),
        plant=edits(
            (
                _ENTER,
                "return await _end(core, sys, guest, vcpu, regs, call, answer[0])",
                "return await _end(core, sys, guest, vcpu, (*answer, *regs[4:]), call, answer[0])",
            )
        ),
    ),
    Mutant(
        id="call.unwritten-results-are-ok",
        story="Ignores that the results could not be written because the page is read-only now: the"
        " guest reads its own old words as results.",
        bug_class=27,
        breaks=("result.unwritable",),
        plant=edits((_END, "if not written:", "if False:")),
    ),
    Mutant(
        id="call.unknown-command-passes",
        story="Forwards message commands that it does not know, in the hope that nothing in them"
        " is an address.",
        bug_class=25,
        breaks=("call.unknown-command", "I2"),
        plant=edits((_START, "if command > core.last_command:", "if False:")),
    ),
    Mutant(
        id="result.whole-parameters-back",
        story="Copies whole memory references back, not only their sizes: attribute and address are"
        " the mediator's, and the guest learns physical addresses.",
        bug_class=25,
        breaks=("result.only-results", "result.no-physical-address", "I1"),
        plant=edits((_PLAN, "outputs.append((at + 16, at + 24))", "outputs.append((at, at + 32))")),
    ),
    Mutant(
        id="result.meta-is-no-buffer",
        story="Skips parameters with the META bit, because those of OPEN_SESSION hold UUIDs: a META"
        " memory reference goes to the TEE with the guest's own address.",
        bug_class=18,
        breaks=("param.type-bits", "I2"),
        plant=edits(
            (_PLAN, "if what & _TMEM:", "if what & _TMEM and not attr & msg.OPTEE_MSG_ATTR_META:")
        ),
    ),
    Mutant(
        id="result.only-output-buffers",
        story="Translates only what the TEE writes to: an input buffer goes to the TEE with the"
        " guest's own address.",
        bug_class=18,
        breaks=("param.type-bits", "I2"),
        plant=edits(
            (_PLAN, "if what & _TMEM:", "if what & _TMEM and what & _MEMREF_OUT:"),
        ),
    ),
    Mutant(
        id="param.null-is-translated",
        story="Translates every temporary memory reference, also a null one: the usual question for"
        " a size is BAD_PARAMETERS.",
        bug_class=11,
        breaks=("param.null",),
        plant=edits((_GIVEN, " if fields[9 + 4 * index]]", "]")),
    ),
    Mutant(
        id="param.page-zero-is-null",
        story="Takes every address in the guest's first page for a null reference and passes it on:"
        " the TEE gets an address that nobody translated.",
        bug_class=11,
        breaks=("param.null", "I2"),
        plant=edits(
            (_GIVEN, " if fields[9 + 4 * index]]", " if fields[9 + 4 * index] & ~PAGE_MASK]")
        ),
    ),
)

MUTANTS = (*WORDS, *RESULTS)
