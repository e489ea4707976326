"""All modes of stars' losses: searches from many starts, and which of them ended in the same place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine import Engine
from xpkern.engine.contract import Box, FitOptions, Float64, LossTerms, StarData
from xpkern.engine.reference import SAME_MINIMUM, SAME_MINIMUM_EXT
from xpkern.fit.start import start_grid
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.status import UNFITTED, Status

#: Searches of a star at most, and how much higher than the best start's the expected loss of a start may be: that may
#: be off by several, and a mode that is higher by 20 has a weight of 5e-5.
SEARCHES = FitOptions(starts=16, gate=60.0)

#: A minimum whose loss is higher than the lowest one's by more than this is no mode worth its samples.
HIGHEST_LOSS = 30.0

#: Stars searched at a time: their whiteners are copied for each search.
_BLOCK = 256


@dataclass(frozen=True)
class Modes:
    """Distinct minima of n stars' losses, one after the other, each star's lowest first.

    Attributes
    ----------
    star : (m,) intp
        Row of the star of each minimum.
    params : (m, k) float64
        Linear parameters, the parallax by the model's own scale.
    loss : (m,) float64
    """

    star: NDArray[np.intp]
    params: Float64
    loss: Float64

    def of(self, star: int) -> slice:
        """Where the minima of a star stand."""
        return slice(*np.searchsorted(self.star, [star, star + 1]))


def find_modes(
    engine: Engine,
    model: FluxModel,
    prior: TypePrior,
    stars: StarData,
    known: Float64,
    terms: LossTerms,
    box: Box,
    *,
    threads: int | None = None,
) -> Modes:
    """Search for every minimum of the loss of each star.

    Parameters
    ----------
    engine : Engine
    model : FluxModel
    prior : TypePrior
    stars : StarData
        Under the covariances of the posterior.
    known : (n, k) float64
        A minimum of each star that is known already; NaN for a star without one, which is left out.
    terms : LossTerms
        Those that the known minimum is one of.
    box : Box
    threads : int, optional
    """
    grid = start_grid(model, prior)
    found: list[tuple[NDArray[np.intp], Float64, Float64]] = []
    for first in range(0, len(stars), _BLOCK):
        block, here = stars[first : first + _BLOCK], known[first : first + _BLOCK]
        starts = np.concatenate([here[:, None], engine.start(grid, block, SEARCHES, threads=threads)], axis=1)
        usable = np.asarray(np.isfinite(starts).all(axis=2) & np.isfinite(here).all(axis=1, keepdims=True))
        rows, choice = np.nonzero(usable)
        if not len(rows):
            continue
        ends = engine.fit(
            model, prior, block[rows], starts[rows, choice], terms, box, FitOptions(max_iterations=100), threads=threads
        )
        good = (ends.status & np.uint32(UNFITTED | Status.NOT_CONVERGED)) == 0
        good |= choice == 0  # a known one is kept, however badly it converges
        found.append((first + rows[good], ends.params[good], ends.loss[good]))
    if not found:
        return Modes(np.zeros(0, np.intp), np.zeros((0, model.n_parameters)), np.zeros(0))
    star, params, loss = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((loss, star))
    star, params, loss = star[order], params[order], loss[order]
    kept = _distinct(star, params, loss)
    return Modes(star[kept], params[kept], loss[kept])


def _distinct(star: NDArray[np.intp], params: Float64, loss: Float64) -> NDArray[np.intp]:
    """Which minima, sorted by star and loss, are the first of their place, and low enough."""
    limit = np.full(params.shape[1], SAME_MINIMUM)
    limit[-2] = SAME_MINIMUM_EXT
    places = np.column_stack([params[:, :-1], np.log(params[:, -1])])
    kept: list[int] = []
    first = 0  # in kept, of the star at hand
    for row in range(len(star)):
        if kept and star[kept[-1]] != star[row]:
            first = len(kept)
        others = kept[first:]
        if others:
            if loss[row] > loss[others[0]] + HIGHEST_LOSS:
                continue
            if (np.abs(places[others] - places[row]) <= limit).all(axis=1).any():
                continue
        kept.append(row)
    return np.array(kept, np.intp)
