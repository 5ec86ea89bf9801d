# SPDX-License-Identifier: BSD-2-Clause
"""Scenario files: what they mean, and that a wrong one is refused with file, line and field."""

from __future__ import annotations

import tomllib
from pathlib import Path

import attrs
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediator.command import versions
from mediator.hypervisor.scheduler import Mode
from mediator.optee.settings import MediatorSettings
from mediator.scenario import model
from mediator.scenario.declaration import schema as declared_schema
from mediator.scenario.errors import ScenarioError
from mediator.scenario.model import Scenario, WorkloadPlan
from mediator.scenario.reader import (
    MAX_BYTES,
    builtin_names,
    builtin_scenario,
    parse_scenario,
    read_scenario,
)
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from tests.scenario.support import ALPHA, DATA, HEADER, schema

GOLDEN = DATA / "scenario-v1.toml"


def parse(text: str) -> Scenario:
    return parse_scenario((HEADER + text).encode(), "file.toml")


def refusal(text: str, header: str = HEADER) -> ScenarioError:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario((header + text).encode(), "file.toml")
    return caught.value


# What is in a file


def test_the_golden_file_of_version_1() -> None:
    scenario = read_scenario(GOLDEN)
    assert attrs.evolve(scenario, path="").path == ""
    assert (scenario.name, scenario.seed, scenario.path) == ("golden", 42, str(GOLDEN))
    assert (scenario.machine.pcpus, scenario.machine.mode) == (3, Mode.INTERLEAVE)
    assert (scenario.machine.time_slice, scenario.machine.quantum) == (2_000_000, 50_000)
    limits = scenario.mediator.limits
    assert (limits.calls, limits.buffers, limits.buffer_pages) == (3, 20, 40)
    assert (limits.total_pages, limits.rpc_buffers) == (1000, 7)
    assert (limits.walk_entries, limits.pin_entries) == (2 * 511, 8 * 511)
    assert scenario.mediator.capabilities == smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM
    assert (scenario.preset, scenario.shadow_pages) == ("reference", 99)
    world = scenario.secure_world
    assert (world.threads, world.guests, world.rpc_arg, world.null_memref) == (5, 9, False, False)
    assert (world.async_notifications, world.rpc_cache) == (False, False)
    assert (scenario.limits.steps, scenario.limits.time) == (1_000_000, 3_000_000_000)
    assert (scenario.expect.rpcs, scenario.expect.calls) == (("FS", "ALLOC"), 5)
    first, second, third, fourth, fifth = scenario.guests
    assert first.ram == ((0x4000_0000, 256), (0x1_0000_0000, 512))
    assert (first.kernel, first.hvc, first.style) == (model.LINUX_6_1, True, model.CLASSIC)
    assert (first.vcpus, first.scatter, first.supplicant) == (4, False, False)
    assert (first.migrate_every, first.findings, first.outcome) == (7, 2, model.DESTROYED)
    assert (first.lies, first.lie_every) == (("null", "an error"), 9)
    assert first.workloads == (
        WorkloadPlan(
            run="large-memory",
            instances=2,
            rounds=3,
            forever=True,
            pause=1500,
            tolerate=frozenset([tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ERROR_BUSY]),
            values={"from": 4096, "size": 65536, "windows": 3},
        ),
        WorkloadPlan(run="values", tolerate=None),
    )
    assert (second.kernel, second.attacks, second.rounds) == (
        model.HOSTILE,
        ("lists", "threads"),
        6,
    )
    assert second.findings is None
    assert (third.trace, third.first, third.last) == ("other.jsonl", "probe", "unload")
    assert (fourth.later, fourth.same_id, fourth.findings) == (True, "one", 0)
    assert fifth == model.GuestPlan(
        name="five", ram=((0x4000_0000, 16384),), trace=fifth.trace, attacks=fifth.attacks
    )
    assert [(e.do, e.guest, e.trigger.kind, e.trigger.number) for e in scenario.events] == [
        ("destroy", "one", "at", 12_000_000),
        ("create", "four", "gone", 0),
        ("balloon", "five", "rpc", 3),
        ("deny-memory", "", "call", 4),
    ]
    assert [e.trigger.guest for e in scenario.events] == ["one", "one", "two", "five"]
    assert (scenario.events[2].pages, scenario.events[2].pinned) == (64, True)
    assert scenario.events[3].duration == 500


