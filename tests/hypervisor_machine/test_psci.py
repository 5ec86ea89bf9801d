# SPDX-License-Identifier: BSD-2-Clause
"""PSCI: the decisions, and what the machine makes of them."""

from __future__ import annotations

import pytest

from mediator.guest.cpu import GuestCpu
from mediator.hypervisor import psci
from mediator.hypervisor.guest import GuestState
from mediator.hypervisor.machine_events import GuestShutdown, ProgramCrash, PsciCall
from mediator.hypervisor.psci import PsciAction
from mediator.hypervisor.services import PSCI_FUNCTIONS, ServiceSettings
from mediator.hypervisor.tee import Registers
from tests.hypervisor_machine.support import Bench

CPU_ON_64 = 0xC4000003
CPU_ON_32 = 0x84000003
CPU_OFF = 0x84000002
AFFINITY_INFO = 0xC4000004
FEATURES = 0x8400000A
ON, OFF, ON_PENDING = 0, 1, 2
ENTRY = 0x4008_0000


class FakeGuest:
    def __init__(self, states: list[int], aarch32: bool = False) -> None:
        self.states = states
        self.aarch32 = aarch32
        self.started: list[tuple[int, int, int]] = []

    @property
    def vcpu_count(self) -> int:
        return len(self.states)

    def power_state(self, vcpu: int) -> int:
        return self.states[vcpu]

    def power_on(self, vcpu: int, entry: int, context: int) -> None:
        self.started.append((vcpu, entry, context))


def call(guest: FakeGuest, function: int, *args: int, vcpu: int = 0) -> int | PsciAction:
    a1, a2, a3, a4, a5, a6, a7 = (*args, *(0,) * (7 - len(args)))
    regs = (function, a1, a2, a3, a4, a5, a6, a7)
    return psci.call(guest, vcpu, regs, ServiceSettings().psci_features)


def test_queries() -> None:
    guest = FakeGuest([ON])
    assert call(guest, 0x84000000) == 0x10001
    assert call(guest, 0x84000006) == 2
    assert call(guest, FEATURES, 0x84000001) == 0
    assert call(guest, FEATURES, 0x80000000) == 0
    assert call(guest, FEATURES, 0xFFFF_0000_0000_0000 | CPU_ON_64) == 0
    assert call(guest, FEATURES, 0x84000005) == -1
    assert call(guest, FEATURES, 0) == -1


def test_features_confirms_what_is_served_and_nothing_else() -> None:
    guest = FakeGuest([ON])
    numbers = range(0x20)
    ids = [base | number for base in (0x84000000, 0xC4000000) for number in numbers]
    assert [i for i in ids if call(guest, FEATURES, i) == 0] == sorted(PSCI_FUNCTIONS)
    # What it does not confirm is not supported when it is called all the same.
    for function in set(ids) - set(PSCI_FUNCTIONS):
        assert call(guest, function) == -1
    old = ServiceSettings(smccc_version=0x10000)
    regs: Registers = (FEATURES, 0x80000000, 0, 0, 0, 0, 0, 0)
    assert psci.call(guest, 0, regs, old.psci_features) == -1


@pytest.mark.parametrize("function", [0x84000005, 0xC4000005, 0x84000007, 0xC4000007])
def test_no_trusted_os_needs_to_be_migrated(function: int) -> None:
    guest = FakeGuest([ON])
    assert call(guest, 0x84000006) == 2
    assert call(guest, function, 0) == -1
    assert call(guest, FEATURES, function) == -1


def test_a_power_state_has_32_bits_in_both_conventions_and_no_stray_ones() -> None:
    guest = FakeGuest([ON])
    for function in (0x84000001, 0xC4000001):
        for state in (0, 0x0301_FFFF, 0x10000, 0x7 << 32):
            assert call(guest, function, state, ENTRY | 1) is PsciAction.STANDBY
        for bit in (*range(17, 24), *range(26, 32)):
            assert call(guest, function, 1 << bit) == -2


def test_cpu_on_results() -> None:
    guest = FakeGuest([ON, OFF, ON_PENDING])
    assert call(guest, CPU_ON_64, 0, ENTRY, 0) == -4
    assert call(guest, CPU_ON_64, 2, ENTRY, 0) == -5
    assert call(guest, CPU_ON_64, 3, ENTRY, 0) == -2
    assert call(guest, CPU_ON_64, 1 << 8, ENTRY, 0) == -2
    assert call(guest, CPU_ON_64, 1 << 40, ENTRY, 0) == -2
    assert call(guest, CPU_ON_64, 1, ENTRY | 1, 0) == -9
    assert guest.started == []
    assert call(guest, CPU_ON_64, 1, ENTRY, 0x123456789AB) == 0
    assert guest.started == [(1, ENTRY, 0x123456789AB)]


