# SPDX-License-Identifier: BSD-2-Clause
"""One sentence for every typed value: what people read in decoded traffic.

A table from type to a function that words it. Sentences contain numbers and names of headers, never
text from another world, so they are safe to print.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from smccc import names
from smccc.calls import arch, fast, messages, psci, rpc, slots, yielding
from smccc.calls.params import Answer, Command, NoAnswer
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc, optee_smc
from smccc.function_id import service_of
from smccc.message import Kind, Param

Words = Callable[[Any], str]
"""Words one value; the table's key is its type."""


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 byte``, ``2 bytes``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def _bytes(count: int) -> str:
    return plural(count, "byte")


def _listed(words: list[str]) -> str:
    return ", ".join(words) if words else "nothing"


def param_sentence(param: Param) -> str:
    """What one parameter of a message carries."""
    notes = [
        note
        for bit, note in (
            (param.meta, "meta"),
            (param.cache, f"cache {param.cache}"),
            (
                param.attr
                & ~(
                    msg.OPTEE_MSG_ATTR_TYPE_MASK
                    | msg.OPTEE_MSG_ATTR_META
                    | msg.OPTEE_MSG_ATTR_NONCONTIG
                    | msg.OPTEE_MSG_ATTR_CACHE_MASK << msg.OPTEE_MSG_ATTR_CACHE_SHIFT
                ),
                "undefined attribute bits set",
            ),
        )
        if bit
    ]
    tail = f" ({', '.join(notes)})" if notes else ""
    name = names.PARAM_TYPE.short(param.type)
    text = f"invalid type {param.type:#x}, words {param.a:#x} {param.b:#x} {param.c:#x}"
    match param.kind:
        case Kind.NONE:
            text = "unused"
        case Kind.VALUE:
            text = f"{name} a = {param.a:#x}, b = {param.b:#x}, c = {param.c:#x}"
        case Kind.RMEM if param.is_null:
            text = f"{name} null reference, size {_bytes(param.b)}"
        case Kind.RMEM:
            text = f"{name} {_bytes(param.b)} at offset {param.a:#x} of cookie {param.c:#x}"
        case Kind.TMEM if param.is_null:
            text = f"{name} null reference, size {_bytes(param.b)}"
        case Kind.TMEM:
            where = "page list" if param.noncontig else "address"
            text = f"{name} {_bytes(param.b)} at {where} {param.a:#x}, reference {param.c:#x}"
    return text + tail


def _client(call: fast.OpteeCall) -> str:
    return f", for client {call.client}" if call.client else ""


def _result(answer: Answer) -> str:
    origin = f" from {names.ORIGIN.short(answer.ret_origin)}" if answer.ret_origin else ""
    return f"{names.RESULT.short(answer.ret)}{origin}"


def _failed(value: slots.Failed) -> str:
    known = names.STATUS.full(value.status)
    return f"refused: {known or f'unknown status {value.status:#x}'}"


def _l2cc(call: fast.L2ccMutex) -> str:
    where = ""
    if call.operation == optee_smc.OPTEE_SMC_L2CC_MUTEX_SET_ADDR:
        where = f" {call.address:#x}"
    return f"outer cache lock, {names.L2CC.short(call.operation)}{where}"


def _message_at(call: yielding.CallWithArg | yielding.CallWithRpcArg) -> str:
    return f"process the message at {call.address:#x}"


def _psci(value: psci.PsciReturn) -> str:
    if value.value < 0:
        return f"refused: {names.PSCI_RESULT.full(value.value) or value.value}"
    return f"result {value.value}"


def _smccc(value: arch.SmcccReturn) -> str:
    if value.value < 0:
        return f"refused: {names.SMCCC_RESULT.full(value.value) or value.value}"
    return f"result {value.value:#x}"


def _version(value: arch.VersionReturn | psci.PsciVersionReturn) -> str:
    if value.value < 0:
        return f"refused: {value.value}"
    return f"version {value.major}.{value.minor}"


