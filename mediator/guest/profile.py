# SPDX-License-Identifier: BSD-2-Clause
"""How the OP-TEE drivers of different kernels differ. Everything else follows from capabilities.

Facts only, by recorded traffic of Debian's 6.1 and 6.12 kernels and by the behaviour of the functions
named. ``docs/driver-comparison.md`` has the table, and what else was compared.
"""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen
class Profile:
    """A driver version.

    ``reads_thread_count``: probe issues GET_THREAD_COUNT, and no more calls than that enter the
    secure world at once (Linux ``drivers/tee/optee/call.c``, ``optee_cq_wait_init``).
    ``notification_timeout``: a NOTIFICATION WAIT ends after value c milliseconds, if that is not 0
    (``rpc.c``, ``handle_rpc_func_cmd_wq``; ``notif.c``, ``optee_notif_wait``).
    ``object_size``: distance in octets of the ``struct tee_shm`` objects, whose addresses are the
    cookies: the slab cache that the allocator takes for them (the smallest one is 128 octets on arm64
    before 6.5, 96 fits since).
    ``early_randomness``: octets that a hardware random number generator is asked for when it is
    registered (``drivers/char/hw_random/core.c``, ``add_early_randomness``); 0 where that is gone.
    """

    name: str
    reads_thread_count: bool
    notification_timeout: bool
    object_size: int = 0x80
    early_randomness: int = 32


LINUX_6_1: Final = Profile("Linux 6.1", reads_thread_count=False, notification_timeout=False)
LINUX_6_12: Final = Profile(
    "Linux 6.12",
    reads_thread_count=True,
    notification_timeout=True,
    object_size=0x60,
    early_randomness=0,
)
PROFILES: Final = (LINUX_6_1, LINUX_6_12)