def test_the_32_bit_convention_passes_words() -> None:
    guest = FakeGuest([ON, OFF])
    high = 0x7 << 32
    assert call(guest, CPU_ON_32, high | 1, high | ENTRY, high | 0x55) == 0
    assert guest.started == [(1, ENTRY, 0x55)]


def test_a_32_bit_guest_may_enter_thumb_code() -> None:
    guest = FakeGuest([ON, OFF], aarch32=True)
    assert call(guest, CPU_ON_32, 1, ENTRY | 1, 0) == 0


def test_psci_0_1_knows_fewer_results_and_counts_vcpus() -> None:
    guest = FakeGuest([ON] * 17 + [OFF])
    assert call(guest, 2, 0, ENTRY) == -2
    assert call(guest, 2, 18, ENTRY) == -2
    assert call(guest, 2, 17, ENTRY) == 0
    assert guest.started == [(17, ENTRY, 0)]
    assert call(guest, 1) is PsciAction.CPU_OFF


def test_mpidr_has_sixteen_vcpus_to_a_cluster() -> None:
    assert [psci.mpidr(vcpu) for vcpu in (0, 15, 16, 33)] == [0, 0xF, 0x100, 0x201]
    guest = FakeGuest([ON] * 33 + [OFF])
    assert call(guest, CPU_ON_64, 0x201, ENTRY, 0) == 0
    assert guest.started == [(33, ENTRY, 0)]


def test_affinity_info() -> None:
    guest = FakeGuest([OFF] * 16 + [ON_PENDING, ON])
    assert call(guest, AFFINITY_INFO, 0, 0) == OFF
    assert call(guest, AFFINITY_INFO, 0x100, 0) == ON_PENDING
    assert call(guest, AFFINITY_INFO, 0x101, 0) == ON
    assert call(guest, AFFINITY_INFO, 0x102, 0) == -2
    assert call(guest, AFFINITY_INFO, 0, 1) == OFF
    assert call(guest, AFFINITY_INFO, 0x1FF, 1) == ON
    assert call(guest, AFFINITY_INFO, 0, 3) == ON
    assert call(guest, AFFINITY_INFO, 0, 4) == -2
    assert call(guest, AFFINITY_INFO, 1 << 31, 0) == -2
    assert call(FakeGuest([ON], aarch32=True), 0x84000004, 0, 3) == -2


def test_system_suspend_needs_all_others_off() -> None:
    assert call(FakeGuest([ON, ON_PENDING]), 0xC400000E, ENTRY, 0) == -3
    assert call(FakeGuest([ON, OFF]), 0xC400000E, ENTRY | 2, 0) == -9
    assert call(FakeGuest([ON, OFF]), 0xC400000E, ENTRY, 0) is PsciAction.SYSTEM_SUSPEND


def test_a_secondary_runs_its_program_with_the_boot_arguments_and_can_be_restarted() -> None:
    bench = Bench()
    log: list[object] = []

    async def primary(cpu: GuestCpu) -> None:
        log.append((await cpu.smc(CPU_ON_64, 1, ENTRY, 77))[0])
        log.append((await cpu.smc(CPU_ON_64, 1, ENTRY, 77))[0] - 2**64)
        while (await cpu.smc(AFFINITY_INFO, 1, 0))[0] != OFF:
            pass
        log.append((await cpu.smc(CPU_ON_64, 1, ENTRY + 4, 78))[0])

    async def secondary(cpu: GuestCpu) -> None:
        log.append((cpu.index, getattr(cpu, "entry"), getattr(cpu, "context")))  # noqa: B009
        await cpu.smc(CPU_OFF)
        log.append("never")

    guest = bench.guest(primary, secondary, boot_vcpus=1)
    result = bench.machine.run()
    assert log[0] == 0
    assert log[1] in (-4, -5)
    assert log[2:] in (
        [(1, ENTRY, 77), 0, (1, ENTRY + 4, 78)],
        [0, (1, ENTRY, 77), (1, ENTRY + 4, 78)],
    )
    assert not result.deadlocked
    assert bench.machine.state(guest) is GuestState.RUNNING
    assert not bench.seen(ProgramCrash)