def _soc_id(value: arch.SocIdReturn) -> str:
    if value.value < 0:
        return _smccc(value)
    bank, code = value.jep106_bank, value.jep106_code
    return (
        f"result {value.value:#x} (as a version: JEP-106 {bank}:{code:#x}, SoC {value.soc_id:#x})"
    )


def _capabilities(value: fast.ExchangeCapabilitiesReturn) -> str:
    text = f"the secure world offers {_listed(names.SEC_CAP.bits(value.capabilities))}"
    if value.capabilities & optee_smc.OPTEE_SMC_SEC_CAP_ASYNC_NOTIF:
        text += f"; notifications up to {value.max_notif_value}"
    if value.capabilities & optee_smc.OPTEE_SMC_SEC_CAP_RPC_ARG:
        text += f"; RPC arguments of {plural(value.rpc_param_count, 'parameter')}"
    return text


def _notif(value: fast.GetAsyncNotifValueReturn) -> str:
    more = "more are pending" if value.pending else "no more are pending"
    if not value.valid:
        return f"no notification; {more}"
    bottom = value.value == optee_smc.OPTEE_SMC_ASYNC_NOTIF_VALUE_DO_BOTTOM_HALF
    return f"notification {value.value}{' (do the bottom half)' if bottom else ''}; {more}"


CALLS: Final[dict[type, Words]] = {
    slots.UnknownCall: lambda v: f"unknown function {v.function:#x}",
    fast.CallsCount: lambda v: "how many functions are there?",
    fast.CallsUid: lambda v: "which message ABI is this?",
    fast.CallsRevision: lambda v: "which revision of the message ABI?",
    fast.GetOsUuid: lambda v: "which trusted OS is this?",
    fast.GetOsRevision: lambda v: "which revision of the trusted OS?",
    fast.GetShmConfig: lambda v: "where is the reserved shared memory?",
    fast.L2ccMutex: _l2cc,
    fast.ExchangeCapabilities: lambda v: (
        f"the normal world offers {_listed(names.NSEC_CAP.bits(v.capabilities))}"
    ),
    fast.DisableShmCache: lambda v: "stop caching RPC arguments, hand one back",
    fast.EnableShmCache: lambda v: "cache RPC arguments",
    fast.BootSecondary: lambda v: f"release core {v.core} at {v.entry:#x}",
    fast.VmCreated: lambda v: f"guest {v.guest} was created",
    fast.VmDestroyed: lambda v: f"guest {v.guest} was destroyed",
    fast.GetThreadCount: lambda v: "how many threads are there?",
    fast.EnableAsyncNotif: lambda v: "ready for asynchronous notifications",
    fast.GetAsyncNotifValue: lambda v: "what was the notification for?",
    fast.GetProtmemConfig: lambda v: "where is the protected memory?",
    yielding.CallWithArg: _message_at,
    yielding.CallWithRpcArg: lambda v: f"{_message_at(v)}, RPC argument behind it",
    yielding.CallWithRegdArg: lambda v: (
        f"process the message at offset {v.offset:#x} of cookie {v.cookie:#x}"
    ),
    yielding.ResumeCall: lambda v: (
        f"resume thread {v.thread}, result {v.result:#x}, cookie {v.cookie:#x}"
    ),
    yielding.RpcAllocAnswer: lambda v: (
        f"resume thread {v.thread}: allocated at {v.address:#x}, cookie {v.cookie:#x}"
        if v.address
        else f"resume thread {v.thread}: nothing allocated"
    ),
    yielding.RpcFreeAnswer: lambda v: f"resume thread {v.thread}: freed",
    yielding.RpcForeignInterruptAnswer: lambda v: f"resume thread {v.thread}: interrupt taken",
    yielding.RpcCommandAnswer: lambda v: f"resume thread {v.thread}: command done",
    arch.Version: lambda v: "which version of the calling convention?",
    arch.ArchFeatures: lambda v: (
        f"is there {names.function_name(v.queried) or f'function {v.queried:#x}'}?"
    ),
    arch.SocId: lambda v: f"which SoC is this, type {v.type}?",
    arch.Workaround1: lambda v: "mitigate CVE-2017-5715",
    arch.Workaround2: lambda v: f"{'mitigate' if v.enable else 'do not mitigate'} CVE-2018-3639",
    arch.Workaround3: lambda v: "mitigate CVE-2017-5715 and CVE-2022-23960",
    arch.ServiceCallCount: lambda v: f"how many {service_of(v.owner).value}?",
    arch.ServiceCallUid: lambda v: f"who implements {service_of(v.owner).value}?",
    arch.ServiceRevision: lambda v: f"which revision of {service_of(v.owner).value}?",
    psci.PsciVersion: lambda v: "which version of PSCI?",
    psci.CpuSuspend: lambda v: (
        f"suspend this core, power state {v.power_state:#x}, entry {v.entry:#x}"
    ),
    psci.CpuOff: lambda v: "switch this core off",
    psci.CpuOn: lambda v: f"start core {v.target:#x} at {v.entry:#x} with x0 = {v.context:#x}",
    psci.AffinityInfo: lambda v: f"is core {v.target:#x} on, at level {v.lowest_level}?",
    psci.Migrate: lambda v: f"move the trusted OS to core {v.target:#x}",
    psci.MigrateInfoType: lambda v: "can the trusted OS be moved?",
    psci.MigrateInfoUpCpu: lambda v: "on which core is the trusted OS?",
    psci.SystemOff: lambda v: "switch the system off",
    psci.SystemReset: lambda v: "reset the system",
    psci.PsciFeatures: lambda v: (
        f"is there {names.function_name(v.queried) or f'function {v.queried:#x}'}?"
    ),
    psci.NodeHwState: lambda v: f"is core {v.target:#x} powered, at level {v.power_level}?",
    psci.SystemSuspend: lambda v: f"suspend the system, entry {v.entry:#x}",
    psci.SetSuspendMode: lambda v: f"set suspend mode {v.mode}",
    psci.StatResidency: lambda v: (
        f"how long was core {v.target:#x} in power state {v.power_state:#x}?"
    ),
    psci.StatCount: lambda v: (
        f"how often was core {v.target:#x} in power state {v.power_state:#x}?"
    ),
    psci.SystemReset2: lambda v: f"reset the system, type {v.type:#x}, cookie {v.cookie:#x}",
    psci.MemProtect: lambda v: f"{'protect' if v.enable else 'do not protect'} memory on reset",
    psci.MemChkRange: lambda v: f"are {_bytes(v.length)} at {v.base:#x} protected?",
}