def test_defaults_are_those_of_the_parts() -> None:
    scenario = parse(ALPHA)
    assert scenario.mediator == MediatorSettings()
    assert scenario.guests[0].honest
    assert parse('[mediator]\npreset = "reference"\n' + ALPHA).mediator == (
        MediatorSettings.reference()
    )


def test_every_builtin_scenario_can_be_read() -> None:
    names = builtin_names()
    assert names[0] == "default"
    for name in names:
        scenario = builtin_scenario(name)
        assert (scenario.name, scenario.path) == (name, f"builtin:{name}")
        assert scenario.description
    with pytest.raises(ScenarioError, match="is not one of default, "):
        builtin_scenario("../default")


# The schema


def test_the_schema_in_the_wheel_is_the_declared_one() -> None:
    assert schema("scenario") == declared_schema()
    jsonschema.Draft202012Validator.check_schema(declared_schema())


def test_versions_are_listed() -> None:
    assert versions.FORMATS[model.FORMAT] == model.VERSION


@pytest.mark.parametrize("name", ["golden", *builtin_names()])
def test_the_schema_accepts_what_the_reader_accepts(name: str) -> None:
    data = Path(GOLDEN).read_bytes()
    if name != "golden":
        folder = Path(__file__).parents[2] / "mediator" / "scenario" / "data"
        data = (folder / f"{name}.toml").read_bytes()
    jsonschema.validate(tomllib.loads(data.decode()), schema("scenario"))


# What is refused

