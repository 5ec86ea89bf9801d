# SPDX-License-Identifier: BSD-2-Clause
"""A killer: an ordinary test of the suites, with the arguments that pytest would give it."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from tests.mediator.rig import Rig


@attrs.frozen
class Fresh:
    """An argument that is made anew for each run."""

    make: Callable[[], object]


RIG = Fresh(Rig)


@attrs.frozen
class Killer:
    """``test`` and its arguments; calling it runs the test."""

    test: Callable[..., object]
    arguments: tuple[object, ...] = ()

    def __call__(self) -> None:
        self.test(*[item.make() if isinstance(item, Fresh) else item for item in self.arguments])

    @property
    def name(self) -> str:
        """``path::test`` as pytest names it, without parameters."""
        module = self.test.__module__.replace(".", "/")
        return f"{module}.py::{self.test.__qualname__.replace('.', '::')}"


def by(test: Callable[..., object], *arguments: object) -> Killer:
    """The killer that calls ``test`` with ``arguments``."""
    return Killer(test, arguments)
