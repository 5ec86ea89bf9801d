# SPDX-License-Identifier: BSD-2-Clause
"""``optee-mediator live sweep``: a fault at each call in turn."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import attrs
import click

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
from mediator.deployment.choice import EL0_APP
from mediator.live import bundle, run
from mediator.live.faults import KILL_APP, KINDS, MAX_CALLS
from mediator.live.image import CONDUITS, SMC
from mediator.live.initramfs import AGAIN, PROBE, RNG, STEPS, UNLOAD
from mediator.live.mailbox import MAX_VCPUS
from mediator.live.platform import LiveSettings
from mediator.live.qemu import BoardSettings
from mediator.live.sweep import Attempt, sweep
from secure_world.settings import SecureWorldSettings

LONGEST = 15
"""So many times that may an attempt take in all: a busy machine boots slowly."""


@click.command(name="sweep")
@click.argument("kinds", nargs=-1, required=True, type=click.Choice(KINDS), metavar="KIND...")
@click.option("--first", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option(
    "--last",
    type=click.IntRange(1, MAX_CALLS),
    default=MAX_CALLS,
    metavar="N",
    help="The last call to try.  [default: until the driver makes no such call]",
)
@click.option("--step", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option(
    "--calls",
    type=click.IntRange(1, MAX_CALLS),
    default=1,
    show_default=True,
    metavar="N",
    help="Calls in a row that go wrong.",
)
@click.option(
    "--guests",
    type=click.IntRange(1, MAX_GUESTS),
    default=1,
    show_default=True,
    metavar="N",
    help="More than one: the others must not be disturbed.",
)
@click.option(
    "--vcpus", type=click.IntRange(1, MAX_VCPUS), default=1, show_default=True, metavar="N"
)
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Threads of the secure world for each guest.",
)
@click.option("--conduit", type=click.Choice(CONDUITS), default=SMC, show_default=True)
@click.option("--classic", is_flag=True, help="Do not offer RPC arguments behind messages.")
@click.option("--full", is_flag=True, help="The whole workload instead of probe, hwrng and unload.")
@click.option(
    "--seconds",
    type=click.FloatRange(1.0),
    default=PATIENCE,
    show_default=True,
    help="A guest that neither calls nor prints for so long hangs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@deployment_options
@cache_option
def sweep_command(
    kinds: tuple[str, ...],
    first: int,
    last: int,
    step: int,
    calls: int,
    guests: int,
    vcpus: int,
    threads: int,
    conduit: str,
    classic: bool,
    full: bool,
    seconds: float,
    as_json: bool,
    deployment: str,
    app: Path | None,
    require_isolation: bool,
    cache: Path | None,
    name: str,
) -> None:
    """Let something go wrong at each call of the first guest in turn, in a fresh run each time.

    Says what becomes of the driver. Exit code 1 if another guest was disturbed, an invariant violated
    or a page left pinned: what the driver itself does is a finding about it, not a failure. With kill-app the
    mediator is a process that is killed (--deployment el0-app, which need not be said); afterwards the driver
    probes again and the guest does all of its work once more, else that is a failure, too.
    """
    if KILL_APP in kinds:
        deployment = EL0_APP
    signal.signal(signal.SIGTERM, terminated)

    def say(attempt: Attempt) -> None:
        if not as_json:
            click.echo(_line(attempt))

    try:
        folder = bundle.cache_folder(cache)
        settings = run.RunSettings(
            guests=guests,
            board=BoardSettings(vcpus=vcpus),
            platform=LiveSettings(
                mediator=mediator_settings(classic),
                secure_world=SecureWorldSettings(threads=threads),
                # An emulator that is started later would inherit the one processor.
                deployment=attrs.evolve(chosen(deployment, app, require_isolation), pinned=False),
            ),
            conduit=conduit,
            steps=STEPS if full else (PROBE, RNG, UNLOAD),
            seconds=LONGEST * seconds,
            quiet=seconds,
        )
        outcome = sweep(
            bundle.load(folder, name),
            settings,
            kinds,
            range(first, last + 1, step),
            calls=calls,
            cache=folder,
            say=say,
        )
    except PROBLEMS as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(outcome.as_json(), indent=2))
    else:
        counts = ", ".join([f"{count} x {verdict}" for verdict, count in outcome.verdicts.items()])
        click.echo(f"{len(outcome.attempts)} attempts with Linux {outcome.release}: {counts}")
    sys.exit(0 if outcome.good else 1)


def _line(attempt: Attempt) -> str:
    """One attempt, in a line."""
    text = f"{attempt.fault}: {attempt.verdict} ({attempt.seconds:.1f} s, {attempt.calls} calls)"
    # Between the death of the mediator's process and the next probe everything fails.
    failed = [name for name in attempt.failed if not attempt.deaths or name.startswith(AGAIN)]
    if failed:
        text += f"; failed: {', '.join(failed)}"
    for problem in (*attempt.alarms, *attempt.disturbed, *attempt.violations):
        text += f"\n    {problem}"
    if attempt.pins:
        text += f"\n    {attempt.pins} pages are still pinned"
    return "\n".join(map(printable, text.split("\n")))
