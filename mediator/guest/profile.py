# SPDX-License-Identifier: BSD-2-Clause
"""How the OP-TEE drivers of different kernels differ. Everything else follows from capabilities."""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen
class Profile:
    """A driver version.

    ``reads_thread_count``: probe issues GET_THREAD_COUNT, and no more calls than that enter the
    secure world at once (Linux ``drivers/tee/optee/call.c``, ``optee_cq_wait_init``).
    ``notification_timeout``: a NOTIFICATION WAIT ends after value c milliseconds, if that is not 0.
    """

    name: str
    reads_thread_count: bool
    notification_timeout: bool


LINUX_6_1: Final = Profile("Linux 6.1", reads_thread_count=False, notification_timeout=False)
LINUX_6_12: Final = Profile("Linux 6.12", reads_thread_count=True, notification_timeout=True)
PROFILES: Final = (LINUX_6_1, LINUX_6_12)
