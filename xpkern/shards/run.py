"""A survey run: the units that are left, dealt out, tried, and told about."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from xpkern.catalog.pending import naming
from xpkern.errors import InputError
from xpkern.shards.ledger import Ledger, State, not_applied_to, state_of
from xpkern.shards.settings import RunSettings
from xpkern.shards.work import Unit, prepare_folder, record_failure
from xpkern.shards.workers import Outcome, attempts_in_turn, attempts_side_by_side, process_number
from xpkern.threads import number_of_threads

#: How long [s] to wait before a unit is tried again after its first failure; twice as long after each further one.
FIRST_PAUSE = 1.0

#: Environment variables by which Slurm numbers the tasks of an array (the number, the lowest and the highest one, and
#: how many), and those that srun starts: SLURM_NTASKS is there without srun, too, where one process is all there is.
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@dataclass
class RunSummary:
    """What a run did.

    Attributes
    ----------
    done : list of Unit
        Those that this run made shards of.
    failed : dict of str to str
        What went wrong, by the name of the file of spectra; failures of earlier runs that were not tried again count.
    elsewhere : list of Unit
        Those that another process was making.
    rows, fitted : int
        Stars in what this run made.
    not_applied : Counter of str
        For how many shards of those that this run made a cut or the zero point could not be applied, by which and why.
    """

    done: list[Unit] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: list[Unit] = field(default_factory=list)
    rows: int = 0
    fitted: int = 0
    not_applied: Counter[str] = field(default_factory=Counter)


def run_survey(
    settings: RunSettings,
    *,
    part: int = 1,
    parts: int = 1,
    processes: int = 1,
    again: tuple[State, ...] = (),
    on_start: Callable[[Ledger, list[Unit]], object] | None = None,
    on_progress: Callable[[int], object] | None = None,
    on_unit: Callable[[Outcome], object] | None = None,
    attempts: Callable[..., Generator[Outcome, None, None]] | None = None,
    summary: RunSummary | None = None,
) -> RunSummary:
    """Make the shards that are left.

    Parameters
    ----------
    settings : RunSettings
    part, parts : int
        Only every ``parts``-th file, from the ``part``-th on, counted from 1, in the order of their names.
    processes : int
        How many files are worked on side by side; they share the threads, unless ``settings.threads`` says otherwise.
    again : tuple of State
        ``State.FAILED``: also try again what has failed. ``State.CHANGED``: also make anew what was made by other
        settings, another model or version, or of another input.
    on_start : callable, optional
        Called with how the run stands and the units to do.
    on_progress : callable, optional
        Called with the number of stars of each finished block.
    on_unit : callable, optional
        Called with what came of each unit, in the end.
    attempts : callable, optional
        How units are tried, as :func:`xpkern.shards.workers.attempts_side_by_side`: called with units, the digest of
        the settings and ``on_progress``.
    summary : RunSummary, optional
        Filled while the run goes on, for whoever interrupts it.

    Returns
    -------
    RunSummary

    Raises
    ------
    InputError
        If the settings are wrong, a file of spectra, a table or the model is not there, or there are shards of other
        settings and ``again`` does not have ``State.CHANGED``: old and new ones are never mixed silently.
    """
    if settings.threads is None and processes > 1:
        settings = replace(settings, threads=max(1, number_of_threads() // processes))
    settings.require_tables()
    folder = prepare_folder(settings)
    ledger = Ledger.of(settings, part=part, parts=parts)
    changed = ledger.of_state(State.CHANGED)
    if changed and State.CHANGED not in again:
        raise InputError(
            f"{len(changed)} of {len(ledger.units)} shards, {changed[0].name} the first, were made by other settings, "
            "another model or version of xpkern, or of another input: xpkern rerun --changed makes them anew, another "
            "output keeps them",
            file=str(folder),
        )
    summary = RunSummary() if summary is None else summary
    to_do = ledger.of_state(State.LEFT, *again)
    for unit, record in zip(ledger.units, ledger.records, strict=True):
        if unit not in to_do and record is not None and "error" in record:
            summary.failed[unit.spectra.name] = record["error"]
    if on_start is not None:
        on_start(ledger, to_do)
    progress = on_progress or (lambda stars: None)
    tried: dict[str, int] = {}
    pause = FIRST_PAUSE
    with _log(folder) as log:
        while to_do:
            outcomes: Generator[Outcome, None, None]
            if attempts is not None:
                outcomes = attempts(to_do, ledger.settings_digest, progress)
            elif processes == 1:
                outcomes = attempts_in_turn(to_do, ledger.settings_digest, progress)
            else:
                outcomes = attempts_side_by_side(to_do, ledger.settings_digest, processes, progress)
            again_later = []
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    unit = outcome.unit
                    tried[unit.name] = tried.get(unit.name, 0) + 1
                    log(outcome, tried[unit.name])
                    if outcome.error and not outcome.lasting and tried[unit.name] < settings.attempts:
                        again_later.append(unit)
                        continue
                    if outcome.elsewhere and state_of(unit, ledger.settings_digest)[0] is not State.DONE:
                        summary.elsewhere.append(unit)
                    if outcome.error:
                        record_failure(unit, ledger.settings_digest, outcome.error, tried[unit.name])
                        summary.failed[unit.spectra.name] = outcome.error
                    if outcome.record is not None:
                        summary.done.append(unit)
                        summary.rows += outcome.record["rows"]
                        summary.fitted += outcome.record["fitted"]
                        summary.not_applied.update(not_applied_to(outcome.record))
                    if on_unit is not None:
                        on_unit(outcome)
            to_do = again_later
            if to_do:
                time.sleep(pause)
                pause *= 2
    return summary


def part_of_batch_job() -> tuple[int, int]:
    """Which part of the files this task of a Slurm job has, and of how many: (1, 1) outside of one.

    An array's tasks divide the files, and the tasks that srun starts divide those again.

    Raises
    ------
    InputError
        If the numbers of the array's tasks have gaps, so that they do not tell a part: files would be left out.
    """
    environment = os.environ
    part, parts = 1, 1
    if all(environment.get(name, "").isdigit() for name in _ARRAY):
        number, lowest, highest, parts = (int(environment[name]) for name in _ARRAY)
        text = environment.get("SLURM_ARRAY_TASK_STEP", "")
        numbers = range(lowest, highest + 1, int(text) if text.isdigit() and int(text) else 1)
        if len(numbers) != parts or number not in numbers or numbers[-1] != highest:
            raise InputError(
                f"the Slurm array's {parts} tasks from {lowest} to {highest}, this one {number}, are not numbered in "
                "even steps, so that no part of the files follows from the number: give --part K/N"
            )
        part = numbers.index(number) + 1
    if all(environment.get(name, "").isdigit() for name in _STEP):
        rank, ranks = (int(environment[name]) for name in _STEP)
        if rank >= ranks:
            raise InputError(f"Slurm's task {rank}, counted from 0, is none of the step's {ranks}: give --part K/N")
        part, parts = (part - 1) * ranks + rank + 1, parts * ranks
    return part, parts


@contextlib.contextmanager
def _log(folder: Path) -> Generator[Callable[[Outcome, int], None], None, None]:
    """A file of JSON lines, one for each attempt: the only place that knows times, hosts and processes."""
    path = folder / "log" / f"{process_number()}.jsonl"
    stream: TextIO | None = None
    started = time.time()

    def write(outcome: Outcome, attempt: int) -> None:
        nonlocal stream
        if stream is None:
            path.parent.mkdir(exist_ok=True)
            stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed below
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "unix_time": round(time.time(), 3),
            "run_started": round(started, 3),
            "shard": outcome.unit.name,
            "outcome": "elsewhere" if outcome.elsewhere else "failed" if outcome.error else "done",
            "attempt": attempt,
            "seconds": outcome.seconds,
            "memory_mb": outcome.memory,
        }
        if outcome.error:
            line["error"] = outcome.error
        if outcome.record is not None:
            line |= {name: outcome.record[name] for name in ("rows", "fitted", "input_bytes")}
            if lacking := not_applied_to(outcome.record):
                line["not_applied"] = lacking
        with naming(path):
            stream.write(json.dumps(line) + "\n")
            stream.flush()

    try:
        yield write
    finally:
        if stream is not None:
            with contextlib.suppress(OSError):  # what a full disk has refused is not written now either
                stream.close()
