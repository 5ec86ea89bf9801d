# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator vectors``: check golden vector files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import click

from mediator.command.deployment_options import chosen, deployment_options, isolation
from mediator.command.progress import FileProgress
from mediator.deployment.choice import Deployment
from mediator.deployment.el0_app.launch import LaunchError
from mediator.deployment.el0_app.pool import AppPool
from specs.rules import RuleBook, rules
from specs.target import Setup, World
from specs.vectors import report
from specs.vectors.case import FileResult
from specs.vectors.errors import InputError
from specs.vectors.files import Options, run_file
from specs.vectors.model_target import PRESETS, REFERENCE, ModelTarget

EXAMPLES: Final = """
\b
Examples:
  optee-mediator vectors mediator_behaviour.jsonl
  optee-mediator vectors abi/*.json abi/*.jsonl abi/*.gz
  optee-mediator vectors --preset default --strict-quirks mediator_behaviour.jsonl
  optee-mediator vectors --deployment el0-app mediator_behaviour.jsonl
  optee-mediator vectors --json *.jsonl | jq '.files[] | {file, passed, failed}'

\b
Exit codes: 0 every vector of kind abi passed, 1 one differed, 2 a file cannot be used.
"""


@click.command(epilog=EXAMPLES)
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default=REFERENCE,
    show_default=True,
    help="Offers and limits of the mediator under test.",
)
@click.option(
    "--strict-quirks", is_flag=True, help="Let a quirk that differs decide the exit code."
)
@click.option(
    "--show",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar="N",
    help="Show the differences of the first N failed vectors of each file.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."
)
@deployment_options
def vectors(
    files: tuple[Path, ...],
    preset: str,
    strict_quirks: bool,
    show: int,
    as_json: bool,
    deployment: str,
    app: Path | None,
    require_isolation: bool,
) -> None:
    """Check golden vector FILEs, plain or gzip, recognised by their content.

    Known kinds: mediator behaviour scenarios, function ids, messages, page lists, header constants,
    structure layouts and register tables. A vector of kind quirk that differs is reported with the
    rule that explains it and does not fail the check.
    """
    home = chosen(deployment, app, require_isolation)
    pool = AppPool()
    targets = _Targets(attrs.evolve(home, pool=pool))
    book = rules()
    results: list[FileResult] = []
    errors: list[InputError] = []
    for path in files:
        with FileProgress(report.printable(path.name), "vectors") as progress:
            options = Options(targets, preset, strict_quirks, progress.update_of, book)
            try:
                results.append(run_file(path, options))
            except InputError as error:
                errors.append(error)
            except LaunchError as error:
                click.echo(f"error: {report.printable(str(error))}", err=True)
                sys.exit(2)
            finally:
                targets.close()
    pool.close()
    _print(results, errors, book, preset, strict_quirks, show, as_json, isolation(home))
    sys.exit(report.exit_code(results, errors))


class _Targets:
    """Makes targets; each ends the one before it, which may have a process."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._last: ModelTarget | None = None

    def __call__(self, setup: Setup, world: World) -> ModelTarget:
        self.close()
        self._last = ModelTarget(setup, world, deployment=self._deployment)
        return self._last

    def close(self) -> None:
        """End the last one."""
        if self._last is not None:
            self._last.close()
            self._last = None


def _print(
    results: Sequence[FileResult],
    errors: Sequence[InputError],
    book: RuleBook,
    preset: str,
    strict_quirks: bool,
    show: int,
    as_json: bool,
    apps: list[dict[str, object]] | None,
) -> None:
    if as_json:
        document = report.as_json(results, errors, book, preset, strict_quirks, apps)
        click.echo(json.dumps(document, indent=2))
    else:
        for line in report.as_text(results, book, show):
            click.echo(line)
    for error in errors:
        click.echo(f"error: {report.printable(str(error))}", err=True)
