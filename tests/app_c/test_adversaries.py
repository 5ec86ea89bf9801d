# SPDX-License-Identifier: BSD-2-Clause
"""Between the same hostile guest and the same lying TEE, app and twin do the same, to the last register."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediator.deployment import app_abi as abi
from mediator.deployment.face import Completed
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import Host
from smccc.constants import optee_smc as smc
from tests.app_c.adversary import run
from tests.app_c.peer import Peer
from tests.app_c.twins import TWIN

STEPS = 150


@pytest.mark.parametrize(
    ("seed", "offers"),
    [*((seed, abi.OFFER_POSTING) for seed in range(0, 300, 10)), *((seed, 0) for seed in range(4))],
)
def test_twins(seed: int, offers: int, sanitized_app: Path, tmp_path: Path) -> None:
    peers: list[Peer] = []
    errors = tmp_path / "errors"

    def app(host: Host) -> Peer:
        peers.append(Peer(host, sanitized_app, offers=offers, stderr=errors))
        return peers[0]

    in_python, _ = run(seed, STEPS, lambda host: InHypervisor(host, TWIN))
    in_c, _ = run(seed, STEPS, app)
    assert peers[0].end() == 0, errors.read_text()
    for step, (one, other) in enumerate(zip(in_python, in_c, strict=True)):
        assert one == other, f"step {step}"
    if not offers:
        assert not any(posted for _, posted in peers[0].calls)


def test_the_adversaries_get_far() -> None:
    """Most kinds of answers come up, or the comparison says little."""
    seen: dict[int, int] = {}
    pinned = 0
    for seed in range(0, 300, 10):
        story, host = run(seed, STEPS, lambda host: InHypervisor(host, TWIN))
        pinned += host.calls["pin_pages"]
        for step in story:
            if isinstance(step, tuple) and isinstance(step[1], Completed):
                answer = step[1].regs[0]
                seen[answer] = seen.get(answer, 0) + 1
    wanted = (
        smc.OPTEE_SMC_RETURN_OK,
        smc.OPTEE_SMC_RETURN_EBADADDR,
        smc.OPTEE_SMC_RETURN_EBADCMD,
        smc.OPTEE_SMC_RETURN_ERESUME,
        smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT,
        smc.OPTEE_SMC_RETURN_RPC_ALLOC,
        smc.OPTEE_SMC_RETURN_RPC_FREE,
        smc.OPTEE_SMC_RETURN_RPC_CMD,
        smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR,
    )
    assert min(seen.get(answer, 0) for answer in wanted) > 20, seen
    assert pinned > 400
