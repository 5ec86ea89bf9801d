# SPDX-License-Identifier: BSD-2-Clause
"""What can be wrong with bytes or registers from another world, and the code that answers it.

Parsers never fail in any other way than with one :class:`ParseError`, whatever they are fed.
Building a value that does not fit the wire is a mistake of the program, not of a guest, and raises
:class:`BuildError`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from smccc.constants import optee_smc as smc
from smccc.constants import tee


class Reason(enum.Enum):
    """Why a parser refused its input. The value is a sentence without its subject."""

    TRUNCATED = "ends before the field does"
    TOO_MANY_PARAMS = "is above the 127 parameters that a message may have"
    WRONG_FUNCTION = "is not the function id of this call"
    UNKNOWN_COMMAND = "is not a command of this message ABI"
    WRONG_COMMAND = "is not the command of this message"
    WRONG_PARAM_COUNT = "is not the number of parameters that the command has"
    WRONG_ATTRIBUTE = "is not an attribute that the command takes here"
    NOT_IN_RANGE = "is not a value that this field can have"
    EMPTY_LIST = "describes a buffer without a byte in it"
    LIST_TOO_LONG = "needs more page list entries than the reader accepts"
    UNREADABLE_PAGE = "names a page of the list that cannot be read"
    UNALIGNED_ENTRY = "is not the address of a page"
    UNALIGNED_LINK = "does not link to a page"


class ParseError(ValueError):
    """The one error of every parser in this package.

    ``offset``: bytes from the start of what was parsed to the field (for registers: 8 times the
    register number; for a page list: counted over the list pages in their order).
    ``field``: the field's name in the header, like ``num_params`` or ``params[2].attr``.
    ``reason``: what is wrong with it.
    """

    def __init__(self, offset: int, field: str, reason: Reason) -> None:
        super().__init__(offset, field, reason)
        self.offset = offset
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"at byte {self.offset}: {self.field} {self.reason.value}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParseError) and self.args == other.args

    def __hash__(self) -> int:
        return hash((self.offset, self.field, self.reason.name))


class BuildError(ValueError):
    """A value cannot be written to the wire: a mistake of the caller. ``field`` names the culprit."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


class AbiCode(NamedTuple):
    """How the ABI reports an error: ``a0`` of the SMC, and ``ret`` and ``ret_origin`` of the message.

    ``ret`` and ``ret_origin`` are written only when ``a0`` is OPTEE_SMC_RETURN_OK (``optee_smc.h``:
    OK means that the message was processed).
    """

    a0: int
    ret: int
    ret_origin: int


def _call_error(a0: int) -> AbiCode:
    return AbiCode(a0, tee.TEE_SUCCESS, 0)


_BAD_PARAMETERS: Final = AbiCode(
    smc.OPTEE_SMC_RETURN_OK, tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_COMMS
)

ABI_CODES: Final[Mapping[Reason, AbiCode]] = MappingProxyType(
    {
        Reason.TRUNCATED: _call_error(smc.OPTEE_SMC_RETURN_EBADADDR),
        Reason.TOO_MANY_PARAMS: _BAD_PARAMETERS,
        Reason.WRONG_FUNCTION: _call_error(smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION),
        Reason.UNKNOWN_COMMAND: _call_error(smc.OPTEE_SMC_RETURN_EBADCMD),
        Reason.WRONG_COMMAND: _call_error(smc.OPTEE_SMC_RETURN_EBADCMD),
        Reason.WRONG_PARAM_COUNT: _BAD_PARAMETERS,
        Reason.WRONG_ATTRIBUTE: _BAD_PARAMETERS,
        Reason.NOT_IN_RANGE: _BAD_PARAMETERS,
        Reason.EMPTY_LIST: _BAD_PARAMETERS,
        Reason.LIST_TOO_LONG: AbiCode(
            smc.OPTEE_SMC_RETURN_OK, tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ORIGIN_COMMS
        ),
        Reason.UNREADABLE_PAGE: _BAD_PARAMETERS,
        Reason.UNALIGNED_ENTRY: _BAD_PARAMETERS,
        Reason.UNALIGNED_LINK: _BAD_PARAMETERS,
    }
)
"""The one map from errors to ABI codes, total over :class:`Reason`.

It is the answer of a *mediator*: what it finds wrong in a message has origin COMMS. A real OP-TEE
answers EBADADDR to more than 127 parameters, because it computes the size before anything else.
"""


def abi_code(error: ParseError) -> AbiCode:
    """The ABI's answer to ``error``."""
    return ABI_CODES[error.reason]
