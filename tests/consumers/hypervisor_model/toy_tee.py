# SPDX-License-Identifier: BSD-2-Clause
"""The toy hypervisor together with a simulated OP-TEE and the mediator between its guests and it."""

from __future__ import annotations

from toy_hypervisor import ToyHypervisor, words

from mediator.deployment.face import Completed
from mediator.deployment.in_hypervisor import InHypervisor
from mediator.host import PAGE_MASK, PAGE_SIZE
from secure_world.bus import BusError
from secure_world.ta import TaRegistry
from secure_world.world import SecureWorld


class ToyBus:
    """What the secure world may touch: pages lent by the mediator, and pinned ones."""

    def __init__(self, hypervisor: ToyHypervisor) -> None:
        self._hypervisor = hypervisor

    def check(self, client: int, pa: int, n: int) -> bool:
        lent = [page for shadow in self._hypervisor.lent.values() for page in words(shadow.pages)]
        pages = range(pa & ~PAGE_MASK, pa + n, PAGE_SIZE)
        return all(page in lent or self._hypervisor.pins[page] > 0 for page in pages)

    def check_pages(self, client: int, pages: bytes) -> bool:
        return all(self.check(client, page, PAGE_SIZE) for page in words(pages))

    def read(self, client: int, pa: int, n: int) -> bytes:
        if not self.check(client, pa, n):
            raise BusError(pa, n)
        data = b""
        while len(data) < n:
            at = pa + len(data)
            room = PAGE_SIZE - (at & PAGE_MASK)
            data += self._hypervisor.read_pinned(0, at, min(n - len(data), room))
        return data

    def write(self, client: int, pa: int, data: bytes) -> None:
        if not self.check(client, pa, len(data)):
            raise BusError(pa, len(data), True)
        while data:
            part = data[: PAGE_SIZE - (pa & PAGE_MASK)]
            self._hypervisor.write_pinned(0, pa & ~PAGE_MASK, [(pa & PAGE_MASK, part)])
            pa, data = pa + len(part), data[len(part) :]


class ToyMachine:
    """Hypervisor, OP-TEE and mediator; `smc` is what the guest's instruction does."""

    def __init__(self, registry: TaRegistry) -> None:
        self.hypervisor = ToyHypervisor()
        world = SecureWorld(ToyBus(self.hypervisor), registry=registry)
        self.hypervisor.firmware = world.smc
        self.mediator = InHypervisor(self.hypervisor)
        assert self.mediator.probe().found

    def smc(self, guest: int, *regs: int) -> tuple[int, ...]:
        answer = self.mediator.handle(guest, 0, regs + (0,) * (8 - len(regs)))
        assert isinstance(answer, Completed)
        return answer.regs
