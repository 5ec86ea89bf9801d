# SPDX-License-Identifier: BSD-2-Clause
"""Every command that README and documentation show is run, and prints what they show.

In a ``console`` block a line that begins with ``$ `` is a command, the lines below it are its output;
a line ``...`` stands for any number of lines. Of ``run`` the numbers may be those of another day: what
is compared is everything else. What only builds or installs is not run here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mediator.command import SUBCOMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = "optee-mediator "
ELSEWHERE = ("optee-mediator live", "make ", "pip ", "python ", ".ci/run", "git ", "cd ")
"""Commands that other tests and jobs run, where they can be run."""
MAKE = {"make run": "optee-mediator run"}
NUMBER = re.compile(r"\d[\d.,]*")


def commands() -> Iterator[tuple[str, str, str]]:
    """(page, command, expected output) of every command."""
    for page in PAGES:
        if "_build" in page.parts:
            continue
        for block in BLOCK.findall(page.read_text("utf-8")):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                command = command.partition("  #")[0].strip()
                command = MAKE.get(command, command)
                yield page.relative_to(ROOT).as_posix(), command, output


ALL = tuple(commands())
OURS = [case for case in ALL if case[1].startswith(COMMAND) and not case[1].startswith(ELSEWHERE)]


def form(text: str) -> str:
    """Output without its numbers and the width of its columns."""
    lines = [" ".join(NUMBER.sub("#", line).replace("─", "").split()) for line in text.splitlines()]
    return "".join(f"{line}\n" for line in lines).rstrip() + "\n"


def matches(expected: str, actual: str) -> bool:
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"[ \t]*\n"
        for line in expected.splitlines()
    )
    return re.fullmatch(pattern, actual.rstrip() + "\n") is not None


def test_every_subcommand_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/command.md").read_text("utf-8")
    assert re.findall(r":prog: optee-mediator (\w+)$", text, re.MULTILINE) == sorted(SUBCOMMANDS)


def test_no_command_is_forgotten() -> None:
    assert len(OURS) > 5
    strange = [command for _, command, _ in ALL if not command.startswith((COMMAND, *ELSEWHERE))]
    assert strange == []


@pytest.mark.parametrize(("page", "command", "output"), OURS)
def test_command(
    page: str, command: str, output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path if "--trace" in command else ROOT)
    result = CliRunner(env={"COLUMNS": "130"}).invoke(main, shlex.split(command)[1:])
    shown = result.stdout
    if command.startswith(f"{COMMAND}run"):
        output, shown = form(output), form(shown)
    if output:
        assert matches(output, shown), f"{page}: {command} printed\n{result.stdout}"
    assert result.exit_code == 0, result.stderr


def test_a_wrong_line_does_not_match() -> None:
    assert matches("a\n...\nd\n", "a\nb\nc\nd\n")
    assert not matches("a\n...\nd\n", "a\nb\nc\n")
    assert not matches("a\nb\n", "a\nb\nc\n")
    assert not matches("a.c\n", "abc\n")
