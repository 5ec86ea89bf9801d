# SPDX-License-Identifier: BSD-2-Clause
"""What the README says of numbers and names is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mediator.command import main
from mediator.host import Host

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_number_of_methods_of_a_host() -> None:
    (said,) = re.findall(r"\(mediator/host\.py\), (\d+) methods", README)
    methods = [name for name, value in vars(Host).items() if inspect.isfunction(value)]
    assert int(said) == len([name for name in methods if not name.startswith("_")])


def test_every_subcommand_is_named() -> None:
    (told,) = re.findall(r"`optee-mediator` can (.*?)\n\n", README, re.DOTALL)
    assert {name for name in main.commands if f"`{name}`" not in told} == set()
