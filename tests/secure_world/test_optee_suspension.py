# SPDX-License-Identifier: BSD-2-Clause
"""Suspension: time, foreign interrupts, resumption, answers that vanish, files."""

from __future__ import annotations

from uuid import UUID

import pytest

from secure_world import events
from secure_world.settings import SecureWorldSettings
from secure_world.ta import TaRegistry
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import Normal, Scripted
from tests.secure_world.suspended import (
    CMD,
    GENERIC,
    INTR,
    REE_TIME,
    RPC_ARG,
    SYSTEM_TIME,
    TA,
    TEE,
    WORK,
    sleeping,
)


@pytest.fixture
def n() -> Normal:
    return Normal()


class TestTime:
    def test_ree_time(self, n: Normal) -> None:
        session = n.session(s.CLOCK)
        reply = n.invoke(session, REE_TIME, [(2, 0, 0, 0)])
        assert reply.params[0] == (2, 1_790_000_000, 123, 0)
        assert n.rpcs == [(rpc.OPTEE_RPC_CMD_GET_TIME, ((2, 0, 0, 0),))]

    def test_ree_time_refused(self, n: Normal) -> None:
        session = n.session(s.CLOCK)
        n.on_rpc = lambda command, fields: True
        assert n.invoke(session, REE_TIME, [(2, 0, 0, 0)]).result == (GENERIC, TA)

    def test_system_time_is_the_monitors(self) -> None:
        monitor = Scripted()
        n = Normal(monitor=monitor)
        session = n.session(s.CLOCK)
        monitor.time = 12_345_000_000
        reply = n.invoke(session, SYSTEM_TIME, [(2, 0, 0, 0)])
        assert reply.params[0] == (2, 12, 345, 0)

    def test_a_sleep_is_one_request(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        n.rpcs.clear()
        assert n.invoke(session, 4, [(1, 3000, 0, 0)]).result == (0, TA)
        assert n.rpcs == [(rpc.OPTEE_RPC_CMD_SUSPEND, ((1, 3000, 0, 0),))]

    def test_cancel_answers_at_once_and_is_noticed_on_return(self, n: Normal) -> None:
        session = n.session(s.ECHO)
        page, registers = n.start(s.message(1, [(1, 3000, 0, 0)], func=4, session=session))
        cancel = n.call(msg.OPTEE_MSG_CMD_CANCEL, session=session)
        assert (cancel.a0, *cancel.result) == (0, 0, TEE)
        assert n.world.suspended(0) == (0,)
        reply = n.finish(page, registers, 64)
        assert reply.result == (tee.TEE_ERROR_CANCEL, TA)
        assert n.invoke(session, 4, [(1, 1, 0, 0)]).result == (0, TA)


class TestForeignInterrupts:
    def test_a_loop_is_interrupted_and_goes_on(self) -> None:
        monitor = Scripted()
        n = Normal(monitor=monitor)
        session = n.session(s.CLOCK)
        monitor.pending = 5
        reply_page, registers = n.start(
            s.message(1, [(1, 100, 1000, 0)], func=WORK, session=session)
        )
        for _ in range(5):
            assert registers == (INTR, 0, 0, 0)
            before = n.get(reply_page, 224)
            registers = n.resume(0)
            assert registers[0] == 0 or n.get(reply_page, 224) == before
        assert registers == (0, 0, 0, 0)
        assert monitor.time >= 100 * 1000

    def test_registers_of_the_resumption_do_not_matter(self) -> None:
        monitor = Scripted()
        n = Normal(monitor=monitor)
        session = n.session(s.CLOCK)
        monitor.pending = 1
        _, registers = n.start(s.message(1, [(1, 3, 0, 0)], func=WORK, session=session))
        assert n.resume(registers[3], 0xDEAD, 0xBEEF, 0xCAFE, 0xF00D) == (0, 0, 0, 0)

    def test_open_register_and_close_are_interrupted_too(self) -> None:
        class Always(Scripted):
            def stimulus(self, client: int, thread: int, site: int) -> tuple[int, int] | None:
                self.pending -= 1
                return (0, 0) if self.pending >= 0 else None

        monitor = Always()
        n = Normal(monitor=monitor)
        for cmd, params in (
            (0, [s.uuid_param(s.CLOCK), (s.META, 0, 0, 0)]),
            (4, [(s.REG_ATTR, n.page_list([n.pages()]), 1, 7)]),
            (5, [(5, 0, 0, 7)]),
            (6, []),
        ):
            monitor.pending = 3
            _, registers = n.start(s.message(cmd, params))
            for _ in range(3):
                assert registers == (INTR, 0, 0, 0)
                registers = n.resume(0)
            assert registers == (0, 0, 0, 0)

    def test_a_stimulus_can_be_a_wait_or_a_send(self) -> None:
        class Lock(Scripted):
            def __init__(self) -> None:
                super().__init__()
                self.script: list[tuple[int, int]] = []

            def stimulus(self, client: int, thread: int, site: int) -> tuple[int, int] | None:
                return self.script.pop(0) if self.script else None

        monitor = Lock()
        n = Normal(monitor=monitor)
        monitor.script = [(1, 0x41), (2, 0x40)]
        assert n.open(s.CLOCK).result == (0, TA)
        assert n.rpcs == [(4, ((1, 0, 0x41, 0),)), (4, ((1, 1, 0x40, 0),))]


class TestResumption:
    @pytest.mark.parametrize("thread", [0, 1, 2, 0x1_0000, 0xFFFF_FFFF])
    def test_nothing_to_resume(self, n: Normal, thread: int) -> None:
        assert n.resume(thread) == (3, 0, 0, 0)

    def test_the_other_thread(self, n: Normal) -> None:
        _, registers = sleeping(n)
        assert registers[3] == 0
        assert n.resume(1)[0] == 3
        assert n.resume(2)[0] == 3
        assert n.resume(0)[0] == 0
        assert n.resume(0)[0] == 3

    def test_upper_half_of_a3_is_ignored(self, n: Normal) -> None:
        sleeping(n)
        assert n.resume(7 << 32)[0] == 0

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_threads_run_out(self, threads: int) -> None:
        n = Normal(SecureWorldSettings(virtualization=False, threads=threads))
        sessions = [n.session(s.CLOCK) for _ in range(threads + 1)]
        pages = []
        for index, session in enumerate(sessions[:-1]):
            page, registers = n.start(s.message(1, [(1, 5, 0, 0)], func=1, session=session))
            assert registers == (CMD, 0, 0, index)
            pages.append(page)
        data = s.message(1, [(1, 5, 0, 0)], func=1, session=sessions[-1])
        before = n.get(pages[-1], 256)
        assert n.start(data)[1] == (1, 0, 0, 0)
        assert n.get(pages[-1], 256) == before
        assert n.of(events.ThreadRefused) == [(0,)]
        n.answer(pages[0] + 64)
        assert n.resume(0) == (0, 0, 0, 0)
        assert n.start(data)[1] == (CMD, 0, 0, 0)


class TestAnswersThatVanish:
    def test_a_message_page_that_is_gone_at_the_end_is_reported_only(self, n: Normal) -> None:
        page, _ = sleeping(n)
        n.bus.denied.add(page >> 12)
        assert n.resume(0)[0] == INTR
        assert n.resume(0) == (0, 0, 0, 0)
        assert n.of(events.Breach)

    def test_an_rpc_that_cannot_be_asked_never_spins(self, n: Normal) -> None:
        session = n.session(s.LOCKER)
        other = n.session(s.LOCKER)
        _, registers = n.start(s.message(1, [(1, 9, 0, 0)], func=2, session=session))
        assert registers[0] == CMD
        page = n.pages()
        n.put(page, s.message(1, [(1, 0, 0, 0)], func=0, session=other))
        write = n.bus.write

        def refuse(client: int, pa: int, data: bytes) -> None:
            if pa >> 12 == page >> 12:
                raise s.BusError(pa, len(data), write=True)
            write(client, pa, data)

        n.bus.write = refuse  # type: ignore[method-assign]
        registers = n.raw(RPC_ARG, 0, page)
        for _ in range(5):
            assert registers == (INTR, 0, 0, 1)
            registers = n.resume(1)
        n.bus.write = write  # type: ignore[method-assign]
        assert n.resume(1)[0] == CMD


class TestFiles:
    """Requests of the FS service have the recorded layouts and share one buffer per call."""

    def run(self, n: Normal) -> list[tuple[int, tuple[s.Param, ...]]]:
        n.rpcs.clear()
        session = n.session(FILER)
        reply = n.invoke(session, 0)
        assert reply.result == (0, TA), hex(reply.ret)
        return n.rpcs

    def test_layouts(self) -> None:
        n = Normal(registry=TaRegistry([Filer]))
        rpcs = self.run(n)
        commands = [command for command, _ in rpcs]
        assert commands == [6] + [2] * 8 + [7, 6] + [2] * 2 + [7]
        first = rpcs[0][1]
        assert first == ((1, 0, 0x1000, 8),)
        cookie = rpcs[1][1][1][3]
        fs = [params for command, params in rpcs if command == 2]
        assert fs[0] == ((1, 0, 0, 0), (5, 0, 350, cookie), (2, 0, 0, 0))
        assert fs[1] == ((1, 1, 0, 0), (5, 0, 350, cookie), (2, 0, 0, 0))
        assert fs[2] == ((1, 4, 3, 100), (5, 0, 11, cookie))
        assert fs[3] == ((1, 3, 3, 100), (6, 0, 64, cookie))
        assert fs[4] == ((1, 5, 3, 50),)
        assert fs[5] == ((1, 2, 3, 0),)
        assert fs[6] == ((1, 7, 0, 0), (5, 0, 350, cookie), (5, 350, 350, cookie))
        assert fs[7] == ((1, 7, 1, 0), (5, 0, 350, cookie), (5, 350, 350, cookie))
        bigger = fs[8][1][3]
        assert rpcs[10][1] == ((1, 0, 0x3000, 8),)
        assert fs[8] == ((1, 4, 9, 0), (5, 0, 0x2001, bigger))
        assert fs[9] == ((1, 6, 0, 0), (5, 0, 350, bigger))
        assert n.shm == {}

    def test_a_short_or_false_size_is_cut(self) -> None:
        n = Normal(registry=TaRegistry([Filer]))

        def liar(command: int, fields: list[int]) -> bool:
            if command == rpc.OPTEE_RPC_CMD_FS and fields[9] == rpc.OPTEE_RPC_FS_READ:
                fields[5] = 0
                fields[14] = 1 << 40
                return True
            return False

        n.on_rpc = liar
        session = n.session(FILER)
        assert n.invoke(session, 1).result == (64, TA)


FILER = UUID("11111111-1111-4111-8111-111111111111")


class Filer(s.TrustedApplication):
    uuid = FILER
    pseudo = True
    single_instance = True
    multi_session = True

    async def invoke(self, env: s.TaEnvironment, command: int, params: s.Params) -> int:
        fs = env.fs
        if command == 1:
            fd = await fs.create("/x")
            return len(await fs.read(fd, 0, 64))
        with pytest.raises(s.TeeError, match="0xffff0008"):
            await fs.open("/a")
        fd = await fs.create("/a")
        await fs.write(fd, 100, b"hello world")
        assert await fs.read(fd, 100, 64) == b"hello world"
        await fs.truncate(fd, 50)
        await fs.close(fd)
        await fs.rename("/a", "/b")
        await fs.rename("/b", "/b", overwrite=True)
        with pytest.raises(s.TeeError, match="0xffff0006"):
            await fs.write(9, 0, bytes(0x2001))
        await fs.remove("/b")
        return 0
