# SPDX-License-Identifier: BSD-2-Clause
"""A run that is put back to a snapshot at every step ends like one that never was."""

from __future__ import annotations

import json
import pickle

import pytest

from mediator.deployment.el0_app import plain
from mediator.deployment.el0_app.deployment import El0App
from mediator.deployment.el0_app.manifest import PER_GUEST, optee_manifest
from mediator.deployment.face import Completed
from mediator.host import PAGE_SIZE
from smccc.constants import optee_smc as smc
from tests.el0_app.local import LocalApp
from tests.el0_app.rig import AppRig
from tests.mediator.rig import msg
from tests.mediator.with_optee import GUEST, OTHER, PAGES, RAM, Slow

UID = (0xBF00_FF01, 0, 0, 0, 0, 0, 0, 0)


class Swapped(AppRig):
    """Before every trap the app forgets all, and is told what it knew."""

    swaps = 0
    _nothing: dict[str, object] | None = None

    def smc(self, *regs: int, guest: int = GUEST) -> tuple[int, ...]:
        if self._nothing is None:
            self._nothing = self.app.snapshot()
        data = self.app.snapshot()
        kept = json.loads(plain.encoded(data))
        self.app.restore(self._nothing)
        assert self.app.snapshot() == self._nothing
        self.app.restore(pickle.loads(pickle.dumps(data)))
        assert json.loads(plain.encoded(self.app.snapshot())) == kept
        self.swaps += 1
        return super().smc(*regs, guest=guest)


def journey(rig: AppRig) -> list[tuple[int, ...]]:
    """Registered memory, shadows, calls in every state; what the guest sees of it."""
    seen: list[tuple[int, ...]] = []
    rig.register(0x5500, RAM + 0x3000)
    seen.append(rig.invoke(RAM + 0x2000, Slow.COPY, [(0x5, 0x5500, 0, 16)] * 2))
    data = rig.page_list(RAM + 0x1F_1000, RAM + 0x4000)
    seen.append(rig.invoke(RAM + 0x2000, Slow.WRITE, [(0x20A, data, 64, 0x77)], interrupted=True))
    thread = seen[-1][3]
    seen.append(rig.invoke(RAM + 0x6000, Slow.ALLOCATE))
    regs = seen[-1]
    seen.append(rig.resume(thread))
    while regs[0] & smc.OPTEE_SMC_RETURN_RPC_PREFIX_MASK == smc.OPTEE_SMC_RETURN_RPC_PREFIX:
        regs = rig.resume(regs[3])
        seen.append(regs)
    seen.append(rig.smc(*UID, guest=OTHER))
    assert rig.call(RAM, msg(5, params=[(0x5, 0, 0, 0x5500)]))[0] == 0
    return seen


@pytest.mark.parametrize("kind", [LocalApp, El0App])
def test_a_run_that_is_put_back_at_every_trap_goes_on_byte_for_byte(kind: type[El0App]) -> None:
    straight, swapped = AppRig(kind), Swapped(kind)
    expected, found = journey(straight), journey(swapped)
    assert found == expected
    assert swapped.swaps > 10
    for guest in (GUEST, OTHER):
        assert swapped.host.pins(guest) == straight.host.pins(guest)
        assert swapped.app.guest_info(guest) == straight.app.guest_info(guest)
        for page in range(RAM, RAM + PAGES * PAGE_SIZE, PAGE_SIZE):
            assert swapped.get(page, PAGE_SIZE, guest) == straight.get(page, PAGE_SIZE, guest)
    assert swapped.host.shadows.in_use == straight.host.shadows.in_use
    for rig in (straight, swapped):
        rig.watch.check()
        for guest in (GUEST, OTHER):
            rig.app.destroy_guest(guest)
            assert not rig.host.pinned(guest)
        assert not rig.app.deaths
        rig.app.close()


def test_the_books_of_the_boundary_are_part_of_it() -> None:
    rig = AppRig(LocalApp)
    rig.register(0x5500, RAM + 0x3000)
    rig.invoke(RAM + 0x2000, Slow.PASS, interrupted=True)
    data = rig.app.snapshot()
    books = data[plain.BOOKS]
    assert isinstance(books, dict)
    page = rig.pa(RAM + 0x3000).to_bytes(8, "little")
    assert books["guests"][0][:4] == [GUEST, GUEST + 1, True, page]
    assert books["guests"][1][:4] == [OTHER, OTHER + 1, True, b""]
    assert len(books["shadows"]) == rig.host.shadows.in_use > 0


def test_what_dies_after_a_restore_is_cleaned_up_from_the_restored_books() -> None:
    rig = AppRig(LocalApp)
    rig.register(0x5500, RAM + 0x3000)
    data = rig.app.snapshot()
    rig.app.restore(data)
    assert rig.host.pinned(GUEST) == 1
    rig.app.kill()
    assert rig.host.pinned(GUEST) == 0
    assert rig.host.shadows.in_use == 0


def test_no_snapshot_while_an_entry_is_in_flight() -> None:
    rig = AppRig(LocalApp)
    caught: list[str] = []
    call = rig.host.secure_smc
    assert call is not None
    data = rig.app.snapshot()

    def during(*regs: int) -> tuple[int, int, int, int]:
        for attempt in (rig.app.snapshot, lambda: rig.app.restore(data)):
            with pytest.raises(RuntimeError) as error:
                attempt()
            caught.append(str(error.value))
        return call(*regs)

    rig.host.secure_smc = during
    rig.smc(*UID)
    assert caught == [f"guest {GUEST} has 1 entries in flight"] * 2
    assert not rig.app.deaths


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 1}, "version 1"),
        ({plain.BOOKS: None}, "it has no books"),
        ({plain.BOOKS: {"guests": [], "shadows": [bytes(8)]}}, "shadow pages of the snapshot"),
    ],
)
def test_what_is_no_snapshot_of_this_deployment_is_refused(
    change: dict[str, object], reason: str
) -> None:
    rig = AppRig(LocalApp)
    rig.register(0x5500, RAM + 0x3000)
    before = rig.app.snapshot()
    with pytest.raises(ValueError, match=reason):
        rig.app.restore({**before, **change})
    assert rig.app.snapshot() == before
    assert rig.smc(*UID)[0] != 0
    assert not rig.app.deaths


def test_one_app_for_each_guest_has_no_snapshot_but_all_else() -> None:
    rig = AppRig(LocalApp, manifest=optee_manifest(instances=PER_GUEST))
    with pytest.raises(RuntimeError, match="one app for all guests"):
        rig.app.snapshot()
    rig.register(0x5500, RAM + 0x3000)
    infos = [rig.app.guest_info(guest) for guest in (GUEST, OTHER)]
    assert [info.buffers for info in infos if info is not None] == [1, 0]
    out = rig.app.handle(OTHER, 0, UID)
    assert isinstance(out, Completed)
    assert rig.app.guest_info(7) is None
    rig.app.close()
