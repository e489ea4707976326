"""Stars into cells of sky and distance: sums in one pass, in the order of the stars.

A cell is a pixel of HEALPix (nested, Galactic) and a bin of 1 / parallax. A star adds to the finest pixels only;
coarser ones are sums of these. Beside the map's cells, coarse ones collect what tells the map's biases
(:mod:`xpkern.maps.bias`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.maps.settings import OUTCOMES, MapSettings

#: A cell: with weights w = 1 / error^2, sum of w and of w times the value; without, sum of error^2 and of the value.
CELL = np.dtype([("weight", "f8"), ("weighted", "f8"), ("stars", "u4")])

#: A coarse cell: stars and their sum before the cut on the error, and after it; sums with weights 1 / error^2; and with
#: the map's weights when each star is put half at parallax + error and half at parallax - error.
COARSE_CELL = np.dtype(
    [
        *(("stars_uncut", "f8"), ("sum_uncut", "f8"), ("stars", "f8"), ("sum", "f8")),
        *(("weight", "f8"), ("weighted", "f8"), ("smeared_weight", "f8"), ("smeared", "f8")),
    ]
)

_USED = OUTCOMES.index("used")
_OUTSIDE = OUTCOMES.index("outside the distance bins")

#: Steps of the table that finds a distance's bin, at most.
_MOST_STEPS = 1 << 16


class DistanceBins:
    """Finds the bin of a distance.

    Parameters
    ----------
    edges : (k + 1,) float64
        [kpc]

    Attributes
    ----------
    edges : (k + 1,) float64
    step : float
        Length [kpc] of the steps into which the range is divided: that of the shortest bin, so that few have two edges.
    first : (m,) int16
        Bin in which each step begins.
    """

    def __init__(self, edges: Float64) -> None:
        self.edges = np.ascontiguousarray(edges, np.float64)
        span = self.edges[-1] - self.edges[0]
        steps = min(math.ceil(span / np.diff(self.edges).min()), _MOST_STEPS)
        self.step = float(span / steps)
        starts = self.edges[0] + self.step * np.arange(steps + 1)
        first = np.searchsorted(self.edges, starts, side="right") - 1
        # a start that rounding has put beyond an edge would hide the bin before it
        self.first = np.clip(first - (starts - self.edges[np.clip(first, 0, None)] < 1e-9 * span), 0, None).astype(
            np.int16
        )


class StarBins:
    """The cells of a map while stars are added to them.

    Parameters
    ----------
    settings : MapSettings

    Attributes
    ----------
    outcomes : (len(OUTCOMES),) int64
        Stars that each outcome befell.
    touched : (tiles,) bool
        Tiles (pixels of order ``tile_order``) in which stars were used; memory is taken by these alone.
    """

    def __init__(self, settings: MapSettings) -> None:
        self.settings = settings
        self.order, coarsest = settings.orders[0], settings.orders[-1]
        self.tile_order = min(coarsest, 3)
        self.coarse_shift = 2 * (self.order - coarsest)
        pixels = 12 << 2 * self.order
        kept = 0 if settings.estimate == "median" else pixels  # untouched pages of zeros take no memory
        self.cells = np.zeros((kept, settings.bins), CELL)
        self.coarse = np.zeros((pixels >> self.coarse_shift, settings.bins), COARSE_CELL)
        self.touched = np.zeros(12 << 2 * self.tile_order, bool)
        self.outcomes = np.zeros(len(OUTCOMES), np.int64)
        self._distances = DistanceBins(np.array(settings.edges))

    def add(
        self,
        pixel: NDArray[np.int64],
        value: Float64,
        error: Float64,
        parallax: Float64,
        parallax_error: Float64,
        misfit: Float64,
        flags: Float64,
        confidence: Float64,
    ) -> NDArray[np.int16]:
        """Add stars.

        Parameters
        ----------
        pixel : (n,) int64
            Of the finest order; -1 where unknown.
        value, error : (n,) float64
            The quantity and its standard error.
        parallax, parallax_error : (n,) float64
            Estimated [mas].
        misfit : (n,) float64
            Loss over degrees of freedom.
        flags, confidence : (n,) float64

        Returns
        -------
        (n,) int16
            Bin of the distance of each star; -1 for one that is not used.
        """
        cuts, bins = self.settings.limits, self._distances
        found = np.empty(len(pixel), np.int16)
        weighted = self.settings.estimate == "weighted"
        _assign(
            *(pixel, value, error, parallax, parallax_error, misfit, flags, confidence),
            *(cuts.misfit, cuts.quality_flags, cuts.confidence, cuts.value, cuts.parallax_error, cuts.error),
            *(bins.edges, bins.step, bins.first, self.coarse_shift, weighted),
            *(self.coarse, self.outcomes, found),
        )
        if len(self.cells):
            accumulate(pixel, found, value, error, weighted, self.cells)
        used = found >= 0
        self.touched[pixel[used] >> 2 * (self.order - self.tile_order)] = True
        return found

    @property
    def pixels_of_tile(self) -> int:
        """Finest pixels of a tile."""
        return 1 << 2 * (self.order - self.tile_order)

    def levels(self, tile: int) -> list[tuple[Float64, Float64, NDArray[np.int64]]]:
        """Value, error and number of stars of the cells of a tile, (pixels, bins) each, for each nside."""
        size = self.pixels_of_tile
        cells = self.cells[tile * size : (tile + 1) * size]
        found = []
        for order in self.settings.orders:
            shape = (-1, 1 << 2 * (self.order - order), self.settings.bins)
            weight, weighted, stars = (
                cells[name].reshape(shape).sum(axis=1) for name in ("weight", "weighted", "stars")
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                if self.settings.estimate == "weighted":
                    value, error = weighted / weight, 1.0 / np.sqrt(weight)
                else:
                    value, error = weighted / stars, np.sqrt(weight) / stars
            found.append((value, error, stars.astype(np.int64)))
        return found


@njit(nogil=True)
def _bin_of(distance: float, edges: Any, step: float, first: Any) -> int:
    """Bin of a distance; -1 outside of all."""
    if not (edges[0] <= distance < edges[-1]):
        return -1
    k = int(first[int((distance - edges[0]) / step)])
    while distance < edges[k]:
        k -= 1
    while distance >= edges[k + 1]:
        k += 1
    return k


@njit(nogil=True)
def _assign(
    pixel: Any,
    value: Any,
    error: Any,
    parallax: Any,
    parallax_error: Any,
    misfit: Any,
    flags: Any,
    confidence: Any,
    misfit_below: float,
    flags_below: float,
    confidence_above: float,
    value_below: float,
    parallax_error_below: float,
    error_below: float,
    edges: Any,
    step: float,
    first: Any,
    coarse_shift: int,
    weighted: bool,
    coarse: Any,
    outcomes: Any,
    found: Any,
) -> None:
    """Count what becomes of each star, find its distance's bin, and add it to its coarse cells.

    A comparison with NaN is false, so that a star passes a cut only with a number (where there is such a cut).
    """
    infinity = np.inf
    for i in range(len(pixel)):
        found[i] = -1
        x, sigma, plx, plx_sigma = value[i], error[i], parallax[i], parallax_error[i]
        finite = abs(x) < infinity and 0 < sigma < infinity and abs(plx) < infinity and 0 < plx_sigma < infinity
        if pixel[i] < 0:
            outcome = 0
        elif not finite:
            outcome = 1
        elif not plx > 0:
            outcome = 2
        elif not (misfit[i] < misfit_below or misfit_below == infinity):
            outcome = 3
        elif not (flags[i] < flags_below or flags_below == infinity):
            outcome = 4
        elif not (confidence[i] > confidence_above or confidence_above == -infinity):
            outcome = 5
        elif not x < value_below:
            outcome = 6
        elif not plx_sigma < parallax_error_below * plx:
            outcome = 7
        else:
            k = _bin_of(1.0 / plx, edges, step, first)
            large = pixel[i] >> coarse_shift
            if k >= 0:
                coarse[large, k].stars_uncut += 1.0
                coarse[large, k].sum_uncut += x
            if not sigma < error_below:
                outcome = 8
            else:
                precision = 1.0 / (sigma * sigma)
                weight = precision if weighted else 1.0
                if k >= 0:
                    coarse[large, k].stars += 1.0
                    coarse[large, k].sum += x
                    coarse[large, k].weight += precision
                    coarse[large, k].weighted += precision * x
                for side in (-1.0, 1.0):
                    moved = plx + side * plx_sigma
                    if moved > 0:
                        j = _bin_of(1.0 / moved, edges, step, first)
                        if j >= 0:
                            coarse[large, j].smeared_weight += 0.5 * weight
                            coarse[large, j].smeared += 0.5 * weight * x
                outcome = _USED if k >= 0 else _OUTSIDE
                found[i] = k
        outcomes[outcome] += 1


@njit(nogil=True)
def accumulate(pixel: Any, bins: Any, value: Any, error: Any, weighted: bool, cells: Any) -> None:
    """Add stars to their cells.

    Parameters
    ----------
    pixel : (n,) int64
    bins : (n,) int16
        -1 for a star that is left out.
    value, error : (n,) float64
    weighted : bool
        Whether by 1 / error^2.
    cells : (pixels, bins) CELL
        Changed in place.
    """
    for i in range(len(pixel)):
        k = bins[i]
        if k >= 0:
            variance = error[i] * error[i]
            cell = cells[pixel[i], k]
            if weighted:
                cell.weight += 1.0 / variance
                cell.weighted += value[i] / variance
            else:
                cell.weight += variance
                cell.weighted += value[i]
            cell.stars += 1
