"""Signals that ask to stop, even where Python forgets what their handler raises."""

from __future__ import annotations

import os
import signal
import sys
import weakref

import pytest

from xpkern.cli import stopping


class Thing:
    """What a weak reference can refer to."""


def test_a_signal_in_a_callback_of_python_stops_all_the_same(monkeypatch):
    forgotten: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: forgotten.append(what.exc_value))
    previous = signal.signal(signal.SIGTERM, stopping.interrupt)
    told: list[int] = []
    progress = stopping.stopping(told.append)
    try:
        progress(1)
        thing = Thing()
        reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        del thing
        assert reference() is None
        assert [type(error) for error in forgotten] == [stopping.Interrupted]
        with pytest.raises(stopping.Interrupted) as caught:
            progress(2)
        assert caught.value.number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, previous)
        stopping.forget_signals()
    progress(3)
    assert told == [1, 3]
