# SPDX-License-Identifier: BSD-2-Clause
"""What an app can do beside mediating: MMIO, timers, interrupts, windows, devices, an IOMMU, vCPUs.

Every test runs with the app in this process, and with one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from mediator.deployment import app_abi as abi
from mediator.deployment.el0_app import events
from mediator.deployment.el0_app.deployment import ENOTAVAIL, El0App
from mediator.deployment.el0_app.iommu import MAX_MAPPINGS, READ, WRITE
from mediator.deployment.el0_app.manifest import PER_GUEST
from mediator.deployment.face import Completed, Done, Preempted
from mediator.host import PAGE_SIZE
from mediator.optee.syscalls import Syscall
from tests.el0_app import devices
from tests.el0_app.device_rig import DeviceRig, LocalDevices, LocalSerial, start_from_here
from tests.mediator.with_optee import GUEST, OTHER, RAM

UID = 0xBF00_FF01
HOST_SECRET = 0x5EC2E7


@pytest.fixture(params=["here", "process"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[El0App]:
    """The deployment with the app in this process, or in its own."""
    start_from_here(monkeypatch)
    return LocalDevices if request.param == "here" else El0App


@pytest.fixture
def rig(kind: type[El0App]) -> Iterator[DeviceRig]:
    made = DeviceRig(kind)
    yield made
    assert not made.app.deaths
    made.app.close()


@pytest.fixture
def two(kind: type[El0App]) -> Iterator[DeviceRig]:
    """A process for each guest."""
    made = DeviceRig(kind, manifest=devices.devices_manifest(instances=PER_GUEST))
    yield made
    made.app.close()


def refusals(rig: DeviceRig) -> list[tuple[int, int, int]]:
    found = [event for event in rig.events if isinstance(event, events.AppRefused)]
    return [(event.guest, event.call, event.status) for event in found]


# --- MMIO -----------------------------------------------------------------------------------------


def test_accesses_enter_the_app_with_guest_size_and_value(rig: DeviceRig) -> None:
    assert rig.store(devices.LATCH, 0x1122_3344_5566_7788)
    assert rig.store(devices.LATCH, 0x99, OTHER)
    assert rig.load(devices.LATCH) == 0x1122_3344_5566_7788
    assert rig.load(devices.LATCH, guest=OTHER) == 0x99
    # An app cannot give more than the access has room for.
    assert [rig.load(devices.LATCH, size) for size in (1, 2, 4)] == [0x88, 0x7788, 0x5566_7788]
    assert rig.app.usage(OTHER).entries > 1


def test_what_the_app_did_not_hook_or_does_not_serve_is_not_its_own(rig: DeviceRig) -> None:
    before = rig.app.usage(GUEST).entries
    for beyond in (devices.PLACE - 8, devices.END + 1):
        assert rig.load(beyond) is None
        assert not rig.app.wants_access(GUEST, beyond)
    assert rig.load(devices.LATCH, guest=7) is None
    assert rig.app.usage(GUEST).entries == before
    assert rig.load(devices.NOBODYS) is None
    assert rig.app.usage(GUEST).entries == before + 1


def test_no_device_is_left_of_a_dead_app(kind: type[El0App]) -> None:
    rig = DeviceRig(kind)
    rig.store(devices.LATCH, 5)
    rig.app.kill()
    assert rig.load(devices.LATCH) is None
    assert rig.app.handle(GUEST, 0, (UID,) + (0,) * 7) == Completed((ENOTAVAIL,) + (0,) * 7)
    assert rig.app.destroy_guest(GUEST) == Done()
    assert rig.app.create_guest(GUEST) == Done()
    assert rig.load(devices.LATCH) == 0
    rig.app.close()


# --- timer and interrupts -------------------------------------------------------------------------


def test_a_timer_is_set_moved_and_cancelled(rig: DeviceRig) -> None:
    rig.store(devices.ALARM, 5000)
    rig.store(devices.ALARM, 7000)
    assert rig.timers == [5000, 7000]
    rig.time = 7000
    assert rig.app.timer_interrupt() == Done()
    assert rig.load(devices.EXPIRED) == 1
    assert rig.virqs == [(GUEST, devices.VIRQ)]
    assert rig.timers[-1] is None
    # Without a deadline nobody is entered.
    assert rig.app.timer_interrupt() == Done()
    rig.store(devices.ALARM, 9000)
    rig.store(devices.ALARM, devices.NO_ALARM)
    assert rig.timers[-1] is None
    assert rig.app.timer_interrupt() == Done()
    assert rig.load(devices.EXPIRED) == 1


def test_a_timer_entry_that_is_stopped_is_entered_again(rig: DeviceRig) -> None:
    rig.store(devices.STOPS, 2)
    rig.store(devices.ALARM, 100)
    rig.time, rig.stop = 100, True
    assert rig.app.timer_interrupt() == Preempted()
    assert rig.app.timer_interrupt() == Preempted()
    assert rig.virqs == []
    assert rig.app.timer_interrupt() == Done()
    assert rig.load(devices.EXPIRED) == 1


def test_the_host_gets_the_earliest_deadline_of_all_apps(two: DeviceRig) -> None:
    rig = two
    rig.store(devices.ALARM, 900, GUEST)
    rig.store(devices.ALARM, 300, OTHER)
    assert rig.timers == [900, 300]
    rig.time = 310
    assert rig.app.timer_interrupt() == Done()
    assert [rig.load(devices.EXPIRED, guest=guest) for guest in (GUEST, OTHER)] == [0, 1]
    assert rig.timers[-1] == 900
    rig.time = 900
    assert rig.app.timer_interrupt() == Done()
    assert [rig.load(devices.EXPIRED, guest=guest) for guest in (GUEST, OTHER)] == [1, 1]
    rig.store(devices.ALARM, 2000, GUEST)
    rig.store(devices.ALARM, 1500, OTHER)
    rig.app.destroy_guest(OTHER)
    assert rig.timers[-1] == 2000, "an app that is gone has no deadline"


def test_interrupts_enter_the_app_that_hooked_them(rig: DeviceRig) -> None:
    rig.store(devices.LISTEN, 0, OTHER)
    before = rig.app.usage(-1).entries
    first, last = devices.INTERRUPTS
    for intid in (first - 1, last + 1):
        assert rig.app.notification_interrupt(intid) == Done()
    assert rig.app.usage(-1).entries == before
    for intid in (first, last):
        assert rig.app.notification_interrupt(intid) == Done()
    assert rig.virqs == [(OTHER, first), (OTHER, last)]
    assert rig.load(devices.RAISED) == 2
    assert rig.app.usage(-1).entries == before + 2


def test_an_interrupt_enters_every_app_that_hooked_it(two: DeviceRig) -> None:
    assert two.app.notification_interrupt(devices.INTERRUPTS[0]) == Done()
    assert [two.load(devices.RAISED, guest=guest) for guest in (GUEST, OTHER)] == [1, 1]


# --- vCPUs and interrupts of guests ---------------------------------------------------------------


def test_a_vcpu_is_parked_and_woken(rig: DeviceRig) -> None:
    rig.store(devices.PARK, 1234)
    rig.store(devices.WAKE, 3)
    assert rig.parked == [(GUEST, 0, 1234)]
    assert rig.woken == [(GUEST, 3)]
    for call in (Syscall.PARK_VCPU, Syscall.WAKE_VCPU):
        assert rig.ask(call, OTHER, 0)[0] == abi.NOT_ALLOWED
        assert rig.ask(call, GUEST, 1 << 16)[0] == abi.BAD_ARGUMENT
    assert (len(rig.parked), len(rig.woken)) == (1, 1)


def test_only_virqs_of_the_manifest_reach_only_the_guest_that_is_served(rig: DeviceRig) -> None:
    assert rig.ask(Syscall.INJECT_VIRQ, GUEST, devices.MAX_VIRQ)[0] == abi.OK
    assert rig.ask(Syscall.INJECT_VIRQ, GUEST, devices.MAX_VIRQ + 1)[0] == abi.NOT_ALLOWED
    assert rig.ask(Syscall.INJECT_VIRQ, GUEST, 1 << 24)[0] == abi.BAD_ARGUMENT
    assert rig.ask(Syscall.INJECT_VIRQ, OTHER, 1)[0] == abi.NOT_ALLOWED
    assert rig.virqs == [(GUEST, devices.MAX_VIRQ)]


# --- hooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "status"),
    [
        ((abi.HOOK_SMC, 0x3200_0000, 0x4000_0000), abi.NOT_ALLOWED),
        ((abi.HOOK_SMC, 0x8400_0000, 0x8400_0000), abi.NOT_ALLOWED),
        ((abi.HOOK_MMIO, devices.PLACE - 1, devices.END), abi.NOT_ALLOWED),
        ((abi.HOOK_MMIO, devices.PLACE, devices.END + 1), abi.NOT_ALLOWED),
        ((abi.HOOK_MMIO, devices.PLACE, devices.PLACE - 1), abi.BAD_ARGUMENT),
        ((abi.HOOK_TIMER, 0, 1), abi.NOT_ALLOWED),
        ((abi.HOOK_INTERRUPT, 33, 33), abi.NOT_ALLOWED),
        ((5, 0, 0), abi.BAD_ARGUMENT),
        ((abi.HOOK_MMIO, devices.PLACE, devices.END), abi.OK),
    ],
)
def test_hooks_outside_the_manifest_are_refused_and_counted(
    hook: tuple[int, int, int], status: int
) -> None:
    rig = DeviceRig()
    assert rig.ask(Syscall.REGISTER_HOOK, *hook)[0] == status
    refused = status != abi.OK
    assert rig.app.usage(GUEST).refused == refused
    assert refusals(rig) == [(GUEST, Syscall.REGISTER_HOOK, status)] * refused
    assert not rig.app.wants_access(GUEST, devices.END + 1)


def test_hooks_are_limited(rig: DeviceRig) -> None:
    ask = [rig.ask(Syscall.REGISTER_HOOK, abi.HOOK_MMIO, devices.PLACE, devices.PLACE + number)[0]
           for number in range(abi.MAX_HOOKS)]  # fmt: skip
    assert set(ask) == {abi.OK, abi.TOO_MUCH}
    # That there is no room is an answer, no refusal.
    assert rig.app.usage(GUEST).refused == 0


def test_a_timer_needs_a_hook() -> None:
    rig = DeviceRig(manifest=devices.devices_manifest())
    server = rig.app._instances()[0].server
    server.hooks = [hook for hook in server.hooks if hook[0] != abi.HOOK_TIMER]
    assert rig.ask(Syscall.SET_TIMER, 5, 0)[0] == abi.NOT_ALLOWED
    assert rig.timers == []


def test_a_cancel_is_a_truth_value(rig: DeviceRig) -> None:
    assert rig.ask(Syscall.SET_TIMER, 5, 2)[0] == abi.BAD_ARGUMENT
    assert rig.timers == []


# --- windows --------------------------------------------------------------------------------------


def test_a_window_shows_the_page_and_brings_back_what_is_written(rig: DeviceRig) -> None:
    page = RAM + 0x6000
    rig.put(page, b"\x11" * 16)
    status, offset, first, _ = rig.errand(devices.LOOK, GUEST, page, 0, 0x2222)[:4]
    assert (status, first) == (abi.OK, 0), "it is shown with the next message"
    assert rig.get(page, 16) == b"\x11" * 8 + (0x2222).to_bytes(8, "little")
    assert rig.errand(devices.LOOK, GUEST, page, 0, 0)[3] == int.from_bytes(b"\x11" * 8, "little")
    assert rig.peek(offset) == 0, "it ends with the entry"
    rig.errand(devices.POKE, offset, 77)
    assert rig.get(page, 8) == b"\x11" * 8, "and is memory like any other then"


def test_a_window_follows_the_guest_and_belongs_to_its_entry(rig: DeviceRig) -> None:
    """While the entry waits for the TEE, the page changes, and another guest's entry comes and goes."""
    page = RAM + 0x7000
    smc = rig.host.secure_smc
    assert smc is not None
    during: list[tuple[int, ...]] = []

    def interfere(*regs: int) -> tuple[int, int, int, int]:
        if regs[0] == UID and not during:
            rig.put(page, (0x5678).to_bytes(8, "little"))
            during.append(())
            during.append(rig.errand(devices.SEEN, guest=OTHER))
            rig.errand(devices.LOOK, OTHER, RAM, 0, 9, guest=OTHER)
        return smc(*regs)

    rig.host.secure_smc = interfere
    rig.put(page, (0x1234).to_bytes(8, "little"))
    status, offset, before, after = rig.errand(devices.KEEP, page)[:4]
    assert (status, before, after) == (abi.OK, 0, 0x5678)
    refused, seen = during[1][:2]
    assert refused == abi.NOT_YOURS & devices.M64
    assert seen == 0x5678
    assert rig.get(RAM + 8, 8, OTHER) == (9).to_bytes(8, "little")
    assert rig.peek(offset) == 0
    assert rig.get(page, 8) == (0x5678).to_bytes(8, "little")