RETURNS: Final[dict[type, Words]] = {
    slots.UnknownReturn: lambda v: f"a0 = {v.frame.x[0]:#x}",
    slots.Failed: _failed,
    slots.Done: lambda v: "done",
    fast.CallsCountReturn: lambda v: plural(v.count, "function"),
    fast.UuidReturn: lambda v: f"UUID {v.uuid}",
    fast.CallsRevisionReturn: lambda v: f"revision {v.major}.{v.minor}",
    fast.GetOsRevisionReturn: lambda v: (
        f"revision {v.major}.{v.minor}, build {v.build_id:08x}"
        if v.build_id
        else f"revision {v.major}.{v.minor}"
    ),
    fast.GetShmConfigReturn: lambda v: (
        f"{_bytes(v.size)} at {v.start:#x}, cache attribute {v.settings}"
    ),
    fast.L2ccMutexReturn: lambda v: f"the lock is at {v.address:#x}",
    fast.ExchangeCapabilitiesReturn: _capabilities,
    fast.DisableShmCacheReturn: lambda v: f"cookie {v.cookie:#x} is handed back; ask again",
    fast.GetThreadCountReturn: lambda v: plural(v.count, "thread"),
    fast.GetAsyncNotifValueReturn: _notif,
    fast.GetProtmemConfigReturn: lambda v: (
        f"{_bytes(v.size)} at {v.start:#x}, addresses of {v.pa_width} bits"
    ),
    yielding.Completed: lambda v: "completed; the result is in the message",
    yielding.RpcAlloc: lambda v: f"thread {v.thread} asks for {_bytes(v.size)} (RPC ALLOC)",
    yielding.RpcFree: lambda v: f"thread {v.thread} gives back cookie {v.cookie:#x} (RPC FREE)",
    yielding.RpcForeignInterrupt: lambda v: (
        f"thread {v.thread} was interrupted for the normal world (RPC FOREIGN_INTR)"
    ),
    yielding.RpcCommand: lambda v: (
        f"thread {v.thread} asks for a command, its argument is cookie {v.cookie:#x} (RPC CMD)"
        if v.cookie
        else f"thread {v.thread} asks for a command, its argument is behind the message (RPC CMD)"
    ),
    yielding.UnknownRpc: lambda v: (
        f"thread {v.thread} asks for unknown RPC {yielding.rpc_function(v.status):#x}"
    ),
    arch.SmcccReturn: _smccc,
    arch.VersionReturn: _version,
    arch.SocIdReturn: _soc_id,
    arch.NoReturn: lambda v: "done, without a result",
    arch.ServiceUidReturn: lambda v: f"UID {v.uid}",
    arch.ServiceRevisionReturn: lambda v: f"revision {v.major}.{v.minor}",
    psci.PsciReturn: _psci,
    psci.PsciVersionReturn: _version,
    psci.PsciValueReturn: lambda v: f"result {v.value:#x}",
}


