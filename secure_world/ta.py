# SPDX-License-Identifier: BSD-2-Clause
"""The interface between the simulated OP-TEE core and its trusted applications.

A trusted application (TA) is a subclass of :class:`TrustedApplication`: flags as class variables
and five coroutines that return a ``TEE_Result`` (32 bit, names in ``smccc.constants.tee``). The
core hands each of them a :class:`TaEnvironment`, which is everything a TA can ask of OP-TEE, and
the parameters as :class:`Params`. A TA may also end with :class:`TeeError` (a result code), or
with :meth:`TaEnvironment.panic`, after which its instance is dead. Every other exception that
escapes a TA counts as a panic too, so nothing a client sends can break the core.

Parameter types are those of the GlobalPlatform Internal Core API (TEE_PARAM_TYPE_*), packed four
bits per parameter as ``TEE_PARAM_TYPES`` does.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, MutableMapping
from typing import ClassVar, Final, NamedTuple, NoReturn, Protocol
from uuid import UUID

TYPE_NONE: Final = 0
TYPE_VALUE_INPUT: Final = 1
TYPE_VALUE_OUTPUT: Final = 2
TYPE_VALUE_INOUT: Final = 3
TYPE_MEMREF_INPUT: Final = 5
TYPE_MEMREF_OUTPUT: Final = 6
TYPE_MEMREF_INOUT: Final = 7

SHM_APPLICATION: Final = 0
"""Kind of SHM_ALLOC memory: shared with the client and its supplicant (OPTEE_RPC_SHM_TYPE_APPL)."""
SHM_KERNEL: Final = 1
"""Kind of SHM_ALLOC memory: private to the normal-world kernel (OPTEE_RPC_SHM_TYPE_KERNEL)."""

NO_DEVICE: Final = -1
DEVICE_AT_PROBE: Final = 0
"""Listed by function 0 of the device enumeration: usable before tee-supplicant runs."""
DEVICE_WITH_SUPPLICANT: Final = 1
"""Listed by function 1 of the device enumeration: needs tee-supplicant."""


class TeeError(Exception):
    """A TEE_Result other than success, carried as an exception; ``code`` is the 32-bit result."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{code:#010x}")
        self.code = code


class TaPanic(Exception):
    """The TA gave up: its instance is dead, every later call answers TEE_ERROR_TARGET_DEAD."""

    def __init__(self, code: int) -> None:
        super().__init__(f"panic {code:#010x}")
        self.code = code


def param_types(p0: int = 0, p1: int = 0, p2: int = 0, p3: int = 0) -> int:
    """Pack four TEE_PARAM_TYPE_* values, four bits each, as ``TEE_PARAM_TYPES`` does."""
    return p0 | p1 << 4 | p2 << 8 | p3 << 12


class Value:
    """A value parameter: two 32-bit words. Assign ``a`` and ``b``; the core cuts them to 32 bits."""

    __slots__ = ("a", "b")

    def __init__(self, a: int = 0, b: int = 0) -> None:
        self.a = a
        self.b = b


