# SPDX-License-Identifier: BSD-2-Clause
"""The command ``decode``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mediator.command.decode as command
from smccc.message import Message, Param
from smccc.page_list import build_page_list
from tests.smccc.smccc_golden import records

SCHEMA = json.loads(
    (Path(command.__file__).parent / "decode.schema.json").read_text(encoding="utf-8")
)


VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(command.decode, arguments, input=stdin)


def good(*arguments: str, stdin: bytes = b"") -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refused(*arguments: str, stdin: bytes = b"") -> str:
    """Exit 2, nothing on standard output, one clean line on standard error."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.rstrip("\n")
    assert line.isprintable()
    return line


def decoded(*arguments: str, stdin: bytes = b"") -> list[dict[str, object]]:
    document = json.loads(good(*arguments, "--json", stdin=stdin))
    VALIDATOR.validate(document)
    found: list[dict[str, object]] = document["decoded"]
    return found


def test_registers_of_a_call_and_its_return() -> None:
    assert good("registers", "0xb2000009", "0", "--returned", "0 0x54 0x42 4") == (
        "EXCHANGE_CAPABILITIES: the normal world offers nothing\n"
        "returned: the secure world offers DYNAMIC_SHM, MEMREF_NULL, RPC_ARG; "
        "RPC arguments of 4 parameters\n"
    )


LOG = b"""# a call with an RPC, as a trace shows it
0x32000004 0 0x42000000 1 -> ffff0000 a0 0 1

32000003 0 0x43000000 1 0 77 -> 0  # done
"""


def test_registers_of_a_whole_conversation() -> None:
    text = (
        "CALL_WITH_ARG: process the message at 0x42000000\n"
        "returned: thread 1 asks for 160 bytes (RPC ALLOC)\n"
        "CALL_RETURN_FROM_RPC: resume thread 1: allocated at 0x43000000, cookie 0x77\n"
        "returned: completed; the result is in the message\n"
    )
    assert good("registers", stdin=LOG) == text
    assert good("registers", "-", stdin=LOG) == text
    assert good("registers", "--file", "-", stdin=LOG) == text
    kinds = [(entry["kind"], entry["name"]) for entry in decoded("registers", stdin=LOG)]
    assert kinds == [
        ("call", "CALL_WITH_ARG"),
        ("return", "RpcAlloc"),
        ("call", "CALL_RETURN_FROM_RPC"),
        ("return", "Completed"),
    ]


def test_registers_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "calls.txt"
    path.write_bytes(LOG)
    assert good("registers", "-f", str(path)).startswith("CALL_WITH_ARG")


def test_messages_in_every_form(tmp_path: Path) -> None:
    data = Message(1, func=7, session=1, params=(Param(1, 2, 3, 4),)).build()
    text = (
        "INVOKE_COMMAND: invoke command 0x7 in session 1, 1 parameter\n"
        "  params[0]: VALUE_INPUT a = 0x2, b = 0x3, c = 0x4\n"
    )
    assert good("message", data.hex()) == text
    assert good("message", "0x" + data[:32].hex(), data[32:].hex()) == text
    assert good("message", stdin=data) == text
    assert good("message", stdin=data.hex(" ", 4).encode() + b"\n") == text
    path = tmp_path / "message.bin"
    path.write_bytes(data.ljust(4096, b"\xee"))
    assert good("message", "--file", str(path)) == text


def test_message_options() -> None:
    rpc = Message(3, ret_origin=2, params=(Param(2, 5, 6),))
    assert good("message", "--rpc", "--answered", rpc.build().hex()) == (
        "GET_TIME: what time is it?\n"
        "  answered: SUCCESS from COMMS, 5.000000006 s\n"
        "  params[0]: VALUE_OUTPUT a = 0x5, b = 0x6, c = 0x0\n"
    )
    both = Message(2, session=4).build() + rpc.build()
    lines = good("message", "--with-rpc", "4", both.hex()).splitlines()
    assert lines[0] == "CLOSE_SESSION: close session 4"
    assert lines[1] == "  behind it at 0x20: GET_TIME: what time is it?"
    assert decoded("message", "--with-rpc", "1", both.hex())[0]["kind"] == "arguments"


def test_page_lists() -> None:
    built = build_page_list([0x5000, 0x6000, 0x9000], 0x4200_1000)
    text = good("page-list", "--buf-ptr", "0x42001080", "--size", "0x2f80", stdin=built[0][1])
    assert text == (
        "12160 bytes in 3 pages, from byte 0x80 of the first\n"
        "  pages 0x5000 0x6000 0x9000\n"
        "  2 contiguous runs\n"
    )
    long = build_page_list([0x1000 * n for n in range(1, 1001)], 0x4200_1000)
    stdin = b"".join([page for _, page in long])
    found = decoded("page-list", "--buf-ptr", "42001000", "--size", "4096000", stdin=stdin)
    assert found[0]["pages"] == [0x1000 * n for n in range(1, 1001)]


