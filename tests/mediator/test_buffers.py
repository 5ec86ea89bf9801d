# SPDX-License-Identifier: BSD-2-Clause
"""Buffers: contiguous ones, names, limits, and walks that stop on the way."""

from __future__ import annotations

import struct

import attrs
import pytest

from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg, results

RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
BAD_PARAMETERS, OUT_OF_MEMORY = 0xFFFF0006, 0xFFFF000C
INVOKE = 1
BIG = [RAM + 0x100_000 + (index * 7 % 1200) * PAGE_SIZE for index in range(1200)]


def invoke(rig: Rig, *params: tuple[int, int, int, int]) -> tuple[int, ...]:
    rig.put(RAM, msg(INVOKE, params=params))
    return rig.call(RPC_ARG, 0, RAM, 0)


def listed(rig: Rig, address: int, pages: int) -> list[int]:
    """The addresses in a list as the TEE reads it."""
    out: list[int] = []
    link = address & ~0xFFF
    while len(out) < pages:
        words = struct.unpack("<512Q", rig.host.memory(link))
        out += words[: min(511, pages - len(out))]
        link = words[511]
    return out


def walking(entries: int, **more: int) -> Rig:
    limits = Limits(walk_entries=entries, **more)
    return Rig(MediatorSettings(limits=limits))


def _dropping() -> MediatorSettings:
    return attrs.evolve(MediatorSettings(), entry_offsets=False)


class TestContiguous:
    def test_a_list_is_built_and_results_go_to_the_guests_own_parameter(self, rig: Rig) -> None:
        start, size = RAM + 0x50_FF0, 0x1020
        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            attr, address, length, reference = struct.unpack_from("<4Q", rig.shadow(), 32)
            seen.append((attr, address & 0xFFF, length, listed(rig, address, 3)))
            assert reference not in (0, 5)
            struct.pack_into("<Q", rig.shadow(), 48, 0x77)
            return (0, 0, 0, 0)

        rig.host.script = [script]
        assert invoke(rig, (0xB, start, size, 5))[0] == 0
        frames = [rig.host.pa(0, RAM + page) for page in (0x50_000, 0x51_000, 0x52_000)]
        assert seen == [(0x20B, 0xFF0, size, frames)]
        assert rig.message(RAM, 1)[8:] == (0xB, start, 0x77, 5)
        assert not rig.pinned()

    def test_two_of_them_get_two_names(self, rig: Rig) -> None:
        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            seen.append(
                (
                    struct.unpack_from("<Q", rig.shadow(), 56)[0],
                    struct.unpack_from("<Q", rig.shadow(), 88)[0],
                )
            )
            return (0, 0, 0, 0)

        rig.host.script = [script]
        invoke(rig, (9, RAM + 0x50_000, 64, 1), (9, RAM + 0x50_000, 64, 1))
        first, second = seen[0]
        assert first != second

    @pytest.mark.parametrize("address", [0x7000_0000, (1 << 64) - PAGE_SIZE, (1 << 64) - 1])
    def test_what_is_no_ram_is_bad_parameters(self, rig: Rig, address: int) -> None:
        assert invoke(rig, (0xA, address, 0x10, 0))[0] == 0
        assert rig.message(RAM, 1)[5:7] == (BAD_PARAMETERS, 2)
        assert not rig.host.sent
        assert rig.info() == (0, 0, 0, 0)

    def test_a_registration_must_come_with_a_list(self, rig: Rig) -> None:
        rig.put(RAM, msg(4, params=[(0xA, RAM + 0x50_000, 0x1000, 5)]))
        assert rig.call(RPC_ARG, 0, RAM, 0)[0] == 0
        assert rig.message(RAM, 1)[5:7] == (BAD_PARAMETERS, 2)


