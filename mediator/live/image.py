# SPDX-License-Identifier: BSD-2-Clause
"""Putting kernel, initramfs and device tree into a guest's RAM, as a boot loader would.

Kernel image header: Linux ``Documentation/arm64/booting.rst`` ("Call the kernel image").
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from mediator.live import fdt
from mediator.live.mailbox import KERNEL_RAM, MAILBOX, RAM_BASE, Mailbox
from mediator.live.qemu import POLLING, BoardSettings, at_el3, device_tree

_HEADER: Final = struct.Struct("<IIQQQQQQII")
_MAGIC: Final = 0x644D5241
"""``ARM\\x64`` at offset 56."""
_ALIGN: Final = 2 << 20
_PAGE: Final = 4096

NOTIFICATION_SPI: Final = 60
"""The board's interrupt that the device tree gives to the driver: free on "virt"."""
NOTIFICATION_INTID: Final = 32 + NOTIFICATION_SPI
_SPI, _EDGE_RISING = 0, 1

_UNUSED: Final = (
    "pcie@",
    "virtio_mmio@",
    "flash@",
    "fw-cfg@",
    "pl061@",
    "gpio-keys",
    "platform-bus@",
    "secram@",
)
"""Devices of the board that a guest without disk and network need not look for: half a boot."""

SMC, HVC = "smc", "hvc"
CONDUITS: Final = (SMC, HVC)


class ImageError(ValueError):
    """Kernel or files cannot be booted; the message says why."""


@attrs.frozen(kw_only=True)
class Software:
    """What a guest boots. ``conduit``: how its driver shall call the TEE."""

    kernel: bytes = attrs.field(repr=False)
    initramfs: bytes = attrs.field(repr=False)
    arguments: str = ""
    conduit: str = attrs.field(default=SMC)

    @conduit.validator
    def _known(self, _attribute: attrs.Attribute[str], value: str) -> None:
        if value not in CONDUITS:
            raise ValueError(f"conduit: {value!r} is not one of {', '.join(CONDUITS)}")


def _kernel_size(kernel: bytes) -> tuple[int, int]:
    """Offset from a 2 MiB boundary, and the RAM that it needs, of an arm64 Image."""
    if len(kernel) < _HEADER.size or _HEADER.unpack_from(kernel)[8] != _MAGIC:
        raise ImageError("the kernel is not an uncompressed arm64 Image")
    offset, size = _HEADER.unpack_from(kernel)[2:4]
    return offset, size


def board_tree(board: BoardSettings, software: Software, initramfs: tuple[int, int]) -> bytes:
    """The board's device tree, made for our guest: TEE node, boot arguments, shorter memory."""
    tree = fdt.parse(device_tree(board))
    root = tree.root
    root.children = {
        name: node for name, node in root.children.items() if not name.startswith(_UNUSED)
    }
    memory = next(node for name, node in root.children.items() if name.startswith("memory"))
    memory.set_words("reg", KERNEL_RAM, RAM_BASE + board.ram - KERNEL_RAM)
    power = root.at("psci", make=True)  # not there if the emulator expects firmware to serve it
    power.set_text("compatible", "arm,psci-1.0", "arm,psci-0.2", "arm,psci")
    power.set_text("method", "smc")
    for name, cpu in root.at("cpus").children.items():
        if name.startswith("cpu@"):
            cpu.set_text("enable-method", "psci")
    tee = root.at("firmware/optee", make=True)
    tee.set_text("compatible", "linaro,optee-tz")
    tee.set_text("method", software.conduit)
    tee.set_cells("interrupts", _SPI, NOTIFICATION_SPI, _EDGE_RISING)
    chosen = root.at("chosen", make=True)
    chosen.set_text("bootargs", software.arguments)
    chosen.set_words("linux,initrd-start", initramfs[0])
    chosen.set_words("linux,initrd-end", initramfs[1])
    # Seeds of the kernel's generators: fixed, a run is to be like the one before it.
    chosen.properties["rng-seed"] = bytes(range(64))
    return fdt.build(tree)


def load(ram: memoryview, board: BoardSettings, software: Software) -> list[Mailbox]:
    """Fill ``ram`` (all of the guest's) and prepare its mailboxes, one for each vCPU."""
    offset, size = _kernel_size(software.kernel)
    entry = KERNEL_RAM + offset
    initramfs = entry + max(size, len(software.kernel)) + _ALIGN - 1 & -_ALIGN
    end = initramfs + len(software.initramfs)
    tree = board_tree(board, software, (initramfs, end))
    tree_at = end + _PAGE - 1 & -_PAGE
    if tree_at + len(tree) > RAM_BASE + board.ram:
        raise ImageError(f"kernel and initramfs do not fit into {board.ram >> 20} MiB")
    for at, data in (
        (entry, software.kernel),
        (initramfs, software.initramfs),
        (tree_at, tree),
    ):
        ram[at - RAM_BASE : at - RAM_BASE + len(data)] = data
    boxes: list[Mailbox] = []
    for index in range(board.vcpus):
        page = MAILBOX - RAM_BASE + index * _PAGE
        box = Mailbox(ram[page : page + _PAGE])
        # At EL3 an entry starts the vCPU; at EL2 the emulator does, when the kernel asks for it.
        started = index == 0 or not at_el3(board)
        box.prepare(entry if started else 0, tree_at, rings=board.bell != POLLING)
        boxes.append(box)
    return boxes
