# SPDX-License-Identifier: BSD-2-Clause
"""The page of a containment campaign."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from fuzz.containment.runner import Tally

_GROUPS = {
    "fault": "Faults",
    "entry": "Entries that they struck in",
    "suspended": "Calls that were suspended meanwhile, of any guest",
    "event": "What was reported",
}


WIDTH: Final = 130
"""Columns of the page's text."""

_STORY: Final = (
    "Each case is a whole simulated machine whose mediator is an app: a control domain and two other "
    "guests, in both call styles, at work with everything that a session has, and a guest that is "
    "created and destroyed meanwhile. At one turn of the app, or at several, it dies, is silent, "
    "breaks the protocol or lies. Then everybody must come to an end; guests that are not concerned "
    "have the results of a session without faults; those that are lost are refused until they are "
    "created again, and then served; the control domain is served under a new client id once its "
    "driver has probed again; and at the end nothing is pinned, mapped, open or running."
)


def page(tally: Tally, possible: int, command: str, commit: str) -> str:
    """The page as Markdown. ``possible``: how many cases there are."""
    return "\n".join(_lines(tally, possible, command, commit)) + "\n"


def _lines(tally: Tally, possible: int, command: str, commit: str) -> Iterator[str]:
    yield f"# Containment: the app fails in {tally.cases:,} cases"
    yield ""
    yield textwrap.fill(_STORY, WIDTH)
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield f"| Cases | {tally.cases:,} of {possible:,} that there are |"
    yield f"| Seed | {tally.seed} |"
    yield f"| Cases with problems | {len(tally.failures)} |"
    if tally.left_open is not None:
        yield f"| Descriptors left open | {tally.left_open} |"
    yield f"| Time | {tally.seconds / 60:.0f} minutes |"
    yield f"| Commit | {commit} |"
    yield f"| Checksum of all results | {tally.checksum:#010x} |"
    yield ""
    yield "```sh"
    yield command
    yield "```"
    yield ""
    yield "## Machines"
    yield ""
    yield "| Machine | Cases |"
    yield "| --- | ---: |"
    for name, count in sorted(tally.variants.items()):
        yield f"| {name} | {count:,} |"
    for group, title in _GROUPS.items():
        yield ""
        yield f"## {title}"
        yield ""
        yield "| Kind | Times |"
        yield "| --- | ---: |"
        for kind, count in sorted(tally.kinds.items()):
            if kind.startswith(f"{group}: "):
                yield f"| {kind.removeprefix(f'{group}: ')} | {count:,} |"
    yield ""
    yield "## And"
    yield ""
    yield "| | Times |"
    yield "| --- | ---: |"
    for kind, count in sorted(tally.kinds.items()):
        if ": " not in kind:
            yield f"| {kind} | {count:,} |"
    if tally.failures:
        yield ""
        yield "## Cases with problems"
        yield ""
        for failure in tally.failures:
            yield f"- `{failure.case}`: {'; '.join(failure.problems)}"
