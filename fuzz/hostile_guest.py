# SPDX-License-Identifier: BSD-2-Clause
"""A state machine of a hostile guest, for any mediator behind the Target protocol.

Two guests share a machine: one is hostile and does whatever the rules draw, the other is honest and
must not notice. After each rule all invariants are judged that a target shows: no address or byte of
others reaches a guest (I1), the secure world is handed only what it may have (I2), references balance
(I3), guests are strangers (I5), caps hold (I6), work is bounded and results are defined (I7).

>>> from specs.vectors.model_target import ModelTarget
>>> attack(ModelTarget, examples=2, steps=5, seed=1)
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import ClassVar, Final

from attrs import field, frozen
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fuzz.bench import Bench, RegisteredBuffer
from fuzz.inspector import Bounds, Inspector
from fuzz.service import Service, pending_from
from fuzz.strategies import tee as lies
from fuzz.strategies.answers import hostile_rpc_answers
from fuzz.strategies.applications import COMMANDS, application_calls
from fuzz.strategies.disturbances import disturbances, racing_writes, remaps
from fuzz.strategies.integers import edge_integers
from fuzz.strategies.maps import memory_maps
from fuzz.strategies.messages import (
    COOKIES,
    Prepared,
    any_messages,
    invocations,
    open_sessions,
    registrations,
    unregistrations,
)
from fuzz.strategies.registers import traps
from fuzz.victim import Victim
from fuzz.worlds import FuzzWorld, HonestWorld, LyingWorld
from secure_world.apps import default_registry
from secure_world.apps.basic import Clock, Locker, MemoryReferences
from secure_world.apps.echo import Echo
from smccc.calls import messages as commands
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.errors import ParseError
from smccc.message import Message, parse_message, uuid_from_value
from smccc.page_list import build_page_list, entry_count
from smccc.registers import MASK32
from specs.target import PAGE_SIZE, GuestSpec, Outcome, Setup, TargetFactory, Trap

HOSTILE: Final = 1
VICTIM: Final = 2

MAX_BUFFER_PAGES: Final = 1100
"""Pages of one buffer: beyond the second roll-over of a list, and quickly read."""

MAX_SERVED: Final = 400
"""RPCs served in a row before a call counts as stuck: locks of several calls need some rounds."""

MAX_CACHED: Final = 16
"""Cached RPC arguments that a drain may find; a TEE has one for each thread at most."""

SETTLED: Final = (Clock.uuid, Echo.uuid, MemoryReferences.uuid, Locker.uuid)
"""Applications whose sessions make RPCs, take time, touch memory and wait for each other."""

STYLES: Final = (
    smc.OPTEE_SMC_CALL_WITH_ARG,
    smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
    smc.OPTEE_SMC_CALL_WITH_REGD_ARG,
)


@frozen(kw_only=True)
class HostileOptions:
    """What a hostile guest attacks.

    ``world``: the secure world, :class:`~fuzz.worlds.HonestWorld` or :class:`~fuzz.worlds.LyingWorld`
    or a function that makes one. ``preset``: name of the mediator's limits and offers, passed on in
    the setup. ``victim_function``: by which function the honest guest calls. ``bounds``: caps that
    the mediator promises. ``max_buffer_pages``: its limit for one buffer.
    """

    world: Callable[[Inspector], FuzzWorld] = HonestWorld
    preset: str = "default"
    victim_function: int = smc.OPTEE_SMC_CALL_WITH_ARG
    bounds: Bounds = field(factory=Bounds)
    max_buffer_pages: int | None = MAX_BUFFER_PAGES


class HostileGuest(RuleBasedStateMachine):
    """The machine itself; :func:`hostile_guest` makes a subclass for a target."""

    factory: ClassVar[TargetFactory]
    options: ClassVar[HostileOptions]

    bench: Bench
    victim: Victim

    def __init__(self) -> None:
        super().__init__()
        self._images = default_registry().images()
        self._sessions: dict[int, uuid.UUID] = {}
        self._cookies: tuple[int, ...] = COOKIES[:2]
        self._ready = False
        self._lost = False

    # --- the beginning ------------------------------------------------------------------------------

    @initialize(maps=memory_maps((HOSTILE, VICTIM)))
    def build(self, maps: tuple[GuestSpec, ...]) -> None:
        """A fresh target with two guests of any map."""
        options = self.options
        setup = Setup(maps, preset=options.preset, max_buffer_pages=options.max_buffer_pages)
        self.bench = Bench(type(self).factory, setup, options.world, options.bounds)
        self.view = self.bench.views[HOSTILE]
        self.spec = self.bench.specs[HOSTILE]
        self._service = Service(self.view, self._images)
        self.victim = Victim(self.bench, VICTIM, self._images, options.victim_function)
        if self.honest:
            self.victim.start()
        self._ready = True
        self._judge()

    @property
    def honest(self) -> bool:
        """Whether the secure world is honest."""
        return self.bench.world.honest

    # --- what the hostile guest does -----------------------------------------------------------------

    @rule(data=st.data())
    def raw_call(self, data: st.DataObject) -> None:
        """Any registers by any conduit."""
        trap = data.draw(traps(HOSTILE), "trap")
        self._trap(data, trap)

    @rule(data=st.data(), style=st.sampled_from(STYLES), slot=st.integers(0, 511))
    def message(self, data: st.DataObject, style: int, slot: int) -> None:
        """Any message, correct or hostile, in any style."""
        prepared = data.draw(
            any_messages(self.view, sessions=(*self._sessions, 1), cookies=self._cookies), "message"
        )
        self._send(data, prepared, style, slot)

    @rule(style=st.sampled_from(STYLES[:2]), which=st.integers(0, len(SETTLED) - 1))
    def settle_in(self, style: int, which: int) -> None:
        """What a driver does first, without any disturbance: cache, a buffer, a session that works."""
        if not self.honest or self._lost:
            return
        self.bench.restore_map(HOSTILE)
        self._serve_all()
        self.bench.trap_registers(HOSTILE, (smc.OPTEE_SMC_ENABLE_SHM_CACHE, 0, 0, 0, 0, 0, 0, 0))
        pages, cookie = self.view.data[:3], COOKIES[0]
        lists = build_page_list(pages, self.view.lists)
        for message in (
            commands.RegisterShm(lists[0][0], len(pages) * PAGE_SIZE, cookie).message(),
            commands.OpenSession(SETTLED[which]).message(),
        ):
            prepared = Prepared(message.build(), tuple(lists), "settle in")
            carrier = self.view.carriers[0]
            self.bench.store(HOSTILE, prepared.at(carrier))
            self.bench.call(HOSTILE, style, carrier)
            self._serve_all()
            self._learn(prepared, carrier)
        self._judge(rest=True)

    @rule(data=st.data(), style=st.sampled_from(STYLES[:2]))
    def register(self, data: st.DataObject, style: int) -> None:
        """Register correct memory, often few pages, so that other calls can use it."""
        counts = data.draw(st.sampled_from((st.integers(1, 4), None)))
        prepared = data.draw(
            registrations(self.view, cookies=COOKIES[:5], counts=counts), "message"
        )
        self._send(data, prepared, style, 0)

    @rule(data=st.data(), style=st.sampled_from(STYLES[:2]))
    def unregister(self, data: st.DataObject, style: int) -> None:
        """Unregister what may or may not be registered."""
        self._send(data, data.draw(unregistrations(self._cookies), "message"), style, 0)

    @rule(data=st.data(), style=st.sampled_from(STYLES[:2]), ending=st.booleans())
    def open_session(self, data: st.DataObject, style: int, ending: bool) -> None:
        """Open a session correctly; perhaps serve its RPCs at once, as a driver would."""
        self._send(data, data.draw(open_sessions(self.view), "message"), style, 0, ending=ending)

    @rule(data=st.data(), style=st.sampled_from(STYLES), slot=st.integers(0, 1))
    def invoke(self, data: st.DataObject, style: int, slot: int) -> None:
        """Invoke a command in a session that may exist."""
        prepared = data.draw(
            invocations(self.view, sessions=(*self._sessions, 1), cookies=self._cookies), "message"
        )
        self._send(data, prepared, style, slot)

    @precondition(lambda self: bool(self._sessions))
    @rule(
        data=st.data(),
        style=st.sampled_from(STYLES),
        slot=st.integers(0, 1),
        ending=st.booleans(),
    )
    def use_session(self, data: st.DataObject, style: int, slot: int, ending: bool) -> None:
        """Invoke a command that its application understands; perhaps serve its RPCs at once."""
        known = [(number, ta) for number, ta in self._sessions.items() if ta in COMMANDS]
        if known:
            session, application = data.draw(st.sampled_from(known), "session")
            prepared = data.draw(
                application_calls(self.view, session, application, cookies=self._cookies),
                "message",
            )
            self._send(data, prepared, style, slot, ending=ending)

    @precondition(lambda self: self._has_pending())
    @rule(data=st.data(), which=st.integers(0, 3), lie=st.booleans())
    def answer(self, data: st.DataObject, which: int, lie: bool) -> None:
        """Answer one of the suspended calls, honestly or not."""
        pending = self.bench.pending(HOSTILE)
        rpc = pending[which % len(pending)]
        if lie:
            reply = data.draw(
                hostile_rpc_answers(rpc, self.view, cookies=self._cookies, images=self._images),
                "reply",
            )
        else:
            reply = self._service.answer(rpc)
        self.bench.store(HOSTILE, reply.writes)
        self._trap(data, Trap(HOSTILE, reply.registers, vcpu=1))

    @rule(data=st.data(), thread=st.integers(0, 4) | st.integers(0x1_0000, 0x1_0002))
    def resume(self, data: st.DataObject, thread: int) -> None:
        """Resume a thread that may be nobody's (bug class 23)."""
        words = data.draw(st.tuples(*[edge_integers(32)] * 4), "registers")
        regs = (smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, *words[:2], thread, *words[2:], 0, 0)
        self._trap(data, Trap(HOSTILE, regs))

    @rule(
        function=st.sampled_from((smc.OPTEE_SMC_DISABLE_SHM_CACHE, smc.OPTEE_SMC_ENABLE_SHM_CACHE))
    )
    def cache(self, function: int) -> None:
        """Switch the cache of RPC arguments on, or drain it."""
        self.bench.trap_registers(HOSTILE, (function, 0, 0, 0, 0, 0, 0, 0))
        self._judge()

    @rule(data=st.data())
    def change_stage2(self, data: st.DataObject) -> None:
        """Take pages away, write-protect them, give them back; also pinned ones (bug class 21)."""
        self.bench.remap(HOSTILE, data.draw(remaps(self.spec), "change"))
        self._judge()

    @rule()
    def restore_stage2(self) -> None:
        """All pages are again what they were."""
        self.bench.restore_map(HOSTILE)

    @rule(data=st.data())
    def scribble(self, data: st.DataObject) -> None:
        """Overwrite messages and lists."""
        self.bench.store(HOSTILE, data.draw(racing_writes(self.view), "writes"))

    @rule(data=st.data())
    def destroy_and_create(self, data: st.DataObject) -> None:
        """The guest dies with all that it holds, and a new one gets its id."""
        if self._lost:
            return
        world = self.bench.world
        if isinstance(world, LyingWorld):
            status = data.draw(st.sampled_from((0, 0, 0, smc.OPTEE_SMC_RETURN_ENOTAVAIL)), "status")
            world.life_cycle.append(status)
            # The host keeps pages and id of a guest that the TEE did not let go of.
            self._lost = status != 0
        self.bench.destroy(
            HOSTILE, data.draw(disturbances(self.spec, cookies=self._cookies), "disturbance")
        )
        self._judge()
        if not self._lost:
            self._lost = not self.bench.create(HOSTILE)
            self._sessions, self._cookies = {}, COOKIES[:2]
            self._service = Service(self.view, self._images)
        self._judge()

    @rule(drain=st.booleans())
    def serve(self, drain: bool) -> None:
        """Serve all RPCs honestly until every call has ended; then nothing may be left over.

        ``drain``: then take back all cached RPC arguments, as a driver does when it is unloaded.
        """
        if self.honest and not self._lost:
            self.bench.restore_map(HOSTILE)
            self._serve_all()
            self._judge(rest=True)
            if drain:
                self._drain()
                self._judge(rest=True)

    @rule(data=st.data())
    def victim_works(self, data: st.DataObject) -> None:
        """The honest guest uses its sessions."""
        if self.honest:
            self.victim.step()
        else:
            self.bench.call(VICTIM, self.options.victim_function, self.bench.views[VICTIM].ram[0])
        self._judge()

    # --- the end ---------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everything ends; nothing is left, and the victim has never noticed."""
        if not self._ready:
            return
        self._ready = False
        bench = self.bench
        if self.honest:
            self.serve(drain=True)
            self.victim.step()
            bench.inspector.check()
        if HOSTILE in bench.alive:
            bench.destroy(HOSTILE)
        if self.honest:
            self.victim.step()
            self.victim.stop()
        self._judge(rest=self.honest)
        bench.destroy(VICTIM)
        bench.inspect()

    # --- inside ----------------------------------------------------------------------------------------

    def _has_pending(self) -> bool:
        return self._ready and self.bench.has_pending(HOSTILE)

    def _judge(self, *, rest: bool = False) -> None:
        self.bench.inspect(rest=rest)

    def _trap(self, data: st.DataObject, trap: Trap) -> Outcome:
        world = self.bench.world
        if isinstance(world, LyingWorld):
            world.plan(data.draw(st.lists(lies.tee_answers(), max_size=4), "answers"))
        disturbance = data.draw(disturbances(self.spec, cookies=self._cookies), "disturbance")
        outcome = self.bench.trap(trap, disturbance)
        self._judge()
        return outcome

    def _send(
        self,
        data: st.DataObject,
        prepared: Prepared,
        style: int,
        slot: int,
        *,
        ending: bool = False,
    ) -> None:
        """Put a message where ``style`` finds it and call. ``ending``: serve RPCs until all is over."""
        carriers = self.view.carriers
        if style == smc.OPTEE_SMC_CALL_WITH_REGD_ARG:
            cookie = data.draw(st.sampled_from(self._cookies), "cookie")
            offset = 8 * slot
            buffer = self.bench.buffer(HOSTILE, cookie)
            ipa = 0 if buffer is None else buffer.ipa(offset)
            regs = (style, cookie >> 32, cookie & MASK32, offset, 0, 0, 0, 0)
        else:
            ipa = carriers[slot % len(carriers)]
            regs = (style, ipa >> 32, ipa & MASK32, 1, 0, 0, 0, 0)
        self.bench.store(HOSTILE, prepared.at(ipa) if ipa else prepared.writes)
        outcome = self._trap(data, Trap(HOSTILE, regs))
        if ending and self.honest and pending_from(outcome.regs) is not None:
            self._serve_all()
            self._judge()
            self._learn(prepared, ipa)
        elif outcome.regs[0] & MASK32 == smc.OPTEE_SMC_RETURN_OK and ipa:
            self._learn(prepared, ipa)

    def _learn(self, prepared: Prepared, ipa: int) -> None:
        """Sessions and cookies that work now, for the calls to come."""
        try:
            sent = parse_message(prepared.data)
        except ParseError:
            return
        head = self.bench.load(HOSTILE, ipa, min(32, PAGE_SIZE - ipa % PAGE_SIZE))
        if len(head) < 32 or struct.unpack_from("<I", head, 20)[0]:
            return
        if sent.cmd == msg.OPTEE_MSG_CMD_OPEN_SESSION:
            (session,) = struct.unpack_from("<I", head, 8)
            if len(sent.params) >= 2:
                self._sessions[session] = uuid_from_value(sent.params[0].a, sent.params[0].b)
        elif sent.cmd == msg.OPTEE_MSG_CMD_REGISTER_SHM and len(sent.params) == 1:
            self._learn_buffer(prepared, sent)

    def _learn_buffer(self, prepared: Prepared, sent: Message) -> None:
        _, address, size, cookie = sent.params[0]
        offset = address % PAGE_SIZE
        words: list[int] = []
        for _, data in prepared.writes:
            if len(data) == PAGE_SIZE:
                words += struct.unpack("<511Q", data[:-8])
        pages = tuple(words[: entry_count(offset, size)])
        self.bench.registered(HOSTILE, cookie, RegisteredBuffer(pages, offset))
        known = [other for other in self._cookies if other != cookie]
        self._cookies = (*known[-4:], cookie)

    def _drain(self) -> None:
        """DISABLE_SHM_CACHE until ENOTAVAIL says that nothing is cached any more (bug class 10)."""
        status = smc.OPTEE_SMC_RETURN_OK
        for _ in range(MAX_CACHED):
            outcome = self.bench.trap_registers(
                HOSTILE, (smc.OPTEE_SMC_DISABLE_SHM_CACHE, 0, 0, 0, 0, 0, 0, 0)
            )
            status = outcome.regs[0] & MASK32
            if status != smc.OPTEE_SMC_RETURN_OK:
                break
        if status != smc.OPTEE_SMC_RETURN_ENOTAVAIL:
            self.bench.inspector.report("I7", HOSTILE, f"draining the cache ends in {status:#x}")

    def _serve_all(self) -> None:
        """Answer all suspended calls, in turn, until none is left."""
        for _ in range(MAX_SERVED):
            pending = self.bench.pending(HOSTILE)
            if not pending:
                return
            for rpc in pending:
                reply = self._service.answer(rpc)
                self.bench.store(HOSTILE, reply.writes)
                self.bench.trap_registers(HOSTILE, reply.registers)
        waiting = [rpc.thread for rpc in self.bench.pending(HOSTILE)]
        self.bench.inspector.report("I7", HOSTILE, f"calls of threads {waiting} never end")


def hostile_guest(
    factory: TargetFactory, options: HostileOptions | None = None
) -> type[HostileGuest]:
    """A state machine that attacks targets of ``factory``.

    Run it with :func:`hypothesis.stateful.run_state_machine_as_test`, as ``Machine.TestCase`` in a
    test module, or with :func:`attack`.
    """
    # In the class body a function would become a method.
    made: dict[str, object] = {
        "factory": staticmethod(factory),
        "options": options or HostileOptions(),
        "__module__": __name__,
    }
    return type("HostileGuestOfTarget", (HostileGuest,), made)


def attack(
    factory: TargetFactory,
    options: HostileOptions | None = None,
    *,
    examples: int = 50,
    steps: int = 30,
    seed: int | None = None,
    shrink: bool = True,
) -> None:
    """Attack targets of ``factory``; raises what goes wrong, with the shrunk steps in its notes.

    ``examples``: runs, each on a fresh target. ``steps``: rules per run at most. ``seed``: of all
    draws; without one they are the same each time too, and derive from the machine's code.
    ``shrink``: look for the shortest failing run; without, the first one found is raised.
    """
    machine = hostile_guest(factory, options)
    if seed is not None:
        with_seed(seed)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=seed is None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        ),
    )
