# SPDX-License-Identifier: BSD-2-Clause
"""A libteec client in C, its trusted application in Python, and the test that runs both.

The client is compiled for arm64 and runs in an unmodified Linux guest, with the kernel's own OP-TEE
driver. Needs an emulator, a cross compiler and fetched guest files: see ``optee-mediator live doctor``.
"""

from __future__ import annotations

import sys
from uuid import UUID

from mediator.live.trial import Trial, try_client, why_not
from secure_world.ta import TYPE_MEMREF_INOUT, Params, TaEnvironment, TrustedApplication
from smccc.constants import tee

CLIENT = r"""
#include <stdio.h>
#include <string.h>
#include <tee_client_api.h>

int main(int count, char **words)
{
    static const TEEC_UUID uuid = { 0x0f1e2d3c, 0x4b5a, 0x6978,
                                    { 0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0 } };
    TEEC_Context context;
    TEEC_Session session;
    char text[64] = "";
    TEEC_Operation operation = { .paramTypes = TEEC_PARAM_TYPES(TEEC_MEMREF_TEMP_INOUT, 0, 0, 0) };

    strncpy(text, words[count - 1], sizeof text - 1);
    operation.params[0].tmpref = (TEEC_TempMemoryReference){ text, sizeof text };
    if (TEEC_InitializeContext(NULL, &context) ||
        TEEC_OpenSession(&context, &session, &uuid, TEEC_LOGIN_PUBLIC, NULL, NULL, NULL))
        return 2;
    if (TEEC_InvokeCommand(&session, 0, &operation, NULL))
        return 3;
    printf("%.*s\n", (int)operation.params[0].tmpref.size, text);
    TEEC_CloseSession(&session);
    return 0;
}
"""


class Greeter(TrustedApplication):
    """Answers a name with a greeting, in the same buffer. Loaded by the guest's tee-supplicant."""

    uuid = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
    name = "greeter"

    async def invoke(self, env: TaEnvironment, command: int, params: Params) -> int:
        if params.types != TYPE_MEMREF_INOUT:
            return tee.TEE_ERROR_BAD_PARAMETERS
        buffer = params.memref(0)
        name = buffer.read(0, buffer.capacity).split(b"\0")[0]
        greeting = b"Hello, " + name
        buffer.set_size(len(greeting))
        if len(greeting) > buffer.capacity:
            return tee.TEE_ERROR_SHORT_BUFFER
        buffer.write(0, greeting)
        return tee.TEE_SUCCESS


def greet(name: str) -> Trial:
    """Start a guest, run the client in it."""
    return try_client(CLIENT, Greeter, arguments=name)


def test_greeting() -> None:
    """What a project that uses this would keep as its test."""
    trial = greet("Linux")
    assert (trial.code, trial.lines) == (0, ("Hello, Linux",))
    assert trial.result.good


if __name__ == "__main__":
    reason = why_not(compiler=True)
    if reason:
        sys.exit(reason)
    print(*greet("world").lines, sep="\n")
