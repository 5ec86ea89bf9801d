# SPDX-License-Identifier: BSD-2-Clause
"""The scenario format: every table and key, declared once. The JSON Schema is made from it, too."""

from __future__ import annotations

from typing import Final

from mediator.guest.hostile import LIES
from mediator.hypervisor.core import DEFAULT_QUANTUM, DEFAULT_TIME_SLICE, MAX_PCPUS
from mediator.hypervisor.scheduler import Mode
from mediator.scenario import model
from mediator.scenario.attacks import ATTACKS
from mediator.scenario.fields import Field, Json, Kind, schema_of
from mediator.scenario.platform import DEFAULT_THREADS
from mediator.scenario.workloads import WORKLOADS
from secure_world.settings import DEFAULT_GUESTS
from smccc import names
from smccc.constants import optee_rpc as rpc
from smccc.constants import tee

MAX_GUESTS: Final = 256
"""Guests of one scenario: each is a kernel with threads, and a row in the tables."""
MAX_VCPUS: Final = 16
MAX_RAM: Final = 16 << 30
"""Bytes of a guest's RAM: what the simulated machine has."""
MAX_INSTANCES: Final = 64
MAX_THREADS: Final = 256
MAX_ROUNDS: Final = 1_000_000
DEFAULT_RAM: Final = 64 << 20
DEFAULT_STEPS: Final = 50_000_000
"""Resumptions of an actor: some minutes, far beyond any built-in scenario."""
DEFAULT_TIME: Final = 600 * 10**9

PAGE_SIZE: Final = 4096
ANY_ERROR: Final = "any"

ERRORS: Final = {
    name.removeprefix("TEE_ERROR_"): value
    for name, value in vars(tee).items()
    if name.startswith("TEE_ERROR_")
}
"""Results that a workload may tolerate, by their names without TEE_ERROR_."""

CAPABILITIES: Final = {
    names.SEC_CAP.short(1 << bit): 1 << bit for bit in range(8) if bit not in (0, 3)
}
"""Capabilities that a mediator may offer, by their names without OPTEE_SMC_SEC_CAP_."""

RPC_KINDS: Final = (
    "ALLOC",
    "FREE",
    "FOREIGN_INTR",
    *[
        name.removeprefix("OPTEE_RPC_CMD_")
        for name in vars(rpc)
        if name.startswith("OPTEE_RPC_CMD_") and "WAIT_QUEUE" not in name
    ],
)
"""Kinds of RPC: functions, and commands of the function CMD."""

PLATFORM: Final = (
    Field("pcpus", Kind.INTEGER, "physical CPUs", 2, low=1, high=MAX_PCPUS),
    Field(
        "mode",
        Kind.CHOICE,
        "direct: nothing switches inside a trap; interleave: every system call may",
        Mode.DIRECT.value,
        choices=tuple(mode.value for mode in Mode),
    ),
    Field(
        "time-slice",
        Kind.DURATION,
        "of a vCPU on its pCPU",
        DEFAULT_TIME_SLICE,
        low=1000,
        high=10**10,
    ),
    Field("quantum", Kind.DURATION, "how far pCPUs may drift apart", DEFAULT_QUANTUM, high=10**9),
)

MEDIATOR: Final = (
    Field(
        "preset",
        Kind.CHOICE,
        "offers and limits: all that can be mediated, or those of the recorded mediator",
        "default",
        choices=("default", "reference"),
    ),
    Field(
        "offers",
        Kind.CHOICES,
        "capabilities that may pass to guests, instead of the preset's",
        choices=tuple(CAPABILITIES),
    ),
    Field("calls", Kind.INTEGER, "calls of a guest at once", low=1, high=4096),
    Field("buffers", Kind.INTEGER, "shared buffers of a guest", low=1, high=1 << 20),
    Field("buffer-pages", Kind.INTEGER, "pages of one buffer", low=1, high=1 << 24),
    Field("total-pages", Kind.INTEGER, "pages of all buffers of a guest", low=1, high=1 << 28),
    Field("rpc-buffers", Kind.INTEGER, "RPC message buffers of a guest", low=1, high=1 << 20),
    Field(
        "walk-list-pages",
        Kind.INTEGER,
        "page-list pages, of 511 entries each, that are walked between two questions whether to stop",
        low=1,
        high=1 << 16,
    ),
    Field(
        "pin-list-pages",
        Kind.INTEGER,
        "page-list pages that a walk in shorter steps pins together",
        low=1,
        high=1 << 16,
    ),
    Field("shadow-pages", Kind.INTEGER, "pages that the mediator may own", low=1, high=1 << 22),
)

