# SPDX-License-Identifier: BSD-2-Clause
"""What occurred, by kind, read from the events of a system.

:data:`REQUIRED` are the kinds that must occur; :data:`IMPOSSIBLE` those of the ABI that cannot behind this
mediator, each with the reason. If one of the latter occurs all the same, that is a problem too.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, cast

from fuzz.campaign.faults import DENIED, LIES, LOST_PHYSICAL, PREEMPTED
from fuzz.campaign.plan import STRIKES
from mediator.checkers.verdict import Event, Handler, Report
from mediator.hypervisor import events as host_events
from mediator.hypervisor import machine_events
from mediator.optee import events
from mediator.optee.core import OWN_THREAD_BASE
from secure_world import events as tee_events
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc as rpc
from smccc.constants import optee_smc as smc
from smccc.constants import tee

ReadGuest = Callable[[int, int, int], bytes]

M32: Final = 0xFFFF_FFFF
FUNCTIONS: Final[Mapping[int, str]] = MappingProxyType(
    {
        smc.OPTEE_SMC_CALLS_COUNT: "CALLS_COUNT",
        smc.OPTEE_SMC_CALLS_UID: "CALLS_UID",
        smc.OPTEE_SMC_CALLS_REVISION: "CALLS_REVISION",
        smc.OPTEE_SMC_CALL_GET_OS_UUID: "GET_OS_UUID",
        smc.OPTEE_SMC_CALL_GET_OS_REVISION: "GET_OS_REVISION",
        smc.OPTEE_SMC_CALL_RETURN_FROM_RPC: "RETURN_FROM_RPC",
        smc.OPTEE_SMC_CALL_WITH_ARG: "CALL_WITH_ARG",
        smc.OPTEE_SMC_CALL_WITH_RPC_ARG: "CALL_WITH_RPC_ARG",
        smc.OPTEE_SMC_CALL_WITH_REGD_ARG: "CALL_WITH_REGD_ARG",
        smc.OPTEE_SMC_GET_SHM_CONFIG: "GET_SHM_CONFIG",
        smc.OPTEE_SMC_L2CC_MUTEX: "L2CC_MUTEX",
        smc.OPTEE_SMC_EXCHANGE_CAPABILITIES: "EXCHANGE_CAPABILITIES",
        smc.OPTEE_SMC_DISABLE_SHM_CACHE: "DISABLE_SHM_CACHE",
        smc.OPTEE_SMC_ENABLE_SHM_CACHE: "ENABLE_SHM_CACHE",
        smc.OPTEE_SMC_BOOT_SECONDARY: "BOOT_SECONDARY",
        smc.OPTEE_SMC_VM_CREATED: "VM_CREATED by a guest",
        smc.OPTEE_SMC_VM_DESTROYED: "VM_DESTROYED by a guest",
        smc.OPTEE_SMC_GET_THREAD_COUNT: "GET_THREAD_COUNT",
        smc.OPTEE_SMC_ENABLE_ASYNC_NOTIF: "ENABLE_ASYNC_NOTIF",
        smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE: "GET_ASYNC_NOTIF_VALUE",
        smc.OPTEE_SMC_GET_PROTMEM_CONFIG: "GET_PROTMEM_CONFIG",
    }
)
OTHER_FUNCTIONS: Final = (
    "unknown, fast",
    "unknown, yielding",
    "64-bit id",
    "of another owner",
    "by HVC",
    "with an immediate",
    "with rubbish in the high words",
)
COMMANDS: Final[Mapping[int, str]] = MappingProxyType(
    {
        msg.OPTEE_MSG_CMD_OPEN_SESSION: "OPEN_SESSION",
        msg.OPTEE_MSG_CMD_INVOKE_COMMAND: "INVOKE_COMMAND",
        msg.OPTEE_MSG_CMD_CLOSE_SESSION: "CLOSE_SESSION",
        msg.OPTEE_MSG_CMD_CANCEL: "CANCEL",
        msg.OPTEE_MSG_CMD_REGISTER_SHM: "REGISTER_SHM",
        msg.OPTEE_MSG_CMD_UNREGISTER_SHM: "UNREGISTER_SHM",
        msg.OPTEE_MSG_CMD_DO_BOTTOM_HALF: "DO_BOTTOM_HALF",
        msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF: "STOP_ASYNC_NOTIF",
        msg.OPTEE_MSG_CMD_LEND_PROTMEM: "LEND_PROTMEM, refused",
        msg.OPTEE_MSG_CMD_RECLAIM_PROTMEM: "RECLAIM_PROTMEM, refused",
        msg.OPTEE_MSG_CMD_GET_PROTMEM_CONFIG: "GET_PROTMEM_CONFIG, refused",
        msg.OPTEE_MSG_CMD_ASSIGN_PROTMEM: "ASSIGN_PROTMEM, refused",
    }
)
UNKNOWN_COMMAND: Final = "unknown, refused"
RPC_FUNCTIONS: Final[Mapping[int, str]] = MappingProxyType(
    {
        smc.OPTEE_SMC_RPC_FUNC_ALLOC: "ALLOC",
        smc.OPTEE_SMC_RPC_FUNC_FREE: "FREE",
        smc.OPTEE_SMC_RPC_FUNC_FOREIGN_INTR: "FOREIGN_INTR",
        smc.OPTEE_SMC_RPC_FUNC_CMD: "CMD",
    }
)
RPC_COMMANDS: Final[Mapping[int, str]] = MappingProxyType(
    {
        rpc.OPTEE_RPC_CMD_LOAD_TA: "LOAD_TA",
        rpc.OPTEE_RPC_CMD_RPMB: "RPMB",
        rpc.OPTEE_RPC_CMD_FS: "FS",
        rpc.OPTEE_RPC_CMD_GET_TIME: "GET_TIME",
        rpc.OPTEE_RPC_CMD_NOTIFICATION: "NOTIFICATION",
        rpc.OPTEE_RPC_CMD_SUSPEND: "SUSPEND",
        rpc.OPTEE_RPC_CMD_SHM_ALLOC: "SHM_ALLOC",
        rpc.OPTEE_RPC_CMD_SHM_FREE: "SHM_FREE",
        rpc.OPTEE_RPC_CMD_SQL_FS_RESERVED: "SQL_FS_RESERVED",
        rpc.OPTEE_RPC_CMD_GPROF: "GPROF",
        rpc.OPTEE_RPC_CMD_SOCKET: "SOCKET",
        rpc.OPTEE_RPC_CMD_FTRACE: "FTRACE",
        rpc.OPTEE_RPC_CMD_SUPP_PLUGIN: "SUPP_PLUGIN",
        rpc.OPTEE_RPC_CMD_BENCH_REG: "BENCH_REG",
        rpc.OPTEE_RPC_CMD_I2C_TRANSFER: "I2C_TRANSFER",
        rpc.OPTEE_RPC_CMD_RPMB_PROBE_RESET: "RPMB_PROBE_RESET",
        rpc.OPTEE_RPC_CMD_RPMB_PROBE_NEXT: "RPMB_PROBE_NEXT",
        rpc.OPTEE_RPC_CMD_RPMB_FRAMES: "RPMB_FRAMES",
    }
)
STATUSES: Final[Mapping[int, str]] = MappingProxyType(
    {
        smc.OPTEE_SMC_RETURN_OK: "OK",
        smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT: "ETHREAD_LIMIT",
        smc.OPTEE_SMC_RETURN_EBUSY: "EBUSY",
        smc.OPTEE_SMC_RETURN_ERESUME: "ERESUME",
        smc.OPTEE_SMC_RETURN_EBADADDR: "EBADADDR",
        smc.OPTEE_SMC_RETURN_EBADCMD: "EBADCMD",
        smc.OPTEE_SMC_RETURN_ENOMEM: "ENOMEM",
        smc.OPTEE_SMC_RETURN_ENOTAVAIL: "ENOTAVAIL",
        smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION: "UNKNOWN_FUNCTION",
        smc.OPTEE_SMC_RETURN_RPC_ALLOC: "RPC_ALLOC",
        smc.OPTEE_SMC_RETURN_RPC_FREE: "RPC_FREE",
        smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR: "RPC_FOREIGN_INTR",
        smc.OPTEE_SMC_RETURN_RPC_CMD: "RPC_CMD",
    }
)
OWN_LIMIT: Final = "ETHREAD_LIMIT of the mediator itself"
RESULTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        tee.TEE_ERROR_BAD_PARAMETERS: "BAD_PARAMETERS",
        tee.TEE_ERROR_OUT_OF_MEMORY: "OUT_OF_MEMORY",
        tee.TEE_ERROR_COMMUNICATION: "COMMUNICATION",
    }
)
"""Results with origin COMMS that the mediator makes itself."""

REQUEST_FAILED: Final = "an RPC request that fails towards the TEE (GENERIC)"
FREE_AGAIN: Final = "SHM_FREE for memory that could not be translated"
WALK_STOPPED: Final = "a page-list walk stopped before the TEE"
MEDIATOR: Final = (REQUEST_FAILED, FREE_AGAIN, WALK_STOPPED, OWN_LIMIT)

WAIT_KEPT: Final = "WAIT kept by the mediator"
WAIT_PASSED: Final = "WAIT passed to the guest"
SEND_KEPT: Final = "SEND kept by the mediator"
SEND_PASSED: Final = "SEND passed to the guest"
NOTIFICATIONS: Final = (
    WAIT_KEPT,
    WAIT_PASSED,
    SEND_KEPT,
    SEND_PASSED,
    "value raised by the TEE",
    "values taken for a guest",
    "vIRQ injected",
    "value read: VALID",
    "value read: VALID and PENDING",
    "value read: none",
    "bottom half done in the TEE",
)
CAPABILITIES: Final[Mapping[int, str]] = MappingProxyType(
    {
        smc.OPTEE_SMC_SEC_CAP_HAVE_RESERVED_SHM: "HAVE_RESERVED_SHM",
        smc.OPTEE_SMC_SEC_CAP_UNREGISTERED_SHM: "UNREGISTERED_SHM",
        smc.OPTEE_SMC_SEC_CAP_DYNAMIC_SHM: "DYNAMIC_SHM",
        smc.OPTEE_SMC_SEC_CAP_VIRTUALIZATION: "VIRTUALIZATION",
        smc.OPTEE_SMC_SEC_CAP_MEMREF_NULL: "MEMREF_NULL",
        smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF: "ASYNC_NOTIF",
        smc.OPTEE_SMC_SEC_CAP_RPC_ARG: "RPC_ARG",
        smc.OPTEE_SMC_SEC_CAP_RPMB_PROBE: "RPMB_PROBE",
        smc.OPTEE_SMC_SEC_CAP_PROTMEM: "PROTMEM",
        smc.OPTEE_SMC_SEC_CAP_DYNAMIC_PROTMEM: "DYNAMIC_PROTMEM",
    }
)
LIFE: Final = (
    "guest created",
    "guest refused",
    "guest destroyed",
    "teardown stopped and entered again",
    "guest in quarantine",
    "guest created again under its id",
    "guest resumed",
)
FAULTS: Final = (
    *STRIKES,
    *DENIED,
    LOST_PHYSICAL,
    PREEMPTED,
    "vIRQ lost",
    *LIES,
)


def _required() -> tuple[str, ...]:
    kinds: list[str] = []
    kinds += [f"function: {name}" for name in (*FUNCTIONS.values(), *OTHER_FUNCTIONS)]
    kinds += [f"command: {name}" for name in (*COMMANDS.values(), UNKNOWN_COMMAND)]
    kinds += [f"RPC: {name}" for name in RPC_FUNCTIONS.values()]
    kinds += [f"RPC command: {name}" for name in RPC_COMMANDS.values()]
    kinds += [f"status: {name}" for name in STATUSES.values()]
    kinds += [f"result: {name}" for name in RESULTS.values()]
    kinds += [f"mediator: {name}" for name in MEDIATOR]
    kinds += [f"notification: {name}" for name in NOTIFICATIONS]
    for name in CAPABILITIES.values():
        kinds += [f"capability: {name} {how}" for how in ("offered", "absent", "hidden")]
    kinds += [f"life: {name}" for name in LIFE]
    kinds += [f"fault: {name}" for name in FAULTS]
    return tuple([kind for kind in kinds if kind not in IMPOSSIBLE])


IMPOSSIBLE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "capability: HAVE_RESERVED_SHM offered": "reserved memory cannot be shared between guests: "
        "never offered",
        "capability: VIRTUALIZATION offered": "the hypervisor's own affair: never offered",
        "capability: PROTMEM offered": "protected memory is not mediated: never offered",
        "capability: DYNAMIC_PROTMEM offered": "protected memory is not mediated: never offered",
        "capability: DYNAMIC_SHM absent": "without it EXCHANGE_CAPABILITIES answers ENOTAVAIL: "
        "nothing is offered at all",
        "capability: DYNAMIC_SHM hidden": "no setting takes it out of the offer",
        "capability: UNREGISTERED_SHM hidden": "no setting takes it out of the offer",
    }
)
"""Kinds of the ABI that cannot occur behind this mediator, and why."""

_TEE_OWNERS: Final = frozenset((0x32, 0xB2, 0xBF, 0x3F))
_DATA: Final = frozenset(
    (
        smc.OPTEE_SMC_CALLS_COUNT,
        smc.OPTEE_SMC_CALLS_UID,
        smc.OPTEE_SMC_CALLS_REVISION,
        smc.OPTEE_SMC_CALL_GET_OS_UUID,
        smc.OPTEE_SMC_CALL_GET_OS_REVISION,
    )
)
"""Functions whose x0 is no status."""
_YIELDING: Final = frozenset(
    (
        smc.OPTEE_SMC_CALL_WITH_ARG,
        smc.OPTEE_SMC_CALL_WITH_RPC_ARG,
        smc.OPTEE_SMC_CALL_WITH_REGD_ARG,
    )
)
_CALLS: Final = frozenset((smc.OPTEE_SMC_CALL_WITH_ARG, smc.OPTEE_SMC_CALL_WITH_RPC_ARG))
_RPC: Final = smc.OPTEE_SMC_RETURN_RPC_PREFIX
_UNKNOWN: Final = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
_RESULT: Final = struct.Struct("<2I")


class Coverage:
    """Counts kinds. ``smcs``: traps of guests so far. ``stuck``: told what part 5 of waiting forbids."""

    def __init__(
        self,
        read_guest: ReadGuest,
        calls_of: Callable[[int], int],
        report: Callable[[str], None],
    ) -> None:
        self.smcs = 0
        self.kinds: Counter[str] = Counter()
        self.interrupts = 0
        self._functions: Counter[int] = Counter()
        self._statuses: Counter[int] = Counter()
        self._commands: Counter[int] = Counter()
        self._rpcs: Counter[tuple[int, int]] = Counter()
        self._results: Counter[int] = Counter()
        self._asked: dict[tuple[int, int], tuple[int, ...]] = {}
        self._entered: dict[tuple[int, int], bool] = {}
        self._busy: dict[tuple[int, int], bool] = {}
        self._inside: Counter[int] = Counter()
        self._left: dict[tuple[int, int], bool] = {}
        self._waits: dict[int, bool] = {}
        self._offer: dict[int, int] = {}
        self._read = read_guest
        self._calls_of = calls_of
        self._report = report

    def handlers(self) -> Mapping[type, Handler]:
        """Event class to what is counted about it."""
        return {
            machine_events.TrapEnter: self._enter,
            machine_events.TrapExit: self._exit,
            machine_events.TrapUndefined: self._undefined,
            machine_events.VirqLost: self._named("fault: vIRQ lost"),
            machine_events.GuestCreated: self._named("life: guest created"),
            machine_events.GuestRefused: self._named("life: guest refused"),
            machine_events.GuestDestroyed: self._destroyed,
            machine_events.TeardownPreempted: self._named(
                "life: teardown stopped and entered again"
            ),
            host_events.GuestWritten: self._written,
            host_events.PinnedWritten: self._written,
            events.CallStarted: self._started,
            events.Forwarded: self._forwarded,
            events.Answered: self._answered,
            events.RpcToGuest: self._rpc,
            events.WaitBegan: self._wait,
            events.SendKept: self._named(f"notification: {SEND_KEPT}"),
            events.NotificationsTaken: self._named("notification: values taken for a guest"),
            events.GuestInterrupted: self._named("notification: vIRQ injected"),
            tee_events.NotificationRaised: self._named("notification: value raised by the TEE"),
            tee_events.BottomHalf: self._named("notification: bottom half done in the TEE"),
        }

    def finish(self, report: Report) -> None:
        """Nothing is left to see."""

    def count(self, kind: str) -> None:
        """Count a fault by its name."""
        self.kinds[f"fault: {kind}"] += 1

    def life(self, kind: str) -> None:
        """Count a step of life by its name."""
        self.kinds[f"life: {kind}"] += 1

    def _named(self, kind: str) -> Handler:
        def note(_: Event) -> None:
            self.kinds[kind] += 1

        return note

    # --- traps ----------------------------------------------------------------------------------------

    def _enter(self, event: Event) -> None:
        guest, vcpu, hvc, immediate, regs = cast("machine_events.TrapEnter", event)
        self.smcs += 1
        self._functions[regs[0] & M32] += 1
        key = guest, vcpu
        self._asked[key] = regs
        self._entered[key] = False
        self._inside[guest] += 1
        self._busy[key] = self._inside[guest] > 1 or self._calls_of(guest) > 0
        if hvc or immediate or regs[0] >> 32:
            kinds = self.kinds
            kinds["function: by HVC"] += hvc
            kinds["function: with an immediate"] += bool(immediate)
            kinds["function: with rubbish in the high words"] += bool(regs[0] >> 32)

    def _undefined(self, event: Event) -> None:
        guest, vcpu = cast("machine_events.TrapUndefined", event)
        self._asked.pop((guest, vcpu), None)
        self._inside[guest] -= 1

    def _exit(self, event: Event) -> None:
        guest, vcpu, _, regs = cast("machine_events.TrapExit", event)
        key = guest, vcpu
        self._inside[guest] -= 1
        asked = self._asked.pop(key, None)
        if asked is None:
            return
        function, status = asked[0] & M32, regs[0] & M32
        if function >> 24 not in _TEE_OWNERS:
            return
        if function in _DATA:
            return
        self._statuses[status] += 1
        if status == smc.OPTEE_SMC_RETURN_EBADCMD:
            self._refused(guest, function, asked)
        elif (
            status == smc.OPTEE_SMC_RETURN_ETHREAD_LIMIT
            and function in _YIELDING
            and not self._entered.get(key)
        ):
            self.kinds[f"mediator: {OWN_LIMIT}"] += 1
            if not self._busy[key] and not self._calls_of(guest):
                self._report(f"guest {guest}: the mediator's own ETHREAD_LIMIT for an only call")
        elif status == smc.OPTEE_SMC_RETURN_RPC_FOREIGN_INTR and regs[3] & M32 >= OWN_THREAD_BASE:
            self.kinds[f"mediator: {WALK_STOPPED}"] += 1
        elif function == smc.OPTEE_SMC_EXCHANGE_CAPABILITIES and not status:
            self._capabilities(guest, regs[1])
        elif function == smc.OPTEE_SMC_GET_ASYNC_NOTIF_VALUE and not status:
            flags = regs[2] & M32
            how = "none" if not flags & 1 else "VALID and PENDING" if flags & 2 else "VALID"
            self.kinds[f"notification: value read: {how}"] += 1

    def _refused(self, guest: int, function: int, asked: tuple[int, ...]) -> None:
        if function not in _CALLS:
            return
        try:
            place = (asked[1] & M32) << 32 | asked[2] & M32
            (command,) = struct.unpack("<I", self._read(guest, place, 4))
        except Exception:
            return
        self._commands[command] += 1

    def _capabilities(self, guest: int, seen: int) -> None:
        had = self._offer.pop(guest, seen)
        for bit, name in CAPABILITIES.items():
            how = "offered" if seen & bit else "hidden" if had & bit else "absent"
            self.kinds[f"capability: {name} {how}"] += 1

    # --- calls ----------------------------------------------------------------------------------------

    def _started(self, event: Event) -> None:
        self._commands[cast("events.CallStarted", event).command] += 1

    def _forwarded(self, event: Event) -> None:
        guest, call, vcpu, regs = cast("events.Forwarded", event)
        if guest < 0:
            return
        self._entered[guest, vcpu] = True
        resumed = call >= 0 and regs[0] == smc.OPTEE_SMC_CALL_RETURN_FROM_RPC
        if resumed and self._left.pop((guest, call), False):
            self.kinds[f"mediator: {REQUEST_FAILED}"] += 1

    def _answered(self, event: Event) -> None:
        guest, call, _, regs = cast("events.Answered", event)
        if call >= 0:
            status = regs[0] & M32
            self._left[guest, call] = status >= _RPC and status != _UNKNOWN
        elif guest >= 0:
            self._offer[guest] = regs[1]

    def _rpc(self, event: Event) -> None:
        guest, call, _, function, command = cast("events.RpcToGuest", event)
        asked = self._left.pop((guest, call), False)
        self._rpcs[function, command] += 1
        if command == rpc.OPTEE_RPC_CMD_SHM_FREE and not asked:
            self.kinds[f"mediator: {FREE_AGAIN}"] += 1
        elif command == rpc.OPTEE_RPC_CMD_NOTIFICATION and not self._waits.pop(guest, False):
            self.kinds[f"notification: {SEND_PASSED}"] += 1

    def _wait(self, event: Event) -> None:
        wait = cast("events.WaitBegan", event)
        if wait.held:
            self.kinds[f"notification: {WAIT_KEPT}"] += 1
        else:
            self.kinds[f"notification: {WAIT_PASSED}"] += 1
            self._waits[wait.guest] = True

    def _written(self, event: Event) -> None:
        segments = cast("host_events.GuestWritten", event).segments
        if len(segments) == 1 and len(segments[0][1]) == 8:
            result, origin = _RESULT.unpack(segments[0][1])
            if origin == tee.TEE_ORIGIN_COMMS:
                self._results[result] += 1

    def _destroyed(self, event: Event) -> None:
        guest, quarantined = cast("machine_events.GuestDestroyed", event)
        self.kinds["life: guest destroyed"] += 1
        self.kinds["life: guest in quarantine"] += quarantined
        self._offer.pop(guest, None)
        self._waits.pop(guest, None)
        self._inside.pop(guest, None)
        for key in [key for key in self._left if key[0] == guest]:
            del self._left[key]

    # --- the end --------------------------------------------------------------------------------------

    def total(self) -> Counter[str]:
        """All kinds with their numbers."""
        kinds = Counter(self.kinds)
        for function, number in self._functions.items():
            kinds[f"function: {_function_name(function)}"] += number
        for status, number in self._statuses.items():
            kinds[f"status: {STATUSES.get(status, 'a value')}"] += number
        for command, number in self._commands.items():
            kinds[f"command: {COMMANDS.get(command, UNKNOWN_COMMAND)}"] += number
        for (function, command), number in self._rpcs.items():
            kinds[f"RPC: {RPC_FUNCTIONS.get(function, 'unknown')}"] += number
            if function == smc.OPTEE_SMC_RPC_FUNC_CMD:
                kinds[f"RPC command: {RPC_COMMANDS.get(command, 'unknown')}"] += number
        for result, number in self._results.items():
            kinds[f"result: {RESULTS.get(result, f'{result:#x}')}"] += number
        return Counter({kind: number for kind, number in kinds.items() if number})


def _function_name(function: int) -> str:
    name = FUNCTIONS.get(function)
    if name is not None:
        return name
    if function & smc.OPTEE_SMC_64:
        return "64-bit id"
    if function >> 24 not in _TEE_OWNERS:
        return "of another owner"
    return "unknown, fast" if function & smc.OPTEE_SMC_FAST_CALL else "unknown, yielding"


REQUIRED: Final = _required()
"""Kinds that must occur, in the order of the report."""
