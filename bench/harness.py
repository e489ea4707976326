"""How this project measures: pinned, interleaved, in alternating order, best of few inside, median outside.

A machine's clock wanders over seconds and jumps over milliseconds. So two contestants take turns in every round, the
order alternates from round to round, the best of a few repeats is a round's result (interruptions only ever slow
down), and the median over rounds of the *ratio within a round* is the answer (slow drift cancels). The band is where
the median lies with 95 % confidence, whatever the distribution; a difference is claimed only if the band excludes 1.
:func:`null_run` holds a contestant against itself: it must find no difference, but for one run in twenty.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from math import comb
from pathlib import Path
from typing import Any

#: Packages whose versions decide what a peer does.
PACKAGES = ("numpy", "scipy", "jax", "gaiaxpy", "isal", "pyarrow", "pysimdjson", "emcee", "xpkern")

#: CPUs that this process may use, before any benchmark is pinned to one of them.
ALLOWED_CPUS = frozenset(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Contestant:
    """Something that handles ``items`` items each time it is called.

    Attributes
    ----------
    name : str
    run : callable
        Does the work once; its result is discarded.
    items : int
        Number of items (stars, rows) that one call handles.
    clear : callable
        Removes what a call has written; called after each, apart from the clock.
    """

    name: str
    run: Callable[[], object]
    items: int
    clear: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Rate:
    """Items per second of one contestant: median over the rounds, and its band."""

    name: str
    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Comparison:
    """What came out of a duel.

    Attributes
    ----------
    ours, peer : Rate
        Items per second.
    ratio, ratio_lower, ratio_upper : float
        Median, and its band, of the ratios of the rates within a round (> 1: ours is faster).
    rounds : int
    """

    ours: Rate
    peer: Rate
    ratio: float
    ratio_lower: float
    ratio_upper: float
    rounds: int

    @property
    def differ(self) -> bool:
        """Whether the band of the ratio excludes 1."""
        return self.ratio_lower > 1 or self.ratio_upper < 1


@contextmanager
def pinned(cpu: int | None = None) -> Iterator[int]:
    """Keep this process, and the threads that it starts, on one CPU; yield its number.

    Parameters
    ----------
    cpu : int, optional
        The last CPU allowed when not given: the first ones serve interrupts.
    """
    chosen = max(ALLOWED_CPUS) if cpu is None else cpu
    with on_cpus({chosen}):
        yield chosen


@contextmanager
def on_cpus(cpus: Iterable[int]) -> Iterator[None]:
    """Keep this process, and the threads that it starts, on some CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def median_band(values: Sequence[float]) -> tuple[float, float]:
    """Return order statistics that enclose the true median with 95 % confidence (the extremes for 7 values or fewer).

    The k-th value from either end leaves the median outside with probability 2 P(fewer than k heads in n throws).
    """
    ordered, n = sorted(values), len(values)
    outside, k = 2.0 * 0.5**n, 1
    while True:
        outside += 2.0 * comb(n, k) * 0.5**n
        if outside > 0.05:
            return ordered[k - 1], ordered[n - k]
        k += 1


def measure_once(contestant: Contestant, repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the best rate [items/s] of a few calls."""
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        contestant.run()
        best = min(best, clock() - start)
        contestant.clear()
    return contestant.items / best


def rate(name: str, rates: Sequence[float]) -> Rate:
    """Summarise the rates of all rounds."""
    return Rate(name, statistics.median(rates), *median_band(rates))


def compare(
    ours: Contestant,
    peer: Contestant,
    *,
    rounds: int = 7,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Let two contestants take turns.

    Parameters
    ----------
    ours, peer : Contestant
        Both do the same kind of item; each is called once before the clock starts.
    rounds : int
        Rounds, in alternating order; 7 or more for a figure that is written down.
    repeats : int
        Calls in a round, of which the fastest counts.
    clock : callable
        Returns seconds; replaced in tests.
    """
    for contestant in (ours, peer):
        contestant.run()
        contestant.clear()
    our_rates, peer_rates = [], []
    for number in range(rounds):
        order = [(ours, our_rates), (peer, peer_rates)]
        for contestant, rates in order if number % 2 == 0 else reversed(order):
            rates.append(measure_once(contestant, repeats, clock))
    ratios = [a / b for a, b in zip(our_rates, peer_rates, strict=True)]
    return Comparison(
        rate(ours.name, our_rates), rate(peer.name, peer_rates), statistics.median(ratios), *median_band(ratios), rounds
    )


def null_run(contestant: Contestant, **options: Any) -> Comparison:
    """Hold a contestant against itself: a band that excludes 1 means that the harness or the machine is at fault."""
    return compare(contestant, replace(contestant, name=f"{contestant.name}, again"), **options)


def machine() -> dict[str, str]:
    """Return what a figure depends on: processor, instruction set, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    facts = {"processor": models[0] if models else platform.processor(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts
