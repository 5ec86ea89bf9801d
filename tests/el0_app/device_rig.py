# SPDX-License-Identifier: BSD-2-Clause
"""A rig whose host notes what an app asks of the machine, for the app of :mod:`.devices`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mediator.deployment.el0_app import launch
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.manifest import Manifest
from mediator.deployment.face import Completed
from mediator.optee.settings import MediatorSettings
from mediator.optee.syscalls import Syscall
from tests.el0_app.devices import (
    ASK,
    ERRAND,
    M64,
    PEEK,
    DeviceApp,
    SerialDeviceApp,
    devices_manifest,
)
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.mediator.with_optee import GUEST

ROOT = Path(__file__).parents[2]
START = """\
import sys
sys.path.insert(0, {root!r})
from mediator.app.isolation import single_threaded
single_threaded()
from mediator.app.runtime import serve
from tests.el0_app.devices import DeviceApp
serve(DeviceApp)
"""


class LocalDevices(LocalApp):
    """The app in this process."""

    app = DeviceApp


class LocalSerial(LocalApp):
    """The one that serves one entry after the other."""

    app = SerialDeviceApp


def start_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes be the app of the tests, which no distribution brings."""
    arguments = (sys.executable, "-I", "-c", START.format(root=str(ROOT)))

    def command(_manifest: Manifest) -> tuple[str, ...]:
        return arguments

    monkeypatch.setattr(launch, "command", command)


class DeviceRig(AppRig):
    """``time``, ``timers``, ``virqs``, ``parked``, ``woken``: what the host was asked for."""

    def __init__(
        self,
        kind: type[El0App] = LocalDevices,
        settings: MediatorSettings | None = None,
        **options: object,
    ) -> None:
        self.time = 0
        self.timers: list[int | None] = []
        self.virqs: list[tuple[int, int]] = []
        self.parked: list[tuple[int, int, int]] = []
        self.woken: list[tuple[int, int]] = []
        self.stop = False
        options.setdefault("manifest", devices_manifest())
        super().__init__(kind, settings, **options)

    def deploy(self, settings: MediatorSettings | None) -> El0App:
        host = self.host
        host.clock = lambda: self.time
        host.timer = self.timers.append
        host.virq_sink = lambda guest, intid: self.virqs.append((guest, intid))
        host.parker = lambda guest, vcpu, until: self.parked.append((guest, vcpu, until))
        host.waker = lambda guest, vcpu: self.woken.append((guest, vcpu))
        host.preempt_policy = lambda: self.stop
        return super().deploy(settings)

    def errand(self, what: int, *more: int, guest: int = GUEST) -> tuple[int, ...]:
        """What the app answers."""
        out = self.app.handle(guest, 0, (ERRAND, what, *more, 0, 0, 0, 0, 0, 0)[:8])
        assert isinstance(out, Completed)
        return out.regs

    def ask(self, call: Syscall, *more: int, guest: int = GUEST) -> tuple[int, ...]:
        """A system call on behalf of ``guest``: status, results."""
        status, *results = self.errand(ASK, int(call), *more, guest=guest)
        return (status - (1 << 64) if status > M64 >> 1 else status, *results)

    def peek(self, offset: int, guest: int = GUEST) -> int:
        """A word of the arena as the app sees it."""
        return self.errand(PEEK, offset, guest=guest)[0]

    def load(self, ipa: int, size: int = 8, guest: int = GUEST) -> int | None:
        """A trapped load."""
        return self.app.handle_mmio(guest, 0, ipa, size)

    def store(self, ipa: int, value: int, guest: int = GUEST) -> bool:
        """A trapped store; whether the app served it."""
        return self.app.handle_mmio(guest, 0, ipa, 8, value) is not None
