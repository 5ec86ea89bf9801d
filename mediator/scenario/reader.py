# SPDX-License-Identifier: BSD-2-Clause
"""Reading scenario files: strict, and every complaint names file, line and field."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Final, cast

import attrs

from mediator.host import PAGE_LIST_ENTRIES
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import MediatorSettings
from mediator.scenario import declaration as declared
from mediator.scenario import model
from mediator.scenario.attacks import ATTACKS
from mediator.scenario.errors import ScenarioError
from mediator.scenario.fields import Document, Field, Table, Value
from mediator.scenario.model import (
    EventPlan,
    Expectations,
    GuestPlan,
    Limits,
    Scenario,
    Trigger,
    WorkloadPlan,
)
from mediator.scenario.toml_lines import KeyLines
from mediator.scenario.workloads import WORKLOADS
from secure_world.settings import SecureWorldSettings

MAX_BYTES: Final = 1 << 20
"""Bytes of a scenario file: written by people, so a larger one is something else."""

BUILTIN: Final = "builtin:"
"""Before the name of something that is in the package."""

DEFAULT: Final = "default"
RAM_BASE: Final = 0x4000_0000
PAGE_SIZE: Final = declared.PAGE_SIZE

_AT_LINE: Final = re.compile(r" ?\(at (?:line (\d+), column \d+|end of document)\)")


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file. Raises :class:`ScenarioError`."""
    shown = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ScenarioError(shown, 0, "", f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise ScenarioError(shown, 0, "", f"is larger than {MAX_BYTES} bytes")
    return parse_scenario(data, shown)


def builtin_scenario(name: str = DEFAULT) -> Scenario:
    """A scenario of the package. Raises :class:`ScenarioError` if there is none of that name."""
    if name not in builtin_names():
        known = ", ".join(builtin_names())
        raise ScenarioError(f"{BUILTIN}{name}", 0, "", f"is not one of {known}")
    file = resources.files("mediator.scenario").joinpath("data", f"{name}.toml")
    return parse_scenario(file.read_bytes(), f"{BUILTIN}{name}")


def builtin_names() -> tuple[str, ...]:
    """Names of the scenarios of the package, the default one first."""
    folder = resources.files("mediator.scenario").joinpath("data")
    names = [file.name[:-5] for file in folder.iterdir() if file.name.endswith(".toml")]
    return tuple(sorted(names, key=lambda name: (name != DEFAULT, name)))


def parse_scenario(data: bytes, path: str) -> Scenario:
    """Take the bytes of a scenario apart; ``path`` is for messages. Raises :class:`ScenarioError`."""
    document = _parse(data, path)
    version = document.values.get("version")
    if type(version) is int and version > model.VERSION:
        known = f"{model.FORMAT} version {version} is not known here (up to {model.VERSION})"
        raise document.error(("version",), known)
    values = document.top().read(declared.TOP)
    guests = tuple([_guest(table) for table in _tables(values["guest"])])
    _check_guests(document, guests)
    events = tuple([_event(table) for table in _tables(values["event"])])
    _check_events(document, guests, events)
    preset, mediator, shadow_pages = _mediator(_part(document, values, "mediator"))
    limits = _part(document, values, "limits").read(declared.LIMITS)
    expect = _part(document, values, "expect").read(declared.EXPECT)
    return Scenario(
        name=str(values["name"]),
        path=path,
        description=str(values["description"] or ""),
        seed=_int(values["seed"]),
        machine=_machine(_part(document, values, "platform")),
        mediator=mediator,
        preset=preset,
        secure_world=_secure_world(_part(document, values, "secure-world")),
        shadow_pages=shadow_pages,
        guests=guests,
        events=events,
        limits=Limits(steps=_int(limits["steps"]), time=_int(limits["time"])),
        expect=Expectations(rpcs=_names(expect["rpcs"]), calls=_int(expect["calls"])),
    )


def _parse(data: bytes, path: str) -> Document:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ScenarioError(path, line, "", "is not UTF-8 text") from None
    try:
        values: dict[str, object] = tomllib.loads(text)
    except RecursionError:
        raise ScenarioError(path, 0, "", "is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        found = _AT_LINE.search(reason)
        line = 0
        if found is not None:
            line = int(found[1]) if found[1] else len(text.splitlines())
        raise ScenarioError(path, line, "", f"is not TOML: {_AT_LINE.sub('', reason)}") from None
    except ValueError:  # an integer with more digits than Python converts
        lines = text.replace("_", "").splitlines()
        most = sys.get_int_max_str_digits()
        line = next(
            (n for n, one in enumerate(lines, 1) if re.search(rf"\d{{{most + 1}}}", one)), 0
        )
        raise ScenarioError(path, line, "", "is not TOML: a number has too many digits") from None
    return Document(path, values, KeyLines(text))


def _part(document: Document, values: dict[str, Value], key: str) -> Table:
    """A table of the top level, empty if it is absent."""
    tables = _tables(values[key])
    return tables[0] if tables else Table(document, (), {})


def _machine(table: Table) -> MachineSettings:
    values = table.read(declared.PLATFORM)
    return MachineSettings(
        pcpus=_int(values["pcpus"]),
        mode=Mode(values["mode"]),
        time_slice=_int(values["time-slice"]),
        quantum=_int(values["quantum"]),
    )


def _mediator(table: Table) -> tuple[str, MediatorSettings, int | None]:
    """Name of the preset, settings, and the most pages that the mediator may own."""
    values = table.read(declared.MEDIATOR)
    preset = str(values["preset"])
    base = MediatorSettings.reference() if preset == "reference" else MediatorSettings()
    changes = {
        field: _int(values[key])
        for key, field in (
            ("calls", "calls"),
            ("buffers", "buffers"),
            ("buffer-pages", "buffer_pages"),
            ("total-pages", "total_pages"),
            ("rpc-buffers", "rpc_buffers"),
        )
        if values[key] is not None
    }
    for key, field in (("walk-list-pages", "walk_entries"), ("pin-list-pages", "pin_entries")):
        if values[key] is not None:
            changes[field] = _int(values[key]) * PAGE_LIST_ENTRIES
    settings = attrs.evolve(base, limits=attrs.evolve(base.limits, **changes))
    if values["offers"] is not None:
        offered = 0
        for name in _names(values["offers"]):
            offered |= declared.CAPABILITIES[name]
        settings = attrs.evolve(settings, capabilities=offered)
    pages = values["shadow-pages"]
    return preset, settings, None if pages is None else _int(pages)


def _secure_world(table: Table) -> SecureWorldSettings:
    values = table.read(declared.SECURE_WORLD)
    return SecureWorldSettings(
        threads=_int(values["threads"]),
        guests=_int(values["guests"]),
        rpc_arg=bool(values["rpc-arg"]),
        null_memref=bool(values["null-memref"]),
        async_notifications=bool(values["async-notifications"]),
        rpc_cache=bool(values["rpc-cache"]),
    )


# Guests

_ONLY_FOR: Final = {
    "attacks": (model.HOSTILE,),
    "rounds": (model.HOSTILE,),
    "trace": (model.REPLAY,),
    "from": (model.REPLAY,),
    "to": (model.REPLAY,),
    "workload": (model.LINUX_6_1, model.LINUX_6_12),
    "lies": (model.LINUX_6_1, model.LINUX_6_12),
    "lie-every": (model.LINUX_6_1, model.LINUX_6_12),
    "supplicant": (model.LINUX_6_1, model.LINUX_6_12),
    "migrate-every": (model.LINUX_6_1, model.LINUX_6_12),
    "notifications": (model.LINUX_6_1, model.LINUX_6_12),
    "call-style": (model.LINUX_6_1, model.LINUX_6_12),
    "conduit": (model.LINUX_6_1, model.LINUX_6_12, model.REPLAY),
}
"""Keys that mean something for some kernels only."""


def _guest(table: Table) -> GuestPlan:
    values = table.read(declared.GUEST)
    kernel = str(values["kernel"])
    for key, kernels in _ONLY_FOR.items():
        if key in table.values and kernel not in kernels:
            raise table.error(key, f"means nothing for the kernel {kernel}")
    lies = _names(values["lies"])
    findings = values["findings"]
    if findings is None and kernel in (model.LINUX_6_1, model.LINUX_6_12) and not lies:
        findings = 0
    return GuestPlan(
        name=str(values["name"]),
        kernel=kernel,
        vcpus=_int(values["vcpus"]),
        ram=_ram(table, values),
        scatter=bool(values["scatter"]),
        hvc=values["conduit"] == "hvc",
        style=str(values["call-style"]),
        supplicant=bool(values["supplicant"]),
        notifications=bool(values["notifications"]),
        migrate_every=_int(values["migrate-every"]),
        lies=lies,
        lie_every=_int(values["lie-every"]),
        attacks=_names(values["attacks"]) or tuple(ATTACKS),
        rounds=_int(values["rounds"]),
        trace=str(values["trace"] or f"{BUILTIN}linux-session"),
        first=str(values["from"] or ""),
        last=str(values["to"] or ""),
        later=bool(values["later"]),
        same_id=str(values["same-id-as"] or ""),
        outcome=str(values["outcome"]),
        findings=None if findings is None else _int(findings),
        workloads=tuple([_workload(item) for item in _tables(values["workload"])]),
    )


def _ram(table: Table, values: dict[str, Value]) -> tuple[tuple[int, int], ...]:
    """(IPA, pages) of each extent."""
    if "ram" in table.values and "extents" in table.values:
        raise table.error("extents", "stands beside ram: give one of them")
    if values["kernel"] == model.REPLAY:
        if "ram" in table.values or "extents" in table.values:
            raise table.error("ram", "means nothing for the kernel replay: the trace says it")
        return ()
    if "extents" not in table.values:
        size = _int(values["ram"])
        if size % PAGE_SIZE:
            raise table.error("ram", f"{size} is no multiple of {PAGE_SIZE}")
        return ((RAM_BASE, size // PAGE_SIZE),)
    found: list[tuple[int, int]] = []
    for extent in _tables(values["extents"]):
        part = extent.read(declared.EXTENT)
        ipa, size = _int(part["ipa"]), _int(part["size"])
        if ipa % PAGE_SIZE or size % PAGE_SIZE:
            raise extent.error("", f"ipa and size must be multiples of {PAGE_SIZE}")
        if any(ipa < other + pages * PAGE_SIZE and other < ipa + size for other, pages in found):
            raise extent.error("", "overlaps another extent")
        found.append((ipa, size // PAGE_SIZE))
    if not found:
        raise table.error("extents", "is empty")
    return tuple(found)


def _workload(table: Table) -> WorkloadPlan:
    run = table.values.get("run")
    fields: tuple[Field, ...] = declared.COMMON_WORKLOAD
    if isinstance(run, str) and run in WORKLOADS:
        fields += WORKLOADS[run].fields
    values = table.read(fields)
    own = WORKLOADS[str(values["run"])].fields
    tolerate = _names(values["tolerate"])
    if values["run"] == "signals" and _int(values["instances"]) % 2:
        raise table.error("instances", "must be even: they work in pairs")
    if values["run"] == "large-memory" and _int(values["from"]) > _int(values["size"]):
        raise table.error("from", "is larger than size")
    return WorkloadPlan(
        run=str(values["run"]),
        instances=_int(values["instances"]),
        rounds=_int(values["rounds"]),
        forever=bool(values["forever"]),
        pause=_int(values["pause"]),
        tolerate=None
        if declared.ANY_ERROR in tolerate
        else frozenset([declared.ERRORS[name] for name in tolerate]),
        values={field.name: cast("bool | int | str", values[field.name]) for field in own},
    )


def _check_guests(document: Document, guests: tuple[GuestPlan, ...]) -> None:
    if not 0 < len(guests) <= declared.MAX_GUESTS:
        raise document.error(("guest",), f"{len(guests)} guests, not 1 to {declared.MAX_GUESTS}")
    seen: dict[str, int] = {}
    for index, guest in enumerate(guests):
        place = ("guest", index)
        if guest.name in seen:
            raise document.error((*place, "name"), f"is also that of guest[{seen[guest.name]}]")
        seen[guest.name] = index
    for index, guest in enumerate(guests):
        if guest.same_id and guest.same_id not in seen:
            raise document.error(("guest", index, "same-id-as"), "names no guest")
        if guest.same_id == guest.name:
            raise document.error(("guest", index, "same-id-as"), "names the guest itself")


# Events


def _event(table: Table) -> EventPlan:
    values = table.read(declared.EVENT)
    do = str(values["do"])
    guest = str(values["guest"] or "")
    given = [key for key in (model.AT, model.CALL, model.RPC, model.GONE) if key in table.values]
    if len(given) != 1:
        raise table.error("", "needs one of at, call, rpc and gone")
    if do == model.DENY_MEMORY and guest:
        raise table.error("guest", "means nothing here: the mediator's memory is denied")
    if do != model.DENY_MEMORY and not guest:
        raise table.error("", "the key guest is missing")
    for key, wanted in (
        ("pages", model.BALLOON),
        ("pinned", model.BALLOON),
        ("for", model.DENY_MEMORY),
    ):
        if (key in table.values) and do != wanted:
            raise table.error(key, f"means something for {wanted} only")
    for key, needed in (("pages", model.BALLOON), ("for", model.DENY_MEMORY)):
        if key not in table.values and do == needed:
            raise table.error("", f"the key {key} is missing")
    kind = given[0]
    number, whose = 0, str(values["of"] or guest)
    if kind == model.GONE:
        whose = str(values["gone"])
    else:
        number = _int(values[kind])
    if kind in (model.CALL, model.RPC) and not whose:
        raise table.error("", "the key of is missing: whose calls?")
    if "of" in table.values and kind not in (model.CALL, model.RPC):
        raise table.error("of", f"means nothing beside {kind}")
    return EventPlan(
        do=do,
        trigger=Trigger(kind=kind, number=number, guest=whose),
        guest=guest,
        pages=_int(values["pages"] or 0),
        pinned=bool(values["pinned"]),
        duration=_int(values["for"] or 0),
    )


def _check_events(
    document: Document, guests: tuple[GuestPlan, ...], events: tuple[EventPlan, ...]
) -> None:
    known = {guest.name: guest for guest in guests}
    created: dict[str, int] = {}
    for index, event in enumerate(events):
        place = ("event", index)
        trigger = event.trigger
        if event.guest and event.guest not in known:
            raise document.error((*place, "guest"), "names no guest")
        if trigger.kind != model.AT and trigger.guest not in known:
            key = model.GONE if trigger.kind == model.GONE else "of"
            raise document.error((*place, key), "names no guest")
        if event.do == model.CREATE:
            if not known[event.guest].later:
                raise document.error((*place, "guest"), "is created at the start (later = false)")
            if event.guest in created:
                other = created[event.guest]
                raise document.error((*place, "guest"), f"is created by event[{other}] already")
            created[event.guest] = index
        if event.do == model.BALLOON and known[event.guest].kernel in (model.HOSTILE, model.REPLAY):
            raise document.error((*place, "guest"), "has no balloon: it is no simulated kernel")
    doomed = {event.guest for event in events if event.do == model.DESTROY}
    for index, guest in enumerate(guests):
        if guest.later and guest.name not in created:
            raise document.error(("guest", index, "later"), "no event creates it")
        if guest.outcome == model.DESTROYED and guest.name not in doomed:
            raise document.error(("guest", index, "outcome"), "no event destroys it")
        for number, workload in enumerate(guest.workloads):
            if workload.forever and guest.name not in doomed:
                at = ("guest", index, "workload", number, "forever")
                raise document.error(at, "no event destroys the guest")


def _int(value: Value) -> int:
    assert type(value) is int
    return value


def _names(value: Value) -> tuple[str, ...]:
    if value is None:
        return ()
    assert isinstance(value, tuple)
    return value


def _tables(value: Value) -> list[Table]:
    return value if isinstance(value, list) else []
