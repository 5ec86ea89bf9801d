# SPDX-License-Identifier: BSD-2-Clause
"""The page that says how the simulated driver compares with the real one.

``python -m mediator.live.comparison.page tests/data/live/*.jsonl.gz > docs/evidence/driver-comparison.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mediator.guest.profile import PROFILES
from mediator.live.comparison.compare import Comparison, ComparisonError
from mediator.live.comparison.reasons import REASONS
from mediator.live.comparison.report import compare_file

COMMAND: Final = "python -m mediator.live.comparison"

_HEAD: Final = f"""\
# The simulated driver and the real one

Made by `{COMMAND}.page tests/data/live/*.jsonl.gz`; do not edit.

Simulated guests have an OP-TEE driver, a supplicant and a client library of our own. How far they behave as Linux
does is not a matter of opinion: real kernels ran in front of the same mediator and the same simulated secure world
({{doc}}`/howto/live`), their sessions are recorded, the simulated guest runs the same programs, and the two streams of
calls are aligned and compared, line by line. `{COMMAND} RECORDING` does it for any recording of the
built-in workload and shows what has no reason; the tests do it for the twelve sessions in `tests/data/live`.

Compared of every call: the function and a3 to a6; the message's header and every parameter with its attribute, values,
sizes and offsets; which registered buffer a reference means; contents that the secure world may read (the first 256
octets); shape, length, links and alignment of page lists; each RPC and its answer with result and origin; the registers
of the resumption, with what an earlier RPC ALLOC left in a4 and a5; the result. Of fast calls: all registers. Of the
whole session: the order, the number of registrations, the distance of cookies.

## Result

"""

_MENDED: Final = """\
## What the comparison taught

Found by it, and mended in the simulated guest:

| what | real driver |
| --- | --- |
| EXCHANGE_CAPABILITIES | a kernel with one processor says so: a1 = 1 (UNIPROCESSOR) |
| registered kernel memory | comes zeroed; the simulated one came as it was freed (`optee_pool_op_alloc_helper` in `optee/core.c`, `__GFP_ZERO`) |
| invoke, cancel and close of a closed session | make no call: the driver knows a client's sessions (`find_session` in `drivers/tee/optee/call.c`); the client gets BAD_PARAMETERS, origin COMMS |
| the end of a process | what it left is released: shared memory first, the newest first, then its sessions, the newest first |
| a client that is killed while it waits for a supplicant | its request is answered COMMUNICATION, origin COMMS; the call ends (`optee_supp_thrd_req`) |
| client identities | login USER and GROUP: name-based UUIDs of the numbers; APPLICATION and the kernel's login make no call |
| distance of kernel objects | 0x80 octets, 0x60 with 6.12; none straddles two pages |
| file descriptors of the supplicant | depend on how it was started; they are a setting now |
| random numbers | the kernel itself is a client, from the probe to the unload (`optee-rng`) |

Equal from the beginning, in both kernels and both styles: the order of the probe and of the unload; message slots and
their page; the private pages of REGISTER_SHM and UNREGISTER_SHM; META parameters of OPEN_SESSION; null and empty memory
references (8 octets are registered for an empty buffer); lists of 510 to 1023 pages with the link behind a full page;
the same memory registered twice; loading a TA; every file operation of secure storage; TA panics; SUSPEND; cancellation;
waiting for a thread; a supplicant that is killed, started again, or dies with a request that it has not taken.

## What was not compared

Not in these recordings, so known only from other ones or from reading: the conduit HVC (it is not part of a recording;
live runs use both), a signal that cuts a SUSPEND short, asynchronous notifications other than at probe and unload, reserved memory without dynamic shared
memory, system sessions, RPMB, sockets, plug-ins, protected memory, FF-A, suspend and resume, hot-plugged processors,
shutdown (`optee_shutdown`).
"""


def _results(comparisons: Iterable[Comparison]) -> Iterator[str]:
    yield "| recording | calls | simulated | pairs | compared lines | with a reason | without |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for c in comparisons:
        explained = sum(c.explained.values())
        name = c.name.removesuffix(".jsonl.gz")
        yield (
            f"| `{name}` | {c.real} | {c.simulated} | {c.paired} | {c.lines} | {explained} "
            f"| {len(c.findings)} |"
        )


def _reasons() -> Iterator[str]:
    yield "## Differences and their reasons"
    yield ""
    yield "| reason | what differs | why |"
    yield "| --- | --- | --- |"
    for reason in REASONS:
        yield f"| {reason.name} | {reason.differs} | {reason.why} |"


def _profiles() -> Iterator[str]:
    yield "## Two kernels"
    yield ""
    yield (
        "Where kernels differ, the simulated driver follows `DriverSettings.profile`; everything else "
        "follows from the capabilities that are offered. Facts, with the place in Linux:"
    )
    yield ""
    names = " | ".join(profile.name for profile in PROFILES)
    yield f"| behaviour | {names} | where |"
    yield f"| --- |{' --- |' * len(PROFILES)} --- |"
    rows: tuple[tuple[str, list[str], str], ...] = (
        (
            "probe asks GET_THREAD_COUNT, and no more calls enter at once",
            ["yes" if p.reads_thread_count else "no: ETHREAD_LIMIT, then again" for p in PROFILES],
            "`optee/smc_abi.c`, `optee_probe`; `optee/call.c`, `optee_cq_wait_init`",
        ),
        (
            "NOTIFICATION wait has a time-out (value c, in milliseconds)",
            ["yes" if p.notification_timeout else "no" for p in PROFILES],
            "`optee/rpc.c`, `handle_rpc_func_cmd_wq`; `optee/notif.c`, `optee_notif_wait`",
        ),
        (
            "distance of `struct tee_shm` objects, hence of cookies",
            [f"{p.object_size:#x}" for p in PROFILES],
            "`mm/slab_common.c`: the smallest cache on arm64",
        ),
        (
            "random numbers read at once when the device is registered",
            [f"{p.early_randomness} octets" if p.early_randomness else "none" for p in PROFILES],
            "`char/hw_random/core.c`, `add_early_randomness`",
        ),
    )
    for behaviour, values, where in rows:
        yield f"| {behaviour} | {' | '.join(values)} | {where} |"


def page(comparisons: Iterable[Comparison]) -> str:
    """The whole page."""
    parts = ("\n".join(lines) for lines in (_results(comparisons), _reasons(), _profiles()))
    return _HEAD + "\n\n".join(parts) + "\n\n" + _MENDED


def main(paths: Sequence[str]) -> int:
    """Print the page; 2 if a recording is another workload."""
    try:
        found = [compare_file(path) for path in paths if "-values" not in path]
    except ComparisonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page(found), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
