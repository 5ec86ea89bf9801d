# SPDX-License-Identifier: BSD-2-Clause
"""The simulated OP-TEE configured as the recorded one was built.

The first line of a trace states build options; an option that it does not state is taken from the
recorded answers to fast calls, and otherwise is that of OP-TEE's QEMU platform. Which pseudo-TAs a
build has is seen from the device enumeration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from secure_world.apps.devices import DeviceEnumeration
from secure_world.settings import SecureWorldSettings
from smccc.constants import optee_msg as msg
from smccc.constants import optee_smc as smc
from smccc.registers import low32
from specs.replay.compare import parameters
from specs.replay.expectation import Plan
from specs.replay.reader import Trace
from specs.replay.survey import DEFAULT_RESERVED, Survey, config, guest_count

DEFAULT_REVISION: Final = (4, 10)
_REVISION: Final = re.compile(r"reports (?:revision )?(\d{1,4})\.(\d{1,4})")


def devices_of(plans: Iterable[Plan]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]] | None:
    """UUID octets that the recorded OP-TEE lists as devices: which pseudo-TAs its build has.

    As the two functions of the device enumeration answered; None if nobody asked.
    """
    found: dict[int, tuple[bytes, ...]] = {}
    for plan in plans:
        start, final = plan.flight.start.msg, plan.flight.final
        asked = plan.uuid == DeviceEnumeration.uuid
        invoked = plan.command == msg.OPTEE_MSG_CMD_INVOKE_COMMAND
        if not asked or not invoked or start is None or final is None or final.msg is None:
            continue
        params = parameters(final.msg.data)
        function = int.from_bytes(start.data[4:8], "little")
        if function > 1 or not params or any(final.msg.data[20:24]):
            continue
        if not params[0].b:
            found[function] = ()
        for buffer in final.buffers:
            if buffer.param == 0 and len(buffer.data) == params[0].b:
                octets = buffer.data
                found[function] = tuple([octets[i : i + 16] for i in range(0, len(octets), 16)])
    return (found.get(0, ()), found.get(1, ())) if found else None


def settings_for(trace: Trace, facts: Survey, plans: Iterable[Plan]) -> SecureWorldSettings:
    """Settings of the simulated OP-TEE for a trace."""
    recorded: int | None = None
    answer = facts.answers.get(smc.OPTEE_SMC_EXCHANGE_CAPABILITIES)
    if answer is not None and low32(answer[0]) == smc.OPTEE_SMC_RETURN_OK:
        recorded = low32(answer[1])

    def option(name: str, bit: int) -> bool:
        written = config(trace.meta, name)
        if written is not None:
            return written == "y"
        return recorded is None or bool(recorded & bit)

    reserved = None
    if option("CORE_RESERVED_SHM", smc.OPTEE_SMC_SEC_CAP_HAVE_RESERVED_SHM):
        reserved = facts.reserved or DEFAULT_RESERVED
    revision, build_id = DEFAULT_REVISION, 0
    answer = facts.answers.get(smc.OPTEE_SMC_CALL_GET_OS_REVISION)
    if answer is not None and low32(answer[0]) != smc.OPTEE_SMC_RETURN_ENOTAVAIL:
        revision, build_id = (low32(answer[0]), low32(answer[1])), low32(answer[2])
    match = _REVISION.search(trace.meta.text("optee_os"))
    if match is not None:
        revision = int(match[1]), int(match[2])
    return SecureWorldSettings(
        virtualization=facts.virtualization,
        guests=guest_count(trace),
        threads=facts.threads,
        dynamic_shm=option("CORE_DYN_SHM", smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM),
        null_memref=recorded is None or bool(recorded & smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL),
        async_notifications=option("CORE_ASYNC_NOTIF", smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF),
        rpc_arg=recorded is None or bool(recorded & smc.OPTEE_SMC_SEC_CAP_RPC_ARG),
        rpmb_probe=recorded is None or bool(recorded & smc.OPTEE_SMC_SEC_CAP_RPMB_PROBE),
        rpc_cache=config(trace.meta, "PREALLOC_RPC_CACHE") != "n",
        reserved_shm=reserved,
        revision=revision,
        build_id=build_id,
        devices=devices_of(plans),
    )
