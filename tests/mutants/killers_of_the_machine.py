# SPDX-License-Identifier: BSD-2-Clause
"""Who kills the mutants of the reference host, the simulated OP-TEE and the simulated driver."""

from __future__ import annotations

from mediator.hypervisor import stage2
from mediator.hypervisor.pages import SMALL_LIST
from mediator.hypervisor.scheduler import Mode
from tests.guest import test_kernel as kernel
from tests.guest import test_waiting as waiting
from tests.hypervisor_machine import test_end_of_guest as end
from tests.hypervisor_machine import test_function_ids as ids
from tests.hypervisor_machine import test_life as life
from tests.hypervisor_machine import test_psci as psci
from tests.hypervisor_machine import test_traps as traps
from tests.hypervisor_machine import test_vgic as vgic
from tests.hypervisor_machine import test_wake_ups as wakes
from tests.hypervisor_memory import test_bus as bus
from tests.hypervisor_memory import test_counts as counts
from tests.hypervisor_memory import test_guests as guests
from tests.hypervisor_memory import test_host as host
from tests.hypervisor_memory import test_pins as pins
from tests.mutants.killer import Fresh, Killer, by
from tests.secure_world import support
from tests.secure_world import test_optee_locks as locks
from tests.secure_world import test_optee_one_look as look
from tests.secure_world import test_optee_parameters as parameters
from tests.secure_world import test_optee_registration as registration
from tests.secure_world import test_optee_rpc as rpc
from tests.secure_world import test_optee_virtualization as virtualization

NORMAL = Fresh(support.Normal)
STRANGERS = virtualization.TestStrangers()
SHARED = virtualization.TestSharedResources()
TEE_LIFE = virtualization.TestLifeCycle()
IN_USE = locks.TestUnregisterInUse()
TEMPORARY = parameters.TestTemporary()

HOST: dict[str, Killer] = {
    "host.pinned-page-freed": by(
        guests.test_stage_2_changes_at_once_and_the_page_stays_alive, guests.balloon
    ),
    "host.zombie-freed-by-the-first-release": by(
        guests.test_stage_2_changes_at_once_and_the_page_stays_alive, guests.balloon
    ),
    "host.zombie-is-never-freed": by(
        counts.test_a_page_that_left_while_it_was_pinned_is_free_after_the_last_release
    ),
    "host.pinned-page-changes-hands": by(
        guests.test_a_new_owner_never_sees_what_the_tee_writes_later
    ),
    "host.freed-page-not-scrubbed": by(
        guests.test_the_end_of_a_guest_frees_everything_but_what_is_referenced
    ),
    "host.duplicate-pinned-once": by(
        counts.test_a_page_that_is_listed_often_is_pinned_as_often, SMALL_LIST
    ),
    "host.failed-list-stays-pinned": by(
        counts.test_one_bad_page_at_the_end_undoes_all_before_it, 1, 0
    ),
    "host.failed-long-list-stays-pinned": by(
        pins.test_a_page_whose_frame_has_another_owner_is_refused_however_stage_2_presents_it
    ),
    "host.pin-without-owner": by(
        pins.test_a_page_whose_frame_has_another_owner_is_refused_however_stage_2_presents_it
    ),
    "host.stale-translation": by(
        guests.test_stage_2_changes_at_once_and_the_page_stays_alive, guests.read_only
    ),
    "host.read-only-is-writable": by(host.test_what_the_mediator_may_do_by_kind, stage2.OWN_RO),
    "host.foreign-list-page": by(host.test_a_list_page_of_another_kind_is_refused),
    "host.trailing-link-followed": by(host.test_lists_of_every_length_around_the_roll_over, 511),
    "host.addresses-of-48-bits": by(counts.test_an_address_far_outside_is_no_alias_of_ram, 1 << 48),
    "host.low-bits-kept": by(counts.test_pins_are_of_whole_pages_whatever_the_low_bits, 1, 1),
    "host.minus-one-of-32-bits": by(traps.test_psci_numbers_that_nobody_serves_are_unknown),
    "host.reserved-bits-ignored": by(
        ids.test_reserved_bits_of_a_fast_call_make_it_nobodys, ids.SERVED, 1 << 17
    ),
    "host.hint-is-a-function": by(
        ids.test_the_sve_hint_is_ignored_from_1_3_on_and_part_of_the_id_before, 0x10003, ids.SERVED
    ),
    "host.wide-answers-to-a-32-bit-guest": by(
        psci.test_an_error_is_a_signed_word_of_the_callers_width, 32
    ),
    "host.wide-arguments-of-a-32-bit-call": by(psci.test_the_32_bit_convention_passes_words),
    "bus.unpinned-is-allowed": by(bus.test_the_permission_ends_with_the_last_pin),
    "host.freed-before-the-tee": by(end.test_memory_outlives_what_the_tee_holds, Mode.DIRECT, 0),
    "host.id-reused-early": by(
        guests.test_the_end_of_a_guest_frees_everything_but_what_is_referenced
    ),
    "host.quarantine-forgotten": by(guests.test_a_guest_in_quarantine_keeps_its_pages_and_its_id),
    "host.trap-cut-short": by(life.test_an_entry_in_flight_completes_before_teardown_begins),
    "vcpu.pending-without-a-wake": by(
        wakes.test_an_interrupt_that_comes_during_the_wait_ends_it, Mode.DIRECT
    ),
    "vcpu.sleeps-without-a-look": by(
        wakes.test_an_interrupt_that_came_before_the_wait_ends_it, Mode.DIRECT
    ),
    "vgic.edge-while-active-lost": by(vgic.test_an_edge_while_active_is_remembered_once),
    "vgic.acknowledge-clears-the-line": by(
        vgic.test_a_level_interrupt_comes_back_after_its_end_while_the_line_is_high
    ),
    "vgic.in-service-dies-with-its-vcpu": by(
        vgic.test_a_shared_interrupt_in_service_survives_the_death_of_its_vcpu
    ),
}

