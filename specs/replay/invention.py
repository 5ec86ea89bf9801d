# SPDX-License-Identifier: BSD-2-Clause
"""Page lists that a trace does not have: those of temporary buffers outside a registration.

The tracer recorded the list of a registration only. For a list in an invoke it recorded at most the
buffer's first bytes, so a list is made up that leads there; the rest of its entries is any RAM.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from smccc import page_list
from smccc.constants import optee_msg as msg
from specs.replay import names
from specs.replay.compare import Parameter, temporary
from specs.replay.records import MESSAGE_OWNER, Call

PAGE: Final = 4096
MAX_ENTRIES: Final = 1 << 18
"""Entries of a list that is made up: 1 GiB of buffer; a larger one is refused by everybody."""

Load = Callable[[int, int], bytes | None]


def invented_lists(call: Call, load: Load, ram: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    """(address, bytes) to write so that the lists of a call's temporary buffers exist.

    ``load`` reads memory as it is; ``ram``: base and bytes of RAM from which unknown entries come.
    A list page in which there is something already is left alone, unless the trace shows that the
    buffer is elsewhere.
    """
    if call.msg is None or names.command(call.msg) == msg.OPTEE_MSG_CMD_REGISTER_SHM:
        return
    for param in temporary(call.msg.data):
        if not param.attr & msg.OPTEE_MSG_ATTR_NONCONTIG:
            continue
        at = param.a & -PAGE
        first: int | None = None
        shown = b""
        for buffer in call.buffers:
            if buffer.owner == MESSAGE_OWNER and buffer.param == param.number:
                first, shown = buffer.pa & -PAGE, buffer.data
        present = load(at, 8)
        if first is not None and first == at:
            # The tracer took the list page for the buffer: then these bytes are the entries.
            known = struct.unpack(f"<{len(shown) // 8}Q", shown[: len(shown) & -8])
            yield from _list(param, known, ram)
        elif first is not None:
            if present != struct.pack("<Q", first):
                yield from _list(param, (first,), ram)
        elif present is not None and not any(present):
            yield from _list(param, (), ram)


def _list(
    param: Parameter, known: tuple[int, ...], ram: tuple[int, int]
) -> Iterator[tuple[int, bytes]]:
    count = page_list.entry_count(param.a % PAGE, param.b)
    if not 0 < count <= MAX_ENTRIES:
        return
    known = known[:count]
    base, size = ram
    pages = size // PAGE
    entries = known + tuple([base + PAGE * (i % pages) for i in range(count - len(known))])
    at = param.a & -PAGE
    for done in range(0, count, page_list.ENTRIES):
        words = entries[done : done + page_list.ENTRIES]
        more = done + page_list.ENTRIES < count
        yield at, struct.pack(f"<{len(words)}Q", *words)
        yield at + page_list.LINK_OFFSET, struct.pack("<Q", (at + PAGE) * more)
        at += PAGE
