# SPDX-License-Identifier: BSD-2-Clause
"""A mediator on the smallest host, with a secure world that is a list of functions."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Sequence

from mediator.deployment.face import Completed, Done
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_LIST_ENTRIES, PAGE_MASK, PAGE_SIZE, Shadow
from mediator.optee.settings import MediatorSettings
from smccc.constants import optee_smc as smc
from smccc.wire import MESSAGE

RAM = 0x4000_0000
PAGES = 2048
PA = 0x8_8000_0000
STEP = 3 * PAGE_SIZE
"""Guest pages lie three apart, so that no IPA run is a PA run."""
GUEST_SPAN = PAGES * STEP
SHADOW = 0x9_1234_5000
OK4 = (0, 0, 0, 0)

Answer = tuple[int, int, int, int]
Script = Callable[["Rig", tuple[int, ...]], Answer]


class HostFault(Exception):
    """Raised by a host method on purpose."""


class RigHost:
    """Pages in dictionaries; kinds: rw, ro, none. Counts every call; faults by method and count."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.kinds: dict[tuple[int, int], str] = {}
        self.pins: Counter[int] = Counter()
        self.shadows: dict[int, Shadow] = {}
        self.next_shadow = SHADOW
        self.calls: Counter[str] = Counter()
        self.fail_alloc_at: int | None = None
        self.fail_pin_at: int | None = None
        self.raise_in: tuple[str, int] | None = None
        self.preempt: list[bool] = []
        self.always_preempt = False
        self.script: list[Script] = []
        self.sent: list[tuple[int, ...]] = []
        self.logged: list[tuple[int, str]] = []
        self.quarantined: list[tuple[int, int]] = []
        self.injected: list[tuple[int, int]] = []
        self.parked: list[tuple[int, int, int]] = []
        self.woken: list[tuple[int, int]] = []
        self.time = 0
        self.rig: Rig | None = None
        self.after_read: Callable[[], None] | None = None

    def add_guest(self, guest: int) -> None:
        for index in range(PAGES):
            self.kinds[guest, RAM + index * PAGE_SIZE] = "rw"

    def pa(self, guest: int, ipa: int) -> int:
        return PA + guest * GUEST_SPAN + (ipa - RAM >> 12) * STEP + (ipa & PAGE_MASK)

    def page(self, pa: int) -> bytearray:
        return self.pages.setdefault(pa, bytearray(PAGE_SIZE))

    def memory(self, pa: int) -> memoryview:
        """The page at ``pa``, mediator's or guest's, as the secure world would reach it."""
        for shadow in self.shadows.values():
            for index in range(len(shadow.pages) // 8):
                if int.from_bytes(shadow.pages[index * 8 : index * 8 + 8], "little") == pa:
                    return shadow.mem[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
        return memoryview(self.page(pa))

    def _enter(self, name: str) -> None:
        self.calls[name] += 1
        if self.raise_in == (name, self.calls[name]):
            raise HostFault(name)

    def _own(self, guest: int, ipa: int, *kinds: str) -> int | None:
        page = ipa & ~PAGE_MASK
        return self.pa(guest, page) if self.kinds.get((guest, page)) in kinds else None

    def read_guest(self, guest: int, ipa: int, length: int) -> bytes | None:
        self._enter("read_guest")
        assert (ipa & PAGE_MASK) + length <= PAGE_SIZE
        frame = self._own(guest, ipa, "rw", "ro")
        if frame is None:
            return None
        data = bytes(self.page(frame)[ipa & PAGE_MASK :][:length])
        if self.after_read is not None:
            self.after_read()
        return data

    def write_guest(self, guest: int, ipa: int, segments: Sequence[tuple[int, bytes]]) -> bool:
        self._enter("write_guest")
        frame = self._own(guest, ipa, "rw")
        if frame is None:
            return False
        self._put(frame, segments)
        return True

    def _put(self, frame: int, segments: Sequence[tuple[int, bytes]]) -> None:
        page = self.page(frame)
        for offset, data in segments:
            assert offset + len(data) <= PAGE_SIZE
            page[offset : offset + len(data)] = data

    def read_page_list(self, guest: int, ipa: int, entries: int) -> tuple[bytes, int] | None:
        self._enter("read_page_list")
        words, link = b"", ipa
        while entries:
            frame = self._own(guest, link, "rw")
            if frame is None:
                return None
            page = bytes(self.page(frame))
            count = min(entries, PAGE_LIST_ENTRIES)
            words += page[: count * 8]
            entries -= count
            link = int.from_bytes(page[PAGE_LIST_ENTRIES * 8 :], "little")
        return words, link

    def pin_pages(self, guest: int, ipas: bytes) -> bytes | None:
        self._enter("pin_pages")
        if self.fail_pin_at == self.calls["pin_pages"]:
            return None
        frames = []
        for ipa in struct.unpack(f"<{len(ipas) // 8}Q", ipas):
            frame = self._own(guest, ipa, "rw")
            if frame is None:
                return None
            frames.append(frame)
        self.pins.update(frames)
        return struct.pack(f"<{len(frames)}Q", *frames)

    def unpin_pages(self, guest: int, frames: bytes) -> None:
        self._enter("unpin_pages")
        for frame in struct.unpack(f"<{len(frames) // 8}Q", frames):
            assert self.pins[frame] > 0
            self.pins[frame] -= 1
        self.pins = +self.pins

    def read_pinned(self, guest: int, pa: int, length: int) -> bytes:
        self._enter("read_pinned")
        assert self.pins[pa & ~PAGE_MASK]
        assert (pa & PAGE_MASK) + length <= PAGE_SIZE
        return bytes(self.page(pa & ~PAGE_MASK)[pa & PAGE_MASK :][:length])

    def write_pinned(self, guest: int, pa: int, segments: Sequence[tuple[int, bytes]]) -> None:
        self._enter("write_pinned")
        assert self.pins[pa]
        self._put(pa, segments)

    def alloc_shadow(self, pages: int) -> Shadow | None:
        self._enter("alloc_shadow")
        if self.fail_alloc_at == self.calls["alloc_shadow"]:
            return None
        first = self.next_shadow
        self.next_shadow += pages * 2 * PAGE_SIZE
        words = struct.pack(f"<{pages}Q", *range(first, self.next_shadow, 2 * PAGE_SIZE))
        shadow = Shadow(words, memoryview(bytearray(pages * PAGE_SIZE)))
        self.shadows[first] = shadow
        return shadow

    def free_shadow(self, shadow: Shadow) -> None:
        self._enter("free_shadow")
        del self.shadows[shadow.pa]

    def map_shadow(self, pages: bytes) -> Shadow:
        return Shadow(pages, self.shadows[int.from_bytes(pages[:8], "little")].mem)

    def smc(self, a0: int, a1: int, a2: int, a3: int, a4: int, a5: int, a6: int, a7: int) -> Answer:
        self._enter("smc")
        regs = (a0, a1, a2, a3, a4, a5, a6, a7)
        self.sent.append(regs)
        if not self.script:
            return OK4
        assert self.rig is not None
        return self.script.pop(0)(self.rig, regs)

    def should_preempt(self) -> bool:
        self._enter("should_preempt")
        return self.preempt.pop(0) if self.preempt else self.always_preempt

    def inject_virq(self, guest: int, intid: int) -> None:
        self.injected.append((guest, intid))

    def park_vcpu(self, guest: int, vcpu: int, until: int) -> None:
        self.parked.append((guest, vcpu, until))

    def wake_vcpu(self, guest: int, vcpu: int) -> None:
        self.woken.append((guest, vcpu))

    def now(self) -> int:
        return self.time

    def set_timer(self, deadline: int | None) -> None:
        raise AssertionError("no timer is expected")

    def quarantine(self, guest: int, answer: int) -> None:
        self.quarantined.append((guest, answer))

    def log(self, guest: int, message: str) -> None:
        self.logged.append((guest, message))


class Heard(list[tuple[object, ...]]):
    """Events in order; ``listener`` gets each as it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.listener: Callable[[tuple[object, ...]], None] | None = None

    def append(self, event: tuple[object, ...]) -> None:
        super().append(event)
        if self.listener is not None:
            self.listener(event)


class Rig:
    """One mediator, guests 0 and 1, and short words for what a test does."""

    def __init__(self, settings: MediatorSettings | None = None, **limits: int) -> None:
        self.host = RigHost()
        self.host.rig = self
        self.events = Heard()
        self.tee = InHypervisor(self.host, settings or MediatorSettings(), self.events.append)
        for guest in (0, 1):
            self.host.add_guest(guest)
            assert self.tee.create_guest(guest) == Done()
        self.host.sent.clear()
        self.host.calls.clear()

    # --- guest side -------------------------------------------------------------------------

    def call(self, *regs: int, guest: int = 0) -> tuple[int, ...]:
        frame = tuple(regs) + (0x77,) * (8 - len(regs))
        result = self.tee.handle(guest, 0, frame)
        assert isinstance(result, Completed)
        return result.regs

    def put(self, ipa: int, data: bytes, guest: int = 0) -> None:
        while data:
            room = PAGE_SIZE - (ipa & PAGE_MASK)
            page = self.host.page(self.host.pa(guest, ipa & ~PAGE_MASK))
            page[ipa & PAGE_MASK : (ipa & PAGE_MASK) + len(data[:room])] = data[:room]
            ipa, data = ipa + room, data[room:]

    def get(self, ipa: int, length: int, guest: int = 0) -> bytes:
        out = b""
        while length:
            room = min(length, PAGE_SIZE - (ipa & PAGE_MASK))
            page = self.host.page(self.host.pa(guest, ipa & ~PAGE_MASK))
            out += bytes(page[ipa & PAGE_MASK :][:room])
            ipa, length = ipa + room, length - room
        return out

    def message(self, ipa: int, count: int, guest: int = 0) -> tuple[int, ...]:
        fields: tuple[int, ...] = MESSAGE[count].unpack(self.get(ipa, 32 + 32 * count, guest))
        return fields

    def register(
        self,
        cookie: int,
        pages: Sequence[int],
        *,
        offset: int = 0,
        size: int | None = None,
        guest: int = 0,
        rpc_arg: bool = True,
    ) -> tuple[int, ...]:
        """REGISTER_SHM with message at the second and list from the tenth page of RAM."""
        lists = RAM + 0x0A_000
        self.put_list(lists, pages, guest)
        size = len(pages) * PAGE_SIZE - offset if size is None else size
        body = msg(4, params=[(0x20A, lists | offset, size, cookie)])
        self.put(RAM + 0x1000, body, guest)
        function = smc.OPTEE_SMC_CALL_WITH_RPC_ARG if rpc_arg else smc.OPTEE_SMC_CALL_WITH_ARG
        return self.call(function, 0, RAM + 0x1000, 0, guest=guest)

    def put_list(self, ipa: int, pages: Sequence[int], guest: int = 0) -> None:
        """A page list in adjacent list pages."""
        for start in range(0, len(pages), PAGE_LIST_ENTRIES):
            part = pages[start : start + PAGE_LIST_ENTRIES]
            more = start + PAGE_LIST_ENTRIES < len(pages)
            self.put(ipa, struct.pack(f"<{len(part)}Q", *part), guest)
            self.put(ipa + 4088, struct.pack("<Q", ipa + PAGE_SIZE if more else 0), guest)
            ipa += PAGE_SIZE

    def unregister(self, cookie: int, guest: int = 0) -> tuple[int, ...]:
        self.put(RAM + 0x1000, msg(5, params=[(5, 0, 0, cookie)]), guest)
        return self.call(smc.OPTEE_SMC_CALL_WITH_RPC_ARG, 0, RAM + 0x1000, 0, guest=guest)

    # --- secure side ------------------------------------------------------------------------

    def shadow(self) -> memoryview:
        """The mediator page of the message that was forwarded last."""
        regs = next(sent for sent in reversed(self.host.sent) if sent[0] in FORWARDED)
        return self.host.memory(regs[1] << 32 | regs[2])

    def info(self, guest: int = 0) -> tuple[int, int, int, int]:
        info = self.tee.guest_info(guest)
        assert info is not None
        return info.calls, info.buffers, info.pages, info.rpc_buffers

    def pinned(self) -> int:
        return sum(self.host.pins.values())


FORWARDED = (smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG)


def msg(
    cmd: int,
    *,
    func: int = 0,
    session: int = 1,
    ret: int = 0,
    params: Sequence[tuple[int, int, int, int]] = (),
) -> bytes:
    """A message; params are (attr, a, b, c)."""
    flat = [word for param in params for word in param]
    return MESSAGE[len(params)].pack(cmd, func, session, 0, 0, ret, 0, len(params), *flat)


def answer(a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0) -> Script:
    """The secure world answers these registers."""
    return lambda rig, regs: (a0, a1, a2, a3)


def results(ret: int, origin: int = 4, **more: int) -> Script:
    """The secure world ends the call with a result in the message."""

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        struct.pack_into("<2I", rig.shadow(), 20, ret, origin)
        return OK4

    return script


def request(data: bytes, thread: int = 1, at: int | None = None) -> Script:
    """The secure world asks RPC CMD with this message behind the call's message."""

    def script(rig: Rig, regs: tuple[int, ...]) -> Answer:
        page = rig.shadow()
        place = at
        if place is None:
            place = 32 + 32 * struct.unpack_from("<I", page, 28)[0]
        page[place : place + len(data)] = data
        return (smc.OPTEE_SMC_RETURN_RPC_CMD, 0, 0, thread)

    return script
