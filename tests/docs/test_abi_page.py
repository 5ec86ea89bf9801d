# SPDX-License-Identifier: BSD-2-Clause
"""The ABI table is complete, and says what the mediator really does under both presets."""

from __future__ import annotations

import ast
import gzip
import json
import re
import struct
from functools import cache
from pathlib import Path
from typing import cast

import pytest

from mediator.deployment.face import NotMine
from mediator.hypervisor.services import ServiceSettings
from mediator.hypervisor.traps import PSCI, Dispatcher
from mediator.optee.settings import MediatorSettings
from mediator.suspend import run
from smccc.constants import arm_smccc, psci, tee
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from specs.rules import rules
from tests.docs.pages import generate
from tests.mediator.rig import RAM, Rig, msg

ROOT = Path(__file__).parents[2]
PRESETS = {"does": MediatorSettings(), "reference": MediatorSettings.reference()}
CARRIER = 0x2480
"""Cookie of the buffer in which messages of CALL_WITH_REGD_ARG lie."""
SERVICES = {"does": ServiceSettings(), "reference": ServiceSettings.reference()}


@cache
def recorded() -> dict[str, list[dict[str, str]]]:
    """The golden register tables, which list the whole ABI."""
    packed = (ROOT / "tests/data/abi/register_tables.json.gz").read_bytes()
    found: dict[str, list[dict[str, str]]] = json.loads(gzip.decompress(packed))
    return found


def names(section: str) -> list[str]:
    prefix = str(generate.abi_table()[section]["prefix"])
    return [prefix + str(row["name"]) for row in generate.rows(section)]


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("functions", "optee_calls"),
        ("commands", "optee_messages"),
        ("rpcs", "optee_rpc"),
        ("rpc_commands", "optee_rpc_messages"),
        ("statuses", "return_codes"),
    ],
)
def test_nothing_of_the_abi_is_missing(section: str, key: str) -> None:
    assert names(section) == [entry["name"] for entry in recorded()[key]]


def test_every_capability_bit_is_there() -> None:
    prefix = "OPTEE_SMC_SEC_CAP_"
    bits = {value: name for name, value in vars(smc).items() if name.startswith(prefix)}
    assert names("capabilities") == [bits[value] for value in sorted(bits)]
    ours = [name for name in vars(smc) if name.startswith("OPTEE_SMC_NSEC_CAP_")]
    assert names("normal_world") == ours


def test_every_operation_on_a_wait_is_there() -> None:
    found = [name for name in vars(rpc) if name.startswith("OPTEE_RPC_NOTIFICATION_")]
    assert names("waits") == found


def test_every_psci_call_and_architecture_call_is_there() -> None:
    listed = {generate.value_of("services", name) for name in names("services")}
    tables = [cast("dict[str, str]", entry["function_ids"]) for entry in recorded()["psci"]]
    recorded_ids = {int(number, 16) for table in tables for number in table.values()}
    assert len(recorded_ids) == 30
    assert recorded_ids <= listed
    for module in (arm_smccc, psci):
        for name, value in vars(module).items():
            if isinstance(value, int) and name.startswith(("SMCCC_ARCH_WORK", "PSCI_0_2_FN_")):
                assert value in listed or not 0x80000000 <= value < 1 << 32, name


def test_every_result_that_the_mediator_gives_is_there() -> None:
    """Found in its source."""
    source = "".join(path.read_text("utf-8") for path in (ROOT / "mediator/optee").glob("*.py"))
    used = {name for name in vars(tee) if re.search(rf"\btee\.{name}\b", source)}
    errors = {name for name in used if name.startswith("TEE_ERROR_")}
    assert errors == set(names("results"))


def _outcome(rig: Rig, *regs: int) -> str:
    """The table's word for what becomes of a call, and a check of what was forwarded.

    Beside the function itself only the question for notification values, for this guest.
    """
    rig.host.sent.clear()
    frame = (*regs, *[0] * (8 - len(regs)))
    out = rig.tee.handle(0, 0, frame)
    if isinstance(out, NotMine):
        assert rig.host.sent == []
        return "refused"
    if not rig.host.sent:
        return "answered"
    sent, *more = rig.host.sent
    assert [(other[0], other[7]) for other in more] == [
        (smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, 1)
    ] * (regs[0] == smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)
    expected = regs[0]
    if expected == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
        expected = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
    assert sent[0] == expected
    assert sent[7] == 1, "the client id of guest 0"
    return "forwarded"


