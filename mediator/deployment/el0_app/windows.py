# SPDX-License-Identifier: BSD-2-Clause
"""Pages of guests and devices as memory of an app: windows at the start of its arena.

The simulated machine's pages are not memory that a process could map. A window is copied in whenever
the app is about to run and back, if it changed, whenever the app has spoken; as nobody else runs in
between, that is what shared memory would look like.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

from mediator.deployment import app_abi as abi
from mediator.host import PAGE_SHIFT, PAGE_SIZE, Host

_DEVICE: Final = -1


class Windows:
    """The windows of one app. ``view``: its arena. ``devices``: pages of registers by physical address."""

    __slots__ = ("_devices", "_host", "opened", "view")

    def __init__(
        self, view: memoryview, host: Host, devices: MutableMapping[int, bytearray]
    ) -> None:
        self.view = view
        self._host = host
        self._devices = devices
        self.opened: dict[int, tuple[int, int, int, bytes]] = {}
        """Number of a window → entry that opened it, guest or -1, address, last contents."""

    def has_device(self, pa: int) -> bool:
        """Whether there is a device at this page."""
        return pa in self._devices

    def open_guest(self, entry: int, guest: int, ipa: int) -> int | None:
        """A window to a guest page until the end of ``entry``; ``None``: there are too many."""
        return self._open_one(entry, guest, ipa)

    def open_device(self, entry: int, pa: int) -> int | None:
        """A window to a page of a device."""
        return self._open_one(entry, _DEVICE, pa)

    def _open_one(self, entry: int, guest: int, address: int) -> int | None:
        for number in range(abi.WINDOW_PAGES):
            if number not in self.opened:
                self.opened[number] = (entry, guest, address, b"")
                return number
        return None

    def close(self, entry: int, number: int) -> bool:
        """End a window; False unless ``entry`` opened it."""
        if number not in self.opened or self.opened[number][0] != entry:
            return False
        self._wipe(number)
        return True

    def end(self, entry: int) -> None:
        """The entry is over, and so are its windows."""
        for number in [number for number, held in self.opened.items() if held[0] == entry]:
            self._wipe(number)

    def _wipe(self, number: int) -> None:
        del self.opened[number]
        at = number << PAGE_SHIFT
        self.view[at : at + PAGE_SIZE] = bytes(PAGE_SIZE)

    def show(self) -> None:
        """The app is about to run: windows get what the pages contain."""
        for number, (entry, guest, address, _) in self.opened.items():
            if guest == _DEVICE:
                data = bytes(self._devices[address])
            else:
                # A page that is not the guest's any more reads as zeroes.
                data = self._host.read_guest(guest, address, PAGE_SIZE) or bytes(PAGE_SIZE)
            at = number << PAGE_SHIFT
            self.view[at : at + PAGE_SIZE] = data
            self.opened[number] = (entry, guest, address, data)

    def take(self) -> None:
        """The app has spoken: pages get what it wrote."""
        for number, (_, guest, address, data) in list(self.opened.items()):
            at = number << PAGE_SHIFT
            now = self.view[at : at + PAGE_SIZE].tobytes()
            if not data or now == data:
                continue
            if guest == _DEVICE:
                self._devices[address][:] = now
            else:
                self._host.write_guest(guest, address, [(0, now)])
