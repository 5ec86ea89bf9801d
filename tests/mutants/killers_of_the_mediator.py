# SPDX-License-Identifier: BSD-2-Clause
"""Who kills the mutants of ``mediator/optee``."""

from __future__ import annotations

from mediator.optee.settings import Limits
from smccc.constants import optee_smc as smc
from tests.mediator import test_buffers as buffers
from tests.mediator import test_calls_with_rpc_arg as slots
from tests.mediator import test_failures as failures
from tests.mediator import test_holds as holds
from tests.mediator import test_large_buffers as large
from tests.mediator import test_lists as lists
from tests.mediator import test_nested as nested
from tests.mediator import test_offers as offers
from tests.mediator import test_one_snapshot as snapshot
from tests.mediator import test_refused_cookie as refused
from tests.mediator import test_releases as releases
from tests.mediator import test_rpc as rpc
from tests.mediator import test_threads as threads
from tests.mediator import test_unregister as unregister
from tests.mediator import test_words as words
from tests.mediator.rig import RAM, Rig, msg
from tests.mutants.killer import RIG, Fresh, Killer, by


def _with_carrier() -> Rig:
    """The rig that the tests of registered messages begin with."""
    rig = Rig()
    assert rig.register(slots.CARRIER, slots.BUFFER_PAGES)[0] == 0
    rig.host.sent.clear()
    rig.host.calls.clear()
    return rig


def _registered() -> Rig:
    """The rig that the tests of UNREGISTER begin with."""
    rig = Rig()
    assert rig.register(unregister.COOKIE, [unregister.OLD])[0] == 0
    return rig


SLOT = Fresh(_with_carrier)
NAMES = buffers.TestNames()
WALKS = buffers.TestWalks()
CONTIGUOUS = buffers.TestContiguous()
LIFE = failures.TestLifeCycle()
CLASSIC = rpc.TestClassic()
NULL = offers.TestNull()
CARRIERS = releases.TestCarriers()
INSIDE = lists.TestCarrierInsideAPage()
PLEASE = releases.TestPleaseFree()
DEATH = releases.TestDeath()
LIMITS = threads.TestLimits()

