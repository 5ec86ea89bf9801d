# SPDX-License-Identifier: BSD-2-Clause
"""The yielding calls of OP-TEE and the remote procedure calls that suspend them (``optee_smc.h``).

A yielding call ends with ``Completed`` or ``Failed``, or is suspended: the secure world asks the
normal world for something (an RPC) and is resumed by RETURN_FROM_RPC with the registers that the
RPC's answer says. ``thread`` (a3) is resume information: opaque, handed back unchanged; a4 to a7
are too, which is why an answer is written *over* the registers that asked.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from smccc.calls.fast import CLIENT, OpteeCall
from smccc.calls.slots import Call, Failed, Pair, Return, Slot, Word
from smccc.constants import optee_smc as smc
from smccc.registers import RegisterFrame, low32


def is_rpc(a0: int) -> bool:
    """Whether a0 of a return says that the call is suspended for an RPC (OPTEE_SMC_RETURN_IS_RPC).

    The low word decides: 0xffffXXXX, but not 0xffffffff, which is UNKNOWN_FUNCTION.
    """
    word = low32(a0)
    return (
        word & smc.OPTEE_SMC_RETURN_RPC_PREFIX_MASK == smc.OPTEE_SMC_RETURN_RPC_PREFIX
        and word != smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
    )


def rpc_function(a0: int) -> int:
    """The RPC function number in a0 (OPTEE_SMC_RETURN_GET_RPC_FUNC)."""
    return a0 & smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK


def rpc_status(function: int) -> int:
    """a0 for an RPC function number (OPTEE_SMC_RPC_VAL)."""
    return smc.OPTEE_SMC_RETURN_RPC_PREFIX | function & smc.OPTEE_SMC_RETURN_RPC_FUNC_MASK


@attrs.frozen
class Completed(Return):
    """The message was processed; what came of it is in its ``ret`` and ``ret_origin``."""

    STATUS = smc.OPTEE_SMC_RETURN_OK


@attrs.frozen
class ResumeCall(OpteeCall):
    """RETURN_FROM_RPC without knowing which RPC it answers: all that its registers can mean."""

    FUNCTION = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
    RETURN = Completed
    SLOTS = (Pair("result", 1), Word("thread", 3), Pair("cookie", 4), CLIENT)
    result: int
    """a1:a2, for ALLOC an address."""
    thread: int
    """a3, the resume information."""
    cookie: int = 0
    """a4:a5, for ALLOC the cookie."""

    def parse_return(self, frame: RegisterFrame) -> Return:
        return parse_yielding_return(frame)


@attrs.frozen
class RpcRequest(Return):
    """The secure world wants something before it goes on."""

    ANSWER: ClassVar[type[ResumeCall] | type[RpcAnswer]] = ResumeCall
    thread: int
    """a3: resume information, in OP-TEE the index of the suspended thread."""


@attrs.frozen
class RpcAnswer(OpteeCall):
    """RETURN_FROM_RPC as the answer of one kind of RPC."""

    FUNCTION = smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
    RETURN = Completed
    SLOTS: ClassVar[tuple[Slot, ...]] = (Word("thread", 3), CLIENT)
    thread: int
    """The request's."""

    def parse_return(self, frame: RegisterFrame) -> Return:
        return parse_yielding_return(frame)


@attrs.frozen
class RpcAllocAnswer(RpcAnswer):
    """Answer to ALLOC, the only one with four payload registers: the cookie is in a4:a5."""

    SLOTS = (Pair("address", 1), Word("thread", 3), Pair("cookie", 4), CLIENT)
    address: int = 0
    """Address of the buffer; 0 if there is none to be had, or size 0 was asked for."""
    cookie: int = 0


@attrs.frozen
class RpcAlloc(RpcRequest):
    """ALLOC: memory for an RPC argument, please."""

    STATUS = smc.OPTEE_SMC_RETURN_RPC_ALLOC
    SLOTS = (Word("thread", 3), Word("size", 1))
    ANSWER = RpcAllocAnswer
    size: int
    """Bytes."""


@attrs.frozen
class RpcFreeAnswer(RpcAnswer):
    """Answer to FREE."""


@attrs.frozen
class RpcFree(RpcRequest):
    """FREE: what ALLOC brought is no longer needed."""

    STATUS = smc.OPTEE_SMC_RETURN_RPC_FREE
    SLOTS = (Word("thread", 3), Pair("cookie", 1))
    ANSWER = RpcFreeAnswer
    cookie: int


@attrs.frozen
class RpcForeignInterruptAnswer(RpcAnswer):
    """Answer to FOREIGN_INTR: everything unchanged. OP-TEE ignores a1, a2, a4 and a5."""

    SLOTS = (Word("resume1", 1), Word("resume2", 2), Word("thread", 3), CLIENT)
    resume1: int = 0
    resume2: int = 0


