# SPDX-License-Identifier: BSD-2-Clause
"""Bugs in the reference host: frames, pins, stage 2, the bus, interrupts, the end of a guest."""

from __future__ import annotations

from typing import Final

from specs.mutants.edits import edits
from specs.mutants.mechanism import Mutant

_GUESTS: Final = "mediator.hypervisor.guests:GuestMemory"
_FRAMES: Final = "mediator.hypervisor.frames:FrameTable"
_HOST: Final = "mediator.hypervisor.host:ReferenceHost"
_VGIC: Final = "mediator.hypervisor.vgic:Vgic"
_MACHINE: Final = "mediator.hypervisor.machine:Machine"

FRAMES = (
    Mutant(
        id="host.pinned-page-freed",
        story="Frees a page when it leaves its guest and looks at foreign mappings only: a page"
        " that the TEE writes to has a new owner.",
        bug_class=21,
        breaks=("register.stage2-change", "I2"),
        plant=edits((f"{_FRAMES}._release_words", "np.int64(HELD)", "np.int64(MAPPING_MASK)")),
    ),
    Mutant(
        id="host.zombie-freed-by-the-first-release",
        story="Frees a page that its guest has given up when the first of its references goes.",
        bug_class=21,
        breaks=("register.stage2-change", "I2"),
        plant=edits(
            (f"{_FRAMES}.reap", "not word & ZOMBIE or word & HELD", "not word & ZOMBIE"),
            (f"{_HOST}._unpin_few", "& (ZOMBIE | HELD) == ZOMBIE", "& ZOMBIE"),
        ),
    ),
    Mutant(
        id="host.zombie-is-never-freed",
        story="Forgets to look, at the last release, whether the page waits to be freed: pages that"
        " left a guest while they were shared are lost.",
        bug_class=12,
        breaks=("register.stage2-change", "I3"),
        plant=edits((f"{_HOST}._unpin_few", "if word & ZOMBIE:", "if False:")),
    ),
    Mutant(
        id="host.pinned-page-changes-hands",
        story="Gives a page with references to the receiver as it is: the receiver sees what the"
        " TEE writes for the giver.",
        bug_class=21,
        breaks=("register.stage2-change", "I1"),
        plant=edits(
            (
                "mediator.hypervisor.memory:PhysicalMemory.transfer",
                "if self.is_referenced(pfn):",
                "if word & 0:",
            ),
            (f"{_FRAMES}.change_owner", "word & (HELD | ZOMBIE)", "word & ZOMBIE"),
        ),
    ),
    Mutant(
        id="host.freed-page-not-scrubbed",
        story="Zeroes pages when a guest is created, not when they become free: a ballooned page"
        " shows the next guest what the last one kept there.",
        bug_class=21,
        breaks=("guest.memory-apart", "I1"),
        plant=edits((f"{_FRAMES}._to_free", "self.scrub(start, end)", "pass")),
    ),
    Mutant(
        id="host.duplicate-pinned-once",
        story="Adds the references of a list as one array operation: a page that is listed twice is"
        " counted once, and unpinned twice.",
        bug_class=15,
        breaks=("secure.map-count", "list.own-writable-ram", "I3"),
        plant=edits(
            (
                "mediator.hypervisor.pages:pin",
                "np.add.at(array, block, _ONE)",
                "array[block] += _ONE",
            )
        ),
    ),
    Mutant(
        id="host.failed-list-stays-pinned",
        story="Stops at the first bad page of a short list and forgets the good ones before it.",
        bug_class=5,
        breaks=("list.undone", "I3"),
        plant=edits((f"{_HOST}._pin_few", "words[pa >> PAGE_SHIFT] -= 1", "pass")),
    ),
    Mutant(
        id="host.failed-long-list-stays-pinned",
        story="Stops at the first bad block of a long list and forgets the good ones before it.",
        bug_class=5,
        breaks=("list.undone", "I3"),
        plant=edits(
            ("mediator.hypervisor.pages:pin", "_undo(np.subtract, array, pfns[:start])", "pass")
        ),
    ),
    Mutant(
        id="host.pin-without-owner",
        story="Pins what stage 2 maps read-write and does not look who owns the frame.",
        bug_class=21,
        breaks=("list.own-writable-ram", "I2"),
        plant=edits(
            (
                f"{_HOST}._pin_few",
                "word = self.memory.word(pfn)\n            if (word ^ own) & PINNABLE:\n"
                "                break",
                "word = self.memory.word(pfn)",
            )
        ),
    ),
)

