# SPDX-License-Identifier: BSD-2-Clause
"""A small honest normal world: serves the RPCs of the secure world as a driver and a supplicant do.

It knows no scheduler and no time; what has to be waited for is answered at once, which the protocol
allows (a NOTIFICATION WAIT may come back for no reason).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from fuzz.view import GuestView, Shown, Writes, shown_bytes, shown_registers, shown_writes
from smccc.calls.rpc import GetTimeAnswer, ShmAllocAnswer
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.errors import ParseError
from smccc.message import Message, Param, parse_message, uuid_from_value
from smccc.page_list import ENTRIES, build_page_list, entry_count
from smccc.registers import MASK32, pair, split
from smccc.wire import KIND_RMEM, PARAM_KIND
from specs.target import PAGE_SIZE, Registers

COOKIE_BASE: Final = 0x00C0_FFEE_0000_0000
"""First name of a buffer that the service allocates; asymmetric words, and no address of anything."""

COOKIE_STEP: Final = 0x1_0000_1000
"""Between two names: both words of a cookie change."""

NOW: Final = 1_800_000_000
"""Seconds of the wall clock, which stands still."""


@frozen
class PendingRpc(Shown):
    """A suspended call as its guest sees it: the registers that came back, and the RPC argument.

    ``place``: IPA of the argument (None where there is none or nobody knows it), ``argument``: its
    bytes, to the end of the page.
    """

    thread: int
    status: int
    a1: int = 0
    a2: int = 0
    place: int | None = None
    argument: bytes = field(default=b"", repr=shown_bytes)

    @property
    def is_command(self) -> bool:
        """Whether the secure world asks for what is in the argument."""
        return self.status == smc.OPTEE_SMC_RETURN_RPC_CMD

    @property
    def message(self) -> Message | None:
        """The argument, if there is one that can be parsed."""
        try:
            return parse_message(self.argument)
        except ParseError:
            return None


@frozen
class RpcReply(Shown):
    """What the guest does about it: stores, then a RETURN_FROM_RPC with these registers."""

    registers: Registers = field(repr=shown_registers)
    writes: Writes = field(default=(), repr=shown_writes)
    label: str = ""


def resume(thread: int, a1: int = 0, a2: int = 0, a4: int = 0, a5: int = 0) -> Registers:
    """The registers of a RETURN_FROM_RPC."""
    return (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, a1, a2, thread, a4, a5, 0, 0)


class Service:
    """Answers RPCs with the pages of one guest. ``images``: trusted applications by UUID."""

    def __init__(self, view: GuestView, images: Mapping[uuid.UUID, bytes]) -> None:
        self._view = view
        self._images = images
        self._cookies = 0
        self._pages = 0
        self._buffers: dict[int, tuple[int, ...]] = {}

    def _cookie(self) -> int:
        self._cookies += 1
        return COOKIE_BASE + self._cookies * COOKIE_STEP

    def answer(self, pending: PendingRpc) -> RpcReply:
        """The honest answer."""
        function = pending.status & smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK
        if function == smc.OPTEE_SMC_RPC_FUNC_ALLOC:
            cookie = self._cookie()
            page = self._view.rpc[self._cookies % len(self._view.rpc)]
            return RpcReply(
                resume(pending.thread, *split(page), *split(cookie)), label="serve ALLOC"
            )
        if function == smc.OPTEE_SMC_RPC_FUNC_CMD:
            return self._command(pending)
        return RpcReply(
            resume(pending.thread, pending.a1, pending.a2), label=f"serve function {function}"
        )

    def _command(self, pending: PendingRpc) -> RpcReply:
        registers = resume(pending.thread, pending.a1, pending.a2)
        message = pending.message
        if message is None or pending.place is None:
            return RpcReply(registers, label="an RPC without an argument")
        stores: list[tuple[int, bytes]] = []
        answer = self._serve(message, stores)
        stores.append((pending.place, answer.build()))
        return RpcReply(registers, tuple(stores), f"serve command {message.cmd}")

    def _serve(self, request: Message, stores: list[tuple[int, bytes]]) -> Message:
        failed = request._replace(ret=tee.TEE_ERROR_NOT_SUPPORTED, ret_origin=tee.TEE_ORIGIN_COMMS)
        match request.cmd:
            case rpc.OPTEE_RPC_CMD_NOTIFICATION | rpc.OPTEE_RPC_CMD_SUSPEND:
                return request._replace(ret=tee.TEE_SUCCESS)
            case rpc.OPTEE_RPC_CMD_GET_TIME if request.params:
                return GetTimeAnswer(NOW, 0).apply(request)
            case rpc.OPTEE_RPC_CMD_SHM_ALLOC if request.params:
                return self._allocate(request, stores)
            case rpc.OPTEE_RPC_CMD_SHM_FREE if request.params:
                self._buffers.pop(request.params[0].b, None)
                return request._replace(ret=tee.TEE_SUCCESS)
            case rpc.OPTEE_RPC_CMD_LOAD_TA if len(request.params) >= 2:
                return self._load(request, stores)
            case rpc.OPTEE_RPC_CMD_FS:
                return request._replace(ret=tee.TEE_ERROR_ITEM_NOT_FOUND)
            case _:
                return failed

    def _allocate(self, request: Message, stores: list[tuple[int, bytes]]) -> Message:
        size = request.params[0].b
        count = entry_count(0, size)
        lists = self._view.lists
        if not 0 < count <= len(lists) * ENTRIES:
            return request._replace(ret=tee.TEE_ERROR_OUT_OF_MEMORY)
        pool = self._view.data
        pages = tuple([pool[(self._pages + index) % len(pool)] for index in range(count)])
        self._pages += count
        cookie = self._cookie()
        self._buffers[cookie] = pages
        stores += build_page_list(pages, lists)
        return ShmAllocAnswer(lists[0], count * PAGE_SIZE, cookie).apply(request)

    def _load(self, request: Message, stores: list[tuple[int, bytes]]) -> Message:
        image = self._images.get(uuid_from_value(request.params[0].a, request.params[0].b))
        if image is None:
            return request._replace(ret=tee.TEE_ERROR_ITEM_NOT_FOUND)
        target = request.params[1]
        if PARAM_KIND[target.type] == KIND_RMEM and target.b >= len(image):
            pages = self._buffers.get(target.c, ())
            stores += _spread(pages, target.a, image)
        params = (request.params[0], Param(target.attr, target.a, len(image), target.c))
        return request._replace(ret=tee.TEE_SUCCESS, params=(*params, *request.params[2:]))


def _spread(pages: tuple[int, ...], offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """Stores that put ``data`` at ``offset`` of a buffer; what does not fit is left out."""
    stores: list[tuple[int, bytes]] = []
    while data and offset // PAGE_SIZE < len(pages):
        inside = offset % PAGE_SIZE
        part = data[: PAGE_SIZE - inside]
        stores.append((pages[offset // PAGE_SIZE] + inside, part))
        offset, data = offset + len(part), data[len(part) :]
    return stores


def pending_from(
    registers: Registers, place: int | None = None, argument: bytes = b""
) -> PendingRpc | None:
    """The RPC that a return asks for; None if the call is over (or never was)."""
    status = registers[0] & MASK32
    prefix = smc.OPTEE_SMC_RETURN_RPC_PREFIX
    if status & smc.OPTEE_SMC_RETURN_RPC_PREFIX_MASK != prefix:
        return None
    if status == smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION:
        return None
    return PendingRpc(
        registers[3] & MASK32,
        status,
        registers[1] & MASK32,
        registers[2] & MASK32,
        place,
        argument,
    )


def cookie_of(registers: Registers) -> int:
    """a1:a2 of an RPC return: the name of the argument's buffer in the classic style."""
    return pair(registers[1], registers[2])


def result_of(data: bytes) -> int:
    """``ret`` of a message."""
    (ret,) = struct.unpack_from("<I", data, 20)
    assert isinstance(ret, int)
    return ret
