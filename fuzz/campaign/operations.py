# SPDX-License-Identifier: BSD-2-Clause
"""What a cell's vCPU can do next: correct calls, wrong ones, and rude ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from uuid import UUID

from fuzz.campaign.application import REQUESTS, Requester
from fuzz.campaign.cell import (
    CALL_WITH_ARG,
    CALL_WITH_REGD_ARG,
    CALL_WITH_RPC_ARG,
    M32,
    M64,
    NONCONTIG_OUTPUT,
    RETURN_FROM_RPC,
    Hand,
    Operation,
    Param,
)
from mediator.guest.memory import PAGE_SIZE
from secure_world.apps import basic, echo
from smccc.constants import arm_smccc, psci, tee
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.page_list import ENTRIES
from smccc.wire import RET, SESSION

_VALUE_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT
_VALUE_OUT: Final = msg.OPTEE_MSG_ATTR_TYPE_VALUE_OUTPUT
_TMEM_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_TMEM_INPUT
_RMEM_IN: Final = msg.OPTEE_MSG_ATTR_TYPE_RMEM_INPUT
_META: Final = msg.OPTEE_MSG_ATTR_META | _VALUE_IN
_NONE: Final[Param] = (0, 0, 0, 0)
_OUTSIDE: Final = 0x8_0000_0000

FAST: Final = (
    smc.OPTEE_SMC_CALLS_COUNT,
    smc.OPTEE_SMC_CALLS_UID,
    smc.OPTEE_SMC_CALLS_REVISION,
    smc.OPTEE_SMC_CALL_GET_OS_UUID,
    smc.OPTEE_SMC_CALL_GET_OS_REVISION,
    smc.OPTEE_SMC_GET_SHM_CONFIG,
    smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
    smc.OPTEE_SMC_DISABLE_SHM_CACHE,
    smc.OPTEE_SMC_ENABLE_SHM_CACHE,
    smc.OPTEE_SMC_GET_THREAD_COUNT,
    smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
    smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE,
)
"""Functions that a guest is offered."""

HIDDEN: Final = (
    smc.OPTEE_SMC_L2CC_MUTEX,
    smc.OPTEE_SMC_BOOT_SECONDARY,
    smc.OPTEE_SMC_VM_CREATED,
    smc.OPTEE_SMC_VM_DESTROYED,
    smc.OPTEE_SMC_GET_PROTMEM_CONFIG,
)
"""Functions that exist and are not for guests."""

_OTHER: Final = (
    arm_smccc.ARM_SMCCC_VERSION_FUNC_ID,
    psci.PSCI_VERSION,
    0x8600_FF01,
    0xB200_7777,
    0x3200_7777,
    0xB000_0000,
    0x3000_0004,
    0x7200_0004,
    0xF200_0009,
)
"""Other owners, unknown numbers, trusted applications, 64-bit ids."""

_APPLICATIONS: Final = (
    Requester.uuid,
    Requester.uuid,
    basic.Locker.uuid,
    basic.Locker.uuid,
    basic.Clock.uuid,
    basic.Arithmetic.uuid,
    basic.MemoryReferences.uuid,
    echo.Echo.uuid,
    basic.Panicker.uuid,
)
MAX_SESSIONS: Final = 12


# --- fast calls ------------------------------------------------------------------------------------


async def fast(hand: Hand) -> None:
    """A function that is offered."""
    rng = hand.rng
    function = rng.choice((*FAST, smc.OPTEE_SMC_EXCHANGE_CAPABILITIES))
    await hand.fast(function, rng.choice((0, 0, 1, 2, M64)))


async def hidden(hand: Hand) -> None:
    """A function that is not for guests; VM_DESTROYED of the neighbours among them."""
    await hand.fast(hand.rng.choice(HIDDEN), hand.rng.randrange(6))


async def other(hand: Hand) -> None:
    """Functions of other owners, unknown ones, wrong conduits and immediates."""
    rng, cpu = hand.rng, hand.cpu
    immediate = rng.choice((0, 0, 0, 1, 0xFFFF))
    conduit = rng.choice((cpu.smc, cpu.hvc))
    await conduit(rng.choice(_OTHER + FAST), rng.getrandbits(64), immediate=immediate)


async def drain(hand: Hand) -> None:
    """Take cached RPC arguments back until there is none."""
    for _ in range(8):
        status, a1, a2, *_ = await hand.fast(smc.OPTEE_SMC_DISABLE_SHM_CACHE)
        if status & M32:
            break
        hand.cell.arguments.pop((a1 & M32) << 32 | a2 & M32, None)
    if hand.random() < 0.7:
        await hand.fast(smc.OPTEE_SMC_ENABLE_SHM_CACHE)


async def listen(hand: Hand) -> None:
    """Enable notifications, and read what there is."""
    await hand.fast(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF)
    hand.cell.enabled = True
    await hand.values()


async def values(hand: Hand) -> None:
    """Read notification values without having been asked to."""
    await hand.values()


async def bottom_half(hand: Hand) -> None:
    """DO_BOTTOM_HALF."""
    await hand.send(msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF)


async def deaf(hand: Hand) -> None:
    """STOP_ASYNC_NOTIF."""
    hand.cell.enabled = False
    await hand.send(msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF)


# --- sessions --------------------------------------------------------------------------------------


async def _open(hand: Hand, uuid: UUID) -> int:
    low, high = struct.unpack("<2Q", uuid.bytes)
    back = await hand.send(
        msg.OPTEE_MSG_CMD_OPEN_SESSION,
        ((_META, low, high, 0), (_META, 0, 0, tee.TEE_LOGIN_PUBLIC)),
        cancel_id=hand.rng.randrange(3),
    )
    if back and not back[RET] and back[SESSION]:
        hand.cell.sessions.append((back[SESSION], uuid))
        return back[SESSION]
    return 0


async def open_session(hand: Hand) -> None:
    """Open a session; with too many, close one."""
    if len(hand.cell.sessions) >= MAX_SESSIONS:
        await close_session(hand)
    await _open(hand, hand.rng.choice(_APPLICATIONS))


async def close_session(hand: Hand) -> None:
    """Close a session."""
    sessions = hand.cell.sessions
    if sessions:
        session, _ = sessions.pop(hand.rng.randrange(len(sessions)))
        await hand.send(msg.OPTEE_MSG_CMD_CLOSE_SESSION, session=session)


async def _session(hand: Hand, uuid: UUID) -> int:
    """A session with this application."""
    for session, application in hand.cell.sessions:
        if application == uuid:
            return session
    return await _open(hand, uuid)


async def _invoke(hand: Hand, session: int, function: int, *params: Param) -> None:
    padded = (*params, *(_NONE,) * (4 - len(params)))
    await hand.send(
        msg.OPTEE_MSG_CMD_INVOKE_COMMAND,
        padded,
        function=function,
        session=session,
        cancel_id=hand.rng.randrange(3),
    )


async def compute(hand: Hand) -> None:
    """Values in and out."""
    session = await _session(hand, basic.Arithmetic.uuid)
    a, b = hand.rng.getrandbits(32), hand.rng.getrandbits(32)
    await _invoke(hand, session, hand.rng.randrange(5), (_VALUE_IN, a, b, 0), (_VALUE_OUT, 0, 0, 0))


async def request(hand: Hand) -> None:
    """Any RPC command."""
    session = await _session(hand, Requester.uuid)
    rng = hand.rng
    a, b = rng.choice(REQUESTS), rng.randrange(22)
    await _invoke(hand, session, Requester.REQUEST, (_VALUE_IN, a, b, 0))


async def allocate(hand: Hand) -> None:
    """Memory for the TEE: taken, kept, given back."""
    session = await _session(hand, Requester.uuid)
    rng = hand.rng
    command = rng.choice(
        (Requester.ALLOCATE, Requester.ALLOCATE, Requester.RELEASE, Requester.CHURN)
    )
    a = rng.choice((1, 3, 4096, 9000, 40_000, 200_000))
    await _invoke(hand, session, command, (_VALUE_IN, a, rng.randrange(3), 0))


async def lock(hand: Hand) -> None:
    """A lock, of the guest or of all guests."""
    session = await _session(hand, basic.Locker.uuid)
    rng, locker = hand.rng, basic.Locker
    command = rng.choice(
        (locker.HOLD, locker.HOLD_SHARED, locker.HOLD_ASLEEP, locker.HOLD_SHARED_ASLEEP)
    )
    await _invoke(hand, session, command, (_VALUE_IN, rng.randrange(4), rng.randrange(3), 0))


async def work(hand: Hand) -> None:
    """Time in the TEE: work, sleep, clocks."""
    session = await _session(hand, basic.Clock.uuid)
    rng = hand.rng
    command = rng.randrange(5)
    steps = rng.choice((1, 3, 40))
    param = (_VALUE_IN, steps, 200_000, 0) if command < 2 else (_VALUE_OUT, 0, 0, 0)
    await _invoke(hand, session, command, param)


async def user_application(hand: Hand) -> None:
    """An application that is loaded, and may panic."""
    session = await _session(hand, hand.rng.choice((echo.Echo.uuid, basic.Panicker.uuid)))
    await _invoke(hand, session, hand.rng.randrange(8), (_VALUE_IN, hand.rng.getrandbits(8), 0, 0))


async def cancel(hand: Hand) -> None:
    """Cancel what may be going on."""
    sessions = hand.cell.sessions
    session = hand.rng.choice(sessions)[0] if sessions else 1
    await hand.send(msg.OPTEE_MSG_CMD_CANCEL, session=session, cancel_id=hand.rng.randrange(3))


# --- memory ----------------------------------------------------------------------------------------


async def register(hand: Hand) -> None:
    """Register memory of any shape; sometimes a name that is taken."""
    cell, rng = hand.cell, hand.rng
    pages = hand.some_pages(rng.choice((1, 1, 2, 3, 7, 23)))
    cookie = cell.next_cookie()
    if cell.registered and rng.random() < 0.15:
        cookie = rng.choice(tuple(cell.registered))
    offset = rng.choice((0, 0, 8, 0x123))
    at = await hand.store_list(pages)
    back = await hand.send(
        msg.OPTEE_MSG_CMD_REGISTER_SHM,
        ((NONCONTIG_OUTPUT, at | offset, len(pages) * PAGE_SIZE - offset, cookie),),
    )
    if back and not back[RET]:
        cell.registered[cookie] = pages


async def carrier(hand: Hand) -> None:
    """Register two pages for messages."""
    cell = hand.cell
    first, second = hand.page(), hand.page()
    cookie = cell.next_cookie()
    at = await hand.store_list((first, second))
    back = await hand.send(
        msg.OPTEE_MSG_CMD_REGISTER_SHM,
        ((NONCONTIG_OUTPUT, at, 2 * PAGE_SIZE, cookie),),
        style=CALL_WITH_RPC_ARG,
    )
    if back and not back[RET]:
        cell.registered[cookie] = (first, second)
        cell.carriers[cookie] = (first, second)


async def unregister(hand: Hand) -> None:
    """Unregister a name: known, forgotten, or invented."""
    cell, rng = hand.cell, hand.rng
    cookie = rng.choice((*cell.registered, 0, *cell.allocated, rng.getrandbits(64)))
    cell.registered.pop(cookie, None)
    cell.carriers.pop(cookie, None)
    await hand.send(msg.OPTEE_MSG_CMD_UNREGISTER_SHM, ((_RMEM_IN, 0, 0, cookie),))


async def large(hand: Hand) -> None:
    """A registration that is long enough to be stopped on the way, and its end."""
    cell, rng = hand.cell, hand.rng
    pages = hand.some_pages(rng.choice((ENTRIES, ENTRIES + 1, 2 * ENTRIES, 1030, 1600)))
    cookie = cell.next_cookie()
    at = await hand.store_list(pages)
    back = await hand.send(
        msg.OPTEE_MSG_CMD_REGISTER_SHM, ((NONCONTIG_OUTPUT, at, len(pages) * PAGE_SIZE, cookie),)
    )
    if back and not back[RET] and rng.random() < 0.8:
        await hand.send(msg.OPTEE_MSG_CMD_UNREGISTER_SHM, ((_RMEM_IN, 0, 0, cookie),))


async def bad_list(hand: Hand) -> None:
    """Lists that loop, lead away, or name what is not the guest's."""
    rng = hand.rng
    count = rng.choice((1, 3, ENTRIES + 3, 1025))
    pages = hand.some_pages(count)
    link = None
    what = rng.randrange(4)
    if what == 0:
        wrong = (0, _OUTSIDE, M64 & ~0xFFF, pages[0] | 1, hand.foreign, hand.foreign)
        pages[rng.randrange(count)] = rng.choice(wrong)
    elif what == 1:
        link = rng.choice((hand.lists, 0, _OUTSIDE, M64, hand.foreign))
    at = await hand.store_list(pages, link)
    if what == 2:
        at = hand.foreign
    size = rng.choice((count * PAGE_SIZE, 0, 1, 1 << 31, M64, count * PAGE_SIZE * 2))
    attr = rng.choice((NONCONTIG_OUTPUT, msg.OPTEE_MSG_ATTR_TYPE_TMEM_OUTPUT, 0xC, _RMEM_IN))
    cookie = hand.cell.next_cookie()
    await hand.send(msg.OPTEE_MSG_CMD_REGISTER_SHM, ((attr, at, size, cookie),))


