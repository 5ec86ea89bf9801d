# SPDX-License-Identifier: BSD-2-Clause
"""Constants and layouts against what compiled headers printed: no difference but listed ones."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from smccc import declarations, message, names, page_list, registers, wire
from smccc.calls import fast, is_rpc, rpc_function, rpc_status
from smccc.calls.slots import Return
from smccc.constants import arm_smccc, optee_msg, optee_rpc, optee_smc, psci, tee
from smccc.function_id import (
    CALL_COUNT,
    CALL_UID,
    REVISION,
    FunctionId,
    general_query,
    optee_uid_words,
    uid_from_words,
    uid_words,
)
from tests.smccc.smccc_golden import document
from tests.smccc.test_smccc_calls import IN_REGISTERS

MODULES: dict[str, ModuleType] = {
    "smccc": arm_smccc,
    "psci": psci,
    "optee_smc": optee_smc,
    "optee_msg": optee_msg,
    "optee_rpc_cmd": optee_rpc,
    "tee": tee,
}

LEFT_OUT: dict[str, dict[str, str]] = {
    "smccc": {
        r"ARM_SMCCC_KVM_.+|KVM_PTP_.+|ARM_SMCCC_VENDOR_HYP_.+": "KVM's own hypervisor service",
        r"ARM_SMCCC_HV_PV_TIME_.+": "paravirtual time of KVM",
        r"ARM_SMCCC_QUIRK_.+": "a Linux work-around for one vendor's firmware",
        r"SMC_WA_.+": "flags inside TF-A",
    },
    "psci": {
        r"FF_.+|PSTATE_.+": "depend on TF-A's build options",
        r"PSCI_(NUM_PWR_DOMAINS|NUM_NON_CPU_PWR_DOMAINS|INVALID_PWR_LVL|MAX_PWR_LVL|CPU_PWR_LVL)": (
            "power levels of TF-A's platform, a stand-in where they were measured"
        ),
        r"PSCI_LOCAL_STATE_RUN": "state inside TF-A",
        r"VPSCI_NR_FUNCS": "a count inside Xen",
    },
    "tee": {
        r"TEE_(ALG|TYPE|ATTR|USAGE|MODE|OPERATION|ECC|CRYPTO|BIGINT)_.+": (
            "cryptography of the Internal Core API, which never crosses the wire"
        ),
        r"TEE_PANIC_ID_.+": "panic ids inside a trusted application",
        r"TEE_(HANDLE|MALLOC|PROPSET|WHENCE|CORE_API)_.+": "used inside a trusted application only",
        r"TEE_IOC_.+|TEE_IOCTL_SHM_.+": "ioctl numbers of Linux",
        r"TEE_SHM_.+|TEE_DESC_.+": "flags inside Linux",
    },
}
"""Constants of the carried headers that are not in :mod:`smccc.constants`, and why."""

OTHER_CATEGORIES = {
    "ffa": "FF-A is no part of this wire",
    "optee_ffa": "OP-TEE over FF-A is no part of this wire",
    "xen_mediator": "limits of the recorded mediator are settings of ours, not ABI",
    "optee_os_internal": "numbers inside OP-TEE",
    "linux_internal": "numbers inside the Linux driver",
}


def defined(module: ModuleType) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.isupper()}


def as_c(entry: dict[str, Any]) -> int:
    return int(entry.get("signed", entry["dec"]))


@pytest.mark.parametrize("category", MODULES)
def test_every_constant_is_there_with_its_value_or_left_out_for_a_reason(category: str) -> None:
    ours = defined(MODULES[category])
    patterns = LEFT_OUT.get(category, {})
    wrong = {}
    for name, entry in document("constants")[category].items():
        left_out = any(re.fullmatch(pattern, name) for pattern in patterns)
        if left_out == (name in ours) or (not left_out and ours[name] != as_c(entry)):
            wrong[name] = (ours.get(name), as_c(entry))
    assert wrong == {}


@pytest.mark.parametrize("category", MODULES)
def test_no_constant_is_invented(category: str) -> None:
    golden = document("constants")[category]
    assert [name for name in defined(MODULES[category]) if name not in golden] == []


@pytest.mark.parametrize("category", LEFT_OUT)
def test_every_reason_to_leave_out_is_needed(category: str) -> None:
    golden = document("constants")[category]
    for pattern in LEFT_OUT[category]:
        assert any(re.fullmatch(pattern, name) for name in golden), pattern


def test_every_category_is_carried_or_refused() -> None:
    golden = document("constants")
    categories = {
        name for name, table in golden.items() if name not in ("_format", "_sources", "derived")
    }
    assert categories - {"function_ids", "conflicts"} == {*MODULES, *OTHER_CATEGORIES}


def test_where_trees_disagree_the_headline_value_stands() -> None:
    """Each disagreement is known: a new one must be looked at."""
    differing = {
        entry["name"]
        for entry in document("constants")["conflicts"]["value_and_form"]
        if entry["kind"] == "value_differs" and entry["category"] in MODULES
    }
    assert differing == {"SMCCC_VERSION_MAJOR_MASK", "PSCI_NUM_CALLS"}
    assert arm_smccc.SMCCC_VERSION_MAJOR_MASK == 0xFFFF_0000, "Xen's, after the shift"
    assert psci.PSCI_NUM_CALLS == 21, "OP-TEE's; TF-A's depends on the build"


def test_function_names_are_those_of_the_headers() -> None:
    foreign = ("FFA_", "OPTEE_FFA_", "ARM_SMCCC_HV_PV_TIME_", "ARM_SMCCC_VENDOR_HYP_", "VEN_EL3_")
    golden = {}
    for fid, by_source in document("constants")["function_ids"].items():
        found = {name for many in by_source.values() for name in many}
        known = {name for name in found if not name.startswith(foreign)}
        if known:
            golden[int(fid, 16)] = known
    assert {fid: set(found) for fid, found in names.FUNCTIONS.items()} == golden


# --- layouts -----------------------------------------------------------------------------------


def layout(category: str, name: str) -> dict[str, tuple[int, int]]:
    fields = document("layouts")[category][name]["fields"]
    return {field["name"]: (field["offset"], field["size"]) for field in fields}


def test_message_header_layout() -> None:
    golden = layout("optee_msg", "optee_msg_arg")
    assert golden.pop("params") == (wire.HEADER_SIZE, 0)
    assert document("layouts")["optee_msg"]["optee_msg_arg"]["sizeof"] == wire.HEADER_SIZE
    assert golden == {name: (4 * at, 4) for at, name in enumerate(wire.HEADER_FIELDS)}
    assert golden["num_params"][0] == wire.NUM_PARAMS_OFFSET
    declared = declarations.names(declarations.MESSAGE_HEADER)
    assert golden == {name: (at, 4) for at, name in declared}


def test_parameter_layout() -> None:
    golden = layout("optee_msg", "optee_msg_param")
    assert document("layouts")["optee_msg"]["optee_msg_param"]["sizeof"] == wire.PARAM_SIZE
    assert golden["attr"] == (0, 8)
    assert golden["u.octets"] == golden["u"] == (8, 24)
    views = {
        "value": declarations.VALUE,
        "tmem": declarations.TMEM,
        "rmem": declarations.RMEM,
        "fmem": declarations.FMEM,
    }
    for view, declaration in views.items():
        assert golden[f"u.{view}"] == (8, declaration.sizeof())
        ours = {
            f"u.{view}.{sub.name}": (8 + at, sub.sizeof())
            for (at, _), sub in zip(
                declarations.names(declaration), declaration.subcons, strict=True
            )
        }
        assert ours == {
            name: place for name, place in golden.items() if name.startswith(f"u.{view}.")
        }


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("value", message.Value),
        ("tmem", message.Tmem),
        ("rmem", message.Rmem),
        ("fmem", message.Fmem),
    ],
)
def test_views_have_the_header_s_fields(name: str, view: type[NamedTuple]) -> None:
    assert tuple(layout("optee_msg", f"optee_msg_param_{name}")) == view._fields


def test_page_list_layout() -> None:
    golden = layout("optee_msg", "noncontig_page_list_page")
    size = document("layouts")["optee_msg"]["noncontig_page_list_page"]["sizeof"]
    assert size == page_list.PAGE_SIZE
    assert golden == {
        "pages": (0, 8 * page_list.ENTRIES),
        "next_page": (page_list.LINK_OFFSET, 8),
    }


@pytest.mark.parametrize(("name", "width"), [("arm64", 8), ("arm32", 4)])
def test_register_frame_layout(name: str, width: int) -> None:
    golden = layout("optee_smc", f"thread_smc_args_{name}")
    assert golden == {f"a{number}": (width * number, width) for number in range(8)}
    frame = registers.RegisterFrame.of(*range(8))
    size = document("layouts")["optee_smc"][f"thread_smc_args_{name}"]["sizeof"]
    assert len(frame.build() if width == 8 else frame.build32()) == size


@pytest.mark.parametrize(
    ("name", "result", "renamed"),
    [
        ("call_get_os_revision", fast.GetOsRevisionReturn, {}),
        ("calls_revision", fast.CallsRevisionReturn, {}),
        ("exchange_capabilities", fast.ExchangeCapabilitiesReturn, {}),
        ("get_shm_config", fast.GetShmConfigReturn, {}),
        # Linux names the halves of the pair.
        ("disable_shm_cache", fast.DisableShmCacheReturn, {"cookie": "shm_upper32"}),
    ],
)
def test_results_lie_in_the_registers_of_the_linux_structures(
    name: str, result: type[Return], renamed: dict[str, str]
) -> None:
    golden = layout("optee_smc", f"optee_smc_{name}_result")
    for slot in result.SLOTS:
        assert isinstance(slot, IN_REGISTERS)
        assert golden[renamed.get(slot.field, slot.field)] == (8 * slot.register, 8)


# --- derived numbers ---------------------------------------------------------------------------


def test_message_sizes() -> None:
    sizes = document("constants")["derived"]["optee_msg_and_smc_macros"]["OPTEE_MSG_GET_ARG_SIZE"]
    assert {int(count): size for count, size in sizes.items()} == {
        count: wire.message_size(count) for count in range(wire.MAX_PARAMS + 1)
    }
    assert [struct.size for struct in wire.MESSAGE] == [sizes[str(n)] for n in range(128)]


def test_rpc_return_values() -> None:
    macros = document("constants")["derived"]["optee_msg_and_smc_macros"]
    for function, value in macros["OPTEE_SMC_RPC_VAL"].items():
        assert rpc_status(int(function)) == int(value, 16)
    for case in macros["OPTEE_SMC_RETURN_IS_RPC"]:
        a0 = int(case["ret"], 16)
        assert is_rpc(a0) == case["is_rpc"], case
        assert rpc_function(a0) == case["func"], case


def test_a_sign_extended_unknown_function_is_no_rpc() -> None:
    assert not is_rpc(0xFFFF_FFFF_FFFF_FFFF)
    assert is_rpc(0xDEAD_BEEF_FFFF_FFFE)


def test_general_service_queries() -> None:
    queries = document("constants")["derived"]["smccc_generic_query_fids_by_owner"]
    for entry in queries.values():
        for name, number in (
            ("call_count", CALL_COUNT),
            ("call_uid", CALL_UID),
            ("revision", REVISION),
        ):
            fid = int(entry[name], 16)
            assert general_query(entry["owner"], number) == fid
            assert FunctionId.decode(fid).owner == entry["owner"]


def test_service_uids_put_their_first_byte_lowest() -> None:
    uids = document("constants")["derived"]["service_uids_as_returned_in_w0_w3"]
    for entry in uids.values():
        uid = UUID(hex=entry["bytes"])
        words = tuple(int(word, 16) for word in entry["words"])
        assert uid_words(uid) == words
        assert uid_from_words(words) == uid


def test_optee_uids_read_like_their_text() -> None:
    uid = UUID("384fb3e0-e7f8-11e3-af63-0002a5d5c51b")
    words = (
        optee_msg.OPTEE_MSG_UID_0,
        optee_msg.OPTEE_MSG_UID_1,
        optee_msg.OPTEE_MSG_UID_2,
        optee_msg.OPTEE_MSG_UID_3,
    )
    assert optee_uid_words(uid) == words
    assert uid_words(uid) != words
