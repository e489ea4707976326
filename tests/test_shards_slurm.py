"""Survey runs as jobs of a real Slurm on this machine alone; skipped where it is not installed, or this is not root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xpkern.cli import main
from xpkern.shards import Ledger, State, load_settings
from xpkern.survey.run import simulate_survey

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

#: A cluster of one node; the ports are not Slurm's own, so that a real one is left alone.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The daemons of a cluster of one node, and the environment of its commands."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no Slurm that could be started here ({', '.join(missing) or 'not root'})")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder))
    munge = subprocess.run(["pgrep", "-x", "munged"], capture_output=True, check=False).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        if not munge:
            Path("/run/munge").mkdir(exist_ok=True)
            subprocess.run(["munged", "--force"], check=True, capture_output=True)
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon], check=True, capture_output=True)
        try:
            wait_for(lambda: "idle" in command("sinfo", "--noheader"), 30)
            yield
        finally:
            for daemon in ("slurmd", "slurmctld"):
                os.kill(int((folder / f"{daemon}.pid").read_text()), 15)
            if not munge:
                subprocess.run(["pkill", "-x", "munged"], check=True)


def command(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, command("squeue") + command("sinfo", "-R")
        time.sleep(0.2)


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Settings of a run of four files, with an engine that takes its time."""
    folder = tmp_path / "100 % été"
    folder.mkdir()
    simulate_survey(folder / "sim", 160, seed=4, truth="model", stars_per_file=40)
    path = folder / "survey.toml"
    path.write_text('spectra = "sim/Xp*.csv.gz"\noutput = "shards"\nengine = "reference"\nthreads = 1\n')
    return path


def submit(survey: Path, tasks: int, **directives: str) -> str:
    script = survey.parent / "job.sh"
    assert main(["run", str(survey), "--write-sbatch", str(script), "--tasks", str(tasks)]) == 0
    options = [f"--{name.replace('_', '-')}={value}" for name, value in directives.items()]
    return command("sbatch", "--parsable", "--cpus-per-task=1", *options, str(script)).strip()


def count(survey: Path, state: State) -> int:
    return Ledger.of(load_settings(survey)).count()[state]


def goes_on_when_released(survey: Path, job: str) -> None:
    """Let a job that was put back into the queue run again: by itself Slurm would hold it back for two minutes."""
    wait_for(lambda: "PENDING" in command("squeue", "--noheader", "--format=%T"), 30)
    time.sleep(3)  # its first run has to be forgotten by the node
    command("scontrol", "update", f"JobId={job}_1", "StartTime=now")
    wait_for(lambda: count(survey, State.DONE) == 4, 120)


def test_an_array_makes_every_shard_once(slurm, survey):
    submit(survey, 2)
    wait_for(lambda: count(survey, State.DONE) == 4, 120)
    wait_for(lambda: not command("squeue", "--noheader"), 30)
    logs = sorted((survey.parent / "shards" / "log").glob("*.out"))
    assert len(logs) == 2
    for part, log in enumerate(logs, 1):
        assert f"2 of 2 files to do, part {part} of 2" in log.read_text()


def test_a_job_that_was_warned_of_its_time_limit_goes_on_later(slurm, survey):
    job = submit(survey, 1)
    wait_for(lambda: count(survey, State.DONE) >= 1, 60)
    command("scancel", "--signal=USR1", "--batch", job)  # what Slurm sends before the time is up
    log = survey.parent / "shards" / "log" / f"slurm-{job}_1.out"
    wait_for(lambda: "stopped by SIGTERM" in log.read_text(), 30)
    assert 1 <= count(survey, State.DONE) < 4
    goes_on_when_released(survey, job)
    assert "Restarts=1" in command("scontrol", "show", "job", job)


def test_the_time_limit_itself(slurm, survey):
    # a minute is the least; the warning comes within some ten seconds of it, in a job that would take longer
    job = submit(survey, 1, time="1", signal="B:USR1@50")

    def was_requeued() -> bool:  # it may have been warned before it had begun, and then says nothing
        return "Restarts=1" in command("scontrol", "show", "job", job)

    wait_for(lambda: count(survey, State.DONE) == 4 or was_requeued(), 90)
    if count(survey, State.DONE) < 4:
        goes_on_when_released(survey, job)


def test_a_cancelled_job_leaves_what_is_done(slurm, survey):
    job = submit(survey, 1)
    wait_for(lambda: count(survey, State.DONE) >= 1, 60)
    command("scancel", job)
    wait_for(lambda: not command("squeue", "--noheader"), 60)
    done = count(survey, State.DONE)
    assert 1 <= done < 4
    submit(survey, 1)
    wait_for(lambda: count(survey, State.DONE) == 4, 120)