CALLS: dict[str, Killer] = {
    "call.header-first": by(snapshot.test_no_byte_is_fetched_twice, failures.invoke_with_buffers),
    "call.slot-read-again": by(
        snapshot.test_what_changes_after_a_look_has_no_effect, snapshot.slot_in_one_page
    ),
    "call.guest-copy-decides-results": by(snapshot.test_results_follow_the_message_that_was_sent),
    "call.tee-copy-decides-results": by(
        snapshot.test_results_do_not_follow_what_the_tee_makes_of_the_message
    ),
    "call.answer-bounds-clean-up": by(
        snapshot.test_what_was_taken_is_released_whatever_count_the_tee_leaves, 1
    ),
    "call.results-before-release": by(
        NAMES.test_the_name_is_free_before_the_guest_sees_the_result, RIG
    ),
    "call.failed-walk-keeps-its-pins": by(
        releases.test_a_walk_that_fails_after_some_steps_is_undone
    ),
    "call.good-parameter-stays": by(releases.test_nothing_of_the_good_parameters_remains, RIG, 1),
    "call.good-parameter-keeps-its-name": by(
        releases.test_nothing_of_the_good_parameters_remains, RIG, 2
    ),
    "call.refused-registration-keeps-pins": by(
        NAMES.test_a_refused_registration_leaves_nothing, RIG
    ),
    "call.host-error-keeps-the-call": by(
        failures.test_a_host_method_that_raises_leaves_all_balanced, failures.register, "read_guest"
    ),
    "call.no-memory-keeps-the-call": by(
        releases.test_no_shadow_page_is_enomem_and_nothing_stays, "address"
    ),
    "call.invoke-drops-by-reference": by(releases.test_a_null_reference_names_nothing, RIG),
    "call.unregister-takes-temporaries": by(
        releases.test_unregister_of_a_temporary_buffer_has_no_effect_on_it, RIG
    ),
    "call.unregister-before-the-tee": by(
        releases.test_unregister_unpins_when_the_tee_has_let_go, RIG
    ),
    "call.unregister-of-what-was-there": by(
        unregister.test_the_buffer_of_the_answer_goes_not_the_one_of_the_beginning,
        Fresh(_registered),
        True,
    ),
    "call.unregister-of-what-is-not-there-yet": by(
        unregister.test_a_registration_that_the_tee_has_not_heard_of_is_not_meant, False
    ),
    "call.overtaken-registration-lives": by(
        NAMES.test_an_unregistration_that_overtakes_the_end_of_its_registration, RIG
    ),
    "call.shadow-page-not-cleared": by(
        slots.test_the_shadow_page_is_clean_for_the_next_guest, SLOT
    ),
    "call.all-of-the-address-words": by(
        words.test_left_overs_of_the_guest_do_not_matter, failures.register
    ),
    "call.status-of-64-bits": by(
        words.test_minus_one_ends_a_call_however_wide_it_is, 0xFFFF_FFFF_FFFF_FFFF
    ),
    "call.address-words-swapped": by(words.test_a_message_above_4_gib),
    "call.shadow-words-swapped": by(words.test_a_message_above_4_gib),
    "call.resumed-shadow-words-swapped": by(
        words.test_a_preempted_registration_is_forwarded_the_same_way
    ),
    "call.arg-becomes-rpc-arg": by(
        offers.test_a_message_is_forwarded_with_the_function_of_the_guest,
        RIG,
        smc.OPTEE_SMC_CALL_WITH_ARG,
    ),
    "call.client-id-of-the-guest": by(
        offers.test_a7_is_the_client_id_whatever_the_guest_writes, RIG
    ),
    "call.unaligned-message": by(offers.test_a_message_that_is_not_at_a_page_is_refused, RIG, 8),
    "call.too-many-params-undefined": by(
        slots.test_too_many_parameters_are_bad_parameters_from_comms, SLOT, 128
    ),
    "call.end-shows-secure-registers": by(
        offers.test_the_end_of_a_call_shows_no_register_of_the_tee, RIG
    ),
    "call.unwritten-results-are-ok": by(
        failures.test_a_page_that_becomes_read_only_before_the_end_is_ebadaddr
    ),
    "call.unknown-command-passes": by(offers.test_an_unknown_message_command_stays_here, RIG, 8),
    "trap.all-of-x0": by(words.test_left_overs_of_the_guest_do_not_matter, failures.register),
    "trap.all-of-x3": by(words.test_left_overs_of_the_guest_do_not_matter, failures.rpc_allocation),
    "result.whole-parameters-back": by(
        CONTIGUOUS.test_a_list_is_built_and_results_go_to_the_guests_own_parameter, RIG
    ),
    "result.meta-is-no-buffer": by(
        offers.test_no_bit_beside_the_type_makes_a_buffer_something_else, RIG, 0xA, 0x100
    ),
    "result.only-output-buffers": by(
        offers.test_no_bit_beside_the_type_makes_a_buffer_something_else, RIG, 9, 0
    ),
    "param.null-is-translated": by(NULL.test_the_question_for_a_size_passes, RIG, 0xA, 0),
    "param.page-zero-is-null": by(NULL.test_page_zero_is_a_page, RIG, 0x10),
}

CARRIED: dict[str, Killer] = {
    "regd.forwarded-as-itself": by(
        slots.test_a_slot_is_forwarded_as_rpc_arg_on_a_shadow_page, SLOT, 0x180
    ),
    "regd.found-while-dying": by(
        slots.test_unregistering_the_carrier_of_a_call_in_flight_keeps_its_pages_until_the_end, SLOT
    ),
    "regd.held-too-late": by(
        CARRIERS.test_an_unregister_while_the_message_is_fetched, "alloc_shadow"
    ),
    "regd.unfinished-registration-found": by(
        slots.test_a_cookie_in_registration_is_not_yet_a_carrier
    ),
    "regd.carrier-not-held": by(
        slots.test_unregistering_the_carrier_of_a_call_in_flight_keeps_its_pages_until_the_end, SLOT
    ),
    "regd.last-user-forgets-the-others": by(
        CARRIERS.test_two_calls_hold_one_carrier_until_both_have_ended, RIG
    ),
    "regd.any-kind-carries": by(
        CARRIERS.test_memory_that_was_allocated_for_the_tee_carries_no_message, RIG
    ),
    "regd.cookie-low-word": by(words.test_the_whole_cookie_names_a_carrier),
    "regd.cookie-words-swapped": by(words.test_the_whole_cookie_names_a_carrier),
    "regd.any-offset": by(slots.test_a_slot_that_cannot_be_is_ebadaddr, SLOT, 4, slots.CARRIER),
    "regd.offset-at-the-end": by(
        slots.test_a_slot_that_cannot_be_is_ebadaddr, SLOT, 2 * 4096 - 24, slots.CARRIER
    ),
    "regd.length-of-whole-pages": by(
        INSIDE.test_it_ends_where_its_last_page_ends, INSIDE.LENGTH + 0x700
    ),
    "regd.offset-of-the-buffer-forgotten": by(
        INSIDE.test_positions_count_from_its_first_byte, 0x780
    ),
}

