# SPDX-License-Identifier: BSD-2-Clause
"""The fast calls of OP-TEE, owners 50 and 63 (``optee_smc.h``).

Fast calls run to their end in one entry. Those that return data (count, UID, revision) have no
status register: a0 is data. Addresses and sizes of GET_SHM_CONFIG and GET_PROTMEM_CONFIG are whole
registers, all other 64-bit values are pairs.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

import attrs

from smccc.calls.slots import Call, Done, OpteeUid, Pair, Return, Slot, Whole, Word
from smccc.constants import optee_smc as smc

CLIENT = Word("client", 7)
"""a7 carries the client id that a hypervisor supplies; 0 is the hypervisor itself."""


@attrs.frozen
class OpteeCall(Call):
    """A call that carries the client id of the guest in a7."""

    SLOTS: ClassVar[tuple[Slot, ...]] = (CLIENT,)
    client: int = attrs.field(default=0, kw_only=True)


@attrs.frozen
class CallsCountReturn(Return):
    """Result of CALLS_COUNT; no status."""

    SLOTS = (Word("count", 0),)
    count: int
    """Number of calls provided."""


@attrs.frozen
class CallsCount(Call):
    """CALLS_COUNT: how many functions the service has. Linux never asks."""

    FUNCTION = smc.OPTEE_SMC_CALLS_COUNT
    RETURN = CallsCountReturn


@attrs.frozen
class UuidReturn(Return):
    """Result of CALLS_UID and CALL_GET_OS_UUID; no status."""

    SLOTS = (OpteeUid("uuid"),)
    uuid: uuid.UUID


@attrs.frozen
class CallsUid(OpteeCall):
    """CALLS_UID: which message ABI this is."""

    FUNCTION = smc.OPTEE_SMC_CALLS_UID
    RETURN = UuidReturn


@attrs.frozen
class CallsRevisionReturn(Return):
    """Result of CALLS_REVISION; no status."""

    SLOTS = (Word("major", 0), Word("minor", 1))
    major: int
    minor: int


@attrs.frozen
class CallsRevision(OpteeCall):
    """CALLS_REVISION: the revision of the message ABI, 2.0."""

    FUNCTION = smc.OPTEE_SMC_CALLS_REVISION
    RETURN = CallsRevisionReturn


@attrs.frozen
class GetOsUuid(OpteeCall):
    """CALL_GET_OS_UUID: which trusted OS this is."""

    FUNCTION = smc.OPTEE_SMC_CALL_GET_OS_UUID
    RETURN = UuidReturn


@attrs.frozen
class GetOsRevisionReturn(Return):
    """Result of CALL_GET_OS_REVISION; no status."""

    SLOTS = (Word("major", 0), Word("minor", 1), Word("build_id", 2))
    major: int
    minor: int
    build_id: int
    """First 32 bits of the git hash, 0 if not given."""


@attrs.frozen
class GetOsRevision(OpteeCall):
    """CALL_GET_OS_REVISION: the trusted OS's own revision."""

    FUNCTION = smc.OPTEE_SMC_CALL_GET_OS_REVISION
    RETURN = GetOsRevisionReturn


@attrs.frozen
class GetShmConfigReturn(Return):
    """Result of GET_SHM_CONFIG if there is a reserved pool."""

    STATUS = smc.OPTEE_SMC_RETURN_OK
    SLOTS = (Whole("start", 1), Whole("size", 2), Word("settings", 3))
    start: int
    """Physical address of the pool."""
    size: int
    """Bytes."""
    settings: int
    """Cache attribute, OPTEE_SMC_SHM_CACHED."""


@attrs.frozen
class GetShmConfig(OpteeCall):
    """GET_SHM_CONFIG: where the reserved shared memory pool is."""

    FUNCTION = smc.OPTEE_SMC_GET_SHM_CONFIG
    RETURN = GetShmConfigReturn


@attrs.frozen
class L2ccMutexReturn(Return):
    """Result of L2CC_MUTEX with GET_ADDR."""

    STATUS = smc.OPTEE_SMC_RETURN_OK
    SLOTS = (Pair("address", 2),)
    address: int
    """Physical address of the mutex."""


@attrs.frozen
class L2ccMutex(OpteeCall):
    """L2CC_MUTEX: share a lock for the outer cache controller; arm32 only. The pair is a2:a3."""

    FUNCTION = smc.OPTEE_SMC_L2CC_MUTEX
    SLOTS = (Word("operation", 1), Pair("address", 2), CLIENT)
    operation: int
    """OPTEE_SMC_L2CC_MUTEX_*."""
    address: int = 0
    """Physical address, for SET_ADDR."""

    def return_type(self) -> type[Return]:
        """Only GET_ADDR brings an address back."""
        if self.operation == smc.OPTEE_SMC_L2CC_MUTEX_GET_ADDR:
            return L2ccMutexReturn
        return Done


@attrs.frozen
class ExchangeCapabilitiesReturn(Return):
    """Result of EXCHANGE_CAPABILITIES if the normal world's bits are acceptable."""

    STATUS = smc.OPTEE_SMC_RETURN_OK
    SLOTS = (Word("capabilities", 1), Word("max_notif_value", 2), Word("data", 3))
    capabilities: int
    """OPTEE_SMC_SEC_CAP_*."""
    max_notif_value: int
    """Highest notification value; means something only with ASYNC_NOTIF."""
    data: int
    """Bits 7:0: number of RPC parameters to reserve; means something only with RPC_ARG."""

    @property
    def rpc_param_count(self) -> int:
        """Number of parameters that the RPC argument behind a message must have room for."""
        return self.data & 0xFF