SECURE_WORLD: Final = (
    Field(
        "threads",
        Kind.INTEGER,
        "threads for each guest (CFG_NUM_THREADS)",
        DEFAULT_THREADS,
        low=1,
        high=MAX_THREADS,
    ),
    Field(
        "guests",
        Kind.INTEGER,
        "guests at one time (CFG_VIRT_GUEST_COUNT)",
        DEFAULT_GUESTS,
        low=1,
        high=0xFFFF,
    ),
    Field("rpc-arg", Kind.FLAG, "it can take the RPC argument behind the message", True),
    Field("null-memref", Kind.FLAG, "it can tell null references", True),
    Field("async-notifications", Kind.FLAG, "CFG_CORE_ASYNC_NOTIF", True),
    Field("rpc-cache", Kind.FLAG, "CFG_PREALLOC_RPC_CACHE", True),
)

LIMITS: Final = (
    Field("steps", Kind.INTEGER, "resumptions of an actor", DEFAULT_STEPS, low=1, high=10**12),
    Field("time", Kind.DURATION, "virtual time", DEFAULT_TIME, low=1, high=10**15),
)

EXPECT: Final = (
    Field("rpcs", Kind.CHOICES, "kinds of RPC that must have occurred", (), choices=RPC_KINDS),
    Field("calls", Kind.INTEGER, "calls of all guests, at least", 0),
)

EXTENT: Final = (
    Field("ipa", Kind.INTEGER, "where it begins", required=True, high=(1 << 48) - PAGE_SIZE),
    Field("size", Kind.SIZE, "its bytes", required=True, low=PAGE_SIZE, high=MAX_RAM),
)

COMMON_WORKLOAD: Final = (
    Field("run", Kind.CHOICE, "which workload", required=True, choices=tuple(WORKLOADS)),
    Field("instances", Kind.INTEGER, "threads that run it", 1, low=1, high=MAX_INSTANCES),
    Field("rounds", Kind.INTEGER, "how often", 1, high=MAX_ROUNDS),
    Field("forever", Kind.FLAG, "until the guest is destroyed, instead of rounds", False),
    Field("pause", Kind.DURATION, "after each round", 0, high=10**10),
    Field(
        "tolerate",
        Kind.CHOICES,
        "errors that end a round but are no failure",
        (),
        choices=(ANY_ERROR, *ERRORS),
    ),
)

GUEST: Final = (
    Field("name", Kind.TEXT, "its name, used by events", required=True),
    Field("kernel", Kind.CHOICE, "what runs on it", model.LINUX_6_12, choices=model.KERNELS),
    Field("vcpus", Kind.INTEGER, "its processors", 2, low=1, high=MAX_VCPUS),
    Field(
        "ram", Kind.SIZE, "its RAM, at 0x40000000", DEFAULT_RAM, low=64 * PAGE_SIZE, high=MAX_RAM
    ),
    Field("extents", Kind.TABLES, "its RAM piece by piece, instead of ram", parts=EXTENT),
    Field("scatter", Kind.FLAG, "its physical pages are in disorder", True),
    Field("conduit", Kind.CHOICE, "how it traps", "smc", choices=("smc", "hvc")),
    Field(
        "call-style",
        Kind.CHOICE,
        "rpc-arg: by capability, as Linux does today; classic: as before Linux 5.18",
        model.RPC_ARG,
        choices=model.STYLES,
    ),
    Field("supplicant", Kind.FLAG, "it runs tee-supplicant", True),
    Field(
        "notifications",
        Kind.FLAG,
        "its driver knows asynchronous notifications (Linux since 5.16) and enables them",
        True,
    ),
    Field(
        "migrate-every",
        Kind.INTEGER,
        "every so many RPCs are answered from another vCPU; 0: never on purpose",
        0,
        high=1_000_000,
    ),
    Field("lies", Kind.CHOICES, "false RPC answers of its driver", (), choices=tuple(LIES)),
    Field("lie-every", Kind.INTEGER, "RPCs to a lie", 5, low=1, high=1_000_000),
    Field("attacks", Kind.CHOICES, "what a hostile guest tries", (), choices=tuple(ATTACKS)),
    Field("rounds", Kind.INTEGER, "of all its attacks, for a hostile guest", 1, high=MAX_ROUNDS),
    Field(
        "trace",
        Kind.TEXT,
        "recorded session for a replayed guest: a file beside the scenario, or builtin:NAME",
    ),
    Field("from", Kind.TEXT, "marker at which the replayed stretch begins"),
    Field("to", Kind.TEXT, "marker before which it ends"),
    Field("later", Kind.FLAG, "created by an event instead of at the start", False),
    Field("same-id-as", Kind.TEXT, "guest whose id it takes over once that is gone"),
    Field(
        "outcome",
        Kind.CHOICE,
        "how it must end: all programs done, destroyed before, or any of these",
        model.DONE,
        choices=model.OUTCOMES,
    ),
    Field(
        "findings",
        Kind.INTEGER,
        "what the mediator may note about it, at most; default 0 for honest guests, else any number",
    ),
    Field("workload", Kind.TABLES, "its client programs", parts=COMMON_WORKLOAD, open=True),
)