SECURE: dict[str, Killer] = {
    "secure.message-fetched-twice": by(
        look.test_no_byte_of_a_message_in_a_registered_page_is_read_twice, 5
    ),
    "secure.short-allocation-taken": by(
        rpc.TestSharedMemoryAllocation().test_false_answers, NORMAL, "small", False
    ),
    "secure.foreign-thread": by(STRANGERS.test_the_other_ones_thread),
    "secure.client-zero": by(virtualization.TestLifeCycle().test_id_zero_is_refused, 0),
    "secure.created-by-a-guest": by(TEE_LIFE.test_only_the_hypervisor_may, 1),
    "secure.last-words": by(TEE_LIFE.test_clean_up_of_a_ta_touches_nothing),
    "secure.partition-found-after-its-end": by(TEE_LIFE.test_destroyed_with_a_thread_in_an_rpc),
    "secure.lock-of-the-dead": by(SHARED.test_a_holder_that_dies_lets_go),
    "secure.released-in-use": by(
        look.test_an_unregistered_buffer_that_is_in_use_is_there_until_the_last_user_has_gone
    ),
    "secure.released-twice": by(IN_USE.test_waits_for_the_last_user),
    "secure.found-after-the-last-put": by(look.test_a_temporary_buffer_is_forgotten_with_its_call),
    "secure.found-without-a-reference": by(
        look.test_an_unregistered_buffer_that_is_in_use_is_there_until_the_last_user_has_gone
    ),
    "secure.map-count-of-duplicates": by(look.test_a_buffer_is_mapped_exactly_while_calls_use_it),
    "secure.good-parameter-stays": by(
        TEMPORARY.test_nothing_of_the_good_one_remains_when_the_next_is_bad, NORMAL
    ),
    "secure.trailing-link-followed": by(
        registration.test_the_link_behind_the_last_entry_is_not_followed, NORMAL, support.SECURE
    ),
    "secure.entry-low-bits": by(registration.test_bad_entry, NORMAL, support.BASE + 8, 3),
    "secure.tail-page": by(registration.test_size_and_offset_give_the_pages, NORMAL),
    "secure.null-by-size": by(TEMPORARY.test_pointer_zero_is_null_whatever_its_size, NORMAL),
    "secure.meta-ignored": by(parameters.test_bad_types_and_meta, NORMAL, parameters.META | 1),
    "secure.loose-registration": by(registration.test_attribute_must_be_exact, NORMAL, 0x209),
    "secure.woken-is-owner": by(look.test_a_lock_has_one_owner),
    "secure.wake-without-a-word": by(locks.test_waiters_take_turns),
    "secure.send-in-the-wrong-partition": by(SHARED.test_release_next_door),
    "secure.pending-without-interrupt": by(
        look.test_every_value_that_becomes_pending_raises_the_interrupt
    ),
    "secure.drain-never-ends": by(look.test_draining_the_cache_ends_in_enotavail),
}

GUEST: dict[str, Killer] = {
    "guest.send-before-wait-lost": by(
        waiting.test_two_waits_and_their_sends_in_every_order,
        ("send 0", "wait 0", "wait 1", "send 1"),
    ),
    "guest.completion-before-wait-lost": by(
        kernel.test_completions_count_and_nothing_is_lost, 0, False
    ),
    "guest.wake-not-passed-on": by(waiting.test_a_wake_that_was_not_needed_is_passed_on),
}

MACHINE: dict[str, Killer] = {**HOST, **SECURE, **GUEST}
