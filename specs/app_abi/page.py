# SPDX-License-Identifier: BSD-2-Clause
"""The app ABI as a page for people: ``python -m specs.app_abi.page > docs/reference/app_abi.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from specs.app_abi import AppAbi, Argument, Named, SyscallSpec, app_abi

HEAD: Final = """\
# The app ABI

Version {major}.{minor}: what a mediator in a process of its own and its hypervisor say to each other ({{doc}}`/concepts/el0-app`).
This page is made from `specs/app_abi/app_abi.toml` by `python -m specs.app_abi.page`; so are header and client for C
({{doc}}`/howto/app-in-c`). `optee-mediator abi --json` prints the definition.

Within a major version nothing changes its number, place or meaning; what is new raises the minor version. A hypervisor refuses
a major version that it does not know, by name.
"""

PAYLOADS: Final = """\
A payload is *bytes*; *words* (u64 each); *text* (UTF-8, no end mark); *json* (UTF-8); *registers* (x0 to x7, u64 each); or
*segments*: for each a u32 offset and a u32 length, then the data of all, one after the other. All words are little-endian."""

MANIFEST: Final = """\
## Manifest

A TOML file says what an app is, what it may use, and what it gets; `--app` and
{{py:func}}`mediator.deployment.el0_app.manifest.load` read it. What is not listed is refused and counted. *Ranges* are arrays of
`[first, last]`, both inclusive. This is the one of the app of the page on C:

```toml
{example}```
"""

EXAMPLE: Final = """\
format = "optee-mediator-app-manifest"
version = 1
name = "hello"
program = "hello"

syscalls = ["SMC", "REGISTER_HOOK"]
forward = [[0x32000000, 0x3fffffff], [0xb2000000, 0xbfffffff]]

[hooks]
smc = [[0xbf00ff01, 0xbf00ff01]]
"""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    titles = list(head)
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join([cell.replace('|', chr(92) + '|') for cell in row])} |"
    yield ""


def _named(title: str, values: Iterable[Named], bits: bool = False) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    head = ("bit" if bits else "value", "name", "meaning")
    yield from _table(head, [(str(v.value), f"`{v.name}`", v.doc) for v in values])


def _arguments(title: str, arguments: Iterable[Argument]) -> Iterator[str]:
    found = [f"`{argument.name}` ({argument.type}: {argument.unit})" for argument in arguments]
    if found:
        yield f": {title}: {'; '.join(found)}."


def _payload(title: str, kind: str, doc: str) -> Iterator[str]:
    if kind != "none":
        yield f": {title}: {kind}{f', {doc}' if doc else ''}."


def _call(call: SyscallSpec) -> Iterator[str]:
    yield f"`{call.name}` ({call.number}){', may be posted' if call.posted else ''}"
    yield f": {call.doc}"
    yield from _arguments("Arguments", call.args)
    yield from _payload("Payload", call.payload, call.payload_doc)
    yield from _arguments("Results", call.results)
    yield from _payload("Payload of the RESULT", call.payload_out, call.payload_out_doc)
    if call.statuses:
        yield f": Statuses: {', '.join([f'`{name}`' for name in call.statuses])}."
    yield ""


def page(spec: AppAbi) -> Iterator[str]:
    """The lines of ``docs/reference/app_abi.md``."""
    yield HEAD.format(major=spec.major, minor=spec.minor)
    yield "## Transport"
    yield ""
    for name, text in spec.transport.items():
        yield f"- {name.capitalize()}: {text}"
    yield ""
    yield f"Every message is a header of {spec.header_size} bytes, then its payload. {PAYLOADS}"
    yield ""
    yield from _table(
        ("byte", "field", "type", "meaning"),
        [
            (
                str(field.offset),
                f"`{field.name}`",
                field.type if field.count == 1 else f"{field.count} × {field.type}",
                field.doc,
            )
            for field in spec.header
        ],
    )
    yield "### Kinds of messages"
    yield ""
    for kind in spec.kinds:
        yield f"`{kind.name}` ({kind.number}), from the {kind.sender}"
        yield f": {kind.doc}"
        yield from _arguments("Arguments", kind.args)
        yield from _payload("Payload", kind.payload, kind.payload_doc)
        yield ""
    yield from _named("Flags", spec.flags, bits=True)
    yield from _named("Capabilities of an app", spec.capabilities, bits=True)
    yield from _named("Offers of the hypervisor", spec.offers, bits=True)
    yield from _named("Statuses of a RESULT", spec.statuses)
    yield from _named("Outcomes of a RETURN", spec.outcomes)
    yield "### Limits"
    yield ""
    yield from _table(
        ("name", "value", "unit", "of what"),
        [(f"`{limit.name}`", str(limit.value), limit.unit, limit.doc) for limit in spec.limits],
    )
    yield "### Hooks"
    yield ""
    yield from _table(
        ("number", "name", "range of", "meaning"),
        [(str(hook.number), f"`{hook.name}`", hook.unit, hook.doc) for hook in spec.hooks],
    )
    yield "## Entries"
    yield ""
    for entry in spec.entries:
        yield f"`{entry.name}` ({entry.number})"
        yield f": {entry.doc}"
        yield from _arguments("Arguments", entry.args)
        yield from _arguments("With what is read ahead", entry.args_ahead)
        yield from _payload("Payload", entry.payload, "")
        yield f": Outcomes: {', '.join([f'`{name}`' for name in entry.outcomes])}."
        yield from _arguments("Results", entry.results)
        yield from _payload("Payload of the RETURN", entry.payload_out, entry.payload_out_doc)
        yield ""
    yield "## System calls"
    yield ""
    yield "Every system call may also be answered `BAD_ARGUMENT`, `NOT_ALLOWED`, `NO_SUCH_CALL` or `HOST_FAILED`."
    yield "The guest is always that of the entry; in INIT, HANDLE_TIMER, HANDLE_INTERRUPT and RESTORE any that was created."
    yield ""
    for call in spec.syscalls:
        yield from _call(call)
    yield MANIFEST.format(example=EXAMPLE)
    yield from _table(
        ("key", "type", "", "meaning"),
        [
            (f"`{key.key}`", key.type, "required" if key.required else "", key.doc)
            for key in spec.manifest
        ],
    )


def text() -> str:
    """The page."""
    lines = "\n".join(page(app_abi())).rstrip() + "\n"
    # The definition speaks of its own tables.
    return re.sub(r"\[\[(\w+)\]\]", r"\1", lines)


if __name__ == "__main__":
    print(text(), end="")
