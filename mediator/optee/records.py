# SPDX-License-Identifier: BSD-2-Clause
"""Everything that outlives an entry: plain records owned by a guest, never a suspended frame.

A guest owns its calls in flight, its shared buffers and its RPC message buffers; when the guest
goes, they go. The records hold plain integers and bytes, so that a snapshot is plain data.
"""

from __future__ import annotations

from typing import Final

from mediator.host import PAGE_MASK, PAGE_SHIFT, Shadow

REGISTERED: Final = 0
TEMPORARY: Final = 1
RPC_ALLOCATED: Final = 2
BUFFER_KINDS: Final = ("registered", "temporary", "rpc")

BY_ADDRESS: Final = 0
"""CALL_WITH_ARG and CALL_WITH_RPC_ARG: the message is reached through the current stage 2."""
BY_COOKIE: Final = 1
"""CALL_WITH_REGD_ARG: the message is reached through pages pinned at registration."""


class Buffer:
    """Guest pages shared with the TEE under a reference (one name space for all kinds).

    ``frames``: physical addresses, little-endian u64, in the order of the guest's list; complete
    once ``live``. ``pages`` is what was reserved against the limits. ``users``: calls in flight
    whose message lies in this buffer; while there are any, the pins stay (``doomed``). ``given``: the
    TEE may know it.
    ``next_ipa``, ``read`` and ``done`` (entries read, and those of them that are pinned) say where a
    walk of the guest's list goes on; ``waiting`` are the words of the entries between the two.
    """

    __slots__ = (
        "contiguous",
        "done",
        "doomed",
        "frames",
        "given",
        "kind",
        "list",
        "live",
        "next_ipa",
        "offset",
        "pages",
        "read",
        "reference",
        "released",
        "users",
        "waiting",
    )

    def __init__(
        self, reference: int, kind: int, address: int, pages: int, *, contiguous: bool
    ) -> None:
        self.reference = reference
        self.kind = kind
        self.pages = pages
        self.offset = address & PAGE_MASK
        self.contiguous = contiguous
        self.next_ipa = address & ~PAGE_MASK
        self.read = 0
        self.done = 0
        self.waiting = bytearray()
        self.frames: bytes | bytearray = b""
        self.list: Shadow | None = None
        self.given = False
        self.live = False
        self.doomed = False
        self.released = False
        self.users = 0

    def pa(self, position: int) -> int:
        """Physical address of byte ``position`` of the buffer (0 is its first byte)."""
        position += self.offset
        word = position >> PAGE_SHIFT << 3
        return int.from_bytes(self.frames[word : word + 8], "little") | (position & PAGE_MASK)

    @property
    def length(self) -> int:
        """Bytes from the first byte of the buffer to the end of its last page."""
        return (self.pages << PAGE_SHIFT) - self.offset


class RpcBuffer:
    """Guest page for RPC messages (RPC ALLOC), shadowed by a mediator page. Its own name space.

    ``users``: entries that have the mediator page in hand; the last one gives it back if the buffer
    was released meanwhile. ``thread``: the TEE's thread that asked for it, which keeps it.
    """

    __slots__ = ("cookie", "frames", "ipa", "live", "released", "shadow", "thread", "users")

    def __init__(self, cookie: int, ipa: int, thread: int) -> None:
        self.cookie = cookie
        self.ipa = ipa
        self.thread = thread
        self.frames = b""
        self.shadow: Shadow | None = None
        self.live = False
        self.released = False
        self.users = 0


