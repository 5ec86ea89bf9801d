# SPDX-License-Identifier: BSD-2-Clause
"""Who kills the mutants of the boundary to a mediator in a process of its own."""

from __future__ import annotations

from mediator.deployment import app_abi as abi
from mediator.hypervisor.scheduler import Mode
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_smc as smc
from tests.el0_app import devices
from tests.el0_app import test_boundary as boundary
from tests.el0_app import test_budgets as budgets
from tests.el0_app import test_devices as device
from tests.el0_app import test_fused as fused
from tests.el0_app import test_isolation as isolation
from tests.el0_app import test_machine as machine
from tests.el0_app import test_snapshot as snapshot
from tests.el0_app.device_rig import DeviceRig, LocalDevices
from tests.mediator.with_optee import GUEST, OTHER, RAM
from tests.mutants.killer import Fresh, Killer, by

RIG = Fresh(DeviceRig)


def _two() -> DeviceRig:
    """An app for each guest."""
    return DeviceRig(manifest=devices.devices_manifest(instances="per-guest"))


def _pinned() -> tuple[DeviceRig, int]:
    """A page that is pinned, and devices of both guests."""
    rig = DeviceRig()
    rig.register(0x77, RAM + 0x9000)
    rig.app.iommu.assign(7, GUEST)
    rig.app.iommu.assign(8, OTHER)
    return rig, rig.pa(RAM + 0x9000)


TWO = Fresh(_two)
PINNED = Fresh(_pinned)
NO_GUEST = -1


def wrong(call: Syscall, args: tuple[int, ...], status: int, payload: bytes = b"") -> Killer:
    """One wrong thing; it is one of the cases of that test."""
    assert (call, args, payload, status) in boundary.CASES
    return by(boundary.test_one_wrong_thing_at_a_time, call, args, payload, status)


def to_the_tee(guest: int, number: int, function: int, a1: int, client: int, status: int) -> Killer:
    return by(
        boundary.test_who_may_say_what_to_the_tee, guest, number, function, a1, client, status
    )


CLIENT = GUEST + 1
LIE = boundary.test_a_return_is_one_that_the_entry_can_have
HOOKS = device.test_hooks_outside_the_manifest_are_refused_and_counted
WINDOWS = device.test_a_window_follows_the_guest_and_belongs_to_its_entry
ONLY_PINNED = boundary.test_only_what_was_pinned_for_this_guest_can_be_reached_or_released
IOMMU = device.test_only_pinned_pages_of_the_guest_for_devices_of_the_guest

ARGUMENTS: dict[str, Killer] = {
    "boundary.any-guest": wrong(Syscall.READ_GUEST, (OTHER, RAM, 8), abi.NOT_ALLOWED),
    "boundary.lost-guest": by(boundary.test_a_lost_guest_is_nobodys),
    "boundary.write-for-any-guest": wrong(
        Syscall.WRITE_GUEST, (OTHER, RAM, 1), abi.NOT_ALLOWED, boundary.ONE
    ),
    "boundary.read-beyond-the-page": wrong(
        Syscall.READ_GUEST, (GUEST, RAM + 0xFF9, 8), abi.BAD_ARGUMENT
    ),
    "boundary.segment-ends-outside": wrong(
        Syscall.WRITE_GUEST,
        (GUEST, RAM, 1),
        abi.BAD_ARGUMENT,
        boundary.segments((0xFFF, b"xy")),
    ),
    "boundary.payload-with-a-rest": wrong(
        Syscall.WRITE_GUEST, (GUEST, RAM, 1), abi.BAD_ARGUMENT, boundary.ONE + b"y"
    ),
    "boundary.write-between-pages": wrong(
        Syscall.WRITE_GUEST, (GUEST, RAM + 8, 1), abi.BAD_ARGUMENT, boundary.ONE
    ),
    "boundary.endless-list": wrong(
        Syscall.READ_PAGE_LIST, (GUEST, RAM, abi.MAX_PAGES + 1), abi.BAD_ARGUMENT
    ),
    "boundary.vcpu-of-any-guest": wrong(Syscall.PARK_VCPU, (OTHER, 0, 1), abi.NOT_ALLOWED),
    "boundary.interrupt-for-any-guest": wrong(Syscall.INJECT_VIRQ, (OTHER, 1), abi.NOT_ALLOWED),
    "boundary.log-in-any-name": wrong(Syscall.LOG, (OTHER,), abi.NOT_ALLOWED, b"said"),
    "boundary.quarantine-at-any-time": by(
        boundary.test_only_the_end_of_a_guest_may_be_its_quarantine
    ),
}

