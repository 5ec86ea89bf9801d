# SPDX-License-Identifier: BSD-2-Clause
"""Why the simulated driver's calls may differ from the real one's: every difference needs one of these.

A reason covers lines of paired operations, whole operations that only one side made, or figures. What no
reason covers is a finding. The page ``docs/driver-comparison.md`` is made of this table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from mediator.live.comparison.stream import Operation

_RNG_READ: Final = "cmd 1 func 0 session 1 "
_SLEEP: Final = "param 0: value in 0x3c "
"""Milliseconds for which the program asks after it has asked for the time."""
_POOL: Final = "of 0x1000 bytes at page + 0x0"


def is_rng_read(operation: Operation) -> bool:
    """A read of the kernel's random number generator: session 1, the registered page, inout."""
    return (
        len(operation.lines) > 3
        and operation.lines[2].startswith(_RNG_READ)
        and operation.lines[3].startswith("param 0: rmem inout")
        and operation.lines[3].endswith(_POOL)
    )


def _random(operation: Operation, real: str, simulated: str) -> bool:
    contents = real.startswith("contents of ") and simulated.startswith("contents of ")
    if not contents or len(real) != len(simulated):
        return False
    if is_rng_read(operation):
        return True
    # Files of secure storage: encrypted, under a fresh initialisation vector each time.
    return any(line.startswith("request RPC_CMD FS") for line in operation.lines)


def _clock(operation: Operation, real: str, simulated: str) -> bool:
    """What the clock TA was told, and the same number again in the program's next call."""
    if any(line.startswith("request RPC_CMD GET_TIME") for line in operation.lines):
        return real.startswith("result param 0: value out")
    call, asked, _ = real.partition(_SLEEP)
    return bool(asked) and simulated.startswith(call + asked)


Covers = Callable[[Operation, str, str], bool]


def _nothing(_operation: Operation, _real: str, _simulated: str) -> bool:
    return False


@attrs.frozen
class Reason:
    """``name``; ``differs``: what; ``why``. ``lines``: covers a pair of lines of this operation.

    ``missing``: covers an operation that one side made and the other did not. ``figure``: the name of
    a figure that it covers.
    """

    name: str
    differs: str
    why: str
    lines: Covers = _nothing
    missing: Callable[[Operation], bool] | None = None
    figure: str = ""


REASONS: Final = (
    Reason(
        "random numbers",
        "contents of the pool of the random number generator, and of files of secure storage",
        "Numbers are drawn in another order: the kernel reads when its own thread has time. Files are "
        "encrypted with vectors from the same generator. Lengths and places are compared.",
        lines=_random,
    ),
    Reason(
        "clock",
        "the time of day that a TA is told",
        "A simulated machine begins at a fixed time and needs none for what costs a real one much.",
        lines=_clock,
    ),
    Reason(
        "reads of the kernel",
        "some reads of the random number generator more or less, or at another place",
        "The kernel's thread (`hwrng_fillfn` in `drivers/char/hw_random/core.c`) reads when it is "
        "scheduled and again when its pool has been used; the simulated guest has no such thread, it "
        "reads a fixed number of times after the probe.",
        missing=is_rng_read,
    ),
    Reason(
        "scheduling",
        "the order of calls of programs that run at the same time, hence session numbers and message "
        "slots; the requests to wait for a lock or to wake its next owner",
        "Whoever comes first gets the lower number. The calls themselves are compared, whatever their "
        "order: each worker must make the same ones with the same contents and results.",
        figure="waits",
    ),
    Reason(
        "interrupts",
        "how often a call is interrupted (RPC_FOREIGN_INTR)",
        "Time passes differently: the emulator's timer ticks while Python works. How a call is resumed "
        "after one is compared in every case.",
        figure="interrupts",
    ),
    Reason(
        "thread limit",
        "how often ETHREAD_LIMIT is answered",
        "A matter of timing: 6.1 does not ask for the number of threads (6.12 does, and never runs "
        "into the limit). The second try must be the same message, and is part of the comparison.",
        figure="limits",
    ),
    Reason(
        "cookie reuse",
        "how often a new registration gets the cookie that was given up last",
        "Cookies are addresses of kernel objects. A real kernel allocates other objects of that size in "
        "between, so a freed address is not always the next; the simulated one always reuses it, which "
        "is the harder case for a mediator.",
        figure="reused cookies",
    ),
    Reason(
        "threads in use",
        "classic style: how many RPC arguments are allocated (RPC ALLOC), hence how many the driver "
        "frees at the unload (DISABLE_SHM_CACHE)",
        "The secure world keeps one for each of its threads, from the first call that runs in it. How "
        "many are ever used at once is the scheduler's affair.",
        missing=lambda operation: operation.head == "DISABLE_SHM_CACHE",
        figure="allocated RPC arguments",
    ),
    Reason(
        "addresses",
        "page addresses, cookies, the kernel's virtual addresses; cancel ids",
        "They are the guest's own. Compared instead: what lies there, offsets in the page, number of "
        "pages and shape of page lists, what a cookie stands for; whether there is a cancel id.",
    ),
    Reason(
        "left-over values",
        "registers a1 to a3 of a call's last answer, a4 to a7 of every answer",
        "They have no meaning; the mediator hands the caller's own back.",
    ),
)


def reason_for_lines(operation: Operation, real: str, simulated: str) -> str:
    """Name of the reason for two lines to differ; empty if there is none."""
    for reason in REASONS:
        if reason.lines(operation, real, simulated):
            return reason.name
    return ""


def reason_for_missing(operation: Operation) -> str:
    """Name of the reason for an operation to have no counterpart; empty if there is none."""
    for reason in REASONS:
        if reason.missing is not None and reason.missing(operation):
            return reason.name
    return ""


def reason_for_figure(figure: str) -> str:
    """Name of the reason for a figure to differ; empty if there is none."""
    for reason in REASONS:
        if reason.figure == figure:
            return reason.name
    return ""