def test_a_window_to_a_page_that_goes_reads_zeroes_and_writes_nothing(rig: DeviceRig) -> None:
    page = RAM + 0x8000
    rig.put(page, (0x1234).to_bytes(8, "little"))
    smc = rig.host.secure_smc
    assert smc is not None

    def balloon(*regs: int) -> tuple[int, int, int, int]:
        if regs[0] == UID:
            rig.host.balloon_out(GUEST, page, 1)
        return smc(*regs)

    rig.host.secure_smc = balloon
    assert rig.errand(devices.KEEP, page)[2:4] == (0, 0)


def test_windows_are_refused_beyond_what_is_the_guests(rig: DeviceRig) -> None:
    assert rig.ask(Syscall.MAP_GUEST_PAGE, OTHER, RAM)[0] == abi.NOT_ALLOWED
    assert rig.ask(Syscall.MAP_GUEST_PAGE, GUEST, RAM + 8)[0] == abi.BAD_ARGUMENT
    assert rig.ask(Syscall.MAP_GUEST_PAGE, GUEST, devices.PLACE)[0] == abi.NO
    assert rig.ask(Syscall.UNMAP_GUEST_PAGE, 0)[0] == abi.NOT_YOURS
    assert rig.ask(Syscall.UNMAP_GUEST_PAGE, 8)[0] == abi.NOT_YOURS
    assert rig.ask(Syscall.UNMAP_GUEST_PAGE, abi.WINDOW_PAGES << 12)[0] == abi.NOT_YOURS
    assert rig.app.usage(GUEST).refused == 5


