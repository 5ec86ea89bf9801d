# SPDX-License-Identifier: BSD-2-Clause
"""Configuration of the simulated OP-TEE: what its build options and its platform would fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from smccc.constants import optee_smc as smc

MAX_THREADS: Final = 1 << 12
"""Threads of one partition; OP-TEE builds have 2 to 16. Bounds the tables a setting can ask for."""

NOTIFICATION_BASE: Final = 0x40
"""First value of a synchronous wait: 0x40 + thread index. The values below are asynchronous ones
(OP-TEE OS ``kernel/notif.h``, NOTIF_SYNC_VALUE_BASE)."""

DEFAULT_GUESTS: Final = 64
"""Guest slots. OP-TEE's own default (CFG_VIRT_GUEST_COUNT) is 2: too few for a simulated host."""

DEFAULT_OBJECT_PAGES: Final = 1 << 20
"""Pages of one buffer, 4 GiB. Stands for OP-TEE's heap, which refuses what it cannot describe."""

DEFAULT_PARTITION_PAGES: Final = 1 << 22
"""Pages of all buffers of one partition, 16 GiB: what its tables may take of OP-TEE's heap."""

DEFAULT_OBJECTS: Final = 1 << 16
"""Buffers of one partition. Mediators allow far fewer; this bounds a guest without a mediator."""

DEFAULT_SESSIONS: Final = 1 << 12
"""Sessions of one partition. A real OP-TEE runs out of heap somewhere; the TEE says OUT_OF_MEMORY."""

DEFAULT_CHECKPOINTS: Final = 1 << 12
"""Checkpoints of a TA in one entry before it is sent out: no SMC may take for ever (I7)."""

DEFAULT_SLICE_NS: Final = 10_000_000
"""Secure time in one entry before a thread is sent out, longer than any tick of a real guest."""

DEFAULT_TA_IMAGE: Final = 4 << 20
"""Bytes of one TA image. Stands for the secure memory of a real platform."""


def _bounded(low: int, high: int) -> Callable[[object, attrs.Attribute[int], int], None]:
    def check(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
        if not low <= value <= high:
            raise ValueError(f"{attribute.name} is {value}, not {low} to {high}")

    return check


@attrs.frozen(kw_only=True)
class SecureWorldSettings:
    """Build options (first group), platform (second), model parameters (third). Times are in ns."""

    virtualization: bool = True
    """CFG_NS_VIRTUALIZATION: a partition for each client id in a7; off, a7 is ignored."""
    guests: int = attrs.field(default=DEFAULT_GUESTS, validator=_bounded(1, 0xFFFF))
    """CFG_VIRT_GUEST_COUNT: partitions that can exist at one time."""
    threads: int = attrs.field(default=2, validator=_bounded(1, MAX_THREADS))
    """CFG_NUM_THREADS, per partition."""
    dynamic_shm: bool = True
    """CFG_CORE_DYN_SHM: memory of the normal world can be registered."""
    null_memref: bool = True
    """Capability MEMREF_NULL."""
    async_notifications: bool = True
    """CFG_CORE_ASYNC_NOTIF."""
    rpc_arg: bool = True
    """The RPC argument behind the message: CALL_WITH_RPC_ARG, CALL_WITH_REGD_ARG (since 3.17)."""
    rpmb_probe: bool = True
    """Capability RPMB_PROBE (since 4.4)."""
    rpc_cache: bool = True
    """CFG_PREALLOC_RPC_CACHE: ENABLE_SHM_CACHE keeps RPC arguments for later calls."""
    rpc_cache_at_boot: bool = False
    """Whether that cache is on before the first ENABLE_SHM_CACHE."""
    capabilities: int | None = None
    """Overrides the bits that EXCHANGE_CAPABILITIES would report for this build."""

    reserved_shm: tuple[int, int] | None = None
    """Start address and bytes of CFG_CORE_RESERVED_SHM; None if compiled out. With virtualization
    the capability bit stays, but the area is gone: GET_SHM_CONFIG reports address 0, size 0."""
    revision: tuple[int, int] = (4, 10)
    """Major and minor number of GET_OS_REVISION."""
    build_id: int = 0
    """Third word of GET_OS_REVISION."""
    devices: tuple[tuple[bytes, ...], tuple[bytes, ...]] | None = None
    """UUID octets that the two functions of the device enumeration list; None: what the registry says."""

    seed: int = 1
    """Seed of everything random, device key included. Simulated keys are not secret."""
    max_object_pages: int = attrs.field(
        default=DEFAULT_OBJECT_PAGES, validator=_bounded(1, 1 << 24)
    )
    max_pages: int = attrs.field(default=DEFAULT_PARTITION_PAGES, validator=_bounded(1, 1 << 26))
    max_objects: int = attrs.field(default=DEFAULT_OBJECTS, validator=_bounded(1, 1 << 20))
    max_sessions: int = attrs.field(default=DEFAULT_SESSIONS, validator=_bounded(1, 1 << 20))
    checkpoints_per_entry: int = attrs.field(
        default=DEFAULT_CHECKPOINTS, validator=_bounded(1, 1 << 30)
    )
    slice_ns: int = attrs.field(default=DEFAULT_SLICE_NS, validator=_bounded(1, 1 << 60))
    """A TA that passes checkpoints for this long leaves as for a foreign interrupt, even if none
    is pending. Not asked of a monitor that decides by itself (``Stimuli``)."""
    max_ta_image: int = attrs.field(default=DEFAULT_TA_IMAGE, validator=_bounded(1, 1 << 30))
    fast_call_ns: int = 500
    """Secure time charged for a fast call."""
    entry_ns: int = 2000
    """Secure time charged for each entry of a yielding call (start or resumption)."""

    @property
    def max_notification(self) -> int:
        """Highest notification value, as EXCHANGE_CAPABILITIES reports it (64 + thread count)."""
        return NOTIFICATION_BASE + self.threads

    @property
    def reported_capabilities(self) -> int:
        """The capability bits (OPTEE_SMC_SEC_CAP_*) of this build."""
        if self.capabilities is not None:
            return self.capabilities
        bits = 0
        if self.reserved_shm is not None:
            bits |= smc.OPTEE_SMC_SEC_CAP_HAVE_RESERVED_SHM
        if self.dynamic_shm:
            bits |= smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM
        if self.virtualization:
            bits |= smc.OPTEE_SMC_SEC_CAP_VIRTUALIZATION
        if self.null_memref:
            bits |= smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL
        if self.async_notifications:
            bits |= smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
        if self.rpc_arg:
            bits |= smc.OPTEE_SMC_SEC_CAP_RPC_ARG
        if self.rpmb_probe:
            bits |= smc.OPTEE_SMC_SEC_CAP_RPMB_PROBE
        return bits
