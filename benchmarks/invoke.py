# SPDX-License-Identifier: BSD-2-Clause
"""What one invoke costs, all the way: guest, trap, mediator, secure world, TA and back.

Four parameters (value inout, registered memory inout, none, none), no RPC. The guest packs and
stores the message, traps, reads the answer and checks it; the TA adds the values and reverses 16
bytes. Ratios are measured side by side with baseline S: one precompiled ``Struct`` for the header
and one for each parameter, a message of four parameters unpacked and packed once.

    python benchmarks/invoke.py [--json] [--rounds N]

Exit code 1 if a ratio is above its target times 1.15.
"""

from __future__ import annotations

import gc
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from benchmarks._report import Report, gate, gate_lines, ratio_of, report, run, time_lines
from mediator.deployment.choice import Deployment
from mediator.guest.cpu import GuestCpu
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.scheduler import Mode
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps import default_registry
from secure_world.settings import SecureWorldSettings
from secure_world.ta import Params, TaEnvironment, TrustedApplication
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.wire import MESSAGE

ROUNDS = 9
CALL_TARGET = 16.0
"""Times S, for both call styles."""
CALLS = 300
BASELINE_LOOPS = 4_000
WAKE = 40
"""An interrupt that tells the guest that there is work."""
STYLES = {"CALL_WITH_ARG": False, "CALL_WITH_REGD_ARG": True}
RAM = 0x4000_0000
COOKIE = 0xFFFF_0000_1000_0000
SLOTS = RAM + 0x10_000
DATA = RAM + 0x20_000
INVOKE = MESSAGE[4]


class AddAndReverse(TrustedApplication):
    """The TA of this benchmark: a += b, and the first 16 bytes reversed."""

    uuid = UUID("b1f0c2d4-7e1a-4c55-9a10-0c0ffee0beef")
    pseudo = True
    concurrent = True
    single_instance = True
    multi_session = True

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        value = params.value(0)
        value.a += value.b
        memref = params.memref(1)
        memref.write(0, memref.read(0, 16)[::-1])
        return 0


def baseline_s() -> Callable[[int], None]:
    """Baseline S of the engineering rules: five Structs each way."""
    header, param = struct.Struct("<8I"), struct.Struct("<4Q")
    buffer = bytearray(160)
    header.pack_into(buffer, 0, 1, 2, 3, 4, 5, 6, 7, 4)
    unpack_header, unpack_param = header.unpack_from, param.unpack_from
    pack_header, pack_param = header.pack_into, param.pack_into

    def run(times: int) -> None:
        for _ in range(times):
            fields = unpack_header(buffer, 0)
            params = [unpack_param(buffer, at) for at in (32, 64, 96, 128)]
            pack_header(buffer, 0, *fields)
            for at, words in zip((32, 64, 96, 128), params, strict=True):
                pack_param(buffer, at, *words)

    return run


async def register(cpu: GuestCpu, cookie: int, ipa: int, pages: int) -> None:
    """REGISTER_SHM of ``pages`` adjacent pages; the message and the list lie in the first two."""
    await cpu.write(RAM + 0x1000, struct.pack(f"<{pages}Q", *range(ipa, ipa + pages * 4096, 4096)))
    attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
    body = MESSAGE[1].pack(4, 0, 0, 0, 0, 0, 0, 1, attr, RAM + 0x1000, pages * 4096, cookie)
    await cpu.write(RAM, body)
    regs = await cpu.smc(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0, 0, 0, 0, 0)
    assert regs[0] == 0
    assert struct.unpack("<I", await cpu.read(RAM + 20, 4))[0] == 0


async def open_session(cpu: GuestCpu) -> int:
    """A session with the benchmark's TA."""
    a, b = struct.unpack("<2Q", AddAndReverse.uuid.bytes)
    meta = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT | msg.OPTEE_MSG_ATTR_META
    body = MESSAGE[2].pack(0, 0, 0, 0, 0, 0, 0, 2, meta, a, b, 0, meta, 0, 0, 0)
    await cpu.write(RAM, body)
    regs = await cpu.smc(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0, 0, 0, 0, 0)
    fields: tuple[int, ...] = struct.unpack("<8I", await cpu.read(RAM, 32))
    assert (regs[0], fields[5]) == (0, 0), fields
    return fields[2]


