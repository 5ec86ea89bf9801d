# SPDX-License-Identifier: BSD-2-Clause
"""What the driver does when the secure world asks for something (a0 = RPC).

Time, sleep, notifications and kernel memory are served here; the rest goes to the supplicant. The
result conventions were read off real traffic: commands served in the kernel leave the origin as the
secure world set it (0), SHM_ALLOC, SHM_FREE and everything of the supplicant set it to COMMS.

The argument is read once and written back once. A request that no correct secure world makes gets
an error and counts as an anomaly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from mediator.guest.memory import OutOfMemory, page_list
from mediator.guest.shm import PRIVATE, SUPPLICANT, Shm
from mediator.guest.supplicant_queue import MAX_PARAMS, SupplicantParam
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.page_list import list_page_count
from smccc.wire import (
    CMD,
    KIND_INVALID,
    KIND_NONE,
    KIND_RMEM,
    KIND_VALUE,
    MESSAGE,
    NUM_PARAMS,
    PARAM_KIND,
    PARAM_OUTPUT,
    PARAMS,
    RET,
    RET_ORIGIN,
    message_size,
)

if TYPE_CHECKING:
    from mediator.guest.driver import Driver

RPC_COMMANDS: Final = 0x100
"""Added to an RPC command to make its key in ``DriverCounters.rpcs``; functions are below."""

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

_MASK32: Final = 0xFFFF_FFFF
_ALLOC: Final = smc.OPTEE_SMC_RETURN_RPC_ALLOC
_FREE: Final = smc.OPTEE_SMC_RETURN_RPC_FREE
_CMD: Final = smc.OPTEE_SMC_RETURN_RPC_CMD
_ATTR: Final = PARAMS
_A: Final = PARAMS + 1
_B: Final = PARAMS + 2
_C: Final = PARAMS + 3

Fields = list[int]
"""An RPC argument, laid out as :mod:`smccc.wire` does it."""


class RpcContext:
    """What one call remembers between its RPCs: the page list of the last SHM_ALLOC answer."""

    __slots__ = ("argument", "list_ipa", "list_run", "nowait")

    def __init__(self, argument: int, nowait: bool) -> None:
        self.argument = argument
        """IPA of the RPC argument behind the message; 0 in the classic style."""
        self.nowait = nowait
        self.list_ipa = 0
        self.list_run = 0


class RpcService:
    """Serves the RPCs of one driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._commands: dict[int, Callable[[RpcContext, Fields], Awaitable[None]]] = {
            rpc.OPTEE_RPC_CMD_GET_TIME: self._get_time,
            rpc.OPTEE_RPC_CMD_NOTIFICATION: self._notification,
            rpc.OPTEE_RPC_CMD_SUSPEND: self._suspend,
            rpc.OPTEE_RPC_CMD_SHM_ALLOC: self._shm_alloc,
            rpc.OPTEE_RPC_CMD_SHM_FREE: self._shm_free,
            rpc.OPTEE_RPC_CMD_I2C_TRANSFER: self._not_supported,
            rpc.OPTEE_RPC_CMD_RPMB_PROBE_RESET: self._not_supported,
            rpc.OPTEE_RPC_CMD_RPMB_PROBE_NEXT: self._not_supported,
            rpc.OPTEE_RPC_CMD_RPMB_FRAMES: self._not_supported,
        }

    async def serve(
        self, context: RpcContext, status: int, a1: int, a2: int, a4: int, a5: int
    ) -> tuple[int, int, int, int]:
        """Serve one RPC and return a1, a2, a4, a5 of the resumption."""
        if status == _CMD:
            await self._command(context, a1, a2)
        elif status == _ALLOC:
            self._count(status & _MASK32 & smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK)
            return self._alloc(a1)
        elif status == _FREE:
            self._count(status & _MASK32 & smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK)
            self._driver.free_private(a1 << 32 | a2)
        else:
            self._driver.counters.anomalies += 1
        return a1, a2, a4, a5

    def finish(self, context: RpcContext) -> None:
        """The call has ended: the page list of its last SHM_ALLOC answer is no longer needed."""
        if context.list_run:
            self._driver.pages.free_run(context.list_ipa, context.list_run)
            context.list_run = 0

    def _count(self, key: int) -> None:
        counts = self._driver.counters.rpcs
        counts[key] = counts.get(key, 0) + 1

    def _alloc(self, size: int) -> tuple[int, int, int, int]:
        """RPC ALLOC of the classic style: private memory, as address and cookie."""
        try:
            shm = self._driver.shms.alloc(PRIVATE, size)
        except OutOfMemory:
            return 0, 0, 0, 0
        return shm.ipa >> 32, shm.ipa & _MASK32, shm.cookie >> 32, shm.cookie & _MASK32

    async def _command(self, context: RpcContext, a1: int, a2: int) -> None:
        driver = self._driver
        if context.argument:
            ipa = context.argument
            room = message_size(driver.rpc_param_count)
        else:
            shm = driver.shms.find(a1 << 32 | a2)
            if shm is None or shm.kind != PRIVATE:
                driver.counters.anomalies += 1
                return
            ipa = shm.ipa
            room = shm.size
        kernel = driver.kernel
        data = await kernel.cpu.read(ipa, min(room, message_size(MAX_PARAMS)))
        fields = list(MESSAGE[0].unpack_from(data))
        if message_size(fields[NUM_PARAMS]) > len(data):
            driver.counters.anomalies += 1
            fields[RET] = tee.TEE_ERROR_BAD_PARAMETERS
            await kernel.cpu.write(ipa, MESSAGE[0].pack(*fields))
            return
        fields = list(MESSAGE[fields[NUM_PARAMS]].unpack_from(data))
        self._count(RPC_COMMANDS + fields[CMD])
        handler = self._commands.get(fields[CMD], self._supplicant)
        await handler(context, fields)
        if driver.alter_answer is not None:
            driver.alter_answer(fields)
        codec = MESSAGE[(len(fields) - PARAMS) // 4]
        await kernel.cpu.write(ipa, codec.pack(*fields))

    # Served in the kernel

    def _one_param(self, fields: Fields, attr: int) -> bool:
        """Whether the argument is one parameter of type ``attr``; if not, the answer says so."""
        if fields[NUM_PARAMS] == 1 and fields[_ATTR] & msg.OPTEE_MSG_ATTR_TYPE_MASK == attr:
            return True
        self._driver.counters.anomalies += 1
        fields[RET] = tee.TEE_ERROR_BAD_PARAMETERS
        return False

    async def _not_supported(self, context: RpcContext, fields: Fields) -> None:
        fields[RET] = tee.TEE_ERROR_NOT_SUPPORTED

    async def _get_time(self, context: RpcContext, fields: Fields) -> None:
        if self._one_param(fields, msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT):
            now = self._driver.kernel.cpu.now() + self._driver.settings.epoch
            fields[_A], fields[_B] = divmod(now, NS_PER_S)
            fields[RET] = tee.TEE_SUCCESS

    async def _suspend(self, context: RpcContext, fields: Fields) -> None:
        if self._one_param(fields, msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT):
            await self._driver.kernel.sleep((fields[_A] & _MASK32) * NS_PER_MS)
            fields[RET] = tee.TEE_SUCCESS

    async def _notification(self, context: RpcContext, fields: Fields) -> None:
        if not self._one_param(fields, msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT):
            return
        notifications = self._driver.notifications
        done = False
        key = fields[_B] & _MASK32
        if fields[_A] == rpc.OPTEE_RPC_NOTIFICATION_WAIT:
            timeout = None
            if self._driver.settings.profile.notification_timeout and fields[_C]:
                timeout = (fields[_C] & _MASK32) * NS_PER_MS
            done = await notifications.wait(key, timeout)
        elif fields[_A] == rpc.OPTEE_RPC_NOTIFICATION_SEND:
            done = notifications.send(key)
        fields[RET] = tee.TEE_SUCCESS if done else tee.TEE_ERROR_BAD_PARAMETERS

    async def _shm_alloc(self, context: RpcContext, fields: Fields) -> None:
        driver = self._driver
        self.finish(context)
        fields[RET_ORIGIN] = tee.TEE_ORIGIN_COMMS
        fields[RET] = tee.TEE_ERROR_BAD_PARAMETERS
        count = fields[NUM_PARAMS]
        others = fields[_ATTR + 4 :: 4]
        if not count or fields[_ATTR] != msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT or any(others):
            driver.counters.anomalies += 1
            return
        size = fields[_B]
        try:
            if fields[_A] == rpc.OPTEE_RPC_SHM_TYPE_APPL:
                shm = await self._application_memory(context, size)
            elif fields[_A] == rpc.OPTEE_RPC_SHM_TYPE_KERNEL:
                shm = driver.shms.alloc(PRIVATE, size)
            else:
                return
        except OutOfMemory:
            shm = None
        if shm is None:
            fields[RET] = tee.TEE_ERROR_OUT_OF_MEMORY
            return
        attr = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT
        where = shm.ipa
        if shm.kind == SUPPLICANT:
            run = list_page_count(len(shm.pages))
            try:
                list_ipa = driver.pages.alloc_run(run)
            except OutOfMemory:
                fields[RET] = tee.TEE_ERROR_OUT_OF_MEMORY
                await self._free_application_memory(context, shm)
                return
            context.list_ipa, context.list_run = list_ipa, run
            await driver.kernel.cpu.write(list_ipa, page_list(shm.pages, list_ipa))
            attr |= msg.OPTEE_MSG_ATTR_NONCONTIG
            where = list_ipa | shm.offset
        fields[_ATTR : _ATTR + 4] = (attr, where, shm.size, shm.cookie)
        fields[RET] = tee.TEE_SUCCESS

    async def _application_memory(self, context: RpcContext, size: int) -> Shm | None:
        """Memory of the supplicant's process; it names what it allocated by cookie in value c."""
        answer = SupplicantParam(
            msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT, rpc.OPTEE_RPC_SHM_TYPE_APPL, size, 0
        )
        driver = self._driver
        result = await driver.supplicant.request(
            rpc.OPTEE_RPC_CMD_SHM_ALLOC, [answer], context.nowait
        )
        return driver.shms.find(answer.c) if result == tee.TEE_SUCCESS else None

    async def _free_application_memory(self, context: RpcContext, shm: Shm) -> None:
        param = SupplicantParam(
            msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT, rpc.OPTEE_RPC_SHM_TYPE_APPL, shm.cookie, 0
        )
        await self._driver.supplicant.request(rpc.OPTEE_RPC_CMD_SHM_FREE, [param], context.nowait)

    async def _shm_free(self, context: RpcContext, fields: Fields) -> None:
        fields[RET_ORIGIN] = tee.TEE_ORIGIN_COMMS
        if not self._one_param(fields, msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT):
            return
        driver = self._driver
        kind, cookie = fields[_A], fields[_B]
        shm = driver.shms.find(cookie)
        if shm is not None and (kind, shm.kind) == (rpc.OPTEE_RPC_SHM_TYPE_APPL, SUPPLICANT):
            await self._free_application_memory(context, shm)
        elif shm is not None and (kind, shm.kind) == (rpc.OPTEE_RPC_SHM_TYPE_KERNEL, PRIVATE):
            driver.shms.free(shm)
        else:
            # The real driver would follow the pointer.
            driver.counters.anomalies += 1
            fields[RET] = tee.TEE_ERROR_BAD_PARAMETERS
            return
        fields[RET] = tee.TEE_SUCCESS

    # Served by the supplicant

    async def _supplicant(self, context: RpcContext, fields: Fields) -> None:
        fields[RET_ORIGIN] = tee.TEE_ORIGIN_COMMS
        params = self._to_supplicant(fields)
        if params is None:
            self._driver.counters.anomalies += 1
            fields[RET] = tee.TEE_ERROR_BAD_PARAMETERS
            return
        fields[RET] = await self._driver.supplicant.request(fields[CMD], params, context.nowait)
        for index, param in enumerate(params):
            place = PARAMS + 4 * index
            kind = PARAM_KIND[param.attr]
            if not PARAM_OUTPUT[param.attr]:
                continue
            if kind == KIND_VALUE:
                fields[place + 1 : place + 4] = (param.a, param.b, param.c)
            else:
                fields[place + 2] = param.b

    def _to_supplicant(self, fields: Fields) -> list[SupplicantParam] | None:
        """The parameters with their memory looked up; None if one of them makes no sense."""
        params: list[SupplicantParam] = []
        for place in range(PARAMS, len(fields), 4):
            attr, a, b, c = fields[place : place + 4]
            number = attr & msg.OPTEE_MSG_ATTR_TYPE_MASK
            kind = PARAM_KIND[number]
            shm: Shm | None = None
            if kind == KIND_INVALID or attr & msg.OPTEE_MSG_ATTR_META:
                return None
            if kind not in (KIND_NONE, KIND_VALUE) and c:
                shm = self._driver.shms.find(c)
                # The real driver would follow the pointer, and trust the bounds.
                offset = a if kind == KIND_RMEM else 0
                if shm is None or offset + b > shm.size:
                    return None
                a = offset
            elif kind not in (KIND_NONE, KIND_VALUE):
                a = 0
            params.append(SupplicantParam(number, a, b, c, shm))
        return params
