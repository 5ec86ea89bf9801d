# SPDX-License-Identifier: BSD-2-Clause
"""What is released when, and by whom: in any order, half-way, once, and never too early."""

from __future__ import annotations

import itertools
import struct

import pytest

from mediator.deployment.face import Done, Preempted
from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, Script, answer, msg, request, results
from tests.mediator.test_one_snapshot import EVERY
from tests.mediator.watching import Journey, until_trap

ARG = smc.OPTEE_SMC_CALL_WITH_ARG
RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
INTR = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
BAD_PARAMETERS, GENERIC = 0xFFFF0006, 0xFFFF0000
SHM_ALLOC, SHM_FREE = 6, 7
LIST = RAM + 0x20_000
BUFFER = RAM + 0x50_000
CARRIER = 0x1_0000_2480


@pytest.fixture
def rig() -> Rig:
    return Rig()


def invoke(rig: Rig, *params: tuple[int, int, int, int], ipa: int = RAM) -> tuple[int, ...]:
    rig.put(ipa, msg(1, params=params))
    return rig.call(RPC_ARG, 0, ipa, 0)


def frame(rig: Rig, ipa: int) -> int:
    return rig.host.pa(0, ipa)


def allocate(rig: Rig, cookie: int, *after: Script) -> tuple[int, ...]:
    """The thread that is suspended in SHM_ALLOC gets one page of its own under ``cookie``."""
    rig.put_list(LIST, [BUFFER + cookie * PAGE_SIZE])
    rig.put(RAM + 32, msg(SHM_ALLOC, params=[(0x20A, LIST, PAGE_SIZE, cookie)]))
    rig.host.script = list(after)
    return rig.call(RETURN, 0, 0, 1)


def asking() -> Script:
    return request(msg(SHM_ALLOC, ret=GENERIC, params=[(1, 0, PAGE_SIZE, 8)]))


def freeing(cookie: int) -> Script:
    return request(msg(SHM_FREE, ret=GENERIC, params=[(1, 0, cookie, 0)]))


def with_allocations(rig: Rig, count: int) -> None:
    """A call that is suspended in a further SHM_ALLOC after ``count`` good ones."""
    rig.host.script = [asking()]
    invoke(rig)
    for cookie in range(count):
        assert allocate(rig, cookie, asking())[0] == CMD


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_allocations_are_freed_in_any_order(rig: Rig, order: tuple[int, ...]) -> None:
    with_allocations(rig, 4)
    rig.put(RAM + 32, msg(SHM_ALLOC, ret=GENERIC))
    left = {frame(rig, BUFFER + cookie * PAGE_SIZE) for cookie in range(4)}
    for cookie in order:
        rig.host.script = [freeing(cookie)]
        assert rig.call(RETURN, 0, 0, 1)[0] == CMD
        left.remove(frame(rig, BUFFER + cookie * PAGE_SIZE))
        assert set(rig.host.pins) == left
        rig.put(RAM + 32, msg(SHM_FREE))
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert rig.info() == (0, 0, 0, 0)


def test_a_free_request_that_cannot_be_delivered_releases_all_the_same(rig: Rig) -> None:
    """The guest has taken its page away; the TEE has let go, and will not ask again."""
    with_allocations(rig, 1)
    rig.put(RAM + 32, msg(SHM_ALLOC, ret=GENERIC))

    def take_away(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.host.kinds[0, RAM] = "ro"
        return freeing(0)(rig, regs)

    rig.host.script = [take_away]
    assert rig.call(RETURN, 0, 0, 1)[0] == smc.OPTEE_SMC_RETURN_EBADADDR
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)


