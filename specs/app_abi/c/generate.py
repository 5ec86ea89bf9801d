# SPDX-License-Identifier: BSD-2-Clause
"""Makes the C files of the app ABI from its definition.

A template has lines ``@NAME@``; each is replaced by what a function here makes of the definition.
What a syscall gives back has an exact length, which the client checks: :data:`LENGTHS` says which. A
syscall that is new in the definition and has no entry there is refused, not guessed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Final

from attrs import frozen

from smccc.constants import optee_msg, optee_rpc, optee_smc, tee
from specs.app_abi import AppAbi, AppAbiError, Argument, Entry, SyscallSpec, app_abi
from specs.app_abi.c import text

WIDTH: Final = 100
ARGS: Final = 8
WORD: Final = 8

LENGTHS: Final = {
    "READ_GUEST": "length",
    "READ_PAGE_LIST": "entries",
    "PIN_PAGES": "count",
    "READ_PINNED": "length",
    "ALLOC_SHADOW": "pages",
}
"""Syscall → argument that says how much an OK gives back: bytes, or words if its payload is words."""

UP_TO: Final = {"READ_AND_PIN": ("pinned", "entries"), "PIN_LIST": ("pinned", "entries")}
"""Syscall → result that says how many words it gives back, whatever the status, and their limit."""

SHARED: Final = {
    "ALLOC_SHADOW": "pages",
    "MAP_SHADOW": "count",
    "MAP_GUEST_PAGE": "1",
    "MAP_DEVICE": "1",
}
"""Syscall with a result ``offset`` into the arena → how many pages lie there."""

NUMBERED: Final = re.compile(r"([a-z]+)\d+")
C_TYPES: Final = {"u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t", "i64": "int64_t"}

PAYLOAD_IN: Final = {
    "none": (),
    "words": ("const uint64_t *words", "size_t count"),
    "segments": ("const struct app_segment *segments", "size_t count"),
    "text": ("const char *text", "size_t length"),
    "json": ("const char *json", "size_t length"),
}
PAYLOAD_OUT: Final = {"none": (), "bytes": ("void *out",), "words": ("uint64_t *out",)}


def generate(name: str, abi: AppAbi | None = None) -> str:
    """The file ``name`` as it should be. :class:`AppAbiError` for what C has no rule for."""
    abi = abi or app_abi()
    if name == "optee_numbers.h":
        return "\n".join(_numbers()) + "\n"
    makers: dict[str, Callable[[AppAbi], Iterable[str]]] = {
        "VERSION": lambda abi: (f"{abi.major}.{abi.minor}",),
        "CONSTANTS": _constants,
        "HEADER": _header,
        "ENTRIES": _entries,
        "HANDLERS": _handlers,
        "PROTOTYPES": _prototypes,
        "ASSERTIONS": _assertions,
        "SYSCALLS": _syscalls,
        "DISPATCH": _dispatch,
    }
    made = text(f"{name}.in")
    for place, make in makers.items():
        if f"@{place}@" in made:
            made = made.replace(f"@{place}@", "\n".join(make(abi)))
    return made


# --- constants ------------------------------------------------------------------------------


def _define(name: str, value: int, doc: str = "") -> str:
    number = str(value) if -1 < value < 1 << 31 else f"({value})" if value < 0 else f"{value:#x}u"
    line = f"#define {name} {number}"
    if not doc:
        return line
    return (
        _comment(doc) + "\n" + line if len(line) + len(doc) > WIDTH - 7 else f"{line} /* {doc} */"
    )


def _comment(doc: str, indent: str = "") -> str:
    lines = textwrap.wrap(doc, WIDTH - len(indent) - 6)
    return f"{indent}/* " + f"\n{indent} * ".join(lines) + " */"


def _constants(abi: AppAbi) -> Iterator[str]:
    yield _define("APP_MAJOR", abi.major)
    yield _define("APP_MINOR", abi.minor)
    yield _define("APP_HEADER_SIZE", abi.header_size, "bytes")
    yield _define("APP_ARGS", ARGS)
    for title, prefix, numbers in (
        ("Kinds of messages.", "KIND", [(x.name, x.number, x.doc) for x in abi.kinds]),
        ("Flags.", "FLAG", [(x.name, 1 << x.value, x.doc) for x in abi.flags]),
        ("What an app can do.", "CAP", [(x.name, 1 << x.value, x.doc) for x in abi.capabilities]),
        (
            "What the hypervisor offers.",
            "OFFER",
            [(x.name, 1 << x.value, x.doc) for x in abi.offers],
        ),
        ("Statuses.", "", [(x.name, x.value, x.doc) for x in abi.statuses]),
        ("How an entry ends.", "OUTCOME", [(x.name, x.value, x.doc) for x in abi.outcomes]),
        ("Limits.", "", [(x.name, x.value, f"{x.unit}. {x.doc}") for x in abi.limits]),
        ("Hooks.", "HOOK", [(x.name, x.number, f"{x.unit}. {x.doc}") for x in abi.hooks]),
        ("Entries.", "ENTRY", [(x.name, x.number, "") for x in abi.entries]),
        ("System calls.", "SYSCALL", [(x.name, x.number, "") for x in abi.syscalls]),
    ):
        yield f"\n/* {title} */"
        for name, number, doc in numbers:
            yield _define("_".join(filter(None, ("APP", prefix, name))), number, doc)
    yield ""
    flags = " | ".join(f"APP_FLAG_{flag.name}" for flag in abi.flags)
    yield f"#define APP_FLAGS ({flags})"
    yield _define("APP_SYSCALL_LAST", max(call.number for call in abi.syscalls))
    yield _define("APP_STATUS_LAST", min(status.value for status in abi.statuses))
    yield "#define APP_NO_GUEST UINT64_MAX /* in place of a guest in app_log() */\n"


def _numbers() -> Iterator[str]:
    # In two parts: a licence checker would take the whole for this file's own.
    yield "/* SPDX-License-" + "Identifier: BSD-2-Clause */"
    yield "/* Generated from smccc/constants by `python -m specs.app_abi.c`; do not edit."
    yield " *"
    yield " * Numbers of the OP-TEE SMC, message and RPC ABI under the names of OP-TEE's own headers."
    yield " */"
    yield "#ifndef OPTEE_NUMBERS_H\n#define OPTEE_NUMBERS_H"
    sources: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
        (optee_smc, ("OPTEE_",)),
        (optee_msg, ("OPTEE_",)),
        (optee_rpc, ("OPTEE_",)),
        (tee, ("TEE_SUCCESS", "TEE_ERROR_", "TEE_ORIGIN_")),
    )
    for module, prefixes in sources:
        yield f"\n/* {module.__name__.rpartition('.')[2]}.h */"
        for name, value in vars(module).items():
            if name.startswith(prefixes) and isinstance(value, int):
                suffix = "ull" if value > 0xFFFF_FFFF else "u"
                yield f"#define {name} {value:#x}{suffix}"
    yield "\n#endif"


# --- structures -----------------------------------------------------------------------------


def _header(abi: AppAbi) -> Iterator[str]:
    yield "/* A message's header; payload_length bytes follow. */"
    yield "struct app_header {"
    for field in abi.header:
        length = f"[{field.count}]" if field.count > 1 else ""
        yield f"    {C_TYPES[field.type]} {field.name}{length};"
    yield "};\n"


def _assertions(abi: AppAbi) -> Iterator[str]:
    yield "/* The header in memory is the one on the wire. */"
    yield "#define APP_ASSERT(name, truth) typedef char app_assert_##name[(truth) ? 1 : -1]"
    yield "APP_ASSERT(header, sizeof(struct app_header) == APP_HEADER_SIZE);"
    for field in abi.header:
        place = f"offsetof(struct app_header, {field.name})"
        yield f"APP_ASSERT(header_{field.name}, {place} == {field.offset});"
    yield ""


@frozen
class _Field:
    """Words under one name: ``count`` of them if there is a number."""

    name: str
    count: int
    unit: str

    @property
    def declared(self) -> str:
        return f"{self.name}[{self.count}]" if self.count else self.name


def _fields(args: Sequence[Argument]) -> tuple[_Field, ...]:
    """Arguments as C has them: x0, x1, ... are an array x."""
    stems = [NUMBERED.fullmatch(arg.name) for arg in args]
    if args and all(stems):
        first = stems[0]
        assert first is not None
        return (_Field(first[1], len(args), args[0].unit),)
    return tuple([_Field(arg.name, 0, arg.unit) for arg in args])


def _members(fields: Iterable[_Field]) -> Iterator[str]:
    for field in fields:
        yield f"    uint64_t {field.declared}; /* {field.unit} */"


def _has_in(entry: Entry) -> bool:
    return bool(entry.args) or entry.payload != "none"


def _has_out(entry: Entry) -> bool:
    return bool(entry.results) or entry.payload_out != "none"


def _entries(abi: AppAbi) -> Iterator[str]:
    for entry in abi.entries:
        name = f"app_{entry.name.lower()}"
        outcomes = ", ".join(entry.outcomes)
        yield _comment(f"{entry.name}: {entry.doc} Outcomes: {outcomes}.")
        if _has_in(entry):
            yield f"struct {name}_in {{"
            yield from _members(_fields(entry.args))
            if entry.payload == "registers":
                yield f"    uint64_t x[{ARGS}]; /* registers */"
            elif entry.payload != "none":
                yield f"    const char *payload; /* {entry.payload}, in the buffer of struct app */"
                yield "    size_t length;"
            yield "};"
        if _has_out(entry):
            yield f"struct {name}_out {{"
            yield from _members(_fields(entry.results))
            if entry.payload_out != "none":
                doc = entry.payload_out_doc or entry.payload_out
                yield f"    const char *payload; /* {entry.payload_out}: {doc} */"
                yield "    size_t length;"
            yield "};"
        start = f"typedef int (*{name}_handler)("
        line = f"{start}{', '.join(_handler_args(entry))});"
        if len(line) > WIDTH:
            line = start + f",\n{' ' * len(start)}".join(_handler_args(entry)) + ");"
        yield line + "\n"


def _handler_args(entry: Entry) -> Iterator[str]:
    name = f"app_{entry.name.lower()}"
    yield "struct app *app"
    if _has_in(entry):
        yield f"const struct {name}_in *in"
    if _has_out(entry):
        yield f"struct {name}_out *out"


def _handlers(abi: AppAbi) -> Iterator[str]:
    for entry in abi.entries:
        name = entry.name.lower()
        yield f"    app_{name}_handler {name};"
    yield ""


# --- system calls ---------------------------------------------------------------------------


def _parameters(call: SyscallSpec) -> list[str]:
    made = ["struct app *app"]
    for field in _fields(call.args):
        if call.payload == "segments" and field.name == "count":
            continue
        made.append(f"{'const ' if field.count else ''}uint64_t {field.declared}")
    if call.payload not in PAYLOAD_IN:
        raise AppAbiError(f"syscall {call.name}: payload", f"no rule for {call.payload}")
    made += PAYLOAD_IN[call.payload]
    for field in _fields(call.results):
        made.append(
            f"uint64_t results[{field.count}]" if field.count else f"uint64_t *{field.name}"
        )
    if call.payload_out not in PAYLOAD_OUT:
        raise AppAbiError(f"syscall {call.name}: payload_out", f"no rule for {call.payload_out}")
    return [*made, *PAYLOAD_OUT[call.payload_out]]


def _signature(call: SyscallSpec, end: str) -> str:
    kind = "int" if call.answered else "void"
    start = f"{kind} app_{call.name.lower()}("
    line = start
    parts = [*[f"{part}, " for part in _parameters(call)[:-1]], f"{_parameters(call)[-1]}){end}"]
    made = []
    for part in parts:
        if len(line) + len(part.rstrip()) > WIDTH:
            made.append(line.rstrip())
            line = " " * len(start)
        line += part
    return "\n".join([*made, line])


def _offered(abi: AppAbi) -> list[SyscallSpec]:
    """All but RETURN, which is how a handler's end is told."""
    return [call for call in abi.syscalls if call.name != "RETURN"]


