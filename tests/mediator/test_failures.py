# SPDX-License-Identifier: BSD-2-Clause
"""Every way out of a call leaves pins, pages and quotas as they were (I3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mediator.deployment.face import NOT_MINE, UNDEFINED, ConcurrentEntry, Done, Preempted, Refused
from mediator.deployment.in_hypervisor import InHypervisor
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, HostFault, Rig, RigHost, answer, msg, request

RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
COOKIE = 0xFFFF_0000_0000_2480


def register(rig: Rig) -> None:
    rig.register(0x55, [RAM + 0x50_000, RAM + 0x60_000])


def invoke_with_buffers(rig: Rig) -> None:
    rig.put_list(RAM + 0xB_000, [RAM + 0x70_000])
    params = [(0x20B, RAM + 0xB_000, 0x800, 1), (9, RAM + 0x71_000, 0x2000, 2), (3, 1, 2, 3)]
    rig.put(RAM, msg(1, params=params))
    rig.call(RPC_ARG, 0, RAM, 0)


def registered_invoke(rig: Rig) -> None:
    rig.register(COOKIE, [RAM + 0x50_000])
    rig.put(RAM + 0x50_000, msg(1, params=[(3, 1, 2, 3)]))
    rig.call(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, COOKIE >> 32, COOKIE & 0xFFFF_FFFF, 0)
    rig.unregister(COOKIE)


def rpc_allocation(rig: Rig) -> None:
    rig.put(RAM, msg(1))
    rig.host.script = [request(msg(6, ret=0xFFFF0000, params=[(1, 0, 0x1000, 8)]))]
    rig.call(RPC_ARG, 0, RAM, 0)
    rig.put_list(RAM + 0xB_000, [RAM + 0x70_000])
    rig.put(RAM + 32, msg(6, params=[(0x20A, RAM + 0xB_000, 0x1000, 0x77)]))
    rig.host.script = [request(msg(7, params=[(1, 0, 0x77, 0)]))]
    rig.call(RETURN, 0, 0, 1)
    rig.call(RETURN, 0, 0, 1)


def classic_rpc(rig: Rig) -> None:
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0)

    def ask(rig: Rig, regs: tuple[int, ...]) -> Answer:
        if regs[1] | regs[2]:
            page = rig.host.memory(regs[1] << 32 | regs[2])
            page[:64] = msg(3, params=[(2, 0, 0, 0)])
            return (smc.OPTEE_SMC_RETURN_RPC_CMD, 0x11, 0x22, 1)
        return (0, 0, 0, 0)

    rig.host.script = [ask, answer(smc.OPTEE_SMC_RETURN_RPC_FREE, 0x11, 0x22, 1)]
    rig.call(RETURN, 0, RAM + 0x8000, 1, 0x11, 0x22)
    rig.call(RETURN, 0x11, 0x22, 1)
    rig.call(RETURN, 0, 0, 1)


JOURNEYS: list[Callable[[Rig], None]] = [
    register,
    invoke_with_buffers,
    registered_invoke,
    rpc_allocation,
    classic_rpc,
]
FALLIBLE = [
    "read_guest",
    "write_guest",
    "read_page_list",
    "pin_pages",
    "read_pinned",
    "write_pinned",
    "alloc_shadow",
    "smc",
]


def end(rig: Rig) -> None:
    """Destroy both guests; then nothing is pinned and every shadow page is free again."""
    rig.host.raise_in = None
    rig.host.script = []
    for guest in (0, 1):
        assert rig.tee.destroy_guest(guest) == Done()
    assert not rig.pinned()
    core = rig.tee.mediator._core
    kept = {shadow.pa for shadow in core.free_pages}
    assert kept == set(rig.host.shadows)
    assert not core.guests


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_journey_ends_balanced(journey: Callable[[Rig], None]) -> None:
    rig = Rig()
    journey(rig)
    end(rig)


@pytest.mark.parametrize("journey", JOURNEYS)
def test_each_failing_allocation_and_pin_is_undone(journey: Callable[[Rig], None]) -> None:
    failures = 0
    for attribute in ("fail_alloc_at", "fail_pin_at"):
        for at in range(1, 8):
            rig = Rig()
            setattr(rig.host, attribute, at)
            journey(rig)
            method = "alloc_shadow" if attribute == "fail_alloc_at" else "pin_pages"
            failures += rig.host.calls[method] >= at
            calls, buffers, _, rpc_buffers = rig.info()
            assert not calls or rpc_buffers or rig.host.calls["smc"]
            assert rig.pinned() >= buffers
            end(rig)
    assert failures, "the journey took nothing: the test could not fail"


@pytest.mark.parametrize("method", FALLIBLE)
@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_host_method_that_raises_leaves_all_balanced(
    journey: Callable[[Rig], None], method: str
) -> None:
    probe = Rig()
    journey(probe)
    for at in range(1, probe.host.calls[method] + 1):
        rig = Rig()
        rig.host.raise_in = (method, at)
        with pytest.raises(HostFault, match=method):
            journey(rig)
        rig.host.raise_in = None
        # What is left belongs to calls that are suspended and to buffers that were completed.
        calls, _, pages, rpc_buffers = rig.info()
        assert rig.pinned() == pages + rpc_buffers
        assert calls == len(rig.tee.mediator._core.guests[0].suspended)
        end(rig)


def test_a_page_that_becomes_read_only_before_the_end_is_ebadaddr() -> None:
    rig = Rig()
    rig.put(RAM, msg(1))

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        rig.host.kinds[0, RAM] = "ro"
        return (0, 0, 0, 0)

    rig.host.script = [script]
    assert rig.call(RPC_ARG, 0, RAM, 0)[0] == smc.OPTEE_SMC_RETURN_EBADADDR


class TestLifeCycle:
    def test_a_refused_guest_has_no_context(self) -> None:
        host = RigHost()
        tee = InHypervisor(host)
        host.script = [lambda rig, regs: (7, 0, 0, 0)]
        host.rig = Rig()
        assert tee.create_guest(3) == Refused()
        assert host.sent == [(smc.OPTEE_SMC_VM_CREATED, 4, 0, 0, 0, 0, 0, 0)]
        assert tee.handle(3, 0, (smc.OPTEE_SMC_CALLS_UID, *[0] * 7)) == NOT_MINE
        assert tee.guest_info(3) is None

    def test_an_id_in_use_is_refused(self) -> None:
        with pytest.raises(ValueError, match="guest 0 exists"):
            Rig().tee.create_guest(0)

    def test_a_guest_is_not_served_while_the_tee_is_told_of_it(self) -> None:
        rig = Rig()
        seen = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            seen.append(rig.tee.handle(5, 0, (smc.OPTEE_SMC_CALLS_UID, *[0] * 7)))
            return (0, 0, 0, 0)

        rig.host.script = [script]
        rig.tee.create_guest(5)
        assert seen == [NOT_MINE]

    def test_teardown_while_an_entry_is_in_flight_waits_for_it(self) -> None:
        rig = Rig()
        seen: list[object] = []

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            seen.append(rig.tee.destroy_guest(0))
            seen.append(rig.tee.handle(0, 0, (smc.OPTEE_SMC_CALLS_UID, *[0] * 7)))
            return (0, 0, 0, 0)

        rig.host.script = [script]
        register(rig)
        assert seen == [Preempted(), NOT_MINE]
        assert rig.pinned() == 2
        assert rig.tee.destroy_guest(0) == Done()
        assert not rig.pinned()

    @pytest.mark.parametrize("stop", range(8))
    def test_teardown_can_stop_at_every_question(self, stop: int) -> None:
        rig = Rig()
        for cookie in range(3):
            rig.register(cookie, [RAM + 0x50_000])
        rig.put(RAM, msg(1))
        rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 1)]
        rig.call(RPC_ARG, 0, RAM, 0)
        rig.host.sent.clear()
        rig.host.preempt = [False] * stop + [True]
        entries = 0
        while rig.tee.destroy_guest(0) == Preempted():
            entries += 1
            assert not rig.host.sent, "the TEE is told last"
        assert entries == (stop < 5)
        assert rig.host.sent == [(smc.OPTEE_SMC_VM_DESTROYED, 1, 0, 0, 0, 0, 0, 0)]
        end_pins = rig.pinned()
        assert not end_pins

    @pytest.mark.parametrize("status", [1, 7, 0xFFFF_FFFF, 0xFFFF_0004])
    def test_a_tee_that_does_not_let_go_is_reported_to_the_host(self, status: int) -> None:
        rig = Rig()
        register(rig)
        rig.host.script = [answer(status)]
        assert rig.tee.destroy_guest(0) == Done()
        assert rig.host.quarantined == [(0, status)]
        assert not rig.pinned()

    def test_destroying_what_is_not_there_is_done(self) -> None:
        assert Rig().tee.destroy_guest(9) == Done()


class TestHandle:
    def test_registers_that_no_guest_can_have_are_the_hosts_mistake(self) -> None:
        tee = Rig().tee
        with pytest.raises(ValueError, match="8 registers"):
            tee.handle(0, 0, (0,) * 7)
        with pytest.raises(ValueError, match=r"regs\[3\]"):
            tee.handle(0, 0, (0, 0, 0, -1, 0, 0, 0, 0))
        with pytest.raises(ValueError, match=r"regs\[0\]"):
            tee.handle(0, 0, (1 << 64, 0, 0, 0, 0, 0, 0, 0))

    def test_an_immediate_is_undefined(self) -> None:
        assert Rig().tee.handle(0, 0, (0xBF00FF01, *[0] * 7), immediate=1) == UNDEFINED

    def test_a_second_thread_is_a_named_error(self) -> None:
        import threading

        rig = Rig()
        caught: list[BaseException] = []

        def other() -> None:
            try:
                rig.tee.handle(1, 0, (smc.OPTEE_SMC_CALLS_UID, *[0] * 7))
            except ConcurrentEntry as error:
                caught.append(error)

        def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return (0, 0, 0, 0)

        rig.host.script = [script]
        rig.call(smc.OPTEE_SMC_CALLS_UID)
        assert len(caught) == 1
