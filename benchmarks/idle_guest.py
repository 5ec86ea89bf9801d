# SPDX-License-Identifier: BSD-2-Clause
"""What an idle guest of 1 GiB costs beyond its RAM: traced bytes per guest, by what there is of it.

*memory*: stage 2, frame ownership and the host's books. *touched*: after it used 16 pages and shared a
buffer (pinned, one page ballooned out). *platform*: a whole guest, with vCPUs and interrupt controller,
known to mediator and secure world, waiting. Contents of RAM are not counted, nor is the frame table,
which exists once per machine and is committed by the operating system as it is touched.

    python benchmarks/idle_guest.py [--json] [--guests N]

Exit code 1 if an idle guest costs more than 16 KiB. No slack: the figure is the same in every run.
"""

from __future__ import annotations

import argparse
import gc
import struct
import sys
import tracemalloc
from collections.abc import Callable

from benchmarks._report import run
from mediator.guest.cpu import GuestCpu
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import BANK_SIZE, DEFAULT_FIRST, PhysicalMemory
from mediator.scenario.platform import Platform, PlatformSettings

TARGET = 16 * 1024
GUESTS = 48
EXTENTS = (1, 2, 4, 8)
GIB_PAGES = 262_144
RAM = 0x4000_0000
GAP = 0x1_0000_0000
"""Distance of a guest's extents: nothing about them is adjacent."""

PAGE = 4096
VCPUS = 2
PLATFORM_PAGES = 4096
"""The platform's guests have fewer pages per extent: stage 2 costs the same for any number, and all of
them fit the platform's RAM."""


def bytes_each(guests: int, create: Callable[[int], None]) -> float:
    """Traced bytes that stay for each guest, without the first two (caches fill, tables grow)."""
    for number in (1, 2):
        create(number)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(3, 3 + guests):
            create(number)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / guests
    finally:
        tracemalloc.stop()


def memory_of(guests: int, extents: int, *, touched: bool) -> float:
    """Bytes of memory management per guest; ``touched``: after some use."""
    memory = PhysicalMemory((guests + 3) * GIB_PAGES, DEFAULT_FIRST)
    host = ReferenceHost(memory)
    pages = GIB_PAGES // extents
    banks_before = 0

    def create(guest: int) -> None:
        host.add_guest(guest)
        for index in range(extents):
            assert host.populate(guest, RAM + index * GAP, pages)
        if touched:
            for index in range(16):
                host.guest_write(guest, RAM + index * PAGE, b"used")
            ipas = struct.pack("<8Q", *range(RAM, RAM + 8 * PAGE, PAGE))
            assert host.pin_pages(guest, ipas) is not None
            assert host.balloon_out(guest, RAM + 100 * PAGE, 1)

    create(0)
    banks_before = len(memory.banks)
    each = bytes_each(guests, create)
    # The banks are RAM. The first guests made theirs before tracing began.
    banks = (len(memory.banks) - banks_before) / (guests + 2)
    return each - banks * BANK_SIZE


async def _wait(cpu: GuestCpu) -> None:
    while True:
        await cpu.wfi()


def platform_of(guests: int, extents: int) -> float:
    """Bytes of a whole idle guest."""
    platform = Platform(PlatformSettings(checkers=False))

    def create(guest: int) -> None:
        ram = tuple([RamExtent(RAM + index * GAP, PLATFORM_PAGES) for index in range(extents)])
        platform.create(
            GuestSpec(name=f"idle {guest}", programs=(_wait,) * VCPUS, ram=ram, guest_id=guest)
        )
        platform.run(max_steps=1_000)

    return bytes_each(guests, create)


def measure(guests: int) -> dict[str, object]:
    """Bytes per guest for every number of extents."""
    rows = []
    for extents in EXTENTS:
        memory = memory_of(guests, extents, touched=False)
        whole = platform_of(guests, extents)
        rows.append(
            {
                "extents": extents,
                "memory": round(memory),
                "touched": round(memory_of(guests, extents, touched=True)),
                "platform": round(whole),
                "passed": max(memory, whole) <= TARGET,
            }
        )
    return {
        "benchmark": "idle_guest",
        "guests": guests,
        "target": TARGET,
        "rows": rows,
        "passed": all(row["passed"] for row in rows),
    }


def table(found: dict[str, object]) -> str:
    """The report for people."""
    rows = found["rows"]
    assert isinstance(rows, list)
    lines = [
        f"bytes per idle guest beyond its RAM, at most {TARGET} (memory, platform)",
        "",
        f"  {'extents':>8}{'memory':>9}{'touched':>9}{'platform':>10}",
    ]
    for row in rows:
        verdict = "" if row["passed"] else "  FAILED"
        lines.append(
            f"  {row['extents']:>8}{row['memory']:>9}{row['touched']:>9}{row['platform']:>10}{verdict}"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and say whether the target holds."""
    return run(
        __doc__,
        lambda options: measure(max(options.guests, 1)),
        table,
        rounds=1,  # nothing is timed
        more=_guests,
    )


def _guests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guests", type=int, default=GUESTS)


if __name__ == "__main__":
    sys.exit(main())
