# SPDX-License-Identifier: BSD-2-Clause
"""Sessions, invoke parameters and their results."""

from __future__ import annotations

from smccc.constants import tee
from tests.secure_world import support as s
from tests.secure_world.support import Normal

TA = tee.TEE_ORIGIN_TRUSTED_APP
TEE = tee.TEE_ORIGIN_TEE
BAD = tee.TEE_ERROR_BAD_PARAMETERS


def test_device_enumeration_as_at_probe() -> None:
    n = Normal()
    session = n.session(s.DEVICES)
    assert session == 1
    sized = n.invoke(session, 0, [(0xA, 0, 0, 0)])
    assert sized.result == (tee.TEE_ERROR_SHORT_BUFFER, TA)
    assert sized.params[0] == (0xA, 0, 0x10, 0)
    cookie, address = n.buffer(4096)
    reply = n.invoke(session, 0, [(6, 0, 0x10, cookie)])
    assert reply.result == (0, TA)
    assert n.get(address, 16) == s.INVOKE_TESTS.bytes
    assert n.invoke(session, 1, [(0xA, 0, 0, 0)]).result == (0, TA)
    assert n.unregister(cookie).result == (0, 0)
    closed = n.close(session)
    assert closed.result == (0, TEE)
    assert n.session(s.DEVICES) == 1
