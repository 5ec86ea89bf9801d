# SPDX-License-Identifier: BSD-2-Clause
"""Compiling libteec clients for guests with the cross compiler, and keeping what was compiled."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from mediator.live import bundle
from mediator.live.bundle import Bundle
from mediator.live.doctor import COMPILER, COMPILER_PACKAGES

COMPILE_SECONDS: Final = 120
FLAGS: Final = ("-O1", "-Wall", "-Wextra")


class CompileError(Exception):
    """No compiler, or it refused the program; the message says which."""


def find_compiler() -> str | None:
    """Path of the cross compiler, ``None`` if it is not installed."""
    return shutil.which(COMPILER)


def compile_client(source: str, files: Bundle, cache: Path) -> bytes:
    """An arm64 program of C ``source`` that uses libteec. What was compiled before is not again."""
    compiler = find_compiler()
    if compiler is None:
        raise CompileError(f"{COMPILER} not found (Debian packages {' '.join(COMPILER_PACKAGES)})")
    known = "\0".join([source, *FLAGS, files.hashes[bundle.LIBTEEC]]).encode()
    kept = cache / "live" / "programs" / hashlib.sha256(known).hexdigest()
    if kept.is_file():
        return kept.read_bytes()
    with tempfile.TemporaryDirectory(prefix="optee-live-") as name:
        folder = Path(name)
        (folder / "client.c").write_text(source, encoding="utf-8")
        include = folder / bundle.HEADER_PREFIX
        include.mkdir()
        for role in files.hashes:
            if role.startswith(bundle.HEADER_PREFIX):
                (folder / role).write_bytes(files.read(role))
        (folder / bundle.LIBTEEC).write_bytes(files.read(bundle.LIBTEEC))
        done = subprocess.run(
            [compiler, *FLAGS, "-o", "client", "client.c", "-Iinclude", bundle.LIBTEEC, "-pthread"],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_SECONDS,
            check=False,
        )
        if done.returncode:
            raise CompileError(done.stderr.strip())
        data = (folder / "client").read_bytes()
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".{kept.name}.{os.getpid()}")
    part.write_bytes(data)
    part.rename(kept)
    return data


def workload_source() -> str:
    """The built-in client."""
    return resources.files("mediator.live").joinpath("workload.c").read_text("utf-8")
