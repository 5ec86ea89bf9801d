# SPDX-License-Identifier: BSD-2-Clause
"""Golden vectors of the wire: function ids, messages and page lists, each against :mod:`smccc`."""

from __future__ import annotations

import struct
from typing import Final

from smccc import message as wire_message
from smccc import page_list
from smccc.errors import BuildError, ParseError
from smccc.function_id import FunctionId
from specs.abi import header_constants
from specs.vectors.case import Case, Comparison, judged, shown
from specs.vectors.source import Value

U32: Final = (1 << 32) - 1

FUNCTION_ID_FIELDS: Final = (
    "fid",
    "fast",
    "smc64",
    "owner",
    "func",
    "rebuilt",
    "sve_hint",
    "bits_23_17",
    "tfa_valid_fast",
    "psci_func_range",
)
MESSAGE_FIELDS: Final = ("id", "class", "fields", "size", "hex")
PAGE_LIST_FIELDS: Final = (
    "id",
    "variant",
    "kernel_page_size",
    "kernel_page_offset",
    "n",
    "offset",
    "size",
    "buf_ptr",
    "trailing_link",
    "trailing_link_value",
    "pages",
    "list_pages",
)

_HEADER: Final = (
    "cmd",
    "func",
    "session",
    "cancel_id",
    "pad",
    "ret",
    "ret_origin",
    "num_params",
)
_VIEWS: Final = {
    "value": ("a", "b", "c"),
    "tmem": ("buf_ptr", "size", "shm_ref"),
    "rmem": ("offs", "size", "shm_ref"),
    "fmem": ("offs_low", "offs_high", "internal_offs", "size", "global_id"),
}
_VIEW_BITS: Final = {"offs_low": 32, "offs_high": 16, "internal_offs": 16}


def function_id_case(value: Value) -> Case:
    """Decode the id, compare every part, and put it together again."""
    fields = value.fields(FUNCTION_ID_FIELDS, ("names",))
    number = fields["fid"].function_id()
    decoded = FunctionId.decode(number)
    compare = Comparison()
    compare.equal("fast", fields["fast"].boolean(), decoded.fast)
    compare.equal("smc64", fields["smc64"].boolean(), decoded.smc64)
    compare.equal("owner", fields["owner"].integer(), decoded.owner)
    compare.equal("func", fields["func"].integer(), decoded.number)
    compare.equal("rebuilt", fields["rebuilt"].function_id(), decoded.plain)
    compare.equal("sve_hint", fields["sve_hint"].boolean(), decoded.sve_hint)
    compare.equal("bits_23_17", fields["bits_23_17"].integer(), decoded.reserved)
    compare.equal("tfa_valid_fast", fields["tfa_valid_fast"].boolean(), decoded.is_valid_fast)
    compare.equal("psci_func_range", fields["psci_func_range"].boolean(), decoded.is_psci_number)
    compare.equal("encoded again", number, decoded.encode())
    known = header_constants()
    for item in fields["names"].items() if "names" in fields else []:
        name = item.text()
        compare.equal(f"names: {shown(name)}", number, known.get(name))
    return judged(fields["fid"].text(), value.line, compare.differences, category="function-id")


def message_case(value: Value) -> Case:
    """Parse the bytes, compare every field and view, build them again, both ways."""
    fields = value.fields(MESSAGE_FIELDS)
    name = f"message {fields['id'].integer()}"
    kind = fields["class"].text()
    data = fields["hex"].data()
    compare = Comparison()
    compare.equal("size", fields["size"].integer(), len(data))
    expected = fields["fields"].fields((*_HEADER, "params"))
    params = expected["params"].items()
    try:
        parsed = wire_message.parse_message(data)
    except ParseError as error:
        compare.differ("hex", "a message", str(error))
        return judged(name, value.line, compare.differences, category="message", title=kind)
    for field in _HEADER:
        compare.equal(field, expected[field].integer(0, U32), getattr(parsed, field))
    compare.equal("fields.num_params", len(params), len(parsed.params))
    compare.equal("size of the message", len(data), parsed.size)
    built = []
    for index, (item, param) in enumerate(zip(params, parsed.params, strict=False)):
        built.append(_compare_param(compare, f"params[{index}]", item, param))
    compare.equal("bytes built from what was parsed", data, parsed.build())
    try:
        cmd, func, session, cancel_id, pad, ret, ret_origin = (
            expected[field].integer(0, U32) for field in _HEADER[:-1]
        )
        again = wire_message.Message(
            cmd, func, session, cancel_id, pad, ret, ret_origin, tuple(built)
        ).build()
        compare.equal("bytes built from the fields", data, again)
    except BuildError as error:
        compare.differ("fields", "a message", str(error))
    return judged(name, value.line, compare.differences, category="message", title=kind)


