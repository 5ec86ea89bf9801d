# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator replay``: recorded real traffic through our mediator, or against our OP-TEE."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from mediator.command.deployment_options import chosen, deployment_options, isolation
from mediator.command.progress import FileProgress
from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.launch import LaunchError
from specs.replay import report
from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import Trace, load_trace
from specs.replay.records import TraceError
from specs.replay.selfcheck import SelfCheck, self_check
from specs.replay.simulated import replay_as_secure_world

DEFAULT_SHOW: Final = 20
MAX_PLANTS: Final = 1_000_000

EXAMPLES: Final = """
\b
Examples:
  optee-mediator replay session.jsonl
  optee-mediator replay --self-check 100 --seed 7 *.jsonl.gz
  optee-mediator replay --as secure-world session.jsonl
  optee-mediator replay --deployment el0-app --require-isolation session.jsonl
  optee-mediator replay --deployment el0-app --self-check 100 session.jsonl
  optee-mediator replay --json *.jsonl | jq '.traces[] | {file, events, transparent}'

\b
Exit codes: 0 no difference, 1 a difference or a planted error that was missed, 2 a file cannot be
used.
"""


@click.command(epilog=EXAMPLES)
@click.argument(
    "traces", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TRACE..."
)
@click.option(
    "--as",
    "part",
    type=click.Choice([report.MEDIATOR, report.SECURE_WORLD]),
    default=report.MEDIATOR,
    show_default=True,
    help="Whose part we play: the mediator between the recorded worlds, or the secure world.",
)
@click.option(
    "--self-check",
    "plants",
    type=click.IntRange(0, MAX_PLANTS),
    default=0,
    metavar="N",
    help="Also plant N single-bit changes in compared data, and N mediator errors where we play "
    "the mediator, into each trace; all must be reported.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of what is planted.")
@click.option(
    "--show",
    type=click.IntRange(0),
    default=DEFAULT_SHOW,
    show_default=True,
    metavar="N",
    help="Show the first N differences of each trace.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."
)
@deployment_options
def replay(
    traces: tuple[Path, ...],
    part: str,
    plants: int,
    seed: int,
    show: int,
    as_json: bool,
    deployment: str,
    app: Path | None,
    require_isolation: bool,
) -> None:
    """Replay recorded traffic between a normal world and OP-TEE.

    A TRACE (JSON lines, plain or gzip) is what a tracer in EL3 saw. As mediator, the recorded normal
    world becomes a guest whose addresses are all translated, the recorded OP-TEE answers behind it, and
    our mediator in between must be transparent. As secure world, our simulated OP-TEE answers the
    recorded calls.
    """
    home = chosen(deployment, app, require_isolation)
    if home.name == EL0_APP and part != report.MEDIATOR:
        raise click.UsageError(
            f"--deployment {EL0_APP} makes no sense with --as {part}: the recorded normal world talks to "
            "our secure world, and no mediator takes part"
        )
    results: list[report.Result] = []
    checks: list[SelfCheck | None] = []
    errors: list[TraceError] = []
    for path in traces:
        with FileProgress(report.printable(path.name), "records") as progress:
            try:
                trace = load_trace(path, progress.update)
                progress.total = len(trace.records)
                result: report.Result
                if part == report.MEDIATOR:
                    result = replay_as_mediator(trace, progress=progress.update, deployment=home)
                else:
                    result = replay_as_secure_world(trace, progress=progress.update)
                checks.append(_check(trace, part, plants, seed, progress.update, home))
                results.append(result)
            except TraceError as error:
                errors.append(error)
            except LaunchError as error:
                click.echo(f"error: {report.printable(str(error))}", err=True)
                sys.exit(2)
    if as_json:
        click.echo(json.dumps(report.as_json(results, checks, errors, isolation(home)), indent=2))
    else:
        for line in report.as_text(results, checks, show):
            click.echo(line)
    for problem in errors:
        click.echo(f"error: {report.printable(str(problem))}", err=True)
    sys.exit(report.exit_code(results, checks, errors))


def _check(
    trace: Trace,
    part: str,
    plants: int,
    seed: int,
    progress: Callable[[int], None],
    home: Deployment,
) -> SelfCheck | None:
    if not plants:
        return None
    as_mediator = part == report.MEDIATOR
    return self_check(
        trace, plants, seed, progress=progress, as_mediator=as_mediator, deployment=home
    )
