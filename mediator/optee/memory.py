# SPDX-License-Identifier: BSD-2-Clause
"""Guest buffers: check, reserve, walk the guest's page list, pin, build the TEE's list.

The order matters. A buffer's name and pages are reserved against the limits before anything is
awaited, so that two vCPUs cannot both pass the same check. Each entry of the guest's list is read
once; the list that the TEE gets lies in mediator pages and holds only pinned frames (I2, I4).
A walk can stop between two steps and go on from the record, on whichever vCPU (I7).
"""

from __future__ import annotations

from typing import Final

from mediator.host import (
    PAGE_LIST_ENTRIES,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    HostError,
    Shadow,
)
from mediator.optee import events
from mediator.optee.core import WALK_PREEMPTED, WALKED, Core, FusedWalk
from mediator.optee.records import Buffer, Guest
from mediator.optee.syscalls import Syscalls
from mediator.optee.words import in_a_row, with_offsets, without_offsets
from smccc.constants import tee

DONE: Final = 0
PREEMPTED: Final = -1
"""Results of :func:`walk` beside a TEE error code."""

REFERENCE_BASE: Final = 0xFFFF_FFFF_0000_0000
"""References that the mediator chooses for contiguous buffers: no kernel address space has
pointers up here (Linux keeps its last 4 GiB for modules, fixed maps and error values)."""


def reserve(
    core: Core,
    guest: Guest,
    kind: int,
    address: int,
    size: int,
    reference: int | None,
    *,
    contiguous: bool,
) -> Buffer | int:
    """Check a buffer against the limits and take its name and quota.

    ``reference`` ``None``: the mediator picks the name. ``contiguous``: ``address`` is the buffer
    itself and not its page list. Returns the record, or the TEE error for the message.
    """
    limits = core.settings.limits
    pages = ((address & PAGE_MASK) + size + PAGE_MASK) >> PAGE_SHIFT
    if (
        pages > limits.buffer_pages
        or len(guest.buffers) >= limits.buffers - guest.held
        or guest.pages + pages > limits.total_pages
    ):
        return tee.TEE_ERROR_OUT_OF_MEMORY
    if reference is None:
        reference = REFERENCE_BASE
        while reference in guest.buffers:
            reference += 1
    if not pages or reference in guest.buffers:
        return tee.TEE_ERROR_BAD_PARAMETERS
    buffer = Buffer(reference, kind, address, pages, contiguous=contiguous)
    guest.buffers[reference] = buffer
    guest.pages += pages
    return buffer