def test_a_started_vcpu_is_on_pending_until_it_runs() -> None:
    bench = Bench(pcpus=1)
    answers: list[int] = []

    async def primary(cpu: GuestCpu) -> None:
        answers.append((await cpu.smc(AFFINITY_INFO, 1, 0))[0])
        answers.append((await cpu.smc(CPU_ON_64, 1, ENTRY, 0))[0])
        answers.append((await cpu.smc(AFFINITY_INFO, 1, 0))[0])
        answers.append((await cpu.smc(CPU_ON_64, 1, ENTRY, 0))[0])
        await cpu.smc(0x84000001)

    async def secondary(cpu: GuestCpu) -> None:
        answers.append((await cpu.smc(AFFINITY_INFO, 1, 0))[0])
        cpu.send_sgi(0, 1)

    bench.guest(primary, secondary, boot_vcpus=1)
    bench.machine.run()
    assert answers == [OFF, 0, ON_PENDING, 2**64 - 5, ON]


@pytest.mark.parametrize(("function", "reason"), [(0x84000008, "off"), (0x84000009, "reset")])
def test_a_guest_that_switches_itself_off_stops_and_is_destroyed(
    function: int, reason: str
) -> None:
    told: list[tuple[int, str]] = []
    bench = Bench()
    bench.machine._on_shutdown = lambda guest, why: told.append((guest, why))
    after: list[str] = []

    async def primary(cpu: GuestCpu) -> None:
        await cpu.smc(function)
        after.append("primary")

    async def other(cpu: GuestCpu) -> None:
        await cpu.wfi()
        after.append("other")

    guest = bench.guest(primary, other)
    bench.machine.run()
    assert after == []
    assert told == [(guest, reason)]
    assert bench.seen(GuestShutdown) == [GuestShutdown(guest, reason)]
    assert bench.machine.state(guest) is None
    assert ("destroyed", guest) in bench.tee.history


def test_a_shut_down_guest_stays_if_the_machine_is_told_so() -> None:
    bench = Bench(destroy_on_shutdown=False)

    async def primary(cpu: GuestCpu) -> None:
        await cpu.smc(0x84000008)

    guest = bench.guest(primary)
    bench.machine.run()
    assert bench.machine.state(guest) is GuestState.SHUTDOWN
    bench.machine.destroy_guest(guest)
    bench.machine.run()
    assert bench.machine.state(guest) is None


def test_system_suspend_starts_again_at_the_entry_point_after_an_interrupt() -> None:
    bench = Bench()
    boots: list[tuple[int, int]] = []

    async def program(cpu: GuestCpu) -> None:
        boots.append((getattr(cpu, "entry"), getattr(cpu, "context")))  # noqa: B009
        if len(boots) == 1:
            cpu.set_timer(cpu.now() + 1000)
            await cpu.smc(0xC400000E, ENTRY, 99)
            boots.append((-1, -1))

    bench.guest(program)
    bench.machine.run()
    assert boots == [(0, 0), (ENTRY, 99)]


def test_system_suspend_by_the_32_bit_convention_passes_words() -> None:
    bench = Bench()
    boots: list[tuple[int, int]] = []

    async def program(cpu: GuestCpu) -> None:
        boots.append((getattr(cpu, "entry"), getattr(cpu, "context")))  # noqa: B009
        if len(boots) == 1:
            cpu.set_timer(cpu.now() + 1000)
            await cpu.smc(0x8400000E, 5 << 32 | ENTRY, 6 << 32 | 99)

    bench.guest(program)
    bench.machine.run()
    assert boots == [(0, 0), (ENTRY, 99)]


@pytest.mark.parametrize("bits", [32, 64])
def test_an_error_is_a_signed_word_of_the_callers_width(bits: int) -> None:
    bench = Bench()
    answers: list[Registers] = []

    async def program(cpu: GuestCpu) -> None:
        answers.append(await cpu.smc(CPU_ON_32, 0xF << 32 | 9, 0xF << 32, 3, 4, 5, 6, 7))
        answers.append(await cpu.hvc(0x84000005, 1, 2, 3, 4, 5, 6, 7))

    bench.guest(program, bits=bits)
    bench.machine.run()
    width, high = (1 << bits) - 1, 0xF << 32 if bits == 64 else 0
    assert answers == [
        (width - 1, high | 9, high, 3, 4, 5, 6, 7),
        (width, 1, 2, 3, 4, 5, 6, 7),
    ]


def test_standby_returns_after_an_interrupt_and_the_call_is_in_the_log() -> None:
    bench = Bench()
    answers: list[Registers] = []

    async def program(cpu: GuestCpu) -> None:
        cpu.set_timer(cpu.now() + 5000)
        answers.append(await cpu.smc(0xC4000001, 0x10000, ENTRY, 4, 5, 6, 7, 8))

    bench.guest(program)
    bench.machine.run()
    assert answers == [(0, 0x10000, ENTRY, 4, 5, 6, 7, 8)]
    assert [event[3] for event in bench.seen(PsciCall)] == ["standby"]
