# SPDX-License-Identifier: BSD-2-Clause
"""Snapshots are plain data, and a mediator restored from one behaves the same."""

from __future__ import annotations

import copy
import pickle

import pytest

from mediator.deployment.in_hypervisor import InHypervisor
from mediator.optee.settings import Limits, MediatorSettings
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Answer, Rig, answer, msg, request
from tests.mediator.test_failures import JOURNEYS

RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
RETURN = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or type(value) in (int, str, bytes, bool)


def swap(rig: Rig) -> None:
    """Continue with another mediator that knows only the snapshot."""
    data = rig.tee.snapshot()
    assert plain(data)
    data = pickle.loads(pickle.dumps(data))
    before = copy.deepcopy(data)
    rig.tee = InHypervisor(rig.host, rig.tee.mediator.settings, rig.events.append)
    rig.tee.restore(data)
    assert rig.tee.snapshot() == before


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_journey_with_a_new_mediator_at_every_step(journey: object) -> None:
    straight, swapped = Rig(), Rig()
    assert callable(journey)
    journey(straight)
    call = swapped.call

    def swapping(*regs: int, guest: int = 0) -> tuple[int, ...]:
        swap(swapped)
        return call(*regs, guest=guest)

    swapped.call = swapping  # type: ignore[method-assign]
    journey(swapped)
    swap(swapped)
    assert [sent[0] for sent in swapped.host.sent] == [sent[0] for sent in straight.host.sent]
    assert swapped.host.pins == straight.host.pins
    assert swapped.info() == straight.info()
    assert swapped.get(RAM, 0x4000) == straight.get(RAM, 0x4000)


def test_a_carrier_without_a_name_and_a_walk_on_its_way_survive() -> None:
    rig = Rig(MediatorSettings(limits=Limits(walk_entries=511)))
    cookie = 0x2480
    rig.register(cookie, [RAM + 0x50_000])
    rig.put(RAM + 0x50_000, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 1)]
    rig.call(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, cookie, 0)
    rig.unregister(cookie)
    rig.host.preempt = [True]
    assert rig.register(7, [RAM + 0x60_000] * 600)[3] == 0x1_0000
    swap(rig)
    assert rig.info() == (2, 2, 601, 0)
    assert rig.call(RETURN, 0, 0, 1)[0] == 0
    assert rig.call(RETURN, 0, 0, 0x1_0000)[0] == 0
    assert rig.info() == (0, 1, 600, 0)
    assert rig.pinned() == 600


def test_no_snapshot_while_an_entry_is_in_flight() -> None:
    rig = Rig()
    caught: list[str] = []

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        with pytest.raises(RuntimeError) as error:
            rig.tee.snapshot()
        caught.append(str(error.value))
        return (0, 0, 0, 0)

    rig.host.script = [script]
    rig.call(smc.OPTEE_SMC_CALLS_UID)
    assert caught == ["guest 0 has 1 entries in flight"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"format": "other"}, "format is 'other'"), ({"version": 1}, "version 1")],
)
def test_what_is_no_snapshot_of_this_version_is_refused(
    change: dict[str, object], reason: str
) -> None:
    rig = Rig()
    with pytest.raises(ValueError, match=reason):
        rig.tee.restore({**rig.tee.snapshot(), **change})
    rig.put(RAM, msg(1))
    rig.host.script = [request(msg(3, params=[]))]
    assert rig.call(RPC_ARG, 0, RAM, 0)[0] == smc.OPTEE_SMC_RETURN_RPC_CMD