async def temporary(hand: Hand) -> None:
    """Memory for one call: lists, contiguous, null, good and bad together."""
    session = await _session(hand, basic.MemoryReferences.uuid)
    rng = hand.rng
    params: list[Param] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        what = rng.randrange(5)
        kind = rng.choice((_TMEM_IN, _TMEM_IN + 1, _TMEM_IN + 2))
        if what == 0:
            params.append((kind, 0, rng.choice((0, 64)), 0))
        elif what == 1:
            params.append((kind, rng.choice(hand.data) + 16, 512, hand.cell.next_cookie()))
        elif what == 2 and hand.cell.registered:
            cookie = rng.choice(tuple(hand.cell.registered))
            params.append((kind - _TMEM_IN + _RMEM_IN, 0, 256, cookie))
        elif what == 3 and rng.random() < 0.3:
            params.append((kind, rng.choice((_OUTSIDE, M64, 8, hand.foreign)), 4096, 0))
        else:
            pages = hand.some_pages(rng.choice((1, 2, 5)))
            at = await hand.store_list(pages)
            size = len(pages) * PAGE_SIZE
            attr = kind | msg.OPTEE_MSG_ATTR_NONCONTIG
            params.append((attr, at, size, hand.cell.next_cookie()))
    params.append((_VALUE_OUT, 0, 0, 0))
    await _invoke(hand, session, rng.randrange(5), *params)