class Memref(Protocol):
    """A memory reference parameter: memory of the normal world, or null.

    ``size`` is the size in bytes that the client gave and that it will see on return. ``write``
    and ``read`` never go beyond ``capacity``, the bytes that were really handed over; an access
    beyond raises :class:`TaPanic`, as the MMU would stop a real TA.
    """

    size: int

    @property
    def capacity(self) -> int:
        """Bytes that may be read or written (the size on entry; 0 for a null reference)."""

    @property
    def null(self) -> bool:
        """True for a null reference: nothing behind it, whatever its size."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fetched anew each time (the normal world may race)."""

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``."""

    def set_size(self, size: int) -> None:
        """Size in bytes that the client sees on return; may exceed the capacity (short buffer)."""


class Params(Protocol):
    """The four parameters of one open or invoke."""

    types: int
    """TEE_PARAM_TYPES word, four bits per parameter."""

    def value(self, index: int) -> Value:
        """Value parameter ``index`` (0..3); raises :class:`TaPanic` if it is none."""

    def memref(self, index: int) -> Memref:
        """Memory reference ``index`` (0..3); raises :class:`TaPanic` if it is none."""

    def type(self, index: int) -> int:
        """TEE_PARAM_TYPE_* of parameter ``index`` (0..3)."""


class ClientIdentity(NamedTuple):
    """Who opened the session: login method (TEE_LOGIN_*) and 16 octets of client UUID."""

    login: int
    uuid: bytes


class ReeTime(NamedTuple):
    """Wall-clock time of the normal world as GET_TIME answers it."""

    seconds: int
    nanoseconds: int


class ReeMemory(Protocol):
    """Memory obtained from the normal world by SHM_ALLOC; not trusted, may change at any time."""

    @property
    def size(self) -> int:
        """Usable bytes."""

    @property
    def cookie(self) -> int:
        """64-bit reference under which the normal world knows it."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; raises ValueError outside the buffer."""

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``; raises ValueError outside the buffer."""


class FileSystem(Protocol):
    """The normal world's file service (RPC command FS, served by tee-supplicant).

    Names are absolute ("/name"), at most 349 octets. Nothing that comes back is trusted. Every
    method raises :class:`TeeError` with the code of the answer (ITEM_NOT_FOUND 0xffff0008 for a
    missing file) or of a failed buffer allocation (OUT_OF_MEMORY 0xffff000c).
    """

    async def open(self, name: str) -> int:
        """Open an existing file and return its descriptor."""

    async def create(self, name: str) -> int:
        """Create (or empty) a file and return its descriptor."""

    async def close(self, fd: int) -> None:
        """Close a descriptor."""

    async def read(self, fd: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer at the end of the file."""

    async def write(self, fd: int, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset``."""

    async def truncate(self, fd: int, length: int) -> None:
        """Set the length of the file in bytes."""

    async def remove(self, name: str) -> None:
        """Delete a file."""

    async def rename(self, old: str, new: str, *, overwrite: bool = False) -> None:
        """Rename a file; an existing target is an error unless ``overwrite``."""

    async def opendir(self, name: str) -> int:
        """Open a directory and return its descriptor."""

    async def closedir(self, fd: int) -> None:
        """Close a directory descriptor."""

    async def readdir(self, fd: int) -> str:
        """The next entry's name; :class:`TeeError` ITEM_NOT_FOUND at the end."""


class Mutex(Protocol):
    """A sleeping lock. A waiter leaves through the RPC NOTIFICATION WAIT, see the core's wait queue."""

    async def lock(self) -> None:
        """Take the lock, waiting in the normal world while another thread holds it."""

    async def unlock(self) -> None:
        """Release it and wake the next waiter (RPC NOTIFICATION SEND, if there is one)."""


class Condition(Protocol):
    """A condition variable used with one :class:`Mutex`."""

    async def wait(self, mutex: Mutex) -> None:
        """Release ``mutex``, wait for a signal, take ``mutex`` again."""

    def signal(self) -> None:
        """Let one waiter go on once the mutex is released."""

    def broadcast(self) -> None:
        """Let all waiters go on, one after the other, once the mutex is released."""


class TaEnvironment(Protocol):
    """What OP-TEE offers to a TA during one call. Valid only inside that call.

    Attributes: ``client_id`` is the partition (VM id; 0 without virtualization), ``session_id``
    the session's number in it, ``identity`` who opened it, ``data`` a free slot of the session.
    ``protected`` is replay-protected secure state of this TA in this partition (as an RPMB
    counter would be): bytes under bytes, it survives sessions, not the partition.
    """

    client_id: int
    session_id: int
    identity: ClientIdentity
    data: object
    protected: MutableMapping[bytes, bytes]

    @property
    def fs(self) -> FileSystem:
        """File service of the normal world."""

    async def checkpoint(self, ns: int = 0) -> None:
        """Account ``ns`` of secure time, then let a pending foreign interrupt through."""

    async def get_ree_time(self) -> ReeTime:
        """Ask the normal world for its time (RPC GET_TIME)."""

    def system_time_ns(self) -> int:
        """Secure time in ns, without leaving the secure world."""

    async def sleep(self, milliseconds: int) -> int:
        """Sleep in the normal world (RPC SUSPEND, one request for the whole time).

        Returns TEE_SUCCESS, or TEE_ERROR_CANCEL if a cancellation is pending and not masked;
        a cancellation is only noticed once the normal world comes back.
        """

    def mutex(self, name: str, *, shared: bool = False) -> Mutex:
        """The named lock of this partition, or of the whole secure world if ``shared``."""

    def condition(self, name: str, *, shared: bool = False) -> Condition:
        """The named condition variable of this partition, or of the whole secure world."""

    async def shm_alloc(self, size: int, kind: int = SHM_APPLICATION) -> ReeMemory:
        """Memory from the normal world (RPC SHM_ALLOC); :class:`TeeError` OUT_OF_MEMORY if refused."""

    async def shm_free(self, memory: ReeMemory) -> None:
        """Give it back (RPC SHM_FREE). Memory that is not given back goes with the partition."""

    async def rpc(self, command: int, params: Iterable[tuple[int, int, int, int]]) -> RpcAnswer:
        """A raw RPC command: parameters (attr, a, b, c) out, the answer's result and parameters back."""

    def random(self, size: int) -> bytes:
        """``size`` bytes from the seeded generator."""

    def derived_key(self, label: bytes, size: int = 32) -> bytes:
        """At most 32 octets derived from the device key, this TA's UUID and ``label``."""

    def cancelled(self) -> bool:
        """True if the client asked to cancel and cancellation is not masked."""

    def mask_cancellation(self, masked: bool) -> bool:
        """Mask or unmask cancellation (masked at first, as GP has it); returns the previous state."""

    def devices(self, function: int) -> tuple[bytes, ...]:
        """UUID octets of the devices that this secure world lists (0 at probe, 1 with supplicant)."""

    def panic(self, code: int) -> NoReturn:
        """End this TA instance at once; the client sees TEE_ERROR_TARGET_DEAD."""


class RpcAnswer(NamedTuple):
    """Answer of a raw RPC command: result, origin and parameters, all from one read."""

    ret: int
    ret_origin: int
    params: tuple[tuple[int, int, int, int], ...]


class TrustedApplication:
    """Base class of a TA. Subclasses set ``uuid`` and override what they need.

    A user TA (``pseudo`` False) is loaded through the RPC LOAD_TA on the first session of an
    instance. ``single_instance``: all sessions share one object, otherwise each session has its
    own. ``multi_session``: more than one session on that object. ``keep_alive``: the object
    survives its last session. ``concurrent``: calls into one instance may overlap (pseudo-TAs
    only; otherwise OP-TEE lets one thread in at a time).
    """

    uuid: ClassVar[UUID]
    name: ClassVar[str] = ""
    pseudo: ClassVar[bool] = False
    single_instance: ClassVar[bool] = False
    multi_session: ClassVar[bool] = False
    keep_alive: ClassVar[bool] = False
    concurrent: ClassVar[bool] = False
    device: ClassVar[int] = NO_DEVICE

    async def create(self, env: TaEnvironment) -> int:
        """Instance created (TA_CreateEntryPoint); other than 0 fails the open session."""
        return 0

    async def destroy(self, env: TaEnvironment) -> None:
        """Instance about to go (TA_DestroyEntryPoint)."""

    async def open_session(self, env: TaEnvironment, params: Params) -> int:
        """A session is opened (TA_OpenSessionEntryPoint)."""
        return 0

    async def close_session(self, env: TaEnvironment) -> None:
        """A session is closed (TA_CloseSessionEntryPoint)."""

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """A command (TA_InvokeCommandEntryPoint). The base refuses all with NOT_SUPPORTED."""
        return 0xFFFF000A


IMAGE_MAGIC: Final = b"STA1"
_IMAGE_HEADER: Final = struct.Struct("<4s16sI")
IMAGE_DIGEST_SIZE: Final = 32
_IMAGE_KEY: Final = b"signing key of the simulated TA vendor"


class TaRegistry:
    """The TAs a secure world knows. User TAs also have an image, which the normal world stores.

    Image: magic (4), UUID octets (16), length of the body (u32 little endian), body (the name,
    padded), HMAC-SHA-256 over all before it (32). A changed image is refused on load.
    """

    def __init__(self, applications: Iterable[type[TrustedApplication]] = ()) -> None:
        self._by_uuid: dict[bytes, type[TrustedApplication]] = {}
        for application in applications:
            self.register(application)

    def register(self, application: type[TrustedApplication]) -> type[TrustedApplication]:
        """Add a TA class (usable as a decorator); raises ValueError if its UUID is taken."""
        key = application.uuid.bytes
        if key in self._by_uuid:
            raise ValueError(f"UUID {application.uuid} is already registered")
        self._by_uuid[key] = application
        return application

    def find(self, uuid: bytes) -> type[TrustedApplication] | None:
        """The class registered under these 16 UUID octets, or None."""
        return self._by_uuid.get(uuid)

    def applications(self) -> tuple[type[TrustedApplication], ...]:
        """All classes in the order of their registration."""
        return tuple(self._by_uuid.values())

    def devices(self, function: int) -> tuple[bytes, ...]:
        """UUID octets that function ``function`` of the device enumeration lists."""
        return tuple(key for key, app in self._by_uuid.items() if app.device == function)

    def image(self, uuid: UUID, *, size: int = 0) -> bytes:
        """The image of a user TA for the normal world's file system, padded to ``size`` bytes.

        Raises KeyError for an unknown UUID or a pseudo-TA (which needs no image).
        """
        application = self._by_uuid[uuid.bytes]
        if application.pseudo:
            raise KeyError(f"{uuid} is a pseudo-TA")
        body = application.name.encode()
        padding = size - _IMAGE_HEADER.size - len(body) - IMAGE_DIGEST_SIZE
        body += bytes(max(padding, 0))
        signed = _IMAGE_HEADER.pack(IMAGE_MAGIC, uuid.bytes, len(body)) + body
        return signed + hmac.digest(_IMAGE_KEY, signed, hashlib.sha256)

    def images(self) -> dict[UUID, bytes]:
        """Images of all user TAs by UUID: what a supplicant's TA directory holds."""
        return {a.uuid: self.image(a.uuid) for a in self._by_uuid.values() if not a.pseudo}

    @staticmethod
    def genuine(image: bytes, uuid: bytes) -> bool:
        """True if ``image`` is complete, unchanged and made for the UUID octets ``uuid``."""
        if len(image) < _IMAGE_HEADER.size + IMAGE_DIGEST_SIZE:
            return False
        magic, owner, length = _IMAGE_HEADER.unpack_from(image)
        end = _IMAGE_HEADER.size + length
        if magic != IMAGE_MAGIC or owner != uuid or len(image) != end + IMAGE_DIGEST_SIZE:
            return False
        digest = hmac.digest(_IMAGE_KEY, image[:end], hashlib.sha256)
        return hmac.compare_digest(digest, image[end:])
