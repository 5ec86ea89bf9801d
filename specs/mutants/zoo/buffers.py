# SPDX-License-Identifier: BSD-2-Clause
"""Bugs with guest buffers: sizes, names, limits, page lists, walks that stop on the way."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_RESERVE: Final = "mediator.optee.memory:reserve"
_WALK: Final = "mediator.optee.memory:walk"
_KEEP: Final = "mediator.optee.memory:_keep"
_EMIT: Final = "mediator.optee.memory:_emit"
_TRANSLATE: Final = "mediator.optee.call:_translate"
_RELEASE: Final = "mediator.optee.core:Core._let_go"
_BY_ADDRESS: Final = "mediator.optee.call:_by_address"
_REGD: Final = "mediator.optee.call:call_with_regd_arg"
_PAGES: Final = "pages = (address & PAGE_MASK) + size + PAGE_MASK >> PAGE_SHIFT"

SIZES = (
    Mutant(
        id="size.offset-forgotten",
        story="Counts pages by the size alone: a buffer that begins inside a page ends in one that"
        " is not pinned and not on the TEE's list.",
        bug_class=30,
        breaks=("param.tail-page", "I2"),
        plant=edits((_RESERVE, _PAGES, "pages = size + PAGE_MASK >> PAGE_SHIFT")),
    ),
    Mutant(
        id="size.rounded-down",
        story="Divides the end of the buffer by the page size and forgets the rest of the division:"
        " the last, partial page is missing.",
        bug_class=30,
        breaks=("param.tail-page", "I2"),
        plant=edits(
            (_RESERVE, _PAGES, "pages = max(1, (address & PAGE_MASK) + size >> PAGE_SHIFT)")
        ),
    ),
    Mutant(
        id="size.sum-wraps",
        story="Adds size and offset in 64 bits: the largest sizes become the smallest, pass every"
        " limit, and the TEE believes in a buffer of 16 EiB.",
        bug_class=20,
        breaks=("param.tail-page", "I2"),
        plant=edits(
            (
                _RESERVE,
                _PAGES,
                "pages = ((address & PAGE_MASK) + size + PAGE_MASK & (1 << 64) - 1) >> PAGE_SHIFT",
            )
        ),
    ),
    Mutant(
        id="size.32-bits",
        story="Keeps the size in a 32-bit variable: 4 GiB and one page are one page.",
        bug_class=20,
        breaks=("param.tail-page", "I2"),
        plant=edits(
            (
                _RESERVE,
                _PAGES,
                "pages = (address & PAGE_MASK) + (size & 4294967295) + PAGE_MASK >> PAGE_SHIFT",
            )
        ),
    ),
    Mutant(
        id="size.empty-is-a-page",
        story="Pins at least one page for any buffer: for one without a byte it reads a list that"
        " has no entry.",
        bug_class=20,
        breaks=("param.empty-buffer",),
        plant=edits(
            (_RESERVE, "if not pages or reference", "pages = max(pages, 1)\n    if reference")
        ),
    ),
    Mutant(
        id="size.contiguous-end-unchecked",
        story="Builds the list of a contiguous buffer up to its end, wherever that is: beyond the"
        " last address there is an exception, in C the first page again.",
        bug_class=20,
        breaks=("contain.guest-input",),
        plant=edits((_WALK, "if first + (step << PAGE_SHIFT) > 1 << 64:", "if False:")),
    ),
)

NAMES = (
    Mutant(
        id="name.taken-twice",
        story="Does not look whether a reference is in use: the record of the first buffer is lost,"
        " and with it its pins.",
        bug_class=29,
        breaks=("param.reference-in-use", "I3"),
        plant=edits((_RESERVE, "if not pages or reference in guest.buffers:", "if not pages:")),
    ),
    Mutant(
        id="name.chosen-once",
        story="Gives every contiguous buffer the same reference: two of them in one call are one"
        " buffer for the TEE.",
        bug_class=29,
        breaks=("param.reference-in-use", "I3"),
        plant=edits(
            (
                _RESERVE,
                "while reference in guest.buffers:\n            reference += 1",
                "guest.buffers.pop(reference, None)",
            )
        ),
    ),
    Mutant(
        id="name.shared-by-guests",
        story="Looks for a reference among the buffers of all guests: kernel pointers of equal"
        " kernels collide, and one guest can probe the names of another.",
        bug_class=24,
        breaks=("guest.names-apart", "I5"),
        plant=edits(
            (
                _RESERVE,
                "if not pages or reference in guest.buffers:",
                "if not pages or any(reference in other.buffers for other in core.guests.values()):",
            )
        ),
    ),
    Mutant(
        id="name.unknown-is-refused-here",
        story="Answers an UNREGISTER of a cookie that it does not know itself, instead of leaving"
        " that to the TEE, which owns the name.",
        bug_class=24,
        breaks=("register.unknown-cookie",),
        plant=edits(
            (
                "mediator.optee.call:_start",
                "call.target = fields[11]",
                "call.target = fields[11]\n"
                "        if call.target not in guest.buffers:\n"
                "            return await _fail(core, sys, guest, call, regs,"
                " tee.TEE_ERROR_ITEM_NOT_FOUND)",
            )
        ),
    ),
)

LIMITS = (
    Mutant(
        id="limit.calls-off-by-one",
        story="Compares with > where it must be >=: one call more than the TEE has threads.",
        bug_class=7,
        breaks=("limit.calls", "I6"),
        plant=edits(
            (_BY_ADDRESS, "len(guest.live_calls) >= guest", "len(guest.live_calls) > guest")
        ),
    ),
    Mutant(
        id="limit.registered-calls-not-counted",
        story="Checks the limit of calls in the classic entry only.",
        bug_class=7,
        breaks=("limit.calls", "I6"),
        plant=edits((_REGD, "if len(guest.live_calls) >= guest.call_limit:", "if False:")),
    ),
    Mutant(
        id="limit.buffers-off-by-one",
        story="Compares the number of buffers with > where it must be >=.",
        bug_class=7,
        breaks=("limit.buffers", "I6"),
        plant=edits((_RESERVE, "len(guest.buffers) >= limits", "len(guest.buffers) > limits")),
    ),
    Mutant(
        id="limit.buffer-pages-of-size",
        story="Compares the size with the limit instead of the pages: a buffer that begins inside a"
        " page is one page larger.",
        bug_class=7,
        breaks=("limit.buffer-pages", "I6"),
        plant=edits(
            (
                _RESERVE,
                "pages > limits.buffer_pages",
                "size > limits.buffer_pages << PAGE_SHIFT",
            )
        ),
    ),
    Mutant(
        id="limit.total-pages-off-by-one",
        story="Checks whether the guest is over its limit already, not whether it will be.",
        bug_class=7,
        breaks=("limit.total-pages", "I6"),
        plant=edits(
            (
                _RESERVE,
                "guest.pages + pages > limits.total_pages",
                "guest.pages >= limits.total_pages",
            )
        ),
    ),
    Mutant(
        id="limit.of-all-guests",
        story="Counts the pages of all guests against the limit: one guest takes the memory of the"
        " others.",
        bug_class=7,
        breaks=("limit.per-guest", "I6"),
        plant=edits(
            (
                _RESERVE,
                "guest.pages + pages >",
                "sum(other.pages for other in core.guests.values()) + pages >",
            )
        ),
    ),
    Mutant(
        id="limit.reserved-too-late",
        story="Checks the limits and the name first and counts the buffer once it is pinned: two"
        " processors both pass the check for the last place.",
        bug_class=7,
        breaks=("limit.buffers", "limit.total-pages", "I6"),
        plant=edits(
            (
                _RESERVE,
                "guest.buffers[reference] = buffer\n    guest.pages += pages\n    return buffer",
                "return buffer",
            ),
            (
                _KEEP,
                "buffer.done += count",
                "guest.buffers[buffer.reference] = buffer\n"
                "    if not buffer.done:\n"
                "        guest.pages += buffer.pages\n"
                "    buffer.done += count",
            ),
            (
                _RELEASE,
                "guest.pages -= buffer.pages",
                "guest.pages -= buffer.pages * (buffer.done > 0)",
            ),
        ),
    ),
    Mutant(
        id="limit.quota-of-failures",
        story="Gives the pages of a buffer back to the quota when its pins go; a buffer that could"
        " not be pinned never gives them back.",
        bug_class=5,
        breaks=("limit.allocation-failure", "list.undone", "I3", "I6"),
        plant=edits(
            (
                _RELEASE,
                "guest.pages -= buffer.pages",
                "guest.pages -= buffer.pages if frames else 0",
            )
        ),
    ),
    Mutant(
        id="limit.list-page-leaks",
        story="Frees the list's shadow pages together with the pins: a list whose first page was"
        " bad has no pins, and its pages are lost.",
        bug_class=5,
        breaks=("limit.allocation-failure", "list.undone"),
        plant=edits((_RELEASE, "if shadow is not None:", "if shadow is not None and frames:")),
    ),
)

LISTS = (
    Mutant(
        id="list.translated-again",
        story="Pins the entries, and reads the list a second time to write the TEE's: the guest"
        " swaps an entry in between and chooses what the TEE gets.",
        bug_class=1,
        breaks=("list.read-once", "I2", "I4"),
        plant=edits(
            (
                _WALK,
                "result = await _pin(core, sys, guest, buffer, words)",
                "result = await _pin(core, sys, guest, buffer, words)\n"
                "            again = None if result or buffer.contiguous else"
                " await sys.read_page_list(guest.id, start, step)\n"
                "            second = None if again is None else"
                " await sys.pin_pages(guest.id, again[0])\n"
                "            if second is not None:\n"
                "                await sys.unpin_pages(guest.id, second)\n"
                "                buffer.done -= step\n"
                "                _emit(buffer, second)\n"
                "                buffer.done += step",
            ),
            (
                _WALK,
                "while True:\n",
                "while True:\n        start = buffer.next_ipa\n",
            ),
        ),
    ),
    Mutant(
        id="list.512-in-one-page",
        story="Writes a list of 512 entries into one page: the last one stands where the TEE looks"
        " for the link, and the TEE walks into a page of the guest.",
        bug_class=19,
        breaks=("list.511-entries", "I2"),
        plant=edits(
            (
                _EMIT,
                "len(frames) <= PAGE_LIST_ENTRIES * 8 and buffer.pages <= PAGE_LIST_ENTRIES",
                "len(frames) <= PAGE_SIZE and buffer.pages <= PAGE_LIST_ENTRIES + 1",
            )
        ),
    ),
    Mutant(
        id="list.pages-in-a-row",
        story="Links the pages of the TEE's list as if they were adjacent, which they are until"
        " memory is fragmented.",
        bug_class=19,
        breaks=("list.511-entries", "list.shadow", "I2"),
        plant=edits(
            (
                _EMIT,
                "shadow.pages[page * 8 + 8:page * 8 + 16]",
                "(shadow.pa + (page + 1) * PAGE_SIZE).to_bytes(8, 'little')",
            )
        ),
    ),
    Mutant(
        id="list.second-step-overwrites",
        story="Starts each step of a long walk at the first page of the TEE's list: it holds the"
        " last part only.",
        bug_class=19,
        breaks=("list.511-entries", "progress.own-threads"),
        plant=edits((_EMIT, "page = buffer.done // PAGE_LIST_ENTRIES", "page = 0")),
    ),
    Mutant(
        id="list.pages-of-512",
        story="Allocates list pages for 512 entries each: right for almost every length, one page"
        " short where the last entry needs a page of its own.",
        bug_class=19,
        breaks=("list.511-entries", "contain.guest-input"),
        plant=edits(
            (
                _WALK,
                "-(-buffer.pages // PAGE_LIST_ENTRIES)",
                "-(-buffer.pages // (PAGE_LIST_ENTRIES + 1))",
            )
        ),
    ),
    Mutant(
        id="list.of-the-guest",
        story="Pins the pages and leaves the address of the guest's own list in the message: an IPA"
        " that the TEE takes for a physical address.",
        bug_class=1,
        breaks=("call.shadow", "list.shadow", "I2", "I4"),
        plant=edits(
            (_TRANSLATE, "buffer.list.pa | buffer.offset", "address"),
        ),
    ),
)

WALKS = (
    Mutant(
        id="walk.starts-over",
        story="Goes on with the right number of entries after a preemption, but reads them from the"
        " start of the list again.",
        bug_class=7,
        breaks=("progress.own-threads", "I4"),
        plant=edits(
            (
                _WALK,
                "words, buffer.next_ipa = chain",
                "words = chain[0]",
            )
        ),
    ),
    Mutant(
        id="walk.never-asks",
        story="Walks a list of a gigabyte in one go: the processor is gone for as long as the guest"
        " likes.",
        bug_class=7,
        breaks=("progress.bounded", "I7"),
        plant=edits((_WALK, "if await sys.should_preempt():", "if False:")),
    ),
    Mutant(
        id="walk.preempted-is-refused",
        story="Treats a preempted walk as a failed one: under load, registrations fail.",
        bug_class=7,
        breaks=("progress.own-threads",),
        plant=edits(
            (
                "mediator.optee.call:_not_translated",
                "if result != memory.PREEMPTED:",
                "if result == memory.PREEMPTED:\n"
                "        result = tee.TEE_ERROR_OUT_OF_MEMORY\n"
                "    if result:",
            )
        ),
    ),
    Mutant(
        id="walk.thread-of-any-guest",
        story="Numbers the calls that it suspends itself over all guests: who guesses the number of"
        " another guest's call can go on with it.",
        bug_class=23,
        breaks=("progress.own-threads", "guest.names-apart", "I5"),
        plant=edits(
            (
                "mediator.optee.call:return_from_rpc",
                "call = guest.suspended.get(thread)",
                "guest = next((g for g in core.guests.values() if g.suspended.get(thread)), guest)\n"
                "    call = guest.suspended.get(thread)",
            )
        ),
    ),
    Mutant(
        id="walk.resumed-twice",
        story="Leaves a stopped walk open to others while it goes on: two processors answer one"
        " interrupt, and both read on and pin.",
        bug_class=23,
        breaks=("progress.own-threads", "I4"),
        plant=edits(("mediator.optee.call:_resume_own", "call.leaving = True", "pass")),
    ),
    Mutant(
        id="walk.batch-pinned-again",
        story="Pins what was read in a batch and keeps it for the next one too: pages are pinned"
        " twice, and the TEE's list holds them twice.",
        bug_class=19,
        breaks=("list.shadow", "progress.own-threads", "I2"),
        plant=edits(
            (
                _WALK,
                "words, buffer.waiting = (bytes(buffer.waiting), bytearray())",
                "words = bytes(buffer.waiting)",
            )
        ),
    ),
)

MUTANTS = (*SIZES, *NAMES, *LIMITS, *LISTS, *WALKS)
