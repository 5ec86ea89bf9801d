# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator abi``: the app ABI for people, as JSON, and for C."""

from __future__ import annotations

import json
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import click

from specs import app_abi
from specs.app_abi import c

WIDTH: Final = 100

EXAMPLES: Final = """
\b
Examples:
  optee-mediator abi | less
  optee-mediator abi --json | jq '.syscall[] | {number, name}'
  optee-mediator abi --c src

\b
Exit codes: 0 all well, 2 the files cannot be written.
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--c",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Write {', '.join(c.FILES)} into DIR.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the definition as JSON.")
def abi(directory: Path | None, as_json: bool) -> None:
    """What an app outside of the hypervisor may say, and what it is told, field by field.

    With --c a header and a client in C99 that need nothing but the C library, and the numbers of
    the OP-TEE ABI. --json then says what was written instead of the definition.
    """
    if directory is not None:
        _write(directory, as_json)
    elif as_json:
        text = resources.files(app_abi).joinpath("app_abi.toml").read_text("utf-8")
        click.echo(json.dumps(tomllib.loads(text), indent=2))
    else:
        for line in _page(app_abi.app_abi()):
            click.echo(line)


def _write(directory: Path, as_json: bool) -> None:
    try:
        written = [str(path) for path in c.write(directory)]
    except OSError as error:
        click.echo(f"error: {directory}: {error.strerror or error}", err=True)
        sys.exit(2)
    if as_json:
        click.echo(json.dumps({"written": written}, indent=2))
    else:
        for path in written:
            click.echo(path)


def _page(spec: app_abi.AppAbi) -> Iterator[str]:
    yield f"App ABI {spec.major}.{spec.minor}"
    for name, sentence in spec.transport.items():
        yield from _entry(name, sentence)
    yield from ("", f"Header, {spec.header_size} bytes, little-endian")
    for field in spec.header:
        count = f"[{field.count}]" if field.count > 1 else ""
        yield from _entry(f"{field.offset:3} {field.type} {field.name}{count}", field.doc)
    yield from ("", "Messages")
    for kind in spec.kinds:
        yield from _entry(f"{kind.number:3} {kind.name}, from the {kind.sender}", kind.doc)
        yield from _words("args", kind.args)
    for title, items in (
        ("Flags", [(f"bit {bit.value} {bit.name}", bit.doc) for bit in spec.flags]),
        ("Capabilities", [(f"bit {bit.value} {bit.name}", bit.doc) for bit in spec.capabilities]),
        ("Offers", [(f"bit {bit.value} {bit.name}", bit.doc) for bit in spec.offers]),
        ("Statuses", [(f"{item.value:3} {item.name}", item.doc) for item in spec.statuses]),
        ("Outcomes", [(f"{item.value:3} {item.name}", item.doc) for item in spec.outcomes]),
        (
            "Limits",
            [(f"{item.name} = {item.value} {item.unit}", item.doc) for item in spec.limits],
        ),
        ("Hooks", [(f"{item.number:3} {item.name}", item.doc) for item in spec.hooks]),
    ):
        yield from ("", title)
        for name, doc in items:
            yield from _entry(name, doc)
    yield from ("", "Entries")
    for entry in spec.entries:
        yield from _entry(f"{entry.number:3} {entry.name}", entry.doc)
        yield from _words("args", entry.args)
        yield from _words("args with READ_AHEAD", entry.args_ahead)
        yield from _payload("payload", entry.payload, "")
        yield from _words("results", entry.results)
        yield from _payload("payload back", entry.payload_out, entry.payload_out_doc)
        yield f"        outcomes: {', '.join(entry.outcomes)}"
    yield from ("", "System calls")
    for call in spec.syscalls:
        posted = ", may be posted" if call.posted else ""
        yield from _entry(f"{call.number:3} {call.name}{posted}", call.doc)
        yield from _words("args", call.args)
        yield from _payload("payload", call.payload, call.payload_doc)
        yield from _words("results", call.results)
        yield from _payload("payload back", call.payload_out, call.payload_out_doc)
        if call.statuses:
            yield f"        statuses: {', '.join(call.statuses)}"
    yield from ("", "Manifest")
    for key in spec.manifest:
        required = ", required" if key.required else ""
        yield from _entry(f"{key.key} ({key.type}{required})", key.doc)


def _entry(name: str, doc: str) -> list[str]:
    indent = " " * 8
    return textwrap.wrap(f"{name}: {doc}", WIDTH, initial_indent="  ", subsequent_indent=indent)


def _words(title: str, words: Sequence[app_abi.Argument]) -> Iterator[str]:
    for word in words:
        yield f"        {title}: {word.name}, {word.type}: {word.unit}"


def _payload(title: str, kind: str, doc: str) -> Iterator[str]:
    if kind != "none":
        yield f"        {title}: {kind}" + (f", {doc}" if doc else "")
