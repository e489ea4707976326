"""Where a training starts: a network that says the median spectrum of all stars, or one whose last layer is fitted.

In ln f = MLP(Theta) - E R + 2 ln plx the output of the network is linear in its last layer. With hidden layers drawn at
random, the labels for (Theta, E, plx) and a standard law for R, that layer is a linear least-squares problem: the sums
of its normal equations are one pass over the stars, and what comes out is good to a few per cent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float32, Float64, StarData
from xpkern.engine.groups import GroupedStars
from xpkern.engine.packed import present_samples, sample_variance
from xpkern.grid import PARAMETERS, WAVELENGTH, in_scale_window
from xpkern.model.flux_model import FluxModel
from xpkern.train.extinction_law import optical_depth
from xpkern.train.network import Network
from xpkern.train.recipe import Recipe

#: Stars that tell the spectrum from which the network starts.
_MOST_STARS = 16384

#: Fractional error of a flux, in quadrature with its own: what a random network and labels with errors leave.
_START_ERROR = 0.05

#: Samples fainter than this many times their error do not count: the logarithm of noise is biased.
_LEAST_SNR = 5.0

#: Ridge on the last layer's weights, in stars.
_RIDGE = 1.0

#: A parallax of at least so many errors is where its star starts, as it is.
_CLEAR_PARALLAX = 3.0

#: Parallaxes [mas] that others may start from; singular values that do not count, in the fit of their brightness.
_START_PARALLAXES, _RCOND = (1e-3, 1e2), 1e-6


def start_model(stars: StarData | GroupedStars, labels: Float64, rows: NDArray[np.intp], recipe: Recipe) -> FluxModel:
    """The model before the first step.

    Parameters
    ----------
    stars : StarData or GroupedStars
    labels : (n, 5) float64
        Linear parameters of the stars.
    rows : (r,) int
        Training stars.
    recipe : Recipe

    Returns
    -------
    FluxModel
    """
    types = labels[rows, :3]
    spread = types.std(axis=0)
    zero_point, scale = types.mean(axis=0), np.where(spread > 0, spread, 1.0)
    curve = optical_depth(WAVELENGTH) if recipe.start.ext_curve == "law" else np.ones(len(WAVELENGTH))
    some = rows[:: -(-len(rows) // _MOST_STARS)]
    ln_flux, weight = _intrinsic_ln_flux(stars, labels, some, curve)
    median = _medians(ln_flux, weight)
    rng = np.random.default_rng(recipe.split.seed)
    network = Network.random((3, *recipe.start.hidden, len(WAVELENGTH)), median.astype(np.float32), rng)
    weights = [array.astype(np.float64) for array in network.weights]
    biases = [array.astype(np.float64) for array in network.biases]
    if recipe.start.output == "regression":
        hidden = network.layers(((labels[some, :3] - zero_point) / scale).astype(np.float32))[-2].astype(np.float64)
        weights[-1], biases[-1] = _regression(hidden, ln_flux - median, weight)
        biases[-1] += median
    return FluxModel.from_arrays(weights, biases, curve, zero_point, scale, WAVELENGTH)


def start_params(mean: Float64, sigma: Float64, flux: Float32, recipe: Recipe) -> Float64:
    """The labels as linear parameters (n, 5); without one, the recipe's extinction and a parallax by brightness.

    A star without a clear parallax gets that at which its type would be as bright as it is. How bright a type is, is a
    quadratic function of it, fitted to the stars that have one; arbitrary if none has.

    Parameters
    ----------
    mean, sigma : (n, 5) float64
        Labels and parallaxes, and their errors; inf where there is none.
    flux : (n, 66) float32
    recipe : Recipe
    """
    start = mean.copy()
    ext, plx = PARAMETERS.index("ext"), PARAMETERS.index("plx")
    start[~np.isfinite(sigma[:, ext]), ext] = recipe.start.ext
    start[:, ext] = np.maximum(start[:, ext], recipe.start.smallest_ext)
    clear = mean[:, plx] > _CLEAR_PARALLAX * sigma[:, plx]
    if not clear.all():
        window = in_scale_window(WAVELENGTH)
        brightness = flux[:, window].mean(axis=1, dtype=np.float64)
        seen = brightness > 0
        ln_flux = np.log(np.where(seen, brightness, 1.0)) + start[:, ext] * optical_depth(WAVELENGTH)[window].mean()
        terms = _quadratic(mean[:, :3])
        known = clear & seen
        if known.any():
            at_1_mas = ln_flux[known] - 2.0 * np.log(start[known, plx])
            coefficients = np.linalg.lstsq(terms[known], at_1_mas, rcond=_RCOND)[0]
        else:
            coefficients = np.zeros(terms.shape[1])
        guess = np.exp(0.5 * (ln_flux - terms @ coefficients))
        guess = np.where(seen, guess, np.median(guess[seen]) if seen.any() else 1.0)
        start[~clear, plx] = np.clip(guess[~clear], *_START_PARALLAXES)
    return start


def _quadratic(theta: Float64) -> Float64:
    """All products of up to two of (1, teff, feh, logg), teff as its logarithm, (n, 10)."""
    one = np.column_stack([np.ones(len(theta)), np.log(np.maximum(theta[:, 0], 1.0)), theta[:, 1:]])
    pairs = [one[:, i] * one[:, j] for i in range(one.shape[1]) for j in range(i, one.shape[1])]
    return np.column_stack(pairs)


def _intrinsic_ln_flux(
    stars: StarData | GroupedStars, labels: Float64, rows: NDArray[np.intp], curve: Float64
) -> tuple[Float64, Float64]:
    """Logarithm of each star's flux at 1 kpc without dust, and its weight, each (r, m); weight 0 where it is no use."""
    ln_flux, weight = np.zeros((len(rows), len(curve))), np.zeros((len(rows), len(curve)))
    for first in range(0, len(rows), 512):  # dense triangles are large
        part = slice(first, first + 512)
        chosen = stars[rows[part]]
        flux = chosen.flux.astype(np.float64)
        sigma = np.sqrt(sample_variance(chosen.whitener))
        good = present_samples(chosen.whitener) & (flux > _LEAST_SNR * sigma)
        positive = np.where(good, flux, 1.0)
        ext, plx = labels[rows[part], -2, None], labels[rows[part], -1, None]
        ln_flux[part] = np.where(good, np.log(positive) + ext * curve - 2.0 * np.log(plx), 0.0)
        weight[part] = np.where(good, 1.0 / ((sigma / positive) ** 2 + _START_ERROR**2), 0.0)
    return ln_flux, weight


def _medians(ln_flux: Float64, weight: Float64) -> Float64:
    """Median of each sample, (m,); of one that nobody has, that of its neighbour before."""
    median = np.zeros(ln_flux.shape[1])
    for sample in range(len(median)):
        values = ln_flux[weight[:, sample] > 0, sample]
        median[sample] = np.median(values) if len(values) else median[max(sample - 1, 0)]
    return median


def _regression(hidden: Float64, target: Float64, weight: Float64) -> tuple[Float64, Float64]:
    """Weights (h, m) and biases (m,) of the linear layer closest to ``target`` (r, m), the bias without a ridge."""
    design = np.column_stack([hidden, np.ones(len(hidden))])
    ridge = _RIDGE * np.eye(design.shape[1])
    ridge[-1, -1] = 0.0
    solution = np.zeros((design.shape[1], target.shape[1]))
    for sample in range(target.shape[1]):
        share = weight[:, sample] * _START_ERROR**2
        if share.any():
            weighted = design * share[:, None]
            solution[:, sample] = np.linalg.solve(weighted.T @ design + ridge, weighted.T @ target[:, sample])
    return solution[:-1], solution[-1]
