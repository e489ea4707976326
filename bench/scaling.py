"""What more threads bring, and that they change nothing."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import xpkern as xk
from bench.coefficients import calibration_of
from bench.fitting import Fitter
from bench.harness import ALLOWED_CPUS, Contestant, compare, on_cpus
from bench.result import Result


def bench_threads(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Fit and calibration by every number of threads this machine can run, against one thread."""
    engine = xk.get_engine(engine_name)
    fitter = Fitter(engine, n_stars)
    tasks = {
        "start + fit + Fisher": lambda threads: fitter.fit(fitter.grid, threads=threads),
        "calibration": lambda threads: calibration_of(engine, n_stars, threads)(),
    }
    duels, extra = [], {"stars": n_stars, "CPUs": len(ALLOWED_CPUS), "cores of the machine": os.cpu_count()}
    with on_cpus(ALLOWED_CPUS):
        for name, task in tasks.items():
            expected = task(1)

            def contestant(threads: int, name: str = name, task: Any = task) -> Contestant:
                plural = "s" if threads > 1 else ""
                return Contestant(f"{name}, {threads} thread{plural}", lambda: task(threads), n_stars)

            for threads in range(1, len(ALLOWED_CPUS) + 1):
                if threads > 1:
                    duel = compare(contestant(threads), contestant(1), rounds=rounds)
                    duels.append(duel)
                    extra[f"{duel.ours.name}: speed-up over one thread, per thread"] = duel.ratio / threads
                extra[f"{name}, {threads} threads: same bytes as one"] = same_bytes(task(threads), expected)
            extra[f"{name}, {2 * len(ALLOWED_CPUS) + 1} threads: same bytes as one"] = same_bytes(
                task(2 * len(ALLOWED_CPUS) + 1), expected
            )
    return Result("threads", "stars/s", duels, None, extra)


def same_bytes(found: Any, expected: Any) -> bool:
    """Whether every array of two results has the same bytes."""
    pairs = ((value, vars(expected)[name]) for name, value in vars(found).items())
    return all(np.asarray(one).tobytes() == np.asarray(other).tobytes() for one, other in pairs)
