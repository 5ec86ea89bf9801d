# SPDX-License-Identifier: BSD-2-Clause
"""What happens to memory, as events for checkers, traces and logs.

Plain fields, no time: the recorder stamps events with the machine's clock. Addresses are in bytes,
``frames`` are little-endian u64 physical page addresses as on the host boundary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

Sink: TypeAlias = Callable[[tuple[object, ...]], None]
"""Receives every event as it happens; must not call back into what emits."""


class GuestRead(NamedTuple):
    """The mediator copied ``length`` bytes of guest memory at ``ipa``."""

    guest: int
    ipa: int
    length: int


class PageListRead(NamedTuple):
    """The mediator copied ``entries`` words of the page list at ``ipa``."""

    guest: int
    ipa: int
    entries: int


class GuestWritten(NamedTuple):
    """The mediator wrote ``(offset, data)`` segments into the guest page at ``ipa``."""

    guest: int
    ipa: int
    segments: tuple[tuple[int, bytes], ...]


class PinnedRead(NamedTuple):
    """The mediator copied ``length`` bytes at ``pa`` of a page pinned for ``guest``."""

    guest: int
    pa: int
    length: int


class PinnedWritten(NamedTuple):
    """The mediator wrote ``(offset, data)`` segments into the page at ``pa``, pinned for ``guest``."""

    guest: int
    pa: int
    segments: tuple[tuple[int, bytes], ...]


class PagesPinned(NamedTuple):
    """One reference more on each frame, for ``guest``."""

    guest: int
    frames: bytes


class PagesUnpinned(NamedTuple):
    """One reference less on each frame, for ``guest``."""

    guest: int
    frames: bytes


class PinRefused(NamedTuple):
    """``entries`` pages were to be pinned for ``guest``; one was not its own read-write RAM."""

    guest: int
    entries: int


class ShadowAllocated(NamedTuple):
    """The mediator got ``pages`` adjacent pages of its own from ``pa`` on."""

    pa: int
    pages: int


class ShadowFreed(NamedTuple):
    """The mediator gave ``pages`` adjacent pages from ``pa`` on back."""

    pa: int
    pages: int


class Stage2Changed(NamedTuple):
    """Stage 2 of ``guest`` changed for ``pages`` pages from ``ipa`` on; ``kind`` as in ``stage2``."""

    guest: int
    ipa: int
    pages: int
    kind: int


class PagesTransferred(NamedTuple):
    """``pages`` pages left ``guest`` for ``receiver``; ``copied`` of them were pinned, so copies went."""

    guest: int
    receiver: int
    pages: int
    copied: int


class GuestAdded(NamedTuple):
    """``guest`` has a stage 2 of its own now."""

    guest: int


class GuestRemoved(NamedTuple):
    """``guest`` is gone: ``freed`` frames are free again, ``held`` ones wait for their last reference."""

    guest: int
    freed: int
    held: int


class GuestQuarantined(NamedTuple):
    """The TEE did not let go of ``guest``: its ``frames`` frames and its id are not used again."""

    guest: int
    frames: int


class FramesReleased(NamedTuple):
    """``frames`` frames of the late owner ``owner`` lost their last reference and are free again."""

    owner: int
    frames: int


class BusBreach(NamedTuple):
    """The secure world touched memory that ``client`` may not touch (I2). ``reason`` says why."""

    client: int
    pa: int
    length: int
    write: bool
    reason: str


class BusRefusal(NamedTuple):
    """The secure world asked whether ``client`` may use memory, and it may not."""

    client: int
    pa: int
    length: int
    reason: str