@pytest.mark.parametrize("bad", [1, 2])
def test_nothing_of_the_good_parameters_remains(rig: Rig, bad: int) -> None:
    """Good, bad: unpinned, and the names are free for the very next call."""
    rig.put_list(LIST, [BUFFER])
    rig.put_list(LIST + PAGE_SIZE, [BUFFER + PAGE_SIZE])
    good = [(0x209, LIST, 64, 5), (0x20A, LIST + PAGE_SIZE, 64, 6)][:bad]
    for _ in range(3):
        assert invoke(rig, *good, (0x20B, 0x7000_0000, 64, 7))[0] == 0
        assert rig.message(RAM, bad + 1)[5:7] == (BAD_PARAMETERS, 2)
        assert rig.info() == (0, 0, 0, 0)
        assert not rig.pinned()
    assert not rig.host.sent
    assert invoke(rig, *good)[0] == 0
    assert rig.message(RAM, bad)[5] == 0


def test_a_walk_that_fails_after_some_steps_is_undone() -> None:
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511, pin_entries=511)))
    pages = [RAM + 0x100_000 + index * PAGE_SIZE for index in range(1100)]
    rig.host.kinds[0, pages[1099]] = "ro"
    assert rig.register(5, pages)[0] == 0
    assert rig.message(RAM + 0x1000, 1)[5:7] == (BAD_PARAMETERS, 2)
    assert not rig.pinned()
    assert rig.info() == (0, 0, 0, 0)


def test_failures_cost_nothing_however_many_there_are() -> None:
    """Neither quota, nor calls, nor names, nor mediator pages."""
    rig = Rig(MediatorSettings(limits=Limits(calls=2, buffers=2, total_pages=8, rpc_buffers=2)))
    for _ in range(20):
        rig.put_list(LIST, [BUFFER, 0x7000_0000])
        invoke(rig, (0x209, LIST, 2 * PAGE_SIZE, 5))
        assert rig.message(RAM, 1)[5] == BAD_PARAMETERS
        invoke(rig, (9, 0x7000_0000, PAGE_SIZE, 5))
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_EBADADDR)]
        rig.register(6, [BUFFER])
        assert rig.call(ARG, 0, 0x7000_0000)[0] == smc.OPTEE_SMC_RETURN_EBADADDR
        rig.put(RAM, msg(1))
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
        rig.call(ARG, 0, RAM)
        assert rig.call(RETURN, 0, 0x7000_0000, 1, 0, 5)[0] == 0
    assert rig.info() == (0, 0, 0, 0)
    assert not rig.pinned()
    assert len(rig.host.shadows) <= 2
    for cookie in (5, 6):
        rig.register(cookie, [BUFFER] * 4)
        assert rig.message(RAM + 0x1000, 1)[5] == 0


@pytest.mark.parametrize("way", ["address", "cookie"])
def test_no_shadow_page_is_enomem_and_nothing_stays(way: str) -> None:
    rig = Rig(MediatorSettings(shadow_cache=0))
    rig.register(CARRIER, [BUFFER])
    rig.put(BUFFER, msg(1))
    rig.put(RAM, msg(1))
    for _ in range(4):
        rig.host.fail_alloc_at = rig.host.calls["alloc_shadow"] + 1
        out = rig.call(ARG, 0, RAM) if way == "address" else rig.call(REGD, 1, 0x2480, 0)
        assert out[0] == smc.OPTEE_SMC_RETURN_ENOMEM
        assert rig.info() == (0, 1, 1, 0)


def test_a_null_reference_names_nothing(rig: Rig) -> None:
    """Its reference word is the cookie of a registered buffer, which stays."""
    rig.register(0x55, [BUFFER])
    assert invoke(rig, (0xA, 0, 64, 0x55), (0x20A, 0, 0, 0x55))[0] == 0
    assert rig.info() == (0, 1, 1, 0)
    assert rig.pinned() == 1


def test_a_contiguous_buffer_has_no_name_of_the_guest(rig: Rig) -> None:
    rig.register(0x55, [BUFFER])
    assert invoke(rig, (0xA, BUFFER + PAGE_SIZE, 64, 0x55))[0] == 0
    assert rig.message(RAM, 1)[5] == 0
    assert rig.info() == (0, 1, 1, 0)


