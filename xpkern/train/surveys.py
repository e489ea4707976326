"""Offsets between label surveys: what one survey's teff, feh, logg are, on average, above another's.

Every star ends where its spectrum and its label both have their say. With I the information of the spectrum (and of
whatever else is known) on the stellar type, extinction and parallax eliminated, and K that of the label, the profile
loss of one star as a function of an offset o of its label is

    (label - o - type)^T W (label - o - type),    W = (I^-1 + K^-1)^-1 = K - K (I + K)^-1 K

with ``type`` what the spectrum alone says; and K (label - o - fitted) = W (label - o - type) at the star's optimum. The
loss of all stars of a survey is lowest at the offset

    (sum of W)^-1  sum of K (label - fitted).
"""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64, Solution, StarData

#: Stars whose label is farther than this from what most of the survey's are, in robust standard deviations, say nothing
#: about the offset: a label that belongs to another star, a binary.
_OUTLIER = 5.0

#: Median absolute deviation in standard deviations of a normal distribution.
_MAD_TO_SIGMA = 1.4826


def survey_offset(stars: StarData, solution: Solution) -> Float64:
    """Offset (3,) of one survey's labels [kK, dex, dex] from where the model has its stars.

    Parameters
    ----------
    stars : StarData
        The survey's stars, with labels of all of teff, feh, logg.
    solution : Solution
        Their optima.
    """
    difference = stars.mean[:, :3] - solution.params[:, :3]
    found = np.isfinite(difference).all(axis=1) & np.isfinite(solution.fisher).all(axis=(1, 2))
    difference, sigma, fisher = difference[found], stars.sigma[found, :3], solution.fisher[found]
    if not len(difference):
        return np.zeros(3)
    pull = difference / sigma
    deviation = np.abs(pull - np.median(pull, axis=0))
    width = np.maximum(_MAD_TO_SIGMA * np.median(deviation, axis=0), np.finfo(np.float64).tiny)
    kept = (deviation <= _OUTLIER * width).all(axis=1)
    of_label = 1.0 / sigma[kept] ** 2
    both = np.linalg.inv(np.linalg.inv(fisher[kept])[:, :3, :3])
    weight = -of_label[:, :, None] * np.linalg.inv(both) * of_label[:, None, :]
    np.einsum("nkk->nk", weight)[:] += of_label
    return np.linalg.solve(weight.sum(axis=0), (of_label * difference[kept]).sum(axis=0))