def test_windows_are_limited_and_all_come_back() -> None:
    """As many as there are, in entries that are open at the same time."""
    rig = DeviceRig()
    smc = rig.host.secure_smc
    assert smc is not None
    found: list[tuple[int, int]] = []

    def again(*regs: int) -> tuple[int, int, int, int]:
        if regs[0] == UID and len(found) <= abi.WINDOW_PAGES:
            found.append((-1, -1))
            guest = (GUEST, OTHER)[len(found) % 2]
            status, offset = rig.errand(devices.KEEP, RAM, guest=guest)[:2]
            found[found.index((-1, -1))] = (status, offset)
        return smc(*regs)

    rig.host.secure_smc = again
    first = rig.errand(devices.KEEP, RAM)[:2]
    made = [offset for status, offset in [first, *found] if status == abi.OK]
    assert sorted(made) == [number << 12 for number in range(abi.WINDOW_PAGES)]
    statuses = [status for status, _ in found]
    assert statuses.count(abi.TOO_MUCH & devices.M64) == len(found) + 1 - abi.WINDOW_PAGES > 0
    assert rig.ask(Syscall.MAP_GUEST_PAGE, GUEST, RAM)[:2] == (abi.OK, 0)
    assert rig.app.usage(GUEST).refused == 0


def test_a_device_page_is_memory_of_the_app(kind: type[El0App]) -> None:
    registers = bytearray(PAGE_SIZE)
    registers[:8] = HOST_SECRET.to_bytes(8, "little")
    rig = DeviceRig(kind, devices={devices.DEVICE: registers, devices.DEVICE + 0x1000: registers})
    assert rig.ask(Syscall.MAP_DEVICE, devices.DEVICE + 8)[0] == abi.BAD_ARGUMENT
    assert rig.ask(Syscall.MAP_DEVICE, devices.DEVICE + 0x1000)[0] == abi.NOT_ALLOWED
    assert rig.app.usage(GUEST).refused == 2
    status, offset, first = rig.errand(devices.DEVICES, devices.DEVICE, 0x4444)[:3]
    assert (status, first) == (abi.OK, HOST_SECRET)
    assert registers[8:16] == (0x4444).to_bytes(8, "little")
    assert rig.peek(offset) == 0
    rig.app.close()


