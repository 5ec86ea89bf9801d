# SPDX-License-Identifier: BSD-2-Clause
"""Features of the behaviour format that the golden sample hardly uses, on scenarios of our own."""

from __future__ import annotations

from typing import Any

import pytest

from specs.target import Outcome, Setup, SetupRefused, Trap, World
from specs.vectors.model_target import ModelTarget
from tests.vectors.golden import (
    Row,
    create,
    destroy,
    message,
    registers,
    run,
    scenario,
    secure,
    seen,
    smc,
    write,
)

WITH_ARG = "0x32000004"
RETURN = "0x32000003"
INTERRUPT = ("0xffff0004", "0x0", "0x0", "0x1")
NONCONTIG_OUT = 0x20A
MESSAGE = "0x40000000"
LIST = 0x40010000


def places(row: Row, **more: Any) -> list[str]:
    return [difference.place for difference in run(row, **more).differences]


def invoke(name: str, client: str = "0x2", **more: Any) -> Row:
    """The secure world gets INVOKE_COMMAND without parameters."""
    entry = secure(WITH_ARG, f"hi:{name}", f"lo:{name}", "0x1", "0x0", "0x0", "0x0", client, **more)
    entry["msg"] = seen(name, 1, [], session=7)
    return entry


def resume(**more: Any) -> Row:
    return secure(RETURN, "0x0", "0x0", "0x1", "0x0", "0x0", "0x0", "0x2", **more)


INVOKE = write(MESSAGE, message(1, [], session=7))


def test_a_plain_call_and_its_harness() -> None:
    call = smc(WITH_ARG, "0x0", MESSAGE, sw=[invoke("m0")])
    row = scenario(create(), INVOKE, call, destroy())
    assert not places(row)
    call["sw"][0]["msg"]["session"] = 8
    assert places(row) == ["steps[2].sw[0].msg.session"]


def test_memory_that_the_mediator_writes() -> None:
    call = smc(WITH_ARG, "0x0", MESSAGE, sw=[invoke("m0", writes=[["m0", 20, "0700ffff02000000"]])])
    row = scenario(create(), INVOKE, call, destroy())
    assert places(row) == [
        "steps[2].mem guest 1 0x40000014",
        "steps[2].mem guest 1 0x40000018",
    ]
    call["mem"] = [["0x40000014", "0700ffff02000000"]]
    assert not places(row)
    call["mem"].append(["0x40000100", "01000000"])
    assert places(row) == ["steps[2].mem guest 1 0x40000100"]


def test_what_others_write_is_no_change_of_the_mediator() -> None:
    """The guest and the secure world write the guest's page before and after the mediator does."""
    results = [["m0", 24, "04000000"], ["g:0x40000000", 256, "aabbccdd"]]
    call = smc(
        WITH_ARG,
        "0x0",
        MESSAGE,
        sw=[invoke("m0", writes=results, guest_writes=[["0x40000200", "11223344"]])],
        mem=[["0x40000018", "04000000"]],
    )
    assert not places(scenario(create(), INVOKE, call, destroy()))


def test_remap_meanwhile() -> None:
    """The message page vanishes during the call: nothing is written and the guest gets EBADADDR."""
    gone = {"remap": {"ipa": MESSAGE, "pages": 1, "kind": "absent"}}
    entry = invoke("m0", writes=[["m0", 24, "04000000"]], meanwhile=[gone])
    call = smc(WITH_ARG, "0x0", MESSAGE, out=("0x4",), sw=[entry])
    assert not places(scenario(create(), INVOKE, call, destroy()))
    entry["meanwhile"] = []
    call["mem"], call["out"] = [["0x40000018", "04000000"]], registers("0x0", "0x0", MESSAGE)
    assert not places(scenario(create(), INVOKE, call, destroy()))


def test_calls_inside_calls() -> None:
    """Two further processors trap, one inside the other; the limit of two calls holds."""
    third: Row = {
        "smc": {
            "regs": registers(WITH_ARG, "0x0", MESSAGE),
            "out": registers("0x1", "0x0", MESSAGE),
        }
    }
    second: Row = {
        "smc": {
            "regs": registers(WITH_ARG, "0x0", MESSAGE),
            "out": registers("0x0", "0x0", MESSAGE),
            "sw": [invoke("m1", meanwhile=[third])],
        }
    }
    call = smc(WITH_ARG, "0x0", MESSAGE, sw=[invoke("m0", meanwhile=[second])])
    row = scenario(create(), INVOKE, call, destroy())
    assert not places(row)
    third["smc"]["out"][0] = "0x0"
    inner = "steps[2].sw[0].meanwhile[0].smc.sw[0].meanwhile[0].smc"
    assert places(row) == [f"{inner}.out[0]"]
    third["smc"]["sw"] = [invoke("m2")]
    assert f"{inner}.sw[0]" in places(row)


