"""A survey run whose Dask scheduler dies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import write_settings

from xpkern.cli.run import RESUME
from xpkern.shards import Ledger, State, load_settings
from xpkern.survey.run import simulate_survey

pytest.importorskip("distributed", reason="the extra 'survey' is not installed")

FILES = 3

#: A scheduler of one worker in its own process: with that both are gone.
SCHEDULER = """
import asyncio, distributed
async def serve():
    async with distributed.LocalCluster(
        host="127.0.0.1", protocol="tcp", n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None,
        asynchronous=True,
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        await cluster.scheduler.finished()
asyncio.run(serve())
"""


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Settings of a run, of which each file takes seconds."""
    simulate_survey(tmp_path / "sim", FILES * 16, seed=3, truth="model", stars_per_file=16)
    return write_settings(tmp_path, engine="reference")


@pytest.fixture
def scheduler():
    with subprocess.Popen(
        [sys.executable, "-c", SCHEDULER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


@pytest.mark.parametrize("option", [[], ["--debug"]])
def test_a_scheduler_that_dies(survey, scheduler, option):
    """What is done stays, and how to go on is said in a line: more only with --debug."""
    process, address = scheduler
    command = [sys.executable, "-m", "xpkern", *option, "run", str(survey), "--dask", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if line.startswith("done: "):
                break
        process.kill()
        _, errors = run.communicate(timeout=60)
    assert Ledger.of(load_settings(survey)).count()[State.DONE] >= 1
    if option:
        assert "Traceback" in errors
        assert errors.splitlines()[-1].endswith(f"SchedulerLost: the Dask scheduler at {address} was lost")
    else:
        lost = re.escape(f"xpkern: the Dask scheduler at {address} was lost; ")
        assert re.fullmatch(rf"{lost}\d shards were made, \d files are left: the same command goes on\n", errors)
        assert run.returncode == RESUME
