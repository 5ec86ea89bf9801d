# SPDX-License-Identifier: BSD-2-Clause
"""tee-supplicant: the user process that serves the secure world's RPCs.

It holds TA images, a file store and plug-ins, and allocates memory that the secure world then uses
to talk to it. Layouts and results are those of OP-TEE client ``tee-supplicant/src`` and of recorded
traffic. RPMB, sockets, profiling and tracing are not offered (NOT_SUPPORTED).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from uuid import UUID

from mediator.guest.cpu import GuestAbort
from mediator.guest.driver import Driver
from mediator.guest.kernel import Thread
from mediator.guest.memory import PAGE_SIZE, Buffer, OutOfMemory, page_count
from mediator.guest.shm import SUPPLICANT
from mediator.guest.storage import FIRST_DESCRIPTOR, FileStore, OpenFiles
from mediator.guest.supplicant_queue import SupplicantParam, SupplicantRequest
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee

Plugin = Callable[[int, int, bytes], tuple[int, bytes]]
"""A plug-in: (command, sub-command, data in) to (TEE_Result, data out)."""

_VALUE_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
_VALUE_OUT: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT
_VALUE_INOUT: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT
_MEMREF_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT
_MEMREF_OUT: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT
_MEMREF_INOUT: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT
_TMEM_TO_RMEM: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT - msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT

_LAYOUTS: Final[dict[int, tuple[int, ...]]] = {
    rpc.OPTEE_RPC_FS_OPEN: (_VALUE_IN, _MEMREF_IN, _VALUE_OUT),
    rpc.OPTEE_RPC_FS_CREATE: (_VALUE_IN, _MEMREF_IN, _VALUE_OUT),
    rpc.OPTEE_RPC_FS_CLOSE: (_VALUE_IN,),
    rpc.OPTEE_RPC_FS_READ: (_VALUE_IN, _MEMREF_OUT),
    rpc.OPTEE_RPC_FS_WRITE: (_VALUE_IN, _MEMREF_IN),
    rpc.OPTEE_RPC_FS_TRUNCATE: (_VALUE_IN,),
    rpc.OPTEE_RPC_FS_REMOVE: (_VALUE_IN, _MEMREF_IN),
    rpc.OPTEE_RPC_FS_RENAME: (_VALUE_IN, _MEMREF_IN, _MEMREF_IN),
    rpc.OPTEE_RPC_FS_OPENDIR: (_VALUE_IN, _MEMREF_IN, _VALUE_OUT),
    rpc.OPTEE_RPC_FS_CLOSEDIR: (_VALUE_IN,),
    rpc.OPTEE_RPC_FS_READDIR: (_VALUE_IN, _MEMREF_OUT),
}
"""Parameter types of the FS operations (value[0].a names the operation)."""

Params = list[SupplicantParam]


def _kinds(params: Params) -> tuple[int, ...]:
    """Types of the parameters as the supplicant sees them: one kind of memory reference."""
    return tuple(
        [
            p.attr - _TMEM_TO_RMEM if p.attr >= msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT else p.attr
            for p in params
        ]
    )


class Supplicant:
    """One supplicant process: :meth:`start` it, :meth:`stop` it, any number of times.

    ``images``: TA images by UUID; ``store``: the disk, which survives the process; ``plugins`` by
    UUID. All three may be changed while it runs. ``served`` counts requests by RPC command.
    """

    def __init__(
        self,
        driver: Driver,
        images: Mapping[UUID, bytes] | None = None,
        store: FileStore | None = None,
        plugins: Mapping[UUID, Plugin] | None = None,
        threads: int = 2,
        descriptors: int = FIRST_DESCRIPTOR,
    ) -> None:
        """``descriptors``: the lowest file descriptor that the process has free at its start."""
        self.driver = driver
        self.images = dict(images or {})
        self.store = store or FileStore()
        self.plugins = dict(plugins or {})
        self.threads = threads
        self._descriptors = descriptors
        self.files = OpenFiles(self.store, self._descriptors)
        self.served: dict[int, int] = {}
        self._memory: dict[int, tuple[Buffer, int]] = {}
        self._serve: dict[int, Callable[[Params], Awaitable[int]]] = {
            rpc.OPTEE_RPC_CMD_LOAD_TA: self._load_ta,
            rpc.OPTEE_RPC_CMD_FS: self._fs,
            rpc.OPTEE_RPC_CMD_SHM_ALLOC: self._alloc,
            rpc.OPTEE_RPC_CMD_SHM_FREE: self._free,
            rpc.OPTEE_RPC_CMD_SUPP_PLUGIN: self._plugin,
        }

    @property
    def running(self) -> bool:
        """True between :meth:`start` and :meth:`stop`."""
        return self.driver.supplicant.attached

    async def start(self) -> None:
        """Open the device and begin to serve. Waits until the driver has looked for devices again."""
        queue = self.driver.supplicant
        queue.open()
        scan: Thread | None = self.driver.supplicant_opened()
        for index in range(self.threads):
            self.driver.kernel.spawn(self._work(), f"tee-supplicant/{index}", daemon=True)
        if scan is not None:
            await scan.join()

    def stop(self) -> None:
        """The process ends: its requests fail, its memory and descriptors are gone."""
        self.driver.supplicant.close()
        self.files = OpenFiles(self.store, self._descriptors)
        # The kernel keeps what the secure world still uses until it is freed.

    def forget(self) -> None:
        """The secure world is gone, and nobody will free what it used. For a process that stopped."""
        for cookie, (buffer, _) in self._memory.items():
            shm = self.driver.shms.find(cookie)
            if shm is not None:
                self.driver.shms.free(shm)
            self.driver.pages.free_user(buffer.pages)
        self._memory.clear()

    async def _work(self) -> None:
        queue = self.driver.supplicant
        while True:
            request = await queue.receive()
            if request is None:
                return
            queue.answer(request, await self._answer(request))

    async def _answer(self, request: SupplicantRequest) -> int:
        self.served[request.command] = self.served.get(request.command, 0) + 1
        serve = self._serve.get(request.command)
        if serve is None:
            return tee.TEE_ERROR_NOT_SUPPORTED
        try:
            return await serve(request.params)
        except GuestAbort:
            # Its memory went away under it; a real process would be killed.
            return tee.TEE_ERROR_GENERIC

    # Memory

    async def _alloc(self, params: Params) -> int:
        if _kinds(params) != (_VALUE_INOUT,):
            return tee.TEE_ERROR_BAD_PARAMETERS
        size = params[0].b
        driver = self.driver
        try:
            pages = driver.pages.alloc_user(page_count(0, size))
        except OutOfMemory:
            return tee.TEE_ERROR_OUT_OF_MEMORY
        buffer = Buffer(driver.kernel, pages, 0, size)
        shm = driver.shms.add(SUPPLICANT, pages, 0, size)
        self._memory[shm.cookie] = (buffer, self.files.reserve())
        params[0].c = shm.cookie
        return tee.TEE_SUCCESS

    async def _free(self, params: Params) -> int:
        if _kinds(params) != (_VALUE_INOUT,):
            return tee.TEE_ERROR_BAD_PARAMETERS
        shm = self.driver.shms.find(params[0].b)
        if shm is None or params[0].b not in self._memory:
            return tee.TEE_ERROR_BAD_PARAMETERS
        buffer, descriptor = self._memory.pop(params[0].b)
        self.files.unreserve(descriptor)
        self.driver.shms.free(shm)
        self.driver.pages.free_user(buffer.pages)
        return tee.TEE_SUCCESS

    def _view(self, param: SupplicantParam) -> Buffer | None:
        """The memory behind a reference, as the process has it mapped."""
        shm = param.shm
        if shm is None:
            return None
        start = shm.offset + param.a
        pages = shm.pages[start // PAGE_SIZE :]
        return Buffer(self.driver.kernel, pages, start % PAGE_SIZE, param.b)

    async def _name(self, param: SupplicantParam) -> str | None:
        """A C string; None without a terminator."""
        view = self._view(param)
        if view is None:
            return None
        octets, end, _ = (await view.read()).partition(b"\0")
        if not end:
            return None
        name = octets.decode("latin-1")
        return name if name.startswith("/") else "/" + name

    # Trusted applications

    async def _load_ta(self, params: Params) -> int:
        if _kinds(params) != (_VALUE_IN, _MEMREF_OUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        octets = params[0].a.to_bytes(8, "little") + params[0].b.to_bytes(8, "little")
        image = self.images.get(UUID(bytes=octets))
        if image is None:
            return tee.TEE_ERROR_ITEM_NOT_FOUND
        view = self._view(params[1])
        if view is not None and view.size >= len(image):
            await view.write(image)
        # A buffer that is missing or too small is no error: the size says what is needed.
        params[1].b = len(image)
        return tee.TEE_SUCCESS

    # Files

    async def _fs(self, params: Params) -> int:
        if not params or _kinds(params) != _LAYOUTS.get(params[0].a):
            return tee.TEE_ERROR_BAD_PARAMETERS
        files = self.files
        operation, descriptor, position = params[0].a, params[0].b, params[0].c
        match operation:
            case rpc.OPTEE_RPC_FS_CLOSE:
                return files.close(descriptor)
            case rpc.OPTEE_RPC_FS_READ:
                return await self._fs_read(params[1], descriptor, position)
            case rpc.OPTEE_RPC_FS_WRITE:
                view = self._view(params[1])
                content = b"" if view is None else await view.read()
                return files.write(descriptor, position, content)
            case rpc.OPTEE_RPC_FS_TRUNCATE:
                return files.truncate(descriptor, position)
            case rpc.OPTEE_RPC_FS_CLOSEDIR:
                return files.close_directory(descriptor)
            case rpc.OPTEE_RPC_FS_READDIR:
                return await self._fs_readdir(params[1], descriptor)
        return await self._fs_named(operation, params)

    async def _fs_read(self, param: SupplicantParam, descriptor: int, position: int) -> int:
        data = self.files.read(descriptor, position, param.b)
        if data is None:
            return tee.TEE_ERROR_GENERIC
        view = self._view(param)
        if view is not None:
            await view.write(data)
        param.b = len(data)
        return tee.TEE_SUCCESS

    async def _fs_readdir(self, param: SupplicantParam, handle: int) -> int:
        view = self._view(param)
        room = 0 if view is None else param.b
        result, name, needed = self.files.next_entry(handle, room)
        if view is not None and name:
            await view.write(name)
        param.b = needed
        return result

    async def _fs_named(self, operation: int, params: Params) -> int:
        """The operations that begin with a name."""
        name = await self._name(params[1])
        if name is None:
            return tee.TEE_ERROR_BAD_PARAMETERS
        files = self.files
        if operation == rpc.OPTEE_RPC_FS_REMOVE:
            return files.remove(name)
        if operation == rpc.OPTEE_RPC_FS_RENAME:
            new = await self._name(params[2])
            if new is None:
                return tee.TEE_ERROR_BAD_PARAMETERS
            return files.rename(name, new, bool(params[0].b))
        if operation == rpc.OPTEE_RPC_FS_OPEN:
            result, number = files.open(name)
        elif operation == rpc.OPTEE_RPC_FS_CREATE:
            result, number = files.create(name)
        else:
            result, number = files.open_directory(name)
        params[2].a = number
        return result

    # Plug-ins

    async def _plugin(self, params: Params) -> int:
        if _kinds(params) != (_VALUE_IN, _VALUE_IN, _VALUE_INOUT, _MEMREF_INOUT):
            return tee.TEE_ERROR_BAD_PARAMETERS
        words = (params[0].b, params[0].c, params[1].a, params[1].b)
        octets = b"".join([(word & 0xFFFF_FFFF).to_bytes(4, "little") for word in words])
        plugin = self.plugins.get(UUID(bytes=octets))
        if plugin is None:
            return tee.TEE_ERROR_ITEM_NOT_FOUND
        view = self._view(params[3])
        data = b"" if view is None else await view.read()
        result, out = plugin(params[1].c, params[2].a, data)
        params[2].b = len(out)
        if view is not None and len(out) <= view.size:
            await view.write(out)
        return result
