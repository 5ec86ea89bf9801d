# SPDX-License-Identifier: BSD-2-Clause
"""The app ABI: one definition, and nothing in the code that differs from it."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.command import versions
from mediator.deployment import app_abi as abi
from mediator.deployment.el0_app import manifest
from mediator.deployment.el0_app.server import POSTABLE
from mediator.optee.syscalls import Syscall
from specs.app_abi import AppAbi, AppAbiError, Argument, app_abi, parse
from specs.app_abi.page import EXAMPLE, text

GOLDEN = Path(__file__).parent / "data" / "app_abi-1.0.txt"
SIZES = {"u16": 2, "u32": 4, "u64": 8, "i64": 8}


@pytest.fixture
def spec() -> AppAbi:
    return app_abi()


def _text(name: str) -> str:
    return resources.files("specs.app_abi").joinpath(name).read_text("utf-8")


def test_the_file_fits_its_schema() -> None:
    document = tomllib.loads(_text("app_abi.toml"))
    jsonschema.validate(document, json.loads(_text("app_abi.schema.json")))


def test_version(spec: AppAbi) -> None:
    assert (spec.major, spec.minor) == (abi.MAJOR, abi.MINOR)
    assert versions.all_versions()["app_abi"] == f"{spec.major}.{spec.minor}"


def test_header(spec: AppAbi) -> None:
    assert spec.header_size == abi.HEADER_SIZE == abi.HEADER.size
    at = 0
    for field in spec.header:
        assert field.offset == at
        at += SIZES[field.type] * field.count
    assert at == spec.header_size
    letters = {"u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
    spelled = "".join(letters[field.type] * field.count for field in spec.header)
    assert spelled == abi.HEADER.format.lstrip("<").replace("8Q", "Q" * 8)


def test_every_constant_is_the_one_of_the_definition(spec: AppAbi) -> None:
    expected = {kind.name: kind.number for kind in spec.kinds}
    expected |= {f"FLAG_{flag.name}": 1 << flag.value for flag in spec.flags}
    expected |= {f"CAP_{bit.name}": 1 << bit.value for bit in spec.capabilities}
    expected |= {f"OFFER_{bit.name}": 1 << bit.value for bit in spec.offers}
    expected |= {status.name: status.value for status in spec.statuses}
    expected |= {f"OUTCOME_{outcome.name}": outcome.value for outcome in spec.outcomes}
    expected |= {f"ENTRY_{entry.name}": entry.number for entry in spec.entries}
    expected |= {f"HOOK_{hook.name}": hook.number for hook in spec.hooks}
    expected |= {limit.name: limit.value for limit in spec.limits}
    # What the definition says in sentences.
    own = {"MAJOR", "MINOR", "HEADER_SIZE", "NO_GUEST", "INIT_START", "INIT_PROBE", "INIT_KNOWN"}
    own.add("INIT_RESET")
    found = {name: value for name, value in vars(abi).items() if name.isupper()}
    ints = {name: value for name, value in found.items() if isinstance(value, int)}
    assert {name: value for name, value in ints.items() if name not in own} == expected


def test_every_syscall_has_its_number(spec: AppAbi) -> None:
    assert {call.name: call.number for call in spec.syscalls} == {
        call.name: call.value for call in Syscall
    }


def test_every_name_that_is_used_is_defined(spec: AppAbi) -> None:
    statuses = {status.name for status in spec.statuses}
    outcomes = {outcome.name for outcome in spec.outcomes}
    for call in spec.syscalls:
        assert set(call.statuses) <= statuses
        assert call.answered == bool(call.statuses)
        if call.posted:
            assert not call.results
            assert call.payload_out == "none"
    for entry in spec.entries:
        assert set(entry.outcomes) <= outcomes


def told(spec: AppAbi) -> list[str]:
    """All that two sides must agree about, a line each; no sentences."""

    def words(arguments: tuple[Argument, ...]) -> str:
        return " ".join([f"{argument.name}:{argument.type}" for argument in arguments])

    lines = [
        f"header {field.name} {field.type}*{field.count} at {field.offset}" for field in spec.header
    ]
    for kind in spec.kinds:
        lines.append(f"kind {kind.number} {kind.name} ({words(kind.args)}) {kind.payload}")
    for name in ("flags", "capabilities", "offers", "statuses", "outcomes"):
        lines += [f"{name} {value.value} {value.name}" for value in getattr(spec, name)]
    lines += [f"limit {limit.name} {limit.value} {limit.unit}" for limit in spec.limits]
    lines += [f"hook {hook.number} {hook.name}" for hook in spec.hooks]
    for entry in spec.entries:
        lines.append(
            f"entry {entry.number} {entry.name} ({words(entry.args)}) {entry.payload}"
            f" -> {' '.join(entry.outcomes)} ({words(entry.results)}) {entry.payload_out}"
        )
    for call in spec.syscalls:
        lines.append(
            f"syscall {call.number} {call.name} ({words(call.args)}) {call.payload}"
            f" -> {' '.join(call.statuses)} ({words(call.results)}) {call.payload_out}"
            f"{' posted' if call.posted else ''}"
        )
    for key in spec.manifest:
        lines.append(f"manifest {key.key} {key.type}{' required' if key.required else ''}")
    return lines


def test_the_golden_definition_of_version_1(spec: AppAbi) -> None:
    """Of a version that is out nothing changes. What is new comes with a new minor version, and the
    file gets its line: ``python -m tests.el0_app.test_app_abi > tests/el0_app/data/app_abi-1.0.txt``
    as long as 1.0 is not out."""
    golden = GOLDEN.read_text("utf-8").splitlines()
    found = told(spec)
    assert spec.major == 1
    assert [line for line in golden if line not in found] == []
    if spec.minor == 0:
        assert found == golden


def test_what_may_be_posted_is_what_the_definition_says(spec: AppAbi) -> None:
    assert {call.number for call in spec.syscalls if call.posted} == set(POSTABLE)


def test_keys_of_a_manifest_are_those_of_the_definition(spec: AppAbi) -> None:
    keys = {key.key for key in spec.manifest}
    assert keys == {*manifest._KEYS - {"hooks"}, *[f"hooks.{key}" for key in manifest._HOOK_KEYS]}


def test_the_manifest_of_the_page_can_be_read() -> None:
    assert manifest.parse(EXAMPLE).syscalls > {Syscall.SMC}


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "app_abi.md"
    assert page.read_text("utf-8") == text(), "python -m specs.app_abi.page writes it"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("version = 1\n", "version = 2\n", "version: 2 is not known"),
        ('format = "optee', 'format = "other', "format: "),
        ("number = 27", "number = 26", "syscall: 26 occurs twice"),
        ('name = "TRACE"\ndoc = "An event', 'doc = "An event', "syscall 27: name: "),
        ("posted = true", 'posted = "yes"', "syscall LOG: posted: true or false"),
    ],
)
def test_a_definition_that_cannot_be_used_says_where(old: str, new: str, complaint: str) -> None:
    with pytest.raises(AppAbiError, match=complaint):
        parse(_text("app_abi.toml").replace(old, new, 1))


@given(st.lists(st.tuples(st.integers(0, 4096), st.binary(max_size=64)), max_size=20))
def test_segments_survive_the_wire(segments: list[tuple[int, bytes]]) -> None:
    inside = all(offset + len(data) <= 4096 for offset, data in segments)
    packed = abi.pack_segments(segments)
    assert abi.unpack_segments(len(segments), packed, 4096) == (segments if inside else None)


@given(st.integers(0, 600), st.binary(max_size=256))
def test_any_payload_can_be_unpacked_or_refused(count: int, payload: bytes) -> None:
    segments = abi.unpack_segments(count, payload, 4096)
    if segments is not None:
        assert abi.pack_segments(segments) == payload


if __name__ == "__main__":
    print("\n".join(told(app_abi())))