STAGE2 = (
    Mutant(
        id="host.stale-translation",
        story="Keeps looked-up translations over a change of stage 2: the mediator reads and writes"
        " a page that is no longer there.",
        bug_class=21,
        breaks=("register.stage2-change", "rpc_cmd.request-copied", "I1"),
        plant=edits(("mediator.hypervisor.stage2:Stage2._changed", "self.tlb.clear()", "pass")),
    ),
    Mutant(
        id="host.read-only-is-writable",
        story="Takes every page of the guest's own for writable: the copy-back goes into a page"
        " that the guest has made read-only.",
        bug_class=21,
        breaks=("result.unwritable", "list.own-writable-ram"),
        plant=edits(
            (f"{_HOST}.write_guest", "entry & KIND_MASK != OWN_RW", "entry & KIND_MASK < OWN_RO")
        ),
    ),
    Mutant(
        id="host.foreign-list-page",
        story="Looks at the first page of a guest's list and follows the links without another"
        " look: a list may go on in a page of another guest.",
        bug_class=19,
        breaks=("list.list-pages", "list.511-entries", "I1"),
        plant=edits(
            (
                f"{_HOST}.read_page_list",
                "if entry & KIND_MASK != OWN_RW:",
                "if entry & KIND_MASK < (1 if parts else OWN_RW):",
            )
        ),
    ),
    Mutant(
        id="host.trailing-link-followed",
        story="Follows word 511 of a full list page before it looks whether entries are missing: a"
        " list of exactly 511 needs a second page.",
        bug_class=19,
        breaks=("list.511-entries",),
        plant=edits(
            (
                f"{_HOST}.read_page_list",
                "left -= PAGE_LIST_ENTRIES\n        if not left:\n            break",
                "left -= PAGE_LIST_ENTRIES",
            )
        ),
    ),
    Mutant(
        id="host.addresses-of-48-bits",
        story="Cuts IPAs to the bits that the table has: an address far outside is the page at its"
        " low bits.",
        bug_class=20,
        breaks=("list.own-writable-ram",),
        plant=edits(
            (
                "mediator.hypervisor.stage2:Stage2.entry",
                "index = bisect_right(self._starts, gfn)",
                "gfn &= (1 << 36) - 1\n    index = bisect_right(self._starts, gfn)",
            )
        ),
    ),
    Mutant(
        id="host.low-bits-kept",
        story="Keeps the low bits of a list entry in the physical address: a flag in bit 0 makes"
        " the TEE refuse the whole list.",
        bug_class=20,
        breaks=("list.low-bits",),
        plant=edits(
            (
                f"{_HOST}._pin_few",
                "frames.append(pfn << PAGE_SHIFT)",
                "frames.append(pfn << PAGE_SHIFT | ipa & PAGE_MASK)",
            )
        ),
    ),
    Mutant(
        id="host.minus-one-of-32-bits",
        story="Answers an unknown function with a 32-bit -1: a 64-bit guest compares with a signed"
        " long and takes it for a success.",
        bug_class=8,
        breaks=("smccc.unknown-is-minus-one",),
        plant=edits(
            (
                "mediator.hypervisor.traps:not_supported",
                "NOT_SUPPORTED",
                "NOT_SUPPORTED & MASK32",
            )
        ),
    ),
    Mutant(
        id="host.reserved-bits-ignored",
        story="Looks at owner and number of a fast call only: an id of a later version of the"
        " convention is taken for one of today.",
        bug_class=8,
        breaks=("smccc.reserved-bits",),
        plant=edits(
            (
                "mediator.hypervisor.traps:Dispatcher.route",
                "if function & _FAST_RESERVED and function & _FAST_BIT:",
                "if False:",
            )
        ),
    ),
    Mutant(
        id="host.hint-is-a-function",
        story="Announces SMCCC 1.3 and takes the hint of a caller without SVE state for a part of"
        " the number: every call of such a kernel is unknown.",
        bug_class=8,
        breaks=("smccc.sve-hint",),
        plant=edits(
            (
                "mediator.hypervisor.traps:Dispatcher.normalise",
                "regs[0] & ~_SVE_HINT",
                "regs[0]",
            )
        ),
    ),
    Mutant(
        id="host.wide-answers-to-a-32-bit-guest",
        story="Hands the 64-bit -1 to a 32-bit guest: on hardware nobody sees the upper half, in a"
        " model every comparison fails.",
        bug_class=8,
        breaks=("smccc.aarch32-words",),
        plant=edits(
            (
                "mediator.hypervisor.vcpu:Vcpu._trap",
                "low_words(answer) if aarch32 else answer",
                "answer",
            )
        ),
    ),
    Mutant(
        id="host.wide-arguments-of-a-32-bit-call",
        story="Takes the whole registers for the arguments of a PSCI call of the 32-bit convention:"
        " a started vCPU begins at an address with rubbish above.",
        bug_class=8,
        breaks=("smccc.aarch32-words",),
        plant=edits(("mediator.hypervisor.psci:arguments", "if regs[0] & _SMC64:", "if True:")),
    ),
    Mutant(
        id="bus.unpinned-is-allowed",
        story="Lets the secure world touch any page of the right guest, pinned or not: a breach of"
        " the mediator is never seen.",
        bug_class=12,
        breaks=("register.pins", "I2"),
        plant=edits(
            (
                "mediator.hypervisor.bus:SecureBus._objection",
                "(word & PIN_MASK or client == 0)",
                "True",
            )
        ),
    ),
)

