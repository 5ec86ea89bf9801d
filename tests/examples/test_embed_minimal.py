# SPDX-License-Identifier: BSD-2-Clause
"""The example of a foreign hypervisor shares memory through page lists, too, and stays small."""

from __future__ import annotations

import runpy
from pathlib import Path

from mediator import Completed, Done, InHypervisor
from smccc.constants import optee_msg, optee_smc, tee
from smccc.message import Message, Param, parse_message
from smccc.page_list import build_page_list

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed_minimal.py"


def test_a_host_takes_about_60_lines() -> None:
    source = EXAMPLE.read_text()
    host = source[source.index("class TinyHypervisor") : source.index("class TinyBus")]
    assert len([line for line in host.splitlines() if line.strip()]) < 66


def test_it_shares_memory() -> None:
    machine = runpy.run_path(str(EXAMPLE))["TinyHypervisor"](guests=2)
    mediator = InHypervisor(machine)
    assert mediator.probe().found
    assert mediator.create_guest(1) == Done()

    def call(message: Message) -> Message:
        machine.write_guest(1, 0x1000, [(0, message.build())])
        regs = (optee_smc.OPTEE_SMC_CALL_WITH_ARG, 0, 0x1000, 0, 0, 0, 0, 0)
        outcome = mediator.handle(1, 0, regs)
        assert isinstance(outcome, Completed)
        assert outcome.regs[0] == optee_smc.OPTEE_SMC_RETURN_OK
        return parse_message(machine.read_guest(1, 0x1000, 4096))

    ((at, listed),) = build_page_list([0x5000, 0x9000], 0x2000)
    machine.write_guest(1, at, [(0, listed)])
    shared = optee_msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | optee_msg.OPTEE_MSG_ATTR_NONCONTIG
    register = Message(
        optee_msg.OPTEE_MSG_CMD_REGISTER_SHM, params=(Param(shared, 0x2000, 0x2000, 0x77),)
    )
    assert call(register).ret == tee.TEE_SUCCESS
    assert sorted(page for page, pins in machine.pins.items() if pins) == [
        (1, machine.pa(1, 0x9000)),
        (1, machine.pa(1, 0x5000)),
    ]
    machine.write_guest(1, at, [(0, (0xFFFF_0000).to_bytes(8, "little"))])
    refused = call(register._replace(params=(Param(shared, 0x2000, 0x2000, 0x78),)))
    assert refused.ret == tee.TEE_ERROR_BAD_PARAMETERS
    mediator.destroy_guest(1)
    assert not any(machine.pins.values())
