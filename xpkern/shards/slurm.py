"""A batch script for Slurm: an array of jobs, each with its part of the files."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

from xpkern.catalog.pending import PendingFile
from xpkern.errors import InputError
from xpkern.shards.settings import RunSettings

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


def write_batch_script(script: Path, settings: RunSettings, tasks: int) -> None:
    """Write a script for ``sbatch``.

    Parameters
    ----------
    script : Path
        One that has been edited is left as it is.
    settings : RunSettings
    tasks : int
        Jobs of the array, far fewer than there are files.

    Raises
    ------
    InputError
        If there is another script of that name, or its folder does not exist.
    """
    command = [sys.executable, "-m", "xpkern", "run", str(Path(settings.file).resolve())]
    log = settings.output_folder / "log"
    text = _SCRIPT.format(
        script=shlex.quote(str(script)),
        tasks=tasks,
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
    log.mkdir(parents=True, exist_ok=True)
