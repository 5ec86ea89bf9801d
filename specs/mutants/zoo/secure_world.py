# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in the simulated OP-TEE, whose rules a mediator relies on."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_ENTRY: Final = "secure_world.entry"
_SHM: Final = "secure_world.shm"
_WORLD: Final = "secure_world.world:SecureWorld"
_PARTITION: Final = "secure_world.partition:Partition"
_QUEUE: Final = "secure_world.waiting:WaitQueue"

MUTANTS = (
    Mutant(
        id="secure.message-fetched-twice",
        story="Reads a message in shared memory again when it has more than the usual parameters:"
        " the count of the first read and the parameters of the second.",
        bug_class=1,
        breaks=("call.single-fetch", "I4"),
        plant=edits(
            (
                f"{_ENTRY}:call_with_regd_arg",
                "data += memory.read(offset + _FIRST_READ, needed - _FIRST_READ)",
                "data = memory.read(offset, needed)",
            )
        ),
    ),
    Mutant(
        id="secure.short-allocation-taken",
        story="Uses the buffer of an SHM_ALLOC answer without comparing its size with what was"
        " asked for: the payload runs over its end.",
        bug_class=2,
        breaks=("secure.shm-alloc-size", "I4"),
        plant=edits(
            ("secure_world.thread:Thread._shm_alloc_once", " or given < size", ""),
        ),
    ),
    Mutant(
        id="secure.foreign-thread",
        story="Looks a thread up by its number in whichever partition has it suspended.",
        bug_class=23,
        breaks=("rpc.resume-suspended-only", "guest.names-apart", "I5"),
        plant=edits(
            (
                f"{_WORLD}._resume",
                "if index >= len(partition.threads):",
                "for other in self._partitions.values():\n"
                "        if index < len(other.threads) and other.threads[index].coroutine:\n"
                "            partition = other\n"
                "    if index >= len(partition.threads):",
            )
        ),
    ),
    Mutant(
        id="secure.client-zero",
        story="Accepts VM_CREATED for client 0, the hypervisor's own id.",
        bug_class=13,
        breaks=("life.created", "I5"),
        plant=edits((f"{_WORLD}._vm_created", "or not client ", "")),
    ),
    Mutant(
        id="secure.created-by-a-guest",
        story="Lets anybody create and destroy partitions.",
        bug_class=13,
        breaks=("offer.hidden-functions", "I5"),
        plant=edits(
            (f"{_WORLD}._vm_created", "a7 & _M32 != _HYPERVISOR or ", ""),
            (f"{_WORLD}._vm_destroyed", "if a7 & _M32 != _HYPERVISOR:", "if False:"),
        ),
    ),
    Mutant(
        id="secure.last-words",
        story="Unwinds the threads of a partition that goes while its memory is still mapped: what"
        " their clean-up writes lands in pages that are somebody else's by then.",
        bug_class=17,
        breaks=("life.destroyed-empty", "I2"),
        plant=edits((f"{_PARTITION}.destroy", "self.bus = _DEAD_BUS", "pass")),
    ),
    Mutant(
        id="secure.partition-found-after-its-end",
        story="Answers VM_DESTROYED and leaves the partition in the table for the next guest of"
        " that id: its sessions and threads are there.",
        bug_class=17,
        breaks=("life.destroyed-empty", "life.id-reuse", "I5"),
        plant=edits(
            (
                f"{_WORLD}._vm_created",
                "partition = Partition(self, client, self._births)",
                "partition = self._partitions.get(-client) or"
                " Partition(self, client, self._births)",
            ),
            (
                f"{_WORLD}._vm_destroyed",
                "partition.destroy()",
                "self._partitions[-client] = partition",
            ),
        ),
    ),
    Mutant(
        id="secure.lock-of-the-dead",
        story="Leaves a lock that the partitions share with a holder that is gone: the other guests"
        " wait for ever.",
        bug_class=17,
        breaks=("life.destroyed-empty", "wait.other-partition", "I8"),
        plant=edits((f"{_PARTITION}.destroy", "sleeper = mutex.abandon(self)", "sleeper = None")),
    ),
    Mutant(
        id="secure.released-in-use",
        story="UNREGISTER drops the object although a call uses it: the pages are unpinned while"
        " the TA reads them.",
        bug_class=15,
        breaks=("secure.map-count", "secure.find-and-hold", "I2"),
        plant=edits(
            (
                f"{_ENTRY}:_unregister",
                "while memory.refs:",
                "partition.gone(memory)\n            while False:",
            )
        ),
    ),
    Mutant(
        id="secure.released-twice",
        story="A second UNREGISTER of an object that waits for its last user drops that user's"
        " reference.",
        bug_class=15,
        breaks=("secure.map-count", "secure.find-and-hold"),
        plant=edits((f"{_ENTRY}:_unregister", " and (not memory.releasing)", "")),
    ),
    Mutant(
        id="secure.found-after-the-last-put",
        story="Takes an object off the table when the next one of its cookie comes: a reference to"
        " a temporary buffer of an ended call is still found.",
        bug_class=14,
        breaks=("secure.find-and-hold",),
        plant=edits((f"{_PARTITION}.gone", "self.shm.remove(memory)", "self.shm.live -= 1")),
    ),
    Mutant(
        id="secure.found-without-a-reference",
        story="Finds a registered object and counts itself as a user only when the TA touches it:"
        " an UNREGISTER in between does not wait.",
        bug_class=14,
        breaks=("secure.find-and-hold", "I2"),
        plant=edits(
            (
                "secure_world.params:copy_in",
                "memory.refs += 1\n                memory.maps += 1",
                "memory.maps += 1",
            ),
            (
                "secure_world.params:take_back",
                "memory.refs -= 1",
                "memory.refs -= 1 if memory.guarded else 0",
            ),
        ),
    ),
    Mutant(
        id="secure.map-count-of-duplicates",
        story="Maps an object once for a call that names it twice, and unmaps it twice.",
        bug_class=15,
        breaks=("secure.map-count",),
        plant=edits(
            (
                "secure_world.params:copy_in",
                "memory.refs += 1\n                memory.maps += 1",
                "memory.refs += 1\n"
                "                memory.maps += memory not in (params.memories or ())",
            )
        ),
    ),
    Mutant(
        id="secure.good-parameter-stays",
        story="Returns from a bad parameter at once: what the good ones before it hold is never"
        " given back.",
        bug_class=26,
        breaks=("param.all-or-nothing", "I3"),
        plant=edits(
            (
                f"{_ENTRY}:_invoke",
                "if params.memories is not None and take_back",
                "if session is not None and params.memories is not None and take_back",
            )
        ),
    ),
    Mutant(
        id="secure.trailing-link-followed",
        story="Reads the link of a full list page although no entry is missing: the page behind it"
        " is checked, and the list refused.",
        bug_class=19,
        breaks=("list.511-entries",),
        plant=edits(
            (f"{_SHM}:read_page_list", "if left <= LIST_ENTRIES:", "if left < LIST_ENTRIES:")
        ),
    ),
    Mutant(
        id="secure.entry-low-bits",
        story="Does not look at the low bits of list entries: an unaligned page runs into the next"
        " one.",
        bug_class=20,
        breaks=("list.low-bits", "I2"),
        plant=edits(
            (f"{_SHM}:read_page_list", "if page & _NO_PAGE:", "if page & _NO_PAGE & ~PAGE_MASK:")
        ),
    ),
    Mutant(
        id="secure.tail-page",
        story="Counts the pages of a list by the size alone.",
        bug_class=30,
        breaks=("param.tail-page",),
        plant=edits((f"{_SHM}:page_count", "total = size + offset", "total = size")),
    ),
    Mutant(
        id="secure.null-by-size",
        story="Takes a memory reference without a byte for a null one, and one at address 0 with a"
        " size for memory.",
        bug_class=11,
        breaks=("param.null",),
        plant=edits(("secure_world.params:_temporary", "if not address:", "if not size:")),
    ),
    Mutant(
        id="secure.meta-ignored",
        story="Reads the type of a parameter and ignores META: words that are no parameter of the"
        " client become one.",
        bug_class=18,
        breaks=("register.param-shape",),
        plant=edits(
            ("secure_world.params:Shape.__init__", "if attr & _META else", "if False else")
        ),
    ),
    Mutant(
        id="secure.loose-registration",
        story="Takes any list for a registration, whatever the direction of its parameter.",
        bug_class=18,
        breaks=("register.param-shape",),
        plant=edits(
            (
                f"{_ENTRY}:_register",
                "fields[8] == _REGISTER_ATTR",
                "fields[8] & msg.OPTEE_MSG_ATTR_NONCONTIG",
            )
        ),
    ),
    Mutant(
        id="secure.woken-is-owner",
        story="Takes a lock when it is woken without looking whether somebody else was quicker: two"
        " threads have it, and the release of one wakes nobody.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                "secure_world.waiting:TeeMutex.acquire",
                "while self.owner is not None:",
                "if self.owner is not None:",
            )
        ),
    ),
    Mutant(
        id="secure.wake-without-a-word",
        story="Marks the next waiter of a lock and forgets to tell its normal world.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits((f"{_QUEUE}.wake_next", "await thread.send_to(sleeper)", "pass")),
    ),
    Mutant(
        id="secure.send-in-the-wrong-partition",
        story="Wakes a waiter of another partition by an RPC in its own: a guest is told the number"
        " of a thread that is not its own.",
        bug_class=22,
        breaks=("wait.other-partition", "I5", "I8"),
        plant=edits(
            (
                "secure_world.thread:Thread.send_to",
                "if sleeper.partition is self.partition:",
                "if True:",
            )
        ),
    ),
    Mutant(
        id="secure.pending-without-interrupt",
        story="Raises the notification interrupt for the first pending value only: one that comes"
        " while the guest reads it is not announced.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                f"{_PARTITION}.notify",
                "if self.notifications.set(value):",
                "if not self.notifications.pending and self.notifications.set(value):",
            )
        ),
    ),
    Mutant(
        id="secure.drain-never-ends",
        story="Answers DISABLE_SHM_CACHE with OK when nothing is left.",
        bug_class=10,
        breaks=("cache.drain-id",),
        plant=edits(
            (
                f"{_WORLD}._disable_cache",
                "return (_ENOTAVAIL, a1, a2, a3)",
                "return (_OK, 0, 0, a3)",
            )
        ),
    ),
)
