# SPDX-License-Identifier: BSD-2-Clause
"""Fast calls, ids and register width (OP-TEE 4.10 as measured)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc.constants import optee_smc as smc
from tests.secure_world.support import (
    CLOCK,
    NOTHING,
    RESERVED,
    RESERVED_SIZE,
    Normal,
    RamBus,
    message,
)

MINUS_ONE_64 = 0xFFFF_FFFF_FFFF_FFFF
UNKNOWN = 0xFFFF_FFFF
KEPT = (0x1111, 0x2222, 0x3333)
PLAIN = SecureWorldSettings(virtualization=False, reserved_shm=(RESERVED, RESERVED_SIZE))


def world(**changes: Any) -> SecureWorld:
    return SecureWorld(RamBus(1), attrs.evolve(PLAIN, **changes))


def call(target: SecureWorld, a0: int, a7: int = 0) -> tuple[int, int, int, int]:
    return target.smc(a0, *KEPT, 4, 5, 6, a7)


@pytest.mark.parametrize(
    ("a0", "expected"),
    [
        (smc.OPTEE_SMC_CALLS_UID, (0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B)),
        (smc.OPTEE_SMC_CALL_GET_OS_UUID, (0x486178E0, 0xE7F811E3, 0xBC5E0002, 0xA5D5C51B)),
        (smc.OPTEE_SMC_CALLS_REVISION, (2, 0, *KEPT[1:])),
        (smc.OPTEE_SMC_CALL_GET_OS_REVISION, (4, 0xA, 0, KEPT[2])),
        (smc.OPTEE_SMC_CALLS_COUNT, (12, *KEPT)),
        (smc.OPTEE_SMC_GET_THREAD_COUNT, (0, 2, *KEPT[1:])),
        (smc.OPTEE_SMC_GET_SHM_CONFIG, (0, RESERVED, RESERVED_SIZE, 1)),
        (smc.OPTEE_SMC_BOOT_SECONDARY, (7, *KEPT)),
        (smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF, (0, *KEPT)),
        (smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, (0, 0, 0, KEPT[2])),
        (smc.OPTEE_SMC_ENABLE_SHM_CACHE, (0, *KEPT)),
        (smc.OPTEE_SMC_DISABLE_SHM_CACHE, (7, *KEPT)),
        (smc.OPTEE_SMC_L2CC_MUTEX, (UNKNOWN, *KEPT)),
        (smc.OPTEE_SMC_GET_PROTMEM_CONFIG, (UNKNOWN, *KEPT)),
        (smc.OPTEE_SMC_VM_CREATED, (UNKNOWN, *KEPT)),
        (smc.OPTEE_SMC_VM_DESTROYED, (UNKNOWN, *KEPT)),
        (0xB2001234, (UNKNOWN, *KEPT)),
        (0xB2000003, (UNKNOWN, *KEPT)),
        (0xB0000000, (MINUS_ONE_64, *KEPT)),
        (0xB1000000, (MINUS_ONE_64, *KEPT)),
        (0xF2000001, (UNKNOWN, *KEPT)),
    ],
)
def test_answers_without_virtualization(a0: int, expected: tuple[int, ...]) -> None:
    assert call(world(), a0) == expected


@pytest.mark.parametrize("a0", [smc.OPTEE_SMC_CALLS_UID, smc.OPTEE_SMC_GET_THREAD_COUNT])
def test_upper_half_of_a0_is_ignored(a0: int) -> None:
    assert call(world(), 0xDEAD_BEEF << 32 | a0) == call(world(), a0)


def test_dispatcher_refuses_reserved_bits_but_not_the_hint() -> None:
    uid = smc.OPTEE_SMC_CALLS_UID
    assert call(world(), uid | 1 << 16) == call(world(), uid)
    for bit in range(17, 24):
        assert call(world(), uid | 1 << bit) == (MINUS_ONE_64, *KEPT)


def test_a7_means_nothing_without_virtualization() -> None:
    for a7 in (0, 1, 0xFFFF, 1 << 40):
        assert call(world(), smc.OPTEE_SMC_CALLS_COUNT, a7) == (12, *KEPT)


@pytest.mark.parametrize(
    ("changes", "capabilities"),
    [
        ({}, 0xF5),
        ({"reserved_shm": None}, 0xF4),
        ({"virtualization": True}, 0xFD),
        ({"async_notifications": False}, 0xD5),
        ({"rpc_arg": False}, 0xB5),
        ({"capabilities": 0x2F7}, 0x2F7),
    ],
)
def test_capabilities(changes: dict[str, object], capabilities: int) -> None:
    target = world(**changes)
    a2 = KEPT[1] if changes.get("async_notifications") is False else 0x42
    answer = target.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 0, *KEPT[1:])
    assert answer == (0, capabilities, a2, 4)


@pytest.mark.parametrize(
    ("a1", "accepted"), [(0, True), (1, True), (2, False), (3, False), (1 << 32, True)]
)
def test_normal_world_capability_bits(a1: int, accepted: bool) -> None:
    answer = world().smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, a1, *KEPT[1:])
    assert answer == ((0, 0xF5, 0x42, 4) if accepted else (7, a1, *KEPT[1:]))


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
def test_notification_values_follow_the_threads(threads: int) -> None:
    target = world(threads=threads)
    assert target.smc(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)[2] == 0x40 + threads
    assert target.smc(smc.OPTEE_SMC_GET_THREAD_COUNT)[1] == threads


def test_what_is_not_built_is_unknown() -> None:
    target = world(async_notifications=False, reserved_shm=None)
    for a0 in (
        smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
        smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE,
        smc.OPTEE_SMC_GET_SHM_CONFIG,
    ):
        assert call(target, a0) == (UNKNOWN, *KEPT)


@pytest.mark.parametrize(
    "change", [{"threads": 0}, {"threads": 1 << 20}, {"guests": 0}, {"max_object_pages": 0}]
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        attrs.evolve(PLAIN, **change)


def test_cache_calls_are_busy_while_a_thread_is_suspended() -> None:
    n = Normal()
    session = n.session(CLOCK)
    data = message(1, [(1, 5, 0, 0), NOTHING, NOTHING, NOTHING], func=1, session=session)
    _, registers = n.start(data)
    assert registers[0] == smc.OPTEE_SMC_RETURN_RPC_CMD
    for a0 in (smc.OPTEE_SMC_DISABLE_SHM_CACHE, smc.OPTEE_SMC_ENABLE_SHM_CACHE):
        assert n.world.smc(a0, *KEPT) == (2, *KEPT)
