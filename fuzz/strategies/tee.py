# SPDX-License-Identifier: BSD-2-Clause
"""Answers of a misbehaving secure world: registers, RPC requests and results that no OP-TEE gives.

An answer is data: registers, and stores into the memory that the secure world was given for this
call. The one thing that it cannot do is leak through a value: what it writes there is its own
business and no mediator could tell it from a number. So drawn values are never physical addresses
of the machine; where an address is to be smuggled through a *temporary memory reference*, the store
names its place in ``secrets`` and whoever plays the answer puts a real one there.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final

from attrs import field, frozen
from hypothesis import strategies as st

from fuzz.strategies.integers import edge_integers
from fuzz.strategies.messages import COOKIES, COUNTS, HOLES, RMEMS, TMEMS, VALUES
from fuzz.strategies.remember import remembered
from fuzz.view import Shown, shown_bytes, shown_registers
from smccc.calls.rpc import RPC_COMMANDS
from smccc.calls.yielding import rpc_status
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.message import Message, Param
from smccc.registers import MASK32, split
from smccc.wire import HEADER_SIZE, NUM_PARAMS_OFFSET, PARAM_SIZE

Registers4 = tuple[int, int, int, int]

RPC_FUNCTIONS: Final = (
    smc.OPTEE_SMC_RPC_FUNC_CMD,
    smc.OPTEE_SMC_RPC_FUNC_ALLOC,
    smc.OPTEE_SMC_RPC_FUNC_FREE,
    smc.OPTEE_SMC_RPC_FUNC_FOREIGN_INTR,
    1,
    3,
    0xFFFE,
)
"""The four RPC functions, and three that no header defines."""

STATUSES: Final = (
    smc.OPTEE_SMC_RETURN_OK,
    smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT,
    smc.OPTEE_SMC_RETURN_EBUSY,
    smc.OPTEE_SMC_RETURN_ERESUME,
    smc.OPTEE_SMC_RETURN_EBADADDR,
    smc.OPTEE_SMC_RETURN_EBADCMD,
    smc.OPTEE_SMC_RETURN_ENOMEM,
    smc.OPTEE_SMC_RETURN_ENOTAVAIL,
    0x77,
    smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION,
)
"""Every result of ``optee_smc.h``, and one that is none."""


class Where(StrEnum):
    """Memory that the secure world was given for a call."""

    MESSAGE = "the message"
    ARGUMENT = "the RPC argument"


@frozen
class TeeStore(Shown):
    """Bytes at ``offset`` of ``where``. ``secrets``: offsets in ``data`` of 8 bytes to be replaced by a
    physical address that the guest must not see."""

    where: Where
    offset: int
    data: bytes = field(repr=shown_bytes)
    secrets: tuple[int, ...] = ()


class AnswerClass(StrEnum):
    """What an answer of the secure world is."""

    COMPLETE = "the call ends"
    REQUEST = "an RPC command"
    RPC = "another RPC"
    WILD = "registers without sense"


@frozen
class TeeAnswer(Shown):
    """Registers x0..x3 of an answer, after the stores."""

    registers: Registers4 = field(repr=shown_registers)
    stores: tuple[TeeStore, ...] = ()
    kind: AnswerClass = AnswerClass.COMPLETE


COMPLETED: Final = TeeAnswer((smc.OPTEE_SMC_RETURN_OK, 0, 0, 0))
"""The call ends and nothing is written, so its result is what the guest had there."""


@remembered
def threads() -> st.SearchStrategy[int]:
    """Thread ids: the first few, the mediator's own range (from 0x10000), and the edges."""
    return st.one_of(
        st.integers(0, 3), st.integers(0, 3), st.integers(0x1_0000, 0x1_0002), edge_integers(32)
    )


def _secret_param(draw: st.DrawFn) -> tuple[Param, bool]:
    """A parameter of any kind; True if its address is to be a secret."""
    attr = draw(st.sampled_from((*TMEMS, *VALUES, *RMEMS, 0, *HOLES)))
    attr |= draw(st.sampled_from((0, 0x200, 0x100, 1 << 40)))
    a, b, c = draw(st.tuples(*[edge_integers(32)] * 3))
    secret = attr & 0xFF in TMEMS and draw(st.booleans())
    return Param(attr, a, b, c), secret