def _prototypes(abi: AppAbi) -> Iterator[str]:
    for call in _offered(abi):
        words = [call.doc]
        units = [f"{arg.name}: {arg.unit}" for arg in (*call.args, *call.results)]
        if units and not any(field.count for field in _fields(call.args)):
            words.append("; ".join(units) + ".")
        if call.payload_doc:
            words.append(f"{_payload_name(call)}: {call.payload_doc}.")
        if call.payload_out != "none":
            words.append(f"out: {_out_doc(call)}.")
        yield _comment(" ".join(words))
        yield _signature(call, ";" if call.answered else " __attribute__((noreturn));") + "\n"


def _payload_name(call: SyscallSpec) -> str:
    return PAYLOAD_IN[call.payload][0].split("*")[1]


def _out_doc(call: SyscallSpec) -> str:
    if call.name in UP_TO:
        result, limit = UP_TO[call.name]
        return f"room for {limit} words, of which *{result} are filled; {call.payload_out_doc}"
    doc = f"; {call.payload_out_doc}" if call.payload_out_doc else ""
    return f"{_length_of(call)} {call.payload_out}{doc}"


def _length_of(call: SyscallSpec) -> str:
    if call.name not in LENGTHS:
        raise AppAbiError(f"syscall {call.name}: payload_out", "its length is not known in C")
    return LENGTHS[call.name]


