# SPDX-License-Identifier: BSD-2-Clause
"""Real kernels. Each test boots; the limits are for a busy machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from examples.live_greeting import CLIENT, Greeter
from mediator.command import main
from mediator.live import bundle, client, run
from mediator.live.bundle import Bundle
from mediator.live.faults import LATE, PlannedFault
from mediator.live.guest import LiveGuest
from mediator.live.image import HVC, NOTIFICATION_INTID, SMC
from mediator.live.initramfs import PROBE, RNG, UNLOAD
from mediator.live.platform import LiveError, LiveSettings
from mediator.live.qemu import POLLING, SEMIHOSTING, UART, BoardSettings
from mediator.live.result import OK, SURVIVED
from mediator.live.service import our_processes
from mediator.live.terminal import interact
from mediator.live.trial import Trial
from mediator.optee.settings import OFFERED_CAPABILITIES, MediatorSettings
from smccc.constants import optee_smc as smc
from specs.replay.mediated import replay_as_mediator
from specs.replay.reader import load_trace

pytestmark = pytest.mark.timeout(120)

SHORT = (PROBE, RNG, UNLOAD)


def test_the_whole_workload_and_its_replay(files: Bundle, cache: Path, tmp_path: Path) -> None:
    record, trace = tmp_path / "session.jsonl.gz", tmp_path / "trace.json"
    outcome = run.execute(files, run.RunSettings(record=record, trace=trace), cache=cache)
    assert outcome.good, outcome
    (guest,) = outcome.guests
    states = {check.name: check.state for check in guest.checks}
    for name in ("probe", "enumeration", "hwrng", "entropy", "supplicant", "unload", "reload"):
        assert states[name] == OK
    if client.find_compiler() is not None:
        assert states["concurrent"] == OK
    assert outcome.pins == 0
    replayed = replay_as_mediator(load_trace(record))
    assert replayed.transparent
    assert replayed.events > 2 * 40
    names = [event["name"] for event in json.loads(trace.read_text("utf-8"))["traceEvents"]]
    assert names.count("CALL_WITH_REGD_ARG") > 2 * 10  # the vCPU's track, and the mediator's
    assert our_processes() == []


@pytest.mark.timeout(300)
def test_all_other_kernels_that_were_fetched(files: Bundle, cache: Path, tmp_path: Path) -> None:
    """The whole workload in the older style of calls, and its replay."""
    others = [bundle.load(cache, name) for name in bundle.available(cache) if name != "default"]
    if not others:
        pytest.skip("no second kernel: 'live fetch --bundle backports --suite CODENAME-backports'")
    without = OFFERED_CAPABILITIES & ~smc.OPTEE_SMC_SEC_CAP_RPC_ARG
    platform = LiveSettings(mediator=MediatorSettings(capabilities=without))
    for other in others:
        record = tmp_path / f"{other.release}.jsonl"
        settings = run.RunSettings(platform=platform, record=record)
        outcome = run.execute(other, settings, cache=cache)
        assert outcome.good, outcome
        assert any(check.detail == other.release for check in outcome.guests[0].checks)
        assert replay_as_mediator(load_trace(record)).transparent


@pytest.mark.parametrize(
    ("vcpus", "conduit", "bell"), [(2, HVC, SEMIHOSTING), (2, SMC, POLLING), (3, SMC, UART)]
)
def test_other_ways_to_call(
    files: Bundle, cache: Path, vcpus: int, conduit: str, bell: str
) -> None:
    count = f"test $(grep -c ^processor /proc/cpuinfo) = {vcpus}"
    settings = run.RunSettings(
        board=BoardSettings(vcpus=vcpus, bell=bell), conduit=conduit, steps=SHORT, commands=(count,)
    )
    outcome = run.execute(files, settings, cache=cache)
    assert outcome.good, outcome
    assert outcome.guests[0].forwarded > vcpus  # PSCI_VERSION and more, and CPU_ON


def test_a_board_without_el2_has_no_hvc(files: Bundle) -> None:
    with pytest.raises(LiveError, match="hvc"):
        run.Run(files, run.RunSettings(board=BoardSettings(bell=UART), conduit=HVC))


def test_a_guest_that_dies_disturbs_nobody(files: Bundle) -> None:
    with run.Run(files, run.RunSettings(guests=2, steps=SHORT)) as running:
        first, second = running.start(), running.start()
        assert running.serve(lambda: first.served > 5)
        os.kill(first.emulator.pid, signal.SIGKILL)
        assert running.serve()
        outcome = running.result()
    assert first.ended == "emulator ended with -9"
    assert second.ended == "switched off"
    assert outcome.guests[1].problems == ()
    assert outcome.violations == ()
    assert outcome.pins == 0


@pytest.mark.timeout(120)
def test_many_deaths_beside_a_guest_that_works(files: Bundle, cache: Path) -> None:
    """Guests are killed at ever later calls, by a signal or by us in the middle of a call."""
    workload = None
    if client.find_compiler() is not None:
        workload = client.compile_client(client.workload_source(), files, cache)
    settings = run.RunSettings(guests=2, board=BoardSettings(vcpus=2), seconds=100)
    with run.Run(files, settings, workload=workload) as running:
        witness = running.start()
        victims: list[LiveGuest] = []
        while witness.ended is None:
            victim = running.start()
            victims.append(victim)
            calls = 5 + 4 * len(victims)
            running.serve(lambda: witness.ended is not None or victim.served >= calls)  # noqa: B023
            if len(victims) % 2:
                os.kill(victim.emulator.pid, signal.SIGKILL)
                running.serve(lambda: victim.ended is not None)  # noqa: B023
            else:
                running.service.stop(victim)
            assert running.platform.host.pinned(victim.ident) == 0
        outcome = running.result()
    assert outcome.guests[0].problems == ()
    assert outcome.guests[0].ended == "switched off"
    assert len(victims) > 1
    assert outcome.violations == ()
    assert outcome.pins == 0
    assert our_processes() == []


def test_an_interrupt_reaches_the_guest(files: Bundle) -> None:
    """The driver takes it and asks GET_ASYNC_NOTIF_VALUE: nothing is pending."""
    command = "until awk '/optee/ { exit !$2 }' /proc/interrupts; do sleep 0.1; done"
    settings = run.RunSettings(steps=(PROBE,), commands=(command,))
    with run.Run(files, settings) as running:
        guest = running.start()
        assert running.serve(lambda: any("enumeration" in line for line in guest.console.lines))
        before = guest.served
        running.platform.host.inject_virq(guest.ident, NOTIFICATION_INTID)
        assert running.serve()
        outcome = running.result()
    assert outcome.good, outcome
    assert guest.interrupts == 1
    assert guest.served > before


def test_an_interrupt_is_lost_and_the_next_is_late(files: Bundle) -> None:
    command = "while ! grep -q ' 1 .*optee' /proc/interrupts; do sleep 0.1; done"
    faults = (PlannedFault("drop-interrupt", 1), PlannedFault("late-interrupts", 1))
    settings = run.RunSettings(steps=(PROBE,), commands=(command,), faults=faults)
    with run.Run(files, settings) as running:
        guest = running.start()
        assert running.serve(lambda: any("enumeration" in line for line in guest.console.lines))
        running.platform.host.inject_virq(guest.ident, NOTIFICATION_INTID)
        running.platform.host.inject_virq(guest.ident, NOTIFICATION_INTID)
        injected = time.monotonic_ns()
        assert guest.interrupts == 0
        assert running.serve(lambda: guest.interrupts > 0)
        assert time.monotonic_ns() - injected >= LATE
        assert running.serve()
        outcome = running.result()
    assert outcome.verdict == SURVIVED
    assert guest.interrupts == 1


def test_a_kernel_that_breaks_is_noticed(files: Bundle, cache: Path) -> None:
    settings = run.RunSettings(
        steps=(PROBE,), commands=("echo c > /proc/sysrq-trigger",), arguments="sysrq_always_enabled"
    )
    outcome = run.execute(files, settings, cache=cache)
    assert not outcome.good
    assert any("Kernel panic" in alarm for alarm in outcome.guests[0].alarms)


@pytest.mark.parametrize("place", ["start", "boot", "calls"])
def test_nothing_is_left_after_a_kill(cache: Path, tmp_path: Path, place: str) -> None:
    """kill -9 of ours: the kernel ends all emulators, wherever they are."""
    program = [sys.executable, "-c", "from mediator.command import main; main()", "live"]
    options = ["--guests", "2", "--vcpus", "2", "--show-console", "--trace", "x.json"]
    command = [
        *program,
        *options,
        "--run",
        "echo here; while :; do cat /dev/hwrng; done >/dev/null",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    if place != "start":
        sign = "@@ boot ok" if place == "boot" else "| here"
        for line in process.stderr:
            if sign in line:
                break
    try:
        wanted = 1 if place == "start" else 2
        while len(children := _emulators(process.pid)) < wanted and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert len(children) >= wanted
    end = time.monotonic() + 10
    while any("qemu" in _command(pid) for pid in children):
        assert time.monotonic() < end
        time.sleep(0.05)


def _emulators(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    try:
        children = [int(word) for word in path.read_text("ascii").split()]
    except OSError:
        return []
    return [pid for pid in children if "qemu" in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def test_an_own_client_and_its_application(live_client: Callable[..., Trial]) -> None:
    trial = live_client(CLIENT, Greeter, arguments="Linux")
    assert (trial.code, trial.lines) == (0, ("Hello, Linux",))
    assert trial.result.good


def test_a_person_at_the_console(files: Bundle) -> None:
    """Keys go in when the prompt is there; what the shell says comes out; it ends with exit."""
    keys, typing = os.pipe()
    shown, screen = os.pipe()
    settings = run.RunSettings(steps=(PROBE,), shell=True)
    with run.Run(files, settings) as running:
        guest = running.start()

        def type_once(_guest: LiveGuest, line: str) -> None:
            if "built-in shell" in line:
                os.write(typing, b"echo number $((6 * 7)); ls /dev/tee0; exit\n")

        running.service.lines = type_once
        interact(running, guest, keys, screen)
        outcome = running.result()
    os.close(screen)
    with open(shown, "rb") as file:
        said = file.read()
    for file_number in (keys, typing):
        os.close(file_number)
    assert b"number 42" in said
    assert b"\n/dev/tee0" in said
    assert b"job control" not in said
    assert outcome.good, outcome


def test_the_command_reports_as_json(cache: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_text("hello from outside")
    arguments = [
        "live",
        "--json",
        "--initrd-add",
        f"{note}:/etc/note",
        "--run",
        "grep -q outside /etc/note",
    ]
    done = CliRunner().invoke(main, [*arguments, "--run", "false"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    text = resources.files("mediator.live").joinpath("result.schema.json").read_text("utf-8")
    jsonschema.validate(report, json.loads(text))
    states = {check["name"]: check["state"] for check in report["guests"][0]["checks"]}
    assert (states["run1"], states["run2"]) == ("ok", "fail")
    assert states[PROBE] == OK