class TestNames:
    def test_a_live_reference_is_refused_whatever_its_kind(self, rig: Rig) -> None:
        rig.register(0x55, [RAM + 0x50_000])
        rig.put_list(RAM + 0xA_000, [RAM + 0x51_000])
        invoke(rig, (0x20A, RAM + 0xA_000, 0x1000, 0x55))
        assert rig.message(RAM, 1)[5:7] == (BAD_PARAMETERS, 2)
        assert rig.pinned() == 1
        assert rig.register(0x55, [RAM + 0x52_000])[0] == 0
        assert rig.message(RAM + 0x1000, 1)[5:7] == (BAD_PARAMETERS, 2)

    def test_cookie_zero_is_an_ordinary_name(self, rig: Rig) -> None:
        rig.register(0, [RAM + 0x50_000])
        assert rig.info() == (0, 1, 1, 0)
        rig.unregister(0)
        assert not rig.pinned()

    def test_guests_share_no_names(self, rig: Rig) -> None:
        rig.register(0x55, [RAM + 0x50_000])
        rig.register(0x55, [RAM + 0x50_000], guest=1)
        rig.unregister(0x55, guest=1)
        assert rig.info() == (0, 1, 1, 0)
        assert rig.info(1) == (0, 0, 0, 0)

    def test_an_unregistration_that_the_tee_refused_changes_nothing(self, rig: Rig) -> None:
        rig.register(0x55, [RAM + 0x50_000])
        rig.host.script = [results(BAD_PARAMETERS)]
        rig.unregister(0x55)
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_EBADADDR)]
        rig.unregister(0x55)
        assert rig.info() == (0, 1, 1, 0)

    def test_a_refused_registration_leaves_nothing(self, rig: Rig) -> None:
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT)]
        assert rig.register(0x55, [RAM + 0x50_000])[0] == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
        rig.host.script = [results(OUT_OF_MEMORY)]
        rig.register(0x55, [RAM + 0x50_000])
        assert rig.info() == (0, 0, 0, 0)
        assert not rig.pinned()

    def test_an_unregistration_that_overtakes_the_end_of_its_registration(self, rig: Rig) -> None:
        """The TEE knows the buffer already, the registering processor has not returned yet."""
        inner: list[int] = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            rig.put(RAM + 0x2000, msg(5, params=[(5, 0, 0, 0x55)]))
            inner.append(rig.call(RPC_ARG, 0, RAM + 0x2000, 0)[0])
            return (0, 0, 0, 0)

        rig.host.script = [script]
        rig.register(0x55, [RAM + 0x50_000])
        assert inner == [0]
        assert rig.info() == (0, 0, 0, 0)
        assert not rig.pinned()

    def test_the_name_is_free_before_the_guest_sees_the_result(self, rig: Rig) -> None:
        """Another processor watches the message and registers the name again at once."""
        rig.register(0x55, [RAM + 0x50_000])
        again: list[int] = []
        write = rig.host.write_guest

        def racing(guest: int, ipa: int, segments: list[tuple[int, bytes]]) -> bool:
            done = write(guest, ipa, segments)
            if not again:
                again.append(0)
                rig.put_list(RAM + 0x0B_000, [RAM + 0x60_000])
                rig.put(RAM + 0x2000, msg(4, params=[(0x20A, RAM + 0x0B_000, 0x1000, 0x55)]))
                rig.call(RPC_ARG, 0, RAM + 0x2000, 0)
                again[0] = rig.message(RAM + 0x2000, 1)[5]
            return done

        rig.host.write_guest = racing  # type: ignore[method-assign, assignment]
        rig.unregister(0x55)
        assert again == [0]
        assert list(rig.host.pins) == [rig.host.pa(0, RAM + 0x60_000)]


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "fits"),
        [
            (Limits(buffers=2), [1, 1]),
            (Limits(total_pages=5), [3, 2]),
            (Limits(buffer_pages=4), [4]),
        ],
    )
    def test_a_cap_is_out_of_memory_to_that_guest_alone(
        self, limits: Limits, fits: list[int]
    ) -> None:
        rig = Rig(MediatorSettings(limits=limits))
        for cookie, pages in enumerate(fits):
            rig.register(cookie, BIG[:pages])
            assert rig.message(RAM + 0x1000, 1)[5] == 0
        over = 5 if limits.buffer_pages == 4 else 1
        before = dict(rig.host.calls)
        rig.register(99, BIG[:over])
        assert rig.message(RAM + 0x1000, 1)[5:7] == (OUT_OF_MEMORY, 2)
        assert rig.host.calls["read_page_list"] == before["read_page_list"], "never looked at"
        rig.register(99, BIG[:1], guest=1)
        assert rig.message(RAM + 0x1000, 1, guest=1)[5] == 0

    @pytest.mark.parametrize("size", [1 << 32, 1 << 44, 1 << 63, (1 << 64) - 1])
    def test_absurd_sizes_are_out_of_memory(self, rig: Rig, size: int) -> None:
        invoke(rig, (0x20A, RAM + 0xA_FFF, size, 5))
        assert rig.message(RAM, 1)[5:7] == (OUT_OF_MEMORY, 2)

    def test_an_empty_buffer_is_bad_parameters(self, rig: Rig) -> None:
        invoke(rig, (0x20A, RAM + 0xA_000, 0, 5))
        assert rig.message(RAM, 1)[5:7] == (BAD_PARAMETERS, 2)

    def test_a_tee_without_threads_for_the_only_call_is_a_finding(self, rig: Rig) -> None:
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT)]
        assert invoke(rig)[0] == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
        assert rig.host.logged == [(0, "secure-world: no thread for a guest's only call")]

    def test_the_call_limit_is_taken_before_anything_is_awaited(self) -> None:
        """The third processor traps while the first two are reading their messages."""
        rig = Rig(MediatorSettings(limits=Limits(calls=2)))
        statuses = []

        def nested() -> None:
            depth = rig.host.calls["read_guest"]
            if depth <= 2:
                rig.put(RAM + depth * 0x1000, msg(INVOKE))
                statuses.append(rig.call(RPC_ARG, 0, RAM + depth * 0x1000, 0)[0])

        rig.host.after_read = nested
        rig.put(RAM, msg(INVOKE))
        assert rig.call(RPC_ARG, 0, RAM, 0)[0] == 0
        assert sorted(statuses) == [0, smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT]

    def test_settings_refuse_nonsense(self) -> None:
        for bad in (
            {"buffers": 0},
            {"calls": 0},
            {"walk_entries": 512},
            {"walk_entries": 0},
            {"pin_entries": 1},
        ):
            with pytest.raises(ValueError, match=next(iter(bad))):
                Limits(**bad)


