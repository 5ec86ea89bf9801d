# SPDX-License-Identifier: BSD-2-Clause
"""Runs an app behind a simulated machine: a guest with a driver, an OP-TEE, and the app between them.

``python run.py build/mini_mediator.toml``
"""

from __future__ import annotations

import sys
from pathlib import Path

from mediator.deployment.choice import EL0_APP, Deployment
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.manifest import load
from mediator.guest.client import INPUT, OUTPUT, Value
from mediator.guest.guest import Guest, GuestSettings
from mediator.scenario.platform import Platform, PlatformSettings
from secure_world.apps.basic import Arithmetic


async def forty_two(guest: Guest) -> None:
    """What the guest does: a session, a sum."""
    async with guest.client().open_session(Arithmetic.uuid) as session:
        result = Value(direction=OUTPUT)
        await session.invoke(Arithmetic.ADD, Value(40, 2, INPUT), result)
        print("40 + 2 =", result.a)


def main(manifest: Path) -> None:
    """Start the app, run the guest, say what the app did."""
    home = Deployment(EL0_APP, load(manifest), require_isolation=True)
    # The checkers follow events of the Python mediator, which an app of another kind does not send.
    platform = Platform(PlatformSettings(deployment=home, checkers=False))
    try:
        guest = platform.add_guest(GuestSettings("guest", ram=((0x40000000, 1024),)), forty_two)
        platform.run()
        platform.check()
        assert isinstance(platform.tee, El0App)
        used = platform.tee.usage(guest)
        print("isolation:", ", ".join(platform.tee.isolation[0].layers))
        print(f"{used.entries} entries, {used.turns} turns, {used.syscalls} system calls")
        print("pages still pinned:", used.pinned_pages)
    finally:
        platform.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
