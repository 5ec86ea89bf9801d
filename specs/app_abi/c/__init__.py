# SPDX-License-Identifier: BSD-2-Clause
"""The app ABI for C: a header, a blocking client in one file, and the numbers of the OP-TEE ABI.

The three files lie beside this module, made by :mod:`specs.app_abi.c.generate` from the definition
of the app ABI (``app_abi.toml``), two templates (``*.in``) and :mod:`smccc.constants`; a test
compares. ``optee-mediator abi --c DIR`` writes them out.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

FILES: Final = ("optee_app.h", "optee_app.c", "optee_numbers.h")
"""Header of the app ABI, its client, and the constants of the OP-TEE SMC and message ABI."""


def text(name: str) -> str:
    """One of :data:`FILES`, or a template, as it comes with the package."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def write(directory: Path) -> tuple[Path, ...]:
    """Write :data:`FILES` into ``directory``, which is made if need be. ``OSError`` if it cannot be."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FILES:
        path = directory / name
        path.write_text(text(name), "utf-8", newline="\n")
        written.append(path)
    return tuple(written)