def test_a_device_that_is_not_there_is_no_refusal(rig: DeviceRig) -> None:
    assert rig.ask(Syscall.MAP_DEVICE, devices.DEVICE)[0] == abi.NO
    assert rig.app.usage(GUEST).refused == 0


# --- the IOMMU ------------------------------------------------------------------------------------


def program(rig: DeviceRig, stream: int, iova: int, pa: int, access: int) -> int:
    return rig.ask(Syscall.IOMMU, GUEST, stream, iova, pa, access)[0]


@pytest.fixture
def pinned(rig: DeviceRig) -> tuple[DeviceRig, int]:
    """A page that is pinned for the guest, whose device is stream 7."""
    rig.register(0x77, RAM + 0x9000)
    rig.app.iommu.assign(7, GUEST)
    rig.app.iommu.assign(8, OTHER)
    return rig, rig.pa(RAM + 0x9000)


def test_a_device_reaches_what_is_mapped_and_nothing_else(pinned: tuple[DeviceRig, int]) -> None:
    rig, pa = pinned
    translate = rig.app.iommu.translate
    assert program(rig, 7, 0x10_0000, pa, READ) == abi.OK
    assert translate(7, 0x10_0123, READ) == pa | 0x123
    assert translate(7, 0x10_0123, WRITE) is None
    assert translate(7, 0x10_1000, READ) is None
    assert translate(8, 0x10_0123, READ) is None
    assert program(rig, 7, 0x10_0000, pa, READ | WRITE) == abi.OK
    assert translate(7, 0x10_0000, WRITE) == pa
    assert program(rig, 7, 0x10_0000, 0, 0) == abi.OK
    assert translate(7, 0x10_0000, READ) is None


