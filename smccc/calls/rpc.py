# SPDX-License-Identifier: BSD-2-Clause
"""The commands of RPC arguments, by which OP-TEE asks the normal world (``optee_rpc_cmd.h``).

GET_TIME, NOTIFICATION, SUSPEND, SHM_ALLOC and SHM_FREE of kernel memory, I2C_TRANSFER and the RPMB
probe are served by a kernel driver, the others by tee-supplicant.
"""

from __future__ import annotations

import struct
import uuid
from typing import ClassVar, Self

import attrs

from smccc.calls.params import (
    IN,
    INOUT,
    OUT,
    Answer,
    Command,
    Identifier,
    Memory,
    Numbers,
    Out,
    Rest,
)
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.errors import BuildError, ParseError, Reason
from smccc.message import Message, Param
from smccc.registers import MASK32
from smccc.wire import HEADER_SIZE, NUM_PARAMS_OFFSET

_VALUE_IN = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,)
_VALUE_OUT = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT,)
_VALUE_INOUT = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT,)
_TMEM_OUT = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT


@attrs.frozen
class RpcArgument(Command):
    """What the secure world asks for."""

    ANSWER: ClassVar[type[Answer]] = Answer

    def parse_answer(self, message: Message) -> Answer:
        """Read the argument when it comes back.

        Raises :class:`~smccc.errors.ParseError` if it lacks parameters that the answer needs.
        """
        return self.ANSWER.parse(message)


@attrs.frozen
class ParamsAnswer(Answer):
    """An answer in parameters whose layout depends on the operation: all of them are kept."""

    REST = (0, "params")
    params: tuple[Param, ...] = ()


@attrs.frozen
class LoadTaAnswer(Answer):
    """Answer to LOAD_TA."""

    OUT = (Out(1, "b", "size"),)
    size: int
    """Bytes of the image."""


@attrs.frozen
class LoadTa(RpcArgument):
    """LOAD_TA: the image of a trusted application; a null buffer asks for its size."""

    COMMAND = rpc.OPTEE_RPC_CMD_LOAD_TA
    PARAMS = (Identifier(_VALUE_IN, "ta"), Memory("image", OUT))
    ANSWER = LoadTaAnswer
    ta: uuid.UUID
    image: Param


@attrs.frozen
class RpmbAnswer(Answer):
    """Answer to RPMB and RPMB_FRAMES."""

    OUT = (Out(1, "b", "size"),)
    size: int
    """Bytes of the response frames."""


@attrs.frozen
class Rpmb(RpcArgument):
    """RPMB: pass frames to the replay protected memory block, by tee-supplicant."""

    COMMAND = rpc.OPTEE_RPC_CMD_RPMB
    PARAMS = (Memory("request", IN), Memory("response", OUT))
    ANSWER = RpmbAnswer
    request: Param
    response: Param


@attrs.frozen
class Fs(RpcArgument):
    """FS: a file operation in the normal world's storage.

    OPEN and CREATE: name in, value out (descriptor). CLOSE: no more. READ: memory out. WRITE: memory
    in. TRUNCATE: no more. REMOVE, OPENDIR: name in (OPENDIR: value out). RENAME: two names in.
    CLOSEDIR: no more. READDIR: name out.
    """

    COMMAND = rpc.OPTEE_RPC_CMD_FS
    PARAMS = (Numbers(_VALUE_IN, "operation", "handle", "offset"), Rest("params"))
    ANSWER = ParamsAnswer
    operation: int
    """OPTEE_RPC_FS_*."""
    handle: int = 0
    """Descriptor; for RENAME whether to overwrite."""
    offset: int = 0
    """Bytes from the file's start; for TRUNCATE the new length."""
    params: tuple[Param, ...] = ()


@attrs.frozen
class GetTimeAnswer(Answer):
    """Answer to GET_TIME."""

    OUT = (Out(0, "a", "seconds"), Out(0, "b", "nanoseconds"))
    seconds: int
    nanoseconds: int


