# SPDX-License-Identifier: BSD-2-Clause
"""A live run from settings to result: guests are prepared, started, served and judged."""

from __future__ import annotations

import contextlib
import operator
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from mediator.deployment.choice import EL0_APP
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.launch import Isolation
from mediator.hypervisor.machine_events import VirqPending
from mediator.live import client, initramfs, result
from mediator.live.bundle import KERNEL, Bundle
from mediator.live.faults import KILL_APP, PlannedFault, Saboteur, kills_app, verdict
from mediator.live.guest import LineSink, LiveGuest
from mediator.live.image import HVC, SMC, Software
from mediator.live.initramfs import Contents
from mediator.live.notifier import NOTIFIER, make_notifier
from mediator.live.platform import LiveError, LivePlatform, LiveSettings, Sink
from mediator.live.qemu import BoardSettings, at_el3, begin_device_tree
from mediator.live.record import Recording
from mediator.live.service import Service
from mediator.live.trace import LiveTrace
from secure_world.apps.cipher import MissingExtra, require_crypto
from secure_world.apps.rng import registry_with_rng
from secure_world.ta import TaRegistry

DEFAULT_SECONDS: Final = 60.0
"""What a run may take; a workload takes 5 on an idle machine."""
MAX_LOG: Final = 1000
"""Lines that are kept of what the mediator says."""
PATIENCE: Final = 7 * 24 * 3600.0
"""Seconds that a person may sit at a console."""
KERNEL_ARGUMENTS: Final = "console=ttyAMA0 panic=-1 loglevel=5 nokaslr cryptomgr.notests"
"""``panic=-1``: a panic ends the emulator instead of hanging the run. Addresses stay the same, and the
kernel does not try all of its ciphers, which takes a sixth of its start."""
NOT_NEEDED: Final = (
    # The files of the tracer: thousands of them.
    "tracer_init_tracefs",
    "init_kprobe_trace",
    # A folder for each kind of object in memory.
    "slab_sysfs_init",
    # What BPF programs may call: whoever comes first reads the type information of the whole kernel.
    "cubictcp_register",
    "kfunc_init",
    "bpf_key_sig_kfuncs_init",
    "bpf_prog_test_run_init",
    "bpf_rstat_kfunc_init",
    "bpf_tcp_ca_kfunc_init",
    # Tests of ciphers and of an entropy source.
    "crypto_kdf108_init",
    "jent_mod_init",
)
"""Start-up steps of the kernel that the built-in workload does not need: an eighth of its start. What a
user runs in a guest may need them, and gets them."""


_OVER: Final = f"{initramfs.MARK} {initramfs.RECOVERY} "


@attrs.frozen(kw_only=True)
class RunSettings:
    """A run. ``arguments``: more words for the kernel's command line. ``kernel``: an Image instead of
    the bundle's, whose modules must fit it. ``trace``: a file for Perfetto.
    ``recover``: let the driver probe again after the steps, and do them once more; so it is when a fault
    ends the mediator's process. ``quiet``: end a guest that has made a call, and then neither called nor printed for so many seconds."""

    guests: int = 1
    board: BoardSettings = attrs.field(factory=BoardSettings)
    platform: LiveSettings = attrs.field(factory=LiveSettings)
    conduit: str = SMC
    arguments: str = ""
    steps: Sequence[str] = initramfs.STEPS
    commands: Sequence[str] = ()
    shell: bool = False
    files: Mapping[str, tuple[bytes, int]] = attrs.field(factory=dict, repr=False)
    seconds: float = DEFAULT_SECONDS
    quiet: float | None = None
    recover: bool = False
    record: Path | None = None
    trace: Path | None = None
    kernel: bytes | None = attrs.field(default=None, repr=False)
    faults: tuple[PlannedFault, ...] = ()