WRONG: list[tuple[str, int, str, str]] = [
    (ALPHA + "colour = 1\n", 7, "guest[0].colour", "is not known here"),
    ("[platfrom]\n" + ALPHA, 4, "platfrom", "is not known here"),
    (ALPHA + "vcpus = 0\n", 7, "guest[0].vcpus", "0 is not in 1..16"),
    (ALPHA + "vcpus = true\n", 7, "guest[0].vcpus", "must be a whole number, not true or false"),
    (ALPHA + "vcpus = 1.5\n", 7, "guest[0].vcpus", "not a number with a point"),
    (ALPHA + f"vcpus = {'9' * 300}\n", 7, "guest[0].vcpus", "a number of many digits"),
    (ALPHA + "vcpus = 1979-05-27\n", 7, "guest[0].vcpus", "not a date or time"),
    ("[[guest]]\n", 4, "guest[0]", "the key name is missing"),
    ('[[guest]]\nname = ""\n', 5, "guest[0].name", "must have 1 to 200 characters, not 0"),
    (f'[[guest]]\nname = "{"x" * 201}"\n', 5, "guest[0].name", "characters, not 201"),
    (ALPHA + 'kernel = "windows"\n', 7, "guest[0].kernel", "'windows' is none of linux-6.12"),
    (ALPHA + ALPHA, 8, "guest[1].name", "is also that of guest[0]"),
    ('[[guest]]\nname = "a"\nram = "64 MB"\n', 6, "guest[0].ram", "is not a size"),
    ('[[guest]]\nname = "a"\nram = 4097\n', 6, "guest[0].ram", "is not in 262144.."),
    ('[[guest]]\nname = "a"\nram = 262145\n', 6, "guest[0].ram", "no multiple of 4096"),
    ('[[guest]]\nname = "a"\nextents = []\n', 6, "guest[0].extents", "is empty"),
    (
        '[[guest]]\nname = "a"\nextents = [\n { ipa = 4096, size = 8192 },\n'
        " { ipa = 8192, size = 4096 } ]\n",
        6,
        "guest[0].extents[1]",
        "overlaps another extent",
    ),
    (
        '[[guest]]\nname = "a"\nextents = [{ ipa = 1, size = 8192 }]\n',
        6,
        "guest[0].extents[0]",
        "must be multiples of 4096",
    ),
    (ALPHA + "extents = [{ ipa = 0, size = 4096 }]\n", 7, "guest[0].extents", "beside ram"),
    (ALPHA + '[guest.workload]\nrun = "values"\n', 7, "guest[0].workload", "a list of tables"),
    (ALPHA + '[[guest.workload]]\nrun = "sleep"\n', 8, "guest[0].workload[0].run", "is none of"),
    (ALPHA + "[[guest.workload]]\n", 7, "guest[0].workload[0]", "the key run is missing"),
    (
        ALPHA + '[[guest.workload]]\nrun = "values"\nsize = 4\n',
        9,
        "guest[0].workload[0].size",
        "is not known here; known are run, ",
    ),
    (
        ALPHA + '[[guest.workload]]\nrun = "values"\nforever = true\n',
        9,
        "guest[0].workload[0].forever",
        "no event destroys the guest",
    ),
    (
        ALPHA + '[[guest.workload]]\nrun = "signals"\ninstances = 3\n',
        9,
        "guest[0].workload[0].instances",
        "must be even",
    ),
    (
        ALPHA + '[[guest.workload]]\nrun = "large-memory"\nfrom = 8192\nsize = 4096\n',
        9,
        "guest[0].workload[0].from",
        "is larger than size",
    ),
    (
        ALPHA + '[[guest.workload]]\nrun = "values"\npause = "5 min"\n',
        9,
        "guest[0].workload[0].pause",
        "is not a time in ns",
    ),
    (
        ALPHA + '[[guest.workload]]\nrun = "values"\ntolerate = ["FOO"]\n',
        9,
        "guest[0].workload[0].tolerate",
        "'FOO' is none of any, ",
    ),
    (
        ALPHA + '[[guest.workload]]\nrun = "values"\ntolerate = [1]\n',
        9,
        "guest[0].workload[0].tolerate",
        "must be a list of texts",
    ),
    (ALPHA + 'attacks = ["lists"]\n', 7, "guest[0].attacks", "nothing for the kernel linux-6.12"),
    (
        '[[guest]]\nname = "a"\nkernel = "hostile"\nsupplicant = true\n',
        7,
        "guest[0].supplicant",
        "nothing for the kernel hostile",
    ),
    (
        '[[guest]]\nname = "a"\nkernel = "replay"\nram = "16MiB"\n',
        7,
        "guest[0].ram",
        "the trace says it",
    ),
    (ALPHA + 'lies = ["a white one"]\n', 7, "guest[0].lies", "'a white one' is none of"),
    (ALPHA + "later = true\n", 7, "guest[0].later", "no event creates it"),
    (ALPHA + 'outcome = "destroyed"\n', 7, "guest[0].outcome", "no event destroys it"),
    (ALPHA + 'same-id-as = "beta"\n', 7, "guest[0].same-id-as", "names no guest"),
    (ALPHA + 'same-id-as = "alpha"\n', 7, "guest[0].same-id-as", "names the guest itself"),
    (ALPHA + '[[event]]\ndo = "destroy"\nat = 1\n', 7, "event[0]", "the key guest is missing"),
    (
        ALPHA + '[[event]]\ndo = "destroy"\nguest = "alpha"\n',
        7,
        "event[0]",
        "needs one of at, call, rpc and gone",
    ),
    (
        ALPHA + '[[event]]\ndo = "destroy"\nguest = "alpha"\nat = 1\nrpc = 2\n',
        7,
        "event[0]",
        "needs one of at, call, rpc and gone",
    ),
    (
        ALPHA + '[[event]]\ndo = "destroy"\nguest = "beta"\nat = 1\n',
        9,
        "event[0].guest",
        "names no guest",
    ),
    (
        ALPHA + '[[event]]\ndo = "destroy"\nguest = "alpha"\ngone = "beta"\n',
        10,
        "event[0].gone",
        "names no guest",
    ),
    (
        ALPHA + '[[event]]\ndo = "destroy"\nguest = "alpha"\nat = 1\nof = "alpha"\n',
        11,
        "event[0].of",
        "means nothing beside at",
    ),
    (
        ALPHA + '[[event]]\ndo = "create"\nguest = "alpha"\nat = 1\n',
        9,
        "event[0].guest",
        "is created at the start",
    ),
    (
        ALPHA + "later = true\n" + '[[event]]\ndo = "create"\nguest = "alpha"\nat = 1\n' * 2,
        14,
        "event[1].guest",
        "is created by event[0] already",
    ),
    (
        ALPHA + '[[event]]\ndo = "balloon"\nguest = "alpha"\nat = 1\n',
        7,
        "event[0]",
        "the key pages is missing",
    ),
    (
        ALPHA + '[[event]]\ndo = "destroy"\nguest = "alpha"\nat = 1\npages = 3\n',
        11,
        "event[0].pages",
        "means something for balloon only",
    ),
    (
        '[[guest]]\nname = "m"\nkernel = "hostile"\n'
        '[[event]]\ndo = "balloon"\nguest = "m"\nat = 1\npages = 3\n',
        9,
        "event[0].guest",
        "has no balloon",
    ),
    (
        ALPHA + '[[event]]\ndo = "deny-memory"\nguest = "alpha"\nat = 1\nfor = 1\n',
        9,
        "event[0].guest",
        "means nothing here",
    ),
    (
        ALPHA + '[[event]]\ndo = "deny-memory"\ncall = 1\nfor = 1\n',
        7,
        "event[0]",
        "the key of is missing",
    ),
    ("", 1, "", "the key guest is missing"),
    ("guest = []\n", 4, "guest", "0 guests, not 1 to 256"),
    ("guest = 3\n", 4, "guest", "must be a list of tables, not a number"),
    ("guest = [3]\n", 4, "guest", "must be a list of tables"),
    (ALPHA + "[platform]\nmode = 3\n", 8, "platform.mode", "must be one of the choices"),
    ("platform = 3\n" + ALPHA, 4, "platform", "must be a table, not a number"),
    (ALPHA + "[mediator]\nbuffers = 0\n", 8, "mediator.buffers", "0 is not in 1.."),
    (ALPHA + '[expect]\nrpcs = "FS"\n', 8, "expect.rpcs", "must be a list of choices, not a text"),
]


