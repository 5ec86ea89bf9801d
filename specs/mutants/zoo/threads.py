# SPDX-License-Identifier: BSD-2-Clause
"""Bugs with suspended calls: whose they are, and how they go on."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_LEAVE: Final = "mediator.optee.rpc:leave"
_ALLOCATED: Final = "mediator.optee.rpc:allocated"
_RETURN: Final = "mediator.optee.call:return_from_rpc"
WORDS = (
    Mutant(
        id="rpc.alloc-address-words-swapped",
        story="Takes x1 for the low word of the address in the answer to ALLOC.",
        bug_class=9,
        breaks=("call.high-low",),
        plant=edits((_ALLOCATED, "ipa = pair(regs[1], regs[2])", "ipa = pair(regs[2], regs[1])")),
    ),
    Mutant(
        id="rpc.alloc-cookie-words-swapped",
        story="Stores the cookie of an RPC buffer with its words swapped: it is never found again,"
        " except by the guest.",
        bug_class=9,
        breaks=("call.high-low", "rpc_alloc.mediator-page"),
        plant=edits(
            (_ALLOCATED, "cookie = pair(regs[4], regs[5])", "cookie = pair(regs[5], regs[4])")
        ),
    ),
    Mutant(
        id="rpc.alloc-page-words-swapped",
        story="Hands the mediator's page to the TEE low word first.",
        bug_class=9,
        breaks=("call.high-low", "rpc_alloc.mediator-page", "I2"),
        plant=edits(
            (
                _RETURN,
                "RETURN_FROM_RPC, pa >> 32, pa & M32,",
                "RETURN_FROM_RPC, pa & M32, pa >> 32,",
            )
        ),
    ),
    Mutant(
        id="rpc.alloc-cookie-forwarded-swapped",
        story="Hands the cookie on in a5:a4.",
        bug_class=9,
        breaks=("call.high-low", "rpc_alloc.mediator-page"),
        plant=edits((_RETURN, "thread, regs[4], regs[5]", "thread, regs[5], regs[4]")),
    ),
    Mutant(
        id="rpc.free-cookie-words-swapped",
        story="Looks for the cookie of FREE with its words swapped: nothing is ever unpinned.",
        bug_class=9,
        breaks=("call.high-low", "I3"),
        plant=edits((_LEAVE, "pair(answer[1], answer[2])", "pair(answer[2], answer[1])")),
    ),
    Mutant(
        id="rpc.command-cookie-words-swapped",
        story="Looks for the message buffer of a command with the words of its cookie swapped.",
        bug_class=9,
        breaks=("call.high-low",),
        plant=edits(
            (
                "mediator.optee.rpc:_place",
                "pair(call.rpc_a1, call.rpc_a2)",
                "pair(call.rpc_a2, call.rpc_a1)",
            )
        ),
    ),
    Mutant(
        id="rpc.answer-words-swapped",
        story="Swaps x1 and x2 of an RPC on its way to the guest.",
        bug_class=9,
        breaks=("call.high-low",),
        plant=edits(
            (
                _LEAVE,
                "return (*answer, *regs[4:])",
                "return (answer[0], answer[2], answer[1], answer[3], *regs[4:])",
            )
        ),
    ),
)

THREADS = (
    Mutant(
        id="resume.invented-thread",
        story="Passes a resumption that it cannot place on to the TEE, which knows its threads: a"
        " guest enters a thread whose call another of its processors has.",
        bug_class=23,
        breaks=("rpc.resume-suspended-only", "I5"),
        plant=edits(
            (
                _RETURN,
                "return (smc.OPTEE_SMC_RETURN_ERESUME, *regs[1:])",
                "answer = await sys.smc(RETURN_FROM_RPC, 0, 0, thread, 0, 0, 0, guest.client)\n"
                "        return (answer[0], *regs[1:])",
            )
        ),
    ),
    Mutant(
        id="resume.running-thread",
        story="Leaves the thread id with a call that goes on: a second processor resumes it too,"
        " and two processors run one call.",
        bug_class=23,
        breaks=("rpc.resume-suspended-only", "rpc.thread-id-reuse"),
        plant=edits(
            (
                _RETURN,
                "del guest.suspended[thread]\n        if call.rpc_function == rpc.FUNC_ALLOC:",
                "if call.rpc_function == rpc.FUNC_ALLOC:",
            ),
            (
                _LEAVE,
                "or thread in guest.suspended",
                "or guest.suspended.get(thread, call) is not call",
            ),
        ),
    ),
    Mutant(
        id="resume.id-free-too-early",
        story="Gives the thread id up when the guest comes back, although the guest may be needed"
        " once more before the TEE is entered: a TEE that uses the id meanwhile has one of two"
        " calls forgotten.",
        bug_class=28,
        breaks=("contain.secure-world", "I3"),
        plant=edits(
            (_RETURN, "call.leaving = True", "del guest.suspended[thread]"),
            (
                _RETURN,
                "call.leaving = False\n            if out is not None:",
                "if out is not None:\n                guest.suspended[thread] = call",
            ),
            (
                _RETURN,
                "del guest.suspended[thread]\n            return await _enter(",
                "return await _enter(",
            ),
        ),
    ),
    Mutant(
        id="resume.before-the-request",
        story="Makes a call resumable before its request has been written: a quick guest answers a"
        " question that it has not been asked.",
        bug_class=23,
        breaks=("rpc.resume-suspended-only", "I4"),
        plant=edits((_RETURN, " or call.leaving", "")),
    ),
    Mutant(
        id="resume.thread-id-believed",
        story="Believes that the TEE never gives the id of a suspended call to another one: the"
        " first call can never be resumed.",
        bug_class=23,
        breaks=("rpc.thread-id-reuse", "contain.secure-world"),
        plant=edits((_LEAVE, " or thread in guest.suspended", "")),
    ),
    Mutant(
        id="resume.refused-loses-the-call",
        story="Takes the call off the list, sees that it cannot be resumed yet, and answers"
        " ERESUME: nobody can ever resume it.",
        bug_class=28,
        breaks=("rpc.resume-suspended-only",),
        plant=edits(
            (
                _RETURN,
                "if call is None or call.leaving:",
                "if call is None or call.leaving:\n        guest.suspended.pop(thread, None)",
            ),
            (_LEAVE, "del guest.suspended[thread]", "guest.suspended.pop(thread, None)"),
        ),
    ),
    Mutant(
        id="resume.refused-by-the-tee-stays",
        story="Hands ERESUME of the TEE to the guest and leaves the call in flight: it is neither"
        " suspended nor ended, and its buffers stay pinned.",
        bug_class=28,
        breaks=("contain.secure-world", "I3"),
        plant=edits(
            (
                "mediator.optee.call:_enter",
                "if status < RPC_PREFIX",
                "if status == smc.OPTEE_SMC_RETURN_ERESUME:\n"
                "            return (status, *regs[1:])\n"
                "        if status < RPC_PREFIX",
            )
        ),
    ),
    Mutant(
        id="resume.broken-thread-stays",
        story="Answers a TEE that reuses the id of a suspended thread with an error to the guest,"
        " and leaves the call in flight.",
        bug_class=28,
        breaks=("contain.secure-world", "I3"),
        plant=edits(
            (
                "mediator.optee.call:_enter",
                "if leaving == rpc.BROKEN:\n            break",
                "if leaving == rpc.BROKEN:\n"
                "            return (smc.OPTEE_SMC_RETURN_ERESUME, *regs[1:])",
            )
        ),
    ),
    Mutant(
        id="resume.undelivered-request-stays",
        story="Leaves a call on the list of suspended ones after its request could not be written"
        " and the TEE has gone on: the guest resumes a call that has ended.",
        bug_class=28,
        breaks=("rpc_cmd.unknown-cookie", "rpc.resume-suspended-only"),
        plant=edits(
            (_LEAVE, "del guest.suspended[thread]\n            return None", "return None"),
            (
                _LEAVE,
                "or thread in guest.suspended",
                "or guest.suspended.get(thread, call) is not call",
            ),
        ),
    ),
    Mutant(
        id="resume.requests-for-ever",
        story="Enters the TEE again as often as its requests cannot be delivered: a guest that"
        " takes its page away, or a broken TEE, keeps the processor for ever.",
        bug_class=7,
        breaks=("progress.bounded", "I7"),
        plant=edits(
            (
                "mediator.optee.call:_enter",
                "for _ in _ROUNDS:",
                "for _ in range(MAX_REFUSED_REQUESTS ** 3):",
            )
        ),
    ),
    Mutant(
        id="resume.flood-of-findings",
        story="Logs everything that a guest or a TEE does wrong: a guest that does nothing else"
        " fills the log.",
        bug_class=7,
        breaks=("progress.bounded", "I6"),
        plant=edits(
            (
                "mediator.optee.core:Core.finding",
                "if guest.findings <= MAX_LOGGED_FINDINGS:",
                "if True:",
            )
        ),
    ),
)

MUTANTS = (*WORDS, *THREADS)
