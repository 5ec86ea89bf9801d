# SPDX-License-Identifier: BSD-2-Clause
"""The files for C: made from the definition, current, the same numbers, and nothing that a compiler minds."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from attrs import evolve
from click.testing import CliRunner

from mediator.command.abi import abi as command
from mediator.deployment import app_abi
from mediator.optee.syscalls import Syscall
from smccc.constants import optee_msg, optee_rpc, optee_smc, tee
from specs.app_abi import AppAbiError
from specs.app_abi import app_abi as definition
from specs.app_abi.c import FILES, text, write
from specs.app_abi.c.generate import generate
from tests.app_c.build import PLAIN, SANITIZED, STRICT, compilers

MAKE_ANEW = "python -m specs.app_abi.c specs/app_abi/c"

OF_THE_CLIENT = {
    "APP_ARGS", "APP_LOST", "APP_GARBLED", "APP_UNISOLATED", "APP_NO_ARENA", "APP_PAGE",
    "APP_SOURCE_FD", "APP_SINK_FD", "APP_ARENA_FD", "APP_OUT_BYTES", "APP_IN_BYTES",
    "APP_SETTINGS_BYTES", "APP_FLAGS", "APP_STATUS_LAST", "APP_SYSCALL_LAST",
}  # fmt: skip
"""Names of the header that the Python side has no need of."""


def values(header: Path, prefix: str) -> dict[str, int]:
    """The macros of a header, as the compiler computes them."""
    listed = subprocess.run(
        ["cc", "-std=c99", "-E", "-dM", str(header)], capture_output=True, text=True, check=True
    )
    names = re.findall(rf"^#define ({prefix}\w+) \S", listed.stdout, re.MULTILINE)
    lines = "".join(f'printf("{name} %lld\\n", (long long)({name}));\n' for name in names)
    source = header.with_name("print.c")
    source.write_text(f'#include <stdio.h>\n#include "{header.name}"\nint main(void){{{lines}}}\n')
    program = header.with_name("print")
    subprocess.run(["cc", "-std=gnu99", "-o", str(program), str(source)], check=True)
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in (row.split() for row in said.stdout.splitlines())}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_current(name: str) -> None:
    assert text(name) == generate(name), f"make it anew: {MAKE_ANEW}"


def test_constants_of_the_header_are_those_of_the_python_side(tmp_path: Path) -> None:
    write(tmp_path)
    found = values(tmp_path / "optee_app.h", "APP_")
    kinds = {kind.name for kind in definition().kinds}
    expected = {
        f"APP_{'KIND_' if name in kinds else ''}{name}": value
        for name, value in vars(app_abi).items()
        if name.isupper() and isinstance(value, int) and not name.startswith("INIT_")
    }
    expected["APP_NO_GUEST"] -= 1 << 64  # printed as a signed number
    expected |= {f"APP_SYSCALL_{call.name}": call.value for call in Syscall}
    assert {name: found[name] for name in found if name not in OF_THE_CLIENT} == expected
    assert set(found) >= OF_THE_CLIENT


def test_constants_of_the_header_are_those_of_the_definition(tmp_path: Path) -> None:
    write(tmp_path)
    found = values(tmp_path / "optee_app.h", "APP_")
    spec = definition()
    expected = {
        "APP_MAJOR": spec.major,
        "APP_MINOR": spec.minor,
        "APP_HEADER_SIZE": spec.header_size,
    }
    expected |= {f"APP_KIND_{kind.name}": kind.number for kind in spec.kinds}
    expected |= {f"APP_FLAG_{flag.name}": 1 << flag.value for flag in spec.flags}
    expected |= {f"APP_CAP_{bit.name}": 1 << bit.value for bit in spec.capabilities}
    expected |= {f"APP_OFFER_{bit.name}": 1 << bit.value for bit in spec.offers}
    expected |= {f"APP_{status.name}": status.value for status in spec.statuses}
    expected |= {f"APP_OUTCOME_{item.name}": item.value for item in spec.outcomes}
    expected |= {f"APP_{limit.name}": limit.value for limit in spec.limits}
    expected |= {f"APP_HOOK_{hook.name}": hook.number for hook in spec.hooks}
    expected |= {f"APP_ENTRY_{entry.name}": entry.number for entry in spec.entries}
    expected |= {f"APP_SYSCALL_{call.name}": call.number for call in spec.syscalls}
    unknown = OF_THE_CLIENT | {"APP_NO_GUEST"}
    assert {name: value for name, value in found.items() if name not in unknown} == expected


def test_numbers_of_optee_are_those_of_the_python_side(tmp_path: Path) -> None:
    write(tmp_path)
    found = values(tmp_path / "optee_numbers.h", "(?:OPTEE_(?!NUMBERS_H)|TEE_)")
    everything = {
        name: value
        for module in (optee_smc, optee_msg, optee_rpc, tee)
        for name, value in vars(module).items()
        if isinstance(value, int)
    }
    # Printed as signed numbers.
    assert {name: everything[name] for name in found} == {
        name: value % (1 << 64) for name, value in found.items()
    }
    ours = {
        name for name in everything if name.startswith(("OPTEE_SMC_", "OPTEE_MSG_", "OPTEE_RPC_"))
    }
    assert ours <= set(found)
    assert {"TEE_ERROR_BAD_PARAMETERS", "TEE_ORIGIN_COMMS", "TEE_SUCCESS"} <= set(found)


@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("flags", [PLAIN, ("-O0",), SANITIZED], ids=["plain", "-O0", "sanitized"])
def test_a_strict_compiler_says_nothing(
    flags: tuple[str, ...], compiler: str, tmp_path: Path
) -> None:
    write(tmp_path)
    (tmp_path / "numbers.c").write_text(
        '#include "optee_numbers.h"\n#include "optee_app.h"\nint numbers(void);\n'
        "int numbers(void) { return OPTEE_MSG_CMD_OPEN_SESSION == 0; }\n"
    )
    for source in ("optee_app.c", "numbers.c"):
        done = subprocess.run(
            [compiler, *STRICT, *flags, "-c", source, "-o", "object.o"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_client_needs_the_c_library_only(tmp_path: Path) -> None:
    write(tmp_path)
    included = re.findall(r"#include [<\"]([^>\"]+)", text("optee_app.c") + text("optee_app.h"))
    system = ("linux/", "sys/")
    plain = {"errno.h", "signal.h", "stddef.h", "stdint.h", "string.h", "unistd.h"}
    plain |= {"optee_app.h"}
    assert [name for name in included if not name.startswith(system) and name not in plain] == []
    subprocess.run(["cc", "-O2", "-c", "optee_app.c", "-o", "app.o"], cwd=tmp_path, check=True)
    symbols = subprocess.run(
        ["nm", "-u", "app.o"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "read" in symbols
    assert not re.search(r"alloc|free|exec|fork|socket|open\b|printf", symbols)


def test_a_syscall_without_a_rule_is_refused() -> None:
    spec = definition()
    calls = tuple(
        evolve(call, name="READ_MORE") if call.name == "READ_GUEST" else call
        for call in spec.syscalls
    )
    with pytest.raises(AppAbiError, match="READ_MORE"):
        generate("optee_app.c", evolve(spec, syscalls=calls))


# --- the command ------------------------------------------------------------------------------------


def test_the_command_writes_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    done = CliRunner().invoke(command, ["--c", str(folder)])
    assert done.exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert all((folder / name).read_text("utf-8") == text(name) for name in FILES)
    assert done.output.splitlines() == [str(folder / name) for name in FILES]
    as_json = CliRunner().invoke(command, ["--json", "--c", str(folder)])
    assert json.loads(as_json.output) == {"written": [str(folder / name) for name in FILES]}


def test_the_command_says_what_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(command, ["--c", str(tmp_path / "file" / "folder")])
    assert done.exit_code == 2
    assert "error: " in done.output


def test_the_command_prints_the_definition_as_json() -> None:
    document = json.loads(CliRunner().invoke(command, ["--json"]).output)
    schema = resources.files("specs.app_abi").joinpath("app_abi.schema.json").read_text("utf-8")
    jsonschema.validate(document, json.loads(schema))
    assert document["abi"] == {"major": app_abi.MAJOR, "minor": app_abi.MINOR}


def test_the_command_describes_everything() -> None:
    page = CliRunner().invoke(command, []).output
    spec = definition()
    for call in spec.syscalls:
        assert re.search(rf"^ +{call.number} {call.name}\b", page, re.MULTILINE)
    for entry in spec.entries:
        assert re.search(rf"^ +{entry.number} {entry.name}:", page, re.MULTILINE)
    for key in spec.manifest:
        assert f"{key.key} ({key.type}" in page
    assert max(len(line) for line in page.splitlines()) <= 120
