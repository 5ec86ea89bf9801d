# SPDX-License-Identifier: BSD-2-Clause
"""What a scenario does that a mediator may legitimately treat differently from the recorded one.

The facts are read off the calls and the memory while a scenario is played; they never depend on
its name or category. A rule (:mod:`specs.rules`) lists the facts under which a mediator that
follows it differs from the recording; that is how a deviation is explained.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from smccc.constants import arm_smccc, optee_msg, optee_rpc
from smccc.constants import optee_smc as smc
from smccc.function_id import FunctionId
from smccc.wire import KIND_INVALID, KIND_TMEM, PARAM_KIND
from specs.target import PAGE_SIZE

REFERENCE_BUFFER_PAGES: Final = 129
REFERENCE_BUFFERS: Final = 16
REFERENCE_TOTAL_PAGES: Final = 16_384
"""Caps of the recorded mediator: pages of one buffer, buffers, and pages (exclusive) of a guest."""

MAX_PARAMS: Final = 127
LIST_ENTRIES: Final = 511
_MASK32: Final = 0xFFFF_FFFF
_OFFSET: Final = PAGE_SIZE - 1
_HEADER: Final = struct.Struct("<8I")
_PARAM: Final = struct.Struct("<4Q")
_ATTR_SIZE: Final = 8
_QUERIED_OWNERS: Final = (
    arm_smccc.ARM_SMCCC_OWNER_ARCH,
    arm_smccc.ARM_SMCCC_OWNER_STANDARD,
    arm_smccc.ARM_SMCCC_OWNER_STANDARD_HYP,
)
_NOTIFICATION_COMMANDS: Final = (
    optee_msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF,
    optee_msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF,
)
_SHM_COMMANDS: Final = (
    optee_msg.OPTEE_MSG_CMD_REGISTER_SHM,
    optee_msg.OPTEE_MSG_CMD_UNREGISTER_SHM,
)
_LISTED_OUTPUT: Final = (
    optee_msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | optee_msg.OPTEE_MSG_ATTR_NONCONTIG
)
OWN_THREADS: Final = 0x1_0000
"""Thread ids from here up are those of our mediator; no build of OP-TEE has so many threads."""
REFERENCE_CAPABILITIES: Final = 0b10111
"""Capability bits that the recorded mediator knows (0 is then removed)."""


class Fact(StrEnum):
    """Something that happened in a scenario. The value is its name in the rule file."""

    CALLS_COUNT = "calls-count"
    SERVICE_QUERY = "service-query"
    THREAD_COUNT_CALL = "thread-count-call"
    BUILD_ID = "build-id"
    NEWER_CAPABILITY = "newer-capability"
    NOTIFICATION_CALL = "notification-call"
    NOTIFICATION_COMMAND = "notification-command"
    RPC_ARG_CALL = "rpc-arg-call"
    TOO_MANY_PARAMS = "too-many-params"
    UNKNOWN_PARAM_TYPE = "unknown-param-type"
    CONTIGUOUS_BUFFER = "contiguous-buffer"
    EMPTY_BUFFER = "empty-buffer"
    UNALIGNED_LIST = "unaligned-list"
    LARGE_BUFFER = "large-buffer"
    MANY_BUFFERS = "many-buffers"
    MANY_PAGES = "many-pages"
    MANY_RPC_BUFFERS = "many-rpc-buffers"
    OTHER_SHM_PARAM = "other-shm-param"
    ATTRIBUTE_CHANGED = "attribute-changed"
    ALLOCATION_FAILED = "allocation-failed"
    TEARDOWN_PREEMPTED = "teardown-preempted"
    ADDRESS_IN_ANSWER = "address-in-answer"
    ADDRESS_IN_REQUEST = "address-in-request"
    CONTIGUOUS_ANSWER = "contiguous-answer"
    COMMAND_IN_ANSWER = "command-in-answer"
    OVERSIZED_REQUEST = "oversized-request"
    PAGE_ZERO = "page-zero"
    LARGE_THREAD_ID = "large-thread-id"
    REFUSED_DESTROY = "refused-destroy"


ReadGuest = Callable[[int, int], bytes | None]
"""``(guest, ipa)`` -> the 4096 bytes of the page at ``ipa`` in the map, None where there is none."""


class Facts:
    """The facts seen so far, each with the step in which it was first seen."""

    def __init__(self, read_guest: ReadGuest) -> None:
        self.seen: dict[Fact, int] = {}
        self.step = 0
        self._read = read_guest
        self._references: dict[int, dict[int, int]] = {}
        self._rpc_pages: dict[tuple[int, int], int] = {}
        self._pending: dict[int, tuple[int, int, int]] = {}
        self._request = -1

    def note(self, fact: Fact) -> None:
        """``fact`` holds from the current step on."""
        self.seen.setdefault(fact, self.step)

    def until(self, step: int) -> frozenset[Fact]:
        """The facts of steps 0 to ``step``."""
        return frozenset(fact for fact, first in self.seen.items() if first <= step)

    def trapped(self, guest: int, regs: tuple[int, ...]) -> None:
        """A guest is about to make a call."""
        number = regs[0] & _MASK32
        function = FunctionId.decode(number)
        match number:
            case smc.OPTEE_SMC_CALLS_COUNT:
                self.note(Fact.CALLS_COUNT)
            case smc.OPTEE_SMC_GET_THREAD_COUNT:
                self.note(Fact.THREAD_COUNT_CALL)
            case smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF | smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE:
                self.note(Fact.NOTIFICATION_CALL)
            case smc.OPTEE_SMC_CALL_WITH_RPC_ARG | smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
                self.note(Fact.RPC_ARG_CALL)
            case smc.OPTEE_SMC_CALL_WITH_ARG:
                page = self._read(guest, (regs[1] & _MASK32) << 32 | regs[2] & _MASK32)
                if page is not None:
                    self._message(guest, page)
            case smc.OPTEE_SMC_CALL_RETURN_FROM_RPC:
                self._answer(guest, regs)
            case _ if function.fast and function.owner in _QUERIED_OWNERS:
                self.note(Fact.SERVICE_QUERY)

    def answered(self, regs: tuple[int, ...], reply: list[int]) -> None:
        """The secure world answered a call."""
        number, answer = regs[0] & _MASK32, reply[0] & _MASK32
        if number == smc.OPTEE_SMC_CALL_GET_OS_REVISION and reply[2]:
            self.note(Fact.BUILD_ID)
        if number == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES:
            newer = reply[1] & _MASK32 & ~REFERENCE_CAPABILITIES
            if newer or reply[2] or reply[3]:
                self.note(Fact.NEWER_CAPABILITY)
        if number == smc.OPTEE_SMC_VM_DESTROYED and answer:
            self.note(Fact.REFUSED_DESTROY)
        if answer != _MASK32 and answer >> 16 == 0xFFFF:
            cookie = (reply[1] & _MASK32) << 32 | reply[2] & _MASK32
            thread = reply[3] & _MASK32
            self._pending[thread] = (answer, cookie, self._request)
            if thread >= OWN_THREADS:
                self.note(Fact.LARGE_THREAD_ID)

    def written_by_tee(self, offset: int, data: bytes, page: bytes) -> None:
        """The secure world wrote ``data`` at ``offset`` into a mediator page (``page``: before)."""
        if not offset and len(data) >= _HEADER.size:  # a request, not a result
            header = _HEADER.unpack_from(data)
            self._request = header[0]
            if header[7] > MAX_PARAMS:
                self.note(Fact.OVERSIZED_REQUEST)
            for attr, address, _, _ in _params(data):
                if address and PARAM_KIND[attr & 0xFF] == KIND_TMEM:
                    self.note(Fact.ADDRESS_IN_REQUEST)
            return
        for place in range(max(offset, _HEADER.size), offset + len(data)):
            inside = (place - _HEADER.size) % _PARAM.size
            if inside < _ATTR_SIZE and page[place] != data[place - offset]:
                self.note(Fact.ATTRIBUTE_CHANGED)

    def _message(self, guest: int, page: bytes) -> None:
        header = _HEADER.unpack_from(page)
        command, count = header[0], header[7]
        if command in _NOTIFICATION_COMMANDS:
            self.note(Fact.NOTIFICATION_COMMAND)
        if count > MAX_PARAMS:
            self.note(Fact.TOO_MANY_PARAMS)
            return
        params = _params(page)
        if command in _SHM_COMMANDS:
            wanted = (
                (
                    optee_msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT,
                    optee_msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT,
                )
                if command == optee_msg.OPTEE_MSG_CMD_REGISTER_SHM
                else (optee_msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT,)
            )
            if len(params) != 1 or params[0][0] & 0xFF not in wanted:
                self.note(Fact.OTHER_SHM_PARAM)
        for attr, address, size, reference in params:
            kind = PARAM_KIND[attr & 0xFF]
            if kind == KIND_INVALID:
                self.note(Fact.UNKNOWN_PARAM_TYPE)
            elif kind == KIND_TMEM and address:
                if attr & optee_msg.OPTEE_MSG_ATTR_NONCONTIG:
                    self._buffer(guest, address, size, reference)
                else:
                    self.note(Fact.CONTIGUOUS_BUFFER)

    def _buffer(self, guest: int, address: int, size: int, reference: int) -> None:
        pages = ((address & _OFFSET) + size + _OFFSET) // PAGE_SIZE
        if not pages:
            self.note(Fact.EMPTY_BUFFER)
        if pages > REFERENCE_BUFFER_PAGES:
            self.note(Fact.LARGE_BUFFER)
        references = self._references.setdefault(guest, {})
        references[reference] = pages
        if len(references) > REFERENCE_BUFFERS:
            self.note(Fact.MANY_BUFFERS)
        if sum(references.values()) >= REFERENCE_TOTAL_PAGES:
            self.note(Fact.MANY_PAGES)
        listed = address & ~_OFFSET
        left = min(pages, REFERENCE_TOTAL_PAGES)
        while left > 0:
            page = self._read(guest, listed)
            if page is None:
                return
            entries = min(left, LIST_ENTRIES)
            words = list(struct.unpack_from(f"<{entries}Q", page))
            left -= entries
            if left:
                listed = int.from_bytes(page[LIST_ENTRIES * 8 :], "little")
                words.append(listed)
                listed &= ~_OFFSET
            if any(word & _OFFSET for word in words):
                self.note(Fact.UNALIGNED_LIST)

    def _answer(self, guest: int, regs: tuple[int, ...]) -> None:
        answer, cookie, asked = self._pending.get(regs[3] & _MASK32, (0, 0, -1))
        if answer == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            named = (regs[4] & _MASK32) << 32 | regs[5] & _MASK32
            address = (regs[1] & _MASK32) << 32 | regs[2] & _MASK32
            self._rpc_pages[guest, named] = address
            if not address and self._read(guest, address) is not None:
                self.note(Fact.PAGE_ZERO)
            if len(self._rpc_pages) > REFERENCE_BUFFERS:
                self.note(Fact.MANY_RPC_BUFFERS)
        if answer != smc.OPTEE_SMC_RETURN_RPC_CMD:
            return
        where = self._rpc_pages.get((guest, cookie))
        page = None if where is None else self._read(guest, where)
        if page is None:
            return
        header = _HEADER.unpack_from(page)
        if header[7] > MAX_PARAMS:
            return
        if header[0] != asked:
            self.note(Fact.COMMAND_IN_ANSWER)
        allocated = asked == optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC and not header[5] and header[7] == 1
        for attr, place, size, reference in _params(page):
            if not place or PARAM_KIND[attr & 0xFF] != KIND_TMEM:
                continue
            if allocated and attr == optee_msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT:
                self.note(Fact.CONTIGUOUS_ANSWER)
            elif allocated and attr == _LISTED_OUTPUT:
                self._buffer(guest, place, size, reference)
            else:
                self.note(Fact.ADDRESS_IN_ANSWER)


def _params(data: bytes) -> list[tuple[int, int, int, int]]:
    count = min(_HEADER.unpack_from(data)[7], (len(data) - _HEADER.size) // _PARAM.size)
    return [_PARAM.unpack_from(data, _HEADER.size + index * _PARAM.size) for index in range(count)]
