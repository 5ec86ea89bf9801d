# SPDX-License-Identifier: BSD-2-Clause
"""Options of the commands that can put the mediator into another home."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import click

from mediator.deployment.choice import EL0_APP, IN_HYPERVISOR, NAMES, Deployment

F = TypeVar("F", bound=Callable[..., object])

REQUIRE: Final = "--require-isolation"


def deployment_options(command: F) -> F:
    """``--deployment`` and ``--require-isolation``; :func:`chosen` reads them."""
    require = click.option(
        REQUIRE,
        "require_isolation",
        is_flag=True,
        help=f"With {EL0_APP}: exit with 2 if a layer of the app's isolation is missing.",
    )
    where = click.option(
        "--deployment",
        type=click.Choice(list(NAMES)),
        default=IN_HYPERVISOR,
        show_default=True,
        help="Where the mediator lives: in the hypervisor, or in a process of its own.",
    )
    return where(require(command))


def chosen(deployment: str, require_isolation: bool) -> Deployment:
    """The deployment that the options mean. ``UsageError`` if they make no sense."""
    if require_isolation and deployment != EL0_APP:
        raise click.UsageError(f"{REQUIRE} needs --deployment {EL0_APP}")
    return Deployment(deployment, require_isolation=require_isolation)