MESSAGE = struct.pack("<8I", 1, 0, 1, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("row", generate.rows("functions"), ids=lambda row: str(row["name"]))
def test_functions_do_what_the_table_says(row: dict[str, object], preset: str) -> None:
    rig = Rig(PRESETS[preset])
    function = generate.value_of("functions", str(row["name"]))
    rig.put(RAM, MESSAGE)
    regs = [function, RAM >> 32, RAM & 0xFFFF_FFFF]
    if function == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
        rig.register(CARRIER, [RAM], rpc_arg=False)
        regs[1:] = [0, CARRIER, 0]
    if function == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
        rig.host.script = [lambda rig, regs: (smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 5)]
        rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)
        regs[1:] = [0, 0, 5]
    if function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
        regs[1:] = [0, 0]
    if function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE and preset == "does":
        rig.call(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)
    found = _outcome(rig, *regs)
    assert {"mediated": "forwarded"}.get(str(row[preset]), row[preset]) == found
    assert (row[preset] == "mediated") == (found == "forwarded" and not function >> 31)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("row", generate.rows("commands"), ids=lambda row: str(row["name"]))
def test_commands_do_what_the_table_says(row: dict[str, object], preset: str) -> None:
    rig = Rig(PRESETS[preset])
    command = generate.value_of("commands", str(row["name"]))
    rig.put(RAM, struct.pack("<I", command) + MESSAGE[4:])
    regs = rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)
    refused = regs[0] == smc.OPTEE_SMC_RETURN_EBADCMD and not rig.host.sent
    assert row[preset] == ("refused" if refused else "mediated")
    assert refused or len(rig.host.sent) == 1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("row", generate.rows("capabilities"), ids=lambda row: str(row["name"]))
def test_capabilities_are_what_the_table_says(row: dict[str, object], preset: str) -> None:
    rig = Rig(PRESETS[preset])
    bit = generate.value_of("capabilities", str(row["name"]))
    everything = bit | smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM
    rig.host.script = [lambda rig, regs: (0, everything, 0, 0)]
    regs = rig.call(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)
    assert row[preset] == ("offered" if regs[1] & bit else "hidden")


def test_calls_count_counts_the_table() -> None:
    for preset, settings in PRESETS.items():
        served = [row for row in generate.rows("functions") if row[preset] != "refused"]
        assert len(served) == Rig(settings).tee.mediator.calls_count


KEY = 5
REQUESTS = {
    rpc.OPTEE_RPC_CMD_SHM_ALLOC: (1, 0, 4096, 8),
    rpc.OPTEE_RPC_CMD_SHM_FREE: (1, 0, CARRIER, 0),
    rpc.OPTEE_RPC_CMD_NOTIFICATION: (1, rpc.OPTEE_RPC_NOTIFICATION_WAIT, KEY, 0),
}
LISTED, ARGUMENT = RAM + 0x3000, RAM + 0x2000
RESULT = tee.TEE_ERROR_ITEM_NOT_FOUND


def _ask(rig: Rig, body: bytes) -> tuple[int, ...]:
    """The TEE asks in the RPC buffer with cookie 9; what the guest sees."""

    def asks(rig: Rig, regs: tuple[int, ...]) -> tuple[int, int, int, int]:
        _tee_page(rig)[: len(body)] = body
        return (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 9, 1)

    rig.host.script = [asks]
    return rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, ARGUMENT, 1, 0, 9)


def _tee_page(rig: Rig) -> memoryview:
    """The page that the TEE was given as answer to its RPC ALLOC."""
    resumed = [sent for sent in rig.host.sent if sent[0] == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC]
    return rig.host.memory(resumed[0][1] << 32 | resumed[0][2])


