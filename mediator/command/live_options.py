# SPDX-License-Identifier: BSD-2-Clause
"""What the subcommands of ``optee-mediator live`` have in common."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click

from mediator.deployment.el0_app.launch import LaunchError
from mediator.live import bundle, client
from mediator.live.image import ImageError
from mediator.live.initramfs import InitramfsError
from mediator.live.packages import FetchError
from mediator.live.platform import LiveError
from mediator.live.qemu import QemuError
from mediator.optee.settings import OFFERED_CAPABILITIES, MediatorSettings
from smccc.constants import optee_smc as smc

MAX_GUESTS: Final = 16
"""Guests of one run: each takes a processor while it works, and 100 MB."""
DEFAULT_BUNDLE: Final = "default"
PATIENCE: Final = 20.0
"""Seconds without a call and a word after which a driver waits for ever. Its workload's longest pause is a
tenth of a second on an idle machine."""


def cache_option(function: click.decorators.FC) -> click.decorators.FC:
    """``--cache`` and ``--bundle``: where the guests' files are."""
    return click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help=f"Folder for fetched files.  [default: ${bundle.CACHE_VARIABLE}, else the user's cache]",
    )(
        click.option(
            "--bundle",
            "name",
            default=DEFAULT_BUNDLE,
            show_default=True,
            help="Name of the set of guest files, e.g. one for each kernel.",
        )(function)
    )


PROBLEMS: Final = (
    bundle.BundleError,
    client.CompileError,
    FetchError,
    ImageError,
    InitramfsError,
    LaunchError,
    LiveError,
    QemuError,
    OSError,
    ValueError,
)


def fail(message: str) -> NoReturn:
    """Say what is wrong, and end with exit code 2."""
    click.echo(f"error: {printable(message)}", err=True)
    sys.exit(2)


def terminated(_signal: int, _frame: FrameType | None) -> None:
    """An ordinary end, so that guests are ended and recordings are complete."""
    raise SystemExit(128 + signal.SIGTERM)


def mediator_settings(classic: bool, notifications: bool = True) -> MediatorSettings:
    """The mediator for drivers of the newer or the older style of calls, with notifications or not."""
    hidden = smc.OPTEE_SMC_SEC_CAP_RPC_ARG if classic else 0
    if not notifications:
        hidden |= smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
    return MediatorSettings(capabilities=OFFERED_CAPABILITIES & ~hidden)


def printable(text: str) -> str:
    """Text of a guest or a file: control characters are shown, not obeyed."""
    return "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])