class Call:
    """A yielding call in flight. What was asked is recorded here and decides everything later.

    ``serial`` unique per guest; ``way`` BY_ADDRESS or BY_COOKIE; ``page``: page of the message, its IPA
    or, by cookie, the physical address; then ``carrier`` and ``position`` name buffer and byte, and
    ``inside`` is the offset in the page; ``size``: bytes of the message;
    ``outputs``: (start, end) of every result; ``rpc_at``: offset of the RPC argument behind
    the message (0: classic call); ``rpc_room``: parameters that it has room for.
    """

    __slots__ = (
        "alloc_list",
        "buffers",
        "carrier",
        "command",
        "empty",
        "enables",
        "function",
        "held",
        "in_hand",
        "inside",
        "leaving",
        "named",
        "outputs",
        "own_free",
        "own_thread",
        "page",
        "pending",
        "position",
        "refused",
        "request",
        "rpc_a1",
        "rpc_a2",
        "rpc_at",
        "rpc_buffer",
        "rpc_function",
        "rpc_room",
        "serial",
        "shadow",
        "shm_type",
        "size",
        "target",
        "thread",
        "vcpu",
        "wait_deadline",
        "wait_key",
        "wait_since",
        "wait_tries",
        "walk",
        "way",
        "woken",
    )

    def __init__(self, serial: int, function: int, way: int) -> None:
        self.serial = serial
        self.function = function
        self.way = way
        self.command = -1
        self.shadow: Shadow | None = None
        self.page = 0
        self.inside = 0
        self.carrier: Buffer | None = None
        self.position = 0
        self.size = 0
        self.outputs: tuple[tuple[int, int], ...] = ()
        self.pending: list[int] = []
        self.buffers: list[Buffer] = []
        # References of registered memory that the message holds: the TEE may look them up and use
        # what it finds at any time of the call.
        self.named: list[int] = []
        # Reference that the call unregisters.
        self.target = -1
        self.rpc_at = 0
        self.rpc_room = 0
        # The RPC that the guest is asked to serve: only this record decides how its answer is read.
        self.thread = 0
        self.rpc_function = -1
        self.rpc_a1 = 0
        self.rpc_a2 = 0
        self.request = -1
        self.shm_type = 0
        self.rpc_buffer: RpcBuffer | None = None
        self.in_hand: RpcBuffer | None = None  # while an entry reads or writes its page
        # Cookie of an RPC ALLOC answer that was refused: the TEE gives it back by RPC FREE.
        self.refused: int | None = None
        # Reference of an SHM_ALLOC answer without memory: the TEE gives it back by SHM_FREE.
        self.empty: int | None = None
        # The mediator's own SHM_FREE request is out: whatever comes back, the allocation failed.
        self.own_free = False
        # Suspended by the mediator itself, before the TEE was entered.
        self.own_thread = False
        # The request is still being written: the guest may see it, but cannot answer it yet.
        self.leaving = False
        # SHM_ALLOC answer whose list is being walked, and the list the TEE was last given.
        self.walk: Buffer | None = None
        self.alloc_list: Shadow | None = None
        # Processor that carried the call when it last left the TEE.
        self.vcpu = -1
        # The thread waits: notification key, since when and until when (ns, 0: for ever), and whether
        # the mediator keeps the wait, how often it looked, and whether the thread may go on.
        self.wait_key = -1
        self.wait_since = 0
        self.wait_deadline = 0
        self.wait_tries = 0
        self.held = False
        self.woken = False
        # ENABLE_ASYNC_NOTIF answered when STOP_ASYNC_NOTIF began.
        self.enables = 0


class Guest:
    """All that the mediator knows about one guest."""

    __slots__ = (
        "buffers",
        "call_limit",
        "client",
        "dying",
        "enables",
        "entries",
        "findings",
        "held",
        "highest",
        "holding",
        "holds",
        "id",
        "lingering",
        "live_calls",
        "notified",
        "pages",
        "pending",
        "rpc_buffers",
        "rpc_params",
        "serial",
        "suspended",
        "waiters",
    )

    def __init__(self, guest: int, client: int, call_limit: int, rpc_params: int) -> None:
        self.id = guest
        self.client = client
        self.call_limit = call_limit
        self.rpc_params = rpc_params
        self.serial = 0
        self.entries = 0
        self.pages = 0
        self.findings = 0
        self.dying = False
        self.live_calls: dict[int, Call] = {}
        self.suspended: dict[int, Call] = {}
        self.buffers: dict[int, Buffer] = {}
        # By reference: released by those who took them, while a call in flight still named them.
        self.lingering: dict[int, list[Buffer]] = {}
        self.held = 0  # how many these are
        self.rpc_buffers: dict[int, RpcBuffer] = {}
        # Asynchronous notifications: enabled, how often, highest value, values not read yet (bits).
        self.notified = False
        self.enables = 0
        self.highest = 0
        self.pending = 0
        # Whether the mediator keeps the waits of this guest's threads, how many it keeps now, and
        # all waits by key and serial number of the call.
        self.holds = False
        self.holding = 0
        self.waiters: dict[int, dict[int, Call]] = {}

    def begin_wait(self, call: Call, key: int, now: int, deadline: int, *, held: bool) -> None:
        """The thread of ``call`` waits for ``key`` from ``now`` to ``deadline`` (ns, 0: for ever)."""
        call.wait_key, call.wait_since, call.wait_deadline = key, now, deadline
        call.wait_tries = 0
        call.held, call.woken = held, False
        self.holding += held
        self.waiters.setdefault(key, {})[call.serial] = call

    def end_wait(self, call: Call) -> None:
        """The thread of ``call`` waits no more."""
        waiters = self.waiters[call.wait_key]
        del waiters[call.serial]
        if not waiters:
            del self.waiters[call.wait_key]
        self.holding -= call.held
        call.wait_key = -1
        call.held = False

    def names(self, reference: int, but: Call | None = None) -> bool:
        """Whether the message of a call in flight, other than ``but``, names ``reference``."""
        calls = self.live_calls.values()
        return any(call is not but and reference in call.named for call in calls)
