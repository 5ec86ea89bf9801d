# SPDX-License-Identifier: BSD-2-Clause
"""The client API of a simulated guest, after the GlobalPlatform TEE Client API.

::

    async def main(guest):
        client = guest.client()
        async with client.open_session(UUID_OF_TA) as session:
            counter = Value(1, 2)
            await session.invoke(ADD, counter)
            async with await client.allocate(65536) as memory:
                await memory.write(b"message")
                await session.invoke(DIGEST, Memref(memory, size=7, direction=INPUT))

Parameters are objects that the operation updates, as in C. A result other than success raises
:class:`TeeError`; the parameters are updated then too (a short buffer says how much it needs).
Behaves as libteec does towards the driver (OP-TEE client ``libteec/src/tee_client_api.c``).
"""

from __future__ import annotations

from collections.abc import Generator
from random import Random
from typing import Final
from uuid import UUID

from mediator.guest import events
from mediator.guest.driver import Driver
from mediator.guest.driver_settings import RegistrationError
from mediator.guest.events import ClientCall, Sink
from mediator.guest.memory import PAGE_SIZE, Buffer, OutOfMemory, page_count
from mediator.guest.shm import Shm
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.constants import tee
from smccc.wire import PARAMS, RET, RET_ORIGIN, SESSION

INPUT: Final = 1
OUTPUT: Final = 2
INOUT: Final = 3

MAX_PARAMS: Final = 4
"""Parameters of an operation (TEEC_CONFIG_PAYLOAD_REF_COUNT)."""

MALLOC_ALIGN: Final = 16
"""Alignment of memory from the C library; user buffers start anywhere in a page otherwise."""

_ZEROS: Final = bytes(PAGE_SIZE)
EMPTY_BUFFER_SIZE: Final = 8
"""libteec registers this many bytes for a temporary buffer of none."""

_RMEM: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT - INPUT
_TMEM: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT - INPUT
_VALUE_OUTPUT: Final = (msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT, 0, 0, 0)
_UNUSED: Final = tuple([(0, 0, 0, 0) * (MAX_PARAMS - used) for used in range(MAX_PARAMS + 1)])

_RESULT_NAMES: Final = {
    value: name
    for name, value in vars(tee).items()
    if name.startswith("TEE_ERROR_") and isinstance(value, int)
}


class TeeError(Exception):
    """A TEE operation ended with ``result`` (not 0), which came from ``origin`` (TEE_ORIGIN_*)."""

    def __init__(self, result: int, origin: int) -> None:
        super().__init__(f"{_RESULT_NAMES.get(result, f'{result:#010x}')}, origin {origin}")
        self.result = result
        self.origin = origin


class Value:
    """A value parameter. The TA sees the low 32 bits of ``a`` and ``b``."""

    __slots__ = ("a", "attr", "b", "c")

    def __init__(self, a: int = 0, b: int = 0, direction: int = INOUT, *, c: int = 0) -> None:
        self.a = a
        self.b = b
        self.c = c
        self.attr = direction
        """OPTEE_MSG_ATTR_TYPE_VALUE_*, which equals the direction."""

    def __repr__(self) -> str:
        return f"Value({self.a:#x}, {self.b:#x}, {self.attr})"