BUFFERS: dict[str, Killer] = {
    "size.offset-forgotten": by(
        lists.test_the_partial_pages_at_both_ends_count, 0xA, lists.BUFFER, 4095, 2, 2
    ),
    "size.rounded-down": by(
        lists.test_the_partial_pages_at_both_ends_count, 0x20A, lists.LIST, 0, 4097, 2
    ),
    "size.sum-wraps": by(lists.test_a_size_that_no_guest_has_is_never_small, 4095, (1 << 64) - 1),
    "size.32-bits": by(lists.test_a_size_that_no_guest_has_is_never_small, 0, (1 << 32) + 1),
    "size.empty-is-a-page": by(lists.test_an_empty_buffer_has_no_page),
    "size.contiguous-end-unchecked": by(
        lists.test_an_address_at_any_edge_is_an_answer, (1 << 64) - 4096, 8192
    ),
    "name.taken-twice": by(NAMES.test_a_live_reference_is_refused_whatever_its_kind, RIG),
    "name.chosen-once": by(CONTIGUOUS.test_two_of_them_get_two_names, RIG),
    "name.shared-by-guests": by(releases.test_every_guest_has_its_own_names, RIG),
    "name.unknown-is-refused-here": by(releases.test_an_unknown_cookie_is_the_tees_to_answer, RIG),
    "limit.calls-off-by-one": by(LIMITS.test_calls_of_every_kind_count),
    "limit.registered-calls-not-counted": by(LIMITS.test_calls_of_every_kind_count),
    "limit.buffers-off-by-one": by(
        buffers.TestLimits().test_a_cap_is_out_of_memory_to_that_guest_alone,
        Limits(buffers=2),
        [1, 1],
    ),
    "limit.buffer-pages-of-size": by(
        LIMITS.test_pages_are_counted_not_bytes, Limits(buffer_pages=2), 1, 2 * 4096, False
    ),
    "limit.total-pages-off-by-one": by(
        LIMITS.test_pages_are_counted_not_bytes,
        Limits(total_pages=2),
        0,
        2 * 4096 + 1,
        False,
    ),
    "limit.of-all-guests": by(LIMITS.test_one_guests_pages_are_not_anothers),
    "limit.reserved-too-late": by(LIMITS.test_two_processors_and_one_place, Limits(buffers=1)),
    "limit.quota-of-failures": by(releases.test_failures_cost_nothing_however_many_there_are),
    "limit.list-page-leaks": by(releases.test_failures_cost_nothing_however_many_there_are),
    "list.translated-again": by(snapshot.test_a_list_that_changes_to_other_good_pages),
    "list.512-in-one-page": by(lists.test_roll_over, 512, 64 * 511),
    "list.pages-in-a-row": by(lists.test_roll_over, 1023, 64 * 511),
    "list.second-step-overwrites": by(lists.test_roll_over, 1023, 511),
    "list.pages-of-512": by(lists.test_roll_over, 512, 64 * 511),
    "list.of-the-guest": by(snapshot.test_the_tee_never_gets_a_page_that_the_guest_can_write),
    "walk.starts-over": by(WALKS.test_a_preempted_registration_goes_on_where_it_stopped),
    "walk.never-asks": by(lists.test_preempted_at_every_edge),
    "walk.preempted-is-refused": by(lists.test_preempted_at_every_edge),
    "walk.thread-of-any-guest": by(threads.test_a_call_that_was_stopped_here_is_nobody_elses),
    "walk.resumed-twice": by(large.test_a_stopped_walk_cannot_be_entered_twice),
    "walk.batch-pinned-again": by(large.test_pins_follow_in_batches),
}