class Run:
    """A run in progress; a context manager that leaves nothing behind.

    ``workload``: the compiled built-in client, ``None`` to leave its tests out.
    """

    def __init__(
        self,
        files: Bundle,
        settings: RunSettings,
        *,
        workload: bytes | None = None,
        registry: TaRegistry | None = None,
        sinks: Sequence[Sink] = (),
        lines: LineSink | None = None,
    ) -> None:
        if settings.conduit == HVC and at_el3(settings.board):
            raise LiveError(f"bell {settings.board.bell}: a board without EL2 has no {HVC}")
        if kills_app(settings.faults) and settings.platform.deployment.name != EL0_APP:
            raise LiveError(f"{KILL_APP} needs the deployment {EL0_APP}: there is no app to kill")
        begin_device_tree(settings.board)
        self.settings = settings
        self.files = files
        self.saboteur = (
            Saboteur(settings.faults, seed=settings.platform.seed) if settings.faults else None
        )
        self._files = contextlib.ExitStack()
        trace: LiveTrace | None = None
        if settings.trace is not None:
            trace = LiveTrace(settings.trace, settings.platform.mediator.client_id_base)
            sinks = (*sinks, trace.sink)
        self._log: list[str] = []
        self.platform = LivePlatform(
            settings.platform,
            sinks=sinks,
            registry=_own_registry(registry),
            inject=self._inject,
            fault=self.saboteur,
            log=self._said,
        )
        self._apps: dict[int, Isolation] = {}
        self._see_apps()
        if trace is not None:
            trace.begin(self.platform.monitor)
            self._files.push(trace)
        self._lines = lines
        self.service = Service(self.platform, lines=self._heard)
        self.platform.registry.register(
            make_notifier(self.platform.secure_world, self.service.after)
        )
        if self.saboteur is not None:
            self.platform.lost = self.saboteur.notification
            self.platform.host.faults = self.saboteur.plan
            self.service.before = self.saboteur.before
            self.saboteur.kill_app = self.platform.kill_app
        self.service.times = []
        contents = Contents(
            steps=settings.steps,
            notifications=self.platform.offers_notifications,
            commands=settings.commands,
            shell=settings.shell,
            recover=settings.recover or kills_app(settings.faults),
            workload=workload,
            images=self.platform.registry.images(),
            files=settings.files,
        )
        self.software = Software(
            kernel=files.read(KERNEL) if settings.kernel is None else settings.kernel,
            initramfs=initramfs.build(files, contents),
            arguments=_arguments(settings),
            conduit=settings.conduit,
        )
        self._recordings: list[Recording] = []
        self._began = time.monotonic()
        self._used = _processor()
        self._ended: dict[int, float] = {}
        self._signs: dict[int, tuple[tuple[int, int], float]] = {}
        """By guest: how many calls and lines there have been, and since when that is so."""

    def _see_apps(self) -> None:
        """Note what the processes of the mediator that run now are."""
        if isinstance(self.platform.tee, El0App):
            self._apps.update({app.pid: app for app in self.platform.tee.isolation})

    def _heard(self, guest: LiveGuest, line: str) -> None:
        if self.saboteur is not None and line.startswith(_OVER) and guest.ident == 0:
            self.saboteur.stop()
        if self._lines is not None:
            self._lines(guest, line)

    def _said(self, ident: int, text: str) -> None:
        if len(self._log) < MAX_LOG:
            self._log.append(f"guest{ident + 1}: {text}" if ident >= 0 else text)

    def _inject(self, ident: int, intid: int) -> None:
        late = 0 if self.saboteur is None else self.saboteur.interrupt(ident)
        if late is None:
            return
        for guest in self.service.guests:
            if guest.ident == ident and guest.ended is None:
                if self.platform.sink is not None:
                    self.platform.sink(VirqPending(ident, -1, intid))
                if late:
                    self.service.after(late, partial(self.service.interrupt, guest, intid))
                else:
                    self.service.interrupt(guest, intid)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with self._files:
            self.service.close()
            self.platform.close()
            for recording in self._recordings:
                recording.close()

    def start(self) -> LiveGuest:
        """Start one more guest."""
        number = len(self.service.guests) + 1
        guest = self.service.start(f"guest{number}", self.settings.board, self.software)
        if number == 1:
            _load_ahead()  # while the first guest boots
        if self.settings.record is not None:
            recording = Recording(
                self._record_path(self.settings.record, number), guest, self.platform, self.files
            )
            self._recordings.append(recording)
            self.platform.recordings[guest.ident] = recording
        return guest

    def _record_path(self, path: Path, number: int) -> Path:
        """One file for each guest: ``x.jsonl.gz`` becomes ``x.2.jsonl.gz`` for the second."""
        if self.settings.guests == 1:
            return path
        stem, dot, rest = path.name.partition(".")
        return path.with_name(f"{stem}.{number}{dot}{rest}")

    def serve(self, until: Callable[[], bool] | None = None) -> bool:
        """Serve until ``until()`` (default: no guest runs), within the time; whether it came."""

        def over() -> bool:
            for guest in self.service.guests:
                if guest.ended is None:
                    self._listen(guest)
                elif guest.ident not in self._ended:
                    self._ended[guest.ident] = time.monotonic()
            return until() if until is not None else not self.service.running()

        if self.settings.shell:
            return self.service.run(over, PATIENCE)
        left = self.settings.seconds - (time.monotonic() - self._began)
        return self.service.run(over, max(left, 0.0))

    def _listen(self, guest: LiveGuest) -> None:
        quiet, now = self.settings.quiet, time.monotonic()
        signs = guest.served, guest.console.received
        if quiet is None or guest.served == 0 or self._signs.get(guest.ident, (None,))[0] != signs:
            self._signs[guest.ident] = signs, now
        elif now - self._signs[guest.ident][1] > quiet:
            self.service.stop(guest, f"no sign of life for {quiet:g} s")
        if quiet is not None and any(result.is_blocked(alarm) for alarm in guest.console.alarms):
            # The kernel says so every few seconds: that is no sign of life.
            self.service.stop(guest, "a task of its kernel is blocked")

    def result(self, *, finished: bool = True) -> result.Result:
        """End what still runs, and judge. ``finished``: guests were to end by themselves."""
        now = time.monotonic()
        for guest in self.service.guests:
            self.service.stop(guest, f"no end within {self.settings.seconds:g} s")
        guests = tuple(
            [
                result.of_guest(
                    guest, self._ended.get(guest.ident, now) - self._began, finished=finished
                )
                for guest in self.service.guests
            ]
        )
        watch = self.platform.watch
        violations = () if watch is None else tuple([str(found) for found in watch.finish()])
        median, slowest = result.microseconds(self.service.times or [])
        board = self.settings.board
        ours, theirs = map(operator.sub, _processor(), self._used)
        tee = self.platform.tee
        self._see_apps()
        return result.Result(
            guests=guests,
            release=self.files.release,
            vcpus=board.vcpus,
            bell=board.bell,
            conduit=self.settings.conduit,
            seconds=now - self._began,
            calls=sum(guest.calls for guest in guests),
            median=median,
            slowest=slowest,
            processor=ours,
            emulators=theirs,
            violations=violations,
            faults=tuple(map(str, self.settings.faults)),
            verdict="" if self.saboteur is None else verdict(guests[0], self.saboteur),
            pins=sum(self.platform.host.pinned(guest.ident) for guest in self.service.guests),
            deployment=self.settings.platform.deployment.name,
            apps=tuple([app.as_json() for app in self._apps.values()]),
            deaths=tee.deaths if isinstance(tee, El0App) else 0,
            log=tuple(self._log),
        )


