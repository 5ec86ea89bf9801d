# SPDX-License-Identifier: BSD-2-Clause
"""The wire: SMCCC, the OP-TEE SMC and message ABI. Values in, values out; no state.

What is where:

* constants: :mod:`smccc.constants` (``arm_smccc``, ``psci``, ``optee_smc``, ``optee_msg``,
  ``optee_rpc``, ``tee``), named as in the headers;
* function ids, conduits, registers: :mod:`smccc.function_id`, :mod:`smccc.conduit`,
  :mod:`smccc.registers`;
* messages: :mod:`smccc.message` (typed values), :mod:`smccc.wire` (the hot codec),
  :mod:`smccc.page_list` (non-contiguous page lists);
* every call as a typed value, both ways: :mod:`smccc.calls`;
* errors and their ABI codes: :mod:`smccc.errors`;
* decoding for people and programs: :mod:`smccc.describe`;
* the formats as documentation and oracle: :mod:`smccc.declarations`.

>>> from smccc import Message, Param, parse_message
>>> from smccc.constants import optee_msg as msg
>>> value = Param(msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT, 1, 2, 3)
>>> data = Message(msg.OPTEE_MSG_CMD_INVOKE_COMMAND, func=7, session=1, params=(value,)).build()
>>> len(data)
64
>>> parse_message(data).params[0].value
Value(a=1, b=2, c=3)
"""

from __future__ import annotations

from smccc.conduit import Conduit
from smccc.errors import ABI_CODES, AbiCode, BuildError, ParseError, Reason, abi_code
from smccc.function_id import FunctionId, Service, general_query
from smccc.message import (
    CallArguments,
    Fmem,
    Kind,
    Message,
    Param,
    Rmem,
    Tmem,
    Value,
    attribute,
    fmem_param,
    parse_arguments,
    parse_message,
    uuid_from_value,
    uuid_to_value,
)
from smccc.page_list import PageList, build_page_list, entry_count, read_page_list
from smccc.registers import (
    RegisterFrame,
    low32,
    pair,
    parse_frame,
    parse_frame32,
    signed32,
    signed64,
    split,
)
from smccc.wire import message_size, pack_message, unpack_message

__all__ = [
    "ABI_CODES",
    "AbiCode",
    "BuildError",
    "CallArguments",
    "Conduit",
    "Fmem",
    "FunctionId",
    "Kind",
    "Message",
    "PageList",
    "Param",
    "ParseError",
    "Reason",
    "RegisterFrame",
    "Rmem",
    "Service",
    "Tmem",
    "Value",
    "abi_code",
    "attribute",
    "build_page_list",
    "entry_count",
    "fmem_param",
    "general_query",
    "low32",
    "message_size",
    "pack_message",
    "pair",
    "parse_arguments",
    "parse_frame",
    "parse_frame32",
    "parse_message",
    "read_page_list",
    "signed32",
    "signed64",
    "split",
    "unpack_message",
    "uuid_from_value",
    "uuid_to_value",
]