def _rpc_word(rig: Rig, command: int) -> str:
    """The table's word for what becomes of an RPC command."""
    caps = smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM | smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
    rig.host.script = [lambda rig, regs: (0, caps, 0x44, 0)]
    rig.call(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 0)
    rig.register(CARRIER + 1, [RAM + 0x4000], rpc_arg=False)
    rig.host.sent.clear()
    rig.put(RAM, MESSAGE)
    rig.host.script = [lambda rig, regs: (smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM)
    rig.put_list(LISTED, [RAM + 0x5000])
    answer = msg(rpc.OPTEE_RPC_CMD_SHM_ALLOC, params=[(0x20A, LISTED, 4096, CARRIER)])
    if command == rpc.OPTEE_RPC_CMD_SHM_FREE:
        _ask(rig, msg(rpc.OPTEE_RPC_CMD_SHM_ALLOC, params=[(1, 0, 4096, 8)]))
        rig.put(ARGUMENT, answer)
        rig.host.script = [lambda rig, regs: (smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR, 0, 0, 1)]
        rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 9, 1)
    buffers = rig.info()[1]
    body = msg(command, ret=0xFFFF0000, params=[REQUESTS.get(command, (3, 1, 2, 3))])
    seen = _ask(rig, body)
    if seen[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
        return "mediated"
    assert seen[:4] == (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 9, 1)
    assert rig.get(ARGUMENT, len(body)) == body
    if rig.info()[1] < buffers:
        return "mediated"
    if command != rpc.OPTEE_RPC_CMD_SHM_ALLOC:
        answer = msg(command, ret=RESULT, params=[(3, 7, 8, 9)])
    rig.put(ARGUMENT, answer)
    rig.host.script = []
    assert rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 9, 1)[0] == smc.OPTEE_SMC_RETURN_OK
    found = bytes(_tee_page(rig)[: len(answer)])
    if command == rpc.OPTEE_RPC_CMD_SHM_ALLOC:
        assert struct.unpack_from("<Q", found, 40)[0] != LISTED
        return "mediated"
    assert struct.unpack_from("<I", found, 20)[0] == RESULT
    if command not in REQUESTS:
        assert struct.unpack_from("<3Q", found, 40) == (7, 8, 9)
    return "relayed"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("row", generate.rows("rpc_commands"), ids=lambda row: str(row["name"]))
def test_rpc_commands_do_what_the_table_says(row: dict[str, object], preset: str) -> None:
    rig = Rig(PRESETS[preset])
    assert _rpc_word(rig, generate.value_of("rpc_commands", str(row["name"]))) == row[preset]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("row", generate.rows("services"), ids=lambda row: str(row["name"]))
def test_services_do_what_the_table_says(row: dict[str, object], preset: str) -> None:
    function = generate.value_of("services", str(row["name"]))
    regs = (function, arm_smccc.ARM_SMCCC_VERSION_FUNC_ID, 2, 3, 4, 5, 6, 7)
    answer = run(Dispatcher(SERVICES[preset], None).dispatch(0, 0, regs))
    unknown = ((1 << 64) - 1, *regs[1:])
    # The recorded host has ARCH_FEATURES, and confirms nothing by it.
    confirms_nothing = function == arm_smccc.ARM_SMCCC_ARCH_FEATURES_FUNC_ID
    word = "refused" if answer == unknown and not confirms_nothing else "answered"
    assert row[preset] == word
    assert answer is not PSCI or function in SERVICES[preset].psci_functions


@cache
def _tests_of(path: str) -> frozenset[str]:
    """``name`` and ``Class::name`` of all tests in a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    found.add(f"{node.name}::{inner.name}")
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


@pytest.mark.parametrize("section", generate.abi_table())
def test_everything_is_shown_by_a_test_that_exists(section: str) -> None:
    book = rules()
    for row in generate.rows(section):
        shows = [str(shown) for shown in row["shows"]]
        assert any("::" in shown for shown in shows), row["name"]
        assert len(set(shows)) == len(shows), row["name"]
        for shown in shows:
            path, _, test = shown.partition("::")
            assert test in _tests_of(path) if test else shown in book.by_id, shown


def test_every_rule_of_the_calling_convention_is_shown_somewhere() -> None:
    """The other rules have behaviour vectors or mutants; these are the host's own."""
    shown = {
        name
        for section in generate.abi_table()
        for row in generate.rows(section)
        for name in row["shows"]
    }
    assert {"smccc.psci-range", "smccc.service-constants", "smccc.kept-promises"} <= shown