EVENT: Final = (
    Field("do", Kind.CHOICE, "what happens", required=True, choices=model.ACTIONS),
    Field("guest", Kind.TEXT, "to which guest"),
    Field("at", Kind.DURATION, "at this virtual time"),
    Field("call", Kind.INTEGER, "during this call of the guest (1: the first)", low=1),
    Field("rpc", Kind.INTEGER, "while this RPC is with the guest (1: the first)", low=1),
    Field("gone", Kind.TEXT, "once this guest is gone"),
    Field("of", Kind.TEXT, "whose calls or RPCs are counted, if not those of guest"),
    Field("pages", Kind.INTEGER, "how many pages a balloon takes", low=1, high=1 << 22),
    Field("pinned", Kind.FLAG, "it takes pages that are shared with the TEE", False),
    Field("for", Kind.DURATION, "how long memory is denied", high=10**12),
)

TOP: Final = (
    Field("format", Kind.CHOICE, "always this", required=True, choices=(model.FORMAT,)),
    Field("version", Kind.INTEGER, "of the format", required=True, low=1, high=model.VERSION),
    Field("name", Kind.TEXT, "a short name", required=True),
    Field("description", Kind.TEXT, "one sentence"),
    Field("seed", Kind.INTEGER, "of everything that is drawn", 1),
    Field("platform", Kind.TABLE, "the machine", parts=PLATFORM),
    Field("mediator", Kind.TABLE, "offers and limits", parts=MEDIATOR),
    Field("secure-world", Kind.TABLE, "build options of OP-TEE", parts=SECURE_WORLD),
    Field("limits", Kind.TABLE, "where a run is cut off", parts=LIMITS),
    Field("expect", Kind.TABLE, "what must have happened", parts=EXPECT),
    Field("guest", Kind.TABLES, "the guests", parts=GUEST, required=True, open=True),
    Field("event", Kind.TABLES, "what happens to them", parts=EVENT),
)


def schema() -> Json:
    """The JSON Schema of the format, in the wheel as ``mediator/scenario/scenario.schema.json``."""
    workloads = [
        {
            **schema_of((*COMMON_WORKLOAD, *kind.fields)),
            "title": kind.help,
        }
        for kind in WORKLOADS.values()
    ]
    for kind, one in zip(WORKLOADS.values(), workloads, strict=True):
        properties = one["properties"]
        assert isinstance(properties, dict)
        properties["run"] = {"const": kind.name}
    guest = schema_of(GUEST)
    guest_properties = guest["properties"]
    assert isinstance(guest_properties, dict)
    guest_properties["workload"] = {"type": "array", "items": {"oneOf": workloads}}
    whole = schema_of(TOP)
    properties = whole["properties"]
    assert isinstance(properties, dict)
    properties["guest"] = {"type": "array", "minItems": 1, "items": guest}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Scenario of optee-mediator run, format {model.FORMAT} version {model.VERSION}"
        " (written in TOML)",
        **whole,
    }
