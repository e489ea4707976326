"""How many threads there are, and what they do while a file is read: the only place that says so.

The compiled engine deals the stars of one call out to its own threads (``csrc/cpu/thread_pool.hpp``). Where a stream of
blocks is worked on, :func:`in_order` lets each thread have a block of its own instead, and the engine is called with
one thread: nothing then waits for the slowest, and decompression runs beside the fit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.errors import InputError
from xpkern.memory import keep_memory

#: Environment variables that say how many threads to use where ``threads=`` is not given, the first one that is set.
#: The second is what numerical libraries and those who start them (Dask's workers, batch scripts) agree on.
VARIABLES = ("XPKERN_NUM_THREADS", "OMP_NUM_THREADS")

#: Cores that Slurm has given a task. Where it does not bind tasks to them, nothing else tells.
SLURM_VARIABLE = "SLURM_CPUS_PER_TASK"

#: How long [s] to wait for a thread that may never come back from reading: a pipe that nobody writes to.
_PATIENCE = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def number_of_threads(threads: int | None = None) -> int:
    """Threads to use.

    As asked; else as :data:`VARIABLES` say; else the cores this process may run on, and no more than
    :data:`SLURM_VARIABLE` says. More than there are cores are allowed. Results never depend on the number.

    Parameters
    ----------
    threads : int, optional

    Raises
    ------
    InputError
        If the number is not at least 1; it names the variable that holds it.
    """
    if threads is not None:
        return _checked(threads, "threads")
    for variable in VARIABLES:
        if text := os.environ.get(variable, "").strip():
            # OpenMP allows a list, one number for each level of nesting
            return _checked(text.split(",")[0] if variable.startswith("OMP") else text, variable)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if text := os.environ.get(SLURM_VARIABLE, "").strip():
        return min(cores, _checked(text, SLURM_VARIABLE))
    return cores


def _checked(wanted: int | str, source: str) -> int:
    try:
        number = int(wanted)
    except ValueError:
        number = 0
    if number < 1:
        raise InputError(f"{wanted!r} is not a number of threads", field=source)
    return number


def in_order(
    source: Iterator[Item], work: Callable[[Item], Result], *, threads: int, ahead: int | None = None
) -> Generator[Result, None, None]:
    """Apply ``work`` to the items of a stream in several threads, and yield the results in the order of the items.

    The caller is one of the threads: while it waits for a result it works on items itself, and with one thread nothing
    runs beside it. Items are taken one at a time, by whichever thread is free, and no further than a bounded number
    ahead of what has been yielded. Neither what is yielded nor which error ends it depends on ``threads``.

    Parameters
    ----------
    source : iterator
        Closed in the end, if it can be.
    work : callable
        Must not depend on other items.
    threads : int
    ahead : int, optional
        Results, finished or in the making, that may wait for the caller; twice the threads when not given.

    Yields
    ------
    Result

    Raises
    ------
    Exception
        What ``source`` or ``work`` raises, after the results of all items before. Ctrl-C is raised at once.
    """
    line = _Line(source, work, 2 * threads if ahead is None else ahead)
    helpers = [threading.Thread(target=line.help, name=f"xpkern-{i}", daemon=True) for i in range(1, threads)]
    of_blas = threadpool_limits(1)  # threads of BLAS, too, would be in the way of these, and of other processes
    keep_memory()  # items are blocks of stars, and each needs what the one before gave back
    try:
        for helper in helpers:
            helper.start()
        yield from line.results()
    finally:
        of_blas.restore_original_limits()
        line.end()
        for helper in helpers:
            if helper.ident is not None:
                helper.join(_PATIENCE if line.reader is helper else None)
        if line.reader is None and hasattr(source, "close"):
            source.close()


@dataclass(frozen=True)
class _Outcome(Generic[Result]):
    value: Result | None = None
    error: Exception | None = None


class _Line(Generic[Item, Result]):
    """Items of a stream, each with its number in line, and the outcomes that wait for their turn.

    Attributes
    ----------
    reader : Thread, optional
        The one that is asking the source for an item; the others wait, and can be woken.
    """

    def __init__(self, source: Iterator[Item], work: Callable[[Item], Result], ahead: int) -> None:
        self._source = source
        self._work = work
        self._ahead = ahead
        self._changed = threading.Condition()  # guards all below
        self._finished: dict[int, _Outcome[Result]] = {}
        self._taken = self._yielded = 0
        self._ended = False  # no more items are to be taken
        self.reader: threading.Thread | None = None

    def results(self) -> Iterator[Result]:
        """Yield the results in order; work on items as long as the next one is not there."""
        while True:
            with self._changed:
                while (outcome := self._finished.pop(self._yielded, None)) is None and not self._may_read():
                    if self._ended and self._yielded == self._taken:
                        return
                    self._changed.wait()
                if outcome is None:
                    self.reader = threading.current_thread()
                else:
                    self._yielded += 1
                    self._changed.notify_all()
            if outcome is None:
                self._work_on_one()
            elif outcome.error is not None:
                raise outcome.error
            else:
                yield outcome.value  # type: ignore[misc]  # Result may itself be optional

    def help(self) -> None:
        """Work on items until there are no more: what each thread but the caller's does."""
        while True:
            with self._changed:
                while not self._ended and not self._may_read():
                    self._changed.wait()
                if self._ended:
                    return
                self.reader = threading.current_thread()
            self._work_on_one()

    def end(self) -> None:
        """Let no thread take another item."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _may_read(self) -> bool:
        return not self._ended and self.reader is None and self._taken - self._yielded < self._ahead

    def _work_on_one(self) -> None:
        """Take an item, if there still is one, and work on it; this thread is the reader."""
        number = self._taken
        try:
            item = next(self._source)
        except StopIteration:
            self._leave_source(ended=True)
            return
        except Exception as error:
            self._finished[number] = _Outcome(error=error)
            self._leave_source(ended=True, taken=True)
            return
        except BaseException:
            self._leave_source(ended=True)
            raise
        self._leave_source(taken=True)
        try:
            outcome = _Outcome(self._work(item))
        except Exception as error:
            outcome = _Outcome(error=error)
        with self._changed:
            self._finished[number] = outcome
            self._ended = self._ended or outcome.error is not None
            self._changed.notify_all()

    def _leave_source(self, *, taken: bool = False, ended: bool = False) -> None:
        """Let the next thread read."""
        with self._changed:
            self.reader = None
            self._taken += taken
            self._ended = self._ended or ended
            self._changed.notify_all()
