"""The second pass of a fit under a learned noise.

The learned covariance of a spectrum depends on what the model predicts, which is known once a first fit, with the noise
of Eq. 2, has been made. There it is formed and frozen: the second fit starts at the optimum of the first, and its
covariance stays as it is. Were it to move with the parameters, ln det C would belong to the loss. It does where two
minima of a star are compared, for each has a covariance of its own:

    loss + ln det C

is what is lower at the better one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from xpkern.engine import Engine
from xpkern.engine.arrays import namespace_of
from xpkern.engine.contract import Box, FitOptions, Float64, LossTerms, Solution, StarData
from xpkern.engine.reference import SAME_MINIMUM, SAME_MINIMUM_EXT
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.status import UNFITTED, Status, mark


@dataclass
class SecondPass:
    """Where the two passes ended.

    Attributes
    ----------
    solution : Solution
        Of the second pass, but for stars that could not have one; ``iterations`` are those of both. Minima are
        compared with ln det C.
    chi2_eq2, ln_prior_eq2 : (n,) float64
        chi^2 under the noise of Eq. 2, and the prior's density, at the optimum of the first pass. A type that the model
        does not know is seen there: a noise that allows for a wrong model lets the prior draw it to one that it knows.
    frozen_at : (n, k) float64
        Linear parameters at which each star's covariance was frozen; NaN where it has none.
    """

    solution: Solution
    chi2_eq2: Float64
    ln_prior_eq2: Float64
    frozen_at: Float64


def second_pass(
    engine: Engine,
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    contained: Noise | None,
    first: Solution,
    terms: LossTerms,
    box: Box,
    options: FitOptions,
    *,
    threads: int | None = None,
) -> SecondPass:
    """Fit again under the model's learned noise, from where a fit with the noise of Eq. 2 ended.

    Parameters
    ----------
    engine : Engine
    model : FluxModel
        Its noise has a model error.
    prior : TypePrior
    stars : StarData
        With the whiteners of the first pass.
    contained : Noise, optional
        The noise of Eq. 2 that these contain; None where nobody says that there is any.
    first : Solution
        Of the first pass.
    terms, box, options, threads
        As in the first pass.
    """

    def fit_from(some: StarData, start: Float64) -> tuple[Solution, Float64]:
        frozen = engine.freeze_noise(model, model.noise, some, contained, start, threads=threads)
        refit = replace(some, whitener=frozen.whitener)
        return engine.fit(model, prior, refit, start, terms, box, options, threads=threads), frozen.ln_det

    solution, ln_det = fit_from(stars, first.params)
    solution.iterations += first.iterations
    solution.minima, solution.second_params = first.minima.copy(), first.second_params.copy()
    solution.second_gap = first.second_gap.copy()
    chi2_eq2, ln_prior_eq2 = first.chi2.copy(), first.ln_prior.copy()
    frozen_at = first.params.copy()
    rows = np.flatnonzero(np.isfinite(first.second_gap) & np.isfinite(ln_det))
    if len(rows):
        there = first.second_params[rows]
        other, other_ln_det = fit_from(stars[rows], there)
        at_first = engine.evaluate(model, prior, stars[rows], there, terms, threads=threads)
        gap = (other.loss + other_ln_det) - (solution.loss + ln_det)[rows]
        _choose(solution, other, rows, gap)
        better = gap < 0
        chi2_eq2[rows[better]] = at_first.chi2[better]
        ln_prior_eq2[rows[better]] = at_first.ln_prior[better]
        frozen_at[rows[better]] = there[better]
    failed = ((solution.status & np.uint32(UNFITTED)) != 0) & ((first.status & np.uint32(UNFITTED)) == 0)
    if failed.any():
        _put(solution, np.flatnonzero(failed), first, np.flatnonzero(failed))
        mark(solution.status, failed, Status.NOISE_OF_EQ2)
        frozen_at[failed] = np.nan
    return SecondPass(solution, chi2_eq2, ln_prior_eq2, frozen_at)


def _choose(solution: Solution, other: Solution, rows: Any, gap: Float64) -> None:
    """Of two minima of some stars, make the lower one the solution's and the higher one its second; both may be one."""
    here = Solution(**{each.name: getattr(solution, each.name)[rows] for each in fields(Solution)})
    found = np.isfinite(gap)
    same = found & _same_place(here.params, other.params)
    better = found & (gap < 0)
    iterations = here.iterations + other.iterations
    minima = here.minima - same.astype(here.minima.dtype)
    _put(solution, rows[better], other, np.flatnonzero(better))
    solution.iterations[rows] = iterations
    solution.minima[rows] = minima
    second = np.where(better[:, None], here.params, other.params)
    distinct = found & ~same
    solution.second_params[rows] = np.where(distinct[:, None], second, np.nan)
    solution.second_gap[rows] = np.where(distinct, np.abs(gap), np.nan)


def _put(into: Solution, rows: Any, source: Solution, source_rows: Any) -> None:
    for each in fields(Solution):
        getattr(into, each.name)[rows] = getattr(source, each.name)[source_rows]


def _same_place(a: Float64, b: Float64) -> Any:
    """Which optima (n, k) are one minimum."""
    difference = np.abs(a - b)
    difference[:, -1] = np.abs(np.log(a[:, -1] / b[:, -1]))
    limit = namespace_of(a).full(a.shape[1], SAME_MINIMUM)
    limit[-2] = SAME_MINIMUM_EXT
    return (difference <= limit).all(axis=1)