@attrs.frozen
class RpcForeignInterrupt(RpcRequest):
    """FOREIGN_INTR: an interrupt for the normal world; take it, then resume."""

    STATUS = smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR
    SLOTS = (Word("thread", 3), Word("resume1", 1), Word("resume2", 2))
    ANSWER = RpcForeignInterruptAnswer
    resume1: int = 0
    """Resume information in a1."""
    resume2: int = 0
    """Resume information in a2."""


@attrs.frozen
class RpcCommandAnswer(RpcAnswer):
    """Answer to CMD. OP-TEE does not read the cookie, Xen looks the buffer up by it again."""

    SLOTS = (Pair("cookie", 1), Word("thread", 3), CLIENT)
    cookie: int = 0


@attrs.frozen
class RpcCommand(RpcRequest):
    """CMD: do what the RPC argument says (:mod:`smccc.calls.rpc`)."""

    STATUS = smc.OPTEE_SMC_RETURN_RPC_CMD
    SLOTS = (Word("thread", 3), Pair("cookie", 1))
    ANSWER = RpcCommandAnswer
    cookie: int
    """Which argument; 0 where the argument lies behind the message (RPC_ARG, REGD_ARG)."""


@attrs.frozen
class UnknownRpc(RpcRequest):
    """An RPC function that no header knows."""

    SLOTS = (Word("thread", 3), Word("status", 0), Word("a1", 1), Word("a2", 2))
    status: int
    """a0, 0xffff0000 | function."""
    a1: int
    a2: int


RPC_REQUESTS: dict[int, type[RpcRequest]] = {
    smc.OPTEE_SMC_RETURN_RPC_ALLOC: RpcAlloc,
    smc.OPTEE_SMC_RETURN_RPC_FREE: RpcFree,
    smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR: RpcForeignInterrupt,
    smc.OPTEE_SMC_RETURN_RPC_CMD: RpcCommand,
}


def parse_yielding_return(frame: RegisterFrame) -> Return:
    """What came back from a yielding call: done, an error, or an RPC. Never fails."""
    if frame.a0 == smc.OPTEE_SMC_RETURN_OK:
        return Completed()
    if is_rpc(frame.a0):
        return RPC_REQUESTS.get(frame.a0, UnknownRpc).parse(frame)
    return Failed.parse(frame)


def parse_answer(request: RpcRequest, frame: RegisterFrame) -> Call:
    """Read a RETURN_FROM_RPC as the answer to ``request``.

    Raises :class:`~smccc.errors.ParseError` if a0 is not RETURN_FROM_RPC.
    """
    return request.ANSWER.parse(frame)


@attrs.frozen
class YieldingCall(OpteeCall):
    """A call that carries a message to the secure world."""

    RETURN = Completed

    def parse_return(self, frame: RegisterFrame) -> Return:
        return parse_yielding_return(frame)


@attrs.frozen
class CallWithArg(YieldingCall):
    """CALL_WITH_ARG: the message is at an address; RPC arguments are fetched by ALLOC."""

    FUNCTION = smc.OPTEE_SMC_CALL_WITH_ARG
    SLOTS = (Pair("address", 1), Word("cache", 3), CLIENT)
    address: int
    """Physical (a guest's: intermediate physical) address of the message."""
    cache: int = smc.OPTEE_SMC_SHM_CACHED
    """Cache attribute when the message is outside the reserved pool; OP-TEE ignores it."""


@attrs.frozen
class CallWithRpcArg(YieldingCall):
    """CALL_WITH_RPC_ARG: as CALL_WITH_ARG, with the RPC argument behind the message."""

    FUNCTION = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
    SLOTS = (Pair("address", 1), Word("cache", 3), CLIENT)
    address: int
    """Physical (a guest's: intermediate physical) address of the message."""
    cache: int = smc.OPTEE_SMC_SHM_CACHED
    """Cache attribute when the message is outside the reserved pool; OP-TEE ignores it."""


@attrs.frozen
class CallWithRegdArg(YieldingCall):
    """CALL_WITH_REGD_ARG: message and RPC argument lie in a registered object."""

    FUNCTION = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
    SLOTS = (Pair("cookie", 1), Word("offset", 3), CLIENT)
    cookie: int
    """The cookie given to REGISTER_SHM."""
    offset: int
    """Bytes from the object's start to the message. Not a cache attribute."""


YIELDING_CALLS: tuple[type[Call], ...] = (
    CallWithArg,
    CallWithRpcArg,
    CallWithRegdArg,
    ResumeCall,
)