LIVES = (
    Mutant(
        id="host.freed-before-the-tee",
        story="Gives the memory of a dying guest back first and tells the mediator then: the TEE"
        " still has it mapped.",
        bug_class=12,
        breaks=("life.destroyed-empty", "life.id-reuse", "I2"),
        plant=edits(
            (
                f"{_MACHINE}._teardown",
                "if guest.tee:",
                "self._core.memory.remove_guest(guest.id, quarantine=guest.quarantine)\n"
                "    if guest.tee:",
            ),
            (
                f"{_MACHINE}._teardown",
                "await TURN\n    self._core.memory.remove_guest(guest.id,"
                " quarantine=guest.quarantine)",
                "await TURN",
            ),
        ),
    ),
    Mutant(
        id="host.id-reused-early",
        story="Gives an id to a new guest while pages of the late one are pinned under it: they"
        " are the new guest's now.",
        bug_class=12,
        breaks=("life.id-reuse", "I5"),
        plant=edits((f"{_GUESTS}.reusable", " and guest not in self._departed", "")),
    ),
    Mutant(
        id="host.quarantine-forgotten",
        story="Reports that the TEE did not let go of a guest and frees its pages all the same.",
        bug_class=12,
        breaks=("life.destroyed-whatever-answer", "life.id-reuse", "I2"),
        plant=edits(
            (
                f"{_GUESTS}.remove_guest",
                "quarantine = quarantine or record.quarantined",
                "quarantine = record.quarantined = False",
            )
        ),
    ),
    Mutant(
        id="host.trap-cut-short",
        story="Kills the vCPUs of a dying guest wherever they are, inside the mediator too: the"
        " call that one of them made holds its pages for ever.",
        bug_class=17,
        breaks=("life.destroyed-empty", "I3", "I7"),
        plant=edits(
            (f"{_MACHINE}._teardown", "while guest.in_flight():", "while False:"),
        ),
    ),
)

INTERRUPTS = (
    Mutant(
        id="vcpu.pending-without-a-wake",
        story="Makes an interrupt pending and leaves the vCPU asleep that waits for it.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            ("mediator.hypervisor.vcpu:interrupt", "guest.vcpus[target].look()", "pass"),
        ),
    ),
    Mutant(
        id="vcpu.sleeps-without-a-look",
        story="Puts a vCPU to sleep that executes WFI: an interrupt that came before it is"
        " delivered when another one comes.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                "mediator.hypervisor.vcpu:Vcpu.wfi",
                "_STOP if self._vgic.deliverable(self.index) else _WAIT",
                "_WAIT",
            )
        ),
    ),
    Mutant(
        id="vgic.edge-while-active-lost",
        story="Drops an interrupt that comes while the same one is being handled: the handler has"
        " looked already, and nobody looks again.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                f"{_VGIC}.inject",
                "self._bank(intid, vcpu).latched |= 1 << intid",
                "self._bank(intid, vcpu).latched |= 1 << intid & ~self._bank(intid, vcpu).active",
            )
        ),
    ),
    Mutant(
        id="vgic.acknowledge-clears-the-line",
        story="Treats a level as an edge: taken once, it is gone although its wire is still high.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits(
            (
                f"{_VGIC}.acknowledge",
                "bank.latched &= ~bit",
                "bank.latched &= ~bit\n    bank.line &= ~bit",
            )
        ),
    ),
    Mutant(
        id="vgic.in-service-dies-with-its-vcpu",
        story="Leaves a shared interrupt active when the processor that handled it is switched off:"
        " it is never delivered again.",
        bug_class=22,
        breaks=("notif.not-lost", "I8"),
        plant=edits((f"{_VGIC}.set_online", "if intid >= FIRST_SPI:", "if False:")),
    ),
)

MUTANTS = (*FRAMES, *STAGE2, *LIVES, *INTERRUPTS)