# --- rude ------------------------------------------------------------------------------------------


async def bad_message(hand: Hand) -> None:
    """Messages with false counts, commands and addresses."""
    rng = hand.rng
    what = rng.randrange(5)
    style = rng.choice((CALL_WITH_ARG, CALL_WITH_RPC_ARG))
    if what == 0:
        count = rng.choice((126, 127, 128, 129, M32))
        await hand.send(rng.randrange(8), (_NONE,) * 2, count=count, style=style)
    elif what == 1:
        await hand.send(rng.choice((8, 9, 10, 11, 12, 0x7FFF_FFFF, M32)), (_NONE,), style=style)
    elif what == 2:
        odd = (0, _OUTSIDE, hand.base + 1, hand.base + 8, M64, rng.getrandbits(64))
        where = rng.choice((*odd, hand.foreign))
        await hand.serve(await hand.trap(style, where >> 32, where & M32))
    elif what == 3:
        cookie = rng.choice((*hand.cell.carriers, *hand.cell.allocated, 0, rng.getrandbits(64)))
        offset = rng.choice((0, 4, PAGE_SIZE - 8, 2 * PAGE_SIZE - 32, 2 * PAGE_SIZE, M32))
        regs = await hand.trap(CALL_WITH_REGD_ARG, cookie >> 32, cookie & M32, offset)
        await hand.serve(regs)
    else:
        params = [
            (rng.getrandbits(10), rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(64))
            for _ in range(rng.randrange(5))
        ]
        await hand.send(rng.randrange(8), params, session=rng.randrange(4))


