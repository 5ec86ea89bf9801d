# SPDX-License-Identifier: BSD-2-Clause
"""The systems: small enough for all of their interleavings, and each with a race at its heart."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

import attrs

from mediator.explore.bench import (
    DATA,
    GUEST,
    LIST,
    OTHER,
    RAM,
    RETURN,
    TMEM,
    Bench,
    Event,
    Patient,
    build,
    invoke,
    register,
    unregister,
)
from mediator.explore.engine import Actor, Run, Until
from mediator.host import PAGE_SIZE
from mediator.optee.settings import Limits, MediatorSettings
from mediator.suspend import PREEMPTION_POINT, Suspend
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc

COOKIE: Final = 0x5000

Maker = Callable[[list[Event] | None], Run]


@attrs.frozen
class Scenario:
    """A system by name. ``about``: what races with what; ``make``: a fresh one, with its events."""

    name: str
    about: str
    make: Maker = attrs.field(repr=False)

    def start(self) -> Run:
        """A fresh system."""
        return self.make(None)


class Independent:
    """Actors that share nothing: they make so many steps each."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.actors: list[tuple[str, Actor]] = [
            (f"walker {number}", self._walk(count)) for number, count in enumerate(steps)
        ]

    @staticmethod
    async def _walk(steps: int) -> Hashable:
        for _ in range(steps - 1):
            await PREEMPTION_POINT
        return steps

    def violations(self) -> Sequence[str]:
        """See :class:`mediator.explore.engine.Run`; likewise below."""
        return ()

    def finish(self) -> None:
        return None

    def outcome(self) -> Hashable:
        return None

    def state(self) -> Sequence[object]:
        return ()


def independent(*steps: int) -> Scenario:
    """Actors with so many steps each that share nothing."""
    name = "independent-" + "-".join(map(str, steps))
    return Scenario(name, "actors that share nothing", lambda events: Independent(steps))


async def _resume(bench: Bench, vcpu: int, thread: int) -> Hashable:
    out = await bench.trap(GUEST, vcpu, RETURN, 0, 0, thread)
    return "no TEE" if out is None else out[0]