def _compare_param(
    compare: Comparison, place: str, item: Value, param: wire_message.Param
) -> wire_message.Param:
    fields = item.fields(("attr", "type", "meta", "noncontig", "cache", "kind", *_VIEWS))
    compare.equal(f"{place}.attr", fields["attr"].integer(), param.attr)
    compare.equal(f"{place}.type", fields["type"].integer(), param.type)
    compare.equal(f"{place}.meta", fields["meta"].boolean(), param.meta)
    compare.equal(f"{place}.noncontig", fields["noncontig"].boolean(), param.noncontig)
    compare.equal(f"{place}.cache", fields["cache"].integer(), param.cache)
    compare.equal(f"{place}.kind", fields["kind"].text(), param.kind.name.lower())
    for view, names in _VIEWS.items():
        actual = getattr(param, view)
        words = fields[view].fields(names)
        for name in names:
            limit = (1 << _VIEW_BITS.get(name, 64)) - 1
            compare.equal(
                f"{place}.{view}.{name}", words[name].integer(0, limit), getattr(actual, name)
            )
    a, b, c = (fields["value"].at(name).integer() for name in "abc")
    return wire_message.Param(fields["attr"].integer(), a, b, c)


def page_list_case(value: Value) -> Case:
    """Read the list, compare every page, and write the very same image again."""
    fields = value.fields(PAGE_LIST_FIELDS)
    name = f"page list {fields['id'].integer()}"
    variant = fields["variant"].text(("contiguous_list", "scattered_list", "large_kernel_page"))
    offset, size = fields["offset"].integer(0, 4095), fields["size"].integer(1)
    address = fields["buf_ptr"].integer()
    pages = tuple(item.integer() for item in fields["pages"].items())
    image: list[tuple[int, bytes]] = []
    for item in fields["list_pages"].items():
        part = item.fields(("addr", "hex"))
        data = part["hex"].data()
        if len(data) != page_list.PAGE_SIZE:
            part["hex"].fail("must be 4096 bytes")
        image.append((part["addr"].integer(), data))
    compare = Comparison()
    compare.equal("n", fields["n"].integer(), page_list.entry_count(offset, size))
    compare.equal("list_pages", len(image), page_list.list_page_count(len(pages)))
    compare.equal("pages", len(pages), fields["n"].integer())
    compare.equal("offset", offset, address & page_list.OFFSET_MASK)
    _compare_kernel_page(compare, fields, variant, pages)
    last = int.from_bytes(image[-1][1][page_list.LINK_OFFSET :], "little") if image else 0
    compare.equal(
        "trailing_link", fields["trailing_link"].boolean(), len(pages) % page_list.ENTRIES == 0
    )
    compare.equal("trailing_link_value", fields["trailing_link_value"].integer(), last)
    memory = dict(image)
    try:
        listed = page_list.read_page_list(memory.get, address, size, len(pages))
        compare.equal("offset", offset, listed.offset)
        _compare_words(compare, "pages", pages, listed.pages)
    except ParseError as error:
        compare.differ("list_pages", "a list", str(error))
    addresses: int | list[int] = [place for place, _ in image]
    if variant == "contiguous_list" and image:
        addresses = image[0][0]
    try:
        again = page_list.build_page_list(
            pages, addresses, trailing_link=fields["trailing_link_value"].integer()
        )
        compare.equal("addresses built", [place for place, _ in image], [at for at, _ in again])
        for index, (one, other) in enumerate(zip(image, again, strict=False)):
            words = struct.unpack("<512Q", one[1])
            _compare_words(compare, f"list_pages[{index}]", words, struct.unpack("<512Q", other[1]))
    except BuildError as error:
        compare.differ("pages", "a list that can be written", str(error))
    return judged(name, value.line, compare.differences, category="page-list", title=variant)


def _compare_kernel_page(
    compare: Comparison, fields: dict[str, Value], variant: str, pages: tuple[int, ...]
) -> None:
    """Pages of a larger kernel page lie side by side; the first ones may have been skipped."""
    kernel_size = fields["kernel_page_size"].integer()
    kernel_offset = fields["kernel_page_offset"].integer()
    large = variant == "large_kernel_page"
    compare.equal("kernel_page_size", kernel_size, 65536 if large else page_list.PAGE_SIZE)
    compare.equal("kernel_page_offset", kernel_offset % page_list.PAGE_SIZE, fields["offset"].raw)
    if not large:
        compare.equal("kernel_page_offset", kernel_offset, fields["offset"].raw)
        return
    place = kernel_offset & ~page_list.OFFSET_MASK
    for index, page in enumerate(pages):
        compare.equal(f"pages[{index}] in its kernel page", page % kernel_size, place)
        place = (place + page_list.PAGE_SIZE) % kernel_size
        if place and index + 1 < len(pages):
            compare.equal(f"pages[{index + 1}]", pages[index + 1], page + page_list.PAGE_SIZE)


def _compare_words(
    compare: Comparison, place: str, expected: tuple[int, ...], actual: tuple[int, ...]
) -> None:
    if len(expected) != len(actual):
        compare.equal(place, len(expected), len(actual))
    for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
        if one != other:
            compare.differ(f"{place}[{index}]", hex(one), hex(other))