def _syscalls(abi: AppAbi) -> Iterator[str]:
    for call in _offered(abi):
        yield _signature(call, "")
        yield "{"
        yield from _body(call)
        yield "}\n"


def _body(call: SyscallSpec) -> Iterator[str]:
    number = f"APP_SYSCALL_{call.name}"
    fields = _fields(call.args)
    if fields and fields[0].count:
        args = fields[0].name
    elif fields:
        args = "args"
        names = ", ".join(field.name for field in fields)
        yield f"    const uint64_t args[APP_ARGS] = {{{names}}};"
    else:
        args = "NULL"
    payload, put = _payload_code(call)
    if call.payload == "segments":
        yield "    const size_t bytes = app_segments_bytes(segments, count);"
    if call.answered and not call.posted:
        yield "    struct app_header answer;"
        yield "    int status;"
        yield ""
    elif args == "args" or call.payload == "segments":
        yield ""
    yield from _checks(call)
    posted = int(call.posted)
    yield f"    app_begin(app, {number}, {posted}, {args}, {payload});"
    yield from put
    if not call.answered:
        yield "    app_flush(app);"
        yield "    _exit(1);"
    elif call.posted:
        yield f"    return app_finish_posted(app, {number});"
    else:
        yield f"    status = app_finish(app, {number}, &answer);"
        yield from _answer(call)