@attrs.frozen
class GetTime(RpcArgument):
    """GET_TIME: the normal world's time."""

    COMMAND = rpc.OPTEE_RPC_CMD_GET_TIME
    PARAMS = (Numbers(_VALUE_OUT),)
    ANSWER = GetTimeAnswer


@attrs.frozen
class Notification(RpcArgument):
    """NOTIFICATION: wait until a key is sent, or send it (the former WAIT_QUEUE)."""

    COMMAND = rpc.OPTEE_RPC_CMD_NOTIFICATION
    PARAMS = (Numbers(_VALUE_IN, "operation", "key", "timeout"),)
    operation: int
    """OPTEE_RPC_NOTIFICATION_WAIT or OPTEE_RPC_NOTIFICATION_SEND."""
    key: int
    timeout: int = 0
    """Milliseconds to wait, 0 for ever."""


@attrs.frozen
class Suspend(RpcArgument):
    """SUSPEND: sleep in the normal world."""

    COMMAND = rpc.OPTEE_RPC_CMD_SUSPEND
    PARAMS = (Numbers(_VALUE_IN, "milliseconds"),)
    milliseconds: int


@attrs.frozen
class ShmAllocAnswer(Answer):
    """Answer to SHM_ALLOC: parameter 0 itself is rewritten, attribute and all."""

    buf_ptr: int
    """Address of the buffer, or of its page list plus the offset in the first page."""
    size: int
    """Bytes; OP-TEE refuses less than it asked for."""
    cookie: int
    noncontig: bool = True
    """Whether ``buf_ptr`` names a page list."""

    @classmethod
    def parse(cls, message: Message) -> Self:
        """Read the answer.

        Raises :class:`~smccc.errors.ParseError` if parameter 0 is missing or was not rewritten to
        TMEM_OUTPUT, with or without NONCONTIG.
        """
        if not message.params:
            raise ParseError(NUM_PARAMS_OFFSET, "num_params", Reason.WRONG_PARAM_COUNT)
        attr, address, size, cookie = message.params[0]
        if attr & ~msg.OPTEE_MSG_ATTR_NONCONTIG != _TMEM_OUT:
            raise ParseError(HEADER_SIZE, "params[0].attr", Reason.WRONG_ATTRIBUTE)
        noncontig = attr != _TMEM_OUT
        return cls(address, size, cookie, noncontig, ret=message.ret, ret_origin=message.ret_origin)

    def apply(self, request: Message) -> Message:
        if not request.params:
            raise BuildError("buf_ptr", "has no parameter 0 to go to")
        attr = _TMEM_OUT | (msg.OPTEE_MSG_ATTR_NONCONTIG if self.noncontig else 0)
        first = Param(attr, self.buf_ptr, self.size, self.cookie)
        return request._replace(
            ret=self.ret, ret_origin=self.ret_origin, params=(first, *request.params[1:])
        )


@attrs.frozen
class ShmAlloc(RpcArgument):
    """SHM_ALLOC: shared memory, please."""

    COMMAND = rpc.OPTEE_RPC_CMD_SHM_ALLOC
    PARAMS = (Numbers(_VALUE_IN, "type", "size", "align"),)
    ANSWER = ShmAllocAnswer
    type: int
    """OPTEE_RPC_SHM_TYPE_*; Linux does not know GLOBAL."""
    size: int
    """Bytes."""
    align: int = 0
    """Bytes."""


@attrs.frozen
class ShmFree(RpcArgument):
    """SHM_FREE: what SHM_ALLOC brought is no longer needed."""

    COMMAND = rpc.OPTEE_RPC_CMD_SHM_FREE
    PARAMS = (Numbers(_VALUE_IN, "type", "cookie"),)
    type: int
    """OPTEE_RPC_SHM_TYPE_*."""
    cookie: int


@attrs.frozen
class SqlFsReserved(RpcArgument):
    """SQL_FS_RESERVED: a number that was used once; no layout is defined."""

    COMMAND = rpc.OPTEE_RPC_CMD_SQL_FS_RESERVED
    PARAMS = (Rest("params"),)
    ANSWER = ParamsAnswer
    params: tuple[Param, ...] = ()


