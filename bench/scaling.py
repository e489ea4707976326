"""What more threads bring, and that they change nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import xpkern as xk
from bench.coefficients import calibration_of
from bench.fitting import Fitter
from bench.harness import ALLOWED_CPUS, Contestant, compare, on_cpus
from bench.result import Result
from xpkern.engine import _cpu
from xpkern.engine.cpu import instruction_sets

#: Multiply-adds of each thread of the roof: long enough that starting a thread costs nothing.
COUNT = 600_000_000


def bench_threads(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Fit and calibration by more and more threads against one, beside what the machine gives to bare arithmetic."""
    fitter = Fitter(xk.get_engine(engine_name), n_stars)
    calibrate = calibration_of(fitter.engine, n_stars)
    tasks: dict[str, Callable[[int], Any]] = {
        "start + fit + Fisher": lambda threads: fitter.fit(fitter.grid, threads=threads),
        "calibration": lambda threads: calibrate(threads=threads),
    }
    n_cpus = len(ALLOWED_CPUS)
    duels, extra = [], {"stars": n_stars, "CPUs": n_cpus}
    with on_cpus(ALLOWED_CPUS):
        for name, task in tasks.items():
            one_thread, expected = _with_threads(name, task, 1, n_stars), task(1)
            for threads in thread_numbers(n_cpus):
                duel = compare(_with_threads(name, task, threads, n_stars), one_thread, rounds=rounds)
                duels.append(duel)
                extra[f"{duel.ours.name}: speed-up over 1 thread, per thread"] = duel.ratio / threads
            for threads in (*thread_numbers(n_cpus), 2 * n_cpus + 1):
                extra[f"{name}, {threads} threads: same bytes as 1"] = same_bytes(task(threads), expected)
        for threads in thread_numbers(n_cpus):
            extra[f"multiply-adds on registers, {threads} threads: speed-up, per thread"] = _roof(threads, rounds)
    return Result("threads", "stars/s", duels, None, extra)


def thread_numbers(n_cpus: int) -> list[int]:
    """Numbers of threads that are tried: 2, 4, 8, ... and every CPU."""
    doubled = [2**power for power in range(1, n_cpus.bit_length()) if 2**power < n_cpus]
    return [*doubled, n_cpus] if n_cpus > 1 else []


def same_bytes(found: Any, expected: Any) -> bool:
    """Whether every array of two results has the same bytes."""
    pairs = ((value, vars(expected)[name]) for name, value in vars(found).items())
    return all(np.asarray(one).tobytes() == np.asarray(other).tobytes() for one, other in pairs)


def _with_threads(name: str, task: Callable[[int], Any], threads: int, n_stars: int) -> Contestant:
    return Contestant(f"{name}, {threads} thread{'s' if threads > 1 else ''}", lambda: task(threads), n_stars)


def _roof(threads: int, rounds: int) -> float:
    """Speed-up per thread of arithmetic that touches no memory: CPUs that share a core or its power show here."""
    isa = instruction_sets()[0]
    with ThreadPoolExecutor(threads) as pool:

        def run(workers: int) -> list[None]:
            return list(pool.map(lambda _: _cpu.multiply_add_peak(isa, COUNT), range(workers)))

        together = Contestant("all", lambda: run(threads), threads)
        return compare(together, Contestant("one", lambda: run(1), 1), rounds=rounds).ratio / threads