def _payload_code(call: SyscallSpec) -> tuple[str, list[str]]:
    """Length of the payload, and the statements that send it."""
    match call.payload:
        case "none":
            return "0", []
        case "words":
            return "count * 8", ["    app_put(app, words, count * 8);"]
        case "segments":
            return "bytes", ["    app_put_segments(app, segments, count);"]
        case name:
            return "length", [f"    app_put(app, {name}, length);"]


def _checks(call: SyscallSpec) -> Iterator[str]:
    """What could not even be sent, or whose answer could not be held."""
    match call.payload:
        case "words":
            yield "    if (count > APP_MAX_PAGES)\n        return APP_BAD_ARGUMENT;"
        case "segments":
            yield "    if (bytes > APP_MAX_PAYLOAD)\n        return APP_BAD_ARGUMENT;"
        case "text":
            yield "    length = app_cut(text, length, APP_MAX_LOG);"
        case "json":
            yield "    if (length > APP_MAX_PAYLOAD)\n        return APP_BAD_ARGUMENT;"
    if call.payload_out == "none":
        return
    limit = UP_TO[call.name][1] if call.name in UP_TO else _length_of(call)
    most = "APP_MAX_PAYLOAD" if call.payload_out == "bytes" else "APP_MAX_PAGES"
    if limit != "count":
        yield f"    if ({limit} > {most})\n        return APP_BAD_ARGUMENT;"


def _answer(call: SyscallSpec) -> Iterator[str]:
    if call.name in UP_TO:
        result, limit = UP_TO[call.name]
        place = [arg.name for arg in call.results].index(result)
        yield f"    if (app->broken == 0 && answer.args[{place}] > {limit})"
        yield "        return app_break(app, APP_GARBLED);"
        yield from _results(call, "app->broken == 0")
        if call.payload_out == "none":
            yield "    return app_take(app, &answer, status, NULL, 0);"
        else:
            yield f"    return app_take(app, &answer, status, out, app->broken ? 0 : *{result} * 8);"
        return
    if call.name in SHARED:
        pages = SHARED[call.name]
        yield f"    if (status == APP_OK && !app_in_arena(app, answer.args[0], {pages}))"
        yield "        return app_break(app, APP_GARBLED);"
    yield from _results(call, "status == APP_OK")
    if call.payload_out == "none":
        yield "    return app_take(app, &answer, status, NULL, 0);"
        return
    length = _length_of(call) + (f" * {WORD}" if call.payload_out == "words" else "")
    yield f"    return app_take(app, &answer, status, out, status == APP_OK ? {length} : 0);"


