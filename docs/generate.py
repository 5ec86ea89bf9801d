# SPDX-License-Identifier: BSD-2-Clause
"""Writes the pages of the reference that are made from data and code.

``python docs/generate.py`` writes them; tests/docs/test_generated.py fails while one is out of date.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import cast

import fuzz
import mediator
import secure_world
import smccc
import specs
from smccc.constants import arm_smccc, optee_msg, optee_rpc, optee_smc, psci, tee

DOCS = Path(__file__).parent
PACKAGES = (mediator, secure_world, smccc, fuzz, specs)

Row = dict[str, object]


@cache
def abi_table() -> dict[str, dict[str, object]]:
    """The sections of abi.toml."""
    return tomllib.loads((DOCS / "abi.toml").read_text("utf-8"))


def rows(section: str) -> list[Row]:
    """The rows of a section of abi.toml."""
    return cast("list[Row]", abi_table()[section]["rows"])


HEADERS = (optee_smc, optee_msg, optee_rpc, arm_smccc, psci, tee)


def value_of(section: str, name: str) -> int:
    """The number that a header gives to a name of a section, or the table itself."""
    for row in rows(section):
        if row["name"] == name and "id" in row:
            return cast("int", row["id"])
    full = cast("str", abi_table()[section]["prefix"]) + name
    for module in HEADERS:
        if hasattr(module, full):
            return cast("int", getattr(module, full))
    raise KeyError(full)


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table in Markdown."""
    names = list(head)
    yield "| " + " | ".join(names) + " |"
    yield "|" + " --- |" * len(names)
    for line in lines:
        yield "| " + " | ".join(cell.replace("|", "\\|") or " " for cell in line) + " |"
    yield ""


def _behaviour(row: Row, does: str, says: str) -> str:
    return ": ".join(str(row[key]) for key in (does, says) if row.get(key))


def _reference(row: Row) -> str:
    found = _behaviour(row, "reference", "reference_says")
    same = row.get("reference", row.get("does")) == row.get("does")
    return "the same" if same and not row.get("reference_says") else found


def _shown_by(row: Row) -> str:
    out = []
    for name in cast("list[str]", row.get("shows", [])):
        path, _, test = name.partition("::")
        title = test.replace("::", ".")
        out.append(f"[{title}](../../{path})" if test else f"`{name}`")
    return ", ".join(out)


ABI_HEAD = """\
# The ABI, function by function

What the mediator does with each SMC function, message command, RPC, capability and return code, what the recorded reference
mediator does, and what shows it: a rule ({doc}`/deviations` has its sentence and the behaviour vectors that test it), and at
least one test that can be run by its name. The word that a cell begins with is checked against the mediator itself, for the
reference under the preset that stands for it (`MediatorSettings.reference()`, `ServiceSettings.reference()`), and nothing
that the headers name is missing. Written by `docs/generate.py` from `docs/abi.toml`.

*answered*: the TEE is not asked. *forwarded*: it is asked the same function, with the guest's client id and no argument
of the guest that the function does not define. *mediated*: a message is shadowed and translated, or a request handled
({doc}`/concepts/calls`). *relayed*: a request goes to the guest and its answer to the TEE, copied, and no address with
either. *refused*: -1, or EBADCMD for a message command; the TEE does not learn of it.
"""


def _section(section: str, name: str, number: str, show: Callable[[int], str]) -> Iterator[str]:
    yield from table(
        (name, number, "default", "reference mediator", "shown by"), _rows(section, show)
    )


def _word(value: int) -> str:
    return f"`{value:#010x}`"


def _bit(value: int) -> str:
    return str(value.bit_length() - 1)


