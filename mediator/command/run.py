# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator run``: simulate a scenario, watch the invariants, say what happened."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from mediator.command.deployment_options import chosen, deployment_options, isolation
from mediator.command.progress import StatusLine
from mediator.command.run_tables import new_console, print_result
from mediator.deployment.el0_app import events as app_events
from mediator.deployment.el0_app.launch import LaunchError
from mediator.guest import events as guest_events
from mediator.guest.replayed import RecordedSession
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from mediator.scenario.errors import ScenarioError
from mediator.scenario.model import Scenario
from mediator.scenario.perfetto import Picture
from mediator.scenario.reader import (
    BUILTIN,
    DEFAULT,
    builtin_names,
    builtin_scenario,
    read_scenario,
)
from mediator.scenario.recorder import Event, Handler, Listener
from mediator.scenario.report import as_json, failure_as_json
from mediator.scenario.result import Result
from mediator.scenario.run import Progress, Run
from mediator.scenario.text import printable
from mediator.scenario.trace_file import TraceFile
from mediator.scenario.workloads import WORKLOADS
from secure_world import events as tee_events
from specs.replay.guest import load_session
from specs.replay.records import TraceError

if TYPE_CHECKING:
    from structlog.typing import WrappedLogger

EXAMPLES: Final = """
\b
Examples:
  optee-mediator run
  optee-mediator run --trace run.json          then open it at https://ui.perfetto.dev
  optee-mediator run builtin:interleave --seed 7
  optee-mediator run my_scenario.toml --quiet
  optee-mediator run --deployment el0-app --require-isolation
  optee-mediator run --deployment el0-app --app my_app.toml
  optee-mediator run --json | jq '.guests[] | {name, outcome, calls}'
  optee-mediator run --list

\b
Exit codes: 0 all well, 1 an invariant was violated or something else happened than the scenario
expects, 2 the scenario or a trace cannot be used.
"""


@click.command(epilog=EXAMPLES)
@click.argument("scenario", required=False, metavar="[SCENARIO.toml]")
@click.option(
    "--seed", type=int, help="Seed of everything that is drawn, instead of the scenario's."
)
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a trace for Perfetto: vCPUs, mediator, TEE threads, RPCs, interrupts, pins.",
)
@click.option(
    "--json", "as_json_", is_flag=True, help="Print the report as JSON on standard output."
)
@click.option("--quiet", "-q", is_flag=True, help="Print the verdict only, and no progress.")
@click.option("--verbose", "-v", count=True, help="Log to standard error what happens to guests.")
@click.option("--list", "list_", is_flag=True, help="List built-in scenarios and workloads.")
@deployment_options
def run(
    scenario: str | None,
    seed: int | None,
    trace_path: Path | None,
    as_json_: bool,
    quiet: bool,
    verbose: int,
    list_: bool,
    deployment: str,
    app: Path | None,
    require_isolation: bool,
) -> None:
    """Simulate guests, mediator and OP-TEE from a scenario and report what happened.

    Without SCENARIO.toml a built-in scenario runs; builtin:NAME names another one. Every client
    program checks its own results, and the invariants of mediation are watched all the time. A seed
    reproduces a run exactly: the digest over all events is the same.
    """
    home = chosen(deployment, app, require_isolation)
    if list_:
        _list(as_json_)
        return
    try:
        plan = _read(scenario)
    except ScenarioError as error:
        _unusable(str(error))
    used = plan.seed if seed is None else seed
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            picture, listeners = _listeners(stack, plan, trace_path, verbose)
            simulation = Run(
                plan,
                seed=seed,
                listeners=listeners,
                load_session=_Sessions(plan.path),
                deployment=home,
            )
            stack.callback(simulation.close)
            if picture is not None:
                picture.attach(simulation.machine)
            title = f"simulating {printable(plan.name)}"
            with StatusLine(title, quiet=quiet) as shown:
                result = simulation.execute(lambda far: shown.update(_how_far(title, far)))
    except (ScenarioError, TraceError, LaunchError, _Unwritable) as error:
        _unusable(str(error))
    except Exception as error:
        _failed(plan, used, error, as_json_, verbose)
    _print(result, as_json_, quiet, time.monotonic() - started, trace_path, isolation(home))
    sys.exit(0 if result.ok else 1)


def _read(scenario: str | None) -> Scenario:
    if scenario is None:
        return builtin_scenario()
    if scenario.startswith(BUILTIN):
        return builtin_scenario(scenario.removeprefix(BUILTIN))
    return read_scenario(Path(scenario))


def _print(
    result: Result,
    as_json_: bool,
    quiet: bool,
    seconds: float,
    trace_path: Path | None,
    apps: list[dict[str, object]] | None,
) -> None:
    trace = "" if trace_path is None else str(trace_path)
    if as_json_:
        click.echo(json.dumps(as_json(result, trace, apps), indent=2))
    elif quiet:
        for problem in result.problems:
            click.echo(printable(f"{problem.where}: {problem.what}"))
        verdict = "OK" if result.ok else f"FAILED: {len(result.problems)} problems"
        click.echo(f"{printable(result.scenario)}, seed {result.seed}: {verdict}")
    else:
        print_result(new_console(), result, seconds, trace)


def _unusable(reason: str) -> NoReturn:
    click.echo(f"error: {printable(reason)}", err=True)
    sys.exit(2)


