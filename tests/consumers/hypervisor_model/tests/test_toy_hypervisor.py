# SPDX-License-Identifier: BSD-2-Clause
"""A guest of the toy hypervisor uses a trusted application, and leaves nothing behind."""

from __future__ import annotations

from uuid import UUID

import pytest
from toy_tee import ToyMachine

from mediator.deployment.face import Done, NotMine, Undefined
from mediator.host import PAGE_SIZE
from secure_world.ta import (
    TYPE_MEMREF_INOUT,
    TYPE_VALUE_INOUT,
    Params,
    TaEnvironment,
    TaRegistry,
    TrustedApplication,
    param_types,
)
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.message import Message, Param, parse_message, uuid_to_value
from smccc.page_list import build_page_list

RAM = 0x4000_0000
MESSAGE = RAM
LIST = RAM + PAGE_SIZE
BUFFER = RAM + 2 * PAGE_SIZE
COOKIE = 0x1234_0000_5678


class Rot13(TrustedApplication):
    uuid = UUID("0a1e3c52-6a0b-4f55-9c11-0b6f6a1d2e3f")
    name = "rot13"
    pseudo = True

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        if params.types != param_types(TYPE_VALUE_INOUT, TYPE_MEMREF_INOUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        memory = params.memref(1)
        text = memory.read(0, memory.capacity)
        memory.write(0, bytes((c - 97 + 13) % 26 + 97 for c in text))
        params.value(0).a += len(text)
        return tee.TEE_SUCCESS


@pytest.fixture
def machine() -> ToyMachine:
    machine = ToyMachine(TaRegistry([Rot13]))
    machine.hypervisor.add_memory(1, RAM, 16)
    assert machine.mediator.create_guest(1) == Done()
    return machine


def call(machine: ToyMachine, message: Message, guest: int = 1) -> Message:
    machine.hypervisor.store(guest, MESSAGE, message.build())
    regs = machine.smc(guest, smc.OPTEE_SMC_CALL_WITH_ARG, MESSAGE >> 32, MESSAGE)
    assert regs[0] == smc.OPTEE_SMC_RETURN_OK
    return parse_message(machine.hypervisor.load(guest, MESSAGE, message.size))


def open_session(machine: ToyMachine, guest: int = 1) -> int:
    meta = msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
    params = (Param(meta, *uuid_to_value(Rot13.uuid)), Param(meta))
    answer = call(machine, Message(msg.OPTEE_MSG_CMD_OPEN_SESSION, params=params), guest)
    assert (answer.ret, answer.ret_origin) == (tee.TEE_SUCCESS, tee.TEE_ORIGIN_TRUSTED_APP)
    return answer.session


def register(machine: ToyMachine, size: int) -> None:
    pages = [BUFFER + i * PAGE_SIZE for i in range(-(-size // PAGE_SIZE))]
    ((_, list_page),) = build_page_list(pages, LIST)
    machine.hypervisor.store(1, LIST, list_page)
    attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
    params = (Param(attr, LIST, size, COOKIE),)
    answer = call(machine, Message(msg.OPTEE_MSG_CMD_REGISTER_SHM, params=params))
    assert answer.ret == tee.TEE_SUCCESS


def test_from_probe_to_destruction(machine: ToyMachine) -> None:
    session = open_session(machine)
    register(machine, 2 * PAGE_SIZE)
    assert sum(machine.hypervisor.pins.values()) == 2
    machine.hypervisor.store(1, BUFFER + PAGE_SIZE - 3, b"ury")
    machine.hypervisor.store(1, BUFFER + PAGE_SIZE, b"yb")
    params = (
        Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT, 100),
        Param(msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT, PAGE_SIZE - 3, 5, COOKIE),
    )
    request = Message(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, session=session, params=params)
    answer = call(machine, request)
    assert (answer.ret, answer.params[0].a) == (tee.TEE_SUCCESS, 105)
    assert machine.hypervisor.load(1, BUFFER + PAGE_SIZE - 3, 3) == b"hel"
    assert machine.hypervisor.load(1, BUFFER + PAGE_SIZE, 2) == b"lo"
    assert machine.mediator.destroy_guest(1) == Done()
    assert +machine.hypervisor.pins == {}
    assert machine.hypervisor.quarantined == []


def test_a_guest_knows_nothing_of_another(machine: ToyMachine) -> None:
    machine.hypervisor.add_memory(2, RAM, 16)
    assert machine.mediator.create_guest(2) == Done()
    session = open_session(machine)
    closing = Message(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session)
    assert call(machine, closing, guest=2).ret != tee.TEE_SUCCESS
    assert call(machine, closing, guest=1).ret == tee.TEE_SUCCESS


def test_memory_that_is_not_there_is_an_error_of_the_guest(machine: ToyMachine) -> None:
    regs = machine.smc(1, smc.OPTEE_SMC_CALL_WITH_ARG, 0, 0x9000_0000)
    assert regs[0] == smc.OPTEE_SMC_RETURN_EBADADDR


def test_what_is_not_for_a_tee(machine: ToyMachine) -> None:
    psci_version = 0x8400_0000
    assert isinstance(machine.mediator.handle(1, 0, (psci_version,) + (0,) * 7), NotMine)
    assert isinstance(machine.mediator.handle(1, 0, (0,) * 8, immediate=1), Undefined)


def test_state_is_data(machine: ToyMachine) -> None:
    session = open_session(machine)
    register(machine, PAGE_SIZE)
    before = machine.mediator.snapshot()
    closing = Message(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session)
    assert call(machine, closing).ret == tee.TEE_SUCCESS
    machine.mediator.restore(before)
    assert machine.mediator.snapshot() == before
    assert machine.mediator.destroy_guest(1) == Done()
    assert +machine.hypervisor.pins == {}