async def walk(core: Core, sys: Syscalls, guest: Guest, buffer: Buffer) -> int:
    """Read, translate and pin what is left of ``buffer``: DONE, PREEMPTED, or a TEE error.

    The list is read in steps of ``walk_entries`` with the question whether to stop after each; pins
    follow in batches of ``pin_entries`` if that is more. After an error the caller releases the
    buffer; what was pinned so far is recorded in it.
    """
    if buffer.list is None:
        buffer.list = await core.take_list(sys, -(-buffer.pages // PAGE_LIST_ENTRIES))
        if buffer.list is None:
            return tee.TEE_ERROR_OUT_OF_MEMORY
    limits = core.settings.limits
    pages, longest, batch = buffer.pages, limits.walk_entries, limits.pin_entries
    if buffer.done == pages:
        return DONE
    if core.fused is not None and longest >= batch and not buffer.contiguous:
        return await _walk_fused(core, sys, guest, buffer, core.fused)
    while True:
        step = pages - buffer.read
        if step > longest:
            step = longest
        if buffer.contiguous:
            first = buffer.next_ipa + (buffer.read << PAGE_SHIFT)
            if first + (step << PAGE_SHIFT) > 1 << 64:
                return tee.TEE_ERROR_BAD_PARAMETERS
            words = in_a_row(first, step)
        else:
            chain = await sys.read_page_list(guest.id, buffer.next_ipa, step)
            if chain is None:
                return tee.TEE_ERROR_BAD_PARAMETERS
            words, buffer.next_ipa = chain
            if len(words) != step * 8:
                raise HostError("read_page_list", f"{len(words)} bytes for {step} entries")
        buffer.read += step
        if buffer.waiting or (step < batch and buffer.read < pages):
            buffer.waiting += words
            words = b""
            if buffer.read == pages or len(buffer.waiting) >= batch * 8:
                words, buffer.waiting = bytes(buffer.waiting), bytearray()
        if words:
            result = await _pin(core, sys, guest, buffer, words)
            if result or buffer.done == pages:
                return result
        if await sys.should_preempt():
            return PREEMPTED


async def _walk_fused(
    core: Core, sys: Syscalls, guest: Guest, buffer: Buffer, fused: FusedWalk
) -> int:
    """The same walk where each request has its price: all steps in one, and into the list itself."""
    shadow = buffer.list
    assert shadow is not None
    left, step = buffer.pages - buffer.read, core.settings.limits.walk_entries
    page = buffer.read // PAGE_LIST_ENTRIES
    count, buffer.next_ipa, end, low = await fused(
        sys, guest.id, buffer.next_ipa, left, step, shadow, page
    )
    if count > left:
        raise HostError("pin_list", f"{count} entries of {left}")
    if count:
        buffer.read += count
        entries = _listed(shadow, page, count)
        frames = without_offsets(entries) if low else entries
        if frames is not entries and not core.settings.entry_offsets:
            _emit(buffer, frames)
        _linked(shadow, page, count)
        _keep(core, guest, buffer, frames)
    if end == WALKED:
        return DONE
    return PREEMPTED if end == WALK_PREEMPTED else tee.TEE_ERROR_BAD_PARAMETERS


async def _pin(core: Core, sys: Syscalls, guest: Guest, buffer: Buffer, words: bytes) -> int:
    """Pin the pages in ``words``, the next entries of the list: DONE or a TEE error."""
    frames = await sys.pin_pages(guest.id, words)
    if frames is None:
        return tee.TEE_ERROR_BAD_PARAMETERS
    if len(frames) != len(words):
        raise HostError("pin_pages", f"{len(frames)} bytes of frames for {len(words)} of pages")
    entries = frames
    if core.settings.entry_offsets and not buffer.contiguous:
        entries = with_offsets(frames, words)
    _emit(buffer, entries)
    _keep(core, guest, buffer, frames)
    return DONE


def _keep(core: Core, guest: Guest, buffer: Buffer, frames: bytes) -> None:
    """The next ``frames`` of the buffer are pinned, and stand in its list."""
    count = len(frames) // 8
    buffer.done += count
    if count == buffer.pages:
        buffer.frames = frames
    elif buffer.done == count:
        buffer.frames = bytearray(frames)
    else:
        buffer.frames += frames
    if buffer.done == buffer.pages and core.sink is not None:
        core.sink(events.BufferTaken(guest.id, buffer.kind, buffer.reference, buffer.pages))


def _listed(shadow: Shadow, page: int, count: int) -> bytes:
    """The ``count`` entries that begin in ``page`` of a list."""
    mem, words = shadow.mem, []
    at, left = page * PAGE_SIZE, 8 * count
    while left > 0:
        words.append(mem[at : at + min(left, 8 * PAGE_LIST_ENTRIES)])
        at += PAGE_SIZE
        left -= 8 * PAGE_LIST_ENTRIES
    return b"".join(words)


def _linked(shadow: Shadow, page: int, count: int) -> None:
    """Let each page of a list that ``count`` entries from ``page`` on lie in name the next."""
    links = len(shadow.pages) // 8 - 1
    end = min(page + -(-count // PAGE_LIST_ENTRIES), links)
    for at in range(page, end):
        link = (at + 1) * PAGE_SIZE - 8
        shadow.mem[link : link + 8] = shadow.pages[at * 8 + 8 : at * 8 + 16]


def _emit(buffer: Buffer, frames: bytes) -> None:
    """Append ``frames`` to the TEE's list; a step before the last ends with a full list page."""
    shadow = buffer.list
    assert shadow is not None
    mem = shadow.mem
    if len(frames) <= PAGE_LIST_ENTRIES * 8 and buffer.pages <= PAGE_LIST_ENTRIES:
        mem[: len(frames)] = frames
        return
    page = buffer.done // PAGE_LIST_ENTRIES
    last = len(shadow.pages) // 8 - 1
    for start in range(0, len(frames), PAGE_LIST_ENTRIES * 8):
        part = frames[start : start + PAGE_LIST_ENTRIES * 8]
        base = page * PAGE_SIZE
        mem[base : base + len(part)] = part
        if page < last:
            link = base + PAGE_LIST_ENTRIES * 8
            mem[link : link + 8] = shadow.pages[page * 8 + 8 : page * 8 + 16]
        page += 1