def test_unregister_of_a_temporary_buffer_has_no_effect_on_it(rig: Rig) -> None:
    """On another processor, while the TEE has it; the TEE even says that it was fine."""
    held: list[int] = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.put(RAM + 0x2000, msg(5, params=[(5, 0, 0, 7)]))
        assert rig.call(RPC_ARG, 0, RAM + 0x2000, 0)[0] == 0
        held.append(rig.pinned())
        return (0, 0, 0, 0)

    rig.put_list(LIST, [BUFFER])
    rig.host.script = [script]
    assert invoke(rig, (0x209, LIST, 64, 7))[0] == 0
    assert held == [1]
    assert not rig.pinned()


def test_unregister_unpins_when_the_tee_has_let_go(rig: Rig) -> None:
    rig.register(0x55, [BUFFER])
    held: list[int] = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        held.append(rig.pinned())
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.unregister(0x55)
    assert held == [1]
    assert not rig.pinned()


def test_every_guest_has_its_own_names(rig: Rig) -> None:
    """Two equal kernels choose equal pointers: both registrations are good."""
    for guest in (0, 1):
        rig.register(0x55, [BUFFER], guest=guest)
        assert rig.message(RAM + 0x1000, 1, guest)[5] == 0
        assert rig.info(guest) == (0, 1, 1, 0)
    rig.unregister(0x55, guest=1)
    assert rig.info(0) == (0, 1, 1, 0)


def test_an_unknown_cookie_is_the_tees_to_answer(rig: Rig) -> None:
    rig.host.script = [results(0x1234)]
    assert rig.unregister(0x99)[0] == 0
    assert len(rig.host.sent) == 1
    assert rig.message(RAM + 0x1000, 1)[5] == 0x1234


class TestCarriers:
    """Messages in registered memory: the pages stay as long as a call needs them."""

    def suspended(self, rig: Rig, position: int, thread: int) -> None:
        rig.put(BUFFER + position, msg(1))
        rig.host.script = [answer(INTR, 0, 0, thread)]
        assert rig.call(REGD, 1, 0x2480, position)[3] == thread

    def test_two_calls_hold_one_carrier_until_both_have_ended(self, rig: Rig) -> None:
        rig.register(CARRIER, [BUFFER])
        self.suspended(rig, 0, 1)
        self.suspended(rig, 0x800, 2)
        rig.unregister(CARRIER)
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
        assert rig.pinned() == 1, "the second call still writes there"
        assert rig.call(RETURN, 0, 0, 2)[0] == 0
        assert not rig.pinned()
        assert rig.info() == (0, 0, 0, 0)

    def test_a_carrier_without_a_name_counts_against_the_limit(self) -> None:
        """Register, call, unregister: each call in flight would be worth a buffer more (I6)."""
        rig = Rig(MediatorSettings(limits=Limits(buffers=2)))
        for cookie in (CARRIER, 7):
            rig.register(cookie, [BUFFER])
        self.suspended(rig, 0, 1)
        rig.unregister(CARRIER)
        assert rig.register(8, [BUFFER])[0] == 0
        assert rig.info() == (1, 2, 2, 0)
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
        rig.register(8, [BUFFER])
        assert rig.info() == (0, 2, 2, 0)

    def test_quota_is_used_until_the_pins_are_gone(self) -> None:
        """Another processor asks for more while the host unpins (I6)."""
        rig = Rig(MediatorSettings(limits=Limits(buffers=1)))
        rig.register(CARRIER, [BUFFER])
        unpin, seen = rig.host.unpin_pages, []

        def racing(guest: int, frames: bytes) -> None:
            seen.append(rig.info()[1:3])
            unpin(guest, frames)

        setattr(rig.host, "unpin_pages", racing)  # noqa: B010
        rig.unregister(CARRIER)
        assert seen == [(1, 1)]
        assert rig.info() == (0, 0, 0, 0)

    @pytest.mark.parametrize("moment", ["alloc_shadow", "read_pinned"])
    def test_an_unregister_while_the_message_is_fetched(self, moment: str) -> None:
        """Another processor unregisters the carrier between the look-up and the look."""
        rig = Rig(MediatorSettings(shadow_cache=0))
        rig.register(CARRIER, [BUFFER])
        rig.put(BUFFER, msg(1, params=[(3, 1, 2, 3)]))
        method = getattr(rig.host, moment)
        struck: list[int] = []

        def racing(*args: int) -> object:
            if not struck:
                struck.append(0)
                struck[0] = rig.unregister(CARRIER)[0]
            return method(*args)

        setattr(rig.host, moment, racing)
        assert rig.call(REGD, 1, 0x2480, 0)[0] == 0
        assert struck == [0]
        assert not rig.pinned()
        assert rig.info() == (0, 0, 0, 0)

    def test_memory_that_was_allocated_for_the_tee_carries_no_message(self, rig: Rig) -> None:
        with_allocations(rig, 2)
        assert rig.pinned() == 2
        rig.put(BUFFER + PAGE_SIZE, msg(1))
        entries = len(rig.host.sent)
        assert rig.call(REGD, 0, 1, 0)[0] == smc.OPTEE_SMC_RETURN_EBADADDR
        assert len(rig.host.sent) == entries


