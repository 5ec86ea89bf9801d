# SPDX-License-Identifier: BSD-2-Clause
"""A recording compared with the simulated guest, and the comparison as text."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mediator.guest.profile import LINUX_6_1, LINUX_6_12, Profile
from mediator.live.comparison.compare import Comparison, Difference, compare
from mediator.live.comparison.edges import is_edges
from mediator.live.comparison.simulated import Simulation, simulate
from mediator.live.comparison.stream import Stream
from mediator.live.comparison.workload import STORAGE, Placement
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay.reader import Trace, load_trace
from specs.replay.records import Call, Return

SHOWN: Final = 40
"""Findings that a report shows."""
WIDTH: Final = 110


def profile_of(trace: Trace) -> Profile:
    """The driver profile of the kernel that was recorded: the newest that is not newer."""
    release = trace.meta.text("kernel").split("-")[0].split("+")[0].split(".")
    version = tuple([int(part) for part in release[:2] if part.isdigit()])
    return LINUX_6_12 if version >= (6, 12) else LINUX_6_1


def simulation_of(trace: Trace) -> Simulation:
    """What to simulate: the kernel's profile, the style, the processors of a recording."""
    classic = True
    for event in trace.events:
        if (
            isinstance(event, Return)
            and event.regs[2]
            and event.name == "OK"
            and event.regs[1] & smc.OPTEE_SMC_SEC_CAP_RPC_ARG
            and event.regs[3]
        ):
            classic = False
            break
    vcpus = trace.meta.values.get("vcpus", 1)
    storage = STORAGE.bytes
    tried = any(
        isinstance(event, Call)
        and event.msg is not None
        and event.msg.data[40:56] == storage
        and low32(event.regs[0]) != 0
        for event in trace.events
    )
    sizes = Stream(trace.events).facts.offsets
    return Simulation(
        edges=is_edges(sizes),
        profile=profile_of(trace),
        classic=classic,
        vcpus=vcpus if isinstance(vcpus, int) else 1,
        storage=tried,
    )


def compare_file(path: str | Path) -> Comparison:
    """Simulate what a recording holds and compare. Raises what reading it and comparing raise."""
    trace = load_trace(path)
    real = Stream(trace.events)
    simulated = Stream(simulate(simulation_of(trace), Placement(real.facts.offsets)))
    return compare(Path(path).name, real, simulated)


def text(comparison: Comparison) -> str:
    """The comparison for people."""
    c = comparison
    lines = [
        f"{c.name}: {c.real} operations recorded, {c.simulated} simulated, {c.paired} pairs with "
        f"{c.lines} lines, {c.equal} equal in every line",
    ]
    lines += [f"  {number:4} explained: {reason}" for reason, number in c.explained.items()]
    lines.append(f"  {len(c.findings):4} without a reason")
    for difference in c.findings[:SHOWN]:
        lines += _shown(difference)
    return "\n".join(lines)


def _shown(difference: Difference) -> list[str]:
    where = f"call {difference.seq}" if difference.seq >= 0 else difference.part
    return [
        f"    {where}, {difference.what}",
        f"      real:      {difference.real[:WIDTH]}",
        f"      simulated: {difference.simulated[:WIDTH]}",
    ]
