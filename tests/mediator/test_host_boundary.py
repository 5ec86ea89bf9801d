# SPDX-License-Identifier: BSD-2-Clause
"""A host that breaks its protocol is told so by name; the two faces of the boundary agree."""

from __future__ import annotations

import inspect

import attrs
import pytest

from mediator.deployment.in_hypervisor import DirectSyscalls, InHypervisor, SuspendingSyscalls
from mediator.host import Host, HostError
from mediator.hypervisor.host import ReferenceHost
from mediator.optee.settings import MediatorSettings
from mediator.optee.syscalls import Syscall, Syscalls
from smccc.constants import optee_smc as smc
from tests.mediator.rig import RAM, Rig, RigHost, answer, msg

OWN = {Syscall.RETURN, Syscall.PANIC, *(call for call in Syscall if call >= Syscall.REGISTER_HOOK)}
"""System calls of an app that a host in the same address space needs no method for."""


def methods(protocol: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in vars(protocol).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def test_every_service_is_a_host_method_a_system_call_and_a_number() -> None:
    services = methods(Host)
    assert methods(Syscalls) == services
    assert {call.name.lower() for call in Syscall if call not in OWN} == set(services)
    for implementation in (DirectSyscalls, ReferenceHost, RigHost):
        for name, parameters in services.items():
            found = list(inspect.signature(getattr(implementation, name)).parameters)
            assert found == parameters, (implementation, name)
    for name in methods(SuspendingSyscalls):
        assert name in services


def broken(name: str, result: object) -> Rig:
    rig = Rig()
    rig.register(0x55, [RAM + 0x50_000])
    setattr(rig.host, name, lambda *_: result)
    return rig


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("read_guest", b"short"),
        ("read_page_list", (b"", 0)),
        ("pin_pages", bytes(8)),
        ("pin_pages", bytes(24)),
    ],
)
def test_a_wrong_length_is_an_error_that_names_the_call(name: str, result: object) -> None:
    rig = broken(name, result)
    rig.put_list(RAM + 0xB_000, [RAM + 0x60_000, RAM + 0x61_000])
    rig.put(RAM, msg(1, params=[(0x209, RAM + 0xB_000, 0x2000, 1)]))
    with pytest.raises(HostError, match=f"host.{name}: ") as caught:
        rig.call(smc.OPTEE_SMC_CALL_WITH_RPC_ARG, 0, RAM, 0)
    assert caught.value.call == name


def test_a_pinned_read_that_never_ends_is_an_error() -> None:
    rig = broken("read_pinned", b"")
    with pytest.raises(HostError, match=r"host\.read_pinned: 0 bytes"):
        rig.call(smc.OPTEE_SMC_CALL_WITH_REGD_ARG, 0, 0x55, 0)


def test_an_rpc_page_pinned_twice_is_an_error() -> None:
    rig = Rig()
    rig.put(RAM, msg(1))
    rig.host.script = [answer(smc.OPTEE_SMC_RETURN_RPC_ALLOC, 0xA0, 0, 1)]
    rig.call(smc.OPTEE_SMC_CALL_WITH_ARG, 0, RAM, 0)
    rig.host.pin_pages = lambda *_: bytes(16)  # type: ignore[method-assign]
    rig.host.unpin_pages = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(HostError, match=r"host\.pin_pages: 16 bytes"):
        rig.call(smc.OPTEE_SMC_CALL_RETURN_FROM_RPC, 0, RAM + 0x8000, 1, 0, 7)


def test_upper_halves_of_the_probes_answers_do_not_count() -> None:
    host = RigHost()
    host.rig = Rig()
    uid = (0x384FB3E0, 0xE7F811E3, 0xAF630002, 0xA5D5C51B)
    host.script = [
        lambda rig, regs: uid,
        answer(0, 0xDEAD_0000_0003),
        answer(0),
    ]
    assert InHypervisor(host).probe().threads == 3


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (MediatorSettings.reference(), 11),
        (MediatorSettings(), 16),
        (
            attrs.evolve(
                MediatorSettings(),
                capabilities=MediatorSettings.reference().capabilities,
                thread_count=False,
            ),
            11,
        ),
        (attrs.evolve(MediatorSettings(), calls_count=99), 99),
    ],
)
def test_calls_count_is_the_number_of_functions_offered(
    settings: MediatorSettings, count: int
) -> None:
    assert Rig(settings).call(smc.OPTEE_SMC_CALLS_COUNT)[0] == count
