# SPDX-License-Identifier: BSD-2-Clause
"""The app ABI as data: what an app in a process of its own may say, field by field.

It stands in ``app_abi.toml`` beside this module; the C header and the reference page are made from
it, and the constants that the Python side runs on (:mod:`mediator.deployment.app_abi`) are tested
against it. The file format is described by ``app_abi.schema.json``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Final, TypeVar

from attrs import frozen

FORMAT: Final = "optee-mediator-app-abi"
VERSION: Final = 1
"""The newest version of the format that this reader knows; it accepts all earlier ones."""

Table = Mapping[str, object]
T = TypeVar("T")


class AppAbiError(ValueError):
    """A definition that cannot be used: ``place`` (table and entry) and the reason."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


@frozen
class HeaderField:
    """A field of the message header; ``count`` of them, at byte ``offset``."""

    name: str
    type: str
    count: int
    offset: int
    doc: str


@frozen
class Argument:
    """An argument or result: a 64-bit word with a type and a unit."""

    name: str
    type: str
    unit: str


@frozen
class Named:
    """A named value: a bit number, a status, an outcome."""

    name: str
    value: int
    doc: str


@frozen
class Limit:
    """A named number with its unit."""

    name: str
    value: int
    unit: str
    doc: str


@frozen
class Hook:
    """A kind of event that an app can be entered for."""

    number: int
    name: str
    unit: str
    doc: str


@frozen
class Kind:
    """A kind of message and the side that sends it."""

    number: int
    name: str
    sender: str
    doc: str
    args: tuple[Argument, ...]
    payload: str
    payload_doc: str


@frozen
class Entry:
    """Something that an app is asked to do. ``args_ahead``: what follows ``args`` if the app has the
    capability READ_AHEAD."""

    number: int
    name: str
    doc: str
    args: tuple[Argument, ...]
    payload: str
    outcomes: tuple[str, ...]
    results: tuple[Argument, ...]
    payload_out: str
    payload_out_doc: str
    args_ahead: tuple[Argument, ...]


@frozen
class SyscallSpec:
    """Something that an app may ask for. ``posted``: it may do so without an answer."""

    number: int
    name: str
    doc: str
    posted: bool
    answered: bool
    args: tuple[Argument, ...]
    payload: str
    payload_doc: str
    results: tuple[Argument, ...]
    payload_out: str
    payload_out_doc: str
    statuses: tuple[str, ...]


@frozen
class ManifestKey:
    """A key of an app's manifest."""

    key: str
    type: str
    required: bool
    doc: str


@frozen
class AppAbi:
    """The whole definition, everything in the order of the file."""

    major: int
    minor: int
    transport: Mapping[str, str]
    header_size: int
    header: tuple[HeaderField, ...]
    kinds: tuple[Kind, ...]
    flags: tuple[Named, ...]
    capabilities: tuple[Named, ...]
    offers: tuple[Named, ...]
    statuses: tuple[Named, ...]
    outcomes: tuple[Named, ...]
    limits: tuple[Limit, ...]
    hooks: tuple[Hook, ...]
    entries: tuple[Entry, ...]
    syscalls: tuple[SyscallSpec, ...]
    manifest: tuple[ManifestKey, ...]


@cache
def app_abi() -> AppAbi:
    """The definition that comes with the package."""
    return parse(resources.files(__package__).joinpath("app_abi.toml").read_text("utf-8"))