@pytest.mark.parametrize(
    ("text", "line", "field", "reason"), WRONG, ids=[f"{i}-{row[2]}" for i, row in enumerate(WRONG)]
)
def test_a_mistake_is_named_with_line_and_field(
    text: str, line: int, field: str, reason: str
) -> None:
    error = refusal(text)
    assert (error.path, error.line, error.field) == ("file.toml", line, field)
    assert reason in error.reason
    assert str(error).startswith(f"file.toml:{line}: ")


def test_a_newer_version_is_refused_by_name() -> None:
    header = HEADER.replace("version = 1", "version = 2")
    error = refusal(ALPHA, header)
    assert (error.line, error.field) == (2, "version")
    assert error.reason == "optee-mediator-scenario version 2 is not known here (up to 1)"


def test_another_format_is_refused() -> None:
    error = refusal(ALPHA, HEADER.replace("optee-mediator-scenario", "rules"))
    assert (error.line, error.field) == (1, "format")


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"a = 1\nb = \xff\n", 2, "is not UTF-8 text"),
        (b"a = 1\n= 2\n", 2, "is not TOML: Invalid statement"),
        (b"a = 1\n\na = 2\n", 3, "is not TOML: Cannot overwrite a value"),
        (b"a = 1\nb = [", 2, "is not TOML: Invalid value"),
        (b"a = " + b"[" * 100_000, 0, "is nested too deeply"),
        (b"a = 1\nb = 1_" + b"1" * 10_000 + b"\n", 2, "is not TOML: a number has too many digits"),
        (b"\x00", 1, "is not TOML"),
    ],
    ids=["utf8", "statement", "twice", "end", "deep", "digits", "nul"],
)
def test_what_is_no_toml(data: bytes, line: int, reason: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(data, "file.toml")
    assert (caught.value.line, caught.value.field) == (line, "")
    assert caught.value.reason.startswith(reason)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ScenarioError) as caught:
            read_scenario(path)
        assert caught.value.line == 0
        assert reason in caught.value.reason
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ScenarioError, match="is larger than 1048576 bytes"):
        read_scenario(large)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(ScenarioError):
        parse_scenario(data, "file.toml")


PIECES = st.sampled_from([*GOLDEN.read_text("utf-8").splitlines(), *[row[0] for row in WRONG]])


@given(st.lists(PIECES, max_size=12))
def test_any_mixture_of_lines_is_read_or_refused(lines: list[str]) -> None:
    text = HEADER + "\n".join(lines)
    found: ScenarioError | None = None
    try:
        parse_scenario(text.encode(), "file.toml")
    except ScenarioError as error:
        found = error
    if found is not None:
        assert 0 <= found.line <= text.count("\n") + 1
    else:
        jsonschema.validate(tomllib.loads(text), declared_schema())
