"""Signals that ask to stop, even where Python forgets what their handler raises."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from xpkern.stopping import Interrupted, stopped_by_signals


class Thing:
    """What a weak reference can refer to."""


class Destroyed:
    """What asks to stop when it goes."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def in_a_weak_reference() -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del thing
    assert reference() is None


def in_a_destructor() -> None:
    Destroyed()


def in_a_callback_of_c() -> None:
    signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)

    def callback(number: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    signature(callback)(3)


def ask_and_wait(ask: Callable[[], None]) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe, open(writer, "wb"), stopped_by_signals():
        ask()  # raises nothing: that is forgotten
        pipe.read()


@pytest.mark.parametrize("ask", [in_a_weak_reference, in_a_destructor, in_a_callback_of_c])
def test_a_signal_in_a_callback_stops_what_then_waits_for_ever(ask, capfd):
    before, hook, threads = signal.getsignal(signal.SIGTERM), sys.unraisablehook, threading.active_count()
    with pytest.raises(Interrupted) as caught:
        ask_and_wait(ask)
    assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert sys.unraisablehook is hook
    assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_none_comes_after_the_end():
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with stopped_by_signals():
            in_a_weak_reference()
        threading.Event().wait(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == []


def test_other_exceptions_are_not_hidden(monkeypatch):
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(type(what.exc_value)))

    def fail(_: object) -> None:
        raise ValueError

    with stopped_by_signals():
        thing = Thing()
        reference = weakref.ref(thing, fail)
        del thing
    assert reference() is None
    assert told == [ValueError]


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