MEMORY: dict[str, Killer] = {
    "boundary.read-of-what-is-not-pinned": by(ONLY_PINNED),
    "boundary.write-to-what-is-not-pinned": by(ONLY_PINNED),
    "boundary.unpin-of-what-is-not-pinned": by(ONLY_PINNED),
    "boundary.released-once": by(ONLY_PINNED),
    "boundary.pins-not-booked": by(ONLY_PINNED),
    "boundary.pins-without-limit": by(boundary.test_pins_are_limited_for_each_guest),
    "boundary.shadows-without-limit": by(budgets.test_one_guest_cannot_take_the_pages_of_all),
    "boundary.shadow-larger-than-the-arena": wrong(Syscall.ALLOC_SHADOW, (8193,), abi.BAD_ARGUMENT),
    "boundary.part-of-a-shadow": by(boundary.test_shadows_are_given_back_as_they_were_taken),
    "boundary.shadows-of-the-dead": by(
        snapshot.test_what_dies_after_a_restore_is_cleaned_up_from_the_restored_books
    ),
}

SECURE: dict[str, Killer] = {
    "boundary.any-client": wrong(
        Syscall.SMC, (boundary.UID, 0, 0, 0, 0, 0, 0, OTHER + 1), abi.NOT_ALLOWED
    ),
    "boundary.seen-once-is-good-for-all": by(
        boundary.test_every_guest_is_looked_at_however_often_a_function_was_forwarded
    ),
    "boundary.any-function": wrong(
        Syscall.SMC, (0x8400_0000, 0, 0, 0, 0, 0, 0, CLIENT), abi.NOT_ALLOWED
    ),
    "boundary.ends-any-partition": to_the_tee(
        GUEST,
        abi.ENTRY_GUEST_DESTROYED,
        smc.OPTEE_SMC_VM_DESTROYED,
        OTHER + 1,
        0,
        abi.NOT_ALLOWED,
    ),
    "boundary.life-in-any-entry": to_the_tee(
        GUEST, abi.ENTRY_HANDLE_MMIO, smc.OPTEE_SMC_VM_DESTROYED, CLIENT, 0, abi.NOT_ALLOWED
    ),
    "boundary.ends-partitions-at-the-start": to_the_tee(
        NO_GUEST, abi.ENTRY_INIT, smc.OPTEE_SMC_VM_DESTROYED, CLIENT, 0, abi.NOT_ALLOWED
    ),
    "boundary.one-guest-listens": by(boundary.test_every_guest_that_enables_notifications_listens),
    "boundary.guest-without-a-partition": by(
        boundary.test_a_guest_that_the_tee_does_not_know_is_not_taken
    ),
}

MANIFEST: dict[str, Killer] = {
    "boundary.hook-outside-the-manifest": by(
        HOOKS, (abi.HOOK_SMC, 0x8400_0000, 0x8400_0000), abi.NOT_ALLOWED
    ),
    "boundary.hooks-without-limit": by(device.test_hooks_are_limited, RIG),
    "boundary.range-by-its-ends": by(boundary.test_ranges_of_a_manifest_are_inclusive_and_whole),
    "boundary.virq-outside-the-manifest": wrong(
        Syscall.INJECT_VIRQ, (GUEST, devices.MAX_VIRQ + 1), abi.NOT_ALLOWED
    ),
    "boundary.device-outside-the-manifest": by(
        device.test_a_device_page_is_memory_of_the_app, LocalDevices
    ),
    "boundary.timer-without-a-hook": by(device.test_a_timer_needs_a_hook),
    "boundary.image-not-compared": by(isolation.test_an_image_that_has_changed_is_not_started),
}

WINDOW: dict[str, Killer] = {
    "boundary.window-to-any-page": by(
        device.test_windows_are_refused_beyond_what_is_the_guests, RIG
    ),
    "boundary.window-outlives-its-entry": by(
        device.test_a_window_shows_the_page_and_brings_back_what_is_written, RIG
    ),
    "boundary.windows-of-others-end-too": by(WINDOWS, RIG),
    "boundary.window-of-another-entry": by(WINDOWS, RIG),
    "boundary.window-not-wiped": by(
        device.test_a_window_shows_the_page_and_brings_back_what_is_written, RIG
    ),
    "boundary.window-stands-still": by(WINDOWS, RIG),
    "boundary.window-not-brought-back": by(
        device.test_a_window_shows_the_page_and_brings_back_what_is_written, RIG
    ),
    "boundary.iommu-of-any-guest": by(IOMMU, PINNED),
    "boundary.iommu-stream-outside-the-manifest": by(IOMMU, PINNED),
    "boundary.iommu-to-any-page": by(IOMMU, PINNED),
    "boundary.unpinned-under-a-device": by(
        device.test_a_page_that_a_device_reaches_stays_pinned, LocalDevices
    ),
    "boundary.iommu-outlives-the-app": by(
        device.test_a_dead_app_leaves_no_mapping_but_the_device_is_still_the_guests
    ),
    "boundary.device-goes-with-the-id": by(
        device.test_a_guest_that_ends_leaves_no_mapping_and_no_device, PINNED
    ),
    "boundary.iommu-writes-what-is-to-be-read": by(
        device.test_a_device_reaches_what_is_mapped_and_nothing_else, PINNED
    ),
}

BOARD = Fresh(lambda: machine.board(LocalDevices, Mode.DIRECT))

