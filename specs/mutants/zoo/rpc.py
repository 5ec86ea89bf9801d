# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in RPC rounds: who decides what was asked, what crosses, what is released when."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_LEAVE: Final = "mediator.optee.rpc:leave"
_OUT: Final = "mediator.optee.rpc:_request_out"
_IN: Final = "mediator.optee.rpc:answer_in"
_RETURN: Final = "mediator.optee.call:return_from_rpc"
_FREED: Final = "buffer = guest.buffers.get(fields[10])"

ANSWERS = (
    Mutant(
        id="rpc.answer-fetched-twice",
        story="Reads the header of an answer, checks the count, and reads the answer again.",
        bug_class=1,
        breaks=("rpc_cmd.answer-single-fetch", "I4"),
        plant=edits(
            (
                _IN,
                "size = HEADER_SIZE + count * PARAM_SIZE",
                "size = HEADER_SIZE + count * PARAM_SIZE\n"
                "    data = await place.read_answer(sys, guest, call, size) or data",
            )
        ),
    ),
    Mutant(
        id="rpc.size-fetched-again",
        story="Pins as many pages as the answer says *now*: the guest makes the buffer smaller"
        " after the TEE's message was written, and the TEE runs off the end of the list.",
        bug_class=2,
        breaks=("rpc_cmd.answer-single-fetch", "I2", "I4"),
        plant=edits(
            (
                _IN,
                "taken = memory.reserve(core, guest, RPC_ALLOCATED, fields[9], fields[10],",
                "again = await place.read_answer(sys, guest, call, size) or data\n"
                "                now = MESSAGE[count].unpack_from(again)[10]\n"
                "                taken = memory.reserve(core, guest, RPC_ALLOCATED, fields[9], now,",
            )
        ),
    ),
    Mutant(
        id="rpc.one-page-is-enough",
        story="Pins one page for an SHM_ALLOC answer, because the TEE always asks for one: the size"
        " in the answer, which the TEE uses, may be larger.",
        bug_class=2,
        breaks=("rpc_shm.translated", "I2"),
        plant=edits(
            (
                _IN,
                "RPC_ALLOCATED, fields[9], fields[10],",
                "RPC_ALLOCATED, fields[9], min(fields[10], 4096 - (fields[9] & PAGE_MASK)),",
            )
        ),
    ),
    Mutant(
        id="rpc.reply-command-decides",
        story="Looks into the answer for the command that it answers: a guest turns an answer to"
        " GET_TIME into one to SHM_ALLOC and has memory pinned that nobody asked for.",
        bug_class=25,
        breaks=("rpc.recorded-function", "I4"),
        plant=edits(
            (
                _IN,
                "call.request == SHM_ALLOC and count == 1 and (not fields[5]) and",
                "fields[0] == SHM_ALLOC and count == 1 and (not fields[5]) and",
            )
        ),
    ),
    Mutant(
        id="rpc.addresses-pass-elsewhere",
        story="Translates addresses in SHM_ALLOC answers and passes every other answer as it is:"
        " an address in it is an IPA that the TEE takes for a physical one.",
        bug_class=25,
        breaks=("rpc_cmd.no-address-in-answer", "I2"),
        plant=edits(
            (
                _IN,
                "mem[at:at + 8] = bytes(8)",
                "mem[at:at + 8] = bytes(8) if call.request == SHM_ALLOC else data[at - base:at - base + 8]",
            ),
        ),
    ),
    Mutant(
        id="rpc.failed-answer-is-translated",
        story="Translates the buffer of an answer that says that there is none: the TEE does not"
        " look at it, and nobody frees it.",
        bug_class=25,
        breaks=("rpc_cmd.no-address-in-answer", "I3"),
        plant=edits((_IN, "(not fields[5]) and (attr", "(attr")),
    ),
    Mutant(
        id="rpc.meta-is-no-address",
        story="Skips META parameters of an answer, because those are UUIDs: the address in one"
        " reaches the TEE.",
        bug_class=18,
        breaks=("param.type-bits", "rpc_cmd.no-address-in-answer", "I2"),
        plant=edits(
            (
                _IN,
                "if PARAM_KIND[attr & 255] != KIND_TMEM:",
                "if attr & msg.OPTEE_MSG_ATTR_META or PARAM_KIND[attr & 255] != KIND_TMEM:",
            )
        ),
    ),
    Mutant(
        id="rpc.any-direction-is-an-allocation",
        story="Takes a memory reference of any direction for the answer to SHM_ALLOC; the TEE takes"
        " only an output, and forgets the rest pinned.",
        bug_class=18,
        breaks=("rpc_cmd.no-address-in-answer", "param.type-bits", "I3"),
        plant=edits((_IN, "attr & 255 == TMEM_OUTPUT", "True")),
    ),
    Mutant(
        id="rpc.answer-beyond-the-room",
        story="Checks the parameter count of an answer against the largest message, not against the"
        " room behind this one: the answer overwrites what follows.",
        bug_class=16,
        breaks=("rpc_cmd.answer-checked",),
        plant=edits(
            (
                _IN,
                "if count > room:",
                "data = data.ljust(4096, bytes(1))\n    if count > MAX_PARAMS:",
            )
        ),
    ),
    Mutant(
        id="rpc.null-answer-is-translated",
        story="Translates the memory reference of every answer, also a null one, and asks the guest"
        " to free what it never had.",
        bug_class=11,
        breaks=("param.null",),
        plant=edits((_IN, "if not fields[9 + 4 * index]:", "if False:")),
    ),
    Mutant(
        id="rpc.cookie-of-the-answer",
        story="Takes the buffer whose cookie comes back with RETURN_FROM_RPC for the one that was"
        " sent: the guest answers from another call's buffer.",
        bug_class=25,
        breaks=("rpc.recorded-function", "I4"),
        plant=edits(
            (
                _IN,
                "buffer = call.rpc_buffer\n",
                "buffer = call.rpc_buffer = guest.rpc_buffers.get(pair(regs[1], regs[2]))\n",
            )
        ),
    ),
    Mutant(
        id="rpc.registers-of-the-guest",
        story="Hands a1 and a2 of the guest back after a foreign interrupt, as Linux does not"
        " change them.",
        bug_class=25,
        breaks=("rpc.interrupt-registers",),
        plant=edits(
            (
                _RETURN,
                "RETURN_FROM_RPC, call.rpc_a1, call.rpc_a2, thread",
                "RETURN_FROM_RPC, regs[1], regs[2], thread",
            )
        ),
    ),
)

