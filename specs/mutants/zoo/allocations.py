# SPDX-License-Identifier: BSD-2-Clause
"""Bugs with the memory that a guest allocates for the TEE."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_IN: Final = "mediator.optee.rpc:answer_in"
_ALLOCATED: Final = "mediator.optee.rpc:allocated"
_WALKED: Final = "mediator.optee.rpc:_walk_allocation"
_AGAIN: Final = "mediator.optee.rpc:_free_again"
ALLOCATIONS = (
    Mutant(
        id="rpc.nobody-frees",
        story="Tells the TEE that its allocation failed, and not the guest: the guest's buffer is"
        " lost, and after some failures its memory is gone.",
        bug_class=6,
        breaks=("rpc_shm.please-free",),
        plant=edits(
            (
                _AGAIN,
                "if not await _write_request(sys, guest, call, segments):",
                "if True:",
            )
        ),
    ),
    Mutant(
        id="rpc.nobody-frees-at-a-limit",
        story="Asks the guest to free a buffer that could not be pinned, but not one that was"
        " refused at a limit.",
        bug_class=6,
        breaks=("rpc_shm.please-free",),
        plant=edits(
            (
                _IN,
                "return await _free_again(core, sys, guest, call, regs, mem, base, fields[11])",
                "_failed_allocation(mem, base)\n                return None",
            )
        ),
    ),
    Mutant(
        id="rpc.free-again-of-another-type",
        story="Always asks for application memory to be freed: the guest looks for kernel memory"
        " in the wrong list.",
        bug_class=6,
        breaks=("rpc_shm.please-free",),
        plant=edits((_AGAIN, "VALUE_INPUT, call.shm_type, reference", "VALUE_INPUT, 0, reference")),
    ),
    Mutant(
        id="rpc.tee-not-told",
        story="Enters the TEE after the guest has freed the buffer, with the guest's answer to"
        " SHM_FREE, which is a success.",
        bug_class=6,
        breaks=("rpc_shm.please-free", "I2"),
        plant=edits(
            (
                _IN,
                "call.own_free = False\n        _failed_allocation(mem, base)",
                "call.own_free = False",
            )
        ),
    ),
    Mutant(
        id="rpc.refused-page-keeps-its-cookie",
        story="Forgets the record of an RPC buffer whose page could not be pinned: its cookie can"
        " never be used again.",
        bug_class=5,
        breaks=("limit.allocation-failure", "rpc_alloc.refused", "I3"),
        plant=edits(
            (
                _ALLOCATED,
                "await core.release_rpc_buffer(sys, guest, buffer)\n        return 0",
                "return 0",
            )
        ),
    ),
    Mutant(
        id="rpc.page-zero-is-memory",
        story="Takes address 0 in the answer to ALLOC for the guest's first page, which may be RAM:"
        " the guest meant that it has no memory.",
        bug_class=11,
        breaks=("rpc_alloc.page-zero",),
        plant=edits((_ALLOCATED, "not ipa or ", "")),
    ),
    Mutant(
        id="rpc.unaligned-page",
        story="Cuts the address of an RPC buffer to its page instead of refusing it.",
        bug_class=20,
        breaks=("rpc_alloc.refused",),
        plant=edits(
            (
                _ALLOCATED,
                "ipa = pair(regs[1], regs[2])",
                "ipa = pair(regs[1], regs[2]) & ~PAGE_MASK",
            )
        ),
    ),
    Mutant(
        id="rpc.cookie-twice",
        story="Lets a second RPC buffer have the cookie of a living one: the first is never"
        " unpinned.",
        bug_class=24,
        breaks=("guest.names-apart", "rpc_alloc.refused", "I3"),
        plant=edits((_ALLOCATED, "cookie in guest.rpc_buffers or ", "")),
    ),
    Mutant(
        id="rpc.buffers-off-by-one",
        story="One RPC buffer more than the limit.",
        bug_class=7,
        breaks=("limit.rpc-buffers", "I6"),
        plant=edits(
            (_ALLOCATED, "len(guest.rpc_buffers) >= limit", "len(guest.rpc_buffers) > limit")
        ),
    ),
    Mutant(
        id="rpc.guest-page-for-the-tee",
        story="Gives the TEE the guest's own pinned page for RPC messages instead of a copy: the"
        " guest changes requests and answers while the TEE reads them.",
        bug_class=1,
        breaks=("call.shadow", "rpc_alloc.mediator-page", "I4", "I2"),
        plant=edits(
            (
                _ALLOCATED,
                "return buffer.shadow.pa",
                "return int.from_bytes(buffer.frames, 'little')",
            )
        ),
    ),
    Mutant(
        id="rpc.list-freed-too-early",
        story="Gives the list of an SHM_ALLOC back as soon as it is written: the TEE reads it after"
        " the page has been cleared or used again.",
        bug_class=12,
        breaks=("rpc.buffers-stay", "list.shadow", "I2"),
        plant=edits(
            (
                _WALKED,
                "call.alloc_list.pa | buffer.offset)",
                "call.alloc_list.pa | buffer.offset)\n"
                "    await core.give_list(sys, call.alloc_list)\n"
                "    call.alloc_list = None",
            )
        ),
    ),
)

MUTANTS = (*ALLOCATIONS,)