class TestWalks:
    def test_a_long_list_is_copied_over_several_pages(self, rig: Rig) -> None:
        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            address = struct.unpack_from("<Q", rig.shadow(), 40)[0]
            seen.append(listed(rig, address, len(BIG)))
            return (0, 0, 0, 0)

        rig.host.script = [script]
        rig.register(0x55, BIG)
        assert seen == [[rig.host.pa(0, ipa) for ipa in BIG]]
        assert rig.pinned() == len(BIG)
        assert rig.unregister(0x55)[0] == 0
        assert not rig.pinned()
        assert len(rig.host.shadows) <= 2, "the list pages went back"

    @pytest.mark.parametrize("pages", [3, 600])
    def test_low_bits_of_an_entry_are_the_tees_to_refuse(self, pages: int) -> None:
        guest_pages = [BIG[index] for index in range(pages)]
        odd = [page | (8 if index == pages - 2 else 0) for index, page in enumerate(guest_pages)]
        for settings, kept in ((MediatorSettings(), 8), (_dropping(), 0)):
            rig = Rig(settings)
            seen: list[list[int]] = []

            def script(rig: Rig, regs: tuple[int, ...], seen: list[list[int]] = seen) -> Answer:
                address = struct.unpack_from("<Q", rig.shadow(), 40)[0]
                seen.append(listed(rig, address, pages))
                struct.pack_into("<I", rig.shadow(), 20, BAD_PARAMETERS)
                return (0, 0, 0, 0)

            rig.host.script = [script]
            rig.register(0x55, odd)
            expected = [rig.host.pa(0, ipa) for ipa in guest_pages]
            expected[pages - 2] |= kept
            assert seen == [expected]
            assert not rig.pinned()

    def test_a_preempted_registration_goes_on_where_it_stopped(self) -> None:
        rig = walking(511)
        rig.host.preempt = [True, True]
        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            address = struct.unpack_from("<Q", rig.shadow(), 40)[0]
            seen.append(listed(rig, address, len(BIG)))
            return (0, 0, 0, 0)

        out = rig.register(0x55, BIG)
        assert out[:4] == (INTR, 0, 0, 0x1_0000)
        assert not rig.host.sent
        assert rig.info() == (1, 1, len(BIG), 0)
        # The message is not read again, and the list pages that were walked are not either.
        rig.put(RAM + 0x1000, b"\xff" * 64)
        rig.put(RAM + 0xA_000, b"\xff" * PAGE_SIZE)
        reads = rig.host.calls["read_guest"]
        assert rig.call(RETURN, 0, 0, 0x1_0000)[:4] == (INTR, 0, 0, 0x1_0000)
        rig.host.script = [script]
        assert rig.call(RETURN, 0, 0, 0x1_0000)[0] == 0
        assert seen == [[rig.host.pa(0, ipa) for ipa in BIG]]
        assert rig.host.calls["read_guest"] == reads
        assert rig.info() == (0, 1, len(BIG), 0)

    def test_its_thread_id_means_nothing_in_another_guest(self) -> None:
        rig = walking(511)
        rig.host.preempt = [True]
        rig.register(0x55, BIG)
        assert rig.call(RETURN, 0, 0, 0x1_0000, guest=1)[0] == smc.OPTEE_SMC_RETURN_ERESUME

    def test_a_bad_page_after_a_preemption_undoes_everything(self) -> None:
        rig = walking(511, pin_entries=511)
        rig.host.preempt = [True]
        rig.host.kinds[0, BIG[1100]] = "ro"
        assert rig.register(0x55, BIG)[0] == INTR
        assert rig.pinned() == 511
        assert rig.call(RETURN, 0, 0, 0x1_0000)[0] == 0
        assert rig.message(RAM + 0x1000, 1)[5:7] == (BAD_PARAMETERS, 2)
        assert not rig.pinned()
        assert rig.info() == (0, 0, 0, 0)

    def test_teardown_of_a_walk_on_the_way(self) -> None:
        rig = walking(511)
        rig.host.preempt = [True]
        rig.register(0x55, BIG)
        rig.tee.destroy_guest(0)
        assert not rig.pinned()

    def test_a_preempted_rpc_allocation_keeps_its_thread(self) -> None:
        rig = walking(511)
        asked = msg(6, ret=0xFFFF0000, params=[(1, 0, len(BIG) * PAGE_SIZE, 8)])

        def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
            rig.shadow()[32 : 32 + len(asked)] = asked
            return (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 0, 1)

        rig.put(RAM, msg(INVOKE))
        rig.host.script = [ask]
        rig.call(RPC_ARG, 0, RAM, 0)
        rig.put_list(RAM + 0xA_000, BIG)
        reply = msg(6, params=[(0x20A, RAM + 0xA_000, len(BIG) * PAGE_SIZE, 0x55)])
        rig.put(RAM + 32, reply)
        rig.host.preempt = [True]
        assert rig.call(RETURN, 0, 0, 1)[:4] == (INTR, 0, 0, 1)
        rig.put(RAM + 32, b"\xff" * 64)
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
        assert rig.host.sent[-1] == (RETURN, 0, 0, 1, 0, 0, 0, 1)
        assert rig.info() == (0, 1, len(BIG), 0)

    def test_a_list_that_links_to_itself_is_bounded_by_the_size(self, rig: Rig) -> None:
        ipa = RAM + 0xA_000
        rig.put(ipa, struct.pack("<512Q", *[RAM + 0x50_000] * 511, ipa))
        rig.put(RAM, msg(4, params=[(0x20A, ipa, 1500 * PAGE_SIZE, 7)]))
        assert rig.call(RPC_ARG, 0, RAM, 0)[0] == 0
        assert rig.host.pins[rig.host.pa(0, RAM + 0x50_000)] == 1500
        rig.unregister(7)
        assert not rig.pinned()


def test_default_limits_are_what_the_documentation_says() -> None:
    assert attrs.asdict(Limits()) == {
        "calls": None,
        "returning": 64,
        "buffers": 4096,
        "buffer_pages": 262_145,
        "total_pages": 1_048_576,
        "rpc_buffers": 256,
        "notifications": 8191,
        "walk_entries": 32_704,
        "pin_entries": 8_176,
    }


@pytest.fixture
def rig() -> Rig:
    return Rig()