ROUNDS: dict[str, Killer] = {
    "rpc.answer-fetched-twice": by(snapshot.test_no_byte_is_fetched_twice, failures.classic_rpc),
    "rpc.size-fetched-again": by(
        snapshot.test_what_changes_after_a_look_has_no_effect, failures.rpc_allocation
    ),
    "rpc.one-page-is-enough": by(
        snapshot.test_the_pages_of_an_allocation_are_those_of_the_answered_size, 3 * 4096
    ),
    "rpc.reply-command-decides": by(
        rpc.test_an_address_in_any_other_answer_is_zeroed,
        RIG,
        rpc.GET_TIME,
        msg(rpc.SHM_ALLOC, params=[(0x20A, rpc.LIST, 0x1000, 0x55)]),
    ),
    "rpc.addresses-pass-elsewhere": by(
        rpc.test_an_address_in_any_other_answer_is_zeroed,
        RIG,
        rpc.GET_TIME,
        msg(rpc.GET_TIME, params=[(0x9, rpc.LIST, 0x1000, 0x55)]),
    ),
    "rpc.failed-answer-is-translated": by(
        rpc.test_an_address_in_any_other_answer_is_zeroed,
        RIG,
        rpc.SHM_ALLOC,
        msg(rpc.SHM_ALLOC, ret=1, params=[(0x20A, rpc.LIST, 0x1000, 0x55)]),
    ),
    "rpc.any-direction-is-an-allocation": by(
        rpc.test_an_address_in_any_other_answer_is_zeroed,
        RIG,
        rpc.SHM_ALLOC,
        msg(rpc.SHM_ALLOC, params=[(0x20B, rpc.LIST, 0x1000, 0x55)]),
    ),
    "rpc.meta-is-no-address": by(offers.test_no_bit_hides_an_address_in_an_rpc_answer, RIG, 0x30A),
    "rpc.answer-beyond-the-room": by(
        snapshot.test_an_answer_beyond_its_room_is_a_generic_error, 100
    ),
    "rpc.null-answer-is-translated": by(NULL.test_a_null_answer_to_an_allocation_passes, RIG),
    "rpc.cookie-of-the-answer": by(
        CLASSIC.test_the_recorded_buffer_is_read_whatever_cookie_comes_back
    ),
    "rpc.registers-of-the-guest": by(
        words.test_registers_of_an_interrupted_call_come_back_as_they_went
    ),
    "rpc.shm-free-after-the-guest": by(
        rpc.test_pages_are_free_before_the_guest_sees_the_free_request, RIG
    ),
    "rpc.free-after-the-guest": by(
        words.test_an_rpc_buffer_above_4_gib_from_its_allocation_to_its_end
    ),
    "rpc.undelivered-free-keeps-pins": by(
        releases.test_a_free_request_that_cannot_be_delivered_releases_all_the_same, RIG
    ),
    "rpc.newest-message-buffer": by(CLASSIC.test_buffers_are_freed_in_any_order),
    "rpc.newest-allocation": by(
        releases.test_allocations_are_freed_in_any_order, RIG, (2, 0, 3, 1)
    ),
    "rpc.free-of-any-kind": by(rpc.test_a_free_request_does_not_touch_a_registered_buffer, RIG),
    "rpc.unknown-buffer-panics": by(threads.test_a_request_in_an_unknown_buffer_is_answered_here),
    "rpc.request-address-passes": by(rpc.test_an_address_in_a_request_never_reaches_the_guest, RIG),
    "rpc.request-by-recorded-page": by(
        threads.test_a_request_goes_through_the_stage_2_of_the_moment
    ),
    "rpc.request-size-believed": by(
        threads.test_a_request_larger_than_its_room_shows_nothing_to_the_guest, RIG
    ),
    "rpc.nobody-frees": by(PLEASE.test_a_page_that_is_not_ram, RIG),
    "rpc.nobody-frees-at-a-limit": by(PLEASE.test_a_limit),
    "rpc.free-again-of-another-type": by(PLEASE.test_a_page_that_is_not_ram, RIG),
    "rpc.tee-not-told": by(PLEASE.test_a_name_in_use, RIG),
    "rpc.refused-page-keeps-its-cookie": by(
        CLASSIC.test_a_page_that_cannot_be_is_a_failed_allocation, 0x7000_0000
    ),
    "rpc.page-zero-is-memory": by(NULL.test_page_zero_is_no_rpc_buffer, RIG),
    "rpc.unaligned-page": by(
        CLASSIC.test_a_page_that_cannot_be_is_a_failed_allocation, RAM + 0x8001
    ),
    "rpc.cookie-twice": by(CLASSIC.test_the_same_cookie_twice_is_refused),
    "rpc.buffers-off-by-one": by(LIMITS.test_rpc_buffers),
    "rpc.guest-page-for-the-tee": by(CLASSIC.test_the_tee_gets_a_mediator_page),
    "rpc.list-freed-too-early": by(
        releases.test_the_list_of_an_allocation_lives_until_the_tee_comes_back, RIG
    ),
    "rpc.alloc-address-words-swapped": by(
        words.test_an_rpc_buffer_above_4_gib_from_its_allocation_to_its_end
    ),
    "rpc.alloc-cookie-words-swapped": by(words.test_the_cache_is_drained_by_the_whole_cookie),
    "rpc.alloc-page-words-swapped": by(
        words.test_an_rpc_buffer_above_4_gib_from_its_allocation_to_its_end
    ),
    "rpc.alloc-cookie-forwarded-swapped": by(
        words.test_an_rpc_buffer_above_4_gib_from_its_allocation_to_its_end
    ),
    "rpc.free-cookie-words-swapped": by(
        words.test_an_rpc_buffer_above_4_gib_from_its_allocation_to_its_end
    ),
    "rpc.command-cookie-words-swapped": by(
        words.test_an_rpc_buffer_above_4_gib_from_its_allocation_to_its_end
    ),
    "rpc.answer-words-swapped": by(
        words.test_registers_of_an_interrupted_call_come_back_as_they_went
    ),
    "resume.invented-thread": by(
        threads.test_what_is_not_suspended_here_is_not_the_tees_to_judge, RIG, 2
    ),
    "resume.running-thread": by(threads.test_a_thread_that_runs_cannot_be_resumed, RIG),
    "resume.id-free-too-early": by(
        threads.test_an_id_that_the_tee_uses_while_its_thread_waits_for_the_mediator, True
    ),
    "resume.before-the-request": by(
        rpc.test_the_guest_cannot_answer_before_the_request_is_complete, RIG
    ),
    "resume.thread-id-believed": by(threads.test_an_id_that_the_tee_uses_twice_loses_no_call, RIG),
    "resume.refused-loses-the-call": by(
        rpc.test_the_guest_cannot_answer_before_the_request_is_complete, RIG
    ),
    "resume.refused-by-the-tee-stays": by(
        threads.test_a_tee_that_refuses_to_resume_ends_the_call, RIG
    ),
    "resume.broken-thread-stays": by(threads.test_an_id_that_the_tee_uses_twice_loses_no_call, RIG),
    "resume.undelivered-request-stays": by(
        threads.test_a_call_whose_request_could_not_be_written_is_not_left_suspended, RIG
    ),
    "resume.requests-for-ever": by(
        threads.test_a_guest_that_takes_its_page_away_does_not_keep_the_processor, RIG
    ),
    "resume.flood-of-findings": by(threads.test_findings_of_one_guest_do_not_flood_the_log, RIG),
}

