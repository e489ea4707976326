"""How fast a survey is simulated, to arrays and to files, and what memory it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.harness import ALLOWED_CPUS, Contestant, compare, measure_once, null_run, on_cpus
from bench.peers.numpy_least_norm import least_norm_coefficients
from bench.result import Result
from bench.stars import SEED
from xpkern.grid import N_XP
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel
from xpkern.observe.synthesis import SpectrumSynthesis
from xpkern.survey.run import load_truth, simulate_survey
from xpkern.survey.simulator import BLOCK_ROWS, SurveySimulator
from xpkern.survey.truth import Truth
from xpkern.threads import in_order
from xpkern.train.packages import default_cache

#: Where true spectra come from: the model atmospheres are fetched if they are not there (53 MB).
TRUTH = "kurucz"

#: Spectra that the peer is given: each takes it a millisecond.
FEW_STARS = 256

#: Part of the sources that is written as csv.gz, which takes ten times as long as HDF5.
CSV_SHARE = 2

#: Lengths of the surveys whose memory is compared, in multiples of the benchmark's own.
LENGTHS = (1, 4)

#: What a fresh Python does to tell its own high-water mark [kB].
CHILD = """
import re, sys
from xpkern.survey.run import simulate_survey
folder, n, truth, form = sys.argv[1:]
simulate_survey(folder, int(n), truth=truth, format=form, threads=2)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def bench_simulate(n_stars: int, rounds: int, engine_name: str) -> Result:
    """A survey's sources and observations, as arrays and in files; spectra to coefficients against one solve a star."""
    truth = load_truth(TRUTH, default_cache())
    extra: dict[str, Any] = {"truth": truth.name, "sources of a block": BLOCK_ROWS}
    n_blocks = max(1, n_stars // BLOCK_ROWS)
    simulator = SurveySimulator(truth, seed=SEED)

    def arrays(threads: int) -> None:
        for _ in in_order(iter(range(n_blocks)), simulator.block, threads=threads, ahead=threads):
            pass

    sources = n_blocks * BLOCK_ROWS
    one = Contestant("survey to arrays, 1 thread", lambda: arrays(1), sources)
    n_cpus = len(ALLOWED_CPUS)
    duels = [compare(*_observers(simulator), rounds=rounds)]
    if n_cpus > 1:
        with on_cpus(ALLOWED_CPUS):
            all_cpus = Contestant(f"survey to arrays, {n_cpus} threads", lambda: arrays(n_cpus), sources)
            duels.append(compare(all_cpus, one, rounds=rounds, repeats=1))
        with on_cpus(ALLOWED_CPUS):
            rate = measure_once(all_cpus, 3, clock=time.process_time)
        extra[f"survey to arrays, {n_cpus} threads: CPU time [us a source]"] = 1e6 / rate
    for name, microseconds in _parts(simulator).items():
        extra[f"{name} alone, CPU time [us a source]"] = microseconds
    with TemporaryDirectory(prefix="xpkern-bench-") as scratch, on_cpus(ALLOWED_CPUS):
        folder = Path(scratch) / "survey"
        for form, count in (("hdf5", sources), ("csv", max(1, sources // CSV_SHARE))):
            extra[f"survey in files, {form}, {n_cpus} threads [sources/s]"] = _rate_on_disk(folder, count, truth, form)
            size = sum(path.stat().st_size for path in folder.glob("Xp*"))
            extra[f"size of a source's spectrum, {form} [kB]"] = size / count / 1000
            shutil.rmtree(folder)
            for times in LENGTHS:
                extra[f"peak memory, {form}, {times * count:,} sources [MB]"] = _peak_memory(
                    folder, times * count, truth.name, form
                )
                shutil.rmtree(folder)
    return Result("simulate", "sources/s", duels, null_run(one, rounds=rounds, repeats=1), extra)


def _observers(simulator: SurveySimulator) -> Iterator[Contestant]:
    """Ours and the peer: spectra to coefficients."""
    calibration, errors, rng = Calibration.default(), ErrorModel.default(), np.random.default_rng(SEED)
    flux = simulator.population.draw(BLOCK_ROWS, rng).flux[:, :N_XP]
    synthesis, sides = SpectrumSynthesis(calibration, errors), np.ones((2, BLOCK_ROWS))
    yield Contestant(
        "spectra to coefficients, errors, correlations", lambda: synthesis.observe(flux, sides, rng), BLOCK_ROWS
    )
    few = flux[:FEW_STARS]
    yield Contestant(
        "NumPy and LAPACK: least norm in each star's own covariance",
        lambda: least_norm_coefficients(calibration, errors, few, rng),
        FEW_STARS,
    )


def _parts(simulator: SurveySimulator) -> dict[str, float]:
    """Time [us] that a part of the work takes the CPU for a source when done alone, whoever else uses it meanwhile."""
    rng = np.random.default_rng(SEED)
    sources = simulator.population.draw(BLOCK_ROWS, rng)
    synthesis, sides = SpectrumSynthesis(Calibration.default(), ErrorModel.default()), np.ones((2, BLOCK_ROWS))
    flux = sources.flux[:, :N_XP]
    parts = {
        "true sources": lambda: simulator.population.draw(BLOCK_ROWS, rng),
        "coefficients": lambda: synthesis.observe(flux, sides, rng),
        "whole block": lambda: simulator.block(0),
    }
    contestants = [Contestant(name, run, BLOCK_ROWS) for name, run in parts.items()]
    return {one.name: 1e6 / measure_once(one, 5, clock=time.process_time) for one in contestants}


def _rate_on_disk(folder: Path, count: int, truth: Truth, form: str) -> float:
    started = time.perf_counter()
    simulate_survey(folder, count, truth=truth, format=form, threads=len(ALLOWED_CPUS))
    return count / (time.perf_counter() - started)


def _peak_memory(folder: Path, count: int, truth: str, form: str) -> float:
    """High-water mark of the resident memory [MB] of a process of its own that simulates a survey."""
    checkout = str(Path(__file__).parents[1])
    search = os.pathsep.join([checkout, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(count), truth, form],
        env=os.environ | {"PYTHONPATH": search},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(child.stdout.split()[-1]) * 1024e-6
