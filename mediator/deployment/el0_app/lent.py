# SPDX-License-Identifier: BSD-2-Clause
"""What a guest's driver does for its TEE by RPC, and only its TEE can end: memory that it has lent, threads
that wait for a notification value.

A driver counts on it: Linux waits, when it is removed, until all memory of its clients and supplicant is
back (``drivers/tee/tee_core.c``, ``tee_device_unregister``). If the app dies, nobody else knows the
cookies; so they are noted here as they pass, without a question more to anybody.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from smccc.constants import optee_msg, optee_rpc, tee
from smccc.constants import optee_smc as smc
from smccc.registers import pair
from smccc.wire import KIND_TMEM, MESSAGE, PARAM_KIND

M32: Final = 0xFFFF_FFFF
PAGE: Final = 4096
SIZE: Final = 64
"""Bytes of an RPC message with one parameter."""
COUNT_AT: Final = 28
"""Where the number of parameters stands in a message."""
MAX_VALUE: Final = 8191
"""The highest notification value that is kept in mind."""
MAX_LENT: Final = 4096
"""Buffers that are noted of one guest; a driver lends one for each thread and a few for each call."""
FIRST_OWN: Final = 0x7FFF_0000
"""Thread ids from here on are of RPCs that no thread of the TEE asks for."""

IN_REGISTERS: Final = -1

Wrote = tuple[int, Sequence[tuple[int, bytes]]]
"""A page that was written to, and (offset, data)."""

_WORD: Final = struct.Struct("<I")


class Lent:
    """Of one guest. ``waits``: threads that wait in the driver, and for which value. ``cookies``: how often each was lent. ``asked``: threads that are away for
    memory, and where in memory the answer will be (:data:`IN_REGISTERS`: there). ``giving``: own RPCs that the
    guest is away for, by thread id: where the message of its call lies."""

    __slots__ = ("asked", "cookies", "giving", "number", "waits")

    def __init__(self) -> None:
        self.waits: dict[int, int] = {}
        self.asked: dict[int, int] = {}
        self.cookies: dict[int, int] = {}
        self.giving: dict[int, int] = {}
        self.number = 0

    def leaves(self, regs: Sequence[int], wrote: Wrote | None) -> None:
        """A call leaves with an RPC, or an answer that looks like one; ``wrote``: last, in this entry."""
        function, thread = regs[0], regs[3] & M32
        if function == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            self._ask(thread, IN_REGISTERS)
        elif function == smc.OPTEE_SMC_RETURN_RPC_FREE:
            self.back(pair(regs[1], regs[2]))
        elif function == smc.OPTEE_SMC_RETURN_RPC_CMD and wrote is not None:
            page, segments = wrote
            base, request = _message(segments)
            fields = MESSAGE[1].unpack(request)
            if fields[0] == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC:
                self._ask(thread, page + base)
            elif fields[0] == optee_rpc.OPTEE_RPC_CMD_SHM_FREE and fields[7] == 1:
                self.back(fields[10])
            elif (
                fields[0] == optee_rpc.OPTEE_RPC_CMD_NOTIFICATION
                and fields[7] == 1
                and fields[9] == optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT
                and fields[10] <= MAX_VALUE
                and len(self.waits) < MAX_LENT
            ):
                self.waits[thread] = fields[10]

    def _ask(self, thread: int, where: int) -> None:
        if len(self.asked) < MAX_LENT:
            self.asked[thread] = where

    def returns(self, regs: Sequence[int]) -> int:
        """A thread comes back: where the answer to its request for memory is, 0: nowhere."""
        thread = regs[3] & M32
        self.waits.pop(thread, None)
        if thread not in self.asked:
            return 0
        where = self.asked.pop(thread)
        if where != IN_REGISTERS:
            return where
        if pair(regs[1], regs[2]):
            self._lend(pair(regs[4], regs[5]))
        return 0

    def answered(self, message: bytes) -> None:
        """What the app has read of such an answer."""
        if len(message) < SIZE:
            return
        fields = MESSAGE[1].unpack_from(message)
        if (
            fields[0] == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC
            and fields[5] == tee.TEE_SUCCESS
            and fields[7] == 1
            and PARAM_KIND[fields[8] & 0xFF] == KIND_TMEM
            and fields[9]
        ):
            self._lend(fields[11])

    def _lend(self, cookie: int) -> None:
        if len(self.cookies) < MAX_LENT:
            self.cookies[cookie] = self.cookies.get(cookie, 0) + 1

    def back(self, cookie: int) -> None:
        """The guest was told to free it."""
        count = self.cookies.pop(cookie, 0)
        if count > 1:
            self.cookies[cookie] = count - 1

    def awaited(self) -> int:
        """A bitmap of the values that threads in the driver wait for."""
        bits = 0
        for value in self.waits.values():
            bits |= 1 << value
        return bits

    def forget(self) -> None:
        """A new driver: it has lent nothing, and none of its threads waits."""
        self.waits.clear()
        self.asked.clear()
        self.cookies.clear()
        self.giving.clear()


def free_request(cookie: int) -> bytes:
    """The RPC that lets a driver free a buffer, of whatever kind, without its supplicant."""
    return MESSAGE[1].pack(
        optee_rpc.OPTEE_RPC_CMD_SHM_FREE,
        *(0, 0, 0, 0),
        *(tee.TEE_ERROR_GENERIC, 0, 1),
        *(
            optee_msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,
            optee_rpc.OPTEE_RPC_SHM_TYPE_KERNEL,
            cookie,
            0,
        ),
    )


def _message(segments: Sequence[tuple[int, bytes]]) -> tuple[int, bytes]:
    """Where the message begins that was written, and its beginning."""
    base = min([at for at, _ in segments], default=0)
    message = bytearray(SIZE)
    for at, data in segments:
        at -= base
        part = data[: max(SIZE - at, 0)]
        message[at : at + len(part)] = part
    return base, bytes(message)