def _fs(v: rpc.Fs) -> str:
    return f"file operation {names.FS.short(v.operation)}, handle {v.handle}, offset {v.offset}"


def _notification(v: rpc.Notification) -> str:
    if v.operation == optee_rpc.OPTEE_RPC_NOTIFICATION_WAIT:
        limit = f", at most {v.timeout} ms" if v.timeout else ""
        return f"wait for notification {v.key:#x}{limit}"
    if v.operation == optee_rpc.OPTEE_RPC_NOTIFICATION_SEND:
        return f"send notification {v.key:#x}"
    return f"unknown operation {v.operation:#x} on notification {v.key:#x}"


COMMANDS: Final[dict[type, Words]] = {
    messages.UnknownCommand: lambda v: f"unknown command {v.command:#x}",
    messages.OpenSession: lambda v: (
        f"open a session with {v.ta}, login {names.LOGIN.short(v.login)}, "
        f"{plural(len(v.params), 'parameter')}"
    ),
    messages.InvokeCommand: lambda v: (
        f"invoke command {v.func:#x} in session {v.session}, {plural(len(v.params), 'parameter')}"
    ),
    messages.CloseSession: lambda v: f"close session {v.session}",
    messages.Cancel: lambda v: f"cancel what runs in session {v.session}",
    messages.RegisterShm: lambda v: (
        f"register {_bytes(v.size)} as cookie {v.cookie:#x}, page list at {v.buf_ptr & ~0xFFF:#x}, "
        f"offset {v.buf_ptr & 0xFFF:#x}"
    ),
    messages.UnregisterShm: lambda v: f"unregister cookie {v.cookie:#x}",
    messages.DoBottomHalf: lambda v: "do the bottom half",
    messages.StopAsyncNotif: lambda v: "stop asynchronous notifications",
    messages.LendProtmem: lambda v: (
        f"lend {_bytes(v.size)} at {v.address:#x} as cookie {v.cookie:#x} "
        f"for {names.PROTMEM.short(v.use_case)}"
    ),
    messages.ReclaimProtmem: lambda v: f"take lent memory {v.cookie:#x} back",
    messages.GetProtmemConfig: lambda v: (
        f"what does {names.PROTMEM.short(v.use_case)} need of protected memory?"
    ),
    messages.AssignProtmem: lambda v: (
        f"assign memory {v.cookie:#x} to {names.PROTMEM.short(v.use_case)}"
    ),
    rpc.UnknownRpcArgument: lambda v: f"unknown RPC command {v.command:#x}",
    rpc.LoadTa: lambda v: (
        f"how large is trusted application {v.ta}?"
        if v.image.is_null
        else f"load trusted application {v.ta}, room for {_bytes(v.image.b)}"
    ),
    rpc.Rpmb: lambda v: f"{_bytes(v.request.b)} of RPMB frames",
    rpc.Fs: _fs,
    rpc.GetTime: lambda v: "what time is it?",
    rpc.Notification: _notification,
    rpc.Suspend: lambda v: f"sleep {v.milliseconds} ms",
    rpc.ShmAlloc: lambda v: (
        f"allocate {_bytes(v.size)} of {names.SHM_TYPE.short(v.type)} memory, alignment {v.align}"
    ),
    rpc.ShmFree: lambda v: f"free {names.SHM_TYPE.short(v.type)} memory, cookie {v.cookie:#x}",
    rpc.SqlFsReserved: lambda v: "the reserved SQL file system command",
    rpc.Gprof: lambda v: f"append {_bytes(v.data.b)} of profiling data to file {v.file_id}",
    rpc.Socket: lambda v: (
        f"socket operation {names.SOCKET.short(v.operation)}, handle {v.handle}, "
        f"instance {v.instance}"
    ),
    rpc.Ftrace: lambda v: f"append {_bytes(v.data.b)} of function traces to file {v.file_id}",
    rpc.SuppPlugin: lambda v: (
        f"plugin {v.plugin}, command {v.plugin_command:#x}, sub-command {v.sub_command:#x}"
    ),
    rpc.BenchReg: lambda v: f"benchmark buffer of {_bytes(v.size)} at {v.address:#x}",
    rpc.I2cTransfer: lambda v: (
        f"I2C {names.I2C.short(v.direction)} of {_bytes(v.data.b)}, bus {v.bus}, chip {v.chip:#x}"
    ),
    rpc.RpmbProbeReset: lambda v: "search for RPMB devices from the start",
    rpc.RpmbProbeNext: lambda v: "which is the next RPMB device?",
    rpc.RpmbFrames: lambda v: f"{_bytes(v.request.b)} of frames for the RPMB device",
}