def test_only_pinned_pages_of_the_guest_for_devices_of_the_guest(
    pinned: tuple[DeviceRig, int],
) -> None:
    rig, pa = pinned
    other = rig.pa(RAM + 0x9000, OTHER)
    for stream, iova, frame, access, status in (
        (7, 0x10_0000, rig.pa(RAM + 0xA000), READ, abi.NOT_YOURS),
        (7, 0x10_0000, other, READ, abi.NOT_YOURS),
        (8, 0x10_0000, pa, READ, abi.NOT_YOURS),
        (9, 0x10_0000, pa, READ, abi.NOT_ALLOWED),
        (7, 0x10_0008, pa, READ, abi.BAD_ARGUMENT),
        (7, 0x10_0000, pa + 8, READ, abi.BAD_ARGUMENT),
        (7, 0x10_0000, pa, WRITE, abi.BAD_ARGUMENT),
        (7, 0x10_0000, pa, 4, abi.BAD_ARGUMENT),
        (8, 0x10_0000, 0, 0, abi.NOT_YOURS),
    ):
        assert program(rig, stream, iova, frame, access) == status
    assert rig.ask(Syscall.IOMMU, OTHER, 8, 0x10_0000, other, READ)[0] == abi.NOT_ALLOWED
    assert rig.app.iommu.translate(7, 0x10_0000, READ) is None
    assert rig.app.usage(GUEST).refused == 10


def test_a_page_that_a_device_reaches_stays_pinned(kind: type[El0App]) -> None:
    """The app dies of it: it is its own fault, and the hypervisor cleans up."""
    rig = DeviceRig(kind)
    rig.register(0x77, RAM + 0x9000)
    rig.app.iommu.assign(7, GUEST)
    pa = rig.pa(RAM + 0x9000)
    assert program(rig, 7, 0, pa, READ) == abi.OK
    rig.call(RAM, bytes_of_unregister(0x77))
    assert rig.host.pinned(GUEST) == 1
    assert rig.app.iommu.translate(7, 0, READ) == pa
    assert (GUEST, Syscall.UNPIN_PAGES, abi.NOT_YOURS) in refusals(rig)
    assert rig.app.destroy_guest(GUEST) == Done()
    assert rig.host.pinned(GUEST) == 0
    assert rig.app.iommu.translate(7, 0, READ) is None
    rig.app.close()


def bytes_of_unregister(cookie: int) -> bytes:
    from tests.mediator.rig import msg

    return bytes(msg(5, params=[(0x5, 0, 0, cookie)]))