def test_function_ids() -> None:
    assert good("fid", "0x32000004") == (
        "0x32000004 is a yielding SMC32 call, owner 50 (trusted OS calls), function 0x4\n"
        "  it is called OPTEE_SMC_CALL_WITH_ARG\n"
    )
    vectors = records("function_id_vectors")[:50]
    stdin = "\n".join([vector["fid"] for vector in vectors]).encode()
    assert [entry["fid"] for entry in decoded("fid", stdin=stdin)] == [
        vector["fid"] for vector in vectors
    ]


def test_every_vector_is_decoded_to_the_published_keys() -> None:
    for vector in records("message_vectors"):
        found = decoded("message", stdin=vector["hex"].encode())
        assert found[0]["fields"] == vector["fields"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["registers", "0x1", "0xg"], b"", "argument: a1: '0xg' is not a hexadecimal number"),
        (["registers", "-1"], b"", "No such option"),
        (["registers", "1", "--returned", "x"], b"", "argument: a0: 'x' is not"),
        (["registers"], b"1\n1 2 3 4 5 6 7 8 9", "<stdin>:2: registers: 9 given"),
        (["registers"], b"1 ->\n", "<stdin>:1: registers: 0 given"),
        (["registers"], b"1\n\xff", "<stdin>:2: text: is not UTF-8"),
        (["registers"], b"10000000000000000", "<stdin>:1: a0: '10000000000000000' does not fit 64"),
        (["registers", "--returned", "0"], b"1", "--returned needs the registers of the call"),
        (["registers", "1", "--file", "x"], b"", "not both"),
        (["fid", "100000000"], b"", "argument: fid: '100000000' does not fit 32 bits"),
        (["fid"], b"1\n\n+2", "<stdin>:3: fid: '+2' is not a hexadecimal number"),
        (["fid", "1", "--file", "x"], b"", "not both"),
        (["message"], b"", "<stdin>: cmd: ends before the field does (byte 0)"),
        (["message"], b"\x00" * 13, "<stdin>: cancel_id: ends before the field does (byte 12)"),
        (["message", "000"], b"", "argument: hex text: has 3 digits, which is odd"),
        (["message", "0z"], b"", "argument: hex text: '0z' is not hexadecimal"),
        (["message", "00", "--file", "x"], b"", "not both"),
        (["message"], b"\xff" * 64, "<stdin>: num_params: is above the 127 parameters"),
        (["message", "--with-rpc", "0"], b"\0" * 39, "<stdin>: rpc.func: ends before"),
        (["message", "--rpc", "--with-rpc", "1"], b"", "exclude each other"),
        (["message", "--file", "/nowhere/at/all"], b"", "/nowhere/at/all: file: No such file"),
        (["message", "--file", "a\x00b"], b"", "'a\\x00b': file: bad name"),
        (["page-list", "--size", "many"], b"", "argument: size: 'many' is not a number"),
        (["page-list", "--size", "-1"], b"", "argument: size: '-1' does not fit 64 bits"),
        (["page-list", "--size", "0"], b"", "<stdin>: size: describes a buffer without a byte"),
        (["page-list", "--size", "0xffffffffffffffff"], b"", "<stdin>: size: needs more"),
        (["page-list", "--size", "1"], b"", "<stdin>: buf_ptr: names a page of the list"),
        (["page-list", "--size", "1"], b"\1", "<stdin>: list[0].pages[0]: is not the address"),
        (["page-list"], b"", "Missing option '--size'"),
    ],
)
def test_unusable_input_names_the_place(arguments: list[str], stdin: bytes, message: str) -> None:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


def test_hostile_text_is_shown_escaped() -> None:
    for text in ("\x1b[31mred\x1b[0m", "<script>", "[red]x[/red]", "a\u202eb", "\udcff"):
        line = refused("registers", text)
        assert "\x1b" not in line
        assert ascii(text)[1:5] in line
    assert len(refused("registers", "z" * 10_000)) < 120


def test_too_large_an_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "INPUT_LIMIT", 64)
    assert "is larger than 64 bytes" in refused("message", stdin=bytes(65))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200),
    st.sampled_from([["message"], ["registers"], ["fid"], ["page-list", "--size", "100"]]),
)
def test_any_input_is_decoded_or_refused(stdin: bytes, arguments: list[str]) -> None:
    result = run(*arguments, "--json", stdin=stdin)
    assert result.exit_code in (0, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 0:
        VALIDATOR.validate(json.loads(result.stdout))
    else:
        assert result.stdout == ""
        assert result.stderr.startswith("error: <stdin>")


@pytest.mark.parametrize("name", ["registers", "message", "page-list", "fid"])
def test_help_has_an_example(name: str) -> None:
    assert f"optee-mediator decode {name}" in good(name, "--help")
    assert f"decode {name}" in good("--help")