class SharedMemory:
    """Memory that is registered with the secure world until it is released."""

    __slots__ = ("_client", "_owned", "_shm", "buffer", "cookie", "size")

    def __init__(self, client: Client, shm: Shm, buffer: Buffer, owned: bool) -> None:
        self._client = client
        self._shm = shm
        self._owned = owned
        self.buffer = buffer
        self.size = shm.size
        self.cookie = shm.cookie

    async def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes (to the end if not given) from ``offset``."""
        return await self.buffer.read(offset, length)

    async def write(self, data: bytes, offset: int = 0) -> None:
        """Store ``data`` at ``offset``."""
        await self.buffer.write(data, offset)

    async def release(self) -> None:
        """Unregister; the buffer goes too if it was allocated for this. Once is enough."""
        if self not in self._client.memories:
            return
        self._client.memories.remove(self)
        await self._client._release(self._shm)
        if self._owned:
            self._client.free(self.buffer)

    async def __aenter__(self) -> SharedMemory:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            await self.release()


class Memref:
    """A memory reference parameter.

    ``memory``: :class:`SharedMemory` (registered; a part of it by ``offset`` and ``size``), a
    :class:`~mediator.guest.memory.Buffer` (temporary: registered for the one operation), or None
    for a null reference. ``size`` in bytes, the rest of the memory if not given, is updated to what
    the TA answered.
    """

    __slots__ = ("attr", "memory", "offset", "size")

    def __init__(
        self,
        memory: SharedMemory | Buffer | None,
        offset: int = 0,
        size: int | None = None,
        direction: int = INOUT,
    ) -> None:
        self.memory = memory
        self.offset = offset
        if size is None:
            size = memory.size - offset if memory is not None else 0
        self.size = size
        self.attr = _RMEM + direction
        """OPTEE_MSG_ATTR_TYPE_RMEM_*."""


Param = Value | Memref


class Session:
    """An open session with a TA."""

    __slots__ = ("_client", "_closed", "_driver", "_sink", "id", "uuid")

    def __init__(self, client: Client, uuid: UUID, number: int) -> None:
        self._closed = False
        self._client = client
        self._driver = client.driver
        self._sink = client.sink
        self.uuid = uuid
        self.id = number

    async def invoke(self, command: int, *params: Param, cancel_id: int = 0) -> None:
        """Invoke ``command`` with up to four parameters. Raises :class:`TeeError`.

        The driver knows which sessions a client has: for a closed one no call is made.
        """
        client = self._client
        if self._closed:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_COMMS)
        words, temporaries = client._marshal(params)
        if temporaries:
            registered = await client._register_temporaries(words, temporaries)
            reply = await self._driver.call(
                msg.OPTEE_MSG_CMD_INVOKE_COMMAND, command, self.id, cancel_id, MAX_PARAMS, words
            )
            await client._release_temporaries(registered)
        else:
            reply = await self._driver.call(
                msg.OPTEE_MSG_CMD_INVOKE_COMMAND, command, self.id, cancel_id, MAX_PARAMS, words
            )
        place = PARAMS
        for param in params:
            if param.attr & OUTPUT:
                if isinstance(param, Value):
                    param.a = reply[place + 1]
                    param.b = reply[place + 2]
                    param.c = reply[place + 3]
                else:
                    param.size = reply[place + 2]
            place += 4
        result = reply[RET]
        if self._sink is not None:
            client._report(events.INVOKE, str(self.uuid), command, result, reply[RET_ORIGIN])
        if result:
            raise TeeError(result, reply[RET_ORIGIN])

    async def cancel(self, cancel_id: int = 0) -> None:
        """Ask to cancel what this session is doing. The operation itself reports the outcome."""
        if self._closed:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_COMMS)
        reply = await self._driver.call(msg.OPTEE_MSG_CMD_CANCEL, 0, self.id, cancel_id, 0, ())
        self._client._end(events.CANCEL, str(self.uuid), 0, reply)

    async def close(self) -> None:
        """Close the session; nothing happens if it is closed already."""
        if self._closed:
            return
        self._closed = True
        self._client.sessions.remove(self)
        reply = await self._driver.close_session(self.id)
        self._client._report(events.CLOSE, str(self.uuid), 0, reply[RET], reply[RET_ORIGIN])


class _Opening:
    """A session to be: await it, or use it with ``async with``."""

    __slots__ = ("_cancel_id", "_client", "_identity", "_login", "_params", "_session", "_uuid")

    def __init__(
        self,
        client: Client,
        uuid: UUID,
        params: tuple[Param, ...],
        login: int,
        identity: UUID | None,
        cancel_id: int,
    ) -> None:
        self._client = client
        self._uuid = uuid
        self._params = params
        self._login = login
        self._identity = identity
        self._cancel_id = cancel_id
        self._session: Session | None = None

    def __await__(self) -> Generator[object, object, Session]:
        return self._open().__await__()

    async def _open(self) -> Session:
        client = self._client
        words, temporaries = client._marshal(self._params)
        registered = await client._register_temporaries(words, temporaries)
        reply = await client.driver.open_session(
            self._uuid,
            MAX_PARAMS,
            words,
            login=self._login,
            client=self._identity,
            cancel_id=self._cancel_id,
        )
        await client._release_temporaries(registered)
        client._unmarshal(self._params, reply, PARAMS + 8)
        client._end(events.OPEN, str(self._uuid), 0, reply)
        session = Session(client, self._uuid, reply[SESSION])
        client.sessions.append(session)
        return session

    async def __aenter__(self) -> Session:
        self._session = await self._open()
        return self._session

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A guest that is destroyed unwinds with GeneratorExit: nothing can be awaited then.
        session = self._session
        if session is not None and (kind is None or issubclass(kind, Exception)):
            await session.close()


class Client:
    """A client program's connection to the TEE (a TEEC_Context).

    ``sessions``: those that are open; ``memories``: shared memory not released. ``sink`` gets a :class:`~mediator.guest.events.ClientCall`
    for each operation.
    """

    def __init__(self, driver: Driver, rng: Random, name: str, sink: Sink | None = None) -> None:
        self.driver = driver
        self.sink = sink
        self.name = name
        self.sessions: list[Session] = []
        self.memories: list[SharedMemory] = []
        self._rng = rng

    # Memory

    def buffer(self, size: int, *, offset: int | None = None) -> Buffer:
        """Memory of this program: ``size`` bytes, ``offset`` (0..4095) bytes into a page.

        The pages are scattered; without ``offset`` the buffer starts where the C library might put
        it. Raises :class:`TeeError` OUT_OF_MEMORY.
        """
        if offset is None:
            offset = self._rng.randrange(PAGE_SIZE // MALLOC_ALIGN) * MALLOC_ALIGN
        driver = self.driver
        try:
            pages = driver.pages.alloc_user(page_count(offset, max(size, EMPTY_BUFFER_SIZE)))
        except OutOfMemory:
            raise TeeError(tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ORIGIN_API) from None
        return Buffer(driver.kernel, pages, offset, size)

    async def buffer_of(self, data: bytes, *, offset: int | None = None) -> Buffer:
        """Memory of this program that holds ``data``."""
        buffer = self.buffer(len(data), offset=offset)
        await buffer.write(data)
        return buffer

    def free(self, buffer: Buffer) -> None:
        """Give memory of this program back."""
        self.driver.pages.free_user(buffer.pages)

    async def allocate(self, size: int) -> SharedMemory:
        """Allocate shared memory of ``size`` zero bytes, page aligned. Raises :class:`TeeError`."""
        buffer = self.buffer(size, offset=0)
        driver = self.driver
        for page in driver.pages.used_before(buffer.pages):
            await driver.kernel.cpu.write(page, _ZEROS)
        try:
            return await self._share(buffer, owned=True)
        except TeeError:
            self.free(buffer)
            raise

    async def register(self, buffer: Buffer) -> SharedMemory:
        """Share a buffer of this program. Raises :class:`TeeError`."""
        return await self._share(buffer, owned=False)

    async def _share(self, buffer: Buffer, *, owned: bool) -> SharedMemory:
        shm = await self._register(buffer, buffer.size)
        memory = SharedMemory(self, shm, buffer, owned)
        self.memories.append(memory)
        return memory

    async def _register(self, buffer: Buffer, size: int) -> Shm:
        try:
            shm = await self.driver.register(buffer, size or EMPTY_BUFFER_SIZE)
        except RegistrationError:
            error = TeeError(tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_API)
        except OutOfMemory:
            error = TeeError(tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ORIGIN_API)
        else:
            self._report(events.REGISTER, f"{size} bytes", 0, 0, 0)
            return shm
        self._report(events.REGISTER, f"{size} bytes", 0, error.result, error.origin)
        raise error

    async def _release(self, shm: Shm) -> None:
        done = await self.driver.unregister(shm)
        result = tee.TEE_SUCCESS if done else tee.TEE_ERROR_BAD_PARAMETERS
        self._report(events.RELEASE, f"{shm.size} bytes", 0, result, 0)

    # Sessions

    def open_session(
        self,
        uuid: UUID,
        *params: Param,
        login: int = tee.TEE_LOGIN_PUBLIC,
        identity: UUID | None = None,
        cancel_id: int = 0,
    ) -> _Opening:
        """Open a session: ``await`` the result, or ``async with`` it to have it closed again.

        Raises :class:`TeeError` there.
        """
        return _Opening(self, uuid, params, login, identity, cancel_id)

    async def close(self) -> None:
        """Close all sessions (the end of the program)."""
        while self.sessions:
            await self.sessions[0].close()

    async def exit(self) -> None:
        """The process ends, however it does: the kernel releases what it left, the newest first.

        Memory goes before sessions, because each piece of it holds on to the connection
        (``drivers/tee/tee_shm.c``, ``tee_core.c``: ``teedev_ctx_get``).
        """
        while self.memories:
            await self.memories[-1].release()
        while self.sessions:
            await self.sessions[-1].close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            await self.close()

    # Parameters

    def _marshal(self, params: tuple[Param, ...]) -> tuple[list[int], list[tuple[int, Memref]]]:
        """The words of four parameters, and the temporary references with the place of their cookie."""
        words: list[int] = []
        temporaries: list[tuple[int, Memref]] = []
        for param in params:
            attr = param.attr
            if isinstance(param, Value):
                if attr == OUTPUT:
                    words += _VALUE_OUTPUT
                else:
                    words += (attr, param.a, param.b, param.c)
            else:
                memory = param.memory
                if isinstance(memory, SharedMemory):
                    words += (attr, param.offset, param.size, memory.cookie)
                elif memory is not None or not self._null_allowed:
                    temporaries.append((len(words) + 3, param))
                    words += (attr, 0, param.size, 0)
                else:
                    words += (attr - _RMEM + _TMEM, 0, param.size, 0)
        if len(params) > MAX_PARAMS:
            raise TeeError(tee.TEE_ERROR_BAD_PARAMETERS, tee.TEE_ORIGIN_API)
        words += _UNUSED[len(params)]
        return words, temporaries

    @property
    def _null_allowed(self) -> bool:
        return bool(self.driver.capabilities & smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL)

    @staticmethod
    def _unmarshal(params: tuple[Param, ...], reply: tuple[int, ...], place: int) -> None:
        for param in params:
            if param.attr & OUTPUT:
                if isinstance(param, Value):
                    param.a, param.b, param.c = reply[place + 1 : place + 4]
                else:
                    param.size = reply[place + 2]
            place += 4

    async def _register_temporaries(
        self, words: list[int], temporaries: list[tuple[int, Memref]]
    ) -> list[tuple[Shm, Buffer | None]]:
        """Register temporary buffers and put their cookies into ``words``. All or nothing."""
        registered: list[tuple[Shm, Buffer | None]] = []
        for place, param in temporaries:
            memory = param.memory
            own: Buffer | None = None
            if not isinstance(memory, Buffer):
                # No null references in this secure world: libteec takes some memory instead.
                memory = own = self.buffer(EMPTY_BUFFER_SIZE)
            elif param.offset:
                start = memory.offset + param.offset
                pages = memory.pages[start // PAGE_SIZE :]
                memory = Buffer(self.driver.kernel, pages, start % PAGE_SIZE, param.size)
            try:
                shm = await self._register(memory, param.size)
            except TeeError:
                if own is not None:
                    self.free(own)
                await self._release_temporaries(registered)
                raise
            registered.append((shm, own))
            words[place] = shm.cookie
        return registered

    async def _release_temporaries(self, registered: list[tuple[Shm, Buffer | None]]) -> None:
        for shm, own in registered:
            await self._release(shm)
            if own is not None:
                self.free(own)

    # Results

    def _end(self, operation: str, target: str, number: int, reply: tuple[int, ...]) -> None:
        self._report(operation, target, number, reply[RET], reply[RET_ORIGIN])
        if reply[RET]:
            raise TeeError(reply[RET], reply[RET_ORIGIN])

    def _report(self, operation: str, target: str, number: int, result: int, origin: int) -> None:
        if self.sink is not None:
            thread = self.driver.kernel.current.name
            self.sink(ClientCall(self.name, thread, operation, target, number, result, origin))
