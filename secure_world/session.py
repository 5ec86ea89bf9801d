# SPDX-License-Identifier: BSD-2-Clause
"""Sessions and TA instances of one partition, and the locks around them.

Model of OP-TEE OS ``core/kernel/tee_ta_manager.c``: one mutex (``tee_ta_mutex``) guards everything
here but is never held while a thread leaves, so only its queue is modelled; the condition
variables are the objects that threads wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from secure_world import events
from secure_world.bus import BusError
from secure_world.environment import Environment
from secure_world.monitor import SITE_RUNNING
from secure_world.ta import ClientIdentity, TaPanic, TeeError, TrustedApplication
from secure_world.waiting import WaitQueue
from smccc.constants import tee

if TYPE_CHECKING:
    from secure_world.params import CallParams
    from secure_world.partition import Partition
    from secure_world.thread import Thread

_M32: Final = 0xFFFF_FFFF


class Context:
    """One TA instance. ``busy``: a thread is inside (unless calls may overlap).

    ``instance`` is None while it loads and once it has panicked.
    """

    __slots__ = (
        "application",
        "busy",
        "busy_cv",
        "concurrent",
        "created",
        "initializing",
        "instance",
        "panicked",
        "refs",
        "single",
        "uuid",
    )

    def __init__(self, uuid: bytes, application: type[TrustedApplication] | None) -> None:
        self.uuid = uuid
        self.application = application
        self.instance: TrustedApplication | None = None
        self.single = application is not None and application.single_instance
        self.concurrent = application is not None and application.concurrent
        self.created = False
        self.initializing = False
        self.panicked = False
        self.busy = False
        self.busy_cv = object()
        self.refs = 1


class Session:
    """One session. ``owner`` is the thread that uses it; ``waiting`` threads wait for ``lock_cv``."""

    __slots__ = (
        "cancel",
        "cancel_masked",
        "context",
        "env",
        "id",
        "last_cv",
        "lock_cv",
        "owner",
        "unlinked",
        "waiting",
    )

    def __init__(self, number: int, owner: Thread) -> None:
        self.id = number
        self.context: Context | None = None
        self.env: Environment | None = None
        self.owner: Thread | None = owner
        self.cancel = False
        self.cancel_masked = True
        self.unlinked = False
        self.waiting = 0
        self.lock_cv = object()
        self.last_cv = object()

    def closing(self) -> bool:
        """True once somebody closes it: nobody else gets in."""
        return self.unlinked


class SessionTable:
    """All sessions and instances of one partition."""

    __slots__ = (
        "_init_cv",
        "_partition",
        "_single_cv",
        "contexts",
        "queue",
        "sessions",
        "single_owner",
    )

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.sessions: dict[int, Session] = {}
        self.contexts: list[Context] = []
        self.queue = WaitQueue()
        self._init_cv = object()
        self._single_cv = object()
        self.single_owner: Thread | None = None

    # Numbers and look-up.

    def _new_id(self) -> int:
        """One more than the last opened session's number; 0 is never one."""
        sessions = self.sessions
        if not sessions:
            return 1
        number = next(reversed(sessions)) + 1 & _M32 or 1
        while number in sessions:
            number = number + 1 & _M32 or 1
        return number

    async def get(self, number: int, thread: Thread) -> Session | None:
        """The session, owned by ``thread`` until :meth:`put`; waits while another thread uses it."""
        session = self.sessions.get(number)
        if session is None or session.closing():
            return None
        session.waiting += 1
        while session.owner is not None and not session.closing():
            await self.queue.wait(thread, session.lock_cv)
        session.waiting -= 1
        if session.closing():
            if not session.waiting:
                self.queue.promote(session.last_cv, everyone=False)
            if self.queue.waiting:
                await self.queue.wake_next(thread)
            return None
        session.owner = thread
        return session

    async def put(self, session: Session, thread: Thread) -> None:
        """End of a use; lets the next thread in."""
        session.owner = None
        queue = self.queue
        if queue.conditional:
            queue.promote(session.lock_cv, everyone=False)
            if queue.waiting:
                await queue.wake_next(thread)

    async def _unlink(self, session: Session, thread: Thread) -> None:
        """Nobody finds the session any more; waits until nobody waits for it."""
        session.unlinked = True
        queue = self.queue
        if queue.conditional:
            queue.promote(session.lock_cv, everyone=True)
            if queue.waiting:
                await queue.wake_next(thread)
        while session.waiting:
            await queue.wait(thread, session.last_cv)
        del self.sessions[session.id]

    # One thread at a time in an instance, and in all single instances.

    async def set_busy(self, context: Context, thread: Thread) -> None:
        """Enter an instance; waits while another thread is inside."""
        if context.concurrent:
            return
        if context.single:
            while self.single_owner is not None:
                await self.queue.wait(thread, self._single_cv)
            self.single_owner = thread
        while context.busy:
            await self.queue.wait(thread, context.busy_cv)
        context.busy = True

    async def clear_busy(self, context: Context, thread: Thread) -> None:
        """Leave an instance; lets the next thread in."""
        if context.concurrent:
            return
        context.busy = False
        if context.single:
            self.single_owner = None
        await self.after(context, thread)

    async def after(self, context: Context, thread: Thread) -> None:
        """An instance was left: its next thread, and the next of all single instances, may go on."""
        queue = self.queue
        if queue.conditional:
            queue.promote(context.busy_cv, everyone=False)
            if context.single:
                queue.promote(self._single_cv, everyone=False)
        if queue.waiting:
            await queue.wake_next(thread)

    # Opening.

    def _find_context(self, uuid: bytes) -> Context | None:
        for context in self.contexts:
            if context.uuid == uuid:
                return context
        return None

    async def _attach(self, uuid: bytes, thread: Thread) -> tuple[int, Context | None]:
        """Use a running single instance. ITEM_NOT_FOUND: a new instance is needed."""
        while True:
            context = self._find_context(uuid)
            if context is None or context.application is None:
                return tee.TEE_ERROR_ITEM_NOT_FOUND, None
            if not context.initializing:
                break
            await self.queue.wait(thread, self._init_cv)
        if not context.single:
            return tee.TEE_ERROR_ITEM_NOT_FOUND, None
        if not context.application.multi_session and context.refs:
            return tee.TEE_ERROR_BUSY, None
        context.refs += 1
        return tee.TEE_SUCCESS, context

    async def _instantiate(self, uuid: bytes, thread: Thread) -> tuple[int, Context | None]:
        """A new instance: a pseudo-TA at once, a user TA through LOAD_TA."""
        world = self._partition.world
        application = world.registry.find(uuid)
        context = Context(uuid, application)
        # Entered before it is loaded: whoever wants the same TA finds it and waits.
        self.contexts.append(context)
        code = tee.TEE_SUCCESS
        if application is None or not application.pseudo:
            context.initializing = True
            if world.asks_for_interrupts:
                await thread.interrupt_point(SITE_RUNNING)
            code = await world.loader.load(thread, uuid)
            context.initializing = False
            if not code and application is None:
                # A genuine image of a TA that this world has no class for.
                code = tee.TEE_ERROR_ITEM_NOT_FOUND
        if code or application is None:
            self.contexts.remove(context)
        else:
            context.instance = application()
        queue = self.queue
        if queue.conditional:
            queue.promote(self._init_cv, everyone=True)
            if queue.waiting:
                await queue.wake_next(thread)
        return (code, None) if code else (code, context)

    async def open(
        self, thread: Thread, uuid: bytes, identity: ClientIdentity, params: CallParams
    ) -> tuple[int, int, int]:
        """Open a session. Returns result, origin and the session's number (0 on failure)."""
        if len(self.sessions) >= self._partition.world.settings.max_sessions:
            return tee.TEE_ERROR_OUT_OF_MEMORY, tee.TEE_ORIGIN_TEE, 0
        session = Session(self._new_id(), thread)
        self.sessions[session.id] = session
        code, context = await self._attach(uuid, thread)
        if code == tee.TEE_ERROR_ITEM_NOT_FOUND:
            code, context = await self._instantiate(uuid, thread)
        if code or context is None:
            await self._unlink(session, thread)
            return code, tee.TEE_ORIGIN_TEE, 0
        session.context = context
        env = Environment(self._partition, session, uuid, identity)
        session.env = env
        env.thread = thread
        await self.set_busy(context, thread)
        code, panicked = await self._enter_open(context, env, params, thread)
        await self.clear_busy(context, thread)
        if code or panicked:
            origin = tee.TEE_ORIGIN_TEE if panicked else tee.TEE_ORIGIN_TRUSTED_APP
            await self._unlink(session, thread)
            await self._release(context, env)
            return code, origin, 0
        sink = self._partition.world.sink
        if sink is not None:
            sink(events.SessionOpened(self._partition.client, session.id, uuid))
        await self.put(session, thread)
        return tee.TEE_SUCCESS, tee.TEE_ORIGIN_TRUSTED_APP, session.id

    async def _enter_open(
        self, context: Context, env: Environment, params: CallParams, thread: Thread
    ) -> tuple[int, bool]:
        instance = context.instance
        code = tee.TEE_SUCCESS
        if instance is not None:
            try:
                if thread.partition.world.asks_for_interrupts:
                    await thread.interrupt_point(SITE_RUNNING)
                if not context.created:
                    code = await instance.create(env) & _M32
                    context.created = not code
                if not code:
                    code = await instance.open_session(env, params) & _M32
            except TeeError as error:
                code = error.code & _M32
            except Exception as error:  # whatever a TA raises is its panic, never the core's
                self.panic(context, error)
        if context.instance is None:
            return tee.TEE_ERROR_TARGET_DEAD, True
        return code, False

    async def _release(self, context: Context, env: Environment) -> None:
        """One session fewer; the last one takes the instance along, unless it is kept alive."""
        context.refs -= 1
        if context.refs > 0:
            return
        application = context.application
        keep = context.single and application is not None and application.keep_alive
        if context.panicked or not keep:
            if context in self.contexts:
                self.contexts.remove(context)
            instance = context.instance
            if instance is not None and context.created:
                try:
                    await instance.destroy(env)
                except Exception as error:
                    self.panic(context, error)

    # Using and closing.

    async def close(self, number: int, thread: Thread) -> int:
        """Close a session; returns the result code."""
        session = await self.get(number, thread)
        if session is None:
            return tee.TEE_ERROR_ITEM_NOT_FOUND
        context, env = session.context, session.env
        if context is None or env is None or context.instance is None:
            await self._unlink(session, thread)
        else:
            await self.set_busy(context, thread)
            env.thread = thread
            try:
                if thread.partition.world.asks_for_interrupts:
                    await thread.interrupt_point(SITE_RUNNING)
                instance = context.instance
                if instance is not None:
                    await instance.close_session(env)
            except TeeError:
                pass  # GP gives this entry point no way to fail
            except Exception as error:
                self.panic(context, error)
            await self._unlink(session, thread)
            await self.clear_busy(context, thread)
        if context is not None and env is not None:
            await self._release(context, env)
        sink = self._partition.world.sink
        if sink is not None:
            sink(events.SessionClosed(self._partition.client, number))
        return tee.TEE_SUCCESS

    def panic(self, context: Context, error: Exception) -> None:
        """An instance died: nobody finds it again, its sessions answer TARGET_DEAD."""
        partition = self._partition
        if isinstance(error, BusError):
            partition.breach(error)
        code = error.code if isinstance(error, TaPanic) else tee.TEE_ERROR_GENERIC
        context.panicked = True
        context.instance = None
        if context in self.contexts:
            self.contexts.remove(context)
        sink = partition.world.sink
        if sink is not None and partition.alive:
            sink(events.TaPanicked(partition.client, context.uuid, code & _M32))
