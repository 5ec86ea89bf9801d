# SPDX-License-Identifier: BSD-2-Clause
"""The channel's patience: it ends with an app that does not read, does not speak, or dawdles."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from mediator.deployment import app_abi as abi
from mediator.deployment.app_abi import HEADER
from mediator.deployment.el0_app.channel import AppGone, PipeLink

SILENCE_MS = 200
QUICK = 5.0
"""Seconds that no refusal may take: far more than the silence, far less than a wait without end."""

Ends = tuple[PipeLink, int, int]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A link, and what the app reads and writes."""
    source, ours = os.pipe()
    theirs, sink = os.pipe()
    link = PipeLink(theirs, ours, SILENCE_MS)
    yield link, source, sink
    link.close()
    os.close(source)
    os.close(sink)


def said(payload: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    head = HEADER.pack(abi.SYSCALL, 1, flags, 7, size, 0, *range(8), 0)
    return head + payload


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_an_app_that_says_nothing(size: int, ends: Ends) -> None:
    link, _, _ = ends
    with pytest.raises(AppGone, match="silence"):
        link.exchange(bytes(size))


def test_an_app_that_says_half_a_message(ends: Ends) -> None:
    link, _, sink = ends
    os.write(sink, said(b"12345678")[:-1])
    with pytest.raises(AppGone, match="silence: not a whole turn"):
        link.exchange(b"go on")


def test_an_app_that_spells_its_turn(ends: Ends) -> None:
    link, _, sink = ends
    over = threading.Event()

    def drip() -> None:
        message = said(bytes(1000))
        for at in range(len(message)):
            if over.wait(SILENCE_MS / 1000 / 4):
                return
            os.write(sink, message[at : at + 1])

    app = threading.Thread(target=drip)
    app.start()
    before = time.monotonic()
    try:
        with pytest.raises(AppGone, match="silence: not a whole turn"):
            link.exchange(b"go on")
        assert time.monotonic() - before < QUICK
    finally:
        over.set()
        app.join()


def test_an_app_that_has_ended(ends: Ends) -> None:
    link, source, sink = ends
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, sink)
    with pytest.raises(AppGone, match="closed: the app has ended"):
        link.exchange(b"go on")
    os.dup2(null, source)
    os.close(null)
    with pytest.raises(AppGone, match="closed: Broken pipe"):
        link.exchange(b"go on")


def test_a_closed_link_stays_closed(ends: Ends) -> None:
    link, _, _ = ends
    link.close()
    link.close()
    with pytest.raises(AppGone, match="closed"):
        link.exchange(b"go on")


@pytest.mark.parametrize("first", [1, 95, 96, 100, 4000])
def test_a_turn_in_two_parts(first: int, ends: Ends) -> None:
    link, source, sink = ends
    turn = said(b"posted", abi.FLAG_POSTED) + said(bytes(range(256)) * 400)

    def app() -> None:
        os.read(source, 5)
        os.write(sink, turn[:first])
        time.sleep(0.02)
        for at in range(first, len(turn), 1 << 14):
            os.write(sink, turn[at : at + (1 << 14)])

    thread = threading.Thread(target=app)
    thread.start()
    posted, last = link.exchange(b"go on")
    thread.join()
    assert (posted.flags, posted.payload) == (abi.FLAG_POSTED, b"posted")
    assert (last.number, last.flags, last.entry, last.args) == (1, 0, 7, tuple(range(8)))
    assert last.payload == bytes(range(256)) * 400


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (said(length=abi.MAX_PAYLOAD + 1), "a payload of 16777217 bytes"),
        (said() + said(), "out of turn"),
        (said(flags=2), "flags 0x2"),
        (b"\x05" + said()[1:], "kind 5"),
        (said()[:88] + b"\x01" + bytes(7), "reserved"),
    ],
)
def test_what_no_app_may_say(turn: bytes, reason: str, ends: Ends) -> None:
    link, _, sink = ends
    os.write(sink, turn)
    with pytest.raises(AppGone, match=reason):
        link.exchange(b"go on")