LIVES: dict[str, Killer] = {
    "life.client-id-of-guest": by(DEATH.test_client_ids_begin_behind_the_hypervisors_own),
    "life.served-before-created": by(LIFE.test_a_guest_is_not_served_while_the_tee_is_told_of_it),
    "life.same-id-twice": by(LIFE.test_an_id_in_use_is_refused),
    "life.refused-guest-stays": by(LIFE.test_a_refused_guest_has_no_context),
    "life.refusal-ignored": by(LIFE.test_a_refused_guest_has_no_context),
    "life.torn-down-under-a-call": by(LIFE.test_teardown_while_an_entry_is_in_flight_waits_for_it),
    "life.dying-guest-is-served": by(
        DEATH.test_a_guest_dies_in_every_state, failures.register, True
    ),
    "life.suspended-calls-forgotten": by(
        DEATH.test_a_guest_dies_in_every_state, failures.rpc_allocation, False
    ),
    "life.message-buffers-forgotten": by(
        DEATH.test_a_guest_dies_in_every_state, failures.classic_rpc, False
    ),
    "life.told-first": by(DEATH.test_a_guest_dies_in_every_state, failures.register, True),
    "life.teardown-in-one-go": by(LIFE.test_teardown_can_stop_at_every_question, 3),
    "life.held-buffers-in-one-go": by(
        DEATH.test_buffers_that_are_held_for_another_call_go_one_by_one_too
    ),
    "life.preempted-is-done": by(
        DEATH.test_nothing_that_was_pinned_is_forgotten_by_a_preempted_teardown
    ),
    "life.no-quarantine": by(LIFE.test_a_tee_that_does_not_let_go_is_reported_to_the_host, 7),
    "life.refused-end-keeps-the-guest": by(
        DEATH.test_a_tee_that_refuses_the_end_changes_nothing_here
    ),
    "probe.all-of-each-word": by(words.test_the_probe_compares_words_of_32_bits),
    "probe.virtualization-assumed": by(offers.test_a_tee_without_virtualization_is_left_alone, RIG),
    "cache.disable-forwards-enable": by(offers.test_draining_the_cache_ends),
    "cache.drained-is-ok": by(offers.test_draining_the_cache_ends),
    "cache.drained-buffer-stays": by(CLASSIC.test_draining_the_cache_unpins_before_the_guest_knows),
    "cache.cookie-words-swapped": by(words.test_the_cache_is_drained_by_the_whole_cookie),
    "offer.unknown-is-forwarded": by(
        offers.test_what_is_not_offered_never_reaches_the_tee, RIG, smc.OPTEE_SMC_VM_DESTROYED
    ),
    "offer.arguments-pass": by(
        offers.test_a_fast_call_is_asked_as_it_is_and_sets_its_results_only,
        RIG,
        smc.OPTEE_SMC_ENABLE_SHM_CACHE,
    ),
    "offer.four-results-of-everything": by(
        offers.test_a_fast_call_is_asked_as_it_is_and_sets_its_results_only,
        RIG,
        smc.OPTEE_SMC_CALLS_REVISION,
    ),
    "offer.build-id-lost": by(
        offers.test_a_fast_call_is_asked_as_it_is_and_sets_its_results_only,
        RIG,
        smc.OPTEE_SMC_CALL_GET_OS_REVISION,
    ),
    "offer.value-of-another-error": by(
        offers.test_an_error_is_in_x0_alone, RIG, smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE
    ),
    "caps.unfiltered": by(
        offers.test_capabilities_are_what_the_tee_has_and_the_mediator_can_mediate, RIG
    ),
    "caps.null-references-hidden": by(
        offers.test_capabilities_are_what_the_tee_has_and_the_mediator_can_mediate, RIG
    ),
    "caps.status-of-64-bits": by(words.test_the_exchange_looks_at_the_low_word_of_the_status),
    "caps.error-shows-registers": by(
        offers.test_an_error_is_in_x0_alone, RIG, smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
    ),
}