def _arguments(settings: RunSettings) -> str:
    """The kernel's command line."""
    words = [KERNEL_ARGUMENTS]
    if not (settings.commands or settings.shell or settings.kernel is not None):
        words.append(f"ipv6.disable=1 initcall_blacklist={','.join(NOT_NEEDED)}")
    return " ".join([*words, settings.arguments]).strip()


def _own_registry(given: TaRegistry | None) -> TaRegistry:
    """A copy, for the application that belongs to this run alone."""
    known = registry_with_rng() if given is None else given
    return TaRegistry([a for a in known.applications() if a.uuid != NOTIFIER])


def _load_ahead() -> None:
    """Load what would otherwise be loaded in the middle of a call, which takes a tenth of a second."""
    with contextlib.suppress(MissingExtra):
        require_crypto()


def _processor() -> tuple[float, float]:
    """Seconds of processor time of this process, and of its children that have ended."""
    times = os.times()
    return times.user + times.system, times.children_user + times.children_system


def execute(
    files: Bundle,
    settings: RunSettings,
    *,
    cache: Path,
    registry: TaRegistry | None = None,
    sinks: Sequence[Sink] = (),
    lines: LineSink | None = None,
) -> result.Result:
    """The whole run: all guests at once, to their end. The client is compiled if it can be."""
    workload = None
    wanted = {initramfs.CLIENT, initramfs.BENCH} & set(settings.steps)
    if wanted and client.find_compiler() is not None:
        workload = client.compile_client(client.workload_source(), files, cache)
    with Run(
        files, settings, workload=workload, registry=registry, sinks=sinks, lines=lines
    ) as run:
        for _ in range(settings.guests):
            run.start()
        run.serve()
        return run.result()