def _resume_destroy(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    session = bench.session(GUEST)
    body = invoke(session, Patient.TOUCH, [(TMEM, DATA, 64, COOKIE)])
    thread = bench.interrupted(GUEST, 0, body)
    bench.add("vCPU 0", _resume(bench, 0, thread))
    bench.add("vCPU 1", _resume(bench, 1, thread))
    bench.add("host", bench.destroy(GUEST))
    return bench


def _listed(bench: Bench, listed: int = LIST, data: int = DATA, pages: int = 1) -> None:
    words = [data + index * PAGE_SIZE for index in range(pages)]
    bench.put(GUEST, listed, struct.pack(f"<{pages}Q", *words))


def _register_destroy(events: list[Event] | None) -> Run:
    bench = Bench(events=events, preemptions=2)
    _listed(bench, pages=2)
    bench.add("vCPU 0", bench.drive(GUEST, 0, 0, register(LIST, 2, COOKIE)))
    bench.add("host", bench.destroy(GUEST))
    return bench


def _register_twice(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    _listed(bench)
    _listed(bench, LIST + PAGE_SIZE, DATA + PAGE_SIZE)
    bench.add("vCPU 0", bench.drive(GUEST, 0, 0, register(LIST, 1, COOKIE)))
    bench.add("vCPU 1", bench.drive(GUEST, 1, 1, register(LIST + PAGE_SIZE, 1, COOKIE)))
    return bench


def _register_quota(events: list[Event] | None) -> Run:
    settings = MediatorSettings(limits=Limits(total_pages=3))
    bench = Bench(settings=settings, events=events)
    _listed(bench, pages=2)
    bench.add("vCPU 0", bench.drive(GUEST, 0, 0, register(LIST, 2, COOKIE)))
    bench.add("vCPU 1", bench.drive(GUEST, 1, 1, register(LIST, 2, COOKIE + 8)))
    return bench


def _register_unregister(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    _listed(bench)
    bench.add("vCPU 0", bench.drive(GUEST, 0, 0, register(LIST, 1, COOKIE)))
    bench.add("vCPU 1", bench.drive(GUEST, 1, 1, unregister(COOKIE)))
    return bench


def _carrier_unregister(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    session = bench.session(GUEST)
    _listed(bench)
    assert bench.now(bench.drive(GUEST, 0, 0, register(LIST, 1, COOKIE))) == (0, 0)
    bench.put(GUEST, DATA, invoke(session, Patient.PASS))
    bench.add("vCPU 0", _by_cookie(bench))
    bench.add("vCPU 1", bench.drive(GUEST, 1, 1, unregister(COOKIE)))
    return bench


async def _by_cookie(bench: Bench) -> Hashable:
    out = await bench.trap(GUEST, 0, smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, COOKIE, 0)
    while out is not None and out[0] == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR:
        out = await bench.trap(GUEST, 0, RETURN, 0, 0, out[3])
    return None if out is None else out[0]


def _answer_twice(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    session = bench.session(GUEST)
    body = invoke(session, Patient.ALLOCATE)
    thread = bench.interrupted(GUEST, 0, body)
    bench.add("vCPU 0", _answer(bench, 0, thread, DATA, len(body)))
    bench.add("vCPU 1", _answer(bench, 1, thread, DATA + PAGE_SIZE, len(body)))
    return bench


async def _answer(bench: Bench, vcpu: int, thread: int, gives: int, behind: int) -> Hashable:
    await bench.serve(GUEST, RAM + behind, gives)
    out = await bench.trap(GUEST, vcpu, RETURN, 0, 0, thread)
    while out is not None and out[0] == smc.OPTEE_SMC_RETURN_RPC_CMD:
        await bench.serve(GUEST, RAM + behind, gives)
        out = await bench.trap(GUEST, vcpu, RETURN, 0, 0, thread)
    return None if out is None else out[0]


def _call_destroy(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    session = bench.session(GUEST)
    body = invoke(session, Patient.TOUCH, [(TMEM, DATA, 64, COOKIE)])
    bench.add("vCPU 0", bench.drive(GUEST, 0, 0, body))
    bench.add("host", bench.destroy(GUEST))
    return bench


def _create_destroy(events: list[Event] | None) -> Run:
    bench = Bench((), events=events)
    bench.host.add_guest(GUEST)
    assert bench.host.populate(GUEST, RAM, 16)
    bench.add("host", _created(bench))
    bench.add("vCPU 0", _first_call(bench))
    bench.add("destroyer", _destroyed_at_birth(bench))
    return bench


async def _created(bench: Bench) -> Hashable:
    bench.creating = True
    return await bench.announce(GUEST)


async def _destroyed_at_birth(bench: Bench) -> Hashable:
    await Suspend(Until(lambda: bench.creating, "waits for the guest's creation to begin"))
    return await bench.destroy(GUEST)


async def _first_call(bench: Bench) -> Hashable:
    out = await bench.trap(GUEST, 0, smc.OPTEE_SMC_CALL_GET_OS_REVISION)
    return None if out is None else out[0]


def _recreate(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    session = bench.session(GUEST)
    body = invoke(session, Patient.QUICK, [(TMEM, DATA, 64, COOKIE)])
    bench.add("vCPU 0", bench.drive(GUEST, 0, 0, body))
    bench.add("host", _again(bench))
    return bench


async def _again(bench: Bench) -> Hashable:
    await bench.destroy(GUEST)
    if not await bench.create(GUEST):
        return "refused"
    _listed(bench)
    return await bench.drive(GUEST, 1, 1, register(LIST, 1, COOKIE))


def _two_guests(events: list[Event] | None) -> Run:
    bench = Bench((GUEST, OTHER), events=events)
    bodies = {}
    for guest in (GUEST, OTHER):
        params = [(TMEM, DATA, 64, COOKIE)]
        bodies[guest] = invoke(bench.session(guest), Patient.QUICK, params)
    bench.add("guest 1", bench.drive(GUEST, 0, 0, bodies[GUEST]))
    bench.add("guest 2", bench.drive(OTHER, 0, 0, bodies[OTHER]))
    return bench


def _two_waiters(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    sessions = [bench.session(GUEST) for _ in range(3)]
    thread = bench.interrupted(GUEST, 0, invoke(sessions[0], Patient.HOLD))
    bench.add("sender", _go_on(bench, GUEST, 0, 0, thread, len(invoke(0, 0))))
    for vcpu in (1, 2):
        waiter = bench.drive(GUEST, vcpu, vcpu, invoke(sessions[vcpu], Patient.LOCK))
        bench.add(f"waiter {vcpu}", bench.queue_up(waiter))
    return bench


async def _go_on(
    bench: Bench, guest: int, vcpu: int, slot: int, thread: int, behind: int
) -> Hashable:
    """Resume a call that was interrupted, and serve it to its end."""
    out = await bench.trap(guest, vcpu, RETURN, 0, 0, thread)
    while out is not None and out[0] & 0xFFFF_0000 == smc.OPTEE_SMC_RETURN_RPC_PREFIX:
        if out[0] == smc.OPTEE_SMC_RETURN_RPC_CMD:
            await bench.serve(guest, RAM + slot * PAGE_SIZE + behind, DATA)
        out = await bench.trap(guest, vcpu, RETURN, 0, 0, thread)
    return None if out is None else (out[0], bench.result(guest, slot))


def _wait_across(events: list[Event] | None, *, waiters: int, notified: bool) -> Run:
    bench = Bench((GUEST, OTHER), events=events)
    for guest in (GUEST, OTHER):
        bench.capabilities(guest)
    session = bench.session(GUEST)
    sessions = [bench.session(OTHER) for _ in range(waiters)]
    thread = bench.interrupted(GUEST, 0, invoke(session, Patient.HOLD))
    if notified:
        assert bench.now(bench.enable(OTHER, 0)) == 0
    bench.add("sender", _go_on(bench, GUEST, 0, 0, thread, len(invoke(0, 0))))
    for vcpu in range(waiters):
        waiter = bench.drive(OTHER, vcpu, vcpu, invoke(sessions[vcpu], Patient.LOCK))
        if waiters > 1:
            waiter = bench.queue_up(waiter)
        bench.add(f"waiter {vcpu + 1}", waiter)
    bench.add("interrupt", bench.interrupts())
    if notified:
        bench.add("handler", bench.handler(OTHER, waiters))
    return bench


VALUE: Final = 5


def _notify(events: list[Event] | None, *, stops: bool) -> Run:
    bench = Bench(events=events)
    bench.capabilities(GUEST)
    if stops:
        assert bench.now(bench.enable(GUEST, 0)) == 0
    bench.add("vCPU 0", _stop_enable(bench, stops=stops))
    bench.add("TEE", bench.raise_value(GUEST, VALUE))
    bench.add("interrupt", bench.interrupts())
    bench.add("handler", bench.handler(GUEST, 1))
    bench.checks.append(partial(_told, bench))
    return bench


def _stop_against_enable(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    bench.capabilities(GUEST)
    assert bench.now(bench.enable(GUEST, 0)) == 0
    before = bench.left[GUEST]
    bench.add("vCPU 0", bench.drive(GUEST, 0, 0, build(msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF)))
    bench.add("vCPU 1", bench.enable(GUEST, 1))
    bench.add("TEE", _raise_after(bench, before + 2))
    bench.add("interrupt", bench.interrupts())
    bench.add("handler", bench.handler(GUEST, 2))
    bench.checks.append(partial(_told, bench))
    return bench


async def _raise_after(bench: Bench, entries: int) -> Hashable:
    """A value comes when so many entries of the guest have left."""
    left = bench.left
    await Suspend(Until(lambda: left[GUEST] >= entries, "waits for both to be answered"))
    return await bench.raise_value(GUEST, VALUE)


def _two_interrupts(events: list[Event] | None) -> Run:
    bench = Bench(events=events)
    bench.capabilities(GUEST)
    assert bench.now(bench.enable(GUEST, 0)) == 0
    bench.add("TEE", _twice(bench))
    bench.add("processor 0", bench.interrupts())
    bench.add("processor 1", bench.interrupts())
    bench.checks.append(partial(_taken, bench))
    return bench


async def _twice(bench: Bench) -> Hashable:
    for value in (VALUE, VALUE + 1):
        await bench.raise_value(GUEST, value)
        await PREEMPTION_POINT
    return None


def _taken(bench: Bench) -> str:
    """At rest the TEE holds nothing back that a guest could have been told."""
    partition = bench.world.partition(GUEST + bench.mediator.settings.client_id_base)
    lost = partition is not None and partition.notifications.pending
    return "I8 guest 1: nobody asked the TEE for a notification value" if lost else ""


def _told(bench: Bench) -> str:
    """A guest whose last word to the TEE was ENABLE has heard of the value."""
    partition = bench.world.partition(GUEST + bench.mediator.settings.client_id_base)
    listens = partition is not None and partition.notifications.enabled
    lost = listens and bench.raised and (GUEST, VALUE) not in bench.told
    return "I8 guest 1: a notification value is lost" if lost else ""


async def _stop_enable(bench: Bench, *, stops: bool) -> Hashable:
    ends: list[Hashable] = []
    if stops:
        ends.append(await bench.drive(GUEST, 0, 0, build(msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF)))
    ends.append(await bench.enable(GUEST, 0))
    return tuple(ends)


SCENARIOS: Final[Mapping[str, Scenario]] = MappingProxyType(
    {
        name: Scenario(name, about, make)
        for name, about, make in (
            (
                "two-waiters",
                "two processors, in the TEE's queue for a lock, begin to wait; a third gives it back",
                _two_waiters,
            ),
            (
                "wait-across",
                "a guest without notifications waits for a lock that another guest gives back",
                partial(_wait_across, waiters=1, notified=False),
            ),
            (
                "two-waiters-across",
                "two processors of such a guest, in the TEE's queue, begin to wait",
                partial(_wait_across, waiters=2, notified=False),
            ),
            (
                "wait-across-notified",
                "the same for a guest that has enabled notifications",
                partial(_wait_across, waiters=1, notified=True),
            ),
            (
                "notify-enable",
                "a notification value while the guest enables notifications",
                partial(_notify, stops=False),
            ),
            (
                "notify-stop-enable",
                "a notification value while the guest stops notifications and enables them again",
                partial(_notify, stops=True),
            ),
            (
                "two-interrupts",
                "two values, and two processors that take the TEE's interrupt",
                _two_interrupts,
            ),
            (
                "stop-against-enable",
                "one processor stops notifications, another enables them; then a value comes",
                _stop_against_enable,
            ),
            (
                "resume-destroy",
                "two processors resume one call while the host destroys the guest",
                _resume_destroy,
            ),
            ("call-destroy", "a call, interrupted once, against teardown", _call_destroy),
            ("register-destroy", "a registration against a preempted teardown", _register_destroy),
            ("create-destroy", "a guest is created, used and destroyed at once", _create_destroy),
            ("recreate", "a call against teardown, and the id is used again", _recreate),
            ("register-twice", "two registrations under one cookie", _register_twice),
            ("register-quota", "two registrations of which the quota allows one", _register_quota),
            (
                "register-unregister",
                "a registration against the end of the same buffer",
                _register_unregister,
            ),
            (
                "carrier-unregister",
                "a call by cookie against the end of the buffer that carries its message",
                _carrier_unregister,
            ),
            ("answer-twice", "two processors answer one RPC", _answer_twice),
            ("two-guests", "calls of two guests", _two_guests),
        )
    }
)
"""All systems by name."""
