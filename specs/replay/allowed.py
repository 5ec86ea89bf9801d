# SPDX-License-Identifier: BSD-2-Clause
"""Answers that our mediator gives by itself and differently: by which rule, if by any.

Each question looks for the rule's situation in the record and in the guest's memory, and for exactly
the answer that the rule gives. The mediator's own opinion is not asked.
"""

from __future__ import annotations

from typing import Final

from mediator.host import PAGE_MASK, PAGE_SIZE
from mediator.optee.mediator import OpteeMediator
from mediator.optee.settings import MediatorSettings
from smccc import page_list, wire
from smccc.constants import optee_msg as msg
from smccc.constants import optee_rpc, tee
from smccc.constants import optee_smc as smc
from smccc.registers import low32, pair
from specs.replay import names, rules
from specs.replay.chain import Step
from specs.replay.compare import Parameter, temporary
from specs.replay.judge import RPC_PARAMS, Judge
from specs.replay.machine import Machine
from specs.replay.normal_world import NormalWorld
from specs.replay.scripted import ScriptedSecureWorld
from specs.replay.survey import Survey

NEVER_OFFERED: Final = (
    smc.OPTEE_SMC_L2CC_MUTEX,
    smc.OPTEE_SMC_BOOT_SECONDARY,
    smc.OPTEE_SMC_VM_CREATED,
    smc.OPTEE_SMC_VM_DESTROYED,
    smc.OPTEE_SMC_GET_PROTMEM_CONFIG,
)


