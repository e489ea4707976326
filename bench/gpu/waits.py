"""What the waits in the kernels' machine code add up to: predictions, for when there is no GPU to measure on.

Stretches of the kernels of this checkout are compiled by NVRTC and played (`bench.gpu.playing`). Nothing of this is a
measurement, and no figure of it may be called one. What is not in the play is that code has to come, that warps wait
for one another, and what lies between kernels: how much that was, when there was a GPU, is in the results that the
checkout holds (`kernels.json`: what was measured, and what the same code was in the play), and is set beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu.machine_code import listing_of, read_listing
from bench.gpu.playing import NEAR, SCHEDULERS, Played, Route, follow, play

#: Processors and clock [Hz] of the GPU that is predicted, an H200's as an H100's.
_PROCESSORS, _CLOCK = 132, 1.98e9

#: Evaluations for a star, mean of 2,048 simulated ones: without the network's curvature, and with it.
_ROUGH, _EXACT = 4.1, 2.0

#: Cycles of a star's search around its evaluations: taking it up, leaving it. An estimate from the code's length.
_AROUND = 3_000

#: What was measured, and what was played of the same code.
_RESULTS = Path(__file__).parents[1] / "results" / "nvidia-h200" / "kernels.json"

#: Passes of what follows itself in a kernel that are played, so that how warps meet evens out.
_PASSES = 12

_EVERY_EVALUATION = ("if (begins) {", "if (const unsigned held", "if (!positive)")
_EVALUATION = Route(
    "an evaluation with its step",
    part="fit_search",
    kernel="fit_search",
    warps=2,
    loop="cuda/fit_steps.cuh",
    jumps=(*_EVERY_EVALUATION, "const float curvature = shape.exact"),
    passes={"} while (before != found);": 1, "while (!is_next(before)) __nanosleep": 1},
    load=NEAR,
)

_EVERY_STEP = (
    *("if (!how.adam) return;", "if (warp == 0) { const double gradient", "a.how.adam ? held.move<true>"),
    *("return is_curve ?", "if (first >= chunks) break;", "if (!is_step) take_back"),
)
_STEP = Route(
    "train_model",
    part="train",
    kernel="train_model",
    warps=4,
    jumps=(*_EVERY_STEP, "if (finite && total.norm"),
    passes={"for (int layer = 0;": 4, "for (int tile = thread;": 1},
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
    ),
    _EVALUATION,
    replace(_EVALUATION, name="one with the network's curvature", jumps=_EVERY_EVALUATION),
    Route(
        "fluxes of eight stars",
        part="stars",
        kernel="predict",
        warps=2,
        begins="load_params(a.params + (row",
        ends="int64_t first = (warp",
        jumps=("if (layer > 0)",),
        passes={"for (int layer = 0; layer < FitShape::last": 3},
    ),
    replace(
        _STEP,
        name="train_model, its gradient scaled down",
        jumps=(*_EVERY_STEP, "if (!how.adam) return;", "is_step = a.how.adam ?", "atomicAdd(&unusable"),
        passes={**_STEP.passes, "for (int first = begin": 1},
    ),
    Route(
        "train_stars",
        part="train",
        kernel="train_stars",
        warps=1,
        jumps=("if (star == begin)",),
        passes={"for (int64_t star = begin;": 1, "for (int64_t chunk = blockIdx.x": 1},
    ),
    _STEP,
)


def main(arguments: list[str]) -> int:
    """Print what is predicted; the exit code is 1 where it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m bench waits", description=__doc__)
    parser.add_argument(
        "--lines",
        type=int,
        default=0,
        metavar="N",
        help="and the N lines, and what is waited for, that take a warp longest",
    )
    options = parser.parse_args(arguments)
    try:
        played = _play_all(options.lines)
    except (ImportError, ValueError) as error:
        print(f"bench waits: {error}", file=sys.stderr)
        return 1
    start, gather, rough, exact, eight, scaled, *kernels = (each.cycles for each in played)
    search = gather + _ROUGH * rough + _EXACT * exact + _AROUND
    step = sum(kernel * route.warps for kernel, route in zip(kernels, ROUTES[-len(kernels) :], strict=True)) / _CLOCK
    more = 1e6 * (scaled - kernels[-1]) * _STEP.warps / _CLOCK
    now = Prediction(_stars_a_second(start), _stars_a_second(start + search), 1e6 * step)
    record = json.loads(_RESULTS.read_text())["played and measured"]
    then, measured = (Prediction(**record[which]) for which in ("played", "measured"))
    gpu_took = "if a GPU adds as much as it did"
    between = (measured.step - then.step) / record["kernels of a step"]
    print(
        f"\nPREDICTED, not measured, for {_PROCESSORS} processors at {1e-9 * _CLOCK:.2f} GHz:",
        f"  a star: {start:,.0f} cycles of a scheduler to start, {search:,.0f} to search",
        *(
            f"  {name}: {1e-6 * mine:.1f} M stars/s as played, {1e-6 * mine * was / of_then:.1f} M {gpu_took}"
            for name, mine, of_then, was in (
                ("start", now.start, then.start, measured.start),
                ("start and fit", now.fit, then.fit, measured.fit),
            )
        ),
        f"  predict: {8e-6 * _stars_a_second(eight):,.0f} M stars/s as played",
        f"  step of 512 stars, model: {now.step:.1f} us as played,"
        f" {now.step + len(kernels) * between:.1f} us {gpu_took} to each of its kernels;"
        f" {more:.1f} more where gradients are scaled down",
        f"MEASURED of {record['commit']} on {record['gpu']}: {measured}; as played then: {then}",
        sep="\n",
    )
    return 0


@dataclass(frozen=True)
class Prediction:
    """Stars a second that are started, and that are started and fitted; a step of training [us]."""

    start: float
    fit: float
    step: float

    def __str__(self) -> str:
        return f"{1e-6 * self.start:.1f} M, {1e-6 * self.fit:.1f} M, {self.step:.1f} us"


def _stars_a_second(cycles_of_scheduler: float) -> float:
    return SCHEDULERS * _PROCESSORS * _CLOCK / cycles_of_scheduler


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
        for what, cycles in (("line", alone.spent), ("cause of a wait", alone.waited)):
            for name, count in cycles.most_common(lines):
                print(f"    {what} {count:7,} {name}")
        all_played.append(together)
    return all_played
