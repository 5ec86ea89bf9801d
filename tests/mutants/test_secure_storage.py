# SPDX-License-Identifier: BSD-2-Clause
"""Every storage mutant of the zoo is killed by a test of the object store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specs.mutants import expect_killed, load
from tests.secure_world_apps import test_object_store as suite

KILLERS: dict[str, Callable[[], None]] = {
    "secure-storage.any-genuine-record": suite.test_roll_back_of_the_object_file_alone,
    "secure-storage.generation-is-enough": (
        suite.test_records_of_an_abandoned_transaction_are_a_roll_back
    ),
    "secure-storage.write-in-place": lambda: suite.test_torn_writes_leave_the_old_state(
        "write", 100
    ),
    "secure-storage.partition-forgotten": suite.test_tas_and_partitions_are_strangers_on_one_disk,
    "secure-storage.counter-nonce": suite.test_nonces_are_never_used_twice_also_after_failures,
    "secure-storage.missing-is-empty": (
        suite.test_missing_object_file_is_corrupt_and_missing_directory_a_roll_back
    ),
}


def test_no_storage_mutant_is_without_a_killer() -> None:
    assert [m for m in load() if m.startswith("secure-storage.")] == sorted(KILLERS)


@pytest.mark.parametrize("name", sorted(KILLERS))
def test_killed(name: str) -> None:
    expect_killed(load()[name], KILLERS[name])