REQUESTS = (
    Mutant(
        id="rpc.shm-free-after-the-guest",
        story="Unpins the buffer of SHM_FREE when the guest says that it has freed it: by then"
        " another processor may have tried to use the cookie again.",
        bug_class=3,
        breaks=("rpc_free.before-guest", "I3"),
        plant=edits(
            (
                _OUT,
                "if buffer is not None and buffer.kind == RPC_ALLOCATED and buffer.live:\n"
                "            await core.release_buffer(sys, guest, buffer)",
                "call.pending = [fields[10]]",
            ),
            (
                _IN,
                "count: int = ",
                "if call.request == SHM_FREE and call.pending:\n"
                "        freed = guest.buffers.get(call.pending.pop())\n"
                "        if freed is not None and freed.kind == RPC_ALLOCATED:\n"
                "            await core.release_buffer(sys, guest, freed)\n"
                "    count: int = ",
            ),
        ),
    ),
    Mutant(
        id="rpc.free-after-the-guest",
        story="Unpins the message buffer of RPC FREE when the guest comes back.",
        bug_class=3,
        breaks=("rpc_free.before-guest", "I3"),
        plant=edits(
            (
                _LEAVE,
                "if buffer is not None and buffer.live and _means(buffer, thread, refused):\n"
                "            await core.release_rpc_buffer(sys, guest, buffer)",
                "call.rpc_buffer = buffer",
            ),
            (
                _RETURN,
                "if call.own_thread:",
                "if call.rpc_function == rpc.FUNC_FREE and call.rpc_buffer is not None:\n"
                "            await core.release_rpc_buffer(sys, guest, call.rpc_buffer)\n"
                "        if call.own_thread:",
            ),
        ),
    ),
    Mutant(
        id="rpc.undelivered-free-keeps-pins",
        story="Unpins the buffer of SHM_FREE only if the request could be written to the guest: the"
        " TEE has let go either way and never asks again.",
        bug_class=3,
        breaks=("rpc_free.before-guest", "I3"),
        plant=edits(
            (
                _OUT,
                "if buffer is not None and buffer.kind == RPC_ALLOCATED and buffer.live:",
                "if buffer is not None and buffer.kind == RPC_ALLOCATED and buffer.live"
                " and await _write_request(sys, guest, call, [(0, request)]):",
            )
        ),
    ),
    Mutant(
        id="rpc.newest-message-buffer",
        story="Frees the RPC buffer that was allocated last, as if calls ended in the order in"
        " which they did not begin.",
        bug_class=4,
        breaks=("rpc_alloc.any-order", "I3"),
        plant=edits(
            (
                _LEAVE,
                "buffer = guest.rpc_buffers.get(cookie)",
                "buffer = next(reversed(guest.rpc_buffers.values()), None)",
            )
        ),
    ),
    Mutant(
        id="rpc.newest-allocation",
        story="Releases the newest allocation of the guest on SHM_FREE.",
        bug_class=4,
        breaks=("rpc_alloc.any-order", "I2", "I3"),
        plant=edits(
            (
                _OUT,
                _FREED,
                "buffer = next((b for b in reversed(guest.buffers.values())"
                " if b.kind == RPC_ALLOCATED), None)",
            )
        ),
    ),
    Mutant(
        id="rpc.free-of-any-kind",
        story="SHM_FREE releases whatever its cookie names, a registered buffer too: the TEE still"
        " has it mapped.",
        bug_class=24,
        breaks=("rpc_free.unknown", "I2"),
        plant=edits((_OUT, "buffer.kind == RPC_ALLOCATED and ", "")),
    ),
    Mutant(
        id="rpc.unknown-buffer-panics",
        story="Believes that the TEE names only RPC buffers that exist: a stale cookie gives the"
        " guest whatever comes first.",
        bug_class=24,
        breaks=("rpc_cmd.unknown-cookie", "I5"),
        plant=edits(
            (
                "mediator.optee.rpc:_place",
                "if buffer is None or",
                "if buffer is None:\n"
                "        buffer = next(iter(guest.rpc_buffers.values()), None)\n"
                "    if buffer is None or",
            )
        ),
    ),
    Mutant(
        id="rpc.request-address-passes",
        story="Copies a request to the guest as it is: a memory reference in it shows a physical"
        " address of the TEE's pool.",
        bug_class=25,
        breaks=("rpc_cmd.no-address-in-request", "I1"),
        plant=edits((_OUT, "& 255] == KIND_TMEM and fields", "& 255] == 255 and fields")),
    ),
    Mutant(
        id="rpc.request-by-recorded-page",
        story="Writes a request through the page that was pinned at ALLOC: the guest has made the"
        " page read-only, or given it away, and another owner sees the request.",
        bug_class=21,
        breaks=("rpc_cmd.request-copied", "I1"),
        plant=edits(
            (
                "mediator.optee.rpc:_write_request",
                "return await sys.write_guest(guest.id, buffer.ipa, segments)",
                "page = int.from_bytes(buffer.frames, 'little')\n"
                "    await sys.write_pinned(guest.id, page, segments)\n"
                "    return True",
            )
        ),
    ),
    Mutant(
        id="rpc.request-size-believed",
        story="Copies as many parameters as the TEE's request says, room or no room: a broken TEE"
        " has the mediator's memory behind the page copied to the guest.",
        bug_class=28,
        breaks=("contain.secure-world", "I1"),
        plant=edits((_OUT, "if count > room:", "if count > MAX_PARAMS:")),
    ),
)

MUTANTS = (*ANSWERS, *REQUESTS)
