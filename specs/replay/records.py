# SPDX-License-Identifier: BSD-2-Clause
"""What a trace consists of, as typed frozen values. Addresses are those of the recorded machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import attrs

FORMAT: Final = "optee-smc-trace"
"""Name of the format; written into the first line."""

VERSION: Final = 1
"""Version that we write. A first line without a version is version 1."""

MAX_DUMPED_PARAMS: Final = 64
"""A message with more parameters is recorded as its bare header (the tracer's own limit)."""

MAX_BUFFER_BYTES: Final = 256
"""Bytes of a memory parameter that are recorded, from its first byte and inside one page."""

MESSAGE_OWNER: Final = "msg"
RPC_OWNER: Final = "rpc_arg"


class TraceError(ValueError):
    """A trace cannot be used. ``path``, ``line`` (1-based, 0: the file itself), ``field``, ``reason``."""

    def __init__(self, path: str, line: int, field: str, reason: str) -> None:
        super().__init__(path, line, field, reason)
        self.path = path
        self.line = line
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.field}: {self.reason}" if self.field else f"{place}: {self.reason}"


@attrs.frozen
class Meta:
    """The first line: where the trace comes from. ``values`` as written, in order."""

    values: Mapping[str, object]
    version: int = VERSION
    line: int = 1

    def text(self, key: str) -> str:
        """A value as text, empty if it is missing."""
        return str(self.values.get(key, ""))


@attrs.frozen
class Marker:
    """What the normal world was about to do, in its own words."""

    text: str
    line: int = 0


@attrs.frozen
class Content:
    """``struct optee_msg_arg`` as found in memory at ``pa``: header and recorded parameters."""

    pa: int
    data: bytes

    @property
    def num_params(self) -> int:
        """The parameter count in the header (the recorded bytes may hold fewer)."""
        return int.from_bytes(self.data[28:32], "little")


@attrs.frozen
class ListPage:
    """A page of a non-contiguous list: the entries that count, and its raw last word."""

    pa: int
    entries: tuple[int, ...]
    next: int


@attrs.frozen
class BufferContent:
    """The first bytes of memory parameter ``param`` of ``owner`` (``msg`` or ``rpc_arg``)."""

    owner: str
    param: int
    pa: int
    data: bytes


@attrs.frozen
class Call:
    """The normal world entered OP-TEE: a0..a7 and the memory that the call names."""

    seq: int
    cpu: int
    t_us: float
    name: str
    regs: tuple[int, ...]
    msg: Content | None = None
    rpc_arg: Content | None = None
    page_list: tuple[ListPage, ...] | None = None
    buffers: tuple[BufferContent, ...] = ()
    line: int = 0


@attrs.frozen
class Return:
    """OP-TEE came back with an answer or an RPC request; ``of``: the call of the same CPU."""

    seq: int
    cpu: int
    t_us: float
    of: int
    name: str
    regs: tuple[int, ...]
    msg: Content | None = None
    rpc_arg: Content | None = None
    page_list: tuple[ListPage, ...] | None = None
    buffers: tuple[BufferContent, ...] = ()
    line: int = 0


@attrs.frozen
class SecureInterrupt:
    """A secure interrupt was taken (``entered``) or handled while the normal world ran."""

    seq: int
    cpu: int
    t_us: float
    entered: bool
    line: int = 0


Record: TypeAlias = Meta | Marker | Call | Return | SecureInterrupt
Event: TypeAlias = Call | Return
