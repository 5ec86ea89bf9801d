# SPDX-License-Identifier: BSD-2-Clause
"""The machine brings to an app what it hooked: accesses of vCPUs, physical interrupts, virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from mediator.deployment.choice import Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.manifest import PER_GUEST, Manifest
from mediator.guest.cpu import GuestAbort, GuestCpu, VcpuProgram
from mediator.host import Host
from mediator.hypervisor.accounting import APP_TURN, KINDS, TRAP
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.guest import GuestSpec, RamExtent
from mediator.hypervisor.machine_events import DeviceAccess
from mediator.hypervisor.scheduler import Mode
from mediator.optee.events import Sink
from mediator.optee.settings import MediatorSettings
from mediator.scenario.platform import Platform, PlatformSettings
from tests.el0_app import devices
from tests.el0_app.device_rig import LocalDevices, LocalSerial, start_from_here

RAM = 0x4000_0000
ALARM_AT = 3_000_000


@attrs.frozen
class Devices(Deployment):
    """The app of these tests, as a process or here."""

    kind: type[El0App] = attrs.field(kw_only=True)
    app_manifest: Manifest = attrs.field(kw_only=True, factory=devices.devices_manifest)

    def make(
        self,
        host: Host,
        settings: MediatorSettings | None = None,
        sink: Sink | None = None,
        **given: Any,
    ) -> El0App:
        return self.kind(host, settings, sink, manifest=self.app_manifest, **given)


@pytest.fixture(params=["here", "one at a time", "process"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[El0App]:
    start_from_here(monkeypatch)
    found: type[El0App] = {
        "here": LocalDevices,
        "one at a time": LocalSerial,
        "process": El0App,
    }[request.param]
    return found


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.value)
def platform(request: pytest.FixtureRequest, kind: type[El0App]) -> Iterator[Platform]:
    made = board(kind, request.param)
    yield made
    made.check()
    made.close()


def board(kind: type[El0App], mode: Mode, **changes: object) -> Platform:
    seen.clear()
    manifest = devices.devices_manifest(**changes)
    return Platform(
        PlatformSettings(
            machine=MachineSettings(mode=mode), deployment=Devices(kind=kind, app_manifest=manifest)
        ),
        sinks=[seen.append],
    )


seen: list[tuple[object, ...]] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


def guest(platform: Platform, *programs: VcpuProgram) -> int:
    spec = GuestSpec("guest", programs, ram=(RamExtent(RAM, 16),))
    return platform.create(spec)


async def load(cpu: GuestCpu, ipa: int, size: int = 8) -> int:
    return int.from_bytes(await cpu.read(ipa, size), "little")


async def store(cpu: GuestCpu, ipa: int, value: int, size: int = 8) -> None:
    await cpu.write(ipa, value.to_bytes(size, "little"))


async def aborts(cpu: GuestCpu, ipa: int, size: int, write: bool) -> bool:
    try:
        if write:
            await cpu.write(ipa, bytes(size))
        else:
            await cpu.read(ipa, size)
    except GuestAbort as abort:
        return abort.write == write
    return False


def test_accesses_of_a_vcpu_reach_the_app(platform: Platform) -> None:
    found: list[int] = []

    async def program(cpu: GuestCpu) -> None:
        await store(cpu, devices.LATCH, 0xFEDC_BA98 + cpu.guest_id)
        found.append(await load(cpu, devices.LATCH))
        found.append(await load(cpu, devices.LATCH, 2))
        await cpu.write(RAM, b"memory is no device")

    numbers = [guest(platform, program), guest(platform, program)]
    assert not platform.run(max_steps=100_000).deadlocked
    assert sorted(found) == sorted(
        [0xFEDC_BA98 + number for number in numbers]
        + [0xFEDC_BA98 + number & 0xFFFF for number in numbers]
    )
    events = [event for event in seen if isinstance(event, DeviceAccess)]
    assert len(events) == 6
    assert {(event.size, event.write, event.served) for event in events} == {
        (8, 1, 1),
        (8, 0, 1),
        (2, 0, 1),
    }


def test_what_is_no_device_is_an_abort(platform: Platform) -> None:
    found: list[bool] = []

    async def program(cpu: GuestCpu) -> None:
        for ipa, size in (
            (devices.PLACE - 8, 8),
            (devices.END + 1, 1),
            (devices.LATCH + 4, 8),
            (devices.LATCH, 3),
            (devices.LATCH, 16),
            (devices.NOBODYS, 8),
        ):
            found.append(await aborts(cpu, ipa, size, False))
            found.append(await aborts(cpu, ipa, size, True))

    guest(platform, program)
    platform.run(max_steps=100_000)
    assert found == [True] * 12
    served = [event.served for event in seen if isinstance(event, DeviceAccess)]
    assert served == [0, 0], "only what the app was asked for"


def test_a_deadline_of_the_app_comes_in_virtual_time(platform: Platform) -> None:
    moments: list[int] = []

    async def program(cpu: GuestCpu) -> None:
        await store(cpu, devices.ALARM, ALARM_AT)
        while not moments:
            await cpu.wfi()
            intid = cpu.acknowledge()
            if intid is not None:
                assert intid == devices.VIRQ
                moments.append(cpu.now())
                cpu.end_of_interrupt(intid)
        assert await load(cpu, devices.CLOCK) >= ALARM_AT
        assert await load(cpu, devices.EXPIRED) == 1

    guest(platform, program)
    assert not platform.run(max_steps=100_000).deadlocked
    assert ALARM_AT <= moments[0] < ALARM_AT + 200_000


def test_the_earliest_deadline_of_several_apps_comes_first(kind: type[El0App]) -> None:
    platform = board(kind, Mode.DIRECT, instances=PER_GUEST)
    order: list[int] = []

    async def program(cpu: GuestCpu) -> None:
        await store(cpu, devices.ALARM, 4_000_000 - cpu.guest_id * 1_000_000)
        intid = None
        while intid is None:
            await cpu.wfi()
            intid = cpu.acknowledge()
        order.append(cpu.guest_id)
        cpu.end_of_interrupt(intid)
        assert await load(cpu, devices.EXPIRED) == 1

    first, second = guest(platform, program), guest(platform, program)
    assert not platform.run(max_steps=100_000).deadlocked
    assert order == [second, first]
    platform.check()
    platform.close()


def test_a_physical_interrupt_reaches_the_app_and_its_guest(platform: Platform) -> None:
    taken: list[int] = []
    intid = devices.INTERRUPTS[1]

    async def program(cpu: GuestCpu) -> None:
        await store(cpu, devices.LISTEN, 1)
        while not taken:
            await cpu.wfi()
            found = cpu.acknowledge()
            if found is not None:
                taken.append(found)
                cpu.end_of_interrupt(found)

    guest(platform, program)
    machine = platform.machine
    machine.at(1_000_000, lambda: machine.physical_interrupt(devices.INTERRUPTS[1] + 1))
    machine.at(2_000_000, lambda: machine.physical_interrupt(intid))
    assert not platform.run(max_steps=100_000).deadlocked
    assert taken == [intid]


def test_a_parked_vcpu_rests_until_then_or_until_it_is_woken(platform: Platform) -> None:
    back: dict[int, int] = {}

    async def sleeper(cpu: GuestCpu) -> None:
        await store(cpu, devices.PARK, 50_000_000)
        back[cpu.index] = cpu.now()

    async def waker(cpu: GuestCpu) -> None:
        await store(cpu, devices.PARK, 1_000_000)
        back[cpu.index] = cpu.now()
        await store(cpu, devices.WAKE, 0)

    guest(platform, sleeper, waker)
    assert not platform.run(max_steps=100_000).deadlocked
    assert 1_000_000 <= back[1] < 2_000_000
    assert back[1] < back[0] < 3_000_000


def test_the_boundary_is_charged_to_the_guest_whose_vcpu_traps(kind: type[El0App]) -> None:
    platform = board(kind, Mode.DIRECT)
    machine = platform.machine

    def accesses(count: int) -> VcpuProgram:
        async def program(cpu: GuestCpu) -> None:
            for number in range(count):
                await store(cpu, devices.LATCH, number)

        return program

    few, many = guest(platform, accesses(3)), guest(platform, accesses(50))
    records = [machine.guest(number) for number in (few, many)]
    before = [list(record.account.counts) for record in records if record is not None]
    platform.run(max_steps=100_000)
    after = [record.account for record in records if record is not None]
    spent = [
        (new.counts[TRAP] - old[TRAP], new.counts[APP_TURN] - old[APP_TURN])
        for new, old in zip(after, before, strict=True)
    ]
    assert spent == [(3, 3), (50, 50)]
    assert (
        after[1].times(machine.costs)[KINDS[APP_TURN]]
        == machine.costs[APP_TURN] * (after[1].counts[APP_TURN])
    )
    platform.close()


def test_a_guest_that_is_destroyed_within_an_access_leaves_nothing(platform: Platform) -> None:
    async def program(cpu: GuestCpu) -> None:
        for number in range(10_000):
            await store(cpu, devices.LATCH, number)

    number = guest(platform, program, program)
    platform.destroy_at(number, 400_000)
    assert not platform.run(max_steps=1_000_000).deadlocked
    assert platform.machine.guest(number) is None
    assert not platform.host.pinned(number)