def abi_page() -> Iterator[str]:
    """The table of the whole ABI."""
    yield ABI_HEAD
    yield "## SMC functions"
    yield ""
    yield "Result registers are named; all others keep what the guest put there."
    yield ""
    yield from _section("functions", "function", "id", _word)
    yield "Every other function id is refused (`offer.hidden-functions`, `smccc.optee-smc32-only`)."
    yield ""
    yield "## Message commands"
    yield ""
    yield from _section("commands", "command", "number", str)
    yield "## RPCs"
    yield ""
    yield from _section("rpcs", "RPC", "a0", _word)
    yield "Unknown RPC functions suspend the call like FOREIGN_INTR does (`rpc.recognised`)."
    yield ""
    yield "The commands in an RPC argument. The type of memory that SHM_ALLOC asks for, and the functions within FS, SOCKET and"
    yield "the others, are between the TEE and whoever serves them."
    yield ""
    yield from _section("rpc_commands", "RPC command", "number", str)
    yield "The two operations of NOTIFICATION (once called WAIT_QUEUE, with SLEEP and WAKEUP):"
    yield ""
    yield from _section("waits", "operation", "value a", str)
    yield "## Capabilities"
    yield ""
    yield "Of the TEE's answer to EXCHANGE_CAPABILITIES a guest sees these bits:"
    yield ""
    yield from _section("capabilities", "capability", "bit", _bit)
    yield "Of what the guest says about itself the TEE sees:"
    yield ""
    yield from _section("normal_world", "capability", "bit", _bit)
    yield "## Return codes of the mediator itself"
    yield ""
    yield "Codes of the TEE are passed on. The mediator gives one of its own:"
    yield ""
    yield from _section("statuses", "code", "value", _word)
    yield "In messages it gives these results of its own:"
    yield ""
    yield from _section("results", "result", "value", _word)
    yield "## Services of the hypervisor"
    yield ""
    yield "What the reference host answers itself, next to the mediator ({py:mod}`mediator.hypervisor.services`). Ids of all other"
    yield "owners are refused, and so are FF-A calls, as OP-TEE's transport, too (`smccc.owner-ranges`, `smccc.reserved-bits`)."
    yield ""
    yield from _section("services", "function", "id", _word)


def rpc_command_names() -> list[str]:
    """Names of all RPC commands in the order of their numbers."""
    prefix = "OPTEE_RPC_CMD_"
    found: dict[int, str] = {}
    for name, value in vars(optee_rpc).items():
        if name.startswith(prefix):
            found.setdefault(value, name)
    return [found[value].removeprefix(prefix) for value in sorted(found)]


def _rows(section: str, show: Callable[[int], str]) -> Iterator[tuple[str, ...]]:
    for row in rows(section):
        name = str(row["name"])
        number = show(value_of(section, name))
        yield name, number, _behaviour(row, "does", "says"), _reference(row), _shown_by(row)


def modules() -> Iterator[str]:
    """Names of all modules of the distribution."""
    for package in PACKAGES:
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield found.name


def event_classes() -> Iterator[tuple[str, list[type]]]:
    """Modules of events and their named tuples, in the order of the source."""
    for name in modules():
        if not name.rpartition(".")[2].endswith("events"):
            continue
        module = importlib.import_module(name)
        classes = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, tuple)
            and hasattr(value, "_fields")
            and value.__module__ == name
        ]
        if classes:
            yield name, classes


