# SPDX-License-Identifier: BSD-2-Clause
"""What a mediator offers its guests, and how much of it: one value object.

Two presets matter: ``MediatorSettings()`` offers everything that can be mediated safely, with
generous limits; :meth:`MediatorSettings.reference` equals the recorded reference mediator, with
which the golden behaviour vectors were made.
"""

from __future__ import annotations

import attrs

from mediator.host import PAGE_LIST_ENTRIES
from smccc.constants import optee_smc as smc

REFERENCE_CAPABILITIES = (
    smc.OPTEE_SMC_SEC_CAP_UNREGISTERED_SHM
    | smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM
    | smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL
)
"""Bits 1, 2 and 4. Reserved memory (bit 0) cannot be shared between guests, and virtualization
(bit 3) is the hypervisor's own affair."""

OFFERED_CAPABILITIES = (
    REFERENCE_CAPABILITIES
    | smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF
    | smc.OPTEE_SMC_SEC_CAP_RPC_ARG
    | smc.OPTEE_SMC_SEC_CAP_RPMB_PROBE
)
"""Bits 1, 2, 4, 5, 6 and 7; protected memory (bits 8 and 9) is not mediated."""

REFERENCE_CALLS_COUNT = 11

NOTIFICATION_VIRQ = 219
"""Interrupt id of notifications on the platform of the recorded sessions (QEMU's ``virt``)."""


def _positive(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, got {value}")


@attrs.frozen(kw_only=True)
class Limits:
    """Caps per guest (I6). Reaching one is an ABI error to that guest alone.

    ``calls``: calls in flight or suspended, ``None`` for the thread count that the TEE reports and
    ``returning`` more: the TEE gives a thread away before the call that had it is back here, at most
    one on each processor; reached: ETHREAD_LIMIT, which a guest can only see with a call of its own
    in flight.
    ``buffers``: shared buffers of all kinds; ``buffer_pages``: pages of one;
    ``total_pages``: pages of all; reached: TEE_ERROR_OUT_OF_MEMORY, origin COMMS.
    ``rpc_buffers``: RPC message buffers (classic calls), ``None`` for no cap; reached: the
    allocation fails towards the TEE. With fewer than the TEE has threads a SEND can get lost: OP-TEE
    does without one for which it gets no buffer.
    ``notifications``: the highest notification value that a guest can have; below that of the TEE,
    some of its threads cannot be woken.
    ``walk_entries``: page-list entries handled between two questions whether to stop, a multiple
    of 511 so that a step ends with a list page.
    ``pin_entries``: entries that a walk in shorter steps reads before it pins them together, at the
    latest; a multiple of 511, and without effect where ``walk_entries`` is not below it.
    """

    calls: int | None = attrs.field(default=None)
    # More processors than one guest is likely to have in the TEE at the same time.
    returning: int = attrs.field(default=64)
    # A Linux client seldom holds more than a few hundred buffers; each costs a record here.
    buffers: int = attrs.field(default=4096, validator=_positive)
    # 1 GiB, and one page more for a buffer that does not start at a page boundary.
    buffer_pages: int = attrs.field(default=262_145, validator=_positive)
    # 4 GiB in all: pins cost 8 bytes a page in the mediator, 8 MiB for a guest at the cap.
    total_pages: int = attrs.field(default=1_048_576, validator=_positive)
    # A TEE caches one buffer a thread; 256 is beyond any thread count in use.
    rpc_buffers: int | None = attrs.field(default=256)
    # OP-TEE numbers them 64 + thread; a guest's bitmap takes 1 KiB at most.
    notifications: int = attrs.field(default=8191, validator=_positive)
    # 64 list pages, 127 MiB of buffer: about half a millisecond of work.
    walk_entries: int = attrs.field(default=64 * PAGE_LIST_ENTRIES)
    # 16 list pages, 32 MiB of buffer: no more than 100 µs of work. To begin with a list costs a host
    # as much as some hundred pages of it; from here on it is the price of a long list.
    pin_entries: int = attrs.field(default=16 * PAGE_LIST_ENTRIES)

    @returning.validator
    def _not_negative(self, attribute: attrs.Attribute[int], value: int) -> None:
        if value < 0:
            raise ValueError(f"{attribute.name} must not be negative, got {value}")

    def call_limit(self, threads: int) -> int:
        """Calls that a guest may have if the TEE reports ``threads`` threads; at least one."""
        return max(threads + self.returning if self.calls is None else self.calls, 1)

    @calls.validator
    @rpc_buffers.validator
    def _positive_or_none(self, attribute: attrs.Attribute[int | None], value: int | None) -> None:
        if value is not None and value < 1:
            raise ValueError(f"{attribute.name} must be None or at least 1, got {value}")

    @walk_entries.validator
    @pin_entries.validator
    def _multiple(self, attribute: attrs.Attribute[int], value: int) -> None:
        if value < PAGE_LIST_ENTRIES or value % PAGE_LIST_ENTRIES:
            raise ValueError(
                f"{attribute.name} must be a multiple of {PAGE_LIST_ENTRIES}, got {value}"
            )


@attrs.frozen(kw_only=True)
class MediatorSettings:
    """Offers and limits of one mediator; the same for all of its guests.

    ``capabilities``: mask of OPTEE_SMC_SEC_CAP_* bits that may pass to a guest.
    ``thread_count``: answer GET_THREAD_COUNT. ``build_id``: pass a2 of GET_OS_REVISION.
    ``entry_offsets``: the low 12 bits of a page list's entries, which should be zero, reach the TEE,
    which then refuses the list; otherwise they are dropped.
    ``contiguous``: build the page list for a contiguous temporary buffer instead of refusing it.
    ``calls_count``: the answer to CALLS_COUNT, ``None`` for the number of functions offered.
    ``hold_waits``: keep the waits of a guest that has not enabled notifications, if the TEE has them:
    what another guest's call releases would not reach it otherwise.
    ``notification_virq``: interrupt id that tells a guest of notification values (its device tree
    says the same).
    ``client_id_base``: client id of guest 0 (client id 0 is the hypervisor's own).
    ``shadow_cache``: free shadow pages kept for the next call.
    """

    limits: Limits = Limits()
    capabilities: int = OFFERED_CAPABILITIES
    thread_count: bool = True
    build_id: bool = True
    contiguous: bool = True
    entry_offsets: bool = True
    calls_count: int | None = None
    hold_waits: bool = True
    notification_virq: int = attrs.field(default=NOTIFICATION_VIRQ, validator=_positive)
    client_id_base: int = attrs.field(default=1, validator=_positive)
    shadow_cache: int = 64

    @classmethod
    def reference(cls, *, threads: int | None = None, buffer_pages: int = 129) -> MediatorSettings:
        """The preset that equals the recorded reference mediator.

        129 pages are 512 KiB and one page for misalignment; fewer than 16,384 pages in all.
        """
        return cls(
            limits=Limits(
                calls=threads,
                returning=0,
                buffers=16,
                buffer_pages=buffer_pages,
                total_pages=16_383,
                rpc_buffers=None,
            ),
            capabilities=REFERENCE_CAPABILITIES,
            thread_count=False,
            build_id=False,
            contiguous=False,
            entry_offsets=False,
            hold_waits=False,
            calls_count=REFERENCE_CALLS_COUNT,
        )
