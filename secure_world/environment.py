# SPDX-License-Identifier: BSD-2-Clause
"""What a TA can ask of OP-TEE: one object per session, bound to the thread that uses the session."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Final, NoReturn

from secure_world.ree_fs import ReeFileSystem
from secure_world.ta import (
    SHM_APPLICATION,
    ClientIdentity,
    ReeMemory,
    ReeTime,
    RpcAnswer,
    TaPanic,
    TeeError,
)
from secure_world.thread import RPC_PARAMS, ReeBuffer, Thread
from secure_world.waiting import BoundCondition, BoundMutex
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee

if TYPE_CHECKING:
    from secure_world.partition import Partition
    from secure_world.session import Session

MAX_RANDOM: Final = 1 << 20
"""Bytes of one request for random numbers: a TA's mistake must not eat the host's memory."""

MAX_DERIVED_KEY: Final = 32
_M32: Final = 0xFFFF_FFFF


class Environment:
    """The ``TaEnvironment`` of one session."""

    __slots__ = (
        "_partition",
        "_session",
        "client_id",
        "data",
        "identity",
        "protected",
        "session_id",
        "thread",
        "uuid",
    )

    thread: Thread

    def __init__(
        self, partition: Partition, session: Session, uuid: bytes, identity: ClientIdentity
    ) -> None:
        self._partition = partition
        self._session = session
        self.uuid = uuid
        self.client_id = partition.client
        self.session_id = session.id
        self.identity = identity
        self.data: object = None
        self.protected: MutableMapping[bytes, bytes] = partition.protected_state(uuid)

    @property
    def fs(self) -> ReeFileSystem:
        """File service of the normal world."""
        return ReeFileSystem(self.thread)

    async def checkpoint(self, ns: int = 0) -> None:
        """Account ``ns`` of secure time, then let a pending foreign interrupt through."""
        await self.thread.checkpoint(ns)

    async def get_ree_time(self) -> ReeTime:
        """RPC GET_TIME; :class:`TeeError` with the answer's code if refused."""
        request = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT, 0, 0, 0)
        answer = await self.thread.rpc_cmd(rpc.OPTEE_RPC_CMD_GET_TIME, request)
        if answer[5]:
            raise TeeError(answer[5])
        return ReeTime(answer[9] & _M32, answer[10] & _M32)

    def system_time_ns(self) -> int:
        """Secure time in ns, without leaving the secure world."""
        return self._partition.world.monitor.now()

    async def sleep(self, milliseconds: int) -> int:
        """RPC SUSPEND for the whole time; CANCEL if a cancellation is pending and not masked."""
        if self.cancelled():
            return tee.TEE_ERROR_CANCEL
        request = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, milliseconds & _M32, 0, 0)
        await self.thread.rpc_cmd(rpc.OPTEE_RPC_CMD_SUSPEND, request)
        return tee.TEE_ERROR_CANCEL if self.cancelled() else tee.TEE_SUCCESS

    def mutex(self, name: str, *, shared: bool = False) -> BoundMutex:
        """The named lock of this partition, or of the whole secure world if ``shared``."""
        owner = self._partition.world if shared else self._partition
        return BoundMutex(owner.mutex(name), self.thread)

    def condition(self, name: str, *, shared: bool = False) -> BoundCondition:
        """The named condition variable of this partition, or of the whole secure world."""
        owner = self._partition.world if shared else self._partition
        return BoundCondition(owner.condition(name), self.thread)

    async def shm_alloc(self, size: int, kind: int = SHM_APPLICATION) -> ReeBuffer:
        """SHM_ALLOC; :class:`TeeError` OUT_OF_MEMORY if refused twice."""
        buffer = await self.thread.shm_alloc(size, kind)
        if buffer is None:
            raise TeeError(tee.TEE_ERROR_OUT_OF_MEMORY)
        return buffer

    async def shm_free(self, memory: ReeMemory) -> None:
        """SHM_FREE; TypeError for anything but memory from :meth:`shm_alloc`."""
        if not isinstance(memory, ReeBuffer):
            raise TypeError("only memory from shm_alloc can be freed")
        await self.thread.shm_free(memory)

    async def rpc(self, command: int, params: Iterable[tuple[int, int, int, int]]) -> RpcAnswer:
        """A raw RPC command with at most four parameters (:class:`ValueError` above)."""
        request = tuple(params)
        if len(request) > RPC_PARAMS:
            raise ValueError(f"{len(request)} parameters do not fit an RPC argument")
        answer = await self.thread.rpc_cmd(command, *request)
        back = tuple(
            [
                (answer[at], answer[at + 1], answer[at + 2], answer[at + 3])
                for at in range(8, 8 + 4 * len(request), 4)
            ]
        )
        return RpcAnswer(answer[5], answer[6], back)

    def random(self, size: int) -> bytes:
        """``size`` bytes from the partition's seeded generator."""
        if not 0 <= size <= MAX_RANDOM:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        return self._partition.random.randbytes(size)

    def derived_key(self, label: bytes, size: int = MAX_DERIVED_KEY) -> bytes:
        """At most 32 octets from the device key, this TA's UUID and ``label``."""
        if not 0 < size <= MAX_DERIVED_KEY:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS)
        key = self._partition.world.device_key
        return hmac.digest(key, self.uuid + label, hashlib.sha256)[:size]

    def cancelled(self) -> bool:
        """True if the client asked to cancel and cancellation is not masked."""
        session = self._session
        return session.cancel and not session.cancel_masked

    def mask_cancellation(self, masked: bool) -> bool:
        """Mask or unmask cancellation; returns the previous state."""
        previous = self._session.cancel_masked
        self._session.cancel_masked = masked
        return previous

    def devices(self, function: int) -> tuple[bytes, ...]:
        """UUID octets that function ``function`` (0 or 1) of the device enumeration lists."""
        world = self._partition.world
        configured = world.settings.devices
        if configured is not None:
            return configured[function]
        return world.registry.devices(function)

    def panic(self, code: int) -> NoReturn:
        """End this TA instance at once."""
        raise TaPanic(code & _M32)