@attrs.frozen
class FileIdAnswer(Answer):
    """Answer to GPROF and FTRACE."""

    OUT = (Out(0, "a", "file_id"),)
    file_id: int


@attrs.frozen
class Gprof(RpcArgument):
    """GPROF: append profiling data of a trusted application to a file."""

    COMMAND = rpc.OPTEE_RPC_CMD_GPROF
    PARAMS = (Numbers(_VALUE_INOUT, "file_id"), Memory("ta", IN), Memory("data", IN))
    ANSWER = FileIdAnswer
    file_id: int
    """0 for a new file."""
    ta: Param
    """Memory with the UUID of the trusted application."""
    data: Param


@attrs.frozen
class Socket(RpcArgument):
    """SOCKET: TCP and UDP for trusted applications."""

    COMMAND = rpc.OPTEE_RPC_CMD_SOCKET
    PARAMS = (Numbers(_VALUE_IN, "operation", "instance", "handle"), Rest("params"))
    ANSWER = ParamsAnswer
    operation: int
    """OPTEE_RPC_SOCKET_*."""
    instance: int
    """The trusted application's instance."""
    handle: int = 0
    params: tuple[Param, ...] = ()


@attrs.frozen
class Ftrace(RpcArgument):
    """FTRACE: append function traces of a trusted application to a file."""

    COMMAND = rpc.OPTEE_RPC_CMD_FTRACE
    PARAMS = (Numbers(_VALUE_INOUT, "file_id"), Memory("ta", IN), Memory("data", IN))
    ANSWER = FileIdAnswer
    file_id: int
    """0 for a new file."""
    ta: Param
    """Memory with the UUID of the trusted application."""
    data: Param


_UUID_WORDS = struct.Struct("<4I")


@attrs.frozen
class SuppPluginAnswer(Answer):
    """Answer to SUPP_PLUGIN."""

    OUT = (Out(2, "b", "length"),)
    length: int
    """Bytes that the plugin wrote."""


@attrs.frozen
class SuppPlugin(RpcArgument):
    """SUPP_PLUGIN: call a plugin of tee-supplicant.

    The UUID travels as four little-endian words in b and c of value 0 and a and b of value 1.
    """

    COMMAND = rpc.OPTEE_RPC_CMD_SUPP_PLUGIN
    PARAMS = (
        Numbers(_VALUE_IN, "operation", "word0", "word1"),
        Numbers(_VALUE_IN, "word2", "word3", "plugin_command"),
        Numbers(_VALUE_INOUT, "sub_command"),
        Memory("data", INOUT),
    )
    ANSWER = SuppPluginAnswer
    operation: int
    """OPTEE_RPC_SUPP_PLUGIN_INVOKE."""
    word0: int
    word1: int
    word2: int
    word3: int
    plugin_command: int
    sub_command: int
    data: Param

    @property
    def plugin(self) -> uuid.UUID:
        """Which plugin."""
        words = (self.word0, self.word1, self.word2, self.word3)
        return uuid.UUID(bytes=_UUID_WORDS.pack(*[word & MASK32 for word in words]))

    @classmethod
    def invoke(
        cls, plugin: uuid.UUID, plugin_command: int, sub_command: int, data: Param
    ) -> SuppPlugin:
        """Call ``plugin``."""
        word0, word1, word2, word3 = _UUID_WORDS.unpack(plugin.bytes)
        return cls(
            rpc.OPTEE_RPC_SUPP_PLUGIN_INVOKE,
            word0,
            word1,
            word2,
            word3,
            plugin_command,
            sub_command,
            data,
        )


@attrs.frozen
class BenchReg(RpcArgument):
    """BENCH_REG: tell the normal world where the benchmark's ring buffer is."""

    COMMAND = rpc.OPTEE_RPC_CMD_BENCH_REG
    PARAMS = (Numbers(_VALUE_IN, "sub_command", "address", "size"),)
    sub_command: int
    address: int
    """Physical address of the buffer."""
    size: int
    """Bytes."""


@attrs.frozen
class I2cTransferAnswer(Answer):
    """Answer to I2C_TRANSFER."""

    OUT = (Out(3, "a", "moved"),)
    moved: int
    """Bytes moved."""


