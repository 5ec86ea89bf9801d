# SPDX-License-Identifier: BSD-2-Clause
"""Decoding: sentences for people, plain data for programs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smccc import sentences
from smccc.calls import CALLS, RPC_REQUESTS, arch, parse_call, parse_yielding_return, yielding
from smccc.calls.rpc import UnknownRpcArgument
from smccc.describe import (
    Description,
    describe_arguments,
    describe_call,
    describe_error,
    describe_function_id,
    describe_message,
    describe_page_list,
    describe_return,
    function_id_data,
    message_data,
)
from smccc.errors import ParseError, Reason
from smccc.message import CallArguments, Message, Param, parse_message
from smccc.page_list import PageList
from smccc.registers import RegisterFrame
from tests.smccc.smccc_golden import records
from tests.smccc.test_smccc_calls import FRAMES, RETURNS
from tests.smccc.test_smccc_codec import MESSAGES
from tests.smccc.test_smccc_messages import ALL_COMMANDS


def usable(found: Description) -> None:
    """A description has a first line, no control characters, and is JSON."""
    assert found.lines
    assert all(line and line.isprintable() for line in found.lines)
    assert json.loads(json.dumps(found.data)) == json.loads(json.dumps(dict(found.data)))
    assert found.data["kind"]


def test_every_value_has_a_sentence() -> None:
    assert set(sentences.CALLS) >= {*CALLS.values(), *arch.SERVICE_QUERIES.values()}
    assert {request.ANSWER for request in RPC_REQUESTS.values()} <= set(sentences.CALLS)
    assert set(RETURNS) <= set(sentences.RETURNS)
    assert set(ALL_COMMANDS) <= set(sentences.COMMANDS)
    assert {command.ANSWER for command in ALL_COMMANDS} <= set(sentences.ANSWERS)


@settings(deadline=None)
@given(FRAMES, FRAMES, st.one_of(st.none(), st.sampled_from(sorted(CALLS))))
def test_any_registers_can_be_described(
    frame: RegisterFrame, back: RegisterFrame, fid: int | None
) -> None:
    asked = frame if fid is None else RegisterFrame((fid, *frame.x[1:]))
    usable(describe_call(asked))
    usable(describe_return(back, parse_call(asked)))
    usable(describe_return(back))
    usable(describe_function_id(frame.x[0]))


@settings(deadline=None)
@given(st.sampled_from(sorted(RPC_REQUESTS)), FRAMES, FRAMES)
def test_any_rpc_and_answer_can_be_described(
    status: int, asked: RegisterFrame, frame: RegisterFrame
) -> None:
    returned = RegisterFrame((status, *asked.x[1:]))
    usable(describe_return(returned))
    request = parse_yielding_return(returned)
    assert isinstance(request, yielding.RpcRequest)
    answer = RegisterFrame((0x3200_0003, *frame.x[1:]))
    described = describe_call(answer, request)
    usable(described)
    fields = described.data["fields"]
    assert isinstance(fields, dict)
    assert fields["thread"] == frame.x[3] & 0xFFFF_FFFF
    usable(describe_call(frame, request))


@settings(deadline=None)
@given(MESSAGES, st.integers(0, 25), st.booleans(), st.booleans())
def test_any_message_can_be_described(
    message: Message, cmd: int, rpc: bool, answered: bool
) -> None:
    for candidate in (message, message._replace(cmd=cmd)):
        usable(describe_message(candidate, rpc=rpc, answered=answered))
        usable(describe_arguments(CallArguments(candidate, message), answered=answered))


def test_messages_for_programs_have_the_keys_of_the_vectors() -> None:
    for vector in records("message_vectors"):
        message = parse_message(bytes.fromhex(vector["hex"]))
        assert message_data(message) == vector["fields"]


def test_function_ids_for_programs_have_the_keys_of_the_vectors() -> None:
    for vector in records("function_id_vectors"):
        ours = function_id_data(int(vector["fid"], 16))
        # The vectors also name FF-A and KVM functions.
        ours_names, golden_names = ours.pop("names", []), vector.get("names", [])
        assert ours == {name: value for name, value in vector.items() if name != "names"}
        assert isinstance(ours_names, list)
        assert set(ours_names) <= set(golden_names)


@pytest.mark.parametrize(
    ("registers", "text"),
    [
        ([0xBF00FF01], "CALLS_UID: which message ABI is this?"),
        (
            [0x32000004, 1, 0x42000000, 1, 0, 0, 0, 3],
            "CALL_WITH_ARG: process the message at 0x142000000, for client 3",
        ),
        (
            [0x32000013, 0xFFFF0000, 0x104E2480, 0x180],
            "CALL_WITH_REGD_ARG: process the message at offset 0x180 of cookie 0xffff0000104e2480",
        ),
        ([0xB200000D, 4], "VM_CREATED: guest 4 was created"),
        (
            [0xC4000003, 1, 0x40080000, 5],
            "PSCI_CPU_ON_AARCH64: start core 0x1 at 0x40080000 with x0 = 0x5",
        ),
        (
            [0x80000001, 0x80008000],
            "ARM_SMCCC_ARCH_FEATURES_FUNC_ID: is there ARM_SMCCC_ARCH_WORKAROUND_1?",
        ),
        ([0x8500FF01], "0x8500ff01: who implements standard hypervisor service calls?"),
    ],
)
def test_calls_read_like_sentences(registers: list[int], text: str) -> None:
    assert describe_call(RegisterFrame.of(*registers)).lines == (text,)


@pytest.mark.parametrize(
    ("call", "back", "text"),
    [
        ([0x32000004], [0], "completed; the result is in the message"),
        ([0x32000004], [1], "refused: OPTEE_SMC_RETURN_ETHREAD_LIMIT"),
        ([0x32000004], [0x77], "refused: unknown status 0x77"),
        ([0x32000004], [0xFFFF0000, 160, 0, 1], "thread 1 asks for 160 bytes (RPC ALLOC)"),
        (
            [0x32000004],
            [0xFFFF0005, 0, 0, 1],
            "thread 1 asks for a command, its argument is behind the message (RPC CMD)",
        ),
        ([0x32000004], [0xFFFF0003, 0, 0, 1], "thread 1 asks for unknown RPC 0x3"),
        (
            [0xB2000009],
            [0, 0x54, 0x42, 4],
            "the secure world offers DYNAMIC_SHM, MEMREF_NULL, RPC_ARG; "
            "RPC arguments of 4 parameters",
        ),
        (
            [0xBF00FF01],
            [0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B],
            "UUID 384fb3e0-e7f8-11e3-af63-0002a5d5c51b",
        ),
        (
            [0xB2000011],
            [0, 0, 1],
            "notification 0 (do the bottom half); no more are pending",
        ),
        ([0xB2000011], [0, 9, 2], "no notification; more are pending"),
        ([0x80000000], [0x10002], "version 1.2"),
        ([0x80000000], [2**64 - 1], "refused: -1"),
        ([0x80000001], [2**64 - 1], "refused: SMCCC_RET_NOT_SUPPORTED"),
        ([0xC4000003], [2**64 - 4], "refused: PSCI_E_ALREADY_ON"),
    ],
)
def test_returns_read_like_sentences(call: list[int], back: list[int], text: str) -> None:
    described = describe_return(RegisterFrame.of(*back), parse_call(RegisterFrame.of(*call)))
    assert described.lines == (f"returned: {text}",)


def test_an_unknown_function_is_taken_apart() -> None:
    found = describe_call(RegisterFrame.of(0xB201_0009, 7))
    assert str(found) == (
        "0xb2010009: unknown to OP-TEE, SMCCC and PSCI\n"
        "  0xb2010009 is a fast SMC32 call, owner 50 (trusted OS calls), function 0x9\n"
        "  it is called OPTEE_SMC_EXCHANGE_CAPABILITIES\n"
        "  the SVE hint is set: the caller has no live SVE state\n"
        "  registers 0xb2010009 0x7 0x0 0x0 0x0 0x0 0x0 0x0"
    )


def test_messages_read_like_sentences() -> None:
    invoke = Message(
        1,
        func=7,
        session=1,
        ret=0xFFFF0006,
        ret_origin=3,
        params=(
            Param(0x3, 1, 2),
            Param(0x6, 16, 64, 0x99),
            Param(0x20A, 0x4200_1080, 9000, 5),
            Param(0xA, 0, 12),
            Param(0x10104, 1),
        ),
    )
    assert str(describe_message(invoke, answered=True)) == (
        "INVOKE_COMMAND: invoke command 0x7 in session 1, 5 parameters\n"
        "  answered: ERROR_BAD_PARAMETERS from TEE\n"
        "  params[0]: VALUE_INOUT a = 0x1, b = 0x2, c = 0x0\n"
        "  params[1]: RMEM_OUTPUT 64 bytes at offset 0x10 of cookie 0x99\n"
        "  params[2]: TMEM_OUTPUT 9000 bytes at page list 0x42001080, reference 0x5\n"
        "  params[3]: TMEM_OUTPUT null reference, size 12 bytes\n"
        "  params[4]: invalid type 0x4, words 0x1 0x0 0x0 (meta, cache 1)"
    )


def test_a_message_with_the_wrong_parameters_says_so() -> None:
    found = describe_message(Message(2, params=(Param(0x8000_0000_0000_0001),)))
    assert found.lines == (
        "CLOSE_SESSION: not as the command should be",
        "at byte 28: num_params is not the number of parameters that the command has",
        "params[0]: VALUE_INPUT a = 0x0, b = 0x0, c = 0x0 (undefined attribute bits set)",
    )
    assert found.data["problem"] == {
        "kind": "error",
        "offset": 28,
        "field": "num_params",
        "reason": "WRONG_PARAM_COUNT",
    }


def test_an_answered_shm_alloc_is_not_complained_about() -> None:
    answered = Message(6, ret_origin=2, params=(Param(0x20A, 0x41BB1000, 4096, 7),))
    found = describe_message(answered, rpc=True, answered=True)
    assert found.lines[:2] == (
        "SHM_ALLOC",
        "answered: SUCCESS from COMMS, 4096 bytes as cookie 0x7, page list 0x41bb1000",
    )
    assert "problem" not in found.data
    failed = Message(6, ret=0xFFFF000C, ret_origin=2, params=(Param(1, 0, 4096, 8),))
    lines = describe_message(failed, rpc=True, answered=True).lines
    assert lines[1] == "answered: ERROR_OUT_OF_MEMORY from COMMS"


def test_unknown_commands_are_described() -> None:
    found = describe_message(Message(99), rpc=True)
    assert found.lines == ("0x63: unknown RPC command 0x63",)
    command = found.data["command"]
    assert isinstance(command, dict)
    assert command["name"] == UnknownRpcArgument.__name__


def test_page_lists_are_described() -> None:
    words = b"".join([(0x1000 * n).to_bytes(8, "little") for n in (1, 2, 3, 9, 10, 20, 21, 22, 30)])
    found = describe_page_list(PageList(0x80, 9 * 4096 - 0x80, words))
    usable(found)
    assert found.lines[0] == "36736 bytes in 9 pages, from byte 0x80 of the first"
    assert found.lines[1].endswith("0x16000 and 1 more")
    assert found.lines[2] == "4 contiguous runs"
    assert found.data["pages"] == [0x1000 * n for n in (1, 2, 3, 9, 10, 20, 21, 22, 30)]


def test_errors_are_described() -> None:
    found = describe_error(ParseError(28, "num_params", Reason.TOO_MANY_PARAMS))
    usable(found)
    assert found.lines == (
        "cannot be decoded: at byte 28: num_params is above the 127 parameters "
        "that a message may have",
    )