@attrs.frozen
class ExchangeCapabilities(OpteeCall):
    """EXCHANGE_CAPABILITIES: what each world can do."""

    FUNCTION = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
    SLOTS = (Word("capabilities", 1), CLIENT)
    RETURN = ExchangeCapabilitiesReturn
    capabilities: int = 0
    """OPTEE_SMC_NSEC_CAP_*."""


@attrs.frozen
class DisableShmCacheReturn(Return):
    """Result of DISABLE_SHM_CACHE: one object handed back, ask again until ENOTAVAIL.

    OP-TEE leaves the whole cookie in a2; only its low half counts.
    """

    STATUS = smc.OPTEE_SMC_RETURN_OK
    SLOTS = (Pair("cookie", 1),)
    cookie: int


@attrs.frozen
class DisableShmCache(OpteeCall):
    """DISABLE_SHM_CACHE: give back cached RPC arguments, one per call."""

    FUNCTION = smc.OPTEE_SMC_DISABLE_SHM_CACHE
    RETURN = DisableShmCacheReturn


@attrs.frozen
class EnableShmCache(OpteeCall):
    """ENABLE_SHM_CACHE: keep RPC arguments between calls."""

    FUNCTION = smc.OPTEE_SMC_ENABLE_SHM_CACHE


@attrs.frozen
class BootSecondary(Call):
    """BOOT_SECONDARY: release a core that OP-TEE holds. The pair is a2:a3."""

    FUNCTION = smc.OPTEE_SMC_BOOT_SECONDARY
    SLOTS = (Word("core", 1), Pair("entry", 2))
    core: int
    """Core index."""
    entry: int
    """Physical address of the first instruction; OP-TEE uses only the low word."""


@attrs.frozen
class VmCreated(OpteeCall):
    """VM_CREATED: the hypervisor announces a guest. ``client`` must be 0, the hypervisor."""

    FUNCTION = smc.OPTEE_SMC_VM_CREATED
    SLOTS = (Word("guest", 1), CLIENT)
    guest: int
    """Client id of the new guest; OP-TEE keeps 16 bits of it."""


@attrs.frozen
class VmDestroyed(OpteeCall):
    """VM_DESTROYED: the guest is gone. ``client`` must be 0, the hypervisor."""

    FUNCTION = smc.OPTEE_SMC_VM_DESTROYED
    SLOTS = (Word("guest", 1), CLIENT)
    guest: int
    """Client id of the guest."""


@attrs.frozen
class GetThreadCountReturn(Return):
    """Result of GET_THREAD_COUNT."""

    STATUS = smc.OPTEE_SMC_RETURN_OK
    SLOTS = (Word("count", 1),)
    count: int
    """Yielding calls that the guest may have in flight at once."""


@attrs.frozen
class GetThreadCount(OpteeCall):
    """GET_THREAD_COUNT: how many threads there are."""

    FUNCTION = smc.OPTEE_SMC_GET_THREAD_COUNT
    RETURN = GetThreadCountReturn


@attrs.frozen
class EnableAsyncNotif(OpteeCall):
    """ENABLE_ASYNC_NOTIF: the normal world is ready for notification interrupts."""

    FUNCTION = smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF


@attrs.frozen
class GetAsyncNotifValueReturn(Return):
    """Result of GET_ASYNC_NOTIF_VALUE; asking consumes the value."""

    STATUS = smc.OPTEE_SMC_RETURN_OK
    SLOTS = (Word("value", 1), Word("flags", 2))
    value: int
    """The notification; 0 is "do the bottom half"."""
    flags: int
    """OPTEE_SMC_ASYNC_NOTIF_VALID and OPTEE_SMC_ASYNC_NOTIF_PENDING."""

    @property
    def valid(self) -> bool:
        """Whether ``value`` is one."""
        return bool(self.flags & smc.OPTEE_SMC_ASYNC_NOTIF_VALID)

    @property
    def pending(self) -> bool:
        """Whether there are more to fetch."""
        return bool(self.flags & smc.OPTEE_SMC_ASYNC_NOTIF_PENDING)


@attrs.frozen
class GetAsyncNotifValue(OpteeCall):
    """GET_ASYNC_NOTIF_VALUE: what the notification interrupt was for."""

    FUNCTION = smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE
    RETURN = GetAsyncNotifValueReturn


@attrs.frozen
class GetProtmemConfigReturn(Return):
    """Result of GET_PROTMEM_CONFIG."""

    STATUS = smc.OPTEE_SMC_RETURN_OK
    SLOTS = (Whole("start", 1), Whole("size", 2), Word("pa_width", 3))
    start: int
    """Physical address of the protected memory."""
    size: int
    """Bytes."""
    pa_width: int
    """Address width in bits."""


@attrs.frozen
class GetProtmemConfig(OpteeCall):
    """GET_PROTMEM_CONFIG: where static protected memory is (OP-TEE 4.9 and later)."""

    FUNCTION = smc.OPTEE_SMC_GET_PROTMEM_CONFIG
    RETURN = GetProtmemConfigReturn


FAST_CALLS: tuple[type[Call], ...] = (
    CallsCount,
    CallsUid,
    CallsRevision,
    GetOsUuid,
    GetOsRevision,
    GetShmConfig,
    L2ccMutex,
    ExchangeCapabilities,
    DisableShmCache,
    EnableShmCache,
    BootSecondary,
    VmCreated,
    VmDestroyed,
    GetThreadCount,
    EnableAsyncNotif,
    GetAsyncNotifValue,
    GetProtmemConfig,
)
