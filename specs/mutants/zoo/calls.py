# SPDX-License-Identifier: BSD-2-Clause
"""Bugs on the way of a call through the mediator: how often it reads, and what it releases."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_BY_ADDRESS: Final = "mediator.optee.call:_by_address"
_START: Final = "mediator.optee.call:_start"
_END: Final = "mediator.optee.call:_end"
_GONE: Final = "mediator.optee.call:_unregistered"
_RELEASE: Final = "mediator.optee.call:_release_buffers"
_DROP: Final = "mediator.optee.core:Core.drop_call"
FETCHING = (
    Mutant(
        id="call.header-first",
        story="Fetches the header to see how long the message is, and then the whole message: the"
        " parameter count that was checked need not be the one that is used.",
        bug_class=1,
        breaks=("call.single-fetch", "I4"),
        plant=edits(
            (
                _START,
                "message = data[:size]",
                "data = await sys.read_guest(guest.id, call.page, PAGE_SIZE) or data"
                " if call.carrier is None else data\n"
                "    message = data[:size]",
            )
        ),
    ),
    Mutant(
        id="call.slot-read-again",
        story="Reads a message in a registered page where it lies whenever it is needed, as OP-TEE"
        " does, although the guest can write there.",
        bug_class=1,
        breaks=("call.single-fetch", "regd.as-rpc-arg", "I4"),
        plant=edits(
            (
                _START,
                "shadow.mem[:size] = message",
                "shadow.mem[:size] = message if call.carrier is None"
                " or call.inside + size > PAGE_SIZE"
                " else await sys.read_pinned(guest.id, call.page + call.inside, size)",
            )
        ),
    ),
    Mutant(
        id="call.guest-copy-decides-results",
        story="Looks into the guest's message again to see which parameters are outputs: the guest"
        " turns an input into an output meanwhile and has the translated address written back.",
        bug_class=16,
        breaks=("result.recorded-attributes", "I1", "I4"),
        plant=edits(
            (
                _END,
                "carrier = call.carrier\n    if carrier is None:",
                "carrier = call.carrier\n"
                "    if carrier is None:\n"
                "        again = await sys.read_guest(guest.id, call.page, call.size) or data\n"
                "        count = (call.size - HEADER_SIZE) // PARAM_SIZE\n"
                "        plan = core.plans.of(MESSAGE[count].unpack(again)[8::4])\n"
                "        call.outputs = plan.outputs\n"
                "    if carrier is None:",
            )
        ),
    ),
    Mutant(
        id="call.tee-copy-decides-results",
        story="Takes the attributes for the copy-back from the message as the TEE left it: a TEE"
        " that marks an input as output has a list address of the mediator copied to the guest.",
        bug_class=16,
        breaks=("result.recorded-attributes", "I1"),
        plant=edits(
            (
                _END,
                "carrier = call.carrier\n    if carrier is None:",
                "count = (call.size - HEADER_SIZE) // PARAM_SIZE\n"
                "    call.outputs = core.plans.of(MESSAGE[count].unpack(data)[8::4]).outputs\n"
                "    carrier = call.carrier\n"
                "    if carrier is None:",
            )
        ),
    ),
    Mutant(
        id="call.answer-bounds-clean-up",
        story="Releases one buffer for each parameter that the message has at the end. The TEE may"
        " lower num_params; what was taken by the others stays pinned.",
        bug_class=16,
        breaks=("result.recorded-attributes", "I3"),
        plant=edits(
            (
                _END,
                "elif call.buffers:\n",
                "elif call.buffers:\n"
                "        left = _WORD.unpack_from(data, NUM_PARAMS_OFFSET)[0]\n"
                "        del call.buffers[left:]\n",
            )
        ),
    ),
)

RELEASING = (
    Mutant(
        id="call.results-before-release",
        story="Writes the results first and releases then: another processor that watches the"
        " message reuses the reference before the mediator has forgotten it, and is refused.",
        bug_class=3,
        breaks=("rpc_free.before-guest", "I3"),
        plant=edits(
            (
                _END,
                "accepted = status & M32 == OK",
                "early = [(start, data[start:end]) for start, end in call.outputs]\n"
                "    await place.write_back(sys, guest, call, early)\n"
                "    accepted = status & M32 == OK",
            )
        ),
    ),
    Mutant(
        id="call.failed-walk-keeps-its-pins",
        story="On an error releases the buffers that are complete and forgets the one whose walk"
        " failed half-way: the first steps of a long list stay pinned.",
        bug_class=5,
        breaks=("list.undone", "I3"),
        plant=edits(
            (_RELEASE, "if call.walk is not None:", "if False:"),
            (_DROP, "if call.walk is not None:", "if False:"),
        ),
    ),
    Mutant(
        id="call.good-parameter-stays",
        story="A bad parameter undoes itself only: the good ones before it stay pinned, because"
        " nobody ends a call that never began.",
        bug_class=26,
        breaks=("param.all-or-nothing", "I3"),
        plant=edits(
            (_RELEASE, "for buffer in buffers:", "for buffer in [] if call.pending else buffers:")
        ),
    ),
    Mutant(
        id="call.good-parameter-keeps-its-name",
        story="A refused call unpins its good buffers and leaves their records for the next call to"
        " find: the same reference cannot be used again.",
        bug_class=26,
        breaks=("param.all-or-nothing", "I3"),
        plant=edits(
            (
                _RELEASE,
                "await core.release_buffer(sys, guest, buffer, call)",
                "await core.release_buffer(sys, guest, buffer, call)\n"
                "        if call.pending:\n"
                "            guest.buffers[buffer.reference] = buffer",
            )
        ),
    ),
    Mutant(
        id="call.refused-registration-keeps-pins",
        story="Unpins temporary buffers at the end of a call, and registered ones when they are"
        " unregistered: one that the TEE refused is never unregistered.",
        bug_class=5,
        breaks=("register.refused", "I3"),
        plant=edits(
            (_END, "elif call.buffers:", "elif call.buffers and call.command != REGISTER_SHM:")
        ),
    ),
    Mutant(
        id="call.host-error-keeps-the-call",
        story="An exception of the host passes through, and the call that it ended stays on the"
        " list: one of the guest's few calls is gone for good.",
        bug_class=5,
        breaks=("limit.allocation-failure", "I3"),
        plant=edits(
            (
                _BY_ADDRESS,
                "await core.drop_call(sys, guest, call)\n        raise",
                "raise",
            )
        ),
    ),
    Mutant(
        id="call.no-memory-keeps-the-call",
        story="Out of shadow pages: the guest gets ENOMEM, and the call, which has nothing that"
        " needs freeing, stays counted.",
        bug_class=5,
        breaks=("limit.allocation-failure", "I3", "I6"),
        plant=edits(
            (
                _BY_ADDRESS,
                "return await _refuse(core, sys, guest, call, regs, smc.OPTEE_SMC_RETURN_ENOMEM)",
                "return (smc.OPTEE_SMC_RETURN_ENOMEM, *regs[1:])",
            )
        ),
    ),
    Mutant(
        id="call.invoke-drops-by-reference",
        story="At the end of an invoke drops whatever the references of its temporary parameters"
        " name. A null reference was never taken; its word may name a registered buffer.",
        bug_class=29,
        breaks=("register.temporary-only-own", "I3"),
        plant=edits(
            (
                _END,
                "elif call.buffers:\n        await _release_buffers(core, sys, guest, call)",
                "elif call.buffers:\n        await _release_buffers(core, sys, guest, call)\n"
                "    count = (call.size - HEADER_SIZE) // PARAM_SIZE\n"
                "    fields = MESSAGE[count].unpack(data)\n"
                "    for index in core.plans.of(fields[8::4]).tmem:\n"
                "        named = guest.buffers.get(fields[11 + 4 * index])\n"
                "        if named is not None and call.command < REGISTER_SHM:\n"
                "            await core.release_buffer(sys, guest, named)",
            )
        ),
    ),
    Mutant(
        id="call.unregister-takes-temporaries",
        story="UNREGISTER releases whatever its reference names, a temporary buffer of a call on"
        " another processor too: the TEE still has it mapped.",
        bug_class=29,
        breaks=("register.temporary-only-own", "I2", "I3"),
        plant=edits((_GONE, "if buffer.live:", "if buffer.live or buffer.kind == TEMPORARY:")),
    ),
    Mutant(
        id="call.unregister-before-the-tee",
        story="Unpins a registered buffer as soon as the guest asks to unregister it, not when the"
        " TEE has let go: the page is reused while the TEE writes to it.",
        bug_class=12,
        breaks=("register.pins", "I2"),
        plant=edits(
            (
                _START,
                "call.target = fields[11]",
                "call.target = fields[11]\n"
                "        named = guest.buffers.get(call.target)\n"
                "        if named is not None and named.live:\n"
                "            await core.release_buffer(sys, guest, named)",
            )
        ),
    ),
    Mutant(
        id="call.unregister-of-what-was-there",
        story="Notes the buffer when the UNREGISTER begins. Until the TEE answers, another one may"
        " have released that buffer and the name may be in use again: what the TEE dropped stays"
        " pinned for ever, under a name that the guest can neither use nor release.",
        bug_class=14,
        breaks=("register.unregister-at-the-answer", "I3"),
        plant=edits(
            (
                _START,
                "call.target = fields[11]",
                "call.target = fields[11]\n        call.empty = guest.buffers.get(call.target)",
            ),
            (
                _END,
                "if call.target >= 0 and accepted:",
                "if (\n"
                "        call.target >= 0\n"
                "        and accepted\n"
                "        and call.empty is guest.buffers.get(call.target)\n"
                "    ):",
            ),
        ),
    ),
    Mutant(
        id="call.unregister-of-what-is-not-there-yet",
        story="Takes an UNREGISTER that the TEE accepted for one of a buffer whose pages are still"
        " being looked up: it is unpinned as soon as the TEE has it.",
        bug_class=14,
        breaks=("register.unregister-at-the-answer", "I2"),
        plant=edits((_GONE, " and buffer.given", "")),
    ),
    Mutant(
        id="call.overtaken-registration-lives",
        story="Forgets that an UNREGISTER on another processor can be through before the REGISTER"
        " has returned: the buffer that the TEE has dropped comes alive.",
        bug_class=14,
        breaks=("param.reference-in-use", "register.pins", "I3"),
        plant=edits((_END, "if buffer.doomed:", "if False:")),
    ),
    Mutant(
        id="call.shadow-page-not-cleared",
        story="Puts the shadow page back as it is, for speed: the TEE reads the last guest's words"
        " behind a shorter message of the next guest.",
        bug_class=21,
        breaks=("guest.memory-apart", "I1"),
        plant=edits(
            (
                "mediator.optee.core:Core.release_call",
                "shadow.mem[:] = _ZERO_PAGE",
                "pass",
            )
        ),
    ),
)

MUTANTS = (*FETCHING, *RELEASING)