ANSWERS: Final[dict[type, Words]] = {
    Answer: _result,
    NoAnswer: lambda v: "no result is written",
    messages.OpenSessionAnswer: lambda v: f"{_result(v)}, session {v.session}",
    messages.InvokeCommandAnswer: _result,
    messages.GetProtmemConfigAnswer: lambda v: (
        f"{_result(v)}, at least {_bytes(v.minimum_size)} aligned to {v.alignment}, "
        f"addresses of {v.pa_width} bits"
    ),
    rpc.ParamsAnswer: _result,
    rpc.LoadTaAnswer: lambda v: f"{_result(v)}, {_bytes(v.size)}",
    rpc.RpmbAnswer: lambda v: f"{_result(v)}, {_bytes(v.size)}",
    rpc.GetTimeAnswer: lambda v: f"{_result(v)}, {v.seconds}.{v.nanoseconds:09d} s",
    rpc.ShmAllocAnswer: lambda v: (
        f"{_result(v)}, {_bytes(v.size)} as cookie {v.cookie:#x}, "
        f"{'page list' if v.noncontig else 'address'} {v.buf_ptr:#x}"
    ),
    rpc.FileIdAnswer: lambda v: f"{_result(v)}, file {v.file_id}",
    rpc.SuppPluginAnswer: lambda v: f"{_result(v)}, {_bytes(v.length)}",
    rpc.I2cTransferAnswer: lambda v: f"{_result(v)}, {_bytes(v.moved)} moved",
    rpc.RpmbProbeResetAnswer: lambda v: (
        f"{_result(v)}, use {names.SHM_TYPE.short(v.shm_type)} memory"
    ),
    rpc.RpmbProbeNextAnswer: lambda v: (
        f"{_result(v)}, device kind {v.kind}, size {v.size} x 128 KiB"
    ),
}


def call_sentence(call: slots.Call) -> str:
    """What a call asks for."""
    text = CALLS[type(call)](call)
    return text + _client(call) if isinstance(call, fast.OpteeCall) else text


def return_sentence(value: slots.Return) -> str:
    """What came back."""
    return RETURNS[type(value)](value)


def command_sentence(command: Command) -> str:
    """What a message or an RPC argument asks for."""
    return COMMANDS[type(command)](command)


def answer_sentence(answer: Answer) -> str:
    """What a message or an RPC argument says when it comes back."""
    return ANSWERS[type(answer)](answer)
