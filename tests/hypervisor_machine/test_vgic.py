# SPDX-License-Identifier: BSD-2-Clause
"""The interrupt controller against a model that keeps one plain record per interrupt."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mediator.hypervisor.vgic import DEFAULT_PRIORITY, FIRST_SPI, NO_VCPU, Vgic

INTIDS = (0, 3, 15, 16, 27, 31, 32, 33, 40, 219, 1019)
SPIS = tuple(intid for intid in INTIDS if intid >= FIRST_SPI)
VCPUS = 3


@dataclass
class Source:
    """One interrupt of one vCPU, or one shared one, as the architecture describes it."""

    level_sensitive: bool
    enabled: bool = True
    latch: bool = False
    line: bool = False
    active_on: int | None = None

    @property
    def pending(self) -> bool:
        return self.latch or (self.level_sensitive and self.line)


@dataclass
class Model:
    private: dict[tuple[int, int], Source] = field(default_factory=dict)
    shared: dict[int, Source] = field(default_factory=dict)
    priority: dict[int, int] = field(default_factory=dict)
    routes: dict[int, int] = field(default_factory=dict)
    masks: dict[int, int] = field(default_factory=dict)
    online: list[bool] = field(default_factory=lambda: [False] * VCPUS)

    def source(self, intid: int, vcpu: int) -> Source:
        if intid < FIRST_SPI:
            return self.private.setdefault((intid, vcpu), Source(intid >= 16))
        return self.shared.setdefault(intid, Source(False))

    def target(self, intid: int, vcpu: int) -> int:
        if intid < FIRST_SPI:
            return vcpu
        if intid in self.routes:
            return self.routes[intid]
        return self.online.index(True) if any(self.online) else NO_VCPU

    def of(self, intid: int) -> int:
        return self.priority.get(intid, DEFAULT_PRIORITY)

    def best(self, vcpu: int) -> int | None:
        limit = self.masks.get(vcpu, 255)
        for intid in INTIDS:
            if self.source(intid, vcpu).active_on == vcpu:
                limit = min(limit, self.of(intid))
        able = [
            (self.of(intid), intid)
            for intid in INTIDS
            if self.source(intid, vcpu).pending
            and self.source(intid, vcpu).enabled
            and self.source(intid, vcpu).active_on is None
            and self.target(intid, vcpu) == vcpu
            and self.of(intid) < limit
        ]
        return min(able)[1] if able else None


ids = st.sampled_from(INTIDS)
spis = st.sampled_from(SPIS)
vcpus = st.integers(0, VCPUS - 1)


class VgicAgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.vgic = Vgic(VCPUS)
        self.model = Model()

    @rule(intid=ids, vcpu=vcpus)
    def inject(self, intid: int, vcpu: int) -> None:
        self.model.source(intid, vcpu).latch = True
        assert self.vgic.inject(intid, vcpu) == self.model.target(intid, vcpu)

    @rule(intid=ids, vcpu=vcpus, high=st.booleans())
    def line(self, intid: int, vcpu: int, high: bool) -> None:
        source = self.model.source(intid, vcpu)
        if high and not source.line and not source.level_sensitive:
            source.latch = True
        source.line = high
        answer = self.vgic.set_line(intid, high, vcpu)
        assert answer == (self.model.target(intid, vcpu) if high else NO_VCPU)

    @rule(intid=ids, vcpu=vcpus, on=st.booleans())
    def enable(self, intid: int, vcpu: int, on: bool) -> None:
        self.model.source(intid, vcpu).enabled = on
        assert self.vgic.enable(intid, on, vcpu) == self.model.target(intid, vcpu)

    @rule(intid=spis, level=st.booleans())
    def configure(self, intid: int, level: bool) -> None:
        self.model.source(intid, 0).level_sensitive = level
        self.vgic.configure(intid, level=level)

    @rule(intid=ids, priority=st.sampled_from([0, 0x80, DEFAULT_PRIORITY, 0xF0]))
    def prioritise(self, intid: int, priority: int) -> None:
        self.model.priority[intid] = priority
        self.vgic.set_priority(intid, priority)

    @rule(vcpu=vcpus, mask=st.sampled_from([0, 0x80, DEFAULT_PRIORITY, 0xFF]))
    def mask(self, vcpu: int, mask: int) -> None:
        self.model.masks[vcpu] = mask
        self.vgic.set_mask(vcpu, mask)

    @rule(intid=spis, vcpu=st.none() | vcpus)
    def route(self, intid: int, vcpu: int | None) -> None:
        if vcpu is None:
            self.model.routes.pop(intid, None)
        else:
            self.model.routes[intid] = vcpu
        assert self.vgic.route(intid, vcpu) == self.model.target(intid, 0)

    @rule(vcpu=vcpus)
    def acknowledge(self, vcpu: int) -> None:
        expected = self.model.best(vcpu)
        assert self.vgic.acknowledge(vcpu) == expected
        if expected is not None:
            source = self.model.source(expected, vcpu)
            source.latch = False
            source.active_on = vcpu

    @rule(vcpu=vcpus, intid=ids)
    def end(self, vcpu: int, intid: int) -> None:
        source = self.model.source(intid, vcpu)
        assert self.vgic.end_of_interrupt(vcpu, intid) == (source.active_on == vcpu)
        if source.active_on == vcpu:
            source.active_on = None

    @rule(vcpu=vcpus, on=st.booleans())
    def power(self, vcpu: int, on: bool) -> None:
        self.model.online[vcpu] = on
        if not on:
            for intid in INTIDS:
                source = self.model.source(intid, vcpu)
                if source.active_on == vcpu:
                    source.active_on = None
                if intid < FIRST_SPI:
                    source.latch = False
        first = self.model.online.index(True) if any(self.model.online) else NO_VCPU
        assert self.vgic.set_online(vcpu, on) == first

    @invariant()
    def agree(self) -> None:
        for vcpu in range(VCPUS):
            assert self.vgic.deliverable(vcpu) == (self.model.best(vcpu) is not None)
            for intid in INTIDS:
                source = self.model.source(intid, vcpu)
                assert self.vgic.is_pending(intid, vcpu) == source.pending
                assert self.vgic.is_active(intid, vcpu) == (source.active_on is not None)


TestVgicAgainstModel = VgicAgainstModel.TestCase
TestVgicAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_level_interrupt_comes_back_after_its_end_while_the_line_is_high() -> None:
    vgic = Vgic(1)
    vgic.set_online(0, True)
    vgic.set_line(27, True, 0)
    assert vgic.acknowledge(0) == 27
    assert vgic.acknowledge(0) is None
    assert vgic.end_of_interrupt(0, 27)
    assert vgic.acknowledge(0) == 27
    vgic.set_line(27, False, 0)
    assert vgic.end_of_interrupt(0, 27)
    assert not vgic.deliverable(0)


def test_an_edge_while_active_is_remembered_once() -> None:
    vgic = Vgic(1)
    vgic.set_online(0, True)
    vgic.inject(40)
    assert vgic.acknowledge(0) == 40
    vgic.inject(40)
    vgic.inject(40)
    assert vgic.is_active(40)
    assert vgic.is_pending(40)
    assert vgic.end_of_interrupt(0, 40)
    assert vgic.acknowledge(0) == 40
    assert vgic.end_of_interrupt(0, 40)
    assert vgic.acknowledge(0) is None


def test_an_unrouted_shared_interrupt_follows_the_first_online_vcpu() -> None:
    vgic = Vgic(3)
    vgic.set_online(1, True)
    vgic.set_online(2, True)
    assert vgic.inject(33) == 1
    assert vgic.deliverable(1)
    assert vgic.set_online(1, False) == 2
    assert vgic.acknowledge(2) == 33


def test_a_shared_interrupt_in_service_survives_the_death_of_its_vcpu() -> None:
    vgic = Vgic(2)
    vgic.set_online(0, True)
    vgic.set_online(1, True)
    vgic.inject(33)
    assert vgic.acknowledge(0) == 33
    vgic.set_online(0, False)
    assert vgic.inject(33) == 1
    assert vgic.acknowledge(1) == 33


def test_ids_and_vcpus_that_do_not_exist_are_errors_of_the_host() -> None:
    vgic = Vgic(2)
    for intid in (-1, 1020, 1023, 8192):
        with pytest.raises(ValueError, match="interrupt id"):
            vgic.inject(intid)
    with pytest.raises(ValueError, match="vCPU 2"):
        vgic.inject(3, 2)
    with pytest.raises(ValueError, match="no SPI"):
        vgic.configure(27, level=False)
    with pytest.raises(ValueError, match="priority"):
        vgic.set_priority(40, 256)
