# SPDX-License-Identifier: BSD-2-Clause
"""``live doctor``: what is there, what is missing, and how to get it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import attrs

from mediator.live import bundle, qemu
from mediator.live.packages import TOOLS

COMPILER: Final = "aarch64-linux-gnu-gcc"
COMPILER_PACKAGES: Final = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross")
VERSION_SECONDS: Final = 20


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that was looked for. ``needed``: without it no guest runs. ``cure``: what to do."""

    what: str
    found: bool
    detail: str
    needed: bool = True
    cure: str = ""


def _version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.partition("\n")[0]


def examine(cache: Path, name: str) -> tuple[Finding, ...]:
    """Look at everything; in the order in which it is needed."""
    linux = sys.platform == "linux"
    emulator = qemu.find_program()
    compiler = shutil.which(COMPILER)
    tools = all(shutil.which(tool) for tool in TOOLS)
    try:
        files = bundle.load(cache, name)
        detail = f"{files.folder}: {files.suite}, kernel {files.release}"
        for role in files.hashes:
            files.read(role)
        complete = True
    except bundle.BundleError as error:
        complete, detail = False, str(error)
    return (
        Finding(
            what="Linux",
            found=linux,
            detail=sys.platform,
            cure="live guests need Linux: its anonymous files carry the guests' RAM",
        ),
        Finding(
            what="emulator",
            found=emulator is not None,
            detail=_version(emulator) if emulator else f"{qemu.PROGRAM} not found",
            cure=f"apt-get install --no-install-recommends {qemu.PACKAGE}",
        ),
        Finding(
            what="guest files",
            found=complete,
            detail=detail,
            cure="optee-mediator live fetch",
        ),
        Finding(
            what="package tools",
            found=tools,
            detail=" ".join(TOOLS),
            needed=False,
            cure="only 'live fetch' needs them; elsewhere: 'live fetch --packages FOLDER'",
        ),
        Finding(
            what="cross compiler",
            found=compiler is not None,
            detail=_version(compiler) if compiler else f"{COMPILER} not found",
            needed=False,
            cure="for libteec clients: apt-get install --no-install-recommends "
            + " ".join(COMPILER_PACKAGES),
        ),
    )
