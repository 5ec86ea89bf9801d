# SPDX-License-Identifier: BSD-2-Clause
"""Bare-metal programs at OP-TEE's edges, replayed both ways: each deviation is under a rule.

The recorded answers are those of our secure world, which behaves as OP-TEE was measured. So these
tests hold that the mediator changes nothing there, or exactly what a rule says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from mediator.optee.settings import Limits, MediatorSettings
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.registers import low32, split
from specs.replay import allowed, judge, mediated, rules
from specs.replay.mediated import replay_as_mediator
from specs.replay.simulated import replay_as_secure_world
from tests.replay.bare_metal import (
    DEVICES,
    ECHO,
    EMPTY,
    INVOKE_TESTS,
    LIST,
    PAGE,
    RAM,
    RAM_SIZE,
    RESERVED,
    BareMetal,
    Param,
    message,
    respond,
    rpc_at,
    serve_rpc,
    uuid_param,
)

CALL_WITH_ARG = smc.OPTEE_SMC_CALL_WITH_ARG
CALL_WITH_RPC_ARG = smc.OPTEE_SMC_CALL_WITH_RPC_ARG
CALL_WITH_REGD_ARG = smc.OPTEE_SMC_CALL_WITH_REGD_ARG
SECURE = 0x0E10_0000
MMIO = 0x0900_0000
PAST = RAM + RAM_SIZE
CLASSIC = SecureWorldSettings(virtualization=False, reserved_shm=RESERVED, rpc_arg=False)
WAIT = 4
"""Command of the echo TA that sleeps, and so suspends its thread."""


def both(program: BareMetal, *names: str, blind: int = 0) -> None:
    """Replay both ways: no difference, and exactly the rules of these names."""
    trace = program.trace()
    through = replay_as_mediator(trace)
    assert through.differences == ()
    assert through.transparent == through.events == len(trace.events)
    assert set(through.rules) == set(names)
    assert sum(through.blind.values()) == blind
    assert not through.pinned
    answered = replay_as_secure_world(trace)
    assert answered.differences == ()
    assert answered.equal == answered.answers
    assert not answered.hidden_waits


def start(
    program: BareMetal, session: int, client: int | None = None
) -> tuple[int, tuple[int, ...]]:
    """Begin a call that sleeps: its message and the RPC that it came back with."""
    at = program.place(message(1, (1, 50, 0, 0), *[EMPTY] * 3, func=WAIT, session=session))
    return at, program.enter(CALL_WITH_RPC_ARG, *split(at), client=client)


def test_fast_calls() -> None:
    program = BareMetal()
    for function in (
        smc.OPTEE_SMC_CALLS_UID,
        smc.OPTEE_SMC_CALLS_REVISION,
        smc.OPTEE_SMC_CALLS_COUNT,
        smc.OPTEE_SMC_CALL_GET_OS_UUID,
        smc.OPTEE_SMC_CALL_GET_OS_REVISION,
        smc.OPTEE_SMC_GET_THREAD_COUNT,
        smc.OPTEE_SMC_EXCHANGE_CAPABILITIES,
        smc.OPTEE_SMC_GET_SHM_CONFIG,
        smc.OPTEE_SMC_L2CC_MUTEX,
        smc.OPTEE_SMC_GET_PROTMEM_CONFIG,
        smc.OPTEE_SMC_BOOT_SECONDARY,
        smc.OPTEE_SMC_ENABLE_SHM_CACHE,
        smc.OPTEE_SMC_ENABLE_SHM_CACHE,
        smc.OPTEE_SMC_DISABLE_SHM_CACHE,
        smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF,
        smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE,
        smc.OPTEE_SMC_VM_CREATED,
        0xB000_0000,
        0xB200_1234,
        0x5_BF00_FF01,
    ):
        program.enter(function)
    program.enter(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 2)
    both(program, "hidden-capabilities", "not-offered", "own-calls-count")


def test_message_pointers() -> None:
    program = BareMetal()
    for address in (
        *(0, 1, 4, 8, SECURE, MMIO, PAST, 0xFFFF_FFFF_FFFF_FFFF),
        *(RAM + 0xFE0, RAM + 1, RAM + 4, RAM + 8),
    ):
        for function in (CALL_WITH_ARG, CALL_WITH_RPC_ARG):
            if program.memory.check(0, address, 32):
                program.place(message(msg.OPTEE_MSG_CMD_CANCEL), address)
            program.enter(function, *split(address))
    both(program)


def test_counts_and_commands() -> None:
    program = BareMetal()
    for count in (0xFFFF_FFFF, 127, 123, 122):
        program.call(message(msg.OPTEE_MSG_CMD_CANCEL, count=count))
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL, count=127), function=CALL_WITH_ARG)
    program.call(message(99))
    program.call(message(8))
    program.enter(0x3200_0099)
    both(program, "too-many-parameters", "not-offered")


def test_messages_in_registered_memory() -> None:
    program = BareMetal()
    pages = [program.pages() for _ in range(3)]
    program.register(pages, 0x1000)
    for offset in (0, 4, 8, 0xFF0, 0x1000, 0x2F00, 0x3000, 0xFFFF_FFFF):
        program.place(message(msg.OPTEE_MSG_CMD_CANCEL), pages[0])
        program.enter(CALL_WITH_REGD_ARG, *split(0x1000), offset)
    program.enter(CALL_WITH_REGD_ARG, *split(0x2000), 0)
    for thread in (0, 1, 2, 77, 0xFFFF_FFFF):
        program.resume(thread)
    both(program)


def test_a_message_that_crosses_pages() -> None:
    program = BareMetal()
    pages = [program.pages(), program.pages(3) + 2 * PAGE]
    program.register(pages, 0x1000)
    data = message(msg.OPTEE_MSG_CMD_OPEN_SESSION, uuid_param(DEVICES), (0x101, 0, 0, 0))
    program.place(data[:0x40], pages[0] + PAGE - 0x40)
    program.place(data[0x40:], pages[1])
    answer = program.enter(CALL_WITH_REGD_ARG, *split(0x1000), PAGE - 0x40)
    assert answer[0] == 0
    both(program)


def test_a_message_that_unregisters_the_memory_it_lies_in() -> None:
    program = BareMetal()
    pages = [program.pages()]
    program.register(pages, 0x1000)
    program.place(message(msg.OPTEE_MSG_CMD_UNREGISTER_SHM, (5, 0, 0, 0x1000)), pages[0])
    answer = program.enter(CALL_WITH_REGD_ARG, *split(0x1000), 0)
    for _ in range(3):
        answer = program.resume(answer[3])
    both(program)


def test_parameters_of_an_invocation() -> None:
    program = BareMetal()
    _, session = program.open(DEVICES)
    for attr in (4, 8, 0xC, 0x101, 0x104):
        program.invoke(session, 0, (attr, 0, 0, 0))
    program.invoke(session, 0, *[EMPTY] * 5)
    program.call(message(0))
    program.call(message(0, uuid_param(DEVICES)))
    program.call(message(0, uuid_param(DEVICES), (0x101, 0, 0, 99)))
    program.invoke(77, 0)
    program.close(77)
    buffer = program.pages(4)
    listed = program.page_list([buffer, buffer + PAGE])
    memrefs: tuple[Param, ...] = (
        (0xA, buffer, 16, 0),
        (0xA, RESERVED[0] + 0x1000, 16, 0),
        (0xA, 0, 16, 0),
        (0xB, buffer, 5000, 0x77),
        (LIST, listed | 0x10, 5000, 0x4000),
        (LIST, listed, 0, 0x4000),
        (LIST, listed, 16, 0x4000),
    )
    for memref in memrefs:
        program.invoke(session, 0, memref)
    both(program, "contiguous-as-list", "refused-by-mediator")


def test_registered_memory_in_an_invocation() -> None:
    program = BareMetal()
    _, session = program.open(INVOKE_TESTS)
    pages = [program.pages(), program.pages()]
    program.register(pages, 0x5000, size=5000, offset=0x10)
    for offset, size in (
        *((4990, 11), (8192 - 16, 0), (8192 - 15, 0), (8192 - 16, 1)),
        *((0, 64), (5000, 100), (4090, 20)),
    ):
        program.invoke(session, 1, (7, offset, size, 0x5000))
    program.invoke(session, 1, (7, 0, 16, 0))
    program.invoke(session, 1, (7, 0, 16, 0x6666))
    program.invoke(session, 1, (6, 0, 16, 0x5000))
    program.close(session)
    both(program)


def test_registrations() -> None:
    program = BareMetal()
    page = program.pages()
    listed = program.page_list([page])

    def register(*params: Param) -> None:
        program.call(message(msg.OPTEE_MSG_CMD_REGISTER_SHM, *params))

    for attr in (0xA, 0x20B, 0x209, 0x30A, 0x202, 1, 0, 0x1_020A):
        register((attr, listed, PAGE, 0x100))
    register()
    register((LIST, listed, PAGE, 0x100), EMPTY)
    register((LIST, listed, PAGE, 0x100), (LIST, listed, PAGE, 0x101))
    for pointer in (0, SECURE, PAST, 0xFFFF_FFFF_FFFF_F000):
        register((LIST, pointer, PAGE, 0x102))
    for entry in (0, page | 8, SECURE, MMIO, PAST, 0xFFFF_FFFF_FFFF_F000):
        register((LIST, program.page_list([entry]), PAGE, 0x103))
        register((LIST, program.page_list([page, entry]), 2 * PAGE, 0x104))
    for size in (0, 1 << 40, (1 << 64) - 1):
        register((LIST, listed, size, 0x105))
        register((LIST, listed | 0x80, size, 0x106))
    both(program, "refused-by-mediator")


def test_lists_of_several_pages() -> None:
    program = BareMetal()
    pages = [program.pages() for _ in range(512)]
    self_linked = program.page_list(pages[:511])
    program.place(struct.pack("<Q", self_linked), self_linked + 4088)
    for listed, entries in (
        (program.page_list(pages, link=SECURE), 512),
        (program.page_list(pages, link=pages[0] | 4), 512),
        (program.page_list(pages), 512),
        (program.page_list(pages[:511], link=0xDEAD000), 511),
        (self_linked, 600),
    ):
        param = (LIST, listed, entries * PAGE, listed)
        program.call(message(msg.OPTEE_MSG_CMD_REGISTER_SHM, param))
    both(program, "refused-by-mediator")


def test_cookies() -> None:
    program = BareMetal()
    page, other = program.pages(), program.pages()
    program.register([page], 0)
    program.unregister(0)
    program.register([page], 0x110)
    program.register([other], 0x110)
    for _ in range(3):
        program.unregister(0x110)
    program.register([page, page], 0x111)
    program.register([RESERVED[0] + 0x3000], 0x112)
    program.unregister(0x9999)
    program.call(message(msg.OPTEE_MSG_CMD_UNREGISTER_SHM))
    program.call(message(msg.OPTEE_MSG_CMD_UNREGISTER_SHM, (5, 0, 0, 0x111), EMPTY))
    both(program, "live-reference")


def test_threads() -> None:
    program = BareMetal()
    _, first = program.open(ECHO)
    _, second = program.open(ECHO)
    one, one_asks = start(program, first)
    two, two_asks = start(program, second)
    _, refused = start(program, first)
    assert low32(refused[0]) == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
    program.enter(smc.OPTEE_SMC_DISABLE_SHM_CACHE)
    program.enter(smc.OPTEE_SMC_ENABLE_SHM_CACHE)
    program.enter(0x3200_0099)
    for where, asks in ((two, two_asks), (one, one_asks)):
        respond(program, rpc_at(program, where), 0, 0)
        program.resume(asks[3])
    program.resume(one_asks[3])
    both(program, "not-offered")


def test_a_thread_given_away_before_its_last_call_is_back() -> None:
    """OP-TEE is entered by one processor more than it has threads."""
    program = BareMetal()
    sessions = [program.open(ECHO)[1] for _ in range(3)]
    one, one_asks = start(program, sessions[0])
    two, two_asks = start(program, sessions[1])
    respond(program, rpc_at(program, one), 0, 0)
    ends = (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, 0, one_asks[3], 0, 0, 0, 0)
    program.recorder.call(0, ends)
    ended = program.world.smc(*ends)
    three = program.place(message(1, (1, 50, 0, 0), *[EMPTY] * 3, func=WAIT, session=sessions[2]))
    begins = (CALL_WITH_RPC_ARG, *split(three), 0, 0, 0, 0, 0)
    program.recorder.call(1, begins)
    begun = program.world.smc(*begins)
    assert low32(begun[0]) == smc.OPTEE_SMC_RETURN_RPC_CMD
    program.recorder.answer(1, begun)
    program.recorder.answer(0, ended)
    for where, asks in ((three, begun), (two, two_asks)):
        respond(program, rpc_at(program, where), 0, 0)
        program.resume(asks[3])
    both(program)


# --- the guest's answers to OP-TEE's own requests ---------------------------------------------------


Serve = Callable[[BareMetal, int, tuple[int, ...]], tuple[int, ...]]


def answering(
    *params: Param,
    ret: int = 0,
    only: int = rpc.OPTEE_RPC_CMD_SHM_ALLOC,
    count: int | None = None,
) -> Serve:
    """Answers one command in this way, and all others as a plain driver does."""

    def serve(program: BareMetal, where: int, answer: tuple[int, ...]) -> tuple[int, ...]:
        if low32(answer[0]) == smc.OPTEE_SMC_RETURN_RPC_CMD:
            at = rpc_at(program, where)
            command = program.memory.load(at, 4)
            assert command is not None
            if int.from_bytes(command, "little") == only:
                respond(program, at, ret, 2, *params)
                if count is not None:
                    program.place(struct.pack("<I", count), at + 28)
                return (0, 0, 0, 0)
        return serve_rpc(program, where, answer)

    return serve


ANSWERS = {
    "another attribute": ({"attr": 0x20B}, ("address-in-answer-zeroed",), 0),
    "a value": ({"attr": 2}, (), 0),
    "no bytes": ({"size": 0}, ("untranslatable-allocation",), 0),
    "too few bytes": ({"less": 1}, ("untranslatable-allocation",), 0),
    "two parameters": ({"more": 1}, ("address-in-answer-zeroed",), 0),
    "no parameters": ({"params": 0, "count": 0}, (), 0),
    "nine parameters": ({"count": 9}, ("crowded-answer",), 0),
    "a secure page in the list": ({"entry": SECURE}, ("untranslatable-allocation",), 0),
    "a secure list": ({"list": SECURE}, ("untranslatable-allocation",), 0),
    "no list": ({"list": 0}, (), 0),
    "a failure": ({"ret": 0xFFFF000C}, ("address-in-answer-zeroed",), 0),
    "contiguous": ({"attr": 0xA}, ("contiguous-as-list", "address-in-request"), 0),
    "contiguous and secure": (
        {"attr": 0xA, "list": SECURE},
        ("untranslatable-allocation",),
        0,
    ),
    "an address for another command": (
        {"only": rpc.OPTEE_RPC_CMD_LOAD_TA},
        ("address-in-answer-zeroed",),
        2,
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_to_an_allocation(case: str) -> None:
    how, names, blind = ANSWERS[case]
    program = BareMetal()
    size = len(program.world.registry.images()[UUID(bytes=ECHO)])
    count = -(-size // PAGE)
    program.register([program.pages(), program.pages()], 0x5000)
    good = program.pages(count)
    pages = [how.get("entry", good + number * PAGE) for number in range(count)]
    attr = how.get("attr", LIST)
    listed = good if attr == 0xA else program.page_list(pages)
    param = (attr, how.get("list", listed), how.get("size", size - how.get("less", 0)), 0x700)
    params: tuple[Param, ...] = (param, EMPTY)[: how.get("params", 1 + how.get("more", 0))]
    if "only" in how:
        params = ((1, 0, 0, 0), (0xA, good, size, 0))
    serve = answering(
        *params,
        ret=how.get("ret", 0),
        only=how.get("only", rpc.OPTEE_RPC_CMD_SHM_ALLOC),
        count=how.get("count"),
    )
    program.open(ECHO, serve=serve)
    program.invoke(1, 1, (1, 2, 3, 0))
    both(program, *names, blind=blind)


def test_an_allocation_under_a_cookie_in_use() -> None:
    program = BareMetal()
    program.register([program.pages(), program.pages()], 0x5000)
    size = len(program.world.registry.images()[UUID(bytes=ECHO)])
    assert size <= PAGE
    listed = program.page_list([program.pages()])
    program.lists[0x5000] = listed
    where, _ = program.open(ECHO, serve=answering((LIST, listed, size, 0x5000)))
    assert program.result(where)[0] == 0, "OP-TEE takes it"
    both(program, "untranslatable-allocation", blind=2)


# --- classic calls --------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [False, True], ids=["no cache", "cache"])
def test_classic_calls(cache: bool) -> None:
    program = BareMetal(CLASSIC)
    program.enter(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 0)
    program.enter(smc.OPTEE_SMC_DISABLE_SHM_CACHE)
    if cache:
        program.enter(smc.OPTEE_SMC_ENABLE_SHM_CACHE)
    _, session = program.open(ECHO, function=CALL_WITH_ARG)
    program.invoke(session, 5, (2, 0, 0, 0), *[EMPTY] * 3, function=CALL_WITH_ARG)
    program.invoke(session, WAIT, (1, 9, 0, 0), *[EMPTY] * 3, function=CALL_WITH_ARG)
    program.call(message(2, session=session), function=CALL_WITH_ARG)
    for _ in range(3):
        program.enter(smc.OPTEE_SMC_DISABLE_SHM_CACHE)
    _, session = program.open(INVOKE_TESTS, function=CALL_WITH_ARG)
    program.call(message(2, session=session))
    both(program, "hidden-capabilities")


@pytest.mark.parametrize(
    ("address", "names"),
    [
        (0, ()),
        (SECURE, ("rpc-buffer-refused",)),
        (RAM + 0x20_0008, ("rpc-buffer-refused",)),
        (RESERVED[0] + 0x1008, ("reserved-memory",)),
    ],
    ids=["none", "secure", "not a page", "reserved"],
)
def test_unusable_message_buffers(address: int, names: tuple[str, ...]) -> None:
    def serve(program: BareMetal, where: int, answer: tuple[int, ...]) -> tuple[int, ...]:
        if low32(answer[0]) == smc.OPTEE_SMC_RETURN_RPC_ALLOC:
            return (*split(address), *split(address))
        return serve_rpc(program, where, answer)

    program = BareMetal(CLASSIC)
    program.open(ECHO, function=CALL_WITH_ARG, serve=serve)
    both(program, *names)


def test_reserved_memory() -> None:
    program = BareMetal()
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), address=RESERVED[0] + 0x1008)
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), address=RESERVED[0] + 0x2000)
    listed = RESERVED[0] + 0x3000
    program.place(struct.pack("<Q", RESERVED[0] + 0x4000), listed)
    program.call(message(msg.OPTEE_MSG_CMD_REGISTER_SHM, (LIST, listed, PAGE, 9)))
    both(program, "reserved-memory")


# --- virtualization -------------------------------------------------------------------------------


def virtual() -> BareMetal:
    return BareMetal(SecureWorldSettings(virtualization=True, reserved_shm=RESERVED, guests=2))


def create(program: BareMetal, *clients: int) -> None:
    for client in clients:
        program.enter(smc.OPTEE_SMC_VM_CREATED, client, client=0)


def destroy(program: BareMetal, client: int) -> None:
    program.enter(smc.OPTEE_SMC_VM_DESTROYED, client, client=0)


def test_the_hypervisors_own_calls() -> None:
    program = virtual()
    for function in (
        smc.OPTEE_SMC_CALLS_UID,
        smc.OPTEE_SMC_GET_SHM_CONFIG,
        smc.OPTEE_SMC_CALLS_COUNT,
    ):
        program.enter(function, client=0)
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), client=0)
    both(program, "hypervisor-call")


def test_guests_that_do_not_exist() -> None:
    program = virtual()
    program.enter(smc.OPTEE_SMC_CALLS_UID, client=1)
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), client=1)
    create(program, 0, 1, 2, 3)  # the hypervisor itself, and one more than there is room for
    destroy(program, 9)
    program.enter(smc.OPTEE_SMC_VM_CREATED, 1, client=1)
    program.enter(smc.OPTEE_SMC_CALLS_UID, client=0x1_0001)
    program.enter(smc.OPTEE_SMC_VM_CREATED, 3, client=1)
    both(program, "unknown-client", "not-offered", "one-instance")


def test_guests_are_apart() -> None:
    program = virtual()
    create(program, 1, 2)
    page = program.pages()
    listed = program.page_list([page])
    for client in (1, 2):
        register = message(msg.OPTEE_MSG_CMD_REGISTER_SHM, (LIST, listed, PAGE, 0xF1000))
        program.call(register, client=client)
    sessions = {client: program.open(ECHO, client=client)[1] for client in (1, 2)}
    assert sessions == {1: 1, 2: 1}
    _, second = program.open(ECHO, client=1)
    program.call(message(1, session=second), client=2)
    program.call(message(4, (LIST, listed, PAGE, 0xF2000)), client=2)
    program.call(message(1, (7, 0, 16, 0xF2000), *[EMPTY] * 3, func=1, session=1), client=1)
    for client in (1, 2):
        program.place(message(msg.OPTEE_MSG_CMD_CANCEL, session=client - 1), page)
        program.enter(CALL_WITH_REGD_ARG, *split(0xF2000), 0, client=client)
    both(program)


def test_the_end_of_a_guest() -> None:
    program = virtual()
    create(program, 1, 2)
    sessions = {client: program.open(ECHO, client=client)[1] for client in (1, 2)}
    _, one_asks = start(program, sessions[1], client=1)
    for client in (2, 7):
        program.resume(one_asks[3], client=client)
    two, two_asks = start(program, sessions[2], client=2)
    destroy(program, 1)
    program.resume(one_asks[3], client=1)
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), client=1)
    create(program, 1)
    program.call(message(1, session=sessions[1]), client=1)
    program.call(message(5, (5, 0, 0, 0xF1000)), client=1)
    respond(program, rpc_at(program, two), 0, 0)
    program.resume(two_asks[3], client=2)
    destroy(program, 2)
    both(program, "unknown-client")


def test_a_second_instance_of_a_client() -> None:
    program = virtual()
    create(program, 1, 1)
    listed = program.page_list([program.pages()])
    program.call(message(4, (LIST, listed, PAGE, 0xF3000)), client=1)
    destroy(program, 1)
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), client=1)
    destroy(program, 1)
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), client=1)
    both(program, "one-instance", "unknown-client")


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_guest_that_ends_while_it_is_in_the_tee(late: bool) -> None:
    """The call is on its way to OP-TEE, or back, when another processor destroys the guest."""
    program = virtual()
    create(program, 1)
    at = program.place(message(msg.OPTEE_MSG_CMD_CANCEL))
    call = (CALL_WITH_RPC_ARG, *split(at), 0, 0, 0, 0, 1)
    program.recorder.call(1, call)
    answer = program.world.smc(*call) if late else (0, 0, 0, 0)
    destroy(program, 1)
    if not late:
        answer = program.world.smc(*call)
    program.recorder.answer(1, answer)
    create(program, 1)
    program.call(message(msg.OPTEE_MSG_CMD_CANCEL), client=1)
    both(program, "teardown-waits")


# --- limits, and the preset of the reference --------------------------------------------------------


def test_a_buffer_beyond_the_mediators_limits() -> None:
    program = BareMetal()
    program.register([program.pages(), program.pages()], 0x1000)
    program.register([program.pages()], 0x2000)
    settings = MediatorSettings(limits=Limits(buffer_pages=1))
    result = replay_as_mediator(program.trace(), settings)
    assert result.differences == ()
    assert result.rules == {"own-limits": 2}


def test_low_bits_of_a_list_entry_under_the_preset_of_the_reference() -> None:
    program = BareMetal()
    page = program.pages()
    listed = program.page_list([page | 8])
    program.call(
        message(msg.OPTEE_MSG_CMD_REGISTER_SHM, (LIST, listed, PAGE, 0x1000)),
        function=CALL_WITH_ARG,
    )
    result = replay_as_mediator(program.trace(), MediatorSettings.reference(threads=2))
    assert result.differences == ()
    assert result.rules == {"page-numbers": 1}
    both(program)


# --- the list of rules ------------------------------------------------------------------------------


def test_every_rule_says_what_it_allows_and_where_that_is_decided() -> None:
    for name, rule in rules.RULES.items():
        assert name == rule.id
        assert rule.sentence.endswith(".")
        assert rule.source
    assert all(what and why for what, why in rules.NOT_COMPARED)


def test_every_rule_is_used_by_the_replay() -> None:
    source = "".join(
        [Path(module.__file__ or "").read_text("utf-8") for module in (allowed, judge, mediated)]
    )
    constants = {v: k for k, v in vars(rules).items() if isinstance(v, str) and k.isupper()}
    for name in rules.RULES:
        assert f"rules.{constants[name]}" in source