def _flat(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def events_page() -> Iterator[str]:
    """All events of all packages."""
    yield "# Events"
    yield ""
    yield "Every part takes a `sink`, a callable that gets each event as it happens; the default is none and costs one branch."
    yield "Events are named tuples of plain values, and carry no time: whoever records them asks the machine's clock. Checkers,"
    yield "traces and logs are sinks. A {py:class}`~mediator.scenario.platform.Platform` hands the events of all its parts to each"
    yield "of its `sinks`. Written by `docs/generate.py` from the code."
    yield ""
    for name, classes in event_classes():
        module = importlib.import_module(name)
        yield f"## `{name}`"
        yield ""
        yield _flat(inspect.getdoc(module) or "")
        yield ""
        yield from table(
            ("event", "fields", "meaning"),
            (
                (
                    f"`{event.__name__}`",
                    ", ".join(f"`{field}`" for field in cast("tuple[str, ...]", vars(event)["_fields"])),
                    _flat(inspect.getdoc(event) or ""),
                )
                for event in classes
            ),
        )  # fmt: skip


def schemas() -> Iterator[tuple[str, str]]:
    """(package path, title) of every JSON Schema in the distribution."""
    for package in PACKAGES:
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.schema.json")):
            document = json.loads(path.read_text("utf-8"))
            yield f"{package.__name__}/{path.relative_to(root).as_posix()}", str(document["title"])


def formats_page() -> Iterator[str]:
    """File formats, schemas, exit codes."""
    yield "# Formats, versions, exit codes"
    yield ""
    yield "Every file and every JSON output names its format and an integer version. Readers accept all earlier versions and refuse"
    yield "a newer one by name. The JSON Schemas (2020-12) are in the wheel:"
    yield ""
    yield from table(
        ("schema", "what it describes"), ((f"`{path}`", title) for path, title in schemas())
    )
    yield "A rule file and a scenario are TOML; their schemas describe what TOML reads as. A snapshot of the mediator"
    yield "(`optee-mediator-state`) is plain data in memory and has no file format of its own."
    yield ""
    yield "The versions that a build knows:"
    yield ""
    yield "```console"
    yield "$ optee-mediator --version --json"
    yield "{"
    yield "..."
    yield "}"
    yield "```"
    yield ""
    from mediator.command import versions

    yield from table(
        ("format", "version"),
        ((name, str(version)) for name, version in sorted(versions.FORMATS.items())),
    )
    yield "## Exit codes"
    yield ""
    yield from table(
        ("code", "meaning"),
        (
            ("0", "all well"),
            ("1", "a difference, a violated invariant, a workload that failed, a planted error that was missed"),
            ("2", "unusable input or usage: the message on standard error names file, line and field"),
        ),
    )  # fmt: skip
    yield "With `--json` standard output is one JSON document and nothing else; progress and errors go to standard error."


def _default(field: object) -> str:
    from mediator.scenario.fields import Field, Kind

    assert isinstance(field, Field)
    if field.required:
        return "required"
    value = field.default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.kind is Kind.DURATION and isinstance(value, int):
        return f"`{duration(value)}`"
    if field.kind is Kind.SIZE and isinstance(value, int):
        return f"`{size(value)}`"
    return f"`{value}`"


def duration(ns: int) -> str:
    """A time as a scenario would say it."""
    for unit, length in (("s", 10**9), ("ms", 10**6), ("us", 1000)):
        if ns and not ns % length:
            return f"{ns // length}{unit}"
    return str(ns)


def size(length: int) -> str:
    """A size as a scenario would say it."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if length and not length & (1 << shift) - 1:
            return f"{length >> shift}{unit}"
    return str(length)


def _keys(fields: Iterable[object]) -> Iterator[str]:
    from mediator.scenario.fields import Field

    found = [field for field in fields if isinstance(field, Field)]
    yield from table(
        ("key", "holds", "default", "what it says"),
        (
            (
                f"`{field.name}`",
                _choices(field.choices) or field.kind.value,
                _default(field),
                field.help,
            )
            for field in found
        ),
    )


def _choices(choices: tuple[str, ...]) -> str:
    if len(choices) > MANY:
        return "names"
    return ", ".join(f"`{choice}`" for choice in choices)


MANY = 12
"""Choices that are listed after the table instead of in it."""


def scenario_page() -> Iterator[str]:
    """All keys of a scenario."""
    from mediator.scenario import declaration
    from mediator.scenario.attacks import ATTACKS
    from mediator.scenario.workloads import WORKLOADS

    yield "# Keys of a scenario"
    yield ""
    yield "{doc}`/howto/scenario` shows how to write one. Written by `docs/generate.py` from `mediator/scenario/declaration.py`, which is"
    yield "also where the reader and the JSON Schema come from."
    yield ""
    sections = (
        ("The file", declaration.TOP),
        ("`[platform]`", declaration.PLATFORM),
        ("`[mediator]`", declaration.MEDIATOR),
        ("`[secure-world]`", declaration.SECURE_WORLD),
        ("`[[guest]]`", declaration.GUEST),
        ("`[[guest.extents]]`", declaration.EXTENT),
        ("`[[guest.workload]]`", declaration.COMMON_WORKLOAD),
        ("`[[event]]`", declaration.EVENT),
        ("`[expect]`", declaration.EXPECT),
        ("`[limits]`", declaration.LIMITS),
    )
    for title, fields in sections:
        yield f"## {title}"
        yield ""
        yield from _keys(fields)
    yield "## Workloads"
    yield ""
    yield "Each `run` may have keys of its own."
    yield ""
    yield from table(
        ("workload", "what it does", "its keys"),
        (
            (
                f"`{kind.name}`",
                kind.help,
                "; ".join(
                    f"`{field.name}` ({_default(field).strip('`') or 'unset'}): {field.help}"
                    for field in kind.fields
                ),
            )
            for kind in WORKLOADS.values()
        ),
    )
    yield "## Attacks of a hostile guest"
    yield ""
    yield ", ".join(f"`{name}`" for name in ATTACKS) + "."
    yield ""
    yield "## Lies of a driver"
    yield ""
    from mediator.guest.hostile import LIES

    yield ", ".join(f"`{name}`" for name in LIES) + "."
    yield ""
    yield "## Errors that a workload may tolerate"
    yield ""
    yield (
        "`any`, or names of results without TEE_ERROR_: "
        + ", ".join(f"`{name}`" for name in declaration.ERRORS)
        + "."
    )
    yield ""
    yield "## RPCs that must have occurred"
    yield ""
    yield ", ".join(f"`{name}`" for name in declaration.RPC_KINDS) + "."


PAGES = {
    "reference/abi.md": abi_page,
    "reference/events.md": events_page,
    "reference/formats.md": formats_page,
    "reference/scenario.md": scenario_page,
}


def text_of(name: str) -> str:
    """The text of a page."""
    return "\n".join(PAGES[name]()).rstrip() + "\n"


if __name__ == "__main__":
    for page in PAGES:
        (DOCS / page).write_text(text_of(page), "utf-8", newline="\n")
        print(DOCS / page)