def parse(text: str) -> AppAbi:
    """A definition from TOML. Raises :class:`AppAbiError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AppAbiError("file", str(error)) from error
    if document.get("format") != FORMAT:
        raise AppAbiError("format", f"{document.get('format')!r} is not {FORMAT!r}")
    if document.get("version") != VERSION:
        raise AppAbiError("version", f"{document.get('version')!r} is not known, only {VERSION}")
    abi, header = _table(document, "abi"), _table(document, "header")
    result = AppAbi(
        _int(abi, "major"),
        _int(abi, "minor"),
        {key: str(value) for key, value in _table(document, "transport").items()},
        _int(header, "size"),
        _list(header, "fields", _header_field),
        _list(document, "kind", _kind),
        _list(document, "flag", lambda item: _named(item, "bit")),
        _list(document, "capability", lambda item: _named(item, "bit")),
        _list(document, "offer", lambda item: _named(item, "bit")),
        _list(document, "status", lambda item: _named(item, "value")),
        _list(document, "outcome", lambda item: _named(item, "value")),
        _list(document, "limit", _limit),
        _list(document, "hook", _hook),
        _list(document, "entry", _entry),
        _list(document, "syscall", _syscall),
        _list(document, "manifest", _manifest_key),
    )
    _unique("syscall", [str(call.number) for call in result.syscalls])
    _unique("syscall", [call.name for call in result.syscalls])
    _unique("entry", [str(entry.number) for entry in result.entries])
    _unique("status", [str(status.value) for status in result.statuses])
    return result


def _unique(place: str, values: Sequence[str]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise AppAbiError(place, f"{value} occurs twice")


def _table(parent: Table, key: str) -> Table:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise AppAbiError(key, "a table is needed")
    return value


def _list(parent: Table, key: str, make: Callable[[Table], T]) -> tuple[T, ...]:
    value = parent.get(key, [])
    if not isinstance(value, list):
        raise AppAbiError(key, "an array of tables is needed")
    made: list[T] = []
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise AppAbiError(f"{key} {index}", "a table is needed")
        try:
            made.append(make(item))
        except AppAbiError as error:
            name = item.get("name", index)
            raise AppAbiError(f"{key} {name}: {error.place}", error.reason) from None
    return tuple(made)


def _text(item: Table, key: str, default: str | None = None) -> str:
    value = item.get(key, default)
    if not isinstance(value, str):
        raise AppAbiError(key, "a text is needed")
    return value


def _int(item: Table, key: str, default: int | None = None) -> int:
    value = item.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise AppAbiError(key, "an integer is needed")
    return value


def _bool(item: Table, key: str, default: bool | None = None) -> bool:
    value = item.get(key, default)
    if not isinstance(value, bool):
        raise AppAbiError(key, "true or false is needed")
    return value


def _names(item: Table, key: str) -> tuple[str, ...]:
    value = item.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AppAbiError(key, "an array of names is needed")
    return tuple([str(name) for name in value])


def _header_field(item: Table) -> HeaderField:
    return HeaderField(
        _text(item, "name"),
        _text(item, "type"),
        _int(item, "count", 1),
        _int(item, "offset"),
        _text(item, "doc"),
    )


def _argument(item: Table) -> Argument:
    return Argument(_text(item, "name"), _text(item, "type"), _text(item, "unit"))


def _named(item: Table, key: str) -> Named:
    return Named(_text(item, "name"), _int(item, key), _text(item, "doc"))


def _limit(item: Table) -> Limit:
    return Limit(_text(item, "name"), _int(item, "value"), _text(item, "unit"), _text(item, "doc"))


def _hook(item: Table) -> Hook:
    return Hook(_int(item, "number"), _text(item, "name"), _text(item, "unit"), _text(item, "doc"))


def _kind(item: Table) -> Kind:
    return Kind(
        _int(item, "number"),
        _text(item, "name"),
        _text(item, "from"),
        _text(item, "doc"),
        _list(item, "args", _argument),
        _text(item, "payload", "none"),
        _text(item, "payload_doc", ""),
    )


def _entry(item: Table) -> Entry:
    return Entry(
        _int(item, "number"),
        _text(item, "name"),
        _text(item, "doc"),
        _list(item, "args", _argument),
        _text(item, "payload"),
        _names(item, "outcomes"),
        _list(item, "results", _argument),
        _text(item, "payload_out"),
        _text(item, "payload_out_doc", ""),
        _list({"args_ahead": [], **item}, "args_ahead", _argument),
    )


def _syscall(item: Table) -> SyscallSpec:
    return SyscallSpec(
        _int(item, "number"),
        _text(item, "name"),
        _text(item, "doc"),
        _bool(item, "posted"),
        _bool(item, "answered", True),
        _list(item, "args", _argument),
        _text(item, "payload"),
        _text(item, "payload_doc", ""),
        _list(item, "results", _argument),
        _text(item, "payload_out"),
        _text(item, "payload_out_doc", ""),
        _names(item, "statuses"),
    )


def _manifest_key(item: Table) -> ManifestKey:
    return ManifestKey(
        _text(item, "key"), _text(item, "type"), _bool(item, "required"), _text(item, "doc")
    )
