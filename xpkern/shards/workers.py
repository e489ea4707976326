"""Processes that make shards side by side; one that dies takes nothing with it but its unit's attempt."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from xpkern.errors import InputError, XpkernError
from xpkern.processes import server_of_processes
from xpkern.shards.ledger import State, state_of
from xpkern.shards.work import Unit, claimed, make_shard
from xpkern.stopping import stopped_by_signals


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt at a unit.

    Attributes
    ----------
    unit : Unit
    record : dict, optional
        What the marker holds, if the shard is done.
    error : str
        What went wrong; empty if nothing.
    lasting : bool
        Whether it would go wrong again: the fault is in the input.
    elsewhere : bool
        Whether another process has the unit at the moment, or has made its shard.
    seconds : float
        How long it took.
    memory : int
        Most memory [MB] that the process ever had.
    """

    unit: Unit
    record: dict[str, Any] | None = None
    error: str = ""
    lasting: bool = False
    elsewhere: bool = False
    seconds: float = 0.0
    memory: int = 0


def attempt(unit: Unit, settings_digest: str, on_progress: Callable[[int], object] | None = None) -> Outcome:
    """Make a shard; whatever goes wrong with it comes back as an outcome."""
    started = time.perf_counter()
    outcome = _attempt(unit, settings_digest, on_progress)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return replace(outcome, seconds=round(time.perf_counter() - started, 3), memory=memory)


def _attempt(unit: Unit, settings_digest: str, on_progress: Callable[[int], object] | None) -> Outcome:
    try:
        with claimed(unit) as ours:
            # whoever held it until now may have made it: to make it again would take it away for a while
            if not ours or state_of(unit, settings_digest)[0] is State.DONE:
                return Outcome(unit, elsewhere=True)
            return Outcome(unit, make_shard(unit, settings_digest, on_progress))
    except InputError as error:
        return Outcome(unit, error=str(error), lasting=True)
    except XpkernError as error:
        return Outcome(unit, error=str(error))
    except OSError as error:
        parts = (error.filename, error.strerror or str(error))
        return Outcome(unit, error=": ".join(str(part) for part in parts if part))
    except MemoryError as error:
        return Outcome(unit, error=f"out of memory: {error}")
    except Exception as error:
        return Outcome(unit, error=f"unexpected {type(error).__name__}: {error}")


def attempts_in_turn(
    units: Sequence[Unit], settings_digest: str, on_progress: Callable[[int], object]
) -> Generator[Outcome, None, None]:
    """Attempt units one after the other in this process."""
    for unit in units:
        yield attempt(unit, settings_digest, on_progress)


def attempts_side_by_side(
    units: Sequence[Unit], settings_digest: str, processes: int, on_progress: Callable[[int], object]
) -> Generator[Outcome, None, None]:
    """Attempt units in several processes, each with the next one as soon as it is free.

    A process that dies (killed for memory, say) costs its unit an attempt and is replaced. When the iteration ends
    early, the processes are asked to stop: they keep nothing of their unit.
    """
    waiting = list(reversed(units))
    workers = [_Worker(settings_digest) for _ in range(min(processes, len(units)))]
    try:
        for worker in workers:
            worker.start(waiting.pop())
        while any(worker.unit is not None for worker in workers):
            busy = {worker.connection: worker for worker in workers if worker.unit is not None}
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                answer = worker.answer()
                if isinstance(answer, int):
                    on_progress(answer)
                    continue
                if answer.error and not worker.process.is_alive():
                    workers[workers.index(worker)] = worker = _Worker(settings_digest)
                if waiting:
                    worker.start(waiting.pop())
                yield answer
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process, and the unit it has."""

    def __init__(self, settings_digest: str) -> None:
        context = server_of_processes()
        self.connection, theirs = context.Pipe()
        self.unit: Unit | None = None
        self.process = context.Process(target=_work, args=(theirs, settings_digest, dict(os.environ)), daemon=True)
        self.process.start()
        theirs.close()

    def start(self, unit: Unit) -> None:
        self.unit = unit
        with contextlib.suppress(ConnectionError):  # it is dead already: the answer says so
            self.connection.send(unit)

    def answer(self) -> int | Outcome:
        """Stars that are done, or what came of the unit."""
        assert self.unit is not None
        try:
            answer: int | Outcome = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            answer = Outcome(self.unit, error=f"its process {how}")
        if isinstance(answer, Outcome):
            self.unit = None
        return answer

    def stop(self) -> None:
        self.connection.close()
        if self.process.is_alive() and self.unit is not None:
            self.process.terminate()
        self.process.join()


def _work(connection: Connection, settings_digest: str, environment: dict[str, str]) -> None:
    """Make shards of the units that come, until no more can come."""
    os.environ.clear()
    os.environ.update(environment)  # that of now, not of when the server was started
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one who deals the units out decides
    try:
        with stopped_by_signals():
            while True:
                unit = connection.recv()
                connection.send(attempt(unit, settings_digest, connection.send))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return
    finally:
        connection.close()


def process_number() -> str:
    """What tells this process from all others of a cluster, for names of files."""
    return f"{os.uname().nodename}-{os.getpid()}"
