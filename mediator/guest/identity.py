# SPDX-License-Identifier: BSD-2-Clause
"""The client identities that a kernel vouches for: name-based UUIDs of users and groups.

Sources: the rule is that of the Linux TEE subsystem (``drivers/tee/tee_core.c``,
``tee_session_calc_client_uuid``: version 5 of RFC 4122 in a fixed name space); the values were checked
against recorded traffic of Linux 6.1 and 6.12. Other logins are the nil UUID (public, the kernel) or
refused before any call is made (applications).
"""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid5

NAME_SPACE: Final = UUID("58ac9ca0-2086-4683-a1b8-ec4bc08e01b6")
"""The kernel's name space for clients."""


def user_identity(user: int) -> UUID:
    """Identity of login USER for a numeric user id."""
    return uuid5(NAME_SPACE, f"uid={user:x}")


def group_identity(group: int) -> UUID:
    """Identity of login GROUP for a numeric group id."""
    return uuid5(NAME_SPACE, f"gid={group:x}")