def register(name: str, listed: str, dom: int = 1) -> Row:
    entry = secure(WITH_ARG, f"hi:{name}", f"lo:{name}", "0x1", "0x0", "0x0", "0x0", hex(dom + 1))
    runs = [["0x40020000", 2, dom]]
    param = {"attr": hex(NONCONTIG_OUT), "v": [listed, "0x2000", "0x55"], "pages": runs}
    entry["msg"] = seen(name, 4, [param])
    return entry


@pytest.mark.parametrize("dom", [1, 2])
def test_two_guests_name_their_memory(dom: int) -> None:
    other = 3 - dom
    steps = [
        create(1),
        create(2),
        write(hex(LIST), "0000024000000000" + "0010024000000000", dom),
        write(MESSAGE, message(4, [(NONCONTIG_OUT, LIST, 0x2000, 0x55)]), dom),
    ]
    entry = register("m0", "m1", dom)
    entry["writes"] = [["m0", 24, "04000000"]]
    call = smc(WITH_ARG, "0x0", MESSAGE, dom=dom, sw=[entry])
    call["mem"] = [["0x40000018", "04000000", dom]]
    call["pins"] = {str(dom): [["0x40020000", 2, 1]]}
    row = scenario(*steps, call, guests=2)
    assert not places(row)
    for step, value in (("mem", [["0x40000018", "04000000", other]]),):
        assert places(scenario(*steps, {**call, step: value}, guests=2))
    assert (
        len(
            places(
                scenario(*steps, {**call, "pins": {str(other): [["0x40020000", 2, 1]]}}, guests=2)
            )
        )
        == 4
    )
    pages = entry["msg"]["params"][0]["pages"]
    pages[0][2] = other
    assert len(places(scenario(*steps, call, guests=2))) == 2
    pages[0][2] = dom


def test_pages_of_another_guest_are_foreign() -> None:
    """Guest 2 sees a page of guest 1; it is named by its owner and refused."""
    shared = {
        "ipa": "0x70000000",
        "pages": 1,
        "kind": "foreign",
        "pa": "0x880100000",
        "pa_step": 4096,
    }
    message_there = smc(WITH_ARG, "0x0", "0x70000000", dom=2, out=("0x4",))
    row = scenario(create(1), create(2), message_there, guests=2, map2=[shared])
    assert not places(row)


def test_the_other_conduits() -> None:
    unknown = ("0xffffffffffffffff",)
    uid = ("0x384fb3e0", "0xe7f811e3", "0xaf630002", "0xa5d5c51b")
    asked = secure("0xbf00ff01", "0x0", "0x0", "0x0", "0x0", "0x0", "0x0", "0x2", reply=uid)
    hvc = smc("0xbf00ff01", out=uid, sw=[asked], via="hvc64")
    assert not places(scenario(create(), hvc))
    hvc["imm"], hvc["undef"], hvc["out"] = 1, True, hvc["regs"]
    del hvc["sw"]
    assert not places(scenario(create(), hvc))
    # From AArch32 the immediate of an SMC is not known, and 64-bit functions do not exist.
    narrow = smc("0xff00ff01", out=unknown, via="smc32", imm=5)
    assert not places(scenario(create(), narrow, bits=32))


def test_minus_one_is_32_bits_wide_and_nothing_else_is() -> None:
    class Narrow(ModelTarget):
        def trap(self, trap: Trap) -> Outcome:
            outcome = super().trap(trap)
            return Outcome((outcome.regs[0] & 0xFFFFFFFF, *outcome.regs[1:]))

    refused = smc("0xb2000002", "0x0", out=("0xffffffffffffffff",))
    assert not places(scenario(create(), refused), target=Narrow)
    refused["out"][0] = "0xfffffffeffffffff"
    assert places(scenario(create(), refused), target=Narrow) == ["steps[1].out[0]"]
    refused["out"][0] = "0xffffffff"
    assert places(scenario(create(), refused)) == ["steps[1].out[0]"]


def test_answers_to_preemption_are_carried_over() -> None:
    """An answer that the first destroy does not use belongs to the second."""
    first = {"op": "destroy", "dom": 1, "done": False, "pins": {}, "preempt": [True, True]}
    second = {"op": "destroy", "dom": 1, "done": False, "pins": {}}
    assert not places(scenario(create(), first, second, destroy()))
    first["preempt"] = [True]
    assert places(scenario(create(), first, second))[-1] == "steps[2].done"


