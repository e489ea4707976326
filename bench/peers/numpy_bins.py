"""Stars into the cells of a map by NumPy: conditions, searchsorted, add.at."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from xpkern.maps.settings import OUTCOMES, MapSettings


class NumpyBins:
    """What :class:`xpkern.maps.binning.StarBins` does for weighted means, a pass over the stars for every operation.

    Parameters
    ----------
    settings : MapSettings
    pixels : int
        Finest pixels in which there are stars.
    coarse_shift : int
        Bits by which coarse pixels are fewer.
    """

    def __init__(self, settings: MapSettings, pixels: int, coarse_shift: int) -> None:
        self.settings, self.coarse_shift = settings, coarse_shift
        self.edges = np.array(settings.edges)
        self.cells = np.zeros((3, pixels * settings.bins))
        self.coarse = np.zeros((8, ((pixels - 1 >> coarse_shift) + 1) * settings.bins))
        self.outcomes = np.zeros(len(OUTCOMES), np.int64)

    def add(
        self,
        pixel: np.ndarray,
        value: np.ndarray,
        error: np.ndarray,
        parallax: np.ndarray,
        parallax_error: np.ndarray,
        misfit: np.ndarray,
        flags: np.ndarray,
        confidence: np.ndarray,
    ) -> None:
        """Add stars (n,); arguments as those of StarBins.add."""
        cuts = self.settings.limits
        numbers = np.isfinite(value) & np.isfinite(error) & (error > 0)
        numbers &= np.isfinite(parallax) & np.isfinite(parallax_error) & (parallax_error > 0)
        own = self._bins(parallax)
        alive = pixel >= 0
        left = [len(pixel), alive.sum()]
        for condition in (
            numbers,
            parallax > 0,
            misfit < cuts.misfit,
            (flags < cuts.quality_flags) | np.isinf(cuts.quality_flags),
            (confidence > cuts.confidence) | np.isinf(cuts.confidence),
            value < cuts.value,
            parallax_error < cuts.parallax_error * parallax,
        ):
            alive &= condition
            left.append(alive.sum())
        before_cut = alive & (own >= 0)
        alive &= error < cuts.error
        left.append(alive.sum())
        smeared = alive.copy()
        alive &= own >= 0
        left.append(alive.sum())
        self.outcomes += [*(a - b for a, b in pairwise(left)), left[-1]]

        weight = 1.0 / error**2
        weighted = weight * value
        cell = pixel * self.settings.bins + own
        large = (pixel >> self.coarse_shift) * self.settings.bins
        for total, terms in zip(self.cells, (weight, weighted, None), strict=True):
            np.add.at(total, cell[alive], 1.0 if terms is None else terms[alive])
        for rows, sums in ((before_cut, (None, value)), (alive, (None, value, weight, weighted))):
            start = 0 if rows is before_cut else 2
            for total, terms in zip(self.coarse[start:], sums, strict=False):
                np.add.at(total, (large + own)[rows], 1.0 if terms is None else terms[rows])
        for side in (-1.0, 1.0):
            k = self._bins(parallax + side * parallax_error)
            rows = smeared & (k >= 0)
            for total, terms in zip(self.coarse[6:], (weight, weighted), strict=True):
                np.add.at(total, (large + k)[rows], 0.5 * terms[rows])

    def _bins(self, parallax: np.ndarray) -> np.ndarray:
        distance = 1.0 / np.where(parallax > 0, parallax, np.nan)
        k = np.searchsorted(self.edges, distance, side="right") - 1
        return np.where(k < self.settings.bins, k, -1)
