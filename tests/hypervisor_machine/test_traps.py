# SPDX-License-Identifier: BSD-2-Clause
"""Trap dispatch: the recorded behaviour of the reference, and the rules for every function id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.hypervisor.services import NOT_SUPPORTED, PSCI_FUNCTIONS, ServiceSettings
from mediator.hypervisor.tee import Registers
from mediator.hypervisor.traps import (
    PSCI,
    UNDEFINED,
    Answer,
    Dispatcher,
    SipHook,
    advance_pc,
)
from mediator.suspend import run

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parent / "dispatch_vectors.jsonl").read_text().splitlines()
]
REGS: Registers = (0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77)
SERVED = 0xB2000000


class Tee:
    """Serves one function, and notes what reached it."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, Registers]] = []

    async def handle_regs(self, guest: int, vcpu: int, regs: Registers) -> Registers | None:
        self.calls.append((guest, vcpu, regs))
        return (0xAA, *regs[1:]) if regs[0] & 0xFFFFFFFF == SERVED else None

    async def guest_created(self, guest: int) -> bool:
        return True

    async def guest_destroyed(self, guest: int) -> bool:
        return True


def dispatch(
    function: int,
    *,
    settings: ServiceSettings | None = None,
    tee: Tee | None = None,
    sip: SipHook | None = None,
    x1: int = 0x11,
    hvc: bool = False,
    immediate: int = 0,
    aarch32: bool = False,
) -> Answer:
    dispatcher = Dispatcher(settings or ServiceSettings(), tee or Tee(), sip)
    regs: Registers = (function, x1, *REGS[2:])
    return run(dispatcher.dispatch(7, 3, regs, hvc, immediate, aarch32))


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_reference_recording(vector: dict[str, object]) -> None:
    calls = vector["calls"]
    assert isinstance(calls, list)
    for call in calls:
        regs = tuple(int(word, 16) for word in call["regs"])
        # A guest without a TEE: the mediator knows nothing of it and takes no call.
        tee = Tee()
        answer = run(
            Dispatcher(ServiceSettings.reference(), tee).dispatch(
                1,
                0,
                regs,  # type: ignore[arg-type]
                call["via"].startswith("hvc"),
                call.get("imm", 0),
                call["via"].endswith("32"),
            )
        )
        if call.get("undef"):
            assert answer is UNDEFINED
        elif call.get("handled_by") == "psci":
            assert answer is PSCI
        else:
            assert answer == tuple(int(word, 16) for word in call["out"])


@given(immediate=st.integers(1, 0xFFFF), function=st.sampled_from([SERVED, 0x84000000, 0x80000000]))
def test_a_nonzero_immediate_is_undefined_unless_nobody_can_see_it(
    immediate: int, function: int
) -> None:
    for hvc, aarch32, seen in ((0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 0)):
        tee = Tee()
        answer = dispatch(
            function, tee=tee, hvc=bool(hvc), aarch32=bool(aarch32), immediate=immediate
        )
        assert (answer is UNDEFINED) == bool(seen)
        assert not (seen and tee.calls)


def test_the_upper_half_of_x0_does_not_matter() -> None:
    tee = Tee()
    assert dispatch(0xABCD0000_00000000 | SERVED, tee=tee) == (0xAA, *REGS[1:])
    assert tee.calls == [(7, 3, (0xABCD0000_00000000 | SERVED, *REGS[1:]))]


def test_a_32_bit_guest_passes_low_words_only() -> None:
    tee = Tee()
    assert dispatch(0xF_00000000 | SERVED, x1=0x1_80000000, tee=tee, aarch32=True) == (
        0xAA,
        0x80000000,
        *REGS[2:],
    )
    assert tee.calls[0][2][:2] == (SERVED, 0x80000000)


def test_trusted_applications_and_trusted_os_reach_the_mediator_first_and_last_owner() -> None:
    for owner in (47, 48, 49, 50, 63):
        tee = Tee()
        answer = dispatch(0x80000001 | owner << 24, tee=tee)
        assert len(tee.calls) == (owner >= 48)
        assert answer == (NOT_SUPPORTED, *REGS[1:])


def test_a_machine_without_a_tee_refuses_its_ranges() -> None:
    dispatcher = Dispatcher(ServiceSettings(), None)
    for function in (SERVED, 0x84000060):
        answer = run(dispatcher.dispatch(1, 0, (function, *REGS[1:])))
        assert answer == (NOT_SUPPORTED, *REGS[1:])


@pytest.mark.parametrize("function", [0x80008000, 0x80007FFF, 0x80003FFF])
def test_workaround_calls_define_no_register(function: int) -> None:
    assert dispatch(function) == (function, *REGS[1:])


def test_the_range_before_the_convention_holds_psci_0_1_only() -> None:
    assert dispatch(1) is PSCI
    assert dispatch(2) is PSCI
    for function in (0, 3, 0x100FFFF, 0x1000000):
        assert dispatch(function) == (NOT_SUPPORTED, *REGS[1:])
    # The last id of the range has owner 1, the next one is an ordinary id of that owner.
    assert dispatch(0x1010000) == (NOT_SUPPORTED, *REGS[1:])


def test_psci_numbers_that_nobody_serves_are_unknown() -> None:
    served = {function for function in range(0x84000000, 0x84000020) if dispatch(function) is PSCI}
    assert served == {function for function in PSCI_FUNCTIONS if function < 0xC0000000}
    assert dispatch(0x04000000) == (NOT_SUPPORTED, *REGS[1:])
    assert dispatch(0xC4000003, aarch32=True) == (NOT_SUPPORTED, *REGS[1:])


def test_sip_calls_go_to_the_platform() -> None:
    def sip(guest: int, vcpu: int, regs: Registers) -> Registers | None:
        return (guest, vcpu, *regs[2:]) if regs[0] & 1 else None

    assert dispatch(0x82000001, sip=sip) == (7, 3, *REGS[2:])
    assert dispatch(0x82000002, sip=sip) == (NOT_SUPPORTED, *REGS[1:])
    assert dispatch(0x82000001) == (NOT_SUPPORTED, *REGS[1:])


def test_who_steps_over_the_instruction() -> None:
    refused: Registers = (NOT_SUPPORTED, *REGS[1:])
    assert advance_pc(False, refused)
    assert advance_pc(False, PSCI)
    assert not advance_pc(True, refused)
    assert not advance_pc(False, UNDEFINED)
    assert not advance_pc(True, UNDEFINED)
