# SPDX-License-Identifier: BSD-2-Clause
"""The file system that a live guest starts from: busybox, the TEE modules, libteec, and what is to run.

The start script reports with lines that begin with ``@@``: test, ``ok``, ``fail`` or ``skip``,
microseconds, detail. Everything else on the console is for people.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import attrs

from mediator.live import bundle
from mediator.live.bundle import Bundle
from mediator.live.cpio import Archive

MARK: Final = "@@"
WORKLOAD: Final = "/bin/live-workload"
TA_FOLDER: Final = "/lib/optee_armtz"
APPLETS: Final = (
    "awk",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "dmesg",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hexdump",
    "insmod",
    "kill",
    "killall",
    "ln",
    "ls",
    "lsmod",
    "md5sum",
    "mkdir",
    "mknod",
    "mount",
    "mv",
    "ps",
    "pwd",
    "rm",
    "rmmod",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stty",
    "sync",
    "tail",
    "taskset",
    "tee",
    "test",
    "time",
    "top",
    "touch",
    "tr",
    "true",
    "umount",
    "uname",
    "usleep",
    "vi",
    "wc",
    "wget",
    "which",
    "xargs",
    "poweroff",
    "reboot",
)
"""Names under which busybox is called."""

PROBE, RNG, SUPPLICANT, CLIENT, BENCH, UNLOAD = (
    "probe",
    "rng",
    "supplicant",
    "client",
    "bench",
    "unload",
)
STEPS: Final = (PROBE, RNG, SUPPLICANT, CLIENT, UNLOAD)
"""The built-in workload."""

HEAD: Final = """\
#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=linux
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
stty -echo -opost 2>/dev/null
us() { read up rest < /proc/uptime; echo $((${up%.*} * 1000000 + 1${up#*.}0000 - 1000000)); }
result() { echo "@@ $again$1 $2 $(($(us) - began)) $3"; began=$(us); }
check() { name=$1; shift; if "$@"; then result $name ok; else result $name fail "$*"; fi; }
printed() { test "$(dmesg | grep -c "$1")" = $2; }
limited() { shift; "$@"; }
unload_rng() { rmmod optee-rng 2>/dev/null; }
echo "@@ boot ok $(us) $(uname -r)"
began=$(us)
"""

_STEPS: Final[Mapping[str, str]] = {
    PROBE: """\
{load}
check probe printed 'optee: initialized driver' 1
{notified}check enumeration test -n "$(ls /sys/bus/tee/devices)"
echo "@@ ${again}devices info 0 $(ls /sys/bus/tee/devices | tr '\\n' ' ')"
""",
    RNG: """\
insmod /lib/modules/optee-rng.ko
{refused}check hwrng test "$(cat /sys/class/misc/hw_random/rng_current)" = optee-rng
check entropy test "$(limited 5 dd if=/dev/hwrng bs=32 count=10 2>/dev/null | wc -c)" = 320
{fi}""",
    SUPPLICANT: """\
tee-supplicant &
supplicant=$!
usleep 20000
check supplicant kill -0 $supplicant
""",
    CLIENT: "limited 60 /bin/live-workload\nbegan=$(us)\n",
    BENCH: "/bin/live-workload bench\nbegan=$(us)\n",
    UNLOAD: """\
test -n "$supplicant" && kill $supplicant && wait $supplicant 2>/dev/null
unload_rng
check unload rmmod optee
insmod /lib/modules/optee.ko
check reload printed 'optee: initialized driver' 2
check unload-again rmmod optee
""",
}

AGAIN: Final = "again-"
"""Begins the names of what is checked the second time."""
RECOVERY: Final = "recovery"
"""Says that the first time is over: what goes wrong from now on is no planned fault's doing."""
SERVED: Final = f"{AGAIN}served"
"""The check at the very end of the second time."""

_LIMITS: Final = """\
limited() { timeout -s KILL "$@"; }
unload_rng() {
  dmesg | grep -q 'hwrng registration failed' && kept=1
  test "$kept" || rmmod optee-rng 2>/dev/null
}
test -e /proc/sys/kernel/hung_task_timeout_secs && echo 10 > /proc/sys/kernel/hung_task_timeout_secs
"""
"""What may wait for ever is ended, and the kernel complains early about what cannot be.

A source of entropy whose start failed stays in the kernel's list (``hwrng_register``,
``drivers/char/hw_random/core.c``): its module must not go, and its name is taken until the next boot.
"""

_REFUSED: Final = """\
if dmesg | grep -q 'hwrng registration failed (-17)'; then
result hwrng skip "the kernel keeps one of this name whose start failed"
else
"""

_RECOVER: Final = """\
echo "@@ {recovery} info 0"
usleep 50000
began=$(us)
driver=/sys/bus/platform/drivers/optee
killall live-workload tee-supplicant 2>/dev/null; wait; supplicant=
unload_rng
test -d $driver || { {load}; }
dmesg | grep -E 'optee|tee:' | head -n 20 | sed 's/^/log: /'
device=$(ls $driver | grep optee || ls /sys/bus/platform/devices | grep optee)
test -e $driver/$device && echo $device > $driver/unbind
dmesg -c >/dev/null
echo $device > $driver/bind
check reprobe printed 'optee: initialized driver' 1
rmmod optee; rmmod tee 2>/dev/null
dmesg -c >/dev/null
export again={again}
"""
"""What an administrator does: end the programs that have the device open, and let the driver probe again."""

_NOTIFIED: Final = "check notifications printed 'optee: Asynchronous notifications enabled' 1\n"
_RECOVERED: Final = """\
check blocked test -z "$(grep -l '^State:.D' /proc/[0-9]*/status 2>/dev/null)"
result served ok
again=
"""
_TAIL: Final = """\
dmesg | grep -E 'optee|tee:' | sed 's/^/log: /'
echo "@@ end ok $(us)"
poweroff -f
"""


class InitramfsError(ValueError):
    """What was asked for cannot be put into the file system; the message says why."""


@attrs.frozen(kw_only=True)
class Contents:
    """What goes into a guest beside the base. ``files``: guest path to (contents, mode).

    ``steps``: parts of the built-in workload. ``notifications``: the driver is to say that it has enabled
    them. ``commands``: shell lines after them. ``shell``: an
    interactive one at the end. ``images``: TA images for the supplicant. ``recover``: expect the TEE
    to fail on the way; let the driver probe again afterwards, and do all steps once more.
    """

    steps: Sequence[str] = STEPS
    notifications: bool = False
    commands: Sequence[str] = ()
    shell: bool = False
    recover: bool = False
    workload: bytes | None = attrs.field(default=None, repr=False)
    images: Mapping[UUID, bytes] = attrs.field(factory=dict, repr=False)
    files: Mapping[str, tuple[bytes, int]] = attrs.field(factory=dict, repr=False)


def script(modules: Sequence[str], contents: Contents) -> str:
    """The start script."""
    drivers = [name for name in modules if name != "optee-rng"]
    load = "\n".join([f"insmod /lib/modules/{name}.ko" for name in drivers])
    lines = [HEAD]
    steps = []
    for step in contents.steps:
        if step in (CLIENT, BENCH) and contents.workload is None:
            continue
        notified = _NOTIFIED if contents.notifications else ""
        text = _STEPS[step].replace("{load}", load).replace("{notified}", notified)
        text = text.replace("{refused}", _REFUSED if contents.recover else "")
        steps.append(text.replace("{fi}", "fi\n" if contents.recover else ""))
    if contents.recover:
        again = _RECOVER.replace("{load}", load).replace("{again}", AGAIN)
        again = again.replace("{recovery}", RECOVERY)
        lines += [_LIMITS, *steps, again, *steps, _RECOVERED]
    else:
        lines += steps
    if contents.commands:
        for number, command in enumerate(contents.commands):
            name = f"run{number + 1}" if len(contents.commands) > 1 else "run"
            lines.append(
                f"sh -c {shlex.quote(command)}; code=$?\n"
                f'if test $code = 0; then result {name} ok; else result {name} fail "exit $code"; fi\n'
            )
    if contents.shell:
        lines.append(
            "stty sane; setsid -c sh -i </dev/ttyAMA0 >/dev/ttyAMA0 2>&1\nstty -echo -opost\n"
        )
    lines.append(_TAIL)
    return "".join(lines)


def build(files: Bundle, contents: Contents) -> bytes:
    """The archive. :class:`InitramfsError` for a path that is taken or leaves the guest."""
    archive = Archive()
    for folder in ("proc", "sys", "dev", "tmp", "etc", "var/lib/optee-client/data/tee"):
        archive.directory(folder)
    archive.directory("usr/lib/tee-supplicant/plugins")
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", files.read(bundle.BUSYBOX), 0o755)
    for applet in APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    for module in files.modules():
        role = f"{bundle.MODULE_PREFIX}{module}.ko"
        archive.file(f"lib/modules/{module}.ko", files.read(role))
    archive.file(f"lib/{bundle.LOADER}", files.read(bundle.LOADER), 0o755)
    for library in (bundle.LIBC, bundle.LIBTEEC):
        archive.file(f"lib/aarch64-linux-gnu/{library}", files.read(library), 0o755)
    archive.file("usr/sbin/tee-supplicant", files.read(bundle.SUPPLICANT), 0o755)
    archive.directory(TA_FOLDER)
    for uuid, image in contents.images.items():
        archive.file(f"{TA_FOLDER}/{uuid}.ta", image)
    if contents.workload is not None:
        archive.file(WORKLOAD, contents.workload, 0o755)
    for path, (data, mode) in contents.files.items():
        name = posixpath.normpath(path).lstrip("/")
        if name.startswith("..") or name in (".", "init"):
            raise InitramfsError(f"{path}: not a place for a file in the guest")
        try:
            archive.file(name, data, mode)
        except ValueError as error:
            raise InitramfsError(f"{path}: {error}") from None
    archive.file("init", script(files.modules(), contents).encode(), 0o755)
    return archive.build()
