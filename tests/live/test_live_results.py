# SPDX-License-Identifier: BSD-2-Clause
"""Results of live runs: judged, and written as their schemas say."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import attrs
import jsonschema
import pytest
from click.testing import CliRunner

from mediator.command import main
from mediator.deployment.choice import EL0_APP
from mediator.live import bundle, sweep
from mediator.live.bundle import Bundle
from mediator.live.faults import PlannedFault
from mediator.live.result import (
    HUNG,
    KILLED,
    MISSED,
    SERVED_AGAIN,
    SURVIVED,
    Check,
    GuestResult,
    Result,
)
from mediator.live.run import RunSettings


def validator(name: str) -> jsonschema.Draft202012Validator:
    text = resources.files("mediator.live").joinpath(f"{name}.schema.json").read_text("utf-8")
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


END = Check(name="end", state="ok", microseconds=1, detail="")


def guest(name: str, *failed: str, problems: tuple[str, ...] = ()) -> GuestResult:
    return GuestResult(
        name=name,
        checks=(
            Check(name="boot", state="ok", microseconds=10, detail="6.1"),
            *[Check(name=check, state="fail", microseconds=1, detail="") for check in failed],
        ),
        seconds=1.5,
        ended="switched off",
        calls=3,
        forwarded=2,
        rung_again=0,
        interrupts=0,
        alarms=(),
        problems=problems,
    )


def result(*guests: GuestResult, verdict: str = "", faults: tuple[str, ...] = ()) -> Result:
    return Result(
        guests=guests,
        release="6.1.0",
        vcpus=1,
        bell="semihosting",
        conduit="smc",
        seconds=2.0,
        calls=3,
        median=50.0,
        slowest=100.0,
        processor=0.5,
        emulators=1.0,
        violations=(),
        pins=0,
        faults=faults,
        verdict=verdict,
    )


def written(data: dict[str, object]) -> object:
    return json.loads(json.dumps(data))


def test_results_are_what_their_schema_says() -> None:
    checker = validator("result")
    checker.validate(written(result(guest("guest1")).as_json()))
    lied = result(guest("guest1", "probe"), verdict=SURVIVED, faults=("busy@7+2",))
    checker.validate(written(lied.as_json()))
    changed = attrs.evolve(lied, verdict="who knows")
    assert not checker.is_valid(written(changed.as_json()))
    assert not checker.is_valid(written({**lied.as_json(), "more": 1}))


def test_a_victim_may_fail_but_nobody_else() -> None:
    victim, other = guest("guest1", problems=("probe: failed",)), guest("guest2")
    assert result(victim, other, verdict=SURVIVED, faults=("busy@1",)).good
    assert not result(victim, other, verdict=HUNG, faults=("busy@1",)).good
    bad = guest("guest2", problems=("hwrng: failed",))
    assert not result(victim, bad, verdict=KILLED, faults=("kill@1",)).good
    assert not result(victim).good


APP = {"layers": {"seccomp": True}, "complete": True, "image_sha256": "0" * 64}


def test_the_death_of_an_app_is_in_the_result() -> None:
    died = attrs.evolve(
        result(guest("guest1", "probe"), verdict=SERVED_AGAIN, faults=("kill-app@7",)),
        deployment=EL0_APP,
        apps=(APP, APP),
        deaths=1,
        log=("guest1: app 0 has died: closed",),
    )
    validator("result").validate(written(died.as_json()))
    assert died.good
    # Served again is the least; and nobody may die who was not told to.
    assert not attrs.evolve(died, verdict=SURVIVED).good
    assert not attrs.evolve(died, deaths=2).good
    assert not attrs.evolve(died, faults=()).good
    attempt = sweep.attempt_of(PlannedFault("kill-app", 7), died)
    assert attempt.good
    assert not sweep.attempt_of(
        PlannedFault("kill-app", 7), attrs.evolve(died, verdict=SURVIVED)
    ).good


def test_other_guests_of_a_dead_app_need_only_come_to_an_end() -> None:
    lost = guest("guest2", "probe", problems=("probe: failed",))
    died = attrs.evolve(
        result(guest("guest1"), lost, verdict=SERVED_AGAIN, faults=("kill-app@7",)), deaths=1
    )
    assert died.disturbed(lost) == ("did not finish: switched off",)
    assert not died.good
    lost = attrs.evolve(lost, checks=(*lost.checks, END))
    assert died.disturbed(lost) == ()
    assert attrs.evolve(died, guests=(guest("guest1"), lost)).good
    assert died.disturbed(attrs.evolve(lost, alarms=("BUG: x",))) == ("BUG: x",)


def test_a_sweep_goes_on_until_a_call_is_never_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[PlannedFault] = []

    def execute(_files: Bundle, settings: RunSettings, *, cache: Path) -> Result:
        (fault,) = settings.faults
        asked.append(fault)
        missed = fault.number > (4 if fault.kind == "kill" else 2)
        bad = guest(
            "guest2", problems=("hwrng: failed",) if fault == PlannedFault("busy", 2) else ()
        )
        victim = guest("guest1", "probe")
        return result(
            attrs.evolve(victim, checks=(*victim.checks, END)),
            bad,
            verdict=MISSED if missed else SURVIVED,
            faults=(str(fault),),
        )

    monkeypatch.setattr(sweep, "execute", execute)
    said: list[sweep.Attempt] = []
    files = Bundle(folder=tmp_path, suite="s", release="6.1.0", packages=(), hashes={})
    outcome = sweep.sweep(
        files,
        RunSettings(guests=2),
        ("kill", "busy"),
        range(2, 9, 2),
        cache=tmp_path,
        say=said.append,
    )
    assert [str(fault) for fault in asked] == ["kill@2", "kill@4", "kill@6", "busy@2", "busy@4"]
    assert [attempt.fault for attempt in outcome.attempts] == ["kill@2", "kill@4", "busy@2"]
    assert said == list(outcome.attempts)
    assert outcome.verdicts == {SURVIVED: 3}
    assert said[0].failed == ("probe",)
    assert [attempt.good for attempt in said] == [True, True, False]
    assert said[2].disturbed == ("guest2: hwrng: failed",)
    assert not outcome.good
    validator("sweep").validate(written(outcome.as_json()))


def test_a_manifest_is_what_its_schema_says(tmp_path: Path) -> None:
    record = bundle.PackageRecord(name="x", version="1:2", sha256="0" * 64)
    made = bundle.store(
        tmp_path,
        "default",
        suite="s",
        release="6.1",
        packages=(record,),
        files={"kernel": b"K", "busybox": b"B", "modules/tee.ko": b"T"},
    )
    manifest = json.loads((made.folder / bundle.MANIFEST).read_text("utf-8"))
    checker = validator("bundle")
    checker.validate(manifest)
    assert not checker.is_valid({**manifest, "files": {**manifest["files"], "/etc/x": "0" * 64}})
    assert not checker.is_valid({**manifest, "files": {"kernel": "0" * 64}})


def test_the_manifest_of_the_fetched_files(files: Bundle) -> None:
    validator("bundle").validate(json.loads((files.folder / bundle.MANIFEST).read_text("utf-8")))


@pytest.mark.timeout(120)
def test_a_real_sweep(cache: Path) -> None:
    """A guest dies in the middle of its probe, at two places; the one beside it notices nothing."""
    command = ["live", "sweep", "kill", "--first", "8", "--last", "12", "--step", "4"]
    done = CliRunner().invoke(main, [*command, "--guests", "2", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    validator("sweep").validate(report)
    assert report["verdicts"] == {KILLED: 2}
    assert [attempt["calls"] for attempt in report["attempts"]] == [7, 11]
