# SPDX-License-Identifier: BSD-2-Clause
"""Function ids: those that somebody serves, their neighbours, and all others."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from hypothesis import strategies as st

from fuzz.strategies.remember import remembered
from smccc.calls import CALLS
from smccc.calls.fast import FAST_CALLS
from smccc.calls.yielding import YIELDING_CALLS
from smccc.constants import arm_smccc
from smccc.function_id import FunctionId, Service, general_query
from smccc.registers import MASK32

OPTEE_FAST: Final = tuple(sorted({call.FUNCTION for call in FAST_CALLS}))
"""The fast calls of OP-TEE that the headers define."""

OPTEE_YIELDING: Final = tuple(sorted({call.FUNCTION for call in YIELDING_CALLS}))
"""The yielding calls of OP-TEE that the headers define."""

OTHER_KNOWN: Final = tuple(sorted(set(CALLS) - set(OPTEE_FAST) - set(OPTEE_YIELDING)))
"""SMCCC architecture calls and PSCI."""

QUERIES: Final = tuple(
    sorted(
        general_query(owner, number)
        for owner in (
            arm_smccc.ARM_SMCCC_OWNER_STANDARD,
            arm_smccc.ARM_SMCCC_OWNER_STANDARD_HYP,
            arm_smccc.ARM_SMCCC_OWNER_SIP,
            arm_smccc.ARM_SMCCC_OWNER_TRUSTED_APP,
            arm_smccc.ARM_SMCCC_OWNER_TRUSTED_OS,
        )
        for number in (0xFF00, 0xFF01, 0xFF03)
    )
)
"""General service queries of owners beside OP-TEE's."""

_OPTEE: Final = OPTEE_FAST + OPTEE_YIELDING
_TEE: Final = (Service.TRUSTED_APP, Service.TRUSTED_OS)


class FunctionClass(StrEnum):
    """What a function id is, as far as a mediator is concerned."""

    FAST = "a fast call of OP-TEE"
    YIELDING = "a yielding call of OP-TEE"
    OTHER_KNOWN = "a call that SMCCC or PSCI defines"
    QUERY = "a general service query"
    HINTED = "a call of OP-TEE with the SVE hint"
    WIDE = "a call of OP-TEE in the 64-bit convention"
    RESERVED = "a call of OP-TEE with reserved bits set"
    UNKNOWN_TEE = "an id in the TEE's range that no header knows"
    UNKNOWN = "an id in any other range"


def function_class(value: int) -> FunctionClass:
    """The class of the id in the low 32 bits of ``value``."""
    value &= MASK32
    if value in OPTEE_FAST:
        return FunctionClass.FAST
    if value in OPTEE_YIELDING:
        return FunctionClass.YIELDING
    if value in CALLS:
        return FunctionClass.OTHER_KNOWN
    if value in QUERIES:
        return FunctionClass.QUERY
    fid = FunctionId.decode(value)
    if fid._replace(sve_hint=False).encode() in _OPTEE:
        return FunctionClass.HINTED
    if fid._replace(smc64=False).encode() in _OPTEE:
        return FunctionClass.WIDE
    if fid.plain in _OPTEE:
        return FunctionClass.RESERVED
    return FunctionClass.UNKNOWN_TEE if fid.service in _TEE else FunctionClass.UNKNOWN


@remembered
def optee_function_ids() -> st.SearchStrategy[int]:
    """Functions of OP-TEE that the headers define, fast and yielding."""
    return st.sampled_from(OPTEE_FAST) | st.sampled_from(OPTEE_YIELDING)


@remembered
def known_function_ids() -> st.SearchStrategy[int]:
    """Every function that some header defines, and the general queries."""
    return st.one_of(
        st.sampled_from(OPTEE_FAST),
        st.sampled_from(OPTEE_YIELDING),
        st.sampled_from(OTHER_KNOWN),
        st.sampled_from(QUERIES),
    )


@remembered
def neighbour_function_ids() -> st.SearchStrategy[int]:
    """One bit away from a function of OP-TEE, or with the next number (known ones may come up)."""
    return st.one_of(
        st.tuples(optee_function_ids(), st.integers(0, 31)).map(lambda d: d[0] ^ 1 << d[1]),
        st.tuples(optee_function_ids(), st.sampled_from((1, -1))).map(lambda d: d[0] + d[1]),
        st.tuples(optee_function_ids(), st.integers(1, 0xFF)).map(lambda d: d[0] | d[1] << 16),
    )


@remembered
def unknown_function_ids() -> st.SearchStrategy[int]:
    """Ids that no header defines, half of them in the ranges that belong to the TEE."""
    owners = st.sampled_from(
        (
            arm_smccc.ARM_SMCCC_OWNER_TRUSTED_OS,
            arm_smccc.ARM_SMCCC_OWNER_TRUSTED_OS_END,
            arm_smccc.ARM_SMCCC_OWNER_TRUSTED_APP,
        )
    )
    tee = st.builds(
        FunctionId,
        fast=st.booleans(),
        smc64=st.just(False),
        owner=owners,
        number=st.integers(0, 0xFFFF),
        # Named: Hypothesis would draw any integer for what a named tuple leaves to its default.
        reserved=st.just(0),
        sve_hint=st.just(False),
    ).map(FunctionId.encode)
    return (tee | st.integers(0, MASK32)).filter(
        lambda value: value not in CALLS and value not in QUERIES
    )


@remembered
def function_ids() -> st.SearchStrategy[int]:
    """32-bit function ids of every class (:class:`FunctionClass`)."""
    return st.one_of(known_function_ids(), neighbour_function_ids(), unknown_function_ids())
