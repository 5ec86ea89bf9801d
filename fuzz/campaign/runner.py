# SPDX-License-Identifier: BSD-2-Clause
"""A campaign: systems one after the other, on several processors, to be stopped and taken up again.

What comes out depends on the seed and the number of SMCs alone, not on the number of workers, because
results are taken in the order of the systems and the campaign ends with the system that reaches
the number.
"""

from __future__ import annotations

import gc
import json
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Final

import attrs

from fuzz.campaign.coverage import IMPOSSIBLE, REQUIRED
from fuzz.campaign.plan import system_seed
from fuzz.campaign.system import SystemResult, run_system

FORMAT: Final = "optee-mediator-campaign"
VERSION: Final = 1

GOAL: Final = 10_000_000
"""SMCs of a whole campaign."""
MINIMUM: Final = 1_000
"""How often each kind must occur in a whole campaign; in a smaller one in proportion."""

AHEAD: Final = 8
"""Systems per worker that may be under way before their turn."""
LIFETIME: Final = 400
"""Systems that one worker process runs, so that memory that the interpreter keeps goes back."""
SWEEP: Final = 8
"""Every so many systems a worker looks for garbage: collecting all the time costs a sixth more."""
MAX_FAILURES: Final = 50
"""Systems with problems that are remembered; one more ends the campaign."""


class CampaignError(Exception):
    """A state that cannot be taken up; the message says why."""


@attrs.frozen
class Failure:
    """A system with problems. ``seed`` is all that is needed to run it again."""

    index: int
    seed: int
    problems: tuple[str, ...]

    @property
    def command(self) -> str:
        """Runs it again and shows what happens."""
        return f"python -m fuzz.campaign --system {self.seed}"


@attrs.define
class State:
    """How far a campaign is. ``checksum``: over the results of all systems so far, in order."""

    seed: int
    systems: int = 0
    smcs: int = 0
    kinds: Counter[str] = attrs.field(factory=Counter)
    failures: list[Failure] = attrs.field(factory=list)
    checksum: int = 0
    seconds: float = 0.0

    def take(self, index: int, result: SystemResult) -> None:
        """The next system is done."""
        self.systems = index + 1
        self.smcs += result.smcs
        self.kinds.update(result.kinds)
        self.checksum = zlib.crc32(result.checksum.to_bytes(4, "little"), self.checksum)
        if result.problems:
            self.failures.append(Failure(index, result.seed, result.problems))

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "seed": self.seed,
            "systems": self.systems,
            "smcs": self.smcs,
            "seconds": round(self.seconds, 1),
            "checksum": self.checksum,
            "kinds": dict(sorted(self.kinds.items())),
            "failures": [
                {"index": f.index, "seed": f.seed, "problems": list(f.problems)}
                for f in self.failures
            ],
        }


def load_state(path: Path, seed: int) -> State:
    """The state in a file; a fresh one if there is none. :class:`CampaignError` for another seed."""
    if not path.exists():
        return State(seed)
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise CampaignError(f"{path} is no state of a campaign of version {VERSION}")
        state = State(
            int(data["seed"]),
            int(data["systems"]),
            int(data["smcs"]),
            Counter(data["kinds"]),
            [
                Failure(int(item["index"]), int(item["seed"]), tuple(item["problems"]))
                for item in data["failures"]
            ],
            int(data["checksum"]),
            float(data["seconds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CampaignError(f"{path} is no state of a campaign: {error}") from error
    if state.seed != seed:
        raise CampaignError(f"{path} is of seed {state.seed}, not {seed}")
    return state


def save_state(path: Path, state: State) -> None:
    """Write the state so that an interrupted write leaves the old one."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(state.plain(), indent=1) + "\n")
    new.replace(path)


def missing(kinds: Mapping[str, int], minimum: int) -> tuple[str, ...]:
    """Required kinds that occurred less than ``minimum`` times."""
    return tuple([kind for kind in REQUIRED if kinds.get(kind, 0) < minimum])


def unexpected(kinds: Mapping[str, int]) -> tuple[str, ...]:
    """Kinds that occurred although they cannot."""
    return tuple([kind for kind in IMPOSSIBLE if kinds.get(kind)])


def proportional_minimum(smcs: int) -> int:
    """How often each kind must occur in a campaign of ``smcs`` SMCs: 1,000 in ten million."""
    return max(1, MINIMUM * smcs // GOAL)


def run_campaign(
    state: State,
    smcs: int,
    workers: int = 1,
    progress: Callable[[State], None] | None = None,
) -> None:
    """Go on from ``state`` until ``smcs`` SMCs are simulated, or too many systems have failed."""
    started = monotonic() - state.seconds
    for index, result in _results(state.seed, state.systems, workers, lambda: state.smcs < smcs):
        state.take(index, result)
        state.seconds = monotonic() - started
        if progress is not None:
            progress(state)
        if state.smcs >= smcs or len(state.failures) > MAX_FAILURES:
            return


def _settle() -> None:
    """A worker begins: what is there stays, and what systems leave behind goes between them."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _work(seed: int) -> SystemResult:
    result = run_system(seed)
    if seed % SWEEP == 0:
        gc.collect()
    return result


def _results(
    seed: int, first: int, workers: int, wanted: Callable[[], bool]
) -> Iterator[tuple[int, SystemResult]]:
    """Results of systems from ``first`` on, in order."""
    index = first
    if workers == 1:
        while wanted():
            yield index, run_system(system_seed(seed, index))
            index += 1
        return
    with get_context("spawn").Pool(workers, _settle, maxtasksperchild=LIFETIME) as pool:
        waiting: deque[tuple[int, object]] = deque()
        while wanted():
            while len(waiting) < AHEAD * workers:
                pending = pool.apply_async(_work, (system_seed(seed, index),))
                waiting.append((index, pending))
                index += 1
            number, job = waiting.popleft()
            result = job.get()  # type: ignore[attr-defined]
            yield number, result