@attrs.frozen
class I2cTransfer(RpcArgument):
    """I2C_TRANSFER on a bus that the normal world owns."""

    COMMAND = rpc.OPTEE_RPC_CMD_I2C_TRANSFER
    PARAMS = (
        Numbers(_VALUE_IN, "direction", "bus", "chip"),
        Numbers(_VALUE_IN, "flags"),
        Memory("data", INOUT),
        Numbers(_VALUE_OUT),
    )
    ANSWER = I2cTransferAnswer
    direction: int
    """OPTEE_RPC_I2C_TRANSFER_RD or OPTEE_RPC_I2C_TRANSFER_WR."""
    bus: int
    chip: int
    flags: int
    """OPTEE_RPC_I2C_FLAGS_*."""
    data: Param


@attrs.frozen
class RpmbProbeResetAnswer(Answer):
    """Answer to RPMB_PROBE_RESET."""

    OUT = (Out(0, "a", "shm_type"),)
    shm_type: int
    """OPTEE_RPC_SHM_TYPE_* to use for frames."""


@attrs.frozen
class RpmbProbeReset(RpcArgument):
    """RPMB_PROBE_RESET: start the search for an RPMB device over (OP-TEE 4.4 and later)."""

    COMMAND = rpc.OPTEE_RPC_CMD_RPMB_PROBE_RESET
    PARAMS = (Numbers(_VALUE_OUT),)
    ANSWER = RpmbProbeResetAnswer


@attrs.frozen
class RpmbProbeNextAnswer(Answer):
    """Answer to RPMB_PROBE_NEXT."""

    OUT = (
        Out(0, "a", "kind"),
        Out(0, "b", "size"),
        Out(0, "c", "reliable_writes"),
        Out(1, "b", "cid_size"),
    )
    kind: int
    """OPTEE_RPC_RPMB_EMMC."""
    size: int
    """The device's RPMB size field, in units of 128 KiB."""
    reliable_writes: int
    """Reliable write sector count."""
    cid_size: int
    """Bytes of the card identification."""


@attrs.frozen
class RpmbProbeNext(RpcArgument):
    """RPMB_PROBE_NEXT: the next RPMB device (OP-TEE 4.4 and later)."""

    COMMAND = rpc.OPTEE_RPC_CMD_RPMB_PROBE_NEXT
    PARAMS = (Numbers(_VALUE_OUT), Memory("cid", OUT))
    ANSWER = RpmbProbeNextAnswer
    cid: Param
    """Room for the card identification."""


@attrs.frozen
class RpmbFrames(RpcArgument):
    """RPMB_FRAMES: pass frames to the probed device, by the kernel (OP-TEE 4.4 and later)."""

    COMMAND = rpc.OPTEE_RPC_CMD_RPMB_FRAMES
    PARAMS = (Memory("request", IN), Memory("response", OUT))
    ANSWER = RpmbAnswer
    request: Param
    response: Param


@attrs.frozen
class UnknownRpcArgument(RpcArgument):
    """An RPC argument whose command is in no table; it survives a round trip."""

    original: Message

    @property
    def command(self) -> int:
        return self.original.cmd

    @classmethod
    def parse(cls, message: Message) -> Self:
        return cls(message)

    def message(self) -> Message:
        return self.original


RPC_COMMANDS: dict[int, type[RpcArgument]] = {
    command.COMMAND: command
    for command in (
        LoadTa,
        Rpmb,
        Fs,
        GetTime,
        Notification,
        Suspend,
        ShmAlloc,
        ShmFree,
        SqlFsReserved,
        Gprof,
        Socket,
        Ftrace,
        SuppPlugin,
        BenchReg,
        I2cTransfer,
        RpmbProbeReset,
        RpmbProbeNext,
        RpmbFrames,
    )
}


def parse_rpc_argument(message: Message) -> RpcArgument:
    """What an RPC argument asks for.

    Raises :class:`~smccc.errors.ParseError` if a known command has the wrong parameters.
    """
    return RPC_COMMANDS.get(message.cmd, UnknownRpcArgument).parse(message)
