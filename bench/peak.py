"""The roof: the measured rate of fused multiply-adds of one core."""

from __future__ import annotations

import time

from xpkern.engine import _cpu

#: Multiply-adds of one run: some 10 ms with the widest registers, so that starting the clock costs nothing.
COUNT = 600_000_000

#: Runs of which the fastest counts.
RUNS = 15


def fma_peak(isa: str, count: int = COUNT, runs: int = RUNS) -> float:
    """Return the peak [GFLOP/s, float32, one core] of an instruction set; a multiply-add counts as two.

    The loop, compiled with the kernels, does nothing but multiply-adds on twelve independent chains of registers. The
    clock of a core changes with load and temperature: measure the roof in the same minute as what is under it.
    """
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        _cpu.multiply_add_peak(isa, count)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * count / best