async def bad_resume(hand: Hand) -> None:
    """RETURN_FROM_RPC of a thread that is nobody's, somebody else's, or this vCPU's neighbour's."""
    rng = hand.rng
    thread = rng.choice((0, 1, 2, 3, 9, 0x1_0000, 0x1_0001, M32))
    await hand.trap(RETURN_FROM_RPC, rng.getrandbits(32), 0, thread, 0, rng.getrandbits(32))


async def go_on(hand: Hand) -> None:
    """Take up a call that was left for later."""
    await hand.go_on()


async def scribble(hand: Hand) -> None:
    """Change a message or a list, whoever uses it."""
    at = hand.base + hand.rng.randrange(18) * PAGE_SIZE
    await hand.cpu.write(at + hand.rng.choice((0, 20, 28, 32, 40, 48, 4088)), hand.rng.randbytes(8))
    await hand.fast(smc.OPTEE_SMC_CALLS_UID)


async def rest(hand: Hand) -> None:
    """Do nothing for a while."""
    await hand.rest()
    await hand.fast(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE)


OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType(
    {
        "fast": fast,
        "hidden": hidden,
        "other": other,
        "drain": drain,
        "listen": listen,
        "values": values,
        "bottom half": bottom_half,
        "deaf": deaf,
        "open": open_session,
        "close": close_session,
        "compute": compute,
        "request": request,
        "allocate": allocate,
        "lock": lock,
        "work": work,
        "user application": user_application,
        "cancel": cancel,
        "register": register,
        "carrier": carrier,
        "unregister": unregister,
        "large": large,
        "bad list": bad_list,
        "temporary": temporary,
        "bad message": bad_message,
        "bad resume": bad_resume,
        "go on": go_on,
        "scribble": scribble,
        "rest": rest,
    }
)
"""By the names that weights use."""