def test_names_follow_the_pages() -> None:
    """The page of a call that ended goes by a new name; the old one names nothing any more."""
    calls = [smc(WITH_ARG, "0x0", MESSAGE, sw=[invoke(name)]) for name in ("m0", "m1")]
    row = scenario(create(), INVOKE, *calls, destroy())
    assert not places(row)
    calls[1]["sw"] = [invoke("m0")]
    assert "given back" in run(row).differences[0].actual
    calls[1]["sw"] = [invoke("m2")]
    assert "next new page is m1" in run(row).differences[0].actual


def test_a_name_in_use_is_not_taken_over() -> None:
    """Two calls in flight have different pages."""
    first = smc(WITH_ARG, "0x0", MESSAGE, out=INTERRUPT, sw=[invoke("m0", reply=INTERRUPT)])

    class SamePage(ModelTarget):
        """Hands every message to the secure world at one address."""

        def __init__(self, setup: Setup, world: World) -> None:
            self.page = 0
            super().__init__(setup, world)
            host, smc_of_host = self._host, world.smc

            def at_one_page(a0: int, *rest: int) -> tuple[int, int, int, int]:
                if a0 == 0x32000004:
                    self.page = self.page or rest[0] << 32 | rest[1]
                    rest = (self.page >> 32, self.page & 0xFFFFFFFF, *rest[2:])
                return smc_of_host(a0, *rest)

            host.secure_smc = at_one_page

    second = smc(WITH_ARG, "0x0", MESSAGE, sw=[invoke("m1")])
    end = smc(RETURN, "0x0", "0x0", "0x1", sw=[resume(writes=[["m0", 20, "00000000"]])])
    row = scenario(create(), INVOKE, first, second, end, destroy())
    assert not places(row)
    assert "still in use" in run(row, target=SamePage).differences[0].actual


def test_a_page_that_was_given_back_is_stale() -> None:
    """The secure world's own old address comes back to it in a value parameter."""
    first = smc(WITH_ARG, "0x0", MESSAGE, sw=[invoke("m0")])
    value = write(MESSAGE, message(1, [(1, 0x123456000, 2, 3)], session=7))
    entry = invoke("m1")
    entry["msg"] = seen("m1", 1, [{"attr": "0x1", "v": ["stale", "0x2", "0x3"]}], session=7)
    second = smc(WITH_ARG, "0x0", MESSAGE, sw=[entry])
    row = scenario(create(), INVOKE, first, value, second, destroy())
    assert not places(row)
    value["at"][0][1] = message(1, [(1, 0x880100000, 2, 3)], session=7)
    assert "a page in use" in run(row).differences[0].actual


def test_guest_addresses_by_symbol() -> None:
    """``g:`` is the physical address of the page that the map has at that IPA."""
    value = write(MESSAGE, message(1, [(1, 0x880104000 + 0x10, 2, 3)], session=7))
    entry = invoke("m0")
    words = ["g:0x40002000+0x10", "0x2", "0x3"]
    entry["msg"] = seen("m0", 1, [{"attr": "0x1", "v": words}], session=7)
    row = scenario(create(), value, smc(WITH_ARG, "0x0", MESSAGE, sw=[entry]))
    assert not places(row)
    words[0] = "g1:0x40002000+0x18"
    assert places(row) == ["steps[2].sw[0].msg.params[0].v[0]"]


def test_calls_that_do_not_come_and_calls_too_many() -> None:
    extra = smc("0xb2000007", out=("0x7",), sw=[secure("0xb2000007")])
    assert places(scenario(create(), extra)) == ["steps[1].sw[0]"]
    silent = create()
    silent["sw"] = []
    assert places(scenario(silent))[0] == "steps[0].sw[0]"


def test_a_target_that_raises_is_a_difference() -> None:
    class Broken(ModelTarget):
        def trap(self, trap: Trap) -> Outcome:
            raise RuntimeError("broken")

    row = scenario(create(), smc("0xb2000007", out=("0x7",)))
    (difference,) = run(row, target=Broken).differences
    assert "RuntimeError: broken" in difference.actual


def test_a_target_that_cannot_be_built_is_a_difference() -> None:
    class Small(ModelTarget):
        def __init__(self, setup: Setup, world: World) -> None:
            raise SetupRefused("too small")

    (difference,) = run(scenario(create()), target=Small).differences
    assert difference.place == "domains"
    assert difference.actual == "too small"


def test_a_probe_that_fails_ends_the_scenario() -> None:
    class Blind(ModelTarget):
        def probe(self, present: bool) -> bool:
            return False

    assert places(scenario(create()), target=Blind) == ["probe before the first step"]
