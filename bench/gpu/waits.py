"""What the waits in the kernels' machine code add up to: predictions, for when there is no GPU to measure on.

Stretches of the kernels of this checkout are compiled by NVRTC and played (`bench.gpu.playing`). Nothing of this is a
measurement, and no figure of it may be called one. How much more a GPU took than was played, when there was one, is
known for the code of then (commit 383ba03 on an H200); that is set beside what is played now.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from bench.gpu.machine_code import listing_of, read_listing
from bench.gpu.playing import NEAR, SCHEDULERS, Played, Route, follow, play

#: Processors and clock [Hz] of the GPU that is predicted, an H200's as an H100's.
_PROCESSORS, _CLOCK = 132, 1.98e9

#: Evaluations for a star, mean of 2,048 simulated ones: without the network's curvature, and with it.
_ROUGH, _EXACT = 4.1, 2.0

#: Cycles of a star's search around its evaluations: taking it up, leaving it. An estimate from the code's length.
_AROUND = 3_000

#: How long the searches in float of that code took, measured, for each cycle that was played: 70,200 for 56,000.
_MEASURED = 1.25

#: What a step of 512 stars took, measured, beyond the cycles played for its three kernels [s]: 18.2 us for 12.9.
_BETWEEN_KERNELS = 5.3e-6

#: Passes of what follows itself in a kernel that are played, so that how warps meet evens out.
_PASSES = 12

_NO_CONSTRAINTS = ("if (all(star.weight[k] <= lane<Wide>(0))) continue;",) * 4  # but that of the parallax
_EVALUATION = Route(
    "an evaluation with its step",
    part="fit_search",
    kernel="fit_search",
    warps=2,
    loop="core/optimise.hpp",
    jumps=("if (mixed) make_definite", "if (exact) add_curvature_by_warp", *_NO_CONSTRAINTS),
    load=NEAR,
)

#: Warps of a scheduler are as many as registers and shared memory allow, or as the batch has.
ROUTES = (
    Route(
        "a star's start",
        part="starts",
        kernel="fit_start",
        warps=3,
        begins="const double sigma = stars.sigma",
        ends="__syncwarp();  // no lane still reads scores",
        jumps=("if (sum_over_lanes(present) > 0) return true",),
        passes={
            "for (; end - at >= 2 * longest": 1,
            "for (int square = lane_in_warp()": 2,
            "for (int j = 0; j < i; ++j) line.factor": 1,
            "for (int type = lane_in_warp()": 2,
            "for (int choice = 0;": 1,
        },
    ),
    Route(
        "a star's whitener comes and is inverted",
        part="fit_search",
        kernel="fit_search",
        warps=2,
        begins="copy_by_lane_soon<m>(star.flux",
        ends="while (next.choice < starts)",
        passes={"for (int i = 0; i < LANES; ++i)": 8, "for (int at = m * FitColumns::width": 1},
    ),
    _EVALUATION,
    replace(
        _EVALUATION,
        name="one with the network's curvature",
        jumps=("if (mixed) make_definite", *_NO_CONSTRAINTS),
    ),
    Route(
        "train_stars",
        part="train",
        kernel="train_stars",
        warps=1,
        jumps=("if (star == begin)",),
        passes={"for (int64_t star = begin;": 1, "for (int64_t chunk = blockIdx.x": 1},
    ),
    Route(
        "train_gradient",
        part="train",
        kernel="train_gradient",
        warps=4,
        jumps=("if (warp == 0) { const ParameterPlace::Kind",),
        passes={"for (int first = 0; first < chunks": 1, "for (int layer = 0;": 4},
    ),
    Route(
        "train_step",
        part="train",
        kernel="train_step",
        warps=2,
        jumps=("if (!how.adam) return;", "const double by = a.how.adam", "return is_curve ?"),
        passes={"for (int64_t tile = thread;": 1, "for (; i < counts.size": 1},
    ),
)


def main(arguments: list[str]) -> int:
    """Print what is predicted; the exit code is 1 where it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m bench waits", description=__doc__)
    parser.add_argument("--lines", type=int, default=0, metavar="N", help="and the N lines that take a warp longest")
    options = parser.parse_args(arguments)
    try:
        played = _play_all(options.lines)
    except (ImportError, ValueError) as error:
        print(f"bench waits: {error}", file=sys.stderr)
        return 1
    start, gather, rough, exact, *kernels = (each.cycles for each in played)
    search = gather + _ROUGH * rough + _EXACT * exact + _AROUND
    rates = [SCHEDULERS * _PROCESSORS * _CLOCK / (start + search) / factor for factor in (_MEASURED, 1.0)]
    step = sum(kernel * route.warps for kernel, route in zip(kernels, ROUTES[-len(kernels) :], strict=True)) / _CLOCK
    print(
        f"\nPREDICTED, not measured, for {_PROCESSORS} processors at {1e-9 * _CLOCK:.2f} GHz:",
        f"  a star: {start:,.0f} cycles of a scheduler to start, {search:,.0f} to search",
        f"  start and fit: {1e-6 * rates[1]:.1f} M stars/s as played,"
        f" {1e-6 * rates[0]:.1f} M if as much is missing as was (x {_MEASURED})",
        f"  step of 512 stars, model: {1e6 * step:.1f} us as played,"
        f" {1e6 * (step + _BETWEEN_KERNELS):.1f} us if as much is missing as was (+ {1e6 * _BETWEEN_KERNELS:.1f} us)",
        sep="\n",
    )
    return 0


def _play_all(lines: int) -> list[Played]:
    listings: dict[str, str] = {}
    units = ("tensor", "memory", "double", "special", "integer")
    print("Cycles of a pass, by a warp that is alone and by each of all warps of a scheduler; units' shares then:")
    print(f"{'':42} instructions   alone    of all", *(f"{unit:>8}" for unit in units))
    all_played = []
    for route in ROUTES:
        if route.part not in listings:
            listings[route.part] = listing_of(route.part)
        passed = follow(read_listing(listings[route.part], route.kernel), route)
        passes = 1 if route.part == "train" else _PASSES
        alone = play(passed, 1, route.load, schedulers=1, passes=passes)
        together = play(passed, route.warps, route.load, passes=passes)
        shares = (f"{together.busy.get(unit, 0):8.0%}" for unit in units)
        print(f"{route.name:42} {len(passed):12,} {alone.cycles:7,.0f}  {together.cycles:8,.0f}", *shares, flush=True)
        for line, cycles in alone.spent.most_common(lines):
            print(f"    {cycles:7,} {line}")
        all_played.append(together)
    return all_played
