"""What Ctrl-C and SIGTERM do: their handler raises, and a long task asks whether that was lost.

An exception that a handler raises while Python is in a callback of its own (of a weak reference, say, or a destructor)
is printed and forgotten.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_received: list[int] = []


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop by a signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal that asks to stop."""
    _received.append(number)
    raise Interrupted(number)


def forget_signals() -> None:
    """Begin anew: nobody has asked to stop."""
    _received.clear()


def stop_if_asked() -> None:
    """Raise :class:`Interrupted` if a signal asked to stop, whatever has become of what its handler raised."""
    if _received:
        raise Interrupted(_received[0])


def stopping(progress: Callable[[int], object]) -> Callable[[int], object]:
    """A function that is told of progress, and stops if it was asked to."""

    def told(count: int) -> None:
        stop_if_asked()
        progress(count)

    return told
