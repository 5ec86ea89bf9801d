# SPDX-License-Identifier: BSD-2-Clause
"""Real guests: how long they take, what is ours of it, whether a waiting one sleeps; many boots in a row.

::

    python -m benchmarks.live             the speed, as JSON
    python -m benchmarks.live --boots 60  so many guests, of all kinds in turn; a line for each run

Needs the emulator, the cross compiler and fetched files (``optee-mediator live doctor``). All kernels
that were fetched take part in the boots. Times are of this machine at this moment: ``calibration``
says how fast it was (milliseconds of processor time for a million additions in Python).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Final

from mediator.live import bundle, client, run
from mediator.live.bundle import Bundle
from mediator.live.guest import LiveGuest
from mediator.live.image import HVC, SMC
from mediator.live.initramfs import PROBE, SUPPLICANT
from mediator.live.platform import LiveSettings
from mediator.live.qemu import BoardSettings
from mediator.live.result import Result
from mediator.live.service import our_processes
from mediator.optee.settings import OFFERED_CAPABILITIES, MediatorSettings
from smccc.constants import optee_smc as smc

ROUNDS: Final = 3
BUSY_SECONDS: Final = 3
PATIENCE: Final = 600.0
"""Seconds for a run on a machine that is busy with other things."""
CLASSIC: Final = MediatorSettings(
    capabilities=OFFERED_CAPABILITIES & ~smc.OPTEE_SMC_SEC_CAP_RPC_ARG
)

SLEEPER: Final = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <tee_client_api.h>
int main(void)
{
    TEEC_Context context;
    TEEC_Session session;
    TEEC_UUID clock = { 0x5f1c6a52, 0x9d0e, 0x4c64, { 0x9b, 0x53, 0x3d, 0x6f, 0x2a, 0x7b, 0xe0, 4 } };
    TEEC_Operation op = { .paramTypes = TEEC_PARAM_TYPES(TEEC_VALUE_INPUT, 0, 0, 0) };
    uint32_t origin;
    if (TEEC_InitializeContext(NULL, &context) ||
        TEEC_OpenSession(&context, &session, &clock, TEEC_LOGIN_PUBLIC, NULL, NULL, &origin))
        return 1;
    op.params[0].value.a = SECONDS * 1000; /* steps of the secure world, a millisecond each */
    op.params[0].value.b = 1000000;
    puts("@@sleep");
    fflush(stdout);
    TEEC_Result result = TEEC_InvokeCommand(&session, 0, &op, &origin);
    puts("@@awake");
    fflush(stdout);
    return result != 0;
}
"""


def calibration() -> float:
    """ms of processor time for a million additions."""
    began, total = time.thread_time(), 0
    for number in range(1_000_000):
        total += number
    return round((time.thread_time() - began) * 1000, 1)


def _processor(pid: int) -> float:
    """Seconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _workload(files: Bundle, cache: Path, guests: int, checkers: bool) -> Result:
    settings = run.RunSettings(
        guests=guests, platform=LiveSettings(checkers=checkers), seconds=PATIENCE
    )
    result = run.execute(files, settings, cache=cache)
    if not result.good:
        raise SystemExit(f"the workload failed: {[guest.problems for guest in result.guests]}")
    return result


def _figures(results: list[Result]) -> dict[str, object]:
    return {
        "seconds": [round(result.seconds, 2) for result in results],
        "calls": results[0].calls,
        "median_microseconds": [round(result.median, 1) for result in results],
        "slowest_microseconds": [round(result.slowest) for result in results],
        "processor_ours": round(statistics.median([r.processor for r in results]), 2),
        "processor_emulators": round(statistics.median([r.emulators for r in results]), 2),
    }


def sleeping(files: Bundle, cache: Path) -> dict[str, float]:
    """Processor time of an emulator while its guest's only vCPU waits for a busy secure world."""
    source = SLEEPER.replace("SECONDS", str(BUSY_SECONDS))
    program = client.compile_client(source, files, cache)
    used: list[tuple[float, float]] = []

    def take(guest: LiveGuest, line: str) -> None:
        if line in ("@@sleep", "@@awake"):
            used.append((time.monotonic(), _processor(guest.emulator.pid)))

    settings = run.RunSettings(
        steps=(PROBE, SUPPLICANT),
        commands=("sleeper",),
        files={"/bin/sleeper": (program, 0o755)},
        seconds=PATIENCE,
    )
    run.execute(files, settings, cache=cache, lines=take)
    (began, before), (ended, after) = used
    return {"seconds": round(ended - began, 2), "processor_emulator": round(after - before, 2)}


def speed(files: Bundle, cache: Path) -> dict[str, object]:
    """All figures."""
    _workload(files, cache, 1, False)  # everything is compiled and in the page cache
    return {
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "calibration": calibration(),
        "kernel": files.release,
        "one guest": _figures([_workload(files, cache, 1, False) for _ in range(ROUNDS)]),
        "one guest, checkers": _figures([_workload(files, cache, 1, True)]),
        "three guests": _figures([_workload(files, cache, 3, False)]),
        "waiting vCPU": sleeping(files, cache),
    }


def boots(cache: Path, wanted: int) -> bool:
    """Boot at least ``wanted`` guests with the whole workload; whether all was well."""
    kernels = [bundle.load(cache, name) for name in bundle.available(cache)]
    done = bad = number = 0
    while done < wanted:
        files = kernels[number % len(kernels)]
        guests, vcpus = 1 + number % 4, (1, 2, 4)[number % 3]
        conduit, classic = (SMC, HVC)[number // 2 % 2], number // 4 % 2 == 1
        mediator = CLASSIC if classic else MediatorSettings()
        settings = run.RunSettings(
            guests=guests,
            board=BoardSettings(vcpus=vcpus),
            platform=LiveSettings(mediator=mediator),
            conduit=conduit,
            seconds=PATIENCE,
        )
        result = run.execute(files, settings, cache=cache)
        good = result.good and result.pins == 0 and not our_processes()
        number, done, bad = number + 1, done + guests, bad + (not good)
        style = "CALL_WITH_ARG" if classic else "RPC_ARG"
        print(
            f"| {number} | {files.release} | {guests} | {vcpus} | {conduit} | {style} "
            f"| {result.calls} | {result.seconds:.1f} | {os.getloadavg()[0]:.1f} "
            f"| {'passed' if good else [guest.problems for guest in result.guests]} |",
            flush=True,
        )
    print(f"{done} guests in {number} runs, {bad} runs failed")
    return not bad


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("--boots", type=int, metavar="N")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--bundle", default="default")
    options = parser.parse_args()
    cache = bundle.cache_folder(options.cache)
    if options.boots:
        sys.exit(0 if boots(cache, options.boots) else 1)
    print(json.dumps(speed(bundle.load(cache, options.bundle), cache), indent=2))


if __name__ == "__main__":
    main()
