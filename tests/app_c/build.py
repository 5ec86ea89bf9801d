# SPDX-License-Identifier: BSD-2-Clause
"""Compiling apps for the tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from specs.app_abi import c

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
EXAMPLE = ROOT / "examples" / "app_c"

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow")
PLAIN = ("-O2",)
LOG_FD = 100
"""Where a sanitized app expects its standard error, if it is to have one."""
SANITIZED = (
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    f"-DAPP_KEEP_STDERR={LOG_FD}",
)

SANITIZER_EXIT = 99
"""Exit code of a program in which a sanitizer found something (tests/app_c/sanitizers.c)."""


def compilers() -> list[str]:
    """cc, which must be there, and clang if it is."""
    return ["cc", *(["clang"] if shutil.which("clang") else [])]


def compile_app(
    sources: list[Path], to: Path, *, sanitized: bool = False, compiler: str = "cc"
) -> Path:
    """The program ``to``, made of ``sources`` and the client as ``optee-mediator abi --c`` writes it."""
    folder = to.parent / f"{to.name}-abi"
    c.write(folder)
    extra = [str(HERE / "sanitizers.c")] if sanitized else []
    flags = SANITIZED if sanitized else PLAIN
    command = [compiler, *STRICT, *flags, f"-I{folder}", "-o", str(to)]
    files = [*map(str, sources), str(folder / "optee_app.c"), *extra]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return to
