# SPDX-License-Identifier: BSD-2-Clause
"""Loading a user TA's image from the normal world: RPC LOAD_TA, as ``ree_fs_ta.c`` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secure_world import events
from secure_world.bus import BusError
from secure_world.ta import TaRegistry
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee

if TYPE_CHECKING:
    from secure_world.thread import Thread

_OUT: Final = 2


class Loader:
    """Fetches and verifies images. ``max_size`` bounds what one image may take."""

    __slots__ = ("_max_size", "_registry")

    def __init__(self, registry: TaRegistry, max_size: int) -> None:
        self._registry = registry
        self._max_size = max_size

    async def load(self, thread: Thread, uuid: bytes) -> int:
        """Ask for the size, allocate, ask for the image, verify a private copy; a TEE_Result.

        A missing TA is whatever the normal world says (ITEM_NOT_FOUND from a supplicant); an image
        that is not genuine is SECURITY.
        """
        octets = (
            msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,
            int.from_bytes(uuid[:8], "little"),
            int.from_bytes(uuid[8:], "little"),
            0,
        )
        nothing = (msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT, 0, 0, 0)
        answer = await thread.rpc_cmd(rpc.OPTEE_RPC_CMD_LOAD_TA, octets, nothing)
        if answer[5]:
            return answer[5]
        size = answer[14]
        if not 0 < size <= self._max_size:
            return tee.TEE_ERROR_OUT_OF_MEMORY
        buffer = await thread.shm_alloc(size, rpc.OPTEE_RPC_SHM_TYPE_APPL)
        if buffer is None:
            return tee.TEE_ERROR_OUT_OF_MEMORY
        answer = await thread.rpc_cmd(
            rpc.OPTEE_RPC_CMD_LOAD_TA, octets, buffer.param(_OUT, 0, size)
        )
        code = answer[5]
        if not code:
            partition = thread.partition
            try:
                image = buffer.read(0, size)
            except BusError as error:
                partition.breach(error)
                image = b""
            if not self._registry.genuine(image, uuid):
                code = tee.TEE_ERROR_SECURITY
                if partition.world.sink is not None:
                    partition.world.sink(events.ImageRefused(partition.client, uuid))
        await thread.shm_free(buffer)
        return code
