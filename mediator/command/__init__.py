# SPDX-License-Identifier: BSD-2-Clause
"""The command ``optee-mediator``: thin, one module per subcommand, loaded when it is used.

Exit codes of every subcommand: 0 all well, 1 a difference or a finding, 2 unusable input or usage.
Human output goes to standard output, progress and logs to standard error; with ``--json`` standard
output is JSON only.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Final

import click

DISTRIBUTION: Final = "optee-mediator"

SUBCOMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "run": ("mediator.command.run", "run a simulated platform from a scenario and report"),
    "decode": ("mediator.command.decode", "explain registers, messages and page lists"),
    "replay": ("mediator.command.replay", "replay recorded traffic against mediator or TEE"),
    "live": ("mediator.command.live", "run unmodified Linux guests under emulation"),
    "explore": ("mediator.command.explore", "run all interleavings of small systems"),
    "abi": (
        "mediator.command.abi",
        "show the ABI of apps outside the hypervisor, or write it for C",
    ),
    "vectors": ("mediator.command.vectors", "check golden vector files"),
}
"""Name, module and one line of help; each module has a click command of the same name."""


class _LazyGroup(click.Group):
    """Imports a subcommand's module only when that subcommand runs or explains itself."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module = importlib.import_module(SUBCOMMANDS[cmd_name][0])
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in SUBCOMMANDS.items()])


def _versions() -> dict[str, object]:
    from mediator.command import versions

    return {"tool": metadata.version(DISTRIBUTION), **versions.all_versions()}


def _print_version(as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_versions(), indent=2, sort_keys=True))
    else:
        click.echo(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all well, 1 a difference, 2 unusable input.",
)
@click.option("--version", is_flag=True, help="Print the version and exit.")
@click.option("--json", "as_json", is_flag=True, help="With --version: all versions, as JSON.")
@click.pass_context
def main(ctx: click.Context, version: bool, as_json: bool) -> None:
    """Reference model of an OP-TEE mediator with a simulated secure world."""
    if version:
        _print_version(as_json)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(2 if as_json else 0)