def test_a_guest_that_ends_leaves_no_mapping_and_no_device(pinned: tuple[DeviceRig, int]) -> None:
    rig, pa = pinned
    assert program(rig, 7, 0, pa, READ) == abi.OK
    assert rig.app.destroy_guest(GUEST) == Done()
    assert rig.app.iommu.translate(7, 0, READ) is None
    # Another guest may get the id; the device is not its own for that.
    assert rig.app.create_guest(GUEST) == Done()
    rig.register(0x77, RAM + 0x9000)
    assert program(rig, 7, 0, pa, READ) == abi.NOT_YOURS


def test_a_device_that_changes_hands_reaches_nothing(pinned: tuple[DeviceRig, int]) -> None:
    rig, pa = pinned
    assert program(rig, 7, 0, pa, READ) == abi.OK
    rig.app.iommu.assign(7, OTHER)
    assert rig.app.iommu.translate(7, 0, READ) is None
    rig.app.iommu.assign(7, None)
    assert program(rig, 7, 0, pa, READ) == abi.NOT_YOURS


def test_a_dead_app_leaves_no_mapping_but_the_device_is_still_the_guests() -> None:
    rig = DeviceRig()
    rig.register(0x77, RAM + 0x9000)
    rig.app.iommu.assign(7, GUEST)
    assert program(rig, 7, 0, rig.pa(RAM + 0x9000), READ) == abi.OK
    rig.app.kill()
    assert rig.app.iommu.translate(7, 0, READ) is None
    assert rig.app.iommu.owned(GUEST, 7)
    rig.app.close()


def test_mappings_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mediator.deployment.el0_app.iommu.MAX_MAPPINGS", 3)
    rig = DeviceRig()
    rig.register(0x77, RAM + 0x9000)
    rig.app.iommu.assign(7, GUEST)
    pa = rig.pa(RAM + 0x9000)
    made = [program(rig, 7, number << 12, pa, READ) for number in range(4)]
    assert made == [abi.OK] * 3 + [abi.TOO_MUCH]
    assert program(rig, 7, 0, pa, READ | WRITE) == abi.OK, "an old one may change"
    assert MAX_MAPPINGS > 3


# --- what the manifest does not list --------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        Syscall.MAP_GUEST_PAGE,
        Syscall.UNMAP_GUEST_PAGE,
        Syscall.MAP_DEVICE,
        Syscall.IOMMU,
        Syscall.SET_TIMER,
        Syscall.NOW,
        Syscall.PARK_VCPU,
        Syscall.WAKE_VCPU,
        Syscall.INJECT_VIRQ,
        Syscall.LOG,
    ],
)
def test_a_call_that_is_not_listed_is_refused_and_counted(call: Syscall) -> None:
    full = devices.devices_manifest()
    manifest = attrs.evolve(full, syscalls=full.syscalls - {int(call)})
    rig = DeviceRig(manifest=manifest)
    assert rig.ask(call, GUEST, RAM)[0] == abi.NOT_ALLOWED
    assert rig.app.usage(GUEST).refused == 1
    assert refusals(rig) == [(GUEST, call, abi.NOT_ALLOWED)]


def test_a_call_that_there_is_not_is_refused_and_counted(rig: DeviceRig) -> None:
    beyond = max(Syscall) + 1
    assert rig.errand(devices.ASK, beyond)[0] == abi.NO_SUCH_CALL & devices.M64
    assert rig.app.usage(GUEST).refused == 1


def test_an_app_that_is_busy_cannot_be_entered_for_a_device() -> None:
    """One that serves one entry at a time, on a host that cannot wait."""
    rig = DeviceRig(LocalSerial)
    smc = rig.host.secure_smc
    assert smc is not None
    found: list[object] = []

    def nested(*regs: int) -> tuple[int, int, int, int]:
        if regs[0] == UID:
            found.append(rig.load(devices.LATCH, guest=OTHER))
            found.append(rig.app.timer_interrupt())
            found.append(rig.app.notification_interrupt(devices.INTERRUPTS[0]))
        return smc(*regs)

    rig.store(devices.ALARM, 10)
    rig.host.secure_smc = nested
    rig.errand(devices.KEEP, RAM)
    assert found == [None, Preempted(), Preempted()]
    assert rig.app.timer_interrupt() == Done()
    assert rig.load(devices.EXPIRED) == 1