DEVICES: dict[str, Killer] = {
    "vcpu.access-across-a-register": by(machine.test_what_is_no_device_is_an_abort, BOARD),
    "vcpu.abort-swallowed": by(machine.test_what_is_no_device_is_an_abort, BOARD),
    "vcpu.devices-for-nothing": by(
        machine.test_the_boundary_is_charged_to_the_guest_whose_vcpu_traps, LocalDevices
    ),
    "vcpu.rest-forgotten": by(
        machine.test_a_parked_vcpu_rests_until_then_or_until_it_is_woken, BOARD
    ),
}

TURNS: dict[str, Killer] = {
    "boundary.posted-without-a-list": by(
        boundary.test_what_may_not_be_posted_is_refused_and_does_nothing
    ),
    "boundary.posted-for-another-entry": by(
        boundary.test_what_is_posted_for_another_entry_ends_the_app
    ),
    "boundary.speaks-for-another-entry": by(LIE, {"entry": 0x7777}, "it spoke for entry 0x7777"),
    "boundary.goes-on-after-a-failure": by(
        boundary.test_after_a_service_failed_an_app_may_only_give_back
    ),
    "boundary.any-outcome": by(LIE, {"status": 77}, "entry 4 returned 77"),
    "boundary.put-off-for-ever": by(boundary.test_an_end_that_is_put_off_for_no_reason),
    "boundary.refused-without-end": by(boundary.test_too_many_refusals_end_an_app),
    "boundary.refusals-not-counted": wrong(Syscall.READ_GUEST, (OTHER, RAM, 8), abi.NOT_ALLOWED),
    "boundary.result-lost": by(boundary.test_results_that_cannot_be_written_are_no_success),
    "boundary.load-beyond-its-size": by(
        device.test_accesses_enter_the_app_with_guest_size_and_value, RIG
    ),
    "boundary.busy-app-is-entered": by(
        device.test_an_app_that_is_busy_cannot_be_entered_for_a_device
    ),
    "boundary.latest-deadline": by(
        device.test_the_host_gets_the_earliest_deadline_of_all_apps, TWO
    ),
    "boundary.all-deadlines-at-once": by(
        device.test_the_host_gets_the_earliest_deadline_of_all_apps, TWO
    ),
    "boundary.next-deadline-forgotten": by(
        device.test_the_host_gets_the_earliest_deadline_of_all_apps, TWO
    ),
    "boundary.stopped-timer-forgotten": by(
        device.test_a_timer_entry_that_is_stopped_is_entered_again, RIG
    ),
}

ACCOUNTS: dict[str, Killer] = {
    "boundary.outer-entry-pays": by(
        budgets.test_entries_within_an_entry_are_on_the_account_of_their_own_guest
    ),
    "boundary.posted-for-nothing": by(budgets.test_what_is_posted_is_a_call_like_any_other),
    "boundary.posted-bytes-for-nothing": by(budgets.test_posted_bytes_are_bytes_like_any_other),
    "boundary.last-user-gives-back": by(
        budgets.test_pages_stay_on_the_account_that_they_were_taken_for
    ),
    "boundary.dead-guest-pays": by(budgets.test_pages_stay_on_the_account_that_they_were_taken_for),
    "boundary.bystander-pays-for-the-funeral": by(
        budgets.test_each_guest_pays_for_its_own_end_and_the_machine_for_the_new_app, None
    ),
    "boundary.new-app-at-a-guests-cost": by(budgets.test_the_start_of_an_app_is_on_nobodys_account),
    "boundary.snapshot-without-pins": by(
        snapshot.test_what_dies_after_a_restore_is_cleaned_up_from_the_restored_books
    ),
    "boundary.snapshot-within-an-entry": by(snapshot.test_no_snapshot_while_an_entry_is_in_flight),
}

FUSED: dict[str, Killer] = {
    "fused.refused-walk-is-done": by(
        fused.test_a_list_that_is_refused_at_a_step_is_refused, 511, 0
    ),
    "fused.interrupted-walk-is-done": by(fused.test_a_list_ends_as_step_by_step, 1300, 1),
    "fused.resumed-from-the-beginning": by(fused.test_a_list_ends_as_step_by_step, 1300, 1),
    "fused.link-not-kept": by(fused.test_a_list_ends_as_step_by_step, 1300, 1),
    "fused.offsets-of-nobody": by(
        fused.test_low_bits_of_entries_go_on_or_not_as_the_settings_say, False
    ),
    "fused.pins-that-nobody-knows": by(fused.test_a_service_that_fails_in_a_walk_leaves_nothing),
    "fused.stops-when-all-is-done": by(fused.test_a_list_ends_as_step_by_step, 511, 1),
    "fused.status-of-success": by(fused.test_results_that_cannot_be_written_are_told_in_x0),
}

BOUNDARY: dict[str, Killer] = {
    **ARGUMENTS,
    **MEMORY,
    **SECURE,
    **MANIFEST,
    **WINDOW,
    **DEVICES,
    **TURNS,
    **ACCOUNTS,
    **FUSED,
}