def test_the_list_of_an_allocation_lives_until_the_tee_comes_back(rig: Rig) -> None:
    rig.host.script = [asking()]
    invoke(rig)
    seen = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        address = struct.unpack_from("<Q", rig.shadow(), 72)[0]
        seen.append(struct.unpack_from("<Q", rig.host.memory(address & ~0xFFF))[0])
        return asking()(rig, regs)

    assert allocate(rig, 3, script)[0] == CMD
    assert seen == [frame(rig, BUFFER + 3 * PAGE_SIZE)]


class TestPleaseFree:
    """What the mediator cannot translate the guest is asked to free, whatever the reason."""

    def refused(self, rig: Rig, cookie: int = 9, address: int = LIST, size: int = 4096) -> None:
        rig.host.script = [
            request(msg(SHM_ALLOC, ret=GENERIC, params=[(1, 2, PAGE_SIZE, 8)]), thread=1)
        ]
        invoke(rig)
        rig.put_list(LIST, [BUFFER] * 4)
        rig.put(RAM + 32, msg(SHM_ALLOC, params=[(0x20A, address, size, cookie)]))
        entries = len(rig.host.sent)
        assert rig.call(RETURN, 0, 0, 1)[:4] == (CMD, 0, 0, 1)
        fields = rig.message(RAM + 32, 1)
        assert (fields[0], fields[7], fields[8:11]) == (SHM_FREE, 1, (1, 2, cookie))
        assert len(rig.host.sent) == entries, "the TEE is not told before the guest has answered"
        rig.put(RAM + 32, msg(SHM_FREE))
        told = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            told.append(struct.unpack_from("<8I", rig.shadow(), 32)[5:])
            return (0, 0, 0, 0)

        rig.host.script = [script]
        assert rig.call(RETURN, 0, 0, 1)[0] == 0
        assert told == [(GENERIC, 0, 0)]

    def test_a_page_that_is_not_ram(self, rig: Rig) -> None:
        self.refused(rig, address=0x7000_0000)
        assert rig.info() == (0, 0, 0, 0)

    def test_a_name_in_use(self, rig: Rig) -> None:
        rig.register(9, [BUFFER])
        self.refused(rig)
        assert rig.info() == (0, 1, 1, 0)

    def test_a_limit(self) -> None:
        rig = Rig(MediatorSettings(limits=Limits(buffer_pages=2)))
        self.refused(rig, size=3 * PAGE_SIZE)
        assert rig.info() == (0, 0, 0, 0)

    def test_a_pin_that_fails(self, rig: Rig) -> None:
        rig.host.fail_pin_at = 1
        self.refused(rig)
        assert rig.info() == (0, 0, 0, 0)