@remembered
@st.composite
def tee_requests(draw: st.DrawFn) -> TeeAnswer:
    """RPC commands: known and unknown ones, with parameters and counts of any kind."""
    command = draw(st.sampled_from(tuple(RPC_COMMANDS)) | edge_integers(32))
    drawn = [_secret_param(draw) for _ in range(draw(st.integers(0, 4)))]
    message = Message(
        command,
        func=draw(edge_integers(32)),
        session=draw(edge_integers(32)),
        cancel_id=draw(edge_integers(32)),
        ret=draw(st.just(tee.TEE_ERROR_GENERIC) | edge_integers(32)),
        params=tuple([param for param, _ in drawn]),
    )
    data = bytearray(message.build())
    count = draw(st.just(len(drawn)) | st.sampled_from(COUNTS))
    struct.pack_into("<I", data, NUM_PARAMS_OFFSET, count)
    secrets = tuple(
        [HEADER_SIZE + index * PARAM_SIZE + 8 for index, (_, secret) in enumerate(drawn) if secret]
    )
    cookie = draw(st.sampled_from((0, *COOKIES)))
    registers = (smc.OPTEE_SMC_RETURN_RPC_CMD, *split(cookie), draw(threads()))
    return TeeAnswer(
        registers, (TeeStore(Where.ARGUMENT, 0, bytes(data), secrets),), AnswerClass.REQUEST
    )


@remembered
@st.composite
def tee_rpcs(draw: st.DrawFn) -> TeeAnswer:
    """RPCs that need no argument, and functions that do not exist."""
    function = draw(st.sampled_from(RPC_FUNCTIONS))
    cookie = draw(st.sampled_from(COOKIES) | edge_integers(64))
    if function == smc.OPTEE_SMC_RPC_FUNC_ALLOC:
        cookie = draw(st.just(0xA0) | edge_integers(32)) << 32
    return TeeAnswer((rpc_status(function), *split(cookie), draw(threads())), (), AnswerClass.RPC)


@remembered
@st.composite
def tee_completions(draw: st.DrawFn) -> TeeAnswer:
    """Ends of a call with any result, while the message was rewritten: command, count, attributes.

    What the secure world may write are results; the rest must not have any effect.
    """
    status = draw(st.sampled_from(STATUSES))
    stores = []
    ret = draw(st.sampled_from((0, tee.TEE_ERROR_BAD_PARAMETERS)) | edge_integers(32))
    stores.append(TeeStore(Where.MESSAGE, 20, struct.pack("<2I", ret, draw(edge_integers(32)))))
    if draw(st.booleans()):
        stores.append(TeeStore(Where.MESSAGE, 0, struct.pack("<I", draw(edge_integers(32)))))
    if draw(st.booleans()):
        count = draw(st.sampled_from(COUNTS))
        stores.append(TeeStore(Where.MESSAGE, NUM_PARAMS_OFFSET, struct.pack("<I", count)))
    for index in range(draw(st.integers(0, 2))):
        param, secret = _secret_param(draw)
        stores.append(
            TeeStore(
                Where.MESSAGE,
                HEADER_SIZE + index * PARAM_SIZE,
                struct.pack("<4Q", *param),
                # Address and size of a memory reference: the guest only ever gets the size back.
                (8,) if secret else (),
            )
        )
    rest = draw(st.tuples(*[edge_integers(32)] * 3))
    return TeeAnswer((status, *rest), tuple(stores))


@remembered
def wild_answers() -> st.SearchStrategy[TeeAnswer]:
    """Any status with any registers, high words included."""
    status = edge_integers(32) | st.sampled_from(STATUSES)
    high = st.sampled_from((0, 1, MASK32)).map(lambda word: word << 32)
    registers = st.tuples(st.builds(int.__or__, status, high), *[edge_integers(32)] * 2, threads())
    return registers.map(lambda x: TeeAnswer(x, (), AnswerClass.WILD))


@remembered
def tee_answers() -> st.SearchStrategy[TeeAnswer]:
    """Answers of every :class:`AnswerClass`."""
    return st.one_of(tee_completions(), tee_requests(), tee_rpcs(), wild_answers())
