# SPDX-License-Identifier: BSD-2-Clause
"""A pseudo-TA that lets the secure world send notification values: at once, or by and by.

What a secure interrupt handler would do. It needs a timer of whoever runs the platform, so it is made
for one platform and not among the built-in applications.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final
from uuid import UUID

from secure_world.ta import (
    TYPE_VALUE_INPUT,
    Params,
    TaEnvironment,
    TrustedApplication,
    param_types,
)
from secure_world.world import SecureWorld
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc, tee

NOTIFIER: Final = UUID("5f1c6a52-9d0e-4c64-9b53-3d6f2a7be006")

SEND: Final = 0
"""p0 value in: a = notification value, b = milliseconds from now (0: in this call, at once).
p1 value in: a = how often, b = milliseconds between two of them."""
WAIT: Final = 1
"""p0 as in SEND: sends that value, and waits for it in the normal world (RPC NOTIFICATION WAIT)."""

MAX_SENDS: Final = 10_000
"""Of one call: a client's mistake must not keep this process busy."""
NS_PER_MS: Final = 1_000_000

After = Callable[[int, Callable[[], None]], None]
"""``(ns, action)``."""


def make_notifier(world: SecureWorld, after: After) -> type[TrustedApplication]:
    """The application of one secure world."""
    highest = world.settings.max_notification

    def send(client: int, value: int, times: int, gap: int) -> None:
        """Send ``value`` as often, as long as the client listens."""
        if world.notify(client, value) and times > 1:
            after(gap, partial(send, client, value, times - 1, gap))

    class Notifier(TrustedApplication):
        """See the module. NOT_SUPPORTED: the client has not enabled notifications."""

        uuid = NOTIFIER
        name = "notifier"
        pseudo = True
        single_instance = True
        multi_session = True
        keep_alive = True
        concurrent = True

        async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
            """Commands SEND and WAIT."""
            if command not in (SEND, WAIT):
                return tee.TEE_ERROR_NOT_SUPPORTED
            shape = param_types(TYPE_VALUE_INPUT, TYPE_VALUE_INPUT if command == SEND else 0)
            if params.types != shape or not 0 <= params.value(0).a <= highest:
                return tee.TEE_ERROR_BAD_PARAMETERS
            value, delay = params.value(0).a, params.value(0).b * NS_PER_MS
            times, gap = 1, 0
            if command == SEND:
                times, gap = params.value(1).a, params.value(1).b * NS_PER_MS
                if not 1 <= times <= MAX_SENDS:
                    return tee.TEE_ERROR_BAD_PARAMETERS
            client = env.client_id
            partition = world.partition(client)
            if partition is None or not partition.notifications.enabled:
                return tee.TEE_ERROR_NOT_SUPPORTED
            if delay:
                after(delay, partial(send, client, value, times, gap))
            else:
                send(client, value, times, gap)
            if command == SEND:
                return tee.TEE_SUCCESS
            wait = (
                msg.OPTEE_MSG_ATTR_TYPE_VALUE_INPUT,
                optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT,
                value,
                0,
            )
            return (await env.rpc(optee_rpc.OPTEE_RPC_CMD_NOTIFICATION, (wait,))).ret

    return Notifier
