# SPDX-License-Identifier: BSD-2-Clause
"""The shadow pages that one app has, and on whose account they are.

An app may keep pages for the next call, of whichever guest. They stay on the account of the guest that they
were taken for, until that one is gone; then they are the hypervisor's.
"""

from __future__ import annotations

from collections.abc import Iterable

from mediator.deployment.el0_app.grants import Grant
from mediator.host import Shadow

_WORD = 8


class ShadowBook:
    """Shadows by the address of their first page."""

    __slots__ = ("_holders", "_shadows")

    def __init__(self) -> None:
        self._shadows: dict[int, Shadow] = {}
        self._holders: dict[int, Grant] = {}

    def get(self, pa: int) -> Shadow | None:
        """The shadow that begins at ``pa``, ``None`` if this app has none there."""
        return self._shadows.get(pa)

    def all(self) -> list[Shadow]:
        """All of them, the oldest first."""
        return list(self._shadows.values())

    @property
    def pages(self) -> int:
        """Pages of all of them."""
        return sum([_pages(shadow) for shadow in self._shadows.values()])

    def take(self, shadow: Shadow, grant: Grant) -> None:
        """The app got it while it served the guest of ``grant``."""
        self._shadows[shadow.pa] = shadow
        self._holders[shadow.pa] = grant
        grant.shadow_pages += _pages(shadow)
        grant.shadow_peak = max(grant.shadow_peak, grant.shadow_pages)

    def give_back(self, shadow: Shadow) -> None:
        """The app does not have it any more."""
        del self._shadows[shadow.pa]
        self._holders.pop(shadow.pa).shadow_pages -= _pages(shadow)

    def inherit(self, grant: Grant, heir: Grant) -> None:
        """The guest of ``grant`` is gone: what is on its account is on that of ``heir`` now."""
        for pa, holder in self._holders.items():
            if holder is grant:
                self._holders[pa] = heir
        heir.shadow_pages += grant.shadow_pages
        grant.shadow_pages = 0

    def replace(self, shadows: Iterable[Shadow], holder: Grant) -> list[tuple[Shadow, Grant]]:
        """Have these instead, all on one account; what there was, for :meth:`put_back`."""
        before = [(shadow, self._holders[pa]) for pa, shadow in self._shadows.items()]
        self.put_back([(shadow, holder) for shadow in shadows])
        return before

    def put_back(self, pairs: Iterable[tuple[Shadow, Grant]]) -> None:
        """Have these shadows on these accounts, and no others."""
        for shadow in self.all():
            self.give_back(shadow)
        for shadow, grant in pairs:
            self.take(shadow, grant)


def _pages(shadow: Shadow) -> int:
    return len(shadow.pages) // _WORD
