# SPDX-License-Identifier: BSD-2-Clause
"""Messages of a guest that fit its memory map, and messages that no driver sends.

A message comes with the stores that it needs (its page lists) as :class:`Prepared`; where the message
itself goes is the caller's choice: :meth:`Prepared.at`.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from attrs import evolve, field, frozen
from hypothesis import strategies as st

from fuzz.strategies.integers import buffer_sizes, edge_integers, page_offsets
from fuzz.strategies.page_lists import any_listed_buffers, listed_buffers
from fuzz.strategies.remember import remembered
from fuzz.view import GuestView, Shown, Writes, shown_bytes, shown_writes
from secure_world.apps.basic import Arithmetic, Clock, Locker, MemoryReferences, Panicker
from secure_world.apps.echo import Echo, EchoShared
from smccc.calls import messages as commands
from smccc.constants import optee_msg as msg
from smccc.constants import tee
from smccc.message import Message, Param, attribute
from smccc.registers import MASK32
from smccc.wire import MAX_PARAMS, NUM_PARAMS_OFFSET, message_size
from specs.target import PAGE_SIZE

APPLICATIONS: Final[tuple[uuid.UUID, ...]] = (
    Arithmetic.uuid,
    MemoryReferences.uuid,
    Echo.uuid,
    Locker.uuid,
    Clock.uuid,
    Panicker.uuid,
    EchoShared.uuid,
    uuid.UUID(int=0x77),
)
"""Built-in trusted applications of the simulated OP-TEE, and one that does not exist."""

VALUES: Final = (
    msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,
    msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT,
    msg.OPTEE_MSG_ATTR_TYPE_VALUE_INOUT,
)
RMEMS: Final = (
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT,
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_OUTPUT,
    msg.OPTEE_MSG_ATTR_TYPE_RMEM_INOUT,
)
TMEMS: Final = (
    msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT,
    msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT,
    msg.OPTEE_MSG_ATTR_TYPE_TMEM_INOUT,
)
HOLES: Final = (0x4, 0x8, 0xC, 0x7F, 0xFF)
"""Type bytes that no header defines."""

COOKIES: Final = (0x1000, 0x2000, 0x3000, 1, 0xFFFF_8000_0000_1000, 0, (1 << 64) - 1)
"""Names for buffers; few, so that calls meet each other's. The fifth looks like a kernel pointer."""

LOGINS: Final = (tee.TEE_LOGIN_PUBLIC, tee.TEE_LOGIN_USER, tee.TEE_LOGIN_REE_KERNEL, 0x77)
"""Login methods, the last of which does not exist."""

SESSIONS: Final = (1, 2, 3, 0, MASK32)

COUNTS: Final = (0, 1, 2, 4, 5, 6, 126, MAX_PARAMS, MAX_PARAMS + 1, MAX_PARAMS + 2, MASK32)
"""num_params worth claiming: bug class 16 begins at 128."""

MAX_CLAIMED: Final = 8
"""Parameters that a hostile message really has; its num_params may claim any number."""


@frozen
class Prepared(Shown):
    """A message as bytes, and the stores that must precede it. ``label`` names what it tries."""

    data: bytes = field(repr=shown_bytes)
    writes: Writes = field(default=(), repr=shown_writes)
    label: str = ""

    def at(self, ipa: int) -> Writes:
        """All stores, with the message at ``ipa`` last."""
        return (*self.writes, (ipa, self.data))


def _prepared(message: Message, writes: Writes = (), label: str = "") -> Prepared:
    return Prepared(message.build(), writes, label or f"cmd {message.cmd}")


# --- parameters -------------------------------------------------------------------------------


@remembered
def value_params() -> st.SearchStrategy[Param]:
    """Value parameters of each direction; small numbers first, as TAs count with them."""
    number = st.integers(0, 40) | edge_integers(64)
    return st.builds(Param, st.sampled_from(VALUES), number, number, number)