def _failed(plan: Scenario, seed: int, error: Exception, as_json_: bool, verbose: int) -> NoReturn:
    """The simulation itself broke: a defect, told as one."""
    told = f"{type(error).__name__}: {error}"
    if as_json_:
        click.echo(json.dumps(failure_as_json(plan.name, plan.path, seed, told), indent=2))
    if verbose:
        click.echo(traceback.format_exc(), err=True)
    click.echo(f"error: the simulation failed (seed {seed}): {printable(told)}", err=True)
    sys.exit(1)


# Traces in and out


class _Sessions:
    """Reads recorded sessions: of the package, or beside the scenario."""

    def __init__(self, scenario: str) -> None:
        self._scenario = scenario

    def __call__(self, trace: str, first: str, last: str) -> RecordedSession:
        if not trace.startswith(BUILTIN):
            return load_session(Path(self._scenario).parent / trace, first, last)
        name = f"{trace.removeprefix(BUILTIN)}.jsonl"
        folder = resources.files("mediator.scenario").joinpath("data")
        if name not in [file.name for file in folder.iterdir()]:
            raise ScenarioError(self._scenario, 0, "trace", f"there is no {trace}")
        with resources.as_file(folder.joinpath(name)) as path:
            return load_session(path, first, last)


class _Unwritable(Exception):
    """The trace cannot be written; the message says why."""


def _listeners(
    stack: contextlib.ExitStack, plan: Scenario, trace_path: Path | None, verbose: int
) -> tuple[Picture | None, list[Listener]]:
    listeners: list[Listener] = []
    picture: Picture | None = None
    if verbose:
        listeners.append(_Log(verbose > 1))
    if trace_path is not None:
        try:
            file = stack.enter_context(TraceFile(trace_path))
        except OSError as error:
            raise _Unwritable(f"{trace_path}: cannot be written: {error.strerror}") from None
        picture = Picture(file, plan.machine.pcpus, plan.mediator.client_id_base)
        listeners.append(picture)
    return picture, listeners


# Progress and log


def _how_far(title: str, progress: Progress) -> str:
    return (
        f"{title}: {progress.time / 1e6:,.1f} ms of virtual time, {progress.calls:,} calls, "
        f"{progress.done} of {progress.guests} guests done"
    )


class _Log:
    """A listener that logs to standard error with structlog. ``all_``: results of clients, too."""

    def __init__(self, all_: bool) -> None:
        import structlog

        self._all = all_
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        # Wrapped here and nowhere else: the library's own configuration is left alone.
        self._log: WrappedLogger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[structlog.processors.add_log_level, renderer],
        )

    def handlers(self) -> Mapping[type, Handler]:
        """Life and death, and everything that should not happen."""
        quiet = (
            machine_events.GuestCreated,
            machine_events.GuestDying,
            machine_events.GuestDestroyed,
            machine_events.GuestShutdown,
            guest_events.GuestBooted,
            guest_events.GuestStopped,
            app_events.AppStarted,
        )
        loud = (
            machine_events.GuestRefused,
            machine_events.ProgramCrash,
            machine_events.TeeKeepsGuest,
            machine_events.TeardownPreempted,
            events.Finding,
            host_events.BusBreach,
            tee_events.TaPanicked,
            tee_events.ImageRefused,
            app_events.AppDied,
            app_events.AppGivenUp,
            app_events.AppRefused,
            app_events.GuestLost,
            app_events.PartitionCleaned,
            app_events.PartitionRenewed,
        )
        table: dict[type, Handler] = dict.fromkeys(quiet, self._info)
        table |= dict.fromkeys(loud, self._warning)
        if self._all:
            table[guest_events.ClientCall] = self._info
        return table

    def _info(self, moment: int, event: Event) -> None:
        self._log.info(type(event).__name__, **_fields(moment, event))

    def _warning(self, moment: int, event: Event) -> None:
        self._log.warning(type(event).__name__, **_fields(moment, event))


def _fields(moment: int, event: Event) -> dict[str, object]:
    """The fields of an event as a log line shows them."""
    names: tuple[str, ...] = getattr(event, "_fields", ())
    found: dict[str, object] = {"ms": f"{moment / 1e6:.3f}"}
    for name, value in zip(names, event, strict=True):
        shown = value.hex() if isinstance(value, bytes) else value
        found[name] = printable(shown) if isinstance(shown, str) else shown
    return found


# What there is


def _list(as_json_: bool) -> None:
    plans = {name: builtin_scenario(name) for name in builtin_names()}
    if as_json_:
        document = {
            "scenarios": {name: plan.description for name, plan in plans.items()},
            "workloads": {name: kind.help for name, kind in WORKLOADS.items()},
        }
        click.echo(json.dumps(document, indent=2))
        return
    click.echo("Built-in scenarios (optee-mediator run builtin:NAME):")
    for name, plan in plans.items():
        mark = ", the default" if name == DEFAULT else ""
        click.echo(f"  {name}{mark}: {plan.description}")
    click.echo("\nWorkloads of a guest ([[guest.workload]] run = NAME, and their parameters):")
    for name, kind in WORKLOADS.items():
        click.echo(f"  {name}: {kind.help}")
        for field in kind.fields:
            click.echo(f"      {field.name} = {field.default}: {field.help}")
