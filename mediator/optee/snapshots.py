# SPDX-License-Identifier: BSD-2-Clause
"""Snapshots of a mediator between entries: plain data in, plain data out.

Only ints, bytes, bools, ``None``, lists and dicts with string keys, so that any serialiser will
do. Shadow pages are named by their physical addresses; the host hands out their memory again.
Buffers are named by their place in the guest's list, as a call may hold one that has no name any
more.
"""

from __future__ import annotations

from typing import Final, TypeVar, cast

from mediator.host import Shadow
from mediator.optee.core import Core
from mediator.optee.records import Buffer, Call, Guest, RpcBuffer
from mediator.optee.syscalls import Syscalls

FORMAT: Final = "optee-mediator-state"
VERSION: Final = 3

_BUFFER_FIELDS: Final = (
    "reference",
    "kind",
    "pages",
    "offset",
    "contiguous",
    "next_ipa",
    "read",
    "done",
    "given",
    "live",
    "doomed",
    "released",
    "users",
)
_RPC_BUFFER_FIELDS: Final = ("cookie", "ipa", "thread", "frames", "live", "released")
_CALL_FIELDS: Final = (
    "serial",
    "function",
    "way",
    "command",
    "page",
    "inside",
    "position",
    "size",
    "pending",
    "named",
    "target",
    "rpc_at",
    "rpc_room",
    "thread",
    "rpc_function",
    "rpc_a1",
    "rpc_a2",
    "refused",
    "empty",
    "request",
    "shm_type",
    "own_free",
    "own_thread",
    "leaving",
    "vcpu",
    "wait_key",
    "wait_since",
    "wait_deadline",
    "wait_tries",
    "held",
    "woken",
    "enables",
)
_GUEST_FIELDS: Final = (
    "id",
    "client",
    "call_limit",
    "rpc_params",
    "serial",
    "pages",
    "findings",
    "dying",
    "notified",
    "enables",
    "highest",
    "pending",
    "holds",
)

Plain = dict[str, object]
T = TypeVar("T")


def _fields(record: object, names: tuple[str, ...]) -> Plain:
    out: Plain = {}
    for name in names:
        value = getattr(record, name)
        out[name] = list(value) if isinstance(value, list) else value
    return out


def _pages(shadow: Shadow | None) -> bytes | None:
    return None if shadow is None else shadow.pages


def take(core: Core) -> Plain:
    """The state of ``core``. ``RuntimeError`` while an entry is in flight."""
    guests = []
    for guest in core.guests.values():
        if guest.entries:
            raise RuntimeError(f"guest {guest.id} has {guest.entries} entries in flight")
        guests.append(_guest(guest))
    return {
        "format": FORMAT,
        "version": VERSION,
        "threads": core.threads,
        "unasked": list(core.unasked),
        "stopped_rounds": core.stopped_rounds,
        "free_pages": [shadow.pages for shadow in core.free_pages],
        "guests": guests,
    }


def _guest(guest: Guest) -> Plain:
    lingering = [buffer for held in guest.lingering.values() for buffer in held]
    buffers = list(guest.buffers.values()) + lingering
    for call in guest.live_calls.values():
        for held in (call.carrier, call.walk, *call.buffers):
            if held is not None and not any(held is known for known in buffers):
                buffers.append(held)
    rpc_buffers = list(guest.rpc_buffers.values())
    for call in guest.live_calls.values():
        rpc = call.rpc_buffer
        if rpc is not None and not any(rpc is known for known in rpc_buffers):
            rpc_buffers.append(rpc)
    index = {id(buffer): place for place, buffer in enumerate(buffers)}
    rpc_index = {id(buffer): place for place, buffer in enumerate(rpc_buffers)}

    def name(buffer: Buffer | None) -> int | None:
        return None if buffer is None else index[id(buffer)]

    calls: list[Plain] = []
    for call in guest.live_calls.values():
        calls.append(
            {
                **_fields(call, _CALL_FIELDS),
                "outputs": [list(output) for output in call.outputs],
                "shadow": _pages(call.shadow),
                "alloc_list": _pages(call.alloc_list),
                "carrier": name(call.carrier),
                "walk": name(call.walk),
                "buffers": [index[id(buffer)] for buffer in call.buffers],
                "rpc_buffer": None if call.rpc_buffer is None else rpc_index[id(call.rpc_buffer)],
            }
        )
    return {
        **_fields(guest, _GUEST_FIELDS),
        "buffers": [
            {
                **_fields(buffer, _BUFFER_FIELDS),
                "frames": bytes(buffer.frames),
                "waiting": bytes(buffer.waiting),
                "list": _pages(buffer.list),
                "named": guest.buffers.get(buffer.reference) is buffer,
            }
            for buffer in buffers
        ],
        "rpc_buffers": [
            {
                **_fields(buffer, _RPC_BUFFER_FIELDS),
                "shadow": _pages(buffer.shadow),
                "named": guest.rpc_buffers.get(buffer.cookie) is buffer,
            }
            for buffer in rpc_buffers
        ],
        "lingering": [index[id(buffer)] for buffer in lingering],
        "calls": calls,
        "suspended": [[thread, call.serial] for thread, call in guest.suspended.items()],
    }


