# SPDX-License-Identifier: BSD-2-Clause
"""What a trace tells about the machine on which it was recorded, before it is replayed.

Thread count: from the trace itself (GET_THREAD_COUNT), otherwise CFG_NUM_THREADS of its first line,
otherwise 2. RAM: from the first line, otherwise 1 GiB at 0x40000000 (QEMU's machine ``virt``).
"""

from __future__ import annotations

import itertools
import re
from typing import Final

import attrs

from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay.reader import Trace
from specs.replay.records import Call, Event, Meta, Return, TraceError

PAGE: Final = 4096
CFG_NUM_THREADS: Final = 2
"""Of an OP-TEE whose configuration does not say."""
MAX_THREADS: Final = 4096
CFG_VIRT_GUEST_COUNT: Final = 2
"""Likewise."""

MAX_GUESTS: Final = 0xFFFF
DEFAULT_RAM: Final = ((0x4000_0000, 0x4000_0000),)
MAX_RAM: Final = 64 << 30
"""Bytes; more than any recorded machine, so that a first line cannot ask for endless memory."""

DEFAULT_RESERVED: Final = (0x4200_0000, 0x20_0000)
"""Reserved shared memory of PLATFORM=vexpress-qemu_armv8a: start and bytes."""

SOLE_GUEST: Final = 1
"""Client id of the normal world of a trace without virtualization."""

SLOT_SIZE: Final = 2 << 20
"""Bytes; addresses of the trace are collected by 2 MiB, what one level-2 entry of a table maps."""

HYPERVISOR: Final = 0
"""Client id of the hypervisor's own calls."""

_CLIENT_BITS: Final = 0xFFFF
"""OP-TEE looks at 16 bits of a client id."""

_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_RAM: Final = re.compile(r"(\d{1,6}) (KiB|MiB|GiB) RAM at (0x[0-9a-fA-F]{1,16})")
_RESERVED: Final = re.compile(
    r"CFG_CORE_RESERVED_SHM=y \((0x[0-9a-fA-F]{1,16}) \+ (\d{1,6}) (KiB|MiB|GiB)\)"
)


def config(meta: Meta, name: str) -> str | None:
    """The value of ``CFG_name`` in the first line (the last one named wins), or None."""
    found = re.findall(rf"\bCFG_{name}=([\w.]+)", meta.text("optee_config"))
    return str(found[-1]) if found else None


@attrs.frozen
class Survey:
    """Facts about the recorded machine.

    ``ram``: (base, size) in bytes; ``reserved``: the reserved shared memory, or None.
    ``virtualization``: the hypervisor's calls (VM_CREATED, VM_DESTROYED) and client ids are in the
    trace; without it a7 means nothing. ``answers``: the first recorded answer of each fast
    call that is not a refusal of an unknown guest, if there is one.
    ``slots``: numbers of the 2 MiB slots of RAM that the trace names, ascending.
    """

    threads: int
    ram: tuple[tuple[int, int], ...]
    reserved: tuple[int, int] | None
    virtualization: bool
    answers: dict[int, tuple[int, ...]]
    events: int
    slots: tuple[int, ...]

    def client(self, event: Event) -> int:
        """The guest that calls: a7 as OP-TEE sees it, 0 is the hypervisor.

        Without virtualization a7 means nothing, and the one normal world is guest 1.
        """
        return event.regs[7] & _CLIENT_BITS if self.virtualization else SOLE_GUEST

    def in_ram(self, address: int, length: int = 1) -> bool:
        """Whether ``length`` bytes at ``address`` are normal-world RAM."""
        return any(base <= address and address + length <= base + size for base, size in self.ram)

    def in_reserved(self, address: int) -> bool:
        """Whether ``address`` lies in the reserved shared memory."""
        if self.reserved is None:
            return False
        base, size = self.reserved
        return base <= address < base + size


def _ranges(trace: Trace) -> tuple[tuple[int, int], ...]:
    meta = trace.meta
    written = meta.values.get("ram")
    if written is not None:
        return _written_ranges(trace.path, written)
    found = [
        (int(base, 16), int(count) * _UNITS[unit])
        for count, unit, base in _RAM.findall(meta.text("qemu"))
    ]
    if not found:
        return DEFAULT_RAM
    _check_ranges(trace.path, found)
    return tuple(found)


def _written_ranges(path: str, written: object) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    if not isinstance(written, list) or not written:
        raise TraceError(path, 1, "meta.ram", "must be a list of [base, size]")
    for entry in written:
        try:
            base, size = (int(str(word), 16) for word in entry)
        except (TypeError, ValueError):
            raise TraceError(
                path, 1, "meta.ram", "must be a list of [base, size] in hexadecimal"
            ) from None
        ranges.append((base, size))
    _check_ranges(path, ranges)
    return tuple(ranges)


def _check_ranges(path: str, ranges: list[tuple[int, int]]) -> None:
    for base, size in ranges:
        if base % PAGE or size % PAGE or size <= 0 or base < 0:
            raise TraceError(path, 1, "meta.ram", "a range is not made of whole pages")
    if sum(size for _, size in ranges) > MAX_RAM:
        raise TraceError(path, 1, "meta.ram", f"is more than {MAX_RAM >> 30} GiB")
    ordered = sorted(ranges)
    for (base, size), (following, _) in itertools.pairwise(ordered):
        if base + size > following:
            raise TraceError(path, 1, "meta.ram", "has ranges that overlap")


