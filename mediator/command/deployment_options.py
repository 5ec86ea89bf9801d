# SPDX-License-Identifier: BSD-2-Clause
"""Options of the commands that can put the mediator into another home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from mediator.deployment.choice import EL0_APP, IN_HYPERVISOR, NAMES, Deployment, Launches
from mediator.deployment.el0_app.manifest import Manifest, ManifestError, check_image, load

F = TypeVar("F", bound=Callable[..., object])

REQUIRE: Final = "--require-isolation"
APP: Final = "--app"


def deployment_options(command: F) -> F:
    """``--deployment``, ``--app`` and ``--require-isolation``; :func:`chosen` reads them."""
    require = click.option(
        REQUIRE,
        "require_isolation",
        is_flag=True,
        help=f"With {EL0_APP}: exit with 2 if a layer of the app's isolation is missing.",
    )
    app = click.option(
        APP,
        "app",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="MANIFEST",
        help=f"With {EL0_APP}: the app of this manifest instead of the mediator that comes with this "
        "distribution. Its program is checked before anything else happens.",
    )
    where = click.option(
        "--deployment",
        type=click.Choice(list(NAMES)),
        default=IN_HYPERVISOR,
        show_default=True,
        help="Where the mediator lives: in the hypervisor, or in a process of its own.",
    )
    return where(app(require(command)))


class UnusableApp(click.UsageError):
    """A manifest, or its program, that cannot be used: exit code 2."""


def chosen(deployment: str, app: Path | None, require_isolation: bool) -> Deployment:
    """The deployment that the options mean. ``UsageError`` if they make no sense, or if the manifest
    cannot be used. It notes the isolation of each process that is started: :func:`isolation`."""
    if deployment != EL0_APP:
        for option, given in ((REQUIRE, require_isolation), (APP, app is not None)):
            if given:
                raise click.UsageError(f"{option} needs --deployment {EL0_APP}")
        return Deployment(deployment)
    return Deployment(
        deployment,
        manifest=None if app is None else _manifest(app),
        require_isolation=require_isolation,
        launcher=Launches(),
    )


def _manifest(path: Path) -> Manifest:
    try:
        manifest = load(path)
        check_image(manifest, str(path))
    except ManifestError as error:
        shown = "".join([c if c.isprintable() else repr(c)[1:-1] for c in str(error)])
        raise UnusableApp(shown) from error
    return manifest


def isolation(home: Deployment) -> list[dict[str, object]] | None:
    """What ``--json`` says of the processes that were started; ``None``: in the hypervisor."""
    return home.launcher.as_json() if isinstance(home.launcher, Launches) else None
