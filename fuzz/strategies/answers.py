# SPDX-License-Identifier: BSD-2-Clause
"""A guest's answers to RPCs: honest ones, and every lie that a reply can tell (bug classes 2, 6, 25)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from hypothesis import strategies as st

from fuzz.service import PendingRpc, RpcReply, Service, resume
from fuzz.strategies.integers import buffer_sizes, edge_integers
from fuzz.strategies.messages import (
    COOKIES,
    COUNTS,
    TMEMS,
    Prepared,
    addresses,
    claim,
    hostile_params,
)
from fuzz.strategies.page_lists import any_listed_buffers
from fuzz.view import GuestView, Writes
from smccc.calls.rpc import RPC_COMMANDS, ShmAllocAnswer
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.message import Message, Param
from smccc.registers import MASK32, split
from specs.target import Registers

NO_IMAGES: Final[Mapping[uuid.UUID, bytes]] = {}


class ReplyFlaw(StrEnum):
    """What is wrong with an answer."""

    THREAD = "a thread that is not the one that asked"
    REGISTERS = "rubbish in the registers"
    ALLOC = "an address or a cookie that cannot be"
    SILENT = "nothing was written into the argument"
    COMMAND = "another command in the argument"
    COUNT = "another number of parameters"
    RESULT = "an error beside parameters that look good"
    SHM = "an allocation that is none"
    ADDRESS = "an address where none belongs"


def rpc_answers(
    pending: PendingRpc,
    view: GuestView,
    images: Mapping[uuid.UUID, bytes] = NO_IMAGES,
) -> st.SearchStrategy[RpcReply]:
    """The honest answer to ``pending``, from different pages of the guest."""
    return st.integers(0, 3).map(lambda turn: _served(pending, view, images, turn))


def _served(
    pending: PendingRpc, view: GuestView, images: Mapping[uuid.UUID, bytes], turn: int
) -> RpcReply:
    service = Service(view, images)
    for _ in range(turn):
        service.answer(PendingRpc(0, smc.OPTEE_SMC_RETURN_RPC_ALLOC))
    return service.answer(pending)


def _flaws(pending: PendingRpc) -> tuple[ReplyFlaw, ...]:
    """Those that make sense for this RPC."""
    flaws = [ReplyFlaw.REGISTERS, ReplyFlaw.THREAD]
    if pending.status == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
        flaws.append(ReplyFlaw.ALLOC)
    if pending.is_command and pending.place is not None:
        flaws += [
            ReplyFlaw.SILENT,
            ReplyFlaw.COMMAND,
            ReplyFlaw.COUNT,
            ReplyFlaw.RESULT,
            ReplyFlaw.SHM,
            ReplyFlaw.ADDRESS,
        ]
    return tuple(flaws)


@st.composite
def hostile_rpc_answers(
    draw: st.DrawFn,
    pending: PendingRpc,
    view: GuestView,
    *,
    cookies: tuple[int, ...] = COOKIES,
    images: Mapping[uuid.UUID, bytes] = NO_IMAGES,
) -> RpcReply:
    """An answer to ``pending`` with one :class:`ReplyFlaw`, named in its label."""
    flaw = draw(st.sampled_from(_flaws(pending)))
    honest = draw(rpc_answers(pending, view, images))
    registers: Registers = honest.registers
    writes: Writes = honest.writes
    match flaw:
        case ReplyFlaw.THREAD:
            thread = draw(st.integers(0, 4) | edge_integers(32) | st.integers(0x1_0000, 0x1_0003))
            registers = (*registers[:3], thread, *registers[4:])
        case ReplyFlaw.REGISTERS:
            a0, a1, a2, _, a4, a5, a6, a7 = draw(st.tuples(*[edge_integers(64)] * 8))
            function = a0 & ~MASK32 | smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
            if pending.status == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
                a1, a2, a4, a5 = registers[1], registers[2], registers[4], registers[5]
            registers = (function, a1, a2, a6 & ~MASK32 | pending.thread, a4, a5, a6, a7)
        case ReplyFlaw.ALLOC:
            address = draw(addresses(view))
            cookie = draw(st.sampled_from(cookies) | edge_integers(64))
            registers = resume(pending.thread, *split(address), *split(cookie))
        case ReplyFlaw.SILENT:
            writes = ()
        case _:
            assert pending.place is not None
            prepared = draw(_arguments(pending, view, flaw, cookies))
            writes = prepared.at(pending.place)
    return RpcReply(registers, writes, f"{flaw.name}: {flaw.value}")


@st.composite
def _arguments(
    draw: st.DrawFn,
    pending: PendingRpc,
    view: GuestView,
    flaw: ReplyFlaw,
    cookies: tuple[int, ...],
) -> Prepared:
    """A false argument and the stores that it needs."""
    request = pending.message or Message(0)
    match flaw:
        case ReplyFlaw.COMMAND:
            command = draw(st.sampled_from(tuple(RPC_COMMANDS)) | edge_integers(32))
            return Prepared(request._replace(cmd=command, ret=0).build())
        case ReplyFlaw.COUNT:
            return claim(Prepared(request._replace(ret=0).build()), draw(st.sampled_from(COUNTS)))
        case ReplyFlaw.ADDRESS:
            param = Param(
                draw(st.sampled_from(TMEMS)),
                draw(addresses(view)),
                draw(buffer_sizes()),
                draw(st.sampled_from(cookies)),
            )
            others = request.params[1:]
            return Prepared(request._replace(ret=0, params=(param, *others)).build())
    ret = 0
    if flaw is ReplyFlaw.RESULT:
        ret = draw(st.sampled_from((tee.TEE_ERROR_OUT_OF_MEMORY, 1, MASK32)))
    if draw(st.booleans()):
        param, writes = draw(hostile_params(view, cookies))
        return Prepared(request._replace(ret=ret, params=(param,)).build(), writes)
    buffer = draw(any_listed_buffers(view))
    cookie = draw(st.sampled_from(cookies))
    answer = ShmAllocAnswer(buffer.buf_ptr, buffer.size, cookie, draw(st.booleans()), ret=ret)
    asked = request if request.params else request._replace(params=(Param(),))
    return Prepared(answer.apply(asked).build(), buffer.writes)


def replies(
    pending: PendingRpc,
    view: GuestView,
    *,
    cookies: tuple[int, ...] = COOKIES,
    images: Mapping[uuid.UUID, bytes] = NO_IMAGES,
) -> st.SearchStrategy[RpcReply]:
    """Honest and hostile answers, half of each."""
    return rpc_answers(pending, view, images) | hostile_rpc_answers(
        pending, view, cookies=cookies, images=images
    )


def pending_rpcs(view: GuestView) -> st.SearchStrategy[PendingRpc]:
    """RPCs as a guest may meet them, for tests that have no secure world at hand."""
    thread = st.integers(0, 3)
    place = st.sampled_from(view.carriers)
    register = edge_integers(32)
    argument = st.sampled_from(
        (
            Message(
                rpc.OPTEE_RPC_CMD_SHM_ALLOC,
                ret=tee.TEE_ERROR_GENERIC,
                params=(Param(1, 0, 0x1000, 8), Param(), Param(), Param()),
            ),
            Message(
                rpc.OPTEE_RPC_CMD_LOAD_TA,
                ret=tee.TEE_ERROR_GENERIC,
                params=(Param(1, 1, 2), Param(0xA), Param(), Param()),
            ),
            Message(rpc.OPTEE_RPC_CMD_GET_TIME, ret=tee.TEE_ERROR_GENERIC, params=(Param(2),)),
        )
    ).map(Message.build)
    return st.one_of(
        st.builds(
            PendingRpc,
            thread,
            st.just(smc.OPTEE_SMC_RETURN_RPC_CMD),
            place=place,
            argument=argument,
        ),
        st.builds(PendingRpc, thread, st.just(smc.OPTEE_SMC_RETURN_RPC_ALLOC), a1=st.just(0xA0)),
        st.builds(
            PendingRpc, thread, st.just(smc.OPTEE_SMC_RETURN_RPC_FREE), a1=register, a2=register
        ),
        st.builds(PendingRpc, thread, st.just(smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR)),
    )
