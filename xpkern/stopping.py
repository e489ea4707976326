"""What Ctrl-C and SIGTERM do to a command and its workers: their handler raises, and again where that was lost.

What a handler raises while Python is in a callback of its own (of a weak reference, a destructor, a C library) is
printed and forgotten. A command that then waits for a pipe would wait for ever.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: How long [s] to wait before the signal is sent again: the callback is over by then, and nobody has waited.
_PATIENCE = 0.05


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop by a signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C, and the signal that batch systems send before they kill, end what is done within.

    One that is ignored stays ignored. Only the main thread can ask for this.

    Raises
    ------
    Interrupted
        When such a signal has come.
    """
    wanted = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    reminders: list[threading.Timer] = []
    main_thread, other_hook = threading.get_ident(), sys.unraisablehook

    def hook(lost: Any) -> None:
        if not isinstance(lost.exc_value, Interrupted):
            other_hook(lost)
            return
        reminder = threading.Timer(_PATIENCE, signal.pthread_kill, (main_thread, lost.exc_value.number))
        reminder.daemon = True
        reminders.append(reminder)
        reminder.start()

    previous = {number: signal.signal(number, _interrupt) for number in wanted}
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = other_hook
        try:
            for reminder in reminders:
                reminder.cancel()
                reminder.join()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
