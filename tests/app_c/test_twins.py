# SPDX-License-Identifier: BSD-2-Clause
"""The app in C and its Python twin on whole platforms: real drivers, the same answers, memory and pins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from mediator.deployment.choice import Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.server import SharedShadows
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.guest.client import INPUT, OUTPUT, Memref, Value
from mediator.guest.driver_settings import DriverSettings
from mediator.guest.guest import Guest, GuestSettings, Main
from mediator.guest.profile import LINUX_6_1, LINUX_6_12
from mediator.host import Host
from mediator.hypervisor.core import MachineSettings
from mediator.hypervisor.scheduler import Mode, RunEnd
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps.basic import MemoryReferences
from secure_world.settings import SecureWorldSettings
from tests.app_c.peer import Peer
from tests.app_c.twins import TWIN, manifest_of
from tests.platform.workload import arithmetic, clock, echo, missing

RAM = ((0x4000_0000, 2048),)
STEPS = 1_000_000


async def memory(guest: Guest) -> None:
    """Registered and temporary memory, odd offsets, several pages."""
    client = guest.client("memory")
    async with client.open_session(MemoryReferences.uuid) as session:
        async with await client.allocate(1 << 20) as shared:
            await shared.write(b"mediator" * 512, 0x1234)
            total = Value(direction=OUTPUT)
            await session.invoke(MemoryReferences.SUM, Memref(shared, direction=INPUT), total)
            assert (total.a, total.b) == (sum(b"mediator") * 512, 1 << 20)
        data = bytes(range(256)) * 40
        buffer = await client.buffer_of(data, offset=0xF01)
        await session.invoke(MemoryReferences.REVERSE, Memref(buffer))
        assert await buffer.read(0, len(data)) == data[::-1]
        client.free(buffer)


MAINS: tuple[Main, ...] = (arithmetic, echo, memory, clock, missing)


AnyTee = InHypervisor | Peer | El0App
Maker = Callable[[Host, SharedShadows], AnyTee]


@attrs.frozen
class Outcome:
    """What can be seen of a run from outside of the mediator."""

    end: RunEnd
    time: int
    counters: tuple[dict[str, int], ...]
    memory: tuple[str, ...]
    pinned: tuple[int, ...]
    answers: str
    traps: int


class Watched:
    """Any mediator, with every trap and its answer noted."""

    def __init__(self, tee: AnyTee) -> None:
        self.tee = tee
        self.probe = tee.probe
        self.guest_created = tee.guest_created
        self.guest_destroyed = tee.guest_destroyed
        self.answers = hashlib.sha256()
        self.traps = 0

    def close(self) -> None:
        pass

    def guest_of(self, client: int) -> int:
        return client - TWIN.client_id_base

    async def handle_regs(
        self, guest: int, vcpu: int, regs: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        out = await self.tee.handle_regs(guest, vcpu, regs)  # type: ignore[arg-type]
        self.answers.update(repr((guest, vcpu, regs, out)).encode())
        self.traps += 1
        return out


@attrs.frozen
class Home(Deployment):
    """A deployment that is none of the known ones."""

    maker: Maker = attrs.field(kw_only=True)
    made: list[Watched] = attrs.field(factory=list)

    def make(  # type: ignore[override]
        self, host: Host, *_: object, shadows: SharedShadows | None = None, **__: object
    ) -> Watched:
        assert shadows is not None
        self.made.append(Watched(self.maker(host, shadows)))
        return self.made[0]


def run(
    make: Maker,
    seed: int,
    secure_world: SecureWorldSettings,
    mode: Mode,
) -> Outcome:
    home = Home(maker=make)
    platform = Platform(
        PlatformSettings(
            seed=seed,
            machine=MachineSettings(mode=mode, pcpus=2),
            secure_world=secure_world,
            checkers=False,
            charged=False,
            deployment=home,
        )
    )
    for index, profile in enumerate((LINUX_6_12, LINUX_6_1)):
        driver = DriverSettings(profile=profile)
        settings = GuestSettings(f"guest{index}", RAM, vcpus=2, seed=seed + index, driver=driver)
        platform.add_guest(settings, *MAINS)
    result = platform.run(max_steps=STEPS)
    platform.check()
    assert not result.deadlocked
    first = next(iter(platform.guests))
    numbers = tuple(platform.guests)
    outcome = Outcome(
        result.end,
        platform.machine.now(),
        tuple(dict(guest.counters()) for guest in platform.guests.values()),
        tuple(digest(platform, number) for number in numbers),
        tuple(platform.host.pinned(number) for number in numbers),
        home.made[0].answers.hexdigest(),
        home.made[0].traps,
    )
    platform.machine.destroy_guest(first)
    platform.run(max_steps=STEPS)
    assert first not in platform.machine.guests
    return outcome


def digest(platform: Platform, guest: int) -> str:
    """All RAM of a guest."""
    found = hashlib.sha256()
    for start, pages in RAM:
        for page in range(pages):
            found.update(platform.host.read_guest(guest, start + page * 4096, 4096) or b"?")
    return found.hexdigest()


def native(host: Host, shadows: SharedShadows) -> InHypervisor:
    return InHypervisor(host, TWIN)


@pytest.mark.parametrize("mode", [Mode.DIRECT, Mode.INTERLEAVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("rpc_arg", [True, False], ids=["rpc-arg", "classic"])
@pytest.mark.parametrize("home", ["peer", "el0-app"])
def test_the_same_platform_with_either_mediator(
    home: str, rpc_arg: bool, mode: Mode, sanitized_app: Path, plain_app: Path
) -> None:
    """Under sanitizers with the peer of these tests, and isolated in the real deployment."""
    tee = SecureWorldSettings(threads=4, rpc_arg=rpc_arg)
    with ExitStack() as stack:

        def app(host: Host, shadows: SharedShadows) -> Peer | El0App:
            if home == "peer":
                peer = Peer(host, sanitized_app)
                stack.callback(lambda: exits.append(peer.end()))
                return peer
            manifest = manifest_of(plain_app)
            made = El0App(host, TWIN, manifest=manifest, shadows=shadows, require_isolation=True)
            stack.callback(lambda: exits.append(made.deaths))
            return stack.enter_context(made)

        exits: list[int] = []
        in_c = run(app, 3, tee, mode)
    assert exits == [0]
    in_python = run(native, 3, tee, mode)
    assert in_c == in_python
    assert in_c.end is RunEnd.IDLE
    assert in_c.traps > 50
