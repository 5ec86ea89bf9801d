# SPDX-License-Identifier: BSD-2-Clause
"""What OP-TEE reads once, holds while it uses it, and announces (bug classes 1, 15 and 22)."""

from __future__ import annotations

import struct

import pytest

from secure_world.settings import SecureWorldSettings
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from tests.secure_world import support as s
from tests.secure_world.support import Normal, RamBus, Scripted

REGD = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
CMD = smc.OPTEE_SMC_RETURN_RPC_CMD
WAIT, ECHO = 4, 1
MANY = SecureWorldSettings(
    virtualization=False, threads=4, reserved_shm=(s.RESERVED, s.RESERVED_SIZE)
)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 20])
def test_no_byte_of_a_message_in_a_registered_page_is_read_twice(count: int) -> None:
    n = Normal()
    cookie, address = n.buffer(s.PAGE)
    n.put(address, s.message(msg.OPTEE_MSG_CMD_CLOSE_SESSION, [s.NOTHING] * count))
    seen: list[tuple[int, int]] = []
    n.bus.before_read = lambda pa, size: seen.append((pa, size))
    assert n.raw(REGD, cookie >> 32, cookie & s.M32, 0)[0] == 0
    covered = [pa + index for pa, size in seen for index in range(size)]
    assert covered
    assert len(covered) == len(set(covered))


def maps(n: Normal, cookie: int) -> tuple[int, int]:
    """References and mappings of a registered buffer."""
    partition = n.world.partition(0)
    assert partition is not None
    memory = partition.shm.by_cookie[cookie]
    return memory.refs, memory.maps


def suspended(n: Normal, *cookies: int) -> tuple[int, int]:
    """A call that uses these buffers and waits: its page and thread."""
    session = n.session(s.ECHO)
    params = [(1, 5, 0, 0), *[(7, 0, 8, cookie) for cookie in cookies]]
    page, registers = n.start(s.message(1, params, func=WAIT, session=session))
    assert registers[0] == smc.OPTEE_SMC_RETURN_RPC_CMD
    return page + 32 + 32 * len(params), registers[3]


def test_a_buffer_is_mapped_exactly_while_calls_use_it() -> None:
    """Two calls, one of which names it twice, in every order of their ends."""
    for order in ((0, 1), (1, 0)):
        n = Normal(MANY)
        cookie, _ = n.buffer(64)
        assert maps(n, cookie) == (1, 0)
        calls = [suspended(n, cookie, cookie), suspended(n, cookie)]
        assert maps(n, cookie) == (4, 3)
        left = 3
        for index in order:
            page, thread = calls[index]
            assert n.serve(page, n.resume(thread))[0] == 0
            left -= 2 - index
            assert maps(n, cookie) == (left + 1, left)
        assert n.unregister(cookie).ret == 0


def test_an_unregistered_buffer_that_is_in_use_is_there_until_the_last_user_has_gone() -> None:
    n = Normal(MANY)
    cookie, _ = n.buffer(64)
    calls = [suspended(n, cookie), suspended(n, cookie)]
    partition = n.world.partition(0)
    assert partition is not None
    memory = partition.shm.by_cookie[cookie]
    release, registers = n.start(s.message(5, [(5, 0, 0, cookie)]))
    for page, thread in calls:
        assert partition.shm.contains(memory)
        assert memory.maps > 0
        assert n.serve(page, n.resume(thread))[0] == 0
    assert n.serve(release + 64, n.resume(registers[3]))[0] == 0
    assert not partition.shm.contains(memory)
    assert (memory.refs, memory.maps) == (0, 0)


def test_a_temporary_buffer_is_forgotten_with_its_call() -> None:
    """Its reference names nothing afterwards: neither a parameter nor a registration."""
    n = Normal(MANY)
    session = n.session(s.ECHO)
    listed = n.page_list([n.pages()])
    assert n.invoke(session, ECHO, [(0x20B, listed, 16, 0x77)]).ret == 0
    partition = n.world.partition(0)
    assert partition is not None
    assert partition.shm.live == 0
    assert partition.shm.by_cookie == {}
    assert n.invoke(session, ECHO, [(7, 0, 8, 0x77)]).ret != 0


def test_a_lock_has_one_owner() -> None:
    """Released while one waits and another comes: who was quicker has it, the other waits again."""
    n = Normal(MANY)
    hold, hold_asleep = 0, 2
    sessions = [n.session(s.LOCKER) for _ in range(3)]

    def start(index: int, func: int) -> tuple[int, int]:
        message = s.message(1, [(1, 1, 0, 0)], func=func, session=sessions[index])
        page, registers = n.start(message)
        return struct.unpack("<I", n.get(page + 64, 4))[0], registers[0]

    assert start(0, hold_asleep) == (rpc.OPTEE_RPC_CMD_SUSPEND, CMD)
    assert start(1, hold) == (rpc.OPTEE_RPC_CMD_NOTIFICATION, CMD)
    assert n.resume(0)[0] == CMD, "the first releases, and says so to the second"
    assert start(2, hold_asleep) == (rpc.OPTEE_RPC_CMD_SUSPEND, CMD)
    assert n.resume(1)[0] == CMD, "the third was quicker: the second waits again"
    assert n.resume(0)[0] == 0
    assert n.resume(2)[0] == CMD
    assert n.resume(1)[0] == 0
    assert n.resume(2)[0] == 0
    assert n.world.suspended(0) == ()


def test_draining_the_cache_ends_in_enotavail() -> None:
    n = Normal(MANY)
    n.world.smc(smc.OPTEE_SMC_ENABLE_SHM_CACHE)
    session = n.session(s.CLOCK)
    data = s.message(1, [(1, 9, 0, 0)], func=1, session=session)
    _, registers = n.start(data, function=smc.OPTEE_SMC_CALL_WITH_ARG)
    assert n.serve(0, registers)[0] == 0
    answers = [n.world.smc(smc.OPTEE_SMC_DISABLE_SHM_CACHE)[0] for _ in range(3)]
    assert answers == [0, smc.OPTEE_SMC_RETURN_ENOTAVAIL, smc.OPTEE_SMC_RETURN_ENOTAVAIL]


def test_every_value_that_becomes_pending_raises_the_interrupt() -> None:
    """The guest may be reading the first one when the second comes."""
    monitor = Scripted()
    world = SecureWorld(RamBus(1), SecureWorldSettings(guests=1), monitor)
    world.smc(smc.OPTEE_SMC_VM_CREATED, 1)
    world.smc(smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF, 0, 0, 0, 0, 0, 0, 1)
    for count, value in enumerate((5, 3, 5), 1):
        assert world.notify(1, value)
        assert monitor.notifications == count
    values = [
        world.smc(smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE, 0, 0, 0, 0, 0, 0, 1)[1] for _ in range(2)
    ]
    assert values == [3, 5]
