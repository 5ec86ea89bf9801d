# SPDX-License-Identifier: BSD-2-Clause
"""The page of a campaign: what was run, how often what occurred, how to do it again."""

from __future__ import annotations

from collections.abc import Iterator

from fuzz.campaign.coverage import IMPOSSIBLE, REQUIRED
from fuzz.campaign.runner import GOAL, State, missing

_GROUPS = {
    "function": "SMC functions",
    "command": "Message commands",
    "RPC": "RPC functions",
    "RPC command": "RPC commands",
    "status": "Return codes",
    "result": "TEE results that the mediator makes itself (origin COMMS)",
    "mediator": "What the mediator does by itself",
    "notification": "Waits and notifications",
    "capability": "Capabilities, as a guest sees them",
    "life": "Lives of guests",
    "fault": "Faults",
}


def page(state: State, minimum: int, commit: str) -> str:
    """The page as Markdown."""
    return "\n".join(_lines(state, minimum, commit)) + "\n"


def _lines(state: State, minimum: int, commit: str) -> Iterator[str]:
    rare = missing(state.kinds, minimum)
    yield f"# Campaign: {state.smcs:,} SMCs under faults"
    yield ""
    yield (
        "Small whole systems, each from one number: guests that speak the protocol by themselves, "
        "simulated Linux guests, an honest secure world or one that lies, faults of every kind, and "
        "the checkers of all invariants (I1 to I8) on all of it. In the end of each system nothing "
        "goes wrong any more: every guest that no fault concerned must come to its end, then all are "
        "destroyed, and nothing may be left."
    )
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    yield f"| SMCs | {state.smcs:,} |"
    yield f"| Systems | {state.systems:,} |"
    yield f"| Seed of the campaign | {state.seed} |"
    yield f"| Systems with problems | {len(state.failures)} |"
    yield f"| Kinds that must occur | {len(REQUIRED)}, each at least {minimum:,} times |"
    yield f"| Kinds that are too rare | {len(rare)} |"
    yield f"| Rarest kind | {_rarest(state)} |"
    yield f"| Time | {state.seconds / 60:.0f} minutes, beside other work |"
    yield f"| Commit | {commit} |"
    yield f"| Checksum of all results | {state.checksum:#010x} |"
    yield ""
    yield (
        "In systems whose secure world lies (a quarter of them), what it does to itself is not held "
        "against the mediator: I5 and I8 about threads that it swapped and waits that it forgot, I2 "
        "about memory that it claimed to have let go of. All else counts there as well, and nobody's "
        "success is expected."
    )
    yield ""
    yield (
        "A simulated Linux guest that no fault concerned must end wherever that is in anybody's hands: "
        "not with a TEE without notifications, which tells no other partition of a release, with a "
        "mediator that was told to keep no waits or fewer notification values than the TEE has, nor "
        "where pages are denied, because OP-TEE forgets a wake-up for which it gets no RPC argument. "
        "Where nothing is refused either, it must also succeed, with the right results. Interrupts that "
        "got lost delay: the next one, or the end of all faults, makes up for them."
    )
    yield ""
    yield "## Again"
    yield ""
    yield "```sh"
    yield f"python -m fuzz.campaign --smcs {GOAL} --seed {state.seed} --workers 2  # or: make campaign"
    yield "```"
    yield ""
    yield (
        "The result depends on the seed and the number alone, not on the number of workers; the "
        "checksum says whether two runs are the same. `--resume FILE` goes on after an interruption, "
        "`--system NUMBER` runs one system of a campaign again and shows what was wrong."
    )
    yield ""
    yield "## What occurred"
    for group, title in _GROUPS.items():
        yield ""
        yield f"### {title}"
        yield ""
        yield "| Kind | Times |"
        yield "| --- | ---: |"
        for kind in REQUIRED:
            if kind.startswith(f"{group}: "):
                yield f"| {kind.removeprefix(f'{group}: ')} | {state.kinds[kind]:,} |"
    yield ""
    yield "## What cannot occur"
    yield ""
    yield "| Kind | Why |"
    yield "| --- | --- |"
    for kind, reason in IMPOSSIBLE.items():
        yield f"| {kind} | {reason} |"
    if state.failures:
        yield ""
        yield "## Systems with problems"
        yield ""
        for failure in state.failures:
            yield f"- `{failure.command}`: {'; '.join(failure.problems)}"


def _rarest(state: State) -> str:
    kind = min(REQUIRED, key=lambda name: (state.kinds[name], name))
    return f"{kind}, {state.kinds[kind]:,} times"
