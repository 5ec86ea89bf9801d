# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator decode``: registers, messages, page lists and function ids, explained."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple, NoReturn, TypeVar

import click

from smccc import describe
from smccc.calls import Call, RpcRequest, parse_call
from smccc.describe import Description, Json
from smccc.errors import ParseError
from smccc.message import parse_arguments, parse_message
from smccc.page_list import PAGE_SIZE, entry_count, read_page_list
from smccc.registers import MASK64, REGISTERS, RegisterFrame

FORMAT: Final = "optee-mediator-decode"
VERSION: Final = 1

INPUT_LIMIT: Final = 64 << 20
"""Bytes that are read from a file: enough for the list of 15 GiB, so more is a mistake."""

MAX_ENTRIES: Final = INPUT_LIMIT // 8
"""Page list entries that fit the largest input; a size that needs more is refused at once."""

STDIN: Final = "-"

T = TypeVar("T")

EXAMPLES: Final = """
\b
Examples:
  optee-mediator decode registers 0xb2000009 0
  optee-mediator decode registers 0xb2000009 0 --returned "0 0x54 0x42 4"
  optee-mediator decode registers --file trace.txt
  optee-mediator decode message 0200000000000000010000...
  optee-mediator decode message --file page.bin --with-rpc 4
  optee-mediator decode page-list --file list.bin --buf-ptr 0x42001080 --size 10000
  optee-mediator decode fid 0x32000004 0xc4000003

\b
Exit codes: 0 decoded, 2 unusable input.
"""


class Unusable(click.ClickException):
    """Input that cannot be decoded: file, line and field, and exit code 2."""

    exit_code = 2

    def __init__(self, where: str, field: str, problem: str) -> None:
        super().__init__(f"{where}: {field}: {problem}")

    def show(self, file: IO[str] | None = None) -> None:
        """As the other commands say it."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class Source(NamedTuple):
    """Bytes to decode and the name that errors give them."""

    name: str
    data: bytes


def _shown(text: str) -> str:
    """Foreign text on one line with control characters escaped."""
    shown = ascii(text)
    return shown if len(shown) <= 40 else f"{shown[:36]}...'"


def _read(name: str) -> Source:
    """The content of a file, or of standard input for ``-``."""
    label = "<stdin>" if name == STDIN else _printable(name)
    try:
        if name == STDIN:
            data = sys.stdin.buffer.read(INPUT_LIMIT + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(INPUT_LIMIT + 1)
    except (OSError, ValueError) as error:
        # ValueError: a name with a NUL.
        raise Unusable(label, "file", getattr(error, "strerror", None) or "bad name") from None
    if len(data) > INPUT_LIMIT:
        raise Unusable(label, "file", f"is larger than {INPUT_LIMIT} bytes")
    return Source(label, data)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


_HEX_TEXT: Final = re.compile(rb"(?:0[xX])?[0-9A-Fa-f\s,_]+")


def _as_bytes(source: Source) -> Source:
    """Hexadecimal text becomes the bytes that it spells; anything else is binary already."""
    text = source.data.strip()
    if not text or not _HEX_TEXT.fullmatch(text):
        return source
    digits = re.sub(rb"[\s,_]", b"", text.removeprefix(b"0x").removeprefix(b"0X"))
    if len(digits) % 2:
        raise Unusable(source.name, "hex text", f"has {len(digits)} digits, which is odd")
    return Source(source.name, bytes.fromhex(digits.decode("ascii")))


def _arguments(words: Sequence[str]) -> Source:
    text = "".join(words)
    if not _HEX_TEXT.fullmatch(text.encode("utf-8", "surrogateescape")):
        raise Unusable("argument", "hex text", f"{_shown(text)} is not hexadecimal")
    return _as_bytes(Source("argument", text.encode("ascii")))


def _bytes_of(words: Sequence[str], file: str | None) -> Source:
    """What to decode: the arguments, a file, or standard input."""
    if words and file is not None:
        raise click.UsageError("give either hexadecimal text or --file, not both")
    if words and list(words) != [STDIN]:
        return _arguments(words)
    return _as_bytes(_read(file or STDIN))


_HEX_NUMBER: Final = re.compile(r"(?:0[xX])?[0-9A-Fa-f]{1,64}", re.ASCII)


def _number(text: str, where: str, field: str, limit: int = MASK64) -> int:
    # With or without 0x, as traces print registers; int() alone takes signs and spaces too.
    if not _HEX_NUMBER.fullmatch(text):
        raise Unusable(where, field, f"{_shown(text)} is not a hexadecimal number")
    value = int(text, 16)
    if value > limit:
        raise Unusable(where, field, f"{_shown(text)} does not fit {limit.bit_length()} bits")
    return value


def _frame(words: Sequence[str], where: str) -> RegisterFrame:
    if not 1 <= len(words) <= REGISTERS:
        raise Unusable(where, "registers", f"{len(words)} given, 1 to {REGISTERS} make a frame")
    return RegisterFrame.of(*[_number(word, where, f"a{n}") for n, word in enumerate(words)])


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


class _Lines(NamedTuple):
    where: str
    call: list[str]
    returned: list[str] | None


def _lines(source: Source) -> Iterator[_Lines]:
    """Lines of ``a0 a1 ... [-> a0 a1 ...]``; empty lines and ``#`` comments are skipped."""
    try:
        text = source.data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = source.data.count(b"\n", 0, error.start) + 1
        raise Unusable(f"{source.name}:{bad}", "text", "is not UTF-8") from None
    empty = True
    for number, line in enumerate(text.split("\n"), 1):
        content = line.partition("#")[0].strip()
        if content:
            empty = False
            call, arrow, returned = content.partition("->")
            yield _Lines(
                f"{source.name}:{number}", _words(call), _words(returned) if arrow else None
            )
    if empty:
        raise Unusable(source.name, "text", "has nothing to decode")


