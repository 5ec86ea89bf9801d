# SPDX-License-Identifier: BSD-2-Clause
"""Cases with real processes: what only a process can do. Each costs its starts, some 0.3 s, and a second
and a half where it takes silence to notice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from random import Random
from types import MappingProxyType
from typing import Final

import attrs

from fuzz.containment.case import Case, CaseResult, Lines, Trial
from fuzz.containment.faults import Fault
from fuzz.containment.local import LocalLink
from fuzz.containment.system import System, Variant
from fuzz.containment.turns import Turn
from mediator.app import trial
from mediator.deployment.el0_app.launch import launch
from mediator.deployment.el0_app.manifest import Manifest, optee_manifest

SILENCE_MS: Final = 1500
"""Long enough for an interpreter to start on a busy machine."""
MEMORY_BYTES: Final = 600 << 20
CALLS: Final = 300
"""Calls of the TEE in a session; the deed is done in one of them."""

PREFIX: Final = "process: "
_TRIALS: Final = MappingProxyType(
    {
        "crash": trial.CRASH,
        "exit": trial.EXIT,
        "endless loop": trial.LOOP,
        "memory": trial.MEMORY,
        "exception": trial.EXCEPTION,
        "flood": trial.FLOOD,
    }
)
_SIGNALS: Final = MappingProxyType({"killed": signal.SIGKILL, "stopped": signal.SIGSTOP})


def _nothing(link: LocalLink, message: bytes, rng: Random) -> bytes:
    raise NotImplementedError("this is done to processes")


DEEDS: Final[Mapping[str, Fault]] = MappingProxyType(
    {PREFIX + name: Fault(PREFIX + name, _nothing, fatal=True) for name in (*_TRIALS, *_SIGNALS)}
)
"""What happens to a process, or what it does, by name."""


def process_cases(variants: Iterable[Variant], count: int, seed: int) -> list[Case]:
    """``count`` cases; the number of a deed is that of a call of the TEE."""
    rng = Random(f"{seed} processes")
    names, homes = list(DEEDS), [variant.name for variant in variants]
    return [
        Case(
            homes[index % len(homes)],
            ((rng.randrange(4, CALLS), names[index % len(names)]),),
            seed,
        )
        for index in range(count)
    ]


def is_process(case: Case) -> bool:
    """Whether the case needs processes."""
    return case.faults[0][1].startswith(PREFIX)


def run_process_case(case: Case, expected: Lines) -> CaseResult:
    """Run and judge; see :func:`fuzz.containment.case.run_case`."""
    return _ProcessTrial(case, expected).execute()


class _ProcessTrial(Trial):
    """A session whose app is a process; in the middle of a call of the TEE something happens to it."""

    def begin(self) -> System:
        """See :class:`Trial`."""
        system = System(
            self.variant,
            sinks=[self.turns.calls, self.hear],
            launcher=launch,
            manifest=_manifest(self.variant),
        )
        self._pids = {isolation.pid for isolation in system.app.isolation}
        at, name = self.case.faults[0]
        inner = system.host.secure_smc
        assert inner is not None
        calls = [0]

        def doing(*regs: int) -> tuple[int, int, int, int]:
            calls[0] += 1
            if calls[0] >= at and not self.turns.struck:
                self._do(system, name.removeprefix(PREFIX), regs[7])
            return inner(*regs)

        system.host.secure_smc = doing
        return system

    def _do(self, system: System, deed: str, client: int) -> None:
        guest = system.app.guest_of(client) if client else -1
        app = system.app
        if guest not in app.guests:
            return  # the next call is somebody's
        self.turns.struck.append(DEEDS[PREFIX + deed])
        kinds = self.turns.calls.kinds()
        self.turns.told.append(
            Turn(self.case.faults[0][0], 0, "handle smc", "SMC", guest, 1, kinds)
        )
        self._pids |= {isolation.pid for isolation in app.isolation}
        if deed in _SIGNALS:
            os.kill(app.process_of(guest), _SIGNALS[deed])
        else:
            app.handle(guest, 0, (trial.TRIAL, _TRIALS[deed], 0, 0, 0, 0, 0, 0))

    def end(self, system: System) -> None:
        """No process is left behind."""
        super().end(system)
        for pid in sorted(self._pids):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                continue
            self.problem(f"process {pid} is left behind")


def _manifest(variant: Variant) -> Manifest:
    return attrs.evolve(
        optee_manifest(instances=variant.instances),
        name=trial.NAME,
        program="python:mediator.app.trial",
        silence_ms=SILENCE_MS,
        memory_bytes=MEMORY_BYTES,
    )
