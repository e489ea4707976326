"""Stars into cells of sky and distance: sums in one pass, in the order of the stars.

A cell is a pixel of HEALPix (nested, Galactic) and a bin of 1 / parallax. A star adds to the finest pixels only;
coarser ones are sums of these. Beside the map's cells, coarse ones collect what tells the map's biases
(:mod:`xpkern.maps.bias`).
"""

from __future__ import annotations

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
        *(("stars_uncut", "u4"), ("sum_uncut", "f8"), ("stars", "u4"), ("sum", "f8")),
        *(("weight", "f8"), ("weighted", "f8"), ("smeared_weight", "f8"), ("smeared", "f8")),
    ]
)

_LARGE_ERROR, _OUTSIDE, _USED = (OUTCOMES.index(name) for name in ("error", "outside the distance bins", "used"))

#: Bits of a float64 that are dropped to find a parallax in a table: what is left has 128 steps to a factor of 2.
_DROPPED_BITS = 45

#: Largest parallax [mas] that the table tells apart.
_LARGEST = 1e6


class ParallaxBins:
    """Finds the distance bin of a parallax, without a division.

    Bin k has the parallaxes that are larger than 1 / edges[k + 1], and no larger than 1 / edges[k].

    Parameters
    ----------
    edges : (bins + 1,) float64
        Of the distances [kpc].

    Attributes
    ----------
    limits : (bins + 1,) float64
        Parallaxes at the edges [mas], decreasing; infinite for the distance 0.
    start : int
        What is left of the bits of the smallest one.
    table : (m,) int16
        Nearest bin that any parallax with the same bits has, from ``start`` on.
    """

    def __init__(self, edges: Float64) -> None:
        with np.errstate(divide="ignore"):
            self.limits = 1.0 / np.ascontiguousarray(edges, np.float64)
        ends = np.array([self.limits[-1], np.clip(self.limits[0], None, max(_LARGEST, self.limits[-1]))])
        self.start, last = (int(bits) for bits in ends.view(np.int64) >> _DROPPED_BITS)
        largest = (np.arange(self.start, last + 1, dtype=np.int64) + 1 << _DROPPED_BITS).view(np.float64)
        nearest = np.searchsorted(-self.limits, -largest, side="right") - 1
        self.table = np.clip(nearest, 0, len(edges) - 2).astype(np.int16)


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
        self._parallaxes = ParallaxBins(np.array(settings.edges))

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
        cuts, bins = self.settings.limits, self._parallaxes
        weighted = self.settings.estimate == "weighted"
        outcome, found = np.empty(len(pixel), np.uint8), np.empty(len(pixel), np.int16)
        _judge(
            *(pixel, value, error, parallax, parallax_error, misfit, flags, confidence),
            *(cuts.misfit, cuts.quality_flags, cuts.confidence, cuts.value, cuts.parallax_error, cuts.error),
            *(bins.limits, bins.start, bins.table, outcome, found),
        )
        self.outcomes += np.bincount(outcome, minlength=len(OUTCOMES))
        large = pixel >> self.coarse_shift
        _add_coarse(large, found, outcome, value, error, self.coarse)
        _smear(
            *(large, outcome, value, error, parallax, parallax_error),
            *(bins.limits, bins.start, bins.table, weighted, self.coarse),
        )
        used = outcome == _USED
        found[~used] = -1
        if len(self.cells):
            accumulate(pixel, found, value, error, weighted, self.cells)
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
def bin_of(parallax: float, limits: Any, start: int, table: Any) -> int:
    """Bin of a parallax (:class:`ParallaxBins`); -1 outside of all."""
    if not (limits[-1] < parallax <= limits[0]):
        return -1
    place = (np.float64(parallax).view(np.int64) >> _DROPPED_BITS) - start
    k = int(table[min(place, len(table) - 1)])
    while parallax <= limits[k + 1]:
        k += 1
    return k


@njit(nogil=True)
def _judge(
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
    limits: Any,
    start: int,
    table: Any,
    outcome: Any,
    found: Any,
) -> None:
    """Say what becomes of each star, and find its distance's bin.

    Conditions are asked from the last to the first, without branches: where stars pass at random, these cost more than
    the conditions. A comparison with NaN is false, so that a star passes a cut, where there is one, only with a number.
    """
    infinity = np.inf
    for i in range(len(pixel)):
        x, sigma, plx, plx_sigma = value[i], error[i], parallax[i], parallax_error[i]
        k = bin_of(plx, limits, start, table)
        finite = (abs(x) < infinity) & (sigma > 0) & (sigma < infinity)
        finite &= (abs(plx) < infinity) & (plx_sigma > 0) & (plx_sigma < infinity)
        code = 10 if k >= 0 else 9
        code = code if sigma < error_below else 8
        code = code if plx_sigma < parallax_error_below * plx else 7
        code = code if x < value_below else 6
        code = code if (confidence[i] > confidence_above) | (confidence_above == -infinity) else 5
        code = code if (flags[i] < flags_below) | (flags_below == infinity) else 4
        code = code if (misfit[i] < misfit_below) | (misfit_below == infinity) else 3
        code = code if plx > 0 else 2
        code = code if finite else 1
        code = code if pixel[i] >= 0 else 0
        outcome[i], found[i] = code, k


@njit(nogil=True)
def _add_coarse(pixel: Any, bins: Any, outcome: Any, value: Any, error: Any, coarse: Any) -> None:
    """Add stars that pass, but perhaps for the cut on the error, to their coarse cells."""
    for i in range(len(pixel)):
        if outcome[i] >= _LARGE_ERROR and bins[i] >= 0:
            cell = coarse[pixel[i], bins[i]]
            cell.stars_uncut += 1
            cell.sum_uncut += value[i]
            if outcome[i] == _USED:
                precision = 1.0 / (error[i] * error[i])
                cell.stars += 1
                cell.sum += value[i]
                cell.weight += precision
                cell.weighted += precision * value[i]


@njit(nogil=True)
def _smear(
    pixel: Any,
    outcome: Any,
    value: Any,
    error: Any,
    parallax: Any,
    parallax_error: Any,
    limits: Any,
    start: int,
    table: Any,
    weighted: bool,
    coarse: Any,
) -> None:
    """Add half of each star that passes, within the bins or not, on either side of its parallax."""
    for i in range(len(pixel)):
        if outcome[i] >= _OUTSIDE:
            half = 0.5 / (error[i] * error[i]) if weighted else 0.5
            for side in (-1.0, 1.0):
                k = bin_of(parallax[i] + side * parallax_error[i], limits, start, table)
                if k >= 0:
                    cell = coarse[pixel[i], k]
                    cell.smeared_weight += half
                    cell.smeared += half * value[i]


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
