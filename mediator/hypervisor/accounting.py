# SPDX-License-Identifier: BSD-2-Clause
"""Where virtual time goes: a cost per kind of operation, charged per guest.

The figures are round and plausible for a server-class Arm core; what the model is for are their
ratios and sums, not their absolute size. Operations of a fixed cost are only counted on the call
path, their time is the product; what has no fixed cost (the secure world's own work) adds
nanoseconds.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

TRAP: Final = 0
"""One exception from a guest to the hypervisor and back."""
WORLD_SWITCH: Final = 1
"""One SMC to the secure world and back."""
SYSCALL: Final = 2
"""One service of the host used by a mediator."""
PAGE_COPY: Final = 3
"""Up to 4 KiB copied between a guest and the mediator."""
PAGE_PIN: Final = 4
"""One page translated, checked and pinned, or released."""
GUEST_ACCESS: Final = 5
"""One load or store of a guest program, whatever its size, or access to its timer or SGIs."""
VIRQ: Final = 6
"""One virtual interrupt made pending."""
CONTEXT_SWITCH: Final = 7
"""One vCPU put on a pCPU in place of another."""
TEARDOWN_STEP: Final = 8
"""One entry into the teardown of a guest."""
SECURE_WORLD: Final = 9
"""Work of the secure world, in nanoseconds that it reports itself."""
COMPUTE: Final = 10
"""Work that a guest program says it does, in nanoseconds."""
WAIT: Final = 11
"""One WFI: the hypervisor traps it to see whether the vCPU must wait."""
APP_TURN: Final = 12
"""One crossing to a mediator in a process of its own, and back."""
APP_COPY: Final = 13
"""Up to 4 KiB copied across that boundary, beyond registers."""

KINDS: Final = (
    "trap",
    "world_switch",
    "syscall",
    "page_copy",
    "page_pin",
    "guest_access",
    "virq",
    "context_switch",
    "teardown_step",
    "secure_world",
    "compute",
    "wait",
    "app_turn",
    "app_copy",
)
"""Names, in the order of the numbers above."""


@frozen
class CostTable:
    """Nanoseconds of virtual time per operation."""

    trap: int = 800
    world_switch: int = 2500
    syscall: int = 100
    page_copy: int = 250
    page_pin: int = 40
    guest_access: int = 20
    virq: int = 400
    context_switch: int = 1500
    teardown_step: int = 1000
    wait: int = 800
    app_turn: int = 800
    app_copy: int = 250

    def by_kind(self) -> tuple[int, ...]:
        """Costs indexed by kind; kinds without a fixed cost have 0."""
        return (
            self.trap,
            self.world_switch,
            self.syscall,
            self.page_copy,
            self.page_pin,
            self.guest_access,
            self.virq,
            self.context_switch,
            self.teardown_step,
            0,
            0,
            self.wait,
            self.app_turn,
            self.app_copy,
        )


class Account:
    """What one guest (or the machine itself) has used.

    ``counts[kind]``: how often. ``extra[kind]``: nanoseconds on top of count times cost.
    """

    __slots__ = ("counts", "extra")

    def __init__(self) -> None:
        self.counts = [0] * len(KINDS)
        self.extra = [0] * len(KINDS)

    def times(self, costs: tuple[int, ...]) -> dict[str, int]:
        """Virtual nanoseconds by name of the kind, kinds never used left out."""
        return {
            name: count * cost + extra
            for name, count, cost, extra in zip(KINDS, self.counts, costs, self.extra, strict=True)
            if count or extra
        }

    def operations(self) -> dict[str, int]:
        """Operation counts by name of the kind, kinds never used left out."""
        return {name: count for name, count in zip(KINDS, self.counts, strict=True) if count}