HOLDS: dict[str, Killer] = {
    "hold.rpc-page-as-parameter": by(
        holds.test_the_page_of_an_rpc_buffer_is_nobodys_parameter, RIG, 1, 5
    ),
    "hold.rpc-page-under-a-used-name": by(
        holds.test_what_a_call_names_cannot_become_an_rpc_buffer, RIG
    ),
    "hold.temporary-of-another-call": by(
        holds.test_a_temporary_buffer_stays_while_another_call_names_it, RIG, True
    ),
    "hold.call-given-up": by(holds.test_the_pages_of_a_call_that_cannot_reach_its_guest_stay),
    "hold.rpc-page-in-hand": by(nested.test_a_page_in_use_is_nobody_elses, RIG, "read_guest"),
    "hold.refused-cookie-frees": by(refused.test_a_refused_cookie_frees_nobody_elses_page),
    "hold.empty-answer-frees": by(
        refused.test_an_answer_without_memory_frees_nobody_elses_buffer, 0x20A
    ),
    "hold.walk-of-many-buffers": by(lists.test_many_buffers_of_one_message_are_one_long_walk, 8),
    "hold.guest-dies-at-birth": by(
        nested.test_a_guest_that_is_destroyed_while_it_is_created, RIG, True
    ),
    "hold.client-id-cut": by(nested.test_a_client_id_that_the_tee_would_cut_is_refused, 1),
    "hold.never-let-go": by(
        holds.test_a_temporary_buffer_stays_while_another_call_names_it, RIG, False
    ),
    "hold.lost-with-the-guest": by(holds.test_the_end_of_the_guest_releases_what_is_held, RIG),
    "hold.low-bits-hidden": by(WALKS.test_low_bits_of_an_entry_are_the_tees_to_refuse, 3),
}

MEDIATOR: dict[str, Killer] = {**CALLS, **CARRIED, **BUFFERS, **ROUNDS, **LIVES, **HOLDS}