class Bench:
    """One platform with one busy guest, which invokes as often as it is told."""

    def __init__(
        self,
        mode: Mode = Mode.DIRECT,
        idle_guests: int = 0,
        deployment: Deployment = Deployment(),  # noqa: B008  # frozen
    ) -> None:
        registry = default_registry()
        registry.register(AddAndReverse)
        self.platform = Platform(
            PlatformSettings(
                machine=MachineSettings(mode=mode, pcpus=1, time_slice=1 << 60),
                secure_world=SecureWorldSettings(threads=2, guests=idle_guests + 1),
                checkers=False,
                charged=False,
                deployment=deployment,
            ),
            registry=registry,
        )
        for index in range(idle_guests):
            spec = GuestSpec(name=f"idle{index}", programs=(_idle,), ram=(RamExtent(RAM, 1024),))
            self.platform.create(spec)
        self.clock: Callable[[], float] = time.process_time
        self._todo: list[tuple[bool, int]] = []
        self._seconds = 0.0
        spec = GuestSpec(name="busy", programs=(self._program,), ram=(RamExtent(RAM, 1024),))
        self.guest = self.platform.create(spec)

    async def _program(self, cpu: GuestCpu) -> None:
        await register(cpu, COOKIE, SLOTS, 1)
        await register(cpu, COOKIE + 1, DATA, 1)
        session = await open_session(cpu)
        await cpu.write(DATA, bytes(range(16)))
        while True:
            while self._todo:
                by_cookie, times = self._todo.pop()
                start = self.clock()
                await self._invoke(cpu, session, by_cookie, times)
                self._seconds = self.clock() - start
            await cpu.wfi()
            interrupt = cpu.acknowledge()
            if interrupt is not None:
                cpu.end_of_interrupt(interrupt)

    async def _invoke(self, cpu: GuestCpu, session: int, by_cookie: bool, times: int) -> None:
        value, rmem = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT, msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT
        pack, unpack = INVOKE.pack, INVOKE.unpack
        where = SLOTS + 0x180 if by_cookie else RAM
        if by_cookie:
            frame = (smc.OPTEE_SMC_CALL_WITH_REGD_ARG, COOKIE >> 32, COOKIE & 0xFFFFFFFF, 0x180)
        else:
            frame = (smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0)
        trap, read, write = cpu.smc, cpu.read, cpu.write
        for _ in range(times):
            body = pack(
                1, 7, session, 0, 0, 0, 0, 4,
                value, 3, 4, 0, rmem, 0, 16, COOKIE + 1, 0, 0, 0, 0, 0, 0, 0, 0,
            )  # fmt: skip
            await write(where, body)
            regs = await trap(*frame, 0, 0, 0, 0)
            fields = unpack(await read(where, 160))
            if regs[0] or fields[5] or fields[9] != 7:
                raise AssertionError(fields)

    def run(self, by_cookie: bool, times: int) -> float:
        """Seconds of processor time for one invoke, the mean of ``times``, measured in the guest."""
        self._todo.append((by_cookie, times))
        self.platform.machine.inject(self.guest, WAKE)
        self.platform.run()
        seconds, self._seconds = self._seconds, 0.0
        return seconds / times


async def _idle(cpu: GuestCpu) -> None:
    while True:
        await cpu.wfi()


def measure(rounds: int) -> list[dict[str, float]]:
    """Seconds per invoke by variant, for each round; variants take turns."""
    benches = {
        "direct": Bench(),
        "suspending": Bench(Mode.INTERLEAVE),
        "1,000 guests": Bench(idle_guests=999),
    }
    baseline = baseline_s()
    results: list[dict[str, float]] = []
    for bench in benches.values():
        for by_cookie in (False, True):
            bench.run(by_cookie, CALLS)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            timed = {}
            start = time.process_time()
            baseline(BASELINE_LOOPS)
            timed["S"] = (time.process_time() - start) / BASELINE_LOOPS
            for name, bench in benches.items():
                for style, by_cookie in STYLES.items():
                    timed[f"{name}, {style}"] = bench.run(by_cookie, CALLS)
            results.append(timed)
    finally:
        gc.enable()
    return results


class Gate(NamedTuple):
    """``over`` divided by ``under`` is at most ``target``."""

    name: str
    over: str
    under: str
    target: float


GATES = tuple(
    [Gate(f"invoke, {style}", f"direct, {style}", "S", CALL_TARGET) for style in STYLES]
    + [
        Gate(f"every await suspends, {style}", f"suspending, {style}", f"direct, {style}", 1.25)
        for style in STYLES
    ]
    + [
        Gate(f"1,000 guests alive, {style}", f"1,000 guests, {style}", f"direct, {style}", 1.2)
        for style in STYLES
    ]
)


def found_in(results: list[dict[str, float]]) -> Report:
    """Medians of the variants, and of each gate's ratio within a round."""
    gates = [
        gate(
            wanted.name,
            ratio_of(results, wanted.over, wanted.under),
            wanted.target,
            of=f"{wanted.over} / {wanted.under}",
        )
        for wanted in GATES
    ]
    return report("invoke", results, gates)


def table(found: Report) -> str:
    """The report for people."""
    lines = ["one invoke, guest to TA and back (processor time)", ""]
    lines += time_lines(found["microseconds"])
    return "\n".join([*lines, "", *gate_lines(found["gates"], "gate")])


def main() -> int:
    """Measure, print, and say whether all gates hold."""
    return run(__doc__, lambda options: found_in(measure(options.rounds)), table, rounds=ROUNDS)


if __name__ == "__main__":
    sys.exit(main())
