"""A batch script for Slurm: an array of jobs, each with its part of the files."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Generator
from pathlib import Path

from xpkern.catalog.pending import PendingFile
from xpkern.errors import InputError
from xpkern.shards.ledger import Ledger
from xpkern.shards.run import run_survey
from xpkern.shards.settings import RunSettings
from xpkern.shards.workers import Outcome

#: Seconds before a job's time limit at which Slurm warns it.
_WARNING = 120

_SCRIPT = """\
#!/bin/bash
# Made by xpkern run --write-sbatch; edit as your cluster wants it, then: sbatch {script}
#SBATCH --job-name=xpkern
#SBATCH --array=1-{tasks}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{log}/slurm-%A_%a.out"
#
# On GPUs: #SBATCH --gpus-per-task=1, --cpus-per-task=4, and engine = "cuda" in the settings.
#
# Each task of the array finds out its part of the files by itself. Before the time is up Slurm sends SIGUSR1: xpkern
# stops with the exit code {resume} (or dies of the signal, if it has not yet begun), and the task goes back into the
# queue, to go on where it was. One that is cancelled does not.

trap 'warned=yes; kill -TERM "$child"' USR1
{command} &
child=$!
wait "$child"
code=$?
if [ -n "$warned" ]; then
    wait "$child" # the first waiting ended with the signal
    code=$?
    if [ "$code" -eq {resume} ] || [ "$code" -eq {died} ]; then
        scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
    fi
fi
exit "$code"
"""


def write_batch_script(script: Path, settings: RunSettings, tasks: int) -> int:
    """Write a script for ``sbatch``, and make the folder of its jobs' output.

    Parameters
    ----------
    script : Path
        One that has been edited is left as it is.
    settings : RunSettings
    tasks : int
        Jobs of the array, far fewer than there are files; no more than these are taken.

    Returns
    -------
    int
        Jobs of the array that was written.

    Raises
    ------
    InputError
        If a run would be refused, there is another script of that name, or its folder does not exist. Nothing is made
        then, as if a folder cannot be.
    """
    folder = settings.output_folder
    log = folder / "log"
    made = [path for path in (log, folder) if not path.exists()]
    try:
        jobs = min(tasks, _files_of_a_run(settings))
        log.mkdir(exist_ok=True)
        _write(script, settings, log, jobs)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # it was not made, or a run that began meanwhile is at work in it
                path.rmdir()
        raise
    return jobs


def _files_of_a_run(settings: RunSettings) -> int:
    """How many files a run of these settings has; an InputError if it would be refused."""
    files = 0

    def count(ledger: Ledger, _: object) -> None:
        nonlocal files
        files = len(ledger.units)

    def no_attempt(*_: object) -> Generator[Outcome, None, None]:
        yield from ()

    run_survey(settings, on_start=count, attempts=no_attempt)
    return files


def _write(script: Path, settings: RunSettings, log: Path, jobs: int) -> None:
    command = [sys.executable, "-m", "xpkern", "run", str(Path(settings.file).resolve())]
    text = _SCRIPT.format(
        script=shlex.quote(str(script)),
        tasks=jobs,
        warning=_WARNING,
        log=str(log).replace("%", "%%"),
        resume=os.EX_TEMPFAIL,
        died=128 + signal.SIGTERM,
        command=shlex.join(command),
    )
    if script.is_file() and script.read_text(encoding="utf-8", errors="replace") != text:
        raise InputError("exists, and may have been edited: give another name", file=str(script))
    with PendingFile(script) as partial:
        partial.write_text(text, encoding="utf-8")
        partial.chmod(0o755)
