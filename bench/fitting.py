"""How fast stars are fitted from stored whiteners, and how close that comes to what the core can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import xpkern as xk
from bench.evaluation import FEW, MANY, evaluations_under_roof, multiply_adds_of_evaluation
from bench.harness import Comparison, Contestant, compare, measure_once, median_band, null_run
from bench.oracle import SAME_LOSS, lowest_loss
from bench.peak import fma_peak
from bench.peers.numpy_fit import NumpyFit
from bench.result import Result
from bench.stars import dense_whiteners, model_and_prior, observations
from xpkern.engine import Engine
from xpkern.engine.contract import FitOptions, Float64, LossTerms, Solution, StarData
from xpkern.engine.cpu import CpuEngine, instruction_sets
from xpkern.fit.fit import default_box
from xpkern.fit.start import StartGrid, start_grid
from xpkern.grid import BLOCKS
from xpkern.status import Status

#: Stars of the NumPy peer: it is slow, and no faster with more.
FEW_STARS = 1024

#: A round of evaluations takes a fifth of a second: so many times as many rounds as are asked for.
TIMES_AS_MANY = 4


class Fitter:
    """One thread's fits of the same stars by one engine.

    Parameters
    ----------
    engine : Engine
    n_stars : int
    """

    def __init__(self, engine: Engine, n_stars: int) -> None:
        self.engine = engine
        self.model, self.prior = model_and_prior()
        self.obs = observations(n_stars)
        self.stars = self.obs.star_data()
        self.grid = start_grid(self.model, self.prior)
        self.box, self.terms, self.options = default_box(self.prior), LossTerms(), FitOptions()

    def starts(self) -> Float64:
        """Best start of each star, linear parameters (n, 5)."""
        return self.engine.start(self.grid, self.stars, FitOptions(), threads=1)[:, 0]

    def fit(
        self,
        start: StartGrid | Float64,
        *,
        stars: StarData | None = None,
        options: FitOptions | None = None,
        threads: int = 1,
    ) -> Solution:
        """Fit from a grid or from given parameters; ``stars`` are some of all when given."""
        return self.engine.fit(
            self.model,
            self.prior,
            self.stars if stars is None else stars,
            start,
            self.terms,
            self.box,
            self.options if options is None else options,
            threads=threads,
        )

    def loss(self, params: Float64) -> Float64:
        """Loss (n,) of the first stars at linear parameters (n, 5), values and residuals float64."""
        stars = self.stars[: len(params)]
        return self.engine.evaluate(self.model, self.prior, stars, params, self.terms, threads=1).loss


def bench_fit(n_stars: int, rounds: int, engine_name: str) -> Result:
    """Stored whiteners to start, optimum and Fisher matrix, against Levenberg-Marquardt in JAX and in NumPy."""
    fitter = Fitter(xk.get_engine(engine_name), n_stars)
    starts = fitter.starts()
    ours = Contestant("start + fit + Fisher", lambda: fitter.fit(fitter.grid), n_stars)
    only = Contestant("fit + Fisher", lambda: fitter.fit(starts), n_stars)
    solution = fitter.fit(fitter.grid)
    extra: dict[str, Any] = {"stars": n_stars}
    ends, duels = {"ours": solution.params}, []

    try:
        against_jax, extra_of_jax, ends_of_jax = _against_jax(fitter, ours, only, rounds)
        duels += against_jax
        extra |= extra_of_jax
        ends |= ends_of_jax
    except ImportError as error:
        extra["JAX"] = str(error)

    few = slice(0, min(n_stars, FEW_STARS))
    obs, whiteners = fitter.obs[few], dense_whiteners(fitter.obs[few])
    numpy_fit = NumpyFit(fitter.model, fitter.prior)

    def run_numpy() -> tuple[np.ndarray, np.ndarray]:
        return numpy_fit.run(starts[few], obs.flux, whiteners, obs.plx, obs.plx_err)

    peer = Contestant("NumPy Levenberg-Marquardt, float32, from our starts", run_numpy, len(whiteners))
    duels.append(compare(only, peer, rounds=rounds, repeats=1))
    ends["NumPy"] = run_numpy()[0]

    at_end = {name: fitter.loss(params) for name, params in ends.items()}
    lowest = lowest_loss(fitter.engine, fitter.model, fitter.prior, fitter.stars)
    for name, loss in at_end.items():
        for gap in (SAME_LOSS, 1.0):
            share = float(np.mean(loss < lowest[: len(loss)] + gap))
            extra[f"{name}: share of stars that end within {gap:g} of the best of 128 random starts"] = share
    start = Contestant("start", fitter.starts, n_stars)
    everything = Contestant(
        "xpkern.fit",
        lambda: xk.fit(fitter.obs, fitter.model, fitter.prior, engine=fitter.engine, threads=1),
        n_stars,
    )
    extra |= {
        "ours: start alone [us a star]": 1e6 / measure_once(start, 3),
        "ours: xpkern.fit, everything [stars/s]": measure_once(everything, 3),
        "ours: evaluations of the loss a star": float(np.mean(solution.iterations)),
        "ours: share of stars finished in float64": float(np.mean(solution.status & np.uint32(Status.RESCUED) != 0)),
    }
    return Result("fit", "stars/s", duels, null_run(ours, rounds=rounds), extra)


def _against_jax(
    fitter: Fitter, ours: Contestant, only: Contestant, rounds: int
) -> tuple[list[Comparison], dict[str, float], dict[str, Float64]]:
    """Duels with one start, with several and without; other figures of the peer; where it ends, parameters (n, 5)."""
    from bench.peers.jax_fit import STARTS, JaxFit, Stars

    obs = fitter.obs
    peer, stars = JaxFit(fitter.model, fitter.prior), Stars(obs.flux, dense_whiteners(obs), obs.plx, obs.plx_err)
    starts = peer.start(stars)
    whole = Contestant("JAX Levenberg-Marquardt, float32, start + fit + Fisher", lambda: peer.run(stars), len(obs))
    fit = Contestant("JAX Levenberg-Marquardt, float32, from its starts", lambda: peer.run(stars, starts), len(obs))
    several = Contestant(
        f"JAX Levenberg-Marquardt, float32, up to {STARTS} starts", lambda: peer.run_from_several(stars), len(obs)
    )
    duels = [
        compare(ours, whole, rounds=rounds),
        compare(ours, several, rounds=rounds, repeats=1),
        compare(only, fit, rounds=rounds),
    ]
    params, loss, _ = peer.run(stars)
    error = np.abs(loss - fitter.loss(params))
    start = Contestant("start", lambda: peer.start(stars), len(obs))
    extra = {
        "JAX: start alone [us a star]": 1e6 / measure_once(start, 3),
        "JAX: error of the loss it reports, median": float(np.median(error)),
        "JAX: error of the loss it reports, 99.9 % quantile": float(np.quantile(error, 0.999)),
    }
    return duels, extra, {"JAX": params, f"JAX, up to {STARTS} starts": peer.run_from_several(stars)[0]}


def bench_isa(n_stars: int, rounds: int, _engine_name: str) -> Result:
    """Start, optimum and Fisher matrix by the best instruction set of this machine, against its other ones."""

    def contestant(isa: str) -> Contestant:
        fitter = Fitter(CpuEngine(isa), n_stars)
        return Contestant(f"start + fit + Fisher, {isa}", lambda: fitter.fit(fitter.grid), n_stars)

    best, *others = [contestant(isa) for isa in instruction_sets()]
    duels = [compare(best, other, rounds=rounds, repeats=2) for other in others]
    extra: dict[str, Any] = {"stars": n_stars}
    for other, duel in zip(others, duels, strict=True):
        extra[f"speed of {other.name}, share of the best"] = 1 / duel.ratio
    return Result("isa", "stars/s", duels, null_run(best, rounds=rounds, repeats=2), extra)


def bench_peak(n_stars: int, rounds: int, _engine_name: str) -> Result:
    """Each instruction set's measured rate of fused multiply-adds, and the share of it that an evaluation reaches."""
    extra: dict[str, Any] = {}
    for isa in instruction_sets():
        fitter = Fitter(CpuEngine(isa), n_stars)
        for form, in_blocks in (("in blocks", True), ("whole", False)):
            operations = 2.0 * sum(multiply_adds_of_evaluation(fitter.model, in_blocks=in_blocks).values())
            fit_with_at_most, kept = _limited_fit(fitter, fitter.stars if in_blocks else _not_in_blocks(fitter.stars))
            measured = evaluations_under_roof(
                fit_with_at_most, lambda isa=isa: fma_peak(isa, runs=1), kept, rounds=TIMES_AS_MANY * rounds
            )
            seconds, shares = float(np.median(measured.seconds)), measured.shares(operations)
            lower, upper = median_band(list(shares))
            extra |= {
                f"{isa}, factors {form}: stars": kept,
                f"{isa}, factors {form}: peak of one core, float32 [GFLOP/s]": float(np.median(measured.roof)),
                f"{isa}, factors {form}: operations of one evaluation [kFLOP]": operations * 1e-3,
                f"{isa}, factors {form}: one evaluation of one star [us]": seconds * 1e6,
                f"{isa}, factors {form}: evaluation [GFLOP/s]": operations / seconds * 1e-9,
                f"{isa}, factors {form}: evaluation, share of peak": float(np.median(shares)),
                f"{isa}, factors {form}: that share, lower end of its band": lower,
                f"{isa}, factors {form}: that share, upper end of its band": upper,
            }
    return Result("peak", "GFLOP/s", extra=extra)


def _not_in_blocks(stars: StarData) -> StarData:
    """Return the same stars, their factors changed by a trifle that no common error makes."""
    whitener = stars.whitener.copy()
    first_of_rp = BLOCKS[1] * (BLOCKS[1] + 1) // 2
    whitener[:, first_of_rp] *= np.float32(1.001)
    return replace(stars, whitener=whitener)


def _limited_fit(fitter: Fitter, stars: StarData) -> tuple[Callable[[int], Solution], int]:
    """Return fits with a given number of single-precision evaluations, and of how many of the stars."""
    starts = fitter.starts()

    def fit_with_at_most(evaluations: int) -> Solution:
        # An infinite tolerance ends the fit at the first double-precision evaluation.
        options = FitOptions(max_iterations=evaluations, tolerance=np.inf)
        return fitter.fit(starts, stars=stars, options=options)

    # Stars so far from the optimum that their Hessian is not definite would be handed to the slow path, and not always
    # the same number of them: leave them out.
    rescued = [(fit_with_at_most(number).status & np.uint32(Status.RESCUED)) != 0 for number in (FEW, MANY)]
    kept = np.flatnonzero(~np.logical_or(*rescued))
    stars, starts = stars[kept], starts[kept]
    return fit_with_at_most, len(kept)
