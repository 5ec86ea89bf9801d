# SPDX-License-Identifier: BSD-2-Clause
"""What is learnt from a trace before it is replayed: threads, RAM, reserved memory, guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_smc as smc
from specs.replay.build import settings_for
from specs.replay.reader import Trace, build_trace
from specs.replay.records import Call, Meta, Return, TraceError
from specs.replay.survey import DEFAULT_RAM, DEFAULT_RESERVED, Survey, config, survey
from tests.replay.bare_metal import BareMetal
from tests.replay.golden import ALL, PARAMS, SESSION, VIRTUAL, trace


def made(meta: dict[str, object], *answers: tuple[int, tuple[int, ...]]) -> Trace:
    records: list[Meta | Call | Return] = [Meta(meta)]
    for number, (function, result) in enumerate(answers):
        regs = (function, 1, 0, 0, 0, 0, 0, 0)
        a0, a1, a2, a3 = (*result, 0, 0, 0, 0)[:4]
        records.append(Call(2 * number, 0, 0.0, "", regs))
        after = (a0, a1, a2, a3, 0, 0, 0, 0)
        records.append(Return(2 * number + 1, 0, 0.0, 2 * number, "", after))
    return build_trace("made", iter(records), {})


def of(meta: dict[str, object], *answers: tuple[int, tuple[int, ...]]) -> Survey:
    return survey(made(meta, *answers))


@pytest.mark.parametrize(
    ("path", "threads", "virtualization", "reserved"),
    [
        (SESSION, 2, False, (0x4200_0000, 0x20_0000)),
        (PARAMS, 2, False, (0x4200_0000, 0x20_0000)),
        (VIRTUAL, 2, True, None),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_recorded_machines(
    path: Path, threads: int, virtualization: bool, reserved: tuple[int, int] | None
) -> None:
    facts = survey(trace(path))
    assert (facts.threads, facts.virtualization, facts.reserved) == (
        threads,
        virtualization,
        reserved,
    )
    assert all(facts.in_ram(event.msg.pa) for event in trace(path).events if event.msg)


def test_threads_from_the_answer_the_first_line_or_two() -> None:
    counted = (smc.OPTEE_SMC_GET_THREAD_COUNT, (0, 7))
    refused = (smc.OPTEE_SMC_GET_THREAD_COUNT, (0xFFFFFFFF, 7))
    written: dict[str, object] = {"optee_config": "CFG_NUM_THREADS=2, then CFG_NUM_THREADS=5"}
    assert of(written, counted).threads == 7
    assert of(written, refused).threads == 5
    assert of({"threads": 3} | written).threads == 3
    assert of({}).threads == 2


@pytest.mark.parametrize("count", ["0", "70000", "x"])
def test_impossible_counts_are_refused(count: str) -> None:
    with pytest.raises(TraceError, match="CFG_NUM_THREADS is not a count from 1 to 4096"):
        of({"optee_config": f"CFG_NUM_THREADS={count}"})
    with pytest.raises(TraceError, match=r"meta\.threads is not a count"):
        of({"threads": count})
    with pytest.raises(TraceError, match="CFG_VIRT_GUEST_COUNT is not a count"):
        settings(made({"optee_config": f"CFG_VIRT_GUEST_COUNT={count}"}))
    with pytest.raises(TraceError, match="answered 4097, more than 4096"):
        of({}, (smc.OPTEE_SMC_GET_THREAD_COUNT, (0, 4097)))


def test_the_answer_to_an_unknown_guest_tells_nothing() -> None:
    revision = smc.OPTEE_SMC_CALL_GET_OS_REVISION
    refusal = (revision, (smc.OPTEE_SMC_RETURN_ENOTAVAIL, 0, 0))
    assert settings(made({}, refusal)).revision == (4, 10)
    told = settings(made({}, refusal, (revision, (4, 7, 0x1234)), (revision, (4, 8))))
    assert (told.revision, told.build_id) == ((4, 7), 0x1234)


def test_ram_from_the_first_line() -> None:
    assert of({}).ram == DEFAULT_RAM
    assert of({"qemu": "virt, 512 MiB RAM at 0x40000000"}).ram == ((0x4000_0000, 0x2000_0000),)
    assert of({"ram": [["0x1000", "0x2000"], ["0x8000", "0x1000"]]}).ram == (
        (0x1000, 0x2000),
        (0x8000, 0x1000),
    )


@pytest.mark.parametrize(
    "ram",
    [
        [],
        "all",
        [["0x1000"]],
        [["x", "y"]],
        [7],
        [["0x1001", "0x1000"]],
        [["0x1000", "0x10"]],
        [["0x1000", "0x0"]],
        [["-0x1000", "0x1000"]],
        [["0x1000", "0x2000"], ["0x2000", "0x1000"]],
        [["0x0", "0x10000000000"]],
    ],
    ids=str,
)
def test_unusable_ram_is_refused(ram: object) -> None:
    with pytest.raises(TraceError) as caught:
        of({"ram": ram})
    assert (caught.value.line, caught.value.field) == (1, "meta.ram")


def test_reserved_memory_from_the_answer_or_the_first_line() -> None:
    written: dict[str, object] = {"optee_config": "CFG_CORE_RESERVED_SHM=y (0x42000000 + 2 MiB)"}
    assert of(written).reserved == (0x4200_0000, 0x20_0000)
    told = (smc.OPTEE_SMC_GET_SHM_CONFIG, (0, 0x4300_0000, 0x1000, 1))
    facts = of(written, told)
    assert facts.reserved == (0x4300_0000, 0x1000)
    assert facts.in_reserved(0x4300_0FFF)
    assert not facts.in_reserved(0x4300_1000)
    assert of({"optee_config": "CFG_CORE_RESERVED_SHM=n"}).reserved is None
    assert of({"optee_config": "CFG_NS_VIRTUALIZATION=y"}).reserved is None
    assert not of({"optee_config": "CFG_NS_VIRTUALIZATION=y"}).in_reserved(0x4200_0000)
    exchange = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
    assert of({}, (exchange, (0, 0x14))).reserved is None
    assert of({}, (exchange, (0, 0x15))).reserved == DEFAULT_RESERVED
    assert of({}).reserved == DEFAULT_RESERVED


def test_virtualization_from_the_first_line_a_creation_or_the_capabilities() -> None:
    exchange = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
    assert of({"optee_config": "CFG_NS_VIRTUALIZATION=y"}).virtualization
    assert of({}, (smc.OPTEE_SMC_VM_CREATED, (0,))).virtualization
    assert not of({}, (smc.OPTEE_SMC_VM_CREATED, (0xFFFFFFFF,))).virtualization
    assert of({}, (exchange, (0, 1 << 3))).virtualization
    assert not of({}, (exchange, (1, 1 << 3))).virtualization
    facts = of({"optee_config": "CFG_NS_VIRTUALIZATION=n"}, (exchange, (0, 8)))
    assert not facts.virtualization
    (call, _) = made({}, (exchange, (0, 8))).events
    assert facts.client(call) == 1, "without virtualization a7 means nothing"


def test_option_of_the_first_line() -> None:
    meta = Meta({"optee_config": "CFG_A=y, CFG_AB=n (why) CFG_A=n"})
    assert (config(meta, "A"), config(meta, "AB"), config(meta, "B")) == ("n", "n", None)
    assert config(Meta({"optee_config": 7}), "A") is None


def settings(recorded: Trace) -> SecureWorldSettings:
    return settings_for(recorded, survey(recorded), ())


def test_the_simulated_world_is_built_as_the_recorded_one() -> None:
    exchange = smc.OPTEE_SMC_EXCHANGE_CAPABILITIES
    everything = settings(made({}, (exchange, (0, 0xFF))))
    assert everything.async_notifications
    assert everything.rpc_arg
    assert everything.dynamic_shm
    assert everything.reserved_shm == (0x4200_0000, 0x20_0000)
    classic = settings(made({}, (exchange, (0, 0x14))))
    assert not classic.rpc_arg
    assert not classic.async_notifications
    assert classic.reserved_shm is None
    plain = settings(
        made(
            {
                "optee_config": "CFG_NUM_THREADS=6, CFG_CORE_DYN_SHM=n, CFG_CORE_ASYNC_NOTIF=n, "
                "CFG_CORE_RESERVED_SHM=n, CFG_PREALLOC_RPC_CACHE=n, CFG_VIRT_GUEST_COUNT=9",
                "optee_os": "4.7.0, reports revision 4.7",
            }
        )
    )
    assert (plain.threads, plain.guests, plain.revision) == (6, 9, (4, 7))
    assert not plain.dynamic_shm
    assert not plain.async_notifications
    assert not plain.rpc_cache
    assert plain.reserved_shm is None


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_the_recorded_capabilities_come_out_of_the_settings(path: Path) -> None:
    recorded = trace(path)
    exchange = survey(recorded).answers[smc.OPTEE_SMC_EXCHANGE_CAPABILITIES]
    machine = BareMetal(settings(recorded))
    client = 0
    if machine.settings.virtualization:
        machine.enter(smc.OPTEE_SMC_VM_CREATED, 1, client=0)
        client = 1
    ours = machine.enter(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES, 0, client=client)
    assert ours[:2] == exchange[:2]