def _reserved(
    meta: Meta, answers: dict[int, tuple[int, ...]], virtualization: bool
) -> tuple[int, int] | None:
    answer = answers.get(smc.OPTEE_SMC_GET_SHM_CONFIG)
    if answer is not None and low32(answer[0]) == smc.OPTEE_SMC_RETURN_OK and answer[2]:
        return low32(answer[1]), low32(answer[2])
    match = _RESERVED.search(meta.text("optee_config"))
    if match is not None:
        return int(match[1], 16), int(match[2]) * _UNITS[match[3]]
    if virtualization or config(meta, "CORE_RESERVED_SHM") == "n":
        return None
    capabilities = answers.get(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)
    if capabilities is None or capabilities[1] & smc.OPTEE_SMC_SEC_CAP_HAVE_RESERVED_SHM:
        return DEFAULT_RESERVED
    return None


def _threads(trace: Trace, answers: dict[int, tuple[int, ...]]) -> int:
    answer = answers.get(smc.OPTEE_SMC_GET_THREAD_COUNT)
    if answer is not None and low32(answer[0]) == smc.OPTEE_SMC_RETURN_OK and low32(answer[1]):
        if low32(answer[1]) > MAX_THREADS:
            reason = f"GET_THREAD_COUNT answered {low32(answer[1])}, more than {MAX_THREADS}"
            raise TraceError(trace.path, 0, "regs", reason)
        return low32(answer[1])
    if "threads" in trace.meta.values:
        return _count(trace, "meta.threads", trace.meta.values["threads"], MAX_THREADS)
    written = config(trace.meta, "NUM_THREADS")
    if written is None:
        return CFG_NUM_THREADS
    return _count(trace, "CFG_NUM_THREADS", written, MAX_THREADS)


def _count(trace: Trace, name: str, written: object, most: int) -> int:
    try:
        count = int(str(written), 0)
    except ValueError:
        count = 0
    if not 1 <= count <= most:
        field, _, _ = name.partition("CFG_")
        reason = f"{name} is not a count from 1 to {most}"
        raise TraceError(trace.path, 1, field or "meta.optee_config", reason)
    return count


def guest_count(trace: Trace) -> int:
    """Guests that the recorded OP-TEE had room for."""
    written = config(trace.meta, "VIRT_GUEST_COUNT")
    if written is None:
        return CFG_VIRT_GUEST_COUNT
    return _count(trace, "CFG_VIRT_GUEST_COUNT", written, MAX_GUESTS)


def _virtualization(meta: Meta, answers: dict[int, tuple[int, ...]], created: bool) -> bool:
    written = config(meta, "NS_VIRTUALIZATION")
    if written is not None:
        return written == "y"
    capabilities = answers.get(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, (1, 0))
    offered = low32(capabilities[0]) == smc.OPTEE_SMC_RETURN_OK
    return created or bool(offered and capabilities[1] & smc.OPTEE_SMC_SEC_CAP_VIRTUALIZATION)


def _collect(event: Event, pages: set[int]) -> None:
    """Addresses that an event names, as far as they may be memory."""
    for content in (event.msg, event.rpc_arg):
        if content is not None:
            pages.add(content.pa)
    for buffer in event.buffers:
        pages.add(buffer.pa)
    for page in event.page_list or ():
        pages.add(page.pa)
        pages.update(page.entries)


def _refused(answer: tuple[int, ...] | None) -> bool:
    """No answer, or that of OP-TEE to a guest that it does not know."""
    return answer is None or low32(answer[0]) == smc.OPTEE_SMC_RETURN_ENOTAVAIL


def survey(trace: Trace) -> Survey:
    """Look through a trace once. Raises :class:`TraceError` if its first line is unusable."""
    answers: dict[int, tuple[int, ...]] = {}
    created = False
    events = 0
    pages: set[int] = set()
    for event in trace.records:
        if not isinstance(event, (Call, Return)):
            continue
        events += 1
        _collect(event, pages)
        if isinstance(event, Return):
            continue
        function = low32(event.regs[0])
        answer = trace.answers.get(event.seq)
        if answer is None:
            continue
        if function >> 31 and _refused(answers.get(function)):
            answers[function] = answer.regs
        if function == smc.OPTEE_SMC_VM_CREATED and low32(answer.regs[0]) == 0:
            created = True
    ram = _ranges(trace)
    virtualization = _virtualization(trace.meta, answers, created)
    slots = sorted({page // SLOT_SIZE for page in pages})
    return Survey(
        threads=_threads(trace, answers),
        ram=ram,
        reserved=_reserved(trace.meta, answers, virtualization),
        virtualization=virtualization,
        answers=answers,
        events=events,
        slots=tuple(
            [
                slot
                for slot in slots
                if any(b < (slot + 1) * SLOT_SIZE and slot * SLOT_SIZE < b + n for b, n in ram)
            ]
        ),
    )