def _results(call: SyscallSpec, condition: str) -> Iterator[str]:
    fields = _fields(call.results)
    if not fields:
        return
    if fields[0].count:
        yield f"    if ({condition})"
        yield f"        memcpy(results, answer.args, {fields[0].count} * sizeof results[0]);"
        return
    brace = len(fields) > 1
    yield f"    if ({condition})" + " {" * brace
    for index, field in enumerate(fields):
        yield f"        *{field.name} = answer.args[{index}];"
    if brace:
        yield "    }"


# --- entries --------------------------------------------------------------------------------


def _mildest(entry: Entry) -> str:
    """How an entry without a handler ends."""
    for outcome in ("NOT_MINE", "REFUSED"):
        if outcome in entry.outcomes and not (outcome == "REFUSED" and entry.name != "RESTORE"):
            return outcome
    return "DONE"


def _dispatch(abi: AppAbi) -> Iterator[str]:
    for entry in abi.entries:
        yield from _server(entry)
    yield "/* Serves one ENTRY, whose header was read. */"
    yield "static int app_serve(struct app *app, const struct app_header *header)"
    yield "{"
    yield "    if (header->kind != APP_KIND_ENTRY || header->flags != 0 || header->status != 0 ||"
    yield "        app->depth >= app->max_entries)"
    yield "        return app_break(app, APP_GARBLED);"
    yield "    app->entry = header->entry;"
    yield "    app->depth++;"
    yield "    switch (header->number) {"
    for entry in abi.entries:
        yield f"    case APP_ENTRY_{entry.name}:"
        yield f"        (void)app_serve_{entry.name.lower()}(app, header);"
        yield "        break;"
    yield "    default:"
    yield "        (void)app_break(app, APP_GARBLED);"
    yield "    }"
    yield "    app->depth--;"
    yield "    return app->broken;"
    yield "}\n"


def _server(entry: Entry) -> Iterator[str]:
    name = entry.name.lower()
    allowed = " | ".join([f"APP_BIT({outcome})" for outcome in entry.outcomes])
    yield f"static int app_serve_{name}(struct app *app, const struct app_header *header)"
    yield "{"
    if _has_in(entry):
        yield f"    struct app_{name}_in in;"
    if _has_out(entry):
        yield f"    struct app_{name}_out out;"
    if entry.results:
        yield "    uint64_t results[APP_ARGS] = {0};"
    yield f"    int outcome = APP_OUTCOME_{_mildest(entry)};"
    yield ""
    if entry.payload == "registers":
        yield "    if (header->payload_length != sizeof in.x)"
        yield "        return app_break(app, APP_GARBLED);"
        yield "    if (app_get(app, in.x, sizeof in.x) != 0)"
        yield "        return app->broken;"
    elif entry.payload == "none":
        yield "    if (header->payload_length != 0)"
        yield "        return app_break(app, APP_GARBLED);"
    else:
        yield "    in.payload = app->buffer;"
        yield "    in.length = header->payload_length;"
        yield "    if (in.length > (app->buffer == NULL ? 0 : app->buffer_bytes)) {"
        yield "        if (app_drop(app, in.length) != 0)"
        yield "            return app->broken;"
        yield f"        return app_leave(app, APP_TOO_MUCH, {allowed},"
        yield "                         NULL, NULL, 0);"
        yield "    }"
        yield "    if (app_get(app, app->buffer, in.length) != 0)"
        yield "        return app->broken;"
    for index, field in enumerate(_fields(entry.args)):
        yield f"    in.{field.name} = header->args[{index}];"
    if _has_out(entry):
        yield "    memset(&out, 0, sizeof out);"
    call = ["app"] + ["&in"] * _has_in(entry) + ["&out"] * _has_out(entry)
    yield f"    if (app->handlers->{name} != NULL)"
    yield f"        outcome = app->handlers->{name}({', '.join(call)});"
    for index, field in enumerate(_fields(entry.results)):
        if field.count:
            yield f"    memcpy(results, out.{field.name}, sizeof out.{field.name});"
        else:
            yield f"    results[{index}] = out.{field.name};"
    results = "results" if entry.results else "NULL"
    payload = "out.payload, out.length" if entry.payload_out != "none" else "NULL, 0"
    yield f"    return app_leave(app, outcome, {allowed}, {results},"
    yield f"                     {payload});"
    yield "}\n"
