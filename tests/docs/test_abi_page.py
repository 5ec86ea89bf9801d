# SPDX-License-Identifier: BSD-2-Clause
"""The ABI table is complete, and says what the mediator really does under both presets."""

from __future__ import annotations

import gzip
import json
import re
import struct
from functools import cache
from pathlib import Path

import pytest

from mediator.deployment.in_hypervisor import NotMine
from mediator.optee.settings import MediatorSettings
from smccc.constants import optee_smc as smc
from specs.rules import rules
from tests.docs.pages import generate
from tests.mediator.rig import RAM, Rig

ROOT = Path(__file__).parents[2]
PRESETS = {"does": MediatorSettings(), "reference": MediatorSettings.reference()}
CARRIER = 0x2480
"""Cookie of the buffer in which messages of CALL_WITH_REGD_ARG lie."""
SECTIONS = ("functions", "commands", "rpcs", "rpc_commands", "capabilities", "statuses")


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
        ("statuses", "return_codes"),
    ],
)
def test_nothing_of_the_abi_is_missing(section: str, key: str) -> None:
    assert names(section) == [entry["name"] for entry in recorded()[key]]


def test_every_rpc_command_is_named() -> None:
    expected = [
        entry["name"].removeprefix("OPTEE_RPC_CMD_") for entry in recorded()["optee_rpc_messages"]
    ]
    assert generate.rpc_command_names() == expected


def test_every_capability_bit_is_there() -> None:
    prefix = "OPTEE_SMC_SEC_CAP_"
    bits = {value: name for name, value in vars(smc).items() if name.startswith(prefix)}
    assert names("capabilities") == [bits[value] for value in sorted(bits)]


def _outcome(rig: Rig, *regs: int) -> str:
    """The table's word for what becomes of a call, and a check that nothing else was forwarded."""
    rig.host.sent.clear()
    frame = (*regs, *[0] * (8 - len(regs)))
    out = rig.tee.handle(0, 0, frame)
    if isinstance(out, NotMine):
        assert rig.host.sent == []
        return "refused"
    if not rig.host.sent:
        return "answered"
    (sent,) = rig.host.sent
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


def test_everything_that_shows_something_exists() -> None:
    book = rules()
    for section in SECTIONS:
        for row in generate.rows(section):
            for shown in row.get("shows", []):
                path, _, test = shown.partition("::")
                if test:
                    assert re.search(rf"def {test}\b", (ROOT / path).read_text("utf-8")), shown
                else:
                    assert shown in book.by_id, shown