class TestDeath:
    """The guest is destroyed before each of its traps: in every state that an RPC can be in."""

    @pytest.mark.parametrize("preempted", [False, True])
    @pytest.mark.parametrize("journey", EVERY)
    def test_a_guest_dies_in_every_state(self, journey: Journey, preempted: bool) -> None:
        for count in range(100):
            rig = Rig()
            if not until_trap(rig, journey, count):
                assert count
                return
            rig.host.script = []
            rig.host.sent.clear()
            rig.host.preempt = [True, False] * 20 if preempted else []
            while rig.tee.destroy_guest(0) == Preempted():
                assert not rig.host.sent
                for function in (ARG, REGD, RETURN, smc.OPTEE_SMC_CALLS_UID):
                    out = rig.tee.handle(0, 0, (function, 0, RAM, 1, 0, 0, 0, 0))
                    assert not hasattr(out, "regs"), "a dying guest is not served"
            assert rig.host.sent == [(smc.OPTEE_SMC_VM_DESTROYED, 1, 0, 0, 0, 0, 0, 0)]
            assert not rig.pinned()
            assert rig.tee.guest_info(0) is None
            kept = {shadow.pa for shadow in rig.tee.mediator._core.free_pages}
            assert kept == set(rig.host.shadows), "every mediator page came back"
            assert rig.tee.create_guest(0) == Done()
            assert rig.info() == (0, 0, 0, 0)

    def test_nothing_that_was_pinned_is_forgotten_by_a_preempted_teardown(self) -> None:
        rig = Rig()
        for cookie in range(4):
            rig.register(cookie, [BUFFER + cookie * PAGE_SIZE])
        rig.host.always_preempt = True
        assert rig.tee.destroy_guest(0) == Preempted()
        assert rig.pinned() == 4, "the TEE still has them: nobody may reuse the pages"
        rig.host.always_preempt = False
        assert rig.tee.destroy_guest(0) == Done()
        assert not rig.pinned()

    def test_buffers_that_are_held_for_another_call_go_one_by_one_too(self) -> None:
        """Temporary buffers whose calls have ended, but which a suspended call names."""
        rig = Rig()
        count = 4
        rig.put(RAM + 0x3000, msg(1, params=[(6, 0, 64, 100 + index) for index in range(count)]))
        rig.host.script = [answer(INTR, 0, 0, 2)]
        assert rig.call(RPC_ARG, 0, RAM + 0x3000)[3] == 2
        for index in range(count):
            rig.put_list(LIST, [BUFFER + index * PAGE_SIZE])
            invoke(rig, (0x209, LIST, 64, 100 + index))
        assert rig.pinned() == count
        left = []
        rig.host.preempt = [True, *[False, True] * 20]
        while rig.tee.destroy_guest(0) == Preempted():
            left.append(rig.pinned())
        assert left[0] == count
        assert all(before - after <= 1 for before, after in itertools.pairwise(left))
        assert not rig.pinned()

    def test_a_tee_that_refuses_the_end_changes_nothing_here(self) -> None:
        rig = Rig()
        rig.register(5, [BUFFER])
        rig.host.script = [answer(7)]
        assert rig.tee.destroy_guest(0) == Done()
        assert rig.tee.guest_info(0) is None
        assert rig.host.quarantined == [(0, 7)]

    def test_client_ids_begin_behind_the_hypervisors_own(self) -> None:
        rig = Rig()
        rig.tee.create_guest(7)
        rig.put(RAM, msg(1))
        rig.call(ARG, 0, RAM)
        created, called = rig.host.sent
        assert created == (smc.OPTEE_SMC_VM_CREATED, 8, 0, 0, 0, 0, 0, 0)
        assert called[7] == 1
