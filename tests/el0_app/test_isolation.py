# SPDX-License-Identifier: BSD-2-Clause
"""What an app cannot do, tried from inside of one, and what it is seen to be from outside."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from mediator.app.isolation import AUDIT_ARCHES, program
from mediator.app.trial import ATTEMPTS, STRANGER
from mediator.deployment import app_abi as abi
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.launch import LAYERS, LaunchError, NotIsolated
from mediator.deployment.el0_app.manifest import optee_manifest
from mediator.hypervisor.host import ReferenceHost
from mediator.hypervisor.memory import PhysicalMemory
from tests.el0_app.rig import AppRig, app_rig, trial_manifest
from tests.mediator.with_optee import OTHER, RAM


@pytest.fixture(scope="module")
def rig() -> Iterator[AppRig]:
    with app_rig(manifest=trial_manifest(), require_isolation=True) as made:
        yield made


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_the_app_may_not(attempt: str, rig: AppRig) -> None:
    x0, found, *_ = rig.trial(list(ATTEMPTS).index(attempt))
    assert (x0, errno.errorcode.get(found, found)) == (0, "EPERM")
    assert not rig.app.deaths


def test_it_reads_no_other_guest(rig: AppRig) -> None:
    rig.put(RAM, b"of the other one", guest=OTHER)
    assert rig.trial(STRANGER, OTHER, RAM)[:2] == (0, -abi.NOT_ALLOWED)


def test_every_layer_is_seen_from_outside(rig: AppRig) -> None:
    (isolation,) = rig.app.isolation
    assert isolation.layers == dict.fromkeys(LAYERS, True)
    assert isolation.as_json()["complete"] is True
    place = Path("/proc") / str(isolation.pid)
    assert sorted(os.listdir(place / "fd")) == ["0", "1"]
    channel = [os.readlink(place / "fd" / name) for name in ("0", "1")]
    assert len({name for name in channel if name.startswith("pipe:[")}) == 2
    # The other ends of both are here, and nobody else has an end.
    mine = [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors_of_this_process()]
    assert [mine.count(name) for name in channel] == [1, 1]
    assert (place / "environ").read_bytes() == b""
    status = (place / "status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert (
        isolation.cpus == (place / "status").read_text().split("Cpus_allowed_list:\t")[1].split()[0]
    )


def _descriptors_of_this_process() -> list[str]:
    place = "/proc/self/fd"
    return [fd for fd in os.listdir(place) if os.path.lexists(f"{place}/{fd}")]


def host() -> ReferenceHost:
    return ReferenceHost(PhysicalMemory())


def test_app_and_caller_share_a_processor() -> None:
    before = os.sched_getaffinity(0)
    with El0App(host()) as app:
        assert {int(app.isolation[0].cpus)} == os.sched_getaffinity(0)
    assert os.sched_getaffinity(0) == before


def test_an_app_on_any_processor_is_isolated_as_well() -> None:
    before = os.sched_getaffinity(0)
    with El0App(host(), pinned=False, require_isolation=True) as app:
        assert app.isolation[0].layers["single_thread"]
        assert os.sched_getaffinity(app.isolation[0].pid) == before == os.sched_getaffinity(0)


def test_an_image_that_has_changed_is_not_started() -> None:
    manifest = attrs.evolve(optee_manifest(), sha256="0" * 64)
    with pytest.raises(LaunchError, match="its image has SHA-256"):
        El0App(host(), manifest=manifest)


def test_an_image_that_nobody_vouches_for_is_not_isolated() -> None:
    manifest = attrs.evolve(optee_manifest(), sha256=None)
    with pytest.raises(NotIsolated, match="missing: image"):
        El0App(host(), manifest=manifest, require_isolation=True)
    with El0App(host(), manifest=manifest) as app:
        assert app.isolation[0].missing == ("image",)


def test_an_app_of_another_name_is_refused() -> None:
    manifest = attrs.evolve(optee_manifest(), name="somebody")
    with pytest.raises(LaunchError, match="calls itself 'optee-mediator'"):
        El0App(host(), manifest=manifest)


def test_a_program_that_does_not_speak_is_refused() -> None:
    manifest = attrs.evolve(optee_manifest(), program="/bin/true", sha256=None)
    with pytest.raises(LaunchError, match="said no HELLO"):
        El0App(host(), manifest=manifest)


def test_a_hypervisor_that_a_closed_pipe_would_kill_starts_none() -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with pytest.raises(LaunchError, match="SIGPIPE is not ignored"):
            El0App(host())
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.parametrize("machine", AUDIT_ARCHES)
def test_the_filter_ends_in_a_refusal_and_jumps_inside(machine: str) -> None:
    code = program(machine)
    assert code[-1] == (0x06, 0, 0, 0x0005_0001)
    for at, (_, if_true, if_false, _) in enumerate(code):
        assert at + 1 + max(if_true, if_false) < len(code) or code[at][0] == 0x06
