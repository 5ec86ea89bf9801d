# SPDX-License-Identifier: BSD-2-Clause
"""``--deployment el0-app``, ``--app`` and ``--require-isolation`` of all commands that take them."""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from mediator.command import main
from mediator.deployment.el0_app.launch import LAYERS
from mediator.deployment.el0_app.manifest import OPTEE_SYSCALLS, python_image_hash
from mediator.optee.syscalls import Syscall
from tests.replay.golden import SESSION
from tests.scenario.support import ALPHA, HEADER
from tests.vectors.golden import BEHAVIOUR

APP = ("--deployment", "el0-app")
SCHEMAS = {
    "run": ("mediator.scenario", "report.schema.json"),
    "replay": ("specs.replay", "report.schema.json"),
    "vectors": ("specs.vectors", "report.schema.json"),
}
COMMANDS = ("run", "replay", "vectors")
VECTORS = 40
Given = dict[str, tuple[Path, ...]]

MANIFEST = f"""\
format = "optee-mediator-app-manifest"
version = 1
name = "optee-mediator"
program = "python:mediator.app"
sha256 = "HASH"
syscalls = {json.dumps([Syscall(call).name for call in sorted(OPTEE_SYSCALLS)])}
forward = [[0x32000000, 0x3FFFFFFF], [0xB2000000, 0xBFFFFFFF]]
virqs = [[0, 1019]]

[hooks]
smc = [[0x32000000, 0x3FFFFFFF], [0xB2000000, 0xBFFFFFFF]]
interrupt = [[0, 1019]]
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Something small for each command; nothing for ``live``."""
    folder = tmp_path_factory.mktemp("given")
    scenario, vectors = folder / "scenario.toml", folder / "behaviour.jsonl"
    scenario.write_text(HEADER + ALPHA + '[[guest.workload]]\nrun = "values"\n')
    lines = gzip.decompress(BEHAVIOUR.read_bytes()).splitlines(keepends=True)
    vectors.write_bytes(b"".join(lines[:VECTORS]))
    return {"run": (scenario,), "replay": (SESSION,), "vectors": (vectors,), "live": ()}


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def report(command: str, *arguments: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(call(command, "--json", *arguments).stdout)
    package, name = SCHEMAS[command]
    text = resources.files(package).joinpath(name).read_text("utf-8")
    jsonschema.validate(document, json.loads(text))
    return document


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    path = tmp_path / "my_app.toml"
    path.write_text(hashed(MANIFEST))
    return path


def hashed(text: str) -> str:
    """With the hash of the image as it is now."""
    return text.replace("HASH", python_image_hash())


@pytest.mark.parametrize("command", COMMANDS)
def test_json_states_the_isolation_of_every_process(command: str, given: Given) -> None:
    apps = report(command, *APP, "--require-isolation", *given[command])["apps"]
    assert len(apps) == 1
    assert apps[0]["layers"] == dict.fromkeys(LAYERS, True)
    assert apps[0]["complete"] is True
    assert apps[0]["image_sha256"] == python_image_hash()


@pytest.mark.parametrize("command", COMMANDS)
def test_in_the_hypervisor_there_is_none(command: str, given: Given) -> None:
    assert "apps" not in report(command, *given[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_an_app_of_ones_own_by_its_manifest(command: str, manifest: Path, given: Given) -> None:
    mine = report(command, *APP, "--app", manifest, "--require-isolation", *given[command])
    expected = report(command, *APP, *given[command])
    assert mine == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_layer_is_reported_or_the_end(command: str, manifest: Path, given: Given) -> None:
    manifest.write_text("\n".join(li for li in MANIFEST.splitlines() if "sha256" not in li))
    options = (*APP, "--app", manifest, *given[command])
    apps = report(command, *options)["apps"]
    assert [app["complete"] for app in apps] == [False]
    assert apps[0]["layers"]["image"] is False
    result = call(command, "--require-isolation", *options)
    assert result.exit_code == 2
    assert "is not isolated, missing: image" in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("version = 1", "version = 2", "version: 2 is not known"),
        ("name = ", "nmae = ", "nmae: unknown key"),
        ("[[0, 1019]]", "[[5, 1]]", "virqs: an array of [first, last] is needed"),
        ('"SMC"', '"SCM"', "syscalls: "),
        ("[hooks]", "[hooks]\ntimer = 1", "hooks.timer: true or false is needed"),
        ("HASH", "HASH0", "sha256: 64 hexadecimal digits"),
        ("HASH", "0" * 64, "sha256: that of python:mediator.app is "),
        ("python:mediator.app", "python:mediator.ap", "program: there is no module"),
        ("python:mediator.app", "nowhere/app", "program: "),
        ("python:mediator.app", "my_app.toml", "may not be executed"),
        ("python:mediator.app", "script", "is a script, not an executable image"),
        ("format = ", "format = = ", "Invalid value"),
    ],
)
@pytest.mark.parametrize("command", ["run", "live"])
def test_a_manifest_that_cannot_be_used(
    command: str, old: str, new: str, complaint: str, manifest: Path
) -> None:
    """The file, the field, and why; with exit code 2."""
    assert old in MANIFEST
    manifest.write_text(hashed(MANIFEST.replace(old, new, 1)))
    result = call(command, *APP, "--app", manifest)
    assert result.exit_code == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert str(manifest) in told.replace(" ", "") or str(manifest) in told
    assert complaint in told
    assert not result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_manifest_that_is_not_there(command: str, tmp_path: Path, given: Given) -> None:
    result = call(command, *APP, "--app", tmp_path / "none.toml", *given[command])
    assert result.exit_code == 2
    assert "none.toml: No such file" in result.stderr


def test_escapes_of_a_manifest_reach_no_terminal(manifest: Path) -> None:
    manifest.write_text(hashed(MANIFEST.replace("python:mediator.app", "a\\u001b[31mb")))
    result = call("run", *APP, "--app", manifest)
    assert result.exit_code == 2
    assert "\x1b" not in result.output
    assert "\\x1b" in result.stderr


@pytest.mark.parametrize("option", [("--app", "x.toml"), ("--require-isolation",)])
@pytest.mark.parametrize("command", [*COMMANDS, "live"])
def test_options_of_an_app_need_one(command: str, option: tuple[str, ...], given: Given) -> None:
    result = call(command, *option, *given[command])
    assert result.exit_code == 2
    assert f"{option[0]} needs --deployment el0-app" in result.stderr


def test_an_app_that_calls_itself_otherwise(manifest: Path) -> None:
    manifest.write_text(hashed(MANIFEST.replace('name = "optee', 'name = "my-optee')))
    result = call("run", *APP, "--app", manifest)
    assert result.exit_code == 2
    assert "app 'my-optee-mediator' calls itself 'optee-mediator'" in result.stderr


@pytest.mark.parametrize("command", [*COMMANDS, "live"])
def test_the_help_shows_them(command: str) -> None:
    told = call(command, "--help").stdout
    for option in ("--deployment", "--app MANIFEST", "--require-isolation"):
        assert option in told


# --- replays --------------------------------------------------------------------------------------


def test_a_self_check_notices_in_either_home() -> None:
    here = report("replay", "--self-check", 40, SESSION)
    there = report("replay", *APP, "--self-check", 40, SESSION)
    assert there["traces"] == here["traces"]
    check = there["traces"][0]["self_check"]
    assert check["complete"]
    assert sum(kind["planted"] for kind in check["kinds"].values()) > 40
    # Once to compare, once to count, once to plant.
    assert len(there["apps"]) == 3


def test_there_is_no_mediator_in_a_replay_as_secure_world() -> None:
    result = call("replay", *APP, "--as", "secure-world", SESSION)
    assert result.exit_code == 2
    assert "no mediator takes part" in " ".join(result.stderr.split())
