# SPDX-License-Identifier: BSD-2-Clause
"""The device enumeration pseudo-TA that a Linux driver asks at probe (OP-TEE ``core/pta/device.c``)."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from secure_world.ta import TYPE_MEMREF_OUTPUT, Params, TaEnvironment, TrustedApplication
from smccc.constants import tee

DEVICES: Final = tee.PTA_CMD_GET_DEVICES
"""Devices that work before tee-supplicant runs."""
DEVICES_WITH_SUPPLICANT: Final = tee.PTA_CMD_GET_DEVICES_SUPP


class DeviceEnumeration(TrustedApplication):
    """Writes the UUIDs of the devices; too small a buffer learns the size that is needed."""

    uuid = UUID("7011a688-ddde-4053-a5a9-7b3c4ddf13b8")
    name = "device enumeration"
    pseudo = True
    single_instance = True
    multi_session = True
    keep_alive = True

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        """Functions 0 and 1: one MEMREF_OUTPUT, nothing else."""
        if command not in (DEVICES, DEVICES_WITH_SUPPLICANT):
            return tee.TEE_ERROR_NOT_IMPLEMENTED
        if params.types != TYPE_MEMREF_OUTPUT:
            return tee.TEE_ERROR_BAD_PARAMETERS
        listed = b"".join(env.devices(command))
        memref = params.memref(0)
        memref.set_size(len(listed))
        if len(listed) > memref.capacity:
            return tee.TEE_ERROR_SHORT_BUFFER
        memref.write(0, listed)
        return tee.TEE_SUCCESS