class Allowance:
    """Finds the rule for an answer of the mediator itself."""

    def __init__(
        self,
        facts: Survey,
        settings: MediatorSettings,
        machine: Machine,
        normal: NormalWorld,
        scripted: ScriptedSecureWorld,
        judge: Judge,
    ) -> None:
        self._facts = facts
        self._settings = settings
        self._calls_count = OpteeMediator(settings).calls_count
        self._machine = machine
        self._normal = normal
        self._scripted = scripted
        self._judge = judge

    def answer(self, step: Step, result: object, live: bool) -> str:
        """The rule by which a call that was not forwarded got another answer than the recorded one.

        ``result``: the guest's registers, None if the call is not the mediator's; ``live``: the
        guest exists. Empty: no rule allows it.
        """
        answer = step.answer
        assert answer is not None
        recorded = low32(answer.regs[0])
        status = smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
        if isinstance(result, tuple):
            status = low32(result[0])
        if not live:
            alone = result is None and recorded == smc.OPTEE_SMC_RETURN_ENOTAVAIL
            return rules.UNKNOWN_CLIENT if alone else ""
        if step.function == smc.OPTEE_SMC_GET_SHM_CONFIG:
            return rules.NOT_OFFERED if status == smc.OPTEE_SMC_RETURN_ENOTAVAIL else ""
        if step.function in NEVER_OFFERED or step.function not in names.FUNCTIONS:
            unknown = status == smc.OPTEE_SMC_RETURN_UNKNOWN_FUNCTION
            return rules.NOT_OFFERED if unknown else ""
        if step.function == smc.OPTEE_SMC_CALLS_COUNT:
            return rules.OWN_CALLS_COUNT if status == self._calls_count else ""
        if self._before_trace(step, recorded, status):
            return rules.BEFORE_TRACE
        if step.function in names.CALLS_WITH_MESSAGE:
            return self._message(step, recorded, status)
        return ""

    def _before_trace(self, step: Step, recorded: int, status: int) -> bool:
        """Whether a call needs something that nobody saw come into being."""
        if step.function == names.RETURN_FROM_RPC:
            unknown = step.flight is None and recorded != smc.OPTEE_SMC_RETURN_ERESUME
            return unknown and status == smc.OPTEE_SMC_RETURN_ERESUME
        if step.function != names.CALL_WITH_REGD_ARG:
            return False
        refused = status == smc.OPTEE_SMC_RETURN_EBADADDR != recorded
        return refused and not self._normal.met(step)

    def _message(self, step: Step, recorded: int, status: int) -> str:
        content = step.call.msg
        if status == smc.OPTEE_SMC_RETURN_EBADADDR:
            address = pair(step.call.regs[1], step.call.regs[2])
            by_address = step.function != names.CALL_WITH_REGD_ARG
            if by_address and address & PAGE_MASK and self._facts.in_reserved(address):
                return rules.RESERVED
            if content is None or step.function == names.CALL_WITH_ARG:
                return ""
            size = wire.message_size(content.num_params) + wire.message_size(RPC_PARAMS)
            return rules.ONE_PAGE if size > PAGE_SIZE else ""
        if content is None:
            return ""
        if status == smc.OPTEE_SMC_RETURN_EBADCMD:
            above = (names.command(content) or 0) > msg.OPTEE_MSG_CMD_STOP_ASYNC_NOTIF
            return rules.UNKNOWN_COMMAND if above else ""
        if status != smc.OPTEE_SMC_RETURN_OK:
            return ""
        if content.num_params > wire.MAX_PARAMS:
            refused = self._judge.refused_with(step, tee.TEE_ERROR_BAD_PARAMETERS)
            return rules.TOO_MANY_PARAMETERS if refused else ""
        return self._refusal(step, recorded)

    def _refusal(self, step: Step, recorded: int) -> str:
        """BAD_PARAMETERS or OUT_OF_MEMORY, origin COMMS: a temporary buffer was not taken."""
        content, answer = step.call.msg, step.answer
        assert content is not None
        assert answer is not None
        whys = [self._refusable(step, param) for param in temporary(content.data)]
        why = next((found for found in whys if found), "")
        code = tee.TEE_ERROR_BAD_PARAMETERS
        if why == rules.OWN_LIMITS:
            code = tee.TEE_ERROR_OUT_OF_MEMORY
        if not why or not self._judge.refused_with(step, code):
            return ""
        if why == rules.LIVE_REFERENCE:
            # From now on the cookie means two objects to OP-TEE and one to everybody here.
            for param in temporary(content.data):
                self._judge.tainted.add((step.client, param.c))
            return why
        refused_too = recorded != smc.OPTEE_SMC_RETURN_OK or (
            answer.msg is not None and any(answer.msg.data[20:24])
        )
        if why == rules.OWN_LIMITS and not refused_too:
            return why
        return rules.REFUSED_EARLIER if refused_too else ""

    def unshareable(self, step: Step) -> bool:
        """Whether the guest's answer to SHM_ALLOC is memory that no mediator can share."""
        content, request = step.call.rpc_arg, step.request
        if content is None or request is None:
            return False
        if names.command(request.rpc_arg) != optee_rpc.OPTEE_RPC_CMD_SHM_ALLOC:
            return False
        whys = [(self._refusable(step, param), param.c) for param in temporary(content.data)]
        for why, cookie in whys:
            if why == rules.LIVE_REFERENCE:
                self._judge.tainted.add((step.client, cookie))
        return any(why for why, _ in whys)

    def _refusable(self, step: Step, param: Parameter) -> str:
        """The rule by which a mediator refuses a temporary buffer, empty if it must take it."""
        contiguous = not param.attr & msg.OPTEE_MSG_ATTR_NONCONTIG
        pages = ((param.a & PAGE_MASK) + param.b + PAGE_MASK) // PAGE_SIZE
        if pages > self._settings.limits.buffer_pages:
            return rules.OWN_LIMITS
        if not pages:
            return rules.REFUSED_EARLIER
        if contiguous:
            registers = names.command(step.call.msg) == msg.OPTEE_MSG_CMD_REGISTER_SHM
            if registers or not self._settings.contiguous:
                return rules.REFUSED_EARLIER
        elif self._scripted.knows(step.client, param.c):
            return rules.LIVE_REFERENCE
        entries = self._judge.guest_list(step, param)
        if len(entries) < page_list.entry_count(param.a & PAGE_MASK, param.b):
            return rules.REFUSED_EARLIER
        for address in [param.a, *entries]:
            if self._machine.to_pa(step.client, address & ~PAGE_MASK) is None:
                return rules.REFUSED_EARLIER
        return ""