@remembered
def rmem_params(cookies: tuple[int, ...] = COOKIES) -> st.SearchStrategy[Param]:
    """References to registered memory: mostly within a page of the start."""
    small = st.integers(0, 2 * PAGE_SIZE)
    number = st.one_of(small, small, edge_integers(64))
    return st.builds(Param, st.sampled_from(RMEMS), number, number, st.sampled_from(cookies))


@remembered
def null_params() -> st.SearchStrategy[Param]:
    """Temporary references to nothing, of any size: size queries (bug class 11)."""
    size = st.one_of(st.just(0), st.just(100), buffer_sizes())
    return st.builds(Param, st.sampled_from(TMEMS), st.just(0), size, st.sampled_from(COOKIES))


@remembered
@st.composite
def contiguous_params(draw: st.DrawFn, view: GuestView) -> Param:
    """Contiguous temporary memory that begins in ``view.data``; two pages may not be adjacent."""
    page = draw(st.sampled_from(view.data))
    offset = draw(page_offsets())
    size = draw(st.integers(1, PAGE_SIZE) | st.integers(1, 4 * PAGE_SIZE))
    return Param(draw(st.sampled_from(TMEMS)), page | offset, size, draw(st.sampled_from(COOKIES)))


@remembered
@st.composite
def listed_params(
    draw: st.DrawFn, view: GuestView, cookies: tuple[int, ...] = COOKIES
) -> tuple[Param, Writes]:
    """Temporary memory by page list (NONCONTIG), and the stores of its list."""
    buffer = draw(listed_buffers(view))
    attr = attribute(draw(st.sampled_from(TMEMS)), noncontig=True)
    cookie = draw(st.sampled_from(cookies))
    return Param(attr, buffer.buf_ptr, buffer.size, cookie), buffer.writes


@remembered
@st.composite
def params(
    draw: st.DrawFn,
    view: GuestView,
    *,
    most: int = tee.TEE_NUM_PARAMS,
    cookies: tuple[int, ...] = COOKIES,
) -> tuple[tuple[Param, ...], Writes]:
    """Up to ``most`` correct parameters of every kind, and the stores that they need."""
    found: list[Param] = []
    writes: list[tuple[int, bytes]] = []
    kinds = st.sampled_from(("value", "none", "contiguous", "listed", "rmem", "null"))
    for kind in draw(st.lists(kinds, max_size=most)):
        match kind:
            case "value":
                found.append(draw(value_params()))
            case "none":
                found.append(Param())
            case "contiguous":
                found.append(draw(contiguous_params(view)))
            case "rmem":
                found.append(draw(rmem_params(cookies)))
            case "null":
                found.append(draw(null_params()))
            case _:
                param, stores = draw(listed_params(view, cookies))
                found.append(param)
                writes += stores
    return tuple(found), tuple(writes)


# --- correct messages ---------------------------------------------------------------------------


@remembered
@st.composite
def open_sessions(
    draw: st.DrawFn,
    view: GuestView,
    *,
    applications: tuple[uuid.UUID, ...] = APPLICATIONS,
    cookies: tuple[int, ...] = COOKIES,
) -> Prepared:
    """OPEN_SESSION with one of ``applications``, mostly without parameters of the client."""
    found, writes = draw(st.just(((), ())) | params(view, cookies=cookies))
    login = draw(st.sampled_from(LOGINS))
    ta = draw(st.sampled_from(applications))
    call = commands.OpenSession(ta, login=login, params=found)
    return _prepared(call.message(), writes, f"open {ta}")


@remembered
@st.composite
def invocations(
    draw: st.DrawFn,
    view: GuestView,
    *,
    sessions: tuple[int, ...] = SESSIONS,
    cookies: tuple[int, ...] = COOKIES,
) -> Prepared:
    """INVOKE_COMMAND in one of ``sessions`` with parameters of every kind."""
    found, writes = draw(params(view, cookies=cookies))
    session = draw(st.sampled_from(sessions))
    call = commands.InvokeCommand(session, draw(st.integers(0, 7)), found)
    return _prepared(call.message(), writes, f"invoke in {session}")


