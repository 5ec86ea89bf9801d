# SPDX-License-Identifier: BSD-2-Clause
"""What the hypervisor says about itself: versions, features, general queries, and bad settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.hypervisor.services import (
    NOT_SUPPORTED,
    OWN_HYPERVISOR,
    OWN_STANDARD,
    OWN_VENDOR,
    REFERENCE_HYPERVISOR,
    REFERENCE_STANDARD,
    ServiceIdentity,
    ServiceSettings,
)
from mediator.hypervisor.tee import Registers
from mediator.hypervisor.traps import PSCI, Answer, Dispatcher
from mediator.suspend import run
from smccc.constants import arm_smccc as arm
from smccc.function_id import CALL_COUNT, CALL_UID, REVISION, general_query

REST: Registers = (0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77)
VERSION, FEATURES, SOC_ID = 0x80000000, 0x80000001, 0x80000002
WORKAROUNDS = (0x80008000, 0x80007FFF, 0x80003FFF)
WORKAROUND_4 = 0x80000004
VERSIONS = [0x10000 | minor for minor in range(7)]
XEN_UID = (0xDC1218A7, 0x694398C6, 0xD179CF9A, 0x67E6DE8D)
KVM_UID = (0xB66FB428, 0xE911C52E, 0x564BCAA9, 0x743A004D)
FULL = ServiceSettings(
    smccc_version=0x10006,
    arch_features={
        VERSION: 0,
        FEATURES: 0,
        arm.ARM_SMCCC_ARCH_WORKAROUND_1: 0,
        arm.ARM_SMCCC_ARCH_WORKAROUND_2: arm.SMCCC_RET_NOT_REQUIRED,
        arm.ARM_SMCCC_ARCH_WORKAROUND_3: arm.SMCCC_ARCH_WORKAROUND_RET_UNAFFECTED,
        WORKAROUND_4: 0,
    },
    soc_id=(0x0123_0001, 2),
)


def ask(settings: ServiceSettings, function: int, x1: int = 0x11) -> Answer:
    return run(Dispatcher(settings, None).dispatch(7, 3, (function, x1, *REST[2:])))


def unknown(function_result: Answer) -> bool:
    return function_result == (NOT_SUPPORTED, *REST[1:])


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_the_version_is_what_the_settings_say(version: int) -> None:
    assert ask(ServiceSettings(smccc_version=version), VERSION) == (version, *REST[1:])


def test_version_1_0_is_known_by_having_no_version() -> None:
    """DEN 0028, 7.2: who gets NOT_SUPPORTED from VERSION deals with 1.0."""
    old = ServiceSettings(smccc_version=0x10000)
    assert unknown(ask(old, VERSION))
    assert unknown(ask(old, FEATURES))
    assert unknown(ask(old, SOC_ID))


@pytest.mark.parametrize(
    "settings", [ServiceSettings(), FULL, ServiceSettings.reference()], ids=["own", "full", "ref"]
)
def test_features_promises_exactly_what_is_there(settings: ServiceSettings) -> None:
    """For each id of the architecture range: a promise is kept."""
    for number in (*range(0x20), 0x3FFF, 0x7FFF, 0x8000, 0xFF00, 0xFF01, 0xFF03):
        function = 0x80000000 | number
        answer = ask(settings, FEATURES, function)
        assert isinstance(answer, tuple)
        assert answer[1:] == (function, *REST[2:])
        promised = answer[0] < 1 << 63
        # With the id of VERSION as argument FEATURES itself does not answer -1.
        served = ask(settings, function, VERSION) != (NOT_SUPPORTED, VERSION, *REST[2:])
        assert not promised or served, hex(function)
        if function not in WORKAROUNDS and settings.arch_features:
            assert promised == served, hex(function)


def test_feature_results() -> None:
    for function, result in (
        (VERSION, 0),
        (SOC_ID, 0),
        (WORKAROUNDS[0], 0),
        (WORKAROUNDS[1], 2**64 - 2),
        (WORKAROUNDS[2], 1),
        (WORKAROUND_4, 0),
        (arm.SMCCC_ARCH_FEATURE_AVAILABILITY, NOT_SUPPORTED),
        (0xC0000002, NOT_SUPPORTED),
    ):
        assert ask(FULL, FEATURES, function) == (result, function, *REST[2:])
        # Only the low word of the argument counts.
        rubbish = 0x5_0000_0000 | function
        assert ask(FULL, FEATURES, rubbish) == (result, rubbish, *REST[2:])


@given(function=st.integers(0, 2**64 - 1))
def test_features_of_any_argument_is_a_result(function: int) -> None:
    for settings in (ServiceSettings(), FULL):
        answer = ask(settings, FEATURES, function)
        assert isinstance(answer, tuple)
        assert answer[1:] == (function, *REST[2:])
        listed = {**settings.arch_features, SOC_ID: 0 if settings.soc_id else -1}
        assert answer[0] == listed.get(function & 0xFFFFFFFF, -1) & NOT_SUPPORTED


def test_the_soc_id_has_two_words_and_the_name_is_not_offered() -> None:
    assert ask(FULL, SOC_ID, 0) == (0x0123_0001, 0, *REST[2:])
    assert ask(FULL, SOC_ID, 1) == (2, 1, *REST[2:])
    assert ask(FULL, SOC_ID, 9 << 32 | 1) == (2, 9 << 32 | 1, *REST[2:])
    for kind in (arm.SMCCC_GET_SOC_NAME, 3, 0xFFFFFFFF):
        assert ask(FULL, SOC_ID, kind) == (2**64 - 3, kind, *REST[2:])
    for kind in range(3):
        assert ask(FULL, 0xC0000002, kind) == (NOT_SUPPORTED, kind, *REST[2:])
    assert unknown(ask(ServiceSettings(), SOC_ID))


def test_the_fourth_workaround_is_served_to_those_who_were_told() -> None:
    assert ask(FULL, WORKAROUND_4) == (WORKAROUND_4, *REST[1:])
    assert unknown(ask(ServiceSettings(), WORKAROUND_4))


@pytest.mark.parametrize(
    ("owner", "identity"), [(4, OWN_STANDARD), (5, OWN_HYPERVISOR), (6, OWN_VENDOR)]
)
def test_general_queries_of_the_ranges_that_this_host_serves(
    owner: int, identity: ServiceIdentity
) -> None:
    own = ServiceSettings()
    base = general_query(owner, 0)
    assert ask(own, base | CALL_COUNT) == (identity.call_count, *REST[1:])
    assert ask(own, base | CALL_UID) == (*identity.uid, *REST[4:])
    assert ask(own, base | REVISION) == (*identity.revision, *REST[2:])
    assert unknown(ask(own, base | 0xFF02))
    assert unknown(ask(own, base & 0x7FFFFFFF | CALL_UID)), "a query is a fast call"
    assert unknown(ask(own, base | 1 << 30 | CALL_UID)), "and one of the 32-bit convention"


@pytest.mark.parametrize("owner", [0, 1, 2, 3, *range(7, 48)])
def test_nobody_answers_for_other_ranges(owner: int) -> None:
    for number in (CALL_COUNT, CALL_UID, REVISION):
        assert unknown(ask(ServiceSettings(), general_query(owner, number)))


def test_the_standard_range_counts_what_it_serves() -> None:
    own = ServiceSettings()
    bases = (0x84000000, 0xC4000000)
    served = [n | base for base in bases for n in range(0x20) if ask(own, n | base) is PSCI]
    assert served == sorted(own.psci_functions)
    assert own.standard.call_count == 3 + len(served)
    # The two other ranges have the general queries only.
    assert own.hypervisor.call_count == OWN_VENDOR.call_count == 3


def test_this_hypervisor_has_names_of_its_own() -> None:
    own = ServiceSettings()
    uids = [own.hypervisor.uid, own.standard.uid, OWN_VENDOR.uid]
    assert len({*uids, XEN_UID, REFERENCE_STANDARD.uid, KVM_UID}) == 6
    # Variant and version as RFC 4122 wants of a random UUID; its first byte is the low one of w0.
    for words in uids:
        data = b"".join(word.to_bytes(4, "little") for word in words)
        assert data[6] >> 4 == 4, data.hex()
        assert data[8] >> 6 == 2, data.hex()


def test_the_reference_preset_is_the_recorded_host() -> None:
    reference = ServiceSettings.reference()
    assert ask(reference, VERSION) == (0x10002, *REST[1:])
    assert ask(reference, 0x8500FF01) == (*XEN_UID, *REST[4:])
    assert ask(reference, 0x8500FF00) == (REFERENCE_HYPERVISOR.call_count, *REST[1:])
    assert ask(reference, 0x8400FF00) == (29, *REST[1:])
    for number in (CALL_COUNT, CALL_UID, REVISION):
        assert unknown(ask(reference, general_query(6, number)))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"smccc_version": 0xFFFF}, "not 1.0 to 1.6"),
        ({"smccc_version": 0x10007}, "not 1.0 to 1.6"),
        ({"smccc_version": 0x20000}, "not 1.0 to 1.6"),
        ({"smccc_version": 0x10001, "soc_id": (1, 2)}, "since version 1.2"),
        ({"soc_id": (1 << 31, 2)}, "bit 31"),
        ({"soc_id": (1, -1)}, "bit 31"),
        ({"arch_features": {SOC_ID: 0}}, "nobody serves 0x80000002"),
        ({"arch_features": {arm.SMCCC_ARCH_FEATURE_AVAILABILITY: 1}}, "nobody serves"),
    ],
)
def test_settings_that_would_lie_to_a_guest_are_refused(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        ServiceSettings(**fields)


@pytest.mark.parametrize(
    ("count", "uid", "revision", "reason"),
    [
        (1 << 32, (1, 2, 3, 4), (0, 1), "call count"),
        (3, (1, 2, 3, 1 << 32), (0, 1), "UID"),
        (3, (1, 2, 3, 4), (0, -1), "revision"),
        (3, (0xFFFFFFFF, 2, 3, 4), (0, 1), "no such function"),
    ],
)
def test_identities_that_no_guest_could_read_are_refused(
    count: int, uid: tuple[int, int, int, int], revision: tuple[int, int], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        ServiceIdentity(count, uid, revision)
