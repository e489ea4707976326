r"""What is known of a map's biases, from the stars themselves.

Over the coarsest pixels with enough stars, for each distance bin, the mean of

- ``cut``: the mean of the stars, less that before the cut on the error. Stars behind much dust are faint, their errors
  are larger, and the cut takes them out: the map is too low there.
- ``weights``: the mean with weights 1 / error^2, less that without. Bright stars before the dust weigh more than faint
  ones behind it.
- ``scatter``: each star is put half at parallax + error and half at parallax - error, which adds to the scatter of
  1 / parallax as much again: what that changes is, to the first order, what the scatter has done to the map.

The first two say what a choice does, not which is right; all are estimates, which ``python -m bench dust`` holds
against a known truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.maps.binning import StarBins


@dataclass(frozen=True)
class BinBias:
    """Of each distance bin; NaN where no pixel has enough stars.

    Attributes
    ----------
    pixels : (bins,) int64
        Coarsest pixels with enough stars.
    stars : (bins,) int64
        Stars used.
    mean : (bins,) float64
        Mean over these pixels of the mean of their stars [unit of the quantity].
    cut, weights, scatter : (bins,) float64
        Change of that mean [unit of the quantity].
    """

    pixels: NDArray[np.int64]
    stars: NDArray[np.int64]
    mean: Float64
    cut: Float64
    weights: Float64
    scatter: Float64


def biases(bins: StarBins) -> BinBias:
    """Estimate them from the coarse cells."""
    coarse = bins.coarse
    enough = coarse["stars"] >= bins.settings.min_stars
    pixels = enough.sum(axis=0)
    base = "weight", "weighted"
    plain = "stars", "sum"
    own = base if bins.settings.estimate == "weighted" else plain

    def change(after: tuple[str, str], before: tuple[str, str] | None) -> Float64:
        """Mean over pixels of the ratio (sum / weight) of one pair less that of another."""
        total = np.zeros(coarse.shape[1])
        for k in range(coarse.shape[1]):
            cells = coarse[enough[:, k], k]
            cells = cells[cells[after[0]] > 0]
            ratio = cells[after[1]] / cells[after[0]]
            if before is not None:
                ratio -= cells[before[1]] / cells[before[0]]
            total[k] = ratio.mean() if len(cells) else np.nan
        return total

    return BinBias(
        pixels=pixels,
        stars=coarse["stars"].sum(axis=0).astype(np.int64),
        mean=change(own, None),
        cut=change(plain, ("stars_uncut", "sum_uncut")),
        weights=change(base, plain),
        scatter=change(("smeared_weight", "smeared"), own),
    )