def _emit(found: Sequence[Description], as_json: bool) -> None:
    if as_json:
        decoded: list[Json] = [description.data for description in found]
        click.echo(json.dumps({"format": FORMAT, "version": VERSION, "decoded": decoded}))
    else:
        for description in found:
            click.echo(str(description))


def _parsed(source: Source, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ParseError as error:
        _refuse(source.name, error)


def _refuse(where: str, error: ParseError) -> NoReturn:
    raise Unusable(where, error.field, f"{error.reason.value} (byte {error.offset})") from None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
file_option = click.option(
    "-f", "--file", metavar="FILE", help="Read FILE; - is standard input, the default."
)


@click.group(epilog=EXAMPLES)
def decode() -> None:
    """Explain registers, messages, page lists and function ids.

    Sentences for people, JSON for programs. Input comes from arguments, a file or standard input;
    bytes may be hexadecimal text or binary.
    """


@decode.command(epilog="\b\nExample:\n  optee-mediator decode registers 0x32000004 0 0x42000000 1")
@click.argument("registers", nargs=-1, metavar="[A0 [A1 ...]]")
@click.option("--returned", metavar="A0,A1,...", help="The registers that came back.")
@file_option
@json_option
def registers(
    registers: tuple[str, ...], returned: str | None, file: str | None, as_json: bool
) -> None:
    """Explain the registers of a call and of its return, in hexadecimal.

    A file has a call on each line, `a0 a1 ...`, if it is known with what came back:
    `a0 a1 ... -> a0 a1 ...`. An RPC and its answer on the next line belong together.
    """
    if registers and file is not None:
        raise click.UsageError("give either registers or --file, not both")
    if registers and list(registers) != [STDIN]:
        back = None if returned is None else _words(returned)
        lines: Iterator[_Lines] = iter([_Lines("argument", list(registers), back)])
    elif returned is not None:
        raise click.UsageError("--returned needs the registers of the call as arguments")
    else:
        lines = _lines(_read(file or STDIN))
    found: list[Description] = []
    pending: RpcRequest | None = None
    for where, words, back in lines:
        frame = _frame(words, where)
        found.append(describe.describe_call(frame, pending))
        call: Call = parse_call(frame)
        pending = None
        if back is not None:
            answer = _frame(back, where)
            found.append(describe.describe_return(answer, call))
            result = call.parse_return(answer)
            pending = result if isinstance(result, RpcRequest) else None
    _emit(found, as_json)


@decode.command(
    epilog="\b\nExample:\n  optee-mediator decode message --file message.bin --answered"
)
@click.argument("hex_text", nargs=-1, metavar="[HEX...]")
@click.option("--rpc", is_flag=True, help="It is the argument of an RPC.")
@click.option(
    "--with-rpc",
    type=click.IntRange(0, 127),
    metavar="N",
    help="Behind the message is an RPC argument with room for N parameters.",
)
@click.option("--answered", is_flag=True, help="It came back: results mean something.")
@file_option
@json_option
def message(
    hex_text: tuple[str, ...],
    rpc: bool,
    with_rpc: int | None,
    answered: bool,
    file: str | None,
    as_json: bool,
) -> None:
    """Explain the bytes of a message (struct optee_msg_arg); bytes behind it are ignored."""
    if rpc and with_rpc is not None:
        raise click.UsageError("--rpc and --with-rpc exclude each other")
    source = _bytes_of(hex_text, file)
    if with_rpc is not None:
        both = _parsed(source, lambda: parse_arguments(source.data, with_rpc))
        found = describe.describe_arguments(both, answered=answered)
    else:
        one = _parsed(source, lambda: parse_message(source.data))
        found = describe.describe_message(one, rpc=rpc, answered=answered)
    _emit([found], as_json)


@decode.command(
    "page-list",
    epilog="\b\nExample:\n  optee-mediator decode page-list -f list.bin --buf-ptr 0x42001080 --size 9000",
)
@click.argument("hex_text", nargs=-1, metavar="[HEX...]")
@click.option(
    "--size", required=True, metavar="BYTES", help="Size of the buffer (decimal, or 0x...)."
)
@click.option(
    "--buf-ptr",
    default="0",
    metavar="ADDRESS",
    help="The parameter's buf_ptr (hexadecimal); the list pages are read as lying from its page on.",
)
@file_option
@json_option
def page_list(
    hex_text: tuple[str, ...], size: str, buf_ptr: str, file: str | None, as_json: bool
) -> None:
    """Explain the adjacent pages of a non-contiguous page list.

    Links are followed, so they must lead to pages that were given; a short last page is filled up
    with zeros.
    """
    try:
        length = int(size, 0)
    except ValueError:
        raise Unusable("argument", "size", f"{_shown(size)} is not a number") from None
    if not 0 <= length <= MASK64:
        raise Unusable("argument", "size", f"{_shown(size)} does not fit 64 bits")
    address = _number(buf_ptr, "argument", "buf_ptr")
    source = _bytes_of(hex_text, file)
    base = address - address % PAGE_SIZE
    entries = entry_count(address % PAGE_SIZE, length)

    def page_at(where: int) -> bytes | None:
        page = source.data[where - base : where - base + PAGE_SIZE] if where >= base else b""
        return page.ljust(PAGE_SIZE, b"\0") if page else None

    listed = _parsed(
        source, lambda: read_page_list(page_at, address, length, min(entries, MAX_ENTRIES))
    )
    _emit([describe.describe_page_list(listed)], as_json)


@decode.command(epilog="\b\nExample:\n  optee-mediator decode fid 0x32000004")
@click.argument("ids", nargs=-1, metavar="[ID...]")
@file_option
@json_option
def fid(ids: tuple[str, ...], file: str | None, as_json: bool) -> None:
    """Explain function ids: 32-bit values in hexadecimal; a file has them separated by space."""
    if ids and file is not None:
        raise click.UsageError("give either function ids or --file, not both")
    words: Sequence[tuple[str, str]]
    if ids and list(ids) != [STDIN]:
        words = [("argument", word) for word in ids]
    else:
        lines = _lines(_read(file or STDIN))
        words = [(line.where, word) for line in lines for word in line.call]
    found = [
        describe.describe_function_id(_number(word, where, "fid", 0xFFFF_FFFF))
        for where, word in words
    ]
    _emit(found, as_json)
