# SPDX-License-Identifier: BSD-2-Clause
"""The message commands that the normal world sends to OP-TEE (``optee_msg.h``).

Where the header's text and what OP-TEE insists on differ, both are read and OP-TEE's is sent.
"""

from __future__ import annotations

import uuid
from typing import ClassVar, Self

import attrs

from smccc.calls.params import (
    OUT,
    Answer,
    Command,
    Identifier,
    Memory,
    NoAnswer,
    Numbers,
    Out,
    Place,
    Rest,
    read_params,
    write_params,
)
from smccc.constants import optee_msg as msg
from smccc.constants import tee
from smccc.errors import ParseError, Reason
from smccc.message import Message, Param

NIL_UUID = uuid.UUID(int=0)

VALUE_META = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT | msg.OPTEE_MSG_ATTR_META
"""0x101, the attribute of OPEN_SESSION's first two parameters, bit for bit."""

REGISTER = msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT | msg.OPTEE_MSG_ATTR_NONCONTIG
"""0x20a, the attribute of REGISTER_SHM's parameter that OP-TEE insists on."""

_REGISTER_ATTRIBUTES = (
    REGISTER,
    msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT | msg.OPTEE_MSG_ATTR_NONCONTIG,
    msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT,
)


@attrs.frozen
class MessageCommand(Command):
    """A command of the normal world."""

    ANSWER: ClassVar[type[Answer]] = Answer

    def parse_answer(self, message: Message) -> Answer:
        """Read the message when it comes back.

        Raises :class:`~smccc.errors.ParseError` if it lacks parameters that the answer needs.
        """
        return self.ANSWER.parse(message)


@attrs.frozen
class OpenSessionAnswer(Answer):
    """Answer to OPEN_SESSION."""

    HEADER = ("ret", "ret_origin", "session")
    REST = (2, "params")
    session: int
    """The new session; 0 on failure."""
    params: tuple[Param, ...] = ()
    """The client's parameters."""


@attrs.frozen
class OpenSession(MessageCommand):
    """OPEN_SESSION with a trusted application."""

    COMMAND = msg.OPTEE_MSG_CMD_OPEN_SESSION
    HEADER = ("cancel_id",)
    PARAMS = (
        Identifier((VALUE_META,), "ta"),
        Identifier((VALUE_META,), "client", c="login"),
        Rest("params"),
    )
    ANSWER = OpenSessionAnswer
    ta: uuid.UUID
    """The trusted application."""
    client: uuid.UUID = NIL_UUID
    """Who opens; ignored for the logins PUBLIC and REE_KERNEL."""
    login: int = tee.TEE_LOGIN_PUBLIC
    """OPTEE_MSG_LOGIN_* or TEE_LOGIN_REE_KERNEL."""
    params: tuple[Param, ...] = ()
    """Up to four parameters for the trusted application."""
    cancel_id: int = 0


@attrs.frozen
class InvokeCommandAnswer(Answer):
    """Answer to INVOKE_COMMAND."""

    REST = (0, "params")
    params: tuple[Param, ...] = ()


@attrs.frozen
class InvokeCommand(MessageCommand):
    """INVOKE_COMMAND in a session."""

    COMMAND = msg.OPTEE_MSG_CMD_INVOKE_COMMAND
    HEADER = ("session", "func", "cancel_id")
    PARAMS = (Rest("params"),)
    ANSWER = InvokeCommandAnswer
    session: int
    func: int
    """The trusted application's command."""
    params: tuple[Param, ...] = ()
    """Up to four parameters, none with META."""
    cancel_id: int = 0


@attrs.frozen
class CloseSession(MessageCommand):
    """CLOSE_SESSION; no parameters."""

    COMMAND = msg.OPTEE_MSG_CMD_CLOSE_SESSION
    HEADER = ("session",)
    session: int


@attrs.frozen
class Cancel(MessageCommand):
    """CANCEL what runs in a session; no parameters. OP-TEE goes by the session alone."""

    COMMAND = msg.OPTEE_MSG_CMD_CANCEL
    HEADER = ("session", "cancel_id")
    session: int
    cancel_id: int = 0


@attrs.frozen
class RegisterShm(MessageCommand):
    """REGISTER_SHM: share memory until it is unregistered. OP-TEE leaves ``ret_origin`` alone."""

    COMMAND = msg.OPTEE_MSG_CMD_REGISTER_SHM
    PARAMS = (Numbers(_REGISTER_ATTRIBUTES, "buf_ptr", "size", "cookie", attr="attr"),)
    buf_ptr: int
    """Address of the page list plus the buffer's offset in its first page."""
    size: int
    """Bytes."""
    cookie: int
    """The normal world's name for it."""
    attr: int = REGISTER


@attrs.frozen
class UnregisterShm(MessageCommand):
    """UNREGISTER_SHM. OP-TEE checks the number of parameters but not the attribute."""

    COMMAND = msg.OPTEE_MSG_CMD_UNREGISTER_SHM
    PARAMS = (Numbers((msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT,), "offs", "size", "cookie"),)
    cookie: int
    offs: int = 0
    size: int = 0


