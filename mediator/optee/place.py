# SPDX-License-Identifier: BSD-2-Clause
"""Where a guest's message lies, and how it is read once and written.

By address: a page-aligned message, reached through the stage 2 of the moment. By cookie: a slot of
a registered buffer, reached through the pages pinned at registration; it may cross a page.
"""

from __future__ import annotations

from mediator.host import PAGE_MASK, PAGE_SIZE, HostError
from mediator.optee.records import Buffer, Call, Guest
from mediator.optee.syscalls import Syscalls


async def read_rest(
    sys: Syscalls, guest: Guest, carrier: Buffer, position: int, data: bytes, size: int
) -> bytes:
    """``data``, read from ``position`` on, and what is missing to ``size`` bytes, page by page.

    Every byte is read once: what ``data`` says decides that more is needed, and is not read again.
    """
    while len(data) < size:
        pa = carrier.pa(position + len(data))
        more = min(size - len(data), PAGE_SIZE - (pa & PAGE_MASK))
        part = await sys.read_pinned(guest.id, pa, more)
        if len(part) != more:
            raise HostError("read_pinned", f"{len(part)} bytes instead of {more}")
        data += part
    return data


async def read_answer(sys: Syscalls, guest: Guest, call: Call, length: int) -> bytes | None:
    """One snapshot of the guest's RPC message; ``None`` if it is not readable any more."""
    if not call.rpc_at:
        assert call.rpc_buffer is not None
        return await sys.read_guest(guest.id, call.rpc_buffer.ipa, PAGE_SIZE)
    if call.carrier is None:
        return await sys.read_guest(guest.id, call.page + call.rpc_at, length)
    return await read_rest(sys, guest, call.carrier, call.position + call.rpc_at, b"", length)


async def write_back(
    sys: Syscalls, guest: Guest, call: Call, segments: list[tuple[int, bytes]], base: int = 0
) -> bool:
    """Write segments (offsets from byte ``base`` of the message) where the guest's message lies."""
    if call.carrier is None:
        if base:
            segments = [(base + at, data) for at, data in segments]
        return await sys.write_guest(guest.id, call.page, segments)
    start = call.position + base
    pa = call.carrier.pa(start)
    inside = pa & PAGE_MASK
    first: list[tuple[int, bytes]] = []
    second: list[tuple[int, bytes]] = []
    for at, data in segments:
        at += inside
        if at + len(data) <= PAGE_SIZE:
            first.append((at, data))
        elif at >= PAGE_SIZE:
            second.append((at - PAGE_SIZE, data))
        else:
            cut = PAGE_SIZE - at
            first.append((at, data[:cut]))
            second.append((0, data[cut:]))
    if first:
        await sys.write_pinned(guest.id, pa - inside, first)
    if second:
        next_page = call.carrier.pa(start - inside + PAGE_SIZE)
        await sys.write_pinned(guest.id, next_page, second)
    return True
