# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator live``: unmodified Linux guests on our mediator and simulated secure world."""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mediator.command.deployment_options import chosen, deployment_options
from mediator.command.live_options import (
    MAX_GUESTS,
    PATIENCE,
    PROBLEMS,
    cache_option,
    fail,
    mediator_settings,
    printable,
    terminated,
)
from mediator.command.live_sweep import sweep_command
from mediator.live import bundle, client, doctor, run
from mediator.live import fetch as fetching
from mediator.live.faults import KINDS, parse_fault
from mediator.live.guest import LiveGuest
from mediator.live.image import CONDUITS, SMC
from mediator.live.initramfs import BENCH, CLIENT, PROBE, RNG, STEPS, SUPPLICANT, InitramfsError
from mediator.live.mailbox import MAX_VCPUS
from mediator.live.packages import FetchError
from mediator.live.platform import LiveSettings
from mediator.live.qemu import BELLS, SEMIHOSTING, UART, BoardSettings
from mediator.live.result import FAIL, INFO, OK, SKIP, Check, Result
from secure_world.settings import SecureWorldSettings

_COLOURS: Final = {OK: "green", FAIL: "red", SKIP: "yellow", INFO: "dim"}

SHOWN: Final = 20
"""Lines of the log that are shown."""

EXAMPLES: Final = """\
\b
Examples:
  optee-mediator live fetch                    get kernel and programs, once
  optee-mediator live doctor                   what is missing, and how to get it
  optee-mediator live                          one guest, the built-in workload
  optee-mediator live --guests 3 --vcpus 2
  optee-mediator live --record session.jsonl.gz && optee-mediator replay session.jsonl.gz
  optee-mediator live --trace live.json        then open it at https://ui.perfetto.dev
  optee-mediator live --initrd-add ./xtest:/bin/xtest --run 'xtest 1001'
  optee-mediator live --run 'dmesg | grep optee' --show-console
  optee-mediator live --console
  optee-mediator live --fault no-pin@60
  optee-mediator live sweep kill --guests 2    a fault at each call in turn
  optee-mediator live --deployment el0-app --fault kill-app@60

\b
Exit codes: 0 all well, 1 a check failed, a kernel complained or an invariant was violated,
2 something is missing or the input cannot be used.
"""