@remembered
@st.composite
def registrations(
    draw: st.DrawFn,
    view: GuestView,
    *,
    cookies: tuple[int, ...] = COOKIES,
    counts: st.SearchStrategy[int] | None = None,
) -> Prepared:
    """REGISTER_SHM of a correct list under one of ``cookies``."""
    buffer = draw(listed_buffers(view, counts=counts))
    cookie = draw(st.sampled_from(cookies))
    call = commands.RegisterShm(buffer.buf_ptr, buffer.size, cookie)
    return _prepared(call.message(), buffer.writes, f"register {cookie:#x}")


@remembered
def unregistrations(cookies: tuple[int, ...] = COOKIES) -> st.SearchStrategy[Prepared]:
    """UNREGISTER_SHM of one of ``cookies``, live or not."""
    return st.sampled_from(cookies).map(
        lambda cookie: _prepared(
            commands.UnregisterShm(cookie).message(), label=f"unregister {cookie:#x}"
        )
    )


@remembered
def session_messages(sessions: tuple[int, ...] = SESSIONS) -> st.SearchStrategy[Prepared]:
    """CLOSE_SESSION and CANCEL in one of ``sessions``."""
    number = st.sampled_from(sessions)
    return st.one_of(
        number.map(lambda s: _prepared(commands.CloseSession(s).message(), label=f"close {s}")),
        number.map(lambda s: _prepared(commands.Cancel(s).message(), label=f"cancel {s}")),
    )


@remembered
def notification_messages() -> st.SearchStrategy[Prepared]:
    """DO_BOTTOM_HALF and STOP_ASYNC_NOTIF."""
    return st.sampled_from(
        (
            _prepared(commands.DoBottomHalf().message(), label="bottom half"),
            _prepared(commands.StopAsyncNotif().message(), label="stop notifications"),
        )
    )


@remembered
def messages(
    view: GuestView,
    *,
    sessions: tuple[int, ...] = SESSIONS,
    cookies: tuple[int, ...] = COOKIES,
    applications: tuple[uuid.UUID, ...] = APPLICATIONS,
) -> st.SearchStrategy[Prepared]:
    """Correct messages of every command that a mediator forwards.

    ``sessions`` and ``cookies``: the numbers to use, some of which the caller may know to be live.
    """
    return st.one_of(
        open_sessions(view, applications=applications, cookies=cookies),
        invocations(view, sessions=sessions, cookies=cookies),
        registrations(view, cookies=cookies),
        unregistrations(cookies),
        session_messages(sessions),
        notification_messages(),
    )


# --- hostile messages ---------------------------------------------------------------------------


@remembered
def hostile_attributes() -> st.SearchStrategy[int]:
    """Attribute words: any type with META, NONCONTIG, cache and undefined bits, holes, anything."""
    types = st.sampled_from((0, *VALUES, *RMEMS, *TMEMS, *HOLES))
    bits = st.sampled_from(
        (
            0,
            msg.OPTEE_MSG_ATTR_NONCONTIG,
            msg.OPTEE_MSG_ATTR_META,
            msg.OPTEE_MSG_ATTR_META | msg.OPTEE_MSG_ATTR_NONCONTIG,
            msg.OPTEE_MSG_ATTR_CACHE_MASK << msg.OPTEE_MSG_ATTR_CACHE_SHIFT,
            1 << 10,
            1 << 63,
        )
    )
    return st.one_of(st.builds(int.__or__, types, bits), edge_integers(64))


@remembered
def addresses(view: GuestView) -> st.SearchStrategy[int]:
    """Addresses: in RAM, in pages of every other kind, where nothing is, and at the edges."""
    page = st.sampled_from(view.ram)
    if view.others:
        page |= st.sampled_from(view.others)
    page |= st.just(view.hole)
    inside = st.builds(int.__add__, page, page_offsets())
    return st.one_of(inside, inside, edge_integers(64))


