"""A grid of stellar types and extinctions, searched for the candidate that fits a star best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64


@dataclass(frozen=True, eq=False)
class CandidateGrid:
    """Every one of t types with every one of e extinctions, and how a star chooses among them.

    Candidate (t, e) has the flux ``base_flux[t] * exp(-ext[e] * ext_curve)`` at 1 mas. Its parallax is guessed from
    the observed flux f, p being the candidate's, over the samples of ``window`` that exist:

    - ``guess="ratio_of_sums"``: plx^2 = sum f / sum p;
    - ``guess="mean_of_ratios"``: plx^2 = mean of max(f / p, 0).

    It is kept inside ``plx_bounds``; without any such sample it is the measured one, or 1 mas. The score of a
    candidate is its chi^2 plus the penalty of its type and, with ``score="parallax"``, ((plx - measured) / sigma)^2.

    Attributes
    ----------
    types : (t, d) float64
    ext : (e,) float64
    base_flux : (t, m) float64
    ext_curve : (m,) float64
    penalty : (t,) float64
    window : (m,) bool
    guess : {"ratio_of_sums", "mean_of_ratios"}
    score : {"prior", "parallax"}
    plx_bounds : (float, float)
        [mas].
    """

    types: Float64
    ext: Float64
    base_flux: Float64
    ext_curve: Float64
    penalty: Float64
    window: NDArray[np.bool_]
    guess: str
    score: str
    plx_bounds: tuple[float, float]

    def __len__(self) -> int:
        return len(self.types) * len(self.ext)