@attrs.frozen
class DoBottomHalf(MessageCommand):
    """DO_BOTTOM_HALF after a notification. OP-TEE leaves ``ret`` untouched."""

    COMMAND = msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF
    ANSWER = NoAnswer


@attrs.frozen
class StopAsyncNotif(MessageCommand):
    """STOP_ASYNC_NOTIF. OP-TEE leaves ``ret`` untouched."""

    COMMAND = msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF
    ANSWER = NoAnswer


@attrs.frozen
class LendProtmem(MessageCommand):
    """LEND_PROTMEM: hand memory to the secure world for a use case (OP-TEE 4.9 and later)."""

    COMMAND = msg.OPTEE_MSG_CMD_LEND_PROTMEM
    PARAMS = (
        Numbers((msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,), "use_case"),
        Numbers((msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT,), "address", "size", "cookie"),
    )
    use_case: int
    """OPTEE_MSG_PROTMEM_*."""
    address: int
    """Physical address of contiguous memory."""
    size: int
    """Bytes."""
    cookie: int


@attrs.frozen
class ReclaimProtmem(MessageCommand):
    """RECLAIM_PROTMEM: take lent memory back (OP-TEE 4.9 and later).

    OP-TEE insists on RMEM_INPUT with the cookie in ``shm_ref``; the header's text says VALUE_INPUT
    with the cookie in a.
    """

    COMMAND = msg.OPTEE_MSG_CMD_RECLAIM_PROTMEM
    PARAMS = (Numbers((msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT,), c="cookie"),)
    AS_VALUE: ClassVar[tuple[Place, ...]] = (
        Numbers((msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,), a="cookie"),
    )
    cookie: int
    as_value: bool = False
    """Whether the parameter is as the header's text says."""

    @classmethod
    def parse(cls, message: Message) -> Self:
        first = message.params[0].type if message.params else None
        if first != msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT:
            return super().parse(message)
        if message.cmd != cls.COMMAND:
            raise ParseError(0, "cmd", Reason.WRONG_COMMAND)
        read_params(cls.AS_VALUE, message.params)
        return cls(message.params[0].a, as_value=True)

    def message(self) -> Message:
        places = self.AS_VALUE if self.as_value else self.PARAMS
        return Message(self.COMMAND, params=write_params(places, self))


@attrs.frozen
class GetProtmemConfigAnswer(Answer):
    """Answer to GET_PROTMEM_CONFIG."""

    OUT = (
        Out(0, "a", "minimum_size"),
        Out(0, "b", "alignment"),
        Out(0, "c", "pa_width"),
        Out(1, "b", "needed"),
    )
    minimum_size: int
    """Bytes."""
    alignment: int
    """Bytes."""
    pa_width: int
    """Address width in bits."""
    needed: int
    """Bytes that the buffer of parameter 1 needs, or that were written."""


@attrs.frozen
class GetProtmemConfig(MessageCommand):
    """GET_PROTMEM_CONFIG of a use case (OP-TEE 4.9 and later)."""

    COMMAND = msg.OPTEE_MSG_CMD_GET_PROTMEM_CONFIG
    PARAMS = (
        Numbers((msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT,), "use_case"),
        Memory("endpoints", (OUT[0],)),
    )
    ANSWER = GetProtmemConfigAnswer
    use_case: int
    """OPTEE_MSG_PROTMEM_*."""
    endpoints: Param
    """RMEM_OUTPUT (FMEM_OUTPUT): room for a list of FF-A endpoints."""


@attrs.frozen
class AssignProtmem(MessageCommand):
    """ASSIGN_PROTMEM: give lent memory a use case (FF-A builds of OP-TEE 4.9 and later)."""

    COMMAND = msg.OPTEE_MSG_CMD_ASSIGN_PROTMEM
    PARAMS = (Numbers((msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,), "cookie", "use_case"),)
    cookie: int
    use_case: int
    """OPTEE_MSG_PROTMEM_*."""


@attrs.frozen
class UnknownCommand(MessageCommand):
    """A message whose command is in no table; it survives a round trip."""

    original: Message

    @property
    def command(self) -> int:
        return self.original.cmd

    @classmethod
    def parse(cls, message: Message) -> Self:
        return cls(message)

    def message(self) -> Message:
        return self.original


MESSAGE_COMMANDS: dict[int, type[MessageCommand]] = {
    command.COMMAND: command
    for command in (
        OpenSession,
        InvokeCommand,
        CloseSession,
        Cancel,
        RegisterShm,
        UnregisterShm,
        DoBottomHalf,
        StopAsyncNotif,
        LendProtmem,
        ReclaimProtmem,
        GetProtmemConfig,
        AssignProtmem,
    )
}


def parse_command(message: Message) -> MessageCommand:
    """What a message of the normal world asks for.

    Raises :class:`~smccc.errors.ParseError` if a known command has the wrong parameters.
    """
    return MESSAGE_COMMANDS.get(message.cmd, UnknownCommand).parse(message)