async def restore(core: Core, sys: Syscalls, data: Plain) -> None:
    """Replace the state of ``core``. ``ValueError`` unless ``data`` is a snapshot of this version."""
    if data.get("format") != FORMAT:
        raise ValueError(f"not a mediator snapshot: format is {data.get('format')!r}")
    if data.get("version") != VERSION:
        raise ValueError(f"snapshot version {data.get('version')!r} is not known, only {VERSION}")

    async def shadow(pages: object) -> Shadow | None:
        return None if pages is None else await sys.map_shadow(cast("bytes", pages))

    guests: dict[int, Guest] = {}
    for plain in cast("list[Plain]", data["guests"]):
        guest = Guest(*(cast("int", plain[name]) for name in _GUEST_FIELDS[:4]))
        _set(guest, plain, _GUEST_FIELDS)
        buffers: list[Buffer] = []
        for item in cast("list[Plain]", plain["buffers"]):
            buffer = Buffer(0, 0, 0, 0, contiguous=False)
            _set(buffer, item, _BUFFER_FIELDS)
            frames = cast("bytes", item["frames"])
            buffer.frames = frames if buffer.live else bytearray(frames)
            buffer.waiting = bytearray(cast("bytes", item["waiting"]))
            buffer.list = await shadow(item["list"])
            buffers.append(buffer)
            if item["named"]:
                guest.buffers[buffer.reference] = buffer
            elif buffer.doomed and buffer.users:
                guest.held += 1
        for place in cast("list[int]", plain["lingering"]):
            guest.lingering.setdefault(buffers[place].reference, []).append(buffers[place])
            guest.held += 1
        rpc_buffers: list[RpcBuffer] = []
        for item in cast("list[Plain]", plain["rpc_buffers"]):
            rpc_buffer = RpcBuffer(0, 0, 0)
            _set(rpc_buffer, item, _RPC_BUFFER_FIELDS)
            rpc_buffer.shadow = await shadow(item["shadow"])
            rpc_buffers.append(rpc_buffer)
            if item["named"]:
                guest.rpc_buffers[rpc_buffer.cookie] = rpc_buffer
        for item in cast("list[Plain]", plain["calls"]):
            call = Call(0, 0, 0)
            _set(call, item, _CALL_FIELDS)
            outputs = cast("list[list[int]]", item["outputs"])
            call.outputs = tuple([(start, end) for start, end in outputs])
            call.shadow = await shadow(item["shadow"])
            call.alloc_list = await shadow(item["alloc_list"])
            call.carrier = _at(buffers, item["carrier"])
            call.walk = _at(buffers, item["walk"])
            call.buffers = [buffers[place] for place in cast("list[int]", item["buffers"])]
            call.rpc_buffer = _at(rpc_buffers, item["rpc_buffer"])
            guest.live_calls[call.serial] = call
            if call.wait_key >= 0:
                guest.holding += call.held
                guest.waiters.setdefault(call.wait_key, {})[call.serial] = call
        for thread, serial in cast("list[list[int]]", plain["suspended"]):
            guest.suspended[thread] = guest.live_calls[serial]
        guests[guest.id] = guest
    free = [await sys.map_shadow(pages) for pages in cast("list[bytes]", data["free_pages"])]
    core.threads = cast("int | None", data["threads"])
    core.free_pages = free
    core.guests = guests
    core.unasked = dict.fromkeys(cast("list[int]", data["unasked"]))
    core.stopped_rounds = cast("int", data["stopped_rounds"])
    core.listening = {}
    for guest in guests.values():
        core.listens(guest)


def _at(items: list[T], place: object) -> T | None:
    return None if place is None else items[cast("int", place)]


def _set(record: object, plain: Plain, names: tuple[str, ...]) -> None:
    for name in names:
        value = plain[name]
        setattr(record, name, list(value) if isinstance(value, list) else value)