@click.group(invoke_without_command=True, epilog=EXAMPLES)
@click.option(
    "--guests", type=click.IntRange(1, MAX_GUESTS), default=1, show_default=True, metavar="N"
)
@click.option(
    "--vcpus", type=click.IntRange(1, MAX_VCPUS), default=1, show_default=True, metavar="N"
)
@click.option("--ram", type=click.IntRange(64, 3072), default=256, show_default=True, metavar="MIB")
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Threads of the secure world for each guest.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the secure world.")
@click.option(
    "--bell",
    type=click.Choice(BELLS),
    help="How a waiting vCPU is woken. Semihosting lets it sleep, but lets guest kernel code reach "
    f"files of this user; with the others it spins.  [default: {SEMIHOSTING}, with --kernel {UART}]",
)
@click.option("--conduit", type=click.Choice(CONDUITS), default=SMC, show_default=True)
@click.option(
    "--classic",
    is_flag=True,
    help="Do not offer RPC arguments behind messages: the driver uses the older style of calls.",
)
@click.option(
    "--notifications/--no-notifications",
    default=True,
    show_default=True,
    help="Offer asynchronous notifications. Without them the mediator keeps the waits of TEE threads "
    "for the guest.",
)
@click.option(
    "--checkers/--no-checkers",
    default=None,
    help="Watch the invariants I1 to I8; doubles our part of a call.  [default: only with --fault]",
)
@click.option("--bench", is_flag=True, help="Measure invokes instead of the built-in workload.")
@click.option(
    "--run",
    "commands",
    multiple=True,
    metavar="COMMAND",
    help="Run this in the guest instead of the built-in workload; may be repeated.",
)
@click.option(
    "--initrd-add",
    "additions",
    multiple=True,
    metavar="FILE:PATH",
    help="Put a file into the guest at PATH, with its permissions; may be repeated.",
)
@click.option(
    "--kernel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An arm64 Image instead of the fetched one; the fetched modules must fit it.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Record for 'replay' (JSON lines, gzip if it ends in .gz); one file for each guest.",
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a trace for Perfetto (https://ui.perfetto.dev).",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="KIND@N[+CALLS]",
    help="Let something go wrong at call N of the first guest (or at CALLS calls from N on), and say "
    "whether its driver survives; "
    "may be repeated.  Kinds: " + ", ".join(KINDS),
)
@click.option(
    "--seconds",
    type=click.FloatRange(1.0),
    default=run.DEFAULT_SECONDS,
    show_default=True,
    help="Give up after this time.",
)
@click.option(
    "--console",
    is_flag=True,
    help="A shell in a guest, at this terminal; Ctrl-] ends it. Only with one guest.",
)
@click.option("--show-console", is_flag=True, help="Show the guests' consoles on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@deployment_options
@cache_option
@click.pass_context
def live(
    ctx: click.Context,
    guests: int,
    vcpus: int,
    ram: int,
    threads: int,
    seed: int,
    bell: str | None,
    conduit: str,
    classic: bool,
    notifications: bool,
    checkers: bool | None,
    bench: bool,
    commands: tuple[str, ...],
    additions: tuple[str, ...],
    kernel: Path | None,
    record: Path | None,
    trace: Path | None,
    faults: tuple[str, ...],
    seconds: float,
    console: bool,
    show_console: bool,
    as_json: bool,
    deployment: str,
    app: Path | None,
    require_isolation: bool,
    cache: Path | None,
    name: str,
) -> None:
    """Run real Linux guests under emulation; their OP-TEE calls are answered here.

    Each guest is an emulator process with an unmodified kernel, its own OP-TEE driver, tee-supplicant
    and libteec. Without options: one guest that runs the built-in workload, and a table.
    """
    if ctx.invoked_subcommand is not None:
        return
    # An emulator that is started later would inherit the one processor.
    home = attrs.evolve(chosen(deployment, app, require_isolation), pinned=False)
    try:
        files = bundle.load(bundle.cache_folder(cache), name)
        steps: tuple[str, ...] = STEPS
        if console and guests > 1:
            raise click.UsageError("--console needs one guest")
        if commands or bench or console:
            steps = (PROBE, RNG, SUPPLICANT, *((BENCH,) if bench else ()))
        settings = run.RunSettings(
            guests=guests,
            board=BoardSettings(
                ram=ram << 20,
                vcpus=vcpus,
                bell=bell or (UART if kernel is not None else SEMIHOSTING),
            ),
            platform=LiveSettings(
                seed=seed,
                mediator=mediator_settings(classic, notifications),
                secure_world=SecureWorldSettings(threads=threads),
                checkers=bool(faults) if checkers is None else checkers,
                deployment=home,
            ),
            conduit=conduit,
            steps=steps,
            commands=commands,
            files=dict(map(_addition, additions)),
            seconds=seconds,
            quiet=PATIENCE if faults else None,
            shell=console,
            record=record,
            trace=trace,
            faults=tuple(map(parse_fault, faults)),
            kernel=None if kernel is None else kernel.read_bytes(),
        )
        progress = _Consoles(show_console)
        # What is there now stays: a look at all of it in the middle of a call takes 20 ms.
        gc.collect()
        gc.freeze()
        signal.signal(signal.SIGTERM, terminated)
        if console:
            outcome = _console(files, settings)
        else:
            outcome = run.execute(
                files, settings, cache=bundle.cache_folder(cache), lines=progress.line
            )
    except PROBLEMS as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(outcome.as_json(), indent=2))
    else:
        _show(outcome, client.find_compiler() is not None or CLIENT not in steps)
    sys.exit(0 if outcome.good else 1)


def _console(files: bundle.Bundle, settings: run.RunSettings) -> Result:
    from mediator.live.terminal import interact  # terminals do not exist everywhere

    with run.Run(files, settings) as running:
        interact(running, running.start())
        return running.result(finished=False)


def _addition(text: str) -> tuple[str, tuple[bytes, int]]:
    source, colon, target = text.rpartition(":")
    if not colon or not source or not target.startswith("/"):
        raise InitramfsError(f"--initrd-add {text}: not FILE:/PATH")
    path = Path(source)
    return target, (path.read_bytes(), path.stat().st_mode & 0o777)


class _Consoles:
    """Consoles of the guests, if anybody wants them."""

    def __init__(self, show: bool) -> None:
        self._show = show

    def line(self, guest: LiveGuest, line: str) -> None:
        """A guest wrote a line."""
        if self._show:
            click.echo(f"{guest.name}| {printable(line)}", err=True)


def _show(outcome: Result, complete: bool) -> None:
    console = Console()
    names: dict[str, None] = {}
    for guest in outcome.guests:
        names.update(dict.fromkeys([c.name for c in guest.checks if c.state != INFO]))
    table = Table(title=f"Linux {escape(outcome.release)}: {_title(outcome)}", title_justify="left")
    table.add_column("check")
    for guest in outcome.guests:
        table.add_column(guest.name, justify="right")
    for name in names:
        row = []
        for guest in outcome.guests:
            found = [c for c in guest.checks if c.name == name]
            row.append(_cell(found[0]) if found else "[red]missing[/]")
        table.add_row(escape(printable(name)), *row)
    table.add_section()
    table.add_row("calls", *[str(guest.calls) for guest in outcome.guests])
    table.add_row("seconds", *[f"{guest.seconds:.1f}" for guest in outcome.guests])
    console.print(table)
    details = [(g.name, c) for g in outcome.guests for c in g.checks if c.detail and c.state == OK]
    for name, check in details:
        if check.name not in ("boot", "end"):
            console.print(f"{name}: {escape(printable(f'{check.name}: {check.detail}'))}")
    console.print(
        f"{outcome.calls} calls in {outcome.seconds:.1f} s; our part of one: "
        f"{outcome.median:.0f} µs in the median, {outcome.slowest:.0f} µs at most; processor time: "
        f"{outcome.processor:.1f} s ours, {outcome.emulators:.1f} s of emulators"
    )
    if not complete:
        console.print("no cross compiler: the libteec client was left out ('live doctor')")
    for guest in outcome.guests:
        for problem in guest.problems:
            console.print(f"[red]{guest.name}: {escape(printable(problem))}[/]")
    if outcome.faults:
        console.print(f"{', '.join(outcome.faults)}: {outcome.verdict}")
    for app in outcome.apps:
        console.print(f"app: {_isolation(app)}")
    if outcome.deaths:
        console.print(
            f"the app died {outcome.deaths} times" if outcome.deaths > 1 else "the app died once"
        )
    for line in outcome.log[:SHOWN]:
        console.print(f"log: {escape(printable(line))}", highlight=False)
    if len(outcome.log) > SHOWN:
        console.print(f"log: {len(outcome.log) - SHOWN} more lines (--json has them)")
    for violation in outcome.violations:
        console.print(f"[red]{escape(violation)}[/]")


def _isolation(app: Mapping[str, object]) -> str:
    """What is said of the process of the mediator."""
    layers = app["layers"]
    assert isinstance(layers, dict)
    missing = [name for name, there in layers.items() if not there]
    return (
        f"not isolated by {', '.join(missing)}" if missing else f"isolated by {', '.join(layers)}"
    )


def _title(outcome: Result) -> str:
    return f"{outcome.vcpus} vCPU, {outcome.conduit}, bell by {outcome.bell}"


def _cell(check: Check) -> str:
    time = f" {check.microseconds / 1000:.0f} ms" if check.state == OK else ""
    return f"[{_COLOURS[check.state]}]{check.state}[/]{time}"


@live.command()
@click.option(
    "--suite",
    help="Suite to take packages from, e.g. this system's code name with -backports.  "
    "[default: this system's own]",
)
@click.option("--refresh", is_flag=True, help="Get the package index anew.")
@click.option("--keep", is_flag=True, help="Keep the packages, too.")
@click.option(
    "--packages",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Use the packages in this folder instead of fetching any.",
)
@cache_option
def fetch(
    suite: str | None,
    refresh: bool,
    keep: bool,
    packages: Path | None,
    cache: Path | None,
    name: str,
) -> None:
    """Get kernel, busybox, tee-supplicant and libteec for the guests, by package name.

    Checked against the signed package index; what is there already is not fetched again. Nothing is
    installed. About 75 MB are fetched (105 for a backported kernel), 40 MB are kept.
    """

    def say(text: str) -> None:
        click.echo(text, err=True)

    folder = bundle.cache_folder(cache)
    try:
        if packages is not None:
            made = fetching.unpack_folder(folder, name, packages, say)
        else:
            made = fetching.fetch(folder, name, suite=suite, refresh=refresh, keep=keep, say=say)
    except (FetchError, bundle.BundleError, OSError, ValueError) as error:
        fail(str(error))
    click.echo(f"{made.folder}: kernel {made.release}")


@live.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@cache_option
def doctor_command(as_json: bool, cache: Path | None, name: str) -> None:
    """Say what live guests need, what of it is missing, and how to get it.

    Exit code 1 if anything is missing without which no guest runs.
    """
    findings = doctor.examine(bundle.cache_folder(cache), name)
    ready = all(finding.found for finding in findings if finding.needed)
    if as_json:
        data = [
            {
                "what": f.what,
                "found": f.found,
                "needed": f.needed,
                "detail": f.detail,
                "cure": f.cure,
            }
            for f in findings
        ]
        click.echo(json.dumps({"ready": ready, "findings": data}, indent=2))
    else:
        for finding in findings:
            state = "ok" if finding.found else "missing" if finding.needed else "optional"
            click.echo(f"{state:8}  {finding.what}: {printable(finding.detail)}")
            if not finding.found:
                click.echo(f"{'':8}  -> {finding.cure}")
    sys.exit(0 if ready else 1)


live.add_command(sweep_command)