@remembered
@st.composite
def hostile_params(
    draw: st.DrawFn, view: GuestView, cookies: tuple[int, ...] = COOKIES
) -> tuple[Param, Writes]:
    """Any attribute with any address, size and name; or a broken list."""
    cookie = draw(st.sampled_from(cookies) | edge_integers(64))
    if draw(st.booleans()):
        buffer = draw(any_listed_buffers(view))
        extra = draw(st.sampled_from((0, msg.OPTEE_MSG_ATTR_META, 1 << 40)))
        attr = attribute(draw(st.sampled_from(TMEMS)), noncontig=True) | extra
        return Param(attr, buffer.buf_ptr, buffer.size, cookie), buffer.writes
    attr = draw(hostile_attributes())
    return Param(attr, draw(addresses(view)), draw(buffer_sizes()), cookie), ()


@remembered
@st.composite
def hostile_messages(
    draw: st.DrawFn,
    view: GuestView,
    *,
    sessions: tuple[int, ...] = SESSIONS,
    cookies: tuple[int, ...] = COOKIES,
) -> Prepared:
    """Messages with false counts, odd attributes, addresses at the edges, unknown commands.

    ``num_params`` may claim more than the message has (what follows is whatever lies there), the
    header fields are any words.
    """
    command = draw(st.integers(0, 8) | edge_integers(32))
    found: list[Param] = []
    writes: list[tuple[int, bytes]] = []
    for _ in range(draw(st.integers(0, MAX_CLAIMED))):
        if draw(st.booleans()):
            param, stores = draw(hostile_params(view, cookies))
        else:
            (param, *_), stores = draw(params(view, most=1, cookies=cookies).filter(_not_empty))
        found.append(param)
        writes += stores
    message = Message(
        command,
        func=draw(st.integers(0, 8) | edge_integers(32)),
        session=draw(st.sampled_from(sessions) | edge_integers(32)),
        cancel_id=draw(edge_integers(32)),
        pad=draw(edge_integers(32)),
        ret=draw(edge_integers(32)),
        ret_origin=draw(edge_integers(32)),
        params=tuple(found),
    )
    prepared = _prepared(message, tuple(writes), f"hostile cmd {command:#x}")
    count = draw(st.just(len(found)) | st.sampled_from(COUNTS))
    return claim(prepared, count) if count != len(found) else prepared


def _not_empty(drawn: tuple[tuple[Param, ...], Writes]) -> bool:
    return bool(drawn[0])


def claim(prepared: Prepared, count: int) -> Prepared:
    """The same message with another ``num_params``, cut or filled up to it as far as a page goes."""
    data = bytearray(prepared.data)
    struct.pack_into("<I", data, NUM_PARAMS_OFFSET, count)
    return evolve(prepared, data=bytes(data), label=f"{prepared.label}, claims {count} parameters")


@remembered
def any_messages(
    view: GuestView,
    *,
    sessions: tuple[int, ...] = SESSIONS,
    cookies: tuple[int, ...] = COOKIES,
) -> st.SearchStrategy[Prepared]:
    """Correct and hostile messages."""
    return messages(view, sessions=sessions, cookies=cookies) | hostile_messages(
        view, sessions=sessions, cookies=cookies
    )


@remembered
def raw_messages(*, most: int = MAX_CLAIMED) -> st.SearchStrategy[bytes]:
    """Bytes for a message parser: correct, cut short anywhere, with a false count, or any bytes.

    Independent of a memory map; at most ``most`` real parameters.
    """
    word = edge_integers(32)
    number = edge_integers(64)
    attr = st.sampled_from((0, *VALUES, *RMEMS, *TMEMS)) | hostile_attributes()
    param = st.builds(Param, attr, number, number, number)
    typed = st.builds(Message, *[word] * 7, params=st.lists(param, max_size=most).map(tuple)).map(
        Message.build
    )
    counted = st.builds(
        lambda data, count: claim(Prepared(data), count).data, typed, st.sampled_from(COUNTS)
    )
    full = st.builds(
        lambda data, count: claim(Prepared(data), count).data.ljust(message_size(count), b"\x5a"),
        typed,
        st.sampled_from([count for count in COUNTS if count <= MAX_PARAMS + 1]),
    )
    whole = st.one_of(typed, counted, full)
    cut = whole.flatmap(lambda data: st.integers(0, len(data)).map(lambda end: data[:end]))
    return st.one_of(whole, whole, cut, st.binary(max_size=256))
