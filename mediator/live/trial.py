# SPDX-License-Identifier: BSD-2-Clause
"""A client program and its TAs, tried in a real Linux guest: for users' own tests.

>>> from mediator.live.trial import try_client  # doctest: +SKIP
>>> try_client('int main(void) { return 0; }').code  # doctest: +SKIP
0
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from mediator.live import bundle, client, doctor, qemu, run
from mediator.live.guest import LiveGuest
from mediator.live.initramfs import PROBE, SUPPLICANT
from mediator.live.result import Result
from secure_world.apps.rng import registry_with_rng
from secure_world.ta import TrustedApplication

_PROGRAM: Final = "/bin/client"
_BEGIN: Final = "@@begin"
_END: Final = "@@code "


class TrialError(Exception):
    """The guest did not get as far as running the program; the message has its last words."""


@attrs.frozen(kw_only=True)
class Trial:
    """What came of it: the program's exit code and its lines, and the guest's own result."""

    code: int
    lines: tuple[str, ...]
    result: Result


def why_not(cache: Path | None = None, name: str = "default", *, compiler: bool = False) -> str:
    """Why no live guest can run here; empty if one can. ``compiler``: one is needed, too."""
    if qemu.find_program() is None:
        return f"{qemu.PROGRAM} is not installed (Debian package {qemu.PACKAGE})"
    if compiler and client.find_compiler() is None:
        return f"{doctor.COMPILER} is not installed"
    try:
        bundle.load(bundle.cache_folder(cache), name)
    except bundle.BundleError as error:
        return str(error)
    return ""


def try_client(
    source: str,
    *applications: type[TrustedApplication],
    arguments: str = "",
    settings: run.RunSettings | None = None,
    files: Mapping[str, tuple[bytes, int]] | None = None,
    cache: Path | None = None,
    name: str = "default",
) -> Trial:
    """Compile the C ``source``, run it in a fresh guest whose TEE also has ``applications``.

    The supplicant runs and has an image of each TA that is loaded from the normal world.
    ``arguments``: of the program, as the guest's shell takes them. ``files``: more files in the
    guest. Raises what the parts raise, and :class:`TrialError`.
    """
    folder = bundle.cache_folder(cache)
    loaded = bundle.load(folder, name)
    program = client.compile_client(source, loaded, folder)
    registry = registry_with_rng()
    for application in applications:
        registry.register(application)
    settings = attrs.evolve(
        settings or run.RunSettings(),
        steps=(PROBE, SUPPLICANT),
        commands=(f"echo {_BEGIN}; {_PROGRAM} {arguments}; echo '{_END}'$?",),
        files={**(files or {}), _PROGRAM: (program, 0o755)},
    )
    lines: list[str] = []

    def take(_guest: LiveGuest, line: str) -> None:
        lines.append(line)

    result = run.execute(loaded, settings, cache=folder, registry=registry, lines=take)
    ends = [number for number, line in enumerate(lines) if line.startswith(_END)]
    if _BEGIN not in lines or not ends:
        problems = [problem for guest in result.guests for problem in guest.problems]
        raise TrialError(
            "; ".join(problems) or "the program did not end\n" + "\n".join(lines[-20:])
        )
    own = lines[lines.index(_BEGIN) + 1 : ends[0]]
    return Trial(code=int(lines[ends[0]][len(_END) :]), lines=tuple(own), result=result)
